"""Depth, flow, embeddings, yes-or-no outputs and answers: constructed models give known numbers, shards give those of one run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import isnan, log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.audits import AuditOptions, Part, Session, merge_parts
from shiftscope.audits.protocols import PROTOCOLS, Protocol
from shiftscope.audits.stored import from_tensors, to_tensors
from shiftscope.tasks import TASKS, View, find_task

SIZE = 12
WHOLE = ["chaman2021-circular", "mouton2020", "azulay2018", "myburgh2021"]


def photos(count: int = 6, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def along(steps: tuple[tuple[int, int], ...], *, circular: bool = True) -> Protocol:
    """The given shifts of every image."""
    return Protocol("path", 4, "circular" if circular else "zero", 0, ("all_agree",), drawn=0, path=steps)


def depth(batch: Tensor) -> Tensor:
    return batch.mean(dim=1, keepdim=True) + 0.5


def probabilities(batch: Tensor) -> Tensor:
    return torch.stack([batch[:, 0, 0, 0], batch[:, 1, 0, 0]], dim=1)


EQUIVARIANT: dict[str, Callable[[Tensor], Any]] = {
    "depth": depth,
    "flow": lambda batch: batch[:, :2] - 0.5,
    "embedding": lambda batch: batch.sort(dim=-1).values.flatten(2).sort(dim=-1).values.flatten(1),
    "binary": lambda batch: batch.amax(dim=(1, 2, 3)) - 0.99,
    "multilabel": lambda batch: batch.amax(dim=(2, 3)) - 0.98,
    "regression": lambda batch: 40 * batch.amax(dim=(2, 3)),
    "answers": lambda batch: [f"{value:.3f} " for value in batch.amax(dim=(1, 2, 3)).tolist()],
}
BEST = {"neighbour_rank": 1.0, "mcs": 1.0, "retrieval": 1.0, "same_answer": 1.0}


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_model_that_moves_along_has_no_error(name: str) -> None:
    found = ss.audit(EQUIVARIANT[name], photos(), task=name, protocols=["chaman2021-circular"])
    for row in found.rows:
        assert row.estimate.value == pytest.approx(BEST.get(row.measure, 0.0), abs=1e-12), row
    assert found.task == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (depth, "depth"),
        (lambda batch: depth(batch)[:, 0], "depth"),
        (EQUIVARIANT["binary"], "binary"),
        (lambda batch: EQUIVARIANT["binary"](batch)[:, None], "binary"),
        (EQUIVARIANT["answers"], "answers"),
        (lambda batch: batch.flatten(1), ""),
        (lambda batch: batch, ""),
    ],
)
def test_task_is_what_the_output_shows(model: Callable[[Tensor], Any], name: str) -> None:
    assert ss.audit(model, photos(), max_shift=2).task == name


@pytest.mark.parametrize(
    "model",
    [
        lambda batch: batch.mean(dim=1) - 0.5,  # logits of a mask
        lambda batch: batch.mean(dim=1, keepdim=True),  # its probabilities
        lambda batch: (3 * batch.mean(dim=1)).round(),  # classes as real numbers
    ],
)
def test_one_value_per_pixel_that_may_be_several_things_is_asked_for(model: Callable[[Tensor], Any]) -> None:
    with pytest.raises(
        ss.InputError, match=r"may be a depth, a logit or a probability\. Name it with --task depth, segmentation or"
    ):
        ss.audit(model, photos(), max_shift=2)


@pytest.mark.parametrize(("name", "channels"), [("binary", 1), ("multilabel", 3)])
def test_probabilities_that_are_read_as_logits_are_a_warning(name: str, channels: int) -> None:
    def logits(batch: Tensor) -> Tensor:
        return 40 * (batch[:, :channels, 3, 3] - 0.5)

    def noisy(batch: Tensor) -> Tensor:
        return logits(batch).sigmoid()

    found = ss.audit(noisy, photos(12), task=name, max_shift=2)
    assert found.estimate("label_flips", "mouton2020").value == 0
    assert found.warnings[0].endswith(f"if the model ends in a sigmoid, add --task {name}:given=probabilities.")
    right = ss.audit(noisy, photos(12), task=f"{name}:given=probabilities", max_shift=2)
    assert right.estimate("label_flips", "mouton2020").value > 0.1
    assert right.warnings == ()
    assert ss.audit(logits, photos(12), task=name, max_shift=2).warnings == ()


def ages(batch: Tensor) -> Tensor:
    """A number that a shift by one column changes by 10 times the difference of two pixels."""
    return 10 * batch[:, 0, 3, 3] + 20


def test_regression_measures_the_absolute_change_and_error_in_the_unit_of_the_outputs() -> None:
    images = photos()
    before, after = ages(images), ages(images.roll(1, 3))
    truth = torch.arange(6.0)
    found = ss.audit(ages, images, task="regression", truth=truth, protocols=[along(((0, 1),))])
    assert found.estimate("value_change").value == pytest.approx(float((after - before).abs().mean()), rel=1e-5)
    assert found.estimate("truth_value_error", "path").value == pytest.approx(float((after - truth).abs().mean()), rel=1e-5)
    assert found.estimate("truth_value_error", "unshifted").value == pytest.approx(float((before - truth).abs().mean()), rel=1e-5)
    changes = torch.stack([(ages(images.roll(tuple(step), (2, 3))) - before).abs() for step in ss.grid(1).tolist()])
    within = float(changes.max(dim=0).values.median()) + 1e-3
    certificate = ss.certify(ages, images, radius=1, mode="circular", task=f"regression:within={within}")
    assert certificate.radii.tolist() == [int((each <= within).all()) for each in changes.T]
    with pytest.raises(
        ss.InputError, match=r"does not define when an answer is kept\. Give a limit .* --task regression:within="
    ):
        ss.certify(ages, images, radius=1, mode="circular", task="regression")


@pytest.mark.parametrize("name", ["segmentation", "multilabel", "answers", "embedding"])
def test_answers_that_are_all_the_same_are_a_warning(name: str) -> None:
    outputs = {
        "segmentation": lambda batch: torch.stack([torch.ones(len(batch), SIZE, SIZE), torch.zeros(len(batch), SIZE, SIZE)], 1),
        "multilabel": lambda batch: batch.mean((2, 3)) + 1.5,
        "answers": lambda batch: ["a photo"] * len(batch),
        "embedding": lambda batch: torch.ones(len(batch), 4),
    }
    found = ss.audit(outputs[name], photos(8), task=name, max_shift=2)
    assert found.warnings == ("All 8 images get the same answer, so their stability says nothing about the model.",)


def ramp(batch: Tensor) -> Tensor:
    """A depth of 1 to 12 from left to right, whatever the image."""
    return torch.arange(1.0, SIZE + 1).expand(len(batch), SIZE, SIZE)


def test_depth_map_that_stays_in_place_has_the_error_of_its_own_movement() -> None:
    """A ramp of 1 to 12 that does not move: moved back by one column it differs by 1 in eleven columns, and by 11 in one."""
    found = ss.audit(ramp, photos(), task="depth", protocols=[along(((0, 1),))])
    assert found.estimate("depth_change", "path").value == pytest.approx(22 / 12)
    assert found.estimate("depth_error", "path").value == pytest.approx(22 / 12 / 6.5)
    ratios = [log((column % SIZE + 1) / column) for column in range(1, SIZE + 1)]
    mean = sum(ratios) / SIZE
    spread = (sum((each - mean) ** 2 for each in ratios) / SIZE) ** 0.5
    assert found.estimate("depth_shape_error", "path").value == pytest.approx(spread, abs=1e-6)


def test_depth_is_compared_where_both_views_see_the_image() -> None:
    """Zero fill, ramp in place, moved by three columns: each of nine columns differs by 3."""
    found = ss.audit(ramp, photos(), task="depth", protocols=[along(((0, 3),), circular=False)])
    assert found.estimate("depth_change", "path").value == pytest.approx(3)
    assert found.estimate("depth_error", "path").value == pytest.approx(3 / 5)


def test_scale_of_a_depth_map_is_no_error_of_its_shape() -> None:
    before = torch.rand(1, 4, 4) + 1
    found = find_task("depth").compare(before, 3 * before, View((0, 0), (4, 4), True), None)
    assert found["depth_error"] == pytest.approx(2)
    assert found["depth_shape_error"] == pytest.approx(0, abs=1e-6)


def test_depth_without_truth_at_some_pixels_is_right_at_the_others() -> None:
    truth = depth(photos())[:, 0].clone()
    truth[:, :3], truth[0] = torch.nan, torch.nan
    found = ss.audit(depth, photos(), task="depth", truth=truth, protocols=["chaman2021-circular"])
    assert found.estimate("truth_depth_error", "unshifted").value == 0
    assert found.estimate("truth_depth_error", "chaman2021-circular").count == 5
    assert any(
        note.startswith("1 of 6 images have no value, and means leave them out: depth error to the truth") for note in found.notes
    )


def test_flow_that_turns_by_a_constant_has_that_endpoint_error() -> None:
    flows = {False: torch.tensor([3.0, 4.0]), True: torch.tensor([0.0, 0.0])}

    def model(batch: Tensor) -> Tensor:
        same = (batch == photos()[:1]).flatten(1).all(dim=1)
        return torch.stack([flows[not bool(each)][:, None, None].expand(2, SIZE, SIZE) for each in same])

    found = ss.audit(model, photos(1), task="flow", protocols=[along(((0, 2), (1, 0)))])
    assert found.estimate("endpoint_error", "path").value == pytest.approx(5)
    assert found.estimate("flow_error", "path").value == pytest.approx(1)


def slow_ranks(references: Tensor, after: Tensor, image: int) -> tuple[float, float]:
    """Rank by loops over plain lists of numbers."""

    def cos(one: list[float], other: list[float]) -> float:
        product = sum(a * b for a, b in zip(one, other, strict=True))
        return product / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5

    cosines = [cos(each.tolist(), after.tolist()) for each in references]
    nearer = sum(each > cosines[image] for number, each in enumerate(cosines) if number != image)
    return float(nearer == 0), 1.0 + nearer


@pytest.mark.parametrize("image", range(5))
def test_rank_of_the_true_neighbour_equals_a_loop(image: int) -> None:
    task, references = find_task("embedding"), torch.randn(5, 4, generator=torch.Generator().manual_seed(3)).double()
    after = references[image] + 0.8 * torch.randn(4, generator=torch.Generator().manual_seed(image)).double()
    view = View((1, 0), (4, 4), False, image=image, references=task.gather(list(references)))
    found = task.compare(references[image], after, view, None)
    assert (found["retrieval"], found["neighbour_rank"]) == slow_ranks(references, after, image)


def test_constant_embedding_finds_no_image() -> None:
    found = ss.audit(lambda batch: torch.ones(len(batch), 4), photos(), task="embedding", protocols=["mouton2020"])
    assert found.estimate("mcs", "mouton2020").value == 1
    assert found.estimate("retrieval", "mouton2020").value == pytest.approx(1 / 6)
    assert found.estimate("neighbour_rank", "mouton2020").value == 3.5


def test_retrieval_among_one_image_is_not_defined() -> None:
    found = ss.audit(EQUIVARIANT["embedding"], photos(1), task="embedding", protocols=["mouton2020"])
    assert [row.measure for row in found.rows] == ["mcs"]
    assert any(note.startswith("No image has a value for") and "retrieval at 1" in note for note in found.notes)


def test_labels_flip_at_the_threshold() -> None:
    """The corner pixel's colour is the probability; a shift brings another pixel there."""
    images = torch.zeros(1, 3, SIZE, SIZE)
    images[0, 0, 0, 0], images[0, 1, 0, 0] = 0.75, 0.25
    protocols = [along(((0, 1), (0, 0)))]
    found = ss.audit(probabilities, images, task="multilabel:given=probabilities", protocols=protocols)
    assert found.estimate("label_flips", "path").value == 0.25  # one of two labels in one of two views
    assert found.estimate("label_set_change", "path").value == 0.5
    assert found.estimate("label_probability_change", "path").value == pytest.approx((0.75 + 0.25) / 4)
    assert found.units["path"].tolist() == [0.5, 0.0]
    lower = ss.audit(probabilities, images, task="multilabel:given=probabilities,threshold=0.2", protocols=protocols)
    assert lower.estimate("label_flips", "path").value == 0.5


