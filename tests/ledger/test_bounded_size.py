"""Long sweeps stay small: what grows with the hours is bounded, per run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from long_sweep import long_sweep


@pytest.mark.parametrize("slots", [1, 4])
def test_ten_thousand_runs_of_an_hour_would_keep_to_100_megabytes(
    slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many at a time on a node, in jobs of a day."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())  # and back, whatever host we play
    sizes = []
    for runs in (96, 288):
        (tmp_path / str(runs)).mkdir()
        per_day = 24 * slots
        size = long_sweep(tmp_path / str(runs), agents=runs // per_day, runs_each=per_day, slots=slots)
        sizes.append(size.journals + size.ledger)
    per_run = (sizes[1] - sizes[0]) / 192
    assert sizes[0] + 9_904 * per_run < 100e6, f"{per_run:.0f} bytes a run"
