"""What is done to sweeps on one version of NFS: first nothing, then one fault after another, each to another sweep."""

from __future__ import annotations

import itertools
import time
import traceback

from course import SWEEP_S, Course, Row, Sweep
from evidence import Amiss, lateness, silence
from machines import LEASE_S, wait_until

#: What there is to do, in this order.
SWEEPS = ("plain", "old", "power", "pause", "late", "publish", "restart", "full")

#: While the file system is away, a run that does not use it may be late by so many seconds, on a busy machine, and an
#: agent's heartbeats, which come every ten, may be so far apart.
LATE_S, BEAT_S = 2.0, 14.0

#: How long a machine is frozen, in seconds.
PAUSE_S = 60.0

#: Slurm calls a silent node down after so many seconds, where that is wanted, and else.
SHORT_TIMEOUT_S, USUAL_TIMEOUT_S = 15, 150

#: How long a client that wakes late may take to see that its job was started again and to end all it has, in seconds.
STEP_DOWN_S = 60.0

#: How long a machine is without power before it is switched on again, in seconds. Slurm takes a batch job whose node
#: comes back within BatchStartTimeout + MessageTimeout (slurm.conf(5); 20 s) of its start for one that still begins.
DARK_S = 15.0

#: How long the export stays full after all that ran has ended, in seconds.
FULL_S = 8.0

#: After a fault has passed, how long clients may take to go on, in seconds: their leases and locks come first.
SETTLE_S = LEASE_S + 15.0

#: How long runs take whose agents are no longer young, in seconds: some heartbeats of every 45 s.
OLD_S = 200.0

#: An agent that was not heard of for so many seconds is said to be silent (``clusterduck.job_words``).
SILENT_S = 90.0

#: What has an agent's youth be over at its start: Python imports it by its name.
NO_YOUTH = "from clusterduck.agent import rhythm\nrhythm.YOUNG_S = 0.0\n"

#: Fills the export to its last block, and lets nobody believe that it is full who has not tried.
FILL = (
    "fallocate -l $(($(df --output=avail -B1 /export | tail -1) * 95 / 100)) /export/filler-0;"
    " for n in 1 2 3; do dd if=/dev/zero of=/export/filler-$n bs=4k conv=fsync 2>/dev/null; done;"
    " ! dd if=/dev/zero of=/export/filler-4 bs=4k count=1 conv=fsync 2>/dev/null"
)


