"""Models come from names and files, without a pickle; a fixed one comes back as it was written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shiftscope.errors import InputError
from shiftscope.models import Fix, Origin, load_model, save_model
from shiftscope.models.family import NetworkSpec
from shiftscope.surgery.compare import compared, fixed
from shiftscope.surgery.compare import test_images as images_for

FACTORY = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def number():
    return 3
"""


FIXES = (
    (Fix(kind="blur", filter_size=3),),
    (Fix(kind="gap"), Fix(kind="aps")),
    (Fix(kind="circular"), Fix(kind="lps")),
)


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_models.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_models:small"


def test_a_file_names_no_function_to_be_called_without_being_trusted(factory: str, tmp_path: Path) -> None:
    path = tmp_path / "fixed.safetensors"
    save_model(path, load_model(factory).model, Origin(factory="os:getcwd"))
    with pytest.raises(InputError, match=r"is of a model that `os:getcwd` makes, .* say so with --trust"):
        load_model(str(path))


def test_a_factory_a_run_and_a_fixed_file_are_loaded(factory: str, run: Path, tmp_path: Path) -> None:
    assert isinstance(load_model(factory).model, nn.Sequential)
    loaded = load_model(str(run))
    assert loaded.image == (1, 20, 20)
    assert loaded.origin.data is not None
    assert not loaded.model.training
    for start in (loaded, load_model(factory)):
        for fixes in FIXES:
            if fixes[0].kind != "circular" or start is loaded:
                surgery = fixed(start, fixes, image=(1, 20, 20))
                path = tmp_path / "fixed.safetensors"
                save_model(path, surgery.model, start.origin.model_copy(update={"fixes": fixes}))
                again = load_model(str(path), trust=start is not loaded)
                images = torch.rand(3, 1, 20, 20)
                with torch.no_grad():
                    assert torch.equal(again.model(images), surgery.model.eval()(images))
                assert again.origin.fixes == fixes


def test_a_fix_is_measured_before_and_after(run: Path) -> None:
    loaded = load_model(str(run))
    data = images_for(loaded, name=None, canvas=None, data_dir=None)
    surgery = fixed(loaded, (Fix(kind="gap"), Fix(kind="aps")), image=(1, 20, 20))
    heard: list[tuple[str, int, int]] = []
    table = compared(loaded.model, surgery, data, images=20, max_shift=None, progress=lambda *at: heard.append(at))
    rows = {(row["model"], row["shifts"]): row for row in table.rows}
    assert list(rows) == [("before", "zero"), ("before", "circular"), ("after", "zero"), ("after", "circular")]
    assert rows["after", "circular"]["all_agree"].value == 1
    assert rows["after", "circular"]["mcs"].value == pytest.approx(1, abs=1e-5)
    assert rows["before", "circular"]["mcs"].value < 1
    assert rows["after", "zero"]["parameters"] < rows["before", "zero"]["parameters"]
    assert heard[-1] == ("measuring after, circular shifts", 20, 20)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("was_here"),))


def test_bad_files_are_told_in_a_sentence_and_no_pickle_runs(tmp_path: Path, run: Path, factory: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps(Evil()))
    bare, foreign, damaged = (tmp_path / f"{name}.safetensors" for name in ("bare", "foreign", "damaged"))
    save_file({"a": torch.zeros(2)}, bare)
    save_file({"a": torch.zeros(2)}, foreign, metadata={"shiftscope": '{"colour": 3}'})
    save_model(damaged, nn.Linear(2, 2), Origin(network=NetworkSpec()))
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, told in {
        str(evil): "is not a safetensors file",
        str(bare): "holds weights, but not of which model",
        str(foreign): "colour: is not a known setting",
        str(damaged): "do not fit the model",
        str(empty): "holds no run",
        str(run.parent.parent): "is a study. Choose one of its runs",
        str(tmp_path / "none.safetensors"): "does not exist",
        "nothing": "there is no model 'nothing'",
        "no_such_module:thing": "cannot be imported",
        "my_models:missing": "has no attribute 'missing'",
        "my_models:number": "must give a torch.nn.Module, got int",
    }.items():
        with pytest.raises(InputError) as caught:
            load_model(name)
        assert told in str(caught.value), name
    assert not (tmp_path / "was_here").exists()


def test_images_that_do_not_fit_are_told_in_a_sentence(run: Path, factory: str, tmp_path: Path) -> None:
    loaded = load_model(str(run))
    data = images_for(loaded, name=None, canvas=None, data_dir=None)
    surgery = fixed(loaded, (Fix(kind="blur", filter_size=3),), image=(1, 20, 20))
    with pytest.raises(InputError, match="`max_shift` must be 0 to 5, the margin of the canvas around the image, got 9"):
        compared(loaded.model, surgery, data, images=4, max_shift=9)
    with pytest.raises(InputError, match="`images` must be 1 or more, got 0"):
        compared(loaded.model, surgery, data, images=0, max_shift=None)
    other = images_for(loaded, name=None, canvas=30, data_dir=None)
    with pytest.raises(InputError, match=r"fails on images of shape"):
        compared(loaded.model, surgery, other, images=4, max_shift=None)
