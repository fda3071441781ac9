"""Data that would like to be markup or commands to the terminal is text, in every view."""

from __future__ import annotations

from pathlib import Path

from dashboards import CONTROL, HOSTILE, Open, Opened, make_live

from clusterduck.events import AttemptEnded, AttemptLocated


def harmless(it: Opened) -> str:
    text = it.text
    assert not CONTROL.search(text.replace("\n", "")), repr(text)
    return text


async def test_overrides_reasons_and_tracebacks(project: Path, opened: Open) -> None:
    built = make_live(project, HOSTILE)
    evil = "\x1b[2J[bold]boom[/oops]\r\u202e"
    at = built.start + 150
    built.write(
        built.agent_journal(),
        [
            AttemptEnded(
                time=at,
                run=4,
                attempt=1,
                state="FAILED",
                reason=evil,
                exception_type=evil,
                exception_message=evil,
                traceback=f"Traceback\n{evil}\n",
                return_value='"\\u001b[31m[/red]"',
                started_at=at - 5,
            )
        ],
        close=False,
    )
    async with opened(size=(200, 50)) as it:
        await it.press("2")
        await it.see("opt=[adam,sgd] x=\\x1b]0;owned")
        harmless(it)
        await it.press("4")
        await it.see("\\x1b[2J[bold]boom[/oops]\\r\\u202e")
        await it.see("[adam,sgd]")
        harmless(it)
        await it.press("j", "j", "j", "enter")
        await it.see("opt=[adam,sgd]", "x=\\x1b]0;owned\\x07")
        harmless(it)
        await it.press("J")
        await it.see("[bold]boom[/oops]\\r")
        harmless(it)
        for key in ("3", "6", "1"):
            await it.press(key)
            await it.see("train-bb3fg")
            harmless(it)
        await it.press("4", "y")  # a notice shows it, too
        harmless(it)


async def test_a_log_of_everything_that_hurts(project: Path, opened: Open) -> None:
    built = make_live(project)
    folder = built.paths.sweep_dir / "3"
    folder.mkdir()
    log = folder / "attempt-1.log"
    with log.open("wb") as file:
        file.write(b"x" * 10_000_000 + b"\n")
        file.write(b"\x1b[31mred\x1b[0m \x1b]0;owned\x07 [/oops] \xe2\x82 half\n")
        file.write(b"  1 %\r 50 %\r100 % done\n")
        file.write("漢字 \u202eturned\n".encode())
    located = AttemptLocated(time=built.start + 140, run=3, attempt=1, run_dir=str(folder), log=str(log))
    built.write(built.agent_journal(), [located], close=False)
    async with opened() as it:
        await it.press("4")
        await it.see("R RUNNING")
        await it.press("j", "j", "j", "enter", "t")
        text = await it.see(
            "red \\x1b]0;owned\\x07 [/oops] \N{REPLACEMENT CHARACTER} half", "100 % done", "\\u202eturned"
        )
        assert "50 %" not in text and "漢字" in text
        harmless(it)
        await it.press("w")
        await it.see("wrapped", "100 % done")
        await it.press("g")
        await it.see("xxxxxxxx", "top")
        harmless(it)
        with log.open("ab") as file:
            file.write(b"and on it goes\n")
        await it.press("G")
        await it.see("and on it goes", "following")
