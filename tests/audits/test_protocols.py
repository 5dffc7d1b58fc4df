"""Each protocol equals a slow reference: what its source does, written in loops, with the same random shifts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shiftscope import audit
from shiftscope.audits import protocols
from shiftscope.audits.protocols import GROUPS, PROTOCOLS, Protocol, find_protocols
from shiftscope.audits.scores import SCORES
from shiftscope.errors import InputError
from shiftscope.measures import MEASURES

COUNT, LARGE, SIZE, MARGIN = 6, 24, 16, 4
SEED = 3


def images() -> Tensor:
    """Smooth random images, so that no result is trivial."""
    noise = torch.rand(COUNT, 2, LARGE, LARGE, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 3, stride=1, padding=1, count_include_pad=False)


class Small(nn.Module):
    """A network that is sensitive to shifts and prefers no class, so that classes change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8 * 9, 4, bias=False)
        with torch.no_grad():
            self.middle = self.head(self.body(images()[:, :, 4:20, 4:20]).flatten(1)).mean(0)

    def forward(self, batch: Tensor) -> Tensor:
        return 20 * (self.head(self.body(batch).flatten(1)) - self.middle)


MODEL = Small().eval()
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@torch.no_grad()
def run(image: Tensor) -> Tensor:
    return MODEL(image[None])[0].double()


def top(image: Tensor) -> int:
    return int(run(image).argmax())


def probabilities(image: Tensor) -> Tensor:
    return run(image).softmax(0)


def crop(image: Tensor, down: int, right: int) -> Tensor:
    """The window whose corner is at (down, right) of the large image."""
    return image[:, down : down + SIZE, right : right + SIZE]


def centre(image: Tensor) -> Tensor:
    return crop(image, MARGIN, MARGIN)


def moved(image: Tensor, dy: int, dx: int, colour: float | Tensor = 0.0) -> Tensor:
    """The centre with its content moved; a colour fills the border."""
    source = centre(image)
    target = torch.zeros_like(source) + torch.as_tensor(colour).reshape(-1, 1, 1)
    for y in range(SIZE):
        if 0 <= y - dy < SIZE:
            left, right = max(dx, 0), min(SIZE + dx, SIZE)
            target[:, y, left:right] = source[:, y - dy, left - dx : right - dx]
    return target


def rolled(image: Tensor, dy: int, dx: int) -> Tensor:
    return torch.roll(centre(image), (dy, dx), (1, 2))


