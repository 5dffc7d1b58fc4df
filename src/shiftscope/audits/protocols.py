"""The literature's protocols for measuring stability under shifts, each a function that returns a :class:`Protocol`.

Ours differ from most public code in four ways: each image draws its own shifts (not each batch), from a seed; a mean over images
is one mean (not a mean of batch means, where the last batch is smaller); ranges of shifts are symmetric; and every number has an
interval. Each function's docstring says what else differs from its source.

The draw is part of a protocol: a seed gives every network the same shifts, so that networks differ by themselves and not by their
draws. An image's shifts depend only on the seed and on its index in the data, so that images can be measured in any blocks.

Crops are cut from images larger than the model's input. Where images are no larger, the canvas's colour surrounds them.

Arguments mean the same in every function: ``max_shift`` is the largest shift along each axis, pixels, called m in the docstrings;
``seed`` draws the shifts; ``samples`` is the number of shifts drawn for each image, and ``passes`` that of pairs of shifts. Both
must be 1 or more; otherwise InputError is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from math import ceil, isfinite
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from shiftscope.errors import InputError, check_whole, shortened
from shiftscope.shifts import Mode, sample

__all__ = [
    "GROUPS",
    "PROTOCOLS",
    "Border",
    "Protocol",
    "azulay2018",
    "chaman2021_circular",
    "chaman2021_zero",
    "every_shift",
    "find_protocols",
    "gruver2023",
    "hendrycks2019",
    "michaeli2023",
    "mouton2020",
    "myburgh2021",
    "pan",
    "rojas2022_circular",
    "rojas2022_crop",
    "segmentation_circular",
    "segmentation_zero",
    "tmeasures",
    "zhang2019",
    "zhang2019_diagonal",
]

#: What fills the border: the canvas's colour (``zero``), the mean colour, the content that left on the opposite side, the
#: surroundings in a larger image (``crop``), the mirrored image, or its repeated edge.
Border = Literal["zero", "mean", "circular", "crop", "reflect", "replicate"]
#: (dy, dx) in pixels.
Step = tuple[int | float, int | float]

#: The step of a difference quotient, pixels: small beside a pixel, large beside the rounding of single precision.
DERIVATIVE_STEP = 1 / 16
#: Steps of a pan, at most.
MOST_STEPS = 1000
#: By default no shift exceeds the model's input size divided by this.
SIZE_PER_SHIFT = 4


@dataclass(frozen=True)
class Protocol:
    """A way to shift images and the measures to compute from a model's outputs.

    Attributes:
        name: the source's short name.
        max_shift: the largest shift along an axis, pixels.
        mode: how content moves, and what fills the border unless ``around`` says otherwise.
        seed: of the random shifts.
        scores: measures over an image's views, names of :data:`shiftscope.audits.scores.SCORES`.
        drawn: random shifts per image, uniform on [-max_shift, max_shift]^2; 0 if all images follow ``path``.
        offsets: (dy, dx) to add to each random shift, one view each.
        path: (dy, dx) of every image's views, if none is random.
        around: what fills the border, if ``mode`` does not say it.
        surveyed: (measure, over) of :mod:`shiftscope.surveys` at every shift up to ``max_shift``; over ``all`` shifts, or over
            ``radius``, one row per ring.

    Raises:
        InputError: ``pairs_agree`` of an odd number of views.
    """

    name: str
    max_shift: int | float
    mode: Mode
    seed: int
    scores: tuple[str, ...] = ()
    drawn: int = 1
    offsets: tuple[Step, ...] = ((0, 0),)
    path: tuple[Step, ...] = ()
    around: Literal["mean", "crop", "reflect", "replicate"] | None = None
    surveyed: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        views = self.drawn * len(self.offsets) if self.drawn and not self.path else len(self.path)
        if "pairs_agree" in self.scores and (views < 2 or views % 2):
            raise InputError(
                f"`scores` of the protocol {self.name!r} has 'pairs_agree', which needs an even number of views, got {views}.",
                "Draw an even number of shifts per image.",
            )

    @property
    def border(self) -> Border:
        """What fills the border."""
        return self.around or self.mode

    def draw(self, count: int, *, first: int = 0) -> Shaped[Tensor, "image view 2"]:
        """Return the shifts of ``count`` images, (dy, dx) in pixels; whole pixels are integers.

        Args:
            count: how many images.
            first: index of the first image in the data.

        >>> images = Protocol("x", 3, "zero", 0, drawn=2).draw(5)
        >>> torch.equal(Protocol("x", 3, "zero", 0, drawn=2).draw(2, first=3), images[3:])
        True
        """
        if self.path or not self.drawn:
            return torch.tensor(self.path).reshape(1, -1, 2).expand(count, -1, 2)
        generator = torch.Generator().manual_seed(self.seed)
        # In the order of images, so that the number of images does not change the shifts of the first ones.
        steps = sample((first + count) * self.drawn, int(self.max_shift), generator).reshape(-1, self.drawn, 2)[first:]
        if self.offsets == ((0, 0),):
            return steps
        return (steps[:, :, None] + torch.tensor(self.offsets)).reshape(count, -1, 2)


def mouton2020(max_shift: int = 8, *, seed: int = 0) -> Protocol:
    """Return Mouton, Myburgh and Davel 2020: one shift per image, uniform on [-m, m]^2, zero fill on a padded canvas.

    Measures: the mean cosine of the outputs before and after the shift (``mcs``), and how often the top class changes. The source
    does not give m; 8 pixels is within its range. On images without a margin, content leaves the canvas.

    >>> mouton2020().draw(5).shape
    torch.Size([5, 1, 2])
    """
    return Protocol("mouton2020", max_shift, "zero", seed, ("mcs", "top1_change"))


def myburgh2021(max_shift: int = 8) -> Protocol:
    """Return Myburgh, Mouton and Davel 2021: the sensitivity map, the mean cosine at every shift of a grid, zero fill.

    Ours adds intervals.
    """
    return Protocol("myburgh2021", max_shift, "zero", 0, drawn=0, surveyed=(("mcs", "all"),))


def every_shift(max_shift: int = 8) -> Protocol:
    """Return our own, unpublished protocol: all measures of :mod:`shiftscope.surveys` at every shift of a grid, zero fill."""
    names = ("mcs", "top1_change", "probability_change", "pair_consistency", "all_agree", "worst_case")
    return Protocol("every-shift", max_shift, "zero", 0, drawn=0, surveyed=tuple((name, "all") for name in names))


def zhang2019(max_shift: int = 16, *, seed: int = 0, passes: int = 1) -> Protocol:
    """Return Zhang 2019 ("Making convolutional networks shift-invariant again"): do two crops of an image agree on its class?

    The original crops 224 from 256 pixels at two offsets in {0..31}^2, one pair per batch, in five passes over the data. Ours:
    one pair per image and pass, offsets in {0..2 m}^2 around the centre (m = 16); one pass by default, with a wider interval.
    """
    if passes < 1:
        raise InputError(f"`passes` must be 1 or more, got {passes}.", "Leave it out for one pass.")
    score = "all_agree" if passes == 1 else "pairs_agree"
    return Protocol("zhang2019", max_shift, "zero", seed, (score,), drawn=2 * passes, around="crop")


def zhang2019_diagonal(max_shift: int = 16) -> Protocol:
    """Return Zhang 2019 along a diagonal: crops at (k, k), k = 0..2 m, from corner to corner of the margin; m = 16, so 33 crops.

    Measures: whether all crops agree, how often neighbours differ, accuracy, and the true class's probability, each a mean along
    the path. The original gives the last two, in percent.
    """
    path = tuple((max_shift - step, max_shift - step) for step in range(2 * max_shift + 1))
    scores = ("all_agree", "neighbour_change", "accuracy", "true_probability")
    return Protocol("zhang2019-diagonal", max_shift, "zero", 0, scores, drawn=0, path=path, around="crop")


def chaman2021_circular(max_shift: int = 3, *, seed: int = 0) -> Protocol:
    """Return Chaman and Dokmanic 2021: do two circular shifts of an image agree on its class?

    The original draws one pair per batch, each from {-3..2}^2 on CIFAR-10 ({-32..31}^2 on ImageNet: ``max_shift=32``), and takes
    the unweighted mean of batch means. Ours: one pair per image from {-m..m}^2, one mean.
    """
    return Protocol("chaman2021-circular", max_shift, "circular", seed, ("all_agree",), drawn=2)


def chaman2021_zero(max_shift: int = 3, *, seed: int = 0) -> Protocol:
    """Return Chaman and Dokmanic 2021 with random crops: :func:`chaman2021_circular`, but the mean colour fills the border.

    The original pads with zeros after normalisation, which is the mean colour before it. Ours fills with the audit's ``mean``, or
    with the canvas's colour if that is not known.
    """
    return Protocol("chaman2021-zero", max_shift, "zero", seed, ("all_agree",), drawn=2, around="mean")


def rojas2022_crop(max_shift: int = 16, *, seed: int = 0, samples: int = 2) -> Protocol:
    """Return Rojas-Gomez et al. 2022 (learned polyphase sampling): do N crops of an image all agree on its class?

    The original crops 224 from 256 pixels at offsets in {0..31}^2, N = 2 by default. Ours: offsets in {0..2 m}^2, per image.
    """
    return Protocol("rojas2022-crop", max_shift, "zero", seed, ("all_agree",), drawn=_samples(samples), around="crop")


def rojas2022_circular(max_shift: int = 32, *, seed: int = 0, samples: int = 2) -> Protocol:
    """Return Rojas-Gomez et al. 2022: do N circular shifts of an image all agree on its class?

    The original draws from {-32..31}^2, N = 2 by default. Ours: from {-m..m}^2, per image.
    """
    return Protocol("rojas2022-circular", max_shift, "circular", seed, ("all_agree",), drawn=_samples(samples))


def michaeli2023(max_shift: int = 3, *, seed: int = 0) -> Protocol:
    """Return Michaeli et al. 2023 (alias-free networks): shifted against unshifted, circular, by whole and by half pixels.

    Measures: whether the top class stays and how much the probability of the unshifted top class changes, for one whole shift per
    image and for the same shift plus (1/2, 1/2) pixel (by Fourier transform); and whether the image is classified correctly at
    every circular shift, and at every shift of each ring max(|dy|, |dx|) = r.

    The original draws one shift per batch from {1..m - 1}^2 and a second one for half pixels, and its worst case only shifts down
    and right. Ours is symmetric, so that 1 of (2 m + 1)^2 shifts is none; m = 3 instead of 32, because it runs every shift of a
    grid; of its borders (circular, crop, bilinear) ours is circular.
    """
    scores = tuple(f"{score}_{step}" for step in ("whole", "half") for score in ("consistency", "probability_change"))
    surveyed = (("worst_case", "all"), ("worst_case", "radius"))
    return Protocol("michaeli2023", max_shift, "circular", seed, scores, offsets=((0, 0), (0.5, 0.5)), surveyed=surveyed)


def azulay2018(max_shift: int = 4) -> Protocol:
    """Return Azulay and Weiss 2018: crops at 2 m + 1 positions along the diagonal, neighbours one pixel apart (m = 4: 8 pairs).

    Measures: how often the top class differs within a pair of neighbours, and the mean absolute change of the probability of the
    first one's top class. The original takes means over pairs; so does ours, but its interval is over images, because an image's
    pairs are not independent. The original enlarges and embeds images in several ways; ours crops.
    """
    path = tuple((step, step) for step in range(-max_shift, max_shift + 1))
    scores = ("neighbour_change", "neighbour_probability_change")
    return Protocol("azulay2018", max_shift, "zero", 0, scores, drawn=0, path=path, around="crop")


def hendrycks2019(max_shift: int = 15) -> Protocol:
    """Return Hendrycks and Dietterich 2019 (ImageNet-P, translation): how often the class flips between frames of a slow pan.

    The frames are 2 m + 1 crops one pixel apart along x (m = 15: 31). The flip probability is a mean over the neighbours of a
    sequence, then over images. The original stores its frames as compressed video; ours are exact.
    """
    path = tuple((0, step) for step in range(-max_shift, max_shift + 1))
    return Protocol("hendrycks2019", max_shift, "zero", 0, ("neighbour_change",), drawn=0, path=path, around="crop")


def pan(step: tuple[float, float], steps: int = 32, *, mode: Literal["zero", "crop", "circular"] = "crop") -> Protocol:
    """Return our own, unpublished protocol: a slow pan, whose frames move by the same step, such as a quarter of a pixel.

    Measures how often the top class differs between neighbouring frames, and the change of the first one's top probability; of a
    task the change of its answer. Frames between whole pixels are interpolated bilinearly, in mode ``circular`` by phases of the
    Fourier transform.

    Args:
        step: (dy, dx) from each frame to the next, pixels.
        steps: their number; the first frame is not shifted.
        mode: what comes in at the border; without a margin around the model's input, ``crop`` is ``zero``.

    Raises:
        InputError: the step is 0 or not finite, or there is none.

    >>> pan((0.25, 0.0), 4).path[-1], pan((0.25, 0.0), 4).max_shift
    ((1.0, 0.0), 1)
    """
    if not all(map(isfinite, step)) or not any(step):
        raise InputError(f"`pan` must be a step (dy, dx) in pixels other than 0, got {step}.", "Write it like 0.25,0.")
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"`steps` must be 1 to {MOST_STEPS:,}, got {steps}.", "Leave it out for 32.")
    path = tuple((float(number * step[0]), float(number * step[1])) for number in range(steps + 1))
    reach = ceil(steps * max(map(abs, step)))
    scores = ("neighbour_change", "neighbour_probability_change")
    around: Literal["crop"] | None = "crop" if mode == "crop" else None
    return Protocol("pan", reach, "circular" if mode == "circular" else "zero", 0, scores, drawn=0, path=path, around=around)


def gruver2023() -> Protocol:
    """Return Gruver et al. 2023 (the Lie derivative of learned equivariance): how fast a beginning shift changes the softmax.

    Measures, per axis: the mean over classes of the squared and of the absolute derivative of the probabilities with respect to a
    translation, at zero translation; reflection at the border, bilinear interpolation, in units of (size - 1) / 2 pixels.
    The original differentiates automatically; ours takes the difference over 1/16 pixel, so that the model can be any callable.
    The interpolation has a kink at zero: both take the side where content moves up and left.
    """
    scores = tuple(f"{power}_derivative_{axis}" for axis in ("y", "x") for power in ("squared", "absolute"))
    path = ((-DERIVATIVE_STEP, 0.0), (0.0, -DERIVATIVE_STEP))
    return Protocol("gruver2023", DERIVATIVE_STEP, "zero", 0, scores, drawn=0, path=path, around="reflect")


def tmeasures(max_shift: int | float = 4) -> Protocol:
    """Return Quiroga et al. (transformational measures): the spread of a unit over shifts relative to its spread over images.

    The normalised variance of each unit is E_x[std_T a] / E_T[std_x a], with 0 / 0 = 1: 0 where shifts change nothing, about 1
    where a shift changes the unit as much as another image does. Shifts: the nine in {-m, 0, m}^2, bilinear, with the edge
    repeated; by default an audit sets m to a tenth of the input size. The original reports every unit of every layer; ours the
    units of the output, and their mean.
    """
    path = tuple((float(dy), float(dx)) for dy in (-max_shift, 0, max_shift) for dx in (-max_shift, 0, max_shift))
    return Protocol("tmeasures", max_shift, "zero", 0, ("normalised_variance",), drawn=0, path=path, around="replicate")


def segmentation_circular(max_shift: int = 32, *, seed: int = 0, samples: int = 5) -> Protocol:
    """Return the mean average segmentation shift consistency (mASSC, Rojas-Gomez et al. 2022), circular: the map is rolled back.

    Measures the share of pixels whose top class equals that of the unshifted image, over five shifts in {-m..m}^2, per image.
    Ours adds the mean intersection over union of the classes.
    """
    return Protocol("segmentation-circular", max_shift, "circular", seed, ("mASSC", "mean_iou"), drawn=_samples(samples))


def segmentation_zero(max_shift: int = 32, *, seed: int = 0, samples: int = 5) -> Protocol:
    """Return :func:`segmentation_circular` with zero fill, over the pixels of the image that both maps see."""
    return Protocol("segmentation-zero", max_shift, "zero", seed, ("mASSC", "mean_iou"), drawn=_samples(samples))


#: The functions that make protocols, by the protocols' names.
PROTOCOLS: dict[str, Callable[..., Protocol]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        mouton2020,
        myburgh2021,
        every_shift,
        zhang2019,
        zhang2019_diagonal,
        chaman2021_circular,
        chaman2021_zero,
        rojas2022_crop,
        rojas2022_circular,
        michaeli2023,
        azulay2018,
        hendrycks2019,
        gruver2023,
        tmeasures,
        segmentation_circular,
        segmentation_zero,
    )
}
#: Names that stand for several protocols.
GROUPS = {
    "rojas2022": ("rojas2022-crop", "rojas2022-circular"),
    "segmentation": ("segmentation-circular", "segmentation-zero"),
}


def find_protocols(
    name: str, *, max_shift: int | None = None, size: int | None = None, margin: int = 0, seed: int = 0
) -> tuple[Protocol, ...]:
    """Return the protocols with a name, fitted to the model's input.

    Args:
        name: of a protocol or of a group.
        max_shift: the largest shift, pixels; by default the protocol's own.
        size: of the model's input, pixels; by default no shift exceeds a quarter of it.
        margin: around the input in larger images, pixels; by default no crop exceeds it. 0 if there is none: crops are then cut
            from the canvas's colour.
        seed: of the random shifts.

    Raises:
        InputError: there is no such protocol, or ``max_shift`` is below 1.

    >>> [protocol.max_shift for protocol in find_protocols("rojas2022", size=32)]
    [8, 8]
    """
    check_whole(seed, "seed")
    if max_shift is not None:
        check_whole(max_shift, "max_shift")
    if max_shift is not None and max_shift < 1:
        raise InputError(f"`max_shift` must be 1 or more pixels, got {max_shift}.", "Leave it out for each protocol's own.")
    if name not in PROTOCOLS and name not in GROUPS:
        grouped = {each for group in GROUPS.values() for each in group}
        known = [*(each for each in PROTOCOLS if each not in grouped), *GROUPS]
        raise InputError(f"there is no protocol {shortened(name, 40)!r}.", f"Choose from {', '.join(known)}.")
    found = []
    for each in GROUPS.get(name, (name,)):
        protocol = _fitted(PROTOCOLS[each], max_shift, size, seed)
        if protocol.border == "crop" and max_shift is None and 0 < margin < protocol.max_shift:
            protocol = _fitted(PROTOCOLS[each], margin, size, seed)
        found.append(protocol)
    return tuple(found)


def _fitted(make: Callable[..., Protocol], max_shift: int | None, size: int | None, seed: int) -> Protocol:
    """Call a function of this module with those of the settings that it takes."""
    parameters = signature(make).parameters
    settings: dict[str, int | float] = {"seed": seed} if "seed" in parameters else {}
    if "max_shift" in parameters:
        settings["max_shift"] = _default_shift(make, size) if max_shift is None else max_shift
    return make(**settings)


def _default_shift(make: Callable[..., Protocol], size: int | None) -> int | float:
    default: int = signature(make).parameters["max_shift"].default
    if size is None:
        return default
    return size / 10 if make is tmeasures else max(1, min(default, size // SIZE_PER_SHIFT))


def _samples(samples: int) -> int:
    if samples < 1:
        raise InputError(f"`samples` must be 1 or more, got {samples}.", "Leave it out for the source's own.")
    return samples
