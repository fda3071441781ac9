"""The slot gap: from the end of one run's process to the first line of the next run's function in the same slot.

    python tests/benchmarks/bench_slot_gap.py [--runs 60] [--seconds 0.3]

Prints it for every kind of ``prefetch``, for runs that sleep a moment (so that there is time to prepare the next one)
and for runs that return at once, beside what Hydra itself needs for a run in a fresh fork (compose and everything
``run_job`` does before the function), measured in the same session: the floor for a launcher that prepares nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FLOOR = "Hydra's own compose and run_job in a fork"

APP = Path(__file__).with_name("noop_app.py")


def gaps(folder: Path, runs: int, prefetch: str, seconds: float) -> list[float]:
    """Seconds from the end of one run's process, when a pipe that it holds is closed, to the next one's first line."""
    pipes = [folder / "times" / str(run) for run in range(runs)]
    pipes[0].parent.mkdir()
    for pipe in pipes:
        os.mkfifo(pipe)
    begun: list[float] = []
    ended: list[float] = []

    def listen() -> None:
        for pipe in pipes:
            with pipe.open() as lines:  # until the run opens it
                begun.append(float(lines.readline()))
                lines.read()  # until its process is gone
                ended.append(time.time())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    command = [sys.executable, str(APP), "--multirun", f"+x=range({runs})", "hydra/launcher=clusterduck_local"]
    options = [f"hydra.launcher.prefetch={prefetch}", "hydra.launcher.wait_for_completion=true"]
    environ = {"CLUSTERDUCK_BENCHMARK_TIMES": str(pipes[0].parent), "CLUSTERDUCK_BENCHMARK_SECONDS": str(seconds)}
    subprocess.run(
        [*command, *options, f"hydra.sweep.dir={folder}/out"],
        cwd=folder,
        env={**os.environ, **environ},
        check=True,
        capture_output=True,
    )
    listener.join()
    return [after - before for before, after in zip(ended, begun[1:], strict=False)]


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
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in range(3):  # interleaved, so that what else the machine does falls on all alike
            for prefetch, seconds in itertools.product(("config", "imports", "off"), (options.seconds, 0.0)):
                folder = Path(scratch, f"{prefetch}-{seconds:g}-{part}")
                folder.mkdir()
                name = f"runs of {seconds:g} s, prefetch={prefetch}"
                measured.setdefault(name, []).extend(gaps(folder, options.runs // 3 + 1, prefetch, seconds))
            folder = Path(scratch, f"floor-{part}")
            measured.setdefault("Hydra's own compose and run_job in a fork", []).extend(
                floor(folder, options.runs // 3)
            )
    floors = statistics.median(measured["Hydra's own compose and run_job in a fork"])
    print(f"slot gap of {options.runs} runs, median, and its ratio to Hydra's own:")
    for name, values in measured.items():
        middle = statistics.median(values)
        print(f"{name:42} {middle * 1e3:6.1f} ms   {middle / floors:5.2f}")
    if statistics.median(measured[f"runs of {options.seconds:g} s, prefetch=config"]) > 0.020:
        raise SystemExit("aimed at: 20 ms where the next run could be prepared")


if __name__ == "__main__":
    main()
