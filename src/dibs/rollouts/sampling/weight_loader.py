"""The part of DIBS that runs inside a vLLM worker: it loads the learner's weights.

A server is started with ``--worker-extension-cls dibs.WeightLoader``. vLLM imports this module before it
builds the model and has no later hook. So the import itself prepares vLLM's linear layers for new
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

    ``dibs_version``: version of the weights that were loaded last. It is None for those that the engine
    was started with, so that a restarted server differs from one that was updated.
    """

    model_runner: Any
    dibs_version: str | None = None

    def dibs_load(self, weights: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Load weights, which have the names of a checkpoint, and note their version."""
        self.dibs_version = None
        self.model_runner.model.load_weights(weights)
        self.dibs_version = version

    def dibs_load_folder(self, folder: str, version: str) -> None:
        """Load weights from a folder of safetensors files; FileNotFoundError where there are none."""
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"no *.safetensors in {folder}")
        self.dibs_load(_tensors(files), version)

    def dibs_weights(self) -> list[str | None]:
        """The version of the weights, in a list, since vLLM's server turns anything else into text."""
        return [self.dibs_version]


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield name, opened.get_tensor(name)


_pack = layers.dispatch_cpu_unquantized_gemm


def _keep_plain(layer: Any, remove_weight: bool) -> None:
    """Make a layer multiply with its own weight.

    On a CPU vLLM multiplies with a packed copy, which new weights do not reach. Where embeddings are
    tied, the output layer would keep using the first weights.
    """
    if layer.weight.ndim == 2:
        layer.cpu_linear = torch.nn.functional.linear
    else:
        _pack(layer, remove_weight)


if current_platform.is_cpu():
    layers.dispatch_cpu_unquantized_gemm = _keep_plain
