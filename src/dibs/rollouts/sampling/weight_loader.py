"""What runs inside a vLLM worker: loading the learner's weights.

A server is started with ``--worker-extension-cls dibs.WeightLoader``. vLLM imports this module before it
builds the model, and offers no later hook: so the import itself prepares vLLM's linear layers for new
weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.model_executor.layers import utils as layers
from vllm.platforms import current_platform


class WeightLoader:
    """Methods that vLLM adds to its worker.

    ``dibs_version`` names the weights that were loaded last; None for those the engine was started
    with, so that a restarted server is told from one that was updated.
    """

    model_runner: Any
    dibs_version: str | None = None

    def dibs_load(self, weights: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Load weights by the names that a checkpoint gives them."""
        self.dibs_version = None
        self.model_runner.model.load_weights(weights)
        self.dibs_version = version

    def dibs_load_folder(self, folder: str, version: str) -> None:
        """The same from a folder of safetensors files; FileNotFoundError where there are none."""
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"no *.safetensors in {folder}")
        self.dibs_load(_tensors(files), version)

    def dibs_weights(self) -> list[str | None]:
        """The version of the weights, as a list: vLLM's server makes text of anything else."""
        return [self.dibs_version]


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield name, opened.get_tensor(name)


_pack = layers.dispatch_cpu_unquantized_gemm


def _keep_plain(layer: Any, remove_weight: bool) -> None:
    """Multiply with the layer's own weight.

    On a CPU vLLM multiplies with a packed copy, which new weights do not reach: where embeddings are
    tied, the output layer would go on with the first ones.
    """
    if layer.weight.ndim == 2:
        layer.cpu_linear = torch.nn.functional.linear
    else:
        _pack(layer, remove_weight)


if current_platform.is_cpu():
    layers.dispatch_cpu_unquantized_gemm = _keep_plain
