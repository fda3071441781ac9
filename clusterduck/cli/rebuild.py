"""``clusterduck rebuild``: fold everything anew from the sweeps' folders."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.output import Output, narrate
from clusterduck.launch.register import ledger_for
from clusterduck.ledger import queries
from clusterduck.ledger.replica import Replica
from clusterduck.paths import require_ledger
from clusterduck.rebuild import rebuild
from clusterduck.wording import run_count


def execute(options: argparse.Namespace) -> ExitCode:
    """Rebuild the ledger that ``options`` name, and say what it holds now."""
    here = Path.cwd()
    ledger = ledger_for(here, options.ledger) if options.folders else require_ledger(here, options.ledger)
    done = rebuild(ledger, [here / Path(folder).expanduser() for folder in options.folders], narrate)
    for sentence in (*done.mended, *done.trouble):
        narrate(sentence)
    with closing(Replica.open(ledger, tell=narrate)) as replica:
        sweeps = queries.sweeps(replica.connection)
    output = Output()
    if options.json:
        output.json(
            {
                "sweep": sweep.id,
                "root": sweep.root,
                "runs": sweep.runs,
                "counts": sweep.counts,
                "entered": sweep.id in done.entered,
                "kept": sweep.id in done.kept,
            }
            for sweep in sweeps
        )
    else:
        for name, root in done.entered.items():
            output.line(f"entered {name}, in {root}")
        for name in done.kept:
            output.line(f"kept {name} as the old ledger has it: its folder is gone")
        runs = sum(sweep.runs for sweep in sweeps)
        output.line(
            f"{len(sweeps)} sweep{'s' if len(sweeps) != 1 else ''} with {run_count(runs)}, from {done.events} events "
            f"in {done.journals} journals, in {done.seconds:.1f} s"
        )
    if not done.published:
        narrate(f"{ledger} was not replaced: somebody is publishing it all the time; `clusterduck status` will")
    return ExitCode.FAILED if done.trouble or not done.published else ExitCode.OK
