"""Reading how a run ended, hiding the rank, and finding what a run left behind."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

from clusterduck.agent import forkserver
from clusterduck.agent.process import Exit, ForkServer, Leftovers, handles, judge, run_environment
from clusterduck.model import Attempt, State

COMPLETED = {"state": "COMPLETED", "reason": ""}
FAILED = {"state": "FAILED", "reason": "ValueError: no"}


@pytest.mark.parametrize(
    ("end", "state", "words"),
    [
        (Exit(0, COMPLETED), State.COMPLETED, ""),
        (Exit(signal.SIGSEGV, COMPLETED), State.COMPLETED, "killed by SIGSEGV after it had returned"),
        (Exit(1 << 8, FAILED), State.FAILED, "ValueError: no"),
        (Exit(signal.SIGKILL, FAILED), State.FAILED, "ValueError: no"),
        (Exit(signal.SIGKILL, None), State.FAILED, "killed by SIGKILL"),
        (Exit(signal.SIGKILL, None, oom_kills=0), State.FAILED, "killed by SIGKILL"),
        (Exit(signal.SIGKILL, None, oom_kills=1), State.OUT_OF_MEMORY, "out of memory"),
        (Exit(signal.SIGSEGV, None, oom_kills=1), State.FAILED, "killed by SIGSEGV"),
        (Exit(0, None), State.FAILED, "exit code 0, without returning"),
        (Exit(7 << 8, None), State.FAILED, "exit code 7"),
        (Exit(None, None), State.FAILED, "vanished"),
        (Exit(signal.SIGTERM, None, asked_to_end=(State.CANCELLED, "you said so")), State.CANCELLED, "you said so"),
        (Exit(0, COMPLETED, asked_to_end=(State.CANCELLED, "you said so")), State.COMPLETED, ""),
        (Exit(40, None), State.FAILED, "killed by"),
    ],
)
def test_judge(end: Exit, state: State, words: str) -> None:
    verdict = judge(end)
    assert verdict.state is state
    assert words in verdict.reason
    assert bool(verdict.reason) == bool(words)


def test_a_run_does_not_see_the_rank_of_the_job() -> None:
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_STEP_GPUS": "0,1",
        "SLURM_STEPID": "0",
        "PMIX_RANK": "1",
        "PMI_RANK": "1",
        "HOME": "/home/me",
    }
    assert run_environment(environ) == {
        "SLURM_JOB_ID": "7",
        "HOME": "/home/me",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }


def test_what_a_run_left_in_its_group_is_killed_and_nothing_else() -> None:
    script = "import subprocess as s, time; p = s.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    with (
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as run,
        subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander,
    ):
        assert run.stdout is not None
        grandchild = int(run.stdout.readline())
        left = Leftovers(run.pid, Attempt(3, 1), "sweep-abcde")
        assert left.kill({bystander.pid}) is False
        run.wait(30)
        while (
            Path(f"/proc/{grandchild}").exists()
            and "Z" not in Path(f"/proc/{grandchild}/stat").read_text().split(")")[1]
        ):
            os.sched_yield()
        assert bystander.poll() is None
        bystander.kill()


def test_what_escaped_to_a_session_of_its_own_is_known_by_the_runs_variables() -> None:
    marks = {"CLUSTERDUCK_SWEEP": "sweep-abcde", "CLUSTERDUCK_RUN": "3", "CLUSTERDUCK_ATTEMPT": "1"}
    with (
        subprocess.Popen(["sleep", "600"], start_new_session=True, env={**os.environ, **marks}) as escaped,
        subprocess.Popen(
            ["sleep", "600"], start_new_session=True, env={**os.environ, **marks, "CLUSTERDUCK_RUN": "4"}
        ) as other,
    ):
        while b"CLUSTERDUCK_RUN" not in Path(f"/proc/{other.pid}/environ").read_bytes():
            os.sched_yield()  # until its exec is done
        while b"CLUSTERDUCK_RUN" not in Path(f"/proc/{escaped.pid}/environ").read_bytes():
            os.sched_yield()
        dead = subprocess.Popen(["true"])
        dead.wait()
        left = Leftovers(dead.pid, Attempt(3, 1), "sweep-abcde")
        assert left.kill(set()) is False
        assert escaped.wait(30) == -signal.SIGKILL
        assert other.poll() is None
        assert left.kill(set()) is True
        other.kill()


def test_the_fork_server_ends_when_its_agent_is_gone() -> None:
    server = ForkServer(dict(os.environ))
    server.close()
    assert server.process.wait(60) == 0


def test_the_fork_server_ignores_what_slurm_sends_to_every_process_of_a_step() -> None:
    server = ForkServer(dict(os.environ))
    status = Path(f"/proc/{server.process.pid}/status")
    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}

    def ignored() -> set[int]:
        line = next(line for line in status.read_text().splitlines() if line.startswith("SigIgn"))
        mask = int(line.split()[1], 16)
        return {number for number in range(1, 65) if mask >> (number - 1) & 1}

    while not wanted <= ignored():
        assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGUSR2)
    server.close()
    assert server.process.wait(60) == 0


def test_a_fork_server_that_is_only_starting_survives_what_slurm_sends() -> None:
    server = ForkServer(dict(os.environ))
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        server.process.send_signal(number)
    server.close()
    assert server.process.wait(60) == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "what came for us meanwhile has come"


def test_a_run_for_which_there_is_no_further_pipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the fork server lives on, with the runs that it has."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = forkserver._Server(its)

    def pipe() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe", pipe)
    assert server._start({"do": "start", "attempt": "3.1"}) is None
    told = json.loads(ours.recv(1000))
    assert (told["did"], told["attempt"]) == ("refused", "3.1") and "Too many open files" in told["error"]
    ours.close()
    its.close()


def test_what_a_fork_server_said_before_it_died_is_heard_though_it_had_not_heard_all() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    server = object.__new__(ForkServer)
    server._connection, server._unsent = ours, deque()
    server.send({"do": "start"})
    its.send(b'{"did": "ended"}')
    its.close()
    assert server.receive() == [{"did": "ended"}]
    assert server.receive() is None
    server.close()


def test_whether_a_process_handles_a_signal() -> None:
    script = "import signal; signal.signal(signal.SIGUSR2, print); print('set', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        assert handles(run.pid, signal.SIGUSR2)
        assert not handles(run.pid, signal.SIGUSR1)
        run.kill()
    assert not handles(run.pid, signal.SIGUSR2)


def test_a_fork_server_that_is_slow_to_listen_is_told_all_the_same(tmp_path: Path) -> None:
    server = ForkServer(dict(os.environ))
    server.process.send_signal(signal.SIGSTOP)
    for _ in range(1000):
        server.send({"do": "dismiss", "attempt": "1.1", "more": "x" * 1000})  # as long as a start; answered by nothing
    server.send({"do": "prepare", "launch": 7, "payload_file": str(tmp_path / "none"), "preload": []})
    assert server.is_behind
    server.process.send_signal(signal.SIGCONT)
    heard: list[dict[str, object]] = []
    while not heard:
        select.select([server], [server] if server.is_behind else [], [])
        messages = server.receive()
        assert messages is not None
        heard += messages
    assert [(message["did"], message["launch"]) for message in heard] == [("failed to prepare", 7)]
    assert not server.is_behind
    server.close()
    assert server.process.wait(60) == 0


def test_a_fork_server_whose_agent_died_without_having_heard_it_ends_in_order() -> None:
    server = ForkServer(dict(os.environ))
    server.send({"do": "prepare", "launch": 7, "payload_file": "none", "preload": []})
    select.select([server], [], [])
    server.close()
    assert server.process.wait(60) == 0
