"""Sweeps on a real network file system, with faults: an NFS server, a login node and two compute nodes under Slurm.

By hand, as root, on Debian 12 (x86-64): ``python tests/nfs/run.py``. It installs the Debian packages user-mode-linux,
debootstrap, e2fsprogs, openssh-client and iproute2 where they are missing, makes the machines' disk the first time (two
minutes, 400 MB in ``--image``), and ends every machine with itself. For NFS 3 and 4.2 it then launches sweeps by the
Slurm launcher whose agents, on two hosts, share the runs, while the dashboard's reader folds and publishes on a third
and others read the published ledger: first with nothing amiss, then with agents that write nothing but a heartbeat
every 45 s, then a client loses its power, is paused for a minute, is paused for so long that Slurm starts its job
elsewhere, the login node loses its power while it publishes, the server restarts, and the export fills up. A sweep that
is not seen to its end leaves the others new machines. It prints a table, and ends with 1 if anything was not as
promised. It is bounded: 45 minutes at most. The promises on time mean nothing where the load per core, which it prints
too, is far above 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from campaign import SWEEPS, Campaign
from course import Row
from image import ImageError, build, install_what_is_missing, packages_for_inside
from machines import Lab, LabError

HERE = Path(__file__).resolve().parent

#: The script ends after so long, whatever is still under way, in seconds.
BOUND_S = 45 * 60.0

#: Marks the process that has namespaces of its own.
MARK = "DUCK_NFS_INSIDE"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--image", type=Path, default=Path("/var/tmp/duck-nfs"), help="where to keep the machines' disk"
    )
    parser.add_argument("--keep", action="store_true", help="keep what the machines wrote")
    parser.add_argument("--nfs", action="append", choices=("3", "4.2"), help="only this version")
    parser.add_argument("--only", action="append", choices=SWEEPS, help="only this sweep")
    options = parser.parse_args()
    if MARK not in os.environ:
        return prepare(options.image)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the first process of a namespace ignores it else
    folder = Path(os.environ[MARK])
    rows: list[Row] = []
    threading.Thread(target=give_up_later, args=(rows,), daemon=True).start()
    trouble = ""
    try:
        for version in options.nfs or ("3", "4.2"):
            left = [name for name in SWEEPS if name in (options.only or SWEEPS)]
            while left:  # after a sweep that failed, with new machines
                with Lab(options.image, folder / f"{version}-{left[0]}") as lab:
                    lab.put("srv", folder / "packages/site", "/export/site")
                    Campaign(lab, version, HERE, rows).run(left)
    except (LabError, OSError, subprocess.SubprocessError) as error:
        trouble = str(error)
    show(rows)
    complaints = [f"NFS {row.nfs}, {row.what}: {said}" for row in rows for said in row.complaints]
    for said in filter(None, [*complaints, trouble]):
        print(said)
    if complaints or trouble or options.keep:
        print(f"What the machines wrote is in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if complaints or trouble else 0


def prepare(image: Path) -> int:
    """Do what needs the network, then go on in namespaces of our own, with which all that was started dies."""
    folder = Path(tempfile.mkdtemp(prefix="duck-nfs-"))
    try:
        install_what_is_missing()
        build(image)
        packages_for_inside(HERE.parents[1], folder / "packages")
    except ImageError as error:
        shutil.rmtree(folder)
        print(error)
        return 1
    os.environ[MARK] = str(folder)
    alone = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    os.execvp(alone[0], [*alone, sys.executable, __file__, *sys.argv[1:]])


def give_up_later(rows: list[Row]) -> None:
    time.sleep(BOUND_S)
    show(rows)
    print(f"not done after {BOUND_S / 60:.0f} minutes", flush=True)
    os._exit(1)


def show(rows: list[Row]) -> None:
    """Print the table, as it stands in the README, and what else there is to say of each row."""
    print("\n| NFS | what happened | runs | attempts | behind | readings | requests |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        behind = "" if row.lag_s is None else f"{row.lag_s:.1f} s"
        requests = f"{max(row.requests):.1f} s" if row.requests else ""
        print(f"| {row.nfs} | {row.what} | {row.runs} | {row.ends} | {behind} | {row.reads} | {requests} |")
    print()
    for row in rows:
        verdict = "not as promised" if row.complaints else "as promised"
        print(
            f"NFS {row.nfs}, {row.what}: {verdict}; {row.again} readings tried again; took {row.took_s:.0f} s,"
            f" load per core {row.load:.1f}{f'; {row.note}' if row.note else ''}"
        )


if __name__ == "__main__":
    sys.exit(main())
