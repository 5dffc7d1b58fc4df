"""What shiftscope reads from published architectures, and whether it is true of them.

Every model of timm in zoo.txt is made with random weights and small images. For each: whether its graph can be traced; the
subsampling factor beside timm's own ``feature_info``; how many layers are compared under shifts; whether outputs at every shift
are computed densely; the verdict, held against random circular shifts in double precision; for each fix whether it applies;
whether an unchanged copy equals the original in evaluation and trains as it does; whether the equivariant copy is exact; and
whether every operator that subsamples is changed by the fix or named in its plan.

    python benchmarks/zoo.py --out zoo.jsonl [--only NAME ...]     # goes on where it stopped
    python benchmarks/zoo.py --out zoo.jsonl --table results/zoo.md
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from shiftscope.engine.outputs import shift_outputs
from shiftscope.errors import InputError
from shiftscope.explanations import guarantee_of
from shiftscope.explanations.layers import layer_responses
from shiftscope.graphs.execution import follow
from shiftscope.graphs.geometry import Geometry, read_geometry
from shiftscope.graphs.sites import TracedModel
from shiftscope.graphs.tokens import read_tokens
from shiftscope.runtime.provenance import provenance
from shiftscope.surgery import Surgery, antialias, circular, global_pool, make_equivariant, operate

SIZE = 64
#: Seconds of processor time for one architecture.
LIMIT = 120
NAMES = Path(__file__).with_suffix(".txt").read_text().split()
FIXES: dict[str, Callable[[nn.Module, tuple[int, int, int]], Surgery]] = {
    "blur": lambda model, image: antialias(model, image=image),
    "aps": lambda model, image: make_equivariant(model, image=image),
    "gap": lambda model, image: global_pool(model, image=image),
    "circular": lambda model, image: circular(model, image=image),
    "anchor": lambda model, image: operate("anchor", model, image=image),
}
#: Architectures whose number in the library's table is no subsampling factor, and why.
EXCEPTIONS = {"crossvit_tiny_240": "two grids, of patches of 12 and 16 pixels on images of two sizes; the table has their mean"}


def make(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a model with random weights, and the shape of an image that it takes: about 64 pixels, a multiple of its patches."""
    timm = import_module("zoo").timm()
    sizes = (SIZE, 70)
    for options, side in [*(({"img_size": side}, side) for side in sizes), *(({}, side) for side in sizes)]:
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, pretrained=False, num_classes=10, **options).eval()
            if not options and model.default_cfg.get("fixed_input_size"):
                side = model.default_cfg["input_size"][-1]
            with torch.no_grad():
                model(torch.rand(1, 3, side, side))
        except Exception:  # noqa: S112 - the size does not suit the model; the next options might
            continue
        factor = reduction(model)
        if factor and side % factor and side == SIZE:
            continue
        return model, (3, side, side)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    return model, model.default_cfg["input_size"]


def reduction(model: nn.Module) -> int | None:
    """Return the factor of the last feature map in the library's own table."""
    info: Any = getattr(model, "feature_info", None)
    found = [each["reduction"] for each in info] if isinstance(info, list) else info.reduction() if info else []
    return found[-1] if found else None


def observed_loss(model: nn.Module, image: tuple[int, int, int], step: int) -> float:
    """Return the largest relative change of outputs under circular shifts by multiples of ``step``, in double precision."""
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


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds of processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s of processor time")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def trains_alike(model: nn.Module, copy: nn.Module, image: tuple[int, int, int]) -> bool:
    """Whether both give the same outputs, statistics and gradients in training mode from the same random numbers."""
    one, other = deepcopy(model).train(), deepcopy(copy).train()
    images = torch.rand(2, *image, generator=torch.Generator().manual_seed(1))
    found = []
    for each in (one, other):
        torch.manual_seed(2)
        outputs = each(images)
        outputs = outputs if isinstance(outputs, Tensor) else outputs[0]
        outputs.square().sum().backward()
        gradients = sum(float(weight.grad.abs().sum()) for weight in each.parameters() if weight.grad is not None)
        statistics = sum(float(value.double().abs().sum()) for value in each.buffers())
        found.append((outputs.detach(), gradients, statistics))
    (a, grad_a, stat_a), (b, grad_b, stat_b) = found
    close = torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    return close and abs(grad_a - grad_b) <= 1e-3 * abs(grad_a) and abs(stat_a - stat_b) <= 1e-4 * max(abs(stat_a), 1.0)


