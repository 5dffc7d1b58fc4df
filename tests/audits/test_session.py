"""Several protocols cost what their different views cost, outputs of any kind are understood, what cannot be measured is told."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from shiftscope import audit, grid, shift_outputs, survey
from shiftscope.audits.parts import folded
from shiftscope.audits.protocols import PUBLISHED, find_protocols, mouton2020, rojas2022_circular
from shiftscope.audits.spread import normalised_variance, spread_sums
from shiftscope.errors import InputError

SIZE = 12
OF_CLASSES = [name for name in PUBLISHED if not name.startswith("segmentation")]


def small(channels: int = 1, classes: int = 3, size: int = SIZE) -> nn.Module:
    torch.manual_seed(0)
    side = (size - 3) // 2 + 1
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * side**2, classes)).eval()


def images(count: int = 20, size: int = SIZE, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


class Counting:
    """A callable that remembers how many images it saw, and each of them."""

    def __init__(self) -> None:
        self.model, self.seen = small(), list[bytes]()

    def __call__(self, batch: Tensor) -> Tensor:
        self.seen += [image.numpy().tobytes() for image in batch]
        return self.model(batch)


def test_the_model_sees_each_different_view_once() -> None:
    model = Counting()
    names = ["mouton2020", "zhang2019-diagonal", "chaman2021-circular", "rojas2022", "azulay2018", "hendrycks2019", "gruver2023"]
    found = audit(model, images(), protocols=names, max_shift=2)
    assert found.cost.checks == 1  # the first look
    assert len(model.seen) == found.cost.forward + found.cost.checks
    assert len(set(model.seen)) == found.cost.forward == found.cost.distinct < found.cost.asked


def test_views_are_shared_whoever_asks_for_them() -> None:
    """The union, counted by hand: zero-filled crops along two paths meet at the centre, and draws repeat each other."""
    found = audit(Counting(), images(8), protocols=["azulay2018", "hendrycks2019", "zhang2019-diagonal"], max_shift=3)
    diagonal, row = {(k, k) for k in range(-3, 4)}, {(0, k) for k in range(-3, 4)}
    assert found.cost.distinct == 8 * len(diagonal | row)
    assert found.cost.asked == 8 * (3 * 7 + 3)


@pytest.mark.parametrize("model", [Counting(), small()], ids=["callable", "module"])
def test_every_shift_is_run_once_for_all_that_ask_for_it(model: Counting | nn.Module) -> None:
    found = audit(model, images(), protocols=["myburgh2021", "every-shift", "mouton2020", "zhang2019"], max_shift=2)
    assert found.cost.distinct == 20 * 25
    if isinstance(model, Counting):
        assert found.cost.forward == 20 * 25
        assert len(model.seen) == found.cost.forward + found.cost.checks
    else:
        assert (found.cost.forward, found.cost.dense) == (0, 20)


def test_a_module_is_counted_through_whatever_calls_it() -> None:
    """A model that cannot be traced, so that the engine runs it on each copy."""

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
    assert not model._forward_pre_hooks


def test_the_map_is_the_engines() -> None:
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


def test_the_images_that_change_most_are_those() -> None:
    model, each = small(), images(40)
    found = audit(model, each, protocols=["every-shift"], max_shift=2)
    outputs = shift_outputs(model, each, grid(2))
    similar = nn.functional.cosine_similarity(outputs.reference[:, None], outputs.values, dim=2)
    order = similar.min(dim=1).values.argsort()
    assert [change.image for change in found.changed] == order[:10].tolist()
    worst = found.changed[0]
    assert worst.shift == tuple(grid(2)[int(similar[worst.image].argmin())].tolist())
    assert worst.similarity == pytest.approx(float(similar[worst.image].min()), abs=1e-5)
    assert worst.before == int(outputs.reference[worst.image].argmax())


def test_batches_decide_nothing() -> None:
    each, labels = images(150), torch.arange(150) % 3
    whole = audit(small(), each, labels, protocols=OF_CLASSES, max_shift=2)
    parts = audit(small(), iter(each.split([1, 70, 3, 76])), labels, protocols=OF_CLASSES, max_shift=2)
    assert whole.rows == parts.rows
    assert whole.changed == parts.changed


def test_images_are_held_a_block_at_a_time() -> None:
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

    assert audit(small(), batches(), protocols=["mouton2020", "tmeasures"]).cost.images == 12 * 64
    assert most <= 4


def test_labels_give_accuracy_and_what_is_given_that_the_image_is_right() -> None:
    model, each = small(), images(60)
    tops = model(each).argmax(1)
    labels = torch.where(torch.arange(60) % 4 == 0, (tops + 1) % 3, tops)
    found = audit(model, each, labels, protocols=["chaman2021-circular"], max_shift=3)
    assert found.estimate("unshifted", "accuracy").value == 0.75
    row = found.rows[1]
    right = audit(model, each, protocols=["chaman2021-circular"], max_shift=3)
    assert row.estimate == right.rows[0].estimate
    assert row.given_right is not None
    assert row.given_right.count == 45


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
        answer = type("Answer", (), {})()
        answer.logits, answer.features = one, -one
        return answer


@pytest.mark.parametrize(("form", "output"), [("mapping", "logits"), ("tuple", 0), ("tuple", "0"), ("object", "logits")])
def test_one_of_several_outputs_is_chosen(form: str, output: str | int) -> None:
    plain = audit(small(), images(), protocols=["mouton2020", "myburgh2021"], max_shift=2)
    found = audit(Several(form).eval(), images(), protocols=["mouton2020", "myburgh2021"], max_shift=2, output=output)
    for one, other in zip(found.rows, plain.rows, strict=True):
        assert one.estimate.value == pytest.approx(other.estimate.value, abs=1e-5)


def test_an_output_that_is_not_there_or_not_chosen_is_told() -> None:
    with pytest.raises(InputError, match=r"returns 'logits', 'features'; none is chosen. Choose one with `output`"):
        audit(Several("mapping"), images())
    with pytest.raises(InputError, match=r"returns 'logits', 'features'; there is no 'out'. Choose one with `output`"):
        audit(Several("mapping"), images(), output="out")
    with pytest.raises(InputError, match=r"returns no tensor, but NoneType; none is chosen"):
        audit(lambda batch: None, images())


def test_of_embeddings_only_cosines_are_measured_and_this_is_said() -> None:
    found = audit(small(), images(), torch.zeros(20, dtype=torch.long), embedding=True)
    assert {row.measure for row in found.rows} == {"mcs"}
    assert "only cosines are measured" in " ".join(found.notes)
    assert "Labels are left out" in " ".join(found.notes)
    assert found.changed[0].before is None
    with pytest.raises(InputError, match=r"zhang2019 cannot be measured here: it counts top classes, which an embedding"):
        audit(small(), images(), embedding=True, protocols=["zhang2019"])
    with pytest.raises(InputError, match=r"it counts vectors, and the model answers with maps"):
        audit(nn.Conv2d(1, 3, 3, padding=1), images(), protocols=["mouton2020"])
    with pytest.raises(InputError, match=r"it counts pixels of maps, and the model answers with vectors"):
        audit(small(), images(), protocols=["segmentation"])


def test_an_equivariant_map_keeps_every_pixel() -> None:
    model = nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular").eval()
    found = audit(model, images(70))
    assert found.estimate("segmentation-circular", "mASSC").value == 1
    assert 0.5 < found.estimate("segmentation-zero", "mASSC").value <= 1
    assert found.cost.images == 70
    half = nn.Sequential(model, nn.AvgPool2d(2)).eval()
    assert 0 < audit(half, images(5)).estimate("segmentation-circular", "mASSC").value < 1


def test_defaults_suit_the_output_and_say_what_they_assume() -> None:
    found = audit(small(), images())
    assert {row.protocol for row in found.rows} == {"mouton2020", "zhang2019", "chaman2021-circular", "azulay2018", "myburgh2021"}
    assert "crops are cut from the canvas's colour" in found.notes[0]
    large = audit(lambda batch: batch.mean(dim=(1, 2)), torch.rand(3, 1, 70, 70))
    assert "myburgh2021" not in {row.protocol for row in large.rows}
    mean = audit(small(), images(), protocols=["chaman2021-zero"])
    assert "The mean colour is not known" in mean.notes[0]


def test_table_json_and_words_tell_the_same() -> None:
    found = audit(small(), images(), torch.arange(20) % 3, protocols=OF_CLASSES, max_shift=2)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [row["measure"] for row in told["rows"]] == [row.measure for row in found.rows]
    assert told["rows"][1]["estimate"]["value"] == found.rows[1].estimate.value
    assert told["cost"]["forward"] == found.cost.forward
    assert len(told["units"]["tmeasures"]) == 3
    table = found.table()
    assert len(table.rows) == len(found.rows)
    assert table.notes[0] == found.words() == told["summary"]
    assert f"outputs keep a mean cosine of {found.estimate('mouton2020', 'mcs')}" in found.words()
    assert "Images that change most" in table.notes[-1]
    with pytest.raises(InputError, match=r"the audit holds no 'mcs' of 'zhang2019'. It holds accuracy of unshifted"):
        found.estimate("zhang2019", "mcs")


def test_a_single_image_has_the_widest_intervals_and_valid_json() -> None:
    found = audit(small(), images(1), protocols=[name for name in OF_CLASSES if name != "tmeasures"], max_shift=2)
    assert found.estimate("mouton2020", "mcs").low == -1
    assert found.estimate("gruver2023", "squared_derivative_x").high == float("inf")
    json.dumps(found.to_json(), allow_nan=False)


def test_progress_is_told() -> None:
    heard: list[tuple[int, int | None]] = []
    audit(small(), images(70), protocols=["mouton2020"], progress=lambda *at: heard.append(at))
    assert heard == [(64, 70), (70, 70)]


class Broken(nn.Module):
    """NaN for dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, batch: Tensor) -> Tensor:
        answer = self.inner(batch)
        return torch.where(batch.amax(dim=(1, 2, 3))[:, None] < 0.1, torch.nan, answer)


