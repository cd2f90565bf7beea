"""A model's gradient as one vector of limited size, for inner products between gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST = 2**22
"""Most entries of a vector: a longer gradient is folded onto so many."""


class Projection:
    """Reads ``.grad`` of the parameters into one float32 vector.

    A gradient of at most ``largest`` entries is the vector itself. A longer one is folded onto
    ``largest`` entries with random signs, which are the same for every gradient. Inner products of
    folded gradients ``u`` and ``v`` are unbiased, with a standard error of about ``|u| |v| /
    sqrt(largest)``.
    """

    def __init__(self, parameters: Sequence[Tensor], seed: int = 0, largest: int = LARGEST) -> None:
        self.parameters = parameters
        self.seed = seed
        self.entries = sum(p.numel() for p in parameters)
        self.size = min(self.entries, largest)

    def __call__(self) -> Tensor:
        """The vector of the present gradients, float32 [size]; a missing gradient counts as 0."""
        device = self.parameters[0].device
        if self.size == self.entries:
            return torch.cat(
                [
                    (torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten().float()
                    for p in self.parameters
                ]
            )
        folded = torch.zeros(self.size, device=device)
        start = 0
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                signs = torch.Generator(device).manual_seed(self.seed * 1_000_003 + index)
                flat = parameter.grad.detach().flatten()
                # The gradient is cut where its place in the vector wraps around.
                first = min(self.size - start, len(flat))
                place = start
                for part in (flat[:first], *flat[first:].split(self.size)):
                    sign = torch.randint(0, 2, part.shape, generator=signs, device=device)
                    folded[place : place + len(part)] += part.float() * (2 * sign - 1)
                    place = 0
            start = (start + parameter.numel()) % self.size
        return folded
