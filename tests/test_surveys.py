"""Values per image equal their definitions; a survey equals a slow count over images and shifts, however it is cut in blocks."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from shiftscope.engine.outputs import Outputs
from shiftscope.errors import InputError
from shiftscope.estimates import interval_of_equals, proportion
from shiftscope.measures import MEASURES
from shiftscope.shifts import grid
from shiftscope.surveys import centred, correct, cosines, survey, survey_of_values, top1_changes

SHIFTS = grid(2)
SURVEYED = ("mcs", "top1_change", "probability_change", "pair_consistency", "all_agree", "worst_case")


def outputs(count: int, seed: int, shifts: Tensor = SHIFTS) -> Outputs:
    """Outputs that mostly agree, so that no measure is constant."""
    generator = torch.Generator().manual_seed(seed)
    reference = 2 * torch.randn(count, 3, generator=generator)
    values = reference[:, None] + 0.7 * torch.randn(count, len(shifts), 3, generator=generator)
    return Outputs(values, reference, shifts)


def outputs_from(reference: list[list[float]], values: list[list[list[float]]]) -> Outputs:
    shifted = torch.tensor(values)
    return Outputs(shifted, torch.tensor(reference), torch.zeros(*shifted.shape[:2], 2, dtype=torch.long))


def test_cosines_average_over_an_images_shifts() -> None:
    found = cosines(outputs_from([[1.0, 0.0], [3.0, 4.0]], [[[1.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [-3.0, -4.0]]]))
    assert found.tolist() == pytest.approx([0.5, 0.0])


def test_top1_changes_counts_shifts_and_breaks_ties_by_lowest_class() -> None:
    found = top1_changes(outputs_from([[1.0, 2.0], [5.0, 5.0]], [[[0.0, 1.0], [1.0, 0.0]], [[5.0, 5.0], [2.0, 2.0]]]))
    assert found.tolist() == [0.5, 0.0]
    assert correct(torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([1, 1])).tolist() == [True, False]


def test_axes_named_in_annotations_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError, match="labels"):
        correct(torch.zeros(2, 3), torch.zeros(4, dtype=torch.long))


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_centred_cosines_ignore_constant_added_to_all_classes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference, values = torch.randn(5, 4, generator=generator), torch.randn(5, 3, 4, generator=generator)
    constant = 10 + torch.rand(5, 1, generator=generator)
    plain = Outputs(values, reference, torch.zeros(3, 2))
    moved = Outputs(values + constant[:, None], reference - constant, torch.zeros(3, 2))
    torch.testing.assert_close(cosines(centred(plain)), cosines(centred(moved)), atol=1e-5, rtol=0)
    assert not torch.allclose(cosines(plain), cosines(moved), atol=1e-2)


def blocks(measured: Outputs, size: int) -> list[Outputs]:
    parts = zip(measured.values.split(size), measured.reference.split(size), strict=True)
    return [Outputs(values, reference, measured.shifts) for values, reference in parts]


def slow_measures(measured: Outputs, labels: Tensor, keep: list[int], image: int) -> dict[str, float]:
    """Compute one image's measures over some shifts from their definitions."""
    reference, values = measured.reference[image], [measured.values[image, index] for index in keep]
    top = reference.argmax().item()
    tops = [value.argmax().item() for value in values]
    pairs = [a == b for a, b in permutations(tops, 2)]
    before = reference.softmax(0)[top].item()
    return {
        "mcs": sum(torch.nn.functional.cosine_similarity(reference, value, dim=0).item() for value in values) / len(keep),
        "top1_change": sum(other != top for other in tops) / len(keep),
        "probability_change": sum(abs(value.softmax(0)[top].item() - before) for value in values) / len(keep),
        "pair_consistency": sum(pairs) / len(pairs) if pairs else 1.0,
        "all_agree": float(len(set(tops)) == 1),
        "worst_case": float(all(other == labels[image].item() for other in tops)),
    }


@given(count=st.integers(1, 9), seed=st.integers(0, 99), size=st.integers(1, 5), factor=st.sampled_from([1, 2, 3]))
@settings(deadline=None, max_examples=25)
def test_survey_equals_definition_for_each_measure_and_part(count: int, seed: int, size: int, factor: int) -> None:
    measured = outputs(count, seed)
    labels = measured.reference.argmax(1).clone()
    labels[::3] = (labels[::3] + 1) % 3
    found = survey(blocks(measured, size), labels=labels, factor=factor)
    steps = SHIFTS.tolist()
    parts = {
        "all": list(range(25)),
        **{f"radius {r}": [i for i, (dy, dx) in enumerate(steps) if max(abs(dy), abs(dx)) == r] for r in range(3)},
        "lattice": [i for i, (dy, dx) in enumerate(steps) if dy % factor == 0 and dx % factor == 0],
        "off lattice": [i for i, (dy, dx) in enumerate(steps) if dy % factor or dx % factor],
    }
    parts = {name: keep for name, keep in parts.items() if keep}
    assert set(found.values) == {(measure, over) for measure in SURVEYED for over in parts}
    for over, keep in parts.items():
        expected = [slow_measures(measured, labels, keep, image) for image in range(count)]
        for measure in SURVEYED:
            assert found.values[measure, over].tolist() == pytest.approx([each[measure] for each in expected], abs=1e-5)
    assert found.right.tolist() == (measured.reference.argmax(1) == labels).tolist()


