"""Explanations name the main cause where it is known, and their parts equal those of a loop over images and shifts."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import shiftscope
from helpers import as_users_import_it
from shiftscope.errors import InputError
from shiftscope.explanations import Explanation, explain, guarantee_of
from shiftscope.explanations import explanation as explanation_module
from shiftscope.explanations.trial import Trial, cosines_between_images, draw_shifts, share
from shiftscope.explanations.wording import PHRASES
from shiftscope.layers import AdaptivePolyphaseSampling
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.progress import Event, Stage
from shiftscope.shifts import translate
from shiftscope.surgery import Average, antialias, cost, global_pool, make_equivariant
from zoo import timm

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(8, 1, 16, 16, generator=GENERATOR)
#: Networks and the main cause of their loss under circular shifts; empty where they have none.
KNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "stride 1, circular, mean over positions": ({"factor": 1, "padding": "circular", "head": "gap"}, ""),
    "stride 2, circular, mean over positions": ({"factor": 2, "padding": "circular", "head": "gap"}, "aliasing"),
    "stride 2, circular, flattened": ({"factor": 2, "padding": "circular", "head": "flatten"}, "head"),
    "stride 1, zeros around, mean over positions": ({"factor": 1, "padding": "same", "head": "gap"}, "borders"),
}


def network(**settings: Any) -> nn.Module:
    spec = NetworkSpec(channels=(4, 6), input_size=16, classes=5, **settings)
    return build(spec, generator=torch.Generator().manual_seed(0)).eval()


def explained(model: nn.Module, **options: Any) -> Explanation:
    return explain(model, IMAGES, **({"mode": "circular", "max_shift": 5} | options))


def parts(found: Explanation) -> dict[str, float]:
    return {each.name: each.part.value for each in found.causes.causes if each.part is not None and not each.part_of}


def loss_by_hand(model: nn.Module, shifts: Tensor, *, circular: bool) -> float:
    """1 - cosine, one image and one shift at a time."""
    total = 0.0
    with torch.no_grad():
        for image, steps in zip(IMAGES, shifts.tolist(), strict=True):
            for step in steps:
                moved = image.roll(step, (1, 2)) if circular else translate(image[None], torch.tensor([step]))[0]
                total += 1 - float(functional.cosine_similarity(model(image[None]).double(), model(moved[None]).double())[0])
    return total / (shifts.shape[0] * shifts.shape[1])


@pytest.mark.parametrize("name", KNOWN)
def test_main_cause_is_right_where_it_is_known(name: str) -> None:
    settings, cause = KNOWN[name]
    found = explained(network(**settings))
    assert found.causes.main == cause
    assert sum(parts(found).values()) == pytest.approx(found.causes.before.loss.value, abs=1e-9)
    if not cause:
        assert found.causes.before.loss.value < 2e-7
        assert found.causes.verdict == "There is no loss: the outputs are the same under these shifts."
        assert found.guarantee.status == "guaranteed"
        return
    assert found.causes.before.loss.value > 1e-6
    shares = {each.name: each.share.value for each in found.causes.causes if each.share is not None}
    assert shares[cause] > (0.9 if cause == "head" else 0.99)
    assert found.causes.verdict.startswith("Shifts lower the mean cosine of the outputs by")
    assert PHRASES[cause] in found.causes.verdict


def test_subsampling_costs_nothing_at_shifts_by_multiples_of_the_factor() -> None:
    found = explained(network(factor=4, padding="circular", head="gap")).causes
    assert found.lattice_loss is not None
    assert found.circular_loss is not None
    assert found.lattice_loss.value < 2e-7
    assert found.circular_loss.value > 10 * found.lattice_loss.value
    assert explained(network(factor=1, padding="circular", head="flatten")).causes.lattice_loss is None


@pytest.mark.parametrize("mode", ["zero", "circular"])
def test_loss_and_parts_of_head_and_borders_equal_a_loop_by_hand(mode: str) -> None:
    model = network(factor=2, padding="circular", head="flatten")
    found = explained(model, mode=mode, shifts=3)
    shifts = draw_shifts(8, 3, 5, torch.Generator().manual_seed(0))
    weights = model.head[2].weight
    pooled = nn.Sequential(model.normalise, model.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    pooled[4].weight.data = weights.detach().reshape(5, 6, -1).sum(2)
    pooled[4].bias.data = model.head[2].bias.detach()
    lost, left = (loss_by_hand(each, shifts, circular=mode == "circular") for each in (model, pooled))
    assert found.causes.before.loss.value == pytest.approx(lost, abs=1e-6)
    assert found.similarity.value == pytest.approx(1 - lost, abs=1e-6)
    assert parts(found)["head"] == pytest.approx(lost - left, abs=1e-6)
    assert parts(found)["borders"] == pytest.approx(left - loss_by_hand(pooled, shifts, circular=True), abs=1e-6)


def test_activations_are_a_part_of_aliasing() -> None:
    found = explained(network(factor=4, padding="circular", head="gap"))
    rows = {each.name: each for each in found.causes.causes}
    assert rows["activations"].part_of == "aliasing"
    assert rows["activations"].part is not None
    assert parts(found)["aliasing"] == pytest.approx(found.causes.before.loss.value, abs=1e-6)


class Freely(nn.Module):
    """Activations as functions, a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, 2, padding=1, padding_mode="circular")
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(images)).mean((2, 3)))


