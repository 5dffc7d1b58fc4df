"""Parts merge in the order of their images, and come back from named tensors."""

from __future__ import annotations

import pytest
import torch

from shiftscope.audits.parts import MOST_CHANGED, Changed, Cost, Part, from_tensors, merge_parts, to_tensors
from shiftscope.audits.session import AuditOptions, Session

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
