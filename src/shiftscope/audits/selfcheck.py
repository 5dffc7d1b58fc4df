"""Does the measuring tell the truth? Networks whose answer is known are measured, and the measure must say so.

*Oracles* must score exactly 1: a shift cannot change what they say. *Known failures* must not: a shift does change what they
say, and a tool that calls them invariant is broken. The networks are small and untrained; their answer follows from their
construction, whatever their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shiftscope.audits.protocols import mouton2020
from shiftscope.engine.outputs import Method, Model, Outputs, shift_outputs
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.seeds import stream
from shiftscope.shifts import Mode, grid, translate
from shiftscope.surveys import survey
from shiftscope.tables import Table

__all__ = ["Check", "checks", "run_checks"]

SIZE, IMAGES, REACH = 16, 8, 4
#: What single precision leaves of an exact one.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Check:
    """One thing that must come out.

    Attributes:
        name: what is measured.
        expected: ``1`` exactly (up to single precision), or ``below 1``.
        measure: gives the number.
    """

    name: str
    expected: Literal["1", "below 1"]
    measure: Callable[[], float]

    def passes(self, value: float) -> bool:
        """Whether a number is what is expected."""
        return abs(value - 1) <= ROUNDING if self.expected == "1" else value < 1 - 10 * ROUNDING


def checks() -> tuple[Check, ...]:
    """All checks, oracles first."""
    smooth = _family(factor=1, padding="circular", head="gap")
    strided = _family(factor=2, padding="circular", head="gap")
    flat = _family(factor=1, padding="circular", head="flatten")
    leaking = _zero_padded()
    adaptive = _family(factor=4, padding="circular", head="gap", sampling="aps")
    learned = _family(factor=4, padding="circular", head="gap", sampling="lps")
    return (
        Check("mcs: a constant model", "1", lambda: _mcs(_constant, "zero", "all")),
        Check("mcs: circular, stride 1, global average pooling", "1", lambda: _mcs(smooth, "circular", "all")),
        Check("all_agree: the same", "1", lambda: _survey(smooth, "circular", "all_agree", "all")),
        Check(
            "mcs: circular, stride 2, global average pooling, on the lattice", "1", lambda: _mcs(strided, "circular", "lattice")
        ),
        Check("mcs: circular, adaptive polyphase sampling by 4, global average pooling", "1", lambda: _everywhere(adaptive)),
        Check("mcs: circular, learned polyphase sampling by 4, global average pooling", "1", lambda: _everywhere(learned)),
        Check(
            "mcs: any network, no shift",
            "1",
            lambda: _mcs(_family(factor=4, padding="valid", head="flatten"), "zero", "radius 0"),
        ),
        Check("shifts of the protocol: drawn again, they are the same", "1", lambda: float(torch.equal(_drawn(), _drawn()))),
        Check("shifts of the protocol: none is beyond the largest", "1", lambda: float(_drawn().abs().max() == REACH)),
        Check("translation, then back: what stays is the same", "1", _there_and_back),
        Check(
            "mcs: circular, stride 2, global average pooling, off the lattice",
            "below 1",
            lambda: _mcs(strided, "circular", "off lattice"),
        ),
        Check("mcs: circular, stride 1, flattened", "below 1", lambda: _mcs(flat, "circular", "all")),
        Check("mcs: zero padding, stride 1, global average pooling", "below 1", lambda: _mcs(leaking, "circular", "all")),
        Check(
            "all_agree: a model that says in which half the object is",
            "below 1",
            lambda: _survey(_half, "zero", "all_agree", "all"),
        ),
        Check("shifts of the protocol: not one for a whole data set", "below 1", lambda: 1 / len(_drawn().unique(dim=0))),
        Check("dense beside direct: their outputs are the same", "1", lambda: _dense_beside_direct(strided)),
    )


def run_checks() -> tuple[Table, bool]:
    """A row for each check, and whether all passed."""
    rows = []
    for check in checks():
        value = check.measure()
        verdict = "passed" if check.passes(value) else "MISSED"
        rows.append({"check": check.name, "expected": check.expected, "found": f"{value:.6f}", "verdict": verdict})
    missed = sum(row["verdict"] == "MISSED" for row in rows)
    note = f"{len(rows) - missed} of {len(rows)} passed."
    return Table("Networks whose answer is known", ("check", "expected", "found", "verdict"), tuple(rows), (note,)), missed == 0


def _family(**settings: Any) -> nn.Module:
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
    """Something in the middle of each canvas, so that no shift here cuts it."""
    images = torch.zeros(IMAGES, 1, SIZE, SIZE)
    inner = SIZE - 2 * REACH
    images[:, :, REACH:-REACH, REACH:-REACH] = torch.rand(IMAGES, 1, inner, inner, generator=stream(0, "selfcheck images"))
    return images


def _outputs(model: Model, mode: Mode, method: Method = "auto") -> Outputs:
    return shift_outputs(model, _images(), grid(REACH), mode=mode, method=method)


def _survey(model: Model, mode: Mode, measure: str, over: str) -> float:
    return float(survey([_outputs(model, mode)], factor=2).values[measure, over].mean())


def _mcs(model: Model, mode: Mode, over: str) -> float:
    return _survey(model, mode, "mcs", over)


def _everywhere(model: Model) -> float:
    """The least cosine at any of the torus's shifts."""
    steps = torch.arange(SIZE)
    outputs = shift_outputs(model, _images(), torch.cartesian_prod(steps, steps), mode="circular")
    return float(survey([outputs]).maps["mcs"].min())


def _drawn() -> Tensor:
    return mouton2020(REACH).draw(500)[:, 0]


def _there_and_back() -> float:
    shifts = _drawn()[:IMAGES]
    return float(torch.equal(translate(translate(_images(), shifts), -shifts), _images()))


def _dense_beside_direct(model: Model) -> float:
    dense, direct = (_outputs(model, "circular", method) for method in ("dense", "direct"))
    return 1 - float((dense.values - direct.values).norm() / direct.values.norm())
