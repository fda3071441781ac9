"""The README says what is so: options and defaults, commands, JSON fields, exit codes, tables."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from clusterduck.agent.resources.cpu import Cpu
from clusterduck.agent.resources.cuda import Cuda
from clusterduck.agent.resources.rendering import Rendering
from clusterduck.agent.resources.stagger import Stagger
from clusterduck.agent.resources.tmpdir import Tmpdir
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.main import parser
from clusterduck.ledger import schema
from hydra_plugins.clusterduck_launcher.config import ClusterduckLocalConf, ClusterduckSlurmConf

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading, up to the next of the same level."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |^# |\Z)", README, re.MULTILINE | re.DOTALL)
    assert match, f"the README has no section {title!r}"
    return match[2]


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables in the text, without the headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    headings = {number - 1 for number, row in enumerate(rows) if set(row[0]) == {"-"}}
    return [row for number, row in enumerate(rows) if number not in headings and set(row[0]) != {"-"}]


def words(text: str) -> set[str]:
    """Everything between back-ticks."""
    return set(re.findall(r"`([^`]+)`", text))


def test_every_option_is_there_with_its_default_and_an_example() -> None:
    written = {row[0].strip("`"): row for row in table_rows(section("Options"))}
    defaults = {
        name: value
        for conf in (ClusterduckLocalConf, ClusterduckSlurmConf)
        for name, value in OmegaConf.to_container(OmegaConf.structured(conf), resolve=False).items()
        if name != "_target_"
    }
    assert set(written) == set(defaults)
    for name, default in defaults.items():
        assert yaml.safe_load(written[name][1].strip("`")) == default, name
        example = yaml.safe_load(written[name][3].strip("`"))
        merged = OmegaConf.merge(OmegaConf.structured(ClusterduckSlurmConf), example)
        assert list(example) == [name]
        assert merged[name] is not None


def test_every_resource_is_there_with_its_options() -> None:
    written = {row[0].strip("`"): row[1] for row in table_rows(section("Resources"))}
    kinds = {"cpu": Cpu, "cuda": Cuda, "rendering": Rendering, "stagger": Stagger, "tmpdir": Tmpdir}
    assert set(written) == set(kinds)
    for name, kind in kinds.items():
        assert set(kind.option_names) <= words(written[name])


def test_every_command_and_option_is_there() -> None:
    text = section("The command line")
    (subparsers,) = (action for action in parser()._actions if hasattr(action, "choices") and action.choices)
    assert subparsers.choices
    for name, command in subparsers.choices.items():
        assert re.search(rf"`clusterduck {name}[ `]", text), name
        options = {option for action in command._actions for option in action.option_strings} - {"-h", "--help"}
        missing = {option for option in options if not re.search(rf"`{option}[ `]", text)}
        assert not missing, f"clusterduck {name}: {missing}"


def test_every_exit_code_is_there() -> None:
    written = {int(row[0]): row[1] for row in table_rows(section("Exit codes"))}
    assert set(written) == {int(code) for code in ExitCode}


def columns() -> Iterable[tuple[str, list[str]]]:
    """The tables of a new ledger, and their columns."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection, "a new ledger")
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'"
    )
    for (name,) in names.fetchall():
        yield name, [row[1] for row in connection.execute(f"PRAGMA table_info({name})").fetchall()]


@pytest.mark.parametrize(("table", "its_columns"), list(columns()))
def test_every_table_of_the_ledger_is_there_with_its_columns(table: str, its_columns: list[str]) -> None:
    (row,) = (row for row in table_rows(section("The ledger")) if row[0] == f"`{table}`")
    missing = set(its_columns) - words(" ".join(row[1:]))
    assert not missing
