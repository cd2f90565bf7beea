"""A configuration from a YAML file and dotted overrides, with errors that say what to write instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dibs.config import Config, Section
from dibs.types import InputError

_SWITCHES = {"resume": "yes"}
"""Keys that may stand alone on the command line, and what they mean then."""


def load_config(path: Path | None, overrides: Mapping[str, str] | None = None) -> Config:
    """Read a YAML file and apply overrides, dotted key to text.

    Raises InputError with one line for a missing file, bad YAML, an unknown key or a bad value.
    """
    values: dict[str, Any] = {}
    source = "configuration"
    if path is not None:
        source = str(path)
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read config {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(loaded, dict | None):
            raise InputError(f"{path} must hold keys and values, not a {type(loaded).__name__}")
        values = loaded or {}
    for key, text in (overrides or {}).items():
        _assign(values, key, _read_text(key, text))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def split_config(words: Sequence[str]) -> tuple[Path | None, dict[str, str]]:
    """``[CONFIG] --key value --other=value ...``, in any order, to a path and override texts.

    Raises InputError for a second CONFIG or a key without a value.
    """
    path: Path | None = None
    overrides: dict[str, str] = {}
    remaining = iter(enumerate(words))
    for i, word in remaining:
        if not word.startswith("--"):
            if path is not None:
                raise InputError(f"expected --key value, got {word!r} after the config {path}")
            path = Path(word)
            continue
        key, equals, text = word[2:].partition("=")
        if not equals:
            following = words[i + 1] if i + 1 < len(words) else "--"
            if following.startswith("--"):
                if key not in _SWITCHES:
                    raise InputError(f"--{key} needs a value")
                text = _SWITCHES[key]
            else:
                text = following
                next(remaining)
        overrides[key] = text
    return path, overrides


def _read_text(dotted: str, text: str) -> Any:
    """An override's value: null, YAML for sections and lists, else the text itself.

    Text stays text, so that colons, braces and numerals in it survive; pydantic makes numbers and
    switches of it where the field wants one.
    """
    if text == "null":
        return None
    kind: Any = Config
    for name in dotted.split("."):
        fields = getattr(kind, "model_fields", {})
        if name not in fields:
            return text
        kind = fields[name].annotation
    structured = get_origin(kind) is tuple or hasattr(kind, "model_fields")
    if not structured:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--{dotted}: {section} is a value, not a section")
        values = inner
    values[key] = value


def _explain(error: ValidationError) -> str:
    first, *rest = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"unknown key {key}; {_hint(key)}"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        got = f" (got {first['input']!r})" if first["type"] != "value_error" else ""
        message = f"{key}: {reason}{got}" if key else f"{reason}{got}"
    return message + (f" (and {len(rest)} more)" if rest else "")


def _hint(unknown: str) -> str:
    """What to write instead: the likest key of the section, one of equal name, or all there are."""
    keys = [name for name, _, _ in config_keys()]
    keys += sorted({name.rpartition(".")[0] for name in keys if "." in name})
    section, _, last = unknown.rpartition(".")
    neighbours = {
        name.rpartition(".")[2]: name for name in keys if name.rpartition(".")[0] == section
    }
    alike = [neighbours[name] for name in get_close_matches(last, neighbours, n=1, cutoff=0.6)]
    namesakes = [name for name in keys if name.rpartition(".")[2] == last]
    near = [*alike, *namesakes]
    if near:
        return f"nearest is {near[0]}"
    return f"{section or 'the configuration'} has {', '.join(neighbours)}"


def config_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, Any, str]]:
    """``(dotted key, default, description)`` of every value of the configuration, in order."""
    keys: list[tuple[str, Any, str]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += config_keys(kind, f"{prefix}{name}.")
        else:
            keys.append((prefix + name, field.default, field.description or ""))
    return keys
