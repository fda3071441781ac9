"""Where every file lives: the project's ledger, a sweep's folder, a host's replica.

Everything below a ``.clusterduck`` folder is created for the owner alone, whatever the umask, or as ``sharing`` says.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clusterduck import sharing
from clusterduck.errors import LedgerError, NotFoundError, UnsafePathError
from clusterduck.model import AgentId, Attempt

HIDDEN = ".clusterduck"
LEDGER_NAME = "ledger.db"
LEDGER_VARIABLE = "CLUSTERDUCK_LEDGER"

#: How the names of pruned sweeps' files begin.
PRUNED = ".pruned."


def make_private_folder(path: Path) -> Path:
    """Create ``path`` and its missing parents; ``path`` itself is for the owner alone. Returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        require_own(path)
    return path


def require_own(path: Path, owner: int | None = None) -> None:
    """Refuse a file or folder that somebody else owns or could write, or a symbolic link to one.

    Args:
        path: the file or folder.
        owner: another user, where only what that one wrote may be read; None: this process's.

    Raises:
        UnsafePathError: if so.
    """
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        raise UnsafePathError(f"{path} is a symbolic link; clusterduck does not follow links there. Remove it.")
    if info.st_uid != (os.geteuid() if owner is None else owner):
        whose = "you" if owner is None else f"user {owner}, whose ledger this is"
        raise UnsafePathError(f"{path} belongs to user {info.st_uid}, not to {whose}; clusterduck does not trust it.")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        kind = "folder" if stat.S_ISDIR(info.st_mode) else "file"
        raise UnsafePathError(
            f"{path} can be written by other users, and clusterduck trusts only what you alone can write: use a {kind} "
            f"of your own, or take that right away from others if the {kind} is yours alone."
        )


def require_own_up_to(path: Path, top: Path) -> None:
    """As :func:`require_own`, for ``path`` and every folder above it up to ``top``: whoever can write one of these can
    put another file into the place of ``path``.

    Raises:
        UnsafePathError: if one is somebody else's, or could be written by others, or ``path`` does not lie in ``top``.
        OSError: if one is not there.
    """
    if top not in path.parents or ".." in path.parts:
        raise UnsafePathError(f"{path} does not lie in {top}.")
    for place in (path, *path.parents):
        require_own(place)
        if place == top:
            return


def find_ledger(start: Path, explicit: str | os.PathLike[str] | None = None) -> Path | None:
    """The ledger that governs ``start``: named explicitly, by ``CLUSTERDUCK_LEDGER``, or found the way git finds .git.

    Returns None where there is none yet. The file itself need not exist; its folder does, unless it was named.

    Raises:
        LedgerError: if there is something else than a file, which could not be replaced, or must not be.
    """
    named = explicit or os.environ.get(LEDGER_VARIABLE)
    if named:
        path = Path(named).expanduser()
        path = path if path.is_absolute() else start / path
        return _require_file(path / LEDGER_NAME if path.is_dir() else path)
    start = Path(os.path.abspath(start))
    for folder in (start, *start.parents):
        hidden = folder / HIDDEN
        with contextlib.suppress(PermissionError):  # another user's, who keeps it closed: their project, not ours
            if (hidden / "sweeps").is_dir() or (hidden / LEDGER_NAME).exists():
                return _require_file(hidden / LEDGER_NAME)
    return None


def _require_file(ledger: Path) -> Path:
    if ledger.exists() and not ledger.is_file():
        raise LedgerError(
            f"{ledger} is no file, as a ledger is: move it away, or name another with --ledger FILE, "
            f"hydra.launcher.ledger or {LEDGER_VARIABLE}."
        )
    return ledger


def require_ledger(start: Path, explicit: str | os.PathLike[str] | None = None) -> Path:
    """Like :func:`find_ledger`.

    Raises:
        NotFoundError: if there is none.
    """
    path = find_ledger(start, explicit)
    if path is None or not path.parent.is_dir():
        where = f"at {path}" if path is not None else f"in {start} or any folder above it that is open to you"
        raise NotFoundError(
            f"No ledger {where}: launch a sweep with hydra/launcher=clusterduck_local or clusterduck_slurm first, "
            f"go to the folder you launched from, or name the ledger with --ledger FILE or {LEDGER_VARIABLE}."
        )
    return path


