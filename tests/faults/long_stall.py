"""A file server that answers nothing for a minute, by hand: ``python tests/faults/long_stall.py [--seconds 60]``.

Everything that the agent asks of the sweep's folder hangs, and its log with it, while runs end and the next ones begin.
Afterwards everything has to be written, and the wait loop never late by more than 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "ledger")]

from faulty_fs import FaultyFileSystem, Rule, build  # noqa: E402 - for the script, found only now
from faulty_sweep import FaultySweep, preparing  # noqa: E402

ROOT = "out/.clusterduck/app-abcde"
CALLS = "create,write,fsync,rename,link,symlink,mkdir,open,opendir,stat,readlink,unlink,close"


def main() -> None:
    """Stall, mend, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="duck-stall-"))
    (base / "project").mkdir()
    with preparing() as prepare:
        faults = FaultyFileSystem(build(base), base / "project", base / "faults")
        sweep = FaultySweep(base / "project", faults, prepare)
        sweep.plan("waits", "waits", "returns", "returns", "fails_once", "returns")
        sweep.start(max_retries=1, retry_on=["FAILED"])
        sweep.until_begun(0, 1)
        sweep.until_held_ready(4)
        faults.fail(
            Rule(CALLS, f"{ROOT}/*", how="stall", who="agent"), Rule("write", "job.log", how="stall", who="agent")
        )
        sweep.go()
        sweep.until_begun(2, 3)
        time.sleep(options.seconds)  # what is asked for: so long nothing is answered
        faults.mend()
        began = time.monotonic()
        assert sweep.until_over() == 1
        caught_up = time.monotonic() - began
        sweep.check_runs(4)
        sweep.check_loop()
        sweep.check_ledger()
        watched = json.loads(Path(f"{base}/project.watched").read_text())
        sweep.close()
    print(
        f"stalled for {options.seconds:.0f} s; the wait loop was late by {1000 * watched['latest']:.1f} ms at most in "
        f"{watched['ticks']} ticks; {caught_up:.1f} s after it the sweep was over, and the ledger right"
    )
    shutil.rmtree(base)


if __name__ == "__main__":
    os.environ.pop("CLUSTERDUCK_LEDGER", None)
    main()
