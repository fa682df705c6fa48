"""What the handler changes in TorchServe's worker: how it reads, what it prints, what it tells."""

from __future__ import annotations

import io
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.protocol import otf_message_handler

from handler import classifier_handler, torchserve
from handler.classifier_handler import ClassifierHandler
from handler.metrics import REFUSED, Metrics
from handler.torchserve import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

BODY = bytes(range(256)) * 1000


def field(value: bytes) -> bytes:
    """Lay a value out as TorchServe's front end does: its length before it."""
    return struct.pack("!i", len(value)) + value


def batch(bodies: list[bytes], kind: bytes = b"image/png") -> bytes:
    """Lay requests out as TorchServe's front end does."""
    end = struct.pack("!i", -1)
    requests = [
        field(b"id") + field(b"accept") + field(b"*/*") + end
        + field(b"body") + field(kind) + field(body) + end
        for body in bodies
    ]  # fmt: skip
    return b"I" + b"".join(requests) + end


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe's protocol with our reader, as in a worker."""
    monkeypatch.setattr(otf_message_handler, "_retrieve_buffer", Reader())


@pytest.mark.parametrize(
    ("most", "sizes"), [(4, range(1, 5)), (20, [*range(1, 17), 20]), (64, [*range(1, 17), 32, 64])]
)
def test_runs_batches_of_all_sizes_before_requests_come(
    most: int, sizes: Iterable[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = []

    class Classifier:
        def probabilities(self, pixels: NDArray[np.uint8]) -> None:
            run.append(len(pixels))

    handler = ClassifierHandler()
    monkeypatch.setattr(handler, "classifier", Classifier(), raising=False)
    handler.most = most
    handler._run_once()
    assert sorted(run) == list(sizes)


def test_a_batch_of_images_that_take_long_to_decode_does_not_cost_the_worker_its_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(range(0, 1000, 8))  # each look at the clock is 8 s after the last one
    monkeypatch.setattr(classifier_handler, "perf_counter", lambda: next(now))
    handler, told = ClassifierHandler(), Mock()
    for name in ("classifier", "metrics", "keeper"):
        monkeypatch.setattr(handler, name, None if name == "keeper" else Mock(), raising=False)
    handler.model, handler.version, handler.most = "cifar10", "1.0", 4
    told.get_all_request_header.return_value = {}
    answers = handler.handle([{"body": "no image"}] * 4, told)
    statuses = [call.args[0] for call in told.set_response_status.call_args_list]
    assert statuses == [400, 400, 503, 503]
    assert b"ask again" in answers[2]


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("cut", [1, 7, 4096, 10**9])
def test_reads_batches_however_they_arrive(cut: int) -> None:
    batches = [[b""], [b"a", BODY, b"b"], [BODY[:65536]], [b"c"] * 16]
    sent = b"".join(map(batch, batches))
    ours, theirs = socket.socketpair()

    def send() -> None:
        for at in range(0, len(sent), cut):
            theirs.sendall(sent[at : at + cut])

    with ours, theirs:
        sender = threading.Thread(target=send)
        sender.start()
        for bodies in batches:
            command, message = otf_message_handler.retrieve_msg(ours)
            assert command == b"I"
            assert [request["parameters"][0]["value"] for request in message] == bodies
            assert message[0]["headers"] == [{"name": b"accept", "value": b"*/*"}]
        sender.join()


def test_waits_for_no_more_than_is_asked() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        theirs.sendall(b"abcd")
        reader = Reader()
        assert [reader(ours, 1), reader(ours, 3)] == [b"a", b"bcd"]
        theirs.sendall(b"e")
        assert reader(ours, 1) == b"e"


@pytest.mark.usefixtures("ahead")
def test_ends_when_torchserve_has_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"I" + struct.pack("!i", 100))
        theirs.close()
        with pytest.raises(SystemExit) as ended:
            otf_message_handler.retrieve_msg(ours)
    assert ended.value.code == 0


def test_touches_no_other_version_of_torchserve(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = otf_message_handler._retrieve_buffer
    monkeypatch.setattr(otf_message_handler, "_retrieve_buffer", theirs)
    torchserve.hasten("0.13.0")
    assert otf_message_handler._retrieve_buffer is theirs


PRINTS = """
import logging, socket, sys
from importlib.metadata import version
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_type_enum import MetricTypes
from ts.protocol import otf_message_handler
from handler import torchserve

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
torchserve.hasten(version("torchserve"))
ours, theirs = socket.socketpair()
for sent in sys.argv[1:]:
    theirs.sendall(bytes.fromhex(sent))
    _, (request,) = otf_message_handler.retrieve_msg(ours)
    assert request["parameters"][0]["value"] == bytes.fromhex("ff7b")
for name in ("HandlerTime", "PredictionTime"):
    CachingMetric(name, "ms", ["Level"], MetricTypes.GAUGE).add_or_update(1.0, ["Model"])
logging.info("a line of each batch")
logging.warning("a warning")
"""
"""What a worker does that is sent bodies which are not what they are said to be."""


def test_prints_warnings_and_metrics_but_nothing_that_each_request_brings() -> None:
    """In a process of its own: other packages change how this one logs."""
    sent = [batch([b"\xff{"], kind).hex() for kind in (b"application/json", b"text/plain")]
    command = [sys.executable, "-c", PRINTS, *sent]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("[METRICS]HandlerTime.")
    assert second == "a warning"


ODD = """
import io, logging, struct, sys, warnings
from PIL import Image, TiffImagePlugin
from handler import torchserve
from model import ImageError, decode

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
if sys.argv[1:] == ["mute"]:
    torchserve.mute()
for number in range(20):
    begin = b"Exif\\0\\0II*\\0" + struct.pack("<IH", 8, 1)
    exif = begin + struct.pack("<HHII", 0x100 + number, 2, 999, 99999)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    decode(file.getvalue())
print(len(getattr(TiffImagePlugin, "__warningregistry__", {})) > 2)
"""
"""What a worker does that is sent pictures whose EXIF is damaged, each in a way of its own."""


def test_odd_pictures_fill_neither_log_nor_memory() -> None:
    for mute, kept in (([], "True"), (["mute"], "False")):
        command = [sys.executable, "-c", ODD, *mute]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == kept
        assert (done.stderr == "") == bool(mute)


def test_torch_is_imported_when_something_is_taken_from_it() -> None:
    script = """
import sys
import sitecustomize
from ts.protocol import otf_message_handler
assert "torch" not in sys.modules
assert otf_message_handler.torch.Tensor.__name__ == "Tensor"
import torch, torch.nn.functional
assert otf_message_handler.torch.Tensor is torch.Tensor
"""
    environment = {**os.environ, "PYTHONPATH": "handler"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def printed(metrics: Metrics) -> list[str]:
    """Return the lines by which metrics are told."""
    logger, stream = logging.getLogger("ts.metrics.caching_metric"), io.StringIO()
    handler, level = logging.StreamHandler(stream), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        metrics.tell()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return stream.getvalue().splitlines()


@pytest.fixture
def cache() -> MetricsCacheYamlImpl:
    """What TorchServe makes of deploy/metrics.yaml."""
    cache = MetricsCacheYamlImpl("deploy/metrics.yaml")
    cache.initialize_cache()
    return cache


def test_tells_what_was_observed_once(
    cache: MetricsCacheYamlImpl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.metrics.PERIOD", 3600)
    metrics = Metrics(cache, "cifar10", "1.0")
    metrics.observe(0.004, 0.002, 4, 0.25, ["cat", "cat", REFUSED])
    metrics.observe(0.003, 0.004, 1, 1.0, ["cat", "cat, black: a|b"])
    lines = printed(metrics)
    assert not printed(metrics)
    for expected in (
        "DecodeTime.Milliseconds:1.0|#ModelName:cifar10,ModelVersion:1.0|#type:HISTOGRAM",
        "InferTime.Milliseconds:4.0|#ModelName:cifar10,ModelVersion:1.0|#type:HISTOGRAM",
        "BatchFill.ratio:0.25|#ModelName:cifar10,ModelVersion:1.0|#type:HISTOGRAM",
        "Answers.Count:3|#ModelName:cifar10,ModelVersion:1.0,Label:cat|#type:COUNTER",
        "Answers.Count:1|#ModelName:cifar10,ModelVersion:1.0,Label:refused|#type:COUNTER",
        "Answers.Count:1|#ModelName:cifar10,ModelVersion:1.0,Label:cat  black  a b|#type:COUNTER",
    ):
        assert sum(f"[METRICS]{expected}" in line for line in lines) == 1, (expected, lines)
    assert len(lines) == 9


def test_tells_nothing_where_torchserve_knows_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.yaml").write_text("model_metrics: {counter: []}\n")
    cache = MetricsCacheYamlImpl(str(tmp_path / "metrics.yaml"))
    metrics = Metrics(cache, "cifar10", "1.0")
    metrics.observe(0.001, 0.002, 1, 0.25, ["cat"])
    assert not printed(metrics)
