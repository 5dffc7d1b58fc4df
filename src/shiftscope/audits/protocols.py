"""The literature's ways of measuring shift stability, each a function that gives a named value.

What all of ours do differently from most public code: every image draws its own shifts (not every batch), from a seed; a mean
over images is one mean (not a mean of means of batches, the last of them short); ranges of shifts are symmetric; and every number
has an interval. Each docstring tells what else differs.

Crops are taken from images larger than the model's input. Where they are no larger, the margin is the canvas's colour.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from shiftscope.audits.values import Protocol
from shiftscope.errors import InputError

__all__ = [
    "GROUPS",
    "PUBLISHED",
    "azulay2018",
    "chaman2021_circular",
    "chaman2021_zero",
    "every_shift",
    "gruver2023",
    "hendrycks2019",
    "michaeli2023",
    "mouton2020",
    "myburgh2021",
    "named",
    "rojas2022_circular",
    "rojas2022_crop",
    "segmentation_circular",
    "segmentation_zero",
    "tmeasures",
    "zhang2019",
    "zhang2019_diagonal",
]

#: A derivative's step, pixels: small beside a pixel, large beside the rounding of single precision.
STEP = 1 / 16
#: By default no shift exceeds this part of the model's input.
LARGEST_PART = 4


def mouton2020(max_shift: int = 8, *, seed: int = 0) -> Protocol:
    """Mouton, Myburgh and Davel 2020: each image shifted once, uniformly on [-m, m]^2, zero fill on a padded canvas.

    Measures: the mean cosine of the outputs before and after (``mcs``) and how often the top class changes. The source leaves m
    open; 8 pixels lands in its range. Ours draws from a fixed seed; on images without a margin content leaves the canvas.

    >>> mouton2020().draw(5).shape
    torch.Size([5, 1, 2])
    """
    return Protocol("mouton2020", max_shift, "zero", seed, ("mcs", "top1_change"))


def myburgh2021(max_shift: int = 8) -> Protocol:
    """Myburgh, Mouton and Davel 2021: the sensitivity map, the mean cosine of outputs at every shift of a grid, zero fill.

    Ours adds intervals; nothing is drawn.
    """
    return Protocol("myburgh2021", max_shift, "zero", 0, drawn=0, surveyed=(("mcs", "all"),))


def every_shift(max_shift: int = 8) -> Protocol:
    """Ours, not published: all measures of :mod:`shiftscope.surveys` at every shift of a grid, zero fill; nothing is drawn."""
    names = ("mcs", "top1_change", "probability_change", "pair_consistency", "all_agree", "worst_case")
    return Protocol("every-shift", max_shift, "zero", 0, drawn=0, surveyed=tuple((name, "all") for name in names))


def zhang2019(max_shift: int = 16, *, seed: int = 0, passes: int = 1) -> Protocol:
    """Zhang 2019 ("Making convolutional networks shift-invariant again"): do two crops of an image agree on its class?

    The original crops 224 from 256 at two offsets of {0..31}^2, one pair a batch, in five passes over the data. Ours: a pair per
    image and pass, offsets {0..2 m}^2 around the centre (m = 16), one pass by default, which the interval allows for.
    """
    if passes < 1:
        raise InputError(f"`passes` must be 1 or more, got {passes}.")
    score = "all_agree" if passes == 1 else "pairs_agree"
    return Protocol("zhang2019", max_shift, "zero", seed, (score,), drawn=2 * passes, around="crop")


def zhang2019_diagonal(max_shift: int = 16) -> Protocol:
    """Zhang 2019, along a diagonal: crops at (k, k), k = 0..2 m, from corner to corner of the margin; m = 16, so 33 crops.

    Measures: whether all agree, how often neighbours differ, accuracy and the true class's probability, means along the path. The
    original gives the last two, in percent.
    """
    path = tuple((max_shift - step, max_shift - step) for step in range(2 * max_shift + 1))
    scores = ("all_agree", "neighbour_change", "accuracy", "true_probability")
    return Protocol("zhang2019-diagonal", max_shift, "zero", 0, scores, drawn=0, path=path, around="crop")


def chaman2021_circular(max_shift: int = 3, *, seed: int = 0) -> Protocol:
    """Chaman and Dokmanic 2021: do two circular shifts of an image agree on its class?

    The original draws one pair a batch, each from {-3..2}^2 on CIFAR-10 ({-32..31}^2 on ImageNet: ``max_shift=32``), and takes
    the unweighted mean of batch means. Ours: a pair per image, {-m..m}^2, one mean.
    """
    return Protocol("chaman2021-circular", max_shift, "circular", seed, ("all_agree",), drawn=2)


def chaman2021_zero(max_shift: int = 3, *, seed: int = 0) -> Protocol:
    """Chaman and Dokmanic 2021, their random crops: as :func:`chaman2021_circular`, but the mean colour comes in at the border.

    The original pads with zeros after normalisation, which is the mean colour before it; ours fills with the ``mean`` that the
    audit is told, else with the canvas's colour.
    """
    return Protocol("chaman2021-zero", max_shift, "zero", seed, ("all_agree",), drawn=2, around="mean")


def rojas2022_crop(max_shift: int = 16, *, seed: int = 0, samples: int = 2) -> Protocol:
    """Rojas-Gomez et al. 2022 (learned polyphase sampling): do N crops of an image all agree on its class?

    The original crops 224 from 256 at offsets {0..31}^2, N = 2 by default. Ours: offsets {0..2 m}^2, an image's own.
    """
    return Protocol("rojas2022-crop", max_shift, "zero", seed, ("all_agree",), drawn=_samples(samples), around="crop")


def rojas2022_circular(max_shift: int = 32, *, seed: int = 0, samples: int = 2) -> Protocol:
    """Rojas-Gomez et al. 2022: do N circular shifts of an image all agree on its class?

    The original draws from {-32..31}^2, N = 2 by default. Ours: {-m..m}^2, an image's own.
    """
    return Protocol("rojas2022-circular", max_shift, "circular", seed, ("all_agree",), drawn=_samples(samples))


def michaeli2023(max_shift: int = 3, *, seed: int = 0) -> Protocol:
    """Michaeli et al. 2023 (alias-free networks): shifted against unshifted, circular, by whole and by half pixels.

    Measures: whether the top class stays and how much the probability of the unshifted top class changes, for one whole shift of
    an image and for the same plus (1/2, 1/2) pixel (by Fourier transform); and whether the image is right at every circular
    shift, and at every one of each ring, the largest of dy, dx being r.

    The original draws a shift a batch from {1..m - 1}^2 and a second one for half pixels, and its worst case takes down and
    right shifts only. Ours is symmetric; m = 3 instead of 32, because every shift of a grid is run.
    """
    scores = tuple(f"{score}_{step}" for step in ("whole", "half") for score in ("consistency", "probability_change"))
    surveyed = (("worst_case", "all"), ("worst_case", "radius"))
    return Protocol("michaeli2023", max_shift, "circular", seed, scores, offsets=((0, 0), (0.5, 0.5)), surveyed=surveyed)


def azulay2018(max_shift: int = 4) -> Protocol:
    """Azulay and Weiss 2018: pairs one pixel apart along the diagonal, at 2 m consecutive positions (m = 4: 8 pairs), as crops.

    Measures: how often the top class differs between the two of a pair, and the mean absolute change of the probability of the
    first one's top class. The original takes means over pairs; so does ours, but its interval is over images, because an image's
    pairs are not independent. The original enlarges and embeds images in several ways; ours crops.
    """
    path = tuple((step, step) for step in range(-max_shift, max_shift + 1))
    scores = ("neighbour_change", "neighbour_probability_change")
    return Protocol("azulay2018", max_shift, "zero", 0, scores, drawn=0, path=path, around="crop")


def hendrycks2019(max_shift: int = 15) -> Protocol:
    """Hendrycks and Dietterich 2019 (ImageNet-P, translation): how often the class flips from frame to frame of a slow pan.

    The frames are crops one pixel apart along x, 2 m + 1 of them (m = 15: 31). The flip probability is a mean over the neighbours
    of a sequence, then over images. The original stores its frames as compressed video; ours are exact.
    """
    path = tuple((0, step) for step in range(-max_shift, max_shift + 1))
    return Protocol("hendrycks2019", max_shift, "zero", 0, ("neighbour_change",), drawn=0, path=path, around="crop")


def gruver2023() -> Protocol:
    """Gruver et al. 2023 (the Lie derivative of learned equivariance): how fast the softmax changes as the image begins to move.

    Measures, per axis: the mean over classes of the squared and of the absolute derivative of the probabilities with respect to
    a translation, at no translation; reflection at the border, bilinear interpolation, a unit being (size - 1) / 2 pixels.
    The original differentiates automatically; ours takes the difference over 1/16 of a pixel, so that any callable can be asked.
    The interpolation has a kink at no translation: both take the side on which the content moves up and left.
    """
    scores = tuple(f"{power}_derivative_{axis}" for axis in ("y", "x") for power in ("squared", "absolute"))
    return Protocol("gruver2023", STEP, "zero", 0, scores, drawn=0, path=((-STEP, 0.0), (0.0, -STEP)), around="reflect")


def tmeasures(max_shift: int | float = 4) -> Protocol:
    """Quiroga et al. (transformational measures): a unit's spread over shifts beside its spread over images.

    The normalised variance of each unit is E_x[std_T a] / E_T[std_x a], with 0 / 0 = 1: 0 where shifts change nothing, about 1
    where a shift changes the unit as much as another image does. Shifts: the nine of {-m, 0, m}^2, bilinear, the border
    repeated; by default an audit takes a tenth of the input's size as m. The original reports a value for every unit of every
    layer; ours those of the output, and their mean.
    """
    path = tuple((float(dy), float(dx)) for dy in (-max_shift, 0, max_shift) for dx in (-max_shift, 0, max_shift))
    return Protocol("tmeasures", max_shift, "zero", 0, ("normalised_variance",), drawn=0, path=path, around="replicate")


def segmentation_circular(max_shift: int = 32, *, seed: int = 0, samples: int = 5) -> Protocol:
    """Mean average segmentation shift consistency (mASSC, Rojas-Gomez et al. 2022), circular: the map is rolled back.

    The share of pixels whose top class is that of the unshifted image, over five shifts of {-m..m}^2. Ours draws per image.
    """
    return Protocol("segmentation-circular", max_shift, "circular", seed, ("mASSC",), drawn=_samples(samples))


def segmentation_zero(max_shift: int = 32, *, seed: int = 0, samples: int = 5) -> Protocol:
    """MASSC with zero fill: as :func:`segmentation_circular`, but counted on what both maps see of the image."""
    return Protocol("segmentation-zero", max_shift, "zero", seed, ("mASSC",), drawn=_samples(samples))


#: By name, what makes each.
PUBLISHED: dict[str, Callable[..., Protocol]] = {
    "mouton2020": mouton2020,
    "myburgh2021": myburgh2021,
    "every-shift": every_shift,
    "zhang2019": zhang2019,
    "zhang2019-diagonal": zhang2019_diagonal,
    "chaman2021-circular": chaman2021_circular,
    "chaman2021-zero": chaman2021_zero,
    "rojas2022-crop": rojas2022_crop,
    "rojas2022-circular": rojas2022_circular,
    "michaeli2023": michaeli2023,
    "azulay2018": azulay2018,
    "hendrycks2019": hendrycks2019,
    "gruver2023": gruver2023,
    "tmeasures": tmeasures,
    "segmentation-circular": segmentation_circular,
    "segmentation-zero": segmentation_zero,
}
#: Names of several.
GROUPS = {
    "rojas2022": ("rojas2022-crop", "rojas2022-circular"),
    "segmentation": ("segmentation-circular", "segmentation-zero"),
}


def named(
    name: str, *, max_shift: int | None = None, size: int | None = None, margin: int = 0, seed: int = 0
) -> tuple[Protocol, ...]:
    """The protocols of a name.

    Args:
        name: of a protocol or a group of them.
        max_shift: the largest shift, pixels, instead of the protocol's own.
        size: of the model's input, pixels; by default no shift exceeds a quarter of it.
        margin: around it in larger images, pixels; by default no crop exceeds it. 0 where there is none: such crops are cut from
            the canvas's colour.
        seed: of what is drawn.

    Raises:
        InputError: no such protocol, or a negative shift.

    >>> [protocol.max_shift for protocol in named("rojas2022", size=32)]
    [8, 8]
    """
    if max_shift is not None and max_shift < 1:
        raise InputError(f"`max_shift` must be 1 or more pixels, got {max_shift}.")
    if name not in PUBLISHED and name not in GROUPS:
        raise InputError(f"there is no protocol {name!r}. There are {', '.join([*PUBLISHED, *GROUPS])}.")
    found = []
    for each in GROUPS.get(name, (name,)):
        protocol = _fitted(PUBLISHED[each], max_shift, size, seed)
        if protocol.border == "crop" and max_shift is None and 0 < margin < protocol.max_shift:
            protocol = _fitted(PUBLISHED[each], margin, size, seed)
        found.append(protocol)
    return tuple(found)


def _fitted(make: Callable[..., Protocol], max_shift: int | None, size: int | None, seed: int) -> Protocol:
    """The protocol with these settings, as far as it has them."""
    known = signature(make).parameters
    settings: dict[str, int | float] = {"seed": seed} if "seed" in known else {}
    if "max_shift" in known:
        default = known["max_shift"].default
        largest = default if size is None else size / 10 if make is tmeasures else max(1, min(default, size // LARGEST_PART))
        settings["max_shift"] = largest if max_shift is None else max_shift
    return make(**settings)


def _samples(samples: int) -> int:
    if samples < 1:
        raise InputError(f"`samples` must be 1 or more, got {samples}.")
    return samples
