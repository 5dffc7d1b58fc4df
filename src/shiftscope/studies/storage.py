"""The tensors of a finished run as one small file: safetensors in fewer bits, compressed.

- Values of outputs per image, and means per shift, in [-1, 1] become multiples of 2**-12 in 16 bits. An error of 1e-4 per image
  moves a mean over 359 images by some 4e-6.
- Deviations of bootstrap draws become multiples of a step, with a step of its own for each row. Only intervals over several
  networks use them. Each row resembles the one before, so that the difference from a multiple of it takes fewer bits.
- Curves, their intervals for one network, and layers' responses keep all their bits.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from shiftscope.errors import shortened
from shiftscope.runtime.inputs import tensors_in

__all__ = ["CURVE", "DEVIATIONS", "LAYER", "pack", "unpack"]

#: Prefixes of the names of tensors that keep all their bits: a curve, and a response of layer 3 as ``layer.3.similarity``.
CURVE, LAYER = "curve.", "layer."
#: The end of the name of a curve's deviations; after that, the end of the names of their steps and of their slopes.
DEVIATIONS, STEP, SLOPE = ".draws", ".step", ".slope"
#: Multiples per unit of a value.
VALUE_LEVELS = 2**12
#: Multiples of the step in the largest deviation of a row.
DEVIATION_LEVELS = 255
#: The most bytes of a run's tensors before compression, and the most characters of a name in a message.
LARGEST, LONGEST_NAME = 256 << 20, 60
#: LZMA for two-byte numbers.
FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 3, "lp": 1, "pb": 1},)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return named tensors as the content of a file.

    Args:
        tensors: by name; the prefixes and endings above decide how each is stored.
    """
    from safetensors.torch import save

    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        if name.endswith(DEVIATIONS):
            packed |= {f"{name}{end}": part for end, part in _differences(values.double()).items()}
        elif not name.startswith((CURVE, LAYER)) and values.dtype == torch.float32 and bool((values.abs() <= 1).all()):
            packed[name] = (values * VALUE_LEVELS).round().to(torch.int16)
        else:
            packed[name] = values
    return lzma.compress(save(packed), format=lzma.FORMAT_XZ, filters=FILTERS)


def unpack(content: bytes) -> dict[str, Tensor]:
    """Return the named tensors in a file's content, as floats.

    Args:
        content: as :func:`pack` made it.

    Raises:
        ValueError: the content is damaged.
    """
    packed = tensors_in(_decompressed(content))
    tensors = {}
    for name, values in packed.items():
        if name.endswith(DEVIATIONS):
            step, slope = (packed.get(f"{name}{end}") for end in (STEP, SLOPE))
            if step is None or slope is None or not values.ndim == 2 or not step.shape == slope.shape == (len(values), 1):
                raise ValueError(f"its deviations {shortened(name, LONGEST_NAME)!r} have no steps and slopes that fit")
            tensors[name] = _deviations(values, step, slope)
        elif not name.endswith((STEP, SLOPE)):
            tensors[name] = values.float() / VALUE_LEVELS if values.dtype == torch.int16 else values
    return tensors


def _decompressed(content: bytes) -> bytes:
    """Return what was compressed, as far as it is complete and no larger than such a file can be."""
    try:
        decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=LARGEST)
        found = decompressor.decompress(content, max_length=LARGEST)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError("its measures cannot be decompressed") from error
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("its measures are incomplete, too large, or followed by something else")
    return found


def _differences(deviations: Float[Tensor, "row draw"]) -> dict[str, Tensor]:
    """Return deviations as whole numbers: each row less a multiple of the row before. Keys end the tensors' names."""
    step = (deviations.abs().amax(dim=1, keepdim=True) / DEVIATION_LEVELS).clamp(min=torch.finfo(torch.float64).tiny)
    whole = (deviations / step).round()
    before = torch.cat([torch.zeros_like(whole[:1]), whole[:-1]])
    slope = (whole * before).sum(dim=1, keepdim=True) / (before**2).sum(dim=1, keepdim=True).clamp(min=1)
    return {"": (whole - (slope * before).round()).to(torch.int16), STEP: step, SLOPE: slope}


def _deviations(
    differences: Int16[Tensor, "row draw"], step: Float[Tensor, "row 1"], slope: Float[Tensor, "row 1"]
) -> Float[Tensor, "row draw"]:
    """Return the deviations that :func:`_differences` was given, up to half a step."""
    rows = [torch.zeros(differences.shape[1], dtype=torch.float64)]
    for difference, multiple in zip(differences, slope, strict=True):
        rows.append(difference + (multiple * rows[-1]).round())
    return torch.stack(rows)[1:] * step
