"""The command line: ``clusterduck status``, ``nodes``, ``runs``, ``show`` and ``logs``."""
