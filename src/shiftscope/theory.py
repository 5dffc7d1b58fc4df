"""The source's worked examples, computed: what a shift does to a signal on its way through convolution and subsampling.

Nothing here is typed in but the two inputs and the kernel of the slides; every number shown comes out of ``signals``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

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
) -> Shaped[Tensor, "*kept"]:
    """Valid cross-correlation of a signal with a kernel, sampled every ``stride`` positions.

    ``out[i] = sum_k kernel[k] * signal[stride * i + k]``, on each of the kernel's axes (the signal's last ones).

    Args:
        signal: the positions, of any dtype the kernel shares; leading axes are carried along.
        kernel: the taps; no axis longer than the signal's.
        stride: the step between samples, in positions, at least 1.

    Raises:
        ValueError: the kernel does not fit into the signal, or the stride is not positive.

    >>> correlate(torch.tensor([0, 0, 0, 0, 1, 2, 0, 0, 0, 0]), torch.tensor([1, 0, 1]), stride=2).tolist()
    [0, 1, 1, 0]
    """
    if stride < 1:
        raise ValueError(f"`stride` must be at least 1, got {stride}.")
    lead = signal.ndim - kernel.ndim
    if lead < 0 or any(taps > size for taps, size in zip(kernel.shape, signal.shape[max(lead, 0) :], strict=True)):
        raise ValueError(
            f"`kernel` must fit into the signal, got {tuple(kernel.shape)} over {tuple(signal.shape)}. Use a smaller kernel."
        )
    windows = signal
    for axis, taps in enumerate(kernel.shape, start=lead):
        windows = windows.unfold(axis, taps, stride)
    return (windows * kernel).sum(dim=tuple(range(-kernel.ndim, 0)), dtype=torch.result_type(signal, kernel))


def translate(
    signal: Shaped[Tensor, "*positions"], displacement: int | tuple[int, ...], *, mode: Mode = "zero"
) -> Shaped[Tensor, "*positions"]:
    """The signal with its content moved by ``displacement`` positions (right and down when positive).

    Args:
        signal: its last axes, as many as the displacement has entries, are shifted.
        displacement: whole positions, one entry an axis; a plain int shifts the last axis.
        mode: ``zero`` lets zeros come in, ``circular`` lets what leaves on one side come back on the other.

    Raises:
        ValueError: unknown mode.

    >>> translate(torch.tensor([1, 2, 3]), 1).tolist(), translate(torch.tensor([1, 2, 3]), 1, mode="circular").tolist()
    ([0, 1, 2], [3, 1, 2])
    """
    if mode not in ("zero", "circular"):
        raise ValueError(f"`mode` must be 'zero' or 'circular', got {mode!r}.")
    steps = (displacement,) if isinstance(displacement, int) else tuple(displacement)
    dims = tuple(range(-len(steps), 0))
    if mode == "circular":
        return signal.roll(steps, dims)
    shifted = torch.zeros_like(signal)
    source, target = [slice(None)] * signal.ndim, [slice(None)] * signal.ndim
    for dim, step in zip(dims, steps, strict=True):
        kept = max(signal.shape[dim] - abs(step), 0)
        start = min(abs(step), signal.shape[dim])
        source[dim] = slice(0, kept) if step >= 0 else slice(start, None)
        target[dim] = slice(start, None) if step >= 0 else slice(0, kept)
    shifted[tuple(target)] = signal[tuple(source)]
    return shifted


def subsample(signal: Shaped[Tensor, "*positions"], factor: int, *, axes: int | None = None) -> Shaped[Tensor, "*kept"]:
    """Every ``factor``-th position on each of the last ``axes`` axes (all of them by default), starting with the first.

    Raises:
        ValueError: the factor is not positive.

    >>> subsample(torch.arange(6), 2).tolist()
    [0, 2, 4]
    """
    if factor < 1:
        raise ValueError(f"`factor` must be at least 1, got {factor}.")
    spatial = signal.ndim if axes is None else axes
    steps = [slice(None)] * (signal.ndim - spatial) + [slice(None, None, factor)] * spatial
    return signal[tuple(steps)]


def cross_similarity(
    a: Shaped[Tensor, "*shape"], b: Shaped[Tensor, "*shape"], *, axes: int | None = None
) -> Float[Tensor, "*displacements"]:
    """c(u) = <a, T_-u b> / (|a| |b|) for every whole displacement u of the last ``axes`` axes.

    Both signals are extended by zeros; the channels before the axes are summed over. ``c(0)`` is the cosine a fully
    connected layer's input sees. Computed by a Fourier transform in double precision.

    Returns:
        c, of size 2 n - 1 on an axis of n positions; its centre is u = 0. If both signals are zero, c is 1 at the centre
        and 0 elsewhere; if one is, c is 0 everywhere.

    Raises:
        ValueError: the signals differ in shape.

    >>> cross_similarity(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1])).argmax().item() - 2
    1
    """
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
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
    """What a shift of the input did to a map: how much is preserved, and where it went.

    Attributes:
        similarity: max over u of c(u); 1 for a map that has only moved.
        movement: Euclidean length of the displacement below, in the map's positions. Times the map's factor: in input pixels.
        displacement: argmax over u of c(u), positions along each axis; of equal peaks the nearest to 0.
        in_place: c(0), what a flatten and fully connected layer sees.
    """

    similarity: float
    movement: float
    displacement: tuple[int, ...]
    in_place: float


def respond(a: Shaped[Tensor, "*shape"], b: Shaped[Tensor, "*shape"], *, axes: int | None = None) -> Response:
    """Signal similarity and movement between the untranslated map ``a`` and the translated map ``b``.

    Args:
        a: the untranslated map; its last ``axes`` axes are positions, the others channels.
        b: the translated map, of the same shape.
        axes: how many axes are positions, all by default.

    Raises:
        ValueError: the maps differ in shape.

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
        movement=float(lengths.min()) ** 0.5,
        displacement=tuple(nearest.tolist()),
        in_place=_cosine(a, b),
    )


