"""Videos and pans from the command line: numbers are those of models with known changes, bad folders are refused."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from cli.conftest import Command, Finished
from shiftscope.audits.protocols import pan
from shiftscope.errors import InputError
from shiftscope.videos import frames_flicker
from shiftscope.videos.film import read_film

MODELS = """
import torch
from torch import nn

class Bright(nn.Module):
    def forward(self, images):
        grey = 255 * images.mean((1, 2, 3))
        return torch.stack([grey, 2 * grey - 100], 1)  # the class turns at a brightness of 100

class Boxes(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, images):
        found = []
        for image in images[:, 0]:
            weight = image.sum()
            down = (image.sum(1) * torch.arange(len(image))).sum() / weight
            right = (image.sum(0) * torch.arange(len(image))).sum() / weight
            centre = torch.stack([right, down])
            centre = (centre / self.step).floor() * self.step if self.step else centre
            box = torch.cat([centre - 2, centre + 2])[None]
            found.append({"boxes": box, "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.long)})
        return found

class Map(nn.Module):
    def forward(self, images):
        grey = images.mean(1, keepdim=True)
        return torch.cat([grey, 1 - grey], 1)

class Deep(nn.Module):
    def forward(self, images):
        return 1.5 + images.mean(1, keepdim=True)

def deep(): return Deep()
def bright(): return Bright()
def exact(): return Boxes(0)
def snapping(): return Boxes(4)
def masks(): return Map()
"""
SIZE = 16


def write(path: Path, grey: int | np.ndarray, size: int = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size), grey, dtype=np.uint8) if isinstance(grey, int) else grey
    Image.fromarray(pixels).save(path)


@pytest.fixture
def command(shiftscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Commands in a folder with models, two videos of known brightness, and a photo with a square."""
    (tmp_path / "filmed.py").write_text(MODELS)
    monkeypatch.delitem(sys.modules, "filmed", raising=False)
    # In natural order the class turns once between frames 2 and 10; in the order of letters it would turn twice.
    for name, grey in (("1", 10), ("2", 20), ("10", 200), ("11", 210)):
        write(tmp_path / "videos" / "turns" / f"frame{name}.png", grey)
    for number in range(3):
        write(tmp_path / "videos" / "stays" / f"frame{number}.png", 10 + number)
    square = np.zeros((SIZE, SIZE), dtype=np.uint8)
    square[6:9, 6:9] = 255
    write(tmp_path / "photos" / "square.png", square)
    return shiftscope


def audited(name: str, *words: str) -> tuple[str, ...]:
    return "audit", f"filmed:{name}", "--size", str(SIZE), *words


def test_flicker_of_videos_is_that_of_the_model(command: Command) -> None:
    done = command(*audited("bright", "--frames", "videos", "--out", "out"))
    assert done.code == 0, done.err
    assert "From one frame to the next, the top class changes in 17 %" in " ".join(done.out.split())
    content = json.loads(Path("out/flicker.json").read_text())
    assert [(each["name"], each["changes"]) for each in content["sequences"]] == [("stays", [0, 0]), ("turns", [0, 1, 0])]
    assert content["estimate"]["value"] == pytest.approx(1 / 6)
    with Path("out/frames.csv").open() as file:
        rows = [(row["sequence"], row["frame"], float(row["change"])) for row in csv.DictReader(file)]
    assert rows == [("stays", "2", 0), ("stays", "3", 0), ("turns", "2", 0), ("turns", "3", 1), ("turns", "4", 0)]
    film = read_film(Path("out"))
    assert film is not None
    assert [each.name for each in film.strips] == ["turns", "stays"]  # the one that changes most comes first
    assert [each.change for each in film.strips[0].frames] == [None, 0, 1, 0]
    assert (film.strips[0].frames[2].answer or "").startswith("class 1")
    assert '"frame 3"' in Path("out/report.html").read_text()


def test_one_video_says_nothing_of_others(command: Command) -> None:
    done = command(*audited("bright", "--frames", "videos/turns"))
    assert "the top class changes in 33.3 % of steps, over 3 steps of one video" in " ".join(done.out.split())


def test_maps_of_classes_and_a_chosen_output_are_read(command: Command) -> None:
    done = command(*audited("masks", "--frames", "videos/turns", "--json"))
    content = json.loads(done.out)
    assert (content["task"], content["sequences"][0]["changes"]) == ("segmentation", [0, 1, 0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "the folder of frames nowhere does not exist"),
        ("empty", "empty holds no frames"),
        ("one", "one holds one frame, and a video needs two or more"),
        ("sizes", "the frames of sizes differ in size: a.png has 16x16 pixels, b.png 8x8"),
        ("texts", "texts holds no frames"),
        ("damaged", "b.png cannot be read as an image"),
        ("cut", "b.png cannot be read as an image"),
        ("mixed", "mixed holds frames beside subfolders with frames (inner)"),
        ("video.mp4", "is a file, and `frames` must be a folder of image files. Extract frames first, as with `ffmpeg"),
    ],
)
def test_bad_folder_is_one_sentence(command: Command, tmp_path: Path, name: str, message: str) -> None:
    for folder in ("one", "sizes", "damaged", "cut", "mixed", "mixed/inner"):
        write(tmp_path / folder / "a.png", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "frame.txt").write_text("no image")
    (tmp_path / "video.mp4").write_bytes(b"no folder")
    write(tmp_path / "sizes" / "b.png", 0, size=8)
    (tmp_path / "damaged" / "b.png").write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    write(tmp_path / "cut" / "b.png", noise)
    (tmp_path / "cut" / "b.png").write_bytes((tmp_path / "cut" / "b.png").read_bytes()[:-60])  # its header can be read
    done = command(*audited("bright", "--frames", name))
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--frames", "videos", "--protocol", "mouton2020"), "`audit --frames` takes no `--protocol`"),
        (("--frames", "videos", "--data", "photos"), "`audit --frames` takes no `--data`"),
        (("--pan", "one"), "`--pan` must be DOWN,RIGHT in pixels, not both 0, got 'one'"),
        (("--pan", "0,0"), "not both 0, got '0,0'"),
        (("--pan", "nan,1"), "got 'nan,1'"),
        (("--pan", "0,1", "--steps", "0"), "`--steps` must be 1 to 1,000, got 0"),
        (("--steps", "3"), "`--steps` is the number of steps of a pan"),
        (("--pan", "0,1", "--protocol", "mouton2020"), "`--pan` says how far images move, `--protocol` too"),
        (("--pan", "0,90", "--data", "photos"), "`--pan` moves images by up to 2,880 pixels"),
    ],
)
def test_options_that_contradict_are_refused(command: Command, words: tuple[str, ...], message: str) -> None:
    done = command(*audited("bright", *words))
    assert done.code == 2
    assert message in " ".join(done.err.split())


