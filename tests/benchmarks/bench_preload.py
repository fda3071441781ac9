"""What ``preload`` and ``prefetch=imports`` save where the user's module takes 2 seconds to import.

    python tests/benchmarks/bench_preload.py [--runs 6]

Prints how many seconds each run of half a second takes in one slot: with nothing, with each, and with both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: A module that is as slow to import as a large framework: it works, it does not sleep.
HEAVY = """
import time
until = time.process_time() + 2.0
while time.process_time() < until:
    sum(range(1000))
"""

APP = """
import time
import hydra
import heavy

@hydra.main(version_base=None)
def main(cfg):
    heavy.until
    time.sleep(0.5)

if __name__ == "__main__":
    main()
"""

WAYS = {
    "as it is": [],
    "preload: [heavy]": ["hydra.launcher.preload=[heavy]"],
    "prefetch: imports": ["hydra.launcher.prefetch=imports"],
    "both": ["hydra.launcher.preload=[heavy]", "hydra.launcher.prefetch=imports"],
}


def sweep(folder: Path, runs: int, options: list[str]) -> float:
    """Seconds that a sweep in one slot takes."""
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "heavy.py").write_text(HEAVY)
    command = [sys.executable, "app.py", "--multirun", f"+x=range({runs})", "hydra/launcher=clusterduck_local"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "hydra.launcher.wait_for_completion=true", *options], cwd=folder, check=True, capture_output=True
    )
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for part in range(options.rounds):
            for number, (way, given) in enumerate(WAYS.items()):
                few = sweep(Path(scratch, f"{part}-{number}-few"), 2, given)
                many = sweep(Path(scratch, f"{part}-{number}-many"), options.runs + 2, given)
                took[way].append((many - few) / options.runs)
    print(f"a module that takes 2 s to import, runs of 0.5 s in one slot: seconds per run, median of {options.rounds}")
    for way, seconds in took.items():
        print(f"{way:20} {statistics.median(seconds):6.2f} s")


if __name__ == "__main__":
    main()
