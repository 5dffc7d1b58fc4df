"""Every layer's numbers equal those of the theory on its maps, whatever the batches, and the model is not changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import as_users_import_it
from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.explanations import layers as layerwise
from shiftscope.explanations.hooks import at_stride_one
from shiftscope.explanations.layers import layer_responses
from shiftscope.graphs.geometry import read_geometry
from shiftscope.runtime.progress import Event, Stage
from shiftscope.shifts import translate
from shiftscope.theory import homogeneity, respond
from zoo import timm, torchvision_models

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(5, 2, 16, 16, generator=GENERATOR)
EACH = torch.tensor([[[1, 0], [2, -3]], [[0, 0], [4, 1]], [[-1, -1], [0, 2]], [[3, 3], [-2, 0]], [[0, 1], [1, 1]]])


def small() -> nn.Sequential:
    """Works in place, and uses one activation twice."""
    torch.manual_seed(0)
    active = nn.ReLU(inplace=True)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), active, nn.MaxPool2d(3, 2), nn.Conv2d(3, 4, 2, (2, 1)), active, nn.Flatten(), nn.Linear(60, 3)
    ).eval()


@torch.no_grad()
def maps_of(model: nn.Sequential, images: Tensor) -> dict[str, Tensor]:
    """Each layer's output, by running them one by one."""
    found, seen = {"canvas": images}, images
    for number, part in enumerate(model):
        seen = part(seen.clone())
        found[str(number)] = seen.clone()
    return found


def test_responses_equal_the_theory_on_maps_less_those_of_a_blank_image() -> None:
    model = small()
    found = layer_responses(model, IMAGES, EACH, fill=0.3)
    empty = maps_of(model, torch.full_like(IMAGES[:1], 0.3))
    names = ["canvas", "0", "1", "2", "3", "1, call 2", "output"]
    assert [layer.name for layer in found.layers] == names
    before = maps_of(model, IMAGES)
    for number in range(2):
        after = maps_of(model, translate(IMAGES, EACH[:, number], fill=0.3))
        for layer, place in zip(found.layers, ["canvas", "0", "1", "2", "3", "4", "6"], strict=True):
            for image in range(5):
                one, other = before[place][image], after[place][image]
                axes = 2 if one.ndim == 3 else None
                if axes:
                    one, other = one - empty[place][0], other - empty[place][0]
                expected = respond(one, other, axes=2) if axes else None
                in_place = functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0)
                assert layer.in_place[image, number].item() == pytest.approx(in_place.item(), abs=1e-5)
                if expected is not None:
                    assert layer.similarity[image, number].item() == pytest.approx(expected.similarity, abs=1e-5)
                    assert tuple(layer.displacement[image, number].tolist()) == expected.displacement
                    assert layer.movement[image, number].item() == pytest.approx(expected.movement)


def test_homogeneity_is_that_of_the_input_of_each_layer_that_subsamples() -> None:
    model = small()
    found = layer_responses(model, IMAGES, EACH)
    before, blank = maps_of(model, IMAGES), maps_of(model, torch.zeros(1, 2, 16, 16))
    first, second = (before[name] - blank[name] for name in ("1", "2"))
    pool = found.layer("2")
    assert pool.homogeneity is not None
    assert pool.homogeneity_pooled is not None
    assert pool.homogeneity.tolist() == pytest.approx([homogeneity(each, 2, axes=2) for each in first], abs=1e-6)
    dense = functional.max_pool2d(before["1"], 3, 1)
    assert torch.equal(dense[:, :, ::2, ::2], before["2"])
    dense = dense - functional.max_pool2d(blank["1"], 3, 1)
    assert pool.homogeneity_pooled.tolist() == pytest.approx([homogeneity(each, 2, axes=2) for each in dense], abs=1e-6)
    strided = found.layer("3")
    assert strided.homogeneity is not None
    along = [homogeneity(each.transpose(1, 2), 2, axes=1) for each in second]
    assert strided.homogeneity.tolist() == pytest.approx(along, abs=1e-6)
    assert strided.homogeneity_pooled is None
    assert [layer.name for layer in found.layers if layer.homogeneity is not None] == ["2", "3"]


POOLS = (
    nn.AvgPool2d(3, 2, padding=1),
    nn.MaxPool2d(2, 2, dilation=2),
    layers.BlurPool2d(3, 2),
    layers.MaxBlurPool2d(2, filter_size=3, stride=2),
)


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: type(pool).__name__)
def test_output_at_stride_one_contains_the_subsampled_output(pool: nn.Module) -> None:
    found = layer_responses(nn.Sequential(pool, nn.Flatten()), IMAGES, EACH).layer("0")
    made = at_stride_one(pool, IMAGES)
    assert made is not None
    assert found.homogeneity_pooled is not None
    strided = pool(IMAGES)
    assert torch.allclose(made[:, :, ::2, ::2][:, :, : strided.shape[2], : strided.shape[3]], strided, atol=1e-6)
    moved = pool(translate(IMAGES, torch.tensor([[-1, 0]]).expand(5, 2)))
    assert torch.allclose(made[:, :, 3:9:2, 2:10:2], moved[:, :, 1:4, 1:5], atol=1e-6)
    assert found.homogeneity_pooled.tolist() == pytest.approx([homogeneity(each, 2, axes=2) for each in made], abs=1e-6)


