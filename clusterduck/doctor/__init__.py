"""Whether a folder, and the host it is on, suit sweeps: small checks, each of which says what to do."""
