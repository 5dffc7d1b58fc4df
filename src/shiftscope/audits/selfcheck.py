"""Check the measurements against networks with known answers.

*Oracles* must score exactly 1: no shift can change their outputs. *Known failures* must score below 1: shifts do change their
outputs, and a tool that calls them invariant is broken. The networks are small and untrained; their answers follow from their
construction, whatever their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shiftscope.audits.protocols import Protocol, mouton2020
from shiftscope.engine.outputs import Method, Model, Outputs, shift_outputs
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.seeds import stream
from shiftscope.shifts import Mode, grid, translate
from shiftscope.surveys import survey
from shiftscope.tables import Table

__all__ = ["Check", "RunShifts", "checks", "drawn_shifts", "network_outputs", "run_checks"]

SIZE, IMAGES, REACH = 16, 8, 4
#: The error of single precision in a value of exactly 1.
ROUNDING = 1e-5

#: Returns the outputs of a model on the check's images under every shift of a grid.
RunShifts = Callable[..., Outputs]


@dataclass(frozen=True)
class Check:
    """A number whose value is known.

    Attributes:
        name: what is measured.
        expected: ``1`` up to single precision, or ``below 1``.
        measure: returns the number.
    """

    name: str
    expected: Literal["1", "below 1"]
    measure: Callable[[], float]

    def passes(self, value: float) -> bool:
        """Return whether a number is as expected."""
        return abs(value - 1) <= ROUNDING if self.expected == "1" else value < 1 - 10 * ROUNDING


def checks(*, outputs: RunShifts | None = None, draw: Callable[[Protocol], Tensor] | None = None) -> tuple[Check, ...]:
    """Return all checks, oracles first.

    Args:
        outputs: (model, mode, method) -> outputs under shifts; :func:`network_outputs` by default. What the checks examine.
        draw: protocol -> its shifts [image, 2], pixels; :func:`drawn_shifts` by default. What the checks examine.
    """
    run, drawn = outputs or network_outputs, draw or drawn_shifts
    protocol = mouton2020(REACH)
    smooth = _network(factor=1, padding="circular", head="gap")
    strided = _network(factor=2, padding="circular", head="gap")
    flat = _network(factor=1, padding="circular", head="flatten")
    valid = _network(factor=4, padding="valid", head="flatten")
    adaptive = _network(factor=4, padding="circular", head="gap", sampling="aps")
    learned = _network(factor=4, padding="circular", head="gap", sampling="lps")

    def value(model: Model, mode: Mode, over: str = "all", measure: str = "mcs") -> float:
        return float(survey([run(model, mode)], factor=2).values[measure, over].mean())

    return (
        Check("mcs: a constant model", "1", lambda: value(_constant, "zero")),
        Check("mcs: circular, stride 1, global average pooling", "1", lambda: value(smooth, "circular")),
        Check(
            "all_agree: circular, stride 1, global average pooling", "1", lambda: value(smooth, "circular", measure="all_agree")
        ),
        Check(
            "mcs: circular, stride 2, global average pooling, on the lattice", "1", lambda: value(strided, "circular", "lattice")
        ),
        Check("mcs: circular, adaptive polyphase sampling by 4, global average pooling", "1", lambda: _least_cosine(adaptive)),
        Check("mcs: circular, learned polyphase sampling by 4, global average pooling", "1", lambda: _least_cosine(learned)),
        Check("mcs: any network, no shift", "1", lambda: value(valid, "zero", "radius 0")),
        Check("protocol: a second draw equals the first", "1", lambda: float(torch.equal(drawn(protocol), drawn(protocol)))),
        Check("protocol: no shift exceeds the largest", "1", lambda: float(drawn(protocol).abs().max() == REACH)),
        Check("translation, then back: the image is the same", "1", lambda: _there_and_back(drawn(protocol)[:IMAGES])),
        Check(
            "mcs: circular, stride 2, global average pooling, off the lattice",
            "below 1",
            lambda: value(strided, "circular", "off lattice"),
        ),
        Check("mcs: circular, stride 1, flattened", "below 1", lambda: value(flat, "circular")),
        Check("mcs: zero padding, stride 1, global average pooling", "below 1", lambda: value(_zero_padded(), "circular")),
        Check(
            "all_agree: a model that says in which half the object is",
            "below 1",
            lambda: value(_half, "zero", measure="all_agree"),
        ),
        Check("protocol: images draw different shifts", "below 1", lambda: 1 / len(drawn(protocol).unique(dim=0))),
        Check("engine: dense and direct outputs agree", "1", lambda: _dense_against_direct(strided)),
    )


def run_checks(every: tuple[Check, ...] | None = None) -> tuple[Table, bool]:
    """Return a table with a row per check, and whether all passed.

    Args:
        every: the checks; all of :func:`checks` by default.
    """
    rows = []
    for check in checks() if every is None else every:
        value = check.measure()
        verdict = "passed" if check.passes(value) else "MISSED"
        rows.append({"check": check.name, "expected": check.expected, "found": f"{value:.6f}", "verdict": verdict})
    missed = sum(row["verdict"] == "MISSED" for row in rows)
    note = f"{len(rows) - missed} of {len(rows)} passed."
    columns = ("check", "expected", "found", "verdict")
    return Table("Networks with known answers", columns, tuple(rows), (note,)), missed == 0


def network_outputs(model: Model, mode: Mode, method: Method = "auto") -> Outputs:
    """Return a model's outputs on the checks' images under every shift of up to ``REACH`` pixels."""
    return shift_outputs(model, _images(), grid(REACH), mode=mode, method=method)


def drawn_shifts(protocol: Protocol) -> Tensor:
    """Return the first view's shifts of 500 images, [image, 2], pixels."""
    return protocol.draw(500)[:, 0]


def _network(**settings: Any) -> nn.Module:
    spec = NetworkSpec(channels=(6, 8), pool_kernel=3, input_size=SIZE, classes=5, **settings)
    return build(spec, generator=stream(0, "selfcheck")).eval()


def _zero_padded() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 5, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def _constant(batch: Tensor) -> Tensor:
    return torch.arange(1.0, 6.0).expand(len(batch), -1)


def _half(batch: Tensor) -> Tensor:
    return torch.stack([batch[:, :, : SIZE // 2].sum(dim=(1, 2, 3)), batch[:, :, SIZE // 2 :].sum(dim=(1, 2, 3))], dim=1)


def _images() -> Tensor:
    """Return noise in the middle of a black canvas, so that no shift cuts it off."""
    images = torch.zeros(IMAGES, 1, SIZE, SIZE)
    inner = SIZE - 2 * REACH
    images[:, :, REACH:-REACH, REACH:-REACH] = torch.rand(IMAGES, 1, inner, inner, generator=stream(0, "selfcheck images"))
    return images


def _least_cosine(model: Model) -> float:
    """Return the smallest mean cosine over all circular shifts of the image."""
    steps = torch.arange(SIZE)
    outputs = shift_outputs(model, _images(), torch.cartesian_prod(steps, steps), mode="circular")
    return float(survey([outputs]).maps["mcs"].min())


def _there_and_back(shifts: Tensor) -> float:
    return float(torch.equal(translate(translate(_images(), shifts), -shifts), _images()))


def _dense_against_direct(model: Model) -> float:
    """Return 1 minus the relative difference between both methods."""
    dense, direct = (network_outputs(model, "circular", method) for method in ("dense", "direct"))
    return 1 - float((dense.values - direct.values).norm() / direct.values.norm())
