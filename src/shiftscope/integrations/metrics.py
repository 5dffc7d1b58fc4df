"""Metrics of torchmetrics: how stable a model is under shifts, batch by batch, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import get_rank, get_world_size, is_available, is_initialized
from torchmetrics import Metric

from shiftscope.audits.protocols import Protocol, find_protocols
from shiftscope.audits.session import AuditOptions, Session
from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.measures import MEASURES

__all__ = ["MeanCosineSimilarityUnderShift", "ShiftConsistency", "ShiftMetric"]

#: Most wrong indices in a message.
SHOWN = 4


class ShiftMetric(Metric):  # type: ignore[misc]  # torchmetrics is not read for its types
    """A measure of an audit, a mean over all images that the metric receives.

    ``update(model, images)`` measures a batch; ``compute()`` returns the mean, the number of :func:`shiftscope.audit` on the same
    images. Sums and counts are added over processes.

    An image's random shifts depend on its index in the data. By default images come in order, and of several processes each gets
    every n-th, as ``DistributedSampler(shuffle=False)`` deals them out. Else give ``indices``.

    Args:
        measure: name of the measure, one that needs no labels, as ``top1_change``.
        protocol: name of the protocol that has it, or the protocol itself.
        max_shift: the largest shift, pixels; by default the protocol's own.
        mode: what comes in at the border, as for :func:`shiftscope.audit`.
        size: (height, width) of the model's input, where images have a margin around it.
        fill: the canvas's colour in [0, 1], one value or one per channel.
        mean: the mean colour, one value per channel, for protocols that fill with it.
        output: name or position of the output to measure, if the model returns several.
        embedding: whether outputs are not classes.
        seed: of the random shifts.
        batch_size: images per forward pass.
        **others: those of :class:`torchmetrics.Metric`, as ``sync_on_compute``.

    Raises:
        InputError: there is no such measure or protocol.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        measure: str,
        protocol: str | Protocol,
        *,
        max_shift: int | None = None,
        mode: Border | None = None,
        size: int | tuple[int, int] | None = None,
        fill: float | Sequence[float] = 0.0,
        mean: Sequence[float] | None = None,
        output: str | int | None = None,
        embedding: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        if measure not in MEASURES:
            raise InputError(f"there is no measure {measure!r}.", f"Choose one of {', '.join(MEASURES)}.")
        self.measure, self.protocol = measure, protocol if isinstance(protocol, str) else protocol.name
        self.options = AuditOptions([protocol], max_shift, mode, size, fill, mean, output, embedding, seed, batch_size)
        if isinstance(protocol, str):
            find_protocols(protocol)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        # A MetricCollection computes metrics of equal states once: those of other settings must not have them.
        settings = sha256(repr((measure, self.options)).encode()).digest()
        self.add_state("settings", default=torch.tensor(list(settings)), dist_reduce_fx="max")
        self._start: int | None = None

    def update(
        self,
        model: Callable[[Tensor], Any],
        images: Float[Tensor, "image channel height width"],
        indices: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Measure a batch of images.

        Args:
            model: as :func:`shiftscope.audit` takes it; it is put into evaluation mode meanwhile.
            images: in [0, 1].
            indices: [image], of the images in the data, all different; by default as the class says.

        Raises:
            InputError: the model cannot be measured on these images, or returns nothing that has the measure; or ``indices`` are
                not different whole numbers of 0 or more, one for each image.
        """
        if len(images) == 0:
            return
        places = self._next(len(images)) if indices is None else _checked(indices, len(images))
        order = places.argsort()
        session = Session.start(model, images[:1], self.options, labelled=False)
        part = session.part(images[order.to(images.device)], None, indices=places[order])
        found = {name: values for (_, name), values in session.result(part).values.items()}
        if self.measure not in found:
            raise InputError(f"`measure` {self.measure!r} is not measured here.", f"Choose from {', '.join(found)}.")
        self.total += found[self.measure].double().sum().to(self.total.device)
        self.count += len(images)

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over all images of all processes; NaN without images."""
        return (self.total / self.count).float() if self.count else torch.tensor(float("nan"))

    def forward(self, *args: Any, **options: Any) -> Any:
        """Measure a batch as :meth:`update` does, and return the mean over it alone."""
        self._start = int(self.count)  # torchmetrics resets the states meanwhile
        try:
            return super().forward(*args, **options)
        finally:
            self._start = None

    def extra_repr(self) -> str:
        """Return what is measured, for ``repr``."""
        return f"{self.measure!r}, {self.protocol!r}"

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value, or several of them, with matplotlib; arguments as of :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)

    def _next(self, count: int) -> Tensor:
        """Return the indices of the next images, dealt out in turn to all processes."""
        several = is_available() and is_initialized()
        rank, processes = (get_rank(), get_world_size()) if several else (0, 1)
        start = int(self.count) if self._start is None else self._start
        return rank + processes * torch.arange(start, start + count)


def _checked(indices: Tensor | Sequence[int], count: int) -> Tensor:
    """Return indices of so many images; refuse what cannot be theirs, such as labels."""
    places = torch.as_tensor(indices).cpu()
    whole = not places.is_floating_point() and not places.is_complex() and places.dtype is not torch.bool
    if not whole or places.shape != (count,) or len(places.unique()) < count or int(places.min()) < 0:
        raise InputError(
            f"`indices` must be {count} different whole numbers of 0 or more, one for each image, got {_shown(places)}.",
            "Leave them out where images come in order.",
        )
    return places.long()


def _shown(places: Tensor) -> str:
    values = ", ".join(map(str, places.flatten()[:SHOWN].tolist()))
    return f"{places.numel()} ({values}{', ...' if places.numel() > SHOWN else ''})"


class ShiftConsistency(ShiftMetric):
    """The share of images of which two shifted views have the same top class.

    Args:
        protocol: ``zhang2019`` (crops; zero fill where images have no margin), ``chaman2021-circular``, ``chaman2021-zero``, or
            another with the measure ``all_agree``.
        **options: those of :class:`ShiftMetric`.
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, protocol: str | Protocol = "zhang2019", **options: Any) -> None:
        super().__init__("all_agree", protocol, **options)


class MeanCosineSimilarityUnderShift(ShiftMetric):
    """The mean cosine similarity of outputs before and after a shift (Mouton, Myburgh and Davel 2020).

    Args:
        protocol: one with the measure ``mcs``.
        **options: those of :class:`ShiftMetric`.
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = -1.0, 1.0

    def __init__(self, protocol: str | Protocol = "mouton2020", **options: Any) -> None:
        super().__init__("mcs", protocol, **options)