@pytest.mark.parametrize("protocol", ["mouton2020", "myburgh2021"])
def test_answers_that_are_not_numbers_are_counted(protocol: str) -> None:
    each = images(20)
    each[[3, 5, 6]] *= 0.05
    with pytest.raises(InputError, match=r"the model returned NaN or infinity for \d+ of \d+ images"):
        audit(Broken(), each, protocols=[protocol], max_shift=1)
    with pytest.raises(InputError, match=r"for 3 of 20 images. Check its weights"):
        audit(Broken(), each, protocols=["myburgh2021"], max_shift=1)


def test_bad_input_is_told_in_a_sentence() -> None:
    model, each = small(), images()
    cases = {
        "at least one image, got none": lambda: audit(model, each[:0]),
        "floating point in": lambda: audit(model, (each * 255).byte()),
        "NaN or infinity in 1 of 1": lambda: audit(model, each / torch.zeros(())),
        "all of one size, got shape": lambda: audit(model, [each, images(3, 14)]),
        "fails on images of 3x12x12: .*It wants 1 channels, the images have 3": lambda: audit(model, images(channels=3)),
        "fails on images of 1x16x16": lambda: audit(model, images(size=16)),
        "the model wants images of 20x20, the data has 12x12": lambda: audit(model, each, size=20),
        "one label an image, got 3 for 20": lambda: audit(model, each, torch.zeros(3, dtype=torch.long)),
        "one label an image, got 3 for 20 images or more": lambda: audit(model, [each], torch.zeros(3, dtype=torch.long)),
        "one label an image, got 30 for 20": lambda: audit(model, [each], torch.zeros(30, dtype=torch.long)),
        "`labels` must be 0 to 2, the model's classes, got 7": lambda: audit(model, each, torch.full((20,), 7)),
        "there is no protocol 'x'": lambda: audit(model, each, protocols=["x"]),
        "`protocols` must be a list of one or more, got ()": lambda: audit(model, each, protocols=()),
        "`protocols` must be a list of one or more, got 'zhang2019'": lambda: audit(model, each, protocols="zhang2019"),
        "holds two different mouton2020": lambda: audit(model, each, protocols=["mouton2020", mouton2020(1)]),
        "`batch_size` must be 1 or more": lambda: audit(model, each, batch_size=0),
        "`fill` must be one value for each of 1": lambda: audit(model, each, fill=[0.0, 1.0]),
        "`mean` must be one value for each of 1": lambda: audit(model, each, mean=[0.0, 1.0]),
        r"at least two values for each of 1 images.*got shape \(1, 1\)": lambda: audit(lambda b: b.sum((1, 2, 3))[:, None], each),
        "memory runs out on batches of 1 images": lambda: audit(_out_of_memory, each),
        "crops up to 3 pixels from the centre, but images of 12x12 leave 1": lambda: audit(
            small(size=10), each, size=10, protocols=["zhang2019"], max_shift=3
        ),
    }
    for text, call in cases.items():
        with pytest.raises(InputError, match=text.replace("()", r"\(\)")):
            call()


