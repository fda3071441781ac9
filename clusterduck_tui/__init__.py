"""The dashboard: sweeps, nodes and runs as they are now, in a terminal, and what can be done about them."""
