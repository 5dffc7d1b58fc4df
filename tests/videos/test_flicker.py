"""Answers to successive frames change where a constructed model changes them, whatever the batch; bad frames are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import as_users_import_it
from shiftscope import InputError
from shiftscope.videos import flicker, frames_flicker


def video(count: int = 7, size: int = 6) -> Tensor:
    """Frames whose brightness is their number."""
    return (torch.arange(count) / 100)[:, None, None, None].expand(count, 3, size, size)


def number(batch: Tensor) -> Tensor:
    return (100 * batch[:, 0, 0, 0]).round().long()


def scores(classes: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(classes, 2).float()


def texts(classes: Tensor) -> list[str]:
    return [str(each) for each in classes.tolist()]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("form", [scores, texts])
@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        (lambda at: at % 2, [1, 1, 1, 1, 1, 1]),
        (lambda at: 0 * at, [0, 0, 0, 0, 0, 0]),
        (lambda at: (at >= 4).long(), [0, 0, 0, 1, 0, 0]),
    ],
    ids=["parity", "constant", "one step"],
)
def test_answers_change_where_the_model_changes_them(answer: Any, changes: list[int], form: Any, batch_size: int) -> None:
    found = frames_flicker(lambda batch: form(answer(number(batch))), video(), batch_size=batch_size)
    assert found.changes[0].tolist() == changes
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(sum(changes) / 6)
    assert (found.estimate.low, found.estimate.high) == (0, 1)  # one video says nothing about others
    assert (found.measure, found.task) == (("top1_change", "") if form is scores else ("same_answer", "answers"))


def test_depth_changes_by_its_relative_error() -> None:
    """Depths of 1, 2 and 3: the relative error to the frame before is 1 and then a half."""

    def model(batch: Tensor) -> Tensor:
        return (1.0 + number(batch))[:, None, None, None].expand(-1, 1, 6, 6)

    found = frames_flicker(model, video(3), task="depth")
    assert found.task == "depth"
    assert found.changes[0].tolist() == pytest.approx([1, 0.5])


def test_maps_of_classes_change_at_the_pixels_that_change() -> None:
    """A quarter of the pixels follows the parity of the frame."""

    def model(batch: Tensor) -> Tensor:
        classes = torch.zeros(len(batch), 6, 6, dtype=torch.long)
        classes[:, :3, :3] = (number(batch) % 2)[:, None, None]
        return scores(classes).movedim(-1, 1)

    found = frames_flicker(model, video(4))
    assert found.task == "segmentation"
    assert found.changes[0].tolist() == pytest.approx([0.25] * 3)


def test_interval_is_over_videos_of_any_length() -> None:
    videos = [video(count) for count in range(3, 11)]
    found = frames_flicker(lambda batch: scores((number(batch) >= 2).long()), videos)
    shares = [1 / steps for steps in range(2, 10)]
    assert [float(each.mean()) for each in found.changes] == pytest.approx(shares)
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(sum(shares) / 8)
    assert 0 < found.estimate.low < found.estimate.value < found.estimate.high < 1
    assert found.estimate.count == 8
    assert len(found.tables()[0].rows) == sum(range(2, 10))


def test_video_without_a_value_leaves_the_mean() -> None:
    """The survival of no detections is not defined."""

    def model(batch: Tensor) -> list[dict[str, Tensor]]:
        box = torch.tensor([[1.0, 1.0, 4.0, 4.0]])
        counts = (number(batch) > 0).long().tolist()
        return [{"boxes": box[:each], "scores": torch.ones(each), "labels": torch.zeros(each)} for each in counts]

    dark, bright = torch.zeros(3, 3, 6, 6), video(4)[1:]
    found = frames_flicker(model, [dark, bright])
    assert found.changes[0].isnan().all() and found.changes[1].tolist() == [0, 0]
    assert found.estimate is not None and found.estimate.count == 1
    nothing = frames_flicker(model, dark)
    assert nothing.estimate is None
    assert nothing.words() == "Nothing could be measured: no step has a value."


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ([], "at least one sequence"),
        (video(1), "two frames or more, got shape"),
        (video()[0], "two frames or more, got shape"),
        (torch.zeros(3, 3, 6, 6, dtype=torch.uint8), "finite floating point in .0, 1., got torch.uint8"),
        (video() / 0, "got NaN or infinity"),
    ],
)
def test_other_frames_are_refused(frames: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        frames_flicker(lambda batch: scores(number(batch) % 2), frames)


def test_batch_without_frames_is_refused() -> None:
    with pytest.raises(InputError, match="`batch_size` must be 1 or more"):
        frames_flicker(lambda batch: scores(number(batch) % 2), video(), batch_size=0)


def test_frames_of_other_forms_say_what_to_do() -> None:
    def model(batch: Tensor) -> Tensor:
        return batch.mean((2, 3))

    for frames, message in (
        (torch.rand(2, 3, 3, 8, 8), "Of several videos, give a list"),
        (["video"], "`frames` must be tensors, got str"),
        (torch.rand(3, 3, 8, 8).numpy(), "`frames` must be tensors, got ndarray"),
    ):
        with pytest.raises(InputError, match=message):
            as_users_import_it(flicker).frames_flicker(model, frames)
    bright = frames_flicker(model, 255 * torch.rand(3, 3, 8, 8))
    assert any("255" in note for note in bright.notes)
