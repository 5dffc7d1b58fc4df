"""Similarity, movement and homogeneity of plain signals with any number of axes, and the source's worked examples.

A *signal* is a tensor whose last ``axes`` dimensions are positions; the dimensions before them are channels. Three operations
make up a convolutional network's spatial part: cross-correlation with a kernel, subsampling, and the shift of the content. Two
quantities describe how a shift changes an output: its *similarity*, how much of the output is preserved anywhere, and its
*movement*, how far the preserved part has moved. *Homogeneity* explains why subsampling can help.

Laws, each tested as a property:

- dense correlation commutes with shifts: ``correlate(translate(x, d), k) == translate(correlate(x, k), d)``;
- at stride s a lattice shift (a multiple of s) moves the output by shift / s, any other shift may change it;
- a fully equivariant map has similarity 1 and movement d / factor.

This module depends on no model, image or batch. Source: Mouton, Myburgh and Davel, "Stride and translation invariance in CNNs"
(2020), which names the quantities in words; the formulas are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.shifts import Mode
from shiftscope.similarity import TIE, cosine

__all__ = [
    "Response",
    "WorkedTable",
    "correlate",
    "cross_similarity",
    "homogeneity",
    "respond",
    "subsample",
    "translate",
    "worked_tables",
]

SIGNAL = torch.tensor([0, 0, 0, 0, 1, 2, 0, 0, 0, 0])
KERNEL = torch.tensor([1, 0, 1])
HOMOGENEOUS = torch.tensor([0, 0, 0, 0, 0, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0, 0, 0, 0])


def correlate(
    signal: Shaped[Tensor, "*positions"], kernel: Shaped[Tensor, "*taps"], *, stride: int = 1
) -> Shaped[Tensor, "*sampled"]:
    """Return the valid cross-correlation of a signal with a kernel, sampled every ``stride`` positions.

    ``out[i] = sum_k kernel[k] * signal[stride * i + k]``, on each of the kernel's axes (the signal's last ones).

    Args:
        signal: its last axes, as many as the kernel has, are positions; the others are batch axes.
        kernel: the taps; no axis longer than the signal's.
        stride: the step between samples, in positions, at least 1.

    Raises:
        InputError: `kernel` does not fit into the signal, or `stride` is not positive.

    >>> correlate(torch.tensor([0, 0, 0, 0, 1, 2, 0, 0, 0, 0]), torch.tensor([1, 0, 1]), stride=2).tolist()
    [0, 1, 1, 0]
    """
    if stride < 1:
        raise InputError(f"`stride` must be at least 1, got {stride}.")
    lead = signal.ndim - kernel.ndim
    if lead < 0 or any(taps > size for taps, size in zip(kernel.shape, signal.shape[max(lead, 0) :], strict=True)):
        raise InputError(
            f"`kernel` must fit into the signal, got {tuple(kernel.shape)} over {tuple(signal.shape)}.", "Use a smaller kernel."
        )
    windows = signal
    for axis, taps in enumerate(kernel.shape, start=lead):
        windows = windows.unfold(axis, taps, stride)
    return (windows * kernel).sum(dim=tuple(range(-kernel.ndim, 0)), dtype=torch.result_type(signal, kernel))


def translate(
    signal: Shaped[Tensor, "*positions"], displacement: int | tuple[int, ...], *, mode: Mode = "zero"
) -> Shaped[Tensor, "*positions"]:
    """Return the signal with its content moved by ``displacement`` positions (right and down when positive).

    Args:
        signal: its last axes, as many as the displacement has entries, are shifted.
        displacement: whole positions, one entry per axis; a plain int shifts the last axis.
        mode: what comes in at the border: zeros (``zero``) or what left on the opposite side (``circular``).

    Raises:
        InputError: `mode` is unknown.

    >>> translate(torch.tensor([1, 2, 3]), 1).tolist(), translate(torch.tensor([1, 2, 3]), 1, mode="circular").tolist()
    ([0, 1, 2], [3, 1, 2])
    """
    if mode not in ("zero", "circular"):
        raise InputError(f"`mode` must be 'zero' or 'circular', got {mode!r}.")
    steps = (displacement,) if isinstance(displacement, int) else tuple(displacement)
    dims = tuple(range(-len(steps), 0))
    if mode == "circular":
        return signal.roll(steps, dims)
    shifted = torch.zeros_like(signal)
    source, target = [slice(None)] * signal.ndim, [slice(None)] * signal.ndim
    for dim, step in zip(dims, steps, strict=True):
        remaining = max(signal.shape[dim] - abs(step), 0)
        start = min(abs(step), signal.shape[dim])
        source[dim] = slice(0, remaining) if step >= 0 else slice(start, None)
        target[dim] = slice(start, None) if step >= 0 else slice(0, remaining)
    shifted[tuple(target)] = signal[tuple(source)]
    return shifted


def subsample(signal: Shaped[Tensor, "*positions"], factor: int, *, axes: int | None = None) -> Shaped[Tensor, "*sampled"]:
    """Return every ``factor``-th position along each of the last ``axes`` axes (all by default), starting with the first.

    Raises:
        InputError: `factor` is not positive.

    >>> subsample(torch.arange(6), 2).tolist()
    [0, 2, 4]
    """
    if factor < 1:
        raise InputError(f"`factor` must be at least 1, got {factor}.")
    spatial = signal.ndim if axes is None else axes
    steps = [slice(None)] * (signal.ndim - spatial) + [slice(None, None, factor)] * spatial
    return signal[tuple(steps)]


def cross_similarity(
    a: Shaped[Tensor, "*shape"], b: Shaped[Tensor, "*shape"], *, axes: int | None = None
) -> Float[Tensor, "*displacements"]:
    """Return c(u) = <a, T_-u b> / (|a| |b|) for every whole displacement u along the last ``axes`` axes.

    Both signals are extended by zeros, and channels are summed over. ``c(0)`` is the cosine between the inputs of a fully
    connected layer. Computed by a Fourier transform in double precision.

    Returns:
        c, of size 2 n - 1 on an axis of n positions; its centre is u = 0. If both signals are zero, c is 1 at the centre
        and 0 elsewhere; if one is, c is 0 everywhere.

    Raises:
        InputError: `a` and `b` differ in shape.

    >>> cross_similarity(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1])).argmax().item() - 2
    1
    """
    if a.shape != b.shape:
        raise InputError(f"`a` and `b` must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
    spatial = a.ndim if axes is None else axes
    dims = tuple(range(-spatial, 0))
    sizes = [2 * a.shape[dim] - 1 for dim in dims]
    a, b = a.double(), b.double()
    energy = (a.square().sum() * b.square().sum()).sqrt()
    if energy == 0:
        flat = torch.zeros(sizes, dtype=torch.float64, device=a.device)
        flat[tuple(size // 2 for size in sizes)] = float(a.any() == b.any())
        return flat
    spectrum = torch.fft.fftn(a, sizes, dims).conj() * torch.fft.fftn(b, sizes, dims)
    products = torch.fft.ifftn(spectrum.sum(dim=tuple(range(a.ndim - spatial))) if a.ndim > spatial else spectrum, dim=dims)
    similarities: Tensor = torch.fft.fftshift(products.real, dim=dims) / energy
    return similarities


@dataclass(frozen=True)
class Response:
    """How a map responded to a shift of the input.

    Attributes:
        similarity: max over u of c(u); 1 for a map that has only moved.
        movement: Euclidean length of the displacement, in the map's positions; times the map's factor, in input pixels.
        displacement: argmax over u of c(u), positions along each axis; of equal peaks the nearest to 0.
        in_place: c(0), the cosine between the inputs of a fully connected layer.
    """

    similarity: float
    movement: float
    displacement: tuple[int, ...]
    in_place: float


def respond(a: Shaped[Tensor, "*shape"], b: Shaped[Tensor, "*shape"], *, axes: int | None = None) -> Response:
    """Measure the similarity and the movement of a map under a shift of the input.

    Args:
        a: the map of the unshifted input; its last ``axes`` axes are positions, the others channels.
        b: the map of the shifted input, of the same shape.
        axes: how many axes are positions, all by default.

    Raises:
        InputError: `a` and `b` differ in shape.

    >>> x = torch.tensor([0, 1, 2, 0, 0])
    >>> respond(x, translate(x, 2)).movement
    2.0
    """
    similarities = cross_similarity(a, b, axes=axes)
    centre = torch.tensor([size // 2 for size in similarities.shape], device=similarities.device)
    peaks = torch.nonzero(similarities >= similarities.max() - TIE) - centre
    lengths = peaks.square().sum(dim=1)
    nearest = peaks[lengths.argmin()]
    return Response(
        similarity=min(float(similarities.max()), 1.0),
        movement=sqrt(float(lengths.min())),
        displacement=tuple(nearest.tolist()),
        in_place=_cosine(a, b),
    )


def homogeneity(signal: Shaped[Tensor, "*positions"], factor: int, *, axes: int | None = None) -> float:
    """Measure local homogeneity: how alike subsampled signals are under the shifts that subsampling cannot follow.

    The mean over t in {0 .. factor - 1}^axes, t = 0 left out, of ``cosine(S x, S T_t x)``: S keeps every ``factor``-th
    position, T_t is the zero-fill shift. At factor 1 there is no such t, and homogeneity is 1.

    Args:
        signal: its last ``axes`` axes (all by default) are positions.
        factor: the subsampling factor, at least 1.
        axes: how many axes are positions.

    Raises:
        InputError: `factor` is not positive.

    >>> round(homogeneity(torch.tensor([0, 0, 0, 0, 0, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0, 0, 0, 0]), 2), 9)
    1.0
    """
    spatial = signal.ndim if axes is None else axes
    unshifted = subsample(signal, factor, axes=spatial)
    shifts = [shift for shift in product(range(factor), repeat=spatial) if any(shift)]
    cosines = [_cosine(unshifted, subsample(translate(signal, shift), factor, axes=spatial)) for shift in shifts]
    return sum(cosines) / len(cosines) if cosines else 1.0


def _cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two tensors of one shape, seen as vectors."""
    return float(cosine(a.flatten(), b.flatten()))


