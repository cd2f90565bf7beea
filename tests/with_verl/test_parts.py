"""The adapter against verl's own functions and configuration, without a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dibs.types import InputError

pytestmark = pytest.mark.verl
pytest.importorskip("verl.trainer")

import scene  # noqa: E402  where there is no verl, nothing of this is imported

GRPO, read = scene.GRPO, scene.read_block


def test_verls_trainer_has_what_is_overridden():
    from verl.trainer.ppo.v1 import PPOTrainerSync

    from dibs.integrations.verl.hooks import HOOKS

    HOOKS.check(PPOTrainerSync)
    for name in HOOKS.methods:
        other = type("Other", (PPOTrainerSync,), {name: None})
        with pytest.raises(InputError, match=rf"has no {name}\("):
            HOOKS.check(other)


def test_norms_are_not_measured_again_in_later_passes(monkeypatch):
    """Rows keep the field; a pass without adapters (the reference of LoRA) must not measure anew."""
    from verl.utils import tensordict_utils
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from dibs.integrations.verl.last_layer import NORMS
    from dibs.integrations.verl.worker import BudgetWorker

    monkeypatch.setattr(ActorRolloutRefWorker, "compute_log_prob", lambda self, data: data)
    data = tensordict_utils.get_tensordict({NORMS: torch.ones(2, 1), "x": torch.zeros(2, 1)})
    assert BudgetWorker.compute_log_prob(object.__new__(BudgetWorker), data) is data


def bare_trainer(config):
    """A trainer that has been told of its configuration and no more."""
    from dibs.integrations.verl.trainer import BudgetTrainer, make_budget

    trainer = object.__new__(BudgetTrainer)
    trainer.config = config
    trainer.options, options = read(config)
    trainer.budget = make_budget(config, trainer.options, options)
    return trainer


REWARDS = [[1.0, 0.0, 0.0], [1.0], [], [1.0, 1.0, 0.0, 0.0]]
KEYS = [f"{i}_{j}_0" for i, group in enumerate(REWARDS) for j in range(len(group))]


MODES = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-token-mean",
)


def weighed(trainer, groups, mask):
    """Factors of the advantages and the budget's advantages, [rows] each."""
    from dibs.integrations.verl.row_weights import weigh_rows

    tokens = mask.sum(1).numpy()
    found = weigh_rows(trainer.budget, trainer.config, groups, tokens, REWARDS)
    return found.advantages, found.own