class Untraceable(Freely):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() < 1e9 else -images)


def test_impossible_steps_are_unknown_with_the_reason() -> None:
    torch.manual_seed(0)
    rows = {each.name: each for each in explained(Freely().eval()).causes.causes}
    assert rows["activations"].part is None
    assert "activations are called as functions (`relu`)" in rows["activations"].reason
    uneven = explain(Freely().eval(), IMAGES[:, :, :15, :15], mode="circular", max_shift=3)
    reasons = {each.name: each.reason for each in uneven.causes.causes if each.part is None}
    assert reasons["borders"] == "after the step borders, circular shifts by multiples of 2 pixels still change the outputs"
    assert reasons["aliasing"] == "it needs circular maps, which are impossible here"
    assert "The part of aliasing is unknown: " in uneven.verdict
    assert sum(parts(uneven).values()) == pytest.approx(uneven.causes.before.loss.value, abs=1e-9)


def test_head_that_no_fix_replaces_is_a_cause_all_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(2 * 28 * 28, 3)).eval()
    found = explain(model, IMAGES, max_shift=2)
    assert found.causes.causes[0].share is not None
    assert found.causes.causes[0].share.value > 0.5
    tried = {each.kinds: each.reason for each in found.fixes.ranked}
    assert "nothing to change (unsupported: the number of its map's channels" in tried["gap",]


class Gated(nn.Module):
    """A gate of squeeze and excitation before a head of some form."""

    def __init__(self, gate: str, head: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pool = nn.Conv2d(1, 6, 3, padding=1, padding_mode="circular"), nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 6), nn.Sigmoid())
        self.last, self.gate, self.head = nn.Linear(6 * 256, 4), gate, head

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.first(images))
        means = maps.mean((2, 3)) if self.gate == "mean" else self.pool(maps).flatten(1)
        maps = maps * self.squeeze(means)[:, :, None, None]
        if self.head == "einsum":
            return torch.einsum("bchw,ochw->bo", maps, self.last.weight.unflatten(1, (6, 16, 16)))
        if self.head == "mean":
            return torch.nn.functional.linear(maps.mean((2, 3)), self.last.weight[:, :6])
        return self.last(maps.flatten(1) if self.head == "flatten" else maps.reshape(maps.shape[0], 6 * 256))


@pytest.mark.parametrize("task", [None, "multilabel"])
def test_convolution_that_sees_the_last_map_as_a_whole_is_named_as_the_head(task: str | None) -> None:
    """On 24x24 pixels the last map has one position, so that a mean over positions has nothing to average."""
    torch.manual_seed(0)
    blocks = nn.Conv2d(1, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 4), nn.ReLU()
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    said = "the head, which on images of this size begins with `2`: it turns a map of 6x6 positions into one"
    small, large = (explain(model, torch.rand(4, 1, size, size), max_shift=4, task=task) for size in (24, 64))
    assert said in small.summary().verdict and said not in large.summary().verdict


