"""What shiftscope reads from published architectures, and whether it is true of them.

Every model of timm in zoo.txt is made with random weights and small images. For each: whether its graph can be traced; the
subsampling factor read from the graph beside timm's own ``feature_info``; the verdict, held against random circular shifts in
double precision; how many of its layers are seen; and, for each fix, whether it applies and whether an identity copy (a filter of
one tap) equals the original in evaluation and trains as the original does.

    python benchmarks/zoo.py [--only NAME ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from shiftscope.explanations import guarantee_of
from shiftscope.surgery import antialias, circular, global_pool, make_equivariant

SIZE = 64
NAMES = Path(__file__).with_suffix(".txt").read_text().split()
FIXES: dict[str, Callable[[nn.Module, tuple[int, int, int]], Any]] = {
    "blur": lambda model, image: antialias(model, filter_size=1, image=image),
    "aps": lambda model, image: make_equivariant(model, image=image),
    "gap": lambda model, image: global_pool(model, image=image),
    "circular": lambda model, image: circular(model, image=image),
}


def make(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A model with random weights, and the shape of an image that it takes."""
    timm = import_module("zoo").timm()
    torch.manual_seed(0)
    for options in ({"img_size": SIZE}, {}):
        try:
            model = timm.create_model(name, pretrained=False, num_classes=10, **options)
        except (TypeError, AssertionError, ValueError, RuntimeError):
            continue
        side = SIZE if options or not model.default_cfg.get("fixed_input_size") else model.default_cfg["input_size"][-1]
        try:
            with torch.no_grad():
                model.eval()(torch.rand(1, 3, side, side))
        except Exception:  # noqa: S112 - the size does not suit the model; the next options might
            continue
        return model, (3, side, side)
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    return model, model.default_cfg["input_size"]


def observed_loss(model: nn.Module, image: tuple[int, int, int], step: int) -> float:
    """The largest relative change of the outputs under circular shifts that are multiples of ``step``, in double precision."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *image, generator=generator, dtype=torch.float64)
    copy = deepcopy(model).double().eval()
    with torch.no_grad():
        before = copy(images)
        worst = 0.0
        for _ in range(3):
            dy, dx = (step * int(torch.randint(1, max(2, image[1] // step), (1,), generator=generator)) for _ in range(2))
            after = copy(images.roll((dy, dx), (2, 3)))
            worst = max(worst, float((after - before).abs().max() / before.abs().max().clamp_min(1e-300)))
    return worst


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the libraries' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trains_alike(model: nn.Module, copy: nn.Module, image: tuple[int, int, int]) -> bool:
    """Whether both give the same outputs, statistics and gradients in training mode from the same random numbers."""
    one, other = deepcopy(model).train(), deepcopy(copy).train()
    images = torch.rand(2, *image, generator=torch.Generator().manual_seed(1))
    found = []
    for each in (one, other):
        torch.manual_seed(2)
        outputs = each(images)
        outputs.square().sum().backward()
        gradients = sum(float(weight.grad.abs().sum()) for weight in each.parameters() if weight.grad is not None)
        statistics = sum(float(value.double().abs().sum()) for value in each.buffers())
        found.append((outputs.detach(), gradients, statistics))
    (a, grad_a, stat_a), (b, grad_b, stat_b) = found
    close = torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    return close and abs(grad_a - grad_b) <= 1e-3 * abs(grad_a) and abs(stat_a - stat_b) <= 1e-4 * max(abs(stat_a), 1.0)


def examine(name: str) -> dict[str, Any]:
    """Everything about one architecture."""
    began = perf_counter()
    model, image = make(name)
    row: dict[str, Any] = {"name": name, "size": image[1]}
    info = getattr(model, "feature_info", None)
    reductions = [each["reduction"] for each in info] if isinstance(info, list) else info.reduction() if info else []
    row["library_factor"] = reductions[-1] if reductions else None
    guarantee = guarantee_of(model)
    row["traced"] = guarantee.geometry is not None
    row["factor"] = None if guarantee.geometry is None else guarantee.geometry.factor
    row["verdict"] = guarantee.status
    row["loss"] = observed_loss(model, image, 1)
    row["loss_on_lattice"] = observed_loss(model, image, row["library_factor"] or 32)
    images = torch.rand(2, *image, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(images)
    for fix, apply in FIXES.items():
        try:
            with quiet():
                surgery = apply(model, image)
        except Exception as error:
            row[fix] = f"{type(error).__name__}: {str(error)[:90]}"
            continue
        row[fix] = len(surgery.changes)
        if fix == "blur":
            with torch.no_grad():
                row["equal"] = bool(torch.allclose(surgery.model.eval()(images), expected, rtol=1e-5, atol=1e-6))
            row["same_keys"] = set(surgery.model.state_dict()) == set(model.state_dict())
            unchanged = antialias(model, only=()).model
            row["trains"] = _attempt(partial(trains_alike, model, unchanged, image))
    row["seconds"] = round(perf_counter() - began, 1)
    return row


def _attempt(test: Callable[[], bool]) -> bool | str:
    try:
        return test()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"


def main() -> None:
    """Print a line of JSON for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, help="a file of JSON lines")
    options = parser.parse_args()
    for name in options.only:
        with quiet():
            try:
                row = examine(name)
            except Exception as error:
                row = {"name": name, "error": f"{type(error).__name__}: {str(error)[:200]}"}
        line = json.dumps(row)
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
