"""Trackers hold the numbers of an audit or a table: TensorBoard, MLflow, and W&B and trackio offline where they are installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers
from shiftscope import Audit, InputError, audit
from shiftscope.estimates import Estimate
from shiftscope.integrations import log
from shiftscope.integrations.loggers import named_numbers
from shiftscope.integrations.watching import Watch
from shiftscope.tables import Table

IMAGES = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(0))
FACTORS = tuple({"factor": factor, "seeds": 2, "mcs": Estimate(factor / 10, 0.1, 0.9, 50), "note": "x"} for factor in (2, 4))


@pytest.fixture(scope="module")
def found() -> Audit:
    return audit(helpers.network(), IMAGES, protocols=["mouton2020"], max_shift=2)


def test_numbers_of_an_audit_are_those_of_its_rows_and_of_callbacks(found: Audit) -> None:
    numbers = named_numbers(found)
    estimate = found.estimate("mcs", "mouton2020")
    assert [numbers[f"shift/mouton2020/mcs{end}"] for end in ("", "_low", "_high")] == [
        estimate.value,
        estimate.low,
        estimate.high,
    ]
    assert len(numbers) == 3 * len(found.rows)
    watched = Watch(IMAGES, options={"max_shift": 2}).numbers(helpers.network())
    assert watched == {name: number for name, number in numbers.items() if name in watched} and len(watched) == len(found.rows)


@pytest.mark.parametrize(
    ("columns", "rows", "names"),
    [
        (("factor", "seeds", "mcs"), FACTORS, {"t/factor_2/seeds", "t/factor_2/mcs", "t/factor_4/mcs"}),
        (("note", "mcs"), FACTORS[:1], {"t/x/mcs"}),
        (("note", "mcs"), FACTORS, {"t/1_x/mcs", "t/2_x/mcs"}),  # rows that only their place tells apart
        (("name", "loss"), ({"name": "a/b, c", "loss": 1.5}, {"name": "d", "loss": None}), {"t/a_b_c/loss"}),
        (("mcs",), ({"mcs": FACTORS[0]["mcs"]},), {"t/mcs"}),
    ],
)
def test_numbers_of_a_table_are_named_by_row_and_column(
    columns: tuple[str, ...], rows: tuple[dict[str, Any], ...], names: set[str]
) -> None:
    only = tuple({name: row[name] for name in columns} for row in rows)
    found = named_numbers(Table("T", columns, only), "t")
    assert names <= found.keys()
    assert {name.removesuffix("_low").removesuffix("_high") for name in found} - names <= {"t/factor_4/seeds"}
    assert all(math.isfinite(number) for number in found.values())


def test_tensorboard_holds_every_number_at_its_step(found: Audit, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `trackers` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        logged = log(found, writer, step=1)
        log(found, writer, step=3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(logged)
    for name, number in logged.items():
        assert [(each.step, each.value) for each in events.Scalars(name)] == [
            (step, pytest.approx(number, rel=1e-6)) for step in (1, 3)
        ]


@pytest.mark.filterwarnings("default")  # MLflow's own
def test_mlflow_holds_every_number_in_its_file_store(found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow", reason="the extra `trackers` is not installed")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("shifts")
    with mlflow.start_run() as run:
        logged = log(found, mlflow, step=2)
        log(Table("T", ("factor", "mcs"), FACTORS), mlflow, prefix="study")
    metrics = mlflow.get_run(run.info.run_id).data.metrics
    assert {name: metrics[name] for name in logged} == logged
    assert metrics["study/factor_4/mcs_high"] == 0.9
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "shift/mouton2020/mcs")
    assert [each.step for each in history] == [2]


@pytest.mark.filterwarnings("default")
def test_wandb_takes_every_number_offline(found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: 100 MB, for one call of `run.log`")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(tmp_path), project="shifts") as run:
        logged = log(found, run, step=1)
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()
    assert all(name.encode() in content and json.dumps(number).encode() in content for name, number in logged.items())


@pytest.mark.filterwarnings("default")
def test_trackio_holds_every_number(found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trackio = pytest.importorskip("trackio", reason="trackio is not installed: it brings gradio, 170 MB")
    trackio.init(project="shifts", name="one")
    logged = log(found, trackio, step=1)
    trackio.finish()
    from trackio.sqlite_storage import SQLiteStorage

    (row,) = SQLiteStorage.get_logs("shifts", "one")
    assert {name: row[name] for name in logged} == logged


def test_what_is_no_tracker_is_refused(found: Audit) -> None:
    with pytest.raises(InputError, match="`to` must be a tracker's object, got str"):
        log(found, "tensorboard")
