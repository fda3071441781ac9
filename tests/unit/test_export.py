"""Exports: every run is there with its overrides and value, whatever characters they hold, whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from journals_builder import SweepBuilder

from clusterduck.cli.main import main
from clusterduck.errors import ConfigError
from clusterduck.events import RunsPlanned
from clusterduck.export import export, typed
from clusterduck.ledger import schema
from clusterduck.ledger.replica import Replica

HOSTILE = ['note=\x1b]0;owned\x07,"two\nlines"', "lr=漢字", "+state=1", "name==cmd"]


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    sweep = SweepBuilder(tmp_path, "train-aa2de")
    sweep.write_all(24, 2)
    sweep.write(sweep.act_journal("more"), [RunsPlanned(time=sweep.start, launch=0, runs=[(24, HOSTILE)])])
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        values = {1: '{"loss": NaN, "steps": [1, 2]}', 2: "NaN", 3: '"text"', 4: "Infinity", 5: "true"}
        for number, value in values.items():
            replica.connection.execute("UPDATE run SET return_value = ? WHERE number = ?", (value, number))
        yield replica


def test_csv(replica: Replica, tmp_path: Path) -> None:
    assert export(replica.connection, "train-aa2de", tmp_path / "out.csv") == 25
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == [str(number) for number in range(25)]
    assert (rows[0]["run"], rows[0]["lr"], rows[0]["seed"], rows[0]["return_value"]) == (
        *("train-aa2de/0", "0.001", "0", "0.0"),
    )
    assert (rows[6]["state"], rows[6]["return_value"], rows[6]["exception_type"]) == ("FAILED", "", "ValueError")
    assert math.isnan(float(rows[2]["return_value"])) and math.isinf(float(rows[4]["return_value"]))
    assert json.loads(rows[1]["return_value.steps"]) == [1, 2]
    last = rows[24]
    assert (last["state"], last["override.state"]) == ("PENDING", "1")
    assert (last["note"], last["lr"], last["name"]) == ('\x1b]0;owned\x07,"two\nlines"', "漢字", "=cmd")


def test_json_lines(replica: Replica, tmp_path: Path) -> None:
    assert export(replica.connection, "train-aa2de", tmp_path / "out.jsonl") == 25
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert all(32 <= byte < 127 for line in lines for byte in line)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert len({tuple(row) for row in rows}) == 1, "every row has the same columns"
    assert (rows[1]["lr"], rows[1]["seed"], rows[1]["model"]) == (0.0001, 0, "convnet")
    assert rows[1]["return_value"] == {"loss": None, "steps": [1, 2]} and rows[1]["return_value.steps"] == [1, 2]
    assert [rows[number]["return_value"] for number in (0, 2, 3, 4, 5)] == [0.0, None, "text", "Infinity", True]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1", 1), ("-3", -3), ("1e-3", 0.001), (".5", 0.5), ("1.", 1.0), ("True", True), ("null", None)),
        *(("1_000", "1_000"), ("nan", "nan"), ("1e999", "1e999"), ("", ""), ("[1,2]", "[1,2]"), ("٣", "٣")),
        ("'1'", "'1'"),
    ],
)
def test_plain_values_are_typed(text: str, value: object) -> None:
    found = typed(text)
    assert found == value and type(found) is type(value)


def test_pages_hold_every_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterduck.export.PAGE", 7)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection, "a replica")
    connection.executemany(
        "INSERT INTO run(sweep, number, overrides, state, attempt) VALUES ('s', ?, '[\"a=1\"]', 'PENDING', 0)",
        [(number,) for number in range(21)],
    )
    assert export(connection, "s", tmp_path / "out.jsonl") == 21
    numbers = [json.loads(line)["number"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert numbers == list(range(21))


def test_a_failed_export_leaves_what_was_there(replica: Replica, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says not what is wanted"):
        export(replica.connection, "train-aa2de", tmp_path / "out.xlsx")
    nowhere = tmp_path / "no" / "such" / "out.csv"
    with pytest.raises(FileNotFoundError) as caught:
        export(replica.connection, "train-aa2de", nowhere)
    assert caught.value.filename == str(nowhere)  # not the name under which it would have been begun
    (tmp_path / "out.csv").write_text("older")
    replica.connection.execute("UPDATE run SET overrides = '{' WHERE number = 20")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="Expecting"):
        export(replica.connection, "train-aa2de", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "older" and sorted(tmp_path.iterdir()) == before


def test_the_command(replica: Replica, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replica.close()
    assert main(["export", "@last", "-o", "here.csv"]) == 0
    assert "25 runs of train-aa2de are in here.csv" in capsys.readouterr().err
    with (tmp_path / "here.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 25
    assert main(["export", "@last", "-o", "here.txt"]) == 2
    assert main(["export", "nosuch", "-o", "here.csv"]) == 3
