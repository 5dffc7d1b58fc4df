"""Read how images are prepared for a model from what its library says: size, resize, crop and normalisation.

A library states it in one of three forms: timm's ``pretrained_cfg``, the transforms of torchvision's weights, and the
``preprocessor_config.json`` of a Hugging Face image processor. Each becomes a :class:`Preprocessing` with its source.

Where a library squashes photos to its size or adds borders, they keep their shape and the centre is cut out here instead, because
shifts need the photo around the crop; the source says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from shiftscope.datasets.preprocessing import INTERPOLATIONS, OPTIONS, UNKNOWN, Preprocessing, check_mean
from shiftscope.errors import InputError
from shiftscope.runtime.sizes import Size, both, one_or_both

__all__ = ["PROCESSOR", "from_description", "from_processor", "from_timm", "from_torchvision", "of_model", "overridden"]

TIMM, TORCHVISION, PROCESSOR, FACTORY = (
    "timm's pretrained_cfg",
    "torchvision's weights",
    "preprocessor_config.json",
    "the factory",
)
#: Pillow's numbers for the ways to scale an image.
PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
#: A ConvNeXt processor crops photos below this size, and squashes larger ones.
CONVNEXT_WARPS_FROM = 384
#: A LeViT processor scales the shorter side to this times its ``size``.
LEVIT_RESIZE = 256 / 224
#: A factor of pixels that differs from 1 by less does not change them.
ROUNDING = 1e-6


def from_timm(config: Mapping[str, Any], *, source: str = TIMM) -> Preprocessing:
    """Read timm's description of a model's input.

    Args:
        config: ``model.pretrained_cfg``, or what ``timm.data.resolve_model_data_config`` returns.
        source: where it comes from, in words.

    >>> cfg = {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    >>> from_timm(cfg).shorter_side()
    248
    """
    mode = config.get("crop_mode") or "center"
    return Preprocessing(
        size=_size(config.get("input_size")),
        mean=_floats(config.get("mean")),
        std=_floats(config.get("std")),
        crop=config.get("crop_pct"),
        interpolation=config.get("interpolation") or None,
        source=source if mode == "center" else f"{source}, with its centre crop for {mode!r}",
    )


def from_torchvision(transforms: Any, *, source: str = TORCHVISION) -> Preprocessing:
    """Read the transforms of torchvision's weights.

    Args:
        transforms: ``weights.transforms()``, an object with some of ``crop_size``, ``resize_size``, ``mean``, ``std`` and
            ``interpolation``.
        source: where it comes from, in words.
    """
    interpolation, resized = getattr(transforms, "interpolation", None), _size(getattr(transforms, "resize_size", None))
    return Preprocessing(
        size=_size(getattr(transforms, "crop_size", None)),
        mean=_floats(getattr(transforms, "mean", None)),
        std=_floats(getattr(transforms, "std", None)),
        resize=None if resized is None else min(both(resized)),
        interpolation=getattr(interpolation, "value", interpolation),
        source=source,
    )


def from_processor(config: Mapping[str, Any], *, size: Size | None = None, source: str = PROCESSOR) -> Preprocessing:
    """Read the configuration of a Hugging Face image processor.

    Its rescaling (``rescale_factor``, ``rescale_offset``) is folded into mean and deviation, because images here are in [0, 1].

    Args:
        config: the content of ``preprocessor_config.json``.
        size: of the model's input, pixels, where the processor does not fix it.
        source: where it comes from, in words.

    >>> config = {"do_normalize": True, "image_mean": [0.5], "image_std": [0.5], "size": {"height": 224, "width": 224}}
    >>> from_processor(config).size
    224
    """
    given = _processor_size(config.get("size")) if config.get("do_resize", True) else None
    cropped = _size(config.get("crop_size")) if config.get("do_center_crop") else None
    mean, std = _folded(config)
    target, resize = cropped or given or size, None if given is None else min(both(given))
    if config.get("crop_pct") and resize is not None and resize < CONVNEXT_WARPS_FROM:
        target, resize = given, int(resize / config["crop_pct"])
    if _is_processor(config, "Levit") and resize is not None:
        resize = int(LEVIT_RESIZE * resize)
    squashed = cropped is None and target is not None and resize == min(both(target))
    return Preprocessing(
        size=target,
        mean=mean,
        std=std,
        resize=resize,
        interpolation=PILLOW.get(config.get("resample", -1)),
        source=f"{source}, with the centre cut out where it squashes" if squashed else source,
    )


def from_description(given: Any) -> Preprocessing | None:
    """Read the preprocessing that a factory returns beside its model; None if it is none of the known forms.

    Args:
        given: a :class:`Preprocessing`; a mapping with names of timm (``input_size``, ``crop_pct``), of an image processor
            (``image_mean``) or of :class:`Preprocessing`; the transforms of torchvision's weights; or an image processor.

    Raises:
        InputError: mean, deviation or size are no such numbers, or there is no such interpolation.
    """
    if isinstance(given, Preprocessing):
        return given if given.source != UNKNOWN else replace(given, source=FACTORY)
    if hasattr(given, "image_mean") and hasattr(given, "to_dict"):
        given = given.to_dict()
    if not isinstance(given, Mapping):
        known = hasattr(given, "mean") and hasattr(given, "std")
        return from_torchvision(given, source=FACTORY) if known else None
    if "image_mean" in given or "do_normalize" in given:
        return from_processor(given, source=FACTORY)
    if "input_size" in given or "crop_pct" in given:
        return from_timm(given, source=FACTORY)
    names = ("size", "mean", "std", "resize", "crop", "interpolation")
    if not set(given) <= set(names):
        return None
    numbers = {name: _number_of(name, given[name]) for name in ("size", "mean", "std") if given.get(name) is not None}
    check_mean(numbers.get("mean"))
    if given.get("interpolation") not in (None, *INTERPOLATIONS):
        raise InputError(
            f"the factory's `interpolation` must be one of {', '.join(INTERPOLATIONS)}, got {given['interpolation']!r}.",
            "Correct what it returns.",
        )
    return Preprocessing(**{**{name: given[name] for name in names if name in given}, **numbers}, source=FACTORY)


def _number_of(name: str, given: Any) -> Any:
    """Return a size in pixels, or one value per channel, that a factory gives in any form."""
    try:
        if name == "size":
            size = _size(given)
            if size is None or min(both(size)) < 1:
                raise ValueError
            return size
        return tuple(map(float, given)) if isinstance(given, Iterable) else (float(given),)
    except (TypeError, ValueError) as error:
        rule = "one length, or a height and a width, of 1 pixel or more" if name == "size" else "one number per channel"
        raise InputError(f"the factory's `{name}` must be {rule}, got {given!r}.", "Correct what it returns.") from error


def of_model(model: nn.Module) -> Preprocessing:
    """Return the preprocessing that a model itself states, as timm models do; unknown for others.

    A timm model that is only part of a model is not read, because the rest may normalise by itself; the source names it.
    """
    config = _timm_config(model)
    if config is not None:
        return _for_channels(from_timm(config), model)
    inner = next((name for name, part in model.named_modules() if name and _timm_config(part) is not None), None)
    return Preprocessing() if inner is None else Preprocessing(source=f"{UNKNOWN}: only its part `{inner}` is a timm model")


def overridden(
    found: Preprocessing, *, size: Size | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Preprocessing:
    """Return a preprocessing with the user's options in place of the model's; its source names them.

    Args:
        found: what the model says.
        size: of the model's input, pixels; None keeps it.
        mean: mean per channel; None keeps it.
        std: standard deviation per channel; None keeps it.
    """
    given = [name for name, value in (("size", size), ("normalisation", mean)) if value is not None]
    if not given:
        return found
    result = found if size is None else found.at(size)
    result = result if mean is None else replace(result, mean=mean, std=std)
    alone = found.source == OPTIONS or (mean is not None and found.source.startswith(UNKNOWN))
    return replace(result, source=OPTIONS if alone else f"{found.source}; {' and '.join(given)} from {OPTIONS}")


def _timm_config(model: nn.Module) -> Mapping[str, Any] | None:
    config = getattr(model, "pretrained_cfg", None)
    return config if isinstance(config, Mapping) and "mean" in config else None


def _for_channels(found: Preprocessing, model: nn.Module) -> Preprocessing:
    """Drop statistics of another number of channels than the first convolution takes."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or found.mean is None or len(found.mean) == first.in_channels:
        return found
    source = f"{found.source}, without its normalisation of {len(found.mean)} channels"
    return replace(found, mean=None, std=None, source=source)


def swaps_red_and_blue(config: Mapping[str, Any]) -> bool:
    """Return whether an image processor gives its model blue, green and red, in this order."""
    return bool(config.get("do_flip_channel_order", _is_processor(config, "MobileViT")))


def _is_processor(config: Mapping[str, Any], name: str) -> bool:
    """Return whether a configuration is of an image processor whose name begins so."""
    return str(config.get("image_processor_type", config.get("feature_extractor_type", ""))).startswith(name)


def _folded(config: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and deviation for images in [0, 1]: (255 f x + o - mean) / std = (x - (mean - o) / 255 f) / (std / 255 f)."""
    mean, std = (_floats(config.get(name)) for name in ("image_mean", "image_std"))
    factor = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255
    offset = -1.0 if config.get("rescale_offset") and config.get("do_rescale", True) else 0.0
    if not config.get("do_normalize", not _is_processor(config, "MobileViT")) or mean is None or std is None:
        if abs(factor - 1) < ROUNDING and offset == 0:
            return None, None
        channels = 3 if mean is None else len(mean)
        mean, std = (0.0,) * channels, (1.0,) * channels
    twice = std if config.get("include_top") else (1.0,) * len(std)  # EfficientNet's divides once more
    return (
        tuple((value - offset) / factor for value in mean),
        tuple(value * again / factor for value, again in zip(std, twice, strict=True)),
    )


def _processor_size(size: Any) -> Size | None:
    """Return what a processor's ``size`` says: a number, height and width, or the shorter side."""
    return size.get("shortest_edge") or _size(size) if isinstance(size, Mapping) else _size(size)


def _size(size: Any) -> Size | None:
    """Return a size that is given as a number, as (..., height, width) or by name; None if either side is not known."""
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, list | tuple):
        sides = [None if side is None else int(side) for side in size[-2:]]
        if None in sides or not sides:
            return None
        return one_or_both([side for side in (sides * 2)[:2] if side is not None])
    return None if size is None else int(size)


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))
