"""A configuration from a YAML file and dotted overrides, with errors that say what to write instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dibs.config.changes import flat_keys
from dibs.config.secrets import HIDDEN
from dibs.config.section import Section
from dibs.config.whole import Config
from dibs.config.wording import worded
from dibs.config.yaml_files import read_yaml
from dibs.types import InputError

SectionType = TypeVar("SectionType", bound=Section)
_SWITCHES = {"resume": "yes"}
"""Keys that may stand alone on the command line, and what they mean then."""


def load_config(path: Path | None, overrides: Mapping[str, str] | None = None) -> Config:
    """Read a YAML file and apply overrides, dotted key to text.

    Raises InputError with one line for a missing file, bad YAML, an unknown key or a bad value.
    """
    source = "configuration" if path is None else str(path)
    return validated(read_values(path, overrides or {}), Config, source, overrides or {})


def read_values(
    path: Path | None, overrides: Mapping[str, str], kind: type[Section] = Config
) -> dict[str, Any]:
    """What a YAML file and overrides of it say, not yet checked against ``kind``.

    Raises InputError for a file that cannot be read or holds something else than keys and values.
    """
    values: dict[str, Any] = {}
    if path is not None:
        loaded = read_yaml(path)
        if not isinstance(loaded, dict | None):
            raise InputError(f"{path} must hold keys and values, not a {type(loaded).__name__}")
        values = loaded or {}
    for key, text in overrides.items():
        assign(values, key, _read_text(key, text, kind))
    return values


def validated(
    values: Mapping[str, Any],
    kind: type[SectionType],
    source: str,
    overrides: Collection[str] = (),
) -> SectionType:
    """The section that values describe.

    Raises InputError, one line that begins with ``source``, or with the command line where the fault is
    of a key among ``overrides``.
    """
    _refuse_hidden(values, source)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        key = f"{_key(error)}."
        given = any(key.startswith(f"{each}.") or each.startswith(key) for each in overrides)
        place = "command line" if given and key != "." else source
        raise InputError(f"{place}: {_explain(error, kind)}") from None


def _refuse_hidden(values: Mapping[str, Any], source: str) -> None:
    """InputError for a value of a written configuration in which a secret was left out."""
    for key, value in flat_keys(values).items():
        if HIDDEN in str(value):
            raise InputError(
                f"{source}: {key} holds {HIDDEN}, which stands in place of a secret; put the secret "
                "there again, or take the key out"
            )


def split_config(words: Sequence[str]) -> tuple[Path | None, dict[str, str]]:
    """``[CONFIG] --key value --other=value ...``, in any order, to a path and override texts.

    Raises InputError for a second CONFIG or a key without a value.
    """
    paths, overrides = split_configs(words)
    if len(paths) > 1:
        raise InputError(f"expected --key value, got {str(paths[1])!r} after the config {paths[0]}")
    return next(iter(paths), None), overrides


def split_configs(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The same with any number of files."""
    paths: list[Path] = []
    overrides: dict[str, str] = {}
    remaining = iter(enumerate(words))
    for i, word in remaining:
        if not word.startswith("--"):
            paths.append(Path(word))
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
    return paths, overrides


def _read_text(dotted: str, text: str, kind: Any) -> Any:
    """An override's value: null, YAML for sections and lists, else the text itself.

    Text stays text, so that colons, braces and numerals in it survive; pydantic makes numbers and
    switches of it where the field wants one.
    """
    if text == "null":
        return None
    for name in dotted.split("."):
        fields = getattr(kind, "model_fields", {})
        if name not in fields:
            return text
        kind = fields[name].annotation
    structured = get_origin(kind) in (tuple, dict) or hasattr(kind, "model_fields")
    if any(get_origin(each) is tuple for each in get_args(kind)):
        # One text of a list may stand alone, whatever colons it has.
        structured = text.lstrip().startswith("[") or text.isdecimal()
    if not structured:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key of nested values. InputError where it leads through a value."""
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--{dotted}: {section} is a value, not a section")
        values = inner
    values[key] = value


def _key(error: ValidationError) -> str:
    """The dotted key of the first fault; empty where it is of the whole."""
    return ".".join(str(part) for part in error.errors()[0]["loc"])


def _explain(error: ValidationError, kind: type[Section]) -> str:
    first, *rest = error.errors()
    key = _key(error)
    if first["type"] == "extra_forbidden":
        message = f"unknown key {key}; {_hint(key, kind)}"
    else:
        message = f"{key}: {worded(first)}" if key else worded(first)
    return message + (f" (and {len(rest)} more)" if rest else "")


def _hint(unknown: str, kind: type[Section]) -> str:
    """What to write instead: the likest key of the section, one of equal name, or all there are."""
    keys = [name for name, _, _ in config_keys(kind)]
    keys += sorted({name.rpartition(".")[0] for name in keys if "." in name})
    section, _, last = unknown.rpartition(".")
    neighbors = {
        name.rpartition(".")[2]: name for name in keys if name.rpartition(".")[0] == section
    }
    alike = [neighbors[name] for name in get_close_matches(last, neighbors, n=1, cutoff=0.6)]
    namesakes = [name for name in keys if name.rpartition(".")[2] == last]
    near = [*alike, *namesakes]
    if near:
        return f"nearest is {near[0]}"
    return f"{section or 'the configuration'} has {', '.join(neighbors)}"


def config_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, Any, str]]:
    """``(dotted key, default, description)`` of every value of the configuration, in order.

    The default is None where other keys decide the value.
    """
    keys: list[tuple[str, Any, str]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += config_keys(kind, f"{prefix}{name}.")
        else:
            default = None if field.default_factory is not None else field.default
            keys.append((prefix + name, default, field.description or ""))
    return keys
