"""Compose verl's configuration with the ``dibs.*`` block and run verl's task runner with our trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import hydra
import ray
from omegaconf import DictConfig, open_dict
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from dibs.integrations.verl.options import adapt, read_block
from dibs.integrations.verl.runner import BudgetTaskRunner
from dibs.types import InputError


def hydra_words(words: Sequence[str]) -> list[str]:
    """Arguments as Hydra takes them: ``dibs.x=y`` adds a key that verl's own configuration lacks."""
    return [f"++{word}" if word.startswith("dibs.") else word for word in words]


def launch(words: Sequence[str]) -> None:
    """Run verl with its arguments; exits with status 2 and one line on those that cannot be used."""
    sys.argv = [sys.argv[0], *hydra_words(words)]
    hydra.main(
        config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None
    )(_train)()


def _train(config: DictConfig) -> None:
    try:
        train(config)
    except InputError as error:
        # Hydra would show a traceback. Raised in one of Ray's processes, it holds the line as its cause.
        sys.stderr.write(f"{getattr(error, 'cause', error)}\n")
        sys.exit(2)


def train(config: Any) -> None:
    """Train as a composed configuration says, which is changed."""
    options, budget = read_block(config)
    with open_dict(config):
        adapt(config, options, budget)
    auto_set_device(config)
    validate_config(
        config=config,
        use_reference_policy=need_reference_policy(config),
        use_critic=need_critic(config),
    )
    run_ppo(config, task_runner_class=ray.remote(BudgetTaskRunner))