def test_labels_of_images_are_the_truth_of_a_binary_model() -> None:
    right = (EQUIVARIANT["binary"](photos()) >= 0).long()
    found = ss.audit(EQUIVARIANT["binary"], photos(), right, protocols=["chaman2021-circular"])
    assert found.estimate("labels_right", "unshifted").value == found.estimate("labels_right", "chaman2021-circular").value == 1


def test_flicker_is_the_change_between_neighbours() -> None:
    """Answers that name the position alternate from frame to frame of a pan by one pixel."""

    def model(batch: Tensor) -> list[str]:
        return [str(int(each[0, 0].argmax()) % 4 < 2) for each in batch]

    images = torch.zeros(3, 1, SIZE, SIZE)
    images[:, :, :, 6] = 1
    found = ss.audit(model, images, protocols=["hendrycks2019"], max_shift=4)
    positions = [str((6 + step) % 4 < 2) for step in range(-4, 5)]
    flips = sum(one != other for one, other in pairwise(positions))
    assert found.estimate("flicker", "hendrycks2019").value == pytest.approx(flips / 8)


@pytest.mark.parametrize("name", ["segmentation", *EQUIVARIANT])
def test_shards_equal_one_run_bit_for_bit(name: str) -> None:
    """Blocks measured in another order, stored and read again, give the parts of one run."""
    torch.manual_seed(0)
    inner = nn.Conv2d(3, 3, 3, padding=1).eval()
    model = {"segmentation": inner}.get(name) or (lambda batch: EQUIVARIANT[name](inner(batch).sigmoid()))
    options = AuditOptions(protocols=WHOLE, max_shift=1, task=name)

    def part(session: Session, numbers: range) -> Part:
        found = session.part(photos(12)[numbers.start : numbers.stop], None, indices=torch.tensor(list(numbers)))
        return from_tensors(to_tensors(found))

    session = Session.start(model, photos()[:1], options, labelled=False)
    one = session.result(merge_parts([part(session, range(8)), part(session, range(8, 12))]))
    other = Session.start(model, photos()[:1], options, labelled=False)
    second, first = part(other, range(8, 12)), part(other, range(8))
    merged = other.result(merge_parts([first, second]))
    assert [(row.measure, row.estimate) for row in one.rows] == [(row.measure, row.estimate) for row in merged.rows]
    assert one.changed == merged.changed
    assert all(torch.equal(values, merged.maps()[key]) for key, values in one.maps().items() if not values.isnan().any())
    assert all(torch.equal(values, merged.units[key]) for key, values in one.units.items())


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in ("gruver2023", "tmeasures", "michaeli2023")])
def test_protocol_of_whole_pixels_is_measured(name: str) -> None:
    found = ss.audit(depth, photos(2), protocols=[name], max_shift=2)
    assert {row.protocol for row in found.rows} == {name}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gruver2023", "differentiates"), ("tmeasures", "units of a vector"), ("michaeli2023", "fractions of a pixel")],
)
def test_protocol_without_sense_says_why(name: str, reason: str) -> None:
    with pytest.raises(ss.InputError, match=f"{name} cannot be measured for task 'depth': it .*{reason}"):
        ss.audit(depth, photos(2), protocols=[name])


