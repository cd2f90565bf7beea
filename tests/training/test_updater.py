"""Updates: exact gradients, independence from micro-batches, a fixed number of updates."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dibs.config import UpdateConfig
from dibs.model.gradient_vector import Projection
from dibs.model.policy import Policy
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from dibs.types import NonFiniteError, TrainingExample
from tiny_policies import RAFT, RATIO, examples, gradient_of, naive_logprobs, updater


def gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()]).clone()


def test_gradient_matches_a_plain_sum_over_single_sequences(policy):
    made = examples(policy, 7)
    updater(policy).gradient(made)
    got = gradient(policy)
    policy.model.zero_grad()
    for example in made:
        ids = torch.tensor([[*example.context_ids, *example.completion_ids]])
        table = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(example.context_ids)
        logprob = sum(table[start + t - 1, y] for t, y in enumerate(example.completion_ids))
        (-example.weight * example.advantage * logprob).backward()
    torch.testing.assert_close(got, gradient(policy), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [RAFT, RATIO, PolicyLoss(clip=(0.2, 0.28), beta=0.1)])
def test_gradient_does_not_depend_on_the_micro_batch_split(policy, loss):
    made = examples(policy, 30)
    old = None
    if loss.clip:
        old = [naive_logprobs(policy, example) + 0.1 for example in made]
    results = []
    for tokens in (10**6, 200, 1):
        policy.model.zero_grad()
        found = updater(policy, loss, micro_batch_tokens=tokens).gradient(made, old)
        results.append((gradient(policy), found.loss, int(found.sums["tokens"])))
    scale = results[0][0].abs().max()
    for other in results[1:]:
        assert (other[0] - results[0][0]).abs().max() < 1e-5 * scale
        assert other[1] == pytest.approx(results[0][1], rel=1e-5)
        assert other[2] == results[0][2]


def test_weighted_enumeration_gives_the_gradient_of_the_log_accept_rate(policy):
    """sum_y pi(y) r(y)/p s(y) over ALL completions equals autograd of ln p, exactly."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    tiny = Policy(Qwen2ForCausalLM(config).eval(), policy.tokenizer)
    context, eos = (2, 3), 1
    completions = [y[: y.index(eos) + 1] if eos in y else y for y in product(range(4), repeat=3)]
    completions = list(dict.fromkeys(completions))
    made = [TrainingExample(context, y, 0.0, 0.0) for y in completions]
    logprobs = tiny.logprobs(tiny.collate(made)).sum(-1)
    probabilities = logprobs.exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-5)
    accepted = torch.tensor([2 in y for y in completions])
    rate = probabilities[accepted].sum()
    rate.log().backward()
    expected = gradient(tiny)

    tiny.model.zero_grad()
    weighted = [
        TrainingExample(context, y, float(ok) / rate.item(), p.item())
        for y, ok, p in zip(completions, accepted, probabilities, strict=True)
    ]
    updater(tiny).gradient(weighted)
    torch.testing.assert_close(-gradient(tiny), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 29])
def test_the_number_of_updates_does_not_depend_on_the_counts(policy, count):
    trainer = updater(policy, RATIO, updates_per_step=4, learning_rate=1e-4)
    made = examples(policy, count)
    before = weights(policy)
    metrics = trainer.step(made)
    assert metrics.updates == 4
    assert trainer.scheduler.last_epoch == 4
    assert (weights(policy) == before).all() == (count == 0)


def test_a_step_in_which_nothing_was_accepted_changes_nothing(policy):
    trainer = updater(policy, learning_rate=0.1)
    made = [TrainingExample(e.context_ids, e.completion_ids, 0.0, 1.0) for e in examples(policy, 5)]
    before = weights(policy)
    metrics = trainer.step(made)
    assert (weights(policy) == before).all()
    assert metrics.loss == 0
    assert metrics.update_grad_norm == 0


def test_dealt_updates_add_up_to_the_gradient_of_the_step(policy):
    made = examples(policy, 10)
    trainer = updater(policy)
    trainer.gradient(made)
    whole = gradient(policy)
    policy.model.zero_grad()
    for u in range(4):
        trainer.gradient(made[u::4], scale=4.0)
    torch.testing.assert_close(gradient(policy) / 4, whole, rtol=1e-4, atol=1e-6)


