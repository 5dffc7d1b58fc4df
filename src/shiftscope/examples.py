"""A small network that learns handwritten digits in a second, and images to measure it on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.runtime.seeds import seeded_layers, stream

__all__ = ["trained_digits"]

#: Images and steps of the training, and images that are left for measuring.
TRAINING, STEPS, MEASURED = 1600, 100, 64


def trained_digits(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a small convolutional network on scikit-learn's digits, which all lie in the middle of their images.

    Args:
        seed: of the weights and of the order of images.

    Returns:
        the network, in evaluation mode; images that it has not seen, [64, 1, 24, 24] in [0, 1], each digit enlarged from 8x8 to
        16x16; and their classes, [64].

    >>> model, images, labels = trained_digits()
    >>> images.shape, model(images).shape
    (torch.Size([64, 1, 24, 24]), torch.Size([64, 10]))
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    digits = torch.tensor(data.images[:, None] / 16).float()
    enlarged = digits.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    images, labels = functional.pad(enlarged, (4, 4, 4, 4)), torch.tensor(data.target)
    with seeded_layers(seed, "cpu"):
        model = _network()
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for batch in torch.randint(TRAINING, (STEPS, 64), generator=stream(seed, "batches")):
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    rest = slice(TRAINING, TRAINING + MEASURED)
    return model.eval(), images[rest], labels[rest]


def _network() -> nn.Sequential:
    """Return two convolutions with pools, and a head that flattens the last map of 6x6 positions."""
    first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 6 * 6, 10))