def test_map_that_only_moves_has_similarity_one_and_moves_by_the_shift() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3), nn.Flatten())
    images = torch.zeros(3, 1, 40, 40)
    images[:, :, 14:26, 14:26] = torch.rand(3, 1, 12, 12, generator=GENERATOR)
    found = layer_responses(model, images, torch.tensor([[4, 0], [-2, 4]]))
    for layer in found.layers[:-1]:
        assert layer.movement_in_pixels is not None
        assert layer.similarity.sub(1).abs().max() < 1e-6
        assert layer.movement_in_pixels.tolist() == [pytest.approx([4.0, 20**0.5])] * 3
        assert layer.factor is not None
        assert (layer.movement * layer.factor[0]).allclose(layer.movement_in_pixels)


def test_responses_do_not_depend_on_batches() -> None:
    model = small()
    together = layer_responses(model, IMAGES, EACH)
    for apart in (
        layer_responses(model, IMAGES, EACH, batch_size=2),
        layer_responses(model, IMAGES, EACH, batch_size=5),
        layer_responses(model, IMAGES.split(2), EACH),
    ):
        for one, other in zip(together.layers, apart.layers, strict=True):
            assert torch.allclose(one.similarity, other.similarity, atol=1e-6)
            assert torch.equal(one.displacement, other.displacement)
            assert (one.homogeneity is None) == (other.homogeneity is None)
    shared = layer_responses(model, IMAGES, EACH[1])
    torch.testing.assert_close(shared.layers[-1].in_place[1], together.layers[-1].in_place[1], atol=1e-6, rtol=0)


def test_same_call_gives_the_same_numbers() -> None:
    one, other = (layer_responses(small(), IMAGES, EACH) for _ in range(2))
    assert all(torch.equal(a.similarity, b.similarity) for a, b in zip(one.layers, other.layers, strict=True))


def test_fractional_shifts_are_measured() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = layer_responses(model, IMAGES, torch.tensor([[0.5, 0.25], [0.0, 0.0]]), mode="circular")
    assert found.layer("canvas").similarity[:, 0].max() < 1
    assert found.layer("canvas").similarity[:, 1].min() > 1 - 1e-6
    assert found.layer("output").similarity.min() > 1 - 1e-6


def test_each_image_passes_the_model_once_unshifted_and_once_for_each_shift() -> None:
    passed = []

    class Counts(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            passed.append(len(images))
            return images

    model = nn.Sequential(Counts(), small())
    geometry = read_geometry(model)
    passed.clear()
    layer_responses(model, IMAGES, EACH, geometry=geometry)
    assert passed[:2] == [1, 1], "the example and the blank image"
    assert sum(passed[2:]) == 5 * 3
    assert passed[0] == 1


def test_images_are_held_one_batch_at_a_time() -> None:
    held: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(6):
            batch = IMAGES.clone()
            held.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(each() is not None for each in held) <= 2

    found = layer_responses(small(), batches(), EACH[0])
    assert found.layers[0].similarity.shape == (30, 2)
    assert len(held) == 6


def test_hooks_are_removed_and_modes_restored_after_a_failure() -> None:
    model = small().train()
    model[3].eval()
    seen = []

    class Fails(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            if maps.shape[0] > 1:
                raise RuntimeError("enough")
            seen.append(sum(len(part._forward_hooks) for part in model.modules()))
            return maps

    with pytest.raises(InputError, match=r"`model` fails on images of shape .*enough"):
        layer_responses(nn.Sequential(model, Fails()), IMAGES, EACH)
    assert seen[0] > 0
    assert not any(part._forward_hooks for part in model.modules())
    assert [part.training for part in model] == [True, True, True, False, True, True, True]


def test_residual_network_has_a_row_for_each_call_and_the_vector_of_the_head() -> None:
    torch.manual_seed(0)
    resnet = torchvision_models().resnet
    model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 2], num_classes=4).eval()
    found = layer_responses(model, torch.rand(2, 3, 64, 64, generator=GENERATOR), torch.tensor([[0, 1]]))
    names = [layer.name for layer in found.layers]
    assert {"layer1.0.relu", "layer1.0.relu, call 2", "layer4.1.conv2", "fc, input"} <= set(names)
    assert found.layer("layer2.0.downsample.0").factor == (8, 8)
    assert found.layer("fc, input").factor is None
    assert found.from_graph


