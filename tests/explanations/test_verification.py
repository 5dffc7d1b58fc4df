"""No guarantee stands that the model refutes: layers that are not what their type says, and weights that hide what they do."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import generated
from generated import Part, changes, make, redrawn
from shiftscope.explanations import Guarantee, guarantee_of
from shiftscope.layers import AdaptivePolyphaseSampling, MaxBlurPool2d
from shiftscope.surgery import make_equivariant


def ramp(maps: Tensor) -> Tensor:
    """A value for each position."""
    return torch.linspace(0, 1, maps.shape[-1], dtype=maps.dtype)


class RampReLU(nn.ReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return functional.relu(maps) * ramp(maps)


class ZeroPaddedConvolution(nn.Conv2d):
    def forward(self, maps: Tensor) -> Tensor:
        return functional.conv2d(maps, self.weight, self.bias, padding=1)


class RampNorm(nn.BatchNorm2d):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) + ramp(maps)


class Positions(nn.Module):
    """Adds a weight for each position, zero at the start as in many models."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.weight.expand(1, maps.shape[1], *maps.shape[2:])


class Coordinates(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps + torch.arange(maps.shape[-1], dtype=maps.dtype)


class RowNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(maps)


class TwoSamplings(nn.Module):
    """Two branches that choose their phases apart are added."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = AdaptivePolyphaseSampling(2), AdaptivePolyphaseSampling(2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.one(maps) + self.two(maps.roll(1, 1))


class Cropping(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return functional.pad(maps, (-1, -1, -1, -1))


def convolution() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")


def network(*inside: nn.Module) -> nn.Module:
    """A circular network with a mean over positions, and some layers inside."""
    stem = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    return nn.Sequential(stem, nn.ReLU(), *inside, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def hooked() -> nn.Module:
    model = network(convolution())
    model[2].register_forward_hook(lambda module, inputs, output: output * ramp(output))
    return model


NOT_INVARIANT: dict[str, Callable[[], nn.Module]] = {
    "activation of another forward": lambda: network(RampReLU()),
    "convolution of another forward": lambda: network(ZeroPaddedConvolution(4, 4, 3, padding=1, padding_mode="circular")),
    "norm of another forward": lambda: network(RampNorm(4), nn.ReLU()),
    "hook": hooked,
    "positions, all": lambda: network(Positions(1, 4, 8, 8), nn.ReLU()),
    "positions, expanded over channels": lambda: network(Positions(1, 1, 8, 8), nn.ReLU()),
    "positions, along one axis": lambda: network(Positions(1, 1, 1, 8), nn.ReLU()),
    "coordinates": lambda: network(Coordinates(), convolution(), nn.ReLU()),
    "layer norm over a row": lambda: network(RowNorm()),
    "circular pad into the mean": lambda: network(nn.CircularPad2d(1)),
    "negative pad": lambda: network(Cropping()),
    "maximum that is no torus": lambda: network(MaxBlurPool2d(3, stride=1, padding=1, border="circular")),
    "two samplings that are added": lambda: network(TwoSamplings()),
    "stride": lambda: network(nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="circular")),
    "zero padding": lambda: network(nn.Conv2d(4, 4, 3, padding=1)),
}
INVARIANT: dict[str, Callable[[], nn.Module]] = {
    "circular": lambda: network(convolution(), nn.BatchNorm2d(4), nn.ReLU(), convolution()),
    "dilated": lambda: network(nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular")),
    "grouped": lambda: network(nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"), nn.GELU()),
    "one by one": lambda: network(nn.Conv2d(4, 4, 1), nn.SiLU()),
    "polyphase": lambda: make_equivariant(network(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU())).model,
    "group norm": lambda: network(nn.GroupNorm(2, 4), convolution()),
}


@pytest.mark.parametrize("name", NOT_INVARIANT)
def test_network_that_sees_positions_is_not_guaranteed(name: str) -> None:
    torch.manual_seed(0)
    assert guarantee_of(NOT_INVARIANT[name](), image=(3, 8, 8)).status != "guaranteed"


@pytest.mark.parametrize("name", INVARIANT)
def test_invariant_network_is_guaranteed(name: str) -> None:
    torch.manual_seed(0)
    found = guarantee_of(INVARIANT[name](), image=(3, 8, 8))
    assert found.status == "guaranteed"
    assert found.exact_at.startswith("The layers before the head are exactly equivariant to")


def test_equivariance_that_a_layer_refutes_is_unknown() -> None:
    found = guarantee_of(network(RampReLU()), image=(3, 8, 8))
    assert found.exact is None
    assert "it is not known how `2` (RampReLU) treats positions" in found.exact_at


def test_guarantee_that_cannot_be_tried_is_withdrawn() -> None:
    found = guarantee_of(network(convolution()), image=(5, 8, 8))
    assert (found.status, "cannot be tried on images of (5, 8, 8)" in found.sentence) == ("unknown", True)


@pytest.mark.parametrize("reduce", [lambda flat: flat.amax(1, keepdim=True), lambda flat: flat.mean(1, keepdim=True)])
def test_flattened_map_whose_positions_are_reduced_is_not_impossible(reduce: Callable[[Tensor], Tensor]) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 1, 3, padding=1, padding_mode="circular")

        def forward(self, images: Tensor) -> Tensor:
            return reduce(self.stem(images).flatten(1))

    assert guarantee_of(Flat(), image=(3, 8, 8)).status != "impossible"


def test_trying_a_guarantee_leaves_the_model_as_it_was() -> None:
    model = network(convolution(), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guarantee_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


def test_guarantee_is_withdrawn_where_outputs_do_not_depend_on_the_image() -> None:
    model = network(convolution())
    nn.init.constant_(model[0].bias, -1e6)
    hook = model[0].register_forward_hook(lambda module, inputs, output: output * ramp(output))
    assert guarantee_of(model, image=(3, 8, 8)).status != "guaranteed"
    hook.remove()
    assert guarantee_of(model, image=(3, 8, 8)).status == "guaranteed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5001, 5004, 5006, 5009, 5012, 5016, 5018])
def test_verdict_on_generated_model_is_true(seed: int) -> None:
    """Some models of benchmarks/guarantees.py, whose truth is known by construction and by trying every shift."""
    made = make(seed)
    found = guarantee_of(made.model, image=(3, made.size, made.size))
    change = max(changes(redrawn(made.model, number), made.size) for number in (1, 2))
    rounding = 1e-4 if "cast" in made.names else 1e-8
    assert not (found.status == "guaranteed" and change > rounding)
    assert not (found.status == "impossible" and change < rounding)
    assert not (made.invariant and change > rounding)


@pytest.mark.parametrize("name", ["attention layer", "hook that scales", "columns", "polyphase", "scripted", "turned twice"])
def test_part_that_moves_along_is_recognized(name: str) -> None:
    found = verdict(generated.MOVING[name])
    assert (found.status, found.exact is not None and found.exact.lattice) == ("guaranteed", (1, 1))


@pytest.mark.parametrize("name", ["channels-last slices", "reshaped patches", "shifted windows", "skip", "samplings apart"])
def test_lattice_of_part_that_samples_is_recognized(name: str) -> None:
    part = generated.LATTICE[name]
    found = verdict(part)
    assert found.exact is not None
    assert (found.exact.circular, max(found.exact.lattice)) == (True, part.moves)


@pytest.mark.parametrize("name", ["drawn by Python", "counting", "buffer along one axis", "mixed tokens", "ramp by sums"])
def test_part_that_sees_positions_is_not_guaranteed(name: str) -> None:
    random.seed(0)  # where a part draws to weigh positions in the first run, its verdict is "unknown"
    found = verdict(generated.SEEING[name])
    assert (found.status, found.exact) == ("possible", None)


def test_spectrum_of_a_map_is_unknown() -> None:
    assert (verdict(generated.MOVING["spectrum"]).status, verdict(generated.MOVING["spectrum"]).exact) == ("possible", None)


@pytest.mark.parametrize("name", ["ordinary pool", "flattened maximum", "class token", "sorted"])
def test_head_without_positions_is_recognized(name: str) -> None:
    model = generated.Model(nn.Sequential(convolution_of_colours(), nn.GELU()), generated.INVARIANT[name].make(8)).eval()
    assert guarantee_of(model, image=(3, 8, 8)).status == "guaranteed"


@pytest.mark.parametrize(("name", "status"), [("flattened", "impossible"), ("rows", "impossible"), ("soft place", "possible")])
def test_head_with_positions_is_not_guaranteed(name: str, status: str) -> None:
    model = generated.Model(nn.Sequential(convolution_of_colours(), nn.GELU()), generated.HEADS[name].make(8)).eval()
    assert guarantee_of(model, image=(3, 8, 8)).status == status


def convolution_of_colours() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")


def verdict(part: Part) -> Guarantee:
    """Return the verdict on one part between a convolution and a mean over positions."""
    features = nn.Sequential(convolution_of_colours(), part.make(8))
    model = generated.Model(features, generated.INVARIANT["mean"].make(8)).eval()
    generated.spread(model)
    return guarantee_of(model, image=(3, 8, 8))


class Branching(nn.Module):
    """Weighs positions of images that ``reads`` finds faint, as random images of much contrast never are."""

    def __init__(self, reads: Callable[[Tensor], bool]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Linear(4, 3)
        self.reads = reads

    def forward(self, images: Tensor) -> Tensor:
        if self.reads(images):
            images = images * ramp(images)
        return self.head(self.conv(images).relu().mean((2, 3)))


READINGS: dict[str, Callable[[Tensor], bool]] = {
    "tolist": lambda images: images.mean().tolist() < -5,
    "numpy": lambda images: images.numpy().mean() < -5,
    "asarray": lambda images: np.asarray(images).mean() < -5,
    "allclose": lambda images: torch.allclose(images, images + 9),
    "mask": lambda images: len(images[images > 9]) > 0,
    "unique": lambda images: len(torch.unique_consecutive(images)) < 5,
}


@pytest.mark.parametrize("name", READINGS)
def test_model_whose_code_sees_values_is_not_guaranteed(name: str) -> None:
    found = guarantee_of(Branching(READINGS[name]).eval(), image=(1, 16, 16))
    assert (found.status, found.exact) == ("unknown", None)
    assert "reads values of a map" in found.sentence


def test_model_that_does_something_else_for_one_image_is_not_guaranteed() -> None:
    found = guarantee_of(Branching(lambda images: len(images) == 1).eval(), image=(1, 16, 16))
    assert (found.status, found.exact) == ("unknown", None)
    assert "depend on the other images of a batch" in found.sentence


class Among(nn.Module):
    """Subtracts the mean of a batch."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps - maps.mean(0, keepdim=True)


def test_model_of_whole_batches_is_not_guaranteed() -> None:
    head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    found = guarantee_of(nn.Sequential(convolution_of_colours(), Among(), *head).eval(), image=(3, 16, 16))
    assert (found.status, found.exact) == ("possible", None)


class Telling(nn.Module):
    """Returns classes, and something else that shifts change."""

    def __init__(self, other: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.sampling, self.head = convolution_of_colours(), AdaptivePolyphaseSampling(2), nn.Linear(4, 3)
        self.other = other

    def forward(self, images: Tensor) -> object:
        maps = self.conv(images).relu()
        choice = self.sampling.choose(maps)
        maps = self.sampling.take(maps, choice)
        return self.head(maps.mean((2, 3))), self.other(maps, choice)


@pytest.mark.parametrize(
    "other",
    [
        lambda _, choice: choice,
        lambda _, choice: choice.float() + 1,
        lambda _, choice: choice[:, None].sum(1),
        lambda maps, _: maps.sum(1).flatten(1).argmax(1).tolist(),
    ],
    ids=["phase", "computed", "summed", "list"],
)
def test_further_output_that_shifts_change_is_not_guaranteed(other: Callable[[Tensor, Tensor], object]) -> None:
    model = Telling(other).eval()
    assert guarantee_of(model, image=(3, 16, 16)).status == "possible"
    image = torch.rand(1, 3, 16, 16)
    before, after = (model(each)[1] for each in (image, image.roll((1, 1), (2, 3))))
    assert not torch.equal(torch.as_tensor(before), torch.as_tensor(after))


class Branches(nn.Module):
    """Cuts a finer map beside an ordinary one, which comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.ConvTranspose2d(4, 4, 4, 4, padding=1, output_padding=2)
        self.first, self.coarse, self.head = convolution_of_colours(), nn.Conv2d(4, 4, 1), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images).relu()
        return self.head(torch.cat([self.fine(maps).relu().mean((2, 3)), self.coarse(maps).relu().mean((2, 3))], 1))


def test_map_of_another_branch_is_looked_at() -> None:
    found = guarantee_of(Branches().eval(), image=(3, 8, 8))
    assert found.status == "possible"
    assert found.exact is None or not found.exact.circular


class WithPlace(nn.Module):
    """Returns classes, and a vector of one place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.pool(self.conv(images).relu())
        return {"classes": self.head(maps.mean((2, 3))), "place": maps[:, :, 4, 4]}


def test_promise_of_a_copy_is_about_every_output() -> None:
    found = make_equivariant(WithPlace().eval(), image=(3, 16, 16))
    assert found.promise is not None
    assert not found.promise.exact
