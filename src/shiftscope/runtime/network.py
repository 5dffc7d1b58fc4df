"""The Hugging Face hub: whether it can be reached, and keeping libraries away from it.

Nothing here is asked for by a file: what a file names is read from the local cache, and only what the user names is downloaded.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from shiftscope.errors import InputError

__all__ = ["hub_answers", "hub_offline"]

HUB_WAIT_SECONDS = 1.5


def hub_answers() -> bool:
    """Return whether the hub, or the proxy before it, accepts a connection within a second or two.

    Raises:
        InputError: the proxy's address cannot be read.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    name = next((each for each in ("HTTPS_PROXY", "https_proxy") if os.environ.get(each)), "HF_ENDPOINT")
    try:
        address = urlsplit(constants.ENDPOINT if name == "HF_ENDPOINT" else os.environ[name])
        place = (address.hostname, address.port or 443)
    except ValueError as error:
        raise InputError(f"the environment variable {name} is no address ({error}).", "Correct or unset it.") from error
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection(place, timeout=HUB_WAIT_SECONDS).close()
            answers.append(True)
        except (OSError, ValueError):
            pass

    # In a thread, because a name lookup has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_WAIT_SECONDS)
    return bool(answers)


@contextmanager
def hub_offline() -> Iterator[None]:
    """Keep the hub's libraries off the network for the duration: what is not in their caches is missing at once."""
    from huggingface_hub import constants

    configs = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [each.HF_HUB_OFFLINE for each in configs]
    for each in configs:
        each.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for each, value in zip(configs, before, strict=True):
            each.HF_HUB_OFFLINE = value
