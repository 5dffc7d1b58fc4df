"""A study's page shows what its folder holds, and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
import webbrowser
from pathlib import Path

import pytest

import pages
from shiftscope.cli import main
from shiftscope.errors import InputError
from shiftscope.report import Missing, render
from shiftscope.report.gallery import drag_sections
from shiftscope.report.study import study_page
from shiftscope.report.write import write_report
from shiftscope.shifts import grid
from shiftscope.studies import records
from shiftscope.studies.folder import read_folder
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from shiftscope.studies.storage import pack, unpack
from small import SMALL

#: Size of a network's outputs for an image of the small study: 13 x 13 shifts, 10 probabilities, a cosine and a top class.
OUTPUTS = 13 * 13 * 14
IMAGE = 10 * 10


def copied(study: Path, tmp_path: Path) -> Path:
    shutil.copytree(study, tmp_path / "copy")
    return tmp_path / "copy"


def test_page_is_one_file_under_a_strict_policy(study: Path) -> None:
    text = write_report(study).read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert not re.search(r"<[^>]+ (?:style|on\w+)=", re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL))
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(|https?://(?!www\.w3\.org)", text)
    assert len(text) < 3_000_000


def test_same_records_give_same_page(study: Path, tmp_path: Path) -> None:
    first, second = (write_report(study, out=tmp_path / name).read_bytes() for name in ("one.html", "two.html"))
    assert first == second


def test_page_in_the_study_folder_has_the_main_figure_beside_it(study: Path, tmp_path: Path) -> None:
    copy = copied(study, tmp_path)
    for figure in copy.glob("figure.*"):
        figure.unlink()
    write_report(copy, out=tmp_path / "elsewhere.html")
    assert list(copy.glob("figure.*")) == []
    write_report(copy)
    assert (copy / "figure.png").stat().st_size > 1000
    assert "mean cosine similarity" in (copy / "figure.svg").read_text()


def test_answer_names_the_least_and_the_most(study: Path) -> None:
    results = read_folder(study)
    rows = {row["factor"]: row["mcs"].value for row in results.table().rows}
    low, high = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
    start, _, end = study_page(results).answer.partition("; ")
    assert start == (
        "After a shift of up to 6 pixels, the mean cosine similarity of the outputs is "
        f"{rows[low]:.2f} with subsampling factor {low} and {rows[high]:.2f} with subsampling factor {high}"
    )
    assert re.fullmatch(r"the top class changes for \d+( to \d+)? % of the images\.", end)


def test_drag_section_holds_every_shift_of_both_networks(study: Path) -> None:
    (section,), missing = drag_sections(read_folder(study))
    assert missing == []
    assert [network.factor for network in section.networks] == [1, 4]
    assert len(section.images) == 48
    assert all(network.outputs.shifts.tolist() == grid(6).tolist() for network in section.networks)


def test_study_without_weights_has_a_page_that_says_so(study: Path, tmp_path: Path) -> None:
    page = study_page(read_folder(pages.without(study, "model.safetensors", 0, tmp_path / "bare")))
    missing = next(section for section in page.sections if isinstance(section, Missing))
    assert "subsampling factor 1: its folder holds no weights, so its predictions cannot be computed." in missing.sentences[0]
    assert "All measured numbers" in [section.title for section in page.sections]


def test_study_of_other_images_has_a_page_that_says_how_to_give_them(study: Path, tmp_path: Path) -> None:
    copy = copied(study, tmp_path)
    for path in copy.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        record["provenance"]["data_sha256"] = "0" * 64
        path.write_text(json.dumps(record))
    _, missing = drag_sections(read_folder(copy))
    assert "trained on other images (sha256 000000000000" in missing[0]
    assert "--data-dir" in missing[0]


def test_records_of_an_older_version_are_shown_and_named(study: Path, tmp_path: Path) -> None:
    copy = pages.without(study, "record.json", 2, tmp_path / "older")
    for path in copy.glob("runs/*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": records.RECORD_VERSION - 1}))
    results = read_folder(copy)
    assert (results.runs_finished, results.runs_planned) == (0, 4)
    page = study_page(results)
    assert "0 of 4 runs are finished, and 2 more have records of an older version." in page.warning
    assert all(reason in render(page) for reason in results.missing)


def test_measure_that_no_record_holds_is_left_out(study: Path, tmp_path: Path) -> None:
    copy = copied(study, tmp_path)
    for path in copy.glob("runs/*/measures.safetensors.xz"):
        tensors = unpack(path.read_bytes())
        path.write_bytes(pack({name: each for name, each in tensors.items() if "centred" not in name and name != "map.mcs"}))
    results = read_folder(copy)
    text = render(study_page(results))
    assert "mcs_centred" not in results.table().columns
    assert "Sensitivity maps" not in text
    assert "Centred cosine similarity" not in text


def test_damaged_record_is_left_out_and_named(study: Path, tmp_path: Path) -> None:
    copy = copied(study, tmp_path)
    damaged = sorted(copy.glob("runs/*/record.json"))[0]
    damaged.write_text("{")
    results = read_folder(copy)
    assert results.runs_finished == 3
    assert any(f"{damaged} is damaged" in reason for reason in results.missing)


def test_study_without_records_has_a_page(study: Path, tmp_path: Path) -> None:
    page = study_page(read_folder(pages.without(study, "record.json", 0, tmp_path / "empty")))
    assert page.answer == "Nothing has been measured yet: no run of this study is finished."
    assert "0 of 4 runs are finished" in render(page)


def test_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no study"):
        write_report(tmp_path)


def test_unwritable_page_is_reported(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"report\.html cannot be written") as caught:
        write_report(study, out=tmp_path / "file" / "report.html")
    assert caught.value.remedy == "Make room, or choose another file with --out."


@pytest.mark.parametrize(("room", "images", "networks"), [(6 * (2 * OUTPUTS + IMAGE), 6, 2), (5 * (OUTPUTS + IMAGE), 5, 1)])
def test_small_page_has_fewer_images_and_then_fewer_networks(
    study: Path, monkeypatch: pytest.MonkeyPatch, room: int, images: int, networks: int
) -> None:
    monkeypatch.setattr("shiftscope.report.gallery.MAX_BYTES", room)
    ((section,), _) = drag_sections(read_folder(study))
    assert (len(section.images), len(section.networks)) == (images, networks)
    assert ("room for 1 of 2 networks" in section.caption) == (networks == 1)


def test_variants_have_a_section_each(tmp_path: Path) -> None:
    variants = '[variants."<small>"]\ndata.canvas = 22\n[variants.large]\ndata.canvas = 26\n[grid]\nnetwork.factor = [4]\n'
    text = SMALL.partition("[grid]")[0].replace("seeds = 2", "seeds = 1").replace("canvas = 22\n", "") + variants
    (tmp_path / "variants.toml").write_text(text)
    run_study(load_study(str(tmp_path / "variants.toml")), out=tmp_path / "study")
    page = study_page(read_folder(tmp_path / "study"))
    canvases = {section.title: section.canvas for section in page.sections if hasattr(section, "canvas")}
    assert canvases == {"Drag the image: <small>": (22, 22), "Drag the image: large": (26, 26)}
    assert not any(isinstance(section, Missing) for section in page.sections), "a study without a source lacks nothing"
    assert "Drag the image: &lt;small&gt;" in render(page)


def test_report_and_open_commands(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(study, tmp_path)
    (copy / "report.html").unlink(missing_ok=True)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    assert main(["open", str(copy)]) == 2
    assert "report.html" in capsys.readouterr().err
    assert main(["report", str(copy)]) == 0
    assert main(["open", str(copy)]) == 0
    assert opened == [(copy / "report.html").resolve().as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    assert main(["open", str(copy)]) == 2
    assert str(copy / "report.html") in capsys.readouterr().err
