"""What Hydra loads into every process is light, and the agent has no database."""

from __future__ import annotations

import json
import subprocess
import sys

_NEWLY_IMPORTED = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
before = set(sys.modules)
importlib.import_module(sys.argv[2])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def newly_imported(before: str, module: str) -> list[str]:
    """The modules that importing ``module`` brings in, in a process that has imported ``before``."""
    done = subprocess.run(
        [sys.executable, "-c", _NEWLY_IMPORTED, before, module], capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout))


def test_the_plugin_costs_other_hydra_programs_next_to_nothing() -> None:
    brought = newly_imported("hydra._internal.hydra", "hydra_plugins.clusterduck_launcher.launcher")
    theirs = [name for name in brought if name.partition(".")[0] not in ("clusterduck", "hydra_plugins")]
    assert "hydra_plugins.clusterduck_launcher.config" in brought
    assert [name for name in theirs if "." not in name and name not in sys.stdlib_module_names] == []
    assert {"sqlite3", "multiprocessing", "asyncio", "subprocess"}.isdisjoint(theirs)
    assert len(brought) < 20


def test_the_agent_has_no_database_and_no_submitit() -> None:
    brought = newly_imported("json", "clusterduck.agent.main")
    assert {"sqlite3", "sqlite_utils", "clusterduck.ledger", "submitit", "rich", "textual"}.isdisjoint(brought)
