"""The matrix of a comparison: tasks x algorithms x arms, with learning rates and seeds. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dibs.allocation.target import Target
from dibs.config import Config, Section
from dibs.config.load import assign, read_values, validated
from dibs.runs.check_config import check_config
from dibs.types import InputError

Overrides = dict[str, dict[str, Any]]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class CompareConfig(Section):
    """The matrix of a study; its other keys are those of ``dibs train`` and hold for every run."""

    output_dir: Path = Field(
        Path("runs/comparison"), description="Folder of all runs and of the results."
    )
    seeds: tuple[int, ...] = Field(
        (0, 1, 2, 3, 4),
        description="Seeds of the runs that are compared. More seeds give narrower intervals.",
    )
    learning_rates: tuple[float, ...] = Field(
        (),
        description="Learning rates that every arm tries. The arm takes the rate whose runs have "
        "the best mean accuracy over all evaluations. Empty, update.learning_rate "
        "decides.",
    )
    tuning_seeds: tuple[int, ...] = Field(
        (1000, 1001),
        description="Seeds of the runs that choose the learning rate and serve no other purpose.",
    )
    tasks: Overrides = Field(
        {}, description="Names of tasks, and for each the keys that it sets: models and data."
    )
    algorithms: Overrides = Field(
        {},
        description="Names of algorithms, and for each the keys that it sets: losses and "
        "objectives.",
    )
    arms: Overrides = Field(
        {},
        description="Names of arms, and for each the keys that it sets: allocators and estimates.",
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="Cells to leave out, as patterns of task/algorithm/arm, such as long/grpo/*.",
    )
    reference: str | None = Field(
        None, description="Arm that the others are compared with. null takes the uniform one."
    )
    shares: tuple[float, ...] = Field(
        (0.5, 0.9),
        description="Also reports the cost of reaching these shares of the way that both arms went. "
        "The end of the way is reached by chance where arms end on a plateau, so shares below 1 say "
        "more.",
    )
    levels: tuple[float, ...] = Field(
        (), description="Reports the cost of reaching these accuracies."
    )
    meter: tuple[Literal["start", "end"], ...] = Field(
        (),
        description="Measures the gradient's variance, as dibs variance does, at these ends of a "
        "run.",
    )
    equal_updates: bool = Field(
        True,
        description="Refuses arms that differ in optimizer updates. false compares them, and the "
        "results say so.",
    )
    jobs: int | None = Field(
        None,
        ge=1,
        description="Runs to make at the same time. null takes one for each core, or 1 where "
        "there is a GPU.",
    )

    @field_validator("tasks", "algorithms", "arms")
    @classmethod
    def _names_are_folders(cls, names: Overrides) -> Overrides:
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a folder; use letters, digits and ._+-")
        return names

    @model_validator(mode="after")
    def _seeds_differ(self) -> CompareConfig:
        for name in ("seeds", "tuning_seeds"):
            seeds = getattr(self, name)
            if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
                raise ValueError(f"{name} must be different numbers from 0 up")
        if self.learning_rates and set(self.seeds) & set(self.tuning_seeds):
            raise ValueError(
                "seeds and tuning_seeds overlap, so the learning rate would be chosen by the runs that "
                "it is judged by; let them differ"
            )
        if not all(0 < share < 1 for share in self.shares):
            raise ValueError("shares must be between 0 and 1")
        if any(rate <= 0 for rate in self.learning_rates):
            raise ValueError("learning_rates must be above 0")
        return self


@dataclass(frozen=True)
class Cell:
    """One arm of one algorithm on one task, without learning rate and seed.

    ``values``: its configuration. ``folder``: that of the whole comparison.
    """

    task: str
    algorithm: str
    arm: str
    values: Mapping[str, Any]
    folder: Path

    @property
    def label(self) -> str:
        """The name of the cell in messages."""
        return f"{self.task}, {self.algorithm}, {self.arm}"

    def config(self, seed: int, learning_rate: float | None = None) -> Config:
        """Return the configuration of a run that is compared."""
        return self._config("runs", seed, learning_rate)

    def tuning(self, seed: int, learning_rate: float) -> Config:
        """Return the configuration of a run that only helps to choose the learning rate."""
        return self._config("tuning", seed, learning_rate)

    def _config(self, part: str, seed: int, learning_rate: float | None) -> Config:
        values = deepcopy(dict(self.values))
        values["seed"] = seed
        if learning_rate is not None:
            assign(values, "update.learning_rate", learning_rate)
        config = validated(values, Config, self.label)
        place = self.folder / part / self.task / self.algorithm / self.arm
        run = place / f"lr-{config.update.learning_rate!r}" / f"seed-{seed}"
        # Without checkpoints a stopped run has to start again.
        again = {"resume": "auto"} if config.checkpoint.interval > 0 else {"overwrite": True}
        return config.model_copy(update={"output_dir": run, **again})


@dataclass(frozen=True)
class Study:
    """A whole comparison.

    ``cells``: grouped by task and algorithm, arms in order. ``reference``: the arm that others are
    compared with.
    """

    options: CompareConfig
    cells: Sequence[Cell]
    reference: str

    @property
    def tuning_rates(self) -> tuple[float, ...]:
        """Learning rates to try; empty if there is nothing to choose."""
        rates = self.options.learning_rates
        return rates if len(rates) > 1 else ()

    def lacking_reference(self) -> Iterator[str]:
        """Yield the tasks and algorithms that have no reference arm."""
        have = {(cell.task, cell.algorithm) for cell in self.cells if cell.arm == self.reference}
        for cell in self.cells:
            if (cell.task, cell.algorithm) not in have:
                yield f"{cell.task}, {cell.algorithm}"

    def value_of(self, cell: Cell) -> str:
        """Return the key of metrics.jsonl that judges an arm; the reference's objective decides it."""
        group = (cell.task, cell.algorithm)
        judge = next(
            c for c in self.cells if c.arm == self.reference and group == (c.task, c.algorithm)
        )
        target = Target.of(judge.config(self.options.seeds[0]).algorithm)
        return "log_accept_rate" if target.fits_accepted else "accuracy"

    def groups(self) -> Iterator[tuple[Cell, list[Cell]]]:
        """Yield the reference arm of each task and algorithm, with all arms of the two."""
        for key in dict.fromkeys((cell.task, cell.algorithm) for cell in self.cells):
            cells = [cell for cell in self.cells if (cell.task, cell.algorithm) == key]
            yield next(cell for cell in cells if cell.arm == self.reference), cells


