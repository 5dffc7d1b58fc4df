"""``audit`` runs each distinct view once, understands outputs of any kind, and refuses what it cannot measure."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from shiftscope import audit, certify, explain, fix, grid, shift_outputs, survey
from shiftscope.audits.protocols import PROTOCOLS, mouton2020, rojas2022_circular
from shiftscope.engine.checks import Model
from shiftscope.errors import InputError, ModelFailsError, NotFiniteError
from shiftscope.runtime.progress import Event, Stage
from shiftscope.tables import percent

SIZE = 12
CLASSIFIER_PROTOCOLS = [name for name in PROTOCOLS if not name.startswith("segmentation")]


def small(channels: int = 1, classes: int = 3, size: int = SIZE) -> nn.Module:
    torch.manual_seed(0)
    side = (size - 3) // 2 + 1
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * side**2, classes)).eval()


def images(count: int = 20, size: int = SIZE, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


class Counting:
    """A callable that remembers each image that it received."""

    def __init__(self) -> None:
        self.model, self.seen = small(), list[bytes]()

    def __call__(self, batch: Tensor) -> Tensor:
        self.seen += [image.numpy().tobytes() for image in batch]
        return self.model(batch)


def test_each_distinct_view_runs_once() -> None:
    model = Counting()
    names = ["mouton2020", "zhang2019-diagonal", "chaman2021-circular", "rojas2022", "azulay2018", "hendrycks2019", "gruver2023"]
    found = audit(model, images(), protocols=names, max_shift=2)
    assert found.cost.checks == 1 + 4  # the example, and twice alone and once beside another to see what outputs depend on
    assert len(model.seen) == found.cost.forward + found.cost.checks
    assert len(set(model.seen)) - 1 == found.cost.forward == found.cost.distinct < found.cost.asked  # the other is noise


class Caching(nn.Module):
    """A model that keeps what its first call computes, as many keep grids, masks and rotary angles."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.weight, self.network = None, nn.Parameter(torch.ones(1)), small()

    def forward(self, batch: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(0, 1, batch.shape[-1])
        return self.network(batch + self.weight * self.grid)


@pytest.mark.parametrize("measure", [audit, explain, certify], ids=["audit", "explain", "certify"])
def test_measured_model_can_be_trained(measure: Callable[..., object]) -> None:
    """What it cached while it was measured is no tensor of inference mode; nor are the weights of lazy layers."""
    caching, lazy = Caching(), nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    for model in (caching.eval(), lazy.eval()):
        if measure is explain and model is lazy:
            lazy(images(2))
        measure(model, images(), **({"radius": 1} if measure is certify else {"max_shift": 1}))
        model.train()(images()).square().mean().backward()
        assert all(each.grad is not None for each in model.parameters())


def dropping() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(400, 3))


GLOBAL = dropping()


def wrapping(images: Tensor) -> Tensor:
    return GLOBAL(images / 2)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda network: lambda batch: network(batch / 2),
        lambda network: partial(lambda given, batch: given(batch / 2), network),
        lambda network: Holder(network).run,
        lambda network: Holder(network),
        lambda _: wrapping,
    ],
    ids=["closure", "partial", "method", "object", "global"],
)
def test_networks_within_a_function_are_evaluated_and_returned_to_their_mode(wrapped: Callable[[nn.Module], Model]) -> None:
    network = copy.deepcopy(GLOBAL).eval()
    expected = audit(nn.Sequential(Half(), network), images(), protocols=["mouton2020"], max_shift=2)
    GLOBAL.train()
    model = wrapped(GLOBAL)
    before, numbers = copy.deepcopy(GLOBAL.state_dict()), torch.get_rng_state()
    found = audit(model, images(), protocols=["mouton2020"], max_shift=2)
    assert [row.estimate for row in found.rows] == [row.estimate for row in expected.rows]
    assert all(torch.equal(value, before[name]) for name, value in GLOBAL.state_dict().items())
    assert GLOBAL.training and GLOBAL[2].training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert found.warnings == expected.warnings


