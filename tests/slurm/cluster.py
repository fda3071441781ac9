"""A real Slurm cluster on this one machine, for tests: munge, slurmctld and a few slurmd, all on the loopback network.

Every node is a slurmd in namespaces of its own: a host name, a temporary folder, a PID namespace, so that a node can be
stopped as a power failure stops it: all at once, whatever runs there. Nodes have the GPUs that Slurm is told of
(symbolic links to /dev/null) and more CPUs than this machine has (see ``fake_cpus.c``). They share one file system.

Needs root, and Debian's packages munge, slurmctld, slurmd, slurm-client and gcc; with accounting also slurmdbd,
mariadb-server-core and mariadb-client-core. What is missing is installed where apt-get can.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "gcc": "gcc libc6-dev",
}
ACCOUNTING_PACKAGES = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
}
FAKE_CPUS_SOURCE = Path(__file__).with_name("fake_cpus.c")

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])

#: Ends a daemon with us, even if we are killed: no cluster outlives its tests. To the kernel "us" is the thread that
#: started it, so all are started by one that lives as long as the cluster.
_MORTAL = ("setpriv", "--pdeathsig", "KILL")

#: What makes a process the whole of a virtual node, and what that process does: it is the PID namespace's first, so
#: all else on the node dies with it; bash takes in the processes whose parents are gone.
_NODE = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_NODE_SCRIPT = """
set -e
hostname "$1"; mount --bind "$2" /etc/hosts; mount --bind "$3" "$4"; shift 4
"$@" &
wait $!
"""


class ClusterError(RuntimeError):
    """The cluster cannot be started here, or did not do what it was asked."""


class CommandError(ClusterError):
    """One of Slurm's commands failed, in its own words."""


