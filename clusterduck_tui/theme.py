"""How states look: a letter, a word and a colour each, so that nothing is told by colour alone.

Colours are the terminal's sixteen by name, which Textual fits to light and dark themes. Without colours (``NO_COLOR``)
letters, words and shapes remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.style import Style
from rich.text import Text

from clusterduck.model import State
from clusterduck.wording import visible

#: One letter for each state: what bars are made of.
LETTERS: dict[str, str] = {
    State.PENDING.value: "·",
    State.RUNNING.value: "R",
    State.COMPLETED.value: "C",
    State.FAILED.value: "F",
    State.CANCELLED.value: "X",
    State.TIMEOUT.value: "T",
    State.OUT_OF_MEMORY.value: "M",
    State.NODE_FAIL.value: "N",
    State.PREEMPTED.value: "P",
}

COLOURS: dict[str, str] = {
    State.PENDING.value: "bright_black",
    State.RUNNING.value: "blue",
    State.COMPLETED.value: "green",
    State.FAILED.value: "red",
    State.CANCELLED.value: "magenta",
    State.TIMEOUT.value: "yellow",
    State.OUT_OF_MEMORY.value: "yellow",
    State.NODE_FAIL.value: "red",
    State.PREEMPTED.value: "cyan",
}

#: The order in which a bar shows states: what is done, what is at work, what went wrong, what is left.
BAR_ORDER = ("COMPLETED", "RUNNING", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "CANCELLED")

DIM = Style(dim=True)
BOLD = Style(bold=True)
ALERT = Style(color="red", bold=True)

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"


def state_style(state: str) -> Style:
    """The colour of a state; Slurm has words beyond ours, which have none."""
    return Style(color=COLOURS.get(state))


def state_text(state: str) -> Text:
    """A state by letter and word, e.g. ``F FAILED``."""
    return Text(f"{LETTERS.get(state, '?')} {visible(state)}", style=state_style(state))


def legend() -> Text:
    """Which letter means which state."""
    text = Text()
    for state, letter in LETTERS.items():
        text.append(f"{letter} ", style=state_style(state) + BOLD)
        text.append(f"{state}  ")
    return text


def states_bar(counts: Mapping[str, int], width: int) -> Text:
    """Runs by state as a bar of letters; every state that any run is in has at least one letter."""
    total = sum(counts.values())
    if width <= 0 or total == 0:
        return Text("·" * max(0, width), style=COLOURS["PENDING"])
    present = [(state, counts.get(state, 0)) for state in (*BAR_ORDER, State.PENDING.value) if counts.get(state, 0)]
    cells = {state: max(1, count * width // total) for state, count in present}
    while (over := sum(cells.values()) - width) != 0:
        if over > 0:
            largest = max(cells, key=lambda state: cells[state])
            if cells[largest] <= 1:
                break  # more states than letters: the last ones are cut off
            cells[largest] -= 1
        else:
            most_short = max(present, key=lambda item: item[1] * width / total - cells[item[0]])[0]
            cells[most_short] += 1
    bar = Text()
    for state, length in cells.items():
        bar.append(LETTERS[state] * length, style=state_style(state))
    bar.truncate(width)
    return bar


def load_bar(share: float | None, width: int, colour: str = "green") -> Text:
    """A share from 0 to 1 as a bar; dots where it is not known."""
    if share is None:
        return Text("·" * width, style=DIM)
    share = min(1.0, max(0.0, share))
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    text = Text("█" * full + (_PARTS[rest] if rest else ""), style=Style(color=colour))
    text.append("─" * (width - len(text)), style=DIM)
    return text


def sparkline(values: Sequence[float | None], width: int) -> Text:
    """The last ``width`` shares (from 0 to 1) as columns, right-aligned; a dot where one is not known."""
    shown = list(values)[-width:] if width > 0 else []
    text = Text(" " * (width - len(shown)))
    for value in shown:
        if value is None:
            text.append("·", style=DIM)
        else:
            text.append(_EIGHTHS[max(1, min(8, round(min(1.0, max(0.0, value)) * 8)))], style="cyan")
    return text


def shortened(text: str, width: int) -> str:
    """A harmless text of at most ``width`` characters; an ellipsis where something was left out."""
    text = visible(text)
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
