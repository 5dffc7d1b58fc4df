"""A study leaves complete records, resumes where it was killed, and reports impossible settings before it writes anything."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from shiftscope.audits.protocols import mouton2020
from shiftscope.datasets.dataset import load
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.explanations.layers import layer_responses
from shiftscope.models import load_model
from shiftscope.models.family import Network
from shiftscope.runtime.executors import JobReport, Work
from shiftscope.runtime.progress import Stage
from shiftscope.shifts import grid, translate
from shiftscope.studies import records
from shiftscope.studies.folder import read_folder
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import RunEnded, RunStarted, run_study
from shiftscope.studies.spec import Study
from shiftscope.studies.storage import unpack
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.loop import Epoch
from small import SMALL, TINY, Finished, one_thread

#: Together these take over 20 s.
pytestmark = pytest.mark.slow


def small(tmp_path: Path, text: str = SMALL) -> Study:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return load_study(str(path))


@pytest.fixture
def finished(trained: Finished, tmp_path: Path) -> Finished:
    """Return the same study in a folder that a test may change."""
    return replace(trained, out=Path(shutil.copytree(trained.out, tmp_path / "out")))


def test_study_estimates_over_seeds_and_images_and_keeps_all_files(trained: Finished) -> None:
    study, out, table = trained.study, trained.out, trained.table
    measured = ("test_accuracy", "mcs", "mcs_centred", "mcs_all_shifts", "top1_change", "worst_case")
    assert table.columns == ("factor", "seeds", "train_accuracy", *measured, "source_mcs")
    assert [row["factor"] for row in table.rows] == [1, 4]
    assert table.rows[1]["source_mcs"] == 0.5
    for row in table.rows:
        for name in measured:
            estimate = row[name]
            assert isinstance(estimate, Estimate)
            assert estimate.low <= estimate.value <= estimate.high
            assert (estimate.count, estimate.seeds) == (60, 2)
    assert (out / "table.csv").read_text() == table.to_csv()
    assert (out / "table.md").read_text() == table.to_markdown()
    assert len(list((out / "runs").iterdir())) == 4
    for folder in (out / "runs").iterdir():
        assert sorted(os.listdir(folder)) == ["history.json", "measures.safetensors.xz", "model.safetensors", "record.json"]
    assert any("seed=0: Did not reach 100 % train accuracy in 2 epochs" in note for note in table.notes)
    assert table.provenance["data_sha256"] == load(study.cells()[0].runs[0].data).checksum


def test_record_agrees_with_an_independent_measurement_of_its_weights(trained: Finished) -> None:
    """One image at a time, from the saved weights, with torch's own cosine similarity."""
    study, out = trained.study, trained.out
    run = study.cells()[1].runs[1]
    data = load(run.data)
    folder = out / "runs" / run.content_id(data.checksum)
    record = json.loads((folder / "record.json").read_text())
    network = Network(study.cells()[1].runs[1].network.model_validate(record["spec"]["network"])).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    shifts = mouton2020(6).draw(60)
    cosines, after_softmax, changes, right = [], [], [], []
    with torch.no_grad():
        for image, label, steps in zip(data.test.images, data.test.labels, shifts, strict=True):
            canvas = torch.nn.functional.pad(image[None].float() / 255, (6, 6, 6, 6))
            dy, dx = steps[0].tolist()
            before, after = network(canvas), network(canvas.roll((dy, dx), (2, 3)))  # the margin is empty: a roll is a shift
            cosines.append(torch.nn.functional.cosine_similarity(before, after).item())
            after_softmax.append(torch.nn.functional.cosine_similarity(before.softmax(1), after.softmax(1)).item())
            changes.append(before.argmax().item() != after.argmax().item())
            right.append(before.argmax().item() == label.item())
    assert record["results"]["mcs"]["value"] == pytest.approx(sum(cosines) / 60, abs=1e-5)
    assert record["results"]["top1_change"]["value"] == pytest.approx(sum(changes) / 60)
    assert record["results"]["test_accuracy"]["value"] == pytest.approx(sum(right) / 60)
    loaded = records.load(folder)
    assert loaded is not None
    assert loaded.values["mcs_softmax"].mean().item() == pytest.approx(sum(after_softmax) / 60, abs=2e-4)
    assert loaded.maps["mcs"].shape == (13 * 13,)
    assert loaded.maps["mcs"].mean().item() == pytest.approx(record["results"]["mcs_all_shifts"]["value"], abs=2e-4)
    assert loaded.maps["mcs"][13 * 13 // 2].item() == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        canvases = torch.nn.functional.pad(data.test.images.float() / 255, (6, 6, 6, 6))
        answers = torch.stack([network(canvases.roll(tuple(d), (2, 3))).argmax(1) for d in grid(6).tolist()])
    assert record["results"]["worst_case"]["value"] == pytest.approx((answers == data.test.labels).all(0).float().mean().item())
    history = json.loads((folder / "history.json").read_text())
    assert history["epoch"] == [1, 2]


def test_curves_and_layers_agree_with_an_independent_measurement(trained: Finished) -> None:
    study, out, table = trained.study, trained.out, trained.table
    curves = [line.split(",") for line in (out / "curves.csv").read_text().splitlines()]
    last = dict(zip(curves[0], curves[7], strict=True))
    assert (last["factor"], last["max_shift"], last["seeds"]) == ("1", "6", "2")
    every = table.rows[0]["mcs_all_shifts"]
    assert isinstance(every, Estimate)
    assert [float(last[name]) for name in ("mcs", "mcs_low", "mcs_high")] == pytest.approx(
        # Curves keep no values per image, so that what networks and images share counts twice in their intervals.
        [every.value, every.low, every.high],
        abs=0.01 * (every.high - every.low),
    )
    first = dict(zip(curves[0], curves[1], strict=True))
    assert float(first["mcs"]) == pytest.approx(1, abs=1e-6)
    assert float(first["top1_change"]) == 0
    data = load(study.cells()[1].runs[0].data)
    responses = []
    for run in study.cells()[1].runs:
        folder = out / "runs" / run.content_id(data.checksum)
        network = Network(run.network.model_validate(json.loads((folder / "record.json").read_text())["spec"]["network"]))
        network.load_state_dict(load_file(folder / "model.safetensors"))
        canvases = torch.nn.functional.pad(data.test.images.float() / 255, (6, 6, 6, 6))
        responses.append(layer_responses(network.eval(), canvases, mouton2020(6).draw(60)).layers)
    rows = [line.split(",") for line in (out / "layers.csv").read_text().splitlines()]
    listed = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row[0] == "4"]
    assert [row["layer"] for row in listed] == [layer.name for layer in responses[0]]
    for number, row in enumerate(listed):
        for name in ("similarity", "movement", "in_place"):
            expected = torch.stack([getattr(layers[number], name).double().mean() for layers in responses]).mean()
            assert float(row[name]) == pytest.approx(expected.item(), abs=1e-4)
    assert [row["layer"] for row in listed if row["homogeneity_pooled"]] == ["features.1", "features.4"]


