"""Results of ``dibs eval`` as lm-eval and lighteval write theirs, for tools that read those.

The names of keys are those of lm-eval 0.4 and lighteval 0.13. Scores, prompts and extraction are those
of DIBS, so the tasks keep the names that they have here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dibs import __version__
from dibs.data.questions import KNOWN
from dibs.files import write_json
from dibs.runs.evaluation import distinct_name
from dibs.runs.versions import versions
from dibs.types import InputError


def lm_eval_results(result: Mapping[str, Any]) -> dict[str, Any]:
    """The object of lm-eval's ``results_DATE.json``."""
    settings = result["settings"]
    k = settings["k"]
    rows = _by_task(result)
    names = {"avg": "exact_match", "pass": f"pass@{k}", "maj": f"maj@{k}"}
    generation = _generation(settings)
    started = datetime.fromisoformat(settings["clock"]).timestamp()
    model = settings["model"]
    return {
        "results": {
            task: {"alias": task}
            | _flat({f"{shown},none": row[name] for name, shown in names.items()})
            | _flat(
                {f"{shown}_stderr,none": row[f"{name}_stderr"] for name, shown in names.items()}
            )
            for task, row in rows.items()
        },
        "group_subtasks": {task: [] for task in rows},
        "configs": {
            task: _lm_eval_config(task, row["benchmark"], settings, generation)
            for task, row in rows.items()
        },
        "versions": dict.fromkeys(rows, __version__),
        "n-shot": dict.fromkeys(rows, 0),
        "higher_is_better": {task: dict.fromkeys(names.values(), True) for task in rows},
        "n-samples": {
            task: {"original": row["prompts"], "effective": row["prompts"]}
            for task, row in rows.items()
        },
        "config": {
            "model": "dibs",
            "model_args": {"pretrained": model, "dtype": settings["dtype"]},
            "gen_kwargs": generation,
            "random_seed": settings["seed"],
            "limit": None,
        },
        "git_hash": None,
        "date": started,
        "transformers_version": versions().get("transformers"),
        "dibs_version": __version__,
        "task_hashes": {},
        "model_source": "dibs",
        "model_name": model,
        "model_name_sanitized": _sanitized(model),
        "total_evaluation_time_seconds": str(result["seconds"]),
    }


def _lm_eval_config(
    task: str, source: str, settings: Mapping[str, Any], generation: Mapping[str, Any]
) -> dict[str, Any]:
    hub_id, subset, split = _origin(source)
    return {
        "task": task,
        "dataset_path": hub_id,
        "dataset_name": subset,
        "test_split": split,
        "doc_to_text": settings["data.template"],
        "output_type": "generate_until",
        "generation_kwargs": dict(generation),
        "repeats": settings["samples"],
        "num_fewshot": 0,
        "metadata": {"version": __version__, "verifier": settings["verify.verifier"]},
    }


def lighteval_results(result: Mapping[str, Any]) -> dict[str, Any]:
    """The object of lighteval's ``results_DATE.json``."""
    settings = result["settings"]
    k, n = settings["k"], settings["samples"]
    names = {"avg": f"avg@n:n={n}", "pass": f"pass@k:k={k}&n={n}", "maj": f"maj@n:n={k}"}
    rows = {f"{task}|0": row for task, row in _by_task(result).items()}
    scores = {
        task: {
            key: value
            for name, shown in names.items()
            for key, value in _flat(
                {shown: row[name], f"{shown}_stderr": row[f"{name}_stderr"]}
            ).items()
        }
        for task, row in rows.items()
    }
    average = _flat({shown: result["average"][name] for name, shown in names.items()})
    return {
        "config_general": {
            "lighteval_sha": f"dibs {__version__}",
            "num_fewshot_seeds": 1,
            "max_samples": None,
            "job_id": None,
            "start_time": 0.0,
            "end_time": result["seconds"],
            "total_evaluation_time_secondes": str(result["seconds"]),
            "model_config": {
                "model_name": settings["model"],
                "generation_parameters": _generation(settings),
                "dtype": settings["dtype"],
                "seed": settings["seed"],
            },
            "model_name": settings["model"],
        },
        "results": scores | {"all": average},
        "versions": dict.fromkeys(rows, __version__),
        "config_tasks": {
            task: _lighteval_config(task.partition("|")[0], row["benchmark"], settings, names)
            for task, row in rows.items()
        },
        "summary_tasks": {},
        "summary_general": {},
    }


def _lighteval_config(
    task: str, source: str, settings: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    hub_id, subset, split = _origin(source)
    return {
        "name": task,
        "hf_repo": hub_id,
        "hf_subset": subset,
        "evaluation_splits": [] if split is None else [split],
        "generation_size": settings["sampling.max_completion_length"],
        "metrics": [{"metric_name": shown, "higher_is_better": True} for shown in names.values()],
        "num_fewshots": 0,
        "prompt_template": settings["data.template"],
        "version": __version__,
    }


Format = Callable[[Mapping[str, Any]], dict[str, Any]]
FORMATS: dict[str, tuple[Format, str]] = {
    "lm-eval": (lm_eval_results, "{sanitized}"),
    "lighteval": (lighteval_results, "results/{model}"),
}
"""By name: what makes the object, and the folder of its file, as the tool names both."""


def format_named(name: str) -> Format:
    """What makes results of a format. InputError for an unknown one."""
    if name not in FORMATS:
        raise InputError(f"--format {name}: unknown; known: {', '.join(FORMATS)}")
    return FORMATS[name][0]


def write_as(result: Mapping[str, Any], name: str, out: Path) -> Path:
    """Write results into ``out`` where the tool of the format would have, and return the file.

    The date in the file's name is that of the evaluation, so that one that goes on replaces it.
    """
    make, place = FORMATS[name]
    model, clock = result["settings"]["model"], result["settings"]["clock"]
    inside = model.strip("/") if not Path(model).is_absolute() else _sanitized(model)
    folder = out / place.format(sanitized=_sanitized(model), model=inside)
    path = folder / f"results_{clock.replace(':', '-')}.json"
    if not path.resolve().is_relative_to(out.resolve()):
        path = out / _sanitized(model) / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make(result))
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}") from None
    return path


def _by_task(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The row of every task: a known set by its name, a file by its stem, marked where two share it."""
    rows = {row["benchmark"]: row for row in result["benchmarks"]}
    shared = Counter(Path(source).stem for source in rows)

    def name(source: str) -> str:
        stem = Path(source).stem
        return stem if source in KNOWN or shared[stem] == 1 else distinct_name(source)

    return {name(source): row for source, row in rows.items()}


def _origin(source: str) -> tuple[str | None, str | None, str | None]:
    """Hub id, subset and split of a known set; None for a file."""
    known = KNOWN.get(source)
    return (None, None, None) if known is None else (known.hub_id, known.subset, known.split)


def _generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "temperature": settings["sampling.temperature"],
        "top_p": 1.0,
        "do_sample": True,
        "max_gen_toks": settings["sampling.max_completion_length"],
        "until": settings["sampling.stop"] or [],
    }


def _flat(values: Mapping[str, Any]) -> dict[str, float]:
    """Without what is unknown; the tools read numbers alone."""
    return {key: float(value) for key, value in values.items() if value is not None}


def _sanitized(model: str) -> str:
    """A model's name as lm-eval writes it in a path."""
    return re.sub(r"[\"<>:/\|\\?\*\[\]]+", "__", model)
