"""What clusterduck costs where it does nothing, and how soon its commands answer.

    python tests/benchmarks/bench_import.py [--times 20] [--runs 100000]

A Hydra application that does not use clusterduck is run with the plugin installed, and with its folder hidden from
Hydra. Then ``clusterduck --help`` and, on a ledger of 100,000 runs that this host has read before and nobody writes
to, ``clusterduck status``. Each in a process of its own, in turn: cold but for the file system's cache. Medians of
wall-clock and processor time, beside ``python -c pass``.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import launching

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ledger"))

#: In seconds.
PLUGIN, STATUS, HELP = 0.005, 0.3, 0.15

#: Takes the folder that holds the plugin out of the namespace of Hydra's plugins.
HIDE = """
import importlib.machinery, os, sys
class WithoutOurs:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "hydra_plugins":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        found = [each for each in spec.submodule_search_locations if not os.path.isdir(each + "/clusterduck_launcher")]
        spec.submodule_search_locations = found
        return spec
sys.meta_path.insert(0, WithoutOurs)
"""

APP = """
import sys
{hide}
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg): pass
sys.argv = ["app", "hydra.run.dir=out", "hydra.output_subdir=null", "hydra/job_logging=none"]
main()
"""


def once(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def build(folder: Path, runs: int) -> None:
    """A project with ten sweeps, all of them over."""
    from journals_builder import SweepBuilder

    from clusterduck.ledger.publish import publish
    from clusterduck.ledger.replica import Replica

    for index in range(10):
        each = SweepBuilder(folder, f"bench-{index:05d}", start=time.time() - 90_000 + index)
        each.write(each.launch_journal(), each.launch(runs // 10, batches=4))
        for batch in range(4):
            low, high = runs // 10 * batch // 4, runs // 10 * (batch + 1) // 4
            each.write(each.agent_journal(f"0-{batch}"), each.agent(range(low, high), f"node{batch}"))
    with Replica.open(each.ledger) as replica:
        while replica.catch_up(5.0).more:
            pass
        publish(replica, each.ledger)


def main() -> int:
    """Measure, print; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--runs", type=int, default=100_000)
    options = parser.parse_args()
    clusterduck = str(Path(sys.executable).with_name("clusterduck"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        environ = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": ""}
        environ.pop("CLUSTERDUCK_LEDGER", None)
        os.environ.update(environ)
        tempfile.tempdir = None
        build(folder, options.runs)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "Hydra application, plugin hidden": [sys.executable, "-c", APP.format(hide=HIDE)],
            "Hydra application, plugin installed": [sys.executable, "-c", APP.format(hide="")],
            "clusterduck --help": [clusterduck, "--help"],
            f"clusterduck status, {options.runs} runs": [clusterduck, "status"],
        }
        for command in commands.values():
            once(command, folder, environ)  # bytecode is written, files are in the cache
        times: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for _ in range(options.times):
            for what, command in commands.items():
                times[what].append(once(command, folder, environ))
    medians = {
        what: tuple(statistics.median(each) for each in zip(*found, strict=True)) for what, found in times.items()
    }
    rows = [["", "wall, ms", "CPU, ms", "CPU / python's"]]
    floor = medians["python -c pass"][1]
    for what, (wall, cpu) in medians.items():
        rows.append([what, f"{wall * 1e3:.1f}", f"{cpu * 1e3:.1f}", f"{cpu / floor:.1f}"])
    launching.table(rows)
    *_, helped, status = medians.values()
    pairs = zip(times["Hydra application, plugin installed"], times["Hydra application, plugin hidden"], strict=True)
    plugin = statistics.median(ours[1] - bare[1] for ours, bare in pairs)
    print(f"the plugin costs a Hydra application {plugin * 1e3:.1f} ms of CPU (median of the pairs)")
    return int(plugin >= PLUGIN or status[0] >= STATUS or helped[0] >= HELP)


if __name__ == "__main__":
    sys.exit(main())