NAN = torch.full((1,), torch.nan)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("depth", lambda batch: depth(batch) * NAN, "the model returned NaN or infinity for 1 of 1 images"),
        (
            "depth",
            lambda batch: batch,
            r"task 'depth' needs \[image, 1, height, width\] .* got shape \(1, 3, 12, 12\)",
        ),
        ("flow", depth, r"task 'flow' needs \[image, 2, height, width\]"),
        ("embedding", depth, r"task 'embedding' needs \[image, feature\]"),
        ("binary", probabilities, r"task 'binary' needs one value for each image, got shape \(1, 2\). Use --task multilabel."),
        ("multilabel", depth, r"task 'multilabel' needs \[image, label\] for 1 image"),
        ("multilabel:given=shares", probabilities, "`given` of task 'multilabel' must be logits or probabilities, got 'shares'"),
        ("multilabel:given=probabilities", lambda batch: probabilities(batch) + 2, "which are not probabilities"),
        ("regression", depth, r"task 'regression' needs real numbers \[image, output\] for 1 image, got torch.float32 of shape"),
        ("answers", lambda batch: ["a", "b"], "task 'answers' needs a list of one value for each of 1 images, got 2"),
        ("answers", depth, "task 'answers' needs a whole number, a text or another value for each of 1 images"),
        ("segmentation", lambda batch: batch.flatten(1), r"task 'segmentation' needs scores \[image, class, height, width\]"),
    ],
)
def test_output_of_another_task_is_refused(name: str, model: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ss.InputError, match=message):
        ss.audit(model, photos(), task=name)


