"""A model's graph while it is changed: its layers found, new parts put in, and every layer's fate written down."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.graphs.operators import (
    IDLE_FUNCTIONS,
    IDLE_METHODS,
    IDLE_MODULES,
    POINTWISE_FUNCTIONS,
    POINTWISE_METHODS,
    POINTWISE_MODULES,
)
from shiftscope.graphs.operators import traced as trace_graph
from shiftscope.surgery.plan import Change, Surgery, cost

__all__ = ["Editor", "convolution_padding", "Pair", "Site", "pair", "pool_options", "source_of"]

Pair = tuple[int, int]
Kind = Literal["convolution", "max", "average"]
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
FUNCTIONAL = (functional.conv2d, torch.conv2d, functional.adaptive_max_pool2d)
POOLS: dict[Any, Kind] = {functional.max_pool2d: "max", torch.max_pool2d: "max", functional.avg_pool2d: "average"}


@dataclass(frozen=True)
class Site:
    """A convolution or pool in the graph.

    Attributes:
        node: where it is used.
        name: of the layer, or of the function's place in the graph.
        kind: what it does.
        kernel, stride, padding, dilation: along height and width.
        module: the layer; None where it is a function.
        refusal: why nothing here can change it; empty where something can.
    """

    node: fx.Node
    name: str
    kind: Kind
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    module: nn.Module | None
    refusal: str = ""

    @property
    def title(self) -> str:
        """The layer in a few words."""
        form = "x".join(map(str, self.kernel))
        words = {"convolution": "convolution", "max": "max pooling", "average": "average pooling"}[self.kind]
        depthwise = isinstance(self.module, nn.Conv2d) and self.module.groups == self.module.in_channels > 1
        return f"{'depthwise ' if depthwise else ''}{words} {form}, stride {_short(self.stride)}"

    @property
    def reach(self) -> Pair:
        """Positions that the window reaches beyond its first, along each axis."""
        return (self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1))

    @property
    def rounds_up(self) -> bool:
        """Whether a pool lets its last window hang over the border."""
        options = pool_options(self.node) if self.module is None else vars(self.module)
        return bool(options.get("ceil_mode"))

    @property
    def is_strided(self) -> bool:
        """Whether it subsamples."""
        return self.stride != (1, 1)


class Editor:
    """A copy of a model's graph, and what was done to it.

    Args:
        model: left as it is.
        image: (channels, height, width), for the costs; None leaves them out.
        only: names of layers to change, None for all.
        skip: names of layers to leave alone.

    Raises:
        InputError: the graph cannot be traced; an unknown name.
    """

    def __init__(
        self, model: nn.Module, *, image: tuple[int, int, int] | None, only: Sequence[str] | None, skip: Sequence[str]
    ) -> None:
        self.image, self.before = image, cost(model, image) if image else None
        try:
            copy = deepcopy(model)
            modes = {name: part.training for name, part in copy.named_modules()}
            self.traced = trace_graph(copy.eval())
        except Exception as error:  # whatever a model's Python code raises under tracing
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"the graph of {type(model).__name__} cannot be traced ({reason}), so that nothing can be put into it. Put "
                "layers of shiftscope.layers into its code instead."
            ) from error
        for name, part in self.traced.named_modules():
            part.training = modes.get(name, model.training)
        self.graph = self.traced.graph
        self.changes: list[Change] = []
        self.wanted, self.skipped = _known(self.traced, only), _known(self.traced, skip) or set()

    def sites(self) -> Iterator[Site]:
        """Every convolution and pool, in the order they are used; found before anything is put in."""
        yield from [site for node in self.graph.nodes if (site := self._site(node)) is not None]

    def choose(self, site: Site) -> bool:
        """Whether a site is to be changed; if not, says so."""
        if not self.wants(site.name):
            self.leave(site.name, site.title, "left out, as asked for")
        elif site.refusal:
            self.leave(site.name, site.title, f"unsupported: {site.refusal}")
        return self.wants(site.name) and not site.refusal

    def wants(self, name: str) -> bool:
        """Whether a layer of this name is to be changed."""
        return name not in self.skipped and (self.wanted is None or name in self.wanted)

    def leave(self, layer: str, was: str, why: str) -> None:
        """Note a layer that stays."""
        self.changes.append(Change(layer, was, "", why))

    def note(self, layer: str, was: str, becomes: str, why: str) -> None:
        """Note a layer that changed."""
        self.changes.append(Change(layer, was, becomes, why))

    def part(self, node: fx.Node) -> nn.Module | None:
        """The module a node calls."""
        return self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def after(self, node: fx.Node, module: nn.Module, suffix: str, *others: fx.Node) -> fx.Node:
        """Put a module behind a node: whoever used the node uses it instead."""
        users = list(node.users)
        with self.graph.inserting_after(max((node, *others), key=self._order().__getitem__)):
            new = self.graph.call_module(self.add(node, module, suffix), (node, *others))
        for user in users:
            user.replace_input_with(node, new)
        return new

    def before_node(self, node: fx.Node, module: nn.Module, suffix: str, *others: fx.Node) -> fx.Node:
        """Put a module before a node: on its first input, for it alone."""
        source = source_of(node)
        with self.graph.inserting_before(node):
            new = self.graph.call_module(self.add(node, module, suffix), (source, *others))
        node.args = (new, *node.args[1:])
        return new

    def call(self, module: nn.Module, suffix: str, node: fx.Node) -> fx.Node:
        """A module's value of a node, used by nobody yet."""
        with self.graph.inserting_after(node):
            return self.graph.call_module(self.add(node, module, suffix), (node,))

    def add(self, node: fx.Node, module: nn.Module, suffix: str) -> str:
        """Keep a new module beside a node's, under a name of its own."""
        base = str(node.target) if node.op == "call_module" else node.name
        name, count = f"{base}_{suffix}", 1
        while any(True for known, _ in self.traced.named_modules() if known == name):
            count += 1
            name = f"{base}_{suffix}{count}"
        module.train(self.traced.training)
        parameter = next(self.traced.parameters(), None)
        if parameter is not None:
            module.to(parameter.device, parameter.dtype)
        self.traced.add_submodule(name, module)
        return name

    def end_of_chain(self, node: fx.Node) -> tuple[fx.Node, bool]:
        """The last of the norms and activations that follow a node and nothing else uses, and whether one is an activation."""
        active = False
        while len(node.users) == 1:
            user = next(iter(node.users))
            if user.args[:1] != (node,) or any(isinstance(other, fx.Node) for other in user.args[1:]):
                break
            if self.is_pointwise(user):
                active = True
            elif not (isinstance(self.part(user), (*NORMS, *IDLE_MODULES)) or self._is_idle(user)):
                break
            node = user
        return node, active

    def is_pointwise(self, node: fx.Node) -> bool:
        """Whether a node is an activation."""
        if node.op == "call_module":
            return isinstance(self.part(node), (*POINTWISE_MODULES, nn.PReLU, layers.AliasFreeActivation))
        return node.target in (POINTWISE_FUNCTIONS if node.op == "call_function" else POINTWISE_METHODS)

    def finish(self) -> Surgery:
        """The changed model, checked to run where the image's shape is known."""
        for node in self.graph.nodes:
            part = self.part(node)
            if part is not None and _is_opaque(part):
                self.leave(str(node.target), type(part).__name__, "unsupported: its code cannot be traced, so it is kept whole")
            elif node.target in FUNCTIONAL:
                self.leave(node.name, str(getattr(node.target, "__name__", node.target)), "unsupported: called as a function")
        _bring_forward(self.graph)
        self.graph.eliminate_dead_code(self._has_effects)
        self.graph.lint()
        self.traced.delete_all_unused_submodules()
        self.traced.recompile()
        after = None
        if self.image:
            try:
                after = cost(self.traced, self.image)
            except (RuntimeError, InputError) as error:
                reason = next(iter(str(error).splitlines()), "")
                raise InputError(
                    f"the changed model does not run on an image of {self.image}: {reason.rstrip('.')}. Leave "
                    "layers out with `skip`, give the head one position with `global_pool`, or use another image size."
                ) from error
        return Surgery(self.traced, tuple(self.changes), self.before, after)

    def slices(self) -> Iterator[fx.Node]:
        """Nodes that subsample by slicing, which nothing here changes."""
        for node in self.graph.nodes:
            parts = node.args[1] if node.target is operator.getitem else ()
            if isinstance(parts, tuple) and any(isinstance(each, slice) and each.step not in (None, 1) for each in parts):
                yield node

    def _site(self, node: fx.Node) -> Site | None:
        if node.op == "call_function" and node.target in POOLS:
            return Site(node, node.name, POOLS[node.target], *_pool_arguments(node), None, _pool_refusal(pool_options(node)))
        module = self.part(node)
        name = str(node.target)
        if isinstance(module, nn.Conv2d):
            form = (pair(module.kernel_size), pair(module.stride), convolution_padding(module), pair(module.dilation))
            foreign = type(module) is not nn.Conv2d and not is_parametrized(module)
            return Site(node, name, "convolution", *form, module, f"{type(module).__name__} may do more" if foreign else "")
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            kernel = pair(module.kernel_size)
            stride = kernel if module.stride is None else pair(module.stride)
            form = (kernel, stride, pair(module.padding), pair(getattr(module, "dilation", 1)))
            kind: Kind = "max" if isinstance(module, nn.MaxPool2d) else "average"
            return Site(node, name, kind, *form, module, _pool_refusal(vars(module)))
        return None

    def _has_effects(self, node: fx.Node) -> bool:
        """Whether a node does something though nobody uses its value: working in place, say."""
        in_place = getattr(self.part(node), "inplace", False) or node.kwargs.get("inplace") is True
        method = node.op == "call_method" and str(node.target).endswith("_")
        return bool(in_place) or method or node.target in IN_PLACE or node.is_impure()

    def _is_idle(self, node: fx.Node) -> bool:
        if node.op == "call_function":
            return node.target in IDLE_FUNCTIONS
        return node.op == "call_method" and node.target in IDLE_METHODS

    def _order(self) -> dict[fx.Node, int]:
        return {node: place for place, node in enumerate(self.graph.nodes)}


