"""What a running TorchServe answers, over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
import requests
from joblib import cpu_count
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import model
from classifier import stubs
from classifier.serving.warmup import warm_up
from handler.metrics import PERIOD

from . import reference
from .deployment import together
from .images import SAMPLE, crops, encode, sample

if TYPE_CHECKING:
    from training.data import Images

    from .deployment import Deployment


@pytest.fixture
def server(shared_deployment: Deployment) -> Deployment:
    """The server that all tests here ask."""
    return shared_deployment


def assert_is_error(answer: requests.Response, message: str, code: int = 400) -> None:
    assert answer.status_code == code
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"code", "type", "message"}
    assert body["code"] == code
    assert message in body["message"]


@pytest.mark.parametrize("version", ["", "1.0"])
def test_classifies_the_sample(server: Deployment, version: str) -> None:
    answer = server.predict(SAMPLE.read_bytes(), version)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["X-Model-Version"] == "1.0"
    assert answer.headers["X-Batch-Size"] == "1"
    assert next(iter(answer.json())) == "cat"
    reference.assert_agrees(answer.json(), *reference.probabilities([SAMPLE.read_bytes()]))


def test_multipart_gives_the_same_answer(server: Deployment) -> None:
    url = f"{server.inference}/predictions/cifar10"
    image = SAMPLE.read_bytes()
    answer = requests.post(url, files={"data": ("cat.jpg", image, "image/jpeg")}, timeout=60)
    assert answer.json() == server.predict(image).json()


def test_agrees_with_the_reference_on_crops_of_a_photo(server: Deployment) -> None:
    images = list(crops(200))
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(server.predict, images))
    for answer, expected in zip(answers, reference.probabilities(images), strict=True):
        reference.assert_agrees(answer.json(), expected)


def test_agrees_with_the_reference_on_test_images(server: Deployment, test_images: Images) -> None:
    images = [encode(Image.fromarray(p.numpy())) for p in test_images.pixels[-300:]]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(server.predict, images))
    for answer, expected in zip(answers, reference.probabilities(images), strict=True):
        reference.assert_agrees(answer.json(), expected)


def test_a_bad_image_fails_alone_in_a_batch_that_it_shares(server: Deployment) -> None:
    images = list(crops(32))
    images[17] = b"no image"
    answers = together(server.predict, images)
    sizes = [int(answer.headers["X-Batch-Size"]) for answer in answers]
    assert sizes[17] > 1, "the bad image was alone in its batch"
    assert sum(1 / size for size in sizes) <= 16, "fewer than two requests a batch"
    assert_is_error(answers.pop(17), "not an image that can be read")
    del images[17]
    expected = reference.probabilities(images)
    for answer, probabilities in zip(answers, expected, strict=True):
        assert answer.status_code == 200
        reference.assert_agrees(answer.json(), probabilities)


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"", {}, "holds no image"),
        (b"\x89PNG\r\n\x1a\nrubbish", {}, "not an image that can be read"),
        (encode(sample(), "JPEG")[:3000], {}, "damaged"),
        (b"a text", {"content-type": "text/plain"}, "holds text"),
        (b'{"a": 1}', {"content-type": "application/json"}, "holds JSON"),
        (b"{no json", {"content-type": "application/json"}, "not an image"),
        (encode(Image.new("1", (8000, 8000))), {}, "8000×8000 pixels, more than 50,000,000"),
    ],
)
def test_what_is_no_image_gets_400_and_the_reason(
    server: Deployment, body: bytes, headers: dict[str, str], message: str
) -> None:
    assert_is_error(server.predict(body, headers=headers), message)


def test_several_parts_get_400(server: Deployment) -> None:
    url = f"{server.inference}/predictions/cifar10"
    image = SAMPLE.read_bytes()
    answer = requests.post(url, files={"data": image, "more": image}, timeout=60)
    assert_is_error(answer, "has 2 parts (data, more)")


@pytest.mark.parametrize("header", ["describe", "explain"])
def test_a_header_of_torchserve_s_own_breaks_no_batch(server: Deployment, header: str) -> None:
    image = SAMPLE.read_bytes()

    def ask(i: int) -> requests.Response:
        return server.predict(image, headers={header: "True"} if i % 2 else {})

    answers = together(ask, range(16))
    sizes = [int(answer.headers["X-Batch-Size"]) for answer in answers]
    assert any(size > 1 for size in sizes[1::2]), "all with the header were alone in their batches"
    assert sum(1 / size for size in sizes) <= 8, "fewer than two requests a batch"
    for answer in answers:
        assert answer.status_code == 200
        assert next(iter(answer.json())) == "cat"


def test_describes_itself(server: Deployment) -> None:
    described = server.describe()["customizedMetadata"]
    assert described["labels"] == list(reference.LABELS)
    assert described["engine"] == "torch"
    assert described["threads"] == cpu_count(), "the only worker has all cores"


def test_workers_of_one_thread_give_an_image_alone_an_idle_core(deployment: Deployment) -> None:
    deployment.release("1.0", ["1.0"], workers=cpu_count())
    deployment.start()
    described = deployment.describe()["customizedMetadata"]
    assert (described["engine"], described["threads"]) == ("openvino", 1)
    assert described["threads_alone"] == min(2, cpu_count())


def test_the_released_archive_answers_with_integers(server: Deployment) -> None:
    described = server.describe("1.1")["customizedMetadata"]
    assert (described["engine"], described["precision"]) == ("openvino", "int8")
    classifier = model.load("model", "openvino")
    for image in crops(20):
        answer = server.predict(image, "1.1")
        (row,) = classifier.probabilities(model.decode(image)[None])
        assert answer.json() == pytest.approx(classifier.top(row), abs=1e-4)


def test_a_body_over_the_limit_gets_413(server: Deployment) -> None:
    limit = int(server.port("max_request_size"))
    assert server.predict(os.urandom(limit - 1000)).status_code == 400  # taken, and no image
    answer = server.predict(os.urandom(limit + 1))
    assert answer.status_code == 413
    assert answer.content == b""


def test_grpc_takes_the_same_image(server: Deployment) -> None:
    messages, services = stubs.inference()
    address = f"127.0.0.1:{server.port('grpc_inference_port')}"
    with grpc.insecure_channel(address) as channel:
        stub = services.InferenceAPIsServiceStub(channel)

        def ask(image: bytes) -> dict[str, float]:
            request = messages.PredictionsRequest(model_name="cifar10", input={"data": image})
            answer: dict[str, float] = json.loads(stub.Predictions(request, timeout=60).prediction)
            return answer

        assert ask(SAMPLE.read_bytes()) == server.predict(SAMPLE.read_bytes()).json()
        assert ask(b"no image")["code"] == 400


def metric(server: Deployment, name: str, **labels: str) -> float:
    """Return a metric's value: the sum over all that have these labels."""
    answer = requests.get(server.port("metrics_address") + "/metrics", timeout=60)
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_metrics_are_there_for_prometheus(server: Deployment) -> None:
    def found() -> list[float]:
        mine = {"ModelName": "cifar10", "ModelVersion": "1.0"}
        return [
            metric(server, "ts_inference_requests_total", model_name="cifar10"),
            metric(server, "DecodeTime_count", **mine),
            metric(server, "InferTime_count", **mine),
            metric(server, "BatchFill_sum", **mine),
            metric(server, "Answers_total", Label="cat", **mine),
            metric(server, "Answers_total", Label="refused", **mine),
        ]

    before: list[float] = []
    while before != (before := found()):  # what other tests asked is told within a period
        time.sleep(2 * PERIOD)
    server.predict(SAMPLE.read_bytes())
    server.predict(b"no image")
    expected = [2, 2, 2, 2 / 16, 1, 1]
    end = time.monotonic() + 30
    while (more := [b - a for a, b in zip(before, found(), strict=True)]) != expected:
        assert time.monotonic() < end, more
        time.sleep(0.2)


def test_the_labels_of_a_warm_up_are_not_counted(server: Deployment) -> None:
    before = -1.0
    while before != (before := metric(server, "Answers_total")):
        time.sleep(2 * PERIOD)
    assert warm_up(f"{server.inference}/predictions/cifar10/1.1", 3) > 32
    server.predict(SAMPLE.read_bytes(), "1.1")
    end = time.monotonic() + 30
    while (counted := metric(server, "Answers_total") - before) < 1:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert counted == 1


def test_no_request_leaves_a_line_in_the_log(server: Deployment) -> None:
    before = (server.place.logs / "torchserve.log").read_bytes()
    for image in crops(20):
        assert server.predict(image).status_code == 200
    after = (server.place.logs / "torchserve.log").read_bytes()
    assert after.removeprefix(before).count(b"\n") < 5
