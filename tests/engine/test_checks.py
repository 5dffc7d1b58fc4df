"""A function is measured with its modules in evaluation mode, wherever it keeps them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Made = tuple[Callable[[Tensor], Tensor], nn.Module]


def network() -> nn.Module:
    """Return a network whose outputs differ from call to call in training mode, and whose statistics change."""
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).train()


@dataclass
class Attribute:
    net: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)
        return found


@dataclass(slots=True)
class Slot:
    net: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)
        return found


def in_attribute() -> Made:
    found = Attribute(network())
    return found, found.net


def in_slot() -> Made:
    found = Slot(network())
    return found, found.net


def in_class() -> Made:
    class OfClass:
        net = network()

        def __call__(self, images: Tensor) -> Tensor:
            found: Tensor = self.net(images)
            return found

    return OfClass(), OfClass.net


def in_set() -> Made:
    several = {network()}
    return lambda images: next(iter(several))(images), next(iter(several))


def in_imported_module() -> Made:
    config = ModuleType("config_of_a_user")
    vars(config)["model"] = network()
    sys.modules[config.__name__] = config
    return lambda images: config.model(images), config.model


def in_function_of_an_object() -> Made:
    net = network()

    class Predictor:
        def predict(self, images: Tensor) -> Tensor:
            found: Tensor = net(images)
            return found

        def __call__(self, images: Tensor) -> Tensor:
            return self.predict(images)

    return Predictor(), net


@pytest.mark.parametrize(
    "made",
    [in_attribute, in_slot, in_class, in_set, in_imported_module, in_function_of_an_object],
    ids=lambda each: each.__name__,
)
def test_module_of_a_function_is_evaluated_and_left_as_it_was(made: Callable[[], Made]) -> None:
    function, net = made()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = ss.shift_outputs(function, IMAGES, torch.zeros(2, 2, dtype=torch.long))
    assert torch.equal(found.values[:, 0], found.values[:, 1])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training


def test_clips_are_refused_with_what_to_do() -> None:
    with pytest.raises(ss.InputError, match=r"and not clips, got shape .* Join frames and channels into channels"):
        ss.audit(network(), torch.rand(2, 3, 4, 8, 8))
