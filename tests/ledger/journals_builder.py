"""Builds a project with realistic journals, without launching anything, for tests of whatever reads them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clusterduck import events, journal
from clusterduck.events import Event
from clusterduck.ledger import schema
from clusterduck.model import AgentId, Slot, State
from clusterduck.paths import HIDDEN, LEDGER_NAME, LedgerPaths, SweepPaths

#: When the sweeps built here begin, in seconds since the epoch.
START = 1_760_000_000.0

#: Tables that say how the fold went, not what was folded.
BOOKKEEPING = {"journal", "visit", "meta", "_sqlite_migrations", "sqlite_sequence"}


class SweepBuilder:
    """One sweep of a project in ``base``: makes its folders, and writes journals into them.

    Every method that makes events returns them, each with a time of its own, and writes nothing; ``write`` does.
    """

    def __init__(self, base: Path, sweep: str = "train-x7k2p", start: float = START) -> None:
        self.ledger = base / HIDDEN / LEDGER_NAME
        self.sweep = sweep
        self.start = start
        self.paths = SweepPaths.of(base / "multirun" / sweep, sweep)
        LedgerPaths(self.ledger).create()
        self.paths.create()
        (LedgerPaths(self.ledger).sweeps / sweep).write_bytes(os.fsencode(self.paths.root) + b"\n")

    def launch(
        self, runs: int, batches: int = 1, launch: int = 0, first: int = 0, nodes: int = 1, slots: int = 4
    ) -> list[Event]:
        """A launch of ``runs`` runs, divided among ``batches`` jobs, all submitted."""
        at = self.start + 1000 * launch
        new: list[Event] = [
            events.LaunchStarted(
                time=at,
                launch=launch,
                sweep_dir=str(self.paths.sweep_dir),
                job_name="train",
                user="ada",
                host="login1",
                pid=4000 + launch,
                cwd=str(self.paths.sweep_dir.parent),
                command=["train.py", "--multirun", "lr=1e-3,1e-4"],
                launcher="slurm",
                settings={"nodes": nodes, "parallel_runs_per_node": slots},
                python="/usr/bin/python3",
                versions={"hydra": "1.3.8"},
                git_commit="0123abc",
                git_dirty=False,
            )
        ]
        numbers = range(first, first + runs)
        for begin in range(0, runs, events.RUNS_PER_LINE):
            part = numbers[begin : begin + events.RUNS_PER_LINE]
            new.append(events.RunsPlanned(time=at + 1, launch=launch, runs=[(n, self.overrides(n)) for n in part]))
        for index in range(batches):
            low, high = first + runs * index // batches, first + runs * (index + 1) // batches
            new.append(
                events.BatchPlanned(
                    time=at + 2 + index / 1000,
                    batch=f"{launch}-{index}",
                    launch=launch,
                    first=low,
                    stop=high,
                    nodes=nodes,
                    slots_per_node=slots,
                    share_runs=False,
                )
            )
        for index in range(batches):
            new.append(
                events.BatchSubmitted(
                    time=at + 3 + index / 1000,
                    batch=f"{launch}-{index}",
                    cluster="slurm",
                    job_id=str(9000 + 100 * launch + index),
                    host="login1",
                    log_dir=str(self.paths.sweep_dir / ".submitit" / str(index)),
                )
            )
        new.append(events.LaunchEnded(time=at + 4, launch=launch))
        return new

    @staticmethod
    def overrides(run: int) -> list[str]:
        """The overrides of a run: the model never varies, the learning rate and the seed do."""
        return ["model=convnet", f"lr={(1e-3, 1e-4)[run % 2]}", f"+seed={run // 2}"]

    def agent_started(self, at: float, host: str, slots: int = 4, job_id: str = "9000") -> events.AgentStarted:
        """An agent that is up on ``host``."""
        shares = [Slot(index=i, cpus=(2 * i, 2 * i + 1), gpus=(str(i),), env={"A": "b"}) for i in range(slots)]
        return events.AgentStarted(
            time=at,
            host=host,
            pid=700,
            cluster="slurm",
            job_id=job_id,
            slots=[slot.to_json() for slot in shares],
            ends_at=at + 3600,
        )

    def started(self, at: float, run: int, attempt: int = 1, slot: int = 0) -> events.AttemptStarted:
        """A run's process exists."""
        log = self.paths.kept(str(self.paths.logs / f"{run}.{attempt}.log"))
        return events.AttemptStarted(time=at, run=run, attempt=attempt, slot=slot, pid=8000 + run, log=log)

    def located(self, at: float, run: int, attempt: int = 1) -> events.AttemptLocated:
        """Hydra named the run's folder."""
        folder = self.paths.sweep_dir / str(run)
        kept = map(self.paths.kept, (str(folder), str(folder / f"attempt-{attempt}.log")))
        run_dir, log = kept
        return events.AttemptLocated(time=at, run=run, attempt=attempt, run_dir=run_dir, log=log)

    def ended(
        self, at: float, run: int, attempt: int = 1, state: str = "COMPLETED", started_at: float | None = None
    ) -> events.AttemptEnded:
        """A run ended; one that did not complete has an exception."""
        good = state == "COMPLETED"
        return events.AttemptEnded(
            time=at,
            run=run,
            attempt=attempt,
            state=state,
            reason="" if good else f"It ended {state}.",
            exit_code=0 if good else 1,
            exception_type=None if good else "ValueError",
            exception_message=None if good else "a loss of nan",
            traceback=None if good else "Traceback (most recent call last):\n  …\nValueError: a loss of nan\n",
            return_value=str(run / 1000) if good else None,
            started_at=started_at,
            peak_memory_bytes=100_000_000 + run,
            cpu_time_s=1.5,
            result=str(self.paths.results / f"{run}.{attempt}.pkl"),
        )

    def beat(self, at: float, busy: int, slots: int = 4) -> events.Heartbeat:
        """A heartbeat with a reading of every slot and of the node."""
        samples: list[list[float | int | None]] = [[-1, 55.0, 8_000_000_000, None, None]]
        samples += [[slot, 99.5, 1_000_000 * (slot + 1), 40.0, 2_000_000] for slot in range(slots)]
        return events.Heartbeat(time=at, busy=busy, samples=samples)

    def agent(self, runs: Sequence[int], host: str, slots: int = 4, start: float = 100.0) -> list[Event]:
        """An agent's whole life: it runs ``runs`` in its slots, one after the other; every seventh fails."""
        at = self.start + start
        new: list[Event] = [self.agent_started(at, host, slots)]
        for index, run in enumerate(runs):
            begin = at + 1 + index // slots * 10
            state = "FAILED" if run % 7 == 6 else "COMPLETED"
            new.append(self.started(begin, run, slot=index % slots))
            new.append(self.located(begin + 0.5, run))
            new.append(self.ended(begin + 9, run, state=state, started_at=begin - 0.01))
            if index % slots == 0:
                new.append(self.beat(begin + 5, busy=slots, slots=slots))
        new.sort(key=lambda event: event.time)
        new.append(events.AgentEnded(time=new[-1].time + 1, reason="every run is done", exit_code=0))
        return new

    def opened(self, writer: str, segment: int = 0) -> events.JournalOpened:
        """The first line of a segment."""
        return events.JournalOpened(time=self.start, sweep=self.sweep, writer=writer, segment=segment)

    def launch_journal(self, launch: int = 0, segment: int = 0) -> Path:
        """Where a launch's journal lies."""
        return self.paths.launch(launch) / f"journal-{segment}.jsonl"

    def agent_journal(self, batch: str = "0-0", restart: int = 0, node: int = 0, segment: int = 0) -> Path:
        """Where an agent's journal lies."""
        return self.paths.agent(AgentId(batch, restart, node)) / f"journal-{segment}.jsonl"

    def act_journal(self, name: str) -> Path:
        """Where an act's journal lies."""
        return self.paths.acts / f"{name}-0.jsonl"

    def write(self, path: Path, new: Iterable[Event], *, close: bool = True) -> Path:
        """Append events to a journal, which begins and ends as every journal does."""
        lines = [] if path.exists() else [self.opened(path.parent.name)]
        lines += new
        if close:
            lines.append(events.JournalClosed(time=lines[-1].time))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"".join(journal.encode(event) for event in lines))
        return path

    def write_all(self, runs: int = 24, batches: int = 2, slots: int = 4) -> None:
        """A whole sweep that went well: its launch, and one agent for each of its jobs."""
        self.write(self.launch_journal(), self.launch(runs, batches, slots=slots))
        for index in range(batches):
            low, high = runs * index // batches, runs * (index + 1) // batches
            self.write(self.agent_journal(f"0-{index}"), self.agent(range(low, high), f"node{index}", slots))


