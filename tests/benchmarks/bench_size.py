"""How large the journals and the ledger of a sweep of long runs become, in compressed time.

python tests/benchmarks/bench_size.py [--runs 10000] [--hours 1] [--slots 4] [--jobs 100]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "ledger"))

from long_sweep import long_sweep


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--hours", type=float, default=1.0, help="how long each run takes")
    parser.add_argument("--slots", type=int, default=4, help="runs at a time on a node")
    parser.add_argument("--jobs", type=int, default=100)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="duck-size-"))
    began = time.monotonic()
    try:
        size = long_sweep(
            base, agents=options.jobs, runs_each=options.runs // options.jobs, slots=options.slots, hours=options.hours
        )
    finally:
        shutil.rmtree(base)
    print(
        f"{options.runs} runs of {options.hours:g} h, {options.slots} at a time in each of {options.jobs} jobs: "
        f"{size.journals / 1e6:.1f} MB of journals, {size.ledger / 1e6:.1f} MB ledger "
        f"(simulated in {time.monotonic() - began:.0f} s)"
    )


if __name__ == "__main__":
    main()
