"""Four virtual machines that share a file system by NFS: a server, a login node, and two compute nodes under Slurm.

Each is a Linux kernel of its own with its own page cache, attribute cache, clock of NFS leases and locks; the kernel is
a user-mode Linux, which runs at nearly full speed where no hardware helps with virtual machines, and can be killed and
stopped like any process.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

#: Each machine's name, its place in the network, and its memory in MB.
MACHINES = {"srv": (1, 384), "login": (2, 640), "c1": (3, 640), "c2": (4, 640)}

#: How long NFS 4's lease is, and how long a restarted server waits for those who had locks, in seconds.
LEASE_S = 10

#: The size of the export in MB: small, so that it is soon full.
EXPORT_MB = 384

#: How long a machine may take to be ready, in seconds: a compute node waits for the server.
BOOT_S = 120.0


class LabError(RuntimeError):
    """A machine did not do what it was told."""


def wait_until(fact: Callable[[], object], what: str, seconds: float) -> None:
    """Wait until ``fact()`` is true.

    Raises:
        LabError: if it is not after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.1)


class Lab:
    """The machines; use it as a context manager, in network and PID namespaces of its own.

    Args:
        image: the folder that ``image.build`` made.
        folder: a new one, for everything that the machines write; ``shared`` in it is what all see as ``/host``.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        self._image = image
        self._folder = folder
        self.shared = folder / "shared"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._switched_on: dict[str, float] = {}

    def __enter__(self) -> Lab:
        for name in ("ready", "effects"):
            (self.shared / name).mkdir(parents=True)
        for name in ("guest-init", "slurm.conf"):
            shutil.copy(Path(__file__).with_name(name), self.shared)
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "lan", "type", "bridge")
        _ip("address", "add", "10.9.0.254/24", "dev", "lan")
        _ip("link", "set", "lan", "up")
        for name in MACHINES:
            _ip("tuntap", "add", "dev", name, "mode", "tap")
            _ip("link", "set", name, "master", "lan", "up")
        _call("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", self._folder / "export.img", f"{EXPORT_MB}M")
        try:
            for name in MACHINES:
                self._start(name)
            for name in MACHINES:
                self._wait_until_ready(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Switch all machines off, and take down their network."""
        for name in list(self._running):
            self.kill(name)
        for name in (*MACHINES, "lan"):
            _ip("link", "delete", name)

    # --- what may happen to a machine

    def kill(self, name: str) -> None:
        """Power loss: what was not on its disk is gone."""
        process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (self.shared / "ready" / name).unlink(missing_ok=True)

    def boot(self, name: str) -> None:
        """Power on again, and wait until it is ready."""
        self._start(name)
        self._wait_until_ready(name)

    def is_since(self, name: str, moment: float) -> bool:
        """Whether it has had power ever since a moment of the monotonic clock."""
        return name in self._running and self._switched_on[name] < moment

    def pause(self, name: str) -> None:
        """Freeze it, clock and all; the clock is right again as soon as it goes on."""
        os.kill(self._running[name].pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        os.kill(self._running[name].pid, signal.SIGCONT)

    # --- commands

    def run(self, name: str, command: str, seconds: float = 60.0, check: bool = True) -> str:
        """Run a command in a machine, as root. Returns its standard output.

        Raises:
            LabError: if it failed, unless ``check`` is false; and if it took longer than ``seconds``.
        """
        try:
            done = subprocess.run(
                [*self._ssh(name), command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{name}: {command}: not done after {seconds:.0f} s") from None
        if check and done.returncode:
            raise LabError(f"{name}: {command}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def start(self, name: str, command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command in a machine; it ends with the connection, or with the machine."""
        with log.open("ab") as output:
            return subprocess.Popen([*self._ssh(name), command], stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def put(self, name: str, source: Path, target: str) -> None:
        """Copy the contents of a folder into a machine, onto its disk: it may lose power at any time from now on."""
        tar = subprocess.Popen(["tar", "-C", source, "-c", "."], stdout=subprocess.PIPE)
        where = shlex.quote(target)
        unpack = f"mkdir -p {where} && tar -C {where} --no-same-owner -x && sync"
        subprocess.run([*self._ssh(name), unpack], stdin=tar.stdout, check=True, timeout=120)
        if tar.wait():
            raise LabError(f"{source} could not be read")

    def _ssh(self, name: str) -> list[str]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=30")
        spelled = [word for option in options for word in ("-o", option)]
        return ["ssh", *spelled, "-i", str(self._image / "key"), f"root@10.9.0.{MACHINES[name][0]}"]

    # --- how a machine is made

    def _start(self, name: str) -> None:
        memory = MACHINES[name][1]
        command = [
            "linux.uml",
            f"mem={memory}M",
            f"ubd0={self._folder / name}.cow,{self._image / 'root.img'}",
            *([f"ubd1={self._folder / 'export.img'}"] if name == "srv" else []),
            f"eth0=tuntap,{name},02:00:0a:09:00:{MACHINES[name][0]:02x}",  # the same whenever it is switched on
            "root=/dev/ubda",
            "rw",
            "quiet",
            "con=null",
            "con0=null,fd:1",
            "init=/duck-init",
            f"duck_name={name}",
            f"duck_lease={LEASE_S}",
            f"duck_host={self.shared}",
        ]
        self._switched_on[name] = time.monotonic()
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "TMPDIR": "/dev/shm", "HOME": str(self._folder)},
            )

    def _wait_until_ready(self, name: str) -> None:
        def is_ready() -> bool:
            if self._running[name].poll() is not None:
                raise LabError(f"{name} ended; see {self._folder / name}.log")
            return (self.shared / "ready" / name).exists()

        wait_until(is_ready, f"{name} is ready, see {self._folder / name}.log", BOOT_S)


def _ip(*arguments: str) -> None:
    _call("ip", *arguments)


def _call(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
