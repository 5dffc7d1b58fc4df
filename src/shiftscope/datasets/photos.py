"""Photos of any size: how each becomes the input of a model, and a set of them that is decoded a few at a time.

A photo is scaled so that its shorter side has a given length, and its centre is cut out, as torchvision and timm do it; for an
input that is not square, so that it covers a rectangle of the same shape. What the scaled photo holds around that centre on every
side is kept as a margin, from which shifted crops are taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.datasets.preprocessing import INTERPOLATION, INTERPOLATIONS, Preprocessing
from shiftscope.errors import InputError
from shiftscope.runtime.seeds import stream
from shiftscope.runtime.sizes import both, corner, covering, size_words

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Crop", "Opener", "Photos", "pick", "plan_crop"]

#: The default margin on each side is the model's input divided by this: 256 pixels for an input of 224.
MARGIN_PART = 14
#: Room for shifts on each side where no shift is asked for, pixels; at most the input divided by the second number.
DEFAULT_ROOM, SIZE_PER_ROOM = 8, 8

#: Inputs of the first photos are kept in memory, this many and this many pixels at most: an example, a first answer and a
#: forecast need them before they are measured.
KEPT, KEPT_PIXELS = 16, 2**22

#: Decodes one photo, upright, in numbers from 0 to 255; raises whatever a decoder raises on a damaged one.
Opener = Callable[[], "Image"]


@dataclass(frozen=True)
class Crop:
    """How a photo becomes the input of a model.

    Attributes:
        size: (height, width) of the model's input, pixels.
        cover: (height, width) that the scaled photo just covers, pixels; for a square input a square, so that its side is the
            shorter side of the scaled photo.
        channels: 1 or 3.
        interpolation: how they are scaled: ``bilinear``, ``bicubic``, ``lanczos``, ``hamming``, ``box`` or ``nearest``.
        own: what the model's preprocessing covers, if ``cover`` differs from it to leave room for shifts.
        white: the number that becomes 1.0; more than 255 in grey of 16 bits.
    """

    size: tuple[int, int]
    cover: tuple[int, int]
    channels: int
    interpolation: str = INTERPOLATION
    own: tuple[int, int] | None = None
    white: int = 255

    @property
    def margin(self) -> int:
        """Pixels around the model's input on every side, from which shifted crops are taken."""
        return (min(self.cover) - min(self.size)) // 2

    @property
    def outer(self) -> tuple[int, int]:
        """Height and width of what is cut out, margin included, pixels."""
        return self.size[0] + 2 * self.margin, self.size[1] + 2 * self.margin

    @property
    def sentence(self) -> str:
        """What happens to a photo, for the first line of a command."""
        square = self.size[0] == self.size[1]
        own = "" if self.own is None else str(self.own[0]) if square else size_words(self.own)
        room = f"; the model's {own} leaves too little room for shifts" if own else ""
        scaled = f"shorter side to {self.cover[0]} pixels" if square else f"scaled to cover {size_words(self.cover)}"
        margin = f", margin {self.margin}" if self.margin else ""
        divided = f"grey of 16 bits divided by {self.white}, " if self.white > 255 else ""
        return f"{divided}{scaled} ({self.interpolation}{room}), centre of {size_words(self.size)}{margin}"

    def apply(self, image: Image) -> Float[Tensor, "channel tall wide"]:
        """Return the input with its margin, in [0, 1].

        Args:
            image: upright, in numbers from 0 to 255.
        """
        import PIL.Image

        if image.mode != "F":  # which is grey, of more than 8 bits
            image = image.convert("L" if self.channels == 1 else "RGB")
        tall, wide = covering((image.height, image.width), self.cover)
        if (tall, wide) != (image.height, image.width):
            image = image.resize((wide, tall), PIL.Image.Resampling[self.interpolation.upper()])
        top, left = (max(0, start - self.margin) for start in corner((tall, wide), self.size))
        height, width = self.outer
        cut = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
        found = torch.from_numpy(cut.reshape(height, width, -1)).permute(2, 0, 1)
        # Bicubic and Lanczos kernels overshoot, which 8 bits cut off and numbers of mode F do not.
        return found.clamp(0, 1).expand(self.channels, -1, -1) if image.mode == "F" else found


