"""Archives: what they hold, that their bytes repeat, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import time
import warnings
import zipfile
from ast import Import, ImportFrom, parse, walk
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors.torch import load_file

import model
from classifier.archiving import archive, bundle
from classifier.archiving.store import check, sha256
from classifier.errors import ArchiveError, InputError
from classifier.releasing import promotion, shadow
from classifier.serving import config, warmup
from handler import classifier_handler, keep
from model.engine_torch import TorchEngine
from model.net import Net
from model.weights import INT8

from .conftest import with_engine
from .images import encode, sample

WEIGHTS = Path(archive.WEIGHTS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project's sources, in another place."""
    for folder in ("handler", "model"):
        shutil.copytree(folder, tmp_path / "project" / folder)
    return tmp_path / "project"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_holds_what_is_listed_and_nothing_else(store: Path) -> None:
    held = members(store / "cifar10-1.0.mar")
    assert sorted(held) == sorted(
        [
            "MAR-INF/MANIFEST.json",
            "classifier_handler.py",
            "index_to_name.json",
            "int8.bin",
            "int8.xml",
            "model-config.yaml",
            "requirements.txt",
            "sitecustomize.py",
            "weights.lock",
            "weights.safetensors",
            *archive.TRAVELS,
        ]
    )
    assert list(held) == sorted(held, key=Path), "in one order, wherever it is built"
    assert held["weights.safetensors"] == WEIGHTS.read_bytes()
    assert b"torch==" in held["requirements.txt"]
    assert json.loads(held["MAR-INF/MANIFEST.json"])["model"] == {
        "modelName": "cifar10",
        "modelVersion": "1.0",
        "handler": "classifier_handler.py",
        "serializedFile": "weights.safetensors",
        "configFile": "model-config.yaml",
        "requirementsFile": "requirements.txt",
        "extensions": {"weights": "released"},
    }


def test_pins_every_package_that_its_code_imports(store: Path) -> None:
    held = members(store / "cifar10-1.0.mar")
    lines = [line.split("#")[0].strip() for line in held["requirements.txt"].decode().splitlines()]
    pinned = {line.partition("==")[0] for line in lines if line}
    assert all("==" in line for line in lines if line)
    imported = set[str]()
    for node in (
        n for name, data in held.items() if name.endswith(".py") for n in walk(parse(data))
    ):
        if isinstance(node, Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ImportFrom) and node.level == 0:
            imported.add((node.module or "").partition(".")[0])
    packages = {"PIL": "pillow"}
    foreign = imported - sys.stdlib_module_names - {"model", "handler", "ts"}  # ts: the server
    assert {packages.get(name, name) for name in foreign} == pinned


def test_same_inputs_give_same_bytes_elsewhere_and_later(store: Path, project: Path) -> None:
    for i, path in enumerate(sorted(project.rglob("*"), reverse=True)):
        os.utime(path, (i, i))  # another time, and another order of changes
    umask = os.umask(0o077)
    try:
        released = project / "model" / "weights.safetensors"
        built = archive.build("cifar10", "1.0", released, project / "store", project)
    finally:
        os.umask(umask)
    assert built.read_bytes() == (store / "cifar10-1.0.mar").read_bytes()


def test_does_not_tell_the_time(store: Path, tmp_path: Path) -> None:
    now = time.time()
    while time.time() < now + 2:  # a zip file's clock ticks every two seconds
        built = archive.build("cifar10", "1.0", WEIGHTS, tmp_path)
    assert sha256(built) == sha256(store / "cifar10-1.0.mar")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        archive.build("cifar10", "1.0", WEIGHTS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_versions_give_other_bytes(store: Path, tmp_path: Path) -> None:
    built = archive.build("cifar10", "2.0", WEIGHTS, tmp_path)
    assert built.name == "cifar10-2.0.mar"
    check(built, "cifar10", "2.0")
    assert sha256(built) != sha256(store / "cifar10-1.0.mar")


def test_refuses_what_is_no_version(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="'one' is no version by PEP 440"):
        archive.build("cifar10", "one", WEIGHTS, tmp_path)


def test_takes_a_state_dict_saved_by_torch(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Net().eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    built = archive.build("cifar10", "3.0", tmp_path / "net.pth", tmp_path)
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8).numpy()
    expected = TorchEngine(net).probabilities(pixels)
    assert abs(bundle.load(built).probabilities(pixels) - expected).max() < 1e-6


def test_takes_tensors_that_share_their_memory(tmp_path: Path) -> None:
    state = load_file(WEIGHTS)
    torch.save({**state, "tied": state["fc2.weight"]}, tmp_path / "net.pth")
    held = safetensors.torch.load(archive.read_weights(tmp_path / "net.pth")["weights.safetensors"])
    assert torch.equal(held["tied"], held["fc2.weight"])


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("trapped",))