@dataclass(frozen=True)
class WorkedTable:
    """One worked example.

    Attributes:
        name: its topic.
        setting: the input and the operations on it.
        rows: one per shift, with ``shift``, ``output`` and measures of the output.
        shows: what the example shows, in a sentence or two.
    """

    name: str
    setting: str
    rows: tuple[dict[str, Any], ...]
    shows: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of a row's entries, in order."""
        return tuple(self.rows[0])

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain data."""
        return {**asdict(self), "columns": list(self.columns)}


def worked_tables() -> tuple[WorkedTable, ...]:
    """Compute every worked table of the source: equivariance, shiftability, homogeneity and the fully connected layer.

    >>> [table.name for table in worked_tables()]
    ['equivariance', 'broken equivariance', 'shiftability', 'local homogeneity', 'fully connected layer']
    """
    return (
        WorkedTable(
            "equivariance",
            f"{_written(SIGNAL)} correlated with {_written(KERNEL)}, stride 1",
            _rows(SIGNAL, (0, 1, 2), dense),
            "At stride 1 the output only moves, by exactly the shift: dense convolution is equivariant.",
        ),
        WorkedTable(
            "broken equivariance",
            f"{_written(SIGNAL)} correlated with {_written(KERNEL)}, stride 2",
            _rows(SIGNAL, (0, 1, 2), strided),
            "At stride 2 a shift by one gives new values, not a shifted output: subsampling breaks equivariance. (Its "
            "similarity is still 1, because a cosine ignores that the output has doubled.)",
        ),
        WorkedTable(
            "shiftability",
            f"{_written(SIGNAL)} correlated with {_written(KERNEL)}, stride 2, only shifts that are multiples of 2",
            _rows(SIGNAL, (0, 2), strided),
            "A shift by a multiple of the stride moves the output by the shift divided by the stride.",
        ),
        WorkedTable(
            "local homogeneity",
            f"{_written(HOMOGENEOUS)}, every second position",
            _rows(HOMOGENEOUS, (0, 1, 2, 3), lambda signal: subsample(signal, 2)),
            f"Neighbouring positions are alike (homogeneity {homogeneity(HOMOGENEOUS, 2):g} at factor 2; "
            f"the input above has {homogeneity(SIGNAL, 2):g}): "
            "every shift keeps its similarity, and moves half as far.",
        ),
        WorkedTable(
            "fully connected layer",
            "the stride 1 output above, then one unit with the weights 1 2 3 4 5 6 7 8, or the sum over positions",
            _connected_rows(SIGNAL, (0, 1, 2)),
            "The map is equivariant, yet the shift changes the fully connected layer's output, which weights positions; only the "
            "sum over positions stays the same. Equivariant is not invariant.",
        ),
    )


def dense(signal: Tensor) -> Tensor:
    """Apply the slides' convolution at stride 1."""
    return correlate(signal, KERNEL)


