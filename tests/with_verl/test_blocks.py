"""What the block of dibs settings in verl's configuration means, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dibs.types import InputError

pytestmark = pytest.mark.verl
pytest.importorskip("verl.trainer")

import scene  # noqa: E402  where there is no verl, nothing of this is imported

GRPO, read = scene.GRPO, scene.read_block
GAE = "algorithm.adv_estimator=gae"
LOSS_MODE = "actor_rollout_ref.actor.loss_agg_mode"
BY_LONGEST = f"{LOSS_MODE}=seq-mean-token-sum-norm"
SAPO = "actor_rollout_ref.actor.policy_loss.loss_mode=sapo"
KEEP = ("dibs.keep=pods", "dibs.keep_count=2")


def test_the_target_gradient_follows_verls_estimator(compose):
    def target(*words):
        budget = read(compose(*words))[1]
        return budget.objective, budget.baseline, budget.num_generations

    assert target(*GRPO) == ("grpo", "mean", 4)
    assert target(*GRPO, "algorithm.norm_adv_by_std_in_grpo=False")[:2] == (
        "expected_reward",
        "mean",
    )
    rloo = ("algorithm.adv_estimator=rloo", "dibs.num_generations=6")
    assert target(*rloo) == ("expected_reward", "leave_one_out", 6)
    assert target(*GRPO, "dibs.algorithm=raft++")[:2] == ("log_likelihood", "none")
    assert target(GAE)[:2] == ("expected_reward", "none")
    assert read(compose(GAE))[1].target.given
    own = ("algorithm.adv_estimator=dibs", "dibs.objective=log_likelihood", "dibs.baseline=mean")
    assert target(*own)[:2] == ("log_likelihood", "mean")


def test_uniform_counts_need_no_norms(compose):
    assert read(compose(*GRPO))[0].grad_norm == "last_layer"
    assert read(compose(*GRPO, "dibs.allocator=uniform"))[0].grad_norm == "none"
    kept = ("dibs.allocator=uniform", "dibs.state_path=known.json")
    assert read(compose(*GRPO, *kept))[0].grad_norm == "last_layer"


def test_raft_is_over_the_accepted_ones(compose):
    assert read(compose(*GRPO, "dibs.algorithm=raft"))[1].estimator == "self_normalized"
    other = ("dibs.algorithm=raft", "dibs.objective=expected_reward")
    assert read(compose(*GRPO, *other))[1].estimator == "prompt_mean"


def test_losses_with_a_mean_of_their_own(compose):
    from dibs.integrations.verl.options import aggregation

    for loss, mode in (("vanilla", "token-mean"), ("sapo", "seq-mean-token-mean")):
        word = f"actor_rollout_ref.actor.policy_loss.loss_mode={loss}"
        assert aggregation(compose(*GRPO, word).actor_rollout_ref.actor) == mode


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dibs.alocator=uniform"], "unknown key dibs.alocator; nearest is dibs.allocator"),
        (["dibs.num_pilots=0"], "dibs.num_pilots: must be at least 1"),
        (["dibs.allocator=best"], "dibs: unknown allocator 'best'"),
        (["dibs.objective=expected_reward"], "not that of algorithm.adv_estimator grpo"),
        (["dibs.num_generations=5"], "dibs.num_generations 5 and .*rollout.n 4 differ"),
        (
            ["algorithm.adv_estimator=reinforce_plus_plus"],
            "adv_estimator reinforce_plus_plus has no allocation here",
        ),
        ([GAE, "dibs.objective=grpo"], "not that of algorithm.adv_estimator gae"),
        ([GAE, "dibs.mode=pilot"], "dibs.mode pilot: the critic sees no pilots"),
        ([GAE, "dibs.grad_norm=none"], "dibs.grad_norm none: counts of .* gae follow from"),
        ([GAE, "dibs.keep=pods", "dibs.keep_count=2"], "dibs.keep pods: a critic is trained"),
        (["dibs.advantages=given"], "dibs.advantages: algorithm.adv_estimator decides it"),
        (["dibs.algorithm=raft", "dibs.objective=grpo"], "dibs.algorithm raft fits accepted"),
        (["dibs.num_pilots=4"], "dibs.num_pilots is given and dibs.mode is online"),
        (["dibs.group=2"], "dibs: group is given without a pool"),
        (["dibs.pool=all", "dibs.group=1"], "group 1 is below 2: baseline mean is that of a group"),
        (["dibs.pool=all", "dibs.mode=pilot"], "pool all would draw pilots of every"),
        (["dibs.pool=0"], "dibs.pool"),
        (
            ["dibs.algorithm=raft", "algorithm.use_kl_in_reward=True"],
            "use_kl_in_reward: objective log_likelihood",
        ),
    ],
)
def test_blocks_that_cannot_be_used(compose, words, said):
    with pytest.raises(InputError, match=said) as refused:
        read(compose(*GRPO, *words))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.v1.trainer_mode=colocate_async", "trainer_mode colocate_async"),
        ("trainer.use_v1=False", "trainer.use_v1 False"),
        ("++algorithm.filter_groups.enable=True", "algorithm.filter_groups.enable: "),
        ("++trainer.v1.sampler.sync_refill_failed_groups=True", "sync_refill_failed_groups: "),
        ("skip.rollout_tq.enable=True", "skip.rollout_tq.enable: "),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=kl_cov", "loss_mode kl_cov: "),
        (BY_LONGEST, "actor_rollout_ref.actor.loss_agg_mode seq-mean-token-sum-norm divides"),
        ("distillation.enabled=True", "distillation.enabled: "),
    ],
)
def test_parts_of_verl_that_draw_by_rules_of_their_own(compose, word, said):
    from dibs.integrations.verl.options import adapt

    config = compose(*GRPO, word)
    with pytest.raises(InputError, match=said) as refused:
        adapt(config, *read(config))
    assert "\n" not in str(refused.value)


def test_a_loss_that_divides_by_the_longest_completion(compose):
    """Counts may be ragged where the divisor is a constant, and uniform where it is not."""
    from dibs.integrations.verl.options import adapt

    own = "critic.loss_agg_mode=seq-mean-token-sum-norm"
    config = compose(*GRPO, GAE, own)
    with pytest.raises(InputError, match=r"critic.loss_agg_mode .* set critic.loss_scale_factor"):
        adapt(config, *read(config))
    for words in (
        (BY_LONGEST, "actor_rollout_ref.actor.loss_scale_factor=6"),
        (BY_LONGEST, "dibs.allocator=uniform"),
        (BY_LONGEST, SAPO),
        (BY_LONGEST, "dibs.allocator=uniform", *KEEP, "dibs.estimator=flat"),
        (own,),  # without a critic
    ):
        config = compose(*GRPO, *words)
        adapt(config, *read(config))


@pytest.mark.parametrize(
    "words",
    [
        (SAPO, "actor_rollout_ref.actor.use_kl_loss=True"),
        (SAPO, "actor_rollout_ref.actor.entropy_coeff=0.01"),
        ("dibs.allocator=uniform", *KEEP),
        ("dibs.allocator=uniform", "dibs.algorithm=raft"),
    ],
)
def test_all_means_that_weights_enter_are_looked_at(compose, words):
    """KL and entropy have the configured mean; uniform counts may have uneven weights."""
    from dibs.integrations.verl.options import adapt

    config = compose(*GRPO, BY_LONGEST, *words)
    with pytest.raises(InputError, match=r"actor\.loss_agg_mode seq-mean-token-sum-norm divides"):
        adapt(config, *read(config))


def test_the_command_says_it_in_one_line(tmp_path):
    command = [sys.executable, "-m", "dibs.integrations.verl.main", *GRPO, "dibs.alocator=uniform"]
    done = subprocess.run(
        command, cwd=tmp_path, env=scene.environment(tmp_path), capture_output=True, check=False
    )
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last == "unknown key dibs.alocator; nearest is dibs.allocator"
    assert b"Traceback" not in done.stderr
