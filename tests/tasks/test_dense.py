"""Coarse maps of circular images continue on the other side: a model that moves along with them is found to do so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import shiftscope as ss
from shiftscope.audits.protocols import PROTOCOLS, Protocol
from shiftscope.tasks import find_task
from shiftscope.tasks.dense import of_size

STRIDE, SIDE, ROUNDING = 4, 32, 1e-5
CHANNELS = {"segmentation": 5, "depth": 1, "flow": 2}


class Positive(nn.Module):
    """Values above 0, as of depths."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return functional.softplus(maps) + 0.5


def coarse(task: str) -> nn.Module:
    """Return a model whose map of 8x8 moves along with circular shifts by multiples of 4."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 5, STRIDE, 2, padding_mode="circular"), nn.ReLU(), nn.Conv2d(8, CHANNELS[task], 1)
    return nn.Sequential(*layers, Positive()).eval()


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(1)
    return functional.interpolate(torch.rand(4, 3, 8, 8), SIDE, mode="bilinear")


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_circular_enlargement_is_that_of_a_padded_map(scale: int) -> None:
    maps = torch.rand(2, 3, 5, 7)
    padded = functional.pad(maps, (1, 1, 1, 1), mode="circular")
    expected = functional.interpolate(padded, scale_factor=scale, mode="bilinear")[..., scale:-scale, scale:-scale]
    assert torch.allclose(of_size(maps, (5 * scale, 7 * scale), wraps=True), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(9, 13), (5, 11), (3, 4)])
def test_circular_enlargement_equals_the_plain_one_away_from_the_border(size: tuple[int, int]) -> None:
    maps = torch.rand(1, 2, 5, 7)
    found, plain = of_size(maps, size, wraps=True), of_size(maps, size)
    assert torch.allclose(found[..., 2:-2, 2:-2], plain[..., 2:-2, 2:-2], atol=1e-6)


@pytest.mark.parametrize("task", CHANNELS)
def test_circular_shifts_by_the_stride_change_nothing(task: str, images: torch.Tensor) -> None:
    """Beside a protocol with another border, whose unshifted answers are read in the plain way."""
    path = tuple((int(down), int(right)) for down, right in (STRIDE * ss.grid(2)).tolist())
    lattice = Protocol("lattice", 2 * STRIDE, "circular", 0, ("all_agree",), drawn=0, path=path)
    every = replace(PROTOCOLS["every-shift"](STRIDE), mode="circular")
    protocols = [lattice, every, "mouton2020"]
    found, *alone = (
        ss.audit(coarse(task), images, task=task, protocols=each, max_shift=STRIDE) for each in (protocols, *zip(protocols))
    )
    lead = find_task(task).measures[0]
    unchanged = 1 if task == "segmentation" else 0
    assert found.estimate(lead, "lattice").value == pytest.approx(unchanged, abs=ROUNDING)
    shown = found.maps()[f"circular {STRIDE}/{lead}"]
    assert (shown[::STRIDE, ::STRIDE] - unchanged).abs().max() < ROUNDING
    assert (shown - unchanged).abs().max() > 100 * ROUNDING
    rows = {(row.protocol, row.measure): row.estimate.value for row in found.rows}
    assert rows == pytest.approx(
        {(row.protocol, row.measure): row.estimate.value for each in alone for row in each.rows}, abs=1e-4
    )


def test_explanation_finds_aliasing_in_a_coarse_map(images: torch.Tensor) -> None:
    found = ss.explain(coarse("segmentation"), images, task="segmentation", mode="circular", max_shift=STRIDE)
    shares = {cause.name: cause.share for cause in found.causes.causes}
    assert shares["aliasing"] is not None and shares["aliasing"].value == pytest.approx(1, abs=1e-6)


def test_certificate_of_a_coarse_map_equals_every_shift(images: torch.Tensor) -> None:
    model, task = coarse("depth"), "depth:kept=0.0065"
    kept = ss.certify(model, images, task=task, mode="circular", radius=STRIDE)
    every = replace(PROTOCOLS["every-shift"](STRIDE), mode="circular")
    found = ss.audit(model, images, task=task, protocols=[every], max_shift=STRIDE)
    (curve,) = found.certificates.values()
    assert curve.radii is not None and curve.radii.tolist() == kept.radii.tolist()
    assert len(kept.radii.unique()) > 1
