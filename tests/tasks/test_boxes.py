"""Boxes of shifted images are moved back and compared: perfect detectors score exactly 1, and faults are what they are."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from detectors import rectangles, scenes, snapping
from shiftscope.audits import Audit, AuditOptions, Session, audit, merge_parts
from shiftscope.audits.gate import judge_audit, read_condition
from shiftscope.audits.periods import periods
from shiftscope.audits.stored import from_tensors, to_tensors
from shiftscope.errors import InputError
from shiftscope.report import Maps
from shiftscope.report.audit import audit_page
from shiftscope.tasks.boxes import Boxes
from shiftscope.tasks.detections import Detections, read_detections
from shiftscope.tasks.matching import areas
from shiftscope.tasks.objects import Objects
from shiftscope.tasks.task import Pair, View

VIEW = View((0, 0), (100, 100), circular=False)
BEST = {"better": {"more": 1.0, "less": 0.0}}
#: Measures that a detector which moves along with the image has, exactly.
PERFECT = {"box_survival": 1, "confidence_change": 0, "worst_confidence_change": 0, "box_iou": 1, "box_jitter": 0}
PERFECT |= {"label_switches": 0, "box_deaths": 0, "box_births": 0, "objects_found": 1, "ap": 1, "ap50": 1, "ap75": 1}


def detections(*rows: tuple[float, ...]) -> Detections:
    """Return detections from (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, dtype=float).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(int))


ONE = (20, 20, 40, 40, 0.9, 1)
OTHER = (60, 60, 80, 80, 0.8, 2)


def compared(before: Detections, after: Detections, view: View = VIEW) -> dict[str, float]:
    return Boxes().compare(before, after, view, None)


@pytest.fixture(scope="module")
def perfect() -> Audit:
    images, truth = scenes(3)
    return audit(rectangles, images, truth=truth, max_shift=2, protocols=["mouton2020", "chaman2021-circular", "every-shift"])


def test_perfect_detector_scores_exactly_one_everywhere(perfect: Audit) -> None:
    found = {(row.protocol, row.measure): row.estimate.value for row in perfect.rows}
    wrong = {key: value for key, value in found.items() if key[1] in PERFECT and value != PERFECT[key[1]]}
    assert wrong == {}
    assert {measure for _, measure in found} > set(PERFECT)
    assert all((values == PERFECT[name.split("/")[1]]).all() for name, values in perfect.maps().items() if name[7:] in PERFECT)


def test_average_precision_has_a_map_in_json_and_page(perfect: Audit) -> None:
    assert perfect.maps()["zero 2/ap"].tolist() == [[1.0] * 5] * 5
    assert "zero 2/ap/low" in perfect.to_json()["maps"]
    drawn = [each for each in audit_page(perfect).sections if isinstance(each, Maps)]
    assert [each.title for each in drawn] == ["Sensitivity map", "Average precision at every shift"]


def test_perfect_detector_has_no_period(perfect: Audit) -> None:
    assert {each.pixels for each in periods(perfect.surveys["zero 2"]).values()} == {None}


def test_blocks_that_are_stored_and_merged_equal_one_run(perfect: Audit) -> None:
    images, truth = scenes(3)
    known = AuditOptions(max_shift=2, protocols=["mouton2020", "chaman2021-circular", "every-shift"], truth=truth)
    session = Session.start(rectangles, images[:1], known, labelled=False)
    parts = [session.part(images[list(each)], None, indices=torch.tensor(each)) for each in ([0], [1, 2])]
    stored = [from_tensors(to_tensors(part)) for part in parts]
    assert session.result(merge_parts(stored)).rows == perfect.rows


def test_totals_of_a_detector_are_those_it_names(perfect: Audit) -> None:
    assert {row.measure for row in perfect.rows if row.measure.startswith("ap")} <= set(Boxes().total_measures)


def test_gate_reads_measures_of_detectors(perfect: Audit) -> None:
    conditions = [read_condition(text) for text in ("average precision < 0.5", "box_survival of mouton2020 < 0.5", "ap > 0.3")]
    assert [judge_audit(perfect, [each]).exit_code for each in conditions] == [0, 0, 1]


