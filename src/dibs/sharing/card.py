"""The card of a model: what was trained on which data, by which rule, at what cost, and how well."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dibs.config import TEMPLATES
from dibs.runs.read import Record, Run, finite_number
from dibs.sharing.public import hub_id
from dibs.types import counted, printable

_POINTS = 20
"""Rows of the curve; a longer one is thinned, its ends stay."""


def model_card(run: Run, name: str, figure: str | None = None) -> str:
    """The README.md of a model repository, with its metadata in front.

    Args:
        run: a finished run, as :func:`.public` gives it.
        name: of the model.
        figure: path in the repository of a figure of the curve, if there is one.
    """
    parts = [
        f"---\n{yaml.safe_dump(_metadata(run, name), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _introduction(run),
        "## Accuracy",
        _accuracy(run),
        _curve(run, figure),
        "## Training",
        _table(("what", "value"), _training(run)),
        "## Prompt",
        _prompt(run),
        "## Versions",
        _table(("package", "version"), _versions(run)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(run: Run, name: str) -> dict[str, Any]:
    """What the hub reads of the card."""
    base, data = (hub_id(run, key) for key in ("policy.model", "data.train"))
    summary = run.summary or {}
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dibs", "reinforcement-learning", str(summary.get("algorithm", "")).lower()],
    }
    found["tags"] = [tag for tag in found["tags"] if tag]
    if base is not None:
        found["base_model"] = base
    if data is not None:
        found["datasets"] = [data]
    value = finite_number(summary, "accuracy_after")
    if math.isfinite(value):
        held_out, key = _held_out(run)
        result = {
            "task": {"type": "text-generation"},
            "dataset": {"type": hub_id(run, key) or _text(run, key), "name": held_out},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": round(value, 4),
                    "name": f"avg@{_generations(run)}, 95% {_ends(summary, 'accuracy_after')}",
                }
            ],
        }
        found["model-index"] = [{"name": name, "results": [result]}]
    return found


def _introduction(run: Run) -> str:
    summary = run.summary or {}
    return (
        f"{_cell(_text(run, 'policy.model'))} trained with DIBS {_dibs_version(run)} on "
        f"{_cell(_text(run, 'data.train'))}: {_cell(summary.get('algorithm'))} with "
        f"{_counts_rule(run)}, {_counted(summary, 'optimizer_updates', 'update')} from "
        f"{_counted(summary, 'rollouts', 'rollout')}."
    )


def _accuracy(run: Run) -> str:
    summary = run.summary or {}
    k = _generations(run)
    rows = [
        (
            end,
            f"{_share(summary, f'accuracy_{end}')} ({_ends(summary, f'accuracy_{end}')})",
            _share(summary, f"pass_at_k_{end}"),
        )
        for end in ("before", "after")
    ]
    held_out, _ = _held_out(run)
    table = _table(("training", f"accuracy, avg@{k} (95% interval)", f"pass@{k}"), rows)
    return (
        f"{table}\n\nMeasured on {_cell(held_out)}, {k} completions a prompt at temperature "
        f"{_cell(run.setting('evaluate.temperature'))}. The intervals treat prompts as independent, not "
        "completions. The seed of the run is "
        f"{_cell(summary.get('seed'))}; other seeds give other numbers."
    )


def _held_out(run: Run) -> tuple[str, str]:
    """What accuracy is measured on, in words, and the key of its source."""
    own = run.setting("data.eval")
    if isinstance(own, str):
        return f"held-out prompts of {own}", "data.eval"
    return f"prompts held out of {_text(run, 'data.train')}", "data.train"


def _curve(run: Run, figure: str | None) -> str:
    """Accuracy over the run, as a table and a figure."""
    scored = [line for line in run.metrics if finite_number(line, "accuracy") >= 0]
    if not scored:
        return ""
    rows = [
        (
            f"{line['step']:,}",
            _number(line, "rollouts"),
            f"{_share(line, 'accuracy')} ({_ends(line, 'accuracy')})",
        )
        for line in _thinned(scored)
    ]
    shown = f"![Accuracy against rollouts]({figure})\n\n" if figure else ""
    return shown + _table(("step", "rollouts, pilots counted", "accuracy (95% interval)"), rows)


def _thinned(lines: Sequence[Record]) -> list[Record]:
    """At most :data:`_POINTS` lines, evenly spaced, the first and the last among them."""
    if len(lines) <= _POINTS:
        return list(lines)
    last = len(lines) - 1
    return [lines[round(i * last / (_POINTS - 1))] for i in range(_POINTS)]


def _training(run: Run) -> Iterator[tuple[str, str]]:
    summary = run.summary or {}
    yield "base model", _cell(_text(run, "policy.model"))
    yield "data", _cell(_text(run, "data.train"))
    yield "algorithm", _cell(summary.get("algorithm"))
    target = f"{summary.get('objective')}, baseline {summary.get('baseline')}"
    yield "objective", _cell(f"{target}, estimator {summary.get('estimator')}")
    yield "counts", _counts_rule(run)
    yield "statistics of prompts", _cell(run.setting("estimate.mode"))
    yield "prompts a step", _cell(run.setting("train.prompts_per_step"))
    yield "steps, updates", f"{_number(summary, 'steps')}, {_number(summary, 'optimizer_updates')}"
    pilots = _number(summary, "pilot_rollouts")
    yield "rollouts", f"{_number(summary, 'rollouts')}, of them {pilots} pilots"
    yield "completion tokens", _number(summary, "completion_tokens")
    yield "learning rate", _cell(run.setting("update.learning_rate"))
    rank = run.setting("policy.lora.rank")
    if rank:
        yield "LoRA", f"rank {_cell(rank)}, added to the weights"
    yield "verifier", _cell(_verifier(run))
    yield "temperature", _cell(run.setting("sampling.temperature"))
    yield "longest completion", f"{_cell(run.setting('sampling.max_completion_length'))} tokens"
    yield "seed", _cell(summary.get("seed"))
    last = run.sessions[-1] if run.sessions else {}
    where = f"{last.get('processes', '?')} x {last.get('device', '?')}"
    yield "time", f"{_number(summary, 'wall_seconds')} s on {_cell(where)}"


def _verifier(run: Run) -> str:
    rewards = run.setting("verify.rewards")
    if isinstance(rewards, list) and rewards:
        return ", ".join(str(each.get("verifier")) for each in rewards if isinstance(each, Mapping))
    return _text(run, "verify.verifier")


def _counts_rule(run: Run) -> str:
    """How many completions prompts got, and by which rule."""
    rule = (run.summary or {}).get("allocator")
    rounds, pool = run.setting("allocate.rounds"), run.setting("select.pool")
    named = f"rounds of {rounds}" if rounds is not None else f"{rule} counts"
    chosen = f" over a pool of {pool} prompts" if pool is not None else ""
    budget = run.setting("allocate.budget")
    mean = f"{run.setting('allocate.num_generations')} completions a prompt on average"
    spent = mean if budget is None else f"{budget} {run.setting('allocate.budget_unit')} a step"
    return _cell(f"{named}{chosen} ({spent})")


def _prompt(run: Run) -> str:
    """The template as a block that no text of it can end."""
    template, own = _text(run, "data.template"), run.setting("data.system_prompt")
    system, text = TEMPLATES.get(template, (None, template))
    system = own if isinstance(own, str) else system
    block = "\n".join([*([f"[system] {system}"] if system else []), text])
    indented = "\n".join(f"    {line}" for line in block.splitlines())
    chat = "with" if run.setting("data.chat_template") else "without"
    return f"{indented}\n\n`{{prompt}}` is the question; {chat} the tokenizer's chat template."


def _versions(run: Run) -> list[tuple[str, str]]:
    last = run.sessions[-1].get("versions") if run.sessions else None
    versions = last if isinstance(last, Mapping) else {}
    shown = {name: each for name, each in versions.items() if name != "platform"}
    return [(_cell(name), _cell(version)) for name, version in shown.items()]


def _dibs_version(run: Run) -> str:
    return dict(_versions(run)).get("dibs", "of unknown version")


def _generations(run: Run) -> str:
    return _cell(run.setting("evaluate.num_generations") or "k")


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    """One line of text that ends no cell and opens no tag or link."""
    text = "unknown" if value is None else printable(value)
    return re.sub(r"([\\|\[`*])", r"\\\1", text).replace("<", "&lt;")


def _text(run: Run, key: str) -> str:
    value = run.setting(key)
    return value if isinstance(value, str) else "unknown"


def _share(record: Mapping[str, Any], key: str) -> str:
    return _number(record, key, "{:.3f}")


def _ends(record: Mapping[str, Any], key: str) -> str:
    return f"{_share(record, f'{key}_low')} to {_share(record, f'{key}_high')}"


def _counted(record: Mapping[str, Any], key: str, noun: str) -> str:
    value = finite_number(record, key)
    return counted(int(value), noun) if math.isfinite(value) else f"an unknown number of {noun}s"


def _number(record: Mapping[str, Any], key: str, form: str = "{:,.0f}") -> str:
    value = finite_number(record, key)
    return form.format(value) if math.isfinite(value) else "unknown"
