"""Train a small network on handwritten digits: the example of clusterduck, and a plain Hydra application.

    python example/train.py                                                             # one run, here
    python example/train.py --multirun model=convnet,transformer +iteration="range(2)"  # Hydra's own launcher
    python example/train.py --multirun model=convnet,transformer +iteration="range(2)" +platform=slurm_debug
    python example/train.py --multirun model=convnet,transformer +iteration="range(2)" +platform=horeka

Nothing in this file knows of clusterduck. The data set ships inside scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import autograd.numpy as np
import hydra
from autograd import value_and_grad
from autograd.scipy import special
from networks import Network, Parameters
from omegaconf import DictConfig
from sklearn.datasets import load_digits

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train as the configuration says; returns the share of validation pictures that were taken for another digit."""
    log.info("CPUs this run may use: %s", sorted(os.sched_getaffinity(0)))
    log.info("GPUs this run may use (CUDA_VISIBLE_DEVICES): %s", os.environ.get("CUDA_VISIBLE_DEVICES", "not set"))
    if config.fail:
        raise RuntimeError("This run was told to fail (fail=true).")

    network: Network = hydra.utils.instantiate(config.model)
    data = digits()
    random = np.random.RandomState(config.seed)
    parameters = network.initial(random)
    optimiser = Adam(config.learning_rate)
    for epoch in range(config.epochs):
        losses = []
        for rows in batches(random, len(data["train_x"]), config.batch_size):
            loss, slope = loss_and_slope(parameters, network, data["train_x"][rows], data["train_y"][rows])
            parameters = optimiser.step(parameters, slope)
            losses.append(loss)
        error = wrong_share(network, parameters, data["valid_x"], data["valid_y"])
        log.info("epoch %d: training loss %.4f, validation error %.4f", epoch, np.mean(losses), error)
    return wrong_share(network, parameters, data["valid_x"], data["valid_y"])


def digits() -> dict[str, Any]:
    """1,797 pictures (n, 8, 8) and their digits, the last fifth kept for validation. Source: scikit-learn."""
    pictures, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    pictures, labels = pictures[order].reshape(-1, 8, 8) / 16.0, labels[order]
    split = len(labels) * 4 // 5
    return {
        "train_x": pictures[:split],
        "train_y": labels[:split],
        "valid_x": pictures[split:],
        "valid_y": labels[split:],
    }


def batches(random: Any, length: int, size: int) -> list[Any]:
    """All row numbers in random order, in groups of ``size``."""
    order = random.permutation(length)
    return [order[start : start + size] for start in range(0, length, size)]


def cross_entropy(parameters: Parameters, network: Network, pictures: Any, labels: Any) -> Any:
    """The mean negative log-likelihood of the right digit."""
    scores = network.scores(parameters, pictures)
    return np.mean(special.logsumexp(scores, axis=1) - scores[np.arange(len(labels)), labels])


loss_and_slope = value_and_grad(cross_entropy)


def wrong_share(network: Network, parameters: Parameters, pictures: Any, labels: Any) -> float:
    """The share of pictures whose highest score is not the right digit's."""
    return float(np.mean(np.argmax(network.scores(parameters, pictures), axis=1) != labels))


class Adam:
    """The usual optimiser, for parameters in a dict."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.steps = 0
        self.mean: Parameters = {}
        self.square: Parameters = {}

    def step(self, parameters: Parameters, slope: Parameters) -> Parameters:
        """The parameters a little further downhill."""
        self.steps += 1
        moved = {}
        for name, value in parameters.items():
            self.mean[name] = 0.9 * self.mean.get(name, 0.0) + 0.1 * slope[name]
            self.square[name] = 0.999 * self.square.get(name, 0.0) + 0.001 * slope[name] ** 2
            mean = self.mean[name] / (1 - 0.9**self.steps)
            square = self.square[name] / (1 - 0.999**self.steps)
            moved[name] = value - self.learning_rate * mean / (np.sqrt(square) + 1e-8)
        return moved


# With PyTorch, `pip install torch`, and in main():
#
#     device = "cuda" if torch.cuda.is_available() else "cpu"   # with `cuda` in resources_config this is the slot's own
#     network = hydra.utils.instantiate(config.model).to(device)  # GPU, always called cuda:0 inside the run
#     optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
#     ...
#     loss = torch.nn.functional.cross_entropy(network(pictures.to(device)), labels.to(device))
#     optimiser.zero_grad(); loss.backward(); optimiser.step()
#
# `import torch` may stand at the top of the file: clusterduck sets CUDA_VISIBLE_DEVICES before it imports this file.

if __name__ == "__main__":
    main()
