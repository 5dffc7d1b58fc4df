"""Audits on disk resume, their shards merge bit for bit, and the command reports errors plainly."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from shiftscope import InputError, audit
from shiftscope.audits import job
from shiftscope.audits.folder import AuditPlan, AuditSpec, is_complete, merge_audit
from shiftscope.audits.job import AuditJob, run_audit, run_first, run_shard, run_shards
from shiftscope.cli import main
from shiftscope.datasets.images import Block, ImageBlocks, open_images
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.models import load_model
from shiftscope.runtime.executors import Processes
from shiftscope.runtime.files import claimed, write_first, write_tensors
from shiftscope.runtime.inputs import read_tensors
from shiftscope.runtime.plans import read_plan
from shiftscope.runtime.progress import Event, Stage

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

FACTORY = """
import torch
from torch import nn

def grey():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 10))

def colour():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 2))

def segments():
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3, padding=1)

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
"""
PROTOCOLS = ("mouton2020", "chaman2021-circular", "every-shift", "tmeasures", "gruver2023")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "audited_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def pics(here: Path) -> Path:
    """Two classes of noise, one file of them damaged."""
    generator = np.random.default_rng(0)
    for number in range(70):
        folder = here / "pics" / ("cat" if number % 2 else "ant")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{number:02d}.png")
    (here / "pics" / "ant" / "05.png").write_bytes(b"no image")
    return here / "pics"


def spec(**options: object) -> AuditSpec:
    given = {"model": "audited_models:grey", "data": "digits", "size": 16, "images": 200, "protocols": PROTOCOLS, "max_shift": 2}
    return AuditSpec(**(given | options))


def test_merged_shards_equal_one_run_bit_for_bit(here: Path) -> None:
    single = run_audit(spec())
    for shard in (3, 1, 2):
        assert not is_complete(here / "out")
        run_shard(AuditJob(spec(), shard, 3, here / "out"))
    found = merge_audit(here / "out")
    assert found.rows == single.rows
    assert found.changed == single.changed
    for name, values in single.maps().items():
        assert torch.equal(found.maps()[name], values)
    assert torch.equal(found.units["tmeasures"], single.units["tmeasures"])
    assert (found.cost.forward, found.cost.distinct) == (single.cost.forward, single.cost.distinct)


def taking_over(here: Path, shard: int) -> AuditJob:
    return AuditJob(spec(images=300), shard, 2, here / "out", takes_over=True)


def test_shard_takes_over_what_nobody_measures_and_leaves_what_others_claim(here: Path) -> None:
    parts = here / "out" / "parts"
    with claimed(parts, ".000001.lock"):
        run_shard(taking_over(here, 2))
        assert sorted(file.name for file in parts.glob("*.safetensors")) == [
            f"{number:06d}.safetensors" for number in (0, 2, 3, 4)
        ]
        assert not is_complete(here / "out")
    (parts / "000004.safetensors").write_bytes(b"damaged")
    (parts / ".000003.lock").touch()  # of a process that was killed
    with pytest.warns(UserWarning, match="is damaged; its images are measured again"):
        run_shard(taking_over(here, 2))
    assert sorted(file.name for file in parts.iterdir()) == [f"{number:06d}.safetensors" for number in range(5)]
    assert merge_audit(here / "out").rows == run_audit(spec(images=300)).rows


def test_shard_without_locks_measures_its_own_blocks_only(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    run_shard(taking_over(here, 2))
    assert sorted(int(file.stem) for file in (here / "out" / "parts").glob("*.safetensors")) == [2, 3, 4]


def stop_while_it_holds_a_block(process: subprocess.Popen[bytes], parts: Path) -> None:
    """Stop a process that measures blocks while it has claimed one whose part is not there yet."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        if any(parts.glob(".*.lock")):
            process.send_signal(signal.SIGSTOP)
            locks = (lock for lock in parts.glob(".*.lock") if not (parts / f"{lock.stem[1:]}.safetensors").exists())
            if any(map(is_held, locks)):
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped and killed by signals")
def test_shard_takes_over_from_a_killed_process(here: Path, one_thread: None) -> None:
    common = ["audit", "audited_models:grey", "--size", "16", "--images", "300", "--max-shift", "2", "--out", "out"]
    common += [word for name in PROTOCOLS for word in ("--protocol", name)]
    command = [sys.executable, "-m", "shiftscope", *common, "--shard", "1/2"]
    parts = here / "out" / "parts"
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL) as other:
        try:
            stop_while_it_holds_a_block(other, parts)
            assert main([*common, "--shard", "2/2"]) == 0
            assert not is_complete(here / "out")
        finally:
            other.kill()
    assert main([*common, "--shard", "2/2"]) == 0
    assert sorted(int(file.stem) for file in parts.iterdir()) == [0, 1, 2, 3, 4]
    assert merge_audit(here / "out").rows == run_audit(spec(images=300)).rows


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as processes do: sums of several are added in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("resumed", "workers"), [(False, 1), (True, 2)])
@pytest.mark.usefixtures("one_thread")
def test_shards_in_processes_equal_one_run_bit_for_bit(here: Path, resumed: bool, workers: int) -> None:
    single = run_audit(spec())
    out = here / "several" if resumed else None
    if out is not None:
        run_shard(AuditJob(spec(), 2, 3, out))
    events: list[Event] = []
    several = run_shards(spec(), Processes(workers), shards=3, out=out, staged=True, report=events.append)
    assert several.table().rows == single.table().rows
    assert events[-1] == Stage("measuring images", 200, 200)


