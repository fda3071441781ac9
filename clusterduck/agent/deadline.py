"""What the job's time limit means for its runs, as pure functions of the clock: whether one can still end in time, when
to end those that run, and what a signal from Slurm is about."""

from __future__ import annotations

from clusterduck.model import State

#: A warning that comes this much earlier than Slurm's ``--signal`` says is no warning of the time limit, in seconds.
# Slurm  may send it up to a minute early (sbatch's manual, ``--signal``).
WARNING_SLACK_S = 60.0


class Deadline:
    """The end of the job.

    Args:
        ends_at: when Slurm will end it, in seconds since the epoch; None if that is not known.
        warning_s: how long before it Slurm warns.
        expected_run_s: how long a run takes, if the user said so.
    """

    def __init__(self, ends_at: float | None, warning_s: float, expected_run_s: float | None) -> None:
        self.ends_at = ends_at
        self._warning_s = warning_s
        self._expected_run_s = expected_run_s
        self._longest_s = 0.0
        self._preemption = False

    @property
    def reserve_s(self) -> float:
        """How long before the end the last runs are ended, so that all can be reported."""
        return min(30.0, max(5.0, self._warning_s / 4))

    @property
    def last_call(self) -> float | None:
        """When what still runs has to be ended."""
        return None if self.ends_at is None else self.ends_at - self.reserve_s

    def ran(self, duration_s: float) -> None:
        """A run completed after so many seconds."""
        self._longest_s = max(self._longest_s, duration_s)

    def too_short_for_a_run(self, now: float) -> str | None:
        """Why no further run is to be started, or None if one can still end in time."""
        if self.last_call is None:
            return None
        needed = self._expected_run_s if self._expected_run_s is not None else self._longest_s
        if now + needed < self.last_call:
            return None
        known_from = "expected_run_min" if self._expected_run_s is not None else "the longest run so far"
        return (
            f"no further run is started: {max(0.0, self.last_call - now):.0f} s are left of the job's time, "
            f"and a run takes {needed:.0f} s ({known_from})"
        )

    def warned(self, now: float) -> str:
        """Slurm sent its warning. Returns what it is about, in words."""
        if self.ends_at is not None and now < self.ends_at - self._warning_s - WARNING_SLACK_S:
            self._preemption = True
            return "Slurm is about to preempt the job"
        return "the job's time limit is near"

    @property
    def meaning_of_warning(self) -> State:
        """How a run ends that saves its work and ends itself after the warning."""
        return State.PREEMPTED if self._preemption else State.TIMEOUT

    def meaning_of_term(self, now: float) -> tuple[State, str]:
        """What it means that the job is asked to end. It may be wrong: what Slurm or a restart says later decides."""
        if self._preemption:
            return State.PREEMPTED, "the job was preempted"
        if self.last_call is not None and now >= self.last_call:
            return State.TIMEOUT, "the job's time limit was reached"
        return State.CANCELLED, "the job was cancelled, or preempted without warning (the agent got SIGTERM)"
