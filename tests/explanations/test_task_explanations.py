"""Explanations of maps, boxes and labels: networks whose cause is known by construction, and models that cannot be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detectors import scenes, snapping
from shiftscope import InputError, explain
from shiftscope.explanations import TaskExplanation
from shiftscope.explanations.lattice import path_shifts
from shiftscope.explanations.task_causes import lattice_shifts


class Maps(nn.Module):
    """Two convolutions, one of which may subsample by 4, and their map at the image's size."""

    def __init__(self, padding: str, stride: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        around: dict[str, Any] = {"padding": 1, "padding_mode": padding}
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, **around), nn.ReLU(), nn.Conv2d(6, 1, 3, stride, **around))
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        found = self.body(images).repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)
        return found.abs() + 0.1


class Untraceable(Maps):
    """The same with code that depends on values."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if float(images.sum()) > -1 else images


class Snapping(nn.Module):
    """A detector whose boxes lie on a grid of so many pixels, with a layer that nothing uses."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.detect, self.unused = snapping(step), nn.Conv2d(1, 1, 3)

    def forward(self, images: Tensor) -> Any:
        return self.detect(images)


def images(count: int = 6, size: int = 24) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def explained(model: nn.Module, **options: Any) -> TaskExplanation:
    named = {"task": "depth"} if isinstance(model, Maps) else {}  # values below 1 may be those of a mask
    found = explain(model.eval(), options.pop("images", images()), shifts=2, **{**named, **options})
    assert isinstance(found, TaskExplanation)
    return found


@pytest.mark.parametrize("kind", [Maps, Untraceable])
@pytest.mark.parametrize(
    ("padding", "stride", "main", "shares"),
    [
        ("circular", 4, "aliasing", {"borders": 0.0, "aliasing": 1.0}),
        ("zeros", 1, "borders", {"borders": 1.0, "aliasing": None}),
    ],
)
def test_only_cause_by_construction_has_all_of_the_change(
    kind: type[Maps], padding: str, stride: int, main: str, shares: dict[str, float | None]
) -> None:
    found = explained(kind(padding, stride), mode="circular", max_shift=3)
    assert found.task.name == "depth"
    assert found.causes.main == main
    for cause in found.causes.causes[:2]:
        assert (cause.share.value if cause.share else None) == (pytest.approx(shares[cause.name], abs=1e-4))
    assert sum(each.part.value for each in found.causes.causes if each.part) == pytest.approx(found.causes.total.value)  # type: ignore[union-attr]
    assert found.causes.factor == (stride, stride)
    assert bool(found.unread) == (kind is Untraceable)


def test_model_that_follows_every_shift_has_no_change() -> None:
    found = explained(Maps("circular", 1), mode="circular", max_shift=3)
    assert found.nothing_changes
    assert found.verdict.endswith("Nothing changes under these shifts.")
    assert found.causes.main == ""


def test_lattice_is_that_of_the_stride() -> None:
    lattice = explained(Maps("circular", 4), mode="circular", max_shift=3).lattice
    assert lattice.step == lattice.period.pixels == 4
    assert lattice.on is not None
    assert lattice.gain is not None
    assert lattice.on.value == pytest.approx(0, abs=1e-6)
    assert lattice.gain.low > 0.1
    assert "multiples of 4 pixels change the answer by" in lattice.sentence()


def test_lattice_of_a_detector_without_layers_is_its_period() -> None:
    pictures, truth = scenes(4)
    found = explained(Snapping(8), images=pictures, truth=truth, max_shift=2)
    assert found.lattice.step == 8
    assert found.causes.main == ""
    assert all(each.reason == "the subsampling factor is not known" for each in found.causes.causes[:2])
    assert "By cause: unknown, because the subsampling factor is not known." in found.verdict
    best = found.fixes.ranked[0]
    assert best.kinds == ("canonical",)
    assert best.truth is not None
    assert "--with canonical" in best.command


def test_layers_are_compared_with_hooks_where_no_graph_is_read() -> None:
    found = explained(Untraceable("zeros", 4), max_shift=3)
    assert found.layers is not None
    assert [layer.name for layer in found.layers.layers] == ["canvas", "body.0", "body.1", "body.2"]
    assert found.layers.layer("body.2").factor == (4, 4)
    assert any("hooks" in note for note in found.notes)