@pytest.mark.parametrize("gate", ["mean", "pool"])
@pytest.mark.parametrize("head", ["flatten", "reshape", "einsum"])
def test_head_behind_a_gate_is_the_cause_and_not_the_gate(gate: str, head: str) -> None:
    found = explained(Gated(gate, head).eval())
    assert found.causes.main == "head"
    assert parts(found)["head"] == pytest.approx(found.causes.before.loss.value, abs=1e-6)
    assert explained(Gated(gate, "mean").eval()).causes.main == ""


def test_canvas_is_extended_to_multiples_of_the_factor_for_circular_shifts() -> None:
    torch.manual_seed(0)
    trial = Trial(IMAGES[:, :, :15, :14], draw_shifts(8, 1, 3, GENERATOR), fill=torch.tensor([0.5]))
    around = trial.circular((4, 4))
    assert around.image == (1, 16, 16)
    assert around.mode == "circular"
    assert torch.allclose(around.images[:, :, :15, :14], trial.images)
    assert around.images[:, :, 15].sub(0.5).abs().max() < 1e-6
    found = explain(Freely().eval(), IMAGES[:, :, :15, :15], max_shift=3)
    assert parts(found).keys() == {"head", "borders", "aliasing", "other"}


def test_untraceable_model_gets_measured_results_and_fixes_that_need_no_graph() -> None:
    torch.manual_seed(0)
    found = explained(Untraceable().eval(), labels=torch.zeros(8, dtype=torch.long))
    assert found.guarantee.geometry is None
    assert found.guarantee.sentence.startswith("The graph of Untraceable cannot be traced")
    assert [each.part is None for each in found.causes.causes] == [True, True, True, True, False]
    assert "The part of head, borders, aliasing is unknown: the model's graph cannot be read." in found.verdict
    tried = {each.kinds: each.gain is not None for each in found.fixes.ranked}
    assert tried == {("blur",): True, ("circular",): False, ("canonical",): True, ("average",): True}
    assert found.fixes.before.accuracy is not None
    assert [layer.name for layer in found.layers.layers] == ["canvas", "first", "head, input", "output"]


class CountsTraces(Freely):
    """Counts how often torch.fx traces it; copies count for themselves."""

    def __init__(self, *, traceable: bool) -> None:
        super().__init__()
        self.traceable, self.seen = traceable, SimpleNamespace(traces=0)

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(images, fx.Proxy):
            self.seen.traces += 1
            if not self.traceable:
                raise TypeError("it refuses")
        return super().forward(images)


@pytest.mark.parametrize("traceable", [True, False])
def test_graph_of_the_model_is_read_once(traceable: bool) -> None:
    torch.manual_seed(0)
    model = CountsTraces(traceable=traceable).eval()
    assert (explained(model).guarantee.geometry is not None) == traceable
    assert model.seen.traces == 1


