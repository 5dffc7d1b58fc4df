"""Sizes are read as users write them, and photos scaled to cover a rectangle lack nothing and waste nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.errors import InputError
from shiftscope.models import ModelSpec
from shiftscope.runtime.sizes import checked_size, covering, read_size

SIDES = st.integers(1, 3000)


@pytest.mark.parametrize(("text", "size"), [("224", 224), ("256x128", (256, 128)), (" 64x64 ", 64)])
def test_sizes_are_read(text: str, size: Any) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "x64", "64 x 32", "1e3", "64x32x3", "1234567890"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="`size` must be a number of pixels, or a height and a width such as 256x128, got"):
        read_size(text)


@pytest.mark.parametrize("size", [0, -3, 20_000, (64, 0), (64,), (1, 2, 3), "64", 1.5, True, (64, 2.0)])
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(InputError, match="`size` must be 1 to 16,384 pixels, or a height and a width of so many, got"):
        checked_size(size)
    with pytest.raises(ValueError, match="must be 1 to 16,384 pixels"):
        ModelSpec(size=size)


@pytest.mark.parametrize(("size", "stored"), [(64, 64), ((64, 64), 64), ([96, 64], (96, 64)), (None, None)])
def test_size_survives_a_file(size: Any, stored: Any) -> None:
    spec = ModelSpec(size=size)
    assert spec.size == stored
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_scaled_photo_just_covers(size: tuple[int, int], cover: tuple[int, int]) -> None:
    tall, wide = covering(size, cover)
    assert tall >= cover[0] and wide >= cover[1]
    assert tall == cover[0] or wide == cover[1]
    exact = size[0] * wide / size[1] if tall == cover[0] else size[1] * tall / size[0]
    other = tall if tall == cover[0] else wide
    assert abs(exact - other) < max(1, size[0] / size[1], size[1] / size[0])
