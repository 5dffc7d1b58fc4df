"""Variants are ranked by their distance to printed numbers, held against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from shiftscope.estimates import mean_over_seeds
from shiftscope.studies.claims import MeasuredCell
from shiftscope.studies.closeness import closeness, closeness_table

PRINTED = ({"mcs": 0.3}, {"mcs": 0.5})


def cells(**means: tuple[float | None, float | None]) -> list[MeasuredCell]:
    """Return two cells a variant, with raw means as given and centred ones 0.1 below; None for one that is not measured."""
    found = []
    for number, (name, pair) in enumerate(means.items()):
        for place, mean in enumerate(pair):
            noise = torch.linspace(-0.1, 0.1, 101)[None]
            values = {} if mean is None else {"mcs": mean + noise, "mcs_centred": mean - 0.1 + noise}
            found.append(MeasuredCell({"variant": name, "network.factor": place}, values, 2 * number + place))
    return found


def test_distance_is_the_root_mean_square_of_the_differences() -> None:
    found = closeness(cells(near=(0.3, 0.5), far=(0.6, 0.9)), PRINTED * 2)
    assert [(each.variant, each.measure, each.cells) for each in found] == [
        ("near", "mcs", 2),
        ("near", "mcs_centred", 2),
        ("far", "mcs_centred", 2),
        ("far", "mcs", 2),
    ]
    expected = [0.0, 0.1, (0.5 * (0.2**2 + 0.3**2)) ** 0.5, (0.5 * (0.3**2 + 0.4**2)) ** 0.5]
    assert [each.distance.value for each in found] == pytest.approx(expected, abs=1e-6)
    assert all(each.distance.low <= each.distance.value <= each.distance.high for each in found)
    assert [each.closest for each in found] == [1.0, 0.0, 0.0, 0.0]


def test_few_networks_widen_the_distance_as_they_widen_the_mean() -> None:
    """Far from the printed number, the distance of one cell is a difference, and its interval that of the cell's mean."""
    values = torch.tensor([0.50, 0.60, 0.55])[:, None] + torch.linspace(-0.1, 0.1, 101)[None]
    cell = MeasuredCell({"variant": "one"}, {"mcs": values}, 1)
    expected = mean_over_seeds(values, bounds=(-1.0, 1.0))
    (found,) = closeness([cell], [{"mcs": -0.9}])
    assert found.distance.value == pytest.approx(expected.value + 0.9)
    assert found.distance.high - found.distance.low == pytest.approx(expected.high - expected.low, rel=0.05)
    assert expected.high - expected.low > 0.2  # three networks that differ by 0.05 on average


def test_two_that_are_alike_share_the_first_place() -> None:
    found = closeness(cells(one=(0.3, 0.5), other=(0.3, 0.5)), PRINTED * 2)
    first = [each.closest for each in found if each.measure == "mcs"]
    assert sum(first) >= 1
    assert all(share > 0.2 for share in first)


def test_variants_with_fewer_cells_come_last_and_are_compared_among_themselves() -> None:
    found = closeness(cells(whole=(0.9, 0.9), part=(0.3, None), none=(None, None)), PRINTED * 3)
    assert [(each.variant, each.cells) for each in found] == [("whole", 2)] * 2 + [("part", 1)] * 2
    assert found[0].closest + found[1].closest == 1.0
    table = closeness_table("Study", found)
    assert [row["variant"] for row in table.rows] == ["whole", "whole", "part", "part"]


def test_measure_that_not_all_cells_have_is_ranked_where_they_have_it() -> None:
    every, some = cells(every=(0.3, 0.5)), cells(some=(0.3, 0.5))
    known = [MeasuredCell(each.settings, {**each.values, "mcs_softmax": each.values["mcs"] + 0.3}, each.number) for each in every]
    half = [known[0], every[1]]
    assert [(each.variant, each.measure) for each in closeness([*known, *some], PRINTED * 2)][-1] == ("every", "mcs_softmax")
    assert {each.measure for each in closeness([*half, *some], PRINTED * 2)} == {"mcs", "mcs_centred"}
