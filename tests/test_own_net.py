"""docs/own-net.md: another net, with another size of images, from its state dict to a server."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision.models import ResNet, resnet18
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, to_dtype

from classifier import Client
from classifier.archiving import bundle

from .deployment import Deployment
from .images import encode
from .test_own_data import SHAPES, draw

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path("docs/own-net.md").read_text()
NET, CONSTANTS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(LABELS,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(COMMANDS,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.timeout(900)  # on a busy machine
EPOCHS, BATCH = 4, 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the page's steps were done, from a state dict to an archive."""
    project = tmp_path_factory.mktemp("own") / "project"
    for name in ("classifier", "handler", "model", "training"):
        shutil.copytree(name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.txt", "requirements-serving.txt", "pyproject.toml"):
        shutil.copy(name, project / name)
    shutil.copy("constraints.txt", project)
    (project / ".venv").symlink_to(Path(sys.executable).parents[1])
    (project / "model" / "net.py").write_text(NET)
    preprocessing = project / "model" / "image.py"
    text = preprocessing.read_text()
    for line in CONSTANTS.splitlines():
        name = line.partition(" ")[0]
        text, found = re.subn(rf"^{name} = .*$", line, text, flags=re.MULTILINE)
        assert found == 1, name
    preprocessing.write_text(text)
    _draw(project / "shapes")
    torch.save(_train(project / "shapes" / "train").state_dict(), project / "shapes.pth")
    (project / "index_to_name.json").write_text(LABELS)
    for path in project.rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)  # older than .venv: nothing to install
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in COMMANDS.splitlines():
        done = subprocess.run(
            shlex.split(command), cwd=project, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return project


def _draw(root: Path) -> None:
    """Draw a tree of three classes."""
    chance = random.Random(0)
    for part, count in (("train", 40), ("val", 20)):
        for shape in SHAPES:
            (root / part / shape).mkdir(parents=True)
            for i in range(count):
                draw(shape, chance).save(root / part / shape / f"{i}.png")


def _tensor(image: Image.Image) -> torch.Tensor:
    """Prepare an image as torchvision would, without anything of ours: float 3×32×48."""
    resized = image.resize((48, 32), Image.Resampling.BICUBIC)
    result: torch.Tensor = normalize(
        to_dtype(pil_to_tensor(resized), scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    return result


def _train(folder: Path) -> ResNet:
    """Train torchvision's net as somebody would who knows nothing of this project."""
    torch.manual_seed(0)
    net = resnet18(num_classes=len(SHAPES))
    files = [(path, n) for n, name in enumerate(SHAPES) for path in (folder / name).iterdir()]
    images = torch.stack([_tensor(Image.open(path)) for path, _ in files])
    targets = torch.tensor([target for _, target in files])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(files)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def deployment(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("shapes"))
    deployment.add(trained / "model_store" / "shapes-1.0.mar")
    deployment.release("1.0", ["1.0"], model="shapes")
    deployment.start()
    yield deployment
    deployment.stop()


def test_both_engines_answer_as_torchvision_does(trained: Path) -> None:
    net = resnet18(num_classes=len(SHAPES)).eval()
    net.load_state_dict(torch.load(trained / "shapes.pth"))
    chance = random.Random(1)
    drawn = [draw(shape, chance) for shape in SHAPES * 5]
    with torch.no_grad():
        expected = net(torch.stack([_tensor(image) for image in drawn])).softmax(1).numpy()
    archive = trained / "model_store" / "shapes-1.0.mar"
    for engine, most in (("torch", 1e-4), ("openvino", 0.15)):
        found = bundle.load(archive, engine).predict(drawn)
        rows = np.array([[one.probabilities[shape] for shape in SHAPES] for one in found])
        assert np.abs(rows - expected).max() < most, engine


def test_it_is_served_and_explained(deployment: Deployment) -> None:
    answer = Client(deployment.inference, "shapes").predict(draw("ring", random.Random(2)))
    assert answer.label == "ring"
    described = f"{deployment.management}/models/shapes/1.0?customized=true"
    runs = requests.get(described, timeout=60).json()[0]["customizedMetadata"]
    assert runs["engine"] == "openvino"
    picture = encode(draw("bar", random.Random(3)))
    explained = requests.post(f"{deployment.inference}/explanations/shapes", picture, timeout=120)
    assert np.array(explained.json()["map"]).shape == (32, 48)
    pixels = np.zeros((1, 32, 48, 3), int)
    tensor = {"name": "x", "shape": pixels.shape, "datatype": "UINT8", "data": pixels.tolist()}
    url = f"{deployment.inference}/v2/models/shapes/infer"
    inferred = requests.post(url, json={"inputs": [tensor]}, timeout=60)
    assert inferred.status_code == 200, inferred.text


def test_make_train_says_that_it_trains_another_net(trained: Path) -> None:
    command = ["-m", "training.train", "--data=shapes", "--name=shapes"]
    environment = {**os.environ, "PYTHONPATH": str(trained)}
    done = subprocess.run(
        [sys.executable, *command], cwd=trained, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("make train: model/net.py holds a net that this recipe is not made for")
    assert "Traceback" not in done.stderr
