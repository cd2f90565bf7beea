"""The norms that decide counts are of the gradients that TRL's losses train with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOTrainer

from dibs.integrations.loss_lengths import trl_normalization
from dibs.integrations.trl.batches import contexts_of
from training import TARGET, build, uneven

pytestmark = pytest.mark.trl
LOSSES = ["grpo", "sapo", "dr_grpo", "luspo", "bnpo", "dapo", "cispo", "vespo"]


def norms_of_trls_loss(trainer: Any, inputs: dict[str, Any]) -> list[float]:
    """Norm of the gradient of stock TRL's loss where one completion has advantage 1, the others 0."""
    found = []
    for row in torch.eye(len(inputs["advantages"])):
        trainer.model.zero_grad()
        GRPOTrainer._compute_loss(trainer, trainer.model, {**inputs, "advantages": row}).backward()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        found.append(float(torch.cat(gradients).norm()))
    trainer.model.zero_grad()
    return found


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_norms_are_those_of_trls_loss(byte_model, tmp_path, monkeypatch, loss_type, level):
    """Up to a factor that all completions share, which changes no count."""
    options = {"loss_type": loss_type, "importance_sampling_level": level, "max_steps": 1}
    if loss_type == "cispo":
        options["epsilon_high"] = 1.5
    trainer, _ = build(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": {**TARGET, "estimator": "flat", "grad_norm": "exact"},
            "grpo": options,
        }
    )
    trainer.rollout_func = uneven(seed=5)
    ratios: list[np.ndarray] = []
    learn = trainer._compute_loss

    def measured(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not ratios:
            pairs = zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
            completions = [ids[mask.bool()].tolist() for ids, mask in pairs]
            assert len({len(ids) for ids in completions}) > 3
            told = trainer.norm_meter.norms(contexts_of(inputs), completions, 0)
            ratios.append(np.array(norms_of_trls_loss(trainer, inputs)) / told)
        return learn(model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", measured)
    trainer.train()
    np.testing.assert_allclose(ratios[0], ratios[0][0], rtol=1e-4)


@pytest.mark.parametrize("mode", ["online", "pilot"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_budget_gets_these_norms(byte_model, tmp_path, monkeypatch, loss_type, mode):
    trainer, _ = build(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": {**TARGET, "mode": mode},
            "grpo": {"max_steps": 1, "loss_type": loss_type},
        }
    )
    assert trainer.budget.memory.length_normalization == trl_normalization(loss_type)
    seen: dict[str, list[np.ndarray]] = {"plain": [], "told": [], "lengths": []}

    def plain(norms: np.ndarray, tokens: np.ndarray, normalization: str) -> np.ndarray:
        seen["plain"].append(norms)
        return norms / tokens if normalization == "sequence" else norms

    monkeypatch.setattr("dibs.integrations.trl.norms.trained_norms", plain)
    taken = "update" if mode == "online" else "take_pilots"
    take_in = getattr(trainer.budget, taken)

    def noted(*args: Any, **told: Any) -> Any:
        seen["told"].append(np.concatenate(told["grad_norms"]))
        seen["lengths"].append(np.concatenate(told["lengths"]))
        return take_in(*args, **told)

    monkeypatch.setattr(trainer.budget, taken, noted)
    trainer.train()
    assert len(set(seen["lengths"][0])) > 1
    divisor = seen["lengths"][0] if loss_type == "grpo" else 1.0
    np.testing.assert_allclose(seen["told"][0], seen["plain"][0] / divisor)
