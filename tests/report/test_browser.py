"""A page in a real browser, opened from disk without a network: dragged, sorted, saved, and checked for accessibility."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

import pages
from shiftscope.audits.pictures import data_url
from shiftscope.datasets.dataset import load
from shiftscope.models import load_model
from shiftscope.report import render
from shiftscope.report.content import Film, FilmFrame
from shiftscope.report.gallery import balanced
from shiftscope.report.write import write_report
from shiftscope.shifts import grid, translate
from shiftscope.studies.folder import read_folder
from shiftscope.theory import correlate, homogeneity, respond, subsample, worked_tables
from shiftscope.theory import translate as translate_signal

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

AXE = Path(__file__).parents[1] / "vendor" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def report(study: Path) -> Path:
    """The page of the trained study."""
    return write_report(study)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with pages.browser() as opened:
        yield opened


@dataclass
class Opened:
    """A page in the browser, its console messages and its requests."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).strip()


@pytest.fixture
def show(chromium: Any) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def opened(path: Path, width: int = 1280, **options: Any) -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        shown = Opened(context.new_page())
        shown.page.set_default_timeout(10_000)
        shown.page.on("console", lambda message: shown.messages.append(message.text))
        shown.page.on("pageerror", lambda error: shown.messages.append(str(error)))
        shown.page.on("dialog", lambda dialog: (shown.messages.append(dialog.message), dialog.dismiss()))
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.goto(path.resolve().as_uri())
        return shown

    yield opened
    for context in contexts:
        context.close()


def write(folder: Path, *sections: Any, title: str = "A page") -> Path:
    path = folder / "page.html"
    path.write_text(render(pages.page_of(*sections, title=title)), encoding="utf-8")
    return path


@lru_cache
def network_and_canvas(study: Path, cell: int, image: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a cell's first network, and an image of the page on its canvas."""
    runs = read_folder(study).cells[cell]
    data = load(runs.planned[0].data)
    index = int(balanced(data.test.labels, image + 1)[image])
    return load_model(str(runs.folders[0])).model, data.canvas.place(data.test.images[index : index + 1])


def predict(study: Path, cell: int, image: int, dy: int, dx: int) -> tuple[torch.Tensor, float]:
    """Run a network on a shifted test image: its probabilities, and the cosine of its outputs before and after."""
    model, canvas = network_and_canvas(study, cell, image)
    with torch.inference_mode():
        before, after = model(canvas), model(translate(canvas, torch.tensor([[dy, dx]])))
    return after.softmax(-1)[0], float(torch.cosine_similarity(before, after)[0])


def shown_prediction(opened: Opened, panel: int) -> tuple[str, list[int], float]:
    """Return the predicted class, the percentages and the cosine that the page shows for one of its two networks."""
    network = opened.page.locator(".network").nth(panel)
    shares = [int(text.split()[0]) for text in network.locator(".share").all_inner_texts()]
    return network.locator(".class").inner_text(), shares, float(network.locator(".cosine b").inner_text())


def assert_shows_prediction(opened: Opened, study: Path, image: int, dy: int, dx: int, cells: tuple[int, int] = (0, 1)) -> None:
    for panel, cell in enumerate(cells):
        probabilities, cosine = predict(study, cell, image, dy, dx)
        top, shares, similarity = shown_prediction(opened, panel)
        assert top == str(int(probabilities.argmax()))
        assert shares == pytest.approx([100 * float(each) for each in probabilities], abs=0.75)
        assert similarity == pytest.approx(cosine, abs=6e-4)


def test_page_opens_from_disk_without_requests_or_messages(report: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    opened.page.wait_for_timeout(500)
    assert opened.messages == []
    assert {url.partition(":")[0] for url in opened.requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in opened.requests) == 1


def test_table_shows_the_numbers_of_the_records(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    section = opened.page.locator("section.rows", has_text="All measured numbers")
    table = read_folder(study).table()
    for row, expected in zip(section.locator("tbody tr").all(), table.rows, strict=True):
        cells = [re.sub(r"\s+", " ", text).strip() for text in row.locator("td").all_inner_texts()]
        printed = [
            f"{cell}" if not isinstance(cell, float) else f"{cell:.3f}" for cell in (expected.get(name) for name in table.columns)
        ]
        assert [re.sub(r"[\[\],]", "", text).replace(" to ", " ") for text in cells] == [
            "" if text == "None" else re.sub(r"[\[\],]", "", text) for text in printed
        ]


def test_dragging_with_the_mouse_shows_predictions(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    opened.page.locator(".stage").scroll_into_view_if_needed()
    box = opened.page.locator(".stage").bounding_box()
    step = box["width"] / 22
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.move(x, y)
    opened.page.mouse.down()
    opened.page.mouse.move(x + 3 * step, y - 2 * step, steps=4)
    opened.page.mouse.up()
    assert opened.text(".shift") == "3 pixels right, 2 up"
    assert_shows_prediction(opened, study, image=0, dy=-2, dx=3)
    opened.page.mouse.move(x, y)
    assert opened.text(".shift") == "3 pixels right, 2 up", "a released image must stay"


def test_dragging_with_a_finger_stops_at_the_edge_of_the_grid(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report, width=390, has_touch=True)
    opened.page.locator(".stage").scroll_into_view_if_needed()
    box = opened.page.locator(".stage").bounding_box()
    x, y = box["x"] + 60, box["y"] + 60
    client = opened.page.context.new_cdp_session(opened.page)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + 20, "y": y + 20}]),
        ("touchMove", [{"x": x + 400, "y": y + 300}]),
        ("touchEnd", []),
    ):
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert opened.text(".shift") == "6 pixels right, 6 down"
    assert_shows_prediction(opened, study, image=0, dy=6, dx=6)


