"""Whether the Hugging Face hub can be reached, before its packages try it again and again."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def without_hub(name: str, what: str) -> str:
    """What to add to an error about a model or data set that is not on this machine; mostly empty.

    Where the hub cannot be reached, its packages look only at their cache from now on. Otherwise each of
    several look-ups would be tried six times, for half a minute.

    Args:
        name: as the user gave it, a hub id or a path.
        what: to give instead, such as "the folder of a model".
    """
    if Path(name).expanduser().exists() or _is_reachable(_host()):
        return ""
    for key in _OFFLINE:
        os.environ[key] = "1"
    for module, constant in (
        ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_DATASETS_OFFLINE"),
    ):
        if module in sys.modules:  # it has read the environment already
            setattr(sys.modules[module], constant, True)
    return f"; {_host()} cannot be reached from here: give {what} on this machine"


def _host() -> str:
    return urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""


@cache
def _is_reachable(host: str) -> bool:
    """Whether the name of a host is known. A proxy knows names that this machine does not."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
