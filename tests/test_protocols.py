"""JSON bodies: KServe's protocol v1, and the open inference protocol v2."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from PIL import Image

from handler.question import read
from model import ImageError

from . import reference
from .deployment import together
from .images import SAMPLE, crops, encode, sample

if TYPE_CHECKING:
    from .deployment import Deployment

PATHS = {
    "v1": "/v1/models/cifar10:predict",
    "v2": "/v2/models/cifar10/infer",
}


@pytest.fixture
def server(shared_deployment: Deployment) -> Deployment:
    return shared_deployment


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def post(server: Deployment, path: str, body: Any) -> requests.Response:
    return requests.post(server.inference + path, json=body, timeout=60)


def rows(answer: dict[str, Any]) -> np.ndarray:
    """Return the probabilities of a v2 answer: N×classes."""
    (tensor,) = [t for t in answer["outputs"] if t["name"] == "probabilities"]
    assert tensor["datatype"] == "FP32"
    return np.array(tensor["data"]).reshape(tensor["shape"])


def output(answer: dict[str, Any], name: str) -> list[Any]:
    (tensor,) = [t for t in answer["outputs"] if t["name"] == name]
    assert tensor["shape"] == [len(tensor["data"])]
    return list(tensor["data"])


@pytest.mark.parametrize("path", [PATHS["v1"], "/predictions/cifar10", "/predictions/cifar10/1.0"])
def test_v1_answers_each_instance(server: Deployment, path: str) -> None:
    images = list(crops(5))
    instances = [{"b64": b64(image)} for image in images]
    instances[1] = {"image_bytes": instances[1]}  # type: ignore[dict-item]  # as for TensorFlow
    answer = post(server, path, {"instances": instances})
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    for prediction, expected in zip(predictions, reference.probabilities(images), strict=True):
        reference.assert_agrees(prediction["probabilities"], expected)
        assert prediction["label"] == next(iter(prediction["probabilities"]))


def test_v2_answers_tensors(server: Deployment) -> None:
    images = list(crops(5))
    tensor = {"name": "image", "shape": [5], "datatype": "BYTES", "data": list(map(b64, images))}
    answer = post(server, PATHS["v2"], {"id": "mine", "inputs": [tensor]}).json()
    assert (answer["model_name"], answer["model_version"]) == ("cifar10", "1.0")
    assert answer["id"] == "mine"
    expected = reference.probabilities(images)
    assert np.abs(rows(answer) - [list(e.values()) for e in expected]).max() < reference.TOLERANCE
    assert output(answer, "label") == [max(e, key=e.__getitem__) for e in expected]
    assert output(answer, "error") == [""] * 5


def test_v2_takes_pixels(server: Deployment) -> None:
    pixels = np.asarray(sample().resize((32, 32)))[None].repeat(2, 0)
    for data in (pixels.ravel().tolist(), pixels.tolist()):  # flat, or nested as the shape is
        tensor = {"name": "x", "shape": [2, 32, 32, 3], "datatype": "UINT8", "data": data}
        answer = post(server, PATHS["v2"], {"id": 7, "inputs": [tensor]}).json()
        assert "id" not in answer, "it is no text"
        assert output(answer, "label") == ["cat", "cat"]


def test_one_bad_image_of_several_is_told_in_its_place(server: Deployment) -> None:
    good, bad = b64(SAMPLE.read_bytes()), b64(b"no image")
    instances = [{"b64": good}, {"b64": bad}, "x", {"b64": 1}, {"b64": f"{good}!"}]
    v1 = post(server, PATHS["v1"], {"instances": instances})
    assert v1.status_code == 200
    first, *others = v1.json()["predictions"]
    assert first["label"] == "cat"
    for told, message in zip(
        others, ("not an image", "an instance must be", "no base64", "no base64"), strict=True
    ):
        assert message in told["error"]
    tensor = {"name": "x", "shape": [3], "datatype": "BYTES", "data": [bad, good, "?"]}
    v2 = post(server, PATHS["v2"], {"inputs": [tensor]}).json()
    assert output(v2, "label") == ["", "cat", ""]
    assert [bool(error) for error in output(v2, "error")] == [True, False, True]
    assert rows(v2)[0].sum() == 0


def test_base64_may_be_broken_into_lines(server: Deployment) -> None:
    broken = base64.encodebytes(SAMPLE.read_bytes()).decode()
    (prediction,) = post(server, PATHS["v1"], {"instances": [{"b64": broken}]}).json()[
        "predictions"
    ]
    assert prediction["label"] == "cat"


def test_files_that_take_long_to_decode_leave_the_rest_undecoded(server: Deployment) -> None:
    """Some kilobytes may hold 49 megapixels: 64 such files would hold a worker for a minute."""
    palette = Image.new("P", (7000, 7000))
    palette.putpalette([1, 2, 3])
    bomb = b64(encode(palette, transparency=1))
    (pid,) = [w.pid for w in server.server.management.workers("cifar10", "1.0")]
    answer = post(server, PATHS["v1"], {"instances": [{"b64": bomb}] * 64})
    first, *_, last = answer.json()["predictions"]
    assert "label" in first
    assert "the images before it took 3 s to decode" in last["error"]
    assert [w.pid for w in server.server.management.workers("cifar10", "1.0")] == [pid]


def test_all_forms_share_batches(server: Deployment) -> None:
    image = SAMPLE.read_bytes()
    instances = {"instances": [{"b64": b64(image)}] * 3}
    tensor = {"name": "x", "shape": [2], "datatype": "BYTES", "data": [b64(image), b64(b"bad")]}

    def ask(number: int) -> requests.Response:
        if number % 3 == 0:
            return server.predict(image)
        if number % 3 == 1:
            return post(server, PATHS["v1"], instances)
        return post(server, PATHS["v2"], {"inputs": [tensor]})

    answers = together(ask, range(15))
    assert all(answer.status_code == 200 for answer in answers)
    assert max(int(answer.headers["X-Batch-Size"]) for answer in answers) > 3
    for number, answer in enumerate(answers):
        body = answer.json()
        if number % 3 == 0:
            assert next(iter(body)) == "cat"
        elif number % 3 == 1:
            assert [p["label"] for p in body["predictions"]] == ["cat"] * 3
        else:
            assert output(body, "label") == ["cat", ""]


GOOD = b64(encode(Image.new("RGB", (8, 8))))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": []}, '"instances" holds 0 images: send 1 to 64'),
        ({"instances": [{"b64": GOOD}] * 65}, '"instances" holds 65 images'),
        ({"inputs": []}, '"inputs" must hold one tensor'),
        ({"inputs": [{}, {}]}, '"inputs" must hold one tensor'),
        ({"inputs": ["x"]}, '"inputs" must hold one tensor'),
        ({"inputs": [{"datatype": "FP32", "data": [1.0]}]}, 'must have "datatype" "BYTES"'),
        ({"inputs": [{"datatype": "BYTES", "data": [GOOD] * 65}]}, '"data" holds 65 images'),
        (
            {"inputs": [{"datatype": "BYTES", "shape": [2], "data": [GOOD]}]},
            '"shape" must be [1]: "data" holds so many files',
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [1, 2]}]},
            '"data" does not fit "shape"',
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [1, 3], "data": [1, 2, 3]}]},
            '"shape" is [1, 3], and must be [N, 32, 32, 3]',
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [1, 64, 32, 3], "data": [0] * 6144}]},
            '"shape" is [1, 64, 32, 3], and must be [N, 32, 32, 3]',
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [0, 32, 32, 3], "data": []}]},
            '"data" holds 0 images: send 1 to 64',
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [65, 32, 32, 3], "data": [0] * 199_680}]},
            '"data" holds 65 images: send 1 to 64',
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [256] * 3072}]},
            "must be whole numbers in 0 to 255",
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [-1] * 3072}]},
            "must be whole numbers in 0 to 255",
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0.7] * 3072}]},
            "must be whole numbers in 0 to 255",
        ),
        (
            {"inputs": [{"datatype": "UINT8", "shape": "x", "data": [10**30]}]},
            '"data" does not fit "shape"',
        ),
        ({"instances": "x"}, 'or JSON with "instances" or "inputs"'),
        ([1, 2], 'or JSON with "instances" or "inputs"'),
    ],
)
def test_what_is_wrong_with_the_whole_body_is_400(
    server: Deployment, body: Any, message: str
) -> None:
    answer = post(server, PATHS["v1"], body)
    assert answer.status_code == 400
    assert message in answer.json()["message"]


def test_half_an_emoji_comes_back_as_it_was_sent(server: Deployment) -> None:
    """As of a client that cuts a title: UTF-8 has no such thing, but JSON can escape it."""
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [b64(SAMPLE.read_bytes())]}
    answer = post(server, PATHS["v2"], {"id": "\ud83d", "inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "\ud83d"
    refused = post(server, PATHS["v2"], {"inputs": [tensor | {"shape": "\ud83d"}]})
    assert refused.status_code == 400, refused.text


def test_a_large_answer_costs_no_worker_its_life(server: Deployment) -> None:
    """By TorchServe's own default it would, from 6.5 MB on."""
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [b64(SAMPLE.read_bytes())]}
    answer = post(server, PATHS["v2"], {"id": "x" * 7_000_000, "inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["id"]) == 7_000_000


@pytest.mark.parametrize("key", ["id", "shape"])
def test_what_comes_back_is_not_much_longer_than_what_was_sent(
    server: Deployment, key: str
) -> None:
    """Where it is, a worker dies of it: of this, JSON and Python can make five and six times."""
    text = "\x7f" * 12_500_000
    tensor = {"name": "x", "datatype": "BYTES", "data": [b64(SAMPLE.read_bytes())]}
    half = json.dumps("\ud83d")[1:-1]
    body = (
        {"inputs": [tensor | {"shape": [text]}]}
        if key == "shape"
        else {"inputs": [tensor], "id": "<id>"}
    )
    sent = json.dumps(body, ensure_ascii=False).replace("<id>", half + text).encode()
    headers = {"Content-Type": "application/json"}
    answer = requests.post(server.inference + PATHS["v2"], sent, headers=headers, timeout=60)
    if key == "shape":
        assert "must be [1]" in answer.json()["message"]
    else:
        assert answer.json()["id"] == "\ud83d" + text
    assert len(answer.content) < 1.1 * len(sent)


def test_texts_in_place_of_pixels_take_no_memory() -> None:
    """NumPy would make each of them as long as the longest."""
    data = ["x" * 100_000, *[""] * 3071]
    tensor = {"datatype": "UINT8", "shape": [1, 32, 32, 3], "data": data}
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="must be whole numbers"):
            read({"body": {"inputs": [tensor]}}, "cifar10", "1.0")
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