class Campaign(Course):
    """All sweeps on one version of NFS."""

    def run(self, left: list[str]) -> None:
        """Do these sweeps and take each off the list; where one is not seen to its end, these machines are done for."""
        while left:
            name = left.pop(0)
            try:
                getattr(self, f"_{name}")()
                if not left:
                    self._stop_readers()
                    self._compare()
            except Exception as error:  # whatever it was: the other sweeps are to be done
                traceback.print_exc()
                self.rows.append(Row(self._version, name, complaints=[f"not seen to its end: {error}"]))
                return

    # --- the sweeps

    def _plain(self) -> None:
        with self._sweep("nothing", runs=24, seconds=3, long=(0, 1, 12, 13)) as sweep:
            self._wait_for(sweep, lambda told: {0, 1, 12, 13} <= {effect.run for effect in told}, "long runs begin")
            for run, with_signal in ((0, True), (12, True), (1, False), (13, False)):
                self._cancel(sweep, run, with_signal)

    def _old(self) -> None:
        """Agents that are no longer young: every 45 s they write a heartbeat, which NFS may keep, and nothing else."""
        folder = self._lab.shared / "no-youth"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(NO_YOUTH)
        setup = f"'hydra.launcher.setup=[\"export PYTHONPATH=/host/no-youth:{self._mount}/site\"]'"
        with self._sweep("nothing but a heartbeat every 45 s", runs=4, seconds=OLD_S, more=setup) as sweep:
            self._wait_for(sweep, lambda told: len(told) == 4, "all runs begin")
            self._wait_for(sweep, lambda told: all(effect.when("completed") for effect in told), "all runs complete")
            found = silence(self._notes / "heard.jsonl", sweep.id)
            sweep.note = f"{found.beats} heartbeats of {found.agents} agents, at most {found.most:.0f} s of silence"
            if found.most > SILENT_S:
                sweep.complaints.append(f"a live agent was taken for silent: not heard of for {found.most:.0f} s")
            if found.agents != 2 or found.beats < 2 * found.agents:
                sweep.complaints.append("too few heartbeats were heard")

    def _power(self) -> None:
        with self._sweep(f"a client lost power for {DARK_S:.0f} s", runs=12, seconds=6) as sweep:
            self._wait_for_the_middle(sweep)
            self._lab.kill("c1")
            sweep.lost_at = time.time()
            time.sleep(DARK_S)
            self._lab.boot("c1")
            sweep.amiss.append(Amiss(sweep.lost_at, time.time() + SETTLE_S, ("c1",)))

    def _pause(self) -> None:
        with self._sweep(f"a client was paused for {PAUSE_S:.0f} s", runs=12, seconds=5) as sweep:
            self._wait_for_the_middle(sweep)
            began = time.time()
            self._lab.pause("c1")
            time.sleep(PAUSE_S)
            self._lab.resume("c1")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S, ("c1",)))

    def _late(self) -> None:
        """A client is paused until Slurm has started its job on the other one; and when it wakes, slurmd there does
        nothing, so that nobody ends what it still has but its own agent."""
        self._set_slurm_timeout(SHORT_TIMEOUT_S)
        with self._sweep("a client woke after its job was started elsewhere", 12, 8, more="+counted=true") as sweep:
            self._wait_for_the_middle(sweep)
            held = {(e.run, e.attempt) for e in self._told(sweep) if e.host == "c1" and not e.when("completed")}
            began = time.time()
            self._lab.run("c1", "kill -STOP $(pidof slurmd)")
            self._lab.pause("c1")
            self._wait_for(
                sweep,
                lambda told: any(e.attempt > 1 and e.host == "c2" for e in told),
                "the job of the paused client is executed elsewhere",
            )
            woken = time.time()
            self._lab.resume("c1")
            wait_until(lambda: not self._runs_on("c1"), "the client that woke ends all it has", STEP_DOWN_S)
            sweep.note = f"asleep for {woken - began:.0f} s, all ended {time.time() - woken:.1f} s after it woke"
            self._lab.run("c1", "kill -CONT $(pidof slurmd)")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S, ("c1",)))
            self._wait_for_the_end(sweep)
            since = {(e.run, e.attempt) for e in self._told(sweep) if e.host == "c1" and e.said[0][1] > woken}
            if since:
                sweep.complaints.append(f"begun by the client that woke: {sorted(since)}")
            if not held:
                sweep.complaints.append("nothing ran on the client when it was paused")
            self._command(f"logs {sweep.id} >/dev/null || true")
        self._set_slurm_timeout(USUAL_TIMEOUT_S)

    def _runs_on(self, name: str) -> bool:
        """Whether an agent, or anything it started, is alive on a machine."""
        return bool(self._lab.run(name, "pgrep -f '[s]ubmitit|clusterduck.agent|sweep_app'", check=False).strip())

    def _set_slurm_timeout(self, seconds: int) -> None:
        change = f"sed -i s/^SlurmdTimeout=.*/SlurmdTimeout={seconds}/ /etc/slurm/slurm.conf"
        for name in ("c1", "c2", "login"):
            self._lab.run(name, change)
        self._lab.run("login", "scontrol reconfigure")

    def _publish(self) -> None:
        """The login node loses its power when it has written the new ledger and is about to rename it."""
        with self._sweep("the login node lost power while it published", runs=12, seconds=6) as sweep:
            self._wait_for_the_middle(sweep)
            began = time.time()
            hold = self._prepared(f"python3 publish_and_hold.py {self._ledger} {self._inside}/about-to-rename")
            holding = self._lab.start("login", hold, self._notes / "hold.log")
            mark = self._notes / "about-to-rename"
            wait_until(mark.exists, "the login node is about to rename the ledger", SWEEP_S)
            self._lab.kill("login")
            holding.kill()  # a connection to a machine without power says nothing by itself
            holding.wait()
            beside = self._leavings()
            time.sleep(DARK_S)
            self._lab.boot("login")
            self._start_readers()
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S))
            if not beside:
                sweep.complaints.append("the login node was not caught while it published")
            self._wait_for_the_end(sweep)
            wait_until(self._lock_is_gone, "the dead publisher's lock goes", SWEEP_S)
            for name in beside:  # nobody waits for an hour here
                self._lab.run("login", f"touch -d '2 hours ago' {self._project}/.clusterduck/{name}")
            self._command("rebuild")
            left = self._leavings() & beside
            sweep.note = f"{len(beside)} leavings, {len(left)} after they had become old"
            if left:
                sweep.complaints.append(f"never cleaned up: {left}")

    def _leavings(self) -> set[str]:
        """What publishers on the login node have beside the ledger, as the server sees it."""
        export = self._project.replace(self._mount, "/export")
        return {name for name in self._lab.run("srv", f"ls -A {export}/.clusterduck").split() if ".db.login." in name}

    def _lock_is_gone(self) -> bool:
        """Whether a lock that is there is not the dead publisher's."""
        export = self._project.replace(self._mount, "/export")
        lock = f"{export}/.clusterduck/.ledger.db.lock"
        age = self._lab.run("srv", f"echo $(( $(date +%s) - $(stat -c %Y {lock} 2>/dev/null || date +%s) ))")
        return int(age) < DARK_S

    def _restart(self) -> None:
        with self._sweep("the server restarted", runs=12, seconds=5) as sweep:
            self._wait_for_the_middle(sweep)
            began = time.time()
            self._lab.kill("srv")
            self._lab.boot("srv")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S))
            self._wait_for_the_end(sweep)
            self._see_who_was_held_up(sweep)

    def _full(self) -> None:
        with self._sweep("the export was full", runs=10, seconds=10) as sweep:
            self._wait_for(sweep, lambda told: len(told) >= 4, "four runs begin")
            running = {(effect.run, effect.attempt) for effect in self._told(sweep)}
            began = time.time()
            self._lab.run("srv", FILL)
            self._wait_for(
                sweep,
                lambda told: running <= {(effect.run, effect.attempt) for effect in told if effect.when("completed")},
                "all that ran has completed",
            )
            time.sleep(FULL_S)
            self._lab.run("srv", "rm /export/filler-*; sync")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S))
            self._wait_for_the_end(sweep)
            self._see_who_was_held_up(sweep)
            states = self._states(sweep)
            failed = sorted(run for run, state in states.items() if state == "FAILED")
            sweep.note += f"; {len(failed)} began while it was full and failed, and completed when requeued"
            wrong = {run: states[run] for run, _ in running if states[run] != "COMPLETED"}
            if wrong:
                sweep.complaints.append(f"of what ran when it became full, these did not complete: {wrong}")
            if not failed:
                sweep.complaints.append("it was never full")
            else:
                self._command(f"requeue --failed --sweep {sweep.id} --as-submitted --yes")

    def _see_who_was_held_up(self, sweep: Sweep) -> None:
        """By how much runs were late while the file system was away, and whether the agents' wait loops went on."""
        told = self._told(sweep)
        silent, printing = (lateness(told, sweep.seconds, is_silent) for is_silent in (True, False))
        sweep.note = f"late by: silent runs {silent:.1f} s, runs that print {printing:.1f} s"
        if silent > LATE_S:
            sweep.complaints.append(f"a run that does not use the file system was late by {silent:.1f} s")
        beats = self._lab.run("login", f'grep -o \'"e":"beat","time":[0-9.]*\' {self._root(sweep)}/batches/*/*/*.jsonl')
        by_agent: dict[str, list[float]] = {}
        for line in beats.splitlines():
            place, _, beat = line.partition(".jsonl:")
            by_agent.setdefault(place.rpartition("/")[0], []).append(float(beat.rpartition(":")[2]))
        apart = max(b - a for times in by_agent.values() for a, b in itertools.pairwise(sorted(times)))
        sweep.note += f"; heartbeats at most {apart:.1f} s apart"
        if apart > BEAT_S:
            sweep.complaints.append(f"an agent's wait loop was held up: heartbeats {apart:.1f} s apart")
