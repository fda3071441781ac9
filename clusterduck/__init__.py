"""Packs the runs of a Hydra sweep into few Slurm jobs, keeps every slot busy, and records all of it in a ledger."""

__version__ = "0.1.0"