def test_runs_no_code_that_hides_in_a_state_dict(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(pickle.dumps({"conv1.weight": _Trap()}))
    with pytest.raises(ArchiveError, match="neither safetensors nor a state dict"):
        archive.read_weights(tmp_path / "net.pth")
    assert not Path("trapped").exists()


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."]
)
def test_takes_a_state_dict_as_trainers_leave_it(
    tmp_path: Path, key: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in load_file(WEIGHTS).items()}
    torch.save({"epoch": 3, key: state} if key else state, tmp_path / "net.ckpt")
    held = archive.read_weights(tmp_path / "net.ckpt")
    assert safetensors.torch.load(held["weights.safetensors"]).keys() == load_file(WEIGHTS).keys()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["net", "list", "epoch", "script", "text", "nothing"])
def test_what_holds_no_state_dict_is_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.pth"
    if kind == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    elif kind in ("text", "nothing"):
        path.write_text("hello" if kind == "text" else "")
    else:
        torch.save({"net": Net(), "list": [1], "epoch": {"epoch": 3, "at": 1}}[kind], path)
    with warnings.catch_warnings(action="error"), pytest.raises(ArchiveError) as caught:
        archive.read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is neither safetensors nor a state dict saved by torch")
    assert ("but holds epoch, at: write" in message) == (kind == "epoch")
    assert message.endswith(
        ": write one by torch.save(net.state_dict(), PATH); a checkpoint may hold it under "
        "state_dict or model_state_dict"
    )


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is a folder: name the file of weights in it"):
        archive.read_weights(tmp_path)


def test_refuses_weights_that_do_not_fit_the_net_in_one_line(tmp_path: Path) -> None:
    torch.save(Net(classes=7).state_dict(), tmp_path / "seven.pth")
    shapes = r"fc2\.weight \[7, 256\], not \[10, 256\], fc2\.bias \[7\], not \[10\]"
    expected = rf"seven\.pth: weights don't fit Net\(10\): of another shape: {shapes}"
    own = re.escape(str(tmp_path / "index_to_name.json"))
    hint = (
        rf"\. model/index_to_name\.json says how many labels there are, for there is no {own}; "
        r"docs/own-net\.md tells of another net, with which \[cifar10\] must go .*toml$"
    )
    with pytest.raises(ArchiveError, match=expected + hint):
        archive.build("cifar10", "2.0", tmp_path / "seven.pth", tmp_path)
    renamed = {f"net.{name}": tensor for name, tensor in Net().state_dict().items()}
    torch.save(renamed, tmp_path / "net.pth")
    missing = r"missing: conv1\.weight, conv1\.bias, norm1\.weight and 48 more"
    unknown = r"unknown: net\.conv1\.bias, net\.conv1\.weight, net\.conv2\.bias and 48 more"
    with pytest.raises(ArchiveError, match=f"{missing}; {unknown}{hint}"):
        archive.build("cifar10", "2.0", tmp_path / "net.pth", tmp_path)
    assert not list(tmp_path.glob("*.mar"))


def test_refuses_weights_that_are_not_those_of_their_lock(tmp_path: Path) -> None:
    for name in (WEIGHTS.name, "weights.lock", *archive.INT8):
        shutil.copy(WEIGHTS.with_name(name), tmp_path)
    path = tmp_path / WEIGHTS.name
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ArchiveError, match=r"has sha256 \w+, but weights\.lock says"):
        archive.build("cifar10", "2.0", path, tmp_path)


def test_refuses_weights_that_are_called_safetensors_and_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(ArchiveError, match="is no safetensors file"):
        archive.build("cifar10", "2.0", path, tmp_path)


WRONG = {
    "no Net": ("net.py", "class Net(", "class Network(", "ImportError: cannot import name 'Net'"),
    "no classes": (
        "net.py",
        "self, classes: int = 10, ",
        "self, ",
        "model/net.py, line .*TypeError",
    ),
    "one image at a time": (
        "net.py",
        ".flatten(1)",
        ".reshape(1, -1)",
        "model/net.py, line .* mat1",
    ),
    "one row": (
        "net.py",
        "return logits",
        "return logits[:1]",
        "array of 1×10, not 2×10: requests",
    ),
    "more columns": ("net.py", "return logits", "return logits.repeat(1, 2)", "2×20, not 2×10"),
    "no tensor": ("net.py", "return logits", "return logits, x", "AttributeError: 'tuple' object"),
    "no package": ("net.py", "from torch", "import absent\nfrom torch", "install it, and name it"),
    "other size": ("image.py", "SIZE = (32, 32)", "SIZE = (64, 64)", "model/net.py, line .* mat1"),
    "no size": ("image.py", "SIZE = (32, 32)", "SIZE = 32", "model/image.py, line .*TypeError"),
}
"""What may be wrong with a net or a preprocessing of one's own: a file, a change, what is told."""


