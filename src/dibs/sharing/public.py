"""What of a run's configuration others may see: no secrets, and no folders of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dibs.data.questions import KNOWN
from dibs.runs.read import Run

_OF_THIS_MACHINE = ("output_dir", "overwrite", "resume", "allow_changes", "tracking", "checkpoint")
_SOURCES = (("policy", "model"), ("data", "train"), ("data", "eval"), ("sampling", "server_model"))
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
    for section, key in _SOURCES:
        values = config.get(section)
        if isinstance(values, Mapping) and isinstance(values.get(key), str):
            config[section] = {**values, key: _source_name(values[key])}
    sampling = config.get("sampling")
    if isinstance(sampling, Mapping):
        config["sampling"] = {key: v for key, v in sampling.items() if key not in _MEANS}
    return replace(run, config=config)


def _source_name(source: str) -> str:
    """A model or data source as others know it: hub id, known name, or a file's name alone."""
    return source if hub_id(source) or "/" not in source else Path(source).name


def hub_id(source: str) -> str | None:
    """The id that a source has on the Hugging Face Hub; None for files, folders and embedded tasks."""
    if source in KNOWN:
        return KNOWN[source].hub_id
    path = Path(source)
    if path.exists() or not _HUB_ID.fullmatch(source) or path.suffix.lower() in _FILES:
        return None
    return source


_FILES = {".jsonl", ".json", ".csv", ".parquet", ".gz", ".gguf"}