def fourier_shifted(image: Tensor, dy: float, dx: float) -> Tensor:
    """A circular shift by fractions of a pixel: the phases of the discrete Fourier transform, frequency by frequency."""
    spectrum = torch.fft.fft2(centre(image).double())
    for row in range(SIZE):
        for column in range(SIZE):
            factor = torch.ones((), dtype=torch.complex128)
            for place, step in ((row, dy), (column, dx)):
                frequency = place if place <= SIZE // 2 else place - SIZE
                angle = torch.tensor(-2 * torch.pi * frequency * step / SIZE, dtype=torch.float64)
                # The highest frequency is real, so it has no phase.
                factor = factor * (torch.complex(angle.cos(), angle.sin() if place != SIZE // 2 else 0 * angle))
            spectrum[:, row, column] *= factor
    return torch.fft.ifft2(spectrum).real.float()


def draws(views: int, reach: int) -> list[list[list[int]]]:
    """The shifts of each image, in the order in which the protocol draws them."""
    generator = torch.Generator().manual_seed(SEED)
    return [[torch.randint(-reach, reach + 1, (2,), generator=generator).tolist() for _ in range(views)] for _ in range(COUNT)]


def average(values: list[float]) -> float:
    return sum(values) / len(values)


def pair_of_crops() -> float:
    found = []
    for image, ((y0, x0), (y1, x1)) in zip(images(), draws(2, 4), strict=True):
        found.append(float(top(crop(image, MARGIN - y0, MARGIN - x0)) == top(crop(image, MARGIN - y1, MARGIN - x1))))
    return average(found)


def pair_of_rolls() -> float:
    return average([float(top(rolled(image, *one)) == top(rolled(image, *two))) for image, (one, two) in rows(2)])


def rows(views: int) -> list[tuple[Tensor, list[list[int]]]]:
    return list(zip(images(), draws(views, 4), strict=True))


def mouton_cosine() -> float:
    found = []
    for image, (shift,) in rows(1):
        one, other = run(centre(image)), run(moved(image, *shift))
        found.append(float(one @ other / (one.norm() * other.norm())))
    return average(found)


def mouton_change() -> float:
    return average([float(top(centre(image)) != top(moved(image, *shift))) for image, (shift,) in rows(1)])


MEAN = (0.5, 0.25)


def chaman_mean() -> float:
    colour = torch.tensor(MEAN)
    return average([float(top(moved(image, *one, colour)) == top(moved(image, *two, colour))) for image, (one, two) in rows(2)])


def myburgh() -> float:
    found = []
    for image in images():
        one = run(centre(image))
        for dy in range(-4, 5):
            for dx in range(-4, 5):
                other = run(moved(image, dy, dx))
                found.append(float(one @ other / (one.norm() * other.norm())))
    return average(found)


def diagonal(count: Callable[[Tensor, int, list[Tensor]], float]) -> float:
    """Mean over images of a function of the 2 x 4 + 1 crops from corner to corner of the margin."""
    found = []
    for number, image in enumerate(images()):
        found.append(count(image, int(LABELS[number]), [crop(image, k, k) for k in range(2 * MARGIN + 1)]))
    return average(found)


def flips(views: list[Tensor]) -> float:
    return average([float(top(one) != top(other)) for one, other in pairwise(views)])


def probability_moves(views: list[Tensor]) -> float:
    return average([abs(float(probabilities(other)[top(one)] - probabilities(one)[top(one)])) for one, other in pairwise(views)])


def pan() -> float:
    return average([flips([crop(image, MARGIN, k) for k in range(2 * MARGIN + 1)][::-1]) for image in images()])


def michaeli(half: float, *, probability: bool) -> float:
    found = []
    for image, ((dy, dx),) in rows(1):
        view = fourier_shifted(image, dy + half, dx + half) if half else rolled(image, dy, dx)
        best = top(centre(image))
        change = abs(float(probabilities(view)[best] - probabilities(centre(image))[best]))
        found.append(change if probability else float(top(view) == best))
    return average(found)


def ring(radius: int) -> float:
    steps = [(dy, dx) for dy in range(-4, 5) for dx in range(-4, 5) if max(abs(dy), abs(dx)) == radius]
    return average(
        [float(all(top(rolled(image, *step)) == label for step in steps)) for image, label in zip(images(), LABELS, strict=True)]
    )


def derivative(axis: int, power: int) -> float:
    """The rate of change when the image is sampled 1/16 pixel further along an axis; the border is mirrored."""
    step, found = 1 / 16, []
    for image in images():
        here = centre(image)
        size = here.shape[1 + axis]
        following = [place + 1 if place + 1 < size else size - 2 for place in range(size)]
        ahead = here.index_select(1 + axis, torch.tensor(following))
        sampled = (1 - step) * here + step * ahead
        rate = (probabilities(sampled) - probabilities(here)) / (step / ((size - 1) / 2))
        found.append(average([abs(float(each)) ** power for each in rate]))
    return average(found)


def bilinear(image: Tensor, dy: float, dx: float) -> Tensor:
    """The centre moved by fractions of a pixel, its edge repeated."""
    source, target = centre(image), torch.zeros(2, SIZE, SIZE)
    for y in range(SIZE):
        for x in range(SIZE):
            at_y, at_x = min(max(y - dy, 0), SIZE - 1), min(max(x - dx, 0), SIZE - 1)
            top_y, left_x = min(int(at_y), SIZE - 2), min(int(at_x), SIZE - 2)
            part_y, part_x = at_y - top_y, at_x - left_x
            upper = source[:, top_y, left_x] * (1 - part_x) + source[:, top_y, left_x + 1] * part_x
            lower = source[:, top_y + 1, left_x] * (1 - part_x) + source[:, top_y + 1, left_x + 1] * part_x
            target[:, y, x] = upper * (1 - part_y) + lower * part_y
    return target


def spread(reach: float) -> float:
    steps = [(dy, dx) for dy in (-reach, 0, reach) for dx in (-reach, 0, reach)]
    table = torch.stack([torch.stack([run(bilinear(image, *step)) for step in steps]) for image in images()])
    units = []
    for unit in range(table.shape[2]):
        over_shifts = average([float(table[image, :, unit].std(correction=0)) for image in range(COUNT)])
        over_images = average([float(table[:, step, unit].std(correction=0)) for step in range(len(steps))])
        units.append(over_shifts / over_images)
    return average(units)


REFERENCES: dict[tuple[str, str], Callable[[], float]] = {
    ("mouton2020", "mcs"): mouton_cosine,
    ("mouton2020", "top1_change"): mouton_change,
    ("myburgh2021", "mcs"): myburgh,
    ("zhang2019", "all_agree"): pair_of_crops,
    ("zhang2019-diagonal", "all_agree"): lambda: diagonal(lambda _, __, views: float(len({top(view) for view in views}) == 1)),
    ("zhang2019-diagonal", "neighbour_change"): lambda: diagonal(lambda _, __, views: flips(views)),
    ("zhang2019-diagonal", "accuracy"): lambda: diagonal(lambda _, label, v: average([float(top(view) == label) for view in v])),
    ("zhang2019-diagonal", "true_probability"): lambda: diagonal(
        lambda _, label, views: average([float(probabilities(view)[label]) for view in views])
    ),
    ("chaman2021-circular", "all_agree"): pair_of_rolls,
    ("chaman2021-zero", "all_agree"): chaman_mean,
    ("rojas2022-crop", "all_agree"): pair_of_crops,
    ("rojas2022-circular", "all_agree"): pair_of_rolls,
    ("michaeli2023", "consistency_whole"): lambda: michaeli(0, probability=False),
    ("michaeli2023", "consistency_half"): lambda: michaeli(0.5, probability=False),
    ("michaeli2023", "probability_change_whole"): lambda: michaeli(0, probability=True),
    ("michaeli2023", "probability_change_half"): lambda: michaeli(0.5, probability=True),
    ("michaeli2023", "worst_case, radius 1"): lambda: ring(1),
    ("michaeli2023", "worst_case, radius 3"): lambda: ring(3),
    ("azulay2018", "neighbour_change"): lambda: diagonal(lambda _, __, views: flips(views[::-1])),
    ("azulay2018", "neighbour_probability_change"): lambda: diagonal(lambda _, __, views: probability_moves(views[::-1])),
    ("hendrycks2019", "neighbour_change"): pan,
    ("gruver2023", "squared_derivative_y"): lambda: derivative(0, 2),
    ("gruver2023", "absolute_derivative_y"): lambda: derivative(0, 1),
    ("gruver2023", "squared_derivative_x"): lambda: derivative(1, 2),
    ("gruver2023", "absolute_derivative_x"): lambda: derivative(1, 1),
    ("tmeasures", "normalised_variance"): lambda: spread(4.0),
}


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], float]:
    """All protocols in one pass: (protocol, measure) -> value."""
    every = [name for name in PROTOCOLS if not name.startswith("segmentation")]
    result = audit(MODEL, images(), LABELS, protocols=every, max_shift=4, size=SIZE, mean=MEAN, seed=SEED)
    return {(row.protocol, row.measure): row.estimate.value for row in result.rows}


