"""sbatch leaves open whether Slurm has the job: it is neither failed nor forgotten."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from written import of_type, only_sweep, written

from clusterduck import adopt, standing
from clusterduck.errors import ConfigError, DoubtfulSubmissionError
from clusterduck.events import (
    BatchClosed,
    BatchSubmitted,
    RunsClosed,
    SubmissionDoubted,
)
from clusterduck.launch import collect
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Batch
from clusterduck.ledger.replica import Replica
from clusterduck.slurm import sbatch, squeue

LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"

#: Takes the job, and then does not say so properly.
DOUBTS = {
    "its answer is lost": f"echo '{LOST}' >&2; exit 1\n",
    "it fails afterwards": 'echo "Submitted batch job 4711"; echo "plugin failed" >&2; exit 1\n',
    "it is killed": "kill -9 $$\n",
    "it is silent": "exit 1\n",
    "it prints rubbish": "echo 'Have a nice day'\n",
    "it prints nothing": "exit 0\n",
}

#: Shows the script that sbatch took as that of a job, or of an array of jobs. (Numbers of jobs are put in.)
SHOWS = 'for job in {}; do echo "$job|$(date +%s)|$(cat $(dirname $0)/script)"; done\n'


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask Slurm only a few times about a job that may have been taken."""
    from clusterduck.launch import submit

    monkeypatch.setattr(submit, "PATIENCE_S", 0.2)
    monkeypatch.setattr(submit, "_ASK_EVERY_S", 0.1)


@pytest.mark.parametrize("how", DOUBTS)
def test_a_job_that_slurm_shows_is_taken_whatever_sbatch_said(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, how: str, impatient: None
) -> None:
    fake_slurm(sbatch='echo "$1" > $(dirname $0)/script\n' + DOUBTS[how], squeue=SHOWS.format("4710 4711_0 4711_1"))
    launcher = make_launcher("slurm", "hydra.launcher.total_runs_per_node=2")
    launcher.launch([["lr=1"], ["lr=2"], ["lr=3"]], 0)
    paths = only_sweep(own_ledger)
    submitted = of_type(BatchSubmitted, written(paths))
    assert [(event.batch, event.job_id) for event in submitted] in (
        [("0-0", "4711_0"), ("0-1", "4711_1")],
        [("0-0", "4710_0"), ("0-1", "4710_1")],
    )
    for event, first in zip(submitted, (0, 2), strict=True):  # each job finds what it is to do
        folder = Path(paths.place(event.log_dir))
        assert (
            pickle.loads((folder / f"{event.job_id}_submitted.pkl").read_bytes()).function.settings.first_run == first
        )
    assert not of_type(BatchClosed, written(paths))


@pytest.mark.parametrize(
    ("squeue", "said"),
    [
        ("exit 0\n", "Slurm does not show it so far"),
        ("exit 1\n", "Slurm cannot be asked: Slurm's command squeue failed: exit code 1"),
        ("echo duck\n", "Slurm cannot be asked: Slurm's command squeue printed what is no list of jobs: 'duck'"),
    ],
)
def test_a_job_in_doubt_is_neither_failed_nor_forgotten(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, squeue: str, said: str, impatient: None
) -> None:
    folder = fake_slurm(sbatch='echo "$1" > $(dirname $0)/script\n' + DOUBTS["its answer is lost"], squeue=squeue)
    with pytest.raises(DoubtfulSubmissionError) as caught:
        make_launcher("slurm").launch([["lr=1"], ["lr=2"]], 0)
    words = f"Nobody knows whether Slurm has taken the job: sbatch failed (exit code 1): {LOST}. {said}. `clusterduck "
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
    paths = only_sweep(own_ledger)
    assert not of_type(BatchClosed, written(paths)) and not of_type(RunsClosed, written(paths))
    assert [event.batch for event in of_type(SubmissionDoubted, written(paths))] == ["0-0"]

    with pytest.raises(ConfigError, match="its batch 0-0 may be in Slurm's queue"):
        make_launcher("slurm")
    with Replica.open(own_ledger) as replica:  # nobody sends its runs again meanwhile
        (batch, ended_at) = look(replica, own_ledger)
        assert (batch.state, batch.job_id, ended_at) == ("PENDING", None, None) and batch.reason == str(caught.value)
        now = standing.of_sweep(replica.connection, paths.sweep, {})
        assert list(now.waiting.values()) == ["0-0", "0-0"] and not now.unattended

        (folder / "squeue").write_text("#!/bin/sh\n" + SHOWS.format("4711"))  # there it is
        (batch, _) = look(replica, own_ledger)
        assert (batch.state, batch.job_id, batch.reason) == ("PENDING", "4711", None)
        assert (Path(str(batch.log_folder)) / "4711_submitted.pkl").exists()


