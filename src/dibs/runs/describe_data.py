"""The command ``dibs data``: what a run would train on."""

from __future__ import annotations

from typing import Any

import numpy as np

from dibs.config import Config
from dibs.data.arithmetic import TASKS
from dibs.data.curriculum import batches, level_sizes
from dibs.data.hub import without_hub
from dibs.data.prompts import build_prompts, read_questions
from dibs.files import one_line
from dibs.model.pretrained import existing_source, load_tokenizer
from dibs.model.warm_start import build_tokenizer
from dibs.rollouts.verify.verifiers import gold_reader
from dibs.runs.announce import box_note
from dibs.runs.build import _quiet_transformers
from dibs.types import InputError

_LAST = 5
"""Tokens shown of a prompt's end, where a wrong template or tokenizer shows."""


def describe_data(config: Config) -> dict[str, Any]:
    """What a run would train on: counts, lengths in tokens, five rendered prompts, dropped rows.

    ``unreadable_answers`` are gold answers that the verifier cannot compare by value.
    """
    _quiet_transformers()
    if config.policy.model in TASKS:
        tokenizer = build_tokenizer()
    else:
        existing_source(config.policy.model, tokenizer=True)
        options = {"trust_remote_code": config.policy.trust_remote_code}
        hint = without_hub(config.policy.model, "the folder of a model")
        try:
            tokenizer = load_tokenizer(config.policy.model, options)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"policy.model {config.policy.model}: its tokenizer cannot be loaded: {one_line(error)}"
                + hint
            ) from error
    prompts = build_prompts(
        read_questions(config.data, config.seed), config.data, tokenizer, config.seed
    )
    is_readable = gold_reader(config.verify, config.data.train)
    every = [*prompts.train, *prompts.eval]
    unreadable = [prompt.answer for prompt in every if not is_readable(prompt.answer)]
    lengths = np.array([len(prompt.token_ids) for prompt in prompts.train])
    first = next(batches(prompts.train, min(5, len(prompts.train)), config.seed))
    levels = level_sizes(prompts.train)
    return {
        "train": len(prompts.train),
        **({"levels": levels} if len(levels) > 1 else {}),
        "eval": len(prompts.eval),
        "prompts_per_step": config.train.prompts_per_step,
        "steps_per_epoch": levels[0] // config.train.prompts_per_step,
        "prompt_length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "p95": float(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
        },
        "dropped": prompts.dropped,
        "notes": [*prompts.notes, *box_note(config, prompts)],
        "unreadable_answers": {"count": len(unreadable), "first": unreadable[:5]},
        "prompts": [
            {
                "prompt_id": prompt.prompt_id,
                "text": prompt.text,
                "answer": prompt.answer,
                "last_tokens": tokenizer.convert_ids_to_tokens(prompt.token_ids[-_LAST:]),
            }
            for prompt in first
        ],
    }