@pytest.mark.parametrize("name", REFERENCES, ids=lambda name: " ".join(name))
def test_protocol_equals_its_reference(name: tuple[str, str], found: dict[tuple[str, str], float]) -> None:
    expected = REFERENCES[name]()
    # The difference quotient magnifies the rounding of single precision 16 x 7.5 times.
    tolerance = 2e-4 * abs(expected) if name[0] == "gruver2023" else 1e-6
    assert found[name] == pytest.approx(expected, abs=tolerance)


def test_every_published_protocol_has_a_reference(found: dict[tuple[str, str], float]) -> None:
    """Except our own, which test_surveys compares with slow counts."""
    assert {protocol for protocol, _ in REFERENCES} == {protocol for protocol, _ in found} - {"unshifted", "every-shift"}


def test_results_are_not_trivial(found: dict[tuple[str, str], float]) -> None:
    assert 0 < found["zhang2019", "all_agree"] < 1
    assert 0 < found["mouton2020", "top1_change"] < 1
    assert 0 < found["hendrycks2019", "neighbour_change"] < 1


def test_gruver2023_approximates_automatic_differentiation(found: dict[tuple[str, str], float]) -> None:
    rates = []
    for image in images():
        here = centre(image).requires_grad_()
        ahead = torch.cat([here[:, 1:], here[:, -2:-1]], dim=1)
        direction = ((ahead - here) * (SIZE - 1) / 2).detach()
        answer = MODEL(here[None])[0].softmax(0)
        slopes = [torch.autograd.grad(each, here, retain_graph=True)[0] for each in answer]
        rates.append(average([abs(float((slope * direction).sum())) for slope in slopes]))
    assert found["gruver2023", "absolute_derivative_y"] == pytest.approx(average(rates), rel=0.1)