def test_every_update_holds_an_even_share_of_every_prompt(policy, monkeypatch):
    """Counts 1, 3, 9, 19 over 4 updates; a fifth of the completions are left out as of no advantage."""
    counts = [1, 3, 9, 19]
    line = [
        replace(example, completion_ids=(k + 1,), advantage=float(k % 5))
        for example, count in zip(examples(policy, 4), counts, strict=True)
        for k in range(count)
    ]
    trainer = updater(policy, updates_per_step=4, learning_rate=1e-30)
    firsts, gradient = [], trainer.gradient

    def watched(part, *rest):
        seen.append(part)
        return gradient([], *rest)

    monkeypatch.setattr(trainer, "gradient", watched)
    for _ in range(20):
        seen: list = []
        trainer.step(line)
        held = [[sum(e.context_ids == c.context_ids for e in part) for c in line] for part in seen]
        # 2 or 3 of 9 and 4 or 5 of 19, of which those of advantage 0 are left out.
        assert all(part[4] <= 3 and part[13] <= 5 for part in held)
        assert sum(len(part) for part in seen) == sum(e.advantage != 0 for e in line)
        firsts.append(str([e.completion_ids for e in seen[0]]))
    assert len(set(firsts)) > 10


def test_the_first_update_of_raft_plus_plus_is_that_of_raft(policy):
    made = examples(policy, 6)
    start = policy.frozen_copy().model.state_dict()
    moved = []
    for loss in (RAFT, RATIO):
        policy.model.load_state_dict(start)
        policy.model.requires_grad_(True)
        updater(policy, loss, updates_per_step=1, learning_rate=1e-3).step(made)
        moved.append(weights(policy))
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(policy, bad):
    made = examples(policy, 8)
    made[1] = TrainingExample(made[1].context_ids, made[1].completion_ids, bad, 1.0)
    before = weights(policy)
    # Dealt to two updates, the second holds the bad one; the first may be applied.
    trainer = updater(policy, updates_per_step=1, max_skipped=0)
    with pytest.raises(NonFiniteError, match="update 1 of 1: the loss is"):
        trainer.step(made)
    assert (weights(policy) == before).all()


def test_kl_pulls_back_towards_the_reference(policy):
    trainer = updater(policy, PolicyLoss(clip=None, beta=1.0), learning_rate=1e-2)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made = [TrainingExample(e.context_ids, e.completion_ids, 0.0, 0.1) for e in examples(policy, 8)]
    first = trainer.step(made).kl
    for _ in range(10):
        last = trainer.step(made).kl
    assert 0 < last < first


def test_learning_rate_schedule_and_warm_up(policy):
    trainer = Updater(
        policy,
        RAFT,
        UpdateConfig(learning_rate=1.0, schedule="linear", warmup_updates=2, updates_per_step=2),
        total_updates=6,
    )
    rates = [trainer.step([]).learning_rate for _ in range(3)]
    assert rates == pytest.approx([1.0, 0.5, 0.0])


def test_the_constant_schedule_warms_up_too(policy):
    options = UpdateConfig(learning_rate=1.0, warmup_updates=4, updates_per_step=2)
    trainer = Updater(policy, RAFT, options, total_updates=8)
    assert [trainer.step([]).learning_rate for _ in range(3)] == pytest.approx([0.5, 1.0, 1.0])


