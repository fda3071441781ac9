"""Make the README's pictures from the real app: ``python tests/tui/make_pictures.py tests/tui/pictures``."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "ledger")]

from dashboards import Opened  # noqa: E402
from journals_builder import SweepBuilder  # noqa: E402

from clusterduck_tui.app import Dashboard  # noqa: E402

#: View -> its key, and words that stand there once all of it is there.
PICTURES = {
    "overview": ("1", "Jobs of"),
    "nodes": ("2", "slots busy"),
    "timeline": ("3", "node1/3"),
    "runs": ("4", "R RUNNING"),
}


def build(base: Path) -> None:
    """A sweep that is over, and one at work on two nodes of four slots."""
    SweepBuilder(base, "train-aa2de", start=time.time() - 90_000).write_all(runs=60)
    live = SweepBuilder(base, "train-bb3fg", start=time.time() - 700)
    live.write(live.launch_journal(), live.launch(60, batches=2))
    for node in range(2):
        at = live.start + 20 + 7 * node
        events = [live.agent_started(at, f"node{node}", job_id=f"900{node}")]
        run = 30 * node
        for turn in range(5):
            for slot in range(4):
                begun = at + 1 + turn * 120 + 3 * slot
                state = "FAILED" if run % 11 == 5 else "TIMEOUT" if run % 17 == 9 else "COMPLETED"
                events += [live.started(begun, run, slot=slot)]
                events += [live.ended(begun + 95 + 11 * (run % 3), run, state=state, started_at=begun)]
                run += 1
        events += [live.started(at + 610 + slot, run + slot, slot=slot) for slot in range(4 - node)]
        events += [live.beat(at + second, 4 - node) for second in range(100, 670, 15)]
        live.write(live.agent_journal(f"0-{node}"), events, close=False)


async def draw(base: Path, folder: Path) -> None:
    """Open the dashboard, and keep what each view looks like."""
    app = Dashboard(folder=base, read_only=True)
    async with app.run_test(size=(110, 28)) as pilot:
        it = Opened(app, pilot)
        await it.see("train-bb3fg")
        for name, (key, words) in PICTURES.items():
            await it.press(key)
            await it.see(words)
            await pilot.pause(0.5)
            (folder / f"dashboard-{name}.svg").write_text(app.export_screenshot(), encoding="utf-8")


def main() -> None:
    """Make them."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        os.environ["TMPDIR"], tempfile.tempdir = name, None
        os.environ["PATH"] = name  # there is no Slurm to ask
        base = Path(name) / "project"
        base.mkdir()
        squeue = Path(name) / "squeue"
        now = time.time()
        rows = "".join(f"echo '900{node}|RUNNING|{now - 697:.0f}|{now - 680:.0f}|48:20|1|None'\n" for node in range(2))
        squeue.write_text(f"#!/bin/sh\n{rows}")
        squeue.chmod(0o700)
        build(base)
        asyncio.run(draw(base, folder))


if __name__ == "__main__":
    main()
