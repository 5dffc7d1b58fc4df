"""Hold verdicts about circular shifts against models whose truth is known twice: by construction, and by trying every shift.

Every model is a stem, one to five random parts and a head (``tests/generated.py``). What it really does is tried in double
precision, at every circular shift of small images and at a sample of those of larger ones, with its own weights and buffers and
twice with random ones. Printed are the false verdicts, which must be none, and the share of invariant models that are recognized.

    python benchmarks/guarantees.py [--models 1000] [--seed 0] [--workers 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from generated import Made, Model, changes, make, redrawn, strays, strays_inside  # type: ignore[import-not-found]  # of tests/
from shiftscope.explanations import guarantee_of

#: Relative changes below the first are rounding, above the second they are none.
ROUNDING, CHANGED = 1e-8, 1e-6


@dataclass
class Count:
    """What was found, and which models were judged wrongly."""

    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def add(self, other: Count) -> None:
        """Add what was found of another model."""
        self.found.update(other.found)
        self.wrong += other.wrong
        self.missed += other.missed


def truth(made: Made) -> tuple[float, float]:
    """Return the largest change of the outputs with the model's weights and with random ones; loosely where it casts."""
    own = changes(redrawn_as_it_is(made), made.size)
    return own, max(changes(redrawn(made.model, seed), made.size) for seed in (1, 2))


def redrawn_as_it_is(made: Made) -> torch.nn.Module:
    """Return the model in double precision."""
    copy: torch.nn.Module = redrawn(made.model, 0)
    copy.load_state_dict(made.model.state_dict())
    return copy


def is_cast(made: Made) -> bool:
    """Return whether the model computes in single precision on purpose."""
    return "cast" in made.names


def judge(seed: int) -> Count:
    """Compare the verdict on one model with the truth."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    count, made = Count(), make(seed)
    title = f"{seed}: {', '.join(made.names)} at {made.size}"
    own, random = truth(made)
    rounding = 1e-4 if is_cast(made) else ROUNDING
    invariant = max(own, random) < rounding
    doubtful = not invariant and random < (1e-3 if is_cast(made) else CHANGED)
    count.found["models"] += 1
    count.found["invariant"] += invariant
    count.found["neither by rounding"] += doubtful
    if made.invariant and not invariant:
        count.wrong.append(f"{title}: invariant by construction, but it changes by {own:.1g}, {random:.1g}")
    found = guarantee_of(made.model, image=(3, made.size, made.size))
    count.found[found.status] += 1
    if found.status == "guaranteed" and not invariant:
        count.wrong.append(f"{title}: guaranteed, but it changes by {own:.1g}, {random:.1g}")
    if found.status == "impossible" and random < CHANGED:
        count.wrong.append(f"{title}: impossible, but it is invariant")
    if invariant:
        count.found["recognized"] += found.status == "guaranteed"
        if found.status != "guaranteed":
            count.missed.append(f"{title}: {found.sentence}")
    if found.exact is not None:
        count.found["exact_at given"] += 1
        wrong = _stray(made, found.exact.lattice, found.exact.circular, found.exact.receptive_field, count)
        if wrong > rounding:
            count.wrong.append(f"{title}: {found.exact_at} But maps stray by {wrong:.1g}")
    count.found["equivariant by construction"] += made.lattice > 0
    count.found["of these exact_at given"] += made.lattice > 0 and found.exact is not None and found.exact.circular
    return count


def _stray(made: Made, lattice: tuple[int, int], circular: bool, receptive_field: tuple[int, int], count: Count) -> float:
    loosely = any("polyphase" in name or "samplings" in name for name in made.names)
    worst = 0.0
    for model in (redrawn_as_it_is(made), redrawn(made.model, 1)):
        assert isinstance(model, Model)
        features = model.features
        if circular:
            worst = max(worst, strays(features, made.size, lattice, loosely=loosely))
        else:
            inside = strays_inside(features, made.size, lattice, receptive_field)
            count.found["exact_at inside borders tried"] += inside is not None
            worst = max(worst, inside or 0.0)
    return worst


def report(count: Count, seconds: float, seed: int) -> str:
    """Return what was found as text."""
    found = count.found
    share = found["recognized"] / max(1, found["invariant"])
    exact = found["of these exact_at given"] / max(1, found["equivariant by construction"])
    lines = [
        f"seeds {seed} to {seed + found['models'] - 1}; torch {torch.__version__}; {seconds:.0f} s",
        f"models                         {found['models']}",
        *(f"  {status:<28} {found[status]}" for status in ("guaranteed", "possible", "impossible", "unknown")),
        f"false verdicts                 {len(count.wrong)}",
        f"invariant                      {found['invariant']}",
        f"  recognized                   {found['recognized']} ({share:.1%})",
        f"neither by rounding            {found['neither by rounding']}",
        f"exact_at given                 {found['exact_at given']}",
        f"  inside borders, tried        {found['exact_at inside borders tried']}",
        f"equivariant by construction    {found['equivariant by construction']}",
        f"  exact_at given, circular     {found['of these exact_at given']} ({exact:.1%})",
        *(f"FALSE: {each}" for each in count.wrong),
        *(f"not recognized: {each}" for each in count.missed),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the options, judge every model, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    count, started = Count(), perf_counter()
    with ProcessPoolExecutor(options.workers) as pool:
        for done, one in enumerate(pool.map(judge, range(options.seed, options.seed + options.models)), 1):
            count.add(one)
            print(
                *(f"FALSE: {each}" for each in one.wrong), *(f"not recognized: {each}" for each in one.missed), sep="\n", end=""
            )
            print(f"{done}: {len(count.wrong)} false", flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(report(count, perf_counter() - started, options.seed))
    print(report(count, perf_counter() - started, options.seed), end="")


if __name__ == "__main__":
    main()
