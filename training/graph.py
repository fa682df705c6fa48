"""A CUDA graph of a training step: one launch where there were hundreds.

A step of so small a net is over before a processor has launched its operations one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WARM_UP = 3
"""Calls that run as they are: in them cuDNN chooses how to compute, and buffers are made."""


class Graph:
    """Calls a function of CUDA tensors by a graph.

    Args:
        function: the same operations in each call, on tensors of the same shapes.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.calls = 0
        self.graph = torch.cuda.CUDAGraph()
        self.inputs: list[Tensor] = []
        self.output = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the function returns; the next call writes over it."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._aside(*inputs)
        if not self.inputs:
            self.inputs = [tensor.clone() for tensor in inputs]
            with torch.cuda.graph(self.graph):
                self.output = self.function(*self.inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output

    def _aside(self, *inputs: Tensor) -> Tensor:
        """Call the function on a stream of its own, as a graph is captured."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            output = self.function(*inputs)
        current.wait_stream(stream)
        return output
