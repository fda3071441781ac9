"""What launching a large sweep costs: our own part, from the sweeper's call of ``launch`` to its return, and Hydra's.

    python tests/benchmarks/bench_launch.py [--runs 1000 10000 50000] [--jobs 100] [--composed 200]

Each number of runs is launched in a process of its own, into 100 Slurm jobs with ``wait_for_completion: false``. A
script that answers as sbatch does stands in for Slurm, so that nothing is measured but ours (and submitit's). Printed
are wall-clock time, processor time of this process and of those it starts, and by how much its memory grew at its
highest. Beside it: what Hydra's sweeper takes to compose every run before it calls any launcher, measured with fewer
runs of an application with six config groups, and what ``hydra/sweeper=clusterduck`` takes for 10,000 runs of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import launching
from launching import cpu_s

#: What is to be reached with 10,000 runs.
SECONDS, MEGABYTES = 3.0, 100.0

#: From one number of runs to a larger one, the time may grow as the runs do, and by this much for chance.
GROWTH = 1.15

SBATCH = '#!/bin/sh\necho "Submitted batch job $$"\n'

GROUPS = ("data", "model", "optimizer", "scheduler", "trainer", "logger")


def project(folder: Path) -> Path:
    """An application with six config groups of ten entries each."""
    conf = folder / "conf"
    conf.mkdir(parents=True)
    defaults = "".join(f"  - {group}: one\n" for group in GROUPS)
    (conf / "config.yaml").write_text(f"defaults:\n{defaults}  - _self_\nseed: 0\n")
    for group in GROUPS:
        (conf / group).mkdir()
        entries = "".join(f"{group}_{at}: ${{seed}}\n" for at in range(10))
        (conf / group / "one.yaml").write_text(entries)
    (folder / "app.py").write_text("")
    return folder / "app.py"


def _memory(name: str) -> float:
    """A line of ``/proc/self/status``, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def launch(folder: Path, runs: int, jobs: int) -> dict[str, float]:
    """Launch so many runs, as the sweeper does."""
    project(folder)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue"):
        (bin_folder / name).write_text(SBATCH if name == "sbatch" else "#!/bin/sh\nexit 1\n")
        (bin_folder / name).chmod(0o755)
    os.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    os.environ["CLUSTERDUCK_LEDGER"] = str(folder / "ledger" / "ledger.db")
    os.chdir(folder)
    per_node = f"hydra.launcher.total_runs_per_node={-(-runs // jobs)}"
    launcher = launching.launcher(folder, "slurm", abs, f"hydra.sweep.dir={folder}/out", per_node)
    overrides = [[f"seed={run}", f"model.lr={run / 7}", "optimizer=one"] for run in range(runs)]
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    cpu, began = cpu_s(), time.perf_counter()
    answers = launcher.launch(overrides, initial_job_idx=0)
    took, cpu = time.perf_counter() - began, cpu_s() - cpu
    assert len(answers) == runs
    return {"s": took, "cpu_s": cpu, "memory_mb": _memory("VmHWM") - before}


def compose(folder: Path, runs: int, sweeper_name: str) -> dict[str, float]:
    """Compose so many runs, as the sweeper does before it calls a launcher."""
    from hydra.core.plugins import Plugins

    project(folder)
    context, config = launching.made(folder, f"hydra/sweeper={sweeper_name}")
    sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=abs, config=config)
    sweeper.validate_batch_is_legal([["seed=0"]])
    cpu, began = cpu_s(), time.perf_counter()
    sweeper.validate_batch_is_legal([[f"seed={run}"] for run in range(runs)])
    return {"s": time.perf_counter() - began, "cpu_s": cpu_s() - cpu}


def in_process_of_its_own(what: str, runs: int, jobs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--do", what, "--runs", str(runs), "--jobs", str(jobs), "--in", folder]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": folder}
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Measure, print; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--composed", type=int, default=200)
    parser.add_argument("--do", help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        folder = Path(options.folder) / "project"
        runs = options.runs[0]
        done = launch(folder, runs, options.jobs) if options.do == "launch" else compose(folder, runs, options.do)
        print(json.dumps(done))
        return 0
    missed = False
    print(f"{'runs':>7} {'wall, s':>9} {'CPU, s':>9} {'memory, MB':>11} {'CPU by run, us':>15}")
    last: tuple[int, float] | None = None
    for runs in options.runs:
        found = in_process_of_its_own("launch", runs, options.jobs)
        each = found["cpu_s"] / runs * 1e6
        print(f"{runs:7} {found['s']:9.2f} {found['cpu_s']:9.2f} {found['memory_mb']:11.1f} {each:15.0f}")
        if runs == 10_000 and (found["s"] >= SECONDS or found["memory_mb"] >= MEGABYTES):
            missed = True
            print(f"        missed: {SECONDS:g} s and {MEGABYTES:g} MB")
        if last is not None and found["cpu_s"] / last[1] > GROWTH * runs / last[0]:
            missed = True
            print("        missed: it grows faster than the number of runs")
        last = runs, found["cpu_s"]
    each = in_process_of_its_own("basic", options.composed, 1)["cpu_s"] / options.composed
    print(f"Hydra's sweeper composes a run of six config groups in {each * 1e3:.0f} ms: {each * 1e4:.0f} s for 10,000")
    ours = in_process_of_its_own("clusterduck", 10_000, 1)["cpu_s"]
    print(f"hydra/sweeper=clusterduck takes {ours:.2f} s for 10,000 numbers")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
