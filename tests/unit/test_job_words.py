"""How a job's state reads when Slurm says little, or cannot be asked."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from clusterduck import job_words
from clusterduck.job_words import standing, time_left
from clusterduck.ledger.queries import Batch
from clusterduck.slurm.jobs import JobStatus
from clusterduck.wording import age, iso

NOW = 1795541000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is now, however long other tests take."""
    monkeypatch.setattr(job_words, "time", SimpleNamespace(time=lambda: NOW))


def batch(**known: Any) -> Batch:
    nothing: dict[str, Any] = {field.name: None for field in fields(Batch)}
    return Batch(**{**nothing, "sweep": "s", "id": "0-0", "state": "RUNNING", "job_id": "7", **known})


def ago(seconds: float) -> float:
    return NOW - seconds


HEARD = {"heartbeat_at": iso(ago(5))}
SILENT = {"heartbeat_at": iso(ago(500))}


@pytest.mark.parametrize(
    ("known", "job", "shown"),
    [
        ({"state": "FAILED", "reason": "it died"}, JobStatus("7", "RUNNING"), ("FAILED", "it died")),
        ({"state": "PENDING", "job_id": None}, None, ("PENDING", "not submitted")),
        (
            {"state": "PENDING", "job_id": None, "reason": "sbatch said nothing"},
            None,
            ("PENDING", "sbatch said nothing"),
        ),
        ({}, JobStatus("7", "RUNNING"), ("RUNNING", "")),
        ({"state": "PENDING"}, JobStatus("7", "PENDING", "Priority"), ("PENDING", "Priority")),
        ({}, JobStatus("7", "NODE_FAIL"), ("NODE_FAIL", "another look will confirm it")),
        (SILENT, JobStatus("7", "RUNNING", as_of=ago(181)), ("RUNNING", "as of 3 min ago")),
        (HEARD, JobStatus("7", "RUNNING", as_of=ago(181)), ("RUNNING", "")),
        (SILENT, JobStatus("7", "PENDING", "Priority", as_of=ago(30)), ("PENDING", "as of 30 s ago; Priority")),
        (
            SILENT,
            JobStatus("7", "TIMEOUT", "TimeLimit", as_of=ago(181)),
            ("TIMEOUT", "as of 3 min ago; TimeLimit; another look will confirm it"),
        ),
        (SILENT, JobStatus("7", "ABSENT", "not listed"), ("UNKNOWN", "not listed")),
        (HEARD, JobStatus("7", "ABSENT", "not listed"), ("RUNNING", "not listed")),
        (HEARD, JobStatus("7", "UNKNOWN", "never told"), ("RUNNING", "")),
        (SILENT, JobStatus("7", "UNKNOWN", "never told"), ("RUNNING", "as of 8 min ago; never told")),
        (
            {"state": "PENDING", "submitted_at": iso(ago(7200))},
            JobStatus("7", "UNKNOWN", "never told"),
            ("PENDING", "as of 2 h ago; never told"),
        ),
    ],
)
def test_what_is_known_last_is_shown(known: dict[str, Any], job: JobStatus | None, shown: tuple[str, str]) -> None:
    assert standing(batch(**known), job) == shown


def test_the_time_left_is_slurms_word_or_the_agents() -> None:
    told = batch(ends_at=iso(NOW + 100))
    assert time_left(told, JobStatus("7", "RUNNING", time_left_s=50.0)) == 50.0
    assert time_left(told, JobStatus("7", "UNKNOWN")) == 100.0
    assert time_left(told, JobStatus("7", "TIMEOUT", as_of=1.0)) is None
    assert time_left(batch(), None) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (99, "99 s"),
        (101, "2 min"),
        (5999, "100 min"),
        (6000, "2 h"),
        (47 * 3600, "47 h"),
        (8.6e5, "10 days"),
    ],
)
def test_ages_are_rough(seconds: float, words: str) -> None:
    assert age(seconds) == words
