"""Load a policy and its tokenizer from a folder or from the hub, as the configuration says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from dibs.config import LoraConfig, PolicyConfig
from dibs.data.hub import without_hub
from dibs.model.fitness import check_model
from dibs.model.gguf_file import gguf_file_of, load_gguf_model, load_gguf_tokenizer, model_source
from dibs.model.policy import Policy
from dibs.types import InputError

_GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
_DTYPES = {"float32": torch.float32, "mixed": torch.float32, "bfloat16": torch.bfloat16}
_TINY = 20_000_000
"""Parameters of a model below which one CPU thread is faster than several."""


def load_policy(config: PolicyConfig, temperature: float) -> Policy:
    """Load ``config.model`` and its tokenizer: a hub id, a folder, a GGUF file or an installed package.

    Raises InputError when there is no such model, it cannot be loaded, or it cannot be a policy (see
    :func:`.check_model`).
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    source, file = existing_source(config.model)
    with _one_line(config):
        tokenizer = load_tokenizer(source, _options(config))
        if file is not None:
            model = load_gguf_model(file, _DTYPES[config.dtype], tokenizer.eos_token_id)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=_DTYPES[config.dtype], **_options(config)
            )
        model.to(device)
    check_model(f"policy.model {config.model}", model, tokenizer)
    if config.threads is None and device.type == "cpu" and model.num_parameters() < _TINY:
        torch.set_num_threads(1)
    if config.lora.rank > 0:
        model = _with_adapters(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mixed = config.dtype == "mixed"
    return Policy(model, tokenizer, temperature, mixed=mixed, compiled=config.compile)


def check_source(config: PolicyConfig) -> None:
    """Raise InputError, as :func:`load_policy` does, for a model whose small files cannot be read."""
    source, file = existing_source(config.model)
    if file is None:
        with _one_line(config):
            AutoConfig.from_pretrained(source, **_options(config))
            load_tokenizer(source, _options(config))


def _options(config: PolicyConfig) -> dict[str, Any]:
    return {"trust_remote_code": config.trust_remote_code}


def existing_source(name: str, *, tokenizer: bool = False) -> tuple[str, Path | None]:
    """Where a model is, and its GGUF file if it is one. InputError for a path that leads to none.

    ``tokenizer``: a folder with nothing but a tokenizer is enough.
    """
    source = model_source(name)
    file, path = gguf_file_of(source), Path(source).expanduser()
    if file is None and name.startswith(("/", ".", "~")) and not Path(source).exists():
        raise InputError(f"policy.model {name}: no such folder")
    if file is None and path.is_file():
        raise InputError(
            f"policy.model {name}: is a file, but not .gguf; give the folder of a model"
        )
    enough = tokenizer and (path / "tokenizer_config.json").is_file()
    if file is None and path.is_dir() and not (enough or _holds_model(path)):
        raise InputError(f"policy.model {name}: {_instead_of(path)}")
    return source, file


@contextmanager
def _one_line(config: PolicyConfig) -> Iterator[None]:
    """Whatever a model's files make a library raise becomes an InputError."""
    hint = without_hub(config.model, "the folder of a model")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"policy.model {config.model}: cannot be loaded: {reason}{hint}"
        ) from error


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _instead_of(folder: Path) -> str:
    """What a folder without a model is, and the model to give: of a run, a checkpoint, several runs."""
    places = ("model", "checkpoints/step-*", "step-*", "*/model")
    found = [path for place in places for path in sorted(folder.glob(place), reverse=True)]
    models = [path for path in found if _holds_model(path)]
    run = (folder / "metrics.jsonl").is_file()
    advice = (
        "which has saved no model yet" if run else "give a folder with a model, such as RUN/model"
    )
    what = "is the folder of a run" if run else "holds no model"
    return f"{what}; {f'give {models[0]}' if models else advice}"


def _with_adapters(model: PreTrainedModel, config: LoraConfig) -> Any:
    """The model in PEFT's wrapper, with new adapters, which alone are trainable."""
    try:
        import peft
    except ImportError:
        raise InputError("policy.lora needs PEFT; pip install dibs-rl[lora]") from None
    names = list(config.target_modules)
    adapters = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        target_modules=names[0] if names == ["all-linear"] else names,
    )
    try:
        return peft.get_peft_model(model, adapters)
    except ValueError as error:
        raise InputError(f"policy.lora: {' '.join(str(error).split())[:300]}") from None


def load_tokenizer(source: str, options: dict[str, Any]) -> Any:
    """Load a tokenizer of the class that it was saved with; a GGUF file holds one too.

    AutoTokenizer of transformers 5 would replace a generic tokenizer in, for example, a Qwen2 folder by
    Qwen2's own class, which splits text differently from the ``tokenizer.json`` in that folder.
    """
    source = model_source(source)
    file = gguf_file_of(source)
    if file is not None:
        return load_gguf_tokenizer(file)
    declared = get_tokenizer_config(source, **options).get("tokenizer_class")
    if declared in _GENERIC_TOKENIZERS:
        return PreTrainedTokenizerFast.from_pretrained(source, **options)
    return AutoTokenizer.from_pretrained(source, **options)


def _device(name: str) -> torch.device:
    if name == "auto":
        # torchrun sets the number of each process on its machine.
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return torch.device(own if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"policy.device {name}: {str(error).splitlines()[0]}") from None
