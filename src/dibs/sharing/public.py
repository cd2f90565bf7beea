"""What of a run's configuration others may see: no secrets, and no folders of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dibs.data.questions import KNOWN
from dibs.runs.read import Run
from dibs.runs.versions import SOURCES

_OF_THIS_MACHINE = ("output_dir", "overwrite", "resume", "allow_changes", "tracking", "checkpoint")
_MEANS = ("servers", "sync_dir")
"""Keys of ``sampling`` that name machines and folders."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def public(run: Run) -> Run:
    """The run with a configuration without addresses and folders of the machine; a run has no secrets.

    Of a file or folder that was trained on or from, the name stays. Whatever is shared of a run is made
    from this one.
    """
    config: dict[str, Any] = {
        key: value for key, value in run.config.items() if key not in _OF_THIS_MACHINE
    }
    for source in SOURCES:
        section, _, key = source.partition(".")
        if isinstance(run.setting(source), str):
            config[section] = {**config[section], key: _source_name(run, source)}
    sampling = config.get("sampling")
    if isinstance(sampling, Mapping):
        config["sampling"] = {key: v for key, v in sampling.items() if key not in _MEANS}
    return replace(run, config=config)


def _source_name(run: Run, key: str) -> str:
    """A model or data source as others know it: hub id, known name, or a file's name alone."""
    source = str(run.setting(key))
    return source if hub_id(run, key) or "/" not in source else Path(source).name


def hub_id(run: Run, key: str) -> str | None:
    """The id of a source on the Hugging Face Hub; None for files, folders and embedded tasks.

    The run recorded what was a file or folder then. One of an earlier version did not: what is one now
    counts.
    """
    source = str(run.setting(key))
    if any(key in _texts(session.get("local")) for session in run.sessions):
        return None
    if key.startswith("data.") and source in KNOWN:
        return KNOWN[source].hub_id
    path = Path(source)
    if path.exists() or not _HUB_ID.fullmatch(source) or path.suffix.lower() in _FILES:
        return None
    return source


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_FILES = {".jsonl", ".json", ".csv", ".parquet", ".gz", ".gguf"}
