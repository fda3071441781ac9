"""A script whose runs do as they are told; run by the tests, never imported by them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

#: The tests replace this line, as a person does who fixes a bug.
FIXED = False


@hydra.main(version_base=None, config_path=None)
def main(cfg: DictConfig) -> int:
    """Note each beginning in the run's folder; then wait, fail, or refuse to end."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with (folder / "began").open("a") as file:
        file.write(f"{os.environ['CLUSTERDUCK_ATTEMPT']} {cfg.get('y')}\n")
    how = cfg.how
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "1000"])
        (folder / "child.new").write_text(str(child.pid))
        (folder / "child.new").rename(folder / "child")
        how = "waits"
    while how == "waits" and not Path("go").exists():
        time.sleep(0.02)
    if how == "fails" and not FIXED:
        raise ValueError("there is a bug")
    return int(cfg.get("y") or 1)


if __name__ == "__main__":
    main()
