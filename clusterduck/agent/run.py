"""What happens inside a run's process: it leaves the agent's group, takes its slot's resources, and only then becomes
the user's.

Nothing of the user's is imported or unpickled before CPUs, GPUs and environment are set. How the run ended is written
to its result file, then told to the agent (a datagram, sent through a socket opened at that moment, so that a program
that closes all descriptors can still be heard).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.core.utils
import hydra.types
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from clusterduck import sharing
from clusterduck.agent import ending
from clusterduck.agent.code import todays_function
from clusterduck.agent.composing import Composing
from clusterduck.agent.outcome import MESSAGE_CHARS, Outcome
from clusterduck.agent.preload import preload
from clusterduck.agent.standby import Gate, Held, WrittenAhead, before_folder
from clusterduck.agent.warmth import plain_of, warm_up
from clusterduck.errors import ClusterduckError, RunFailedError
from clusterduck.launch import freeze
from clusterduck.launch.payload import Payload, UserSide
from clusterduck.launch.plain import OwnSide, PlainSide, load_own, unpickle_user
from clusterduck.model import Attempt, Slot, State
from clusterduck.paths import SweepPaths

_payloads: dict[int, Payload] = {}
_plain: dict[int, PlainSide] = {}
_composing: dict[int, Composing] = {}  # what was learned with the plain side of the same launch


def prepare(launch: int, payload_file: Path, modules: Sequence[str]) -> None:
    """In the fork server, before any run of a launch: read its payload, and of the first one the frozen sources and
    what composing needs, if that is plain.

    Raises:
        OSError: if it cannot be read.
        JournalError: if it is no payload, or of a newer version.
        ConfigError: if one of the ``modules`` to be imported before all runs must not be.
    """
    payload = _payloads[launch] = Payload.load(payload_file.read_bytes())
    if len(_payloads) == 1:
        ending.keep_loaded()
        freeze.install(payload.sources)
        preload(modules, payload)
        _composing[launch] = warm_up(payload)
        plain = plain_of(payload)
        if plain is not None:
            _plain[launch] = plain


def main(order: Mapping[str, Any]) -> int:
    """Be a run.

    Args:
        order: what the fork server was told, see ``agent.supervisor``.

    Returns the exit code for the interpreter, which ends as a user's own script would: atexit handlers and all.
    """
    os.setsid()
    payload = _payloads[order["launch"]]
    if payload is not next(iter(_payloads.values())):
        freeze.install(payload.sources)
    return _Run(order, payload, Gate(order.get("gate"))).execute()


class _Run:
    def __init__(self, order: Mapping[str, Any], payload: Payload, gate: Gate) -> None:
        self._order = order
        self._payload = payload
        self._attempt = Attempt.parse(order["attempt"])
        self._slot = Slot.from_json(order["slot"])
        self._sweep = SweepPaths(Path(order["sweep_root"]))
        self._log = Path(order["log"])
        self._gate = gate
        self._environment: dict[str, str] = {}
        self._begun = False
        self._plain: PlainSide | None = None
        self._own: OwnSide | None = None
        self._function: Callable[[Any], Any] | None = None
        self._held: Held | None = None
        self._exit_code = 0

    def execute(self) -> int:
        with contextlib.suppress(OSError):  # not allowed everywhere; then the kernel chooses by size
            Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
        try:
            self._take_slot()
            answer = self._run_job()
        except BaseException as error:
            self._begin()  # whatever went wrong ahead of time is told in its own time
            answer = hydra.core.utils.JobReturn(
                overrides=self._overrides(),
                status=hydra.core.utils.JobStatus.FAILED,
                _return_value=_plain_exception(error),
            )
        outcome = Outcome(answer, self._attempt, self._say)
        outcome.keep(self._sweep.result(self._attempt), Path(self._order["scratch"]))
        self._tell(outcome.report)
        if outcome.report["state"] != State.COMPLETED.value:
            self._exit_code = self._exit_code or 1
        return self._exit_code

    # --- before the user's code

    def _take_slot(self) -> None:
        """Be bound to what the slot has, and have its variables; nothing of it can be seen from outside."""
        slot = self._slot
        self._environment = {
            **slot.env,
            **{variable: str(folder) for variable, folder in self._order["tmpdirs"].items()},
            "CLUSTERDUCK_SWEEP": self._sweep.sweep,
            "CLUSTERDUCK_RUN": str(self._attempt.run),
            "CLUSTERDUCK_ATTEMPT": str(self._attempt.number),
            "CLUSTERDUCK_SLOT": str(slot.index),
            "CLUSTERDUCK_BATCH": self._order["batch"],
        }
        os.environ.update(self._environment)
        if slot.cpus:
            os.sched_setaffinity(0, slot.cpus)

    def _begin(self) -> None:
        """Wait until the run may begin, and begin: from here on there are traces of it. Again is no harm."""
        if self._begun:
            return
        self._begun = True
        self._gate.wait()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # SIGUSR1 and SIGUSR2 stay ignored: Slurm sends them to every process of a step, and they would kill a program
        # that never heard of them. One that wants them installs a handler.
        self._open_log()
        for folder in self._order["tmpdirs"].values():
            os.mkdir(folder, 0o700)
        if self._order["verbose"]:
            given = ", ".join(f"{name}={value}" for name, value in sorted(self._environment.items()))
            self._say(
                f"attempt {self._attempt.number} of run {self._attempt.run} of {self._sweep.sweep} "
                f"in slot {self._slot.index} of {socket.gethostname()}: CPUs "
                f"{sorted(os.sched_getaffinity(0))}, GPUs {list(self._slot.gpus)}, {given}"
            )

    def _open_log(self) -> None:
        try:
            fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            sharing.let_read(fd, sharing.reading_group(self._log.parent))
        except OSError as error:
            self._say(f"run {self._attempt} has no log of its own ({error})")
        else:
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.close(fd)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        with contextlib.suppress(OSError):  # the disk that the log is on may be full
            os.write(2, self._gate.printed)

    def _overrides(self) -> list[str]:
        return [*self._payload.overrides[self._attempt.run - self._payload.first_run], *self._order["overrides"]]

    # --- the user's code

    def _run_job(self) -> hydra.core.utils.JobReturn:
        os.chdir(self._payload.cwd)
        sys.path[:] = self._payload.sys_path
        sys.argv = [self._payload.script or "", *sys.argv[2:]]
        if not self._gate.closed:
            self._begin()
        side = self._composing_side()
        missing = self._plain.resolvers if self._plain is not None else ()
        if missing or not self._begun:
            self._held = Held(missing, self._become_users)
        learned = _composing.get(self._order["launch"]) if self._plain is not None else None
        with learned.used() if learned is not None else contextlib.nullcontext():
            config = side.hydra_context.config_loader.load_sweep_config(side.config, self._overrides())
        with open_dict(config):
            config.hydra.job.id = f"{self._order['job_id']}_{self._attempt.run}"
            config.hydra.job.num = self._attempt.run
            self._follow_sweep(config)
            if self._order["folder"] is not None:
                config.hydra.sweep.subdir = self._order[
                    "folder"
                ]  # an absolute path: the sweep's folder does not matter
        if not self._begun and self._held is not None:
            self._held.hold_time()
        context = copy.copy(side.hydra_context)
        context.callbacks = _LaterCallbacks(self._users_callbacks)  # type: ignore[assignment]

        written = WrittenAhead()

        def become_users() -> None:
            if not self._begun:
                written.write()
            self._become_users()
            functools.update_wrapper(function, self._users_function())
            if self._order["folder"] is not None:
                self._set_aside(Path(self._order["folder"]), config.hydra.output_subdir)

        function = self._guarded()
        with before_folder(become_users), written.used():
            return hydra.core.utils.run_job(
                hydra_context=context,
                task_function=function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )

    def _follow_sweep(self, config: DictConfig) -> None:
        """Have the run's folder in the sweep's, if that was moved since the launch."""
        if self._payload.sweep_dir is None:
            return
        before = SweepPaths.of(Path(self._payload.sweep_dir), self._sweep.sweep)
        if before.root != self._sweep.root:
            folder = os.path.join(self._payload.cwd, str(config.hydra.sweep.dir))
            config.hydra.sweep.dir = self._sweep.place(before.kept(folder))

    def _composing_side(self) -> PlainSide | UserSide:
        """What the configuration is composed with; the user's own side only if it must be, or may be taken ahead of
        time."""
        if self._order["prefetch"] != "imports":
            plain = _plain.get(self._order["launch"]) or plain_of(self._payload)
            if plain is not None:
                plain.activate()
                self._plain = plain
                return plain
            self._begin()
        user = unpickle_user(self._payload)
        self._take(OwnSide(user.task_function, user.hydra_context.callbacks, {}))
        user.activate()
        return user

    def _take(self, own: OwnSide) -> None:
        self._own = own
        self._function = self._todays(own.task_function)

    def _load_own(self) -> OwnSide:
        """The user's own objects, which are unpickled now if they were not yet."""
        if self._own is None:
            assert self._plain is not None
            self._take(load_own(self._payload.user, self._plain))
        assert self._own is not None
        return self._own

    def _become_users(self) -> None:
        """Begin, and see to it that all of the user's is there. Again is no harm."""
        self._begin()
        if self._own is None:
            self._load_own().register()
        if self._held is not None:
            self._held.release()

    def _users_callbacks(self) -> Any:
        return self._load_own().callbacks

    def _users_function(self) -> Callable[[Any], Any]:
        self._load_own()
        assert self._function is not None
        return self._function

    def _todays(self, submitted: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Today's version of the user's function, if that is wanted and can be had; else the one that was submitted."""
        if self._order["as_submitted"]:
            return submitted
        try:
            return todays_function(self._payload)
        except ClusterduckError as error:
            self._begin()
            self._say(f"{error} The function as it was submitted runs instead.")
            self._tell({"remark": f"the code as it was submitted ran: {error}"[:MESSAGE_CHARS].rstrip(".")})
            return submitted

    def _set_aside(self, folder: Path, output_subdir: str | None) -> None:
        """Keep what earlier attempts left: the whole folder under another name if this one is to start afresh, else
        only Hydra's own files, which would be overwritten."""
        before = self._attempt.number - 1
        old = folder if self._order["fresh"] else folder / (output_subdir or ".hydra")
        if old.is_dir():
            new = old.with_name(f"{old.name}.attempt-{before}")
            old.rename(new)
            if self._order["fresh"]:
                self._tell({"set_aside": True, "run_dir": str(old), "new_dir": str(new)})

    def _guarded(self) -> Callable[[Any], Any]:
        """The user's function, with every way out of it turned into a value or an Exception, as ``run_job`` expects it.

        Hydra calls ``on_job_end`` only then, so ``sys.exit`` must not fly past it.
        """

        def call(config: Any) -> Any:
            self._locate()
            try:
                return self._users_function()(config)
            except SystemExit as end:
                if end.code is None or end.code == 0:
                    return None
                self._exit_code = end.code if isinstance(end.code, int) and 0 < end.code < 256 else 1
                raise RunFailedError(f"ended by sys.exit({end.code!r})", self._attempt.run) from end
            except Exception:
                raise
            except BaseException as error:
                raise RunFailedError(
                    f"ended by {type(error).__name__}: {error}".rstrip(": "), self._attempt.run
                ) from error

        return call

    def _locate(self) -> None:
        """Hydra has named the run's folder: move the log there, and tell the agent."""
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        for name in (f"attempt-{self._attempt.number}.log", f"attempt-{self._attempt.number}.{self._attempt.run}.log"):
            try:
                os.link(self._log, folder / name, follow_symlinks=False)
            except FileExistsError:
                continue  # another run shares the folder
            except OSError:
                break  # another file system, or one without links: the log stays where it began
            with contextlib.suppress(OSError):  # then it has two names
                os.unlink(self._log)
            self._log = folder / name
            break
        self._tell({"located": True, "run_dir": str(folder), "log": str(self._log)})
        overruled = sorted(set(hydra_config.job.env_set) & set(self._environment))
        if overruled:
            self._say(f"hydra.job.env_set wins over what clusterduck had set for {', '.join(overruled)}")

    # --- words

    def _tell(self, message: Mapping[str, Any]) -> None:
        data = json.dumps({"attempt": str(self._attempt), **message}).encode("ascii")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(data, self._order["report_address"])
        except OSError as error:
            self._say(f"cannot report to the agent: {error}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the disk that the log is on may be full
            print(f"clusterduck: {line}", file=sys.stderr)  # noqa: T201 - the run's own log


class _LaterCallbacks:
    """Hydra's callbacks, where they are not there yet when ``run_job`` is called."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)


def _plain_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RunFailedError(f"ended by {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
