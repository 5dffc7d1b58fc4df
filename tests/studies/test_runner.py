"""A study leaves whole records, goes on where it was killed, and tells what it cannot do before it writes anything."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shiftscope.audits.protocols import mouton2020
from shiftscope.datasets.dataset import load
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.explanations.layers import layer_responses
from shiftscope.models.family import Network
from shiftscope.runtime.processes import Processes
from shiftscope.runtime.progress import Stage
from shiftscope.shifts import grid, translate
from shiftscope.studies.folder import read_folder
from shiftscope.studies.loading import load_study
from shiftscope.studies.run import Piece
from shiftscope.studies.runner import RunEnded, RunStarted, _begun, _do, _do_away, _grouped, _Job, run_study
from shiftscope.studies.spec import Study
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.loop import Epoch
from small import SMALL


def small(tmp_path: Path, text: str = SMALL) -> Study:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return load_study(str(path))


def test_a_study_gives_estimates_over_seeds_and_images_and_keeps_everything(tmp_path: Path) -> None:
    study, out = small(tmp_path), tmp_path / "out"
    table = run_study(study, out=out)
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
        assert sorted(os.listdir(folder)) == ["history.json", "measures.safetensors", "model.safetensors", "record.json"]
    assert any("Did not reach 100 % train accuracy in 2 epochs" in note for note in table.notes)
    assert table.provenance["data_sha256"] == load(study.cells()[0].runs[0].data).checksum


def test_a_records_numbers_follow_from_its_weights_by_an_independent_way(tmp_path: Path) -> None:
    """One image at a time, from the saved weights, with torch's own cosine similarity."""
    study, out = small(tmp_path), tmp_path / "out"
    run_study(study, out=out)
    run = study.cells()[1].runs[1]
    data = load(run.data)
    folder = out / "runs" / run.content_id(data.checksum)
    record = json.loads((folder / "record.json").read_text())
    network = Network(study.cells()[1].runs[1].network.model_validate(record["spec"]["network"])).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    shifts = mouton2020(6).draw(60)
    cosines, changes, right = [], [], []
    with torch.no_grad():
        for image, label, steps in zip(data.test.images, data.test.labels, shifts, strict=True):
            canvas = torch.nn.functional.pad(image[None].float() / 255, (6, 6, 6, 6))
            dy, dx = steps[0].tolist()
            before, after = network(canvas), network(canvas.roll((dy, dx), (2, 3)))  # the margin is empty: a roll is a shift
            cosines.append(torch.nn.functional.cosine_similarity(before, after).item())
            changes.append(before.argmax().item() != after.argmax().item())
            right.append(before.argmax().item() == label.item())
    assert record["results"]["mcs"]["value"] == pytest.approx(sum(cosines) / 60, abs=1e-5)
    assert record["results"]["top1_change"]["value"] == pytest.approx(sum(changes) / 60)
    assert record["results"]["test_accuracy"]["value"] == pytest.approx(sum(right) / 60)
    measures = load_file(folder / "measures.safetensors")
    assert measures["map.mcs"].shape == (13 * 13,)
    assert measures["map.mcs"].mean().item() == pytest.approx(record["results"]["mcs_all_shifts"]["value"], abs=1e-5)
    assert measures["map.mcs"][13 * 13 // 2].item() == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        canvases = torch.nn.functional.pad(data.test.images.float() / 255, (6, 6, 6, 6))
        answers = torch.stack([network(canvases.roll(tuple(d), (2, 3))).argmax(1) for d in grid(6).tolist()])
    assert record["results"]["worst_case"]["value"] == pytest.approx((answers == data.test.labels).all(0).float().mean().item())
    history = json.loads((folder / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2]


def test_curves_and_layers_follow_from_the_weights_too(tmp_path: Path) -> None:
    study, out = small(tmp_path), tmp_path / "out"
    table = run_study(study, out=out)
    curves = [line.split(",") for line in (out / "curves.csv").read_text().splitlines()]
    last = dict(zip(curves[0], curves[7], strict=True))
    assert (last["factor"], last["max_shift"], last["seeds"]) == ("1", "6", "2")
    every = table.rows[0]["mcs_all_shifts"]
    assert isinstance(every, Estimate)
    assert [float(last[name]) for name in ("mcs", "mcs_low", "mcs_high")] == pytest.approx(
        [every.value, every.low, every.high], abs=1e-5 * (every.high - every.low + 1)
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


def test_gains_stand_beside_the_homogeneity_of_what_is_subsampled(tmp_path: Path) -> None:
    table = run_study(small(tmp_path), out=tmp_path / "out")
    gained = read_folder(tmp_path / "out").gains()
    assert [row["factor"] for row in gained.rows] == [4]
    values = [row["mcs"] for row in table.rows]
    assert gained.rows[0]["gain"].value == pytest.approx(values[1].value - values[0].value, abs=1e-6)
    rows = [line.split(",") for line in (tmp_path / "out" / "layers.csv").read_text().splitlines()]
    pooled = [dict(zip(rows[0], row, strict=True))["homogeneity_pooled"] for row in rows[1:] if row[0] == "4"]
    assert gained.rows[0]["homogeneity"].value == pytest.approx(sum(float(each) for each in pooled if each) / 2, abs=1e-6)


def test_seeds_trained_together_give_the_same_study_but_for_rounding(tmp_path: Path) -> None:
    study = small(tmp_path, SMALL.replace("seeds = 2", "seeds = 3"))
    alone = run_study(study, out=tmp_path / "alone")
    events: list[object] = []
    together = run_study(study, out=tmp_path / "together", together=2, report=events.append)
    labels = [event.label for event in events if isinstance(event, RunStarted)]
    assert labels == ["factor 1, seed 0 1", "factor 1, seed 2", "factor 4, seed 0 1", "factor 4, seed 2"]
    assert "2; -" in together.provenance["trained_together"]
    for one, other in zip(alone.rows, together.rows, strict=True):
        for name in ("mcs", "test_accuracy"):
            assert isinstance(one[name], Estimate)
            assert other[name].value == pytest.approx(one[name].value, abs=0.02)
    assert {path.name for path in (tmp_path / "alone" / "runs").iterdir()} == {
        path.name for path in (tmp_path / "together" / "runs").iterdir()
    }
    with pytest.raises(InputError, match="`together` must be 1 or more networks, got 0"):
        run_study(study, out=tmp_path / "together", together=0)


def test_layers_that_draw_are_trained_alone(tmp_path: Path) -> None:
    text = (
        SMALL.replace("canvas = 22", "canvas = 24")
        .replace("factor = [1, 4]", "factor = [4]")
        .replace("max_epochs = 2", "max_epochs = 1")
    )
    study = small(tmp_path, text.replace("channels = [4, 8]", 'channels = [4, 8]\npadding = "circular"\nsampling = "lps"'))
    table = run_study(study, out=tmp_path / "out", together=2)
    assert table.rows[0]["seeds"] == 2
    assert "trained_together" not in table.provenance


def test_runs_that_another_study_has_finished_are_taken_over(tmp_path: Path) -> None:
    first = run_study(small(tmp_path), out=tmp_path / "studies" / "one")
    more, told = small(tmp_path, SMALL.replace('title = "Small"', 'title = "Larger"').replace("[1, 4]", "[1, 2, 4]")), []
    table = run_study(more, out=tmp_path / "two", reuse=tmp_path / "studies", report=told.append)
    ended = [(each.found, each.record.spec.network.factor) for each in told if isinstance(each, RunEnded)]
    assert sorted(ended) == [(False, 2)] * 2 + [(True, 1)] * 2 + [(True, 4)] * 2
    assert [table.rows[0], table.rows[2]] == list(first.rows)
    name = next((tmp_path / "studies" / "one" / "runs").iterdir()).name
    ours, theirs = (tmp_path / part / "runs" / name for part in ("two", "studies/one"))
    assert {each.name: each.read_bytes() for each in ours.iterdir()} == {
        each.name: each.read_bytes() for each in theirs.iterdir()
    }
    with pytest.raises(InputError, match=r"`reuse` .*nowhere is no folder. Give a study.s folder"):
        run_study(more, out=tmp_path / "three", reuse=tmp_path / "nowhere")


def test_a_half_done_study_has_tables_of_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out = small(tmp_path), tmp_path / "out"
    run_study(study, out=out)
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
    monkeypatch.setattr("shiftscope.studies.folder.summarise", _full)
    run_study(study, out=out)
    plain = read_folder(out)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)\. Make room"):
        plain.write_tables()


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_finished_study_is_found_and_gives_the_same_table(tmp_path: Path) -> None:
    study, out = small(tmp_path), tmp_path / "out"
    first = run_study(study, out=out)
    events: list[object] = []
    again = run_study(study, out=out, report=events.append)
    assert again == first
    assert [event.found for event in events if isinstance(event, RunEnded)] == [True] * 4
    assert [event.label for event in events if isinstance(event, RunStarted)][:2] == ["factor 1, seed 0", "factor 4, seed 0"]
    assert all(isinstance(event, Stage | RunStarted | RunEnded) for event in events)


@pytest.mark.parametrize("damage", ["record cut", "record of another run", "measures missing"])
def test_a_damaged_run_is_told_and_computed_again_to_the_same_table(tmp_path: Path, damage: str) -> None:
    study, out = small(tmp_path, SMALL.replace("seeds = 2", "seeds = 1")), tmp_path / "out"
    first = run_study(study, out=out).to_csv()
    one, other = sorted((out / "runs").iterdir())
    if damage == "record cut":
        content = (one / "record.json").read_bytes()
        (one / "record.json").write_bytes(content[: len(content) // 2])
    elif damage == "record of another run":
        (one / "record.json").write_bytes((other / "record.json").read_bytes())
    else:
        (one / "measures.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"record.json is damaged .* computed again"):
        assert run_study(study, out=out).to_csv() == first


def test_a_record_of_an_older_form_is_measured_anew_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out = small(tmp_path), tmp_path / "out"
    first = run_study(study, out=out)
    for folder in (out / "runs").iterdir():
        older = json.loads((folder / "record.json").read_text())
        older["schema_version"] = 1
        del older["results"]["mcs_all_shifts"], older["results"]["worst_case"]
        (folder / "record.json").write_text(json.dumps(older))
        (folder / "measures.safetensors").unlink()
    monkeypatch.setattr("shiftscope.studies.run.train", lambda *_, **__: pytest.fail("trained again"))
    again = run_study(study, out=out)
    assert again.to_csv() == first.to_csv()
    assert again.provenance["started"] == first.provenance["started"]
    assert "measured_with" in again.provenance


def test_killing_it_at_any_moment_and_starting_again_ends_in_the_undisturbed_table(tmp_path: Path) -> None:
    run_study(small(tmp_path), out=tmp_path / "undisturbed", executor=Processes(1))
    command = [sys.executable, "-m", "shiftscope", "study", str(tmp_path / "small.toml"), "--out", str(tmp_path / "killed")]
    for moment in (0.3, 1.0, 2.0):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / "study.json").exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moment)
        running.send_signal(signal.SIGKILL)
        running.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert (tmp_path / "killed" / "table.csv").read_bytes() == (tmp_path / "undisturbed" / "table.csv").read_bytes()
    assert (tmp_path / "killed" / "curves.csv").read_bytes() == (tmp_path / "undisturbed" / "curves.csv").read_bytes()
    left = [path.name for path in (tmp_path / "killed").rglob("*") if ".tmp" in path.name]
    assert left == []


def test_an_interrupted_run_goes_on_from_its_last_kept_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small(tmp_path, SMALL.replace("max_epochs = 2", "max_epochs = 4"))
    first = run_study(study, out=tmp_path / "undisturbed")
    monkeypatch.setattr("shiftscope.studies.run.Checkpoint", partial(Checkpoint, seconds=0.0))
    out, told = tmp_path / "out", []

    def interrupt(event: object) -> None:
        told.append(event)
        if sum(isinstance(each, Epoch) for each in told) == 6:  # the second of the second run
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, out=out, report=interrupt)
    (begun,) = out.rglob("checkpoint.safetensors")
    run = next(run for cell in study.cells() for run in cell.runs if run.content_id(load(run.data).checksum) == begun.parent.name)
    piece = Piece(run, begun.parent.name, begun.parent)
    alone = [_Job((replace(piece, name=name),), name, None, "cpu") for name in ("one", "other")]
    assert _grouped(alone, together=2) == alone  # it goes on where it was
    (files,) = _do_away(replace(alone[0], pieces=(piece,), kept=(_begun(piece),)), lambda _: None)  # there as well
    assert json.loads(files["record.json"])["provenance"]["taken_up_after_epoch"] == "1"
    again = run_study(study, out=out)
    assert again.to_csv() == first.to_csv()
    assert again.provenance["taken_up_after_epoch"] == "-; 1"
    assert list(out.rglob("checkpoint.safetensors")) == []


def test_a_diverged_run_is_in_the_record_and_the_notes_and_not_in_the_numbers(tmp_path: Path) -> None:
    text = SMALL.replace("max_epochs = 2", 'max_epochs = 2\noptimiser = "sgd"\nlearning_rate = 1e30')
    table = run_study(small(tmp_path, text), out=tmp_path / "out")
    assert [row["seeds"] for row in table.rows] == [0, 0]
    assert "mcs" not in table.rows[0]
    assert sum("stopped being a number" in note for note in table.notes) == 4
    told: list[object] = []
    again = run_study(small(tmp_path, text), out=tmp_path / "out", report=told.append)
    assert [each.found for each in told if isinstance(each, RunEnded)] == [True] * 4
    assert again == table


def test_a_setting_may_be_a_list_and_share_its_name_with_a_layers_property(tmp_path: Path) -> None:
    text = SMALL.replace("seeds = 2", "seeds = 1").replace("max_epochs = 2", "max_epochs = 1")
    run_study(small(tmp_path, text.replace("[grid]", "[grid]\nnetwork.channels = [[4, 8], [2, 4]]")), out=tmp_path / "out")
    held = read_folder(tmp_path / "out")
    assert [(row["channels"], row["factor"]) for row in held.gains().rows] == [("[4, 8]", 4), ("[2, 4]", 4)]
    rows = held.layers().rows
    assert {row["channels"] for row in rows if row["network.channels"] == "[2, 4]" and row["kind"] == "pool"} == {2, 4}


def test_a_folder_holds_runs_on_one_version_of_the_images(tmp_path: Path) -> None:
    study, out = (
        small(tmp_path, SMALL.replace("seeds = 2", "seeds = 1").replace("max_epochs = 2", "max_epochs = 1")),
        tmp_path / "out",
    )
    run_study(study, out=out)
    path = next(out.rglob("record.json"))
    record = json.loads(path.read_text())
    record["provenance"]["data_sha256"] = "of other images"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="holds runs on other images of 'digits' than there are now"):
        run_study(study, out=out)


def test_a_machine_with_other_images_does_no_run(tmp_path: Path) -> None:
    run = small(tmp_path).cells()[0].runs[0]
    job = _Job((Piece(run, run.content_id("of other images"), tmp_path / "run"),), "factor 1", None, "cpu")
    with pytest.raises(InputError, match="was to see other images of 'digits' than are found where it is done"):
        _do(job, lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("max_shift = 6", "max_shift = 7", "`measure.max_shift` must be at most 6, got 7: .* content would be cut"),
        ("max_epochs = 2", "translate = 9", "`training.translate` must be at most 6, got 9: .* content would be cut"),
        ("canvas = 22", "canvas = 9", "`data.canvas` must be at least as large as the image|the map shrinks"),
        ("image_size = 10", 'image_size = 10\nname = "nonsense"', "neither digits, mnist"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(tmp_path: Path, old: str, new: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        run_study(small(tmp_path, SMALL.replace(old, new)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shifts_beyond_the_margin_are_possible_when_asked_for_and_counted(tmp_path: Path) -> None:
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


def test_a_mean_coloured_canvas_is_not_counted_as_content(tmp_path: Path) -> None:
    text = SMALL.replace("canvas = 22", 'canvas = 22\nbackground = "mean"').replace("seeds = 2", "seeds = 1")
    table = run_study(small(tmp_path, text), out=tmp_path / "out")
    assert not any("cut some content" in note for note in table.notes)


def test_a_run_that_memory_is_too_small_for_is_told_and_finished_ones_stay(tmp_path: Path) -> None:
    """A real allocation that fails: the process may have 6 GB of addresses, and one network's weights take 10."""
    text = SMALL.partition("[source]")[0].replace("seeds = 2", "seeds = 1")
    text = text.replace("network.factor = [1, 4]", "network.channels = [[4, 8], [4, 30000, 10000]]")
    (tmp_path / "small.toml").write_text(text)
    code = (
        "import resource, sys\nfrom shiftscope.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "sys.exit(main(['study', 'small.toml', '--workers', '1', '--out', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "seed 0` needs more memory than there is. Let fewer run at once (--workers), or use a smaller" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "out").rglob("record.json"))) == 1


def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"`out` .* cannot be written \(Not a directory\). Choose another folder with --out"):
        run_study(small(tmp_path), out=tmp_path / "file" / "out")
