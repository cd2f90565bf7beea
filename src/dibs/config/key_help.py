"""The help text of configuration keys, made from the fields themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dibs.config.section import Section
from dibs.config.whole import Config

_KINDS = {int: "INTEGER", float: "NUMBER", bool: "true|false", dict: "MAPPING"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def keys_help(
    section: type[BaseModel] = Config,
    prefix: str = "",
    *,
    width: int = 80,
    only: Collection[str] | None = None,
) -> str:
    """Every key of a section and of those inside it: values, bounds, default and description.

    A heading with the section's docstring stands above the keys of each section.

    Args:
        prefix: what stands before the keys on the command line, such as ``compare.``.
        width: columns a line may take.
        only: names of the keys to show; all by default.
    """
    doc = (section.__doc__ or "").partition("\n\n")[0].replace("``", "")
    name = prefix.rstrip(".")
    lines = textwrap.wrap(f"{name}: {doc}" if name else doc, width)
    inner = []
    for key, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            inner.append(keys_help(kind, f"{prefix}{key}.", width=width))
        elif only is None or key in only:
            lines += _key_lines(prefix + key, field, width)
    return "\n\n".join(["\n".join(lines), *inner])


def allowed_values(kind: Any) -> Iterator[str]:
    """What a key of this annotation may hold: the words of a choice, a kind in capitals, or null."""
    origin = get_origin(kind)
    if origin is Literal:
        yield from map(str, get_args(kind))
    elif origin in (Union, UnionType):
        for each in get_args(kind):
            yield from allowed_values(each)
    elif origin is tuple:
        yield f"[{'|'.join(allowed_values(get_args(kind)[0]))}, ...]"
    elif kind is NoneType:
        yield "null"
    else:
        yield _KINDS.get(origin or kind, "TEXT")


def default_text(field: FieldInfo) -> str:
    """A field's default as one writes it in YAML; null where other keys decide it."""
    default = None if field.default_factory is not None else field.default
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    return str(default)


def value_text(field: FieldInfo) -> str:
    """What a key may hold, with its bounds: ``INTEGER >= 1|null``."""
    bounds = [
        f" {sign} {getattr(each, name):g}"
        for each in field.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(each, name)
    ]
    values = list(dict.fromkeys(allowed_values(field.annotation)))
    if field.default_factory is not None:
        values.append("null")
    return "|".join(
        value + "".join(bounds) if value in _KINDS.values() else value for value in values
    )


def _key_lines(key: str, field: FieldInfo, width: int) -> list[str]:
    head = f"--{key} {value_text(field)} (default: {default_text(field)})"
    return [
        *textwrap.wrap(
            head, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        ),
        *textwrap.wrap(
            field.description or "",
            width,
            initial_indent=" " * 8,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        ),
    ]
