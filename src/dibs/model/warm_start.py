"""The starting policy of an embedded task: a small Qwen2 that imitates noisy demonstrations.

The policy is trained once, on the CPU and from a seed. It is kept in the user's cache folder, under a
hash of everything that decides the weights, as an ordinary Hugging Face folder.

Weight matrices are trained with Muon and the rest with AdamW, which takes half the time of AdamW alone
(docs/lab-notes.md). Each batch holds equally many problems of every length. Each length has a forward
pass of its own, so nothing is padded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from random import Random

import platformdirs
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dibs.config import WarmStartConfig
from dibs.data.arithmetic import (
    ANSWER_MARK,
    HABITS,
    LETTERS,
    MODULUS,
    OPERANDS,
    TASKS,
    draw_problem,
)
from dibs.files import whole_folder
from dibs.types import InputError

Progress = Callable[[int, int, float], None]
"""Called after every update as ``progress(update, updates, loss)``."""

_RECIPE = 3
_WARM_UP_UPDATES = 50
_MATRIX_WEIGHT_DECAY = 0.1
_INITIALIZER_RANGE = 0.08


def warm_started_policy(task: str, config: WarmStartConfig, progress: Progress) -> Path:
    """The folder of the warm-started policy of ``task``, which is trained now unless it is in the cache.

    The cache is ``DIBS_CACHE`` or the user's cache folder. Raises InputError where it cannot be written.
    """
    recipe = {"task": task, "recipe": _RECIPE, "torch": torch.__version__, **config.model_dump()}
    key = blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("DIBS_CACHE") or platformdirs.user_cache_dir("dibs"))
    folder = cache / f"{task}-{key}"
    if (folder / "config.json").is_file():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder, replace=False) as unfinished:  # another run may have made it too
            model, tokenizer = _train(task, config, progress)
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except OSError as error:
        raise InputError(
            f"cannot write the warm-started policy to {cache}: {error.strerror}; set DIBS_CACHE"
        ) from None
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded task's tokenizer: every number, letter and sign is one token."""
    letters = LETTERS[: max(most for _, most in TASKS.values())]
    words = [*map(str, range(MODULUS)), *letters, *OPERANDS, "=", ANSWER_MARK]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|\D"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def build_model(config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights from the config's seed."""
    torch.manual_seed(config.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            # With the usual 0.02, training takes several times as long at this width.
            initializer_range=_INITIALIZER_RANGE,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def _train(
    task: str, config: WarmStartConfig, progress: Progress
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    if not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"the embedded task needs torch >= 2.9 for its warm start, this is {torch.__version__}"
        )
    threads = torch.get_num_threads()
    # One thread, since the weights must not depend on the machine; tiny matrices gain little from two.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            tokenizer = build_tokenizer()
            model = build_model(config, tokenizer)
            _imitate(model, tokenizer, task, config, progress)
    finally:
        torch.set_num_threads(threads)
    return model.eval(), tokenizer


def _imitate(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    config: WarmStartConfig,
    progress: Progress,
) -> None:
    rng = Random(config.seed)
    fewest, most = TASKS[task]
    lengths = range(fewest, most + 1)
    optimizers = _optimizers(model, config)
    model.train()
    for update in range(config.updates):
        batches = [
            _demonstrations(
                tokenizer, rng, steps, -(-config.batch_size // len(lengths)), HABITS.get(task)
            )
            for steps in lengths
        ]
        tokens = sum(int(ids.shape[0]) * (ids.shape[1] - start) for ids, start in batches)
        loss = 0.0
        for ids, start in batches:
            hidden = model.base_model(input_ids=ids[:, :-1]).last_hidden_state[:, start - 1 :]
            part = nn.functional.cross_entropy(
                model.lm_head(hidden).flatten(0, 1), ids[:, start:].flatten(), reduction="sum"
            )
            (part / tokens).backward()
            loss += float(part.detach()) / tokens
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = min(1.0, (update + 1) / _WARM_UP_UPDATES) * (1 - update / config.updates)
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress(update + 1, config.updates, loss)


def _optimizers(
    model: Qwen2ForCausalLM, config: WarmStartConfig
) -> list[tuple[torch.optim.Optimizer, float]]:
    embeddings = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embeddings]
    rest = [p for p in model.parameters() if p.ndim != 2 or p is embeddings]
    return [
        (
            torch.optim.Muon(
                matrices, lr=config.matrix_learning_rate, weight_decay=_MATRIX_WEIGHT_DECAY
            ),
            config.matrix_learning_rate,
        ),
        (
            torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
            config.learning_rate,
        ),
    ]


def _demonstrations(
    tokenizer: PreTrainedTokenizerFast, rng: Random, steps: int, count: int, habit: float | None
) -> tuple[Tensor, int]:
    """Token ids [count, L] of problems with ``steps`` steps, and where their completions start."""
    rows = []
    for _ in range(count):
        problem = draw_problem(rng, steps, steps)
        rows.append(problem.prompt + problem.demonstration(rng, habit) + tokenizer.eos_token)
    ids = torch.tensor(tokenizer(rows, add_special_tokens=False)["input_ids"])
    return ids, len(tokenizer.encode(problem.prompt, add_special_tokens=False))
