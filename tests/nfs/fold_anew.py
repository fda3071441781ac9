"""Folds all journals of a ledger into a new file. Usage: fold_anew.py LEDGER FILE, with TMPDIR at an empty folder."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from clusterduck.ledger.replica import Replica

with Replica.open(Path(sys.argv[1])) as replica:
    report = replica.catch_up()
    assert not report.problems, report.problems
    with sqlite3.connect(sys.argv[2]) as copy:
        replica.connection.backup(copy)
    copy.close()
