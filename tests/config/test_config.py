"""Configuration: files, overrides, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dibs.config import Config
from dibs.config.load import config_keys, load_config, split_config
from dibs.types import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CROSS_FIT = ["--estimate.mode=cross_fit", "--estimate.num_pilots=4"]
ONLINE = ["--estimate.mode=online"]


def load(words: list[str]) -> Config:
    return load_config(*split_config(words))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    assert load_config(path).train.steps > 0


def test_there_are_shipped_configs():
    assert CONFIGS


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nupdate: {learning_rate: 1e-5, schedule: linear}\n")
    config = load(
        ["--update.learning_rate", "2e-4", "--allocate.upper=12", "--data.eval", "null", str(path)]
    )
    assert config.seed == 3
    assert config.update.learning_rate == 2e-4
    assert config.update.schedule == "linear"
    assert config.allocate.upper == 12
    assert config.budget == 512
    assert load(["--tracking.trackers=wandb"]).tracking.trackers == ("wandb",)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.template", "{prompt}"),
        ("data.template", "Question: {prompt} # now\n"),
        ("policy.model", "123"),
        ("data.prompt_column", "yes"),
        ("data.system_prompt", "[be brief]"),
    ],
)
def test_text_in_overrides_stays_as_it_is(key, text):
    section, name = key.split(".")
    assert getattr(getattr(load([f"--{key}", text]), section), name) == text


def test_overrides_become_numbers_switches_lists_and_sections():
    config = load(
        [
            "--train.steps=010",
            "--overwrite=true",
            "--data.system_prompt=null",
            "--tracking.trackers=[wandb, tensorboard]",
            "--update={learning_rate: 1e-3}",
        ]
    )
    assert config.train.steps == 10
    assert config.overwrite is True
    assert config.data.system_prompt is None
    assert config.tracking.trackers == ("wandb", "tensorboard")
    assert config.update.learning_rate == 1e-3


def test_an_empty_file_means_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == Config() == load_config(None)


def test_algorithms_bring_their_objective_and_baseline():
    grpo = load(["--algorithm.name", "grpo"]).algorithm
    assert (grpo.objective, grpo.baseline) == ("grpo", "mean")
    other = load(["--algorithm.name", "grpo", "--algorithm.objective", "expected_reward"]).algorithm
    assert (other.objective, other.baseline) == ("expected_reward", "none")
    assert Config().algorithm.objective == "log_likelihood"
    given = load(["--algorithm.objective", "grpo"]).algorithm
    assert (given.objective, given.baseline) == ("grpo", "mean")
    null = load(
        ["--algorithm.name=grpo", "--algorithm.objective=null", "--algorithm.baseline=null"]
    )
    assert null.algorithm == grpo
    assert null.model_dump()["algorithm"]["objective"] == "grpo"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--allocate.alocator", "gvm"],
            "unknown key allocate.alocator; nearest is allocate.allocator",
        ),
        (["--lower", "1"], "unknown key lower; nearest is allocate.lower"),
        (["--update.lr", "1"], "unknown key update.lr; update has learning_rate, schedule,"),
        (
            ["--train.steps", "0"],
            r"command line: train.steps: must be at least 1 \(got '0'\)",
        ),
        (["--train.steps", "many"], "train.steps: must be a whole number .got 'many'"),
        (["--train.steps"], "--train.steps needs a value"),
        (["--overwrite", "--seed", "3"], "--overwrite needs a value"),
        (["--seed", "-1"], "seed: must be at least 0"),
        (["a.yaml", "train.steps", "3"], "expected --key value, got 'train.steps' after .*a.yaml"),
        (["--train.steps", "true"], "train.steps: must be a whole number"),
        (["--seed", "9" * 23], "command line: seed: must be at most 9223372036854775807"),
        (["--update.learning_rate", "1e400"], "update.learning_rate: must be a finite number"),
        (["--resume", "often"], "resume: must be 'no', 'yes' or 'auto' .got 'often'"),
        (["--overwrite", "perhaps"], "overwrite: must be true or false"),
        (
            ["--estimate.mode", "none", "--allocate.allocator", "gvm"],
            "allocator gvm needs pilots of every prompt; set estimate.mode to pilot, or choose",
        ),
        (
            ["--estimate.mode", "none"],
            "allocator min_variance needs accept rates; set estimate.mode to pilot or online, or",
        ),
        (["--seed", "4", "--seed.x", "3"], "--seed.x: seed is a value, not a section"),
        (["--algorithm.name", "ppo"], "algorithm.name: .*'raft', 'raft\\+\\+' or 'grpo'"),
        (
            ["--allocate.lower", "9"],
            r"allocate.lower 9 x 64 prompts = 576 exceeds the budget of 512; raise",
        ),
        (
            ["--allocate.budget", "100", "--allocate.upper", "1"],
            "the budget of 100 exceeds allocate.upper 1 x 64 prompts = 64",
        ),
        (
            ["--estimate.mode", "online", "--allocate.allocator", "gvm"],
            "gvm needs pilots of every prompt",
        ),
        (
            ["--estimate.grad_norm", "none", "--estimate.grad_norm_parameters", "lora"],
            "grad_norm_parameters needs grad_norm: exact or exact_slow",
        ),
        (
            ["--estimate.grad_norm", "update"],
            "grad_norm update needs mode: online, since mode pilot needs norms before the update",
        ),
        (
            ["--estimate.mode=online", "--estimate.grad_norm=update", "--algorithm.beta=0.1"],
            "algorithm.beta 0.1 adds a penalty to the loss; set estimate.grad_norm to exact",
        ),
        (
            [
                "--estimate.mode=online",
                "--estimate.grad_norm=update",
                "--algorithm.importance_sampling=token_truncate",
            ],
            "importance_sampling token_truncate weighs single tokens in the loss",
        ),
        (
            ["--estimate.mode", "cross_fit"],
            "cross_fit trains on its pilots, and 8 a prompt spend the whole budget of 512; lower",
        ),
        (
            ["--estimate.mode=cross_fit", "--estimate.num_pilots=2", "--algorithm.name=grpo"],
            "num_pilots 2 leaves halves of one, and every group gets two under algorithm.baseline mean",
        ),
        (
            [
                "--estimate.mode=none",
                "--allocate.allocator=uniform",
                "--allocate.budget_unit=tokens",
            ],
            "budget_unit tokens needs completion lengths",
        ),
        (
            ["--estimate.mode", "cross_fit", "--estimate.num_pilots", "3"],
            "num_pilots 3 is odd",
        ),
        (
            ["--estimate.mode", "cross_fit", "--estimate.num_pilots", "10"],
            "estimate.num_pilots 10 x 64 prompts = 640 exceeds the budget of 512",
        ),
        (
            ["--estimate.mode", "online", "--estimate.interval", "2"],
            "interval 2 needs mode: pilot",
        ),
        (
            ["--sampling.anneal_from=.5", "--sampling.anneal_floor=.5"],
            "sampling.anneal_from 0.5 is not above sampling.anneal_floor 0.5",
        ),
        (
            ["--sampling.anneal_from=1.2"],
            "sampling.anneal_from 1.2 draws from other probabilities than the policy's",
        ),
        (
            [
                "--sampling.anneal_from=1.2",
                "--sampling.engine=vllm_server",
                "--sampling.servers=[http://127.0.0.1:1]",
            ],
            "sampling.anneal_from 1.2 needs sampling.engine transformers or vllm",
        ),
        (
            ["--allocate.prompt_cost=1", "--estimate.mode=online", "--select.pool=all"],
            "allocate.prompt_cost 1 needs allocate.budget_unit tokens",
        ),
        (
            [
                "--allocate.prompt_cost=1",
                "--estimate.mode=online",
                "--allocate.budget_unit=tokens",
            ],
            "prompt_cost 1 has no use in a fixed batch, whose prompts are all read; set select.pool",
        ),
        (
            [
                "--allocate.prompt_cost=1",
                "--estimate.mode=pilot",
                "--allocate.budget_unit=tokens",
                "--select.pool=100",
            ],
            "prompt_cost 1 has no use in estimate.mode pilot",
        ),
        (
            ["--allocate.lower", "9", "--allocate.budget_unit", "tokens"],
            "allocate.lower 9 exceeds allocate.num_generations 8",
        ),
        (
            ["--allocate.lower", "3", "--allocate.upper", "2", "--allocate.budget", "100"],
            "exceeds",
        ),
        (
            [
                "--estimate.mode",
                "none",
                "--allocate.allocator",
                "uniform",
                "--algorithm.estimator",
                "prompt_mean",
            ],
            "algorithm.estimator prompt_mean needs accept rates",
        ),
        (
            ["--algorithm.estimator=order_k", "--algorithm.order=9"],
            "algorithm.order 9 x 64 prompts = 576 exceeds the budget of 512; .* lower algorithm.order",
        ),
        (
            ["--algorithm.estimator=order_k", "--algorithm.order=5", *CROSS_FIT],
            "order x 2 parts of cross_fit = 10 x 64 prompts = 640 exceeds the budget of 512",
        ),
        (
            ["--algorithm.estimator=order_k", "--allocate.upper=3", "--allocate.budget=192"],
            "algorithm.order 4 x 64 prompts = 256 exceeds the budget of 192",
        ),
        (
            ["--algorithm.estimator=order_k", "--algorithm.objective=expected_reward"],
            "estimator order_k is for objective log_likelihood, not expected_reward",
        ),
        (["--algorithm.order=2"], "order 2 needs estimator: order_k"),
        (["--algorithm.order=0"], "algorithm.order: must be at least 1"),
        (["--algorithm.deviation=expected"], "deviation expected is for objective grpo"),
        (
            [
                "--algorithm.name=grpo",
                "--algorithm.deviation=expected",
                "--estimate.mode=none",
                "--allocate.allocator=uniform",
            ],
            "algorithm.deviation expected needs accept rates",
        ),
        (
            ["--algorithm.name=grpo", "--algorithm.baseline=history"],
            "baseline history is known before a group is drawn, but deviation population",
        ),
        (
            ["--algorithm.baseline=shrinkage"],
            "baseline shrinkage with objective log_likelihood needs estimator prompt_mean",
        ),
        (
            [
                "--algorithm.objective=expected_reward",
                "--algorithm.baseline=history",
                "--estimate.mode=none",
                "--allocate.allocator=uniform",
            ],
            "algorithm.baseline history needs accept rates",
        ),
        (["--select.group=2"], "select.group 2 needs a select.pool"),
        (["--select.pool=0"], "select.pool"),
        (["--select.pool=some"], "select.pool"),
        ([*ONLINE, "--select.pool=63"], "select.pool 63 is smaller than train.prompts_per_step 64"),
        (
            [*ONLINE, "--select.pool=all", "--select.uniform_share=0"],
            "uniform_share: must be above 0",
        ),
        ([*ONLINE, "--select.pool=all", "--select.uniform_share=1.5"], "must be at most 1"),
        (
            [*ONLINE, "--select.pool=all", "--select.group=1", "--algorithm.name=grpo"],
            "select.group 1 is below 2: algorithm.baseline mean is that of a group; baselines none, "
            "history and shrinkage take single",
        ),
        (
            [*ONLINE, "--select.pool=all", "--select.group=1"],
            "self_normalized divides by a group's own accept rate; prompt_mean takes single",
        ),
        (
            [*ONLINE, "--select.pool=all", "--select.group=3", "--algorithm.estimator=order_k"],
            "select.group 3 is below 4: algorithm.order 4 takes groups of so many",
        ),
        (
            [*ONLINE, "--select.pool=all", "--algorithm.estimator=flat"],
            "flat weighs all completions",
        ),
        ([*ONLINE, "--select.pool=all", "--allocate.lower=1"], "allocate.lower and allocate.upper"),
        (["--select.pool=all"], "pool all would draw pilots of every training prompt"),
        (["--select.correct=false"], "select.correct false needs a select.pool"),
        (
            [*ONLINE, "--select.pool=all", "--allocate.budget=15"],
            "the budget of 15 completions cannot be spent in groups of select.group 2",
        ),
        (
            [*ONLINE, "--select.pool=all", "--allocate.budget=0"],
            "the budget of 0 completions cannot",
        ),
        (
            ["--estimate.mode=cross_fit", "--select.pool=64"],
            "num_pilots 8 x select.pool 64 = 512 leaves nothing of the budget of 512",
        ),
        (["--data.template", "no placeholder"], "template must contain {prompt}"),
        (["--policy.warm_start.heads", "5"], "hidden_size must be a multiple of 2 \\* heads"),
    ],
)
def test_bad_values_are_one_clear_line(overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        load(overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1\n- 2\n", "must hold keys and values, not a list"),
        ("trian: {steps: 3}\n", "unknown key trian; nearest is train"),
        ("train: 3\n", "train: "),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ([], "pilot"),
        (["--allocate.allocator=uniform"], "none"),
        (["--allocate.allocator=uniform", "--estimate.mode=pilot"], "pilot"),
        (["--allocate.allocator=uniform", "--estimate.num_pilots=4"], "pilot"),
        (["--allocate.allocator=uniform", "--algorithm.estimator=prompt_mean"], "pilot"),
        (["--allocate.allocator=uniform", "--algorithm.prompt_weight=curverl"], "pilot"),
        (["--allocate.allocator=uniform", "--allocate.budget_unit=tokens"], "pilot"),
    ],
)
def test_uniform_counts_draw_no_pilots_unless_told_to(tmp_path, words, mode):
    """Pilots that decide nothing cost as much as others. The written configuration says the same."""
    config = load(words)
    assert config.estimate.mode == mode
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again == config


def test_a_fault_is_blamed_on_its_place(tmp_path):
    """The file is not blamed for what the command line says, nor the other way round."""
    path = tmp_path / "a.yaml"
    path.write_text("train: {steps: 3}\n")
    for words, message in (
        (["--train.stepz", "3"], "command line: unknown key train.stepz; nearest is train.steps"),
        (["--trian.steps", "3"], "command line: unknown key trian"),
        (["--train.steps", "0"], "command line: train.steps: must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            load([str(path), *words])
    path.write_text("train: {stepz: 3}\n")
    with pytest.raises(InputError, match=rf"{path}: unknown key train.stepz"):
        load([str(path), "--seed", "1"])


@pytest.mark.parametrize(("written", "read"), [("yes", "yes"), ("no", "no"), ("'auto'", "auto")])
def test_a_switch_that_yaml_reads_as_true_or_false(tmp_path, written, read):
    (tmp_path / "a.yaml").write_text(f"resume: {written}\n")
    assert load([str(tmp_path / "a.yaml")]).resume == read


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    """yaml would take the last one and say nothing."""
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  steps: 3\n  steps: 4\n")
    with pytest.raises(InputError, match=r"not valid YAML: key 'steps' occurs twice in line 3"):
        load([str(path)])
    path.write_text("train: {steps: 3}\nseed: 1\ntrain: {prompts_per_step: 4}\n")
    with pytest.raises(InputError, match=r"key 'train' occurs twice in line 3"):
        load([str(path)])


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot read config .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_every_key_has_a_description():
    keys = config_keys()
    assert len(keys) > 40
    for key, _, description in keys:
        assert description[:1].strip(), key
        assert description.endswith("."), key


def test_the_light_modules_do_not_import_torch():
    modules = "dibs, dibs.config, dibs.allocation.allocators, dibs.data.prompts, dibs.cli"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_budget_of_a_step_is_in_the_unit_of_its_completions():
    words = ["--allocate.num_generations=4", "--train.prompts_per_step=8"]
    completions = load(words)
    assert completions.budget == completions.step_budget(8) == 32
    tokens = load([*words, "--allocate.budget_unit=tokens"])
    assert tokens.budget is None
    assert tokens.step_budget(one_each=250.0) == 1000
    given = load([*words, "--allocate.budget_unit=tokens", "--allocate.budget=70"])
    assert given.step_budget(one_each=250.0) == 70
