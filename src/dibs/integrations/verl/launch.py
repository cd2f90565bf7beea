"""Compose verl's configuration with the ``dibs.*`` block and run verl's task runner with our trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import hydra
import ray
from omegaconf import DictConfig, open_dict
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

import dibs.integrations.verl.trainer  # noqa: F401  registers the trainer where the runner is unpickled
from dibs.integrations.verl.options import adapt, read_block
from dibs.types import InputError


class BudgetTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """The process that holds the trainer.

    Ray has wrapped verl's class, so this one derives from the class inside. Ray unpickles it by the
    path of this module, whose imports register the trainer in that process.
    """


def hydra_words(words: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra: ``++dibs.x=y`` adds a key that verl's configuration lacks."""
    return [f"++{word}" if word.startswith("dibs.") else word for word in words]


def launch(words: Sequence[str]) -> None:
    """Run verl with its arguments. For arguments that cannot be used, print one line and exit with 2."""
    sys.argv = [sys.argv[0], *hydra_words(words)]
    hydra.main(
        config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None
    )(_train)()


def _train(config: DictConfig) -> None:
    try:
        train(config)
    except InputError as error:
        # Hydra would show a traceback. An error from one of Ray's processes has the line as its cause.
        sys.stderr.write(f"{getattr(error, 'cause', error)}\n")
        sys.exit(2)


def train(config: Any) -> None:
    """Train with a composed configuration. The configuration is modified in place."""
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
