"""A model on benchmarks: avg@k, pass@k and maj@k of each, and their averages.

Completions are sampled and judged in parts; with an output folder each part is kept as it is done, and
an evaluation that was stopped goes on from there, if its settings are the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from dibs.allocation.intervals import clustered_interval
from dibs.allocation.order_k import pass_at_k
from dibs.config import Config
from dibs.config.secrets import without_secrets
from dibs.data.containers import BadRows
from dibs.data.packages import held_out_questions, is_packaged
from dibs.data.prompts import render_all, too_long_of
from dibs.data.questions import Question, read_questions_of
from dibs.data.rendering import Renderer
from dibs.files import read_whole_lines, write_json, write_text
from dibs.model.gguf_file import model_source
from dibs.model.policy import Policy
from dibs.rollouts.sampling import Sampler, SampleRequest, build_sampler
from dibs.rollouts.scores import count_statuses, majority
from dibs.rollouts.source import no_verdict_at_all
from dibs.rollouts.verify.verifier import Verifier
from dibs.rollouts.verify.verifiers import answer_reader, build_verifier, verified
from dibs.runs.build import _quiet_transformers, _room_for_prompts, loaded_policy, starting_policy
from dibs.runs.console import View
from dibs.types import Group, InputError, NonFiniteError, Prompt, counted

_PART = 64
"""Prompts sampled and judged at once."""
SCORES = ("avg", "pass", "maj")
"""avg@k, pass@k and maj@k, as results name them."""
_SPLITS = {"train", "eval", "eval_size", "size", "split", "streaming"}
"""Keys of ``data`` that say what is trained on, or how it is read."""
_MEANS = {
    "batch_tokens",
    "gpu_memory_utilization",
    "servers",
    "server_concurrency",
    "server_timeout",
    "sync_dir",
    "parity_tolerance",
}
"""Keys of ``sampling`` that do not decide what is drawn."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as one object, and its records: one a prompt, for every source."""

    result: dict[str, Any]
    records: Mapping[str, Sequence[dict[str, Any]]]