def _bring_forward(graph: fx.Graph) -> None:
    """Put what is used before it is made in front of its first user.

    All else keeps its place: where something works in place, the order of two nodes that do not use each other counts too.
    """
    placed: set[fx.Node] = set()

    def bring(node: fx.Node, user: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source not in placed:
                bring(source, user)
        user.prepend(node)
        placed.add(node)

    for node in list(graph.nodes):
        if node not in placed:
            for source in node.all_input_nodes:
                if source not in placed:
                    bring(source, node)
            placed.add(node)


def pair(value: Any) -> Pair:
    """One number or two as two."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _is_opaque(part: nn.Module) -> bool:
    """Whether a part of the graph has convolutions or pools inside, where nothing can be put."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    ours = type(part).__module__.startswith(layers.__name__)
    return not ours and any(isinstance(inner, kinds) for inner in part.modules() if inner is not part)


def _short(value: Pair) -> str:
    return str(value[0]) if value[0] == value[1] else str(value)


def convolution_padding(module: nn.Conv2d) -> Pair:
    """A convolution's padding before height and width, however it was given."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))  # type: ignore[return-value]
    return pair(module.padding)


def source_of(node: fx.Node) -> fx.Node:
    """The node whose value a node works on."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        raise InputError(
            f"`{node.name}` is called without its map as first argument, which is not supported. Leave it out with `skip`."
        )
    return first


