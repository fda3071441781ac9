"""Modules that are imported once before all runs, and those that must not be."""

from __future__ import annotations

import json

import pytest
from agent_bench import Bench

from clusterduck.errors import ConfigError
from clusterduck.events import AgentEnded, AttemptStarted
from clusterduck.launch.options import Options

APP = """
import hydra, os, sys

@hydra.main(version_base=None)
def main(cfg):
    import heavy
    return {"pid": heavy.PID, "cwd": heavy.CWD, "mine": os.getpid(), "path": sys.path[0]}

if __name__ == "__main__":
    main()
"""

#: A torch that has made a CUDA context.
TORCH = """
import sys, types
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)
"""

#: What a module does -> what is said of it.
FAULTS = {
    "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()": "leaves 1 thread running",
    TORCH: "uses a GPU already (torch.cuda.is_initialized() says so)",
    "import sys; sys.exit('no')": "heavy cannot be imported (SystemExit: no)",
    "import nothing_of_that_name": "No module named 'nothing_of_that_name'",
}


def test_what_is_preloaded_is_imported_once_for_all_runs_and_as_they_would(bench: Bench) -> None:
    (bench.folder / "app.py").write_text(APP)
    (bench.folder / "heavy.py").write_text("import os, sys\nPID, CWD = os.getpid(), os.getcwd()\n")
    bench.plan("one", "two")
    agent = bench.start(slots=1, preload=["heavy"])
    assert bench.wait(agent) == 0
    first, second = (json.loads(str(bench.ended(run).return_value)) for run in (0, 1))
    assert first["pid"] == second["pid"]
    assert first["pid"] not in (first["mine"], second["mine"], agent.pid)
    assert first["cwd"] == first["path"] == str(bench.folder)


@pytest.mark.parametrize("module", FAULTS)
def test_what_would_not_survive_a_fork_is_refused_and_no_run_begun(bench: Bench, module: str) -> None:
    bench.plan("returns", "returns")
    (bench.folder / "heavy.py").write_text(module)
    agent = bench.start(slots=2, preload=["json", "heavy"])
    assert bench.wait(agent) == 1
    (end,) = bench.events(AgentEnded)
    assert end.reason.startswith("hydra.launcher.preload: ")
    assert "heavy" in end.reason
    assert FAULTS[module] in end.reason
    assert bench.events(AttemptStarted) == []
    assert list(bench.sweep.claims.iterdir()) == []


@pytest.mark.parametrize("given", ["torch", ["torch;"], ["my-package"], [""]])
def test_what_cannot_be_a_module_is_refused_at_launch(given: object) -> None:
    with pytest.raises(ConfigError, match="preload"):
        Options.of("local", {"preload": given})


@pytest.mark.parametrize(("given", "meant"), [("imports", "imports"), ("off", "off"), (False, "off"), ("False", "off")])
def test_prefetch_off_may_be_yamls_false(given: object, meant: str) -> None:
    assert Options.of("local", {"prefetch": given}).prefetch == meant


def test_an_unknown_prefetch_is_refused_at_launch() -> None:
    with pytest.raises(ConfigError, match="config, imports, off"):
        Options.of("local", {"prefetch": "everything"})
