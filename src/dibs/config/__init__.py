"""One nested, validated configuration. Imports no torch.

Unknown keys are errors. Every field carries its description, and ``dibs train --help`` prints them
all. ``dibs.config.load`` reads a configuration from a file and the command line.
"""

from dibs.config.allocating import AllocateConfig
from dibs.config.learning import (
    DEFAULT_ORDER,
    AlgorithmConfig,
    Baseline,
    EstimateConfig,
    Estimator,
    GradNormMethod,
    GradNormParameters,
    Objective,
    TrainConfig,
    UpdateConfig,
    check_variant,
    divides_by_statistics,
    least_group,
    why_groups,
)
from dibs.config.rollouts import (
    BENCHMARKS,
    TEMPLATES,
    DataConfig,
    LoraConfig,
    PolicyConfig,
    SamplingConfig,
    WarmStartConfig,
)
from dibs.config.section import Section
from dibs.config.selecting import SelectConfig
from dibs.config.verifying import RewardConfig, VerifyConfig
from dibs.config.watching import (
    CheckpointConfig,
    EvaluateConfig,
    TrackingConfig,
    VarianceConfig,
)
from dibs.config.whole import Config

__all__ = [
    "BENCHMARKS",
    "DEFAULT_ORDER",
    "TEMPLATES",
    "AlgorithmConfig",
    "AllocateConfig",
    "Baseline",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EstimateConfig",
    "Estimator",
    "EvaluateConfig",
    "GradNormMethod",
    "GradNormParameters",
    "LoraConfig",
    "Objective",
    "PolicyConfig",
    "RewardConfig",
    "SamplingConfig",
    "Section",
    "SelectConfig",
    "TrackingConfig",
    "TrainConfig",
    "UpdateConfig",
    "VarianceConfig",
    "VerifyConfig",
    "WarmStartConfig",
    "check_variant",
    "divides_by_statistics",
    "least_group",
    "why_groups",
]