@dataclass(frozen=True)
class LedgerPaths:
    """A project's ledger and what lies beside it."""

    ledger: Path

    @property
    def sweeps(self) -> Path:
        """A folder with one small file per sweep, named by its id, holding the sweep's own folder."""
        return self.ledger.parent / "sweeps"

    @property
    def mark(self) -> Path:
        """A file that tells this ledger from an earlier one at the same path, which was deleted."""
        return self.ledger.with_name(f"{self.ledger.name}.id")

    def read_mark(self) -> str | None:
        """What stands there; None if nothing does (yet)."""
        try:
            return self.mark.read_text(encoding="ascii", errors="replace").strip() or None
        except FileNotFoundError:
            return None

    @property
    def replica_folder(self) -> Path:
        """This host's own place for the replica: one per ledger and user, in the host's temporary folder.

        The host's name is part of it, because some sites let TMPDIR name a folder that all hosts share.
        """
        key = os.fsencode(os.path.abspath(self.ledger)) + b"\0" + os.fsencode(os.uname().nodename)
        name = hashlib.sha256(key).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"clusterduck-{os.geteuid()}" / name

    @property
    def owner(self) -> int:
        """Whose ledger it is: nobody else acts on its sweeps, publishes it, or enters anything.

        Raises:
            OSError: if its folder is not there.
        """
        return os.stat(self.ledger.parent).st_uid

    @property
    def is_own(self) -> bool:
        """Whether it is this user's, who may do more than look."""
        return self.owner == os.geteuid()

    def create(self, readable_by: int | None = None) -> None:
        """Make the folders, and a .gitignore so that no ledger is ever committed.

        Args:
            readable_by: a group that may read them from now on; None changes nothing.
        """
        for folder in (self.ledger.parent, self.sweeps):
            make_private_folder(folder)
            sharing.let_read(folder, readable_by)
        group = sharing.reading_group(self.sweeps)
        _make_file(self.mark, f"{secrets.token_hex(16)}\n", group)
        sharing.let_read(self.mark, readable_by)  # it may have been there
        if self.ledger.parent.name == HIDDEN:
            _make_file(self.ledger.parent / ".gitignore", "*\n", group)

    def sweep_ids(self) -> list[str]:
        """Every sweep of the project, by listing one folder."""
        return self.listed()[0]

    def listed(self) -> tuple[list[str], list[str]]:
        """Every sweep of the project, and those that were pruned from it, by listing one folder."""
        try:
            with os.scandir(self.sweeps) as entries:
                names = sorted(entry.name for entry in entries)
        except FileNotFoundError:
            return [], []
        pruned = [name[len(PRUNED) :] for name in names if name.startswith(PRUNED)]
        return [name for name in names if not name.startswith(".")], pruned

    def pruned(self, sweep: str) -> Path:
        """What tells every host that a sweep was pruned: its own file, renamed."""
        return self.sweeps / f"{PRUNED}{sweep}"

    def sweep_root(self, sweep: str) -> Path | None:
        """A sweep's root, ``<sweep dir>/.clusterduck/<id>``; None while its file is being written or removed."""
        try:
            text = (self.sweeps / sweep).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
        return Path(text[:-1]) if text.endswith("\n") else None

    def sweep_roots(self) -> dict[str, Path]:
        """Every sweep of the project: id -> its root folder."""
        roots = {sweep: self.sweep_root(sweep) for sweep in self.sweep_ids()}
        return {sweep: root for sweep, root in roots.items() if root is not None}


