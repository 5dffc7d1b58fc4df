"""The theory reproduces the source's printed numbers, obeys its laws, and equals independent slow references."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import as_users_import_it
from shiftscope import theory
from shiftscope.theory import correlate, cross_similarity, homogeneity, respond, subsample, translate, worked_tables

SIGNAL = torch.tensor([0, 0, 0, 0, 1, 2, 0, 0, 0, 0])
KERNEL = torch.tensor([1, 0, 1])
HOMOGENEOUS = torch.tensor([0, 0, 0, 0, 0, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0, 0, 0, 0])


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed))


def slow_correlate(signal: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Correlate one output at a time, from the definition."""
    sizes = [(n - k) // stride + 1 for n, k in zip(signal.shape, kernel.shape, strict=True)]
    out = torch.zeros(sizes, dtype=signal.dtype)
    for place in product(*map(range, sizes)):
        for tap in product(*map(range, kernel.shape)):
            out[place] += kernel[tap] * signal[tuple(stride * p + t for p, t in zip(place, tap, strict=True))]
    return out


@pytest.mark.parametrize(
    ("shift", "stride", "printed"),
    [
        (0, 1, [0, 0, 1, 2, 1, 2, 0, 0]),
        (1, 1, [0, 0, 0, 1, 2, 1, 2, 0]),
        (2, 1, [0, 0, 0, 0, 1, 2, 1, 2]),
        (0, 2, [0, 1, 1, 0]),
        (1, 2, [0, 0, 2, 2]),
        (2, 2, [0, 0, 1, 1]),
    ],
)
def test_correlate_reproduces_slides(shift: int, stride: int, printed: list[int]) -> None:
    assert correlate(translate(SIGNAL, shift), KERNEL, stride=stride).tolist() == printed


@pytest.mark.parametrize(
    ("shift", "printed"),
    [
        (0, [0, 0, 0, 2, 3, 1, 2, 0, 0]),
        (1, [0, 0, 0, 2, 3, 1, 2, 0, 0]),
        (2, [0, 0, 0, 0, 2, 3, 1, 2, 0]),
        (3, [0, 0, 0, 0, 2, 3, 1, 2, 0]),
    ],
)
def test_subsample_reproduces_slides(shift: int, printed: list[int]) -> None:
    assert subsample(translate(HOMOGENEOUS, shift), 2).tolist() == printed


@pytest.mark.parametrize(
    ("signal", "factor", "expected"),
    [(HOMOGENEOUS, 2, 1.0), (torch.tensor([0, 0, 5, 0, 0, 0, 5, 0]), 2, 0.0), (SIGNAL, 1, 1.0)],
    ids=["slides", "isolated pixels", "factor 1"],
)
def test_homogeneity_of_known_signals(signal: Tensor, factor: int, expected: float) -> None:
    assert homogeneity(signal, factor) == pytest.approx(expected, abs=1e-12)


@given(size=st.integers(2, 7), factor=st.integers(2, 3), axes=st.integers(1, 2), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_homogeneity_is_mean_cosine_over_shifts_below_factor(size: int, factor: int, axes: int, seed: int) -> None:
    signal = numbers((3, *[size * factor] * axes), seed)
    sampled = signal[(slice(None), *[slice(None, None, factor)] * axes)]
    cosines = []
    for shift in product(range(factor), repeat=axes):
        if any(shift):
            moved = torch.zeros_like(signal)
            for place in product(range(size * factor), repeat=axes):
                origin = tuple(p - s for p, s in zip(place, shift, strict=True))
                if min(origin) >= 0:
                    moved[(slice(None), *place)] = signal[(slice(None), *origin)]
            other = moved[(slice(None), *[slice(None, None, factor)] * axes)]
            cosines.append(
                torch.nn.functional.cosine_similarity(sampled.double().flatten(), other.double().flatten(), dim=0).item()
            )
    assert homogeneity(signal, factor, axes=axes) == pytest.approx(sum(cosines) / len(cosines), abs=1e-9)


@given(
    sizes=st.lists(st.integers(3, 6), min_size=1, max_size=3),
    taps=st.integers(1, 3),
    stride=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_correlate_any_axes_equals_definition(sizes: list[int], taps: int, stride: int, seed: int) -> None:
    signal, kernel = numbers(tuple(sizes), seed), numbers((taps,) * len(sizes), seed + 1)
    assert torch.equal(correlate(signal, kernel, stride=stride), slow_correlate(signal, kernel, stride))


@given(seed=st.integers(0, 99), shift=st.integers(-4, 4), taps=st.integers(1, 4), axes=st.integers(1, 2))
@settings(deadline=None, max_examples=40)
def test_correlate_dense_commutes_with_shifts(seed: int, shift: int, taps: int, axes: int) -> None:
    signal = torch.nn.functional.pad(numbers((5,) * axes, seed), (9,) * 2 * axes)
    kernel, steps = numbers((taps,) * axes, seed + 1), (shift,) * axes
    assert torch.equal(correlate(translate(signal, steps), kernel), translate(correlate(signal, kernel), steps))


@given(seed=st.integers(0, 99), stride=st.integers(2, 4), steps=st.integers(-2, 2), taps=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_correlate_strided_lattice_shift_moves_output_by_shift_over_stride(seed: int, stride: int, steps: int, taps: int) -> None:
    signal, kernel = torch.nn.functional.pad(numbers((7,), seed), (13, 13)), numbers((taps,), seed + 1)
    shifted = correlate(translate(signal, steps * stride), kernel, stride=stride)
    assert torch.equal(shifted, translate(correlate(signal, kernel, stride=stride), steps))


@given(seed=st.integers(0, 99), shift=st.integers(-3, 3), mode=st.sampled_from(["zero", "circular"]))
@settings(deadline=None, max_examples=30)
def test_translate_back_restores_signal_with_margin(seed: int, shift: int, mode: str) -> None:
    signal = torch.nn.functional.pad(numbers((4, 5), seed), (3, 3, 3, 3))
    assert torch.equal(translate(translate(signal, (shift, -shift), mode=mode), (-shift, shift), mode=mode), signal)


def test_translate_beyond_signal_leaves_zeros() -> None:
    assert translate(SIGNAL, 10).sum() == translate(SIGNAL, -25).sum() == 0


@given(seed=st.integers(0, 99), height=st.integers(2, 5), width=st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_cross_similarity_equals_definition(seed: int, height: int, width: int) -> None:
    a, b = numbers((2, height, width), seed).double(), numbers((2, height, width), seed + 1).double()
    found = cross_similarity(a, b, axes=2)
    norm = (a.norm() * b.norm()).item()
    for dy, dx in product(range(1 - height, height), range(1 - width, width)):
        overlap = (a * translate(b, (-dy, -dx))).sum().item()
        assert found[dy + height - 1, dx + width - 1].item() == pytest.approx(overlap / norm if norm else 0.0, abs=1e-9)


@given(seed=st.integers(0, 99), down=st.integers(-3, 3), right=st.integers(-3, 3))
@settings(deadline=None, max_examples=30)
def test_respond_moved_map_has_similarity_one_and_shift_as_movement(seed: int, down: int, right: int) -> None:
    core = numbers((2, 4, 4), seed)
    core[0, 0, 0] = 30  # no other displacement can match a map that is not empty
    signal = torch.nn.functional.pad(core, (4, 4, 4, 4))
    response = respond(signal, translate(signal, (down, right)), axes=2)
    assert response.similarity == pytest.approx(1, abs=1e-12)
    assert response.displacement == (down, right)
    assert response.movement == pytest.approx((down**2 + right**2) ** 0.5)


def test_respond_equal_peaks_takes_nearest() -> None:
    comb = torch.tensor([1, 0, 1, 0, 1, 0, 0, 0])
    response = respond(comb, comb)
    assert (response.displacement, response.movement) == ((0,), 0.0)
    assert response.in_place == pytest.approx(1, abs=1e-12)


def test_respond_zero_maps_are_alike() -> None:
    zero = torch.zeros(4)
    response = respond(zero, zero)
    assert (response.similarity, response.movement, response.in_place) == (1.0, 0.0, 1.0)


def test_respond_zero_map_is_unlike_any_other() -> None:
    zero, full = torch.zeros(4), torch.ones(4)
    assert (respond(zero, full).similarity, respond(full, zero).in_place) == (0.0, 0.0)


@pytest.mark.parametrize("axes", [1, 3])
def test_subsample_any_axes_keeps_multiples_of_factor(axes: int) -> None:
    signal = torch.arange(prod([5] * axes)).reshape((5,) * axes)
    expected = [signal[place].item() for place in product((0, 2, 4), repeat=axes)]
    assert subsample(signal, 2).flatten().tolist() == expected


PRINTED = {
    "equivariance": {0: [0, 0, 1, 2, 1, 2, 0, 0], 1: [0, 0, 0, 1, 2, 1, 2, 0], 2: [0, 0, 0, 0, 1, 2, 1, 2]},
    "broken equivariance": {0: [0, 1, 1, 0], 1: [0, 0, 2, 2], 2: [0, 0, 1, 1]},
    "shiftability": {0: [0, 1, 1, 0], 2: [0, 0, 1, 1]},
    "local homogeneity": {
        0: [0, 0, 0, 2, 3, 1, 2, 0, 0],
        1: [0, 0, 0, 2, 3, 1, 2, 0, 0],
        2: [0, 0, 0, 0, 2, 3, 1, 2, 0],
        3: [0, 0, 0, 0, 2, 3, 1, 2, 0],
    },
}
TABLES = {table.name: table for table in worked_tables()}


@pytest.mark.parametrize(("name", "rows"), PRINTED.items())
def test_worked_table_equals_printed_one(name: str, rows: dict[int, list[int]]) -> None:
    assert {row["shift"]: row["output"] for row in TABLES[name].rows} == rows


@pytest.mark.parametrize(("name", "movements"), [("equivariance", [0, 1, 2]), ("shiftability", [0, 1])])
def test_worked_table_movement_is_shift_over_stride(name: str, movements: list[int]) -> None:
    assert [row["movement"] for row in TABLES[name].rows] == movements


def test_worked_table_shift_changes_fully_connected_unit_and_not_sum() -> None:
    rows = TABLES["fully connected layer"].rows
    assert len({row["fully connected"] for row in rows}) == len(rows)
    assert len({row["sum"] for row in rows}) == 1


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_worked_table_has_columns_for_its_rows_and_a_sentence(table) -> None:
    assert all(tuple(row) == table.columns for row in table.rows)
    assert table.columns[:2] == ("shift", "output")
    assert table.shows.endswith((".", ")"))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda plain: plain.correlate(SIGNAL, KERNEL, stride=0), "`stride` must be at least 1, got 0"),
        (lambda plain: plain.correlate(KERNEL, SIGNAL), "`kernel` must fit into the signal"),
        (lambda plain: plain.correlate(KERNEL, torch.ones(2, 2)), "`kernel` must fit into the signal"),
        (lambda plain: plain.translate(SIGNAL, 1, mode="mirror"), "`mode` must be 'zero' or 'circular', got 'mirror'"),
        (lambda plain: plain.subsample(SIGNAL, 0), "`factor` must be at least 1, got 0"),
        (lambda plain: plain.homogeneity(SIGNAL, 0), "`factor` must be at least 1, got 0"),
        (lambda plain: plain.respond(SIGNAL, KERNEL), "must have one shape"),
    ],
)
def test_invalid_input_raises_error(call: Callable[[ModuleType], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(as_users_import_it(theory))
