"""An audit that measures every shift of a grid gives the radii that `certify` gives, however its parts were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classifiers import random_case
from detectors import scenes, snapping
from shiftscope import Audit, InputError, audit, certify
from shiftscope.audits import AuditOptions, Part, Session, merge_parts
from shiftscope.audits.folder import AuditSpec, merge_audit
from shiftscope.audits.job import AuditJob, run_audit, run_shard
from shiftscope.audits.protocols import Protocol, every_shift, mouton2020, myburgh2021
from shiftscope.audits.reading import read_audit
from shiftscope.audits.stored import from_tensors, to_tensors
from shiftscope.estimates import proportion
from shiftscope.report import Chart
from shiftscope.report.audit import audit_page
from shiftscope.report.charts import draw_chart

EVERY = ("every-shift", "myburgh2021")


def circular(reach: int) -> Protocol:
    return Protocol("rolled", reach, "circular", 0, drawn=0, surveyed=(("mcs", "all"),))


def same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and torch.equal(one.long(), other)


@pytest.mark.parametrize("seed", [0, 2, 4, 5])
def test_radii_equal_those_of_certify(seed: int) -> None:
    """The model is random, dense or direct, with ties; images may be larger than its input, and the border is the background."""
    case = random_case(seed)
    reach, size, fill = case.options["radius"], case.size, case.options["fill"]
    labels = torch.arange(len(case.images)) % 2
    found = audit(case.model, case.images, labels, protocols=[*EVERY, circular(reach)], max_shift=reach, size=size, fill=fill)
    assert list(found.certificates) == [f"zero {reach}", f"circular {reach}"]
    for name, curve in found.certificates.items():
        expected = certify(case.model, case.images, labels, radius=reach, mode=name.split()[0], size=size, fill=fill)
        assert same(curve.radii, expected.radii)
        assert curve.border == expected.border
        for radius in range(reach + 1):
            assert curve.unchanged(radius) == expected.unchanged(radius) == proportion(expected.radii >= radius)
            assert (
                curve.certified(radius) == expected.certified(radius) == proportion(expected.right & (expected.radii >= radius))
            )


def close_call(classes: int = 3) -> tuple[nn.Module, Tensor]:
    """Return a network that runs densely, two of whose outputs are nearly equal at every shift, and images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
    with torch.no_grad():
        model[4].weight[1] = model[4].weight[0] * (1 + 1e-4)
        model[4].bias[1] = model[4].bias[0]
        model[4].bias[2] = -10
    return model.eval(), torch.rand(9, 1, 14, 14)


def test_answers_too_close_to_call_are_computed_again() -> None:
    model, images = close_call()
    found = audit(model, images, protocols=["every-shift"], max_shift=2)
    assert found.cost.dense == len(images)
    assert same(found.certificates["zero 2"].radii, certify(model, images, radius=2).radii)
    assert same(found.certificates["zero 2"].radii, certify(model, images, radius=2, method="direct").radii)


def small() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3)).eval()
    return model, torch.rand(150, 1, 12, 12), torch.randint(3, (150,))


def test_exhaustive_grids_need_no_further_pass() -> None:
    calls = []

    def model(images: Tensor) -> Tensor:
        calls.append(len(images))
        return torch.stack([images.amax((1, 2, 3)), images.mean((1, 2, 3)) + 0.5], dim=1)

    images = torch.rand(5, 1, 8, 8)
    found = audit(model, images, protocols=["every-shift"], max_shift=2)
    assert sum(calls) == found.cost.forward + found.cost.checks
    assert found.cost.forward == 5 * 25
    assert found.cost.checks <= 3 + 4  # looks at the output, its type and what it depends on, as without certificates
    assert found.certificates["zero 2"].counts.total == 5


@pytest.mark.parametrize("keep", [None, 50])
def test_parts_merge_to_the_same_curve(keep: int | None) -> None:
    model, images, labels = small()
    session = Session.start(model, images[:1], AuditOptions(protocols=EVERY, max_shift=3), labelled=True)
    numbers = torch.arange(len(images)).split(40)
    parts = [from_tensors(to_tensors(session.part(images[each], labels[each], indices=each)), maps=False) for each in numbers]
    found = session.result(merge_parts(parts, keep=keep)).certificates["zero 3"]
    expected = certify(model, images, labels, radius=3)
    assert found.counts.images.tolist() == [0, *torch.bincount(expected.radii + 1, minlength=5).tolist()]
    assert [found.certified(radius) for radius in range(4)] == [expected.certified(radius) for radius in range(4)]
    assert found.radii is None if keep else same(found.radii, expected.radii)


def test_parts_of_an_earlier_version_give_no_certificate() -> None:
    model, images, labels = small()
    session = Session.start(model, images[:1], AuditOptions(protocols=EVERY, max_shift=2), labelled=True)
    parts = [session.part(images[each], labels[each], indices=each) for each in torch.arange(100).split(50)]
    old = {name: each for name, each in to_tensors(parts[0]).items() if not name.startswith("each/radius/")}
    found = session.result(merge_parts([from_tensors(old), parts[1]]))
    assert not found.certificates
    assert any("Radii are not shown" in note for note in found.notes)
    assert not session.result(merge_parts([from_tensors(old)])).certificates