def test_maps_with_channels_last_are_transposed() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=GENERATOR)
    sizes = []
    for option in (True, False):
        model = timm().create_model("convnext_atto", num_classes=4, conv_mlp=option, depths=(1, 1, 1, 1)).eval()
        names = [name for name, part in model.named_modules() if type(part).__name__ == "GELU"]
        found = layer_responses(model, images, torch.tensor([[0, 1]]), layers=names)
        sizes.append([(layer.channels, layer.size, layer.factor) for layer in found.layers if layer.kind == "activation"])
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == (160, (16, 16), (4, 4))


def test_network_with_fully_connected_layers_on_maps_is_seen_block_by_block() -> None:
    torch.manual_seed(0)
    model = timm().create_model("convnext_atto", num_classes=4, conv_mlp=False, depths=(1, 1, 1, 1)).eval()
    found = layer_responses(model, torch.rand(2, 3, 64, 64, generator=GENERATOR), torch.tensor([[0, 1]]))
    rows = [(layer.name, layer.kind, layer.size) for layer in found.layers]
    assert rows[1:4] == [
        ("stem", "patch embedding", (16, 16)),
        ("stages.0.blocks.0", "block", (16, 16)),
        ("stages.1.downsample", "merging", (8, 8)),
    ]


class Gated(nn.Module):
    """A gate works on single positions, between two convolutions; cannot be traced unless `traceable`."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.first, self.second, self.traceable = nn.Conv2d(2, 4, 3, 2), nn.Conv2d(4, 4, 3), traceable
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.swapped = nn.GELU()
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        maps = self.second(maps * self.gate(maps))
        if not self.traceable and images.sum() > 1e9:
            maps = -maps
        maps = self.swapped(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(maps.mean((2, 3)))


def test_gates_are_left_out() -> None:
    found = layer_responses(Gated(True), IMAGES, EACH)
    assert [layer.name for layer in found.layers] == ["canvas", "first", "second", "swapped", "head, input", "output"]


def test_untraceable_model_gets_factors_from_sizes_of_maps() -> None:
    found = layer_responses(Gated(False), IMAGES, EACH)
    assert [layer.name for layer in found.layers] == ["canvas", "first", "second", "head, input", "output"]
    assert found.layer("first").factor == (2, 2)
    assert found.left_out == (("swapped", "the axes of its maps (5, 5, 4) are not known"),)
    assert not found.from_graph
    assert any("cannot be traced" in note for note in found.table().notes)


def test_factor_after_an_unknown_operator_comes_from_the_size() -> None:
    def halved(maps: Tensor) -> Tensor:
        return functional.interpolate(maps, scale_factor=0.5)

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.second(halved(halved(self.first(images)))).mean((2, 3))

    found = layer_responses(Halves(), IMAGES, EACH)
    assert [layer.factor for layer in found.layers if layer.kind == "convolution"] == [(1, 1), (4, 4)]


def test_layers_after_a_global_pool_have_no_factor() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5, 2)
    )
    found = layer_responses(model.eval(), IMAGES, EACH)
    assert [(layer.name, layer.factor) for layer in found.layers] == [
        ("canvas", (1, 1)),
        ("0", (1, 1)),
        ("2", None),
        ("3", None),
        ("5, input", None),
        ("output", None),
    ]


def test_chosen_layers_are_compared_whatever_their_kind() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [layer.name for layer in layer_responses(model, IMAGES, EACH, layers=["1"]).layers] == [
        "canvas",
        "1",
        "3, input",
        "output",
    ]


def test_chosen_layer_without_a_map_is_left_out_with_the_reason() -> None:
    found = layer_responses(small(), IMAGES, EACH, layers=["0", "6"])
    assert [layer.name for layer in found.layers] == ["canvas", "0", "5, input", "output"]
    assert found.left_out == (("6", "its output is no map"),)


def test_memory_that_runs_out_is_reported_with_the_remedy() -> None:
    class Large(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[0] > 4:
                raise MemoryError
            return images.mean((2, 3))

    with pytest.raises(InputError, match=r"Memory ran out in a pass of 15 images. Choose a smaller `batch_size`"):
        layer_responses(nn.Sequential(Large()), IMAGES, EACH)
    assert layer_responses(nn.Sequential(Large()), IMAGES, EACH, batch_size=4).layers[-1].name == "output"


def test_table_has_a_row_for_each_layer_with_intervals_over_images() -> None:
    table = layer_responses(small(), IMAGES, EACH).table()
    assert len(table.rows) == 7
    similarity = table.rows[1]["similarity"]
    assert isinstance(similarity, layerwise.Estimate)
    assert similarity.low < similarity.value < similarity.high
    assert similarity.count == 5
    assert table.rows[-1]["movement_in_pixels"] is None
    one = layer_responses(small(), IMAGES[:1], EACH[:1]).table().rows[1]["similarity"]
    assert isinstance(one, layerwise.Estimate)
    assert (one.low, one.high) == (-1.0, 1.0)


def test_progress_is_reported_after_every_pass() -> None:
    events: list[Event] = []
    layer_responses(small(), IMAGES, EACH, batch_size=6, report=events.append)
    assert [(event.done, event.of) for event in events if isinstance(event, Stage)] == [(2, 5), (4, 5), (5, 5)]


WRONG = {
    "`model` must be a torch.nn.Module, got function": {"model": lambda images: images.mean((2, 3))},
    "`images` must hold at least one image, got none": {"images": IMAGES[:0]},
    "`images` must be floating point": {"images": (IMAGES * 255).byte()},
    "`images` must be finite": {"images": IMAGES / 0},
    "`mode` must be 'zero' or 'circular', got 'crop'": {"mode": "crop"},
    "`shifts` must hold a list for each of 5 images, got 2": {"shifts": EACH[:2]},
    "`fill` must be one value or one for each of 2 channels": {"fill": torch.zeros(3)},
    "`batch_size` must be 2 or more images, one of them unshifted, got 1": {"batch_size": 1},
    "The model has no layer '7'. Similar names: ": {"layers": ["7"]},
    "`model` fails on images of shape (1, 3, 16, 16): ": {"images": torch.rand(2, 3, 16, 16), "shifts": EACH[:2]},
    "`model` must return one vector for each of 1 images": {"model": nn.Conv2d(2, 2, 1)},
    "not finite": {"model": nn.Sequential(small(), nn.BatchNorm1d(3, eps=float("nan"))).eval()},
}


@pytest.mark.parametrize("text", WRONG)
def test_invalid_input_is_reported(text: str) -> None:
    call = {"model": small(), "images": IMAGES, "shifts": EACH} | WRONG[text]
    with pytest.raises(InputError) as raised:
        as_users_import_it(layerwise).layer_responses(call.pop("model"), call.pop("images"), call.pop("shifts"), **call)
    assert text in str(raised.value)


def test_wrong_number_of_shift_lists_is_reported() -> None:
    with pytest.raises(InputError, match="`shifts` must hold a list for each image, got 3 for 4 or more"):
        layer_responses(small(), IMAGES.split(2), EACH[:3])
    with pytest.raises(InputError, match="`shifts` must hold a list for each of 4 images, got 5"):
        layer_responses(small(), IMAGES[:4].split(2), EACH)


def test_layer_that_is_not_always_called_or_depends_on_the_batch_is_reported() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maybe = nn.Conv2d(2, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return (self.maybe(images) if len(images) == 1 else images).mean((2, 3))

    with pytest.raises(InputError, match="Layer 'maybe' is not called in every pass"):
        layer_responses(Sometimes(), IMAGES, EACH)

    class Together(Sometimes):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) + self.maybe(images.mean(0, keepdim=True)).mean((2, 3))

    with pytest.raises(InputError, match="The maps of layer 'maybe' depend on the batch"):
        layer_responses(Together(), IMAGES, EACH)


def test_unknown_name_of_a_layer_is_reported() -> None:
    with pytest.raises(InputError, match=r"There is no layer 'x' here. There are: canvas, 0"):
        layer_responses(small(), IMAGES, EACH).layer("x")


class Branches(nn.Module):
    """Two branches of which each begins before the other ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(4)
        self.fine, self.coarse = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of the branches' means."""
        found = self.stem(images)
        pooled = self.pool(found)
        fine, coarse = self.fine(found), self.coarse(pooled)
        return fine.mean((2, 3)) + coarse.mean((2, 3))


def test_layer_is_compared_with_the_one_whose_map_it_takes() -> None:
    torch.manual_seed(0)
    found = layer_responses(Branches().eval(), IMAGES, torch.tensor([[0, 2], [1, 1]]), mode="circular")
    assert [layer.source for layer in found.layers if layer.factor] == ["", "canvas", "stem", "stem", "pool"]
    similarity = {layer.name: float(layer.similarity.mean()) for layer in found.layers}
    falls = {row["layer"]: row["fall"] for row in found.falls(5).rows}
    assert falls["coarse"] == pytest.approx(similarity["pool"] - similarity["coarse"])
    assert falls["fine"] == pytest.approx(similarity["stem"] - similarity["fine"])


def test_sources_of_layers_that_work_in_place_are_not_made_up() -> None:
    found = layer_responses(small(), IMAGES, EACH)
    assert [(layer.name, layer.source) for layer in found.layers if layer.factor][1:3] == [("0", "canvas"), ("1", "")]
