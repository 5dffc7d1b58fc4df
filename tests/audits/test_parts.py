"""Parts merge in the order of their images, and come back from named tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftscope.audits.moments import Moments
from shiftscope.audits.parts import MOST_CHANGED, Changed, Cost, Part, merge_parts
from shiftscope.audits.scores import estimate
from shiftscope.audits.session import AuditOptions, Session
from shiftscope.audits.stored import from_tensors, to_tensors
from shiftscope.errors import InputError

PROTOCOLS = ("mouton2020", "every-shift", "tmeasures")


def changed(image: int, similarity: float) -> Changed:
    return Changed(image, (1.0, -2.0), "crop", similarity, 3, 4)


def test_merge_joins_values_adds_sums_and_sorts_changes() -> None:
    one = Part({("p", "mcs"): torch.ones(2)}, sums={"p": {"a": torch.ones(())}}, changed=(changed(3, 0.5),), cost=Cost(2, 5))
    two = Part({("p", "mcs"): torch.zeros(1)}, sums={"p": {"a": torch.ones(())}}, changed=(changed(7, 0.1),), cost=Cost(1, 1))
    whole = merge_parts([one, two, Part(damaged=("x.png",))])
    assert whole.scores["p", "mcs"].tolist() == [1, 1, 0]
    assert whole.sums["p"]["a"] == 2
    assert [each.image for each in whole.changed] == [7, 3]
    assert (whole.cost.images, whole.cost.asked) == (3, 6)
    assert whole.damaged == ("x.png",)
    assert whole.correct is None


def test_merge_of_nothing_is_empty() -> None:
    assert merge_parts([]) == Part()


def test_merge_keeps_the_images_that_change_most_and_the_earlier_of_equals() -> None:
    whole = merge_parts([Part(changed=tuple(changed(image, 0.5) for image in range(20, 0, -1)))])
    assert [each.image for each in whole.changed] == list(range(1, MOST_CHANGED + 1))


def test_part_comes_back_from_its_tensors() -> None:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def model(batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([batch[:, 0, :4].mean((1, 2)), batch[:, 0, 4:].mean((1, 2))], dim=1)

    session = Session.start(model, images[:1], AuditOptions(protocols=PROTOCOLS, max_shift=1), labelled=True)
    part = session.part(images, torch.arange(12) % 2, indices=torch.arange(12))
    again = from_tensors(to_tensors(part))
    assert (again.changed, again.cost, again.damaged) == (part.changed, part.cost, ())
    assert session.result(again).rows == session.result(part).rows
    assert torch.equal(again.correct, part.correct)
    for measure, values in part.surveys["zero 1"].maps.items():
        assert torch.equal(again.surveys["zero 1"].maps[measure], values)


def test_complex_numbers_are_no_part() -> None:
    tensors = to_tensors(Part())
    name = next(iter(tensors))
    with pytest.raises(ValueError, match="a part holds real numbers"):
        from_tensors({**tensors, name: tensors[name].to(torch.complex64)})


def test_names_of_damaged_files_come_back_from_tensors() -> None:
    assert from_tensors(to_tensors(Part(damaged=("a/ä.png", "b.png")))).damaged == ("a/ä.png", "b.png")


def test_tensors_keep_the_names_that_files_of_earlier_versions_hold() -> None:
    part = Part({("p", "mcs"): torch.ones(2)}, sums={"q": {"count": torch.ones(10)}}, correct=torch.tensor([True, False]))
    assert {*to_tensors(part)} >= {
        "each/score/p/mcs",
        "sum/spread/q/count",
        "sum/cost/seconds",
        "each/right",
        "most/changed",
        "each/damaged",
    }


def labelled_session() -> tuple[Session, torch.Tensor]:
    """Return an audit of a model whose answers shifts change, and 40 images."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2), torch.nn.Flatten(), torch.nn.Linear(36, 3)).eval()
    images = torch.rand(40, 1, 8, 8)
    options = AuditOptions(protocols=("mouton2020", "myburgh2021", "azulay2018", "every-shift"), max_shift=2)
    return Session.start(model, images[:1], options, labelled=True), images


