"""What a model and its tokenizer must have before anything is done with them.

A fault found later would be a traceback from the depths of a forward pass, or none at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dibs.types import InputError


def check_model(name: str, model: PreTrainedModel, tokenizer: Any) -> None:
    """InputError, in one line, where a model and its tokenizer cannot be a policy.

    That is so where no token ends a completion, the tokenizer has tokens that the model lacks, the model
    can draw tokens that it cannot read, or a weight is NaN or infinite.

    Args:
        name: the model as the user gave it, with the setting that names it.
    """
    _check_sizes(name, model, tokenizer)
    _check_end(name, model, tokenizer)
    _check_weights(name, model)


def eos_of(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Tokens that end a completion: those of :func:`declared_eos` that the model has."""
    rows = _rows(model.get_input_embeddings())
    declared = declared_eos(model, tokenizer)
    return [end for end in declared if end >= 0 and (rows is None or end < rows)]


def declared_eos(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """End-of-sequence tokens of the generation config and of the tokenizer."""
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = list(given) if isinstance(given, list | tuple) else [given]
    ids.append(tokenizer.eos_token_id)
    return list(dict.fromkeys(int(each) for each in ids if each is not None))


def _check_sizes(name: str, model: PreTrainedModel, tokenizer: Any) -> None:
    rows = _rows(model.get_input_embeddings())
    if rows is None:
        return
    drawn = _rows(model.get_output_embeddings())
    if drawn is not None and drawn > rows:
        raise InputError(
            f"{name}: its output layer draws from {drawn:,} tokens, but its embeddings "
            f"have {rows:,} rows; save the model with both of one size"
        )
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=lambda token: vocabulary[token], default=None)
    if last is not None and vocabulary[last] >= rows:
        lacking = sorted(number for number in vocabulary.values() if number >= rows)
        raise InputError(
            f"{name}: its tokenizer has tokens up to number {lacking[-1]:,}, but its "
            f"embeddings have {rows:,} rows; {len(lacking):,} tokens are lacking, such as {last!r}. "
            "Give the model its own tokenizer, or resize its embeddings (resize_token_embeddings) and "
            "train them"
        )


def _check_end(name: str, model: PreTrainedModel, tokenizer: Any) -> None:
    ends = declared_eos(model, tokenizer)
    if not ends:
        raise InputError(
            f"{name}: no end-of-sequence token is declared, so no completion would end; "
            "set eos_token in its tokenizer_config.json or eos_token_id in its generation_config.json"
        )
    if not eos_of(model, tokenizer):
        rows = _rows(model.get_input_embeddings())
        raise InputError(
            f"{name}: its end-of-sequence tokens {ends} are not among its {rows:,} tokens; "
            "correct eos_token_id in its generation_config.json"
        )


def _check_weights(name: str, model: PreTrainedModel) -> None:
    for weight, values in model.named_parameters():
        # The sum of a tensor is finite only if every entry is; it needs no second tensor.
        if torch.isfinite(values.detach().sum(dtype=torch.float64)):
            continue
        bad = int((~torch.isfinite(values.detach())).sum())
        if bad:
            raise InputError(
                f"{name}: {bad:,} of the {values.numel():,} entries of {weight} are NaN or "
                "infinite; the files are damaged, or training diverged; give an earlier checkpoint"
            )


def _rows(layer: nn.Module | None) -> int | None:
    """Tokens that an embedding or output layer has rows for; None where that is not known."""
    weight = getattr(layer, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None
