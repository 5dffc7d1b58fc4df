"""Features are not read as classes: models that return them say so, in every function, and files keep what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.audits.comparison import compare_audits
from shiftscope.audits.folder import AuditSpec
from shiftscope.audits.job import run_audit
from shiftscope.engine.task_trials import returns_embeddings
from shiftscope.errors import InputError
from shiftscope.explanations.explanation import Explanation
from shiftscope.models import load_model
from shiftscope.models.spec import ModelSpec, save_model
from shiftscope.surgery import Average
from shiftscope.tasks import find_task
from shiftscope.tasks.dense_values import is_one_value_map
from zoo import timm


class Backbone(nn.Module):
    """Returns features of length 1, as a timm model without a head describes itself."""

    def __init__(self, *, said: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 6, 3, 2)
        if said:
            self.num_classes, self.pretrained_cfg = 0, {"mean": (0.5,), "std": (0.5,)}

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.layer(images).relu().mean((2, 3)) - 0.1, dim=1)


def photos(count: int = 12, size: int = 20) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_model_that_only_contains_a_backbone_says_nothing() -> None:
    assert returns_embeddings(Backbone())
    assert returns_embeddings(nn.Sequential(nn.Identity(), Backbone()))
    assert not returns_embeddings(nn.Sequential(Backbone(), nn.Linear(6, 3)))
    assert not returns_embeddings(Backbone(said=False))
    assert returns_embeddings(Backbone(said=False), "image_embeds")


def test_headless_timm_model_of_a_function_is_measured_as_an_embedding() -> None:
    model = timm().create_model("resnet10t", num_classes=0).eval()
    found = ss.audit(model, torch.rand(4, 3, 64, 64), torch.zeros(4, dtype=torch.long), protocols=["mouton2020"])
    assert {row.measure for row in found.rows} == {"mcs"}


def test_every_function_knows_what_a_backbone_returns() -> None:
    model, images = Backbone().eval(), photos()
    labels = torch.arange(12) % 3
    assert {row.measure for row in ss.audit(model, images, labels).rows} == {"mcs"}
    with pytest.raises(
        InputError, match=r"a certificate needs classes, but the model returns embeddings. Certify them with --task embedding"
    ):
        ss.certify(model, images, radius=1)
    explained = ss.explain(model, images, labels, max_shift=2)
    assert isinstance(explained, Explanation)
    assert explained.causes.before.accuracy is None
    fixed = ss.fix(model, images, kinds="average", max_shift=2)
    expected = Average(model, task=find_task("embedding"))(images[:3])
    torch.testing.assert_close(fixed.model(images[:3]), expected)
    assert (fixed.model(images[:3]).exp().sum(1) - 1).abs().min() > 0.1  # no softmax over features


def test_fix_takes_features_of_any_model() -> None:
    images = photos()
    told, named = (ss.fix(Backbone(said=False).eval(), images, kinds="average", max_shift=2, **how) for how in HOWS)
    torch.testing.assert_close(told.model(images[:3]), named.model(images[:3]))


HOWS: tuple[dict[str, Any], ...] = ({"embedding": True}, {"task": "embedding"})


def test_outputs_of_length_1_that_are_read_as_classes_are_noted() -> None:
    note = "Outputs have length 1, as embeddings do"
    assert note in " ".join(ss.audit(Backbone(said=False).eval(), photos(), protocols=["mouton2020"]).notes)
    one_hot = nn.Sequential(nn.Flatten(), nn.Linear(400, 3), nn.Softmax(1)).eval()
    assert note not in " ".join(ss.audit(one_hot, photos(), protocols=["mouton2020"]).notes)


@pytest.mark.parametrize(
    ("settings", "measures"), [({"embedding": True}, {"mcs"}), ({"task": "embedding"}, {"mcs", "retrieval"})]
)
def test_file_keeps_what_outputs_are(settings: dict[str, Any], measures: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(\n")
    with (tmp_path / "mine.py").open("a") as file:
        file.write("        torch.nn.Conv2d(1, 6, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n")
    spec = ModelSpec(factory=f"{tmp_path / 'mine.py'}:net", **settings)
    loaded = load_model(str(spec.factory))
    save_model(tmp_path / "model.safetensors", loaded.model, spec)
    found = run_audit(AuditSpec(model=str(tmp_path / "model.safetensors"), data="digits", images=8, size=20, trust=True))
    assert {row.measure for row in found.rows} >= measures
    assert "top1_change" not in {row.measure for row in found.rows}


def test_retrieval_among_other_numbers_of_images_is_not_compared() -> None:
    def found(count: int, size: int = 20) -> ss.Audit:
        return ss.audit(Backbone().eval(), photos(count, size), task="embedding", protocols=["mouton2020"], max_shift=2)

    def compared(one: ss.Audit, other: ss.Audit) -> set[str]:
        return {each.row.measure for each in compare_audits(one, other).measures}

    assert "retrieval" in compared(found(12), found(12))
    assert compared(found(12), found(8)) == {"mcs"}
    assert compared(found(30, 96), found(30, 98)) == {"mcs"}  # blocks of 64 and of 16 images


@pytest.mark.parametrize(("shape", "depth"), [((197, 192), False), ((224, 224), True), ((112, 112), True), ((75, 75), True)])
def test_tokens_are_no_depth(shape: tuple[int, int], depth: bool) -> None:
    assert is_one_value_map(torch.rand(1, *shape), 1, (224, 224)) == depth
    assert is_one_value_map(torch.rand(1, 1, *shape), 1, (224, 224))


def test_model_in_half_precision_says_what_helps() -> None:
    with pytest.raises(InputError, match=r"Its weights are float16, and images float32: convert it with `.float\(\)`"):
        ss.audit(Backbone().half().eval(), photos(), protocols=["mouton2020"])