class Half(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch / 2


class Holder:
    def __init__(self, network: nn.Module) -> None:
        self.parts = [network]

    def run(self, batch: Tensor) -> Tensor:
        return self.parts[0](batch / 2)

    __call__ = run


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda batch: functional.dropout(batch.flatten(1), 0.5)[:, :5], "differ from call to call"),
        (lambda batch: (batch - batch.mean(dim=0)).flatten(1)[:, :5], "depend on the other images of a batch"),
    ],
)
def test_outputs_that_depend_on_more_than_the_image_are_a_warning(model: Callable[[Tensor], Tensor], told: str) -> None:
    numbers = torch.get_rng_state()
    found = audit(model, images(), protocols=["mouton2020"], max_shift=2)
    assert found.warnings[0].startswith(f"The model's outputs for an image {told}")
    if "batch" in told:
        assert torch.equal(torch.get_rng_state(), numbers)
        assert not audit(lambda batch: batch.flatten(1)[:, :5], images(), protocols=["mouton2020"], max_shift=2).warnings


class BesideOthers(nn.Module):
    """Subtract the mean of the batch, so that an image's outputs depend on the others."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 2, 3), *layers)

    def forward(self, batch: Tensor) -> Tensor:
        return self.layers(batch - batch.mean(dim=0))


@pytest.mark.parametrize(
    "layers", [(nn.Flatten(), nn.LazyLinear(5)), (nn.Upsample(scale_factor=3),)], ids=["classes", "segmentation"]
)
def test_fix_and_explain_warn_of_outputs_that_depend_on_the_batch(layers: tuple[nn.Module, ...]) -> None:
    model, each = BesideOthers(*layers).eval(), images()
    model(each)
    explained, fixed = explain(model, each, max_shift=2, shifts=4), fix(model, each, kinds=["canonical"], max_shift=2)
    told = "The model's outputs for an image depend on the other images of a batch"
    assert explained.warnings[0].startswith(told)
    assert fixed.tables()[0].notes[0].startswith(told)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), nn.DataParallel], ids=["compiled", "DataParallel"])
def test_wrapped_model_is_measured_and_explained_as_the_one_within(wrap: Callable[[nn.Module], nn.Module]) -> None:
    one, other = (audit(model, images(), protocols=["mouton2020"], max_shift=2) for model in (small(), wrap(small())))
    assert one.rows == other.rows
    why = [explain(model, images(), max_shift=2).causes.verdict for model in (small(), wrap(small()))]
    assert why[0] == why[1] and "unknown" not in why[0]
    kept = [certify(model, images(), radius=1).radii.tolist() for model in (small(), wrap(small()))]
    assert kept[0] == kept[1]
    fixed = fix(wrap(small()).eval(), images(), kinds=["blur"], max_shift=2)
    assert "keep their answer" in repr(fixed)


def test_numbers_that_are_none_are_refused() -> None:
    """In a process of its own, because the tests' own check of types comes before ours."""
    code = """
import torch
from torch import nn
import shiftscope as ss
images, model = torch.rand(4, 1, 12, 12), nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
calls = [
    lambda: ss.audit(model, images, protocols=["mouton2020"], max_shift=2.5),
    lambda: ss.audit(model, images, protocols=["mouton2020"], seed=2.5),
    lambda: ss.explain(model, images, max_shift=2.5),
    lambda: ss.certify(model, images, radius=2.5),
    lambda: ss.grid(2.5),
    lambda: ss.audit(model, images, size=(1, 8, 8)),
    lambda: ss.certify(model, images, size=8.5),
    lambda: ss.audit(model, images, fill="black"),
    lambda: ss.shift_outputs(model, [(images, None)], ss.grid(2)),
]
for call in calls:
    try:
        call()
    except ss.InputError as error:
        print(str(error).partition(" got ")[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole = [f"`{name}` must be a whole number," for name in ("max_shift", "seed", "max_shift", "radius", "max_shift")]
    size = "`size` must be a whole number, or (height, width),"
    fill, tensor = "`fill` must be a number, or one for each channel,", "`images` must be tensors,"
    assert done.stdout.splitlines() == [*whole, size, size, fill, tensor]


def test_probabilities_that_are_read_as_logits_are_a_warning() -> None:
    model, each = small(), images(8)
    ended = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    told = "Outputs are probabilities: cosines compare them instead of logits"
    options = {"protocols": ["mouton2020"], "max_shift": 2}
    assert any(warning.startswith(told) for warning in audit(ended, each, **options).warnings)
    assert any(warning.startswith(told) for warning in explain(ended, each, max_shift=2, shifts=4).warnings)
    for other in (model, nn.Sequential(model, nn.ReLU()), nn.Sequential(model, nn.Sigmoid())):
        assert not any(warning.startswith(told) for warning in audit(other, each, **options).warnings)
    assert not any(warning.startswith(told) for warning in audit(ended, each, embedding=True, **options).warnings)


def test_mean_colour_may_be_one_value() -> None:
    one, each = (audit(small(), images(), protocols=["gruver2023"], max_shift=2, mean=mean).rows for mean in (0.5, [0.5]))
    assert one == each


def test_protocols_share_views() -> None:
    """The union of views, counted by hand: zero-filled crops along two paths meet at the centre."""
    found = audit(Counting(), images(8), protocols=["azulay2018", "hendrycks2019", "zhang2019-diagonal"], max_shift=3)
    diagonal, row = {(k, k) for k in range(-3, 4)}, {(0, k) for k in range(-3, 4)}
    assert found.cost.distinct == 8 * len(diagonal | row)
    assert found.cost.asked == 8 * (3 * 7 + 3)


@pytest.mark.parametrize("model", [Counting(), small()], ids=["callable", "module"])
def test_protocols_share_exhaustive_grids(model: Counting | nn.Module) -> None:
    found = audit(model, images(), protocols=["myburgh2021", "every-shift", "mouton2020", "zhang2019"], max_shift=2)
    assert found.cost.distinct == 20 * 25
    if isinstance(model, Counting):
        assert found.cost.forward == 20 * 25
        assert len(model.seen) == found.cost.forward + found.cost.checks
    else:
        assert (found.cost.forward, found.cost.dense) == (0, 20)


def test_untraceable_module_is_counted_in_the_engine() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.count = small(), 0

        def forward(self, batch: Tensor) -> Tensor:
            self.count += len(batch)
            if batch.sum() > -1:
                return self.inner(batch)
            return -self.inner(batch)

    model = Untraceable().eval()
    found = audit(model, images(), protocols=["every-shift", "zhang2019"], max_shift=2)
    assert model.count == found.cost.forward + found.cost.checks
    assert found.cost.forward == 20 * 25


def test_maps_equal_a_survey_of_the_engine() -> None:
    model, labels = small(), torch.arange(20) % 3
    found = audit(model, images(), labels, protocols=["every-shift"], max_shift=2)
    expected = survey([shift_outputs(model, images(), grid(2))], labels=labels)
    for name, values in expected.maps.items():
        assert torch.allclose(found.maps()[f"zero 2/{name}"].flatten(), values, atol=1e-6)
        bounds = torch.stack([found.maps()[f"zero 2/{name}/{bound}"].flatten() for bound in ("low", "high")], dim=1)
        assert torch.allclose(bounds, expected.intervals[name], atol=1e-6)
    for row in found.rows[1:]:
        assert row.estimate == expected.estimate(row.measure)
        assert row.given_right == expected.estimate(row.measure, given="right")


def test_block_in_which_dense_differs_is_measured_directly_whatever_came_before() -> None:
    """A hook that no graph shows makes bright images another matter; blocks are audited alone and in one audit."""

    def hook(module: nn.Module, _: object, out: Tensor) -> Tensor:
        return out + (out.mean(dim=(1, 2, 3), keepdim=True) > 0.5) * 5 if isinstance(module, nn.Conv2d) else out

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    nn.init.constant_(model[0].weight, 0.1)
    dark, bright = 0.1 * images(64), images(64) + 1
    handle = register_module_forward_hook(hook)
    try:
        with pytest.warns(UserWarning, match="dense and direct outputs differ"):
            found = audit(model, torch.cat([bright, dark]), protocols=["every-shift"], max_shift=2)
        alone = audit(model, dark, protocols=["every-shift"], max_shift=2)
    finally:
        handle.remove()
    assert (found.cost.dense, found.cost.fallen_back) == (64, 64)
    assert "For 64 images, outputs for all shifts together differed" in " ".join(found.notes)
    assert torch.equal(found.surveys["zero 2"].values["mcs", "all"][64:], alone.surveys["zero 2"].values["mcs", "all"])


def test_changed_holds_changed_answers_first_and_then_least_similarity() -> None:
    model, each = small(), images(40)
    found = audit(model, each, protocols=["every-shift"], max_shift=2)
    outputs = shift_outputs(model, each, grid(2))
    similarity = nn.functional.cosine_similarity(outputs.reference[:, None], outputs.values, dim=2)
    least, at = similarity.min(dim=1)
    same = outputs.values[torch.arange(40), at].argmax(1) == outputs.reference.argmax(1)
    order = sorted(range(40), key=lambda image: (bool(same[image]), float(least[image])))
    assert [change.image for change in found.changed] == order[:12]
    assert 0 < int((~same).sum()) < 40
    worst = found.changed[0]
    assert worst.shift == tuple(grid(2)[int(similarity[worst.image].argmin())].tolist())
    assert worst.similarity == pytest.approx(float(similarity[worst.image].min()), abs=1e-5)
    assert worst.before == int(outputs.reference[worst.image].argmax())


def test_result_does_not_depend_on_batches() -> None:
    each, labels = images(150), torch.arange(150) % 3
    whole = audit(small(), each, labels, protocols=CLASSIFIER_PROTOCOLS, max_shift=2)
    parts = audit(small(), iter(each.split([1, 70, 3, 76])), labels, protocols=CLASSIFIER_PROTOCOLS, max_shift=2)
    assert whole.rows == parts.rows
    assert whole.changed == parts.changed


def test_provenance_tells_images_labels_and_canvas_apart_whatever_the_batches() -> None:
    each, labels, options = images(70), torch.arange(70) % 3, {"protocols": ["mouton2020"], "max_shift": 2}
    whole = audit(small(), each, labels, seed=3, **options).provenance
    parts = audit(small(), iter(each.split([1, 69])), labels.int(), seed=3, **options).provenance
    assert whole == parts
    assert (whole["input"], whole["canvas"], whole["seed"]) == ("1x12x12", "0", "3")
    assert {"commit", "torch", "processor", "device"} <= whole.keys()
    others = [audit(small(), each, **options), audit(small(), each.flip(0), labels, **options)]
    assert len({whole["data_sha256"], *(other.provenance["data_sha256"] for other in others)}) == 3
    assert audit(small(), each, fill=0.5, **options).provenance["canvas"] == "0.5"


def test_only_a_few_batches_are_in_memory_at_once() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def batches() -> Iterator[Tensor]:
        nonlocal most
        for number in range(12):
            batch = torch.rand(64, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(number))
            alive.append(weakref.ref(batch))
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))
            yield batch
            del batch

    gc.freeze()  # what was there before the test is not searched again and again
    try:
        assert audit(small(), batches(), protocols=["mouton2020", "tmeasures"]).cost.images == 12 * 64
    finally:
        gc.unfreeze()
    assert most <= 4


def test_labels_add_accuracy_and_estimates_over_correct_images() -> None:
    model, each = small(), images(60)
    tops = model(each).argmax(1)
    labels = torch.where(torch.arange(60) % 4 == 0, (tops + 1) % 3, tops)
    found = audit(model, each, labels, protocols=["chaman2021-circular"], max_shift=3)
    assert found.estimate("accuracy", "unshifted").value == 0.75
    row = found.rows[1]
    right = audit(model, each, protocols=["chaman2021-circular"], max_shift=3)
    assert row.estimate == right.rows[0].estimate
    assert row.given_right is not None
    assert row.given_right.count == 45


@dataclass
class Outputs:
    logits: Tensor
    features: Tensor


class Several(nn.Module):
    """A network with two outputs, as a mapping, a tuple or an object."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.form = small(), form

    def forward(self, batch: Tensor) -> object:
        one = self.inner(batch)
        if self.form == "mapping":
            return {"logits": one, "features": -one}
        if self.form == "tuple":
            return one, -one
        return Outputs(one, -one)


