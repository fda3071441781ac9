"""Is an agent with the settings given as JSON, as submitit would start it; run by the tests as a script."""

from __future__ import annotations

import json
import sys

from clusterduck.agent.main import AgentJob
from clusterduck.agent.settings import AgentSettings

if __name__ == "__main__":
    data = json.loads(sys.argv[1])
    data |= {name: tuple(data[name]) for name in ("attempts", "retry_on", "preload") if name in data}
    AgentJob(AgentSettings(**data))()
