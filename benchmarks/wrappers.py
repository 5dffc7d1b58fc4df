"""Try what fixes without training promise, and measure what they cost.

MNIST on its canvas, a study's network with frozen weights: accuracy before and after ``canonical``, cosine and answers at every
shift within the margin, and the time of a pass; ``average`` over 9 and 289 shifts. Circular images: a ResNet-18 and a ViT of timm
with random weights on real photos (squares of scikit-learn's two), at random circular shifts.

    python benchmarks/wrappers.py RUN --data-dir DATA [--images 3000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from interleaving import interleaved, ratios, seconds
from shiftscope.datasets.images import ImageBlocks, open_images
from shiftscope.estimates import difference, proportion
from shiftscope.models import load_model
from shiftscope.shifts import grid, translate
from shiftscope.similarity import cosine
from shiftscope.surgery import Average, Canonical

#: Images of which every shift is tried, and circular shifts that are.
FEW, TRIED = 64, 12


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Run a model in batches."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(256)])


def on_canvas(run: Path, images: ImageBlocks, model: nn.Module, rounds: int) -> None:
    """Print what canonical gains, loses and costs on a canvas, and what averages do."""
    block = images.read_all()
    assert block.labels is not None
    canonical, few, margin = Canonical(model), block.images[:FEW], images.margin
    before, after = (outputs(each, block.images).argmax(1) == block.labels for each in (model, canonical))
    print(f"{run.name}: {images.choice}, margin {margin}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    change = difference(after.float() - before.float(), bounds=(-1.0, 1.0))
    print(f"accuracy {proportion(before)} before, {proportion(after)} with canonical, difference {change}")
    for name, each in (("before", model), ("canonical", canonical)):
        reference, least, changed = outputs(each, few), 1.0, 0
        total = 0.0
        for shift in grid(margin):
            found = outputs(each, translate(few, shift.expand(len(few), 2)))
            alike = cosine(found, reference)
            total, least = total + float(alike.double().mean()), min(least, float(alike.min()))
            changed += int((found.argmax(1) != reference.argmax(1)).sum())
        shifts = (2 * margin + 1) ** 2
        print(
            f"{name}: every one of {shifts} shifts of {len(few)} images: mean cosine {total / shifts:.9f}, least {least:.9f}, "
            f"answers changed {changed} of {shifts * len(few)}"
        )
    batch = block.images[:256]
    times = interleaved(
        {"model": seconds(lambda: outputs(model, batch)), "canonical": seconds(lambda: outputs(canonical, batch))}, rounds
    )
    ratio, spread = ratios(times["canonical"], times["model"])
    print(f"time of canonical over that of the model, 256 images: {ratio:.3f} {spread}; multiply-adds 1.000")
    for reach in (1, 8):
        averaged = Average(model, reach=reach)
        found = outputs(averaged, block.images[:512]).argmax(1) == block.labels[:512]
        change = difference(found.float() - before[:512].float(), bounds=(-1.0, 1.0))
        times = interleaved(
            {
                "model": seconds(lambda: outputs(model, batch)),
                "average": seconds(lambda averaged=averaged: outputs(averaged, batch)),  # type: ignore[misc]  # a lambda with a default
            },
            1,
        )
        ratio, spread = ratios(times["average"], times["model"])
        print(f"average over {len(averaged.shifts)}: accuracy difference {change} (512 images), time {ratio:.1f} {spread}")


def photos(size: int) -> Tensor:
    """Return squares of scikit-learn's two photos, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    found = [torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in load_sample_images().images]
    return torch.stack([image[:, top : top + size, left : left + size] for image in found for top, left in ((0, 0), (150, 300))])


def on_circles() -> None:
    """Print how far circular shifts change the outputs of circular ImageNet models."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # whose zoo imports timm without CUDA, too
    timm = import_module("zoo").timm()
    generator = torch.Generator().manual_seed(0)
    for name in ("resnet18", "vit_tiny_patch16_224"):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=1000).eval()
        images = photos(224)
        for title, each in ((name, model), (f"{name}, canonical", Canonical(model, border="circular"))):
            reference, worst, changed = outputs(each, images), 0.0, 0
            for _ in range(TRIED):
                shift = torch.randint(224, (2,), generator=generator).tolist()
                found = outputs(each, images.roll(shift, (2, 3)))
                worst = max(worst, float((found - reference).abs().max() / reference.abs().max()))
                changed += int((found.argmax(1) != reference.argmax(1)).sum())
            print(
                f"{title}: {TRIED} circular shifts: outputs change by {worst:.2g} of the largest, answers {changed}", flush=True
            )
        stay = (Canonical(nn.Identity(), border="circular")(images) == images).flatten(1).all(1)
        print(f"photos that stay as they are: {int(stay.sum())} of {len(images)}")


def main() -> None:
    """Run all parts and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="folder of a study's run on MNIST")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST")
    parser.add_argument("--images", type=int, default=3000, help="images for accuracy (default: 3000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the median of (default: 5)")
    options = parser.parse_args()
    loaded = load_model(str(options.run))
    images = open_images(
        "mnist",
        count=options.images,
        preprocessing=loaded.preprocessing,
        channels=1,
        trained_on=loaded.spec.data,
        data_dir=options.data_dir,
    )
    on_canvas(options.run, images, loaded.model, options.rounds)
    on_circles()


if __name__ == "__main__":
    main()
