"""Commands say when images or outputs are such that stability under shifts says nothing, and are silent otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.engine.answers import add_answers, answers_of, image_warnings, output_warnings

IMAGES = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Normalise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images - MEAN[:, None, None]) / STD[:, None, None]


def network(*, constant: bool = False) -> nn.Module:
    """Return a small classifier; a constant one has the same answer for every image."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 4)).eval()
    with torch.no_grad():
        model[3].weight.sub_(model[3].weight.mean(dim=1, keepdim=True)).mul_(0 if constant else 30)
    return model


def trained() -> nn.Sequential:
    """Return a network whose batch norm has seen normalised images only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 4))
    for _ in range(60):
        model(Normalise()(IMAGES))
    return model.eval()


def audit_words(model: nn.Module) -> str:
    return ss.audit(model, IMAGES, protocols=["mouton2020"], max_shift=2).words()


def explain_words(model: nn.Module) -> str:
    return ss.explain(model, IMAGES, max_shift=2, shifts=1).verdict


def fix_notes(model: nn.Module) -> str:
    return " ".join(ss.fix(model, IMAGES, kinds=["blur"], max_shift=1).before_and_after.notes)


@pytest.mark.parametrize("say", [audit_words, explain_words, fix_notes], ids=["audit", "explain", "fix"])
def test_constant_model_does_not_score_in_silence(say: Callable[[nn.Module], str]) -> None:
    found = say(network(constant=True))
    assert "All 12 images get the same answer" in found
    assert "mean cosine 1.0000" in found
    assert "same answer" not in say(network())
    assert "nearly the same" not in say(network())


def test_mean_cosine_between_images_equals_a_loop_over_pairs() -> None:
    outputs = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)) + 20
    pairs = [nn.functional.cosine_similarity(outputs[i], outputs[j], dim=0) for i in range(9) for j in range(9) if i != j]
    parts = add_answers(add_answers({}, answers_of(outputs[:4])), answers_of(outputs[4:]))
    (found,) = output_warnings(parts, classes=False)
    assert f"mean cosine {float(torch.stack(pairs).double().mean()):.4f}" in found


@pytest.mark.parametrize(
    ("outputs", "count"),
    [(3 * torch.eye(4), 0), (torch.eye(4), 1), (torch.ones(3, 4), 0), (torch.ones(4, 4), 2), (torch.zeros(8, 4), 1)],
)
def test_only_outputs_that_say_little_are_reported(outputs: Tensor, count: int) -> None:
    assert len(output_warnings(answers_of(outputs), classes=True)) == count


def test_values_outside_the_range_are_reported() -> None:
    (found,) = image_warnings(network(), Normalise()(IMAGES))
    assert found.startswith("Images hold values from -2.1")
    assert found in ss.audit(network(), Normalise()(IMAGES), protocols=["mouton2020"]).words()
    assert image_warnings(network(), IMAGES) == ()


def test_range_that_the_fill_was_chosen_for_is_not_reported() -> None:
    images = 4000 * IMAGES
    assert image_warnings(network(), images, fill=2000.0) == ()
    warned = "outside [0, 1], and shifts fill with 0"
    for measured in (ss.audit, ss.certify):
        options = {"max_shift": 1, "protocols": ["every-shift"]} if measured is ss.audit else {"radius": 1}
        assert warned in " ".join(measured(network(), images, **options).warnings)
        assert warned not in " ".join(measured(network(), images, fill=2000.0, **options).warnings)


def test_images_of_few_bits_are_reported() -> None:
    (found,) = image_warnings(network(), IMAGES / 16)
    assert found.startswith("No value of the images is above 0.06")
    assert image_warnings(network(), IMAGES / 4) == ()


def test_images_unlike_those_of_training_are_reported() -> None:
    (found,) = image_warnings(trained(), IMAGES)
    assert "the variance before the first batch norm is 0.05" in found
    assert image_warnings(nn.Sequential(Normalise(), trained()), IMAGES) == ()


def test_model_that_describes_its_normalisation_is_compared_with_its_images() -> None:
    model = network()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert "pretrained_cfg says mean (0.5, 0.5, 0.5)" in " ".join(image_warnings(model, IMAGES))
    assert image_warnings(nn.Sequential(Normalise(), model), IMAGES) == ()
