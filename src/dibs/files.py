"""Files and folders that are never half-written, and JSON that any reader takes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNFINISHED = ".unfinished-"
"""Beginning of the names of files and folders that are still being written."""


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remedy(error: Exception) -> str:
    """What to do where a file could not be written: make room, if that is what it lacks.

    Libraries that write weights raise errors of their own, which may name the system's number. One that
    names none is taken as a lack of room.
    """
    said = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(said[1]) if said else errno.ENOSPC
    return "make room" if number in _NO_ROOM else "mend that"


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write, which takes its name once it is whole and on disk.

    Readers see the old file or the new one. If the block raises, the old file stays.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{_UNFINISHED}{path.name}-", dir=path.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
        unfinished.chmod(0o644)
        sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """An empty folder to fill, which takes the name ``path`` once all of it is on disk.

    A folder that has the name by then is replaced; without ``replace`` it stays, and the new one is
    dropped. If the block raises, it stays too. An interrupt leaves the old folder or the new one, whole.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{path.name}-", dir=path.parent))
    old = unfinished.with_name(f"{unfinished.name}-old")
    try:
        yield unfinished
        for each in (*unfinished.rglob("*"), unfinished):
            sync(each)
        unfinished.chmod(0o755)
        if replace and path.exists():
            path.rename(old)
        if not path.exists():
            unfinished.rename(path)
            sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (unfinished, old):
            with suppress(OSError):
                _remove(left)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; nobody may be writing there."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        _remove(left)


def _remove(path: Path) -> None:
    """Remove a folder with all that it holds, a file, or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one rename."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one rename."""
    with whole_file(path) as file:
        file.write(text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a whole JSON Lines file. Raises ValueError for a line that is not JSON."""
    return [json.loads(line) for line in split_lines(path.read_bytes())]


def read_whole_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a JSON Lines file that hold a record, with their line feeds, and the records.

    Lines that were cut off, or damaged otherwise, are left out; so is a file that is missing.
    """
    content = path.read_bytes() if path.exists() else b""
    parsed = ((line + b"\n", parsed_record(line)) for line in split_lines(content))
    return [(line, record) for line, record in parsed if record is not None]


def split_lines(content: bytes) -> list[bytes]:
    """Lines without their ends; only a line feed ends a line, U+2028 does not."""
    return [line for line in content.split(b"\n") if line]


def parsed_record(line: bytes) -> dict[str, Any] | None:
    """The JSON object that a line holds; None if it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities become null."""
    return json.dumps(_strict(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def one_line(error: BaseException) -> str:
    """The innermost cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