@pytest.mark.parametrize("mode", MODES)
def test_verls_loss_becomes_the_weighted_sum(compose, mode):
    """Up to one factor for the step, the gradient is ``sum weight advantage grad log pi``."""
    from verl.trainer.ppo.core_algos import agg_loss

    from dibs.integrations.verl.groups import Groups

    config = compose(
        *GRPO,
        f"actor_rollout_ref.actor.loss_agg_mode={mode}",
        "algorithm.adv_estimator=rloo",
    )
    trainer = bare_trainer(config)
    trainer.budget.allocate(["a", "b", "c", "d"], 8)
    groups = Groups(["0", "1", "2", "3"], KEYS)
    mask = (torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    mask[:, 0] = 1
    factors, advantages = weighed(trainer, groups, mask)
    logprobs = torch.zeros(8, 6, requires_grad=True)
    weighted = torch.from_numpy(factors * advantages).unsqueeze(1)
    agg_loss(
        -weighted * logprobs,
        mask,
        mode,
        batch_num_tokens=int(mask.sum()),
        global_batch_size=8,
        loss_scale_factor=6,
    ).backward()
    found = logprobs.grad.numpy()
    if mode == "seq-mean-token-mean":
        found = found * mask.numpy().sum(1, keepdims=True)  # each by its own length

    # By hand: every prompt weighs 1/4, its completions alike; leave-one-out advantages.
    by_hand = np.array(
        [1 / 12, -1 / 24, -1 / 24, 0, *[x / 16 for x in (2 / 3, 2 / 3, -2 / 3, -2 / 3)]]
    )
    expected = -by_hand[:, None] * mask.numpy()
    scale = found[0, 0] / expected[0, 0]
    np.testing.assert_allclose(found, scale * expected, rtol=1e-5, atol=1e-9)
    if mode == "token-sum":
        assert scale == pytest.approx(8)  # completions: at uniform counts verl's own sum


def test_a_mean_baseline_shrinks_groups_alike(compose):
    from dibs.integrations.verl.groups import Groups

    trainer = bare_trainer(compose(*GRPO, "algorithm.norm_adv_by_std_in_grpo=False"))
    trainer.budget.allocate(["a", "b", "c", "d"], 8)
    groups = Groups(["0", "1", "2", "3"], KEYS)
    factors, advantages = weighed(trainer, groups, torch.ones(8, 1))
    first = (factors * advantages)[0], (factors * advantages)[4]
    # (r - mean of the others) (n - 1)/n at n = 4, for groups of 3 and of 4 that weigh the same.
    assert first[0] / first[1] == pytest.approx((1 * 3 / 4 / 3) / (2 / 3 * 3 / 4 / 4))
    assert factors[4] == pytest.approx(1 / 4 / 4 * 8)  # at the uniform size: the weight alone


def test_completions_that_nobody_asked_for_stop_the_run(compose):
    from dibs.integrations.verl.groups import Groups

    trainer = bare_trainer(compose(*GRPO))
    trainer.counts = np.array([3, 1, 0, 4])
    groups = Groups(["0", "1", "2", "3"], [*KEYS, "pad_0_0"])
    tags = [{}] * len(KEYS) + [{"is_padding": True}]
    trainer._check_received(groups, tags)
    trainer._check_received(Groups(["0", "1", "2", "3"], KEYS[1:]), tags[1:-1])  # one failed
    for counts, wrong in (([3, 1, 1, 3], tags), ([3, 1, 0, 4], [{}] * len(tags))):
        trainer.counts = np.array(counts)
        with pytest.raises(RuntimeError, match="draws by rules of its own"):
            trainer._check_received(groups, wrong)


def test_completions_without_a_norm_tell_nothing(compose):
    from dibs.integrations.verl.groups import Groups
    from dibs.integrations.verl.last_layer import NORMS

    trainer = bare_trainer(compose(*GRPO))
    trainer.measures_norms = True
    groups = Groups(["0", "1", "2", "3"], KEYS)
    ones = torch.ones(8, 2)
    data = {
        "rm_scores": ones,
        "response_mask": ones,
        "old_log_probs": -ones,
        NORMS: torch.ones(8, 1),
    }
    data[NORMS][1] = torch.nan
    told = trainer._observed(groups, data, True)
    assert [len(each) for each in told["grad_norms"]] == [2, 1, 0, 4]
    assert [len(each) for each in told["rewards"]] == [2, 1, 0, 4]
    assert trainer.measures_norms
    told = trainer._observed(groups, {**data, NORMS: torch.full((8, 1), torch.nan)}, True)
    assert "grad_norms" not in told
    assert not trainer.measures_norms


def test_norms_are_of_the_gradient_that_is_trained(compose):
    """Norms 10 and 30 of completions of 2 and 4 tokens; the last has outputs of 1 and 3."""
    from dibs.integrations.verl.groups import Groups
    from dibs.integrations.verl.last_layer import NORMS

    groups = Groups(["0", "1"], ["0_0_0", "0_1_0", "1_0_0", "1_0_1"])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
    data = {
        "rm_scores": torch.ones(4, 4),
        "response_mask": mask,
        "old_log_probs": -torch.ones(4, 4),
        NORMS: torch.tensor([[10.0], [30.0], [3.0], [12.0]]),
    }
    mode = "actor_rollout_ref.actor.loss_agg_mode"
    for word, expected in (
        ("token-mean", [[10, 30], [153**0.5]]),
        ("seq-mean-token-sum-norm", [[10, 30], [153**0.5]]),
        ("seq-mean-token-mean", [[5, 7.5], [5]]),
    ):
        trainer = bare_trainer(compose(*GRPO, f"{mode}={word}"))
        told = trainer._observed(groups, data, True)
        assert [pytest.approx(each) for each in told["grad_norms"]] == expected
        assert told["lengths"] == [[2, 4], [4]]
    unmeasured = compose(*GRPO, f"{mode}=seq-mean-token-mean", "dibs.grad_norm=none")
    assert bare_trainer(unmeasured).budget.memory.length_normalization == "none"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", ["vanilla", "gspo", "sapo", "geo_mean", "cispo", "dibs_raft++"])
def test_norms_are_those_of_verls_loss(compose, loss, mode):
    """Up to a factor that all completions share, of scores of one token with norm 1 at right angles."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    import dibs.integrations.verl.registered_losses  # noqa: F401
    from dibs.integrations.loss_lengths import trained_norms, verl_normalization
    from dibs.integrations.verl.options import aggregation

    config = compose(
        *GRPO,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        f"actor_rollout_ref.actor.loss_agg_mode={mode}",
        f"actor_rollout_ref.actor.policy_loss.loss_mode={loss}",
    ).actor_rollout_ref.actor
    OmegaConf.resolve(config)
    actor = omega_conf_to_dataclass(config)
    lengths = torch.tensor([1, 2, 5, 6])
    mask = (torch.arange(6) < lengths.unsqueeze(1)).float()
    old = -torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for row in torch.eye(4):
        new = old.clone().requires_grad_()
        get_policy_loss_fn(loss)(
            old_log_prob=old,
            log_prob=new,
            advantages=row.unsqueeze(1).expand(4, 6),
            response_mask=mask,
            loss_agg_mode=mode,
            config=actor,
        )[0].backward()
        found.append(float(new.grad.norm()))
    tokens = lengths.numpy()
    told = trained_norms(np.sqrt(tokens), tokens, verl_normalization(aggregation(config)))
    ratios = np.array(found) / told
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)


def test_a_group_of_one_has_no_advantage(compose):
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    from dibs.integrations.verl.groups import Groups

    trainer = bare_trainer(compose(*GRPO))
    trainer.budget.allocate(["a", "b", "c", "d"], 8)
    rewards = torch.tensor([x for group in REWARDS for x in group]).unsqueeze(1)
    mask = torch.ones(8, 1)
    uids = np.array([key[0] for key in KEYS], dtype=object)
    advantages, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, uids)
    assert advantages[3, 0] > 0.9, "verl's own; if this fails, verl no longer needs us for it"
    groups = Groups(["0", "1", "2", "3"], KEYS)
    factors, _ = weighed(trainer, groups, mask)
    assert factors[3] == 0
    assert (np.delete(factors, 3) > 0).all()


def test_raft_plus_plus_is_ppo_where_nothing_is_rejected(compose):
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    import dibs.integrations.verl.registered_losses  # noqa: F401

    config = compose(
        *GRPO,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.actor.clip_ratio_high=0.28",
    )
    OmegaConf.resolve(config.actor_rollout_ref.actor)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    generator = torch.Generator().manual_seed(0)
    old, new = (-torch.rand(2, 4, 5, generator=generator)).unbind()
    given = {
        "old_log_prob": old,
        "log_prob": new.requires_grad_(),
        "advantages": torch.tensor([1.0, 0.0, 2.0, 0.5]).unsqueeze(1).expand(4, 5),
        "response_mask": torch.rand(4, 5, generator=generator) < 0.8,
        "config": actor,
    }
    losses = {
        name: get_policy_loss_fn(name)(**given) for name in ("vanilla", "dibs_raft++", "dibs_raft")
    }
    assert float(losses["dibs_raft++"][0]) == pytest.approx(float(losses["vanilla"][0]), rel=1e-6)
    assert losses["dibs_raft++"][1]["actor/pg_clipfrac"] > 0
    mask = given["response_mask"]
    plain = -(given["advantages"] * new * mask).sum() / mask.sum()
    assert float(losses["dibs_raft"][0]) == pytest.approx(float(plain), rel=1e-6)


def test_names_last_over_epochs_and_differ():
    from verl.utils import tensordict_utils
    from verl.utils.dataset.rl_dataset import collate_fn

    from dibs.integrations.verl.trainer import prompt_names

    def batch(*contents):
        rows = [
            {
                "raw_prompt": [{"role": "user", "content": each}],
                "reward_model": {"ground_truth": "4"},
                "dummy": torch.zeros(1),
            }
            for each in contents
        ]
        return tensordict_utils.get_tensordict(collate_fn(rows))

    first, second = prompt_names(batch("1+3=", "2+2=")), prompt_names(batch("2+2=", "0+4="))
    assert first[1] == second[0]
    assert len({*first, *second}) == 3
