"""How the run in a folder was configured, and what a resumed run changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dibs.config import Config
from dibs.config.secrets import without_secrets
from dibs.types import InputError

_MARK = {"output_dir", "policy", "data", "train"}
"""Sections that tell a run's configuration from another file of the name."""
_FREE_TO_CHANGE = (
    "output_dir",
    "overwrite",
    "resume",
    "allow_changes",
    "sampling.gpu_memory_utilization",
    "sampling.servers",
    "sampling.server_concurrency",
    "sampling.server_timeout",
    "sampling.sync_dir",
)
"""Keys that a resumed run may have set differently, with those of the sections below."""
_FREE_SECTIONS = ("tracking", "checkpoint")


def _written_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a folder. InputError where it holds none."""
    try:
        written = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        written = None
    if not isinstance(written, dict) or not written.keys() >= _MARK:
        raise InputError(f"output_dir {path} holds no run to resume")
    unknown = sorted(str(key) for key in written.keys() - Config.model_fields.keys())
    if unknown:
        raise InputError(
            f"{path / 'config.yaml'} has keys that no configuration has: {', '.join(unknown)}; take "
            "them out, or resume with the version of dibs that wrote them"
        )
    return written


def changed_keys(config: Config) -> list[str]:
    """How the run in ``output_dir`` was configured differently, a text a key.

    What a resumed run may change is left out. A key that the version of dibs that began the run did not
    have counts as set to its default. InputError where the folder holds no run.
    """
    before = flat_keys(_with_defaults(_written_config(config.output_dir)))
    now = flat_keys(without_secrets(config.model_dump(mode="json")))
    return [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not _free_to_change(key)
    ]


def _with_defaults(written: dict[str, Any]) -> dict[str, Any]:
    try:
        return without_secrets(Config.model_validate(written).model_dump(mode="json"))
    except ValidationError:
        return written


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration: every value by its dotted key, in order."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_keys(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _free_to_change(key: str) -> bool:
    return key in _FREE_TO_CHANGE or key.partition(".")[0] in _FREE_SECTIONS
