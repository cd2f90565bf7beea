"""What needs verl whole: the FSDP engines on the CPU, and the rollout server under the name ``small``.

Processes that hold a model import it by ``actor_rollout_ref.model.external_lib``.
"""

from __future__ import annotations

from functools import partial

from transformers import AutoModelForTokenClassification
from verl.utils import model
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry


def no_pinned_memory(policy, **options):
    return policy(**options | {"pin_memory": False})


def _load_replica():
    from rollout_server import SmallReplica

    return SmallReplica


base._ROLLOUT_REGISTRY["small", "async"] = "rollout_server.SmallServerAdapter"
RolloutReplicaRegistry.register("small", _load_replica)
for kind, engine in (
    ("language_model", transformer_impl.FSDPEngineWithLMHead),
    ("value_model", transformer_impl.FSDPEngineWithValueHead),
):
    EngineRegistry.register(model_type=kind, backend=["fsdp", "fsdp2"], device="cpu")(engine)

# verl moves a reference policy to pinned memory, which only a machine with a GPU has.
transformer_impl.CPUOffloadPolicy = partial(no_pinned_memory, transformer_impl.CPUOffloadPolicy)


def load_value_model(local_path, torch_dtype, model_config, trust_remote_code):
    """verl's own asks for flash attention, which the CPU lacks."""
    return AutoModelForTokenClassification.from_pretrained(
        local_path, dtype=torch_dtype, config=model_config, attn_implementation="sdpa"
    )


model.load_valuehead_model = load_value_model