def test_snapping_to_a_grid_of_eight_is_caught_with_period_eight() -> None:
    images, _ = scenes(1)
    found = audit(snapping(8), images, max_shift=8, protocols=["every-shift"])
    named = periods(found.surveys["zero 8"])
    assert named["box_jitter"].pixels == named["confidence_change"].pixels == 8
    assert named["box_jitter"].lattice == 0 < named["box_jitter"].off_lattice  # type: ignore[operator]
    assert any(note.startswith("The effect of a shift repeats every 8 pixels, as after a stride of 8") for note in found.notes)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (detections(ONE, OTHER), {"box_survival": 1, "confidence_change": 0, "box_births": 0}),
        (detections(ONE), {"box_survival": 0.5, "box_deaths": 0.5, "confidence_change": 0.4, "worst_confidence_change": 0.8}),
        (detections(ONE, (*OTHER[:4], 0.8, 3)), {"box_survival": 0.5, "label_switches": 0.5, "box_deaths": 0, "box_births": 0}),
        (detections(ONE, (*OTHER[:4], 0.3, 2)), {"box_survival": 0.5, "box_deaths": 0.5, "confidence_change": 0.25}),
        (detections(ONE, OTHER, (60, 20, 70, 30, 0.7, 1)), {"box_survival": 1, "box_births": 1}),
        (detections(ONE, OTHER, (60, 20, 70, 30, 0.4, 1)), {"box_survival": 1, "box_births": 0}),
        (detections((22, 20, 42, 40, 0.9, 1), OTHER), {"box_survival": 1, "box_jitter": 0.5, "box_iou": (1 + 18 / 22) / 2}),
        (detections(), {"box_survival": 0, "box_deaths": 1, "box_births": 0, "confidence_change": 0.85}),
    ],
    ids=["same", "gone", "switched", "faded", "born", "born below threshold", "jitter", "nothing"],
)
def test_fates_of_detections(after: Detections, expected: dict[str, float]) -> None:
    found = compared(detections(ONE, OTHER), after)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_no_detections_at_all_are_not_defined() -> None:
    found = compared(detections(), detections())
    assert np.isnan(found["box_survival"]) and np.isnan(found["boxes_cut"])
    assert found["box_births"] == 0


def test_audit_without_a_detection_says_so() -> None:
    images, _ = scenes(2)
    found = audit(rectangles, images, max_shift=2, protocols=["mouton2020"], task="boxes:threshold=0.99")
    assert found.words().startswith("No image has a detection with a confidence of 0.99 or more")


def drawn(generator: np.random.Generator, count: int) -> Detections:
    """Return detections that overlap and repeat, some across a border."""
    corners = generator.integers(-5, 80, (count, 2)).repeat(2, axis=0)[:count]
    boxes = np.concatenate([corners, corners + generator.integers(10, 40, (count, 2))], axis=1).astype(float)
    return Detections(boxes, generator.random(count), generator.integers(0, 2, count))


def drawn_pair(seed: int) -> Pair:
    """Return two answers with up to 12 detections each, and an image's objects; every fourth image has none known."""
    generator = np.random.default_rng(seed)
    truth = drawn(generator, 4)
    objects = Objects(truth.boxes, truth.labels, areas(truth.boxes), truth.scores < 0.2) if seed % 4 else None
    view = View((int(generator.integers(-8, 9)), 3), (100, 100), circular=seed % 3 == 0, reach=8.0)
    before, more = drawn(generator, int(generator.integers(0, 12))), drawn(generator, 2)
    joined = (np.concatenate([getattr(each, name) for each in (before, more)]) for name in ("boxes", "scores", "labels"))
    return Pair(before, Detections(*joined).moved(view.shift), view, objects)


