"""Messages at the start of a run: what is trained on what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dibs.config import Config, SamplingConfig
from dibs.data.curriculum import level_sizes
from dibs.data.prompts import PromptSet
from dibs.model.policy import Policy
from dibs.processes import Processes
from dibs.rollouts.sampling import Sampler
from dibs.rollouts.verify.verifiers import BOXED, resolved
from dibs.runs.console import View
from dibs.types import counted

_LOOKED_AT = 20
"""Prompts in which a word is looked for."""


def announce(
    config: Config,
    policy: Policy,
    prompts: PromptSet,
    sampler: Sampler,
    view: View,
    processes: Processes,
) -> None:
    """Show what is trained on what, and how it is sampled."""
    for reason, rows in prompts.dropped.items():
        view.message(f"{config.data.train}: {counted(rows, 'row')} dropped: {reason}")
    for note in (*prompts.notes, *box_note(config, prompts)):
        view.message(note)
    view.message(
        f"{counted(len(prompts.train), 'training prompt')}, {len(prompts.eval):,} held out; policy "
        f"{config.policy.model} with {sum(p.numel() for p in policy.model.parameters()):,} "
        f"parameters on {policy.device}"
    )
    levels = level_sizes(prompts.train)
    if len(levels) > 1:
        view.message(_growth_note(config, levels))
    view.message(
        f"Sampling at {_temperature(config.sampling)}, no top-k, top-p or penalties, by "
        f"{sampler.description}"
    )
    if processes.size > 1:
        view.message(f"{processes.size} processes on this machine share sampling and gradients")
    if config.estimate.mode != "none" and not config.uses_statistics:
        view.message("The estimates decide nothing here; estimate.mode none saves their cost.")
    if config.allocate.rounds is not None:
        view.message(_rounds_note(config))
    elif config.select.pool is not None:
        view.message(_pool_note(config, levels[0]))
    elif config.estimate.mode == "online" and config.allocate.allocator != "uniform":
        view.message(_online_note(config, len(prompts.train)))


def _temperature(sampling: SamplingConfig) -> str:
    """One temperature, or where it begins and ends along a completion."""
    if sampling.anneal_from is None:
        return f"temperature {sampling.temperature:g}"
    start, floor = (
        sampling.temperature * each for each in (sampling.anneal_from, sampling.anneal_floor)
    )
    return f"a temperature that falls along a completion from {start:g}, to {floor:g} at the lowest"


def _growth_note(config: Config, levels: Sequence[int]) -> str:
    """How many prompts there are at first, and when others are added."""
    grow = config.data.grow
    text = f"The run begins with the {levels[0]:,} of level 1; levels of "
    text += ", ".join(f"{size:,}" for size in levels[1:])
    if grow.when == "steps":
        return f"{text} are added one after another, every {counted(grow.interval, 'step')}"
    where = "in training" if grow.when == "training" else "in evaluations"
    return (
        f"{text} are added one after another, each when the accept rate of the newest level {where} is "
        f"{grow.accept_rate:g} or more, at the soonest after {counted(grow.interval, 'step')}"
    )


def _rounds_note(config: Config) -> str:
    """That a step takes what it needs, and that its gradient is biased."""
    candidates = config.select.pool or config.train.prompts_per_step
    return (
        f"A step draws from {candidates:,} prompts in at most {config.allocate.max_rounds} rounds, as "
        f"{config.allocate.rounds} asks; its gradient is biased, since rewards decide what is drawn"
    )


def box_note(config: Config, prompts: PromptSet) -> Iterator[str]:
    """Yield a warning where the verifier wants a box for which no prompt asks."""
    names = [resolved(name, config.data.train) for name in config.verify.verifiers]
    marked = dict.fromkeys(BOXED, ("boxed",)) | {"reasoning-gym": ("boxed", "<answer>")}
    wanting = [name for name in names if name in marked and config.verify.answer_from == "boxed"]
    if not wanting:
        return
    texts = [prompt.text for prompt in prompts.train[:_LOOKED_AT]]
    if not any(mark in text for mark in marked[wanting[0]] for text in texts):
        yield (
            f"No prompt asks for a \\boxed{{}} answer, and the verifier {wanting[0]} takes no other: "
            "set data.template to boxed, or verify.answer_from to anywhere."
        )


def _pool_note(config: Config, prompts: int) -> str:
    """From how many prompts a step chooses, and whether it can know them."""
    pool = prompts if config.select.pool == "all" else config.select.pool
    at_most = "" if config.budget is None else f" at most {config.budget // config.group:,} of"
    text = f"A step chooses{at_most} {pool:,} prompts, in groups of {config.group}"
    if config.estimate.mode != "online" or config.budget is None:
        return text
    kept = config.budget * config.estimate.half_life / prompts / 0.693
    if kept < 1:
        text += (
            f"; of a prompt {kept:.1g} completions count on average, so that little is known of most: "
            f"raise estimate.half_life ({config.estimate.half_life:g})"
        )
    return text


def _online_note(config: Config, prompts: int) -> str:
    """Whether what is known of a prompt still counts when it comes back."""
    steps = -(-prompts // config.train.prompts_per_step)
    half_life, m = config.estimate.half_life, config.train.prompts_per_step
    drawn = config.allocate.num_generations if config.budget is None else config.budget / m
    left = drawn * 0.5 ** (steps / half_life)
    if steps >= config.train.steps:
        return (
            f"No prompt comes back within {counted(config.train.steps, 'step')}, a pass takes "
            f"{steps:,}: counts stay near uniform; estimate.mode cross_fit or pilot knows prompts at "
            "once"
        )
    if left < min(1.0, drawn / 2):  # a budget of one a prompt leaves less than one at once
        return (
            f"A prompt comes back after {counted(steps, 'step')}, when its completions count for "
            f"{left:.1g}: counts stay near uniform; raise estimate.half_life ({half_life:g}) towards "
            f"{steps:,}"
        )
    return (
        f"A prompt comes back after {counted(steps, 'step')}; until then its count is near uniform"
    )
