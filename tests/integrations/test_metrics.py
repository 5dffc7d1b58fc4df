"""Metrics of torchmetrics give the audit's numbers, in any batches, in one process and in two."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing

import helpers
import zoo
from shiftscope import InputError, audit

MetricCollection = zoo.importable("torchmetrics", "torchmetrics").MetricCollection
from shiftscope.integrations import MeanCosineSimilarityUnderShift, ShiftConsistency, ShiftMetric  # noqa: E402 - only with torchmetrics


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(50, 1, 20, 20, generator=torch.Generator().manual_seed(0))


def audited(images: Tensor, protocol: str, measure: str, **options: object) -> float:
    return audit(helpers.network(), images, protocols=[protocol], **options).estimate(measure, protocol).value


@pytest.mark.parametrize("size", [1, 19])
@pytest.mark.parametrize(
    ("make", "protocol", "measure"),
    [
        (MeanCosineSimilarityUnderShift, "mouton2020", "mcs"),
        (ShiftConsistency, "zhang2019", "all_agree"),
        (lambda **options: ShiftConsistency("chaman2021-circular", **options), "chaman2021-circular", "all_agree"),
        (lambda **options: ShiftMetric("top1_change", "every-shift", **options), "every-shift", "top1_change"),
    ],
)
def test_metric_is_the_audit_whatever_the_batches(make, protocol: str, measure: str, size: int, images: Tensor) -> None:
    few = images[: 5 if size == 1 else 50]
    metric = make(max_shift=2, seed=3)
    for batch in few.split(size):
        metric.update(helpers.network(), batch)
    assert float(metric.compute()) == pytest.approx(audited(few, protocol, measure, max_shift=2, seed=3), abs=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="forks processes")
def test_metric_over_two_processes_is_the_audit(images: Tensor, tmp_path: Path) -> None:
    arguments = (str(tmp_path / "meeting"), images, 4, str(tmp_path / "result"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, about threads of the parent; the children compute on one
        multiprocessing.start_processes(helpers.measure_in_group, args=arguments, nprocs=2, start_method="fork")
    expected = [audited(images, *names, max_shift=3, seed=4) for names in (("mouton2020", "mcs"), ("zhang2019", "all_agree"))]
    for rank in range(2):
        assert torch.load(tmp_path / f"result{rank}") == pytest.approx(expected, abs=1e-6)


def test_indices_give_shuffled_images_their_shifts(images: Tensor) -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    metric = MeanCosineSimilarityUnderShift(max_shift=3)
    for places in order.split(8):
        metric.update(helpers.network(), images[places], places)
    assert float(metric.compute()) == pytest.approx(audited(images, "mouton2020", "mcs", max_shift=3), abs=1e-6)


@pytest.mark.parametrize("size", [1, 19])
def test_call_measures_as_update_does_and_returns_the_batch(size: int, images: Tensor) -> None:
    """As Lightning logs a metric; torchmetrics resets it meanwhile."""
    few = images[: 5 if size == 1 else 50]
    alone, collected = (
        MeanCosineSimilarityUnderShift(max_shift=3),
        MetricCollection([MeanCosineSimilarityUnderShift(max_shift=3)]),
    )
    stepwise = MeanCosineSimilarityUnderShift(max_shift=3, dist_sync_on_step=True)
    expected = audited(few, "mouton2020", "mcs", max_shift=3)
    first = audited(few[:size], "mouton2020", "mcs", max_shift=3)
    for number, batch in enumerate(few.split(size)):
        found = alone(helpers.network(), batch), stepwise(helpers.network(), batch)
        collected(helpers.network(), batch)
        assert number or [float(each) for each in found] == pytest.approx([first] * 2, abs=1e-6)
    (together,) = collected.compute().values()
    assert [float(each) for each in (alone.compute(), stepwise.compute(), together)] == pytest.approx([expected] * 3, abs=1e-6)


def test_metrics_of_a_collection_stay_apart_where_their_first_values_are_equal(images: Tensor) -> None:
    """torchmetrics computes metrics of equal states once: here none changes a class by one pixel, but some do by three."""
    metrics = {f"within {reach}": ShiftMetric("top1_change", "every-shift", max_shift=reach) for reach in (1, 3)}
    collection = MetricCollection(metrics)
    collection.update(lambda batch: torch.eye(2)[torch.zeros(len(batch), dtype=torch.long)], images[:10])
    collection.update(helpers.network(), images[10:])
    found = collection.compute()
    expected = [audited(images[10:], "every-shift", "top1_change", max_shift=reach) * 0.8 for reach in (1, 3)]
    assert expected[0] != expected[1]
    assert [float(found[name]) for name in metrics] == pytest.approx(expected, abs=1e-6)


def test_saved_state_resumes_with_the_next_image(images: Tensor) -> None:
    first, second = MeanCosineSimilarityUnderShift(max_shift=3), MeanCosineSimilarityUnderShift(max_shift=3)
    for metric in (first, second):
        metric.persistent(mode=True)
    first.update(helpers.network(), images[:30])
    second.load_state_dict(first.state_dict())
    second.update(helpers.network(), images[30:])
    assert float(second.compute()) == pytest.approx(audited(images, "mouton2020", "mcs", max_shift=3), abs=1e-6)


@pytest.mark.parametrize(
    "indices",
    [
        torch.arange(3),
        torch.tensor([3, 1, 3, 0]),
        torch.tensor([0, 1, 2, -1]),
        torch.arange(4) / 2,
        torch.arange(8).reshape(4, 2),
    ],
)
def test_what_cannot_be_indices_is_refused(indices: Tensor, images: Tensor) -> None:
    """Such as labels, which other metrics take there."""
    metric = MeanCosineSimilarityUnderShift(max_shift=3)
    with pytest.raises(InputError, match="`indices` must be 4 different whole numbers of 0 or more, one for each image, got "):
        metric.update(helpers.network(), images[:4], indices)
    metric.update(helpers.network(), images[:4], [3, 2, 1, 0])
    assert int(metric.count) == 4


def test_wrong_names_are_refused_at_once_and_repr_says_what_is_measured() -> None:
    with pytest.raises(InputError, match="there is no measure 'nope'"):
        ShiftMetric("nope", "mouton2020")
    with pytest.raises(InputError, match="there is no protocol 'nope'"):
        ShiftMetric("mcs", "nope")
    assert repr(ShiftConsistency()) == "ShiftConsistency('all_agree', 'zhang2019')"


def test_reset_forgets_everything(images: Tensor) -> None:
    metric = MeanCosineSimilarityUnderShift(max_shift=3)
    metric.update(helpers.network(), images[:20] * 0.5)
    metric.reset()
    metric.update(helpers.network(), images)
    assert float(metric.compute()) == pytest.approx(audited(images, "mouton2020", "mcs", max_shift=3), abs=1e-6)


def test_model_and_random_numbers_stay_as_they_were(images: Tensor) -> None:
    model = helpers.network().train()
    before = torch.get_rng_state()
    ShiftConsistency(max_shift=2).update(model, images[:4])
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    model(images[:4]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_measure_that_needs_labels_is_refused(images: Tensor) -> None:
    with pytest.raises(InputError, match="is not measured here"):
        ShiftMetric("accuracy", "zhang2019-diagonal", max_shift=2).update(helpers.network(), images[:4])