def test_gains_list_homogeneity_and_difference_to_factor_1(trained: Finished) -> None:
    gained = read_folder(trained.out).gains()
    assert [row["factor"] for row in gained.rows] == [4]
    values = [row["mcs"] for row in trained.table.rows]
    assert gained.rows[0]["gain"].value == pytest.approx(values[1].value - values[0].value, abs=1e-6)
    rows = [line.split(",") for line in (trained.out / "layers.csv").read_text().splitlines()]
    pooled = [dict(zip(rows[0], row, strict=True))["homogeneity_pooled"] for row in rows[1:] if row[0] == "4"]
    assert gained.rows[0]["homogeneity"].value == pytest.approx(sum(float(each) for each in pooled if each) / 2, abs=1e-5)


def test_reuse_copies_the_finished_runs_of_another_study(trained: Finished, tmp_path: Path) -> None:
    shutil.copytree(trained.out, tmp_path / "studies" / "one")
    more, events = small(tmp_path, SMALL.replace('title = "Small"', 'title = "Larger"').replace("[1, 4]", "[1, 2, 4]")), []
    table = run_study(more, out=tmp_path / "two", reuse=tmp_path / "studies", report=events.append)
    ended = [(each.found, each.record.spec.network.factor) for each in events if isinstance(each, RunEnded)]
    assert sorted(ended) == [(False, 2)] * 2 + [(True, 1)] * 2 + [(True, 4)] * 2
    assert [table.rows[0], table.rows[2]] == list(trained.table.rows)
    name = next((tmp_path / "studies" / "one" / "runs").iterdir()).name
    ours, theirs = (tmp_path / part / "runs" / name for part in ("two", "studies/one"))
    assert {each.name: each.read_bytes() for each in ours.iterdir()} == {
        each.name: each.read_bytes() for each in theirs.iterdir()
    }
    with pytest.raises(InputError, match=r"`reuse` must be a folder, got .*nowhere. Give a study.s folder"):
        run_study(more, out=tmp_path / "three", reuse=tmp_path / "nowhere")