@pytest.mark.parametrize(
    "changed",
    [lambda radii: radii + 9, lambda radii: radii - 9, lambda radii: radii.float(), lambda radii: radii[1:]],
    ids=["beyond", "below", "no integers", "too few"],
)
def test_damaged_radii_are_no_part(changed: Any) -> None:
    model, images, labels = small()
    session = Session.start(model, images[:1], AuditOptions(protocols=EVERY, max_shift=2), labelled=True)
    tensors = to_tensors(session.part(images[:4], labels[:4], indices=torch.arange(4)))
    with pytest.raises(ValueError, match="a part"):
        from_tensors({**tensors, "each/radius/zero 2": changed(tensors["each/radius/zero 2"])})


@pytest.mark.parametrize(
    "options", [{"protocols": ["mouton2020", "zhang2019"]}, {"protocols": ["every-shift"], "embedding": True}]
)
def test_samples_and_embeddings_give_no_certificate(options: dict[str, Any]) -> None:
    model, images, _ = small()
    found = audit(model, images[:4], max_shift=2, **options)
    assert not found.certificates
    assert found.to_json()["certificates"] == {}
    assert not found.certificate_table().rows
    assert not any("every shift of up to" in note for note in found.summary().notes)


def whole() -> Audit:
    model, images, labels = small()
    return audit(model, images[:30], labels[:30], protocols=["every-shift", circular(2)], max_shift=2)


def test_file_and_page_hold_the_curve(tmp_path: Path) -> None:
    found = whole()
    (tmp_path / "audit.json").write_text(json.dumps(found.to_json()))
    again = read_audit(tmp_path)
    assert again.certificates.keys() == found.certificates.keys()
    for name, curve in again.certificates.items():
        assert same(curve.radii, found.certificates[name].radii.long())
        assert curve.table() == found.certificates[name].table()
    charts = [each for each in audit_page(found).sections if isinstance(each, Chart) and each.x == "radius"]
    grids = [each.title.partition(": ")[2] for each in charts]
    words = ("the background comes in", "what left comes in on the other side")
    assert grids == [f"shifts of up to 2 pixels, {each}" for each in words]
    drawing = draw_chart(charts[0])
    assert drawing is not None
    assert [meaning for _, meaning in drawing.legend] == ["keep their answer", "are answered right"]
    assert sum("of images keep their answer at every" in note for note in found.summary().notes) == 2


@pytest.mark.parametrize("field", ["images", "radii", "right", "curve"])
def test_file_whose_counts_disagree_is_refused(field: str, tmp_path: Path) -> None:
    content = whole().to_json()
    listed = content["certificates"]["zero 2"][field]
    content["certificates"]["zero 2"][field] = listed[:-1] if field != "right" else [each + 1 for each in listed]
    (tmp_path / "audit.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="holds no audit"):
        read_audit(tmp_path)


@pytest.mark.slow
def test_shards_write_the_curve_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "certified_models.py").write_text(
        "import torch\nfrom torch import nn\n\ndef small():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 81, 10)).eval()\n"
    )
    settings = {"model": "certified_models:small", "size": 20, "data": "digits", "images": 130, "max_shift": 2}
    spec = AuditSpec(**settings, protocols=("every-shift",), trust=True)
    one = run_audit(spec)
    for shard in (2, 1):
        run_shard(AuditJob(spec, shard, 2, tmp_path / "a"))
    merged = merge_audit(tmp_path / "a")
    assert merged.certificates["zero 2"].table() == one.certificates["zero 2"].table()
    assert (tmp_path / "a" / "certificates.csv").read_text() == one.certificate_table().to_csv()
    assert merge_parts([Part()]).radius_counts == {}


@pytest.mark.parametrize("task", ["boxes", "embedding:kept=0.95", "segmentation:kept=0.9", "answers"])
def test_grids_of_tasks_equal_certify(task: str) -> None:
    """Another protocol reaches further, which must not change which objects a grid's shifts cut."""
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "boxes": snapping(8),
        "embedding:kept=0.95": nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(256, 5)).eval(),
        "segmentation:kept=0.9": nn.Sequential(nn.MaxPool2d(4), nn.Upsample(scale_factor=4), nn.Conv2d(1, 3, 1)).eval(),
        "answers": lambda images: images.amax((2, 3)).mul(3 + images.mean((2, 3))).long()[:, 0],
    }
    model, (images, _) = models[task], scenes(4, margin=2)
    protocols = [every_shift(2), myburgh2021(2), circular(2), mouton2020(6)]
    found = audit(model, images, protocols=protocols, task=task)
    assert list(found.certificates) == ["zero 2", "circular 2"]
    for name, curve in found.certificates.items():
        expected = certify(model, images, radius=2, mode=name.split()[0], task=task)
        assert same(curve.radii, expected.radii)
        assert curve.rule == expected.rule
        assert curve.rule in curve.words() or "No image" in curve.words()
