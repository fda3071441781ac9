"""The one list of actions, from which keys, palette and help are made; each names the command that does the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Action:
    """Something a person can do.

    Attributes:
        name: Textual's name of it; the main screen has a method ``action_<name>``.
        key: the keys, as Textual names them.
        shown_key: the same as people read it.
        title: for footer and palette.
        about: one line for the help.
        command: the command line that does the same.
        in_footer: whether the footer shows it where it can be done.
        changes: whether it changes anything; not to be had with ``--read-only``.
    """

    name: str
    key: str
    shown_key: str
    title: str
    about: str
    command: str
    in_footer: bool = False
    changes: bool = False


ACTIONS: Sequence[Action] = (
    Action(
        "requeue",
        "r",
        "r",
        "Requeue",
        "send runs again: the marked ones, the one under the cursor; in the overview all failed ones of the sweep",
        "clusterduck requeue",
        in_footer=True,
        changes=True,
    ),
    Action(
        "cancel",
        "c",
        "c",
        "Cancel",
        "cancel runs: the marked ones, the one under the cursor; in the overview the sweep, or the job",
        "clusterduck cancel",
        in_footer=True,
        changes=True,
    ),
    Action(
        "drain",
        "d",
        "d",
        "Drain",
        "have the job under the cursor finish what runs and take nothing more",
        "clusterduck drain",
        in_footer=True,
        changes=True,
    ),
    Action("copy_name", "y", "y", "Copy name", "copy the run's (or sweep's) name to the clipboard", "clusterduck runs"),
    Action("copy_folder", "Y", "Y", "Copy folder", "copy its folder to the clipboard", "clusterduck show"),
    Action("look_now", "ctrl+r", "Ctrl-r", "Look now", "read what is new at once", "clusterduck status"),
)
