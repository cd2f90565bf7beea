"""How a policy is loaded: adapters, bfloat16 arithmetic, checkpointed activations, threads."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from dibs.config import PolicyConfig
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.training.losses import PolicyLoss
from dibs.types import InputError, TrainingExample
from odd_models import byte_tokenizer, save_model
from tiny_policies import examples, gradient_of, updater
from tiny_runs import WORDS, result, run

LORA = ("--policy.lora.rank=4", "--policy.lora.dropout=0.1")


@pytest.fixture
def folder(policy, tmp_path):
    policy.save(tmp_path / "model")
    return str(tmp_path / "model")


def loaded(folder: str, **options) -> Policy:
    return load_policy(PolicyConfig(model=folder, device="cpu", **options), 1.0)


def trained_adapters(folder: str) -> Policy:
    policy = loaded(folder, lora={"rank": 3})
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    policy.model.eval()
    return policy


def test_adapters_start_as_the_model_and_alone_are_trained(policy, folder):
    adapted = loaded(folder, lora={"rank": 3})
    made = examples(policy, 4)
    torch.testing.assert_close(
        adapted.logprobs(adapted.collate(made)), policy.logprobs(policy.collate(made))
    )
    trainable = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_whole_weights_are_the_model_with_its_adapters(folder, tmp_path):
    adapted = trained_adapters(folder)
    before = {name: p.clone() for name, p in adapted.model.state_dict().items()}
    adapted.save_merged(tmp_path / "whole")
    for name, value in adapted.model.state_dict().items():
        assert torch.equal(value, before[name])
    whole = loaded(str(tmp_path / "whole"))
    assert not whole.has_lora
    made = examples(whole, 4)
    one, other = (p.logprobs(p.collate(made)) for p in (whole, adapted))
    torch.testing.assert_close(one, other)
    plain = loaded(folder)
    assert not torch.allclose(plain.logprobs(plain.collate(made)), other, atol=0.1)
    assert dict(plain.merged_weights()).keys() == dict(adapted.merged_weights()).keys()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["all-linear"], ["embed_tokens"], ["lm_head"]], ids=str)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
def test_adapters_of_tied_embeddings_are_saved_where_they_belong(tmp_path, tied, targets):
    """Adapters of one of the two make them differ, and readers of the whole model must see that."""
    folder = save_model(tmp_path / "model", byte_tokenizer(), tie_word_embeddings=tied)
    adapted = loaded(str(folder), lora={"rank": 2, "target_modules": targets})
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    adapted.model.eval()
    adapted.save_merged(tmp_path / "whole")
    whole = loaded(str(tmp_path / "whole"))
    apart = not tied or targets != ["all-linear"]
    assert whole.model.config.tie_word_embeddings != apart
    assert adapted.base_model.config.tie_word_embeddings == tied
    made = [TrainingExample((5, 6, 7), (8, 9, 10, 11), 0.0, 0.0)]
    one, other = (p.logprobs(p.collate(made)) for p in (whole, adapted))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_adapters_are_saved_and_loaded_alone(folder, tmp_path):
    adapted = trained_adapters(folder)
    adapted.save(tmp_path / "adapters")
    assert all("lora_" in n for n in load_file(tmp_path / "adapters" / "adapter_model.safetensors"))
    fresh = loaded(folder, lora={"rank": 3})
    fresh.load(tmp_path / "adapters")
    for name, value in adapted.model.state_dict().items():
        assert torch.equal(value, fresh.model.state_dict()[name]), name


def test_adapters_that_cannot_be(folder):
    with pytest.raises(InputError, match=r"policy.lora: Target modules .*nothing"):
        loaded(folder, lora={"rank": 3, "target_modules": ["nothing"]})


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_as_if_undisturbed(tmp_path, monkeypatch):
    """Dropout included: the random state is kept."""
    from dibs.runs.console import PlainView

    words = (*WORDS[6:], *LORA, "--train.steps=4", "--estimate.interval=1")
    run(tmp_path / "whole", *words)

    def step(self, metrics, steps):
        if metrics["step"] == 3:
            raise RuntimeError("the machine died")

    with monkeypatch.context() as patch:
        patch.setattr(PlainView, "step", step)
        with pytest.raises(RuntimeError, match="died"):
            run(tmp_path / "killed", *words)
    run(tmp_path / "killed", *words, "--resume=yes")
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert not loaded(str(tmp_path / "whole" / "model")).has_lora


def test_mixed_arithmetic_is_bfloat16_with_float32_weights(policy, folder):
    mixed = loaded(folder, dtype="mixed")
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    made = examples(policy, 6)
    exact = policy.logprobs(policy.collate(made))
    found = mixed.logprobs(mixed.collate(made))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.05, rtol=0.05)
    assert not torch.allclose(found, exact, atol=1e-6)
    for loss in (PolicyLoss(None), PolicyLoss((0.2, 0.28))):
        one, other = (gradient_of(updater(p, loss), made) for p in (mixed, policy))
        assert one.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
def test_checkpointed_activations_give_the_same_gradient(policy, folder):
    made = examples(policy, 6)
    frugal = loaded(folder, gradient_checkpointing=True)
    frugal.model.train()
    assert frugal.model.is_gradient_checkpointing
    one, other = (gradient_of(updater(p, PolicyLoss(None)), made) for p in (frugal, policy))
    torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_gradient(policy, folder):
    made = examples(policy, 12)
    compiled = loaded(folder, compile=True)
    one, other = (gradient_of(updater(p, PolicyLoss(None)), made) for p in (compiled, policy))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_tiny_models_get_one_thread(folder):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        loaded(folder)
        assert torch.get_num_threads() == 1
        loaded(folder, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "words", [("--policy.dtype=mixed",), ("--policy.gradient_checkpointing=true", *LORA)]
)
def test_runs_with_options(tmp_path, words):
    summary = run(tmp_path / "run", *words)
    assert summary["optimizer_updates"] == 4
