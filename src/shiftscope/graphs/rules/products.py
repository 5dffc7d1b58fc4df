"""Rules of matrix products and attention."""

from __future__ import annotations

from dataclasses import replace

from shiftscope.graphs.rules.call import Call, Note, UnknownError, broadcast, plus, reduced
from shiftscope.graphs.symmetry import Symmetry, joined, moves, unified


def matrix_product(call: Call) -> Symmetry:
    one, other = (call.of(each) for each in call.tensors[:2])
    return contracted(one, other, call.note)


def contracted(one: Symmetry, other: Symmetry, note: Note) -> Symmetry:
    """Return the symmetry of a matrix product: sums over the last axis of one and the last but one of the other."""
    if not one.axes or not other.axes:
        raise UnknownError
    rows = one.axes[-2:-1] if len(one.axes) > 1 else ()
    inner = other.axes[-2] if len(other.axes) > 1 else other.axes[-1]
    columns = other.axes[-1:] if len(other.axes) > 1 else ()
    first, second = replace(one, axes=one.axes[:-2]), replace(other, axes=other.axes[:-2])
    batch = broadcast([first, second], max(len(first.axes), len(second.axes)))
    shared = unified(one.axes[-1], inner)
    if shared is None:
        left = any(map(moves, (*batch, *rows, *columns)))
        raise UnknownError(weighs=not left and one.image != other.image)
    found = joined([one, other])
    whole = reduced(replace(found, axes=(shared,)), [0], note)
    return replace(whole, axes=()).with_axes((*batch, *rows, *columns))


def linear(call: Call) -> Symmetry:
    maps, weight = call.of(call["input"]), call.of(call["weight"])
    turned = weight.with_axes(weight.axes[::-1])
    found = contracted(maps, turned, call.note)
    return plus(found, call.of(call["bias"])) if call["bias"] is not None else found


def added_product(call: Call) -> Symmetry:
    added, one, other = (call.of(each) for each in call.tensors[:3])
    return plus(contracted(one, other, call.note), added)


def attention(call: Call) -> Symmetry:
    """Attention: rows of queries stay, keys and values are summed over, paired."""
    query, key, value = (call.of(call[name]) for name in ("query", "key", "value"))
    if call["is_causal"] or (call["dropout_p"] or 0.0) > 0:
        raise UnknownError
    turned = key.with_axes((*key.axes[:-2], key.axes[-1], key.axes[-2]))
    weights = contracted(query, turned, call.note)
    if call["attn_mask"] is not None:
        weights = plus(weights, call.of(call["attn_mask"]))
    return contracted(weights, value, call.note)