def test_arrow_keys_sliders_and_buttons_move_the_image(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    opened.page.focus(".stage")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        opened.page.keyboard.press(key)
    assert opened.text(".shift") == "1 pixel left, 2 down"
    assert_shows_prediction(opened, study, image=0, dy=2, dx=-1)
    opened.page.locator(".status", has_text="1 pixel left, 2 down.").first.wait_for()
    opened.page.keyboard.press("Home")
    assert opened.text(".shift") == "not shifted"
    opened.page.fill(".dx", "-4")
    assert opened.text(".shift") == "4 pixels left"
    opened.page.click(".reset")
    assert opened.text(".shift") == "not shifted"


def test_choosing_image_and_network_shows_their_predictions(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    opened.page.focus(".thumbs input >> nth=0")
    for _ in range(3):
        opened.page.keyboard.press("ArrowRight")
    opened.page.locator(".network select").nth(1).select_option(index=0)
    opened.page.focus(".stage")
    opened.page.keyboard.press("ArrowUp")
    assert_shows_prediction(opened, study, image=3, dy=-1, dx=0, cells=(0, 0))
    assert "every shift is a multiple of it" in opened.text(".network >> nth=1")
    opened.page.locator(".network select").nth(1).select_option(label="subsampling factor 4")
    assert_shows_prediction(opened, study, image=3, dy=-1, dx=0)
    dots = 3 * 3  # multiples of 4 within 6 pixels, along each axis
    assert opened.page.locator(".network >> nth=1").locator(".lattice").count() == dots


def test_button_moves_to_the_nearest_change(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    opened.page.click(".nearest")
    player = "shiftscope.players[0]"
    dy, dx = opened.page.evaluate(f"[{player}.dy, {player}.dx]")
    changed = [
        float(torch.tensor([y, x]).square().sum())
        for y, x in grid(6).tolist()
        if any(
            int(predict(study, cell, 0, y, x)[0].argmax()) != int(predict(study, cell, 0, 0, 0)[0].argmax()) for cell in (0, 1)
        )
        and y * y + x * x <= dy * dy + dx * dx
    ]
    assert min(changed) == dy * dy + dx * dx
    assert opened.page.locator(".network.changed").count() >= 1


def test_clicking_the_map_moves_the_image(report: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    box = opened.page.locator(".mapbox").first
    box.scroll_into_view_if_needed()
    size = box.bounding_box()["width"] / 13
    box.click(position={"x": 8.5 * size, "y": 3.5 * size})
    assert opened.text(".shift") == "2 pixels right, 3 up"
    assert [box.locator(".here").last.get_attribute(name) for name in ("cx", "cy")] == ["8.5", "3.5"]


def test_sorting_is_numerical_and_keeps_empty_cells_last(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    section = opened.page.locator("section.rows", has_text="All measured numbers")
    place = list(read_folder(study).table().columns).index("source_mcs") + 1
    button = section.locator(f"th:nth-child({place}) button")
    for direction in ("ascending", "descending"):
        button.click()
        assert section.locator(f"th:nth-child({place})").get_attribute("aria-sort") == direction
        assert section.locator(f"tbody td:nth-child({place})").all_inner_texts() == ["0.500", ""]
    section.locator("th:nth-child(1) button").click()
    section.locator("th:nth-child(1) button").click()
    assert section.locator("tbody td:nth-child(1)").all_inner_texts() == ["4", "1"]


def test_saved_table_is_csv(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report, accept_downloads=True)
    with opened.page.expect_download() as waiting:
        opened.page.locator("section.rows", has_text="All measured numbers").locator(".save").click()
    assert waiting.value.suggested_filename == "small.csv"
    assert Path(waiting.value.path()).read_text() == read_folder(study).table().to_csv()


def test_dark_theme_follows_system_and_button(report: Path, show: Callable[..., Opened]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (show(report, color_scheme=scheme) for scheme in ("light", "dark"))
    before = light.page.evaluate(background)
    assert before != dark.page.evaluate(background)
    light.page.click("#theme")
    dark.page.click("#theme")
    assert light.page.evaluate(background) != before
    assert dark.page.evaluate(background) == before


def test_tips_show_numbers(report: Path, study: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    opened.page.locator(".wide .point").first.hover()
    table = read_folder(study).table()
    assert str(table.rows[0]["mcs"]) in opened.text(".tip")
    opened.page.locator(".shiftmap").first.hover()
    assert opened.text(".tip").split() == ["not", "shifted", "1.000"]


HOSTILE = ("<script>alert(1)</script>", "\"quoted' & <b>bold</b>", "שלום עולם", "😀 cat", "</script><img src=x onerror=alert(2)>")


def test_hostile_names_are_shown_as_text(tmp_path: Path, show: Callable[..., Opened]) -> None:
    path = write(tmp_path, pages.drag(HOSTILE, images=5, names="</option><script>alert({})</script>"), title=HOSTILE[4])
    opened = show(path)
    assert opened.messages == []
    assert opened.page.title() == opened.text("h1") == HOSTILE[4]
    assert opened.page.locator(".network").first.locator(".label").all_inner_texts() == list(HOSTILE)
    assert opened.page.locator("option").first.inner_text() == "</option><script>alert(0)</script>"
    assert opened.page.locator("b, img").count() == 2, "only the two cosines are bold"


def test_of_many_classes_the_ten_most_probable_are_shown(tmp_path: Path, show: Callable[..., Opened]) -> None:
    shown = pages.drag(tuple(f"class {place}" for place in range(40)))
    opened = show(write(tmp_path, shown))
    most = torch.stack([network.outputs.values[0].softmax(-1).amax(dim=0) for network in shown.networks]).amax(dim=0)
    likely = sorted(most.argsort(descending=True)[:10].tolist())
    assert opened.page.locator(".network").first.locator(".label").all_inner_texts() == [f"class {place}" for place in likely]


def test_injected_script_does_not_run(report: Path, show: Callable[..., Opened]) -> None:
    opened = show(report)
    opened.page.evaluate(
        """() => {
            const added = document.createElement("script");
            added.textContent = "window.ran = 1";
            document.body.append(added);
        }"""
    )
    assert opened.page.evaluate("window.ran === undefined")
    assert any("Content Security Policy" in message for message in opened.messages)


def test_lesson_computes_what_theory_computes(tmp_path: Path, show: Callable[..., Opened]) -> None:
    opened = show(write(tmp_path, pages.lesson()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        length, taps, stride = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((8, 20), (1, 5), (1, 5)))
        signal = torch.randint(-3, 4, (length,), generator=generator).double()
        kernel = torch.randint(-2, 3, (taps,), generator=generator).double()
        shift = int(torch.randint(0, 7, (), generator=generator))
        dense = [correlate(each, kernel) for each in (signal, translate_signal(signal, shift))]
        before, after = (subsample(each, stride) for each in dense)
        response = respond(before, after)
        found = opened.page.evaluate(
            """([signal, kernel, shift, stride]) => {
                const t = shiftscope.theory;
                const dense = [signal, t.translate(signal, shift)].map((each) => t.correlate(each, kernel));
                const [before, after] = dense.map((each) => t.subsample(each, stride));
                return { before, after, ...t.respond(before, after), homogeneity: t.homogeneity(dense[0], stride) };
            }""",
            [signal.tolist(), kernel.tolist(), shift, stride],
        )
        assert found["before"] == before.tolist()
        assert found["after"] == after.tolist()
        expected = (response.similarity, response.movement, response.in_place, homogeneity(dense[0], stride))
        names = ("similarity", "movement", "inPlace", "homogeneity")
        assert [found[name] for name in names] == pytest.approx(list(expected), abs=1e-9)


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_lesson_pools_with_stride_one(tmp_path: Path, show: Callable[..., Opened], kind: str) -> None:
    opened = show(write(tmp_path, pages.lesson()))
    signal = [3.0, 1.0, -2.0, 4.0, 0.0, 5.0]
    windows = torch.tensor(signal).unfold(0, 3, 1)
    expected = windows.amax(dim=1) if kind == "max" else windows.mean(dim=1)
    assert opened.page.evaluate("([signal, kind]) => shiftscope.theory.pool(signal, kind, 3)", [signal, kind]) == pytest.approx(
        expected.tolist(), abs=1e-6
    )


def test_lesson_shows_the_worked_example(tmp_path: Path, show: Callable[..., Opened]) -> None:
    opened = show(write(tmp_path, pages.lesson()))
    expected = next(table for table in worked_tables() if table.name == "broken equivariance").rows[1]
    assert [int(text) for text in opened.page.locator(".strip").nth(3).locator("span").all_inner_texts()] == expected["output"]
    assert float(opened.text("dd.similarity")) == expected["similarity"]
    assert float(opened.text("dd.movement")) == expected["movement"]
    assert float(opened.text("dd.in-place")) == pytest.approx(expected["cosine in place"], abs=6e-4)
    opened.page.fill(".stride", "1")
    assert "equivariance" in opened.text(".demo .status")
    assert opened.text("dd.homogeneity") == "\u2013"
    opened.page.fill(".signal-values", "0 0 0 0 1 0 0 1 0 0 0 0")
    opened.page.select_option(".kernel", label="none")
    opened.page.fill(".stride", "2")
    for shift in ("1", "3"):  # the outputs keep their shape, because another value of the signal takes the place of the one lost
        opened.page.fill(".shift-size", shift)
        assert float(opened.text("dd.similarity")) == 1
        assert "subsampling has picked other values" in opened.text(".demo .status")
    opened.page.fill(".shift-size", "2")
    assert "scaled the shift down" in opened.text(".demo .status")
    opened.page.fill(".signal-values", "1 2 three")
    assert "8 to 32 numbers" in opened.text(".demo .status")


def test_lesson_draws_negative_values_downwards(tmp_path: Path, show: Callable[..., Opened]) -> None:
    opened = show(write(tmp_path, pages.lesson()))

    def ends(value: int) -> tuple[float, float]:
        bar = opened.page.locator(".strip").first.locator(".cells div").nth(value)
        cell, inner = bar.bounding_box(), bar.locator("i").bounding_box()
        return tuple((inner["y"] + offset - cell["y"]) / cell["height"] for offset in (0, inner["height"]))

    opened.page.emulate_media(reduced_motion="reduce")
    opened.page.fill(".signal-values", "2 -2 0 0 0 0 0 0")
    (top, middle), (same, bottom) = ends(0), ends(1)
    assert middle == pytest.approx(same) == pytest.approx(0.5, abs=0.01)
    assert middle - top == pytest.approx(bottom - same, abs=0.01)
    assert bottom > same
    opened.page.fill(".signal-values", "2 2 0 0 0 0 0 0")
    assert ends(0)[1] == ends(1)[1] == pytest.approx(1, abs=0.01)


def test_the_label_of_the_dragged_image_is_shown_where_it_is_known(tmp_path: Path, show: Callable[..., Opened]) -> None:
    drag = pages.drag(("<b>cat</b>", "dog"))
    opened = show(write(tmp_path, replace(drag, labels=torch.tensor([0, -1]))))
    thumbs = opened.page.locator(".thumbs input")
    assert opened.text(".truth") == "Labelled <b>cat</b>"
    thumbs.nth(1).check()
    assert opened.text(".truth") == ""


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_no_serious_violation(report: Path, show: Callable[..., Opened], width: int, scheme: str) -> None:
    opened = show(report, width=width, color_scheme=scheme, bypass_csp=True)
    opened.page.add_script_tag(content=AXE.read_text())
    found = opened.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    serious = [
        f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def reel() -> Film:
    """Return two strips of frames of one colour, each as bright as its number."""
    frames = [
        FilmFrame(
            f"frame {number}", data_url(torch.full((1, 8, 8), number / 5)), f"class {number}", number / 10 if number else None
        )
        for number in range(5)
    ]
    return Film("Slide", "", {"up": tuple(frames), "down": (frames[0], *frames[:0:-1])}, "change")


def test_frames_follow_slider_keys_mouse_and_strip(tmp_path: Path, show: Callable[..., Opened]) -> None:
    opened = show(write(tmp_path, reel()))
    page = opened.page

    def shown() -> tuple[str, str, str]:
        return opened.text(".at"), opened.text(".answer-now"), opened.text(".change-now")

    assert shown() == ("frame 0", "class 0", "")
    page.focus(".place")
    page.keyboard.press("ArrowRight")
    assert shown() == ("frame 1", "class 1", "change: 0.100")
    assert page.get_attribute(".shown", "src") == reel().strips["up"][1].picture
    page.click(".largest")
    assert shown() == ("frame 4", "class 4", "change: 0.400")
    page.select_option(".strip", "1")
    page.keyboard.press("Home")
    box = page.locator(".screen").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 10 + box["width"] / 4, box["y"] + 10)
    page.mouse.up()
    assert shown() == ("frame 4", "class 4", "change: 0.400")  # of the strip that runs down, a quarter of the way
    assert opened.messages == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (320, "dark")])
def test_frames_are_accessible_and_fit(tmp_path: Path, show: Callable[..., Opened], width: int, scheme: str) -> None:
    opened = show(write(tmp_path, reel()), width=width, color_scheme=scheme, bypass_csp=True)
    opened.page.add_script_tag(content=AXE.read_text())
    found = opened.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_axe_finds_a_violation_where_there_is_one(chromium: Any) -> None:
    """So that the test above can fail."""
    page = chromium.new_page()
    page.set_content("<html lang='en'><title>x</title><main><h1>x</h1><button></button></main>")
    page.add_script_tag(content=AXE.read_text())
    assert [each["id"] for each in page.evaluate("axe.run(document)")["violations"]] == ["button-name"]
    page.close()


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_page_does_not_scroll_sideways(report: Path, show: Callable[..., Opened], width: int) -> None:
    opened = show(report, width=width)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_unfinished_study_has_a_page_that_says_what_is_missing(study: Path, tmp_path: Path, show: Callable[..., Opened]) -> None:
    half = pages.without(study, "record.json", 1, tmp_path / "half")
    opened = show(write_report(half))
    assert opened.messages == []
    assert "1 of 4 runs are finished" in opened.text(".warning")
    assert "is not finished: it has no record yet" in opened.text("section.missing")
    assert opened.page.locator("section.drag").count() == 1