def read_study(paths: Sequence[Path], overrides: Mapping[str, str]) -> Study:
    """Read the comparison that configurations describe.

    One file with a key ``compare`` describes a matrix. Several files without that key describe one arm
    each. A single file without it is compared with the same configuration under uniform counts.

    Raises InputError, which names the arm, for anything that a run would refuse.
    """
    if not paths:
        raise InputError("nothing to compare; name a study, or the configurations of its arms")
    own = {key: text for key, text in overrides.items() if key.startswith("compare.")}
    others = {key: text for key, text in overrides.items() if key not in own}
    files = {path: read_values(path, others) for path in paths}
    matrices = [path for path, values in files.items() if "compare" in values]
    if matrices and len(paths) > 1:
        raise InputError(f"{matrices[0]} is a whole study; name it alone")
    if len({path.stem for path in paths}) < len(paths):
        raise InputError("two configurations have the same file name, which names their arm")
    base: dict[str, Any] = {}
    section: dict[str, Any] = {}
    if matrices:
        base = files[paths[0]]
        section = base.pop("compare") or {}
    elif len(paths) == 1:
        base = files[paths[0]]
        section = {"arms": _with_uniform(validated(base, Config, str(paths[0])))}
    else:
        section = {"arms": {path.stem: values for path, values in files.items()}}
    if not isinstance(section, dict):
        raise InputError(f"{paths[0]}: compare must hold keys and values")
    options = _options(section, own, str(paths[0]))
    cells = _cells(base, options, read_values(None, others))
    study = Study(options, cells, _reference(cells, options))
    for group in study.lacking_reference():
        raise InputError(f"{group} has no arm {study.reference} to compare with")
    for _, arms in study.groups():
        _require_even(arms, options)
    return study


