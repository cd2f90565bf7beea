"""verl's actor worker with gradient norms and weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.utils import tensordict_utils
from verl.workers.engine_workers import ActorRolloutRefWorker

import dibs.integrations.verl.registered_losses  # noqa: F401  registers the losses where this class is unpickled
from dibs.integrations.verl.last_layer import MEASURE, norms_measured, obstacle
from dibs.integrations.verl.weighted_terms import actor_loss


class BudgetWorker(ActorRolloutRefWorker):
    """Scores completions, measures their gradient norms if the batch requests it, and weighs losses."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build the models as verl does; the actor's loss has weights for KL and entropy too."""
        super().init_model()
        if self.actor is not None and not self.distillation_enabled:
            self.actor.set_loss_fn(partial(actor_loss, config=self.loss_fn.keywords["config"]))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def grad_norm_obstacle(self) -> str | None:
        """Return why the actor's engine cannot measure gradient norms, or None if it can."""
        return obstacle(self.actor.engine)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: Any) -> Any:
        """Compute log-probabilities, with gradient norms if the batch's flag :data:`MEASURE` is set."""
        what = tensordict_utils.pop(data, MEASURE, default=None)
        if what is None:
            return super().compute_log_prob(data)
        with norms_measured(self.actor.engine, what):
            return super().compute_log_prob(data)
