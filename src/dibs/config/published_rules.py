"""What settings of published rules agree with: rounds, kept completions, annealing, prompt weights."""

from __future__ import annotations

from typing import Protocol

from dibs.config.allocating import AllocateConfig
from dibs.config.learning import AlgorithmConfig
from dibs.config.rollouts import SamplingConfig
from dibs.config.selecting import SelectConfig


class KeepsSome(Protocol):
    """What settings of rounds and kept completions both configurations have."""

    @property
    def allocator(self) -> str: ...

    @property
    def lower(self) -> int: ...

    @property
    def upper(self) -> int | None: ...

    @property
    def num_generations(self) -> int: ...

    @property
    def rounds(self) -> str | None: ...

    @property
    def keep(self) -> str | None: ...

    @property
    def keep_count(self) -> int | None: ...


def check_rounds(options: KeepsSome, mode: str, estimator: str, section: str = "") -> None:
    """ValueError for settings that a rule for rounds has no use for.

    ``section``: goes before the name of its keys, as in ``allocate.``.
    """
    rule = f"{section}rounds {options.rounds}"
    if options.allocator != "uniform":
        raise ValueError(
            f"{rule} decides the counts itself; set {section}allocator to uniform, in place of "
            f"{options.allocator}"
        )
    if mode not in ("none", "online"):
        raise ValueError(
            f"{rule} decides by what it draws, so the pilots of mode {mode} have no use; set it to "
            "none, or to online for baselines of earlier steps"
        )
    if options.lower or options.upper is not None:
        raise ValueError(f"{rule} knows no {section}lower and {section}upper; leave them out")
    if estimator == "flat":
        raise ValueError(
            f"estimator flat weighs completions alike, and {rule} weighs prompts alike; choose another "
            "estimator"
        )


def check_pool_of_rounds(allocate: AllocateConfig, select: SelectConfig) -> None:
    """ValueError for a budget or a pool that a rule for rounds has no use for."""
    rule = f"allocate.rounds {allocate.rounds}"
    if allocate.budget is not None or allocate.budget_unit == "tokens":
        raise ValueError(
            f"{rule} draws as much as it needs, so it has no budget; leave allocate.budget and "
            "allocate.budget_unit out (allocate.num_generations is the size of a group)"
        )
    if select.pool == "all":
        raise ValueError(
            f"select.pool all would make every training prompt a candidate of {rule} in every step; "
            "give it a number, some times train.prompts_per_step"
        )
    if select.group is not None or not select.correct:
        raise ValueError(
            f"select.group and select.correct belong to expected counts over a pool; {rule} has none"
        )


def check_keep(options: KeepsSome, least: int, section: str = "") -> None:
    """ValueError for keeping completions where none are left out, or fewer than the target needs.

    ``least``: completions from which the gradient learns something. ``section``: as above.
    """
    count = options.keep_count
    if count is None:
        if options.keep is not None and options.rounds is None:
            raise ValueError(
                f"{section}keep {options.keep} needs {section}keep_count, below num_generations "
                f"{options.num_generations}"
            )
        return
    if options.keep is None and options.rounds is None:
        raise ValueError(f"{section}keep_count {count} needs {section}keep, pods for example")
    if count < least:
        raise ValueError(
            f"{section}keep_count {count} is below {least}, the fewest completions that the algorithm "
            "learns from"
        )
    even = options.allocator == "uniform" and options.rounds is None
    if even and count >= options.num_generations:
        raise ValueError(
            f"{section}keep_count {count} leaves nothing out of num_generations "
            f"{options.num_generations}; lower it"
        )


def check_annealing(sampling: SamplingConfig, importance_sampling: str) -> None:
    """ValueError where the temperature cannot fall, or nothing makes up for that it does."""
    start = f"sampling.anneal_from {sampling.anneal_from:g}"
    if sampling.anneal_from is not None and sampling.anneal_from <= sampling.anneal_floor:
        raise ValueError(
            f"{start} is not above sampling.anneal_floor {sampling.anneal_floor:g}, so no temperature "
            "would fall; raise it, or lower the floor"
        )
    if sampling.engine == "vllm_server":
        raise ValueError(
            f"{start} needs sampling.engine transformers or vllm; a vllm_server keeps one temperature "
            "for all tokens"
        )
    if importance_sampling == "none":
        raise ValueError(
            f"{start} draws from other probabilities than the policy's; set "
            "algorithm.importance_sampling, token_truncate for example"
        )


def check_prompt_weight(algorithm: AlgorithmConfig, allocate: AllocateConfig, mode: str) -> None:
    """ValueError where prompts cannot be weighed, or other keys weigh them otherwise."""
    weight = f"algorithm.prompt_weight {algorithm.prompt_weight}"
    if mode == "none":
        raise ValueError(
            f"{weight} needs accept rates; set estimate.mode to online, pilot or cross_fit"
        )
    if allocate.allocator == "min_variance":
        raise ValueError(
            f"{weight} is not known to allocate.allocator min_variance, which takes all prompts to "
            "count alike; choose uniform or a rule of docs/rules.md"
        )
    if allocate.rounds is not None or algorithm.estimator == "flat":
        raise ValueError(
            f"{weight} weighs prompts; allocate.rounds and algorithm.estimator flat weigh them "
            "otherwise; leave one of them out"
        )
