"""Along a path, each frame's change is the one that a loop over crops finds; parts of any kind merge to the same curve."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from shiftscope import Audit, InputError, audit
from shiftscope.audits import AuditOptions, Part, Session, merge_parts
from shiftscope.audits.folder import AuditSpec, merge_audit, part_file
from shiftscope.audits.job import AuditJob, run_audit, run_shard
from shiftscope.audits.reading import read_audit
from shiftscope.audits.stored import from_tensors, to_tensors
from shiftscope.estimates import proportion
from shiftscope.report import Chart
from shiftscope.report.audit import audit_page
from shiftscope.report.charts import draw_chart
from shiftscope.runtime.files import write_checked_tensors

SIZE, MARGIN = 8, 4
REACH = MARGIN
SHIFTS = [(0, right) for right in range(-REACH, REACH + 1)]


def ramps(count: int = 3) -> Tensor:
    """Images whose first column in a crop tells where the crop is."""
    return (torch.arange(SIZE + 2 * MARGIN) / 100).expand(count, 1, SIZE + 2 * MARGIN, -1)


def position(batch: Tensor) -> Tensor:
    """Return how far each crop of :func:`ramps` lies from the left edge: 4 at no shift, 8 where content moved 4 left."""
    return (100 * batch[:, 0, 0, 0]).round().long()


def scores(classes: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(classes, 2).float()


#: Model -> class of a position.
ANSWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "parity": lambda at: at % 2,
    "constant": lambda at: 0 * at,
    "one step": lambda at: (at >= 6).long(),
}
#: Changes against the frame before and against the unshifted image, for shifts of -4 to 4 pixels right.
CHANGES = {
    "parity": ([1] * 8, [0, 1, 0, 1, 0, 1, 0, 1, 0]),
    "constant": ([0] * 8, [0] * 9),
    "one step": ([0, 0, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0]),
}
OPTIONS: dict[str, Any] = {"protocols": ["hendrycks2019"], "size": SIZE, "max_shift": REACH}


def curve(found: Audit, measure: str, against: str) -> list[float]:
    return [each.estimate.value for each in found.frames if (each.measure, each.against) == (measure, against)]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("task", [None, "answers"])
def test_constructed_model_changes_at_the_frames_where_its_answer_does(name: str, task: str | None) -> None:
    def model(batch: Tensor) -> Any:
        classes = ANSWERS[name](position(batch))
        return scores(classes) if task is None else [str(each) for each in classes.tolist()]

    found = audit(model, ramps(), **OPTIONS)
    assert found.task == (task or "")
    previous, unshifted = CHANGES[name]
    measure = "change" if task else "top1_change"
    assert curve(found, measure, "previous") == previous
    assert curve(found, measure, "unshifted") == unshifted
    if task is None:
        assert curve(found, "mcs", "previous") == [1 - each for each in previous]
        assert curve(found, "mcs", "unshifted") == [1 - each for each in unshifted]
    places = [(each.number, each.shift) for each in found.frames if (each.measure, each.against) == (measure, "previous")]
    assert places == [(number, (0.0, float(right))) for number, (_, right) in list(enumerate(SHIFTS, start=1))[1:]]


@pytest.mark.parametrize("protocol", ["hendrycks2019", "azulay2018", "zhang2019-diagonal"])
def test_frames_equal_a_loop_over_crops(protocol: str) -> None:
    generator = torch.Generator().manual_seed(2)
    images, weight = torch.rand(9, 1, 16, 16, generator=generator), torch.randn(64, 3, generator=generator)

    def model(batch: Tensor) -> Tensor:
        return (batch - 0.5).flatten(1) @ weight

    found = audit(model, images, **{**OPTIONS, "protocols": [protocol]})
    frames = {(each.measure, each.against, each.number): each for each in found.frames}
    steps = sorted({(each.number, each.shift) for each in found.frames})
    crops = [images[:, :, 4 - int(dy) : 12 - int(dy), 4 - int(dx) : 12 - int(dx)] for _, (dy, dx) in steps]
    tops = [model(each).argmax(1) for each in crops]
    unshifted = model(images[:, :, 4:12, 4:12]).argmax(1)
    for number, top in enumerate(tops, start=1):
        assert frames["top1_change", "unshifted", number].estimate.value == pytest.approx(
            float((top != unshifted).float().mean())
        )
        if number > 1:
            changed = proportion(top != tops[number - 2])
            estimate = frames["top1_change", "previous", number].estimate
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((changed.value, changed.low, changed.high))
            assert estimate.count == 9
    every = curve(found, "top1_change", "previous")
    assert 0 < sum(every) < len(every)
    assert sum(every) / len(every) == pytest.approx(found.estimate("neighbour_change", protocol).value)


def test_frames_of_a_task_are_means_over_images_with_a_value() -> None:
    """Survival of detections is not defined for an image without any: here the first one, in whose crops all is dark."""
    images = ramps(4).clone()
    images[0] = 0

    def model(batch: Tensor) -> list[dict[str, Tensor]]:
        box = torch.tensor([[2.0, 2.0, 6.0, 6.0]])
        return [
            {"boxes": box[:count], "scores": torch.ones(count), "labels": torch.zeros(count, dtype=torch.long)}
            for count in (batch.amax(dim=(1, 2, 3)) > 0).long().tolist()
        ]

    found = audit(model, images, **OPTIONS)
    assert found.task == "boxes"
    assert {each.estimate.count for each in found.frames} == {3}
    assert {each.measure for each in found.frames} == {"change"}
    flicker = curve(found, "change", "previous")
    assert sum(flicker) / len(flicker) == pytest.approx(found.estimate("flicker", "hendrycks2019").value)


def parts(count: int = 12) -> tuple[Session, list[Part]]:
    images = ramps(count) + torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0)) / 50
    session = Session.start(lambda batch: scores(position(batch) % 2), images[:1], AuditOptions(**OPTIONS), labelled=False)
    blocks = torch.arange(count).split(4)
    return session, [session.part(images[block], None, indices=block) for block in blocks]


def test_parts_read_back_give_the_same_frames() -> None:
    session, found = parts()
    again = [from_tensors(to_tensors(each), maps=False) for each in found]
    whole = session.result(merge_parts(found))
    assert session.result(merge_parts(again)).frames == whole.frames != ()
    assert session.result(merge_parts(again, keep=5)).frames == whole.frames


def without_frames(part: Part) -> Part:
    tensors = {name: each for name, each in to_tensors(part).items() if not name.startswith("sum/frame/")}
    return from_tensors(tensors)


def test_parts_of_earlier_versions_are_read_and_never_mixed_in() -> None:
    session, found = parts()
    old = [without_frames(each) for each in found]
    whole = session.result(merge_parts(old))
    assert (whole.frames, whole.rows) == ((), session.result(merge_parts(found)).rows)
    assert not any("earlier version" in note for note in whole.notes)
    for mixed in ([old[0], *found[1:]], [*found[:2], old[2]]):
        whole = session.result(merge_parts(mixed))
        assert whole.frames == ()
        assert any("an earlier version of shiftscope measured some" in note for note in whole.notes)


@pytest.mark.parametrize(
    "damage", [lambda sums: sums[:-1], lambda sums: sums[None], lambda sums: None], ids=["short", "deep", "missing"]
)
def test_sums_of_another_shape_are_no_part(damage: Callable[[Tensor], Tensor | None]) -> None:
    tensors = to_tensors(parts(4)[1][0])
    name = "sum/frame/hendrycks2019/mcs/previous/square"
    changed = damage(tensors.pop(name))
    with pytest.raises(ValueError, match="for each frame"):
        from_tensors({**tensors, **({} if changed is None else {name: changed})})


@pytest.mark.parametrize(
    ("name", "value"), [("images", torch.nan), ("images", torch.inf), ("images", 1.0), ("count", torch.nan), ("count", -1.0)]
)
def test_numbers_of_images_that_cannot_be_are_no_part(name: str, value: float) -> None:
    tensors = to_tensors(parts(4)[1][0])
    tensors[f"sum/frame/hendrycks2019/mcs/previous/{name}"] += value - 4
    with pytest.raises(ValueError, match="for each frame"):
        from_tensors(tensors)


@pytest.mark.parametrize("key", ["mcr/previous", "mcs/former"])
def test_frames_of_an_unknown_name_are_no_part(key: str) -> None:
    tensors = to_tensors(parts(4)[1][0])
    renamed = {name.replace("hendrycks2019/mcs/previous", f"hendrycks2019/{key}"): each for name, each in tensors.items()}
    with pytest.raises(ValueError, match="for each frame"):
        from_tensors(renamed)


def test_paths_of_different_lengths_are_not_merged() -> None:
    one = parts(4)[1][0]
    short = {key: {name: each[:3] if each.ndim else each for name, each in sums.items()} for key, sums in one.frames.items()}
    with pytest.raises(InputError, match="paths of different lengths"):
        merge_parts([one, Part(frames=short)])


MODEL = """
import torch

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10))
"""


def test_shards_equal_one_run_and_the_folder_holds_the_frames(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    noise = torch.rand(70, 14, 14, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    data = str(tmp_path / "photos")
    spec = AuditSpec(model=f"{tmp_path / 'net.py'}:network", data=data, size=14, images=70, protocols=("hendrycks2019",))
    whole = run_audit(spec)
    out = tmp_path / "out"
    for shard in (2, 1):
        run_shard(AuditJob(spec, shard, 2, out))
    assert merge_audit(out).frames == whole.frames != ()
    assert read_audit(out).frames == whole.frames
    lines = (out / "frames.csv").read_text().splitlines()
    assert lines[0].startswith("protocol,frame,down,right,compared_with,top1_change,top1_change_low,top1_change_high,mcs")
    assert len(lines) == 1 + len(whole.frames) / 2
    tensors = {name: each for name, each in load_file(part_file(out, 1)).items() if not name.startswith("sum/frame/")}
    write_checked_tensors(part_file(out, 1), tensors)
    assert merge_audit(out).frames == ()
    assert json.loads((out / "audit.json").read_text())["frames"] == []


def test_page_draws_each_path_with_a_line_for_each_comparison() -> None:
    found = audit(lambda batch: scores((position(batch) >= 6).long()), ramps(), **OPTIONS)
    charts = [each for each in audit_page(found).sections if isinstance(each, Chart)]
    assert [each.title for each in charts] == [
        "Top-1 change, frame by frame (hendrycks2019)",
        "Mean cosine similarity, frame by frame (hendrycks2019)",
    ]
    assert charts[0].caption == "From 4 pixels left (frame 1) to 4 pixels right (frame 9), with 95 % intervals."
    drawn = draw_chart(charts[0])
    assert drawn is not None
    assert [name for _, name in drawn.legend] == ["against the frame before", "against the unshifted image"]
    assert drawn.svg.count("<circle") == 9 + 8
    assert "against the frame before\nframe 4\ntop-1 change 1.000" in drawn.svg


@pytest.mark.parametrize(
    ("task", "words"),
    [("answers", " Change: 1 less the same answer, with answers moved back by the shift.")],
)
def test_page_says_what_the_change_of_a_task_is(task: str, words: str) -> None:
    found = audit(lambda batch: [str(each) for each in position(batch).tolist()], ramps(), task=task, **OPTIONS)
    chart = next(each for each in audit_page(found).sections if isinstance(each, Chart))
    assert chart.title == "Change, frame by frame (hendrycks2019)"
    assert chart.caption.endswith(words)


def test_audit_without_a_path_has_no_frames() -> None:
    found = audit(lambda batch: scores(position(batch) % 2), ramps(), protocols=["mouton2020"], size=SIZE, max_shift=2)
    assert (found.frames, found.frame_table().rows) == ((), ())
