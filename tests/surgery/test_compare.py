"""A fixed model is compared with the original under every shift, on images that suit it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shiftscope.engine.framing import Shifting
from shiftscope.errors import InputError, ModelFailsError, UntraceableError
from shiftscope.runtime.progress import Event, Stage
from shiftscope.surgery.compare import apply_fixes, compare, fix, summarise
from shiftscope.tables import percent

LABELS = torch.arange(6) % 3


def model() -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 3, 2, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()


def images(size: int = 16) -> Tensor:
    return torch.rand(6, 1, size, size, generator=torch.Generator().manual_seed(0))


def test_equivariant_fix_raises_every_measure_to_one_under_circular_shifts() -> None:
    surgery = apply_fixes(model(), [("gap", 1), ("aps", 1)], image=(1, 16, 16))
    events: list[Event] = []
    table = compare(model(), surgery, images(), LABELS, Shifting(max_shift=2), provenance={"data": "noise"}, report=events.append)
    rows = {(row["model"], row["shifts"]): row for row in table.rows}
    assert list(rows) == [("before", "zero"), ("before", "circular"), ("after", "zero"), ("after", "circular")]
    assert rows["after", "circular"]["all_agree"].value == 1
    assert rows["after", "circular"]["mcs"].value == pytest.approx(1, abs=1e-5)
    assert rows["before", "circular"]["mcs"].value < 1
    assert rows["after", "zero"]["parameters"] < rows["before", "zero"]["parameters"]
    assert table.provenance == {"data": "noise", "measured under": "all 25 shifts of up to 2 pixels"}
    assert events[-1] == Stage("measuring after, circular shifts", 6, 6)


def test_several_fixes_record_all_changes_and_costs_before_and_after() -> None:
    surgery = apply_fixes(model(), [("gap", 1), ("blur", 3)], image=(1, 16, 16))
    assert [change.layer for change in surgery.changes if change.becomes] == ["3", "0"]
    assert surgery.before is not None
    assert surgery.after is not None
    assert surgery.after.multiply_adds > surgery.before.multiply_adds


def test_layer_that_two_fixes_meet_is_listed_once() -> None:
    surgery = apply_fixes(model(), [("circular", 1), ("blur", 3)], image=(1, 16, 16))
    layers = [change.layer for change in surgery.changes]
    assert len(layers) == len(set(layers))
    convolution = next(change for change in surgery.changes if change.layer == "0")
    assert convolution.was == "convolution 3x3, stride 2"
    assert len(convolution.becomes.split(", then ")) == 2


def test_summary_says_the_effect_and_lists_changed_layers_only() -> None:
    surgery = apply_fixes(model(), [("gap", 1), ("aps", 1)], image=(1, 16, 16))
    measured = compare(model(), surgery, images(), LABELS, Shifting(max_shift=2))
    found = summarise(surgery, measured, commands=("shiftscope audit fixed.safetensors",))
    before, after = (row["all_agree"] for row in measured.rows if row["shifts"] == "zero")
    under = "under all 25 shifts of up to 2 pixels (zero)"
    alike = "After the fix: All 6 images get the same answer (class 2), so their stability says nothing about the model."
    assert found.verdict.startswith(f"{alike} {percent(before)} of images keep their answer {under}; with the fix")
    assert alike in measured.notes and alike not in found.tables[1].notes
    assert f"training, {percent(after)}. " in found.verdict
    assert sum(row["layers"] for row in found.tables[0].rows) == surgery.changed < len(surgery.changes) + 1
    assert found.commands == ("shiftscope audit fixed.safetensors",)


def test_model_that_fails_on_the_images_is_refused() -> None:
    with pytest.raises(ModelFailsError, match=r"The model does not take images of \(1, 10, 10\)"):
        apply_fixes(model(), [("blur", 3)], image=(1, 10, 10))
    surgery = apply_fixes(model(), [("blur", 3)], image=(1, 16, 16))
    with pytest.raises(InputError, match=r"fails on images of shape"):
        compare(model(), surgery, images(20), LABELS, Shifting(max_shift=1))


def test_function_is_wrapped_by_fixes_that_change_no_layer() -> None:
    dropout = nn.Dropout(0.9)

    def sharp(batch: torch.Tensor) -> torch.Tensor:
        return dropout(batch.flatten(1)[:, ::7])

    images = torch.zeros(4, 1, 12, 12)
    images[:, :, 4:8, 4:8] = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    fixed = fix(sharp, images, kinds="canonical", max_shift=2)
    rows = {row["model"]: row["mcs"].value for row in fixed.before_and_after.rows if row["shifts"] == "zero"}
    assert rows["before"] < 0.9
    assert rows["after"] == pytest.approx(1)
    assert dropout.training
    with pytest.raises(UntraceableError, match="The graph of Function cannot be traced"):
        fix(sharp, images, kinds="blur", max_shift=1)
