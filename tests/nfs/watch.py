"""The dashboard without a terminal, on the login node: it writes down when it had news of which end of an attempt,
and of which agents.

Usage: watch.py LEDGER FOLDER. It goes on until there is a file ``stop`` in the folder.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from pathlib import Path

from textual.message import Message

import clusterduck_tui.app
from clusterduck.paths import LedgerPaths
from clusterduck_tui.messages import JobsRead, LedgerState, SweepsRead


class Watched(clusterduck_tui.app.Dashboard):
    """The dashboard, whose threads' messages are looked at on their way to it."""

    CSS_PATH = Path(clusterduck_tui.app.__file__).with_name("clusterduck.tcss")

    def __init__(self, ledger: Path, notes: Path) -> None:
        super().__init__(ledger=str(ledger))
        self._replica_file = LedgerPaths(ledger).replica_folder / "replica.db"
        self._notes = notes
        self._noted: set[tuple[object, ...]] = set()

    def on_ready(self) -> None:
        self.set_interval(0.5, self._leave_if_told)

    def _leave_if_told(self) -> None:
        if (self._notes / "stop").exists():
            self.exit()

    def post_message(self, message: Message) -> bool:
        if isinstance(message, SweepsRead):
            self._note_news(time.time())
        elif isinstance(message, LedgerState | JobsRead) and message.trouble:
            self._note("complaints", {"at": time.time(), "said": message.trouble})
        return super().post_message(message)

    def _note_news(self, now: float) -> None:
        with sqlite3.connect(self._replica_file, timeout=30) as connection:
            rows = connection.execute("SELECT sweep, run, number, state, ended_at FROM attempt").fetchall()
            agents = connection.execute("SELECT sweep, batch, restart, node, seen_at FROM agent").fetchall()
        connection.close()
        for agent in agents:
            if agent not in self._noted:
                self._noted.add(agent)
                self._note("heard", {"at": now, "agent": agent[:4], "seen_at": agent[4]})
        for row in rows:
            if row[:4] not in self._noted:
                self._noted.add(row[:4])
                self._note("seen", {"at": now, "attempt": row})

    def _note(self, name: str, what: dict[str, object]) -> None:
        with (self._notes / f"{name}.jsonl").open("a") as file:
            print(json.dumps(what), file=file)


if __name__ == "__main__":
    Watched(Path(sys.argv[1]), Path(sys.argv[2])).run(headless=True)
