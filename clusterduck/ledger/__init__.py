"""The ledger: what all journals of a project say, folded into one SQLite file that anybody can read."""
