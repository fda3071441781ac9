"""Publishing while the shared file system fails: the old ledger stays whole, and the new one comes once it can."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_fs import FaultyFileSystem, Rule
from faulty_sweep import folded_anew
from journals_builder import SweepBuilder, tables

FAULTS = {
    "the disk is full": Rule("create", ".clusterduck/*", errno.ENOSPC),
    "the quota is used up": Rule("write", ".clusterduck/.ledger.db.*", errno.EDQUOT),
    "fsync fails": Rule("fsync", ".clusterduck/.ledger.db.*", errno.EIO),
    "renaming fails": Rule("rename", ".clusterduck/ledger.db", errno.ESTALE),
    "renaming succeeds, but the answer is lost": Rule("rename", ".clusterduck/ledger.db", errno.EIO, how="lost"),
    "the project cannot be listed": Rule("opendir,open", ".clusterduck/*", errno.EIO),
    "the sweep cannot be read": Rule("opendir,open", "multirun/*", errno.ESTALE),
}


@pytest.mark.parametrize("rule", FAULTS.values(), ids=FAULTS)
def test_the_ledger_stays_whole_and_is_published_once_it_can_be(
    tmp_path: Path, faulty_library: Path, rule: Rule
) -> None:
    sweep = SweepBuilder(tmp_path / "project")
    sweep.write(sweep.launch_journal(), sweep.launch(24, batches=2))
    sweep.write(sweep.agent_journal("0-0"), sweep.agent(range(12), "node0"))
    faults = FaultyFileSystem(faulty_library, tmp_path / "project", tmp_path / "faults")

    def publish() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clusterduck.ledger.publish", str(sweep.ledger)],
            env={**os.environ, **faults.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    assert publish().returncode == 0
    before = sound_tables(sweep.ledger)
    sweep.write(sweep.agent_journal("0-1"), sweep.agent(range(12, 24), "node1"))
    now = folded_anew(sweep.ledger)
    assert now != before
    faults.fail(rule)
    failed = publish()
    assert faults.hits()
    assert failed.stderr.strip() and "Traceback" not in failed.stderr, failed.stderr
    assert sound_tables(sweep.ledger) in (before, now)
    faults.mend()
    assert (publish().returncode, sound_tables(sweep.ledger)) == (0, now)
    left = {path.name for path in sweep.ledger.parent.iterdir()}
    assert left == {".gitignore", "ledger.db", "ledger.db.id", "sweeps"}


def sound_tables(ledger: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return tables(connection)
    finally:
        connection.close()