def pool_options(node: fx.Node) -> dict[str, Any]:
    """The arguments of a pool that is called as a function, by name, its map apart."""
    last = ("dilation", "ceil_mode", "return_indices")
    last = last if POOLS[node.target] == "max" else ("ceil_mode", "count_include_pad", "divisor_override")
    names = ("kernel_size", "stride", "padding", *last)
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def _pool_refusal(options: Mapping[str, Any]) -> str:
    return "it returns positions too" if options.get("return_indices") else ""


def _pool_arguments(node: fx.Node) -> tuple[Pair, Pair, Pair, Pair]:
    """Kernel, stride, padding and dilation of a pool that is called as a function."""
    given = pool_options(node)
    kernel = pair(given["kernel_size"])
    stride = kernel if given.get("stride") in (None, []) else pair(given["stride"])
    return kernel, stride, pair(given.get("padding", 0)), pair(given.get("dilation", 1))


def _known(traced: fx.GraphModule, names: Sequence[str] | None) -> set[str] | None:
    """The names, all of which are layers of the model."""
    if names is None:
        return None
    known = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"} | {
        node.name for node in traced.graph.nodes
    }
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3) or sorted(known)[:3]
            raise InputError(f"the model has no layer {name!r}. Similar names: {', '.join(near)}.")
    return set(names)
