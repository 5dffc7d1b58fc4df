"""Specifications build the networks that they describe, and impossible ones are refused with the sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from shiftscope.models.family import Network, NetworkSpec, build


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    convolution_kernel=st.integers(1, 4),
    pool_kernel=st.integers(2, 5),
    pool=st.sampled_from(["max", "average"]),
    factor=st.sampled_from([1, 2, 4, 8]),
    strided=st.sampled_from(["first", "last"]),
    padding=st.sampled_from(["valid", "same", "circular"]),
    pool_padding=st.sampled_from(["valid", "half"]),
    head=st.sampled_from(["flatten", "gap"]),
    input_size=st.integers(8, 40),
    input_channels=st.integers(1, 3),
)
@settings(deadline=None, max_examples=80)
def test_accepted_specification_builds_maps_of_its_sizes(**settings_: object) -> None:
    try:
        spec = NetworkSpec(**settings_)
    except ValidationError:
        assume(False)
    network = build(spec, generator=seeded())
    seen: list[int] = []
    for layer in network.features:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            layer.register_forward_hook(lambda _, __, output: seen.append(output.shape[-1]))
    outputs = network(torch.rand(2, spec.input_channels, spec.input_size, spec.input_size, generator=seeded()))
    assert outputs.shape == (2, spec.classes)
    assert tuple(seen) == spec.sizes()


@pytest.mark.parametrize(("strided", "strides"), [("first", (2, 2, 1)), ("last", (1, 2, 2))])
def test_factor_gives_the_first_or_last_pools_stride_2(strided: str, strides: tuple[int, ...]) -> None:
    assert NetworkSpec(factor=4, strided=strided).pool_strides() == strides


def test_factor_is_the_product_of_given_strides() -> None:
    assert NetworkSpec(strides=(3, 1, 2)).factor == 6


def test_max_pooling_before_relu_equals_relu_first() -> None:
    network = build(NetworkSpec(factor=4), generator=seeded())
    layers = [layer for layer in network.features if not isinstance(layer, nn.ReLU)]
    images = torch.rand(2, 1, 40, 40, generator=seeded(1))
    maps = images
    for convolution, pool in zip(layers[::2], layers[1::2], strict=True):
        maps = pool(torch.relu(convolution(maps)))
    torch.testing.assert_close(network(images), network.head(maps))


@given(factor=st.sampled_from([1, 2, 4, 8]), pool_kernel=st.integers(2, 4), pool=st.sampled_from(["max", "average"]))
@settings(deadline=None, max_examples=15)
def test_circular_network_with_gap_is_invariant_on_its_lattice(factor: int, pool_kernel: int, pool: str) -> None:
    spec = NetworkSpec(factor=factor, pool_kernel=pool_kernel, pool=pool, padding="circular", head="gap", input_size=16)
    network = build(spec, generator=seeded()).double()
    images = torch.rand(3, 1, 16, 16, generator=seeded(1), dtype=torch.float64)
    shifted = images.roll((factor, -2 * factor), (2, 3))
    torch.testing.assert_close(network(shifted), network(images), rtol=1e-12, atol=1e-12)


def test_weights_depend_on_the_generator_and_not_on_the_global_state() -> None:
    state = torch.get_rng_state()
    first, second, other = (build(NetworkSpec(), generator=seeded(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.2.weight"], other["head.2.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_follow_pytorchs_rule() -> None:
    weight = build(NetworkSpec(channels=(8, 64, 64)), generator=seeded()).features[3].weight
    bound = (8 * 9) ** -0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_state_dict_holds_the_normalisation() -> None:
    network = build(NetworkSpec(), generator=seeded())
    network.normalise.mean.fill_(0.25)
    network.normalise.deviation.fill_(0.5)
    copy = Network(NetworkSpec())
    copy.load_state_dict(network.state_dict())
    images = torch.rand(1, 1, 40, 40, generator=seeded())
    torch.testing.assert_close(copy.normalise(images), (images - 0.25) / 0.5)
    assert isinstance(build(NetworkSpec(normalise=False), generator=seeded()).normalise, nn.Identity)


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ({"factor": 3}, "`factor` must be 1, 2, 4 or 8, got 3. Choose one of them or give `strides` yourself."),
        ({"factor": 8, "channels": (4, 4)}, "`factor` 8 needs 3 pools of stride 2, but `channels` gives 2"),
        ({"strides": (2, 2)}, "`strides` must be one positive number for each of 3 pools"),
        ({"strides": (2, 2, 0), "channels": (4, 4, 4)}, "greater than or equal to 1"),
        ({"strides": (2, 2, 1), "factor": 8}, "`factor` 8 contradicts `strides`"),
        ({"channels": ()}, "`channels` must be one or more positive numbers"),
        ({"channels": (4, 0)}, "greater than or equal to 1"),
        ({"pool_kernel": 6}, "less than or equal to 5"),
        (
            {"factor": 8, "pool_kernel": 5, "input_size": 28},
            r"pool 3 has kernel 5, but its input is 1x1 \(sizes so far 28 -> 26 -> 11 -> 9 -> 3 -> 1\)",
        ),
        ({"pool_padding": "half", "antialias": 3}, "`pool_padding` 'half' needs pools without a filter"),
        ({"pool_padding": "half", "padding": "circular"}, "on maps that are not circular"),
        ({"padding": "circular", "factor": 8, "input_size": 36}, "pool 3 has stride 2, its input is 9x9"),
    ],
)
def test_impossible_specification_is_refused(given_: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        NetworkSpec(**given_)
