"""verl's actor worker with gradient norms."""

from __future__ import annotations

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


class BudgetWorker(ActorRolloutRefWorker):
    """Scores completions, and measures their gradient norms if the batch requests it."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def grad_norm_obstacle(self) -> str | None:
        """Return why the actor's engine cannot measure gradient norms, or None if it can."""
        return obstacle(self.actor.engine)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: Any) -> Any:
        """Compute log-probabilities, with gradient norms if the batch's flag :data:`MEASURE` is set."""
        if not tensordict_utils.pop(data, MEASURE, default=False):
            return super().compute_log_prob(data)
        with norms_measured(self.actor.engine):
            return super().compute_log_prob(data)
