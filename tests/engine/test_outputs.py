"""The engine returns each image's outputs under its shifts, leaves the model unchanged, and rejects invalid input."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

from helpers import as_users_import_it
from shiftscope.engine.direct import ran_out_of_memory
from shiftscope.engine.outputs import shift_outputs, stream_outputs
from shiftscope.errors import InputError, ModelFailsError, NotFiniteError
from shiftscope.shifts import translate_by_parts

SHIFTS = torch.tensor([[[0, 1], [2, 0]], [[-1, 0], [0, 0]], [[3, 3], [-2, 1]]])


def images() -> Tensor:
    return torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4))


@pytest.mark.parametrize("mode", ["zero", "circular"])
@pytest.mark.parametrize("batch_size", [1, 2, None])
@pytest.mark.parametrize("shared", [True, False])
def test_shift_outputs_equal_model_on_images_shifted_one_at_a_time(mode: str, batch_size: int | None, shared: bool) -> None:
    model = small_model().eval()
    shifts = SHIFTS[0] if shared else SHIFTS
    found = shift_outputs(model, images(), shifts, mode=mode, batch_size=batch_size, method="direct")
    for i, steps in enumerate(SHIFTS):
        torch.testing.assert_close(found.reference[i], model(images()[i : i + 1])[0])
        for j, (dy, dx) in enumerate((SHIFTS[0] if shared else steps).tolist()):
            moved = images()[i : i + 1].roll((dy, dx), (2, 3))
            if mode == "zero":
                moved[:, :, : max(dy, 0)] = 0
                moved[:, :, :, : max(dx, 0)] = 0
                moved[:, :, 6 + min(dy, 0) :] = 0
                moved[:, :, :, 6 + min(dx, 0) :] = 0
            torch.testing.assert_close(found.values[i, j], model(moved)[0])
    assert (found.method, found.reason) == ("direct", "Direct was requested.")


def test_shift_outputs_beyond_image_see_fill_only() -> None:
    model = small_model().eval()
    found = shift_outputs(model, images(), torch.tensor([[9, 0], [0, -40]]), fill=torch.tensor([0.1, 0.2]), method="direct")
    empty = torch.tensor([0.1, 0.2])[:, None, None].expand(3, 2, 6, 6)
    torch.testing.assert_close(found.values, model(empty)[:, None].expand(-1, 2, -1))


def test_stream_outputs_several_batches_with_shifts_of_each_image_raises_error() -> None:
    with pytest.raises(InputError, match="must be one batch where each image has shifts of its own"):
        list(stream_outputs(lambda batch: batch.mean((2, 3)), [images(), images()], SHIFTS))


def test_stream_outputs_equal_shift_outputs() -> None:
    model, shifts = small_model().eval(), SHIFTS[0]
    expected = shift_outputs(model, images(), shifts, batch_size=2)
    streamed = list(stream_outputs(model, iter(images().split(1)), shifts))
    assert [len(block.reference) for block in streamed] == [1, 1, 1]
    torch.testing.assert_close(torch.cat([block.values for block in streamed]), expected.values)


def test_stream_outputs_between_blocks_restores_modes() -> None:
    model = small_model()
    with pytest.warns(UserWarning, match="training mode"):
        for block in stream_outputs(model, images(), SHIFTS[0], batch_size=1):
            assert model.training
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            block.values.add_(1)  # fails for tensors made in inference mode
            model(images()).sum().backward()


def test_shift_outputs_model_in_training_mode_warns_and_restores_it() -> None:
    model = small_model()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="the model was in training mode"):
        shift_outputs(model, images(), SHIFTS)
    assert model.training
    assert [part.training for part in model] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mode", ["zero", "circular"])
def test_shift_outputs_whole_shifts_as_floats_equal_integers(mode: str) -> None:
    model = small_model().eval()
    whole, parts = (shift_outputs(model, images(), shifts, mode=mode) for shifts in (SHIFTS[0], SHIFTS[0].float()))
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-4, atol=1e-5)


def test_translate_by_parts_circular_half_pixel_twice_is_one_pixel() -> None:
    """On band-limited images: the highest frequency of an even size has no direction and is removed."""
    smooth = torch.fft.irfft2(torch.fft.rfft2(images())[:, :, :, :3] * torch.tensor([1.0, 1, 1, 0, 1, 1])[:, None], s=(6, 6))
    half = torch.full((3, 2), 0.5)
    twice = translate_by_parts(translate_by_parts(smooth, half, mode="circular"), half, mode="circular")
    torch.testing.assert_close(twice, smooth.roll((1, 1), (2, 3)), rtol=1e-4, atol=1e-5)


def test_translate_by_parts_zero_equals_grid_sample() -> None:
    steps = torch.tensor([[0.25, -1.5], [2.75, 0.0], [-0.5, 0.5]])
    large = torch.nn.functional.pad(images(), (4, 4, 4, 4))
    size = large.shape[2]
    axis = torch.arange(size, dtype=torch.float32)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[None] - steps.flip(1)[:, None, None]
    expected = torch.nn.functional.grid_sample(large, 2 * places / (size - 1) - 1, align_corners=True)
    torch.testing.assert_close(translate_by_parts(images(), steps), expected[:, :, 4:-4, 4:-4], rtol=1e-4, atol=1e-5)


def test_shift_outputs_out_of_memory_halves_batch_and_warns() -> None:
    sizes: list[int] = []

    def hungry(batch: Tensor) -> Tensor:
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate more")
        sizes.append(len(batch))
        return batch.mean((2, 3))

    many = torch.rand(9, 2, 6, 6)
    with pytest.warns(UserWarning, match="out of memory; continuing with batches of") as warned:
        found = shift_outputs(hungry, many, SHIFTS[0], batch_size=8)
    assert len(warned) == 2  # 8 to 4 to 2, once each: later batches stay small
    torch.testing.assert_close(found.reference, many.mean((2, 3)))
    assert max(sizes) == 2


def test_shift_outputs_model_that_changes_its_input_in_place_is_isolated() -> None:
    def in_place(batch: Tensor) -> Tensor:
        batch -= 0.5
        batch *= 3
        return batch.mean((2, 3))

    original = images()
    found = shift_outputs(in_place, original, SHIFTS[0])
    expected = shift_outputs(lambda batch: (3 * (batch - 0.5)).mean((2, 3)), images(), SHIFTS[0])
    torch.testing.assert_close(found.values, expected.values)
    assert torch.equal(original, images())


@pytest.mark.parametrize(
    ("model", "given", "options", "text"),
    [
        (lambda batch: (batch,), images(), {}, "must return one vector for each of 3 images, got tuple"),
        (lambda batch: {"logits": batch}, images(), {}, "got dict"),
        (lambda batch: batch, images(), {}, r"got shape \(3, 2, 6, 6\)"),
        (lambda batch: batch.mean((2, 3))[:1], images(), {}, r"got shape \(1, 2\)"),
        (lambda batch: batch.mean((2, 3)) / 0, images(), {}, "not finite"),
        (lambda batch: batch.mean((2, 3)), images()[:0], {}, "at least one image"),
        (lambda batch: batch, torch.zeros(3, 2, 6, 6, dtype=torch.uint8), {}, "floating point"),
        (lambda batch: batch, images()[0], {}, r"must be \[image, channel, height, width\]"),
        (lambda batch: batch, images() / 0, {}, "`images` must be finite"),
        (nn.Conv2d(3, 4, 3).eval(), images(), {}, "`model` fails on images of shape .*3 channels"),
        (lambda batch: batch.mean((2, 3)), images(), {"shifts": torch.zeros(4, 3)}, r"`shifts` must be \[shift, 2\]"),
        (lambda batch: batch.mean((2, 3)), images(), {"shifts": SHIFTS[:2]}, "a list for each of 3 images, got 2"),
        (lambda batch: batch.mean((2, 3)), images(), {"shifts": SHIFTS[0] / 0.0}, "`shifts` must be finite"),
        (
            lambda batch: batch.mean((2, 3)),
            images(),
            {"mode": "mirror"},
            "`mode` must be 'zero' or 'circular', got 'mirror'",
        ),
        (
            lambda batch: batch.mean((2, 3)),
            images(),
            {"method": "Dense"},
            "`method` must be 'auto', 'direct' or 'dense', got 'Dense'",
        ),
        (lambda batch: batch.mean((2, 3)), images(), {"batch_size": -1}, "`batch_size` must be 1 or more images, got -1"),
        (lambda batch: batch.mean((2, 3)), images(), {"fill": torch.zeros(3)}, "`fill` must be one value or one for each of 2"),
        (lambda batch: [][0], images(), {}, "`model` fails on images of shape .* list index out of range"),
        (
            small_model().eval(),
            images(),
            {"shifts": SHIFTS[0] + 0.5, "method": "dense"},
            "shifts by fractions of pixels are interpolated",
        ),
    ],
)
def test_invalid_input_raises_error(model, given: Tensor, options: dict[str, object], text: str) -> None:
    plain = as_users_import_it(importlib.import_module("shiftscope.engine.outputs"))
    with pytest.raises(InputError, match=text):
        plain.shift_outputs(model, given, **{"shifts": SHIFTS[0], **options})


@pytest.mark.parametrize(
    ("model", "kind"), [(lambda batch: batch.mean((2, 3)) / 0, NotFiniteError), (lambda batch: [][0], ModelFailsError)]
)
def test_failing_model_raises_its_kind_of_error(model, kind: type[InputError]) -> None:
    with pytest.raises(kind):
        shift_outputs(model, images(), SHIFTS[0])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_ran_out_of_memory_tells_memory_from_other_errors(error: Exception, expected: bool) -> None:
    assert ran_out_of_memory(error) == expected
