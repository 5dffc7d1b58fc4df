"""Callbacks measure every few epochs, log what an audit of the same model says, and leave the training alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import helpers
import zoo
from shiftscope import InputError, audit
from shiftscope.integrations.watching import Watch

IMAGES = torch.rand(12, 1, 20, 20, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10
NAMES = {f"shift/{name}" for name in ("unshifted/accuracy", "mouton2020/mcs", "mouton2020/top1_change")}


def expected(model: nn.Module) -> dict[str, float]:
    found = audit(model, IMAGES, LABELS, protocols=["mouton2020"], max_shift=2)
    return {f"shift/{row.protocol}/{row.measure}": row.estimate.value for row in found.rows}


def test_watch_is_due_every_few_epochs() -> None:
    assert [epoch for epoch in range(8) if Watch(IMAGES, every=3).due(epoch)] == [3, 6]
    with pytest.raises(InputError, match="`every` must be 1 or more epochs, got 0"):
        Watch(IMAGES, every=0)


def test_lightning_logs_numbers_of_every_second_epoch(tmp_path: Path) -> None:
    zoo.importable("lightning", "lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning.pytorch import LightningModule, Trainer
        from lightning.pytorch.callbacks import Callback

        from shiftscope.integrations import ShiftCallback

        class Module(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = helpers.network()

            def forward(self, images: Tensor) -> Tensor:
                return self.model(images)

            def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), 0.1)

        class Seen(Callback):
            def __init__(self) -> None:
                self.epochs: dict[int, dict[str, float]] = {}

            def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                assert pl_module.training
                if "shift/mouton2020/mcs" in trainer.callback_metrics:
                    logged = {name: float(each) for name, each in trainer.callback_metrics.items() if name in NAMES}
                    self.epochs[trainer.current_epoch] = logged
                    assert logged == pytest.approx(expected(pl_module), abs=1e-6) or trainer.current_epoch % 2 == 0

        seen, module = Seen(), Module()
        watch = ShiftCallback(IMAGES, LABELS, every=2, max_shift=2)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=4, accelerator="cpu", callbacks=[watch, seen], default_root_dir=tmp_path, **quiet)
        trainer.fit(module, torch.utils.data.DataLoader(list(zip(IMAGES, LABELS, strict=True)), batch_size=6))
    assert min(seen.epochs) == 1
    assert set(seen.epochs[1]) == NAMES
    assert seen.epochs[1] != seen.epochs[3]


def test_trainer_of_hugging_face_logs_numbers_of_every_second_epoch(tmp_path: Path) -> None:
    zoo.importable("transformers", "transformers")
    zoo.importable("accelerate", "trainer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

        from shiftscope.integrations import ShiftTrainerCallback

        torch.manual_seed(0)
        config = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=10)
        model = ResNetForImageClassification(config)
        settings = TrainingArguments(
            str(tmp_path), num_train_epochs=4, per_device_train_batch_size=6, report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        examples = [{"pixel_values": image, "labels": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)]
        trainer = Trainer(model, settings, train_dataset=examples)
        trainer.add_callback(ShiftTrainerCallback(trainer, IMAGES, LABELS, every=2, max_shift=2))
        trainer.train()
        logged = [each for each in trainer.state.log_history if "shift/mouton2020/mcs" in each]
        assert [each["epoch"] for each in logged] == [2.0, 4.0]
        assert {name: logged[-1][name] for name in NAMES} == pytest.approx(expected(model), abs=1e-6)