def test_values_beyond_those_kept_become_moments_with_the_same_estimates() -> None:
    """Many images: the same numbers and, up to what a bootstrap varies, the same intervals; the maps are equal bit for bit."""
    session, images = labelled_session()
    numbers = [torch.arange(first, first + 8) for first in range(0, 40, 8)]
    read = [from_tensors(to_tensors(session.part(images[each], each % 3, indices=each)), maps=False) for each in numbers]
    parts = [read[number % 5] for number in range(100)]  # 800 images
    kept, summed = merge_parts(parts), merge_parts(parts, keep=100)
    assert kept.moments == {} and summed.scores == {} and summed.correct is None
    one, two = session.result(kept), session.result(summed)
    assert [(row.protocol, row.measure, row.views) for row in one.rows] == [
        (row.protocol, row.measure, row.views) for row in two.rows
    ]
    for before, after in zip(one.rows, two.rows, strict=True):
        for whole, found in ((before.estimate, after.estimate), (before.given_right, after.given_right)):
            assert (whole is None) == (found is None)
            if whole is None or found is None:
                continue
            assert found.value == pytest.approx(whole.value, abs=1e-6) and found.count == whole.count
            width = whole.high - whole.low
            assert (found.low, found.high) == (
                pytest.approx(whole.low, abs=0.1 * width),
                pytest.approx(whole.high, abs=0.1 * width),
            )
    assert one.maps().keys() == two.maps().keys()
    assert all(torch.equal(values, two.maps()[name]) for name, values in one.maps().items())
    assert two.values == {}
    assert merge_parts(parts, keep=800).scores.keys() == kept.scores.keys()  # no more than are kept


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0, 0.0, 1.0], [0.25, 0.5, 0.125, 0.75], [0.5] * 7, [1.0] * 9, [0.3]])
def test_moments_of_blocks_give_the_estimate_of_all_values(values: list[float]) -> None:
    """Few images, of which a mean has Student's interval, too."""
    table = torch.tensor(values)
    found = Moments.of(table[:2]) + Moments.of(table[2:2]) + Moments.of(table[2:])
    expected = estimate("top1_change", table)
    again = found.estimate("top1_change")
    assert again is not None and again.count == expected.count
    assert (again.value, again.low, again.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_merged_columns_keep_types_and_refuse_other_shapes() -> None:
    key = ("p", "mcs")
    mixed = merge_parts(
        [Part({key: torch.ones(2)}), Part({key: torch.zeros(1, dtype=torch.float64)}), Part({key: torch.ones(1)})]
    )
    assert mixed.scores[key].dtype == torch.float64 and mixed.scores[key].tolist() == [1, 1, 0, 1]
    assert merge_parts([Part(correct=torch.tensor([True])), Part(correct=torch.tensor([False]))]).correct.tolist() == [
        True,
        False,
    ]
    for other in (torch.ones(2, 3), torch.ones(())):
        with pytest.raises(InputError, match="values of different shapes"):
            merge_parts([Part({key: torch.ones(2)}), Part({key: other})])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("each/survey/zero 1/mcs/radius 1.x", torch.zeros(2)),
        ("each/survey/zero 1/mcs/all", torch.zeros(0, 5)),
        ("each/score/mouton2020/mcs", torch.zeros(3)),
        ("each/right", torch.zeros(2, 2, dtype=torch.bool)),
        ("sum/spread/answers/own", torch.zeros(())),
    ],
)
def test_tensors_that_fit_no_part_are_refused(name: str, tensor: Tensor) -> None:
    """Else a damaged file would be merged, and the table or the page would fail on it."""
    good = to_tensors(Part(scores={("zhang2019", "all_agree"): torch.ones(2)}))
    assert from_tensors(good).scores
    with pytest.raises(ValueError, match="a part"):
        from_tensors({**good, name: tensor})
