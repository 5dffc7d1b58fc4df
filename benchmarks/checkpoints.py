"""Whether classes, channels and a missing head are read from checkpoints of published architectures.

Every model of timm in zoo.txt (or every Nth that timm knows) is made on the meta device, without memory for weights, as it is
and fine-tuned: with 7 classes, with 1 channel, with 7 classes and 4 channels, and without a head. For each, the variant that
shiftscope reads from names and shapes of the checkpoint's weights is held against the one that was made.

    python benchmarks/checkpoints.py [--every N] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.models.libraries import LibraryModel, Variant

NAMES = Path(__file__).with_name("zoo.txt").read_text().split()
VARIANTS = (Variant(7), Variant(None, 1), Variant(7, 4), Variant(0))


def main() -> None:
    """Print every architecture that is read wrongly, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, help="take every Nth of all models of timm instead of those in zoo.txt")
    parser.add_argument("--only", nargs="+", help="names of models")
    options = parser.parse_args()
    timm = import_module("zoo").timm()
    counts: Counter[str] = Counter()
    for name in options.only or (timm.list_models()[:: options.every] if options.every else NAMES):
        for variant, found in read(timm, name):
            counts["right" if found == variant else "not made" if found is None else "wrong"] += 1
            if found not in (variant, None):
                print(f"{name}: {variant} is read as {found}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


def read(timm: Any, name: str) -> list[tuple[Variant, Variant | None]]:
    """Return each variant of a model that differs from it, and the one that is read; None if timm cannot make it."""
    with torch.device("meta"):
        model = timm.create_model(name)
    known = LibraryModel(model, None, Preprocessing(), embedding=False)
    variants = [each for each in VARIANTS if each.classes is None or each.classes != model.num_classes]
    return [(variant, _read(timm, name, known, variant)) for variant in variants]


def _read(timm: Any, name: str, known: LibraryModel, variant: Variant) -> Variant | None:
    options = {"num_classes": variant.classes, "in_chans": variant.channels}
    try:
        with torch.device("meta"):
            tuned = timm.create_model(name, **{key: value for key, value in options.items() if value is not None})
    except Exception:  # an architecture without this option
        return None
    return known.variant_for(tuned.state_dict())


if __name__ == "__main__":
    main()