@pytest.mark.parametrize(("file", "old", "new", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_an_own_net_is_told_in_one_line(
    project: Path, tmp_path: Path, file: str, old: str, new: str, told: str
) -> None:
    path = project / "model" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    torch.save(load_file(WEIGHTS), tmp_path / "net.pth")
    with pytest.raises(ArchiveError, match=told) as caught:
        archive.build("own", "1.0", tmp_path / "net.pth", tmp_path, project)
    assert "_archived_model" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_net_may_lie_in_more_than_one_file(project: Path, tmp_path: Path) -> None:
    net = project / "model" / "net.py"
    net.rename(net.with_name("layers.py"))
    net.write_text("from .layers import Net as Net\n")
    built = archive.build("own", "1.0", project / WEIGHTS, tmp_path, project)
    assert bundle.load(built, "torch").predict(sample()).label == "cat"


@pytest.mark.parametrize("name", ["my model", "", "../x", "-x"])
def test_refuses_what_is_no_name_of_a_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="is no name of a model: write letters"):
        archive.build(name, "1.0", Path(WEIGHTS), tmp_path)


def test_a_promoted_version_is_built_as_it_was_or_not_at_all(store: Path, tmp_path: Path) -> None:
    shutil.copy(store / "cifar10-1.0.mar", tmp_path)
    same = sha256(store / "cifar10-1.0.mar")
    archive.build("cifar10", "1.0", Path(WEIGHTS), tmp_path, promoted=same)
    torch.save(load_file(WEIGHTS), tmp_path / "other.pth")
    with pytest.raises(ArchiveError, match=r"was promoted, and this would be another"):
        archive.build("cifar10", "1.0", tmp_path / "other.pth", tmp_path, promoted=same)
    assert sha256(tmp_path / "cifar10-1.0.mar") == same


def test_refuses_released_weights_without_their_lock(project: Path) -> None:
    (project / "model" / "weights.lock").unlink()
    with pytest.raises(ArchiveError, match=r"released weights need their lock"):
        archive.build("cifar10", "1.0", project / WEIGHTS, project, project)
    elsewhere = project / "model" / ".." / WEIGHTS
    with pytest.raises(ArchiveError, match=r"released weights need their lock"):
        archive.build("cifar10", "1.0", elsewhere, project, project)


def test_a_failed_build_leaves_the_archive_that_is_there(store: Path, tmp_path: Path) -> None:
    shutil.copy(store / "cifar10-1.0.mar", tmp_path)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ArchiveError):
        archive.build("cifar10", "1.0", tmp_path / "other.pth", tmp_path)
    assert sha256(tmp_path / "cifar10-1.0.mar") == sha256(store / "cifar10-1.0.mar")


def test_is_outdated_when_the_code_changed(store: Path, project: Path) -> None:
    built = store / "cifar10-1.0.mar"
    assert not archive.is_outdated(built, project)
    with (project / "model" / "net.py").open("a") as file:
        file.write("# changed\n")
    assert archive.is_outdated(built, project)
    assert archive.is_outdated(store / "absent.mar", project)


def test_is_built_where_it_is_missing_and_not_again(tmp_path: Path) -> None:
    built = archive.refresh(tmp_path)
    assert built == tmp_path / "cifar10-1.0.mar"
    assert built.is_file()
    assert archive.refresh(tmp_path) is None
    built.unlink()
    assert archive.refresh(tmp_path) == built


def test_is_outdated_when_other_weights_were_released(store: Path, project: Path) -> None:
    lock = project / "model" / "weights.lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "more": 1}))
    assert archive.is_outdated(store / "cifar10-1.0.mar", project)


def test_is_not_outdated_when_it_was_built_from_other_weights(
    tmp_path: Path, project: Path
) -> None:
    torch.save(load_file(WEIGHTS), tmp_path / "mine.pth")
    built = archive.build("cifar10", "1.0", tmp_path / "mine.pth", tmp_path)
    (project / "model" / "net.py").write_text("changed")
    assert not archive.is_outdated(built, project)


def test_refuses_weights_that_give_no_numbers(tmp_path: Path) -> None:
    state = load_file(WEIGHTS)
    state["fc2.bias"][3] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ArchiveError, match=r"nan\.pth gives no numbers"):
        archive.build("cifar10", "2.0", tmp_path / "nan.pth", tmp_path)


@pytest.mark.parametrize("text", ['{"0": ["n1", "tench"]}', '{"1": "car"}', "[]", "{"])
def test_refuses_labels_that_are_none(tmp_path: Path, text: str) -> None:
    torch.save(Net(classes=1).state_dict(), tmp_path / "net.pth")
    (tmp_path / "index_to_name.json").write_text(text)
    with pytest.raises(ArchiveError, match=r"index_to_name\.json|don't fit Net\(0\)"):
        archive.build("cifar10", "2.0", tmp_path / "net.pth", tmp_path)


