"""The warm start of the embedded task against plain AdamW, in one run.

The peer imitates the same noisy demonstrations with AdamW alone (lr 5e-3 decaying linearly, padded
batches of 128 problems of mixed length); ours is what `dibs train` does: Muon for the matrices and one
unpadded pass a problem length. Both train the same Qwen2 on one thread, and are scored with four
sampled completions of the same problems.

    python benchmarks/warm_start.py [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from shared import positive
from torch import nn

from dibs.config import PolicyConfig, WarmStartConfig
from dibs.data.arithmetic import Part, draw_problem, draw_problems
from dibs.data.prompts import prompt_id
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.model.warm_start import build_model, build_tokenizer, warm_started_policy
from dibs.rollouts.sampling import SampleRequest, collected
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.rollouts.scores import score
from dibs.rollouts.verify.judges import judge_arithmetic
from dibs.types import Group, Prompt, Rollout


def adamw_policy(updates: int, seed: int) -> Policy:
    """The peer's recipe."""
    rng = Random(seed)
    config = WarmStartConfig(seed=seed)
    tokenizer = build_tokenizer()
    model = build_model(config, tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for update in range(updates):
        ids, labels = mixed_batch(tokenizer, rng, config.batch_size)
        loss = model(
            input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels
        ).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, (update + 1) / 50) * (1 - update / updates)
        optimizer.step()
        optimizer.zero_grad()
    return Policy(model.eval(), tokenizer)


def mixed_batch(tokenizer, rng: Random, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Problems of 1 to 4 steps, padded on the right; labels on the completions only."""
    problems = [draw_problem(rng, 1, 4) for _ in range(size)]
    contexts = [tokenizer.encode(problem.prompt) for problem in problems]
    ends = [tokenizer.encode(problem.demonstration(rng) + "<eos>") for problem in problems]
    length = max(len(a) + len(b) for a, b in zip(contexts, ends, strict=True))
    ids = torch.full((size, length), tokenizer.pad_token_id)
    labels = torch.full((size, length), -100)
    for row, (context, end) in enumerate(zip(contexts, ends, strict=True)):
        ids[row, : len(context) + len(end)] = torch.tensor(context + end)
        labels[row, len(context) : len(context) + len(end)] = torch.tensor(end)
    return ids, labels


def accept_rate(policy: Policy, problems: int) -> float:
    """Mean accept rate on so many fixed problems."""
    requests = []
    for problem in draw_problems(problems, [Part(1.0, 1, 4)], seed=10**6):
        answer = str(problem.answer)
        name = prompt_id(problem.prompt, answer)
        ids = tuple(policy.tokenizer.encode(problem.prompt))
        requests.append(
            SampleRequest(Prompt(name, problem.prompt, ids, answer), 4, (0, int(name, 16)))
        )
    groups = []
    completions = collected(requests, TransformersSampler(policy, 16, 10**6).sample(requests))
    for request, group in zip(requests, completions, strict=True):
        rollouts = []
        for completion in group:
            verdict = judge_arithmetic(request.prompt.answer, completion.text)
            rollouts.append(
                Rollout(
                    request.prompt, completion, verdict.reward, verdict.status, verdict.reward == 1
                )
            )
        groups.append(Group(request.prompt, tuple(rollouts)))
    return score(groups).accuracy


def ours(updates: int, seed: int) -> Policy:
    """What `dibs train` starts from, trained afresh."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DIBS_CACHE"] = cache
        folder: Path = warm_started_policy(
            "arithmetic", WarmStartConfig(seed=seed, updates=updates), lambda *progress: None
        )
        return load_policy(PolicyConfig(model=str(folder), device="cpu"), 1.0)


def main() -> None:
    """Time both on every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=positive, default=1, help="policies of each recipe")
    parser.add_argument("--adamw-updates", type=int, default=1600, help="updates of AdamW alone")
    parser.add_argument(
        "--updates", type=int, default=WarmStartConfig().updates, help="updates of our recipe"
    )
    parser.add_argument(
        "--problems", type=positive, default=400, help="problems that score a policy"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipes = {
        f"AdamW, {options.adamw_updates} updates": partial(adamw_policy, options.adamw_updates),
        f"Muon and AdamW, {options.updates} updates": partial(ours, options.updates),
    }
    rows = []
    for name, recipe in recipes.items():
        seconds, rates = [], []
        for seed in range(options.seeds):
            started = time.perf_counter()
            policy = recipe(seed)
            seconds.append(time.perf_counter() - started)
            rates.append(accept_rate(policy, options.problems))
        rows.append({"recipe": name, "seconds": float(np.median(seconds)), "accept_rates": rates})
    result = {
        "threads": 1,
        "seeds": options.seeds,
        "rows": rows,
        "speedup": rows[0]["seconds"] / rows[1]["seconds"],
    }
    if options.json:
        print(json.dumps(result))
        return
    table = Table("recipe", "seconds (median)", "mean accept rate a seed", title="Warm start")
    for row in rows:
        rates = ", ".join(f"{rate:.3f}" for rate in row["accept_rates"])
        table.add_row(row["recipe"], f"{row['seconds']:.0f}", rates)
    console = Console()
    console.print(table)
    console.print(f"{result['speedup']:.2f} times faster")


if __name__ == "__main__":
    main()
