"""Radii equal those of brute force, cost less, and are refused where they would say nothing."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from classifiers import Case, brute_force, random_case
from shiftscope import Certificate, InputError, certify


def step(images: Tensor) -> Tensor:
    """Answer 1 where the upper left pixel is bright; outputs are shares."""
    bright = images[:, 0, 0, 0]
    return torch.stack([1 - bright, bright], dim=1)


def dot(row: int, column: int, size: int = 9) -> Tensor:
    """Return one bright pixel."""
    image = torch.zeros(1, 1, size, size)
    image[0, 0, row, column] = 1
    return image


def certified(case: Case, **others: object) -> Certificate:
    return certify(case.model, case.images, **{**case.options, **others})


@pytest.mark.parametrize("seed", range(20))
def test_radii_equal_brute_force(seed: int) -> None:
    case = random_case(seed)
    found = certified(case).radii.tolist()
    for radius, (least, most) in zip(found, brute_force(case), strict=True):
        assert least <= radius <= most


@pytest.mark.parametrize(("method", "mode"), [("direct", "zero"), ("dense", "zero"), ("direct", "circular")])
def test_radius_is_the_distance_to_the_first_change(method: str, mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, 2 * 9 + 4] = 2  # answer 0 where the pixel at (2, 4) is bright
        model[1].weight[1] = 1
    images = torch.cat([dot(2, 4), dot(4, 4), dot(5, 8), dot(8, 4)])
    found = certify(model, images, radius=4, method=method, mode=mode)
    assert found.part.tops.tolist() == [0, 1, 1, 1]
    # Where a dot leaves the image, no class leads.
    assert found.radii.tolist() == ([0, 1, 3, 2] if mode == "circular" else [0, 1, 0, 0])


def test_images_that_fail_early_cost_little() -> None:
    calls = []

    def counted(images: Tensor) -> Tensor:
        calls.append(len(images))
        return step(images)

    images = dot(1, 1).repeat(20, 1, 1, 1)
    found = certify(counted, images, radius=4)
    assert found.radii.tolist() == [0] * 20
    assert sum(calls) <= 20 * 10
    assert found.part.views < 20 * 10


def test_shares_and_labels() -> None:
    images = torch.cat([dot(1, 1), dot(4, 4), dot(3, 3), dot(0, 0)])
    found = certify(step, images, torch.tensor([0, 0, 1, 1]), radius=3, mode="circular")
    assert found.radii.tolist() == [0, 3, 2, 0]
    assert [found.unchanged(radius).value for radius in range(4)] == [1, 0.5, 0.5, 0.25]
    assert [found.certified(radius).value for radius in range(4)] == [0.75, 0.25, 0.25, 0.25]
    assert [row["radius"] for row in found.table().rows] == [0, 1, 2, 3]
    plain = json.loads(json.dumps(found.to_json()))
    assert [each["radius"] for each in plain["images"]] == [0, 3, 2, 0]
    assert plain["provenance"]["border"] == "circular"


def test_without_labels_nothing_is_right() -> None:
    found = certify(step, dot(4, 4), radius=2)
    assert found.right is None
    assert found.certified(1) is None
    assert found.table().columns == ("radius", "unchanged")


def test_same_class_for_all_images_is_said_before_the_radii() -> None:
    images = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    constant = certify(lambda batch: torch.tensor([[0.0, 1.0]]).expand(len(batch), 2), images, radius=1)
    told = "All 8 images get the same answer (class 1), so their stability says nothing about the model. 100 % "
    assert constant.words().startswith(told) and constant.to_json()["summary"].startswith(told)
    two = certify(lambda batch: torch.stack([batch[:, 0, 0, 0], batch[:, 0, 5, 5]], dim=1), images, radius=1)
    assert not two.warnings


def test_ties_are_no_answer() -> None:
    found = certify(lambda images: torch.zeros(len(images), 3), torch.rand(2, 1, 8, 8), radius=1)
    assert found.radii.tolist() == [-1, -1]
    assert any("have no radius" in note for note in found.summary().notes)


def test_fractions_are_tried_and_called_a_grid() -> None:
    images = 0.6 * dot(1, 4)

    def bright(images: Tensor) -> Tensor:
        peak = images.amax((1, 2, 3))
        return torch.stack([peak, torch.full_like(peak, 0.5)], dim=1)

    whole, halves = (certify(bright, images, radius=1, parts=parts) for parts in (1, 2))
    assert whole.radii.tolist() == [1]
    assert halves.radii.tolist() == [0]
    assert any("not a proof" in note for note in halves.table().notes)
    assert not any("not a proof" in note for note in whole.table().notes)


def test_batches_give_the_radii_of_one_tensor() -> None:
    case = random_case(3)
    pairs = [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in case.images.split(2)]
    found = certify(case.model, pairs, **case.options)
    assert found.radii.tolist() == certified(case).radii.tolist()
    assert len(found.part.labels) == len(case.images)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"radius": 5}, "must be 1 to 4 pixels"),
        ({"radius": 0}, "must be 1 to 4 pixels"),
        ({"parts": 0}, "`parts` must be 1 or more"),
        ({"mode": "crop"}, "needs images larger"),
        ({"labels": torch.tensor([2])}, "`labels` must be 0 to 1"),
        ({"model": lambda images: images.repeat(1, 3, 1, 1)}, "the model returns maps"),
        ({"model": lambda images: images.mean((2, 3)).repeat(1, 1, 2)}, "the model must return"),
        ({"images": torch.zeros(0, 1, 8, 8)}, "at least one image"),
    ],
)
def test_what_cannot_be_certified_is_refused(options: dict[str, object], problem: str) -> None:
    given = {"model": step, "images": dot(4, 4, 8), "radius": 2, **options}
    with pytest.raises(InputError, match=problem):
        certify(**given)


def test_shares_beyond_what_was_tried_are_refused() -> None:
    with pytest.raises(InputError, match="`radius` must be 0 to 2"):
        certify(step, dot(4, 4), radius=2).unchanged(3)


class Halves(nn.Module):
    """Normalises its input, in place or not, and compares the brightness of two halves."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        images = images.sub_(0.5).div_(0.25) if self.in_place else (images - 0.5) / 0.25
        return torch.stack([each.pow(3).mean((1, 2, 3)) for each in images.chunk(2, dim=3)], dim=1)


