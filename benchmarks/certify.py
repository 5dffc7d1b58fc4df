"""Hold radii against brute force, and time certifying against running every shift.

Two hundred random small classifiers with every border are certified and tried by brute force, one image and one shift at a time
(``tests/classifiers.py``). Printed are the radii that are wrong, which must be none. Then networks that are trained on
shifted digits are certified, and the time is compared with that of the model on every shift: shift by shift, as a black box is
certified, and by the engine's own choice, which computes all shifts at once.

    python benchmarks/certify.py [--models 200] [--rounds 3]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from classifiers import brute_force, random_case  # type: ignore[import-not-found]  # of tests/
from interleaving import interleaved, ratios, seconds
from shiftscope import certify, grid, shift_outputs
from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.seeds import stream
from shiftscope.shifts import sample, translate

RADIUS = 8


def hold(models: int) -> None:
    """Certify random classifiers and compare with brute force."""
    images = wrong = close = 0
    radii: list[int] = []
    for seed in range(models):
        case = random_case(seed)
        found = certify(case.model, case.images, **case.options).radii.tolist()
        expected = brute_force(case)
        images += len(found)
        wrong += sum(not low <= radius <= high for radius, (low, high) in zip(found, expected, strict=True))
        close += sum(low != high for low, high in expected)
        radii += found
    shares = ", ".join(f"{radius}: {radii.count(radius)}" for radius in sorted(set(radii)))
    print(
        f"{models} random classifiers, {images} images: {wrong} radii wrong, {close} too close to call; images a radius: {shares}"
    )


def trained(epochs: int, **settings: object) -> tuple[nn.Module, Tensor]:
    """Return a network trained for some epochs on shifted digits, and test images: the longer, the further answers hold."""
    data = load(DataSpec(name="digits"))
    model = build(NetworkSpec(channels=(8, 16, 32), input_size=data.canvas.size, **settings), generator=stream(0, "weights"))
    images, labels = data.canvas.place(data.train.images), data.train.labels
    optimizer, generator = torch.optim.Adam(model.parameters(), 0.002), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            moved = translate(images[batch], sample(len(batch), RADIUS, generator))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(moved), labels[batch]).backward()
            optimizer.step()
    return model.eval(), data.canvas.place(data.test.images)


def compare(title: str, model: nn.Module, images: Tensor, *, rounds: int) -> None:
    """Print one network's lines."""
    every = grid(RADIUS)
    times = interleaved(
        {
            "certified shift by shift": seconds(lambda: certify(model, images, radius=RADIUS, method="direct")),
            "certified": seconds(lambda: certify(model, images, radius=RADIUS)),
            "all at once": seconds(lambda: shift_outputs(model, images, every)),
            "every shift": seconds(lambda: shift_outputs(model, images, every, method="direct")),
        },
        rounds,
    )
    found = certify(model, images, radius=RADIUS, method="direct")
    radii = found.radii
    early, far = (100 * float(each.float().mean()) for each in (radii < RADIUS // 2, radii >= RADIUS))
    print(f"{title}, {len(images)} images: {early:.0f} % fail at {RADIUS // 2} pixels or before, {far:.0f} % hold at {RADIUS}")
    print(f"  views of a certificate shift by shift: {found.part.views / (len(images) * len(every)):.3f}")
    for name in ("certified shift by shift", "certified", "all at once"):
        ratio, spread = ratios(times[name], times["every shift"])
        print(f"  time {name}: {ratio:.3f} {spread}", flush=True)


def main() -> None:
    """Run both parts and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=200, help="random classifiers (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default: 3)")
    parser.add_argument("--images", type=int, default=96, help="images of a trained network (default: 96)")
    options = parser.parse_args()
    hold(options.models)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, median [least, greatest]")
    print("views and time as shares of those of the model on every shift up to 8 pixels, one by one")
    for factor, epochs in ((4, 4), (4, 12)):
        model, images = trained(epochs, factor=factor)
        compare(f"digits, factor {factor}, {epochs} epochs", model, images[: options.images], rounds=options.rounds)


if __name__ == "__main__":
    main()