def obstacle(accounting: bool = False) -> str | None:
    """Why no cluster can be started here, or None; installs Debian packages that are missing."""
    if os.geteuid() != 0:
        return "a Slurm cluster of virtual nodes needs root"
    needed = PACKAGES | (ACCOUNTING_PACKAGES if accounting else {})
    missing = [needed[program] for program in needed if not shutil.which(program, path=_PATH)]
    missing = sorted({package for packages in missing for package in packages.split()})
    if missing:
        apt = shutil.which("apt-get")
        if not apt:
            return f"Debian packages are missing and there is no apt-get: {' '.join(missing)}"
        install = [apt, "install", "-y", "-q", "--no-install-recommends", *missing]
        environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (install, [apt, "update", "-q"], install):
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if done.returncode == 0 and command is install:
                break
        else:
            return f"apt-get install {' '.join(missing)} failed: {done.stderr.strip()[-300:]}"
    probe = subprocess.run([*_NODE, "hostname", "node"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"no namespaces for virtual nodes here: {probe.stderr.strip()}"
    return None


def wait_until(fact: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until ``fact()`` is true, also while Slurm does not answer.

    Raises:
        ClusterError: if it is not after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        failure = None
        try:
            if fact():
                return
        except CommandError as error:
            failure = error
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {seconds:.0f} s in vain: {what}") from failure
        time.sleep(0.05)


class SlurmCluster:
    """The cluster; use it as a context manager.

    Args:
        nodes: how many,
        gpus: with so many GPUs each,
        cpus: and so many CPUs.
        accounting: whether slurmdbd remembers jobs.
        settings: further lines of slurm.conf.

    Attributes:
        nodes: the nodes' names.
        environ: environment of a login node: with it, Slurm's commands talk to this cluster.
        folder: everything the cluster writes. Short, since a socket's path has at most 108 bytes.
    """

    def __init__(
        self, nodes: int = 3, gpus: int = 4, cpus: int = 4, accounting: bool = False, settings: Sequence[str] = ()
    ) -> None:
        self.nodes = tuple(f"node{number}" for number in range(1, nodes + 1))
        self._gpus, self._cpus, self._accounting, self._settings = gpus, cpus, accounting, settings
        self.folder = Path(tempfile.mkdtemp(prefix="duckslurm-", dir="/tmp"))
        self.folder.chmod(0o755)  # munge insists that everybody can reach its socket
        self._starter = ThreadPoolExecutor(1)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._spawned_at: dict[str, float] = {}
        self._ports = _free_ports(2 + nodes)
        self._host = socket.gethostname().partition(".")[0]
        for name in ("etc", "run", "log", "state", "dev", "tmp/here", "mysql"):
            (self.folder / name).mkdir(parents=True)
        self.environ = os.environ | {
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
            "PATH": _PATH,
            "TMPDIR": str(self.folder / "tmp/here"),  # on each node, the node's own
        }

    # --- start and stop

    def __enter__(self) -> SlurmCluster:
        try:
            self._configure()
            self._start()
        except BaseException as error:
            logs = self.logs()
            self.stop()
            if isinstance(error, ClusterError):
                raise ClusterError(f"{error}\n{logs}") from None
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything that runs on the cluster, then the cluster; remove its files."""
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            # A node's slurmd and jobs die with the namespace: killing `unshare` kills its first process (--kill-child).
            _end(process, signal.SIGKILL if name in self.nodes else signal.SIGTERM)
        self._starter.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_node(self, name: str) -> None:
        """A power failure: the node's slurmd and everything that runs there is gone at once."""
        process = self._processes.pop(name)
        space = _pid_space(process.pid)
        _end(process, signal.SIGKILL)
        wait_until(lambda: not _lives_in(space), f"{name} dead")

    def start_node(self, name: str) -> None:
        """Switch a node on (again), and wait until Slurm would give it a job."""
        self._spawn_node(name)
        self._wait_until(lambda: self._ready(name), f"{name} ready")

    def forget_jobs(self) -> None:
        """Start slurmctld anew with no memory of any job; only the accounting, where there is one, still knows them."""
        _end(self._processes.pop("slurmctld"), signal.SIGTERM)
        self._start_controller("-c")
        for name in self.nodes:
            self._wait_until(lambda name=name: self._ready(name), f"{name} ready")  # type: ignore[misc]

    # --- use

    def command(self, *arguments: str, check: bool = True) -> str:
        """Standard output of one of Slurm's commands, run on the login node."""
        done = subprocess.run(
            arguments,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and done.returncode:
            raise CommandError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self, *options: str) -> list[str]:
        """The ids of the jobs that Slurm has in its queue, one per array task."""
        return self.command("squeue", "--noheader", "--array", "--format=%i", *options).split()

    def wait_for_no_jobs(self, seconds: float = 90.0) -> None:
        """Wait until no job is pending, running or completing."""
        wait_until(lambda: not self.jobs(), "all jobs over", seconds)

    def restore(self) -> None:
        """Cancel every job, wait until they are gone, and switch dead nodes on again."""
        jobs = self.jobs()
        if jobs:
            self.command("scancel", *jobs, check=False)
            self.wait_for_no_jobs()
        for name in self.nodes:
            if name not in self._processes:
                self._spawn_node(name)
        for name in self.nodes:
            self._wait_until(lambda name=name: self._ready(name), f"{name} ready")  # type: ignore[misc]

    def logs(self, lines: int = 15) -> str:
        """The ends of all the daemons' logs, for an error message."""
        text = []
        for path in sorted((self.folder / "log").glob("*")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            text.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(text)

    # --- how it is made

    def _configure(self) -> None:
        etc = self.folder / "etc"
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", "-o", etc / "fake_cpus.so", FAKE_CPUS_SOURCE, "-ldl"], check=True
        )
        # What it prints is added to the environment of a job's tasks: the CPUs of the job's allocation, and bound as
        # Slurm's task/affinity would (to one CPU unless more were asked for, or no binding was).
        prolog = etc / "task_prolog"
        prolog.write_text(
            "#!/bin/sh\n"
            f"echo export LD_PRELOAD={etc}/fake_cpus.so\n"
            "echo export FAKE_CPUS=${SLURM_CPUS_ON_NODE:-1}\n"
            "case ${SLURM_CPU_BIND_TYPE:-} in none*) exit;; esac\n"
            "echo export FAKE_CPUS_BOUND=${SLURM_CPUS_PER_TASK:-1}\n"
        )
        prolog.chmod(0o755)
        (etc / "hosts").write_text(f"127.0.0.1 localhost {self._host} {' '.join(self.nodes)}\n")
        key = etc / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        for number in range(self._gpus):
            (self.folder / f"dev/nvidia{number}").symlink_to("/dev/null")
        (etc / "gres.conf").write_text(f"Name=gpu File={self.folder}/dev/nvidia[0-{self._gpus - 1}]\n")
        (etc / "slurm.conf").write_text(self._slurm_conf())

    def _slurm_conf(self) -> str:
        folder = self.folder
        lines = [
            "ClusterName=ducks",
            f"SlurmctldHost={self._host}(127.0.0.1)",
            f"SlurmctldPort={self._ports[0]}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/run/munge.socket,cred_expire=5",  # also: how soon a requeued job may start
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",  # loopback only
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool-%n",
            f"SlurmctldPidFile={folder}/run/slurmctld.pid",
            f"SlurmdPidFile={folder}/run/slurmd-%n.pid",
            f"SlurmctldLogFile={folder}/log/slurmctld",
            f"SlurmdLogFile={folder}/log/slurmd-%n",
            f"TaskProlog={folder}/etc/task_prolog",
            "SlurmdParameters=config_overrides",  # believe the CPUs below, not this machine's
            "MailProg=/bin/true",
            "MpiDefault=none",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/linux",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "GresTypes=gpu",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "SlurmctldParameters=preempt_send_user_signal",
            "JobRequeue=1",
            "ReturnToService=2",
            "KillWait=3",
            "MinJobAge=300",
            "SlurmdTimeout=5",  # a dead node is noticed after about three times this
            "MessageTimeout=5",
            *self._settings,
        ]
        if self._accounting:
            lines += [
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=127.0.0.1",
                f"AccountingStoragePort={self._ports[1]}",
                f"AccountingStoragePass={folder}/run/munge.socket",
            ]
        for name, port in zip(self.nodes, self._ports[2:], strict=True):
            lines.append(
                f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} "
                f"RealMemory=2000 Gres=gpu:{self._gpus} State=UNKNOWN"
            )
        lines += [
            "PartitionName=whole Nodes=ALL Default=YES OverSubscribe=EXCLUSIVE PriorityTier=2 PreemptMode=OFF",
            "PartitionName=shared Nodes=ALL OverSubscribe=NO PriorityTier=2 PreemptMode=OFF",
            # jobs here give way to those of the other two
            "PartitionName=humble Nodes=ALL OverSubscribe=EXCLUSIVE PriorityTier=1 PreemptMode=REQUEUE GraceTime=5",
            "PartitionName=brief Nodes=ALL OverSubscribe=EXCLUSIVE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
        ]
        return "\n".join(lines) + "\n"

    def _start(self) -> None:
        run = self.folder / "run"
        self._spawn(
            "munged",
            *("munged", "--foreground", f"--socket={run}/munge.socket", f"--key-file={self.folder}/etc/munge.key"),
            *(f"--pid-file={run}/munged.pid", f"--log-file={self.folder}/log/munged", f"--seed-file={run}/munged.seed"),
        )
        self._wait_until((run / "munge.socket").exists, "munge's socket")
        if self._accounting:
            self._start_accounting()
        self._start_controller("-i")
        for name in self.nodes:
            self._spawn_node(name)
        for name in self.nodes:
            self._wait_until(lambda name=name: self._ready(name), f"{name} ready")  # type: ignore[misc]

    def _start_controller(self, option: str) -> None:
        self._spawn("slurmctld", "slurmctld", "-D", option)
        self._wait_until(lambda: "UP" in self.command("scontrol", "ping", check=False), "slurmctld up")

    def _start_accounting(self) -> None:
        run, mysql = self.folder / "run", self.folder / "mysql"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={mysql}", "--skip-test-db"]
        install += ["--auth-root-authentication-method=normal"]
        subprocess.run(install, env=self.environ, check=True, capture_output=True)
        self.environ["MYSQL_UNIX_PORT"] = str(run / "mysql.socket")
        self._spawn(
            "mariadbd",
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={mysql}", f"--socket={run}/mysql.socket"),
            *("--skip-networking", "--skip-grant-tables", "--innodb-flush-log-at-trx-commit=0"),
        )
        self._wait_until((run / "mysql.socket").exists, "MariaDB's socket")
        conf = self.folder / "etc/slurmdbd.conf"
        conf.touch(0o600)
        conf.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={run}/munge.socket\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
            f"CommunicationParameters=NoInAddrAny\nDbdPort={self._ports[1]}\nSlurmUser=root\n"
            f"LogFile={self.folder}/log/slurmdbd\nPidFile={run}/slurmdbd.pid\n"
            "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageLoc=slurm\nStorageUser=root\n"
        )
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._wait_until(lambda: _succeeds(self.environ, "sacctmgr", "-n", "show", "cluster"), "slurmdbd up")
        self.command("sacctmgr", "-i", "add", "cluster", "ducks")

    def _spawn_node(self, name: str) -> None:
        spool, private = self.folder / f"spool-{name}", self.folder / f"tmp/{name}"
        for path in (spool, private):
            path.mkdir(exist_ok=True)
        self._spawned_at[name] = time.time()
        hosts, here = self.folder / "etc/hosts", self.folder / "tmp/here"
        script = ("bash", "-c", _NODE_SCRIPT, "node", name, str(hosts), str(private), str(here))
        self._spawn(name, *_NODE, *script, "slurmd", "-D", "-N", name)

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / f"log/{name}.out").open("ab") as output:
            self._processes[name] = self._starter.submit(
                subprocess.Popen,
                [*_MORTAL, *command],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            ).result()

    def _wait_until(self, fact: Callable[[], object], what: str) -> None:
        def fact_or_dead() -> object:
            for daemon, process in self._processes.items():
                if process.poll() is not None:
                    raise ClusterError(f"{daemon} ended with exit code {process.returncode}")
            return fact()

        wait_until(fact_or_dead, what)

    def _ready(self, name: str) -> bool:
        shown = self.command("scontrol", "--oneliner", "show", "node", name)
        state = re.search(r" State=(\S+)", shown)
        start = re.search(r" SlurmdStartTime=(\d\S+)", shown)
        if not start or datetime.fromisoformat(start[1]).timestamp() < int(self._spawned_at[name]):
            return False  # what is shown was true before the node's (last) start
        if state and ("DOWN" in state[1] or "DRAIN" in state[1]) and "NOT_RESPONDING" not in state[1]:
            self.command("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        return bool(state) and state[1] in ("IDLE", "ALLOCATED", "MIXED", "COMPLETING")


def _succeeds(environ: dict[str, str], *command: str) -> bool:
    return subprocess.run(command, env=environ, capture_output=True, check=False).returncode == 0


def _pid_space(unshare: int) -> str:
    """The PID namespace of the children of a node's ``unshare`` process."""
    return os.readlink(f"/proc/{unshare}/ns/pid_for_children")


def _lives_in(space: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            if os.readlink(process / "ns/pid") == space:
                return True
    return False


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(how)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def running(**options: object) -> Iterator[SlurmCluster]:
    """For a pytest fixture: a cluster that is stopped at the end."""
    with SlurmCluster(**options) as cluster:  # type: ignore[arg-type]
        yield cluster
