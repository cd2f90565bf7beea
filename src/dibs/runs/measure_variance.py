"""The command ``dibs variance``: how noisy the gradient is, and what counts can do about it."""

from __future__ import annotations

from typing import Any

from dibs.config import Config
from dibs.data.curriculum import up_to
from dibs.data.prompts import check_batch_size
from dibs.runs.build import build_trainer
from dibs.runs.console import View
from dibs.runs.room import check_measuring
from dibs.training.measured_gradients import GradientSource
from dibs.training.variance_meter import measure_variance
from dibs.types import InputError, NonFiniteError, NoVerdictError


def run_variance(config: Config, view: View, *, shapes: bool = False) -> dict[str, Any]:
    """Measure the gradient's variance on the configured policy and prompts; writes nothing.

    Where prompts are added while the policy learns, those are measured that it begins with.

    ``shapes``: also compare shapes of steps.

    Raises InputError as :func:`.run_training` does.
    """
    check_measuring(config)
    wanted = config.variance.prompts or config.train.prompts_per_step
    trainer = build_trainer(config, view)
    prompts = up_to(trainer.prompts.train, 1)
    check_batch_size(prompts, wanted)
    source = GradientSource(
        config, trainer.policy, trainer.source, trainer.gradients, view.preparing
    )
    try:
        return measure_variance(source, prompts, shapes=shapes)
    except NonFiniteError as error:
        raise InputError(f"policy.model {config.policy.model}: {error}") from None
    except NoVerdictError as error:
        raise InputError(f"{error}; mend {config.verify.named}") from None
    finally:
        trainer.source.close()
