"""One nested, validated configuration. Imports no torch.

Unknown keys are errors. Every field carries its description, and ``dibs train --help`` prints them
all. ``dibs.config.file`` reads a configuration from a file and the command line.
"""

from dibs.config.learning import (
    AlgorithmConfig,
    AllocateConfig,
    CheckpointConfig,
    EstimateConfig,
    EvaluateConfig,
    GradNormMethod,
    GradNormParameters,
    TrackingConfig,
    TrainConfig,
    UpdateConfig,
    VarianceConfig,
    needs_statistics,
)
from dibs.config.rollouts import (
    BENCHMARKS,
    TEMPLATES,
    DataConfig,
    LoraConfig,
    PolicyConfig,
    SamplingConfig,
    VerifyConfig,
    WarmStartConfig,
)
from dibs.config.run import Config
from dibs.config.section import Section

__all__ = [
    "BENCHMARKS",
    "TEMPLATES",
    "AlgorithmConfig",
    "AllocateConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EstimateConfig",
    "EvaluateConfig",
    "GradNormMethod",
    "GradNormParameters",
    "LoraConfig",
    "PolicyConfig",
    "SamplingConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
    "UpdateConfig",
    "VarianceConfig",
    "VerifyConfig",
    "WarmStartConfig",
    "needs_statistics",
]