def homogeneity(signal: Shaped[Tensor, "*positions"], factor: int, *, axes: int | None = None) -> float:
    """Local homogeneity at a subsampling factor: how much subsampling keeps under the shifts it cannot follow.

    The mean over t in {0 .. factor - 1}^axes, t = 0 left out, of ``cosine(S x, S T_t x)``: S keeps every ``factor``-th
    position, T_t is the zero-fill shift. At factor 1 there is no such t and nothing is lost: 1.

    Args:
        signal: its last ``axes`` axes (all by default) are positions.
        factor: the subsampling factor, at least 1.
        axes: how many axes are positions.

    Raises:
        ValueError: the factor is not positive.

    >>> homogeneity(torch.tensor([0, 0, 0, 0, 0, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0, 0, 0, 0]), 2)
    1.0
    """
    spatial = signal.ndim if axes is None else axes
    kept = subsample(signal, factor, axes=spatial)
    shifts = [shift for shift in product(range(factor), repeat=spatial) if any(shift)]
    cosines = [_cosine(kept, subsample(translate(signal, shift), factor, axes=spatial)) for shift in shifts]
    return sum(cosines) / len(cosines) if cosines else 1.0


def _cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two tensors of one shape, seen as vectors."""
    return float(cosine(a.flatten(), b.flatten()))


@dataclass(frozen=True)
class WorkedTable:
    """One worked example.

    Attributes:
        name: what it is about.
        setting: the input and what is done to it.
        rows: one a shift: ``shift``, ``output``, and what is measured of the output.
        shows: what a reader should see in it, in one sentence.
    """

    name: str
    setting: str
    rows: tuple[dict[str, Any], ...]
    shows: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a row's entries, in order."""
        return tuple(self.rows[0])

    def to_json(self) -> dict[str, Any]:
        """The table as plain data."""
        return {**asdict(self), "columns": list(self.columns)}


def worked_tables() -> tuple[WorkedTable, ...]:
    """Every worked table of the source, sections on equivariance, shiftability, homogeneity and the fully connected layer.

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
            "At stride 2 a shift of one gives an output that was not there before: subsampling breaks equivariance. (Its "
            "similarity is 1 all the same, because a cosine does not see that the output has doubled.)",
        ),
        WorkedTable(
            "shiftability",
            f"{_written(SIGNAL)} correlated with {_written(KERNEL)}, stride 2, only shifts that are multiples of 2",
            _rows(SIGNAL, (0, 2), strided),
            "Shifts that are multiples of the stride survive, divided by it: subsampling scales them.",
        ),
        WorkedTable(
            "local homogeneity",
            f"{_written(HOMOGENEOUS)}, every second position",
            _rows(HOMOGENEOUS, (0, 1, 2, 3), lambda signal: subsample(signal, 2)),
            f"Neighbours alike in step with the subsampling (homogeneity {homogeneity(HOMOGENEOUS, 2):g} at factor 2; "
            f"the input above has {homogeneity(SIGNAL, 2):g}): "
            "every shift keeps its similarity, and moves half as far.",
        ),
        WorkedTable(
            "fully connected layer",
            "the stride 1 output above, then one unit with the weights 1 2 3 4 5 6 7 8, or the sum over positions",
            _connected_rows(SIGNAL, (0, 1, 2)),
            "The map is equivariant, yet the shift still reaches the fully connected layer, which weighs positions; only the "
            "sum over positions does not see it. Equivariant is not invariant.",
        ),
    )


def dense(signal: Tensor) -> Tensor:
    """The slides' convolution at stride 1."""
    return correlate(signal, KERNEL)


def strided(signal: Tensor) -> Tensor:
    """The slides' convolution at stride 2."""
    return correlate(signal, KERNEL, stride=2)


def _rows(signal: Tensor, shifts: tuple[int, ...], through: Callable[[Tensor], Tensor]) -> tuple[dict[str, Any], ...]:
    """Outputs under shifts, each measured against the output of the first shift."""
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
    """The dense map under shifts, what a unit that weighs positions makes of it, and what a sum over positions does."""
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
