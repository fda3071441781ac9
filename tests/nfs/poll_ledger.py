"""Somebody who reads the published ledger with nothing but sqlite3, again and again, and checks all of it.

Usage: poll_ledger.py LEDGER FOLDER NAME. It writes a line for each reading into ``<name>.jsonl`` in the folder, until
there is a file ``stop``. A reading that fails is tried again with a fresh open, as the file may just have been
replaced; only one that fails three times is a failure.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from pathlib import Path

PAUSE_S = 0.5
TRIES = 3


def read(ledger: Path) -> dict[str, object]:
    connection = sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        sound = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        generation = connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
        counts = connection.execute("SELECT state, count(*) FROM attempt GROUP BY state").fetchall()
        publisher = connection.execute("SELECT value FROM meta WHERE key = 'published_by'").fetchone()
    finally:
        connection.close()
    return {"sound": sound, "generation": int(generation[0]), "counts": dict(counts), "by": publisher[0]}


def main() -> None:
    ledger, folder, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with (folder / f"{name}.jsonl").open("a", buffering=1) as file:
        while not (folder / "stop").exists():
            errors: list[str] = []
            found: dict[str, object] | None = None
            while found is None and len(errors) < TRIES:
                try:
                    found = read(ledger)
                except (sqlite3.Error, OSError) as error:
                    errors.append(f"{getattr(error, 'sqlite_errorname', '')} {type(error).__name__}: {error}")
                    time.sleep(0.05)
            print(json.dumps({"at": time.time(), "errors": errors, **(found or {})}), file=file)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
