"""Find the tensor to read in what a model returned: a tensor, a mapping, a sequence, or an object with tensors as attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from shiftscope.errors import InputError, NotFiniteError

__all__ = ["finite_rows", "select_output"]

#: How deep containers in what a model returned are searched.
DEPTH = 3


def select_output(raw: Any, output: str | int | None, prefer: Sequence[str] = ()) -> Tensor:
    """Return one of the tensors that a model returned.

    Args:
        raw: a tensor, a mapping, a sequence, or an object with tensors as attributes.
        output: the tensor's name or position; may be None if there is only one, one that is the attribute ``logits``, or one
            with a preferred name.
        prefer: names of tensors to take if the user chooses none, best first.

    Raises:
        InputError: there is no such output, or there are several and ``output`` is None.
    """
    if isinstance(raw, Tensor) and output is None:
        return raw
    tensors = _named_tensors(raw)
    for name in (*prefer, "logits") if output is None else ():
        found = getattr(raw, name, tensors.get(name) if name in prefer else None)
        if isinstance(found, Tensor):
            return found
    if output is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if str(output) not in tensors:
        if isinstance(raw, Tensor):
            raise InputError(f"the model returns a single tensor; `output` is {output!r}.", "Leave `output` out.")
        tensors = dict(_within(raw))
        if str(output) in tensors:
            return tensors[str(output)]
        if not tensors:
            raise InputError(f"the model returns no tensor, but {type(raw).__name__}.", "Return tensors of torch.")
        reason = "`output` is not given" if output is None else f"`output` is {output!r}"
        names = ", ".join(repr(name) for name in tensors)
        raise InputError(
            f"the model returns {names}; {reason}.", "Choose one of its outputs with --output, or name what they are with --task."
        )
    return tensors[str(output)]


def _named_tensors(raw: Any) -> dict[str, Tensor]:
    """Return the tensors in what a model returned, by name or position, without those in containers within."""
    return {name: value for name, value in _items(raw) if isinstance(value, Tensor)}


def _within(raw: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in what a model returned, also those in containers within: ``head.logits``, ``flows.0``.

    A list of containers holds one for each image, which are no outputs.
    """
    for name, value in _items(raw):
        if isinstance(value, Tensor):
            yield path + name, value
        elif isinstance(raw, Mapping) and isinstance(value, Mapping | list | tuple) and depth < DEPTH:
            yield from _within(value, f"{path}{name}.", depth + 1)


def _items(raw: Any) -> list[tuple[str, Any]]:
    """Return what a model returned, by name or position."""
    if isinstance(raw, Tensor):
        return []
    if isinstance(raw, Mapping):
        items = [(str(name), value) for name, value in raw.items()]
    elif isinstance(raw, list | tuple):
        items = [(str(position), value) for position, value in enumerate(raw)]
        items += [(name, getattr(raw, name)) for name in getattr(raw, "_fields", ())]
    else:
        items = list(vars(raw).items()) if hasattr(raw, "__dict__") else []
    return items


def finite_rows(found: Tensor, what: str = "the model") -> Tensor:
    """Return a tensor [image, ...] in single precision on the CPU.

    Raises:
        NotFiniteError: it holds NaN or infinity.
    """
    bad = int((~found.flatten(1).isfinite().all(dim=1)).sum())
    if bad:
        raise NotFiniteError(
            f"{what} returned NaN or infinity for {bad} of {len(found)} images.",
            "Check its weights and the range of its input, which is [0, 1].",
        )
    return found.float().cpu()