def words_of(done: Finished) -> str:
    return " ".join((done.out + done.err).split())


@pytest.mark.parametrize("name", ["bright", "masks", "exact", "deep"])
def test_report_makes_the_page_again(command: Command, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(*audited(name, "--frames", "videos", "--out", "out")).code == 0
    page, shown = Path("out/report.html"), list[str]()
    before = page.read_bytes()
    page.unlink()
    monkeypatch.setattr("webbrowser.open", lambda address: bool(shown.append(address)) or True)
    assert "Write it with `shiftscope report out`" in command("open", "out").err
    done = command("report", "out")
    assert (done.code, page.read_bytes()) == (0, before), done.err
    assert command("open", "out").code == 0
    assert shown == [page.resolve().as_uri()]
    Path("out/film.json").unlink()
    assert command("report", "out", "--out", "other.html").code == 0
    assert page.read_bytes() == before
    assert len(Path("other.html").read_bytes()) < len(before)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("flicker.json", "{", "out/flicker.json does not hold the flicker of videos (invalid JSON: EOF while parsing"),
        ("flicker.json", '{"schema_version": 2}', "written by a later version of shiftscope (schema 2, known up to 1)"),
        ("film.json", "{}", "out/film.json is damaged, or holds no frames. Remove it for a page without frames"),
        ("film.json", '{"measure": "mcs", "strips": []}', "out/film.json holds the frames of other videos"),
        ("flicker.json", None, "out holds no study, audit, certificate or flicker of videos"),
    ],
)
def test_damaged_folder_is_one_sentence(command: Command, file: str, content: str | None, message: str) -> None:
    assert command(*audited("bright", "--frames", "videos", "--out", "out")).code == 0
    Path("out", file).unlink()
    if content is not None:
        Path("out", file).write_text(content)
    done = command("report", "out")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert message in done.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("top-1 change > 0.99",), 0, "Gate is undecided: top-1 change from frame to frame 0.167 [0.000, 1.000]"),
        (("top-1 change > 0.1", "--strict"), 1, "Gate fails: top-1 change from frame to frame"),
        (("flicker > 1",), 0, "Gate passes: flicker from frame to frame 0.167 [0.000, 1.000], not above 1, over 2 videos."),
        (("top-1 change < 0.99", "--strict"), 1, "below 0.99, over 2 videos. From one frame to the next, the top class changes"),
        (("top-1 change < 2",), 2, "always fails: top-1 change lies between 0 and 1."),
        (("top-1 change of mouton2020 > 0.1",), 2, "names a protocol, and videos have none: frames are compared as they are."),
        (("mcs < 0.9",), 2, "does not take of these outputs. Choose from top1_change, neighbour_change, flicker."),
        (("top-1 change",), 2, "must be MEASURE > NUMBER"),
        (("top-1 change > 0", "--junit", "filmed.py/gate.xml"), 2, "`junit` filmed.py/gate.xml cannot be written"),
    ],
)
def test_condition_decides_the_exit_code(command: Command, words: tuple[str, ...], code: int, message: str) -> None:
    done = command(*audited("bright", "--frames", "videos", "--fail-if", *words))
    assert done.code == code
    assert message in words_of(done)


