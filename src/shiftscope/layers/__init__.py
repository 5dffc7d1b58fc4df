"""Drop-in layers that alias less, or not at all: pooling, subsampling and activation.

- :mod:`~shiftscope.layers.blur`: BlurPool and MaxBlurPool, a low-pass filter before subsampling;
- :mod:`~shiftscope.layers.polyphase`: adaptive and learned polyphase sampling, exactly equivariant under circular shifts;
- :mod:`~shiftscope.layers.activations`: an activation between upsampling and a filter.

They depend on no model; :mod:`shiftscope.surgery` inserts them into one.
"""

from shiftscope.layers.activations import AliasFreeActivation
from shiftscope.layers.blur import BlurPool1d, BlurPool2d, BlurPool3d, Compat, MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d
from shiftscope.layers.polyphase import AdaptivePolyphaseSampling, LearnedPolyphaseSampling
from shiftscope.layers.resampling import Border

__all__ = [
    "AdaptivePolyphaseSampling",
    "AliasFreeActivation",
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "Border",
    "Compat",
    "LearnedPolyphaseSampling",
    "MaxBlurPool1d",
    "MaxBlurPool2d",
    "MaxBlurPool3d",
]
