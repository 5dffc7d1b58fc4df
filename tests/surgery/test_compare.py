"""A fixed model is compared with the original under every shift, on images that suit it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shiftscope.datasets.images import dataset_for, largest_shift
from shiftscope.errors import InputError, ModelFailsError
from shiftscope.models import load_model
from shiftscope.runtime.progress import Event, Stage
from shiftscope.surgery.compare import compare, fix

LABELS = torch.arange(6) % 3


def model() -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 3, 2, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()


def images(size: int = 16) -> Tensor:
    return torch.rand(6, 1, size, size, generator=torch.Generator().manual_seed(0))


def test_equivariant_fix_raises_every_measure_to_one_under_circular_shifts() -> None:
    surgery = fix(model(), [("gap", 1), ("aps", 1)], image=(1, 16, 16))
    events: list[Event] = []
    table = compare(model(), surgery, images(), LABELS, max_shift=2, provenance={"data": "noise"}, report=events.append)
    rows = {(row["model"], row["shifts"]): row for row in table.rows}
    assert list(rows) == [("before", "zero"), ("before", "circular"), ("after", "zero"), ("after", "circular")]
    assert rows["after", "circular"]["all_agree"].value == 1
    assert rows["after", "circular"]["mcs"].value == pytest.approx(1, abs=1e-5)
    assert rows["before", "circular"]["mcs"].value < 1
    assert rows["after", "zero"]["parameters"] < rows["before", "zero"]["parameters"]
    assert table.provenance == {"data": "noise"}
    assert events[-1] == Stage("measuring after, circular shifts", 6, 6)


def test_several_fixes_record_all_changes_and_costs_before_and_after() -> None:
    surgery = fix(model(), [("gap", 1), ("blur", 3)], image=(1, 16, 16))
    assert [change.layer for change in surgery.changes if change.becomes] == ["3", "0"]
    assert surgery.before is not None
    assert surgery.after is not None
    assert surgery.after.multiply_adds > surgery.before.multiply_adds


def test_model_that_fails_on_the_images_is_refused() -> None:
    with pytest.raises(ModelFailsError, match=r"The model does not take images of \(1, 10, 10\)"):
        fix(model(), [("blur", 3)], image=(1, 10, 10))
    surgery = fix(model(), [("blur", 3)], image=(1, 16, 16))
    with pytest.raises(InputError, match=r"fails on images of shape"):
        compare(model(), surgery, images(20), LABELS, max_shift=1)


def test_trained_network_is_measured_on_its_own_data_and_canvas(run: Path) -> None:
    loaded = load_model(str(run))
    data = dataset_for(loaded.image, loaded.spec.data)
    assert data.canvas.size == 20
    assert dataset_for(loaded.image, loaded.spec.data, canvas=30).canvas.size == 30
    assert largest_shift(data, None) == 5
    assert largest_shift(data, 3) == 3
    with pytest.raises(InputError, match="`max_shift` must be 0 to 5, the margin of the canvas around the image, got 9"):
        largest_shift(data, 9)


def test_data_with_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match="the model takes images of 3 channels, but those of digits have 1"):
        dataset_for((3, 40, 40), None, name="digits")
    with pytest.raises(InputError, match="`data` must be given: the model takes images of 3x40x40"):
        dataset_for((3, 40, 40), None)
    with pytest.raises(InputError, match="`canvas` must be 1 or more pixels, got 0"):
        dataset_for(None, None, canvas=0)