def _out_of_memory(_: Tensor) -> Tensor:
    raise MemoryError


def test_a_model_in_training_mode_is_handed_back_so() -> None:
    model = nn.Sequential(small(), nn.Dropout(0.5)).train()
    one, two = (audit(model, images(), protocols=["mouton2020", "myburgh2021"]) for _ in range(2))
    assert one.rows == two.rows
    assert model.training
    assert model[1].training


def test_by_default_crops_keep_within_the_margin() -> None:
    found = audit(small(size=8), images(), size=8, protocols=["zhang2019", "azulay2018"])
    assert {(row.border, row.max_shift) for row in found.rows} == {("crop", 2)}
    assert find_protocols("zhang2019", size=100, margin=4)[0].max_shift == 4


def test_the_normalised_variance_knows_its_limits() -> None:
    """A unit that no shift changes has 0, one that no image changes leaves nothing to compare, and 0 / 0 is 1."""
    values = torch.zeros(30, 3, 3)
    values[:, :, 0] = torch.arange(30.0)[:, None]
    values[:, :, 1] = torch.arange(3.0)
    estimate, units = normalised_variance(spread_sums(values, numbers=torch.arange(30)))
    assert units[0] == 0
    assert units[1] == float("inf")
    assert units[2] == 1
    assert estimate.value == 0.5
    one = normalised_variance(spread_sums(values[:2], numbers=torch.arange(2)))[0]
    assert (one.low, one.high) == (0, float("inf"))


