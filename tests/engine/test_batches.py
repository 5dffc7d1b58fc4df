"""``audit``, ``explain`` and ``fix`` take images and labels in the forms that people have them in, with the same result."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import shiftscope as ss
from shiftscope.engine.batches import batches_of, gather
from shiftscope.errors import InputError

IMAGES = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3

FORMS: dict[str, Callable[[], Any]] = {
    "loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
    "list of pairs": lambda: list(zip(IMAGES.split(3), LABELS.split(3), strict=True)),
    "generator": lambda: ((images, labels) for images, labels in zip(IMAGES.split(7), LABELS.split(7), strict=True)),
    "data set": lambda: TensorDataset(IMAGES, LABELS),
    "mappings": lambda: [{"pixel_values": IMAGES[:4], "labels": LABELS[:4]}, {"pixel_values": IMAGES[4:], "labels": LABELS[4:]}],
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()


@pytest.mark.parametrize("form", FORMS)
def test_audit_of_batches_equals_that_of_a_tensor(form: str) -> None:
    options = {"protocols": ["mouton2020", "zhang2019"], "max_shift": 2}
    assert ss.audit(model(), FORMS[form](), **options).rows == ss.audit(model(), IMAGES, LABELS, **options).rows


@pytest.mark.parametrize("form", FORMS)
def test_gathered_batches_equal_the_tensors(form: str) -> None:
    images, labels = gather(FORMS[form]())
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


def test_random_numbers_of_a_training_are_those_without_a_measurement() -> None:
    """A loader draws to shuffle, and new layers of fixes to begin: neither takes numbers that the training would have drawn."""
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True)
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network, pooled = model(), pooled.eval()
    before = torch.get_rng_state()
    orders = [torch.cat([images for images, _ in batches_of(loader)]) for _ in range(2)]
    first, second = (ss.fix(pooled, IMAGES, kinds=["lps"], max_shift=1).before_and_after.rows for _ in range(2))
    ss.fix(network, IMAGES, kinds=["gap"], max_shift=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    assert all(sorted(each.sum((1, 2, 3)).tolist()) == sorted(IMAGES.sum((1, 2, 3)).tolist()) for each in orders)


@pytest.mark.slow
def test_explain_and_fix_take_a_loader() -> None:
    loader = FORMS["loader"]
    found, expected = (ss.explain(model(), *given, max_shift=1, shifts=1) for given in ((loader(),), (IMAGES, LABELS)))
    assert found.causes.table().rows == expected.causes.table().rows
    assert found.fixes.before.accuracy == expected.fixes.before.accuracy is not None
    fixed, by_hand = (ss.fix(model(), *given, kinds=["blur"], max_shift=1) for given in ((loader(),), (IMAGES, LABELS)))
    assert fixed.before_and_after.rows == by_hand.before_and_after.rows
    assert fixed.before_and_after.rows[0]["test_accuracy"] is not None


def test_crops_of_larger_images_equal_a_loop_by_hand() -> None:
    found = ss.fix(model(), IMAGES_WITH_MARGIN, LABELS, kinds=["blur"], size=16, max_shift=1, mode="crop").before_and_after
    views = {(dy, dx): IMAGES_WITH_MARGIN[:, :, 2 - dy : 18 - dy, 2 - dx : 18 - dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    with torch.no_grad():
        outputs = {step: model()(view) for step, view in views.items()}
    cosines = [nn.functional.cosine_similarity(outputs[0, 0], each, dim=1) for each in outputs.values()]
    assert found.rows[0]["shifts"] == "crop"
    assert found.rows[0]["mcs"].value == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
    explained = ss.explain(model(), IMAGES_WITH_MARGIN, size=16, max_shift=2, shifts=3)
    assert explained.settings["border"] == "crop"
    steps = explained.layers.shifts
    moved = torch.stack(
        [
            torch.stack([image[:, 2 - dy : 18 - dy, 2 - dx : 18 - dx] for dy, dx in each.tolist()])
            for image, each in zip(IMAGES_WITH_MARGIN, steps, strict=True)
        ]
    )
    with torch.no_grad():
        before, after = model()(IMAGES_WITH_MARGIN[:, :, 2:18, 2:18]), model()(moved.flatten(0, 1)).unflatten(0, (10, 3))
    expected = nn.functional.cosine_similarity(before[:, None], after, dim=2).mean()
    assert explained.similarity.value == pytest.approx(float(expected), abs=1e-5)
    assert explained.layers.layer("output").in_place.mean().item() == pytest.approx(float(expected), abs=1e-5)


IMAGES_WITH_MARGIN = torch.rand(10, 1, 20, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([IMAGES, "x"], None, "a batch of `images` must be a tensor or a pair"),
        ([(IMAGES, LABELS), IMAGES], None, "some batches of `images` hold labels and others do not"),
        ([(IMAGES, LABELS)], LABELS, "`labels` are given, but the batches of `images` hold labels too"),
        ([(IMAGES, LABELS[:3])], None, "one label per image, got 3 for 10 images of a batch"),
        ([IMAGES, IMAGES[..., 1:]], None, "`images` must all have one shape"),
        ([], None, "at least one image, got none"),
        (IMAGES, LABELS[:3], "one label per image, got 3 for 10 images"),
    ],
)
def test_batches_that_cannot_be_read_are_refused(images: Any, labels: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(batches_of(images, labels)) if isinstance(images, Tensor) else gather(images, labels)


takes_labels = pytest.mark.parametrize(
    "call",
    [
        lambda model, labels: ss.audit(model, IMAGES, labels, protocols=["mouton2020"], max_shift=1),
        lambda model, labels: ss.explain(model, IMAGES, labels, max_shift=1, shifts=1),
        lambda model, labels: ss.fix(model, IMAGES, labels, kinds=["blur"], max_shift=1, mode="zero"),
    ],
    ids=["audit", "explain", "fix"],
)


@takes_labels
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.arange(10), "`labels` must be 0 to 2, the model's classes, got 0 to 9"),
        (LABELS + 0.5, "`labels` must be whole numbers, one per image, got shape .10,. of torch.float32"),
        (LABELS[:, None], "must be whole numbers, one per image, got shape .10, 1."),
        (nn.functional.one_hot(LABELS, 3), "got shape .10, 3. of torch.int64. .* labels.argmax.1. of one column per class"),
        (LABELS > 0, "must be whole numbers, one per image, got shape .10,. of torch.bool"),
        (["cat"] * 10, "`labels` must hold one number per image, got list"),
        (torch.tensor(1), "`labels` must hold one number per image, got Tensor"),
    ],
)
def test_labels_that_are_no_classes_of_the_model_are_refused(
    call: Callable[[nn.Module, Any], Any], labels: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(model(), labels)


@pytest.mark.parametrize("read", [list, np.asarray], ids=["list", "array"])
def test_labels_in_a_list_or_an_array_are_those_of_a_tensor(read: Callable[..., Any]) -> None:
    given, expected = (ss.audit(model(), IMAGES, labels, max_shift=1).rows for labels in (read(LABELS.tolist()), LABELS))
    assert given == expected
    assert torch.equal(gather(IMAGES, read(LABELS.tolist()))[1], LABELS)


def test_labels_of_embeddings_are_ignored() -> None:
    """The largest element of a vector is no class, so that there is no accuracy."""
    images = IMAGES[:, :, :8, :8]
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Flatten(), nn.Linear(36, 3)).eval()
    found = ss.explain(encoder, images, LABELS, embedding=True, max_shift=1, shifts=1)
    assert all(row.get("test_accuracy") is None for row in found.fixes.table().rows)


@takes_labels
def test_labels_of_a_yes_or_no_model_may_be_numbers_in_a_column(call: Callable[[nn.Module, Any], Any]) -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Flatten(), nn.Linear(2 * 49, 1)).eval()
    labels = torch.arange(10) % 2
    given, expected = (json.dumps(call(one, each).to_dicts(), default=str) for each in (labels[:, None].float(), labels))
    assert given == expected


@pytest.mark.parametrize("max_shift", [9, 100])
def test_shifts_beyond_half_of_the_image_are_refused(max_shift: int) -> None:
    message = f"`max_shift` must be 1 to 8 pixels, half of the image's 16, got {max_shift}"
    for call in (
        lambda: ss.audit(model(), IMAGES, max_shift=max_shift),
        lambda: ss.explain(model(), IMAGES, max_shift=max_shift),
        lambda: ss.fix(model(), IMAGES, kinds=["blur"], max_shift=max_shift),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_single_image_counts_as_a_batch_of_one_with_its_label() -> None:
    image = IMAGES[0]
    alone, batched = (ss.certify(model(), images, [1], radius=1) for images in (image, image[None]))
    assert alone.radii.tolist() == batched.radii.tolist()
    assert [(tuple(each.shape), None if known is None else known.tolist()) for each, known in batches_of(image, [1])] == [
        ((1, 1, 16, 16), [1])
    ]
    with pytest.raises(InputError, match="`labels` must hold one label per image, got 2 for 1 image"):
        ss.certify(model(), image, [1, 2])