@pytest.mark.parametrize("task", [None, "embedding:kept=0.9"])
def test_model_that_writes_into_its_input_has_the_same_radii(task: str | None) -> None:
    images = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    given = images.clone()
    found, other = (certify(Halves(in_place=each).eval(), given, radius=3, mode="circular", task=task) for each in (True, False))
    assert torch.equal(given, images)
    assert found.radii.tolist() == other.radii.tolist()
    assert len(set(other.radii.tolist())) > 1


def test_model_of_whole_batches_is_refused_unless_each_view_runs_alone() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    layers = nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(8, 5, bias=False)).eval()
    images = torch.rand(6, 1, 16, 16) * torch.linspace(0.1, 1, 6)[:, None, None, None]
    for some, count in ((images, None), (images, 4), (images[:1], None), (images[:1].expand(2, -1, -1, -1), None)):
        with pytest.raises(InputError, match="depend on the other images of a batch"):
            certify(model, some, radius=2, mode="circular", batch_size=count)
    found = certify(model, images, radius=2, mode="circular", batch_size=1).radii.tolist()
    for number, radius in enumerate(found):
        with torch.no_grad():
            tops = {
                (down, right): int(model(images[number : number + 1].roll((down, right), (2, 3))).argmax())
                for down in range(-2, 3)
                for right in range(-2, 3)
            }
        changed = [max(map(abs, shift)) for shift, top in tops.items() if top != tops[0, 0]]
        assert radius == min(changed, default=3) - 1


def test_model_that_draws_random_numbers_is_refused() -> None:
    def drawing(images: Tensor) -> Tensor:
        return torch.rand(len(images), 3)

    with pytest.raises(InputError, match="differ from call to call"):
        certify(drawing, torch.rand(2, 1, 8, 8), radius=1)


@pytest.mark.parametrize("method", ["direct", "auto"])
@pytest.mark.parametrize("value", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_masked_classes_leave_radii_as_they_are(value: float, method: str) -> None:
    class Masked(nn.Module):
        def __init__(self, mask: float | None) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv, self.head, self.mask = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(4, 10), mask

        def forward(self, images: Tensor) -> Tensor:
            outputs = self.head(self.conv(images).relu().mean((2, 3)))
            return outputs[:, :7] if self.mask is None else outputs.masked_fill(torch.arange(10) > 6, self.mask)

    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    masked, plain = (certify(Masked(each).eval(), images, radius=3, method=method).radii.tolist() for each in (value, None))
    assert masked == plain
    assert max(plain) > 0


class Rounding(nn.Module):
    """Outputs that differ alone and in a batch by a share of their norm."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, 0].mean((1, 2))
        return torch.stack([bright, 1 - bright], dim=1) * (1 + self.share * (len(images) > 1) * torch.tensor([1.0, -1]))


@pytest.mark.parametrize(("share", "lead"), [(0.0, 1e-4), (1e-4, 1e-4), (1e-4, 1e-2)])
def test_lead_within_what_batches_round_counts_as_changed(share: float, lead: float) -> None:
    images = torch.full((3, 1, 8, 8), 0.5 + lead / 2)
    found = certify(Rounding(share).eval(), images, radius=1, mode="circular")
    assert found.radii.tolist() == [-1 if 4 * share > lead else 1] * 3
    assert any("differ by the size of batches" in each for each in found.notes) == (share > 0)
    alone = certify(Rounding(share).eval(), images, radius=1, mode="circular", batch_size=1)
    assert alone.radii.tolist() == [1] * 3


@pytest.mark.parametrize(
    ("kind", "words"), [(torch.bfloat16, "bfloat16"), (torch.float32, "single precision"), (torch.float64, "double")]
)
def test_certificate_says_the_precision_that_the_model_computes_in(kind: torch.dtype, words: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval().to(kind)
    found = certify(model, torch.rand(4, 1, 8, 8).to(kind), radius=1)
    assert any(f"exact for these images and this border, in {words}" in note for note in found.table().notes)
