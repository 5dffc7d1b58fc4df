"""What is known of a model: how it is made again, its weights apart, and what images it takes."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field
from torch import nn

from shiftscope.datasets.dataset import DataSpec
from shiftscope.models.family import NetworkSpec
from shiftscope.runtime.settings import Spec
from shiftscope.surgery import Kind, Surgery, operate

__all__ = ["Fix", "Loaded", "Origin"]


class Fix(Spec):
    """One operation of :mod:`shiftscope.surgery`.

    Attributes:
        kind: ``blur`` (a filter before each subsampling), ``aps`` or ``lps`` (polyphase sampling on circular maps), ``gap`` (a
            head that sees the mean over positions), or ``circular`` (circular padding).
        filter_size: of the binomial filter of ``blur``, ``aps`` and ``lps``; 1 does not filter.
    """

    kind: Kind
    filter_size: int = Field(1, ge=1, le=7)

    def apply(self, model: nn.Module, *, image: tuple[int, int, int] | None) -> Surgery:
        """A changed copy of a model."""
        return operate(self.kind, model, filter_size=self.filter_size, image=image)


class Origin(Spec):
    """All that is needed to make a model again, its weights apart.

    Attributes:
        factory: ``module:function``, ``timm:name`` or ``torchvision:name``; or
        network: a network of the source's family.
        mean, deviation: of the normalisation put before it, a value a channel.
        fixes: put into it, in this order.
        data: what a study trained it on.
    """

    factory: str | None = None
    network: NetworkSpec | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    fixes: tuple[Fix, ...] = ()
    data: DataSpec | None = None


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, and what is known of it.

    Attributes:
        model: images in [0, 1] -> outputs.
        origin: how to make it again.
        image: (channels, height, width) it takes, where that is known.
        mean: the mean colour that its normalisation takes away, where that is known.
        embedding: whether its outputs are known not to be classes.
    """

    model: nn.Module
    origin: Origin
    image: tuple[int, int, int] | None
    mean: tuple[float, ...] | None = None
    embedding: bool = False