@pytest.mark.parametrize("lock", ["[]", "{", "1"])
def test_refuses_a_lock_that_is_none(tmp_path: Path, lock: str) -> None:
    shutil.copy(WEIGHTS, tmp_path)
    (tmp_path / "weights.lock").write_text(lock)
    with pytest.raises(ArchiveError, match=r"weights\.lock"):
        archive.build("cifar10", "2.0", tmp_path / WEIGHTS.name, tmp_path)


def test_runs_an_archive_with_the_engine_that_is_asked_for(store: Path) -> None:
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8).numpy()
    archived = store / "cifar10-1.0.mar"
    floats, picked = (bundle.load(archived, e).probabilities(pixels) for e in ("torch", None))
    assert (floats == model.load("model", "torch").probabilities(pixels)).all()
    assert (picked != floats).any(), "the archive picks integers"


def test_runs_an_archive_with_the_engine_that_it_picks(tmp_path: Path) -> None:
    project = with_engine("torch", tmp_path)
    archived = archive.build("cifar10", "2.0", project / WEIGHTS, tmp_path, project)
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8).numpy()
    expected = model.load("model", "torch").probabilities(pixels)
    assert (bundle.load(archived).probabilities(pixels) == expected).all()


def test_what_is_no_archive_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"absent\.mar is missing"):
        bundle.load(tmp_path / "absent.mar")
    (tmp_path / "x.mar").write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match=r"x\.mar is damaged"):
        bundle.load(tmp_path / "x.mar")
    with pytest.raises(ArchiveError, match=r"cifar10 is no file: name a \.mar file, or a version"):
        bundle.load("cifar10")


def test_loaded_it_takes_every_kind_of_picture(store: Path) -> None:
    loaded = bundle.load(store / "cifar10-1.0.mar")
    photo = sample()
    alone = [loaded.predict(picture) for picture in (photo, np.asarray(photo), encode(photo))]
    assert alone[0].label == "cat"
    assert alone[0].version == "1.0"
    for one in alone:
        assert one.probabilities == pytest.approx(alone[0].probabilities, abs=1e-5)
    dark = Image.new("RGB", photo.size)
    first, second = loaded.predict([photo, dark])
    assert first.label == "cat"
    assert second.probabilities == pytest.approx(loaded.predict(dark).probabilities, abs=1e-5)
    assert second.probability < 0.9 < first.probability
    with pytest.raises(InputError, match="3×32×32 is no picture"):
        loaded.predict(np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(InputError, match="not an image"):
        loaded.predict([encode(photo), b"no image"])


def test_an_engine_is_imported_from_where_the_archive_is_unpacked_now(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("_archived_model_")]:
        monkeypatch.delitem(sys.modules, name)
    for engine in ("openvino", "torch"):  # the first one's folder has gone when torch is needed
        bundle.load(store / "cifar10-1.0.mar", engine)


SLOW = """
import time
time.sleep(0.5)
class Core:
    labels = ("cat",)
def load(folder, engine):
    return Core()
"""


def test_threads_may_load_at_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text(SLOW)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(bundle.load_folder, [tmp_path] * 4, ["slow"] * 4))
    assert [one.labels for one in loaded] == [("cat",)] * 4


@pytest.mark.parametrize(
    ("code", "message"),
    [("", "has no attribute 'load'"), ("def load(*_):\n    1 / 0", "ZeroDivisionError: division")],
)
def test_a_package_that_is_not_ours_is_told(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text(code)
    with pytest.raises(ArchiveError, match=f"theirs: .*{message}"):
        bundle.load_folder(tmp_path, "theirs")


def test_runs_the_archived_code_and_two_versions_at_once(store: Path, project: Path) -> None:
    source = project / "model" / "classifier.py"
    source.write_text(source.read_text().replace("ies(pixels)\n", "ies(pixels)[:, ::-1]\n"))
    released = project / "model" / "weights.safetensors"
    changed = bundle.load(archive.build("cifar10", "2.0", released, project, project))
    original = bundle.load(store / "cifar10-1.0.mar")
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8).numpy()
    expected = original.probabilities(pixels)[:, ::-1]
    assert (changed.probabilities(pixels) == expected).all()
    assert (original.probabilities(pixels)[:, ::-1] == expected).all()


def test_the_tool_and_what_it_archives_mean_the_same() -> None:
    """Neither can import the other: an archive travels alone, and an image has no handler/."""
    assert config.THREADS == classifier_handler.THREADS
    assert config.KEEP == keep.KEEP
    told = {*warmup.HEADERS, *promotion.HEADERS, *shadow.HEADERS} - {"Content-Type"}
    assert told == classifier_handler.UNCOUNTED
    assert archive.INT8 == INT8
