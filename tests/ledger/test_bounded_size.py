"""Long sweeps stay small: what grows with the hours is bounded, per run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from long_sweep import long_sweep


def test_ten_thousand_runs_of_an_hour_would_keep_to_100_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four at a time on a node, in jobs of a day."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())  # and back, whatever host we play
    sizes = []
    for agents in (2, 6):
        (tmp_path / str(agents)).mkdir()
        size = long_sweep(tmp_path / str(agents), agents=agents, runs_each=96)
        sizes.append(size.journals + size.ledger)
    per_run = (sizes[1] - sizes[0]) / (4 * 96)
    assert sizes[0] + 10_000 * per_run < 100e6, f"{per_run:.0f} bytes a run"