def test_verdict_goes_into_files(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "step.md")
    files = ("--summary", "gate.md", "--junit", "gate.xml", "--json")
    done = command(*audited("bright", "--frames", "videos/turns", "--fail-if", "top-1 change > 0.1", *files))
    gate = json.loads(done.out)["gate"]
    assert (done.code, gate["outcome"]) == (0, "undecided")
    assert gate["sentence"].endswith("over 1 video: one alone has no interval, so give several or --strict.")
    (suite,) = ElementTree.parse("gate.xml").getroot()
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    assert Path("gate.md").read_text().strip() == Path("step.md").read_text().strip()
    assert "### Stability from frame to frame" in Path("step.md").read_text()
    assert "need a condition" in command(*audited("bright", "--frames", "videos", "--strict")).err


def test_two_folders_are_compared_in_pairs_of_videos(command: Command) -> None:
    for name in ("exact", "snapping"):
        assert command(*audited(name, "--frames", "videos", "--out", name)).code == 0
    assert command(*audited("bright", "--frames", "videos", "--out", "bright")).code == 0
    done = command("compare", "exact", "snapping", "--json")
    content = json.loads(done.out)
    assert (content["paired"], content["measure"]) == (True, "box_survival")
    assert [each["sequence"] for each in content["sequences"]] == ["stays", "turns"]
    assert "snapping flickers exactly like exact in 2 videos; in others: change" in words_of(
        command("compare", "exact", "snapping")
    )
    Path("printed.json").write_text(command(*audited("exact", "--frames", "videos", "--json")).out)
    assert "exact/flicker.json flickers exactly like printed.json" in words_of(
        command("compare", "printed.json", "exact/flicker.json")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("bright", "masks"),
            "bright holds the change of top1_change, masks that of mASSC of segmentation: they cannot be compared",
        ),
        (("bright",), "bright holds the flicker of videos, and no study. Give another such folder to compare it with"),
        (("bright", "audit"), "bright holds the flicker of videos and audit holds an audit: they cannot be compared"),
        (("nothing", "bright"), "nothing cannot be read"),
        (("bright/film.json", "bright"), "bright/film.json holds no audit"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(command: Command, words: tuple[str, ...], message: str) -> None:
    video = torch.rand(3, 3, 8, 8)
    frames_flicker(lambda batch: batch.mean((2, 3)), video).save("bright")
    frames_flicker(lambda batch: batch[:, :2], video).save("masks")
    assert command("report", "bright").code == 0  # a folder that Python wrote has no film
    Path("bright/film.json").write_text("{}")
    if "audit" in words:
        options = ("--data", "photos", "--mode", "zero", "--max-shift", "1", "--protocol", "mouton2020", "--out", "audit")
        assert command(*audited("bright", *options)).code == 0
        over = command(*audited("bright", "--frames", "videos", "--out", "audit"))
        assert (over.code, "audit holds an audit or a certificate, whose files would be overwritten" in over.err) == (2, True)
    done = command("compare", *words)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert message in done.err


def test_check_refuses_videos_with_what_to_do_instead(command: Command) -> None:
    frames_flicker(lambda batch: batch.mean((2, 3)), torch.rand(3, 3, 8, 8)).save("bright")
    done = command("check", "bright")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "holds the flicker of videos, and `check` takes audits of images. Judge videos with `audit MODEL --frames" in done.err


def panned(name: str, *words: str) -> tuple[str, ...]:
    return audited(name, "--data", "photos", "--mode", "zero", "--pan", "0,0.5", "--steps", "8", *words)


@pytest.mark.parametrize(("name", "changes"), [("exact", [0] * 8), ("snapping", [0, 1, 0, 0, 0, 0, 0, 0])])
def test_pan_moves_boxes_back_by_parts_of_a_pixel(command: Command, name: str, changes: list[int]) -> None:
    """Boxes that follow the square's centre survive every step.

    Of those that snap to 4 pixels, the centre of 7 passes 8 at the second step: the box of 4 pixels jumps by 4, and is lost.
    """
    done = command(*panned(name, "--out", "out"))
    assert done.code == 0, done.err
    assert "interpolated bilinearly" in " ".join(done.out.split())
    content = json.loads(Path("out/audit.json").read_text())
    curve = [each for each in content["frames"] if each["against"] == "previous"]
    assert [each["shift"] for each in curve] == [[0, 0.5 * number] for number in range(1, 9)]
    found = [each["estimate"]["value"] for each in curve]
    assert found == changes
    assert f"answers change by {sum(changes) / 8:.3f}" in " ".join(done.out.split())
    film = read_film(Path("out"))
    assert film is not None
    assert [each.change for each in film.strips[0].frames] == [None, *found]
    assert film.strips[0].frames[2].at == "1 pixel right"
    assert len({each.picture for each in film.strips[0].frames}) > 1


def test_command_that_a_pan_recommends_measures_the_same_pan(command: Command) -> None:
    done = command(*panned("exact"))
    words = shlex.split(next(line for line in done.out.splitlines() if "shiftscope audit" in line).partition("shiftscope ")[2])
    again = command(*words)
    assert again.code == 0, again.err
    content = json.loads((Path(words[-1]) / "audit.json").read_text())
    assert (content["settings"]["pan"], content["settings"]["steps"]) == ([0, 0.5], 8)


@pytest.mark.parametrize(("name", "measure"), [("bright", "neighbour_change"), ("masks", "flicker"), ("deep", "flicker")])
def test_pan_of_classes_and_maps(command: Command, name: str, measure: str) -> None:
    done = command(*panned(name, "--out", "out"))
    assert done.code == 0, done.err
    content = json.loads(Path("out/audit.json").read_text())
    assert measure in {row["measure"] for row in content["rows"]}
    assert read_film(Path("out")) is not None
    again = command(*panned(name, "--out", "out"))
    assert again.code == 0
    assert json.loads(Path("out/audit.json").read_text())["rows"] == content["rows"]


@pytest.mark.parametrize(("step", "steps"), [((0.0, 0.0), 3), ((float("inf"), 0.0), 3), ((1.0, 0.0), 0)])
def test_pan_that_goes_nowhere_is_refused(step: tuple[float, float], steps: int) -> None:
    with pytest.raises(InputError):
        pan(step, steps)
