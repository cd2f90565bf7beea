"""Policies from GGUF files, which the tests write themselves with the package gguf."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from dibs.config import PolicyConfig
from dibs.config.load import load_config
from dibs.model.pretrained import load_policy, load_tokenizer
from dibs.runs.console import NoView
from dibs.runs.describe_data import describe_data
from dibs.runs.train_run import run_training
from dibs.types import InputError

gguf = pytest.importorskip(
    "gguf", reason="the package gguf, which writes the file, is not installed"
)

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", *MARKS]
END = len(TOKENS) - 1
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    bos_token_id=END - 1,
    eos_token_id=END,
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True)
class Written:
    """A file, and the weights that it holds, by their names in transformers."""

    path: Path
    weights: dict[str, torch.Tensor]


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys in the order of GGUF: the two halves of a head, row by row."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def written(path: Path, architecture: str = "llama") -> Written:
    """A Llama of one layer: matrices in blocks of 8 bits, norms and embeddings in float32."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_rope_dimension_count(CONFIG.hidden_size // CONFIG.num_attention_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (END - 2) + [3, 3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(END - 1)
    writer.add_eos_token_id(END)
    writer.add_chat_template(CHAT)
    held = {}
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if name == "lm_head.weight":  # tied, so a file does not hold it
            continue
        if not name.startswith("model.layers."):
            where = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
            writer.add_tensor(f"{where[name]}.weight", values)
            held[name] = weight
            continue
        own = name.removeprefix("model.layers.0.").removesuffix(".weight")
        if values.ndim == 1:
            writer.add_tensor(f"blk.0.{NAMES[own]}.weight", values)
            held[name] = weight
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        heads = {"attn_q": CONFIG.num_attention_heads, "attn_k": CONFIG.num_key_value_heads}
        count = heads.get(NAMES[own])
        blocks = gguf.quantize(values if count is None else interleaved(values, count), kind)
        writer.add_tensor(f"blk.0.{NAMES[own]}.weight", blocks, raw_dtype=kind)
        # Blocks lie within rows, so the order of the rows does not change what is lost.
        held[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(values, kind), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(path, held)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf")


def loaded(source: object, **options):
    return load_policy(PolicyConfig(model=str(source), device="cpu", **options), 1.0)


def test_the_policy_has_the_weights_of_the_file(file):
    policy = loaded(file.path)
    weights = policy.model.state_dict()
    assert weights.keys() - {"lm_head.weight"} == file.weights.keys()
    for name, expected in file.weights.items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-7)
    assert weights["lm_head.weight"].data_ptr() == weights["model.embed_tokens.weight"].data_ptr()
    plain = LlamaForCausalLM(CONFIG).eval()
    plain.load_state_dict(
        {**file.weights, "lm_head.weight": file.weights["model.embed_tokens.weight"]}
    )
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(policy.model(ids).logits, plain(ids).logits)


def test_a_folder_with_one_file_is_that_file(file):
    assert torch.equal(
        loaded(file.path.parent).model.state_dict()["model.norm.weight"],
        file.weights["model.norm.weight"],
    )


def test_the_tokenizer_is_that_of_the_file(file):
    policy = loaded(file.path)
    text = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n"
    assert policy.tokenizer.encode("1+ab") == [TOKENS.index(each) for each in ("1", "+", "ab")]
    assert policy.eos_ids == [END]
    assert load_tokenizer(str(file.path.parent), {}).encode("7") == [TOKENS.index("7")]


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 2}}, {"dtype": "bfloat16"}], ids=str)
def test_it_is_saved_and_loaded_as_a_plain_model(file, tmp_path, options):
    policy = loaded(file.path, **options)
    policy.save_merged(tmp_path / "plain")
    again = loaded(tmp_path / "plain", **{k: v for k, v in options.items() if k == "dtype"})
    merged = dict(policy.merged_weights())
    assert merged.keys() == again.model.state_dict().keys()
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, merged[name]), name
    assert not hasattr(again.model.config, "quantization_config")
    assert again.eos_ids == [END]
    assert again.model.generation_config.eos_token_id == END


def test_a_run_trains_it_and_is_resumed(file, tmp_path):
    words = {
        "policy.model": str(file.path),
        "policy.device": "cpu",
        "data.train": "arithmetic-easy",
        "data.size": "32",
        "data.eval_size": "4",
        "verify.verifier": "operator:ne",
        "verify.workers": "1",
        "sampling.max_completion_length": "4",
        "allocate.num_generations": "4",
        "allocate.allocator": "uniform",
        "estimate.mode": "none",
        "update.updates_per_step": "1",
        "train.steps": "2",
        "train.prompts_per_step": "4",
        "checkpoint.interval": "1",
        "output_dir": str(tmp_path / "run"),
    }
    first = run_training(load_config(None, words), NoView())
    assert first["optimizer_updates"] == 2
    more = run_training(
        load_config(None, {**words, "resume": "yes", "train.steps": "3", "allow_changes": "true"}),
        NoView(),
    )
    assert more["optimizer_updates"] == 3
    assert not torch.equal(
        loaded(tmp_path / "run" / "model").model.state_dict()["model.norm.weight"],
        file.weights["model.norm.weight"],
    )


def message_of(source: object) -> str:
    with pytest.raises(InputError) as error:
        loaded(source)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_files_that_cannot_be_read(file, tmp_path, monkeypatch):
    assert message_of(tmp_path / "none.gguf") == f"policy.model {tmp_path}/none.gguf: no such file"
    unknown = written(tmp_path / "unknown.gguf", "abacus").path
    assert "architecture abacus is not supported" in message_of(unknown)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF?")
    assert "cannot be loaded" in message_of(tmp_path / "broken.gguf")
    assert "holds 2 GGUF files (broken.gguf, unknown.gguf); name one" in message_of(tmp_path)
    monkeypatch.setattr("dibs.model.gguf_file.find_spec", lambda name: None)
    assert message_of(file.path).endswith("needs the package gguf; pip install 'dibs-rl[gguf]'")


def test_the_folder_of_a_package(file, tmp_path, monkeypatch):
    package = tmp_path / "site" / "tiny_gguf_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.gguf").write_bytes(file.path.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert loaded("package:tiny_gguf_package").eos_ids == [END]
    assert "no package 'not_there' is installed" in message_of("package:not_there")
    with pytest.raises(InputError, match=r"^policy\.model package:not_there: no package"):
        describe_data(load_config(None, {"policy.model": "package:not_there"}))
    assert "no package '../x' is installed" in message_of("package:../x")