def test_step_that_makes_outputs_of_different_images_alike_adds_a_warning() -> None:
    """A head that weighs a bright spot by where it is; the mean knows only that there is one."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(256, 8, bias=False)).eval()
    nn.init.ones_(model[0].weight)
    nn.init.normal_(model[2].weight, generator=torch.Generator().manual_seed(0))
    spots = torch.zeros(16, 1, 16, 16)
    for number in range(16):
        spots[number, 0, 4 + number // 2, 4 + number % 8] = 1
    found = explain(model, spots, max_shift=3)
    assert found.causes.main == "head"
    assert "outputs discriminate less without it: the mean cosine between those of different images rises from" in found.verdict
    head = found.causes.causes[0]
    before = found.causes.before
    assert head.after is not None
    assert head.after.between_images.value > 0.99 > before.between_images.value
    assert before.relative is not None
    assert before.relative.value == pytest.approx(before.loss.value / (1 - before.between_images.value))
    after = head.after.relative  # None if rounding leaves all images one output
    assert after is None or f"goes from {before.relative.value:.2f} to {after.value:.2f}." in found.verdict


def test_cosine_between_images_is_a_mean_over_all_other_images() -> None:
    outputs = torch.randn(6, 4, generator=GENERATOR)
    outputs[2] = 0
    cosines = functional.cosine_similarity(outputs[:, None], outputs[None], dim=2)
    expected = (cosines.sum(1) - cosines.diagonal()) / 5
    assert cosines_between_images(outputs).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_share_resamples_part_and_total_by_the_same_images() -> None:
    everything = torch.rand(50, generator=GENERATOR) + 0.1
    found = share(0.3 * everything, everything)
    assert found is not None
    assert (found.low, found.value, found.high) == (pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.3))
    spread = share(torch.rand(50, generator=GENERATOR), everything)
    assert spread is not None
    assert spread.low < spread.value < spread.high
    assert share(everything, torch.zeros(50)) is None


GUARANTEES: dict[str, tuple[list[nn.Module], str, str]] = {
    "circular": (
        [nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular")],
        "guaranteed",
        "every whole-pixel shift, circular, on",
    ),
    "strided": (
        [nn.Conv2d(1, 3, 3, 2, padding=1, padding_mode="circular"), nn.ReLU(), nn.MaxPool2d(2)],
        "possible",
        "multiples of 4 pixels, circular, on images of 32x32 pixels",
    ),
    "zeros": (
        [nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2)],
        "possible",
        "2 pixels, as long as everything that differs",
    ),
    "valid": ([nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, (3, 1))], "possible", "the receptive field is 5x3 pixels"),
    "along one axis": ([nn.AvgPool2d((1, 2))], "possible", "multiples of 1 pixel down and 2 across, circular"),
    "unknown": ([nn.Conv2d(1, 3, 1), nn.Upsample(scale_factor=1.5)], "possible", "not known how `1` (Upsample) treats positions"),
}


@pytest.mark.parametrize("name", GUARANTEES)
def test_guaranteed_equivariance_holds_exactly(name: str) -> None:
    spatial, status, exact = GUARANTEES[name]
    torch.manual_seed(0)
    model = nn.Sequential(*spatial, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = guarantee_of(model)
    assert found.status == status
    assert exact in found.exact_at
    assert found.geometry is not None
    down, right = found.geometry.factor
    if name in ("circular", "strided", "along one axis"):
        images, step = IMAGES, (3 * down, 2 * right)
    else:
        images = functional.pad(IMAGES[:, :, :6, :6], (9, 9, 9, 9), value=0.4)
        step = (2 * down, -2 * right)
    moved = images.roll(step, (2, 3))
    if name != "unknown":
        assert torch.allclose(model(images), model(moved), atol=1e-5)
    if name in ("zeros", "valid"):
        assert not torch.allclose(model(images), model(images.roll((9, 9), (2, 3))), atol=1e-5)


def test_guarantee_names_a_flattening_head_and_an_unknown_one() -> None:
    flat = guarantee_of(network(factor=2, head="flatten"))
    assert flat.status == "impossible"
    assert "the head (`head.1`) flattens the map" in flat.sentence
    other = guarantee_of(nn.Conv2d(1, 2, 3))
    assert other.status == "possible"
    assert "it is not known how the head uses positions" in other.sentence


def test_polyphase_sampling_guarantees_invariance_on_circular_maps_only() -> None:
    assert guarantee_of(network(factor=4, padding="circular", head="gap", sampling="aps")).status == "guaranteed"
    mixed = nn.Sequential(nn.Conv2d(1, 2, 3), AdaptivePolyphaseSampling(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert "polyphase sampling is so on circular maps only" in guarantee_of(mixed).exact_at


def test_fixes_gain_and_cost_what_a_loop_by_hand_finds() -> None:
    model = network(factor=2, padding="same", head="flatten")
    labels = torch.arange(8) % 5
    found = explain(model, IMAGES, labels, max_shift=4, name="runs/a")
    shifts = draw_shifts(8, 4, 4, torch.Generator().manual_seed(0))
    tried = {each.kinds: each for each in found.fixes.ranked}
    assert set(tried) == {(kind,) for kind in ("gap", "blur", "circular", "aps", "canonical", "average")} | {
        ("gap", kind) for kind in ("blur", "circular", "aps")
    }
    loss = loss_by_hand(model, shifts, circular=False)
    for kinds, fixed in ((("gap",), global_pool(model).model), (("gap", "blur"), antialias(global_pool(model).model).model)):
        each = tried[kinds]
        assert each.gain is not None
        assert each.gain.value == pytest.approx(loss - loss_by_hand(fixed, shifts, circular=False), abs=1e-6)
        assert each.after is not None
        assert each.after.relative is not None
        left = loss - each.gain.value
        assert each.after.relative.value == pytest.approx(left / (1 - each.after.between_images.value), rel=1e-3)
        assert each.multiply_adds == cost(fixed, (1, 16, 16)).multiply_adds
        assert each.after.accuracy is not None
        assert each.after.accuracy.value == pytest.approx(float((fixed(IMAGES).argmax(1) == labels).double().mean()))
    assert tried["gap", "blur"].command == "shiftscope fix runs/a --with gap --with blur --out fixed.safetensors"
    working = [each for each in found.fixes.ranked if each.works]
    apart = {each.kinds: 1 - each.after.between_images.value for each in working}
    alike = {kinds: left < 0.01 * (1 - found.fixes.before.between_images.value) for kinds, left in apart.items()}
    assert {each.kinds: each.collapsed for each in working} == alike
    assert set(alike.values()) == {True, False}
    best = sorted(working, key=lambda each: (alike[each.kinds], -round(each.efficiency, 3)))
    assert list(found.fixes.ranked[: len(working)]) == best
    assert found.fixes.ranked[0].works
    assert "Try first: " in found.verdict
    worse = working[0].after.accuracy.value < found.fixes.before.accuracy.value
    assert ("train again, because" in found.verdict) == worse
    costs = found.fixes.table().rows[-1]
    assert (costs["fix"], costs["multiply_adds"]) == ("none", cost(model, (1, 16, 16)).multiply_adds)


def test_fixes_around_a_model_are_ranked_by_gain_and_cost_and_say_what_they_promise() -> None:
    model = network(factor=2, head="flatten").requires_grad_(requires_grad=False)
    content = functional.pad(IMAGES[:, :, 4:12, 4:12], (4, 4, 4, 4)).repeat(3, 1, 1, 1)
    found = explain(model, content, max_shift=4).fixes
    canonical, average = (next(each for each in found.ranked if each.kinds == (kind,)) for kind in ("canonical", "average"))
    assert canonical.works and canonical.ratio == 1 and not canonical.trains
    assert canonical.share.value == pytest.approx(1, abs=1e-6)
    assert "every whole-pixel shift that pushes nothing off the canvas" in canonical.promise
    assert canonical.command == "shiftscope fix MODEL --with canonical --out fixed.safetensors"
    assert (average.ratio, average.promise, average.trains) == (9, "", False)
    shifts = draw_shifts(24, 4, 4, torch.Generator().manual_seed(0))[:16]
    mean, some = Average(model, of="logits"), content[:16]

    def loss(each: nn.Module) -> float:
        moved = [each(translate(some, shifts[:, number])) for number in range(4)]
        return float(1 - torch.stack([functional.cosine_similarity(one, each(some)) for one in moved]).mean())

    assert average.gain.value == pytest.approx(loss(model) - loss(mean), abs=1e-5)
    assert average.gain.count == 16
    assert any("its gain is that of mean logits" in note for note in found.table().notes)
    assert next(row for row in found.table().rows if row["fix"] == "canonical")["promise"] == canonical.promise


def test_recommended_canonical_for_circular_images_keeps_its_border() -> None:
    found = explain(network(factor=2, head="flatten"), IMAGES, max_shift=4, shifts=1, mode="circular").fixes
    canonical = next(each for each in found.ranked if each.kinds == ("canonical",))
    assert canonical.command == "shiftscope fix MODEL --with canonical --mode circular --out fixed.safetensors"
    assert "every whole-pixel circular shift" in canonical.promise


def test_photos_are_ranked_with_crops_and_embeddings_without_averages() -> None:
    photos = torch.rand(6, 1, 24, 24, generator=GENERATOR)
    found = explain(network(factor=2, head="flatten"), photos, size=16, max_shift=2, embedding=True, savable=False).fixes
    kinds = {each.kinds: each for each in found.ranked}
    assert ("average",) not in kinds
    assert "if the best crop of each lies in the other" in kinds["canonical",].promise
    assert kinds["canonical",].command == "shiftscope fix MODEL --with canonical"


def test_impossible_fix_is_ranked_last_with_the_reason() -> None:
    found = explain(network(factor=2, head="flatten"), IMAGES, max_shift=4).fixes
    assert found.ranked[-1].gain is None
    assert "does not run on an image" in found.ranked[-1].reason
    assert found.ranked[-1].efficiency == float("-inf")


def test_model_without_anything_to_fix_has_no_fixes() -> None:
    found = explained(network(factor=1, padding="circular", head="gap")).fixes
    assert found.ranked == ()
    assert found.table().notes[0] == "No fix of this package applies to the model."


def resnet() -> nn.Module:
    return timm().create_model("test_resnet", num_classes=5).eval()


def small_convnext() -> nn.Module:
    return timm().create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16), num_classes=5).eval()


@pytest.mark.parametrize(("make", "size"), [(resnet, 64), (small_convnext, 128)])
def test_known_architectures_are_explained(make: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(0)
    found = explain(make(), torch.rand(2, 3, size, size, generator=GENERATOR), shifts=1)
    assert found.guarantee.geometry is not None
    assert (found.guarantee.geometry.factor, found.guarantee.geometry.head) == ((32, 32), "gap")
    assert {each.name for each in found.causes.causes if each.part is not None} >= {"head", "borders", "aliasing", "other"}
    assert parts(found)["other"] < 1e-5
    assert sum(parts(found).values()) == pytest.approx(found.causes.before.loss.value, abs=1e-9)
    assert {each.kinds for each in found.fixes.ranked} == {("blur",), ("circular",), ("aps",), ("canonical",), ("average",)}
    json.dumps(found.to_json(), allow_nan=False)


def test_same_call_gives_the_same_explanation() -> None:
    one, other = (explained(network(factor=2, head="flatten"), max_shift=3).to_json() for _ in range(2))
    assert one == other
    assert one["graph"]["factor"] == [2, 2]
    assert one["main_cause"] == "head"
    assert {"causes", "layers", "fixes", "settings", "verdict"} <= set(one)


def test_table_has_verdict_guarantee_and_parts() -> None:
    found = explained(network(factor=2, padding="circular", head="gap"))
    table = found.table()
    assert [row["cause"] for row in table.rows] == ["head", "borders", "aliasing", "of aliasing: activations", "other", "total"]
    assert table.notes[0] == found.verdict
    assert found.guarantee.sentence in table.notes
    assert (
        "factor 2 (strides and the sizes of the maps), receptive field 10x10 pixels, 4 layers padded with circular; the head is"
        in table.notes[1]
    )
    assert len(found.tables()) == 3


@pytest.mark.parametrize(("size", "possible"), [(8, False), (10, False), (32, True)])
def test_distance_from_edges_is_asked_only_of_images_that_have_it(size: int, possible: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, 2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sentence = guarantee_of(model, image=(1, size, size)).exact_at
    assert ("as long as everything" in sentence) == possible
    assert (f"images of {size}x{size} pixels are too small" in sentence) != possible


def test_border_and_number_of_images_are_stated() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = shiftscope.explain(model.eval(), torch.rand(3, 1, 16, 16), size=12, max_shift=2, shifts=1)
    assert isinstance(found, Explanation)
    assert any("border crop" in note for note in found.summary().notes)
    assert any("(border crop)" in note for note in found.layers.table().notes)
    assert any("average: of 9 shifts, on 3 images" in note for note in found.fixes.table().notes)


def test_model_is_unchanged_and_progress_is_reported() -> None:
    model = network(factor=2, padding="same", head="flatten").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    events: list[Event] = []
    with pytest.warns(UserWarning, match="training mode"):
        shiftscope.explain(model, IMAGES, max_shift=2, report=events.append)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())
    stages = [event for event in events if isinstance(event, Stage)]
    expected = {"comparing feature maps of every layer", "the unchanged model", "without head", "without borders", "with gap"}
    assert {stage.sentence for stage in stages} >= expected
    assert all(0 <= stage.done <= stage.of == 8 for stage in stages)


class Fails(nn.Module):
    """Gives NaN for dark images."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return torch.where(means < 0.1, means / 0, means).expand(-1, 3)


