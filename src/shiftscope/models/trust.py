"""What loading a model would run or download, told from its name alone.

Whoever names a model on the command line or in code chose it. A name that stands in a file was chosen by whoever wrote the file.
"""

from __future__ import annotations

from pathlib import Path

from shiftscope.models.factories import is_code
from shiftscope.models.huggingface import PREFIX
from shiftscope.models.libraries import HUB, LIBRARIES
from shiftscope.models.spec import ModelSpec
from shiftscope.runtime.inputs import is_file, is_folder

__all__ = ["is_of_library", "needs_trust", "on_hub", "runs_code"]


def is_of_library(name: str) -> bool:
    """Return whether a reference names a model of a library, so that no code of the user's runs."""
    return not is_code(name) and name.partition(":")[0] in (*LIBRARIES, PREFIX)


def runs_code(name: str) -> bool:
    """Return whether a reference names the user's own code, which makes the model.

    >>> runs_code("mine:model"), runs_code("mine.py:model"), runs_code("timm:resnet18")
    (True, True, False)
    """
    is_path = is_file(Path(name)) or is_folder(Path(name))
    return is_code(name) or (":" in name and not is_path and not is_of_library(name))


def on_hub(name: str) -> bool:
    """Return whether a reference names a model of the Hugging Face hub, which may have to be downloaded.

    >>> on_hub("hf:owner/model"), on_hub("timm:hf-hub:owner/model"), on_hub("timm:resnet18")
    (True, True, False)
    """
    library, _, rest = name.partition(":")
    return rest.startswith(HUB) if library != PREFIX else not is_folder(Path(rest))


def needs_trust(spec: ModelSpec) -> bool:
    """Return whether loading a file with this specification would run the user's own code."""
    return spec.factory is not None and not is_of_library(spec.factory)
