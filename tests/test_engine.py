"""What runs the net: in floats it is the reference, in 8-bit integers it comes near."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from joblib import cpu_count

import model
from classifier.archiving import archive
from classifier.errors import ArchiveError
from model import EngineError, WeightsError, engine_torch
from model.engine import for_one
from model.engine_openvino import SIZES, OpenVinoEngine
from model.engine_torch import CudaEngine, TorchEngine
from model.net import Net
from model.weights import INT8, fit, read
from training import int8, slim
from training.data import Images

from . import reference
from .images import crops

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILES = ("weights.safetensors", "weights.lock", "index_to_name.json", *INT8)


class Recorder:
    """Lets a request of OpenVINO infer, and notes of how many images each time."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.run: list[int] = []

    def infer(self, inputs: NDArray[np.uint8], **options: bool) -> Any:
        """Run the images."""
        self.run.append(len(inputs))
        return self.request.infer(inputs, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what `model.load` reads."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in FILES:
        shutil.copy(Path("model") / name, folder)
    return folder


def test_integers_agree_with_floats_on_crops_of_a_photo() -> None:
    images = list(crops(200))
    pixels = np.stack([model.decode(image) for image in images])
    rows = model.load("model", "openvino").probabilities(pixels)
    expected = np.array([list(row.values()) for row in reference.probabilities(images)])
    assert rows.dtype == np.float32
    assert np.allclose(rows.sum(1), 1, atol=1e-5)
    assert abs(rows - expected).mean() < 0.01
    assert (rows.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_integers_are_as_good_as_the_lock_says(test_images: Images) -> None:
    count = 2000
    pixels, targets = test_images.pixels[:count].numpy(), test_images.targets[:count].numpy()
    integers, floats = (
        model.load("model", engine).probabilities(pixels).argmax(1)
        for engine in ("openvino", "torch")
    )
    lock = json.loads(Path("model/weights.lock").read_text())
    accuracy, says = lock["accuracy"]["cifar10-test"], lock["int8"]
    assert accuracy - says["accuracy"] <= int8.MOST_LOST
    assert says["agreement"] >= int8.LEAST_AGREEMENT
    spread = (says["agreement"] * (1 - says["agreement"]) / count) ** 0.5
    assert abs((integers == floats).mean() - says["agreement"]) < 4 * spread
    assert abs((integers == targets).mean() - (floats == targets).mean()) < 0.005


def test_any_number_of_images_makes_a_batch() -> None:
    classifier = model.load("model", "openvino", threads=1)
    pixels = np.stack([model.decode(image) for image in crops(33)])
    whole = classifier.probabilities(pixels)
    assert whole.shape == (33, 10)
    single = np.concatenate([classifier.probabilities(image[None]) for image in pixels])
    assert abs(whole - single).max() < 1e-5
    assert classifier.engine.describe() == {
        "engine": "openvino",
        "precision": "int8",
        "device": "cpu",
        "threads": 1,
        "threads_alone": 1,
    }
    assert isinstance(classifier.engine, OpenVinoEngine)
    assert not classifier.engine.compiled.get_property("ENABLE_CPU_PINNING")


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [(1, 1, 1), (2, 1, 2), (64, 1, 2), (64, 8, 8), (2, None, None)],
)
def test_an_image_alone_gets_the_core_that_nobody_uses(
    cores: int, threads: int | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert for_one(threads) == expected


def test_an_image_alone_is_run_by_the_threads_for_one() -> None:
    engine = model.load("model", "openvino", threads=1, alone=2).engine
    assert isinstance(engine, OpenVinoEngine)
    pixels = np.stack([model.decode(image) for image in crops(2)])
    whole = engine.probabilities(pixels)
    threads = [
        each.get_property("INFERENCE_NUM_THREADS") for each in (engine.compiled, engine.alone)
    ]
    assert threads == [1, min(2, cpu_count())]
    alone, shared = Recorder(engine.local.alone), Recorder(engine.local.request)
    engine.local.alone, engine.local.request = alone, shared
    first = engine.probabilities(pixels[:1])
    second = engine.probabilities(pixels[1:])
    assert (alone.run, shared.run) == ([1, 1], [])
    found = np.concatenate([first, second])  # what was answered first is not written over
    assert abs(found - whole).max() < 1e-5
    engine.probabilities(pixels)
    assert (alone.run, shared.run) == ([1, 1], [2])


def test_no_two_requests_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model.load("model", "openvino", threads=1, alone=2).engine
    assert isinstance(engine, OpenVinoEngine)
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    request, making = engine.compiled.create_infer_request(), engine.making
    made: list[bool] = []

    class Compiled:
        def create_infer_request(self) -> Any:
            made.append(making.locked())
            return request

    engine.probabilities(pixels)
    monkeypatch.setattr(engine, "compiled", Compiled())
    monkeypatch.setattr(engine, "alone", Compiled())
    with ThreadPoolExecutor(1) as other:
        other.submit(engine.probabilities, pixels).result()
    engine.probabilities(pixels)  # here one was made when the engine was
    assert made == [True, True], "one for an image alone, one for more"


def test_batches_of_all_sizes_are_run_in_few(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model.load("model", "openvino", threads=1).engine
    assert isinstance(engine, OpenVinoEngine)
    request = engine.compiled.create_infer_request()
    recorder = Recorder(request)
    monkeypatch.setattr(engine.local, "request", recorder)
    pixels = np.stack([model.decode(image) for image in crops(131)])
    whole = request.infer(pixels)[0]
    for count in (0, 1, 16, 17, 63, 131):
        found = engine.probabilities(pixels[:count])
        assert found.shape == (count, 10)
        assert abs(found - whole[:count]).max(initial=0) < 1e-5
    assert set(recorder.run) <= set(SIZES)
    assert recorder.run[-3:] == [64, 64, 3], "as few as can be"


def test_a_channel_of_a_wide_range_takes_nothing_from_the_others() -> None:
    state = read(Path("model"))
    state["conv3.weight"][0] /= 1000  # a channel that is almost silent in training,
    state["conv3.bias"][0] = 0
    state["norm3.running_mean"][0], state["norm3.running_var"][0] = 0, 0
    state["norm3.weight"][0], state["norm3.bias"][0] = 500, 0  # is blown up by its norm,
    state["conv4.weight"][:, 0] /= 10000  # and hardly read
    net = fit(state, 10)
    pixels = torch.from_numpy(np.stack([model.decode(image) for image in crops(100)]))
    same = copy.deepcopy(net)
    int8.equalise(same, [pixels])
    floats = TorchEngine(net).probabilities(pixels.numpy())
    assert abs(TorchEngine(same).probabilities(pixels.numpy()) - floats).max() < 1e-5
    images = Images(pixels, torch.zeros(100, dtype=torch.int64))
    graph, constants = int8.quantise(net, images)
    integers = OpenVinoEngine(graph, constants, threads=1).probabilities(pixels.numpy())
    assert abs(integers - floats).max() < 0.1
    assert len(int8.quantise(net, images, slim=False)[1]) > len(constants), "all channels"


@pytest.mark.parametrize("scale", [1, 1e6])
def test_a_channel_that_others_can_stand_in_for_is_left_out(scale: float) -> None:
    """Of 40, 20 are of their own, 16 are sums of these, two are always 0, and two always as far."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(8, 20, 9, 9, generator=generator, dtype=torch.float64)
    constant = torch.tensor([0, 0, 2, -3]).view(4, 1, 1).expand(8, 4, 9, 9).double()
    pixels = torch.cat([own, own[:, :16] + own[:, 1:17], constant], 1)
    pixels = pixels[:, torch.randperm(40, generator=generator)]
    weight = torch.randn(50, 40, 3, 3, generator=generator, dtype=torch.float64)
    pixels[:, 0] *= scale  # blown up by its norm, and hardly read
    weight[:, 0] /= scale
    flat = pixels.transpose(0, 1).flatten(1)
    kept, thin = slim.thin(flat @ flat.T / flat.shape[1], weight.flatten(2))
    assert len(kept) == 32, "21 would do, but what stays is a multiple of 16"
    expected = torch.conv2d(pixels, weight, padding=1)
    found = torch.conv2d(pixels[:, kept], thin.view(50, 32, 3, 3), padding=1)
    assert abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_channels_that_tell_nothing_are_no_error(value: float) -> None:
    moment = torch.full((32, 32), value, dtype=torch.float64)
    kept, weight = slim.thin(moment, torch.ones(1, 32, 1, dtype=torch.float64))
    assert weight.shape == (1, len(kept), 1)
    assert len(kept) == (16 if value == 0 else 32)


def test_a_net_of_fewer_channels_answers_the_same() -> None:
    state = read(Path("model"))
    state["conv3.weight"][::2], state["conv3.bias"][::2] = 0, 1  # 64 of 128 never change
    net = fit(state, 10)
    net.conv1.bias = None
    images = np.stack([model.decode(image) for image in crops(200)])
    slender = copy.deepcopy(net)
    slim.leave_out(slender, torch.from_numpy(images[:100]).split(50))
    widths = [len(getattr(slender, norm).weight) for _, norm, _ in net.CHANNELS]
    assert widths[2] <= 80
    assert widths[6] == 256, "of 100 images, too few to know"
    assert [len(getattr(slender, maker).weight) for maker, _, _ in net.CHANNELS] == widths
    floats = TorchEngine(net).probabilities(images[100:])
    assert abs(TorchEngine(slender).probabilities(images[100:]) - floats).max() < 0.05


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_threads_may_share_an_engine(engine: str) -> None:
    classifier = model.load("model", engine, threads=1)
    pixels = [model.decode(image)[None] for image in crops(20)] * 10
    expected = [classifier.probabilities(image) for image in pixels[:20]] * 10
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(classifier.probabilities, pixels))
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_images_may_lie_in_memory_in_any_order(engine: str) -> None:
    images = np.stack([model.decode(image) for image in crops(3)])
    turned = np.ascontiguousarray(images[..., ::-1])[..., ::-1]  # as from OpenCV's BGR
    classifier = model.load(Path("model"), engine)
    expected = classifier.probabilities(images)
    assert np.array_equal(classifier.probabilities(turned), expected)


def test_signals_still_arrive_when_engines_have_gone() -> None:
    """In a process of its own: where it fails, it fails by a segmentation fault."""
    code = """
import gc, signal, model
arrived = []
signal.signal(signal.SIGUSR1, lambda *_: arrived.append(True))
first = model.load("model", "openvino")
second = model.load("model", "openvino")
del first
gc.collect()
del second
gc.collect()
signal.raise_signal(signal.SIGUSR1)
print(len(arrived))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_auto_takes_integers_where_it_can(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(model.load(folder).engine, OpenVinoEngine)
    assert isinstance(model.load(folder, "torch").engine, TorchEngine)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        assert isinstance(model.load(folder).engine, TorchEngine), "it is not installed"
        with pytest.raises(EngineError, match="needs the package of that name"):
            model.load(folder, "openvino")
    lock = json.loads((folder / "weights.lock").read_text())
    del lock["int8"]
    (folder / "weights.lock").write_text(json.dumps(lock))
    assert isinstance(model.load(folder).engine, TorchEngine), "there are none"
    with pytest.raises(WeightsError, match="no net in 8-bit integers"):
        model.load(folder, "openvino")


def test_on_a_gpu_auto_takes_floats_and_threads_are_those_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cpu, on_cuda = mock.Mock(), mock.Mock()
    monkeypatch.setattr("model.engine_torch.TorchEngine", on_cpu)
    monkeypatch.setattr("model.engine_torch.CudaEngine", on_cuda)
    model.load("model", device="cuda:1", threads=3)
    assert on_cuda.call_args.args[1:] == ("cuda:1",)
    model.load("model", "torch", threads=3)
    assert on_cpu.call_args.args[1:] == ("cpu", 3)


def test_a_net_that_makes_no_graph_runs_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_gpu, reason = mock.Mock(), RuntimeError("operation not permitted when stream is capturing")
    monkeypatch.setattr("model.engine_torch.TorchEngine", on_gpu)
    monkeypatch.setattr("model.engine_torch.CudaEngine", mock.Mock(side_effect=reason))
    assert model.load("model", device="cuda").engine is on_gpu.return_value
    assert on_gpu.call_args.args[1:] == ("cuda",)
    assert f"no CUDA graphs of this net, so it runs without them: {reason}" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_any_number_of_images_is_answered_as_on_a_cpu() -> None:
    on_gpu, on_cpu = model.load("model", device="cuda"), model.load("model", "torch")
    assert isinstance(on_gpu.engine, CudaEngine)
    assert on_gpu.engine.describe()["precision"] == "float16"
    assert 256 in on_gpu.engine.describe()["graphs"]
    pixels = np.random.default_rng(0).integers(256, size=(600, 32, 32, 3), dtype=np.uint8)
    expected = on_cpu.probabilities(pixels)
    for count in (600, 1, 0, 3, 256, 257, 64):  # not in order: what was before leaves no trace
        found = on_gpu.probabilities(pixels[:count])
        assert found.shape == (count, 10)
        assert found.dtype == np.float32
        assert abs(found - expected[:count]).max(initial=0) < 0.02
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(on_gpu.probabilities, [pixels[i : i + 3] for i in range(0, 600, 3)]))
    assert abs(np.concatenate(rows) - expected).max() < 0.02


def test_torch_has_the_threads_that_it_is_given() -> None:
    before = torch.get_num_threads()
    try:
        engine = TorchEngine(Net().eval(), threads=before + 1)
        assert engine.describe()["threads"] == torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_says_which_engines_there_are(folder: Path) -> None:
    with pytest.raises(EngineError, match="no engine 'onnx': choose one of auto, openvino, torch"):
        model.load(folder, "onnx")
    with pytest.raises(EngineError, match="runs on a CPU, not on cuda"):
        model.load(folder, "openvino", device="cuda")


@pytest.mark.parametrize("name", INT8)
def test_refuses_integers_that_are_not_those_of_the_lock(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(WeightsError, match=rf"{name} has sha256 \w+, but weights\.lock says"):
        model.load(folder)
    with pytest.raises(ArchiveError, match=rf"{name} has sha256"):
        archive.build("cifar10", "1.0", folder / "weights.safetensors", folder)
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        model.load(folder)
    with pytest.raises(ArchiveError, match=f"{name} is missing, but .* tells of it"):
        archive.build("cifar10", "1.0", folder / "weights.safetensors", folder)


@pytest.mark.parametrize(
    ("lost", "differing", "count", "too_much"),
    [
        (20, 100, 10_000, False),
        (21, 100, 10_000, True),
        (20, 101, 10_000, True),
        (-50, 50, 10_000, False),
        (1, 1, 200, False),
        (1, 2, 200, False),
        (2, 2, 200, True),
        (1, 1, 3, False),
        (1, 2, 3, True),
    ],
)
def test_integers_may_cost_only_so_much(
    lost: int, differing: int, count: int, too_much: bool
) -> None:
    assert int8.costs_too_much(lost, differing, count) is too_much


def test_torch_runs_so_many_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    core = model.load("model", "torch")
    pixels = np.random.default_rng(0).integers(256, size=(150, 32, 32, 3), dtype=np.uint8)
    whole = core.probabilities(pixels)
    sizes, run = [], engine_torch.Pipeline.forward

    def forward(pipeline: engine_torch.Pipeline, part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return run(pipeline, part)

    monkeypatch.setattr(engine_torch.Pipeline, "forward", forward)
    assert np.array_equal(core.probabilities(pixels), whole)
    assert sizes == [64, 64, 22]
