"""Every measure is registered once, and its bounds hold what the code computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shiftscope.audits.scores import SCORES, MapOutputs, ViewOutputs
from shiftscope.engine.outputs import Outputs
from shiftscope.measures import DEFINITIONS, MEASURES
from shiftscope.shifts import grid
from shiftscope.similarity import homogeneities, responses
from shiftscope.surveys import centred, cosines, probabilities, survey, top1_changes

# Single precision rounds past a bound by no more than this.
ROUNDING = 1e-5


def within_bounds(name: str, values: Tensor) -> bool:
    low, high = MEASURES[name].bounds
    return bool((values >= low - ROUNDING).all() and (values <= high + ROUNDING).all())


def outputs_of(seed: int, scale: float) -> Outputs:
    """Outputs of every kind: opposite, equal, zero and huge ones among random ones."""
    generator, shifts = torch.Generator().manual_seed(seed), grid(1)
    reference = scale * torch.randn(6, 4, generator=generator)
    values = scale * torch.randn(6, len(shifts), 4, generator=generator)
    values[0], values[1], values[2] = -reference[0], reference[1], 0
    return Outputs(values, reference, shifts)


extreme = given(seed=st.integers(0, 999), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]))


@pytest.mark.parametrize("field", ["name", "label", "sentence"])
def test_registry_defines_each_measure_once(field: str) -> None:
    values = [getattr(measure, field) for measure in DEFINITIONS]
    assert len(set(values)) == len(values)


def test_registry_finds_measures_by_name() -> None:
    assert [(name, measure) for name, measure in MEASURES.items()] == [(measure.name, measure) for measure in DEFINITIONS]


@pytest.mark.parametrize("measure", DEFINITIONS, ids=lambda measure: measure.name)
def test_definition_is_a_sentence_with_bounds(measure) -> None:
    assert measure.sentence[0].isupper()
    assert measure.sentence.endswith(".")
    assert measure.bounds[0] < measure.bounds[1]
    assert not measure.share or measure.bounds == (0.0, 1.0)


@extreme
@settings(deadline=None, max_examples=30)
def test_survey_values_stay_in_bounds(seed: int, scale: float) -> None:
    found = survey([outputs_of(seed, scale)], labels=torch.arange(6) % 4, factor=2)
    for (name, _), values in found.values.items():
        assert within_bounds(name, values), name


@extreme
@settings(deadline=None, max_examples=30)
def test_output_measures_stay_in_bounds(seed: int, scale: float) -> None:
    outputs = outputs_of(seed, scale)
    assert within_bounds("mcs", cosines(outputs))
    assert within_bounds("mcs_centred", cosines(centred(outputs)))
    assert within_bounds("mcs_softmax", cosines(probabilities(outputs)))
    assert within_bounds("top1_change", top1_changes(outputs))


@extreme
@settings(deadline=None, max_examples=30)
def test_protocol_scores_stay_in_bounds(seed: int, scale: float) -> None:
    outputs = outputs_of(seed, scale)
    shifts = torch.full((6, 8, 2), 1 / 16)
    answers = ViewOutputs(outputs.values[:, :8], outputs.reference, shifts, (8, 8), torch.arange(6) % 4)
    maps = torch.randint(3, (6, 9, 5, 5), generator=torch.Generator().manual_seed(seed))
    map_answers = MapOutputs(maps[:, :8], maps[:, 8], torch.zeros(6, 8, 2, dtype=torch.long) + 1, circular=False)
    for name, score in SCORES.items():
        assert within_bounds(name, score.of(map_answers if score.needs == "maps" else answers)), name


@extreme
@settings(deadline=None, max_examples=30)
def test_feature_map_measures_stay_in_bounds(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = scale * torch.randn(4, 2, 5, 4, generator=generator), scale * torch.randn(1, 4, 2, 5, 4, generator=generator)
    after[0, 0], before[1] = -before[0], 0
    found = responses(before, after)
    assert within_bounds("similarity", found.similarity)
    assert within_bounds("in_place", found.in_place)
    assert within_bounds("movement", found.displacement.double().norm(dim=-1))
    assert within_bounds("homogeneity", homogeneities(before, (2, 2)))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda measure: measure.name)
def test_estimate_of_extremes_stays_in_bounds(measure) -> None:
    low, high = measure.bounds[0], min(measure.bounds[1], 9.0)
    values = torch.tensor([[low, high, high], [high, low, high]])
    for found in (measure.estimate(values[0]), measure.estimate_over_seeds(values)):
        assert measure.bounds[0] <= found.low <= found.value <= found.high <= measure.bounds[1]