def strided(signal: Tensor) -> Tensor:
    """Apply the slides' convolution at stride 2."""
    return correlate(signal, KERNEL, stride=2)


def _rows(signal: Tensor, shifts: tuple[int, ...], through: Callable[[Tensor], Tensor]) -> tuple[dict[str, Any], ...]:
    """Return a row for each shift, its output compared with that of the first shift."""
    outputs = [through(translate(signal, shift)) for shift in shifts]
    responses = [respond(outputs[0], output) for output in outputs]
    return tuple(
        {
            "shift": shift,
            "output": output.tolist(),
            "similarity": round(response.similarity, 6),
            "movement": response.movement,
            "cosine in place": round(response.in_place, 6),
        }
        for shift, output, response in zip(shifts, outputs, responses, strict=True)
    )


def _connected_rows(signal: Tensor, shifts: tuple[int, ...]) -> tuple[dict[str, Any], ...]:
    """Return a row for each shift: the dense map, a fully connected unit's output on it, and its sum over positions."""
    maps = [dense(translate(signal, shift)) for shift in shifts]
    weights = torch.arange(1, len(maps[0]) + 1)
    return tuple(
        {
            "shift": shift,
            "output": features.tolist(),
            "fully connected": int((features * weights).sum()),
            "sum": int(features.sum()),
        }
        for shift, features in zip(shifts, maps, strict=True)
    )


def _written(signal: Tensor) -> str:
    return " ".join(str(value) for value in signal.tolist())
