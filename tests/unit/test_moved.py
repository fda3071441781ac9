"""Where sweeps lie: what is there is found whatever its name, and what is gone is said to be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from journals_builder import SweepBuilder

from clusterduck import standing
from clusterduck.ledger.replica import Replica


def test_a_project_in_a_folder_whose_name_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    sweep = SweepBuilder(tmp_path / os.fsdecode(b"b\xff d\n"), "train-aa2de")
    sweep.write_all(4, 2)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert standing.missing(replica.connection, [sweep.sweep]) == {}
        assert standing.paths_of(replica.connection, sweep.sweep) == sweep.paths
        shutil.rmtree(sweep.paths.sweep_dir)
        (sentence,) = standing.missing(replica.connection, [sweep.sweep]).values()
        assert "was moved or deleted" in sentence