@dataclass(frozen=True)
class SweepPaths:
    """What lies in a sweep's root, ``<sweep dir>/.clusterduck/<sweep id>``."""

    root: Path

    @classmethod
    def of(cls, sweep_dir: Path, sweep: str) -> SweepPaths:
        """The paths of sweep ``sweep`` whose ``hydra.sweep.dir`` is ``sweep_dir``."""
        return cls(sweep_dir / HIDDEN / sweep)

    @property
    def sweep(self) -> str:
        """The sweep's id."""
        return self.root.name

    @cached_property
    def sweep_dir(self) -> Path:
        """Hydra's ``hydra.sweep.dir``."""
        return self.root.parent.parent

    def kept(self, path: str) -> str:
        """A path as it is put on record: what lies in the sweep's folder relative to that, since people move it."""
        beyond = os.path.relpath(path, self.sweep_dir)
        return path if beyond == os.pardir or beyond.startswith(f"{os.pardir}{os.sep}") else beyond

    def place(self, kept: str) -> str:
        """Where what is on record lies now: the inverse of :meth:`kept`."""
        path = kept if kept.startswith("/") else f"{self._sweep_dir_text}{kept}"
        is_plain = kept and not ("//" in kept or "./" in kept or kept.endswith(("/", ".")))
        return path if is_plain else os.path.normpath(path)  # which takes four times as long

    @cached_property
    def _sweep_dir_text(self) -> str:
        return os.path.join(os.path.normpath(self.sweep_dir), "")

    @property
    def queue(self) -> Path:
        """Attempts that were put back, one file each."""
        return self.root / "queue"

    @property
    def claims(self) -> Path:
        """Who took what: symbolic links named ``<run>.<attempt>``."""
        return self.root / "claims"

    @property
    def acts(self) -> Path:
        """Journals of what people and tools did."""
        return self.root / "acts"

    @cached_property
    def results(self) -> Path:
        """One file per ended attempt."""
        return self.root / "results"

    @property
    def failures(self) -> Path:
        """One mark per failed run, for ``max_failures``; made by the agents when there is one."""
        return self.root / "failures"

    def batch(self, batch: str) -> Path:
        """The folder of a batch: one folder per agent."""
        return self.root / "batches" / batch

    @property
    def logs(self) -> Path:
        """Logs of attempts whose run folder is not known (yet)."""
        return self.root / "logs"

    def launch(self, number: int) -> Path:
        """The folder of the sweep's launch ``number`` (from 0)."""
        return self.root / "launches" / str(number)

    def payload(self, number: int) -> Path:
        """What the runs of launch ``number`` need."""
        return self.launch(number) / "payload.pkl"

    def agent(self, agent: AgentId) -> Path:
        """The folder of one agent: its journal's segments and its inbox."""
        return self.batch(agent.batch) / f"{agent.restart}.{agent.node}"

    def result(self, attempt: Attempt) -> Path:
        """The result of one attempt."""
        return self.results / self.result_name(attempt)

    @staticmethod
    def result_name(attempt: Attempt) -> str:
        """What its file is called, among the ``results``."""
        return f"{attempt}.pkl"

    def create(self, readable_by: int | None = None) -> None:
        """Make the sweep's folders.

        Args:
            readable_by: a group that may read them, but for results; None: only the owner may.

        Raises:
            FileExistsError: if another sweep has this id in this folder.
            OSError: if the folder cannot be written.
        """
        make_private_folder(self.root.parent)
        sharing.let_read(self.root.parent, readable_by)
        os.mkdir(self.root, 0o700)
        sharing.let_read(self.root, readable_by)
        for folder in (self.queue, self.claims, self.acts, self.logs, self.root / "launches", self.root / "batches"):
            sharing.make_folder(folder)
        os.mkdir(self.results, 0o700)

    def journals(self, passing_over: Collection[Path] = ()) -> list[Path]:
        """Every journal file of the sweep, found by listing folders (never by asking for a name).

        Folders of launches and batches that are ``passing_over`` are not listed.
        """
        found: list[Path] = []
        for launch in _subfolders(self.root / "launches"):
            if launch not in passing_over:
                found += _journal_files(launch)
        found += _journal_files(self.acts)
        for batch in _subfolders(self.root / "batches"):
            if batch not in passing_over:
                for journals in self.agent_journals(batch.name).values():
                    found += journals
        return found

    def agent_journals(self, batch: str) -> dict[AgentId, list[Path]]:
        """The journal files of every agent of a batch so far."""
        found = {}
        for folder in _subfolders(self.batch(batch)):
            restart, _, node = folder.name.partition(".")
            if restart.isdecimal() and node.isdecimal():
                found[AgentId(batch, int(restart), int(node))] = _journal_files(folder)
        return found


def _make_file(path: Path, text: str, group: int | None) -> None:
    """Make a small file, unless it is there, for the owner alone or also for a group that may read it."""
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            sharing.let_read(path, group)


def _subfolders(folder: Path) -> list[Path]:
    return _listed(folder, lambda entry: entry.is_dir(follow_symlinks=False))


def _journal_files(folder: Path) -> list[Path]:
    return _listed(folder, lambda entry: entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False))


def _listed(folder: Path, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    """What is wanted of that which a folder holds, in the order of the names; nothing if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return [Path(path) for path in sorted([entry.path for entry in entries if is_wanted(entry)])]
    except (FileNotFoundError, NotADirectoryError):
        return []
