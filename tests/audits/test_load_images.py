"""Images opened from Python are those of the commands: what is measured on them is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import shiftscope as ss
from shiftscope import InputError, load_images, load_model
from shiftscope.audits.folder import AuditSpec
from shiftscope.audits.job import run_audit
from shiftscope.runtime.progress import Event, Stage

FACTORY = """
import torch
from torch import nn

def colour():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 2))

def maps():
    return nn.Conv2d(3, 4, 3, padding=1)

def three():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of noise, 24 photos larger than the models' inputs."""
    (tmp_path / "models_of_opened_images.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    generator = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "photos" / ("cat" if number % 2 else "ant")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (30, 40, 3), np.uint8)).save(folder / f"{number:02d}.png")
    return tmp_path / "photos"


def test_audit_equals_that_of_the_command(photos: Path) -> None:
    names = ("mouton2020", "zhang2019", "every-shift")
    given = {"model": "models_of_opened_images:colour", "data": "photos", "size": 16, "images": 20, "max_shift": 2}
    expected = run_audit(AuditSpec(**given, protocols=names))
    loaded = load_model("models_of_opened_images:colour", size=16)
    opened = load_images("photos", loaded, count=20, max_shift=2)
    found = ss.audit(loaded.model, opened, protocols=names, max_shift=2)
    assert [(row.measure, row.estimate) for row in found.rows] == [(row.measure, row.estimate) for row in expected.rows]
    assert any(row.measure == "accuracy" for row in found.rows)
    assert found.provenance["input"] == "3x16x16"


def test_every_function_takes_the_size_from_opened_images(photos: Path) -> None:
    loaded = load_model("models_of_opened_images:colour", size=16)
    opened = load_images(photos, loaded, count=8, max_shift=1)
    images, labels = zip(*opened, strict=True)
    tensors = {"images": torch.cat(images), "labels": torch.cat(labels), "size": 16}
    assert tensors["images"].shape[2] > 16
    assert torch.equal(ss.certify(loaded.model, opened, radius=1).radii, ss.certify(loaded.model, **tensors, radius=1).radii)
    one, other = (ss.explain(loaded.model, max_shift=1, **given) for given in ({"images": opened}, tensors))
    assert one.words() == other.words()
    one, other = (ss.fix(loaded.model, kinds="blur", max_shift=1, **given) for given in ({"images": opened}, tensors))
    assert one.before_and_after.rows == other.before_and_after.rows


def test_labels_of_another_number_of_classes_are_left_out_with_a_warning(photos: Path) -> None:
    loaded = load_model("models_of_opened_images:three", size=16)
    with pytest.warns(UserWarning, match="the model has 3 classes, the data 2"):
        opened = load_images(photos, loaded)
    assert all(isinstance(batch, torch.Tensor) for batch in opened)


def test_labels_stay_where_the_model_returns_no_classes(photos: Path) -> None:
    loaded = load_model("models_of_opened_images:maps", size=16)
    assert all(len(batch) == 2 for batch in load_images(photos, loaded))


def test_classes_are_numbered_by_names_that_the_user_gives(photos: Path) -> None:
    plain, named = load_images(photos, size=16), load_images(photos, size=16, classes=["cat", "ant"])
    for (_, before), (_, after) in zip(plain, named, strict=True):
        assert torch.equal(after, 1 - before)
    assert "Classes are numbered in the order of their folders' names" in repr(plain)
    assert "24 images of image folder photos" in repr(named)


def test_damaged_files_are_left_out_and_named(photos: Path) -> None:
    (photos / "ant" / "04.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 image cannot be read and is left out: .*04\.png"):
        batches = list(load_images(photos, size=16))
    assert sum(len(images) for images, _ in batches) == 23


def test_progress_counts_all_opened_images(photos: Path) -> None:
    events = list[Event]()
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ss.audit(model, load_images(photos, size=16), protocols=["mouton2020"], report=events.append)
    assert events[-1] == Stage("measuring images", 24, 24)


def test_bad_input_is_one_sentence(photos: Path) -> None:
    loaded = load_model("models_of_opened_images:colour", size=16)
    with pytest.raises(InputError, match=r"`size` is for models that `load_model` did not load\. Give it to `load_model`"):
        load_images(photos, loaded, size=16)
    with pytest.raises(InputError, match="nowhere"):
        load_images(photos / "nowhere", size=16)
    with pytest.raises(InputError, match=r"`data` must be the name of a data set or a folder, got list"):
        load_images(["a.jpg"], size=16)
    with pytest.raises(InputError, match="`images` must be 1 or more, got 0"):
        load_images(photos, size=16, count=0)


@pytest.mark.parametrize("function", [ss.audit, ss.certify])  # the others' annotations are checked in tests
def test_name_in_the_place_of_a_model_says_what_to_do(photos: Path, function: Callable[..., object]) -> None:
    loaded, opened = load_model("models_of_opened_images:colour", size=16), load_images(photos, size=16, count=4)
    with pytest.raises(InputError, match=r"got the name 'timm:resnet18'\. Load it: load_model\(name\)\.model\."):
        function("timm:resnet18", opened)
    with pytest.raises(InputError, match=r"got LoadedModel\. Give its `\.model`\."):
        function(loaded, opened)


@pytest.mark.parametrize("function", [ss.audit, ss.certify, ss.explain, ss.fix])
def test_name_in_the_place_of_images_says_what_to_do(photos: Path, function: Callable[..., object]) -> None:
    options, model = {"kinds": "blur"} if function is ss.fix else {}, load_model("models_of_opened_images:colour").model
    with pytest.raises(InputError, match=r"got the name 'photos'\. Open it with `load_images`\."):
        function(model, "photos", **options)
    with pytest.raises(InputError, match=r"got ndarray\. Convert it: torch\.from_numpy\(images\)"):
        function(model, np.zeros((2, 3, 16, 16)), **options)
