"""A page holds what its sections hold, lets nothing else run or load, and says what it cannot show."""

from __future__ import annotations

import json
import re
import shutil
import webbrowser
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pages
from shiftscope.cli import main
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.figures.study import write_figures
from shiftscope.report import Chart, Grid, Maps, Missing, Rows, Scatter, ShiftMap, render
from shiftscope.report.colours import SEQUENTIAL, ink
from shiftscope.report.gallery import galleries
from shiftscope.report.packing import COSINE_STEPS, PROBABILITY_STEPS, drag_data, map_picture
from shiftscope.report.write import study_page, write_report
from shiftscope.shifts import grid
from shiftscope.studies import records
from shiftscope.studies.folder import read_folder
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from shiftscope.surveys import per_shift_cosines
from shiftscope.tables import Table
from small import SMALL


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pages.trained(tmp_path_factory.mktemp("report"))


def copied(study: Path, tmp_path: Path) -> Path:
    shutil.copytree(study, tmp_path / "copy")
    return tmp_path / "copy"


def change_records(study: Path, **changes: object) -> None:
    for path in study.glob("runs/*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_page_is_one_file_under_a_strict_policy(study: Path) -> None:
    text = write_report(study).read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert not re.search(r"<[^>]+ (?:style|on\w+)=", re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL))
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(|https?://(?!www\.w3\.org)", text)
    assert len(text) < 3_000_000


def test_the_same_records_give_the_same_page(study: Path, tmp_path: Path) -> None:
    first, second = (write_report(study, out=tmp_path / name).read_bytes() for name in ("one.html", "two.html"))
    assert first == second


def test_what_is_packed_is_what_the_engine_said() -> None:
    shown = pages.drag(tuple("abc"), images=3)
    data = drag_data(shown)
    for network, packed in zip(shown.networks, data["networks"], strict=True):
        probabilities = np.frombuffer(b64decode(packed["probabilities"]), np.uint8).reshape(3, 25, 3) / PROBABILITY_STEPS
        cosines = np.frombuffer(b64decode(packed["cosines"]), "<i2").reshape(3, 25) / COSINE_STEPS
        tops = np.frombuffer(b64decode(packed["tops"]), "<u2").reshape(3, 25)
        assert np.abs(probabilities - network.outputs.values.softmax(-1).numpy()).max() <= 0.5 / PROBABILITY_STEPS + 1e-6
        assert np.abs(cosines - per_shift_cosines(network.outputs).numpy()).max() <= 0.5 / COSINE_STEPS + 1e-6
        assert (tops == network.outputs.values.argmax(-1).numpy()).all()
    assert b64decode(data["images"]) == shown.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()


def test_outputs_of_other_shifts_are_refused() -> None:
    shown = replace(pages.drag(("a", "b")), reach=3)
    with pytest.raises(InputError, match=r"the outputs of 'network 0' must be \(2, 49, 2\)"):
        render(pages.page_of(shown))


def test_a_networks_answers_in_the_page_are_the_engines_for_every_shift(study: Path) -> None:
    drags, missing = galleries(read_folder(study))
    assert missing == []
    (shown,) = drags
    assert [network.name for network in shown.networks] == ["subsampling factor 1", "subsampling factor 4"]
    assert len(shown.images) == 48
    assert shown.networks[0].outputs.shifts.tolist() == grid(6).tolist()


def test_without_weights_the_page_says_so_and_shows_the_rest(study: Path, tmp_path: Path) -> None:
    page = study_page(pages.without(study, "model.safetensors", 0, tmp_path / "bare"))
    missing = next(section for section in page.sections if isinstance(section, Missing))
    assert missing.sentences[0] == "subsampling factor 1: no weights are kept beside its records, so it cannot answer a drag."
    assert "All measured numbers" in [section.title for section in page.sections]


def test_without_its_images_the_page_says_how_to_give_them(study: Path, tmp_path: Path) -> None:
    copy = copied(study, tmp_path)
    for path in copy.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        record["provenance"]["data_sha256"] = "0" * 64
        path.write_text(json.dumps(record))
    _, missing = galleries(read_folder(copy))
    assert "trained on other images (sha256 000000000000" in missing[0]
    assert "--data-dir" in missing[0]


def test_records_of_an_older_form_are_shown_as_they_stand(study: Path, tmp_path: Path) -> None:
    copy = pages.without(study, "record.json", 2, tmp_path / "older")
    change_records(copy, schema_version=records.RECORD_VERSION - 1)
    held = read_folder(copy)
    assert (held.runs_finished, held.runs_planned) == (0, 4)
    text = render(study_page(copy))
    assert "0 of 4 runs are finished, 2 more are known from records of an older form." in text
    assert f"has a record of version {records.RECORD_VERSION - 1}; the current version is {records.RECORD_VERSION}" in text


def test_a_measure_that_no_record_holds_is_left_out(study: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = copied(study, tmp_path)
    for path in copy.glob("runs/*/measures.safetensors"):
        save_file({name: values for name, values in load_file(path).items() if "centred" not in name and name != "map.mcs"}, path)
    page = study_page(copy)
    titles = [section.title for section in page.sections]
    assert "mcs_centred" not in read_folder(copy).table().columns
    assert "Sensitivity maps" not in titles
    assert "What of it decides the answer" not in titles
    assert render(page)


def test_a_damaged_record_is_left_out_and_named(study: Path, tmp_path: Path) -> None:
    copy = copied(study, tmp_path)
    damaged = sorted(copy.glob("runs/*/record.json"))[0]
    damaged.write_text("{")
    held = read_folder(copy)
    assert held.runs_finished == 3
    assert f"{damaged} is damaged (not a whole record); the run is left out." in held.missing


def test_an_empty_study_gives_a_page(study: Path, tmp_path: Path) -> None:
    page = study_page(pages.without(study, "record.json", 0, tmp_path / "empty"))
    assert page.answer == "Nothing has been measured yet: no run of this study is finished."
    assert "0 of 4 runs are finished" in render(page)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.json cannot be read"):
        write_report(tmp_path)


def test_what_cannot_be_written_is_told(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"report\.html cannot be written \(.*\)\. Make room, or choose another place with --out"
    ):
        write_report(study, out=tmp_path / "file" / "report.html")
    with pytest.raises(InputError, match=r"mcs_curve\.svg cannot be written"):
        write_figures(study, out=tmp_path / "file", formats=("svg",))


def test_a_page_has_room_for_fewer_images_and_then_for_fewer_networks(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = 13 * 13 * 14
    monkeypatch.setattr("shiftscope.report.gallery.BUDGET", 6 * (2 * answers + 100))
    ((shown,), _) = galleries(read_folder(study))
    assert (len(shown.images), len(shown.networks)) == (6, 2)
    monkeypatch.setattr("shiftscope.report.gallery.BUDGET", 5 * (answers + 100))
    ((shown,), _) = galleries(read_folder(study))
    assert (len(shown.images), len(shown.networks)) == (5, 1)
    assert "room for 1 of 2 networks" in shown.caption


def test_variants_have_a_gallery_each_and_share_the_room(tmp_path: Path) -> None:
    variants = '[variants."<small>"]\ndata.canvas = 22\n[variants.large]\ndata.canvas = 26\n[grid]\nnetwork.factor = [4]\n'
    text = SMALL.partition("[grid]")[0].replace("seeds = 2", "seeds = 1").replace("canvas = 22\n", "") + variants
    (tmp_path / "variants.toml").write_text(text)
    run_study(load_study(str(tmp_path / "variants.toml")), out=tmp_path / "study")
    drags, missing = galleries(read_folder(tmp_path / "study"))
    assert missing == []
    assert [(shown.title, shown.canvas) for shown in drags] == [("Drag the image: <small>", 22), ("Drag the image: large", 26)]
    page = study_page(tmp_path / "study")
    assert not any(isinstance(section, Missing) for section in page.sections), "a study without a source lacks nothing"
    assert "Drag the image: &lt;small&gt;" in render(page)


def test_the_answer_names_the_least_and_the_most(study: Path) -> None:
    rows = {row["factor"]: row["mcs"].value for row in read_folder(study).table().rows}
    answer = study_page(study).answer
    least, most = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
    assert f"{rows[least]:.2f} at subsampling factor {least} and of {rows[most]:.2f} at subsampling factor {most}" in answer


TABLE = Table(
    "T",
    ("factor", "kernel", "mcs", "accuracy", "source_mcs"),
    tuple(
        {
            "factor": factor,
            "kernel": kernel,
            "mcs": None if factor == kernel == 2 else Estimate(0.1 * factor + 0.01 * kernel, 0.1, 0.9, count=5),
            "accuracy": 0.9 - 0.1 * factor,
            "source_mcs": 0.3,
        }
        for factor in (2, 1)
        for kernel in (2, 3)
    ),
)


def test_figures_mark_every_number_of_their_table() -> None:
    text = render(
        pages.page_of(
            Chart("C", "", TABLE, "factor", "mcs", ("kernel",)),
            Grid("G", "", TABLE, "factor", "kernel", {"ours": "mcs"}),
            Scatter("S", "", TABLE, "mcs", "accuracy", ("factor", "kernel")),
        )
    )
    wide = re.sub(r'<div class="narrow">.*?</svg>', "", text, flags=re.DOTALL)
    for row in TABLE.rows:
        if row["mcs"] is not None:
            assert f'data-tip="kernel {row["kernel"]}\nfactor {row["factor"]}\nmcs {row["mcs"]}"' in wide
            assert f'data-tip="ours: factor {row["factor"]}, kernel {row["kernel"]}\n{row["mcs"]}"' in wide
            assert f'data-tip="factor {row["factor"]}, kernel {row["kernel"]}\nmcs {row["mcs"]}\naccuracy' in wide
    assert wide.count('class="printed') == 4
    assert "ours: factor 2, kernel 2\nnot measured" in wide


def test_settings_of_words_have_points_without_a_line_and_names_that_do_not_overlap() -> None:
    names = [f"a rather long name, number {number}" for number in range(8)]
    rows = tuple({"variant": name, "mcs": Estimate(0.5, 0.4, 0.6, count=5)} for name in names)
    words = render(pages.page_of(Chart("C", "", Table("T", ("variant", "mcs"), rows), "variant", "mcs")))
    numbers = render(pages.page_of(Chart("C", "", TABLE, "factor", "mcs", ("kernel",))))
    assert "<polyline" not in words
    assert "<polyline" in numbers
    for name in names:
        assert re.search(rf"<text[^>]*rotate\(-30\)[^>]*>{name}<", words)
    assert "rotate(-30)" not in numbers


def test_sections_without_anything_to_draw_are_left_out() -> None:
    bare = Table("T", ("factor", "mcs"), ({"factor": 1}, {"factor": 2}))
    text = render(
        pages.page_of(
            Chart("Chart", "", bare, "factor", "mcs"),
            Grid("Grid", "", bare, "factor", "factor", {"ours": "mcs"}),
            Scatter("Scatter", "", bare, "mcs", "mcs", ()),
            Maps("Maps", "", ()),
            Rows("Rows", "", bare),
        )
    )
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", text) == ["Rows", "Provenance"]


def test_a_map_has_a_pixel_a_shift_and_equal_maps_have_a_scale() -> None:
    from io import BytesIO

    from PIL import Image

    values = torch.linspace(0, 1, 9)
    picture = Image.open(BytesIO(b64decode(map_picture(values, 0.0, 1.0).partition(",")[2])))
    assert picture.size == (3, 3)
    assert picture.getpixel((0, 0)) == SEQUENTIAL[0]
    assert picture.getpixel((2, 2)) == SEQUENTIAL[-1]
    assert "0.50</span><canvas" in render(pages.page_of(Maps("M", "", (ShiftMap("one", torch.ones(9), 1),))))


def test_numbers_in_heat_maps_can_be_read() -> None:
    assert (ink((18, 24, 58)), ink((244, 236, 146))) == ("#ffffff", "#111111")


def test_figures_are_written_and_those_left_out_are_named(study: Path, tmp_path: Path) -> None:
    written, left_out = write_figures(study, out=tmp_path / "figures", formats=("svg",))
    of_settings = ["mcs_curve", "mcs_centred_curve", "test_accuracy_curve", "sensitivity", "accuracy_invariance"]
    assert written == [*of_settings, "mcs_shift", "top1_change_shift", "layers"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{name}.svg" for name in written}
    assert "mcs_grid: it needs two settings that vary, and this study varies 1." in left_out
    assert "antialias: no setting is measured both with and without a filter." in left_out


def test_figures_of_a_study_without_runs_are_refused(study: Path, tmp_path: Path) -> None:
    empty = pages.without(study, "record.json", 0, tmp_path / "none")
    with pytest.raises(InputError, match="holds no finished run"):
        write_figures(empty, out=tmp_path / "figures")


def test_report_and_open_from_the_command_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(study, tmp_path)
    (copy / "report.html").unlink(missing_ok=True)
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not asked.append(url))
    assert main(["open", str(copy)]) == 2
    assert "holds no report.html. Write it with `shiftscope report" in capsys.readouterr().err
    assert main(["report", str(copy)]) == 0
    assert main(["open", str(copy)]) == 0
    assert asked == [(copy / "report.html").resolve().as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    assert main(["open", str(copy)]) == 2
    assert "no browser could be started here. Open" in capsys.readouterr().err


def test_figures_from_the_command_line(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", str(study), "--out", str(tmp_path / "figures"), "--format", "svg"]) == 0
    printed = capsys.readouterr().out
    assert "Left out: causes: it needs a breakdown by cause" in printed
    assert "mcs_curve, mcs_centred_curve" in printed
