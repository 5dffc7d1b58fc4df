"""Videos and pans from the command line: numbers are those of models with known changes, bad folders are refused."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.conftest import Command
from shiftscope.audits.film import read_film
from shiftscope.audits.protocols import pan
from shiftscope.errors import InputError

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
        (("--pan", "0,90", "--data", "photos"), "`max_shift`"),
    ],
)
def test_options_that_contradict_are_refused(command: Command, words: tuple[str, ...], message: str) -> None:
    done = command(*audited("bright", *words))
    assert done.code == 2
    assert message in " ".join(done.err.split())


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


@pytest.mark.parametrize(("name", "measure"), [("bright", "neighbour_change"), ("masks", "flicker")])
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
