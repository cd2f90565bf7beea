"""Where completions come from and how they are judged: the policy, prompts, sampling and verifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dibs.config.growing import GrowConfig
from dibs.config.section import Section

EMBEDDED = "arithmetic, arithmetic-easy, arithmetic-hard, arithmetic-habit"

BENCHMARKS = ("math-500", "minerva-math", "olympiad-bench", "aime24", "amc23")
"""Those of ``dibs eval``: the five of arXiv 2505.02391."""
STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."
TEMPLATES: dict[str, tuple[str | None, str]] = {
    "plain": (None, "{prompt}"),
    "boxed": (None, "{prompt}\n" + STEP_BY_STEP),
    "boxed-system": (STEP_BY_STEP, "{prompt}"),
    "think": (
        "Think first, between <think> and </think>. Then write the solution, with the final answer "
        r"within \boxed{}.",
        "{prompt}",
    ),
}
"""Named templates: system message and text around the question."""


class WarmStartConfig(Section):
    """The imitation of noisy demonstrations that makes the embedded task's policy."""

    seed: int = Field(0, ge=0, description="Seeds the weights and the demonstrations.")
    hidden_size: int = Field(96, ge=8, description="Width of the policy; a multiple of 2 * heads.")
    layers: int = Field(2, ge=1, description="Transformer layers of the policy.")
    heads: int = Field(4, ge=1, description="Attention heads in each layer.")
    updates: int = Field(
        900,
        ge=1,
        description="Optimizer updates of the imitation. Fewer leave a weaker policy to start "
        "from.",
    )
    batch_size: int = Field(128, ge=1, description="Demonstrations in each update.")
    learning_rate: float = Field(
        5e-3, gt=0, description="Learning rate of AdamW, which updates embeddings and norms."
    )
    matrix_learning_rate: float = Field(
        0.02, gt=0, description="Learning rate of Muon, which updates weight matrices."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> WarmStartConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 * heads")
        return self


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685), trained in place of the weights."""

    rank: int = Field(
        0,
        ge=0,
        description="Rank of the adapters. 0 makes no adapters and trains the weights themselves.",
    )
    alpha: int | None = Field(
        None,
        gt=0,
        description="Scale of the adapters, divided by the rank. null takes twice the rank.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the adapters' inputs that updates set to 0. Sampling sets none to 0, so "
        "importance_sampling also sees the dropout. The model's own dropout is always off.",
    )
    target_modules: tuple[str, ...] = Field(
        ("all-linear",),
        description="Names of the layers that get adapters. all-linear means all linear layers "
        "but the output layer.",
    )


class PolicyConfig(Section):
    """The model that is trained."""

    model: str = Field(
        "arithmetic",
        description="Model to train: a Hugging Face id, the folder of a model, a GGUF file or a folder "
        "with one (needs dibs-rl[gguf]), package:NAME for an installed Python package that holds a "
        f"model, or an embedded task: {EMBEDDED}.",
    )
    dtype: Literal["float32", "mixed", "bfloat16"] = Field(
        "float32",
        description="Number format. mixed keeps weights and optimizer in float32 and computes in "
        "bfloat16. bfloat16 uses it for everything, which saves memory and loses "
        "small updates.",
    )
    device: str = Field(
        "auto",
        description="Device to train on: cpu, cuda or cuda:N. auto takes cuda if there is a GPU, "
        "and cpu otherwise.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of torch. null takes 1 for models below 20 million parameters, "
        "which more threads slow down, and torch's own choice for larger ones.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Computes activations a second time in updates in place of keeping them. "
        "Saves memory and takes time.",
    )
    compile: bool = Field(
        False,
        description="Compiles the model with torch.compile for updates. The first updates take "
        "longer, later ones less.",
    )
    share_prompts: Literal["auto", "never"] = Field(
        "auto",
        description="Whether log-probabilities and updates compute a prompt once for all of its "
        "completions in a micro-batch, and sampling holds its keys and values once (on a CPU in "
        "float32). auto does so where that is expected to take less time, and compares it with the "
        "usual way at the start, which it stays with where a model differs. Gradient norms are always "
        "computed the usual way.",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig)
    trust_remote_code: bool = Field(
        False,
        description="Runs code that a model on the hub brings with it. Set it only for sources "
        "you trust.",
    )
    warm_start: WarmStartConfig = Field(default_factory=WarmStartConfig)


class DataConfig(Section):
    """Prompts to train and evaluate on."""

    train: str = Field(
        "arithmetic",
        description="Prompts to train on: a JSON Lines, JSON, CSV (each also .gz) or Parquet file, "
        "a hub id, a known set (math, gsm8k, numina-math, math-500, minerva-math, olympiad-bench, "
        "aime24, amc23), reasoning-gym:NAME[,NAME...] (generated by that package), "
        "verifiers:ENVIRONMENT (a single-turn environment of that package), or an embedded task: "
        f"{EMBEDDED}, arithmetic-polar (mostly solved, the rest hard), arithmetic-lengths (short and "
        "long).",
    )
    subset: str | None = Field(
        None, description="Configuration of a hub data set, for those that have several."
    )
    split: str = Field("train", description="Split of a hub data set to train on.")
    eval: str | None = Field(
        None,
        description="Prompts to evaluate on, given as for train. null holds prompts out of the "
        "training set.",
    )
    eval_split: str = Field(
        "test", description="Split of a hub data set to evaluate on, where eval names one."
    )
    eval_size: int = Field(
        256,
        ge=1,
        description="Most prompts to evaluate on. Where they are held out of the training set, "
        "they are at most a tenth of it.",
    )
    size: int = Field(
        4096,
        ge=1,
        description="Training prompts to generate, for an embedded task and for reasoning-gym, which "
        "shares them equally among its names.",
    )
    grow: GrowConfig = Field(default_factory=GrowConfig)
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of a data set of reasoning-gym, or arguments of an environment, by its "
        "name: for reasoning-gym:chain_sum, {chain_sum: {max_terms: 3}}.",
    )
    prompt_column: str | None = Field(
        None,
        description="Column that holds the question, as text or as messages. null takes that of a "
        "known set, or else the first of prompt, problem and question.",
    )
    answers: Literal["one", "any"] = Field(
        "one",
        description="What a list in the answer column means. one takes its entries as the parts of one "
        "answer; any takes each entry as an accepted form of the answer. A CSV file writes it as JSON.",
    )
    columns: tuple[str, ...] = Field(
        (),
        description="Further columns that your own verifier gets, as keyword arguments of these names.",
    )
    answer_column: str | None = Field(
        None,
        description="Column that holds the gold answer. null takes that of a known set, or else "
        "the first of answer, reward_model.ground_truth, final_answer and solution. A "
        "solution gives what is boxed in it, or follows ####.",
    )
    streaming: bool = Field(
        False,
        description="Reads a hub set or Parquet file row by row. Set it together with max_rows "
        "for a large one.",
    )
    max_rows: int | None = Field(
        None, ge=1, description="Most rows to read of each source. null reads all."
    )
    max_bad_rows: int = Field(
        0,
        ge=0,
        description="Most rows of each source that may be unreadable: broken lines, missing columns, "
        "cells of another kind. They are left out and counted, and the first is shown. One more is an "
        "error. Raise it for large files with a few faults.",
    )
    template: str = Field(
        "plain",
        description="Text around the question: plain, boxed, boxed-system, think, or your own, in "
        "which {prompt} stands for the question.",
    )
    system_prompt: str | None = Field(
        None, description="System message. null takes that of the template, if it has one."
    )
    chat_template: bool = Field(
        True,
        description="Applies the tokenizer's chat template, if it has one. Turn it off for a base "
        "model.",
    )
    max_prompt_length: int = Field(
        1024, ge=1, description="Most tokens of a prompt; longer prompts are dropped."
    )

    @model_validator(mode="after")
    def _template_holds_prompt(self) -> DataConfig:
        if "{prompt}" not in self.template and self.template not in TEMPLATES:
            raise ValueError(
                f"template must contain {{prompt}}, or be one of {', '.join(TEMPLATES)}"
            )
        return self


class SamplingConfig(Section):
    """How completions are drawn."""

    temperature: float = Field(
        1.0, gt=0, description="Sampling temperature. All log-probabilities are computed at it too."
    )
    anneal_from: float | None = Field(
        None,
        gt=0,
        description="For engines transformers and vllm: temperature of a completion's first token, from "
        "which it falls token by token, faster and faster, so that early tokens explore. It needs "
        "algorithm.importance_sampling, and multiplies temperature. null keeps one temperature.",
    )
    anneal_floor: float = Field(
        0.1, gt=0, description="Lowest temperature that anneal_from, which is above it, falls to."
    )
    anneal_tokens: float = Field(
        1000.0,
        gt=0,
        description="Tokens over which the temperature falls by 1.72. Set it to about the length of "
        "completions.",
    )
    max_completion_length: int = Field(
        512,
        ge=1,
        description="Most tokens of a completion, end of sequence included. Raise it if many "
        "completions are cut off.",
    )
    stop: tuple[str | int, ...] | None = Field(
        None,
        description="What ends a completion besides the end-of-sequence token: texts and numbers of "
        'tokens, such as ["</answer>", 151645]. The completion keeps what stands before. null takes '
        "the token with which the chat template ends a turn; [] takes nothing.",
    )
    batch_tokens: int = Field(
        32768,
        ge=1,
        description="For engine transformers: tokens decoded together (rows x longest prompt and "
        "completion). Lower it if memory runs out.",
    )
    engine: Literal["transformers", "vllm", "vllm_server"] = Field(
        "transformers",
        description="What samples the completions. transformers uses the model that is trained; "
        "vllm runs vLLM in this process; vllm_server uses vLLM servers that you have "
        "started.",
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="For engine vllm: most tokens of a prompt and its completion together. null "
        "takes data.max_prompt_length + max_completion_length, or the model's context "
        "if that is shorter.",
    )
    gpu_memory_utilization: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="For engine vllm: share of the GPU's memory that vLLM takes. Training needs "
        "the rest.",
    )
    servers: tuple[str, ...] = Field(
        (), description="For engine vllm_server: addresses of the servers, each http://host:port."
    )
    server_model: str | None = Field(
        None,
        description="For engine vllm_server: name under which the servers offer the model. null "
        "takes their only one.",
    )
    server_concurrency: int = Field(
        64,
        ge=1,
        description="For engine vllm_server: requests in flight at each server, of 8 completions "
        "each.",
    )
    server_timeout: float = Field(
        600.0,
        gt=0,
        description="For engine vllm_server: seconds without an answer after which a server is "
        "given up.",
    )
    sync_dir: Path | None = Field(
        None,
        description="For engine vllm_server: folder that hands new weights to the servers, which "
        "must see it under the same path. null takes a temporary folder.",
    )
    parity_tolerance: float | Literal["auto"] | None = Field(
        "auto",
        description="Largest difference between the engine's and the learner's log-probabilities; "
        "the run stops at a larger one. auto takes 1e-3, or 0.5 in bfloat16. null checks nothing.",
    )

    @field_validator("servers", "stop", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @field_validator("stop")
    @classmethod
    def _can_end(cls, stop: tuple[str | int, ...] | None) -> tuple[str | int, ...] | None:
        for each in stop or ():
            if each == "" or (isinstance(each, int) and each < 0):
                raise ValueError(f"{each!r} ends nothing; give a text or the number of a token")
        return stop

    @field_validator("servers")
    @classmethod
    def _are_addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        addresses = tuple(server.rstrip("/") for server in servers)
        for address in addresses:
            if not address.startswith(("http://", "https://")):
                raise ValueError(f"{address} is no address; write http://host:port")
        if len(set(addresses)) < len(addresses):
            raise ValueError("an address occurs twice")
        return addresses

    @model_validator(mode="after")
    def _engine_has_servers(self) -> SamplingConfig:
        if self.engine == "vllm_server" and not self.servers:
            raise ValueError("engine vllm_server needs servers: [http://host:port, ...]")
        if self.engine != "vllm_server" and self.servers:
            raise ValueError(f"servers are of no use to engine {self.engine}; use vllm_server")
        return self
