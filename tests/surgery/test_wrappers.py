"""Wrapped models receive the same input whatever the shift, and averages are those of the definition."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from shiftscope import InputError, certify, fix
from shiftscope.models import Fix, ModelSpec, load_model, save_model
from shiftscope.shifts import grid, translate
from shiftscope.surgery import Average, Canonical, Wrapping, operate


def noise(count: int = 3, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def periodic() -> Tensor:
    """Return images that equal some of their own shifts."""
    return torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8), noise(1, 1, 4, 8)[0].repeat(1, 2, 1)])


def binary() -> Tensor:
    """Return images of two values, whose scores tie."""
    return (noise(8, 1, 8, 8) > 0.7).float()


def flat(classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, classes)).eval()


def content(size: int = 16, fill: float = 0.0) -> Tensor:
    """Return content of 7x6 pixels on a canvas, with holes."""
    images = torch.full((5, 1, size, size), fill)
    images[:, :, 5:12, 4:10] = noise(5, 1, 7, 6) * (noise(5, 1, 7, 6) > 0.4) + fill * (noise(5, 1, 7, 6) <= 0.4)
    return images


@pytest.mark.parametrize("images", [noise(), periodic(), binary(), noise().double()], ids=["noise", "periodic", "ties", "double"])
def test_circular_canonical_gives_the_same_bits_at_every_shift(images: Tensor) -> None:
    place = Canonical(nn.Identity(), border="circular")
    expected = place(images)
    for down in range(images.shape[2]):
        for right in range(images.shape[3]):
            assert torch.equal(place(images.roll((down, right), (2, 3))), expected)


def test_circular_canonical_unrolls_a_photo() -> None:
    ramp = torch.linspace(0, 1, 12)
    photo = (ramp[:, None] + ramp).expand(2, 3, 12, 12) / 2
    assert torch.equal(Canonical(nn.Identity(), border="circular")(photo.roll((5, 3), (2, 3))), photo)


@pytest.mark.parametrize("fill", [0.0, 0.25])
def test_canvas_canonical_gives_the_same_bits_while_content_stays_whole(fill: float) -> None:
    images, place = content(fill=fill), Canonical(nn.Identity(), fill=fill)
    expected = place(images)
    assert torch.equal((expected - fill).flatten(1).sort().values, (images - fill).flatten(1).sort().values)
    for shift in grid(4):
        assert torch.equal(place(translate(images, shift.expand(5, 2), fill=fill)), expected)


def test_canvas_canonical_leaves_what_it_cannot_move() -> None:
    full, empty = noise(2, 1, 8, 8) + 0.1, torch.zeros(1, 1, 8, 8)
    place = Canonical(nn.Identity())
    assert torch.equal(place(full), full)
    assert torch.equal(place(empty), empty)


def test_canvas_canonical_keeps_centred_content() -> None:
    images = torch.zeros(1, 1, 12, 12)
    images[:, :, 4:8, 3:9] = 1
    assert torch.equal(Canonical(nn.Identity())(images), images)


def test_canvas_canonical_centres_photos_by_their_box() -> None:
    images = torch.zeros(2, 1, 16, 16)
    images[:, :, 4:12, 4:12] = noise(2, 1, 8, 8) + torch.linspace(0.1, 3, 8)
    assert torch.equal(Canonical(nn.Identity())(images.roll((3, -2), (2, 3))), images)


def photos(count: int = 4, side: int = 40) -> Tensor:
    """Return smooth noise, whose strongest pixel differs from place to place."""
    return nn.functional.avg_pool2d(noise(count, 3, side + 2, side + 2), 3, 1)


def corner_by_hand(view: Tensor, reach: int) -> tuple[int, int]:
    """Return the first crop whose middle pixel differs most from its neighbours, by a loop."""
    steps = (view * 255).round().long()
    best = (-1, (0, 0))
    for top in range(2 * reach + 1):
        for left in range(2 * reach + 1):
            y, x = view.shape[1] // 2 - reach + top, view.shape[2] // 2 - reach + left
            around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            score = sum(int((steps[:, y, x] - steps[:, b, a]).abs().sum()) for b, a in around)
            if score > best[0]:
                best = (score, (top, left))
    return best[1]


def test_photo_canonical_gives_the_same_bits_wherever_the_best_crop_stays_in_the_frame() -> None:
    place, size, reach, whole = Canonical(nn.Identity(), border="crop", reach=2), 24, 2, photos(2)
    views = {shift: whole[:, :, 8 - shift[0] :, 8 - shift[1] :][:, :, :size, :size] for shift in map(tuple, grid(2).tolist())}
    first, kept = views[0, 0], 0
    for shift, view in views.items():
        same = place.keeps_crop(first, view, torch.tensor(shift).expand(len(view), 2))
        for number in range(len(whole)):
            (top, left), (before, beside) = corner_by_hand(view[number], reach), corner_by_hand(first[number], reach)
            assert place.crops(view)[number].tolist() == [top, left]
            assert bool(same[number]) == ((top, left) == (before + shift[0], beside + shift[1]))
        assert torch.equal(place(view)[same], place(first)[same])
        kept += int(same.sum())
    assert 0 < kept < len(views) * len(whole)


def test_fix_measures_how_often_the_best_crop_leaves_the_frame() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 22 * 22, 4)).eval()
    found = fix(model, photos(), size=24, kinds=["canonical"], max_shift=2, mode="crop", reach=3)
    (note,) = (note for note in found.before_and_after.notes if "best crop leaves the frame" in note)
    place, views = Canonical(nn.Identity(), border="crop", reach=3), photos()
    kept = [
        place.keeps_crop(views[:, :, 8:32, 8:32], views[:, :, 8 - dy : 32 - dy, 8 - dx : 32 - dx], torch.tensor([dy, dx]))
        for dy, dx in grid(2).tolist()
    ]
    assert note.startswith(f"At {100 * (1 - float(torch.stack(kept).float().mean())):.0f} % [")


def test_canonical_wraps_callables_and_keeps_gradients() -> None:
    images = content().requires_grad_()
    found = Canonical(lambda batch: batch.square().sum((2, 3)))(images)
    found.sum().backward()
    assert images.grad is not None
    assert torch.allclose(images.grad, 2 * images)


@pytest.mark.parametrize(("border", "under"), [("circular", "circular"), ("zero", "keep all content")])
def test_promise_is_tried_and_kept(border: Any, under: str) -> None:
    surgery = operate("canonical", flat(), wrapping=Wrapping(border), image=(1, 16, 16))
    assert surgery.promise is not None
    assert surgery.promise.error == 0
    assert under in surgery.promise.sentence
    assert surgery.before == surgery.after


def test_certificate_of_canonical_reaches_the_margin() -> None:
    found = certify(Canonical(flat()), content(), radius=4)
    assert found.radii.tolist() == [4] * 5
    assert found.provenance["model_sha256"] != certify(flat(), content(), radius=1).provenance["model_sha256"]


@pytest.mark.parametrize("of", ["probabilities", "logits", "votes"])
@pytest.mark.parametrize("border", ["zero", "circular"])
def test_average_is_the_mean_over_shifts(of: Any, border: Any) -> None:
    model, images = flat(), content()
    outputs = torch.stack([model(translate(images, shift.expand(5, 2), mode=border)) for shift in grid(2)])
    votes = nn.functional.one_hot(outputs.argmax(-1), 4).float().mean(0)
    expected = {"probabilities": outputs.softmax(-1).mean(0).log(), "logits": outputs.mean(0), "votes": votes}[of]
    averaged = Average(model, reach=2, border=border, of=of)
    with torch.no_grad():
        at_once = averaged(images)
    assert torch.allclose(averaged(images), expected, atol=1e-5)
    assert torch.allclose(at_once, expected, atol=1e-5)


def test_average_follows_new_weights() -> None:
    model, images = flat(), content()
    averaged = Average(model)
    with torch.no_grad():
        before = averaged(images)
        model[3].bias.add_(torch.tensor([5.0, 0, 0, 0]))
        assert not torch.allclose(averaged(images), before, atol=0.1)


class Traced(nn.Module):
    """A model that counts how often its graph is read, copies included, and whose code depends on an attribute."""

    reads: ClassVar[list[None]] = []

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.factor = flat(), 1.0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.reads.extend([None] * isinstance(images, fx.Proxy))
        found: Tensor = self.inner(images) * self.factor
        return found


def replace_weights(model: Traced) -> None:
    model.inner[3].weight = nn.Parameter(model.inner[3].weight.detach().flip(0))


def swap_layer(model: Traced) -> None:
    model.inner[1] = nn.Sigmoid()


def write_through_data(model: Traced) -> None:
    model.inner[0].weight.data.mul_(-1)


def change_layer(model: Traced) -> None:
    model.inner[0].padding, model.inner[0].stride = (7, 7), (2, 2)


def add_hook(model: Traced) -> None:
    model.inner[2].register_forward_hook(lambda _, __, output: output.flip(1))


@pytest.mark.parametrize("change", [replace_weights, swap_layer, write_through_data, change_layer, add_hook])
def test_average_reads_the_graph_once_and_follows_every_change(change: Callable[[Traced], None]) -> None:
    model, images = Traced(), content()
    model.reads.clear()
    averaged = Average(model)
    with torch.no_grad():
        before = averaged(images)
        averaged(images)
        assert len(model.reads) == 1
        assert torch.allclose(averaged(images[:2]), before[:2], atol=1e-5)
        assert len(model.reads) == 1
        change(model)
        outputs = torch.stack([model(translate(images, shift.expand(5, 2))) for shift in grid(1)])
        after = averaged(images)
    assert torch.allclose(after, outputs.softmax(-1).mean(0).log(), atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)


def test_average_falls_back_where_the_code_changed() -> None:
    model, images = Traced(), content()
    averaged = Average(model)
    with torch.no_grad():
        averaged(images)
        model.factor = 9.0
        with pytest.warns(UserWarning, match="one by one"):
            after = averaged(images)
        outputs = torch.stack([model(translate(images, shift.expand(5, 2))) for shift in grid(1)])
    assert torch.allclose(after, outputs.softmax(-1).mean(0).log(), atol=1e-5)


def test_average_copies_without_its_graph() -> None:
    averaged, images = Average(flat()), content()
    with torch.no_grad():
        before = averaged(images)
        copy = deepcopy(averaged)
        copy.model[3].bias.add_(torch.tensor([5.0, 0, 0, 0]))
        assert torch.equal(averaged(images), before)
        assert not torch.allclose(copy(images), before, atol=0.1)


def test_average_costs_a_pass_for_each_shift_and_promises_nothing() -> None:
    surgery = operate("average", flat(), wrapping=Wrapping(reach=2), image=(1, 16, 16))
    assert surgery.before is not None
    assert surgery.after is not None
    assert surgery.after.multiply_adds == 25 * surgery.before.multiply_adds
    assert surgery.promise is None


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Average(flat(), reach=0), "`reach` must be 1"),
        (lambda: Average(nn.Identity())(content()), "returns classes"),
        (lambda: operate("canonical", flat(), wrapping=Wrapping("crop", 4), image=(1, 16, 16)), "^`reach` must be less than"),
    ],
)
def test_impossible_wrappers_are_refused(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        make()


def test_fix_measures_gains_image_by_image() -> None:
    found = fix(flat(), content(), torch.tensor([0, 1, 2, 3, 0]), kinds=["canonical"], max_shift=3, mode="zero")
    before, after = found.before_and_after.rows
    assert after["mcs"].value == pytest.approx(1)
    assert after["all_agree"].value == 1
    assert before["mcs"].value < 1
    assert any(
        note.startswith("Gained image by image (zero shifts): mean cosine similarity") for note in found.before_and_after.notes
    )


@pytest.mark.parametrize("kind", ["canonical", "average"])
def test_wrapped_model_is_saved_and_loaded(kind: Any, run: Path, tmp_path: Path) -> None:
    loaded = load_model(str(run))
    added = Fix(kind=kind, border="circular", reach=2, fill=(0.0,))
    surgery = added.apply(loaded.model, image=None)
    spec: ModelSpec = loaded.spec.model_copy(update={"fixes": (added,)})
    save_model(tmp_path / "f.safetensors", surgery.model, spec)
    again = load_model(str(tmp_path / "f.safetensors"))
    images = torch.rand(3, 1, 20, 20)
    with torch.no_grad():
        assert torch.equal(again.model(images), surgery.model(images))
    assert again.image == (1, 20, 20)


def placed_digits(count: int, seed: int) -> Tensor:
    """Return content at places of its own on a black canvas of 16x16."""
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(-4, 5, (count, 2), generator=generator)
    return translate(torch.rand(count, 1, 6, 6, generator=generator), shifts, size=(16, 16))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("border", ["zero", "crop", "circular"])
def test_exported_canonical_places_other_images_than_its_example(border: Any, count: int) -> None:
    model = Canonical(flat(), border=border)
    example, *others = (placed_digits(count, seed) for seed in range(3))
    exported = torch.export.export(model, (example,)).module()
    for images in (example, *others, torch.zeros_like(example), (others[0] > 0.5).float()):
        torch.testing.assert_close(exported(images), model(images), rtol=1e-5, atol=1e-6)


#: Runs in a process of its own, because tests check the types of arguments, and a trace passes sizes as tensors.
TRACED = """
import warnings
import torch
from torch import nn
from shiftscope.surgery import Canonical
warnings.simplefilter("ignore")
net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 3)).requires_grad_(False).eval()
for border in ("zero", "crop"):
    for count in (1, 4):
        model = Canonical(net, border=border).eval()
        images = torch.zeros(3, count, 1, 16, 16)
        for each in images.flatten(0, 1):
            top, left = torch.randint(0, 9, (2,)).tolist()
            each[:, top : top + 6, left : left + 6] = torch.rand(6, 6)
        compiled = [torch.compile(model, fullgraph=True, backend="eager")] if count == 4 else []
        for run in (torch.jit.trace(model, images[0]), *compiled):
            for each in (*images, torch.zeros_like(images[0])):
                torch.testing.assert_close(run(each), model(each), rtol=1e-5, atol=1e-6)
