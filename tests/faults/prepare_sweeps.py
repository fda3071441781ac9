"""Prepares sweeps for faults to happen to, one for each line on stdin: as ``tests/agent/prepare_sweep.py`` does, from a
warm process. A line is ``{"folder": ..., "overrides": [...]}``; the answer, when the sweep is there, is an exit status.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "agent"))
from prepare_sweep import prepare


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.chdir(order["folder"])
            sys.path.insert(0, order["folder"])
            prepare(f"{order['folder']}/out", order["overrides"])
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
