"""The normalised variance of transformational measures: a unit's spread over shifts beside its spread over images.

All that is kept are sums for each shift and unit, in a few groups of images; leaving out one group after the other gives the
interval (jackknife), so that memory does not grow with the number of images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shiftscope.estimates import Estimate

__all__ = ["GROUPS", "normalised_variance", "spread_sums"]

GROUPS = 10
LEVEL = 0.95


def spread_sums(values: Float[Tensor, "image view unit"], *, numbers: Int[Tensor, " image"]) -> dict[str, Tensor]:
    """What is needed of some images.

    Args:
        values: outputs under shifts that all images share.
        numbers: of the images among all; an image's group is its number modulo ``GROUPS``.
    """
    values = values.double()
    count, views, units = values.shape
    group = numbers % GROUPS
    over_shifts = values.std(dim=1, correction=0)
    return {
        "count": torch.zeros(GROUPS, dtype=torch.float64).index_add(0, group, torch.ones(count, dtype=torch.float64)),
        "spread": torch.zeros(GROUPS, units, dtype=torch.float64).index_add(0, group, over_shifts),
        "sum": torch.zeros(GROUPS, views, units, dtype=torch.float64).index_add(0, group, values),
        "square": torch.zeros(GROUPS, views, units, dtype=torch.float64).index_add(0, group, values.square()),
    }


def normalised_variance(sums: dict[str, Tensor]) -> tuple[Estimate, Float[Tensor, " unit"]]:
    """The mean over units with its interval, and each unit's value.

    Units that are constant over images but not over shifts have none and are left out of the mean.
    """
    from scipy import stats

    count = int(sums["count"].sum())
    units = _ratios({name: total.sum(dim=0) for name, total in sums.items()})
    value = _mean(units)
    present = [group for group in range(GROUPS) if sums["count"][group] > 0]
    if count < 3 or len(present) < 2:
        return Estimate(value, 0.0, float("inf"), count=count), units.float()
    left = [_mean(_ratios({name: total.sum(dim=0) - total[group] for name, total in sums.items()})) for group in present]
    each = torch.tensor(left, dtype=torch.float64)
    error = float(((len(each) - 1) / len(each) * (each - each.mean()).square().sum()).sqrt())
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(each) - 1)) * error
    return Estimate(value, max(value - reach, 0.0), value + reach, count=count), units.float()


def _ratios(sums: dict[str, Tensor]) -> Float[Tensor, " unit"]:
    """E_x[std_T a] / E_T[std_x a] for each unit; 0 / 0 is 1."""
    count = sums["count"]
    over_shifts = sums["spread"] / count
    middle = sums["sum"] / count
    # What single precision of the outputs cannot tell from nothing is nothing.
    noise = torch.finfo(torch.float32).eps * (sums["square"] / count).sqrt()
    over_images = (sums["square"] / count - middle.square()).clamp_min(0).sqrt()
    over_images = over_images.where(over_images > noise, 0.0).mean(dim=0)
    over_shifts = over_shifts.where(over_shifts > noise.mean(dim=0), 0.0)
    return torch.where((over_images == 0) & (over_shifts == 0), 1.0, over_shifts / over_images)


def _mean(units: Tensor) -> float:
    known = units[units.isfinite()]
    return float(known.mean()) if len(known) else float("nan")