def test_labels_have_a_head() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(4 * 256, 1))
    found = explained(model, images=images(6, 16), mode="circular", max_shift=3)
    assert found.task.name == "binary"
    assert found.causes.main == "head"


def test_fixes_are_ranked_and_those_that_make_no_sense_are_missing() -> None:
    found = explained(Maps("zeros", 4), mode="circular", max_shift=3)
    kinds = [each.kinds for each in found.fixes.ranked]
    assert set(kinds) == {(kind,) for kind in ("blur", "circular", "aps", "canonical", "average")}
    assert found.fixes.ranked[0].kinds == ("canonical",)
    boxes = explained(Snapping(8), images=scenes(3)[0], max_shift=2)
    assert {each.kinds for each in boxes.fixes.ranked} == {("blur",), ("circular",), ("canonical",)}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"task": "depht"}, "there is no task 'depht'"),
        ({"task": "flow"}, "task 'flow' needs"),
        ({"truth": [1]}, "`truth` must hold one for each of 6 images"),
        ({"task": "depth", "output": "deep"}, "`output` is 'deep'"),
        ({"mode": "crop"}, "`mode` 'crop' needs images larger"),
        ({"images": images(1)}, "2 or more images"),
    ],
)
def test_wrong_input_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        explained(Maps("zeros", 4), **options)


def test_drawn_lattice_shifts_are_multiples_within_reach() -> None:
    like = torch.tensor([[[9, -3], [1, 0]]]).expand(50, -1, -1)
    found = lattice_shifts(like, (32, 24), (4, 8), torch.Generator().manual_seed(0))
    assert found is not None
    assert found.shape == like.shape
    assert not (found % torch.tensor([4, 8])).any()
    assert found.any(dim=2).all()
    assert found.abs().amax(dim=(0, 1)).tolist() == [8, 8]
    assert lattice_shifts(like, (8, 8), (8, 8), torch.Generator()) is None
    assert len(path_shifts(3)) == 12


class Collapsing(nn.Module):
    """Maps of two classes, told apart by what zeros around the image add; with circular padding one class is everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.padded = nn.Conv2d(1, 1, 5, padding=2, bias=False)
        nn.init.constant_(self.padded.weight, 1 / 25)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        level = self.padded(0.9 + 0.1 * images)
        return {"out": torch.cat([level - 0.57, torch.zeros_like(level)], dim=1), "aux": level}


def test_copy_that_gives_all_images_one_answer_explains_nothing() -> None:
    found = explained(Collapsing(), mode="circular", max_shift=3)
    assert found.task.name == "segmentation"  # the map of several outputs is found by its name
    assert found.causes.main == ""
    alike = "with circular padding, all images get much the same answer, so that nothing can be compared"
    assert [each.reason for each in found.causes.causes] == [alike, alike, "contains borders and aliasing"]
    circular = next(each for each in found.fixes.ranked if each.kinds == ("circular",))
    assert circular.gain is None
    assert "all images get much the same answer" in circular.reason


def test_model_with_one_answer_for_all_images_gets_a_warning() -> None:
    found = explained(Collapsing(), images=torch.ones(3, 1, 24, 24), max_shift=3)
    assert found.warnings == ("All images get the same answer, so that their stability says nothing about the model.",)


def test_interval_of_few_equal_changes_is_that_of_the_measure() -> None:
    total = explained(Snapping(8), images=scenes(2)[0], max_shift=2).causes.total
    assert total is not None
    assert (total.low, total.high) != (total.value, total.value)
    assert 0 <= total.low <= total.value <= total.high <= 1


def test_factor_of_sizes_that_do_not_divide_is_unknown_unless_confirmed() -> None:
    class Resizing(Untraceable):
        def forward(self, images: Tensor) -> Tensor:
            size = images.shape[-2:]
            smaller = nn.functional.interpolate(images, (20, 20), mode="bilinear")
            return nn.functional.interpolate(super().forward(smaller), size, mode="bilinear")

    found = explained(Resizing("zeros", 4), images=images(4, 26), max_shift=3)
    assert found.causes.factor is None
    assert all(each.part is None for each in found.causes.causes[:2])
