"""The page of an audit shows what the model answers, as the model itself answers it, and nothing that a file smuggles in."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from shiftscope.audits import Audit
from shiftscope.audits.folder import AuditSpec
from shiftscope.audits.job import open_audited, run_audit
from shiftscope.audits.pictures import PICTURES, Picture, pictures_of, read_pictures, write_pictures
from shiftscope.audits.subject import Subject
from shiftscope.estimates import Estimate
from shiftscope.report import Chart, Drag, Maps
from shiftscope.report.audit import audit_page
from shiftscope.report.audit_drag import DRAG, drag_of, read_drag, write_drag
from shiftscope.report.write import add_pictures, write_audit_page
from shiftscope.shifts import grid, translate

#: Two classes by whether the left half is brighter, so that a shift can change the answer; the third never wins.
FACTORY = """
import torch
from torch import nn

class Sides(nn.Module):
    def forward(self, images):
        half = images.shape[3] // 2
        left, right = images[..., :half].mean((1, 2, 3)), images[..., half:].mean((1, 2, 3))
        return 20 * torch.stack([left, right, left - 1], dim=1)

def sides():
    return Sides()
"""
HOSTILE = "b<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Audit]:
    """An audit of photos in which a bright bar lies left or right of the middle."""
    folder = tmp_path_factory.mktemp("sides")
    (folder / "sides.py").write_text(FACTORY)
    photos = folder / "photos"
    photos.mkdir()
    for number, name in enumerate(("a.png", HOSTILE, "c.png", "d.png", "e.png")):
        pixels = np.full((16, 16, 3), 20, np.uint8)
        pixels[:, 2 + 2 * number : 5 + 2 * number] = 250
        Image.fromarray(pixels).save(photos / name)
    spec = AuditSpec(
        model=f"{folder / 'sides.py'}:sides", data=str(photos), size=16, images=5, max_shift=4, protocols=("every-shift",)
    )
    subject = open_audited(spec)
    return subject, run_audit(spec, subject=subject)


@pytest.fixture(scope="module")
def pictures(audited: tuple[Subject, Audit]) -> list[Picture]:
    subject, audit = audited
    return pictures_of(subject, audit.changed)


@pytest.fixture(scope="module")
def drag(audited: tuple[Subject, Audit]) -> Drag:
    found = drag_of(*audited)
    assert found is not None
    return found


def decoded(url: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("RGB"))


def test_picture_shows_views_and_answers_of_the_model(audited: tuple[Subject, Audit], pictures: list[Picture]) -> None:
    subject, audit = audited
    by_name = {subject.images.name(each.image): each for each in audit.changed}
    for picture in pictures:
        changed = by_name[picture.file]
        centre = subject.images.read(changed.image, changed.image + 1).images
        centre = centre[..., *(slice((centre.shape[2] - 16) // 2, (centre.shape[2] + 16) // 2),) * 2]
        assert np.array_equal(decoded(picture.before.picture), centre[0].mul(255).round().byte().permute(1, 2, 0).numpy())
        likely = subject.model(centre).softmax(1)[0]
        assert picture.before.name == f"class {int(likely.argmax())}"
        assert picture.before.probability == pytest.approx(float(likely.max()), abs=1e-6)
        assert (picture.before.name, picture.after.name) == (f"class {changed.before}", f"class {changed.after}")


def test_pictures_with_changed_answers_come_first(pictures: list[Picture]) -> None:
    order = [each.changes for each in pictures]
    assert order == sorted(order, reverse=True)
    assert any(order)


def test_drag_answers_as_the_model_on_shifted_images(audited: tuple[Subject, Audit], drag: Drag) -> None:
    subject, shifts = audited[0], grid(drag.reach)
    outputs = drag.networks[0].outputs
    for number, image in enumerate(drag.images):
        views = translate((image / 255).expand(len(shifts), -1, -1, -1), shifts)
        likely = subject.model(views).softmax(1)
        shown = [int(name.removeprefix("class ")) for name in drag.classes]
        torch.testing.assert_close(outputs.values[number].exp(), likely[:, shown], rtol=1e-4, atol=1e-5)
        assert [shown[top] for top in outputs.values[number].argmax(1)] == likely.argmax(1).tolist()


def test_drag_and_pictures_are_read_as_they_were_written(tmp_path: Path, drag: Drag, pictures: list[Picture]) -> None:
    write_pictures(tmp_path, pictures)
    write_drag(tmp_path, drag, 5)
    found = read_drag(tmp_path)
    assert read_pictures(tmp_path) == pictures
    assert found is not None
    assert (found.classes, found.reach, found.caption) == (drag.classes, drag.reach, drag.caption)
    assert torch.equal(found.networks[0].outputs.values, drag.networks[0].outputs.values)


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "https://example.org/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,"onload="x'],
)
def test_picture_from_elsewhere_is_not_read(tmp_path: Path, pictures: list[Picture], url: str) -> None:
    content = [each.model_dump(mode="json") for each in pictures]
    content[0]["before"]["picture"] = url
    (tmp_path / PICTURES).write_text(json.dumps(content))
    assert read_pictures(tmp_path) == []


def test_drag_of_other_shapes_is_not_read(tmp_path: Path, drag: Drag) -> None:
    write_drag(tmp_path, drag, 5)
    tensors = load_file(tmp_path / DRAG)
    save_file({**tensors, "cosines": tensors["cosines"][:, :-1].contiguous()}, tmp_path / DRAG, metadata={"classes": "[]"})
    assert read_drag(tmp_path) is None
    (tmp_path / DRAG).write_bytes(b"no tensors")
    assert read_drag(tmp_path) is None


def test_page_has_pictures_and_escapes_names(tmp_path: Path, audited: tuple[Subject, Audit]) -> None:
    subject, audit = audited
    add_pictures(tmp_path, subject, audit)
    page = write_audit_page(audit, tmp_path).read_text()
    assert page.count('class="pair"') == 5
    assert "<img src=x" not in page
    assert "b&lt;img src=x onerror=alert(1)&gt;.png" in page
    assert "Drag the image" in page


@pytest.mark.parametrize(("before", "after"), [(None, "cat"), ("cat", None), ("", "cat")])
def test_page_shows_an_answer_beside_none(
    tmp_path: Path, audited: tuple[Subject, Audit], pictures: list[Picture], before: str | None, after: str | None
) -> None:
    first = pictures[0]
    changes = {
        side: getattr(first, side).model_copy(update={"name": name}) for side, name in (("before", before), ("after", after))
    }
    write_pictures(tmp_path, [first.model_copy(update=changes)])
    page = write_audit_page(audited[1], tmp_path).read_text()
    shown = re.findall(r'<strong dir="auto">(.*?)</strong></div>', page)
    assert [each.partition(",")[0] for each in shown] == ["no answer" if name is None else name for name in (before, after)]


def test_headings_name_shifts_in_words_where_a_page_has_several_grids(audited: tuple[Subject, Audit]) -> None:
    audit = audited[1]
    survey = audit.surveys["zero 4"]
    alone, both = (
        [each for each in audit_page(replace(audit, surveys=surveys)).sections if isinstance(each, Maps)]
        for surveys in ({"zero 4": survey}, {"zero 4": survey, "circular 1": survey})
    )
    assert [each.title for each in alone] == ["Sensitivity map"]
    assert alone[0].caption.endswith("Shifts of up to 4 pixels, the background comes in.")
    assert [each.title for each in both] == [
        "Sensitivity map: shifts of up to 4 pixels, the background comes in",
        "Sensitivity map: shifts of up to 1 pixel, what left comes in on the other side",
    ]


def test_chart_over_distance_has_no_interval_where_nothing_moves(audited: tuple[Subject, Audit]) -> None:
    chart = next(each for each in audit_page(audited[1]).sections if isinstance(each, Chart) and each.x == "distance")
    unmoved, moved = (row[chart.measure] for row in chart.table.rows[:2])
    assert isinstance(unmoved, Estimate) and isinstance(moved, Estimate)
    assert unmoved.low == unmoved.high == pytest.approx(1)
    assert moved.low < moved.value