@pytest.mark.parametrize(
    ("form", "output"), [("mapping", "logits"), ("tuple", 0), ("tuple", "0"), ("object", "logits"), ("object", None)]
)
def test_output_selects_one_of_several(form: str, output: str | int | None) -> None:
    plain = audit(small(), images(), protocols=["mouton2020", "myburgh2021"], max_shift=2)
    found = audit(Several(form).eval(), images(), protocols=["mouton2020", "myburgh2021"], max_shift=2, output=output)
    for one, other in zip(found.rows, plain.rows, strict=True):
        assert one.estimate.value == pytest.approx(other.estimate.value, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "output", "message"),
    [
        (Several("mapping"), None, r"returns 'logits', 'features'; `output` is not given. Choose one"),
        (Several("mapping"), "out", r"returns 'logits', 'features'; `output` is 'out'. Choose one"),
        (lambda batch: None, None, r"returns no tensor, but NoneType"),
    ],
)
def test_missing_output_is_refused(model: Callable[[Tensor], object], output: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(model, images(), output=output)


def test_embeddings_are_measured_by_cosines_only() -> None:
    found = audit(small(), images(), torch.zeros(20, dtype=torch.long), embedding=True)
    assert {row.measure for row in found.rows} == {"mcs"}
    assert "measures cosines" in " ".join(found.notes)
    assert "Labels are ignored" in " ".join(found.notes)
    assert found.changed[0].before is None


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (small(), {"embedding": True, "protocols": ["zhang2019"]}, "zhang2019 cannot be measured here: it needs a top class"),
        (nn.Conv2d(1, 3, 3, padding=1), {"protocols": ["mouton2020"]}, "it needs vectors, but the model returns maps"),
        (small(), {"protocols": ["segmentation"]}, "it counts pixels of maps, but the model returns vectors"),
    ],
)
def test_protocol_that_does_not_suit_the_output_is_refused(model: nn.Module, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(model, images(), **options)


def test_equivariant_map_keeps_every_pixel() -> None:
    model = nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular").eval()
    found = audit(model, images(70))
    assert found.estimate("mASSC", "segmentation-circular").value == 1
    assert 0.5 < found.estimate("mASSC", "segmentation-zero").value <= 1
    assert found.cost.images == 70
    half = nn.Sequential(model, nn.AvgPool2d(2)).eval()
    assert 0 < audit(half, images(5)).estimate("mASSC", "segmentation-circular").value < 1


def test_default_protocols_of_small_inputs_include_the_sensitivity_map() -> None:
    found = audit(small(), images())
    assert {row.protocol for row in found.rows} == {"mouton2020", "zhang2019", "chaman2021-circular", "azulay2018", "myburgh2021"}
    large = audit(lambda batch: batch.mean(dim=(1, 2)), torch.rand(3, 1, 70, 70))
    assert "myburgh2021" not in {row.protocol for row in large.rows}


def test_notes_name_replaced_borders() -> None:
    found = audit(small(), images(), protocols=["zhang2019", "chaman2021-zero"])
    assert "crops are padded with the canvas's colour" in found.notes[0]
    assert "The mean colour is unknown" in found.notes[1]


def test_table_json_and_summary_agree() -> None:
    found = audit(small(), images(), torch.arange(20) % 3, protocols=CLASSIFIER_PROTOCOLS, max_shift=2)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [row["measure"] for row in read["rows"]] == [row.measure for row in found.rows]
    assert read["rows"][1]["estimate"]["value"] == found.rows[1].estimate.value
    assert read["cost"]["forward"] == found.cost.forward
    assert len(read["units"]["tmeasures"]) == 3
    table = found.table()
    assert len(table.rows) == len(found.rows)
    assert table.notes[0] == found.words() == read["summary"]
    change = percent(found.estimate("top1_change", "mouton2020"))
    assert found.words().startswith(
        f"The answer changes for {change} of images after a random shift of up to 2 pixels. Without a shift,"
    )
    assert "Mean cosine similarity: Cosine of the outputs before and after a shift." in table.notes[1]
    assert "Images that change most" in table.notes[-1]


def test_estimate_that_was_not_measured_is_refused() -> None:
    found = audit(small(), images(), protocols=["zhang2019"])
    with pytest.raises(InputError, match=r"the audit holds no 'mcs' of 'zhang2019'. It holds all_agree of zhang2019"):
        found.estimate("mcs", "zhang2019")


def test_single_image_has_the_widest_intervals_and_valid_json() -> None:
    found = audit(small(), images(1), protocols=[name for name in CLASSIFIER_PROTOCOLS if name != "tmeasures"], max_shift=2)
    assert found.estimate("mcs", "mouton2020").low == -1
    assert found.estimate("squared_derivative_x", "gruver2023").high == float("inf")
    json.dumps(found.to_json(), allow_nan=False)


def test_each_block_is_reported() -> None:
    events: list[Event] = []
    audit(small(), images(70), protocols=["mouton2020"], report=events.append)
    assert events == [Stage("measuring images", done, 70) for done in (64, 70)]


class Broken(nn.Module):
    """NaN for dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, batch: Tensor) -> Tensor:
        outputs = self.inner(batch)
        return torch.where(batch.amax(dim=(1, 2, 3))[:, None] < 0.1, torch.nan, outputs)


@pytest.mark.parametrize("protocol", ["mouton2020", "myburgh2021"])
def test_outputs_that_are_not_finite_are_counted(protocol: str) -> None:
    each = images(20)
    each[[3, 5, 6]] *= 0.05
    with pytest.raises(NotFiniteError, match=r"the model returned NaN or infinity for \d+ of \d+ images"):
        audit(Broken(), each, protocols=[protocol], max_shift=1)


def test_outputs_that_are_not_finite_in_a_grid_are_counted_by_image() -> None:
    each = images(20)
    each[[3, 5, 6]] *= 0.05
    with pytest.raises(NotFiniteError, match=r"for 3 of 20 images. Check its weights"):
        audit(Broken(), each, protocols=["myburgh2021"], max_shift=1)


@pytest.mark.parametrize(
    ("each", "options", "message"),
    [
        (images()[:0], {}, "at least one image, got none"),
        ((images() * 255).byte(), {}, "floating point in"),
        (images() / torch.zeros(()), {}, "NaN or infinity in 1 of 1"),
        ([images(), images(3, 14)], {}, "all of one size, got shape"),
        (images(), {"size": 20}, "the model takes images of 20x20, but `images` are 12x12"),
        (images(), {"labels": torch.zeros(3, dtype=torch.long)}, "one label per image, got 3 for 20"),
        ([images()], {"labels": torch.zeros(3, dtype=torch.long)}, "one label per image, got 3 for 20 images or more"),
        ([images()], {"labels": torch.zeros(30, dtype=torch.long)}, "one label per image, got 30 for 20"),
        (images(), {"labels": torch.full((20,), 7)}, "`labels` must be 0 to 2, the model's classes, got 7"),
        (images(), {"protocols": ["x"]}, "there is no protocol 'x'"),
        (images(), {"protocols": ()}, r"`protocols` must be a list of one or more, got \(\)"),
        (images(), {"protocols": "zhang2019"}, "`protocols` must be a list of one or more, got 'zhang2019'"),
        (images(), {"protocols": ["mouton2020", mouton2020(1)]}, "holds two different mouton2020"),
        (images(), {"batch_size": 0}, "`batch_size` must be 1 or more"),
        (images(), {"device": "gpu"}, "`device` must be one that PyTorch can compute on here, got 'gpu'"),
        (images(), {"fill": [0.0, 1.0]}, "`fill` must be one value for each of 1"),
        (images(), {"mean": [0.0, 1.0]}, "`mean` must be one value for each of 1"),
        (images(size=14), {"size": 12, "protocols": ["zhang2019"], "max_shift": 3}, "crops up to 3 .* images of 14x14 leave 1"),
    ],
)
def test_bad_input_is_refused(each: Tensor | list[Tensor], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(small(), each, **options)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (images(channels=3), r"fails on images of 3x12x12 \(RuntimeError: .*It takes 1 channels, the images have 3"),
        (images(size=16), "fails on images of 1x16x16"),
    ],
)
def test_model_that_fails_is_refused(each: Tensor, message: str) -> None:
    with pytest.raises(ModelFailsError, match=message):
        audit(small(), each)


def test_output_that_shows_no_task_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"at least two values for each of 1 images.*got shape \(1, 1, 3, 3, 3\).*audit --task NAME"
    ):
        audit(lambda batch: torch.zeros(len(batch), 1, 3, 3, 3), images())


def test_model_out_of_memory_names_the_batch_size() -> None:
    with pytest.raises(InputError, match=r"out of memory on batches of 1 images .* Lower `batch_size`"):
        audit(_out_of_memory, images())


def _out_of_memory(_: Tensor) -> Tensor:
    raise MemoryError


def test_model_in_training_mode_is_measured_in_evaluation_mode() -> None:
    model = nn.Sequential(small(), nn.Dropout(0.5)).train()
    one, two = (audit(model, images(), protocols=["mouton2020", "myburgh2021"]) for _ in range(2))
    assert one.rows == two.rows
    assert model.training
    assert model[1].training


def test_default_crops_stay_within_the_margin() -> None:
    found = audit(small(size=8), images(), size=8, protocols=["zhang2019", "azulay2018"])
    assert {(row.border, row.max_shift) for row in found.rows} == {("crop", 2)}


def test_protocol_of_the_callers_own_is_measured() -> None:
    found = audit(small(), images(), protocols=[rojas2022_circular(2, samples=5)])
    assert found.rows[0].views == 5
