"""What training on all shifts buys over one random shift an image, on the embedded digits.

    python benchmarks/all_shifts_training.py [--seconds 30] [--epochs 1000] [--images 600]

One network (channels 8-16, subsampling factor 4), from the same random weights, trained without shifts, with one random shift of
each image in a step, and on all 81 shifts of up to 4 pixels in one step, for as many seconds or epochs each; the epoch is chosen
by validation images under random shifts. Then all are measured on test images under all 81 shifts, with paired differences to the
last. Seconds are this machine's: what else runs on it moves the number of epochs.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import torch

from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.progress import Event
from shiftscope.runtime.seeds import stream
from shiftscope.training import FineTuning, fine_tune
from shiftscope.training.gains import compare_trained

SHIFT, CANVAS = 4, 20
WAYS = {
    "no shifts": FineTuning(translate=0, patience=1000, learning_rate=3e-3),
    "one random shift": FineTuning(translate=SHIFT, patience=1000, learning_rate=3e-3),
    "all shifts": FineTuning(translate=SHIFT, patience=1000, learning_rate=3e-3, every_shift=True),
}


class Clock:
    """Ends a training, as Ctrl-C does, when its time is over.

    Args:
        seconds: the time.
    """

    def __init__(self, seconds: float) -> None:
        self.end = perf_counter() + seconds

    def __call__(self, event: Event) -> None:
        """Raise KeyboardInterrupt after the time, at the next event."""
        del event
        if perf_counter() > self.end:
            raise KeyboardInterrupt


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30, help="time of each training")
    parser.add_argument("--epochs", type=int, default=1000, help="the most epochs of each training")
    parser.add_argument("--images", type=int, default=600, help="training images")
    options = parser.parse_args()
    data = load(DataSpec(image_size=12, canvas=CANVAS, train_images=options.images, validation_images=200))
    place = data.canvas.place
    images, validation = place(data.train.images), (place(data.validation.images), data.validation.labels)
    start = build(NetworkSpec(channels=(8, 16), factor=4, input_size=CANVAS), generator=stream(0, "weights")).eval()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(images)} images, {options.seconds:g} s a training")
    models = {}
    for name, settings in WAYS.items():
        began, chosen = perf_counter(), settings.model_copy(update={"max_epochs": options.epochs})
        found = fine_tune(start, images, data.train.labels, chosen, validation=validation, report=Clock(options.seconds))
        models[name] = found.model
        epochs, best = len(found.training.epochs), found.training.best_epoch
        print(f"{name}: {perf_counter() - began:.0f} s, {epochs} epochs, the best is {best}", flush=True)
    print(compare_trained(models, place(data.test.images), data.test.labels, max_shift=SHIFT).to_markdown())


if __name__ == "__main__":
    main()