WRONG: dict[str, dict[str, Any]] = {
    "`images` must hold 2 or more images, so that intervals can be computed, got 0": {"images": IMAGES[:0]},
    "`images` must hold 2 or more images, so that intervals can be computed, got 1": {"images": IMAGES[:1]},
    "`images` must be [image, channel, height, width], all of one size, got shape (8, 16, 16)": {"images": IMAGES[:, 0]},
    "`images` must be floating point in [0, 1], got torch.uint8": {"images": IMAGES.byte()},
    "`labels` must hold one label per image, got 3 for 8 images": {"labels": torch.zeros(3, dtype=torch.long)},
    "`mode` must be 'zero', 'crop' or 'circular', got 'mean'": {"mode": "mean"},
    "`mode` 'crop' needs images larger than the model's input of 16x16": {"mode": "crop"},
    "`shifts` must be 1 or more an image, got 0": {"shifts": 0},
    "`max_shift` must be 1 to 8 pixels, half of the image's 16, got 9": {"max_shift": 9},
    "the model fails on images of 1x8x8 (": {"images": IMAGES[:, :, :8, :8]},
    "the model fails on images of 3x16x16 (": {"images": IMAGES.expand(-1, 3, -1, -1)},
    "`model` returned values that are not finite, for 8 of 8 images": {"model": Fails().eval(), "images": IMAGES * 0},
    "`model` returned values that are not finite, for 2 of 8 images": {
        "model": Fails().eval(),
        "images": torch.cat([IMAGES[:6], IMAGES[:2] * 0]),
    },
    "`model` must be a torch.nn.Module, got function": {"model": lambda images: images.mean((2, 3))},
}