def test_the_jackknife_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, inside = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        image, step = torch.randn(60, 1, 4, generator=generator), torch.randn(60, 9, 4, generator=generator)
        estimate, _ = normalised_variance(spread_sums(image + 0.5 * step, numbers=torch.arange(60)))
        # Spread over nine shifts with denominator nine: 0.5 c4(9) sqrt(8/9), beside sqrt(1.25).
        inside += estimate.low <= 0.5 * 0.9693 * (8 / 9) ** 0.5 / 1.25**0.5 <= estimate.high
    assert 170 <= inside <= 200


def test_portions_fold_as_their_names_say() -> None:
    rows = torch.tensor([[0.5, 3.0], [0.1, 7.0]], dtype=torch.float64)
    parts = [
        {"each/a": torch.ones(2), "most/b": rows[:1]},
        {"each/a": torch.zeros(1), "most/b": rows[1:], "sum/c": torch.ones(())},
    ]
    whole = folded(parts)
    assert whole["each/a"].tolist() == [1, 1, 0]
    assert whole["most/b"].tolist() == [[0.1, 7.0], [0.5, 3.0]]
    assert folded([]) == {}


def test_a_protocol_of_ones_own_is_measured() -> None:
    found = audit(small(), images(), protocols=[rojas2022_circular(2, samples=5)])
    assert found.rows[0].views == 5
