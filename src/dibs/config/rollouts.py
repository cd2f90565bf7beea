"""Where completions come from and how they are judged: the policy, prompts, sampling and verifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dibs.config.section import Section

EMBEDDED = "arithmetic, arithmetic-hard, arithmetic-habit"

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

    seed: int = Field(0, ge=0, description="seed of weights and demonstrations")
    hidden_size: int = Field(96, ge=8, description="width of the policy")
    layers: int = Field(2, ge=1, description="transformer layers")
    heads: int = Field(4, ge=1, description="attention heads; must divide hidden_size")
    updates: int = Field(900, ge=1, description="optimizer updates")
    batch_size: int = Field(128, ge=1, description="demonstrations an update")
    learning_rate: float = Field(5e-3, gt=0, description="AdamW, for embeddings and norms")
    matrix_learning_rate: float = Field(0.02, gt=0, description="Muon, for weight matrices")

    @model_validator(mode="after")
    def _heads_divide(self) -> WarmStartConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 * heads")
        return self


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685), trained in place of the weights."""

    rank: int = Field(0, ge=0, description="of the adapters; 0: train the weights themselves")
    alpha: int | None = Field(None, gt=0, description="scale; default: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapters' input, in updates")
    target_modules: tuple[str, ...] = Field(
        ("all-linear",), description="names of layers; all-linear: all but the output layer"
    )


class PolicyConfig(Section):
    """The model that is trained."""

    model: str = Field(
        "arithmetic",
        description=f"Hugging Face id or folder, or an embedded task: {EMBEDDED}",
    )
    dtype: Literal["float32", "mixed", "bfloat16"] = Field(
        "float32",
        description="mixed: float32 weights and optimizer, bfloat16 arithmetic; bfloat16: all of it, "
        "which loses small updates",
    )
    device: str = Field("auto", description="auto (cuda if there is one), cpu, cuda or cuda:N")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of torch; default: 1 for models below 20 million parameters, which "
        "more threads slow down, else torch's own choice",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice in updates rather than keep them"
    )
    compile: bool = Field(False, description="torch.compile the model for updates")
    lora: LoraConfig = Field(default_factory=LoraConfig)
    trust_remote_code: bool = Field(False, description="run model code from the hub")
    warm_start: WarmStartConfig = Field(default_factory=WarmStartConfig)


class DataConfig(Section):
    """Prompts to train and evaluate on."""

    train: str = Field(
        "arithmetic",
        description="JSON Lines, JSON, CSV or Parquet file, hub id, known set (math, gsm8k, "
        f"numina-math, math-500, minerva-math, olympiad-bench, aime24, amc23), or embedded: {EMBEDDED}, "
        "arithmetic-polar (mostly solved, else hard), arithmetic-lengths (short and long)",
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field("train", description="split of a hub data set")
    eval: str | None = Field(
        None, description="like train; by default prompts are held out of the training set"
    )
    eval_split: str = Field("test", description="split of a hub data set for evaluation")
    eval_size: int = Field(
        256, ge=1, description="evaluation prompts at most; held out of train: a tenth at most"
    )
    size: int = Field(4096, ge=1, description="training prompts of an embedded task")
    prompt_column: str | None = Field(
        None,
        description="column of the question, text or messages; default: that of a known set, else "
        "prompt, problem or question",
    )
    answer_column: str | None = Field(
        None,
        description="column of the gold answer; default: that of a known set, else answer, "
        "reward_model.ground_truth, final_answer or solution. Of a solution, what is boxed or follows "
        "####",
    )
    streaming: bool = Field(
        False,
        description="read a hub set or Parquet file row by row; with max_rows, for large ones",
    )
    max_rows: int | None = Field(None, ge=1, description="rows read of each source; null: all")
    template: str = Field(
        "plain",
        description="plain, boxed, boxed-system, think, or text around the question; {prompt} stands "
        "for it",
    )
    system_prompt: str | None = Field(None, description="system message; default: the template's")
    chat_template: bool = Field(True, description="apply the tokenizer's, where it has one")
    max_prompt_length: int = Field(1024, ge=1, description="tokens; longer prompts are dropped")

    @model_validator(mode="after")
    def _template_holds_prompt(self) -> DataConfig:
        if "{prompt}" not in self.template and self.template not in TEMPLATES:
            raise ValueError(
                f"template must contain {{prompt}}, or be one of {', '.join(TEMPLATES)}"
            )
        return self


class VerifyConfig(Section):
    """What makes a completion right."""

    verifier: str = Field(
        "auto",
        description="math (equal in value), exact (equal text), numeric, choice (a letter), arithmetic, "
        "or your own module:function of (answer, completion); auto: arithmetic for embedded tasks, else "
        "math",
    )
    answer_from: Literal["boxed", "anywhere"] = Field(
        "boxed",
        description="boxed: the last \\boxed{...}; anywhere: without one, what follows the last 'answer "
        "is' or '####', or the last number",
    )
    failures: Literal["exclude", "reject"] = Field(
        "exclude",
        description="completions the verifier failed on or ran out of time: leave them out of the step, "
        "or give them reward 0; both are counted",
    )
    timeout: float = Field(
        5.0, gt=0, description="seconds for one completion; its worker is killed"
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="processes of math and of your own function; default: cores, at most 8",
    )
    memory_limit: int = Field(4096, ge=256, description="megabytes of address space a worker")
    tolerance: float = Field(1e-6, ge=0, description="numeric: relative; absolute below 1")
    accept_threshold: float = Field(1.0, description="a completion is accepted at this reward")


class SamplingConfig(Section):
    """How completions are drawn."""

    temperature: float = Field(1.0, gt=0, description="of sampling, and of all log-probabilities")
    max_completion_length: int = Field(512, ge=1, description="tokens, end of sequence included")
    batch_tokens: int = Field(
        32768,
        ge=1,
        description="transformers: tokens decoded together, rows x (prompt + completion length)",
    )
    engine: Literal["transformers", "vllm", "vllm_server"] = Field(
        "transformers",
        description="transformers: the model that is trained; vllm: vLLM in this process; vllm_server: "
        "vLLM servers that you have started",
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="vllm: tokens of a prompt and its completion; default: data.max_prompt_length + "
        "max_completion_length, or the model's context if that is shorter",
    )
    gpu_memory_utilization: float = Field(
        0.4, gt=0, lt=1, description="vllm: share of the GPU's memory, beside what training needs"
    )
    servers: tuple[str, ...] = Field((), description="vllm_server: addresses, http://host:port")
    server_model: str | None = Field(
        None, description="vllm_server: name it serves the model under; default: its only one"
    )
    server_concurrency: int = Field(
        64, ge=1, description="vllm_server: requests in flight at a server, 8 completions each"
    )
    server_timeout: float = Field(
        600.0, gt=0, description="vllm_server: seconds without an answer after which it is given up"
    )
    sync_dir: Path | None = Field(
        None,
        description="vllm_server: folder for new weights, which the servers see under the same path; "
        "default: a temporary one",
    )
    parity_tolerance: float | Literal["auto"] | None = Field(
        "auto",
        description="vllm, vllm_server: the run stops where log-probabilities of engine and learner "
        "differ by more; auto: 1e-3, in bfloat16 0.5; null: not checked",
    )

    @field_validator("servers", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

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
