"""Optuna through clusterduck: each trial is a run, and several run at a time.

    python example/optimize.py

The configuration, conf/optimize.yaml, names the sweeper, the launcher and the two parameters. To optimise ``train.py``
likewise, copy its ``hydra`` section and put ``learning_rate: tag(log, interval(0.0003, 0.03))`` under ``params``.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="optimize")
def main(config: DictConfig) -> float:
    """A bowl with its lowest point, 0, at a=1, b=-2; stands in for the training of a network."""
    return float((config.a - 1) ** 2 + (config.b + 2) ** 2)


if __name__ == "__main__":
    main()
