"""Folders with tiny models as users bring them: odd tokenizers, sizes, weights and architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(
    *,
    eos: str | None = "</s>",
    pad: str | None = "<pad>",
    chat_template: str | None = None,
    appends: str | None = None,
    special: tuple[str, ...] = SPECIAL,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer. ``appends``: a token that its post-processor writes after every text."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    if appends is not None:
        names = ["<s>", appends]
        numbers = [(name, backend.token_to_id(name)) for name in names]
        backend.post_processor = processors.TemplateProcessing(
            single=f"<s> $A {appends}", special_tokens=numbers
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, eos_token=eos)
    made.chat_template = chat_template
    return made


def save_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: Any = None,
    *,
    eos_ids: Any = None,
    change: Callable[[Any], None] = lambda model: None,
    **sizes: Any,
) -> Path:
    """Write a random model, Qwen2 by default, and its tokenizer.

    Args:
        eos_ids: of the generation config.
        change: is called with the model before it is saved.
        sizes: of Qwen2, in place of :data:`SIZES`.
    """
    if config is None:
        config = Qwen2Config(
            **{
                **SIZES,
                "vocab_size": len(tokenizer),
                "eos_token_id": None,
                "bos_token_id": None,
                "pad_token_id": None,
                **sizes,
            }
        )
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=eos_ids)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def questions_file(folder: Path, rows: int = 20) -> Path:
    """Easy questions in JSON Lines."""
    path = folder / "questions.jsonl"
    lines = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def small_run(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    """Words of a run of one step."""
    return [
        "train",
        f"--policy.model={model}",
        "--policy.device=cpu",
        "--policy.threads=1",
        f"--data.train={data}",
        f"--output_dir={out}",
        "--sampling.max_completion_length=4",
        "--train.steps=1",
        "--train.prompts_per_step=2",
        "--allocate.num_generations=2",
        "--allocate.allocator=uniform",
        "--estimate.mode=none",
        "--estimate.grad_norm=none",
        "--evaluate.num_generations=1",
        "--data.eval_size=2",
        "--verify.verifier=exact",
        *more,
    ]


def small_evaluation(model: Path, data: Path, *more: str) -> list[str]:
    """Words of an evaluation of a few tokens."""
    return [
        "eval",
        str(model),
        f"--data={data}",
        "--sampling.max_completion_length=4",
        "--policy.device=cpu",
        "--policy.threads=1",
        "--verify.verifier=exact",
        "--data.max_rows=3",
        *more,
    ]
