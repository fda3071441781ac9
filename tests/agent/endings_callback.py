"""A Hydra callback that leaves a file for each of its calls inside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class Witness(Callback):
    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        Path(config.hydra.runtime.output_dir, "job_started").touch()

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        Path(config.hydra.runtime.output_dir, "job_ended").write_text(job_return.status.name)
