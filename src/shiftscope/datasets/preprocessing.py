"""How images are prepared for a model: input size, resize, crop and normalisation, and where these come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shiftscope.errors import InputError
from shiftscope.runtime.sizes import Size, both

__all__ = ["INTERPOLATION", "INTERPOLATIONS", "OPTIONS", "UNKNOWN", "Preprocessing", "check_mean"]

#: Default interpolation of photos, and all of them.
INTERPOLATION, INTERPOLATIONS = "bilinear", ("bilinear", "bicubic", "lanczos", "hamming", "box", "nearest")
#: The source of an unknown preprocessing, and of one that the user gave.
UNKNOWN, OPTIONS = "unknown", "the options"


def check_mean(mean: tuple[float, ...] | None) -> None:
    """Raise InputError for a mean that images in [0, 1] cannot have: one of images from 0 to 255."""
    if mean is not None and max(mean) > 1:
        raise InputError(
            f"`mean` must be of images in [0, 1], got {', '.join(f'{each:g}' for each in mean)}.",
            "Divide the mean and the standard deviation of images from 0 to 255 by 255.",
        )


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a model.

    Attributes:
        size: of the model's input: one length for both sides, or (height, width), pixels; None if unknown.
        mean: mean per channel, subtracted from images in [0, 1]; None if images are not normalised, or it is unknown.
        std: standard deviation per channel, by which images are then divided.
        resize: the shorter side to which photos are scaled before the centre of ``size`` is cut out, pixels; None if unknown. If
            ``size`` is not square, photos are scaled to cover a rectangle of its shape with this shorter side.
        crop: the shorter side of ``size`` over that one, in (0, 1]; given instead of ``resize``.
        interpolation: how photos are scaled: ``bilinear``, ``bicubic``, ``lanczos``, ``nearest``; None if unknown.
        source: where these settings come from: "timm's pretrained_cfg", "torchvision's weights", "preprocessor_config.json", "the
            options", "the file", "the study", "unknown".
    """

    size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    crop: float | None = None
    interpolation: str | None = None
    source: str = UNKNOWN

    def shorter_side(self) -> int | None:
        """Return the shorter side of photos before the crop, pixels; None if it or the input's size is unknown.

        >>> Preprocessing(size=224, crop=0.875).shorter_side(), Preprocessing(size=224, resize=232).shorter_side()
        (256, 232)
        """
        if self.size is None or self.resize is not None:
            return self.resize
        side = min(both(self.size))
        return None if self.crop is None else max(side, int(side / self.crop))

    def at(self, size: Size) -> Preprocessing:
        """Return the preprocessing for another input size; the shorter side before the crop scales along.

        Args:
            size: of the input: one length for both sides, or (height, width), pixels.

        >>> Preprocessing(size=224, resize=256).at(112).shorter_side()
        128
        """
        before = self.shorter_side()
        if self.size is None or self.size == size or before is None:
            return replace(self, size=size)
        side = min(both(size))
        return replace(self, size=size, resize=max(side, round(before * side / min(both(self.size)))), crop=None)
