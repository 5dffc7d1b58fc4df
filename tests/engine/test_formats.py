"""The memory format of images is chosen by measuring, where a run is long enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftscope.engine import formats
from shiftscope.engine.formats import as_channels_last, channels_last_is_quicker


class Model:
    """A model that moves a clock of its own on, by the memory format of the images, and remembers how many it received."""

    def __init__(self, usual: float, channels_last: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.seen, self.clock = (usual, channels_last), 0, 0.0
        monkeypatch.setattr(formats, "perf_counter", lambda: self.clock)

    def __call__(self, images: Tensor) -> None:
        self.seen += len(images)
        self.clock += self.seconds[images.is_contiguous(memory_format=torch.channels_last)]


@pytest.mark.parametrize(("usual", "channels_last", "expected"), [(0.02, 0.01, True), (0.01, 0.02, False), (0.01, 0.01, False)])
def test_quicker_format_is_chosen(usual: float, channels_last: float, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(usual, channels_last, monkeypatch)
    assert channels_last_is_quicker(model, torch.rand(1, 3, 8, 8), passes=100_000) == expected


@pytest.mark.parametrize("passes", [1, 500, 2_000, 5_000])
def test_trial_takes_one_pass_in_a_hundred_at_most(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LEAST_SECONDS", 0)
    model = Model(0.001, 0, monkeypatch)
    channels_last_is_quicker(model, torch.rand(1, 3, 8, 8), passes=passes)
    assert model.seen <= passes / 100


def test_short_run_is_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not channels_last_is_quicker(Model(0.01, 0.0, monkeypatch), torch.rand(1, 3, 8, 8), passes=2_000)


def test_channels_last_changes_memory_not_values() -> None:
    images = torch.rand(2, 3, 5, 4)
    assert torch.equal(as_channels_last(images), images)
    assert as_channels_last(images).stride() == (60, 1, 12, 3)