def _with_uniform(config: Config) -> Overrides:
    """Return two arms: the configuration, and the same with uniform counts."""
    name = config.allocate.allocator
    if name == "uniform":
        raise InputError(
            "allocate.allocator is uniform, so there is nothing to compare; set another, or "
            "name several configurations"
        )
    idle = not config.weighs_by_statistics
    uniform = {"allocate.allocator": "uniform", **({"estimate.mode": "none"} if idle else {})}
    return {"uniform": uniform, f"{name.rpartition(':')[2]}-{config.estimate.mode}": {}}


def _options(
    section: Mapping[str, Any], overrides: Mapping[str, str], source: str
) -> CompareConfig:
    values = deepcopy(dict(section))
    for key, text in overrides.items():
        name = key.removeprefix("compare.")
        _overlay(values, read_values(None, {name: text}, CompareConfig))
    return validated(values, CompareConfig, f"{source}: compare")


def _cells(
    base: Mapping[str, Any], options: CompareConfig, command_line: Mapping[str, Any]
) -> list[Cell]:
    cells = []
    for task, task_keys in (options.tasks or {"task": {}}).items():
        for algorithm, algorithm_keys in (options.algorithms or {"algorithm": {}}).items():
            for arm, arm_keys in (options.arms or {"arm": {}}).items():
                name = f"{task}/{algorithm}/{arm}"
                if any(fnmatchcase(name, pattern) for pattern in options.exclude):
                    continue
                values = deepcopy(dict(base))
                for keys in (task_keys, algorithm_keys, arm_keys, command_line):
                    _overlay(values, keys)
                cell = Cell(task, algorithm, arm, values, options.output_dir)
                for rate in options.learning_rates or (None,):
                    _check(cell, cell.config(options.seeds[0], rate))
                cells.append(cell)
    if not cells:
        raise InputError("compare.exclude leaves nothing to compare")
    return cells


def _check(cell: Cell, config: Config) -> None:
    """Raise what a run would be refused for, before any starts."""
    try:
        check_config(config)
    except InputError as error:
        raise InputError(f"{cell.label}: {error}") from None


def _overlay(values: dict[str, Any], keys: Mapping[str, Any], prefix: str = "") -> None:
    """Set keys, which may be dotted, nested, or both."""
    for key, value in keys.items():
        if isinstance(value, Mapping):
            _overlay(values, value, f"{prefix}{key}.")
        else:
            assign(values, f"{prefix}{key}", value)


def _require_even(arms: Sequence[Cell], options: CompareConfig) -> None:
    """Raise InputError if updates or evaluations differ between the arms."""
    seed = options.seeds[0]
    configs = {cell.arm: cell.config(seed) for cell in arms}
    counted: dict[str, dict[str, Any]] = {
        "train.steps x update.updates_per_step": {
            arm: c.train.steps * c.update.updates_per_step for arm, c in configs.items()
        },
        "evaluate": {arm: c.evaluate.model_dump() for arm, c in configs.items()},
        "the number of training steps": {arm: c.train.steps for arm, c in configs.items()},
    }
    for what, each in counted.items():
        uneven = not options.equal_updates and "updates" in what
        if not uneven and any(value != next(iter(each.values())) for value in each.values()):
            found = ", ".join(f"{arm} {value}" for arm, value in each.items())
            raise InputError(
                f"{arms[0].task}, {arms[0].algorithm}: {what} differs ({found}), so the arms cannot be "
                "compared; make it equal"
                + (", or set compare.equal_updates to false" if "updates" in what else "")
            )


def _reference(cells: Sequence[Cell], options: CompareConfig) -> str:
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    if options.reference is not None:
        if options.reference not in arms:
            raise InputError(
                f"compare.reference {options.reference!r} is no arm; there are {', '.join(arms)}"
            )
        return options.reference
    uniform = [
        arm
        for arm in arms
        if all(cell.config(0).allocate.allocator == "uniform" for cell in cells if cell.arm == arm)
    ]
    if len(uniform) != 1:
        raise InputError(
            f"{len(uniform)} of the arms {', '.join(arms)} are uniform; set compare.reference to the "
            "one that the others are compared with"
        )
    return uniform[0]