def test_noise_of_the_gradient_by_monte_carlo(policy):
    """Completions of one prompt, drawn from a pool: ||g||^2 and an update's variance are known sums."""
    made = examples(policy, 12)
    pool = [replace(each, context_ids=made[0].context_ids, weight=1.0) for each in made]
    single = updater(policy)
    vectors = []
    for example in pool:
        policy.model.zero_grad()
        single.gradient([example])
        vectors.append(gradient(policy).double())
    x = torch.stack(vectors)
    square = float(x.mean(0) @ x.mean(0))
    spread = float((x**2).sum(1).mean()) - square
    drawn, updates = 8, 4
    maker = updater(policy, updates_per_step=updates, learning_rate=1e-30)
    rng = np.random.default_rng(0)
    told = []
    for _ in range(150):
        hand = [replace(pool[i], weight=1 / drawn) for i in rng.integers(0, 12, drawn)]
        found = maker.step(hand)
        assert found.gradient_square is not None
        assert found.gradient_variance is not None
        told.append((found.gradient_square, found.gradient_variance))
    exact = np.array([square, spread * updates / drawn])
    error = np.std(told, axis=0, ddof=1) / np.sqrt(len(told))
    assert (np.abs(np.mean(told, axis=0) - exact) < 5 * error).all()
    assert (error < 0.3 * exact).all()


@pytest.mark.slow
def test_noise_is_told_also_where_rejected_completions_have_no_gradient(policy):
    """Accepted or not at random: hands that depended on it would not tell the noise by their spread."""
    pool = [replace(each, weight=1 / 32) for each in examples(policy, 8)]
    maker = updater(policy, updates_per_step=4, learning_rate=1e-30)
    vectors = []
    for example in pool:
        policy.model.zero_grad()
        maker.gradient([replace(example, advantage=1.0, weight=1.0)])
        vectors.append(gradient(policy).double())
    # Four completions of each of 8 prompts, right half the time: one of each prompt in every update.
    x = torch.stack(vectors)
    mean = x.sum(0) / 16
    exact = float(mean @ mean)
    rng = np.random.default_rng(0)
    told = []
    for _ in range(300):
        hand = [
            replace(pool[i], advantage=float(rng.integers(0, 2)))
            for i in np.repeat(np.arange(8), 4)
        ]
        square = maker.step(hand).gradient_square
        assert square is not None
        told.append(square)
    error = np.std(told, ddof=1) / np.sqrt(len(told))
    assert abs(np.mean(told) - exact) < 5 * error


def test_one_update_tells_nothing_of_noise(policy):
    made = updater(policy, updates_per_step=1).step(examples(policy, 3))
    assert made.gradient_square is None
    assert made.gradient_variance is None


def test_projections_keep_inner_products():
    torch.manual_seed(0)
    parameters = [torch.zeros(40, 30), torch.zeros(7), torch.zeros(900)]
    gradients = torch.randn(2, 3, 1200)

    def vectors(seed, largest):
        project = Projection(parameters, seed, largest)
        result = []
        for rows in gradients:
            for parameter, row in zip(parameters, rows, strict=True):
                parameter.grad = row[: parameter.numel()].view(parameter.shape)
            parameters[1].grad = None
            result.append(project())
        return torch.stack(result).double()

    whole = vectors(0, 10**6)
    assert whole.shape == (2, 2107)
    exact = whole @ whole.T
    assert exact[0, 0] == pytest.approx(
        float((gradients[0, 0] ** 2).sum() + (gradients[0, 2, :900] ** 2).sum())
    )
    sketches = [vectors(seed, 256) for seed in range(400)]
    products = torch.stack([s @ s.T for s in sketches])
    assert products.shape == (400, 2, 2)
    error = products.std(0) / 20
    assert ((products.mean(0) - exact).abs() < 5 * error).all()
    assert (products.std(0) < 2 * float(exact.max()) / 16).all()
    # Many small parameters spread over the sketch as one large one would.
    many = [torch.zeros(50) for _ in range(40)]
    for parameter in many:
        parameter.grad = torch.ones(50)
    assert int((Projection(many, 0, 1500)() != 0).sum()) > 1200
    assert torch.equal(vectors(3, 256), sketches[3])