def test_pairs_compared_together_equal_each_alone() -> None:
    pairs, task = [drawn_pair(seed) for seed in range(24)], Boxes()
    together, judged = task.compare_all(pairs), task.records_all(pairs)
    for pair, found, rows in zip(pairs, together, judged, strict=True):
        assert found == pytest.approx(task.compare(pair.before, pair.after, pair.view, pair.truth), abs=0, nan_ok=True)
        alone = task.records(pair.after, pair.view, pair.truth)
        assert (rows is None and alone is None) or (rows is not None and alone is not None and torch.equal(rows, alone))
    assert {len(each) for each in together} == {12, 13}


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("shift", [(0, 5), (7, -3), (-15, 25)])
def test_boxes_that_move_along_survive(shift: tuple[int, int], circular: bool) -> None:
    before = detections(ONE, OTHER)
    found = compared(before, before.moved(shift), replace(VIEW, shift=shift, circular=circular))
    left_out = sum((before.moved(shift).boxes < 1).any(axis=1) | (before.moved(shift).boxes > 99).any(axis=1))
    assert (found["box_survival"], found["boxes_cut"]) == (1, left_out / 2)


def test_box_that_a_border_cuts_is_left_out_and_counted() -> None:
    before, after = detections(ONE, (85, 20, 98, 40, 0.9, 1)), detections((25, 20, 45, 40, 0.9, 1), (90, 20, 100, 40, 0.6, 1))
    found = compared(before, after, replace(VIEW, shift=(0, 5)))
    assert (found["box_survival"], found["boxes_cut"], found["box_births"], found["confidence_change"]) == (1, 0.5, 0, 0)


def test_box_across_a_circular_border_is_left_out() -> None:
    before = detections(ONE, (0, 60, 6, 80, 0.9, 1), (90, 60, 100, 80, 0.9, 1))  # an object in two parts
    after = detections((30, 20, 50, 40, 0.9, 1), (0, 60, 16, 80, 0.9, 1))  # whole now
    found = compared(before, after, replace(VIEW, shift=(0, 10), circular=True))
    assert (found["box_survival"], found["box_births"]) == (1, 0)
    assert found["boxes_cut"] == pytest.approx(2 / 3)


def test_confidence_change_is_split_by_size() -> None:
    large = (2, 2, 99, 99, 0.9, 5)
    found = compared(detections(ONE, large), detections(ONE, (*large[:4], 0.7, 5)))
    assert found["confidence_change_small"] == 0
    assert found["confidence_change_large"] == pytest.approx(0.2)
    assert np.isnan(found["confidence_change_medium"])


BOXES, SCORES, LABELS = torch.tensor([[1.0, 2, 5, 6], [3, 3, 9, 8]]), torch.tensor([0.9, 0.4]), torch.tensor([3, 7])
TORCHVISION = {"boxes": BOXES, "scores": SCORES, "labels": LABELS}
RESULTS = SimpleNamespace(boxes=SimpleNamespace(xyxy=BOXES, conf=SCORES, cls=LABELS.float()))


@pytest.mark.parametrize(
    "output",
    [
        [TORCHVISION, TORCHVISION],
        [RESULTS, RESULTS],
        [(BOXES, SCORES, LABELS), (BOXES, SCORES, LABELS)],
        tuple(torch.stack([each, each]) for each in (BOXES, SCORES, LABELS)),
        {"boxes": BOXES[None].repeat(2, 1, 1), "scores": SCORES[None].repeat(2, 1), "labels": LABELS[None].repeat(2, 1)},
        torch.cat([BOXES, SCORES[:, None], LABELS[:, None]], dim=1)[None].repeat(2, 1, 1),
    ],
    ids=["torchvision", "ultralytics", "tuples", "batched tuple", "batched mapping", "one tensor"],
)
def test_each_form_of_output_is_read(output: Any) -> None:
    for each in read_detections(output, 2, (10, 20)):
        assert (each.boxes == BOXES.numpy()).all() and each.labels.tolist() == [3, 7]
        assert each.scores == pytest.approx([0.9, 0.4])


def test_images_read_together_equal_each_alone() -> None:
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    others = [none, {**TORCHVISION, "scores": SCORES.double()}, {**TORCHVISION, "boxes": BOXES + 1}]
    for images in ([TORCHVISION, *others], [TORCHVISION, none, others[2]]):  # of two types, and alike
        for found, image in zip(read_detections(images, len(images), (10, 20)), images, strict=True):
            alone = read_detections([image], 1, (10, 20))[0]
            assert all((getattr(found, name) == getattr(alone, name)).all() for name in ("boxes", "scores", "labels"))
            assert len(found) == len(image["scores"])


