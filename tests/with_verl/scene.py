"""A tiny policy, prompts, and the command that trains on them with the real verl, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"
LETTERS = [*"0123456789+=", "Ċ"]
SPECIALS = ["<|pad|>", "<|start|>", "<|end|>"]
PROMPTS, GENERATIONS = 8, 4
"""A step has 8 prompts with 4 completions on average, in two optimizer updates."""
GRPO = ("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=4")


def read_block(config):
    """The plug-in's options and the budget's, as verl's configuration gives them."""
    from dibs.integrations.verl.options import read_block

    return read_block(config)


def make_policy(folder: Path) -> None:
    """A Qwen2 of 16 tokens and random weights; byte-level, since AutoTokenizer takes nothing else."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokens = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(SPECIALS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<|pad|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|start|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(LETTERS) + len(SPECIALS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=len(LETTERS),
        eos_token_id=len(LETTERS) + 2,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def make_data(folder: Path) -> None:
    """16 prompts, seen every other step; what is accepted differs, from nothing to every digit."""
    import pandas

    rows = [
        {
            "data_source": "digits",
            "prompt": [{"role": "user", "content": f"{a}+{b}="}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str((3 * a + b) % 11)},
            "extra_info": {"index": 10 * a + b},
        }
        for a in range(4)
        for b in range(4)
    ]
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
    pandas.DataFrame(rows[:PROMPTS]).to_parquet(folder / "val.parquet")


def make_scene(folder: Path) -> Path:
    """Policy and prompts in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_policy(folder / "policy")
    make_data(folder)
    return folder


def arguments(scene: Path, out: Path, *, ranks: int = 1, steps: int = 5) -> dict[str, object]:
    """verl's own arguments of a run."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    model, ray = "actor_rollout_ref.model", "ray_kwargs.ray_init"
    return {
        "data.train_files": scene / "train.parquet",
        "data.val_files": scene / "val.parquet",
        "data.train_batch_size": PROMPTS,
        "data.max_prompt_length": 16,
        "data.max_response_length": 6,
        "data.dataloader_num_workers": 0,
        "data.seed": 1,
        f"{model}.path": scene / "policy",
        f"{model}.external_lib": "cpu_engine",
        f"{model}.use_remove_padding": False,
        f"{model}.enable_gradient_checkpointing": False,
        f"+{model}.override_config.attn_implementation": "sdpa",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.ppo_mini_batch_size": PROMPTS // 2,
        f"{actor}.ppo_micro_batch_size_per_gpu": 8,
        f"{actor}.use_kl_loss": False,
        f"{actor}.optim.lr": 3e-3,
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"{actor}.fsdp_config.dtype": "float32",
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{rollout}.name": "small",
        f"{rollout}.n": GENERATIONS,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": 8,
        f"{rollout}.agent.num_workers": 1,
        f"{rollout}.dtype": "float32",
        "algorithm.adv_estimator": "grpo",
        "algorithm.use_kl_in_reward": False,
        "reward.num_workers": 1,
        "reward.custom_reward_function.path": HERE / "judge.py",
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": ranks,
        "trainer.nnodes": 1,
        "trainer.logger": "[file]",
        "trainer.val_before_train": False,
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": steps,
        "trainer.save_freq": -1,
        "trainer.test_freq": -1,
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": out / "checkpoints",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "trainer.v1.sampler.custom_sampler.path": HERE / "ordered_rows.py",
        "trainer.v1.sampler.custom_sampler.name": "OrderedRows",
        f"{ray}.num_cpus": 12,
        f"+{ray}.num_gpus": 4,
        f"+{ray}.include_dashboard": False,
        f"+{ray}.object_store_memory": 200_000_000,
    }


def critic_arguments(scene: Path) -> dict[str, object]:
    """Further arguments of a run with PPO's critic, a value head on the same tiny model."""
    model = "critic.model"
    return {
        "algorithm.adv_estimator": "gae",
        f"{model}.path": scene / "policy",
        f"{model}.external_lib": "cpu_engine",
        f"{model}.use_remove_padding": False,
        f"{model}.enable_gradient_checkpointing": False,
        f"+{model}.override_config.attn_implementation": "sdpa",
        "critic.strategy": "fsdp2",
        "critic.ppo_micro_batch_size_per_gpu": 8,
        "critic.optim.lr": 1e-3,
        "critic.fsdp.model_dtype": "fp32",
        "critic.fsdp.dtype": "float32",
        "critic.fsdp.use_torch_compile": False,
    }


def environment(out: Path) -> dict[str, str]:
    paths = [str(HERE), str(SOURCES), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
        "VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl"),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "WANDB_MODE": "disabled",
        "HYDRA_FULL_ERROR": "1",
    }


def start(
    module: str, out: Path, given: dict[str, object], *words: str, log: str = "log.txt"
) -> subprocess.Popen:
    """``python -m module key=value ...`` in a process group of its own; its words go to a file."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *(f"{key}={value}" for key, value in given.items())]
    with (out / log).open("w") as told:
        return subprocess.Popen(
            [*command, *words, f"hydra.run.dir={out / 'hydra'}"],
            cwd=out,
            env=environment(out),
            stdout=told,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