class Segmenter(nn.Module):
    """A segmentation map of the input's size, enlarged from half of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, batch: Tensor) -> Tensor:
        return nn.functional.interpolate(self.net(batch), scale_factor=2, mode="nearest")


@pytest.mark.parametrize("circular", [True, False])
def test_segmentation_equals_its_reference(circular: bool) -> None:
    name = f"segmentation-{'circular' if circular else 'zero'}"
    model = Segmenter().eval()
    result = audit(model, images(), protocols=[name], max_shift=4, size=SIZE, seed=SEED)
    values = []
    for image, shifts in rows(5):
        with torch.no_grad():
            before = model(centre(image)[None])[0].argmax(0)
        shares = []
        for dy, dx in shifts:
            with torch.no_grad():
                after = model((rolled if circular else moved)(image, dy, dx)[None])[0].argmax(0)
            same = []
            for y in range(SIZE):
                for x in range(SIZE):
                    if circular or (0 <= y + dy < SIZE and 0 <= x + dx < SIZE):
                        same.append(float(before[y, x] == after[(y + dy) % SIZE, (x + dx) % SIZE]))
            shares.append(average(same))
        values.append(average(shares))
    assert result.estimate("mASSC", name).value == pytest.approx(average(values), abs=1e-6)
    of_task = audit(model, images(), task="segmentation", protocols=[name], max_shift=4, size=SIZE, seed=SEED)
    assert result.estimate("mean_iou", name).value == pytest.approx(of_task.estimate("mean_iou", name).value, abs=1e-6)
    assert 0 < average(values) < 1


def test_zhang2019_with_several_passes_draws_a_pair_per_pass() -> None:
    protocol = protocols.zhang2019(4, seed=SEED, passes=3)
    found = audit(MODEL, images(), protocols=[protocol], size=SIZE).estimate("pairs_agree", "zhang2019").value
    shares = []
    for image, shifts in rows(6):
        tops = [top(crop(image, MARGIN - dy, MARGIN - dx)) for dy, dx in shifts]
        shares.append(average([float(tops[k] == tops[k + 1]) for k in (0, 2, 4)]))
    assert found == pytest.approx(average(shares), abs=1e-6)


@given(name=st.sampled_from(sorted(PROTOCOLS)), first=st.integers(0, 50), count=st.integers(1, 20), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_shifts_of_an_image_do_not_depend_on_its_block(name: str, first: int, count: int, seed: int) -> None:
    (protocol,) = find_protocols(name, seed=seed)
    if protocol.scores:
        assert torch.equal(protocol.draw(80)[first : first + count], protocol.draw(count, first=first))


def test_mouton2020_draws_the_shifts_of_earlier_results() -> None:
    expected = torch.randint(-8, 9, (50, 2), generator=torch.Generator().manual_seed(7))
    assert torch.equal(protocols.mouton2020(seed=7).draw(50)[:, 0], expected)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_random_shifts_are_symmetric_and_reach_the_largest(name: str) -> None:
    (protocol,) = find_protocols(name, max_shift=2)
    if protocol.drawn and protocol.scores:
        steps = protocol.draw(3000)[:, ::1].double()
        whole = steps[(steps == steps.round()).all(-1)]
        assert (whole.min(), whole.max()) == (-2, 2)
        assert abs(float(whole.mean())) < 0.1


@pytest.mark.parametrize(
    ("options", "max_shift"),
    [({}, 16), ({"size": 32}, 8), ({"size": 32, "max_shift": 20}, 20), ({"size": 100, "margin": 4}, 4), ({"margin": 4}, 4)],
)
def test_find_protocols_fits_the_shift_to_input_and_margin(options: dict[str, int], max_shift: int) -> None:
    assert find_protocols("zhang2019", **options)[0].max_shift == max_shift


def test_tmeasures_shifts_by_a_tenth_of_the_input() -> None:
    assert find_protocols("tmeasures", size=20)[0].max_shift == 2


def test_find_protocols_resolves_groups() -> None:
    assert [each.name for each in find_protocols("rojas2022")] == list(GROUPS["rojas2022"])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_has_its_name_and_registered_measures(name: str) -> None:
    (protocol,) = find_protocols(name)
    assert protocol.name == name
    assert {*protocol.scores, *(measure for measure, _ in protocol.surveyed)} <= set(MEASURES)
    assert set(protocol.scores) <= {*SCORES, "normalised_variance"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_protocols("zhang2018"), r"there is no protocol 'zhang2018'\. Choose from mouton2020, myburgh2021"),
        (lambda: find_protocols("zhang2019", max_shift=0), "`max_shift` must be 1 or more pixels, got 0"),
        (lambda: protocols.zhang2019(passes=0), "`passes` must be 1 or more, got 0"),
        (lambda: protocols.rojas2022_crop(samples=0), "`samples` must be 1 or more, got 0"),
    ],
)
def test_bad_options_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_protocol_is_a_frozen_value() -> None:
    assert protocols.mouton2020() == protocols.mouton2020()
    assert isinstance(protocols.mouton2020(), Protocol)
    with pytest.raises(AttributeError):
        protocols.mouton2020().seed = 3


@pytest.mark.parametrize("drawn", [1, 3])
def test_pairs_of_an_odd_number_of_views_are_refused(drawn: int) -> None:
    with pytest.raises(InputError, match=f"needs an even number of views, got {drawn}"):
        protocols.Protocol("mine", 2, "zero", 0, ("pairs_agree",), drawn=drawn)
