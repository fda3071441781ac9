"""``clusterduck runs``: a row for each run, with the overrides that vary."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from clusterduck import standing
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import View, opened
from clusterduck.cli.output import Output, narrate
from clusterduck.cli.table import Column
from clusterduck.errors import ConfigError
from clusterduck.ledger import queries
from clusterduck.ledger.columns import are_numbers
from clusterduck.ledger.listing import Listing, Term, order
from clusterduck.ledger.queries import SORTS, Filter, Run
from clusterduck.model import FAILED_STATES, State
from clusterduck.wording import elapsed, json_value, local_time, short

#: What ``--sort`` calls the columns that the ledger sorts by; their own names do too.
_SHORT = {"run": "number", "started": "started_at", "ended": "ended_at", "duration": "duration_s"}


def execute(options: argparse.Namespace) -> ExitCode:
    """Print the runs that ``options`` ask for."""
    states = states_of(options)
    with opened(options) as view:
        if options.sweep is None:
            sweeps = [sweep.id for sweep in queries.sweeps(view.connection)]
        else:
            sweeps = [view.sweep(options.sweep)]
        runs = _sorted_runs(view, sweeps, Filter(states=states), options)
        view.narrate_missing({run.sweep for run in runs})
        output = Output()
        if options.json:
            output.json(row(run) for run in runs)
        elif runs:
            varying = queries.varying_keys(view.connection, sweeps[0]) if len(sweeps) == 1 else None
            _print(output, view, runs, varying)
        else:
            narrate("no run matches" if sweeps else "no sweep was launched here yet")
    return ExitCode.OK


def row(run: Run) -> dict[str, Any]:
    """A run for programs."""
    return {
        "run": f"{run.sweep}/{run.number}",
        "sweep": run.sweep,
        "number": run.number,
        "state": run.state,
        "attempt": run.attempt,
        "reason": run.reason,
        "overrides": run.overrides,
        "return_value": json_value(run.return_value),
        "exception_type": run.exception_type,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "duration_s": run.duration_s,
        "host": run.host,
        "slot": run.slot,
        "launch": run.launch,
        "batch": run.batch,
        "folder": run.folder,
        "log": run.log,
    }


def states_of(options: argparse.Namespace) -> list[str]:
    """The states that ``--state`` and ``--failed`` ask for, those of the former that are failures if both were given;
    none if neither was.

    Raises:
        ConfigError: if one is none, or no failure where failures are asked for.
    """
    states = []
    for text in options.state:
        try:
            states.append(State(text.upper()).value)
        except ValueError:
            raise ConfigError(f"{text!r} is no state; the states are {', '.join(State)}.") from None
    failed = [state.value for state in FAILED_STATES]
    if not options.failed:
        return list(dict.fromkeys(states))
    other = [state for state in states if state not in failed]
    if other:
        raise ConfigError(
            f"--failed means {', '.join(failed)}, and no run is one of these and {other[0]}: leave out --failed, and "
            "give --state for each of the states."
        )
    return list(dict.fromkeys(states or failed))


def _sorted_runs(view: View, sweeps: Sequence[str], matching: Filter, options: argparse.Namespace) -> list[Run]:
    """The runs in the order asked for, at most as many as asked for; sorted by the ledger wherever it can."""
    sort = _SHORT.get(options.sort, options.sort)
    if sort not in SORTS:
        return _by_override(view, sweeps, matching, options)
    vain = _in_vain(view, sweeps, matching, options) if sort == "reason" else {}
    limit = None if options.limit is None else options.limit + sum(map(len, vain.values()))
    found = [
        run
        for sweep in sweeps
        for run in queries.runs(view.connection, sweep, matching, sort=sort, descending=options.reverse, limit=limit)
    ]
    if sort == "number" or (len(sweeps) < 2 and not vain):  # sweeps in their order, the newest first
        return with_reasons(view, found[: options.limit])
    known = {(run.sweep, run.number) for run in found}
    for sweep, numbers in vain.items():
        found += _numbered(view, sweep, [number for number in numbers if (sweep, number) not in known])
    column = SORTS[sort]
    return in_order(with_reasons(view, found), lambda run: getattr(run, column), options.reverse)[: options.limit]


def _in_vain(view: View, sweeps: Sequence[str], matching: Filter, options: argparse.Namespace) -> dict[str, list[int]]:
    """The runs whose reason is not the ledger's, those that wait and that no job will take: of each sweep as many as
    are asked for, by that reason."""
    if matching.states and State.PENDING.value not in matching.states:
        return {}
    found = {}
    for sweep, its in standing.neglected(view.connection, sweeps, view.jobs).items():
        why = {run.number: sentence for run in queries.pending(view.connection, sweep) if (sentence := its.why(run))}
        numbers = sorted(why, reverse=options.reverse)
        found[sweep] = sorted(numbers, key=why.__getitem__, reverse=options.reverse)[: options.limit]
    return found


def _by_override(view: View, sweeps: Sequence[str], matching: Filter, options: argparse.Namespace) -> list[Run]:
    """The runs in the order of an override's values: as numbers if they are numbers in all of the sweeps.

    Raises:
        ConfigError: if no run has such an override.
    """
    key, found = options.sort, []
    kinds = {are_numbers(view.connection, sweep, key) for sweep in sweeps} - {None}
    terms = (Term("state", ",".join(matching.states)),) if matching.states else ()
    limit = options.limit if len(kinds) == 1 else None  # else a sweep's own order says little about that of all
    for sweep in sweeps:
        found += _numbered(
            view, sweep, order(view.connection, Listing(sweep, terms, f"={key}", options.reverse))[:limit]
        )
    if found and not kinds:
        raise ConfigError(
            f"Runs cannot be sorted by {key!r}: by run, state, attempt, return_value, started, ended, duration, host, "
            "reason, or the key of one of their overrides they can."
        )
    if len(sweeps) > 1:
        read: Callable[[str], Any] = float if kinds == {True} else str

        def value(run: Run) -> Any:
            text = run.override_values.get(key)
            return None if text is None else read(text)

        found = in_order(found, value, options.reverse)
    return with_reasons(view, found[: options.limit])


def _numbered(view: View, sweep: str, numbers: Sequence[int]) -> list[Run]:
    """The runs of these numbers, in this order."""
    by_number = {run.number: run for run in queries.runs_numbered(view.connection, sweep, numbers)}
    return [by_number[number] for number in numbers if number in by_number]


def with_reasons(view: View, runs: Sequence[Run]) -> list[Run]:
    """The runs; those that wait, though no job will take them, with that as their reason."""
    waiting = {run.sweep for run in runs if run.state == State.PENDING.value}
    neglected = standing.neglected(view.connection, waiting, view.jobs) if waiting else {}

    def reason(run: Run) -> str | None:
        return neglected[run.sweep].why(run) if run.sweep in neglected else None

    return [replace(run, reason=why) if (why := reason(run)) else run for run in runs]


def in_order(runs: Sequence[Run], key: Callable[[Run], Any], reverse: bool) -> list[Run]:
    """The runs sorted by ``key``; those without a value come last either way."""
    with_value = [run for run in runs if key(run) is not None]
    return sorted(with_value, key=key, reverse=reverse) + [run for run in runs if key(run) is None]


def _print(output: Output, view: View, runs: Sequence[Run], varying: Sequence[str] | None) -> None:
    """A table; the overrides that vary are a column each, or one for all where runs of several sweeps are listed."""
    keys = {} if varying is not None else _varying_of(view, runs)
    columns = [Column("run"), Column("state", state=True), Column("attempt", right=True)]
    columns += [Column("overrides")] if varying is None else [Column(key) for key in varying]
    columns += [Column("result", right=True), Column("duration", right=True), Column("ended"), Column("reason")]
    rows = []
    for run in runs:
        values = run.override_values
        if varying is None:
            cells = [" ".join(f"{key}={values[key]}" for key in keys[run.sweep] if key in values)]
        else:
            cells = [values.get(key, "") for key in varying]
        rows.append(
            [
                f"{run.sweep}/{run.number}",
                run.state,
                str(run.attempt) if run.attempt > 1 else "",
                *cells,
                short(json_value(run.return_value)),
                elapsed(run.started_at, run.duration_s),
                local_time(run.ended_at),
                run.reason or "",
            ]
        )
    output.table(columns, rows)


def _varying_of(view: View, runs: Sequence[Run]) -> dict[str, list[str]]:
    sweeps = dict.fromkeys(run.sweep for run in runs)
    return {sweep: queries.varying_keys(view.connection, sweep) for sweep in sweeps}
