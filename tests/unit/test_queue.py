"""Claims have one winner each; the queue's entries are whole; and every run is looked for exactly once."""

from __future__ import annotations

import errno
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterduck.errors import JournalError, UnsafePathError
from clusterduck.model import Attempt
from clusterduck.queue import Claims, Queue, Requeued, divide, order_of_looking

FORK = multiprocessing.get_context("fork")


def claim_all(folder: Path, name: str, ready: Barrier, won: Any) -> None:
    claims = Claims(folder, name)
    ready.wait(60)
    won.put([run for run in range(200) if claims.claim(Attempt(run, 1))])


def test_of_several_processes_one_wins_each_claim(tmp_path: Path) -> None:
    ready, won = FORK.Barrier(4), FORK.SimpleQueue()
    processes = [FORK.Process(target=claim_all, args=(tmp_path, f"0-{i}/0.0", ready, won)) for i in range(4)]
    for process in processes:
        process.start()
    winners = [won.get() for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(run for runs in winners for run in runs) == list(range(200))


def test_whose_a_claim_is(tmp_path: Path) -> None:
    ours, theirs = Claims(tmp_path, "0-1/0.0"), Claims(tmp_path, "0-1/0.0")
    assert ours.claim(Attempt(3, 1))
    assert ours.claim(Attempt(3, 1)), "asked again after a lost answer, it is still ours"
    assert not theirs.claim(Attempt(3, 1)), "the same name is not the same claimant"
    assert theirs.owner(Attempt(3, 1)) == "0-1/0.0"
    assert theirs.owner(Attempt(4, 1)) is None
    assert theirs.claim(Attempt(3, 2))
    (tmp_path / "notes.txt").write_text("not a claim")
    assert ours.taken() == {Attempt(3, 1), Attempt(3, 2)}
    theirs.release(Attempt(3, 1))
    assert ours.owner(Attempt(3, 1)) == "0-1/0.0", "nobody gives back another one's claim"
    ours.release(Attempt(3, 1))
    ours.release(Attempt(3, 1))
    assert theirs.claim(Attempt(3, 1))


def test_a_claim_is_never_followed(tmp_path: Path) -> None:
    claims = Claims(tmp_path, "0-0/0.0")
    claims.claim(Attempt(0, 1))
    assert (tmp_path / "0.1").is_symlink() and not (tmp_path / "0.1").exists()


def test_what_is_put_into_the_queue_is_found_there_once(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    entry = Requeued(Attempt(7, 2), 0, "person", "once more", "ada@login1", ("lr=1",), fresh=True, losses=1)
    assert queue.put(entry)
    assert not queue.put(entry)
    assert not queue.put(Requeued(Attempt(7, 2), 0, "retry", "it failed", "0-0/0.0"))
    assert queue.put(Requeued(Attempt(3, 2), 0, "retry", "it failed", "0-0/0.0"))
    assert queue.listing() == [Attempt(3, 2), Attempt(7, 2)]
    assert queue.read(Attempt(7, 2)) == entry
    assert {path.name for path in tmp_path.iterdir()} == {"3.2", "7.2"}
    assert (tmp_path / "7.2").stat().st_mode & 0o777 == 0o600


def test_putting_is_recognised_as_done_when_its_answer_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_lose_the_answer(source: str, target: str) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    assert Queue(tmp_path).put(Requeued(Attempt(7, 2), 0, "person", "", "ada"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"attempt": "7.2"}', "null", '{"attempt": "7.2", "launch": "x"}'])
def test_what_is_no_entry_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "7.2").write_text(content)
    (tmp_path / "7.2").chmod(0o600)
    with pytest.raises(JournalError, match="no entry of a queue"):
        Queue(tmp_path).read(Attempt(7, 2))


def test_an_entry_under_another_name_or_of_others_is_refused(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    queue.put(Requeued(Attempt(7, 2), 0, "person", "", "ada"))
    os.rename(tmp_path / "7.2", tmp_path / "8.2")
    with pytest.raises(JournalError, match=r"names attempt 7\.2"):
        queue.read(Attempt(8, 2))
    (tmp_path / "8.2").chmod(0o666)
    with pytest.raises(UnsafePathError):
        queue.read(Attempt(8, 2))


@pytest.mark.parametrize("text", ["", "7", "7.", ".2", "7.2.1", "-7.2", "7.x", "\u0667.2", " 7.2"])
def test_what_names_no_attempt(text: str) -> None:
    with pytest.raises(ValueError, match="not <run>"):
        Attempt.parse(text)


@given(first=st.integers(0, 1000), total=st.integers(0, 300), parts=st.integers(1, 40))
def test_dividing_loses_nothing_and_is_fair(first: int, total: int, parts: int) -> None:
    ranges = divide(first, first + total, parts)
    assert len(ranges) == parts
    assert [run for low, high in ranges for run in range(low, high)] == list(range(first, first + total))
    sizes = [high - low for low, high in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(data=st.data(), total=st.integers(1, 60), jobs=st.integers(1, 5), nodes=st.integers(1, 3))
def test_each_run_is_looked_for_once_the_home_range_first(
    data: st.DataObject, total: int, jobs: int, nodes: int
) -> None:
    batch = data.draw(st.sampled_from(divide(0, total, jobs)))
    home = data.draw(st.sampled_from(divide(*batch, nodes)))
    shared = order_of_looking(home, batch, (0, total))
    assert sorted(shared) == list(range(total))
    assert shared[: home[1] - home[0]] == list(range(*home))
    alone = order_of_looking(home, batch, None)
    assert alone == shared[: batch[1] - batch[0]]
    assert sorted(alone) == list(range(*batch))