@pytest.mark.parametrize(
    ("name", "truth", "message"),
    [
        ("depth", torch.ones(6, 4, 4), r"`truth` of task 'depth' must be \[12, 12\] for each image"),
        ("depth", torch.ones(5, SIZE, SIZE), "`truth` must hold one entry for each of 6 images, got 5"),
        ("flow", torch.ones(6, SIZE, SIZE), r"`truth` of task 'flow' must be \[2, 12, 12\]"),
        ("binary", torch.tensor([0, 1, 2, 0, 1, 0]), "`truth` of task 'binary' must be 0 or 1"),
        ("multilabel", torch.ones(6, 2), "`truth` of task 'multilabel' must hold 3 labels for each image, got 2"),
        ("regression", torch.ones(6, 2), "`truth` of task 'regression' must hold 3 numbers for each image, got 2"),
    ],
)
def test_truth_of_another_form_is_refused(name: str, truth: Tensor, message: str) -> None:
    with pytest.raises(ss.InputError, match=message):
        ss.audit(EQUIVARIANT[name], photos(), task=name, truth=truth, protocols=["mouton2020"])


def test_truth_shorter_than_a_stream_of_images_is_refused() -> None:
    with pytest.raises(ss.InputError, match="`truth` must hold ground truth for each image, got 5 for 6 or more"):
        ss.audit(depth, [photos()[:3], photos()[3:]], task="depth", truth=list(torch.ones(5, SIZE, SIZE)))