def strided_layers(model: nn.Module, image: tuple[int, int, int]) -> set[str]:
    """Return the layers that make a map smaller: whose operators subsample as they run, or whose outputs are smaller.

    The graph that fixes edit is not asked. A layer whose output has its input's shape (windows of attention) does not count.
    """
    copy, smaller, same = deepcopy(model).eval(), set[str](), set[str]()
    images = torch.rand(2, *image, generator=torch.Generator().manual_seed(3))

    def see(name: str, leaf: bool, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        into = next((each for each in args if isinstance(each, Tensor)), None)
        if into is None or not isinstance(output, Tensor):
            return
        if into.shape == output.shape:
            same.add(name)
        elif leaf and into.ndim == output.ndim == 4 and output.shape[2] > 1 and output.shape[2] * 2 <= into.shape[2] + 1:
            smaller.add(name)

    parts = [(name, part) for name, part in copy.named_modules() if name]
    handles = [part.register_forward_hook(partial(see, name, not list(part.children()))) for name, part in parts]
    with torch.no_grad():
        copy(images)
        for handle in handles:
            handle.remove()
        with suppress(Exception):
            smaller |= {layer for layer, note in follow(copy, images).notes if note == "stride" and layer not in same}
    return smaller


def silent(model: nn.Module, surgery: Surgery, strided: set[str]) -> list[str]:
    """Return the layers that subsample and that no line of a plan names, themselves or by an operator inside them."""
    named = {change.layer for change in surgery.changes}
    with suppress(InputError):
        for node in TracedModel(model).graph.nodes:
            if node.name in named:
                named |= {name for name, _ in node.meta.get("nn_module_stack", {}).values()}
    inside = {name for each in named for name in _with_parents(each)}
    return sorted(layer for layer in strided if layer not in inside and not named & set(_with_parents(layer)))


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def examine(name: str) -> dict[str, Any]:
    """Everything about one architecture."""
    began = process_time()
    model, image = make(name)
    images = torch.rand(2, *image, generator=torch.Generator().manual_seed(3))
    row: dict[str, Any] = {"name": name, "size": image[1], "library_factor": reduction(model)}
    geometry = read_geometry(model, image)
    row |= factors(model, geometry, images)
    guarantee = guarantee_of(model, geometry=geometry, image=image)
    row |= {"verdict": guarantee.status, "loss": observed_loss(model, image, 1)}
    row["loss_on_lattice"] = observed_loss(model, image, row["library_factor"] or 32)
    row["false_guarantee"] = guarantee.status == "guaranteed" and row["loss"] > 1e-6
    steps = torch.tensor([[1, 0], [2, 3]])
    with quiet():
        row["layers"] = _attempt(lambda: len(layer_responses(model, images, steps, geometry=geometry).layers) - 2)
        grid = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        row["method"] = _attempt(lambda: shift_outputs(model, images, grid).method)
    row |= identity(model, image, images)
    strided = strided_layers(model, image)
    row["strided"] = len(strided)
    for fix in FIXES:
        row[fix] = _attempt(partial(fixed, model, image, strided, fix))
    return row | {"seconds": round(process_time() - began, 1)}


def factors(model: nn.Module, geometry: object, images: Tensor) -> dict[str, Any]:
    """Return the factor and where it comes from; without a graph that of the tokens."""
    if isinstance(geometry, Geometry):
        factor: Any = geometry.factor if geometry.basis != "unknown" else None
        return {"traced": True, "factor": factor, "basis": geometry.basis}
    tokens = read_tokens(model, images[:1])
    return {"traced": False, "factor": tokens.factor if tokens else None, "basis": "sizes", "why": str(geometry)[:120]}


def identity(model: nn.Module, image: tuple[int, int, int], images: Tensor) -> dict[str, Any]:
    """Whether a copy without a change equals the original, and trains as it does."""
    with quiet():
        copy = _attempt(lambda: antialias(model, only=(), image=image).model.eval())
        if not isinstance(copy, nn.Module):
            return {"equal": copy, "trains": copy, "same_keys": copy}
        with torch.no_grad():
            equal = bool(torch.allclose(copy(images), model(images), rtol=1e-5, atol=1e-6))
        same_keys = set(copy.state_dict()) == set(model.state_dict())
        return {"equal": equal, "trains": _attempt(lambda: trains_alike(model, copy, image)), "same_keys": same_keys}


def fixed(model: nn.Module, image: tuple[int, int, int], strided: set[str], fix: str) -> dict[str, Any]:
    """Return what a fix did."""
    with quiet():
        surgery = FIXES[fix](model, image)
    row: dict[str, Any] = {"changed": surgery.changed, "lines": len(surgery.changes)}
    if fix in ("blur", "aps"):
        row["left"] = [change.layer for change in surgery.changes if change.why.startswith("unsupported")]
        row["silent"] = silent(model, surgery, strided)
    if surgery.promise is not None:
        row |= {"error": surgery.promise.error, "exact": surgery.promise.exact, "sentence": surgery.promise.sentence}
    if surgery.before and surgery.after:
        row["cost"] = round(surgery.after.multiply_adds / max(surgery.before.multiply_adds, 1), 2)
    return row


def _attempt(test: Callable[[], Any]) -> Any:
    try:
        return test()
    except TimeoutError:
        raise
    except InputError as error:
        return f"refused: {error}"[:300]
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the page ``results/zoo.md``: what was found, misses first, and a row for each architecture."""
    done = [row for row in rows if "error" not in row]
    header = (
        "| architecture | px | graph | factor (timm's) | from | layers | outputs | verdict | blur | aps | gap | circular "
        "| anchor | same | trains | aps exact | strided | left | silent |"
    )
    lines = [
        "# Published architectures",
        "",
        summary(rows),
        "",
        "*Factor*: pixels between positions of the last map, in brackets that of timm's `feature_info` where it differs. "
        "*Fixes*: layers changed, or `-` where the fix refuses. *Same*, *trains*: an unchanged copy equals the original in "
        "evaluation, and in outputs, gradients and statistics in training. *aps exact*: relative change of the outputs of the "
        "equivariant copy under random circular shifts in double precision. *Strided*: layers that make maps smaller when run; "
        "*left*: operators that `blur` or `aps` leaves alone and names; *silent*: layers neither changed nor named. Random "
        "weights, small images, `python benchmarks/zoo.py`.",
        "",
        header,
        "|" + "---|" * (header.count("|") - 1),
        *map(_row, done),
        "",
        "Provenance: " + ", ".join(f"{name} {value}" for name, value in {**provenance("cpu"), "timm": _timm()}.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _timm() -> str:
    return str(import_module("zoo").timm().__version__)


def right(row: dict[str, Any]) -> str:
    """``right``, ``unknown`` or ``wrong``, against the library's table."""
    if row["factor"] is None:
        return "unknown"
    return "right" if list(row["factor"]) == [row["library_factor"]] * 2 else "wrong"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return what was found, misses first."""
    failed = [row for row in rows if "error" in row]
    done = [row for row in rows if "error" not in row]
    compared = [row for row in done if row["name"] not in EXCEPTIONS]
    wrong, unknown = ([row["name"] for row in compared if right(row) == each] for each in ("wrong", "unknown"))
    aps = [row for row in done if isinstance(row["aps"], dict)]
    exact = [row for row in aps if row["aps"].get("exact")]
    untried = [row["name"] for row in aps if row["aps"].get("error") is None]
    silent_in = [row["name"] for row in done for fix in ("blur", "aps") if isinstance(row[fix], dict) and row[fix]["silent"]]
    unequal = [row["name"] for row in done if row["equal"] is not True]
    untrained = [row["name"] for row in done if row["trains"] is not True]
    false = [row["name"] for row in done if row["false_guarantee"]]
    parts = [
        f"{len(done)} architectures of timm with random weights.",
        f"Factors: {len(wrong)} wrong{_of(wrong)}, {len(unknown)} unknown{_of(unknown)}, "
        f"{len(compared) - len(wrong) - len(unknown)} of {len(compared)} right.",
        *(f"Not compared: {name} ({why})." for name, why in EXCEPTIONS.items() if any(row["name"] == name for row in done)),
        f"False guarantees: {len(false)}{_of(false)}.",
        f"Copies that answer otherwise than their original: {len(unequal)}{_of(unequal)}; that train otherwise: "
        f"{len(untrained)}{_of(untrained)}.",
        f"`aps` refuses {len(done) - len(aps)}{_of([row['name'] for row in done if row not in aps])}; of {len(aps)} copies "
        f"{len(exact)} are exact, {len(untried)} could not be tried{_of(untried)}, and "
        f"{len(aps) - len(exact) - len(untried)} are not exact and say why.",
        f"Models with a strided operator that no line of a plan names: {len(set(silent_in))}{_of(sorted(set(silent_in)))}.",
    ]
    if failed:
        parts.append("Not examined: " + "; ".join(f"{row['name']} ({row['error'][:80]})" for row in failed) + ".")
    return " ".join(parts)


def _of(names: list[str]) -> str:
    return f" ({', '.join(f'`{name}`' for name in names)})" if names else ""


def _row(row: dict[str, Any]) -> str:
    factor = "unknown" if row["factor"] is None else str(row["factor"][0])
    if right(row) != "right":
        factor += f" ({row['library_factor']})"
    fixes = [str(row[fix]["changed"]) if isinstance(row[fix], dict) else "-" for fix in FIXES]
    aps = row["aps"] if isinstance(row["aps"], dict) else {}
    error = "-" if aps.get("error") is None else f"{aps['error']:.0e}"
    both = [row[fix] for fix in ("blur", "aps") if isinstance(row[fix], dict)]
    left, quiet_ones = (max((len(each[key]) for each in both), default=0) for key in ("left", "silent"))
    cells = [
        row["name"],
        row["size"],
        "yes" if row["traced"] else "no",
        factor,
        row["basis"] if row["factor"] is not None else "-",
        row["layers"] if isinstance(row["layers"], int) else "-",
        row["method"] if row["method"] in ("dense", "direct") else "-",
        row["verdict"],
        *fixes,
        "yes" if row["equal"] is True else "**no**",
        "yes" if row["trains"] is True else "**no**",
        error,
        row["strided"],
        left,
        quiet_ones or "0",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Examine the architectures that the file lacks, and write a line of JSON for each; or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, help="a file of JSON lines; architectures that it holds are skipped")
    parser.add_argument("--table", type=Path, help="write the table of that file here, and examine nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out and options.out.exists() else []
    if options.table:
        order = {name: place for place, name in enumerate(NAMES)}
        options.table.write_text(table(sorted(done, key=lambda row: order[row["name"]])))
        return
    for name in options.only:
        if name in {row["name"] for row in done}:
            continue
        with quiet():
            try:
                with limited(LIMIT):
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