@pytest.mark.parametrize("loss", [RAFT, pytest.param(RATIO, marks=pytest.mark.slow)])
def test_micro_batches_are_halved_where_memory_does_not_suffice(policy, loss, monkeypatch):
    made = examples(policy, 20)
    inner, sizes = Policy.logprobs_and_entropy, []

    def narrow(self, batch):
        sizes.append(batch.input_ids.numel())
        if sizes[-1] > 150:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return inner(self, batch)

    maker = updater(policy, loss, updates_per_step=2, learning_rate=1e-3)
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    maker.step(made)
    after = weights(policy)
    policy.model.load_state_dict(before)
    monkeypatch.setattr(Policy, "logprobs_and_entropy", narrow)
    again = updater(policy, loss, updates_per_step=2, learning_rate=1e-3)
    again.step(made)
    torch.testing.assert_close(weights(policy), after, rtol=1e-3, atol=2e-5)
    assert again.micro_batch_tokens <= 150
    tried = sum(size > 150 for size in sizes)
    again.step(made)
    assert sum(size > 150 for size in sizes) == tried  # learned once

    def never(self, batch):
        raise MemoryError

    monkeypatch.setattr(Policy, "logprobs_and_entropy", never)
    with pytest.raises(MemoryError):
        again.step(made)


def test_gradients_that_are_not_finite_are_skipped_and_too_many_stop(policy):
    good = examples(policy, 8)
    bad = [replace(each, weight=float("nan")) for each in good]
    maker = updater(policy, updates_per_step=1, max_skipped=2, learning_rate=1e-3)
    start = weights(policy)
    for expected in (1, 1):
        assert maker.step(bad).skipped_updates == expected
        assert torch.equal(weights(policy), start)
    assert maker.step(good).skipped_updates == 0
    assert not torch.equal(weights(policy), start)
    for _ in range(2):
        maker.step(bad)
    with pytest.raises(NonFiniteError, match=r"update 1 of 1: the loss is nan.* after 2 skipped"):
        maker.step(bad)


def test_what_a_sampler_off_by_a_known_amount_shows(policy):
    """Sampler's log-probabilities are the learner's less ln 1.05 a token: ratios of 1.05 and powers."""
    made = examples(policy, 6)
    with torch.no_grad():
        rows = policy.logprobs(policy.collate(made))
    gap = math.log(1.05)
    made = [
        replace(e, sampling_logprobs=tuple((row[: len(e.completion_ids)] - gap).tolist()))
        for e, row in zip(made, rows, strict=True)
    ]
    metrics = updater(policy, RATIO, updates_per_step=1).step(made)
    tokens = sum(len(e.completion_ids) for e in made)
    assert metrics.sampler_gap == pytest.approx(gap, abs=1e-5)
    assert metrics.sampler_gap_max == pytest.approx(gap, abs=1e-4)
    assert metrics.token_ratios == [0, 0, 0, 0, tokens, 0, 0]
    lengths = [len(e.completion_ids) for e in made]
    assert metrics.sequence_ratios is not None
    assert metrics.sequence_ratios[5] == sum(1.1 < 1.05**n <= 2 for n in lengths)
    plain = updater(policy, RAFT, updates_per_step=1).step(made)
    assert plain.sampler_gap is None
    assert plain.token_ratios is None


@pytest.mark.parametrize("name", ["token_truncate", "sequence_truncate"])
def test_importance_sampling_undoes_a_wrong_sampler(policy, name):
    """Completions of a hotter policy, weighed, give the gradient of the policy's own in expectation.

    One token a completion: by enumeration, sum over tokens of q(y) (p(y) / q(y)) A(y) grad ln p(y).
    """
    context = (5, 6, 7)
    hot = Policy(policy.model, policy.tokenizer, 1.7)
    vocabulary = policy.model.config.vocab_size
    tokens = [TrainingExample(context, (t,), 1.0 + t % 3, 1.0) for t in range(vocabulary)]
    with torch.no_grad():
        ours, theirs = (p.logprobs(p.collate(tokens))[:, 0] for p in (policy, hot))
    loss = PolicyLoss(None, 0.0, name, 1e6)
    true, weighed = [], []
    for e, p, q in zip(tokens, ours.tolist(), theirs.tolist(), strict=True):
        true.append(replace(e, weight=math.exp(p)))
        weighed.append(replace(e, weight=math.exp(q), sampling_logprobs=(q,)))
    expected = gradient_of(updater(policy, RAFT), true)
    found = gradient_of(updater(policy, loss), weighed, old=ours)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
