"""A small convnet and a small transformer in numpy, with gradients by autograd: seconds on one core, no GPU needed.

Both classify 8 x 8 pictures of handwritten digits. A network is its initial parameters and a function from parameters
and pictures to ten scores; the training loop in ``train.py`` knows no more of it than that.

With PyTorch both classes become ``torch.nn.Module``s, ``initial`` becomes their ``__init__`` and ``scores`` their
``forward``; see the note at the end of ``train.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import autograd.numpy as np

SIDE = 8  #: height and width of a picture, in pixels
CLASSES = 10

Parameters = dict[str, Any]


class Network(Protocol):
    """What the training loop needs."""

    def initial(self, random: Any) -> Parameters:
        """Fresh parameters, drawn from the ``numpy.random.RandomState`` given."""

    def scores(self, parameters: Parameters, pictures: Any) -> Any:
        """Scores (n, 10) of pictures (n, 8, 8) whose pixels lie between 0 and 1."""


class ConvNet:
    """3 x 3 convolutions, each followed by a rectifier and 2 x 2 averaging, then one linear layer."""

    def __init__(self, channels: Sequence[int]) -> None:
        if not 1 <= len(channels) <= 3:
            raise ValueError(f"model.channels={list(channels)}: an 8 x 8 picture can be halved one to three times")
        self.channels = tuple(channels)

    def initial(self, random: Any) -> Parameters:
        """Fresh parameters."""
        sizes = (1, *self.channels)
        parameters = {}
        for layer, (before, after) in enumerate(pairwise(sizes)):
            parameters[f"kernel{layer}"] = _matrix(random, 9 * before, after)
            parameters[f"bias{layer}"] = np.zeros(after)
        side = SIDE // 2 ** len(self.channels)
        parameters["head"] = _matrix(random, side * side * sizes[-1], CLASSES)
        return parameters

    def scores(self, parameters: Parameters, pictures: Any) -> Any:
        """Scores (n, 10) of pictures (n, 8, 8)."""
        hidden = pictures[:, :, :, None]
        for layer in range(len(self.channels)):
            hidden = _convolve(hidden, parameters[f"kernel{layer}"]) + parameters[f"bias{layer}"]
            hidden = _halve(np.maximum(hidden, 0.0))
        return np.dot(hidden.reshape(len(pictures), -1), parameters["head"])


class Transformer:
    """Each row of the picture is a token; a few layers of self-attention and feed-forward, then the tokens' mean."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        if width % heads:
            raise ValueError(f"model.width={width} cannot be divided among model.heads={heads}")
        self.width, self.heads, self.layers = width, heads, layers

    def initial(self, random: Any) -> Parameters:
        """Fresh parameters."""
        parameters = {
            "embed": _matrix(random, SIDE, self.width),
            "position": 0.1 * random.randn(SIDE, self.width),
            "head": _matrix(random, self.width, CLASSES),
        }
        for layer in range(self.layers):
            parameters[f"attend{layer}"] = _matrix(random, self.width, 3 * self.width)
            parameters[f"join{layer}"] = _matrix(random, self.width, self.width)
            parameters[f"widen{layer}"] = _matrix(random, self.width, 2 * self.width)
            parameters[f"narrow{layer}"] = _matrix(random, 2 * self.width, self.width)
        return parameters

    def scores(self, parameters: Parameters, pictures: Any) -> Any:
        """Scores (n, 10) of pictures (n, 8, 8)."""
        tokens = np.dot(pictures, parameters["embed"]) + parameters["position"]
        for layer in range(self.layers):
            mixed = self._attention(_normalise(tokens), parameters[f"attend{layer}"])
            tokens = tokens + np.dot(mixed, parameters[f"join{layer}"])
            wide = np.maximum(np.dot(_normalise(tokens), parameters[f"widen{layer}"]), 0.0)
            tokens = tokens + np.dot(wide, parameters[f"narrow{layer}"])
        return np.dot(np.mean(_normalise(tokens), axis=1), parameters["head"])

    def _attention(self, tokens: Any, weights: Any) -> Any:
        n, length, width = tokens.shape
        split = np.dot(tokens, weights).reshape(n, length, 3, self.heads, width // self.heads)
        query, key, value = (np.transpose(split[:, :, part], (0, 2, 1, 3)) for part in range(3))
        likeness = np.matmul(query, np.swapaxes(key, 2, 3)) / np.sqrt(width / self.heads)
        weight = np.exp(likeness - np.max(likeness, axis=3, keepdims=True))
        mixed = np.matmul(weight / np.sum(weight, axis=3, keepdims=True), value)
        return np.transpose(mixed, (0, 2, 1, 3)).reshape(n, length, width)


def _matrix(random: Any, before: int, after: int) -> Any:
    return random.randn(before, after) * np.sqrt(2.0 / (before + after))


def _convolve(pictures: Any, kernel: Any) -> Any:
    """A 3 x 3 convolution with zeros around the picture: (n, h, w, before) to (n, h, w, after)."""
    n, height, width, _ = pictures.shape
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="constant")
    around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    columns = np.concatenate(around, axis=3).reshape(n * height * width, -1)
    return np.dot(columns, kernel).reshape(n, height, width, -1)


def _halve(pictures: Any) -> Any:
    n, height, width, channels = pictures.shape
    return np.mean(pictures.reshape(n, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def _normalise(tokens: Any) -> Any:
    centred = tokens - np.mean(tokens, axis=2, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=2, keepdims=True) + 1e-5)
