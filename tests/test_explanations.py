"""Heat maps: that they mean something, and that each request gets its own."""

from __future__ import annotations

import base64
import json
import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import psutil
import pytest
import requests
import torch

import model
from handler.explanation import Explanation
from handler.question import File
from model.explanation import blur

from .deployment import together
from .images import SAMPLE, crops
from .test_lifecycle import edit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.data import Images

    from .deployment import Deployment

IMAGES = 200
MASKED = 32 * 32 // 5


@pytest.fixture(scope="module")
def classifier() -> model.Classifier:
    return model.load("model", "torch")


def masked(
    pixels: NDArray[np.uint8], covers: NDArray[np.uint8], which: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Return images N×32×32×3 with some pixels of each, N×MASKED, taken from others."""
    result = pixels.reshape(len(pixels), -1, 3).copy()
    rows = np.arange(len(pixels))[:, None]
    result[rows, which] = covers.reshape(len(pixels), -1, 3)[rows, which]
    return result.reshape(pixels.shape)


def covers(pixels: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Return what masks images: their blurred selves, or their mean colours."""
    images = torch.from_numpy(pixels).float().permute(0, 3, 1, 2)
    if kind == "blurred":
        cover = blur(images)
    else:
        cover = images.mean((2, 3), keepdim=True).expand_as(images)
    return cover.permute(0, 2, 3, 1).round().byte().numpy()


def test_masking_what_the_map_shows_costs_more_than_masking_at_random(
    classifier: model.Classifier, test_images: Images
) -> None:
    random = np.random.default_rng(0)
    chosen = random.permutation(len(test_images.targets))[:IMAGES]
    pixels = test_images.pixels[chosen].numpy()
    rows = classifier.probabilities(pixels)
    labels = rows.argmax(1)
    maps = [classifier.explain(*pair) for pair in zip(pixels, labels.tolist(), strict=True)]
    shown = np.stack([(-heat).ravel().argsort()[:MASKED] for heat in maps])
    anywhere = np.stack([random.permutation(32 * 32)[:MASKED] for _ in maps])

    def lost(which: NDArray[np.intp], kind: str) -> float:
        """Return by how much the labels' probabilities fall, on average."""
        after = classifier.probabilities(masked(pixels, covers(pixels, kind), which))
        every = np.arange(IMAGES)
        return float((rows[every, labels] - after[every, labels]).mean())

    assert lost(shown, "blurred") > lost(anywhere, "blurred") + 0.2
    assert lost(shown, "mean") > lost(anywhere, "mean") + 0.05


def test_an_image_may_lie_in_memory_in_any_order(classifier: model.Classifier) -> None:
    image = model.decode(SAMPLE.read_bytes())
    turned = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    assert np.array_equal(classifier.explain(turned, 3), classifier.explain(image, 3))


def test_an_image_of_one_colour_has_nothing_to_show(classifier: model.Classifier) -> None:
    heat = classifier.explain(np.full((32, 32, 3), 77, np.uint8), 0)
    assert heat.shape == (32, 32)
    assert not heat.any()


def test_without_captum_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = model.load("model", "torch")
    monkeypatch.delitem(sys.modules, "model.explanation", raising=False)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    pixels = model.decode(SAMPLE.read_bytes())
    with pytest.raises(model.ExplanationError, match="need the package captum"):
        classifier.explain(pixels, 0)
    monkeypatch.undo()
    assert classifier.explain(pixels, 0).any(), "it was not asked for again"


def test_what_can_not_be_explained_spoils_no_other() -> None:
    """As of a net that captum can't differentiate."""
    failing = mock.Mock(labels=["cat"])
    failing.explain.side_effect = RuntimeError("not differentiable")
    pixels = model.decode(SAMPLE.read_bytes())
    told = Explanation(File([pixels])).answer(failing, [np.array([1.0])])
    assert told.status == 500
    assert json.loads(told.body)["message"] == "no explanation: RuntimeError: not differentiable"


def explain(server: Deployment, body: Any, version: str = "", **more: Any) -> requests.Response:
    path = f"/explanations/cifar10/{version}".rstrip("/")
    return requests.post(server.inference + path, data=body, timeout=120, **more)


@pytest.mark.parametrize("version", ["1.0", "1.1"])  # torch, OpenVINO
def test_the_server_explains(
    shared_deployment: Deployment, classifier: model.Classifier, version: str
) -> None:
    image = SAMPLE.read_bytes()
    answer = explain(shared_deployment, image, version)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Model-Version"] == version
    told = answer.json()
    predicted = shared_deployment.predict(image, version).json()
    assert told["label"] == "cat"
    assert told["probability"] == pytest.approx(predicted["cat"], abs=1e-4)
    expected = classifier.explain(model.decode(image), classifier.labels.index("cat"))
    assert np.abs(np.array(told["map"]) - expected).max() < 0.01


def test_a_worker_imports_torch_when_it_is_asked_why_and_not_before(
    deployment: Deployment,
) -> None:
    deployment.start()
    image = SAMPLE.read_bytes()
    assert next(iter(deployment.predict(image).json())) == "cat"
    described = deployment.describe()["customizedMetadata"]
    assert described["engine"] == "openvino"
    (worker,) = deployment.server.management.workers("cifar10", "1.0")

    def has_torch() -> bool:
        return any("libtorch" in mapped.path for mapped in psutil.Process(worker.pid).memory_maps())

    assert not has_torch()
    assert explain(deployment, image).json()["label"] == "cat"
    assert has_torch()


def test_each_request_of_a_mixed_batch_gets_its_own(
    shared_deployment: Deployment, classifier: model.Classifier
) -> None:
    images = list(crops(4))
    explain(shared_deployment, images[0])  # so that nothing below waits for the float net

    def ask(number: int) -> requests.Response:
        if number % 3 == 0:
            return explain(shared_deployment, images[number // 3])
        if number % 3 == 1:
            return shared_deployment.predict(images[number // 3])
        return explain(shared_deployment, b"no image")

    answers = together(ask, range(12))
    assert max(int(answer.headers["X-Batch-Size"]) for answer in answers) > 3
    for number, answer in enumerate(answers):
        if number % 3 == 2:
            assert answer.status_code == 400
            assert "not an image" in answer.json()["message"]
            continue
        pixels = model.decode(images[number // 3])
        (row,) = classifier.probabilities(pixels[None])
        likeliest = int(row.argmax())
        if number % 3 == 1:
            assert next(iter(answer.json())) == classifier.labels[likeliest]
            continue
        assert answer.json()["label"] == classifier.labels[likeliest]
        expected = classifier.explain(pixels, likeliest)
        assert np.abs(np.array(answer.json()["map"]) - expected).max() < 0.01


def test_kserve_explains_each_instance(shared_deployment: Deployment) -> None:
    url = f"{shared_deployment.inference}/v1/models/cifar10:explain"
    good = {"b64": base64.b64encode(SAMPLE.read_bytes()).decode()}
    answer = requests.post(url, json={"instances": [good, "x"]}, timeout=120)
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["explanations"]
    assert first["label"] == "cat"
    assert np.array(first["map"]).shape == (32, 32)
    assert "an instance must be" in second["error"]


def test_what_can_not_be_explained_is_400(shared_deployment: Deployment) -> None:
    url = f"{shared_deployment.inference}/v1/models/cifar10:explain"
    many = requests.post(url, json={"instances": [{"b64": ""}] * 5}, timeout=60)
    assert many.status_code == 400
    assert "send 1 to 4 to explain" in many.json()["message"]
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    other = explain(shared_deployment, None, json={"inputs": [tensor]})
    assert other.status_code == 400
    assert "explanations take" in other.json()["message"]


def test_a_server_without_captum_says_501_and_predicts(deployment: Deployment) -> None:
    hide = b"\nsys.modules['captum'] = None\n"
    path = deployment.place.model_store / "cifar10-1.0.mar"
    edit(path, lambda name, data: data + hide if name == "sitecustomize.py" else data)
    deployment.start()
    image = SAMPLE.read_bytes()
    url = f"{deployment.inference}/v1/models/cifar10:explain"
    instances = {"instances": [{"b64": base64.b64encode(image).decode()}]}
    for answer in (explain(deployment, image), requests.post(url, json=instances, timeout=120)):
        assert answer.status_code == 501
        told = answer.json()
        assert told["code"] == 501
        assert "need the package captum" in told["message"]
    assert next(iter(deployment.predict(image).json())) == "cat"


def test_a_clients_header_asks_for_no_explanation(shared_deployment: Deployment) -> None:
    answer = shared_deployment.predict(SAMPLE.read_bytes(), headers={"explain": "True"})
    assert next(iter(answer.json())) == "cat"
