"""The views, and the parts they are made of."""
