"""Clusterduck's launchers for Hydra."""