print("equal")
"""


def test_traced_and_compiled_canonical_places_other_images_than_its_example() -> None:
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


def test_exported_average_averages_other_images_than_its_example() -> None:
    model = Average(flat(), reach=1)
    example, images = placed_digits(2, 0), placed_digits(2, 1)
    torch.testing.assert_close(torch.export.export(model, (example,)).module()(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_circular_canonical_is_not_traced() -> None:
    with pytest.raises(InputError, match=r"cannot be traced: the bits of pixels decide between equal seams\. Use torch\.export"):
        torch.jit.trace(Canonical(flat(), border="circular"), placed_digits(1, 0))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("images", [noise(), periodic(), binary()], ids=["noise", "periodic", "ties"])
def test_circular_canonical_in_half_precision_gives_the_same_bits(images: Tensor, kind: torch.dtype) -> None:
    place = Canonical(nn.Identity(), border="circular")
    images = images.to(kind)
    for shift in ((0, 1), (3, 0), (5, 2)):
        assert torch.equal(place(images.roll(shift, (2, 3))), place(images))


@pytest.mark.parametrize("given", ["logits", "probabilities"])
@pytest.mark.parametrize("kinds", ["canonical", "average"])
def test_wrapped_maps_of_one_channel_have_one_channel_of_the_same_kind(kinds: Any, given: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)).eval()
    model.append(nn.Sigmoid() if given == "probabilities" else nn.Identity()).requires_grad_(False)
    images = placed_digits(8, 0)
    copy = fix(model, images, kinds=kinds, task=f"segmentation:given={given}", max_shift=2).model
    found = copy(images)
    assert (found.shape, found.dtype) == (model(images).shape, torch.float32)
    if kinds == "average":
        views = []
        for shift in grid(1):
            moved = model(translate(images, shift.expand(8, 2)))
            views.append(translate(moved, -shift.expand(8, 2)))
        inside = slice(1, -1)  # of every view
        mean = torch.stack(views).double().sigmoid() if given == "logits" else torch.stack(views).double()
        expected = mean.mean(0).logit() if given == "logits" else mean.mean(0)
        torch.testing.assert_close(found[..., inside, inside].double(), expected[..., inside, inside], rtol=1e-4, atol=1e-5)
    else:
        still = Canonical(model)
        back = translate(still(images), torch.zeros(8, 2, dtype=torch.long))
        assert found.min() >= back.min() - 1e-6
        assert found.max() <= back.max() + 1e-6


def test_average_of_probabilities_has_the_type_of_the_model() -> None:
    model = nn.Sequential(flat(1), nn.Sigmoid())
    copy = fix(model, placed_digits(8, 0), kinds="average", task="binary:given=probabilities", max_shift=2).model
    assert copy(placed_digits(2, 0)).dtype == torch.float32


@pytest.mark.parametrize("kinds", ["blur", "anchor"])
def test_fix_that_changes_nothing_is_refused(kinds: Any) -> None:
    with pytest.raises(InputError, match=rf"`{kinds}` has nothing to change in the model"):
        fix(flat(), placed_digits(8, 0), kinds=kinds, max_shift=1)


def test_answers_that_are_all_the_same_before_the_fix_are_not_blamed_on_it() -> None:
    model = flat()
    nn.init.zeros_(model[3].weight)
    verdict = fix(model, placed_digits(8, 0), kinds="canonical", max_shift=1).verdict
    assert verdict.startswith("Before and after the fix: All 8 images get the same answer")
