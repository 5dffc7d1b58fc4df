"""The engine gives each image's outputs under its own shifts, leaves the model as it was, and refuses what it cannot measure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.outputs import evaluating, shift_outputs

SHIFTS = torch.tensor([[[0, 1], [2, 0]], [[-1, 0], [0, 0]], [[3, 3], [-2, 1]]])


def images() -> Tensor:
    return torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4))


@pytest.mark.parametrize("mode", ["zero", "circular"])
@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_outputs_equal_those_of_images_shifted_one_at_a_time(mode: str, batch_size: int) -> None:
    model = small_model()
    found = shift_outputs(model, images(), SHIFTS, mode=mode, batch_size=batch_size)
    model.eval()
    for i, steps in enumerate(SHIFTS):
        torch.testing.assert_close(found.reference[i], model(images()[i : i + 1])[0])
        for j, (dy, dx) in enumerate(steps.tolist()):
            moved = images()[i : i + 1].roll((dy, dx), (2, 3))
            if mode == "zero":
                moved[:, :, : max(dy, 0)] = 0
                moved[:, :, :, : max(dx, 0)] = 0
                moved[:, :, 6 + min(dy, 0) :] = 0
                moved[:, :, :, 6 + min(dx, 0) :] = 0
            torch.testing.assert_close(found.values[i, j], model(moved)[0])


def test_a_model_in_training_mode_is_evaluated_and_handed_back_as_it_was() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shift_outputs(model, images(), SHIFTS)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with evaluating(model.eval()):
        pass
    assert not model.training


def test_a_part_kept_in_evaluation_mode_stays_in_it() -> None:
    model = small_model().train()
    model[1].eval()
    shift_outputs(model, images(), SHIFTS)
    assert model.training
    assert not model[1].training


@pytest.mark.parametrize(
    ("model", "given", "text"),
    [
        (lambda batch: (batch,), images(), "must return one vector for each of 3 images, got tuple"),
        (lambda batch: {"logits": batch}, images(), "got dict"),
        (lambda batch: batch, images(), r"got shape \(3, 2, 6, 6\)"),
        (lambda batch: batch.mean((2, 3))[:1], images(), r"got shape \(1, 2\)"),
        (lambda batch: batch.mean((2, 3)) / 0, images(), "not finite"),
        (lambda batch: batch.mean((2, 3)), images()[:0], "at least one image"),
        (lambda batch: batch, torch.zeros(3, 2, 6, 6, dtype=torch.uint8), "floating point"),
    ],
)
def test_bad_input_is_told_in_a_sentence(model, given: Tensor, text: str) -> None:
    import importlib

    from helpers import as_users_import_it

    plain = as_users_import_it(importlib.import_module("shiftscope.outputs"))
    with pytest.raises(InputError, match=text):
        plain.shift_outputs(model, given, SHIFTS[: len(given)])
