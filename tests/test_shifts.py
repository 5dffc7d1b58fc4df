"""Shifts of a batch equal a slow reference that moves one pixel at a time; random shifts are uniform and repeatable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import as_users_import_it
from shiftscope import shifts
from shiftscope.shifts import grid, sample, translate, translate_by_parts

DTYPES = [torch.uint8, torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def slow_translate(images: Tensor, steps: Tensor, mode: str, size: tuple[int, int], fill: Tensor) -> Tensor:
    """Move one pixel at a time to its new position."""
    count, channels, height, width = images.shape
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    out = fill.reshape(1, -1, 1, 1).expand(count, channels, *size).clone()
    for image in range(count):
        for y in range(height):
            for x in range(width):
                to_y, to_x = y + top + int(steps[image, 0]), x + left + int(steps[image, 1])
                if mode == "circular":
                    to_y, to_x = to_y % size[0], to_x % size[1]
                if 0 <= to_y < size[0] and 0 <= to_x < size[1]:
                    out[image, :, to_y, to_x] = images[image, :, y, x]
    return out


def batch(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    seed=st.integers(0, 999),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dtype=st.sampled_from(DTYPES),
)
@settings(deadline=None, max_examples=60)
def test_translate_zero_fill_any_canvas_equals_slow_reference(
    seed: int, height: int, width: int, extra: tuple[int, int], dtype: torch.dtype
) -> None:
    images, steps = batch(dtype, (3, 2, height, width), seed), sample(3, 9, torch.Generator().manual_seed(seed))
    size, fill = (height + extra[0], width + extra[1]), torch.tensor([1, 0]).to(dtype)
    moved = translate(images, steps, size=size, fill=fill)
    assert moved.dtype == dtype
    assert torch.equal(moved, slow_translate(images, steps, "zero", size, fill))


@given(seed=st.integers(0, 999), height=st.integers(1, 6), width=st.integers(1, 6), dtype=st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=30)
def test_translate_circular_equals_slow_reference(seed: int, height: int, width: int, dtype: torch.dtype) -> None:
    images, steps = batch(dtype, (3, 2, height, width), seed), sample(3, 9, torch.Generator().manual_seed(seed))
    expected = slow_translate(images, steps, "circular", (height, width), torch.zeros(2, dtype=dtype))
    assert torch.equal(translate(images, steps, mode="circular"), expected)


def test_translate_back_restores_image_with_margin() -> None:
    images = torch.nn.functional.pad(batch(torch.float32, (5, 3, 4, 4), 0), (3, 3, 3, 3))
    steps = sample(5, 3, torch.Generator().manual_seed(1))
    assert torch.equal(translate(translate(images, steps), -steps), images)


def test_translate_by_zero_changes_nothing() -> None:
    images = batch(torch.float32, (2, 1, 3, 5), 0)
    assert torch.equal(translate(images, torch.zeros(2, 2, dtype=torch.long)), images)


def test_translate_empty_batch_stays_empty() -> None:
    images = batch(torch.float32, (0, 1, 3, 5), 0)
    assert translate(images, torch.zeros(0, 2, dtype=torch.long), size=(9, 9)).shape == (0, 1, 9, 9)


def test_grid_holds_every_shift_once() -> None:
    assert sorted(map(tuple, grid(2).tolist())) == [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]


def test_sample_is_uniform_and_repeatable() -> None:
    drawn = sample(40_000, 2, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, sample(40_000, 2, torch.Generator().manual_seed(3)))
    counts = torch.bincount((drawn[:, 0] + 2) * 5 + drawn[:, 1] + 2, minlength=25)
    # Each of 25 shifts is expected 1,600 times with a standard deviation of 39; the tolerance is six of these.
    assert counts.min() > 1600 - 6 * 39
    assert counts.max() < 1600 + 6 * 39


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda plain, images: plain.translate(images, torch.zeros(1, 2), mode="wrap"), "`mode` must be 'zero' or 'circular'"),
        (
            lambda plain, images: plain.translate(images, torch.zeros(1, 2)),
            r"one \(dy, dx\) for each of 2 images, got shape \(1, 2\)",
        ),
        (
            lambda plain, images: plain.translate(images, torch.zeros(2, 2), mode="circular", size=(9, 9)),
            r"`size` must be the images' own \(3, 3\)",
        ),
        (lambda plain, _: plain.grid(-1), "`max_shift` must be 0 or more pixels, got -1"),
        (lambda plain, _: plain.sample(1, -1, torch.Generator()), "`max_shift` must be 0 or more pixels, got -1"),
    ],
)
def test_invalid_input_raises_error(call, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(as_users_import_it(shifts), torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_circular_shifts_by_parts_take_half_precision(kind: torch.dtype) -> None:
    images = torch.rand(2, 1, 8, 7, generator=torch.Generator().manual_seed(0)).to(kind)
    moved = translate_by_parts(images, torch.tensor([[0.5, 0.25], [1.0, 0.0]]), mode="circular")
    expected = translate_by_parts(images.float(), torch.tensor([[0.5, 0.25], [1.0, 0.0]]), mode="circular")
    assert moved.dtype == kind
    assert torch.equal(moved, expected.to(kind))