def plan_crop(preprocessing: Preprocessing, *, own: tuple[int, int, int], channels: int | None, max_shift: int | None) -> Crop:
    """Return how photos are prepared: by the model's preprocessing, with room for shifts.

    Without a given crop, photos that are exactly as large as the input are taken whole, and others are scaled
    so that a margin of a fourteenth of the input is left on each side. The room is for the largest shift asked for, else for 8
    pixels or an eighth of the input, if that is less.

    Args:
        preprocessing: of the model; without a size, the photos' own is taken.
        own: (channels, height, width) of the first photo.
        channels: that the model takes; None for the photos' own.
        max_shift: the largest shift, pixels; None for the default.

    Raises:
        InputError: the model takes neither 1 nor 3 channels, or its input size is unknown and the first photo is not square.

    >>> plan_crop(Preprocessing(size=224, crop=0.875), own=(3, 480, 640), channels=3, max_shift=None).sentence
    'shorter side to 256 pixels (bilinear), centre of 224x224, margin 16'
    >>> plan_crop(Preprocessing(size=(256, 128)), own=(3, 480, 640), channels=3, max_shift=None).sentence
    'scaled to cover 296x148 (bilinear), centre of 256x128, margin 10'
    """
    channels = channels or own[0]
    if channels not in (1, 3):
        raise InputError(
            f"the model takes images of {channels} channels, and those of a folder have 1 or 3.",
            "Measure it from Python: `shiftscope.audit(model, images)` takes tensors of any number of channels.",
        )
    if preprocessing.size is None and own[1] != own[2]:
        raise InputError(
            f"`size` must be given: the model's input is unknown, and the images are {own[1]}x{own[2]}.", "Give it with --size."
        )
    size = both(preprocessing.size or own[1])
    side = min(size)
    interpolation = preprocessing.interpolation
    if interpolation not in INTERPOLATIONS:
        interpolation = INTERPOLATION
    said = preprocessing.shorter_side()
    if said is None and own[1:] == size:
        return Crop(size, size, channels, interpolation)
    room = min(DEFAULT_ROOM, side // SIZE_PER_ROOM) if max_shift is None else max_shift
    shorter = max(side + 2 * room, said or side + 2 * -(-side // MARGIN_PART))
    height, width = size
    cover, own_cover = ((round(height * each / side), round(width * each / side)) for each in (shorter, said or shorter))
    return Crop(size, cover, channels, interpolation, own=None if own_cover == cover else own_cover)


@dataclass(frozen=True)
class Photos:
    """A set of photos of any size, decoded a few at a time.

    Attributes:
        origin: where the photos are, in words.
        names: of the photos, for messages.
        labels: of the photos, indices of ``classes``; None without labels.
        classes: names, in order.
        found: number of photos at the origin; these may be a sample of them.
        checksum: of the photos.
        load: places in ``names``, increasing -> what decodes each.
        beside: number of photos that are left out because they lie beside the folders of the classes.
        alphabetical: whether nothing numbers the classes but the order of their names.
        kept: inputs of the first photos that were read.
    """

    origin: str
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    found: int
    checksum: str
    load: Callable[[Sequence[int]], Iterator[Opener]]
    beside: int = 0
    alphabetical: bool = False
    kept: dict[tuple[int, Crop], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def first(self) -> Image:
        """Return the first readable photo, upright.

        Raises:
            InputError: no photo is readable.
        """
        for place, opener in enumerate(self.load(range(len(self)))):
            image = _decoded(opener, self.names[place])
            if image is not None:
                return image
        raise InputError(f"{self.origin} holds no image that can be read.", "Check its files.")

    def sizes(self, places: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Return (height, width) of some photos, upright, by name, without those that cannot be read."""
        names = [self.names[place] for place in places]
        found = {name: _decoded(opener, name) for name, opener in zip(names, self.load(places), strict=True)}
        return {name: (image.height, image.width) for name, image in found.items() if image is not None}

    def read(self, start: int, stop: int, crop: Crop) -> tuple[Float[Tensor, "image channel tall wide"], list[int], list[str]]:
        """Decode some of the photos.

        Args:
            start: index of the first.
            stop: index after the last.
            crop: how each becomes the input of a model.

        Returns:
            the images in [0, 1], their indices, and the names of those that cannot be read.

        Raises:
            InputError: the numbers of a photo cannot be brought to [0, 1].
        """
        images, places, damaged = list[Tensor](), list[int](), list[str]()
        wanted = range(start, min(stop, len(self)))
        for place, opener in zip(wanted, self.load(wanted), strict=True):
            found = self._input(place, opener, crop)
            if found is None:
                damaged.append(self.names[place])
                continue
            places.append(place)
            images.append(found)
        empty = torch.zeros(0, crop.channels, *crop.outer)
        return torch.stack(images) if images else empty, places, damaged

    def _input(self, place: int, opener: Opener, crop: Crop) -> Tensor | None:
        """Return the input of a model for a photo; None if the photo is damaged."""
        if (found := self.kept.get((place, crop))) is not None:
            return found
        image = _decoded(opener, self.names[place])
        if image is None:
            return None
        found = crop.apply(image)
        if place < KEPT and KEPT * prod(crop.outer) <= KEPT_PIXELS:
            self.kept[place, crop] = found
        return found


def pick(found: int, count: int | None) -> list[int]:
    """Return the indices of ``count`` out of ``found`` images, drawn with a fixed seed, in order; None takes all.

    The images of a smaller count are among those of a larger one.

    >>> set(pick(100, 5)) < set(pick(100, 9)), pick(3, 8)
    (True, [0, 1, 2])
    """
    if count is None or count >= found:
        return list(range(found))
    return torch.randperm(found, generator=stream(0, "images"))[:count].sort().values.tolist()


def _decoded(opener: Opener, name: str) -> Image | None:
    """Return a photo; None if it is damaged.

    Raises:
        InputError: it can be read, but its numbers cannot be brought to [0, 1].
    """
    try:
        if current_thread() is not main_thread():
            # Warning filters belong to the process: a thread that reads ahead would restore them while others use them.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return opener()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            return opener()
    except InputError as error:
        raise InputError(f"{name}: {error.problem}", error.remedy) from error
    except Exception:  # a damaged image can raise anything that a decoder raises
        return None
