"""Values for each pixel: depth and optical flow. Equivariant: the map should move along with the image, its values unchanged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.runtime.text import number_of
from shiftscope.tasks.dense import aligned, mean_map, of_size
from shiftscope.tasks.drawing import blended, heat
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.reading import finite_rows, select_output
from shiftscope.tasks.task import Task, Truth, View
from shiftscope.tasks.truth_files import MapFiles, Placement

__all__ = ["Depth", "Flow", "is_one_value_map", "relative_error", "scale_invariant_error"]

#: Names of a depth map or a flow among several outputs.
DEPTH, FLOW = ("predicted_depth", "depth"), ("flow", "flows")
#: A map and the input have the same aspect if the ratios of their sides differ by no more than this.
ASPECT = 0.05
#: Fewer numbers along an axis are no map: three landmarks are [image, 3, 3].
LEAST_SIDE = 4


def relative_error(before: Tensor, after: Tensor) -> float:
    """Return the mean length of the change relative to the mean length of the values before; 0 where nothing changes.

    Args:
        before: [channel, ...].
        after: [channel, ...].

    >>> relative_error(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.5, 3.5]]))
    0.25
    """
    change, length = _length(after - before), _length(before)
    if not change.numel():
        return nan
    mean, scale = float(change.mean()), float(length.mean())
    return mean / scale if scale else 0.0 if not mean else nan


def scale_invariant_error(before: Tensor, after: Tensor) -> float:
    """Return the standard deviation of the log ratio of two positive maps (Eigen et al. 2014): 0 if they are proportional.

    NaN where a value is not positive.

    >>> scale_invariant_error(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    0.0
    """
    if not before.numel() or float(before.min()) <= 0 or float(after.min()) <= 0:
        return nan
    ratio = after.double().log() - before.double().log()
    spread = float(ratio.square().mean() - ratio.mean().square())
    return max(spread, 0.0) ** 0.5 if spread > torch.finfo(torch.float32).eps ** 2 else 0.0


def is_one_value_map(output: Any, count: int, size: tuple[int, int]) -> bool:
    """Return whether an output holds one real number per pixel, as of depth or of a mask, in the input's aspect."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim not in (3, 4) or len(output) != count:
        return False
    height, width = output.shape[-2:]
    alike = abs(height / width - size[0] / size[1]) <= ASPECT * size[0] / size[1]
    if output.ndim == 3:  # or tokens [image, token, channel], whose number and length have nothing to do with each other
        alike = alike and _is_multiple((height, width), size)
    return (output.ndim == 3 or output.shape[1] == 1) and min(height, width) >= LEAST_SIDE and alike


def _is_multiple(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether one size is the other, rounded up or down, times or over the same whole number along both axes."""
    small, large = (one, other) if one[0] <= other[0] else (other, one)
    for factor in {large[0] // small[0], -(-large[0] // small[0])}:
        if all(own in (there // factor, -(-there // factor)) for own, there in zip(small, large, strict=True)):
            return True
    return False


@dataclass(frozen=True)
class DenseValues(Task):
    """Values for each pixel, whose maps move along with the image.

    Attributes:
        wraps: whether images are circular.
    """

    wraps: bool = False

    def wrapping(self) -> Self:
        """Return the task for circular images: coarse maps are enlarged circularly."""
        return replace(self, wraps=True)

    @abstractmethod
    def _values(self, output: Any, count: int, size: tuple[int, int]) -> Tensor:
        """Return the maps in an output, [image, channel, height, width], of the input's size."""

    def place_back(self, output: Any, placing: Placing) -> Tensor:
        """Return the maps, moved along."""
        return placing.maps_back(self._values(output, len(placing.corners), placing.size))

    def average(self, outputs: Iterable[tuple[Any, Placing]]) -> Tensor:
        """Return the mean of the values of each pixel, moved back."""
        return mean_map((self._values(raw, len(place.corners), place.size), place) for raw, place in outputs)

    def no_mean(self) -> str:
        """Return nothing: there is a mean."""
        return ""


@dataclass(frozen=True)
class Depth(DenseValues):
    """A value for each pixel, [image, 1, height, width] or [image, height, width], as of depth, disparity or density.

    Maps of another size than the input are enlarged bilinearly. Ground truth that is NaN, or not above 0, is unknown.

    Attributes:
        kept: largest relative error at which a map counts as kept.
    """

    moves: ClassVar[bool | None] = True
    name: str = "depth"
    measures: tuple[str, ...] = ("depth_error", "depth_change", "depth_shape_error")
    truth_measures: tuple[str, ...] = ("truth_depth_error", "truth_depth_shape_error")
    kept: float = 0.05

    def shows(self, output: Any, count: int, size: tuple[int, int]) -> bool:
        """Return whether the output names a depth, or is a map of one value per pixel that is no logit, probability or class."""
        if any(isinstance(getattr(output, name, None), Tensor) for name in DEPTH[:1]):
            return True
        if isinstance(output, Mapping) and isinstance(output.get("depth"), Tensor):
            return True
        if not is_one_value_map(output, count, size):
            return False
        whole = bool((output == output.round()).all())
        return float(output.min()) >= 0 and float(output.max()) > 1 and not whole

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Tensor]:
        """Return each image's map, [1, height, width]."""
        return list(finite_rows(self._values(output, count, size)))

    def _values(self, output: Any, count: int, size: tuple[int, int]) -> Tensor:
        found = select_output(output, None, DEPTH)
        return _maps(found[:, None] if found.ndim == 3 else found, count, size, channels=1, task=self)

    def compare(self, before: Tensor, after: Tensor, view: View, truth: Tensor | None) -> dict[str, float]:
        """Return relative, absolute and scale-invariant errors of the map that is moved back."""
        one, other = aligned(before, after, view)
        found = {
            "depth_error": relative_error(one, other),
            "depth_change": float((one - other).abs().mean()) if one.numel() else nan,
            "depth_shape_error": scale_invariant_error(one, other),
        }
        if truth is not None:
            known, other = aligned(truth, after, view)
            counted = known > 0  # false for NaN
            right = known[counted][None], other[counted][None]
            found |= {"truth_depth_error": relative_error(*right), "truth_depth_shape_error": scale_invariant_error(*right)}
        return found

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Tensor:
        """Return depths of pixels as [1, height, width]."""
        found = torch.as_tensor(truth)
        if tuple(found.shape[-2:]) != size or found.numel() != size[0] * size[1]:
            raise InputError(
                f"`truth` of task 'depth' must be [{size[0]}, {size[1]}] for each image, got shape {tuple(found.shape)}.",
                "Give depths of the size of the model's input.",
            )
        return found.float().reshape(1, *size)

    def open_truth(self, path: Path, names: Sequence[str], placement: Placement) -> MapFiles:
        """Return the depth maps in a folder."""
        return MapFiles.open(path, names, placement, lambda values: torch.from_numpy(values.astype(np.float32)))

    def draw(self, picture: Tensor, answer: Tensor, view: View) -> Tensor:
        """Draw the map over the picture, dark where its value is small."""
        return blended(picture, heat(answer[0], view.references[0][0]), view)

    def words(self, share: str, value: str, moved: str) -> str:
        """Return the relative error in a sentence."""
        return f"The depth changes by {share} of its mean when images move {moved}."


@dataclass(frozen=True)
class Flow(DenseValues):
    """A vector for each pixel, [image, 2, height, width] in pixels, as of optical flow; maps of another size are enlarged.

    Attributes:
        kept: largest mean distance of vectors, pixels, at which a map counts as kept.
    """

    moves: ClassVar[bool | None] = True
    name: str = "flow"
    measures: tuple[str, ...] = ("endpoint_error", "flow_error")
    truth_measures: tuple[str, ...] = ("truth_endpoint_error",)
    kept: float = 1.0

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Tensor]:
        """Return each image's map, [2, height, width]."""
        return list(finite_rows(self._values(output, count, size)))

    def _values(self, output: Any, count: int, size: tuple[int, int]) -> Tensor:
        return _maps(select_output(_refined(output), None, FLOW), count, size, channels=2, task=self)

    def compare(self, before: Tensor, after: Tensor, view: View, truth: Tensor | None) -> dict[str, float]:
        """Return the mean distance of vectors, and the same relative to their mean length."""
        one, other = aligned(before, after, view)
        found = {"endpoint_error": _distance(one, other), "flow_error": relative_error(one, other)}
        if truth is not None:
            known, other = aligned(truth, after, view)
            counted = known.isfinite().all(dim=0)
            found["truth_endpoint_error"] = _distance(known[:, counted], other[:, counted])
        return found

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Tensor:
        """Return vectors of pixels as [2, height, width]; NaN is unknown."""
        found = torch.as_tensor(truth)
        if tuple(found.shape) != (2, *size):
            raise InputError(
                f"`truth` of task 'flow' must be [2, {size[0]}, {size[1]}] for each image, got shape {tuple(found.shape)}.",
                "Give vectors for the pixels of the model's input.",
            )
        return found.float()

    def open_truth(self, path: Path, names: Sequence[str], placement: Placement) -> Truth:
        """Raise InputError: vectors of files are not placed."""
        raise InputError("Ground truth of task 'flow' is not read from files.", "Give it from Python: `audit(..., truth=flows)`.")

    def draw(self, picture: Tensor, answer: Tensor, view: View) -> Tensor:
        """Draw the length of the vectors over the picture."""
        return blended(picture, heat(_length(answer), _length(view.references[0])), view)

    def words(self, share: str, value: str, moved: str) -> str:
        """Return the endpoint error in a sentence."""
        return f"The flow changes by {value} pixels when images move {moved}."