@dataclass(frozen=True)
class Evaluator:
    """The parts of an evaluation: ``samples`` completions a prompt for scores at ``k``.

    ``clock``: the time that chat templates write, which an evaluation that goes on keeps.
    """

    config: Config
    policy: Policy
    sampler: Sampler
    verifier: Verifier
    k: int
    samples: int
    view: View
    clock: datetime

    def settings(self) -> dict[str, Any]:
        """Everything that decides the scores, without secrets."""
        config = self.config
        left_out = {"verify": {"workers"}, "sampling": _MEANS, "data": _SPLITS}
        sections = {
            f"{section}.{key}": value
            for section, without in left_out.items()
            for key, value in getattr(config, section).model_dump(mode="json").items()
            if key not in without
        }
        settings: dict[str, Any] = {
            "model": config.policy.model,
            "weights": _fingerprint(Path(model_source(config.policy.model))),
            "dtype": config.policy.dtype,
            "seed": config.seed,
            "k": self.k,
            "samples": self.samples,
            "clock": self.clock.isoformat(timespec="seconds"),
            **sections,
        }
        return dict(without_secrets(settings))

    def run(self, sources: Sequence[str], out: Path | None, room: int | None) -> Evaluated:
        """Evaluate on every source, a known set or a file."""
        started = time.perf_counter()
        if out is not None:
            self._claim(out)
        loaded = [(source, *self._prompts(source, room)) for source in sources]
        rows, kept = [], {}
        for source, prompts, dropped in loaded:
            records = kept[source] = self._records(source, prompts, out)
            scores = self._scores(records, too_long_of(dropped))
            rows.append({"benchmark": source, "dropped": dropped} | scores)
        result = {
            "settings": self.settings(),
            "benchmarks": rows,
            "average": _average(rows),
            "seconds": time.perf_counter() - started,
        }
        if out is not None:
            write_json(out / "results.json", result)
        return Evaluated(result, kept)

    def _prompts(self, source: str, room: int | None) -> tuple[list[Prompt], dict[str, int]]:
        config = self.config.data.model_copy(update={"train": source})
        bad = BadRows(config.max_bad_rows)
        questions: Iterable[Question]
        if is_packaged(source):
            questions = held_out_questions(self.config.data, source, self.config.seed)
        else:
            questions = read_questions_of(config, source, config.eval_split, bad)
        renderer = Renderer(config, self.policy.tokenizer, self.clock)
        prompts, dropped = render_all(questions, renderer, room)
        dropped |= bad.dropped
        if not prompts:
            raise InputError(f"{source}: no usable prompts (dropped: {json.dumps(dropped)})")
        for note in renderer.notes:
            self.view.message(f"{source}: {note}")
        for reason, count in dropped.items():
            self.view.message(f"{source}: {counted(count, 'row')} dropped: {reason}")
        return prompts, dropped

    def _claim(self, out: Path) -> None:
        """Make the folder, or go on in one of the same settings."""
        path = out / "settings.json"
        if path.exists():
            try:
                before = dict(without_secrets(json.loads(path.read_text(encoding="utf-8"))))
            except ValueError:
                raise InputError(f"{path} is damaged; give another folder") from None
            changed = [
                f"{key} was {before.get(key)!r} and is {value!r}"
                for key, value in self.settings().items()
                if before.get(key) != value and key != "clock"
            ]
            if changed:
                raise InputError(
                    f"{out} holds an evaluation with other settings: {'; '.join(changed)}; give another "
                    "folder"
                )
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, self.settings())
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror}") from None

    def _records(
        self, source: str, prompts: Sequence[Prompt], out: Path | None
    ) -> list[dict[str, Any]]:
        """One record a prompt: its verdicts, lengths and majority."""
        kept = None if out is None else out / "records" / f"{distinct_name(source)}.jsonl"
        done = _read_records(kept)
        todo = [prompt for prompt in prompts if prompt.prompt_id not in done]
        if done:
            before = counted(len(prompts) - len(todo), "prompt")
            self.view.message(f"{source}: {before} evaluated before")
        read = answer_reader(self.config.verify, source)
        for start in range(0, len(todo), _PART):
            part = todo[start : start + _PART]
            records = [self._record(group, read) for group in self._groups(part)]
            done.update({record["prompt_id"]: record for record in records})
            if kept is not None:
                kept.parent.mkdir(exist_ok=True)
                with kept.open("a", encoding="utf-8") as lines:
                    lines.writelines(json.dumps(record) + "\n" for record in records)
            self.view.preparing(source, len(prompts) - len(todo) + start + len(part), len(prompts))
        return [done[prompt.prompt_id] for prompt in prompts]

    def _groups(self, prompts: Sequence[Prompt]) -> list[Group]:
        requests = [
            SampleRequest(prompt, self.samples, (self.config.seed, int(prompt.prompt_id, 16)))
            for prompt in prompts
        ]
        options = self.config.verify
        keep = options.failures == "reject"
        reasons: list[str] = []
        groups = verified(
            self.verifier,
            prompts,
            self.sampler.sample(requests),
            options.accept_threshold,
            keep,
            reasons=reasons,
            require_end=options.require_end,
        )
        drawn = sum(len(group.rollouts) + len(group.unreached) for group in groups)
        fault = no_verdict_at_all(reasons, drawn)
        if fault is not None:
            raise InputError(f"{fault}; mend {options.named}")
        return groups

    def _record(self, group: Group, read: Callable[[str], str | None]) -> dict[str, Any]:
        rollouts = group.rollouts
        first = Group(group.prompt, rollouts[: self.k])
        return {
            "prompt_id": group.prompt.prompt_id,
            "judged": len(rollouts),
            "accepted": int(group.accepted.sum()),
            "majority": majority(first, read) if rollouts else None,
            "statuses": count_statuses([group]),
            "tokens": sum(len(r.completion.token_ids) for r in rollouts),
            "truncated": sum(not r.completion.finished for r in rollouts),
        }

    def _scores(self, records: Sequence[dict[str, Any]], too_long: int) -> dict[str, Any]:
        """Scores of a source; ``too_long``: prompts that were not sampled, and count as not solved."""
        judged = [record for record in records if record["judged"]]
        completions = sum(record["judged"] for record in judged)
        statuses: dict[str, int] = {}
        for record in records:
            for status, count in record["statuses"].items():
                statuses[status] = statuses.get(status, 0) + count
        row: dict[str, Any] = {
            "prompts": len(records) + too_long,
            "too_long": too_long,
            "completions": sum(statuses.values()),
            "statuses": statuses,
            "completion_length": sum(r["tokens"] for r in judged) / max(completions, 1),
            "truncated_share": sum(r["truncated"] for r in judged) / max(completions, 1),
        }
        values = {name: [scores_of(r, self.k)[name] for r in judged] for name in SCORES}
        for name in SCORES:
            found: tuple[float | None, ...] = (None,) * 4
            if judged:
                every = np.array([*values[name], *[0.0] * too_long])
                error = every.std(ddof=1) / np.sqrt(len(every)) if len(every) > 1 else None
                found = float(np.mean(every)), *clustered_interval(every), error
            keys = (name, *(f"{name}_{part}" for part in ("low", "high", "stderr")))
            row |= dict(zip(keys, found, strict=True))
        return row


