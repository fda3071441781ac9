"""The slot gap: from the end of one run's process to the first line of the next run's function in the same slot.

    python tests/benchmarks/bench_slot_gap.py [--runs 60]

Prints it beside what Hydra itself needs for a run in a fresh fork (compose and everything ``run_job`` does before the
function), measured in the same session: the floor for a launcher that prepares nothing ahead.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APP = Path(__file__).with_name("noop_app.py")


def gaps(folder: Path, runs: int) -> list[float]:
    """Seconds from one run's last line of Python to the next one's first."""
    times = folder / "times"
    command = [sys.executable, str(APP), "--multirun", f"+x=range({runs})", "hydra/launcher=clusterduck_local"]
    subprocess.run(
        [*command, "hydra.launcher.wait_for_completion=true", f"hydra.sweep.dir={folder}/out"],
        cwd=folder,
        env={**os.environ, "CLUSTERDUCK_BENCHMARK_TIMES": str(times)},
        check=True,
        capture_output=True,
    )
    lines = [line.split() for line in times.read_text().splitlines()]
    pairs = itertools.pairwise(lines)
    return [float(after[1]) - float(before[1]) for before, after in pairs if (before[0], after[0]) == ("last", "first")]


def floor(folder: Path, runs: int) -> list[float]:
    """Seconds from a fork to the first line of the function, by Hydra alone, loaded and with its sweep composed."""
    from hydra import version
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import run_job
    from hydra.types import HydraContext, RunMode
    from omegaconf import open_dict

    version.setbase("1.3")
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra_file_or_module(str(APP), None, None, "noop_app")
    master = hydra.compose_config(None, [f"hydra.sweep.dir={folder}/floor"], RunMode.MULTIRUN)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(master))

    def one(run: int, told: int) -> None:
        config = hydra.config_loader.load_sweep_config(master, [f"+x={run}"])
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = run

        def function(_: object) -> None:
            os.write(told, f"{time.time():.6f}".encode())
            os._exit(0)

        run_job(function, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)

    measured = []
    for run in range(runs):
        reader, writer = os.pipe()
        began = time.time()
        child = os.fork()
        if child == 0:
            one(run, writer)
        os.waitpid(child, 0)
        measured.append(float(os.read(reader, 64)) - began)
        os.close(reader)
        os.close(writer)
    return measured


def main() -> None:
    """Measure, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hydras = statistics.median(floor(folder, options.runs))
        ours = statistics.median(gaps(folder, options.runs + 1))
        again = statistics.median(floor(folder, options.runs))
    best = min(hydras, again)
    print(f"slot gap, median of {options.runs}:                  {ours * 1e3:6.1f} ms")
    print(f"Hydra's own compose and run_job in a fork:  {best * 1e3:6.1f} ms")
    print(f"ratio:                                      {ours / best:6.2f}")


if __name__ == "__main__":
    main()