def _refined(output: Any) -> Any:
    """Return the last of several refinements of a flow, as RAFT returns them; other outputs as they are."""
    if isinstance(output, Mapping):
        output = next((output[name] for name in FLOW if isinstance(output.get(name), list | tuple)), output)
    several = isinstance(output, list | tuple) and len(output) > 0
    flows = several and all(isinstance(each, Tensor) and each.ndim == 4 and each.shape[1] == 2 for each in output)
    return output[-1] if flows else output


def _length(vectors: Tensor) -> Tensor:
    """Return the length of vectors [channel, ...]."""
    return vectors[0].abs() if len(vectors) == 1 else vectors.square().sum(dim=0).sqrt()


def _distance(one: Tensor, other: Tensor) -> float:
    return float(_length(one - other).mean()) if one.numel() else nan


def _maps(found: Tensor, count: int, size: tuple[int, int], *, channels: int, task: DenseValues) -> Tensor:
    """Return each image's map, of the input's size, [image, channel, height, width]."""
    if found.ndim != 4 or len(found) != count or found.shape[1] != channels:
        raise InputError(
            f"task {task.name!r} needs [image, {channels}, height, width] for {number_of(count, 'image')}, "
            f"got shape {tuple(found.shape)}.",
            "Choose another --task or `output`.",
        )
    return of_size(found.float(), size, wraps=task.wraps)
