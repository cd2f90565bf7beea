"""A finished run on the Hugging Face Hub: its model, tokenizer, card, curve and configuration.

All files become one commit, so a repository never holds half of a model. Files that reached the hub
before an interruption are recognized by their content, and are not sent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dibs import __version__
from dibs.files import one_line
from dibs.runs.read import NoRun, Run, read_run
from dibs.sharing.card import model_card
from dibs.sharing.public import public
from dibs.types import InputError

_FIGURE = "training/accuracy.png"
_COMPLETIONS = ("samples.jsonl", "allocations.jsonl")
"""Files of a run that hold prompts, completions, or numbers of single prompts."""


@dataclass(frozen=True)
class SharedFile:
    """A file of the repository: a path here, or its content."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Share:
    """What is shared of a run. The card is among the files, as README.md."""

    run: Run
    card: str
    files: Sequence[SharedFile]

    def described(self) -> dict[str, Any]:
        """Names and sizes."""
        return {
            "files": [{"path": each.name, "bytes": each.size} for each in self.files],
            "bytes": sum(each.size for each in self.files),
        }


def prepare(folder: Path, repo: str, with_completions: bool) -> Share:
    """Read a run and make its card; nothing is sent.

    Raises InputError for a name that no repository can have, and for a folder that holds no finished
    run with a model.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{repo!r} is no name of a repository: {reason}") from None
    run = read_run(folder)
    if isinstance(run, NoRun):
        raise InputError(f"{folder}: {run.reason}")
    if run.summary is None:
        raise InputError(
            f"{folder} holds no finished run ({'; '.join(run.notes)}); go on with dibs train --resume"
        )
    model = folder / "model"
    if not (model / "config.json").is_file():
        raise InputError(f"{folder} holds no model: {model / 'config.json'} is missing")
    figure = folder / "figures" / "accuracy.png"
    shown = public(run)
    card = model_card(shown, repo.partition("/")[2] or repo, _FIGURE if figure.is_file() else None)
    config = yaml.safe_dump(dict(shown.config), sort_keys=False, allow_unicode=True)
    files = [
        SharedFile("README.md", card.encode()),
        *(SharedFile(str(p.relative_to(model)), p) for p in _model_files(model)),
        SharedFile("training/config.yaml", config.encode()),
    ]
    if figure.is_file():
        files.append(SharedFile(_FIGURE, figure))
    if with_completions:
        kept = [folder / name for name in _COMPLETIONS if (folder / name).is_file()]
        files += [SharedFile(f"training/{path.name}", path) for path in kept]
    return Share(shown, card, files)


def _model_files(model: Path) -> list[Path]:
    """The files of a model, without hidden ones and without a card of their own."""
    return sorted(
        path
        for path in model.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(model).parts)
        and path.relative_to(model) != Path("README.md")
    )


def push(share: Share, repo: str, private: bool) -> dict[str, Any]:
    """Upload what is shared to a model repository, which is made where there is none.

    Returns ``url``, ``commit``, ``files`` and ``bytes``. Raises InputError where there is no token, or
    the hub refuses or cannot be reached.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import OfflineModeIsEnabled

    if get_token() is None:
        raise InputError("there is no token of the hub; run hf auth login, or set HF_TOKEN")
    try:
        return {**_uploaded(share, repo, private), **share.described()}
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from None
    except InputError:
        raise
    except Exception as error:  # the client of the hub has changed its HTTP library, and may again
        answer = _answer(error)
        stopped = f"the upload to {repo} stopped ({one_line(error)}); the same command goes on"
        raise InputError(stopped if answer is None else _refusal(answer, repo)) from error


def _uploaded(share: Share, repo: str, private: bool) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="dibs", library_version=__version__)
    url = api.create_repo(repo, private=True if private else None, exist_ok=True)
    if private and not api.model_info(url.repo_id).private:
        raise InputError(
            f"{url.repo_id} exists already and is public; make it private in its settings, or leave "
            "--private out"
        )
    operations = [
        CommitOperationAdd(
            each.name, each.content if isinstance(each.content, bytes) else str(each.content)
        )
        for each in share.files
    ]
    steps = (share.run.summary or {}).get("steps")
    commit = api.create_commit(
        url.repo_id, operations, commit_message=f"Model trained with DIBS: {steps} steps"
    )
    return {"url": str(url), "commit": commit.oid}


def _answer(error: BaseException | None) -> Any:
    """The answer of the hub among the causes of an error; None without one."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _refusal(error: Any, repo: str) -> str:
    status = getattr(error.response, "status_code", None)
    said = " ".join(str(getattr(error, "server_message", None) or error).split())[:200]
    advice: Mapping[Any, str] = {
        401: "the token is not valid; run hf auth login, or set HF_TOKEN",
        403: "the token may not write there; take one with write access, or another name",
        404: "there is no such user or organization, or the token may not see it",
    }
    hint = advice.get(status, "the same command goes on once that is mended")
    return f"the hub refuses {repo} ({status}: {said}); {hint}"