def tables(connection: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All that was folded: every row of every table but the fold's own bookkeeping, in an order of its own."""
    names = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if name not in BOOKKEEPING
    ]
    return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in names}


def recount(connection: sqlite3.Connection, sweep: str) -> dict[str, int]:
    """How many of a sweep's runs are in which state, counted one by one."""
    return dict(
        connection.execute("SELECT state, count(*) FROM run WHERE sweep = ? GROUP BY state", (sweep,)).fetchall()
    )


def kept_counts(connection: sqlite3.Connection, sweep: str) -> dict[str, int]:
    """The same as the sweep's row keeps it, without the states that no run is in."""
    names = [state.value for state in State]
    row = connection.execute(
        "SELECT pending, running, completed, failed, cancelled, timeout, out_of_memory, node_fail, preempted "
        "FROM sweep WHERE id = ?",
        (sweep,),
    ).fetchone()
    return {name: count for name, count in zip(names, row, strict=True) if count}


def make_older(connection: sqlite3.Connection) -> None:
    """Have a ledger as an older version left it, with indexes that were not there."""
    connection.execute("DROP INDEX attempt_in_trouble")
    connection.execute("DROP INDEX attempt_by_slot")
    connection.execute("CREATE INDEX attempt_by_slot ON attempt(sweep, batch, restart, node, slot, started_at)")
    connection.execute("DROP TABLE override_part")
    connection.execute("UPDATE override_key SET runs = runs + 5")
    for step in schema.STEPS[3:]:
        connection.execute("DELETE FROM _sqlite_migrations WHERE name = ?", (step.__name__,))
    schema.set_meta(connection, "schema_version", 3)
