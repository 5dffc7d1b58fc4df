"""The sections of a study's file, and the paths that name their settings, such as ``network.factor``."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, field_validator

from shiftscope.datasets.dataset import DataSpec
from shiftscope.models.family import NetworkSpec
from shiftscope.runtime.seeds import evenly_spread
from shiftscope.runtime.settings import Count, Seed, Settings, Spec, described
from shiftscope.training.recipe import Recipe

__all__ = ["DERIVED", "LONGEST_NAME", "SECTIONS", "VARIANT", "MeasureSpec", "check_path", "flatten"]

#: The name under which a cell's settings hold its variant.
VARIANT = "variant"
#: The most characters of a name that is compared with known ones.
LONGEST_NAME = 100
#: How deep tables may lie in tables.
DEEPEST = 20
#: Settings of the network that follow from the data.
DERIVED = ("input_size", "input_channels", "classes")


class MeasureSpec(Settings):
    """How trained networks are measured.

    Attributes:
        protocol: the published protocol; see :mod:`shiftscope.audits.protocols`.
        max_shift: the largest shift along each axis, in pixels; the canvas must leave a margin of this size around the image.
        seed: of the random shifts, one for each test image.
        every_shift_images: number of test images, evenly spread, that see every shift; by default, or as "all", all. Networks
            whose convolutions pad take 289 passes an image for shifts of up to 8 pixels.
    """

    protocol: Literal["mouton2020"] = "mouton2020"
    max_shift: int = Field(8, ge=0, le=2**14)
    seed: Seed = 0
    every_shift_images: Count | None = None

    @field_validator("every_shift_images", mode="before")
    @classmethod
    def _all_is_none(cls, images: Any) -> Any:
        """Take "all" back to the default, also where a study sets a number."""
        return None if images == "all" else images

    def at_every_shift(self, count: int) -> list[int]:
        """Return the indices, increasing, of those of ``count`` test images that see every shift."""
        return evenly_spread(count, self.every_shift_images or count)


#: The sections of a study's file and what validates each.
SECTIONS: dict[str, type[Spec]] = {"data": DataSpec, "network": NetworkSpec, "training": Recipe, "measure": MeasureSpec}


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted paths.

    >>> flatten({"network": {"factor": 1}})
    {'network.factor': 1}
    """
    paths: dict[str, Any] = {}
    if prefix.count(".") > DEEPEST:
        raise ValueError(f"tables lie in tables more than {DEEPEST} deep.")
    for name, value in dict(nested).items():
        paths |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return paths


def check_path(path: str) -> None:
    """Check that a path names a setting that can vary.

    Raises:
        ValueError: it does not; the message names those that may be meant.
    """
    section, _, setting = path.partition(".")
    if setting not in _settings_of(section):
        raise ValueError(f"{described(path)} is not a setting that can vary. {_settings_meant(section, setting)}")


def _settings_of(section: str) -> list[str]:
    """Return the settings of a section that can vary; none of an unknown section."""
    return [name for name in SECTIONS[section].model_fields if name not in DERIVED] if section in SECTIONS else []


def _settings_meant(section: str, setting: str) -> str:
    """Return a sentence with the settings that may be meant by an unknown one."""
    same = [f"{each}.{name}" for each in SECTIONS for name in _settings_of(each) if name == (setting or section)]
    known = same or [f"{section}.{name}" for name in get_close_matches(setting[:LONGEST_NAME], _settings_of(section), n=1)]
    if known:
        return f"Did you mean `{'` or `'.join(known)}`?"
    if section in SECTIONS:
        return f"The settings of `{section}` are {', '.join(_settings_of(section))}."
    return f"Write its section ({', '.join(SECTIONS)}) and its name, like `network.factor`."
