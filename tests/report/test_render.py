"""A rendered page shows what its sections contain, and runs and loads nothing else."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pages
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.report import Chart, Grid, Maps, Missing, Rows, Scatter, ShiftMap, render
from shiftscope.report.colours import SEQUENTIAL
from shiftscope.report.packing import COSINE_STEPS, PROBABILITY_STEPS, drag_data, map_picture
from shiftscope.surveys import per_shift_cosines
from shiftscope.tables import Table

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
MEASURED = [row for row in TABLE.rows if row["mcs"] is not None]
CHART = Chart("C", "", TABLE, "factor", "mcs", ("kernel",))
NAMES = [f"a rather long name, number {number}" for number in range(8)]
WORDS = Table("T", ("variant", "mcs"), tuple({"variant": name, "mcs": Estimate(0.5, 0.4, 0.6, count=5)} for name in NAMES))


def tips(*sections: Any) -> set[str]:
    """The tips of the drawings for a desktop."""
    return set(re.findall(r'data-tip="([^"]*)"', drawn_wide(*sections)))


def drawn_wide(*sections: Any) -> str:
    return re.sub(r'<div class="narrow">.*?</svg>', "", render(pages.page_of(*sections)), flags=re.DOTALL)


def headings(sections: Iterable[Any]) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", render(pages.page_of(*sections)))


def test_chart_marks_every_number() -> None:
    expected = {
        f"kernel {row['kernel']}\nsubsampling factor {row['factor']}\nmean cosine similarity {row['mcs']}" for row in MEASURED
    }
    source = {
        f"the source\nkernel {row['kernel']}, subsampling factor {row['factor']}\nmean cosine similarity 0.300"
        for row in TABLE.rows
    }
    assert tips(CHART) == expected | source


def test_grid_marks_every_number_and_every_gap() -> None:
    grid = Grid("G", "", TABLE, "factor", "kernel", {"ours": "mcs"})
    expected = {f"ours: subsampling factor {row['factor']}, kernel {row['kernel']}\n{row['mcs']}" for row in MEASURED}
    assert tips(grid) == expected | {"ours: subsampling factor 2, kernel 2\nnot measured"}


def test_scatter_marks_every_row_with_both_numbers() -> None:
    scatter = Scatter("S", "", TABLE, "mcs", "accuracy", ("factor", "kernel"))
    expected = {
        f"subsampling factor {row['factor']}, kernel {row['kernel']}\nmean cosine similarity {row['mcs']}\n"
        f"accuracy {row['accuracy']:.3f}"
        for row in MEASURED
    }
    assert tips(scatter) == expected


def test_names_of_close_points_do_not_overlap() -> None:
    rows = tuple({"kind": f"kind {place}", "mcs": 0.6 + 0.01 * place, "accuracy": 0.9 - 0.001 * place} for place in range(4))
    text = drawn_wide(Scatter("S", "", Table("T", ("kind", "mcs", "accuracy"), rows), "mcs", "accuracy", ("kind",)))
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name"', text)
    assert len(places) == 4
    for number, (x, y) in enumerate(places):
        assert all(abs(float(x) - float(a)) > 40 or abs(float(y) - float(b)) > 11 for a, b in places[:number])


def test_lines_beyond_the_colours_are_dashed() -> None:
    rows = tuple({"kind": f"kind {place}", "factor": factor, "mcs": 0.1 * place} for place in range(7) for factor in (1, 2))
    text = drawn_wide(Chart("C", "", Table("T", ("kind", "factor", "mcs"), rows), "factor", "mcs", ("kind",)))
    assert text.count('class="line s0 dashed"') == text.count('class="line s0"') == 1


@pytest.mark.parametrize(("values", "ends"), [((-0.95, 0.8), (-1, 1)), ((0.02, 0.9), (0, 1))])
def test_axis_of_cosines_ends_at_their_bounds(values: tuple[float, float], ends: tuple[int, int]) -> None:
    rows = tuple({"factor": factor, "mcs": value} for factor, value in enumerate(values))
    text = drawn_wide(Chart("C", "", Table("T", ("factor", "mcs"), rows), "factor", "mcs"))
    ticks = [float(tick) for tick in re.findall(r'class="tick" text-anchor="end">([^<]*)<', text)]
    assert (ticks[0], ticks[-1]) == ends


def test_interval_without_an_end_ends_at_the_frame() -> None:
    rows = tuple({"frame": number, "change": Estimate(0.2 * number, 0.0, float("inf"), 1)} for number in (1, 2))
    text = drawn_wide(Chart("C", "", Table("T", ("frame", "change"), rows), "frame", "change"))
    first, second = (float(y) for y in re.findall(r'cy="([^"]*)"', text))
    whiskers = [(float(low), float(high)) for low, high in re.findall(r'y1="([^"]*)" y2="([^"]*)" class="whisker', text)]
    assert "change 0.200 [0.000, inf]" in text
    assert len(whiskers) == 2 and whiskers[0] == whiskers[1]
    low, high = whiskers[0]
    assert high < second < first < low
    assert first - second == pytest.approx(low - first, abs=0.2)  # 0.4 lies as far above 0.2 as that above 0


def test_chart_over_words_has_points_but_no_line() -> None:
    assert "<polyline" not in drawn_wide(Chart("C", "", WORDS, "variant", "mcs"))
    assert "<polyline" in drawn_wide(CHART)


def test_long_tick_labels_are_turned() -> None:
    text = drawn_wide(Chart("C", "", WORDS, "variant", "mcs"))
    assert all(re.search(rf"<text[^>]*rotate\(-30\)[^>]*>{name}<", text) for name in NAMES)
    assert "rotate(-30)" not in drawn_wide(CHART)


def test_sections_without_content_are_left_out() -> None:
    empty = Table("T", ("factor", "mcs"), ({"factor": 1}, {"factor": 2}))
    sections = [
        Chart("Chart", "", empty, "factor", "mcs"),
        Grid("Grid", "", empty, "factor", "factor", {"ours": "mcs"}),
        Scatter("Scatter", "", empty, "mcs", "mcs", ()),
        Maps("Maps", "", ()),
        Rows("Rows", "", empty),
        Missing("Missing", "", ("a map",)),
    ]
    assert headings(sections) == ["Rows", "Missing", "Provenance"]


def test_table_headings_are_words_and_csv_columns_short_names() -> None:
    text = render(pages.page_of(Rows("Rows", "", TABLE)))
    names = re.findall(r'class="sort">([^<]*)<', text)
    assert names == [
        "subsampling factor",
        "kernel",
        "mean cosine similarity",
        "accuracy",
        "source: mean cosine similarity",
    ]
    assert "factor,kernel,mcs,mcs_low,mcs_high,accuracy,source_mcs" in text


def test_packed_outputs_are_those_of_the_engine() -> None:
    section = pages.drag(tuple("abc"), images=3)
    data = drag_data(section)
    for network, packed in zip(section.networks, data["networks"], strict=True):
        probabilities = np.frombuffer(b64decode(packed["probabilities"]), np.uint8).reshape(3, 25, 3) / PROBABILITY_STEPS
        cosines = np.frombuffer(b64decode(packed["cosines"]), "<i2").reshape(3, 25) / COSINE_STEPS
        tops = np.frombuffer(b64decode(packed["tops"]), "<u2").reshape(3, 25)
        assert np.abs(probabilities - network.outputs.values.softmax(-1).numpy()).max() <= 0.5 / PROBABILITY_STEPS + 1e-6
        assert np.abs(cosines - per_shift_cosines(network.outputs).numpy()).max() <= 0.5 / COSINE_STEPS + 1e-6
        assert (tops == network.outputs.values.argmax(-1).numpy()).all()
    assert b64decode(data["images"]) == section.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()


def test_outputs_of_other_shifts_are_refused() -> None:
    section = replace(pages.drag(("a", "b")), reach=3)
    with pytest.raises(InputError, match=r"The outputs of 'network 0' must have shape \(2, 49, 2\)"):
        render(pages.page_of(section))


def test_map_picture_has_a_pixel_for_each_shift() -> None:
    picture = Image.open(BytesIO(b64decode(map_picture(torch.linspace(0, 1, 9), 0.0, 1.0).partition(",")[2])))
    assert picture.size == (3, 3)
    assert picture.getpixel((0, 0)) == SEQUENTIAL[0]
    assert picture.getpixel((2, 2)) == SEQUENTIAL[-1]


def test_constant_map_has_a_scale_around_its_value() -> None:
    text = render(pages.page_of(Maps("M", "", (ShiftMap("one", torch.ones(9), 1),))))
    assert "0.50</span><canvas" in text
    assert "</canvas><span>1.50" in text


def test_answer_has_its_first_sentence_large_and_the_rest_below() -> None:
    html = render(replace(pages.page_of(), answer="It is 0.784 ± 0.032. 89 % is due to the head."))
    assert '<p class="answer" dir="auto">It is 0.784 ± 0.032.</p>' in html
    assert '<p class="rest" dir="auto">89\u00a0% is due to the head.</p>' in html
    assert 'class="rest"' not in render(pages.page_of())


def test_caption_keeps_a_number_and_its_per_cent_sign_on_one_line() -> None:
    assert "with 95\u00a0% intervals" in render(pages.page_of(replace(CHART, caption="Means with 95 % intervals.")))