def test_table_says_which_cells_have_other_settings(trained: Finished, tmp_path: Path) -> None:
    overrides = "[[overrides]]\nof = { network.factor = 4 }\nsettings = { training.max_epochs = 2 }\n"  # as all have
    study = small(tmp_path, SMALL + overrides)
    run_study(study, out=tmp_path / "two", reuse=trained.out)
    assert "At subsampling factor 4: max epochs 2." in (tmp_path / "two" / "table.md").read_text()
    with pytest.raises(InputError, match=r"holds another study \(Small\): the settings of `overrides` differ"):
        run_study(small(tmp_path), out=tmp_path / "two")


def test_half_done_study_has_tables_of_its_finished_runs(
    trained: Finished, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = finished.study, finished.out
    whole = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".json"}
    assert read_folder(out).write_tables()
    assert {name: (out / name).read_bytes() for name in whole} == whole
    one = next(path for path in (out / "runs").iterdir() if json.loads((path / "record.json").read_text())["spec"]["seed"] == 1)
    shutil.rmtree(one)
    assert read_folder(out).write_tables()
    rows = (out / "table.csv").read_text().splitlines()
    assert sorted(row.split(",")[1] for row in rows[1:]) == ["1", "2"]
    text = (out / "table.md").read_text()
    assert "Unfinished study: 1 of 4 runs are missing." in text
    assert "1 to 2 trained networks in each row" in text
    assert "One seed in some rows" in text
    shutil.rmtree(out / "runs")
    assert not read_folder(out).write_tables()
    shutil.copytree(trained.out / "runs", out / "runs")
    monkeypatch.setattr("shiftscope.studies.folder.summarise", _full)
    run_study(study, out=out)
    plain = read_folder(out)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)\. Make room"):
        plain.write_tables()


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_finished_study_gives_the_same_table_again(finished: Finished) -> None:
    events: list[object] = []
    again = run_study(finished.study, out=finished.out, report=events.append)
    assert again == finished.table
    assert [event.found for event in events if isinstance(event, RunEnded)] == [True] * 4
    started = [event for event in events if isinstance(event, RunStarted)]
    assert [event.label for event in started][:2] == ["factor 1, seed 0", "factor 4, seed 0"]
    assert [event.done for event in started] == [0, 1, 2, 3]
    assert all(isinstance(event, Stage | RunStarted | RunEnded) for event in events)


