"""The result of a fix: the changed copy, a line for every layer, and the cost before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shiftscope.engine.checks import evaluating
from shiftscope.errors import InputError
from shiftscope.graphs.tracing import restoring
from shiftscope.layers.blur import BlurPool
from shiftscope.layers.polyphase import TakePhase
from shiftscope.tables import Cell, Table

__all__ = ["TOLERANCE", "Change", "Cost", "Promise", "Surgery", "cost", "merge_changes"]

#: A narrow table names so many of the layers that change in the same way.
NAMED = 3
#: Relative differences below this are rounding in double precision.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Change:
    """What a fix did to one layer.

    Attributes:
        layer: the layer's name, or the node's where it is called as a function.
        was: what the layer was.
        becomes: what it is now; empty where it was left as it was.
        why: where the new part goes and for what reason, or why nothing was changed.
    """

    layer: str
    was: str
    becomes: str
    why: str


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        multiply_adds: of one image: those of convolutions, fully connected layers and filters.
        parameters: of the model.
    """

    multiply_adds: int
    parameters: int


@dataclass(frozen=True)
class Promise:
    """Whether a copy does what its fix promises: circular shifts do not change its outputs (or move its last map along).

    Attributes:
        error: largest relative change under random circular shifts, in double precision; None where it could not be tried.
        of: what was compared.
        reasons: why it is not exact, by the graph of the copy; empty where it is.
        under: the shifts that it was tried under, in words.
        precision: of the numbers in this trial.
    """

    error: float | None
    of: Literal["outputs", "outputs, moved back,", "last map"]
    reasons: tuple[str, ...] = ()
    under: str = "random circular shifts"
    precision: Literal["double", "its own"] = "double"

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding changes."""
        return self.error is not None and self.error <= TOLERANCE

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        if self.error is None:
            return (
                "Whether the copy is equivariant could not be tried: it does not run in double precision, or gives "
                "the same outputs for all images."
            )
        tried = f"{self.under} change its {self.of} by {self.error:.1g} of the largest value, in {self.precision} precision"
        if self.exact:
            return f"The copy is equivariant: {tried}."
        return f"The copy is not equivariant ({tried}), because {'; '.join(self.reasons)}."


@dataclass(frozen=True)
class Surgery:
    """A changed copy of a model, and what was changed.

    Attributes:
        model: the copy; the original is not changed.
        changes: every convolution, pool and head, in the order they are used.
        before, after: costs; None where the image's shape was not given.
        form: what the copy is: the model's own class with layers swapped, or a traced graph; one sentence or two.
        promise: whether a copy that should be equivariant is so, tried in double precision; None where nothing was promised.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    before: Cost | None = None
    after: Cost | None = None
    form: str = ""
    promise: Promise | None = None

    @property
    def changed(self) -> int:
        """Number of changed layers."""
        return sum(bool(change.becomes) for change in self.changes)

    def check_changed(self, kinds: Iterable[str], name: str) -> None:
        """Check that a fix found something to change.

        Args:
            kinds: of the fixes.
            name: of the model.

        Raises:
            InputError: none did; it says the reason that most layers have.
        """
        if self.changed:
            return
        reasons = Counter(each.why for each in self.changes)
        most = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
        raise InputError(
            f"`{' '.join(kinds)}` has nothing to change in {name}{most}.",
            "Choose another fix; `explain` ranks those that apply.",
        )

    def table(self) -> Table:
        """Return a row for each layer, with the number of changes and the costs in the notes."""
        rows = tuple(
            {"layer": each.layer, "was": each.was, "becomes": each.becomes or "-", "why": each.why} for each in self.changes
        )
        return Table("What was changed", ("layer", "was", "becomes", "why"), rows, self._notes())

    def narrow_table(self) -> Table:
        """Return a row for each kind of change, with the layers that it concerns; unchanged layers are left out."""
        groups: dict[tuple[str, str], list[str]] = {}
        for each in self.changes:
            if each.becomes:
                groups.setdefault((each.was, each.becomes), []).append(each.layer)
        rows: list[dict[str, Cell]] = [
            {"layers": len(layers), "was": was, "becomes": becomes, "which": _named(layers)}
            for (was, becomes), layers in groups.items()
        ]
        return Table("What was changed" if rows else "", ("layers", "was", "becomes", "which"), tuple(rows), self._notes())

    def _notes(self) -> tuple[str, ...]:
        notes = [f"{self.changed} of {len(self.changes)} layers changed." if self.changed else "Nothing was changed."]
        if self.form and self.changed:
            notes.append(self.form)
        if self.promise is not None:
            notes.append(self.promise.sentence)
        if self.before and self.after:
            ratio = self.after.multiply_adds / self.before.multiply_adds if self.before.multiply_adds else 1.0
            notes.append(
                f"Multiply-adds of one image: {self.before.multiply_adds:,} before, {self.after.multiply_adds:,} after "
                f"({ratio:.2f} times); parameters: {self.before.parameters:,} before, {self.after.parameters:,} after."
            )
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain data."""
        return self.table().to_json()


def merge_changes(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Return one change for each layer, of several fixes in the order in which they are applied.

    >>> merge_changes([Change("0", "pool", "", "no head"), Change("0", "pool", "MaxBlurPool2d", "subsamples")])
    (Change(layer='0', was='pool', becomes='MaxBlurPool2d', why='subsamples'),)
    """
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.layer, []).append(change)
    return tuple(_merged(each) for each in found.values())


def _merged(changes: list[Change]) -> Change:
    """Return what several fixes did to a layer."""
    done = [change for change in changes if change.becomes] or changes
    becomes = ", then ".join(dict.fromkeys(change.becomes for change in done if change.becomes))
    why = "; ".join(dict.fromkeys(change.why for change in done))
    return Change(done[0].layer, done[0].was, becomes, why)


def _named(layers: list[str]) -> str:
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    return ", ".join(layers[:NAMED]) + more


def cost(model: nn.Module, image: tuple[int, int, int]) -> Cost:
    """Count the multiply-adds of one image, in a forward pass, and the parameters of a model.

    Args:
        model: a model whose layers are modules; what functions compute is not counted.
        image: (channels, height, width).
    """
    counted = 0

    def count(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal counted
        counted += _multiply_adds(module, output)

    parameter = next(model.parameters(), torch.zeros(()))
    with ExitStack() as hooks:
        for part in model.modules():
            if isinstance(part, COUNTED):
                hooks.enter_context(part.register_forward_hook(count))
        with restoring(model), evaluating(model), torch.no_grad():
            model(torch.zeros(1, *image, dtype=parameter.dtype, device=parameter.device))
    return Cost(counted, sum(parameter.numel() for parameter in model.parameters()))


COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, BlurPool, TakePhase)


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return output.numel() * module.in_channels // module.groups * prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, TakePhase):
        # The filter works at every position, and one in stride * stride is kept.
        taps = len(module.filter.weights)
        return output.numel() * prod(module.stride) * taps if taps > 1 else 0
    return output.numel() * len(module.filter.weights) if isinstance(module, BlurPool) else 0