def test_audit_from_disk_equals_one_in_memory(here: Path) -> None:
    found = run_audit(spec())
    loaded = load_model("audited_models:grey", size=16)
    pictures = open_images("digits", count=200, preprocessing=Preprocessing(size=16), max_shift=2)
    block = pictures.read(0, 200)
    plain = audit(loaded.model, block.images, block.labels, protocols=PROTOCOLS, max_shift=2)
    assert found.rows == plain.rows


def test_second_start_resumes_and_measures_nothing_twice(here: Path) -> None:
    def stop_after_two(event: Event) -> None:
        if isinstance(event, Stage) and event.done == 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(spec(), out=here / "out", report=stop_after_two)
    left = {file: file.stat().st_mtime_ns for file in (here / "out" / "parts").iterdir()}
    assert len(left) == 1
    events: list[Event] = []
    found = run_audit(spec(), out=here / "out", report=events.append)
    assert [each.done for each in events if isinstance(each, Stage) and each.sentence == "measuring images"] == [128, 192, 200]
    assert all(file.stat().st_mtime_ns == time for file, time in left.items())
    assert found.rows == run_audit(spec()).rows


def test_resumed_audit_keeps_the_memory_format_of_its_plan(here: Path) -> None:
    run_shard(AuditJob(spec(), 1, 1, here / "out", channels_last=True))
    assert read_plan(here / "out", AuditPlan, "").channels_last
    before = load_file(here / "out" / "parts" / "000001.safetensors")
    (here / "out" / "parts" / "000001.safetensors").unlink()
    run_shard(AuditJob(spec(), 1, 1, here / "out"))
    after = load_file(here / "out" / "parts" / "000001.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("sum/cost"))


def test_next_block_is_read_while_one_is_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers, read = list[str](), ImageBlocks.read

    def traced(self: ImageBlocks, start: int, stop: int) -> Block:
        readers.append(threading.current_thread().name)
        return read(self, start, stop)

    monkeypatch.setattr(ImageBlocks, "read", traced)
    run_audit(spec(images=130))
    assert len([name for name in readers if name != threading.main_thread().name]) == 3


def test_first_plan_of_a_folder_stays(here: Path) -> None:
    write_first(here / "plan.json", "one")
    write_first(here / "plan.json", "two")
    assert ((here / "plan.json").read_text(), [path.name for path in here.glob(".*tmp*")]) == ("one", [])


def halve(file: Path) -> None:
    """Cut a file's end off."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def rename_a_score(file: Path) -> None:
    """Write a part that is complete, but holds the values of one measure by another name."""
    tensors, metadata = read_tensors(file)
    name = next(name for name in sorted(tensors) if name.startswith("each/score/"))
    tensors[f"{name}_too"] = tensors.pop(name)
    write_tensors(file, tensors, metadata=metadata)


@pytest.mark.parametrize("damage", [halve, rename_a_score])
def test_damaged_part_is_measured_again(damage: Callable[[Path], None], here: Path) -> None:
    first = run_audit(spec(), out=here / "out")
    damage(here / "out" / "parts" / "000001.safetensors")
    with pytest.warns(UserWarning, match=r"is damaged"), pytest.raises(InputError, match=r"is damaged. Run the audit again"):
        merge_audit(here / "out")
    with pytest.warns(UserWarning, match=r"its images are measured again"):
        assert run_audit(spec(), out=here / "out").rows == first.rows


def test_folder_holds_table_maps_and_json(here: Path) -> None:
    found = run_audit(spec(), out=here / "out")
    read = json.loads((here / "out" / "audit.json").read_text())
    assert read["rows"][1]["estimate"]["value"] == found.rows[1].estimate.value
    assert read["provenance"]["model"] == "audited_models:grey"
    with (here / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["estimate"]) == found.rows[1].estimate.value
    maps = load_file(here / "out" / "maps.safetensors")
    assert maps["zero 2/mcs"].shape == (5, 5)
    assert maps["units/tmeasures"].shape == (10,)
    assert "# Stability under shifts" in (here / "out" / "table.md").read_text()


def test_plan_is_written_and_read(here: Path) -> None:
    run_shard(AuditJob(spec(), 1, 2, here / "out"))
    plan = read_plan(here / "out", AuditPlan, "")
    assert AuditPlan.model_validate_json(plan.model_dump_json()) == plan
    assert [protocol.name for protocol in plan.protocols] == list(PROTOCOLS)
    assert plan.blocks == 4


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"images": 100}, {"model": "audited_models:linear"}, {"max_shift": 1}],
    ids=lambda each: next(iter(each)),
)
def test_folder_of_another_audit_is_refused(changed: dict[str, object], here: Path) -> None:
    run_shard(AuditJob(spec(), 1, 2, here / "out"))
    with pytest.raises(
        InputError, match=r"holds another audit .audited_models:grey on scikit-learn load_digits.*, other settings\)"
    ):
        run_shard(AuditJob(spec(**changed), 1, 2, here / "out"))


def test_folder_of_videos_is_refused(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "flicker.json").write_text("{}")
    with pytest.raises(InputError, match=r"out holds the flicker of videos. Choose another folder with --out."):
        run_shard(AuditJob(spec(), 1, 2, here / "out"))


def test_folder_without_an_audit_or_with_missing_parts_is_refused(here: Path) -> None:
    with pytest.raises(InputError, match=r"holds no audit: plan.json is missing"):
        merge_audit(here)
    run_shard(AuditJob(spec(), 1, 2, here / "out"))
    with pytest.raises(InputError, match=r"is not complete: 2 of 4 blocks of images are missing"):
        merge_audit(here / "out")
    plan = json.loads((here / "out" / "plan.json").read_text())
    del plan["facts"]["input"]
    for damaged in (plan, {}):
        (here / "out" / "plan.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"plan.json is damaged, or is not a complete plan"):
            merge_audit(here / "out")


def test_folder_that_cannot_be_written_is_refused(here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be"):
        run_audit(spec(), out=here / "file" / "out")


def test_shard_and_images_out_of_range_are_refused(here: Path) -> None:
    with pytest.raises(InputError, match=r"`shard` must be I/N with I from 1 to N, got 3/2"):
        run_shard(AuditJob(spec(), 3, 2, here / "out"))
    with pytest.raises(InputError, match=r"`shards` must be 1 or more, got 0"):
        run_shards(spec(), Processes(2), shards=0)
    with pytest.raises(InputError, match=r"`images` must be 1 or more, got 0"):
        run_audit(spec(images=0))


def test_damaged_image_is_left_out_and_others_keep_their_shifts(pics: Path) -> None:
    loaded = load_model("audited_models:colour", size=16)
    found = run_audit(spec(model="audited_models:colour", data=str(pics), images=500, protocols=("zhang2019",)))
    assert found.damaged == ("ant/05.png",)
    assert found.cost.images == 70
    pictures = open_images(str(pics), count=500, preprocessing=Preprocessing(size=16), channels=3, max_shift=2)
    assert (pictures.count, pictures.shape, pictures.classes) == (71, (3, 20, 20), 2)
    block = pictures.read(0, 71)
    steps = torch.randint(-2, 3, (71, 2, 2), generator=torch.Generator().manual_seed(0))
    agree = []
    for image, number in zip(block.images, block.numbers.tolist(), strict=True):
        views = [image[:, 2 - dy : 18 - dy, 2 - dx : 18 - dx] for dy, dx in steps[number].tolist()]
        one, two = (int(loaded.model(view[None]).argmax()) for view in views)
        agree.append(float(one == two))
    assert found.estimate("all_agree", "zhang2019").value == pytest.approx(sum(agree) / len(agree), abs=1e-6)
    notes = " ".join(found.notes)
    assert "1 image cannot be read and is left out: ant/05.png." in notes
    assert "holds 71 images, fewer than the 500 requested." in notes
    assert 0 < found.estimate("accuracy", "unshifted").value < 1


def test_folder_without_subfolders_has_no_labels(pics: Path) -> None:
    flat = run_audit(spec(model="audited_models:colour", data=str(pics / "cat"), images=10))
    assert "has no subfolders, so there are no labels" in " ".join(flat.notes)


def test_folder_with_one_class_is_noted(pics: Path, here: Path) -> None:
    (here / "one").mkdir()
    (pics / "cat").rename(here / "one" / "cat")
    one = run_audit(spec(model="audited_models:colour", data=str(here / "one"), images=10))
    assert "has one class only (cat): accuracy says little" in " ".join(one.notes)
    assert "Labels are ignored: the model has 2 classes, the data 1." in " ".join(one.notes)


def test_folder_without_readable_images_is_refused(here: Path) -> None:
    (here / "bad").mkdir()
    (here / "bad" / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no image that can be read"):
        run_audit(spec(model="audited_models:colour", data=str(here / "bad")))


def test_command_prints_table_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["audit", "audited_models:grey", "--size", "16", "--images", "70", "--max-shift", "2"]
    assert main([*common, "--protocol", "mouton2020", "--protocol", "zhang2019"]) == 0
    printed = capsys.readouterr()
    assert "mouton2020" in printed.out
    assert "70 images." in printed.out
    assert main([*common, "--protocol", "mouton2020", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert [row["measure"] for row in read["rows"]] == ["accuracy", "mcs", "top1_change"]


def test_command_runs_shards_and_merges_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["audit", "audited_models:grey", "--size", "16", "--images", "130", "--protocol", "mouton2020", "--out", "out"]
    with claimed(here / "out" / "parts", ".000000.lock"):
        assert main([*common, "--shard", "2/2"]) == 0
    assert "Shard 2/2 has nothing left to do; others are at work in out" in capsys.readouterr().err
    assert main([*common, "--shard", "1/2"]) == 0
    first = capsys.readouterr().out
    assert "Saved in out: audit.json" in first
    assert main(["audit", "--merge", "out"]) == 0
    assert capsys.readouterr().out == first.partition("\nNext:")[0]


GREY = "audited_models:grey"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "`audit` needs a model, or a folder to merge. Give one of MODEL and --merge"),
        ((GREY, "--merge", "x"), "`audit` needs either a model or a folder to merge, not both. Give one of MODEL and --merge"),
        ((GREY, "--shard", "1/2"), "`shard` needs a folder for its blocks. Give the same --out to all shards"),
        ((GREY, "--shard", "one", "--out", "x"), "`shard` must be I/N, got 'one'"),
        ((GREY, "--protocol", "zhang"), "there is no protocol 'zhang'"),
        ((GREY, "--size", "16", "--max-shift", "0"), "`max_shift` must be 1 or more"),
        ((GREY,), "The model does not say how large its input is: give `size`"),
        (("audited_models:colour", "--size", "16"), "`data` must be given: the model takes images of 3x16x16, which the digits"),
        ((GREY, "--weights", "w.safetensors"), "do not fit the model"),
        ((GREY, "--data", "no/where/at/all"), "`data` must be an existing folder, but no/where/at/all does not exist"),
        (("audited_models:segments", "--data", ".", "--size", "16"), "holds no image"),
        (("model.pt2",), "reading a .pt2 archive can run code"),
    ],
)
def test_bad_command_prints_a_sentence(
    arguments: tuple[str, ...], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.zeros(2)}, here / "w.safetensors")
    (here / "model.pt2").write_bytes(b"")
    assert main(["audit", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_interrupted_command_says_how_to_resume(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run_shard", stopped)
    assert main(["audit", GREY, "--size", "16", "--out", "out"]) == 130
    assert "Stopped. Finished blocks are in out; run the same command again to resume." in capsys.readouterr().err


def test_report_of_an_audit_agrees_with_its_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["audit", "audited_models:grey", "--size", "16", "--images", "40", "--out", "out", "--max-shift", "2"]
    assert main([*command, "--protocol", "every-shift", "--protocol", "mouton2020"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (here / "out" / "report.html").read_text()
    found = json.loads((here / "out" / "audit.json").read_text())
    assert "How stable is audited_models:grey under shifts?" in page
    mcs = next(row["estimate"]["value"] for row in found["rows"] if (row["protocol"], row["measure"]) == ("mouton2020", "mcs"))
    assert f"{mcs:.3f}" in page
    for title in (
        "Every measure",
        ">Sensitivity map</h2>",
        "Images that change most",
        "Mean cosine similarity against distance</h2>",
        "Shifts of up to 2 pixels, the background comes in.",
    ):
        assert title in page
    (here / "out" / "report.html").unlink()
    assert main(["report", "out"]) == 0
    assert (here / "out" / "report.html").read_text() == page


@pytest.mark.usefixtures("one_thread")
def test_processes_handle_relative_paths_and_damaged_parts(here: Path, pics: Path) -> None:
    spec = AuditSpec(model="audited_models:colour", data="pics", size=16, images=70, protocols=("mouton2020",))
    single = run_audit(spec)
    (path,) = run_shard(AuditJob(spec, 1, 2, here / "out"))  # one here, and the other there
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="is damaged"):
        found = run_shards(spec, Processes(1), shards=2, out=here / "out")
    assert found.table().rows == single.table().rows


def test_shard_with_another_model_is_refused(here: Path) -> None:
    other = AuditJob(spec(images=4), 1, 1, here / "out", model_sha256="of another")
    with pytest.raises(InputError, match="the model audited_models:grey of shard 1/1 differs from the plan's"):
        run_shard(other)


def test_changed_model_is_another_audit(here: Path) -> None:
    run_audit(spec(images=4), out=here / "out")
    (here / "audited_models.py").write_text(FACTORY.replace("nn.ReLU", "nn.GELU"))
    sys.modules.pop("audited_models")
    with pytest.raises(InputError, match=r"holds another audit .*, other weights or code\)"):
        run_audit(spec(images=4), out=here / "out")


def test_first_answer_names_files_that_cannot_be_read(pics: Path) -> None:
    for file in sorted(pics.glob("*/*.png")):
        if not file.name.startswith("0"):
            file.unlink()
    found = run_first(spec(model="audited_models:colour", data=str(pics), images=500, protocols=("zhang2019",)))
    assert found.damaged == ("ant/05.png",)
    assert "1 image cannot be read and is left out: ant/05.png." in found.notes


def test_fewer_right_answers_than_by_guessing_are_said_so() -> None:
    model = load_model("audited_models:grey", size=16).model
    images = torch.rand(64, 1, 16, 16)
    with torch.no_grad():
        answers = model(images).argmax(1)
    for labels, wrong in ((answers, False), ((answers + 1) % model(images[:1]).shape[1], True)):
        said = audit(model, images, labels, protocols=["zhang2019"], max_shift=1).words()
        assert ("Fewer answers are right than by guessing among" in said) == wrong
