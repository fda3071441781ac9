"""What two processes found out about a file system by trying it on each other: see ``pair``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clusterduck.doctor.finding import Finding, Level
from clusterduck.doctor.pair import SHOWN

#: How long the two may take in all, in seconds.
LIMIT_S = 40.0

#: What one process makes should be seen by the other within so many seconds: the dashboard is to be 3 s behind at most.
SOON_S = 2.0

#: Two clocks may differ by so much, in seconds, before times in the ledger confuse people, and before leases fail.
SKEW_NOTE_S = 2.0
SKEW_BAD_S = 60.0

_WAYS = {"create": "creating", "link": "linking", "symlink": "linking symbolically", "mkdir": "making folders"}


def try_here(folder: Path) -> list[Finding]:
    """Run the two on this host, in an empty folder."""
    command = [sys.executable, "-m", "clusterduck.doctor.pair", str(folder)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in ("0", "1"):
            started.append(
                subprocess.Popen(
                    [*command, rank], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            )
        lines = [process.communicate(timeout=LIMIT_S / 2)[0].decode("utf-8", "replace").strip() for process in started]
    except subprocess.TimeoutExpired:
        lines = []
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return list(judge(answers(lines), "between two processes of this host"))


def answers(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The answers among these lines, by rank; whatever else was printed is passed over."""
    found = {}
    for line in lines:
        try:
            answer = json.loads(line)
            found[int(answer["rank"])] = answer
        except (ValueError, KeyError, TypeError):
            continue
    return [found[rank] for rank in sorted(found)]


def judge(told: Sequence[dict[str, Any]], where: str) -> Iterator[Finding]:
    """What the two answers mean. ``where`` says between whom."""
    if len(told) != 2:
        yield Finding("pair", f"the file system {where}", f"{len(told)} of 2 processes answered", Level.BAD)
        return
    first, second = told
    refused = next((answer for answer in told if answer.get("refused")), None)
    wins = [answer.get("wins") or {} for answer in told]
    if all(wins):
        yield from _judge_races(wins[0], wins[1], where)
    ahead = float((first.get("clock") or {}).get("ahead_s", 0.0))
    for name, what in (("append", "appended lines"), ("listing", "new files in a listing")):
        if second.get(name) and not (refused and second[name]["seen"] < SHOWN):
            yield _judge_ages(name, f"how soon {what} are seen, {where}", second[name], ahead)
    if refused:
        yield Finding(
            "pair",
            f"the file system {where}",
            f"{refused.get('host')}: {refused['refused']}",
            Level.BAD,
            "What comes after that could not be tried: mend it, or choose another folder.",
        )
        return
    if second.get("rename"):
        yield _judge_renames(second["rename"], where)
    for answer in told:
        if answer.get("error"):
            yield Finding(
                "pair",
                f"the file system {where}",
                f"{answer.get('host')}: {answer['error']}",
                Level.BAD,
                "Both must see one folder, and each other's files in it within seconds: is it the same on both?",
            )
            return


def judge_clocks(told: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """How far the clocks of the two hosts are apart."""
    clock = told[0].get("clock") if told else None
    if not clock or len(told) != 2:
        return
    skew, error = float(clock["ahead_s"]), float(clock["give_or_take_s"])
    found = f"{told[1].get('host')} is {abs(skew):.3f} s {'ahead of' if skew >= 0 else 'behind'} {told[0].get('host')}"
    yield judge_skew(
        Finding("clock", "the clocks of the two nodes", f"{found}, give or take {error:.3f} s"), skew, error
    )


def judge_skew(finding: Finding, skew_s: float, give_or_take_s: float = 0.0) -> Finding:
    """The finding with its level and advice, for clocks that are so far apart."""
    least = max(0.0, abs(skew_s) - give_or_take_s)
    if least <= SKEW_NOTE_S:
        return finding
    level = Level.BAD if least > SKEW_BAD_S else Level.NOTE
    advice = "Times in the ledger are those of the host that wrote them: have the clocks set (chrony, ntpd)."
    return Finding(finding.check, finding.tested, finding.found, level, advice)


def _judge_races(first: dict[str, str], second: dict[str, str], where: str) -> Iterator[Finding]:
    good, total = [], 0
    for way, words in _WAYS.items():
        one, other = str(first.get(way, "")), str(second.get(way, ""))
        tested = f"exclusive creation by {words}, {where}"
        refused = [wins for wins in (one, other) if not set(wins) <= {"0", "1"}]
        if refused:
            needed = way in ("symlink", "create")
            advice = "Clusterduck's claims need it: choose another folder." if needed else ""
            yield Finding("exclusive", tested, refused[0], Level.BAD if needed else Level.NOTE, advice)
            continue
        twice = sum(pair == ("1", "1") for pair in zip(one, other, strict=False))
        none = sum(pair == ("0", "0") for pair in zip(one, other, strict=False))
        if twice or none:
            yield Finding(
                "exclusive",
                tested,
                f"of {len(one)} names, {twice} had two winners and {none} had none",
                Level.BAD,
                "Two agents could execute the same run: choose another folder.",
            )
        else:
            good.append(words)
            total += len(one)
    if good:
        yield Finding(
            "exclusive", f"exclusive creation by {', '.join(good)}, {where}", f"{total} races, one winner each"
        )


def _judge_ages(name: str, tested: str, told: dict[str, Any], ahead_s: float) -> Finding:
    ages = [max(0.0, float(age) - ahead_s) for age in told["ages_s"]]
    if told["seen"] < SHOWN or not ages:
        return Finding(
            name,
            tested,
            f"{SHOWN - told['seen']} of {SHOWN} were not seen within seconds",
            Level.BAD,
            "Agents and dashboard would not hear of each other: look at mount options (nocto, lookupcache).",
        )
    found = f"after {statistics.median(ages):.3f} s (median), {max(ages):.3f} s at most"
    if max(ages) > SOON_S:
        advice = "Dashboard, requests and retries will lag by as much: look at mount options (actimeo, lookupcache)."
        return Finding(name, tested, found, Level.NOTE, advice)
    return Finding(name, tested, found)


def _judge_renames(tally: dict[str, int], where: str) -> Finding:
    tested = f"a file that is replaced by rename while it is read, {where}"
    told = f"{tally['torn']} torn, {tally['backwards']} older than before, {tally['failed']} failed"
    found = f"{tally['reads']} reads, {told}"
    if tally["torn"] or not tally["reads"]:
        advice = "The published ledger could be read half: read it through `clusterduck`, or choose another folder."
        return Finding("rename", tested, found, Level.BAD, advice)
    if tally["failed"] or tally["backwards"]:
        advice = "Readers of the published ledger should try again when opening it fails, as clusterduck does."
        return Finding("rename", tested, found, Level.NOTE, advice)
    return Finding("rename", tested, found)
