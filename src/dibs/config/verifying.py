"""What makes a completion right."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dibs.config.section import Section


class RewardConfig(Section):
    """One of several rewards."""

    verifier: str = Field(description="What gives it: as verify.verifier, but not auto.")
    weight: float = Field(
        1.0, allow_inf_nan=False, description="Factor in the sum; below 0 for a penalty."
    )
    name: str | None = Field(
        None, description="Name in metrics. null takes that of the verifier, or of its function."
    )

    @property
    def label(self) -> str:
        """The name in metrics."""
        return self.name or self.verifier.rpartition(":")[2]

    @model_validator(mode="after")
    def _usable(self) -> RewardConfig:
        if self.verifier == "auto":
            raise ValueError("a reward names its verifier; auto has no use among several")
        if self.weight == 0:
            raise ValueError(f"reward {self.label} has weight 0; leave it out")
        return self


class VerifyConfig(Section):
    """What makes a completion right."""

    verifier: str = Field(
        "auto",
        description="Decides whether an answer is right: math (equal in value), exact (equal "
        "text), numeric, choice (a letter), arithmetic, reasoning-gym (that package's score, a real "
        "number), environment (its rubric's reward, a real number), or your own module:function of "
        "(answer, completion), see docs/verifiers.md. auto lets the data decide: arithmetic for "
        "embedded tasks, reasoning-gym and environment for their prompts, math for the others.",
    )
    rewards: tuple[RewardConfig, ...] = Field(
        (),
        description="Several verifiers, each with a weight, in place of one: [{verifier: math}, "
        "{verifier: mine:brevity, weight: 0.2}]. The reward is the weighted sum, and a completion is "
        "accepted where that is at least accept_threshold. Each is also logged on its own.",
    )
    answer_from: Literal["boxed", "anywhere"] = Field(
        "boxed",
        description="Where the answer is found. boxed takes the last \\boxed{...}. anywhere, if "
        "there is none, takes what follows the last 'answer is' or '####', or the "
        "last number.",
    )
    failures: Literal["exclude", "reject"] = Field(
        "exclude",
        description="What happens to completions that the verifier failed on or ran out of time "
        "for. exclude leaves them out of the step; reject gives them reward 0. Both "
        "are counted. Where a step or an evaluation gets no verdict at all, the run is saved and ends.",
    )
    require_end: bool = Field(
        False,
        description="Whether a completion that was cut off at its length limit has no answer, whatever "
        "is boxed in it. Set it for policies that think first: unfinished thoughts hold boxes.",
    )
    timeout: float = Field(
        5.0,
        gt=0,
        description="Seconds that judging one completion may take before its worker is killed.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Processes that run math and your own function. null takes one for each core, "
        "at most 8.",
    )
    memory_limit: int = Field(
        4096, ge=256, description="Megabytes of address space that each worker may use."
    )
    tolerance: float = Field(
        1e-6,
        ge=0,
        description="For verifier numeric: largest relative error of a right answer; absolute for "
        "answers below 1.",
    )
    accept_threshold: float = Field(
        1.0, description="Lowest reward at which a completion is accepted."
    )

    @property
    def verifiers(self) -> tuple[str, ...]:
        """Names of all verifiers: of the rewards, or the one."""
        return tuple(reward.verifier for reward in self.rewards) or (self.verifier,)

    @property
    def named(self) -> str:
        """The key that names the verifiers, and their names, for messages."""
        return f"verify.{'rewards' if self.rewards else 'verifier'} {', '.join(self.verifiers)}"

    @model_validator(mode="after")
    def _one_or_several(self) -> VerifyConfig:
        if not self.rewards:
            return self
        if self.verifier != "auto":
            raise ValueError(
                f"rewards name the verifiers, so verifier {self.verifier} has no use; put it among the "
                "rewards, or leave one of the two out"
            )
        names = [reward.label for reward in self.rewards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"rewards has {twice} twice; give one of them another name")
        return self
