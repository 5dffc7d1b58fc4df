"""Measure what audits of tasks cost beside the bare forward passes and comparisons, and whether memory grows with the images.

    python benchmarks/tasks.py [--rounds 7]

For each task an audit and a bare loop take turns. The loop forms no views: it gets the batches that the audit gave the model,
runs the model on them, reads the answers, and compares each with an unshifted one, as often as the audit does. CPU time, medians
of the ratio with their range. Memory: the peak of the process after 256 and after 1,024 images, read one batch at a time.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interleaving import interleaved, processor_seconds, ratios
from shiftscope import audit
from shiftscope.tasks import TASKS, Task, View

SIZE, IMAGES, REACH = 64, 16, 2


def network(outputs: int, *, pooled: bool) -> nn.Module:
    """Return a convolutional network of 0.1 GFLOP an image with a map or a vector of so many outputs."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 1, 1), nn.ReLU()]
    if pooled:
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, outputs)).eval()
    return nn.Sequential(*body, nn.Conv2d(128, outputs, 1), nn.Upsample(scale_factor=2)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "segmentation": lambda: network(8, pooled=False),
    "depth": lambda: network(1, pooled=False),
    "embedding": lambda: network(64, pooled=True),
    "binary": lambda: network(1, pooled=True),
    "multilabel": lambda: network(20, pooled=True),
}


def recorded(model: nn.Module, task: Task, images: Tensor) -> tuple[list[Tensor], int]:
    """Return the batches that an audit gives the model, and how many comparisons it makes."""
    batches = list[Tensor]()

    def run(batch: Tensor) -> Tensor:
        batches.append(batch.clone())
        found: Tensor = model(batch)
        return found

    found = audit(run, images, task=task, protocols=["every-shift"], max_shift=REACH)
    return batches[1:], found.cost.distinct - len(images)


def bare(model: nn.Module, task: Task, batches: list[Tensor], count: int) -> None:
    """Run the model on the batches, read the answers, and compare ``count`` of them with those to the unshifted images."""
    first, compared = list[Any](), 0
    with torch.inference_mode():
        for batch in batches:
            answers = task.read(model(batch), len(batch), (SIZE, SIZE))
            if not first:
                first, answers = answers[:IMAGES], answers[IMAGES:]
                references = task.gather(first)
            for number, answer in enumerate(answers, start=compared):
                place, shift = number % IMAGES, (number % 7 - 3, number % 5 - 2)
                view = View(shift, (SIZE, SIZE), circular=False, image=place, references=references)
                task.compare(first[place], answer, view, None)
                task.tally(first[place], answer, view, None)
            compared += len(answers)
    assert compared == count, "as many comparisons as the audit makes"


def stream(count: int) -> Iterator[Tensor]:
    """Yield batches of 32 random images, one at a time."""
    for number in range(count // 32):
        yield torch.rand(32, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(number))


def main() -> None:
    """Print a line for each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for name, make in MODELS.items():
        model, task = make(), TASKS[name]
        batches, count = recorded(model, task, images)
        options: dict[str, Any] = {"task": task, "protocols": ["every-shift"], "max_shift": REACH}
        runs = {
            "audit": processor_seconds(partial(audit, model, images, **options)),
            "bare": processor_seconds(partial(bare, model, task, batches, count)),
        }
        found = interleaved(runs, rounds)
        value, spread = ratios(found["audit"], found["bare"])
        print(f"{name:12s} {count:4d} comparisons: audit / (forward passes + comparing) {value:.3f} {spread}", flush=True)
    for count in (256, 1024):
        audit(MODELS["segmentation"](), stream(count), task="segmentation", protocols=["mouton2020"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"segmentation of {count:,} images: peak {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
