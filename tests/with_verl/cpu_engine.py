"""What needs verl whole: the FSDP engine on the CPU, and the rollout server under the name ``small``.

Processes that hold a model import it by ``actor_rollout_ref.model.external_lib``.
"""

from __future__ import annotations

from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry


def _load_replica():
    from rollout_server import SmallReplica

    return SmallReplica


base._ROLLOUT_REGISTRY["small", "async"] = "rollout_server.SmallServerAdapter"
RolloutReplicaRegistry.register("small", _load_replica)
EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(
    FSDPEngineWithLMHead
)
