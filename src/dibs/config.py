"""One nested, validated configuration. Imports no torch.

Unknown keys are errors. Every field carries its description, and ``dibs train --help`` prints them
all. ``config_file.py`` reads a configuration from a file and the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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

GradNormMethod = Literal["exact", "exact_slow", "last_layer"]
GradNormParameters = Literal["all", "embed_tokens", "lm_head", "lora"]


def needs_statistics(allocator: str, objective: str, estimator: str) -> bool:
    """Whether accept rates decide the counts or, as in Lemma 1, the weights."""
    return allocator != "uniform" or (objective, estimator) == ("log_likelihood", "prompt_mean")


class Section(BaseModel):
    """A frozen group of keys that refuses others."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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


class AlgorithmConfig(Section):
    """The loss, the target gradient and its estimator."""

    name: Literal["raft", "raft++", "grpo"] = Field("raft++", description="loss and defaults")
    objective: Literal["log_likelihood", "expected_reward", "grpo"] = Field(
        "log_likelihood", description="target gradient; grpo where name is grpo"
    )
    baseline: Literal["none", "mean", "leave_one_out"] = Field(
        "none", description="subtracted from the rewards of a group; mean where objective is grpo"
    )
    estimator: Literal["prompt_mean", "self_normalised", "flat"] = Field(
        "self_normalised",
        description="prompt_mean: 1/(n_i p_i), Lemma 1; self_normalised: 1/|D_i|; "
        "flat: every rollout alike, as GVM's released code",
    )
    length_normalization: Literal["none", "constant", "sequence"] = Field(
        "none",
        description="divide a completion's gradient by nothing, by max_completion_length, or by "
        "its own length (which changes the objective)",
    )
    epsilon: float = Field(0.2, ge=0, description="clip the ratio below 1 - epsilon")
    epsilon_high: float | None = Field(0.28, ge=0, description="and above 1 + this; null: epsilon")
    beta: float = Field(0.0, ge=0, description="weight of the KL to the frozen starting policy")
    importance_sampling: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = Field(
        "none",
        description="for a sampler whose probabilities differ from the learner's (another engine, "
        "bfloat16): weigh each token, or the whole completion, by the ratio of the two, cut off at "
        "importance_sampling_cap or left out beyond it",
    )
    importance_sampling_cap: float = Field(
        2.0, gt=1, description="largest ratio; masks also leave out ratios below 1 / this"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        if filled.get("name") == "grpo":
            filled.setdefault("objective", "grpo")
        if filled.get("objective") == "grpo":
            filled.setdefault("baseline", "mean")
        return filled


class EstimateConfig(Section):
    """How prompts are measured before the budget is spent."""

    mode: Literal["pilot", "cross_fit", "online", "none"] = Field(
        "pilot",
        description="pilot: fresh completions measure each prompt, then are thrown away; cross_fit: "
        "each half of them decides the counts of a stream that the other half enters, so that all "
        "are trained on; online: the completions of earlier steps measure, and no pilots are drawn",
    )
    half_life: float = Field(
        20.0,
        gt=0,
        description="online: steps after which a completion counts half; the policy moves",
    )
    num_pilots: int = Field(
        8, ge=1, description="pilot completions a prompt (N'); cross_fit: part of num_generations"
    )
    interval: int = Field(
        1,
        ge=1,
        description="pilot: steps between pilot phases; each measures all prompts up to the next",
    )
    grad_norm: Literal[GradNormMethod, "none"] = Field(
        "exact",
        description="gradient norm of a completion: exact (one forward and backward pass a batch), "
        "exact_slow (one sample at a time, for any model), last_layer (output layer, forward only), or "
        "none (1 for every completion)",
    )
    grad_norm_parameters: GradNormParameters = Field(
        "all", description="exact norms are over these trainable parameters"
    )
    grad_norm_sketch: int | None = Field(
        None,
        ge=1,
        description="last_layer: project the vocabulary to this many entries, for large ones",
    )

    @model_validator(mode="after")
    def _options_have_a_use(self) -> EstimateConfig:
        if self.grad_norm_parameters != "all" and not self.grad_norm.startswith("exact"):
            raise ValueError("grad_norm_parameters needs grad_norm: exact or exact_slow")
        if self.grad_norm_sketch is not None and self.grad_norm != "last_layer":
            raise ValueError("grad_norm_sketch needs grad_norm: last_layer")
        if self.interval > 1 and self.mode != "pilot":
            raise ValueError(f"interval {self.interval} needs mode: pilot")
        if self.mode == "cross_fit" and self.num_pilots % 2:
            raise ValueError(
                f"mode cross_fit halves the pilots; num_pilots {self.num_pilots} is odd"
            )
        return self


class AllocateConfig(Section):
    """How the budget is spent."""

    allocator: str = Field(
        "min_variance",
        description="min_variance, gvm, uniform, or your own function as module:function",
    )
    num_generations: int = Field(8, ge=1, description="completions a prompt on average")
    budget: int | None = Field(
        None,
        ge=0,
        description="completions, or tokens, a step; default: what num_generations for every prompt "
        "comes to",
    )
    budget_unit: Literal["completions", "tokens"] = Field(
        "completions",
        description="tokens: the budget is spent on expected tokens, and prompts with short "
        "completions get more of them",
    )
    lower: int = Field(0, ge=0, description="fewest completions a prompt; gvm starves at 0")
    upper: int | None = Field(None, ge=0, description="most completions a prompt; null: no limit")
    accept_rate_penalty: float = Field(
        1e-3, ge=0, description="GVM's alpha: gives prompts without hope less, for log_likelihood"
    )
    accept_rate_power: float = Field(2.0, ge=1, description="GVM's beta; the paper asks for >= 2")


class UpdateConfig(Section):
    """Optimizer updates."""

    learning_rate: float = Field(1e-6, gt=0, description="of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after warm-up"
    )
    warmup_updates: int = Field(0, ge=0, description="linear warm-up of the learning rate")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradient; null: never")
    max_skipped: int = Field(
        3,
        ge=0,
        description="updates in a row that are skipped because their loss or gradient is NaN or "
        "infinite; one more stops the run",
    )
    updates_per_step: int = Field(4, ge=1, description="optimizer updates a step, whatever counts")
    micro_batch_tokens: int = Field(16384, ge=1, description="tokens of one forward and backward")


class TrainConfig(Section):
    """Length and width of training."""

    steps: int = Field(100, ge=1, description="training steps")
    prompts_per_step: int = Field(64, ge=1, description="prompts drawn a step (m)")


class VarianceConfig(Section):
    """Measuring how noisy the gradient is: ``dibs variance``, and within training."""

    prompts: int | None = Field(
        None, ge=2, description="dibs variance: prompts measured; default train.prompts_per_step"
    )
    num_generations: int = Field(
        32, ge=4, description="dibs variance: completions a prompt, those that play pilots included"
    )
    interval: int = Field(
        10,
        ge=0,
        description="training: steps between measurements of what the counts achieved, on the step's "
        "own completions; 0: never",
    )


class EvaluateConfig(Section):
    """Scoring on held-out prompts."""

    interval: int = Field(10, ge=0, description="steps between evaluations; 0: only first and last")
    num_generations: int = Field(4, ge=1, description="completions a prompt (k of avg@k, pass@k)")
    temperature: float = Field(1.0, gt=0, description="of evaluation sampling")


class CheckpointConfig(Section):
    """Which intermediate policies are kept."""

    interval: int = Field(50, ge=0, description="steps between checkpoints; 0: none")
    keep: int = Field(2, ge=1, description="checkpoints kept, newest first")


class TrackingConfig(Section):
    """Where numbers and samples go besides the run folder."""

    trackers: tuple[str, ...] = Field(
        (), description="accelerate's by name: tensorboard, wandb, mlflow, ..."
    )
    project: str = Field("dibs", description="project name trackers file the run under")
    samples_interval: int = Field(10, ge=0, description="steps between kept completions; 0: never")
    samples: int = Field(3, ge=1, description="completions kept of such a step, from hard to easy")

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Config(Section):
    """A training run."""

    seed: int = Field(0, ge=0, description="of everything random: data order, sampling, evaluation")
    output_dir: Path = Field(Path("runs/default"), description="run folder; must not hold a run")
    overwrite: bool = Field(False, description="replace the run that output_dir holds")
    resume: Literal["no", "yes", "auto"] = Field(
        "no",
        description="yes (or --resume alone): go on with the run in output_dir from its newest whole "
        "checkpoint; auto: if there is one, else start",
    )
    allow_changes: bool = Field(
        False, description="resume although the configuration is another than the run's"
    )
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    verify: VerifyConfig = Field(default_factory=VerifyConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    estimate: EstimateConfig = Field(default_factory=EstimateConfig)
    allocate: AllocateConfig = Field(default_factory=AllocateConfig)
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    variance: VarianceConfig = Field(default_factory=VarianceConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @property
    def budget(self) -> int | None:
        """Training completions a step; None where the budget is one of tokens."""
        if self.allocate.budget_unit == "tokens":
            return None
        if self.allocate.budget is not None:
            return self.allocate.budget
        return self.allocate.num_generations * self.train.prompts_per_step

    @property
    def lower(self) -> int:
        """Fewest completions a prompt: cross_fit trains on all pilots."""
        pilots = self.estimate.num_pilots if self.estimate.mode == "cross_fit" else 0
        return max(self.allocate.lower, pilots)

    @property
    def uses_statistics(self) -> bool:
        """Whether accept rates decide the counts or, as in Lemma 1, the weights."""
        algorithm = self.algorithm
        return needs_statistics(self.allocate.allocator, algorithm.objective, algorithm.estimator)

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        m = self.train.prompts_per_step
        reason = "estimate.num_pilots" if self.lower > self.allocate.lower else "allocate.lower"
        if self.budget is not None and self.budget < m * self.lower:
            raise ValueError(
                f"{reason} {self.lower} x {m} prompts = {m * self.lower} exceeds the budget of "
                f"{self.budget}; raise the budget or lower {reason}"
            )
        if self.allocate.budget is None and self.allocate.num_generations < self.lower:
            raise ValueError(
                f"{reason} {self.lower} exceeds allocate.num_generations "
                f"{self.allocate.num_generations}; raise it or lower {reason}"
            )
        if self.allocate.upper is not None and self.allocate.upper < self.lower:
            raise ValueError(f"allocate.upper {self.allocate.upper} is below {reason} {self.lower}")
        if (
            self.budget is not None
            and self.allocate.upper is not None
            and self.budget > m * self.allocate.upper
        ):
            raise ValueError(
                f"the budget of {self.budget} exceeds allocate.upper {self.allocate.upper} x {m} "
                f"prompts = {m * self.allocate.upper}; lower the budget or raise allocate.upper"
            )
        fewest = 2 if self.algorithm.baseline == "none" else 4
        if self.estimate.mode == "cross_fit" and self.estimate.num_pilots < fewest:
            raise ValueError(
                f"estimate.num_pilots {self.estimate.num_pilots} leaves halves of one, which have no "
                f"advantage under algorithm.baseline {self.algorithm.baseline}; set it to 4 or more"
            )
        if self.estimate.mode == "none" and self.allocate.budget_unit == "tokens":
            raise ValueError(
                "allocate.budget_unit tokens needs completion lengths; set estimate.mode to pilot, "
                "cross_fit or online"
            )
        if self.estimate.mode == "cross_fit" and self.budget == m * self.estimate.num_pilots:
            raise ValueError(
                f"estimate.mode cross_fit trains on its pilots, and {self.estimate.num_pilots} a prompt "
                f"spend the whole budget of {self.budget}; lower estimate.num_pilots to half of "
                "allocate.num_generations, say"
            )
        if self.estimate.mode == "none" and self.uses_statistics:
            raise ValueError(
                f"allocate.allocator {self.allocate.allocator} with algorithm.estimator "
                f"{self.algorithm.estimator} needs accept rates; set estimate.mode to pilot or "
                "online, or choose allocator uniform and another estimator"
            )
        if self.estimate.mode == "online" and self.allocate.allocator == "gvm":
            raise ValueError(
                "allocate.allocator gvm needs pilots of every prompt; set estimate.mode to pilot, or "
                "choose allocator min_variance"
            )
        return self