def test_measures_of_every_task_are_registered_and_named() -> None:
    from shiftscope.measures import MEASURES

    for task in TASKS.values():
        assert MEASURES[task.measures[0]].better
        assert all(MEASURES[name].sentence for name in (*task.measures, *task.truth_measures))
    assert not isnan(MEASURES["flicker"].bounds[0])


def test_truth_is_refused_by_tasks_that_take_none() -> None:
    with pytest.raises(ss.InputError, match="task 'embedding' takes no ground truth"):
        ss.audit(lambda batch: batch.mean((2, 3)), photos(), task="embedding", truth=["x"] * 6, protocols=["mouton2020"])


@pytest.mark.parametrize("wrap", [lambda maps: {"head": {"depths": maps}}, lambda maps: {"head": [maps[:, :, ::2], maps]}])
def test_output_in_a_container_within_is_chosen_by_its_path(wrap: Callable[[Tensor], Any]) -> None:
    name = "head.depths" if isinstance(wrap(depth(photos()))["head"], dict) else "head.1"
    found = ss.audit(lambda batch: wrap(depth(batch)), photos(), task="depth", output=name, protocols=["chaman2021-circular"])
    assert found.estimate("depth_error").value == 0
    with pytest.raises(ss.InputError, match=f"the model returns .*'{name}'; `output` is not given"):
        ss.audit(lambda batch: wrap(depth(batch)), photos(), task="depth", protocols=["chaman2021-circular"])


def test_flow_beside_another_output_is_not_taken_for_a_refinement() -> None:
    flow = EQUIVARIANT["flow"]
    options: dict[str, Any] = {"task": "flow", "protocols": ["chaman2021-circular"]}
    for several in (lambda batch: [0 * flow(batch), flow(batch)], lambda batch: {"flows": [0 * flow(batch), flow(batch)]}):
        assert ss.audit(several, photos(), **options).rows == ss.audit(flow, photos(), **options).rows
    with pytest.raises(ss.InputError, match="the model returns '0', '1'; `output` is not given"):
        ss.audit(lambda batch: (flow(batch), batch[:, :1]), photos(), **options)


def test_headline_states_the_settings_of_the_task() -> None:
    """Points that are off by a third of their object are kept where half of it is near enough."""
    images = torch.zeros(3, 1, 24, 24)
    images[:, 0, 8:14, 8:14] = 1

    def corners(batch: Tensor) -> Tensor:
        top, left = (batch[:, 0].amax(axis).argmax(1) for axis in (2, 1))
        places = torch.stack([left + 2 * (left % 2), top], dim=1).float()[:, None]
        return torch.cat([places, places + 6], dim=1)

    found = {
        near: ss.audit(corners, images, task=f"keypoints:near={near}", protocols=["every-shift"], max_shift=2)
        for near in (0.1, 0.5)
    }
    assert found[0.5].estimate("keypoints_kept").value == 1
    assert found[0.1].estimate("keypoints_kept").value < 1
    for near, each in found.items():
        assert f"stay within {near} of the size" in each.words()