def scores_of(record: Mapping[str, Any], k: int) -> dict[str, float]:
    """The scores of a prompt with a verdict, by :data:`SCORES`."""
    judged, accepted = record["judged"], record["accepted"]
    return {
        "avg": accepted / judged,
        "pass": pass_at_k(judged, accepted, k),
        "maj": record["majority"],
    }


def _average(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean of the benchmarks' scores, each counting the same; None where one has none."""
    return {
        name: None
        if any(row[name] is None for row in rows)
        else float(np.mean([row[name] for row in rows]))
        for name in SCORES
    }


def distinct_name(source: str) -> str:
    """A name of its own for every source, also where files share a name."""
    mark = blake2b(str(Path(source).absolute()).encode(), digest_size=4).hexdigest()
    return f"{Path(source).stem}-{mark}"


def _one_kind(sources: Sequence[str]) -> str:
    """The source that the verifier of all of them fits; empty for files and known sets.

    Raises InputError where questions of a package, which have a verifier of their own, are among others.
    """
    own = [source for source in sources if is_packaged(source)]
    if own and len({source.partition(":")[0] for source in own}) + (len(own) < len(sources)) > 1:
        raise InputError(f"{own[0]} has a verifier of its own; evaluate it in a command of its own")
    return own[0] if own else ""


def _fingerprint(folder: Path) -> str | None:
    """What changes when a local model is saved again; None for a hub id."""
    if folder.is_file():  # of type GGUF
        files = [folder]
    elif folder.is_dir():
        files = sorted(
            each for kind in ("safetensors", "gguf") for each in folder.glob(f"*.{kind}")
        )
    else:
        return None
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def _read_records(path: Path | None) -> dict[str, dict[str, Any]]:
    """Records kept so far; a line that was cut off is done again."""
    if path is None or not path.exists():
        return {}
    whole = [(line, each) for line, each in read_whole_lines(path) if "prompt_id" in each]
    write_text(path, b"".join(line for line, _ in whole).decode("utf-8"))
    return {record["prompt_id"]: record for _, record in whole}


def clock_of(out: Path | None) -> datetime:
    """The clock of the evaluation in a folder; now where there is none."""
    try:
        path = Path() if out is None else out / "settings.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        return datetime.fromisoformat(settings["clock"])
    except (OSError, ValueError, KeyError, TypeError):
        return datetime.now().replace(microsecond=0)


def run_evaluation(
    config: Config, sources: Sequence[str], k: int, samples: int, out: Path | None, view: View
) -> dict[str, Any]:
    """Evaluate the configured policy on known sets or files; see :class:`Evaluator`.

    Raises InputError for a source that cannot be read, before anything is sampled.
    """
    return evaluated(config, sources, (k, samples), out, clock_of(out), view).result


def evaluated(
    config: Config,
    sources: Sequence[str],
    k_of_samples: tuple[int, int],
    out: Path | None,
    clock: datetime,
    view: View,
) -> Evaluated:
    """The same, with what is known of every prompt. ``clock``: see :class:`Evaluator`."""
    _quiet_transformers()
    policy = loaded_policy(config, starting_policy(config.policy, view))
    policy.model.eval()
    with (
        closing(build_sampler(config, policy)) as sampler,
        closing(build_verifier(config.verify, _one_kind(sources))) as verifier,
    ):
        evaluator = Evaluator(config, policy, sampler, verifier, *k_of_samples, view, clock)
        try:
            return evaluator.run(sources, out, _room_for_prompts(policy, config, sampler))
        except NonFiniteError as error:
            raise InputError(f"policy.model {config.policy.model}: {error}") from None