def look(replica: Replica, ledger: Path) -> tuple[Batch, str | None]:
    """Somebody looks, after a pause; the batch then."""
    squeue._silent.clear()
    replica.catch_up()
    adopt.adopt(replica)
    (batch,) = queries.batches(replica.connection)
    return batch, batch.ended_at


def test_a_job_that_slurm_does_not_show_for_long_was_never_taken_unless_it_was(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_slurm(sbatch='echo "$1" > $(dirname $0)/script\n' + DOUBTS["it is silent"], squeue="exit 0\n")
    with pytest.raises(DoubtfulSubmissionError):
        make_launcher("slurm").launch([["lr=1"], ["lr=2"]], 0)
    monkeypatch.setattr(adopt, "LATE_S", 0.0)
    with Replica.open(own_ledger) as replica:
        (batch, _) = look(replica, own_ledger)
        assert batch.state == "FAILED" and str(batch.reason).startswith("sbatch left open whether it took the job")
        runs = queries.runs(replica.connection, batch.sweep)
        assert [run.state for run in runs] == ["PENDING", "PENDING"]  # nobody will take them, which is said elsewhere
        now = standing.of_sweep(replica.connection, batch.sweep, {})
        assert len(now.unattended) == 2
        (folder / "squeue").write_text("#!/bin/sh\n" + SHOWS.format("4711"))
        (batch, _) = look(replica, own_ledger)
        assert (batch.state, batch.job_id, batch.reason) == ("PENDING", "4711", None)


def test_a_launcher_that_waits_goes_on_with_a_job_that_slurm_shows_later(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, impatient: None, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "LATE_S", 0.0)
    monkeypatch.setattr(collect, "ASK_DOUBTFUL_EVERY_S", 0.1)
    fake_slurm(sbatch=DOUBTS["it prints rubbish"], squeue="exit 0\n")
    answers = make_launcher("slurm", "hydra.launcher.wait_for_completion=true").launch([["lr=1"]], 0)
    assert "Nobody knows whether Slurm has taken the job: sbatch gave no job id: Have a nice day" in say()
    with pytest.raises(Exception, match="is over: sbatch left open whether it took the job"):
        answers[0].return_value  # noqa: B018


def test_an_interrupted_sbatch_leaves_it_open(make_launcher: Any, fake_slurm: Any, own_ledger: Path) -> None:
    fake_slurm(sbatch="kill -INT $PPID; exec sleep 60\n", squeue="exit 0\n")
    with pytest.raises(DoubtfulSubmissionError, match="sbatch was interrupted before it had answered"):
        make_launcher("slurm").launch([["lr=1"]], 0)
    assert of_type(SubmissionDoubted, written(only_sweep(own_ledger)))


def test_an_sbatch_that_hangs_leaves_it_open(
    make_launcher: Any, fake_slurm: Any, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sbatch, "TIMEOUT_S", 0.3)
    fake_slurm(sbatch="exec sleep 60\n", squeue="exit 0\n")
    with pytest.raises(DoubtfulSubmissionError, match=r"Slurm's command sbatch did not answer within 0\.3 s"):
        make_launcher("slurm").launch([["lr=1"]], 0)


def test_jobs_after_one_in_doubt_are_not_submitted(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, impatient: None
) -> None:
    fake_slurm(sbatch=DOUBTS["it is silent"], squeue="exit 0\n", scontrol='echo "MaxArraySize            = 2"\n')
    with pytest.raises(DoubtfulSubmissionError):
        make_launcher("slurm", "hydra.launcher.total_runs_per_node=1").launch([[f"lr={n}"] for n in range(5)], 0)
    events = written(only_sweep(own_ledger))
    assert [event.batch for event in of_type(SubmissionDoubted, events)] == ["0-0", "0-1"]
    assert [event.batch for event in of_type(BatchClosed, events)] == ["0-2", "0-3", "0-4"]
    assert of_type(RunsClosed, events)[0].ranges == [[2, 3], [3, 4], [4, 5]]