@pytest.mark.parametrize("text", WRONG)
def test_invalid_input_is_reported(text: str) -> None:
    call = {"model": network(factor=2), "images": IMAGES, "labels": None} | WRONG[text]
    with pytest.raises(InputError) as raised:
        as_users_import_it(explanation_module).explain(call.pop("model"), call.pop("images"), call.pop("labels"), **call)
    assert text in str(raised.value)


@pytest.mark.parametrize("sampling", ["aps", "lps"])
def test_polyphase_sampling_of_either_kind_is_one_layer_without_loss(sampling: str) -> None:
    spec = NetworkSpec(factor=4, channels=(4, 6), input_size=16, padding="circular", sampling=sampling, head="gap")
    net = build(spec, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = explain(net, images, mode="circular", max_shift=3)
    assert found.guarantee.status == "guaranteed"
    assert found.causes.main == ""
    assert [layer.name for layer in found.layers.layers if layer.kind == "polyphase sampling"] == ["features.5", "features.11"]
    remade = make_equivariant(
        build(NetworkSpec(factor=4, channels=(4, 6), input_size=16, head="gap"), generator=torch.Generator()), method=sampling
    )
    again = explain(remade.model.eval(), images, mode="circular", max_shift=3)
    assert again.guarantee.status == "guaranteed"
    assert sum(layer.kind == "polyphase sampling" for layer in again.layers.layers) == 2
