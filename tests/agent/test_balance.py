"""Who claims what when jobs share their runs: nobody waits while there is something to do, and the longest come first.

Agents' decisions and their claims are the real ones, on real folders; only the clock and the runs are made up, since
what is looked at is the order of things.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clusterduck.agent import claiming
from clusterduck.agent.claiming import Claiming, Haul
from clusterduck.agent.settings import AgentSettings
from clusterduck.agent.state import AgentState, Claim, Claimed, Command, Ended, SlotOpened, Start
from clusterduck.events import RunsPlanned
from clusterduck.journal import JournalWriter
from clusterduck.model import AgentId, Attempt, State
from clusterduck.paths import SweepPaths
from clusterduck.queue import Queue, Requeued

SLOTS = 4


class Node:
    """An agent of a sweep of four jobs."""

    def __init__(self, job: int, folder: Path, settings: AgentSettings) -> None:
        self.settings = settings
        self.claiming = Claiming(settings, AgentId(f"0-{job}", 0, 0), folder, print)
        self.state = AgentState(SLOTS, self.claiming.left, claiming.claimants(settings))


class Simulation:
    """A sweep of runs that take so long, in four jobs of four slots; ``known`` says what the journal tells of them."""

    def __init__(self, folder: Path, took: Sequence[float], *, share: bool, known: Sequence[float | None] = ()) -> None:
        self.took = took
        self.now = 0.0
        self.started: list[list[int]] = [[] for _ in range(4)]
        self._ends: list[tuple[float, int, int, int]] = []
        paths = SweepPaths.of(folder, "sim-abcde")
        paths.create()
        paths.launch(0).mkdir(parents=True)
        runs = [(run, [f"x={run}"]) for run in range(len(took))]
        writer = JournalWriter(paths.launch(0), paths.sweep, "launch 0")
        writer.append([RunsPlanned(launch=0, runs=runs, expected_s=list(known))])
        writer.close()
        size = -(-len(took) // 4)
        self.paths = paths
        self.nodes = [
            Node(
                job,
                folder,
                AgentSettings(
                    sweep_root=str(paths.root),
                    batch=f"0-{job}",
                    launch=0,
                    first_run=job * size,
                    stop_run=min(len(took), (job + 1) * size),
                    plan_first=0,
                    plan_stop=len(took),
                    nodes=1,
                    cluster="local",
                    parallel_runs_per_node=SLOTS,
                    ledger=str(folder / "ledger.db"),
                    share_runs=share,
                    jobs=4,
                    ordered=bool(known),
                ),
            )
            for job in range(4)
        ]

    def run(self) -> float:
        """Let all be executed; returns how long that takes, in the time of the simulation."""
        for job, node in enumerate(self.nodes):
            for slot in range(SLOTS):
                self._carry_out(job, node.state.handle(SlotOpened(slot)))
        while self._ends:
            self.now, _, job, slot = heapq.heappop(self._ends)
            self._carry_out(job, self.nodes[job].state.handle(Ended(slot, State.COMPLETED)))
        assert sorted(run for runs in self.started for run in runs) == list(range(len(self.took)))
        return self.now

    def _carry_out(self, job: int, commands: Sequence[Command]) -> None:
        node = self.nodes[job]
        for command in commands:
            if isinstance(command, Claim):
                haul = Haul()
                node.claiming.claim(command.count, haul)
                claimed = Claimed(command.count, tuple(haul.attempts), haul.left)
                self._carry_out(job, node.state.handle(claimed))
            elif isinstance(command, Start):
                run = command.attempt.run
                self.started[job].append(run)
                heapq.heappush(self._ends, (self.now + self.took[run], run, job, command.slot))


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of claims costs nothing in the simulation's time."""
    monkeypatch.setattr(claiming, "REST_FACTOR", 0)


def durations(seed: int, count: int) -> list[float]:
    numbers = random.Random(seed)
    return [min(20.0, max(1.0, numbers.lognormvariate(1.2, 0.8))) for _ in range(count)]


def lower_bound(took: Sequence[float]) -> float:
    return max(*took, sum(took) / (4 * SLOTS))


@pytest.mark.parametrize("seed", range(4))
def test_without_any_knowledge_no_slot_waits_while_there_is_something_to_do(tmp_path: Path, seed: int) -> None:
    took = durations(seed, 200)
    # What can be had without knowledge: whoever is free takes the next, so all end within the longest run's time.
    assert Simulation(tmp_path, took, share=True).run() <= sum(took) / 16 + max(took)


@pytest.mark.parametrize("seed", range(4))
def test_known_durations_bring_it_to_the_bound(tmp_path: Path, seed: int) -> None:
    took = durations(seed, 200)
    assert Simulation(tmp_path, took, share=True, known=took).run() < 1.05 * lower_bound(took)


def test_a_node_begins_with_its_own_longest_and_helps_out_with_the_longest_of_all(tmp_path: Path) -> None:
    took = [1.0] * 10 + [float(2 + run % 7) for run in range(30)]
    simulation = Simulation(tmp_path, took, share=True, known=[None if run == 10 else took[run] for run in range(40)])
    simulation.run()
    first = simulation.started[0]
    assert first[:10] == list(range(10)), "all of them equally long, so by number"
    helped = [took[run] for run in first[10:]]
    assert helped == sorted(helped, reverse=True), "the longest that was left of the others' each time"
    own = [run for run in simulation.started[2] if 20 <= run < 30]
    assert own == sorted(own, key=lambda run: (-took[run], run))


def test_attempts_that_others_have_claimed_are_found_out_in_time(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, [1.0] * 40, share=True)
    mine, other = simulation.nodes[0].claiming, simulation.nodes[1].claiming
    haul, others = Haul(), Haul()
    other.claim(25, others)
    mine.claim(6, haul)
    assert haul.left == 40 - 25 - 6
    assert set(haul.attempts).isdisjoint(others.attempts)
    assert haul.attempts == [Attempt(run, 1) for run in range(6)]


def test_a_job_that_replaces_a_dead_one_executes_what_it_was_sent_for_and_then_helps_out(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, [1.0] * 40, share=True, known=[float(run) for run in range(40)])
    home = [Attempt(3, 2), Attempt(7, 1)]
    for attempt in home:
        Queue(simulation.paths.queue).put(Requeued(attempt, launch=0, kind="retry", reason="", by="me"))
    simulation.paths.payload(0).write_bytes(b"")
    simulation.paths.payload(0).chmod(0o600)
    settings = replace(
        simulation.nodes[0].settings, batch="r1-0", first_run=0, stop_run=0, attempts=tuple(map(str, home))
    )
    simulation.nodes[0].claiming.claim(2, Haul())
    spare, haul = Node(4, tmp_path, settings), Haul()
    assert claiming.claimants(settings) == 4 * SLOTS
    spare.claiming.claim(40, haul)
    assert haul.attempts[:2] == home
    assert haul.attempts[2:] == [Attempt(run, 1) for run in range(39, -1, -1) if run not in (7, 8, 9)], (
        "the longest first"
    )
    assert set(haul.requeued) == set(home)