@pytest.mark.parametrize("damage", ["record cut", "record of another run", "record without its seconds", "measures missing"])
def test_damaged_run_warns_and_is_computed_again(finished: Finished, damage: str) -> None:
    one, other, *_ = sorted((finished.out / "runs").iterdir())
    if damage == "record cut":
        content = (one / "record.json").read_bytes()
        (one / "record.json").write_bytes(content[: len(content) // 2])
    elif damage == "record of another run":
        (one / "record.json").write_bytes((other / "record.json").read_bytes())
    elif damage == "record without its seconds":
        record = json.loads((one / "record.json").read_text())
        (one / "record.json").write_text(json.dumps({**record, "provenance": {**record["provenance"], "seconds": ""}}))
    else:
        (one / "measures.safetensors.xz").unlink()
    with one_thread(), pytest.warns(UserWarning, match=r"record.json is damaged .* computed again"):
        assert run_study(finished.study, out=finished.out).to_csv() == finished.table.to_csv()


def test_record_of_an_older_version_is_measured_again_without_training(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out, first = finished.study, finished.out, finished.table
    for folder in (out / "runs").iterdir():
        older = json.loads((folder / "record.json").read_text())
        older["schema_version"] = 1
        del older["results"]["mcs_all_shifts"], older["results"]["worst_case"]
        (folder / "record.json").write_text(json.dumps(older))
        (folder / "measures.safetensors.xz").unlink()
    monkeypatch.setattr("shiftscope.studies.single_run.train", lambda *_, **__: pytest.fail("trained again"))
    with one_thread():
        again = run_study(study, out=out)
    assert again.to_csv() == first.to_csv()
    assert again.provenance["started"] == first.provenance["started"]
    assert "measured_with" in again.provenance


def test_measures_of_an_older_file_give_the_same_tables(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older files hold all bits, and no intervals; here of what the packed file holds."""
    study, out, first = finished.study, finished.out, finished.table.to_csv()
    layers = (out / "layers.csv").read_bytes()
    for folder in (out / "runs").iterdir():
        tensors = unpack((folder / "measures.safetensors.xz").read_bytes())
        save_file(
            {name: each for name, each in tensors.items() if not name.endswith(".interval")}, folder / "measures.safetensors"
        )
        (folder / "measures.safetensors.xz").unlink()
    monkeypatch.setattr("shiftscope.studies.single_run.train", lambda *_, **__: pytest.fail("trained again"))
    assert run_study(study, out=out).to_csv() == first
    assert (out / "layers.csv").read_bytes() == layers


def test_run_loads_as_a_model_without_its_record(finished: Finished) -> None:
    folder = next((finished.out / "runs").iterdir())
    record = records.head(folder)
    assert record is not None
    (folder / "record.json").unlink()
    loaded = load_model(str(folder))
    assert loaded.spec.network == record.spec.network
    assert loaded.spec.data == record.spec.data


def test_killed_study_resumes_to_the_table_of_an_undisturbed_one(trained: Finished, tmp_path: Path) -> None:
    small(tmp_path)
    command = [
        sys.executable,
        "-m",
        "shiftscope",
        "study",
        str(tmp_path / "small.toml"),
        "--out",
        str(tmp_path / "killed"),
        "--workers",
        "1",
    ]
    for moment in (0.3, 2.0):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / "study.json").exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moment)
        running.send_signal(signal.SIGKILL)
        running.wait()
    with one_thread():
        run_study(load_study(str(tmp_path / "small.toml")), out=tmp_path / "killed")
    assert (tmp_path / "killed" / "table.csv").read_bytes() == (trained.out / "table.csv").read_bytes()
    assert (tmp_path / "killed" / "curves.csv").read_bytes() == (trained.out / "curves.csv").read_bytes()
    left = [path.name for path in (tmp_path / "killed").rglob("*") if ".tmp" in path.name]
    assert left == []


class Elsewhere:
    """Does jobs in this process, and behaves like an executor whose machines cannot reach the study's folder."""

    remote: ClassVar[bool] = True

    def run(self, work: Work, jobs: Sequence[Any], report: JobReport) -> Iterator[tuple[Any, Any]]:
        for job in jobs:
            yield job, work(job, partial(report, job))


@pytest.fixture(scope="module")
def four_epochs(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("four")
    study = small(folder, SMALL.replace("max_epochs = 2", "max_epochs = 4"))
    return Finished(study, folder / "out", run_study(study, out=folder / "out"))


@pytest.mark.parametrize("executor", [None, Elsewhere()], ids=["here", "elsewhere"])
def test_interrupted_run_resumes_from_its_checkpoint(
    four_epochs: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Elsewhere | None
) -> None:
    study = four_epochs.study
    monkeypatch.setattr("shiftscope.studies.single_run.Checkpoint", partial(Checkpoint, seconds=0.0))
    out, events = tmp_path / "out", []

    def interrupt(event: object) -> None:
        events.append(event)
        if sum(isinstance(each, Epoch) for each in events) == 6:  # the second of the second run
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, out=out, report=interrupt)
    assert len(list(out.rglob("checkpoint.safetensors"))) == 1
    again = run_study(study, out=out, executor=executor)
    assert again.to_csv() == four_epochs.table.to_csv()
    assert again.provenance["taken_up_after_epoch"] == "-; 1"
    assert list(out.rglob("checkpoint.safetensors")) == []


def test_diverged_run_is_in_the_notes_but_not_in_the_numbers(tmp_path: Path) -> None:
    text = SMALL.replace("max_epochs = 2", 'max_epochs = 2\noptimiser = "sgd"\nlearning_rate = 1e30')
    table = run_study(small(tmp_path, text), out=tmp_path / "out")
    assert [row["seeds"] for row in table.rows] == [0, 0]
    assert "mcs" not in table.rows[0]
    assert sum("stopped being a number" in note for note in table.notes) == 4
    events: list[object] = []
    again = run_study(small(tmp_path, text), out=tmp_path / "out", report=events.append)
    assert [each.found for each in events if isinstance(each, RunEnded)] == [True] * 4
    assert again == table


def test_setting_with_lists_and_a_layers_column_keep_apart(tmp_path: Path) -> None:
    text = SMALL.replace("seeds = 2", "seeds = 1").replace("max_epochs = 2", "max_epochs = 1")
    run_study(small(tmp_path, text.replace("[grid]", "[grid]\nnetwork.channels = [[4, 8], [2, 4]]")), out=tmp_path / "out")
    held = read_folder(tmp_path / "out")
    assert [(row["channels"], row["factor"]) for row in held.gains().rows] == [("[4, 8]", 4), ("[2, 4]", 4)]
    rows = held.layers().rows
    assert {row["channels"] for row in rows if row["network.channels"] == "[2, 4]" and row["kind"] == "pool"} == {2, 4}


def test_folder_with_runs_on_other_images_is_refused(finished: Finished) -> None:
    path = next(finished.out.rglob("record.json"))
    record = json.loads(path.read_text())
    record["provenance"]["data_sha256"] = "of other images"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="has runs on other images of 'digits' than those that are there now"):
        run_study(finished.study, out=finished.out)


def test_machine_with_other_images_does_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small(tmp_path, SMALL.replace("train_images = 300", "train_images = 290"))

    class WithOtherImages(Elsewhere):
        def run(self, work: Work, jobs: Sequence[Any], report: JobReport) -> Iterator[tuple[Any, Any]]:
            data = replace(load(study.cells()[0].runs[0].data), checksum="of other images")
            monkeypatch.setattr("shiftscope.studies.runner.load", lambda *_, **__: data)
            yield from super().run(work, jobs, report)

    with pytest.raises(InputError, match="'digits' images differ from those that run `factor 1, seed 0` was planned with"):
        run_study(study, out=tmp_path / "out", executor=WithOtherImages())
    assert not list((tmp_path / "out").rglob("record.json"))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("max_shift = 6", "max_shift = 7", "`measure.max_shift` must be at most 6, got 7: .* content would be cut"),
        ("max_epochs = 2", "translate = 9", "`training.translate` must be at most 6, got 9: .* content would be cut"),
        ("canvas = 22", "canvas = 9", "`data.canvas` must be at least as large as the image|the map shrinks"),
        ("image_size = 10", 'image_size = 10\nname = "nonsense"', "neither digits, mnist"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path: Path, old: str, new: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        run_study(small(tmp_path, SMALL.replace(old, new)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_allowed_shifts_beyond_the_margin_are_counted_in_the_notes(tmp_path: Path) -> None:
    text = SMALL.replace("max_shift = 6", "max_shift = 9").replace("canvas = 22", "canvas = 22\nallow_cut = true")
    study = small(tmp_path, text.replace("seeds = 2", "seeds = 1").replace("[1, 4]", "[4]"))
    table = run_study(study, out=tmp_path / "out")
    data = load(study.cells()[0].runs[0].data)
    cut = 0
    for image, steps in zip(data.test.images, mouton2020(9).draw(60)[:, 0], strict=True):
        padded = torch.nn.functional.pad(image[None], (6, 6, 6, 6))
        cut += int((translate(padded, steps[None]) > 0).sum() < (padded > 0).sum())
    assert 0 < cut < 60
    assert any(f"cut content from {cut / 60:.1%} of the test images" in note for note in table.notes)


def test_canvas_of_the_mean_colour_is_not_counted_as_content(tmp_path: Path) -> None:
    text = SMALL.replace("canvas = 22", 'canvas = 22\nbackground = "mean"').replace("seeds = 2", "seeds = 1")
    table = run_study(small(tmp_path, text), out=tmp_path / "out")
    assert not any("cut some content" in note for note in table.notes)


def test_run_without_enough_memory_is_refused_and_finished_runs_stay(tmp_path: Path) -> None:
    """A real allocation that fails: the process may have 4 GB of addresses, and one network's weights take 3.8."""
    text = SMALL.partition("[source]")[0].replace("seeds = 2", "seeds = 1")
    text = text.replace("network.factor = [1, 4]", "network.channels = [[4, 8], [4, 30000, 3500]]")
    (tmp_path / "small.toml").write_text(text)
    code = (
        "import resource, sys\nfrom shiftscope.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "sys.exit(main(['study', 'small.toml', '--workers', '1', '--out', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "seed 0` needs more memory than there is. Do fewer runs at once (--workers), or lower" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "out").rglob("record.json"))) == 1


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"`out` .* cannot be written \(Not a directory\). Choose another folder with --out"):
        run_study(small(tmp_path), out=tmp_path / "file" / "out")


def test_other_recipe_does_not_overwrite_a_study(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    run_study(load_study(str(tmp_path / "tiny.toml")), out=tmp_path / "out")
    table = (tmp_path / "out" / "table.csv").read_bytes()
    changed = load_study(str(tmp_path / "tiny.toml"), changes={"training.learning_rate": 0.002})
    with pytest.raises(InputError, match=r"holds another study .Tiny.: the settings of `training` differ"):
        run_study(changed, out=tmp_path / "out")
    assert (tmp_path / "out" / "table.csv").read_bytes() == table
