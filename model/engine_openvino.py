"""The engine of OpenVINO: 8-bit integers, on a CPU. It needs no torch."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SIZES = (*range(1, 17), 32, 64)
"""Batch sizes that OpenVINO runs: it compiles anew for each, which takes 12 ms and keeps 2 MB."""


@functools.cache
def _core() -> Any:
    """Return OpenVINO's core, one for the process and for ever.

    Where a CPU has AMX, each core sets a stack for signals, and puts back the one before when it
    goes, even if that has gone by then: the next Ctrl-C would be a segmentation fault.
    """
    import openvino

    return openvino.Core()


def parts(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Split a batch, uint8 N×32×32×3, into batches of SIZES, each as large as can be."""
    while len(pixels):
        size = max(size for size in SIZES if size <= len(pixels))
        yield pixels[:size]
        pixels = pixels[size:]


class OpenVinoEngine:
    """OpenVINO, in 8-bit integers, on a CPU; batches of other sizes than SIZES run in parts.

    Args:
        graph: the bytes of the .xml file.
        constants: the bytes of the .bin file.
        threads: OpenVINO's own choice if None.
        alone: threads for an image that is a batch by itself; as for others if None.
    """

    def __init__(
        self,
        graph: bytes,
        constants: bytes,
        threads: int | None = None,
        alone: int | None = None,
    ) -> None:
        import openvino

        core = _core()
        model = core.read_model(graph, openvino.Tensor(np.frombuffer(constants, np.uint8)))

        def compiled(threads: int | None) -> Any:
            # Without pinning: each worker would pin its threads to the same first cores.
            options = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
            if threads is not None:
                options["INFERENCE_NUM_THREADS"] = threads
            return core.compile_model(model, "CPU", options)

        self.compiled = compiled(threads)
        self.alone = self.compiled if alone in (None, threads) else compiled(alone)
        classes = self.compiled.output(0).get_partial_shape()[1].get_length()
        self.none = np.empty((0, classes), np.float32)  # OpenVINO answers it with what was before
        self.local = threading.local()  # a request holds one batch: two threads must not share it
        # Two threads that make their first ones at the same moment can crash OpenVINO.
        self.making = threading.Lock()
        self._make_requests()

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        if not hasattr(self.local, "request"):
            self._make_requests()
        results = [
            self._request(len(part)).infer(part, share_inputs=True)[0] for part in parts(pixels)
        ]
        return np.concatenate([self.none, *results])

    def _request(self, count: int) -> Any:
        """Return what runs so many images in this thread."""
        return self.local.alone if count == 1 else self.local.request

    def _make_requests(self) -> None:
        """Make what this thread runs images with."""
        with self.making:
            self.local.alone = self.alone.create_infer_request()
            self.local.request = self.compiled.create_infer_request()

    def describe(self) -> dict[str, Any]:
        """Tell what runs."""
        return {
            "engine": "openvino",
            "precision": "int8",
            "device": "cpu",
            "threads": self.compiled.get_property("INFERENCE_NUM_THREADS"),
            "threads_alone": self.alone.get_property("INFERENCE_NUM_THREADS"),
        }
