"""The task segmentation: equivariant models agree fully, known movements give known numbers, slow loops give the same."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.tasks import View, find_task
from shiftscope.tasks.truth_files import Placement

SIZE = 12


def photos(count: int = 6, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def pixelwise(batch: Tensor) -> Tensor:
    """Classes of pixels by their own colour: equivariant under every circular shift."""
    return torch.cat([batch, 1 - batch], dim=1)


def slow(before: Tensor, after: Tensor, view: View, classes: int) -> dict[str, float]:
    """Compare two maps pixel by pixel."""
    height, width = before.shape
    same, both, either = {"all": [], "edge": [], "inside": []}, [0] * classes, [0] * classes
    pairs = {}
    for row in range(height):
        for column in range(width):
            down, right = row + view.shift[0], column + view.shift[1]
            if view.circular:
                down, right = down % height, right % width
            if 0 <= down < height and 0 <= right < width:
                pairs[row, column] = int(before[row, column]), int(after[down, right])
    for (row, column), (one, other) in pairs.items():
        near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        edge = any(each in pairs and pairs[each][0] != one for each in near)
        same["all"].append(one == other)
        same["edge" if edge else "inside"].append(one == other)
        for label in range(classes):
            both[label] += one == other == label
            either[label] += label in (one, other)
    shares = {name: sum(each) / len(each) if each else float("nan") for name, each in same.items()}
    ious = [one / other for one, other in zip(both, either, strict=True) if other]
    return {
        "mASSC": shares["all"],
        "mean_iou": sum(ious) / len(ious),
        "boundary_agreement": shares["edge"],
        "interior_agreement": shares["inside"],
    }


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-5, 1), (0, 7)])
def test_comparison_equals_a_loop_over_pixels(shift: tuple[int, int], circular: bool) -> None:
    generator = torch.Generator().manual_seed(sum(shift))
    outputs = torch.rand(2, 4, 3, 4, generator=generator).repeat_interleave(3, dim=2).repeat_interleave(2, dim=3)
    before, after = find_task("segmentation").read(outputs, 2, (9, 8))
    view = View(shift, (9, 8), circular)
    found = find_task("segmentation").compare(before, after, view, None)
    expected = slow(before.tops, after.tops, view, 4)
    for name, value in expected.items():
        assert (isnan(value) and isnan(found[name])) or found[name] == pytest.approx(value, abs=1e-12)


def test_equivariant_model_agrees_everywhere() -> None:
    found = ss.audit(pixelwise, photos(), task="segmentation", protocols=["chaman2021-circular", "mouton2020"])
    assert [(row.measure, row.estimate.value) for row in found.rows if row.estimate.value != 1] == []
    assert len(found.rows) == 8


def test_model_that_does_not_move_agrees_by_chance_only() -> None:
    """A fixed map of two halves, moved by (0, 3) circularly, agrees with itself in all but 2 x 3 of 12 columns."""

    def halves(batch: Tensor) -> Tensor:
        left = (torch.arange(SIZE) < SIZE // 2).float().expand(len(batch), SIZE, SIZE)
        return torch.stack([left, 1 - left], dim=1)

    protocol = ss.audits.protocols.Protocol("right", 3, "circular", 0, ("all_agree",), drawn=0, path=((0, 3),))
    found = ss.audit(halves, photos(), task="segmentation", protocols=[protocol])
    assert found.estimate("mASSC", "right").value == 0.5
    assert found.estimate("mean_iou", "right").value == pytest.approx(1 / 3)
    assert torch.allclose(found.units["right"], torch.tensor([1 / 3, 1 / 3]).double())


def test_ground_truth_that_the_model_repeats_is_right_at_every_shift() -> None:
    truth = pixelwise(photos()).argmax(dim=1)
    found = ss.audit(pixelwise, photos(), task="segmentation", truth=truth, protocols=["chaman2021-circular"])
    assert found.estimate("truth_iou", "unshifted").value == found.estimate("truth_pixels", "chaman2021-circular").value == 1


def test_survey_and_single_views_give_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2)).eval()
    protocol = ss.audits.protocols.Protocol(
        "all", 2, "zero", 0, ("all_agree",), drawn=0, path=tuple(map(tuple, ss.grid(2).tolist()))
    )
    found = ss.audit(model, photos(), task="segmentation", protocols=["myburgh2021", protocol], max_shift=2)
    for measure in ("mASSC", "mean_iou"):
        assert found.estimate(measure, "myburgh2021").value == pytest.approx(found.estimate(measure, "all").value, abs=1e-6)
    assert found.maps()["zero 2/mASSC"][2, 2] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "segmentatoin"}, "there is no task 'segmentatoin'. Did you mean 'segmentation'?"),
        ({"task": "segmentation:level=2"}, "task 'segmentation' has no setting 'level'. Its settings are kept, ignored."),
        ({"task": "segmentation:ignored=x"}, "'ignored' of task 'segmentation' must be a number, got 'x'."),
        ({"task": "segmentation", "protocols": ["gruver2023"]}, "gruver2023 cannot be measured for task 'segmentation'"),
        (
            {"task": "segmentation", "truth": torch.zeros(5, SIZE, SIZE).long()},
            "`truth` must hold one entry for each of 6 images, got 5",
        ),
        ({"task": "segmentation", "truth": torch.zeros(6, 4, 4).long()}, r"must be whole numbers \[12, 12\] for each image"),
        ({"truth": torch.zeros(6, SIZE, SIZE).long()}, "`truth` is ground truth for a task, but the output does not tell which."),
    ],
)
def test_bad_input_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ss.InputError, match=message):
        ss.audit(pixelwise, photos(), **settings)


@pytest.mark.parametrize("given", ["logits", "probabilities"])
def test_one_channel_is_read_as_two_classes(given: str) -> None:
    logits = photos(3)[:, :1] - 0.5
    one = logits if given == "logits" else logits.sigmoid()
    task = find_task(f"segmentation:given={given}")
    expected = find_task("segmentation").read(torch.cat([-logits, logits], dim=1), 3, (SIZE, SIZE))
    found = task.read(one, 3, (SIZE, SIZE))
    assert all(torch.equal(mine.tops, theirs.tops) and mine.classes == 2 for mine, theirs in zip(found, expected, strict=True))


def test_probabilities_of_one_channel_that_are_read_as_logits_are_doubted() -> None:
    def sigmoid(batch: Tensor) -> Tensor:
        return (8 * (batch[:, :1] - 0.5)).sigmoid()

    remedy = "add --task segmentation:given=probabilities"
    found = ss.audit(sigmoid, photos(), task="segmentation", protocols=["every-shift"], max_shift=1)
    assert remedy in " ".join(found.warnings)
    assert remedy in " ".join(ss.certify(sigmoid, photos(), task="segmentation", radius=1).warnings)
    read = ss.audit(sigmoid, photos(), task="segmentation:given=probabilities", protocols=["every-shift"], max_shift=1)
    logits = ss.audit(lambda batch: batch[:, :1] - 0.5, photos(), task="segmentation", protocols=["every-shift"], max_shift=1)
    for each in (read, logits):
        assert remedy not in " ".join(each.warnings)


def test_logits_of_one_channel_are_no_probabilities() -> None:
    with pytest.raises(ss.InputError, match="which are not probabilities"):
        find_task("segmentation:given=probabilities").read(photos(2)[:, :1] - 0.5, 2, (SIZE, SIZE))


@pytest.mark.parametrize("channel", [False, True])
def test_whole_numbers_are_classes_of_pixels(channel: bool) -> None:
    scores = pixelwise(photos())
    expected = ss.audit(pixelwise, photos(), task="segmentation", protocols=["chaman2021-zero"])

    def classes(batch: Tensor) -> Tensor:
        return pixelwise(batch).argmax(dim=1, keepdim=channel)

    found = ss.audit(classes, photos(), protocols=["chaman2021-zero"])
    assert found.task == "segmentation"
    for name in ("mASSC", "mean_iou"):
        assert found.estimate(name, "chaman2021-zero") == expected.estimate(name, "chaman2021-zero")
    small = find_task("segmentation").read(scores.argmax(dim=1)[:, ::2, ::2], 6, (SIZE, SIZE))
    assert small[0].tops.shape == (SIZE, SIZE)


def test_classes_of_pixels_beyond_a_byte_are_refused() -> None:
    with pytest.raises(ss.InputError, match="classes of pixels from 0 to 300"):
        find_task("segmentation").read(torch.tensor([[[0, 300], [0, 0]]]), 1, (2, 2))


@pytest.mark.parametrize("label", [-1, 6, 21])
def test_truth_with_a_label_that_the_model_lacks_is_refused(label: int) -> None:
    truth = torch.zeros(6, SIZE, SIZE, dtype=torch.long)
    truth[2, 3, 3] = label
    with pytest.raises(ss.InputError, match=f"label {label}, and the model has classes 0 to 5.*segmentation:ignored={label}"):
        ss.audit(pixelwise, photos(), task="segmentation", truth=truth, max_shift=2)
    assert ss.audit(pixelwise, photos(), task=f"segmentation:ignored={label}", truth=truth, max_shift=2).rows


def test_masks_of_0_and_255_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(255 * np.eye(8, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    names, place = [f"{number}.png" for number in range(3)], Placement((8, 8), None)
    with pytest.raises(ss.InputError, match="hold only the labels 0 and 255, and 255 stands for no class"):
        find_task("segmentation").open_truth(tmp_path, names, place)
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "2.png")
    assert len(find_task("segmentation").open_truth(tmp_path, names, place)) == 3


def test_maps_of_nothing_but_the_ignored_background_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "0.png")
    assert len(find_task("segmentation:ignored=0").open_truth(tmp_path, ["0.png"], Placement((8, 8), None))) == 1


def test_maps_that_nothing_names_say_what_they_are_taken_for() -> None:
    found = ss.audit(pixelwise, photos(), max_shift=2)
    assert found.task == ""
    assert f"The output is taken as scores of 6 classes at {SIZE}x{SIZE} positions." in " ".join(found.notes)
