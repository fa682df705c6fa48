"""The entry that TorchServe imports; it lies at the root of the archive.

TorchServe demands that this file defines exactly one class.
"""

from __future__ import annotations

import json
import os
from http import HTTPStatus
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from handler import answer
from handler.answer import Answer
from handler.explanation import explain
from handler.keep import keeper
from handler.metrics import REFUSED, Metrics
from handler.question import File, read
from handler.torchserve import hasten, mute
from model import ImageError, decode, load
from model.engine import for_one
from model.engine_openvino import SIZES
from model.image import SHAPE, SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from handler.question import Question, Rows

THREADS = "CLASSIFIER_THREADS"
"""The environment variable by which `classifier serve` tells each model's threads, as JSON."""
WARM_UP = "X-Warm-Up"
"""The header of requests that `classifier serve` sends before it says that all is ready."""
CHECK = "X-Check"
"""The header of requests by which `classifier promote` and `shadow` look at a version."""
UNCOUNTED = frozenset((WARM_UP, CHECK))
"""Headers of the tool's own requests: these are not counted, and not kept."""

BATCH_SECONDS = 20.0
"""How long a batch's images may take to decode, one request more at most: TorchServe kills a worker
that does not answer for a minute (`responseTimeout` in model-config.yaml)."""
LATE = answer.error(
    HTTPStatus.SERVICE_UNAVAILABLE,
    f"the images of other requests took {BATCH_SECONDS:g} s to decode: ask again",
)


class ClassifierHandler:
    """Answers batches: bytes → pixels → batch → probabilities → labels, each request by itself."""

    def initialize(self, context: Any) -> None:
        """Load the archived classifier and run it once, so that no request pays for that."""
        settings = context.model_yaml_config.get("handler", {})
        properties, model = context.system_properties, context.manifest["model"]
        threads = _threads(model["modelName"]) or settings.get("threads")
        engine = settings.get("engine", "auto")
        device = _device(properties.get("gpu_id"))
        folder = properties["model_dir"]
        self.classifier = load(folder, engine, device, threads, for_one(threads))
        self.model, self.version = model["modelName"], str(model["modelVersion"])
        self.most = int(properties.get("batch_size") or 1)
        self._run_once()
        self.metrics = Metrics(context.metrics, model["modelName"], self.version)
        self.keeper = keeper(model["modelName"])
        if self.keeper is not None:
            self.keeper.start()
        mute()
        hasten(properties["server_version"])

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch of requests; return their bodies, in order.

        A request that can't be answered gets an error of its own, and the others their answers.
        """
        begin = perf_counter()
        headers = [context.get_all_request_header(i) for i in range(len(data))]
        inputs = [
            self.preprocess(*request) if perf_counter() - begin < BATCH_SECONDS else LATE
            for request in zip(data, headers, strict=True)
        ]
        decoded = perf_counter()
        rows = self.inference(inputs)
        inferred = perf_counter()
        answers = self.postprocess(inputs, rows)
        labels = self._labels(inputs, rows, headers)
        images, fill = sum(map(len, rows)), len(data) / self.most
        self.metrics.observe(decoded - begin, inferred - decoded, images, fill, list(labels))
        if self.keeper is not None:
            for image in _files(data, inputs, rows, headers):
                self.keeper.offer(image)
        for index, item in enumerate(answers):
            context.set_response_status(int(item.status), item.status.phrase, index)
            context.set_response_content_type(index, "application/json")
            context.set_response_header(index, "X-Model-Version", self.version)
            context.set_response_header(index, "X-Batch-Size", str(len(data)))
        return [item.body for item in answers]

    def preprocess(self, parts: Mapping[str, Any], headers: Mapping[str, str]) -> Question | Answer:
        """Decode a request's images to uint8 32×32×3, or answer where nothing is to classify."""
        # A client can send this header, too; but it sends an image with it.
        if headers.get("describe") == "True" and not parts:
            return answer.ok(self.describe())
        try:
            question = read(parts, self.model, self.version)
            # TorchServe sets this header itself, and drops that of a client.
            return explain(question) if headers.get("explain") == "True" else question
        except ImageError as error:
            return answer.error(HTTPStatus.BAD_REQUEST, str(error))

    def inference(self, inputs: Sequence[Question | Answer]) -> list[Rows]:
        """Classify the images of all inputs at once; return the rows of each input."""
        asked = [[] if isinstance(item, Answer) else item.images for item in inputs]
        images = [image for some in asked for image in some if isinstance(image, np.ndarray)]
        if not images:
            return [[None] * len(some) for some in asked]
        rows = iter(self.classifier.probabilities(np.stack(images)))
        return [
            [next(rows) if isinstance(image, np.ndarray) else None for image in some]
            for some in asked
        ]

    def postprocess(
        self, inputs: Sequence[Question | Answer], rows: Sequence[Rows]
    ) -> list[Answer]:
        """Answer each question; what was answered before stays."""
        return [
            item if isinstance(item, Answer) else item.answer(self.classifier, found)
            for item, found in zip(inputs, rows, strict=True)
        ]

    def _labels(
        self,
        inputs: Sequence[Question | Answer],
        rows: Sequence[Rows],
        headers: Sequence[Mapping[str, str]],
    ) -> Iterator[str]:
        """Yield what to count of each image but UNCOUNTED: its likeliest label, or REFUSED."""
        for item, found, header in zip(inputs, rows, headers, strict=True):
            if not UNCOUNTED.isdisjoint(header):
                continue
            if isinstance(item, Answer):
                if item.status == HTTPStatus.BAD_REQUEST:
                    yield REFUSED
                continue
            for row in found:
                yield REFUSED if row is None else self.classifier.labels[int(row.argmax())]

    def _run_once(self) -> None:
        """Do all that requests need done, so that none of them pays for its first time."""
        for kind in ("PNG", "JPEG"):
            file = BytesIO()
            Image.new("RGB", SIZE).save(file, kind)
            decode(file.getvalue())
        # At little load the larger batches come late, and would grow the memory then.
        for count in {*(size for size in SIZES if size <= self.most), self.most}:
            self.classifier.probabilities(np.zeros((count, *SHAPE), np.uint8))

    def describe(self) -> dict[str, Any]:
        """Tell what runs: the answer to `GET /models/<name>/<version>?customized=true`."""
        engine = self.classifier.engine.describe()
        return {"labels": self.classifier.labels, **engine, "worker": os.getpid()}


def _files(
    data: Sequence[Mapping[str, Any]],
    inputs: Sequence[Question | Answer],
    rows: Sequence[Rows],
    headers: Sequence[Mapping[str, str]],
) -> Iterator[bytes | bytearray]:
    """Yield the image files that were decoded, of requests that somebody asked."""
    for parts, item, found, header in zip(data, inputs, rows, headers, strict=True):
        if isinstance(item, File) and found[0] is not None and UNCOUNTED.isdisjoint(header):
            yield from parts.values()


def _device(gpu: int | None) -> str:
    """Return where the net shall run: on the GPU that TorchServe assigned, if there is one."""
    if gpu is None:
        return "cpu"
    import torch  # here, for OpenVINO needs none of it

    return f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"


def _threads(model: str) -> int | None:
    """Return how many threads a worker of the model shall have; None where nobody has told."""
    told: dict[str, int] = json.loads(os.environ.get(THREADS, "{}"))
    return told.get(model)