def test_survey_maps_are_means_over_images() -> None:
    measured = outputs(7, 0)
    found = survey(blocks(measured, 3))
    cosines = torch.nn.functional.cosine_similarity(
        measured.reference[:, None].expand_as(measured.values), measured.values, dim=-1
    )
    torch.testing.assert_close(found.maps["mcs"], cosines.mean(0))
    assert found.maps["mcs"].mean().item() == pytest.approx(found.estimate("mcs").value, abs=1e-6)


def test_survey_maps_have_interval_of_a_mean() -> None:
    from scipy import stats

    measured = outputs(40, 5)
    found = survey(blocks(measured, 7))
    cosines = torch.nn.functional.cosine_similarity(
        measured.reference[:, None].expand_as(measured.values), measured.values, dim=-1
    ).double()
    low, high = stats.t.interval(0.95, 39, loc=cosines.mean(0), scale=stats.sem(cosines, axis=0))
    torch.testing.assert_close(found.intervals["mcs"][:, 0], torch.from_numpy(low).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.intervals["mcs"][:, 1], torch.from_numpy(high).clamp(max=1).float(), rtol=1e-4, atol=1e-5)
    assert survey([outputs(1, 0)]).intervals["mcs"][0].tolist() == [-1, 1]


def test_maps_of_an_unbounded_measure_have_interval_of_a_mean() -> None:
    from scipy import stats

    values = torch.rand(40, len(SHIFTS), generator=torch.Generator().manual_seed(0)) / 10 + 3
    values[:, 12] = 0  # no change without a shift
    found = survey_of_values({"depth_error": values}, SHIFTS).intervals["depth_error"]
    moved = values.double()[:, torch.arange(len(SHIFTS)) != 12]
    low, high = stats.t.interval(0.95, 39, loc=moved.mean(0), scale=stats.sem(moved, axis=0))
    expected = torch.stack([torch.from_numpy(low), torch.from_numpy(high)], dim=1).float()
    torch.testing.assert_close(found[torch.arange(len(SHIFTS)) != 12], expected, rtol=1e-4, atol=1e-5)
    assert found[12].tolist() == [0, 0]


def test_estimate_given_right_leaves_out_misclassified_images() -> None:
    measured = outputs(30, 1)
    labels = measured.reference.argmax(1).clone()
    labels[:20] = (labels[:20] + 1) % 3
    found = survey([measured], labels=labels)
    assert found.estimate("mcs", given="right").count == 10
    assert found.estimate("worst_case").value <= 10 / 30


def test_estimate_given_right_of_no_image_is_none() -> None:
    measured = outputs(5, 2)
    wrong = (measured.reference.argmax(1) + 1) % 3
    assert survey([measured], labels=wrong).estimate("mcs", given="right") is None


def test_estimate_stays_in_bounds() -> None:
    found = survey([outputs(12, 3)])
    agree = found.estimate("all_agree", over="radius 0")
    assert (agree.value, agree.high) == (1.0, 1.0)
    assert agree.low < 1
    for measure in ("mcs", "top1_change", "probability_change", "pair_consistency"):
        estimate, bounds = found.estimate(measure), MEASURES[measure].bounds
        assert bounds[0] <= estimate.low <= estimate.value <= estimate.high <= bounds[1]


def test_table_has_row_for_each_measure_and_part() -> None:
    measured = outputs(6, 4)
    table = survey([measured], labels=torch.zeros(6, dtype=torch.long), factor=2).table()
    assert len(table.rows) == 6 * (1 + 3 + 2)
    assert table.columns == ("measure", "over", "estimate", "given_right")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: survey([]), "at least one block of outputs, got none"),
        (
            lambda: survey([outputs(3, 0)], labels=torch.zeros(2, dtype=torch.long)),
            "one label per image, got too few for 3 images",
        ),
        (lambda: survey([outputs(3, 0)], labels=torch.zeros(4, dtype=torch.long)), "one label per image, got 4 for 3 images"),
        (lambda: survey([outputs(3, 0), outputs(3, 0, 2 * SHIFTS)]), "two blocks differ in theirs"),
        (lambda: survey([outputs(3, 0)], factor=0), "`factor` must be 1 or more, got 0"),
        (lambda: survey([outputs(3, 0)]).estimate("mcs", over="lattice"), "holds no 'mcs' over 'lattice'"),
        (lambda: survey([outputs(3, 0)]).estimate("mcs", given="right"), "`given` 'right' needs labels"),
        (
            lambda: survey([Outputs(torch.zeros(2, 1, 3), torch.zeros(2, 3), torch.zeros(2, 1, 2, dtype=torch.long))]),
            "shifts that all images share",
        ),
    ],
)
def test_invalid_input_raises_error(call, text: str) -> None:
    with pytest.raises(InputError, match=text):
        call()


def test_maps_where_all_values_are_a_bound_have_the_interval_of_equals() -> None:
    """Each shift for itself: a cosine of 1 is no share of images."""
    ones = torch.ones(10, len(SHIFTS))
    mixed = torch.cat([torch.ones(10, 12), torch.rand(10, len(SHIFTS) - 12, generator=torch.Generator().manual_seed(0))], dim=1)
    for values in (ones, mixed):
        found = survey_of_values({"mcs": values, "top1_change": values}, SHIFTS).intervals
        low, high = interval_of_equals(1.0, 10, (-1.0, 1.0))
        assert found["mcs"][0].tolist() == pytest.approx([low, high])
        assert found["top1_change"][0].tolist() == pytest.approx([proportion(torch.ones(10).bool()).low, 1])