@pytest.mark.parametrize("bad", [{"boxes": BOXES.flip(1)}, {"scores": SCORES * 10}, {"labels": LABELS + 0.5}])
def test_bad_image_among_good_ones_is_found(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Boxes().read([TORCHVISION, {**TORCHVISION, "labels": LABELS.float(), **bad}], 2, (10, 20))


QUERIES = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.1, 0.2]]])


def test_no_object_class_is_left_out_where_the_configuration_says_it() -> None:
    logits = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 1.0, 3.0]]])
    found = read_detections({"logits": logits, "pred_boxes": QUERIES}, 1, (10, 20), classes=2)[0]
    assert found.boxes == pytest.approx(np.array([[8.0, 3, 12, 7], [4, 4, 6, 6]]))
    assert found.labels.tolist() == [0, 1]
    assert found.scores == pytest.approx(logits.softmax(-1)[0, :, :2].max(-1).values.numpy())


def test_sigmoid_scores_are_read_where_no_class_stands_for_no_object() -> None:
    logits = torch.tensor([[[5.0, 4.0], [0.0, 1.0]]])
    found = read_detections(SimpleNamespace(logits=logits, pred_boxes=QUERIES), 1, (10, 20), classes=2)[0]
    assert found.labels.tolist() == [0, 1]
    assert found.scores == pytest.approx(torch.tensor([5.0, 4.0]).sigmoid().numpy())
    assert (found.boxes[0] == found.boxes[1]).all()  # both classes of one query


@pytest.mark.parametrize("classes", [None, 7])
def test_unknown_no_object_class_is_asked_for(classes: int | None) -> None:
    with pytest.raises(InputError, match="--task boxes:no_object=last"):
        read_detections({"logits": torch.zeros(1, 2, 3), "pred_boxes": QUERIES}, 1, (10, 20), classes=classes)


def test_model_without_configuration_is_asked_and_with_one_not() -> None:
    model = torch.nn.Sequential()
    model.config = SimpleNamespace(num_labels=2)  # type: ignore[assignment]
    output = {"logits": torch.zeros(1, 2, 3), "pred_boxes": QUERIES}
    assert len(Boxes().knowing(model).read(output, 1, (10, 20))[0]) == 2
    with pytest.raises(InputError, match="may stand for no object"):
        Boxes().knowing(torch.nn.Sequential()).read(output, 1, (10, 20))


def broken(**changes: Any) -> list[dict[str, Any]]:
    return [{**TORCHVISION, **changes}]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (broken(scores=SCORES[:1]), "must have one entry per box of an image, got 2, 1 and 2"),
        (broken(boxes=BOXES.clone().fill_(float("nan"))), "NaN or infinity"),
        (broken(scores=SCORES / 0), "NaN or infinity"),
        (broken(boxes=BOXES.flip(1)), "x1 <= x2 and y1 <= y2, got 6 5 2 1"),
        (broken(scores=SCORES * 10), r"`scores` must be in \[0, 1\], got 4 to 9"),
        (broken(labels=LABELS + 0.5), "`labels` must be whole numbers, got 3.5"),
        (broken(boxes=BOXES[:, :3]), r"`boxes` must be \[box, 4\]"),
        (broken(boxes="many"), "got str in place of numbers"),
        ([TORCHVISION, TORCHVISION], "the model returned 2 for 1 image"),
        ([{"boxes": BOXES}], "got dict of 'boxes' for an image"),
        (torch.zeros(1, 5), r"got a tensor of shape \(1, 5\)"),
        ({"logits": torch.zeros(1, 3, 4), "pred_boxes": QUERIES}, "do not belong together"),
    ],
)
def test_bad_output_is_one_sentence(output: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Boxes().read(output, 1, (10, 20))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("setting", [{"threshold": 0.0}, {"overlap": 1.5}, {"no_object": "first"}, {"truth_labels": "name"}])
def test_bad_setting_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(setting))}` of task 'boxes' must be"):
        Boxes(**setting)


def test_picture_shows_boxes_moved_back() -> None:
    picture = torch.zeros(3, 100, 100)
    drawn = Boxes().draw(
        picture, detections(ONE, (60, 60, 80, 80, 0.2, 1)).moved((5, 3)), View((5, 3), (100, 100), circular=False)
    )
    rows, columns = drawn.sum(dim=0).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 20, 39)
