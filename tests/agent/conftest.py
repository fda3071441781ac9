from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bench import APP, PATIENCE_S, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "app.py").write_text(APP)
    bench = Bench(tmp_path)
    yield bench
    bench.go()
    for agent in bench.agents:
        if agent.poll() is None:
            agent.terminate()
            agent.wait(PATIENCE_S)
