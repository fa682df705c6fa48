"""The model store, releases.toml and the configuration that comes of them."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import pytest
import yaml

from classifier.archiving.archive import MODEL, VERSION
from classifier.archiving.store import check, check_version, find, in_order, labels, versions
from classifier.errors import ArchiveError, ReleasesError, ServerError
from classifier.serving import config, releases
from classifier.serving.releases import Release

MODEL_CONFIG = Path("model/model-config.yaml")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    for version in ("1.0", "2.0", "10.0", "2.1rc1"):
        (tmp_path / f"cifar10-{version}.mar").touch()
    (tmp_path / "cifar10-old.mar").touch()
    (tmp_path / "cifar10-50-2.mar").touch()  # 2 of a model cifar10-50, and not 50.post2
    (tmp_path / "pets-3.0.mar").touch()
    return tmp_path


def test_versions_are_in_order_and_latest_is_the_highest(full: Path) -> None:
    assert versions(full, "cifar10") == ["1.0", "2.0", "2.1rc1", "10.0"]
    assert find(full, "cifar10:latest").name == "cifar10-10.0.mar"
    assert find(full, "cifar10").name == "cifar10-10.0.mar"
    assert find(full, "cifar10:2.0").name == "cifar10-2.0.mar"
    assert find(full, "cifar10-50:latest").name == "cifar10-50-2.mar"


def test_versions_that_others_have_registered_are_in_order() -> None:
    assert in_order(["10.0", "nightly", "9.1", "2026-11"]) == [
        "2026-11",
        "nightly",
        "9.1",
        "10.0",
    ]


def test_says_which_versions_there_are(full: Path) -> None:
    with pytest.raises(ArchiveError, match=r"no archive of cifar10:7 .*1\.0, 2\.0"):
        find(full, "cifar10:7")


def deflated_and_damaged() -> bytes:
    """Return a zip file such as torch-model-archiver itself makes, with bytes changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("file", random.Random(0).randbytes(1000))
    data = bytearray(buffer.getvalue())
    data[50:60] = b"\xff" * 10
    return bytes(data)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("one", "no version by PEP 440"),
        ("1.0RC1", "is written 1.0rc1"),
        ("v1.0", "is written 1.0"),
        ("1.0\n", "is written 1.0"),
    ],
)
def test_versions_have_one_spelling(version: str, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        check_version(version)


def test_check_finds_damage_and_false_names(store: Path, tmp_path: Path) -> None:
    good = (store / "cifar10-1.0.mar").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for data, message in (
        (good[:100_000], "is damaged"),
        (bytes(flipped), r"is damaged \(Bad CRC-32 for file 'weights"),
        (deflated_and_damaged(), "is damaged"),
        (b"no zip", "is damaged"),
    ):
        (tmp_path / "cifar10-1.0.mar").write_bytes(data)
        with pytest.raises(ArchiveError, match=message):
            check(tmp_path / "cifar10-1.0.mar", "cifar10", "1.0")
    for model, version in (("cifar10", "2.0"), ("pets", "1.0")):
        with pytest.raises(ArchiveError, match=r"is an archive of cifar10 1\.0"):
            check(store / "cifar10-1.0.mar", model, version)
    with zipfile.ZipFile(tmp_path / "x.mar", "w") as packed:
        packed.writestr("file", "")
    with pytest.raises(ArchiveError, match="no manifest"):
        check(tmp_path / "x.mar", "cifar10", "1.0")


def test_the_committed_releases_name_the_released_weights() -> None:
    release, *_ = releases.read(Path("releases.toml"))  # README has users add models
    assert release == Release(MODEL, VERSION, (VERSION,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no model"),
        ("[cifar10", "is no TOML"),
        ("cifar10 = 1", "is no table"),
        ('[cifar10]\ndefault = "1.0"', "needs versions"),
        ('[cifar10]\ndefault = "1.0"\nversions = []', "needs versions"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0", "1.0"]', "needs versions"),
        ('[cifar10]\ndefault = "3.0"\nversions = ["1.0"]', "default '3.0'.* none of its versions"),
        ('[cifar10]\nversions = ["1.0"]', "default None"),
        ('[cifar10]\ndefault = "x y"\nversions = ["x y"]', "no version by PEP 440"),
        ("[cifar10]\ndefault = 1.0\nversions = [1.0]", "needs versions"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\nworkers = 0', "workers to be 1 or more"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\nworkers = true', "workers to be 1"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\ndelay = -1', "delay to be 0 or more"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\nkeep = 0', "keep to be more than 0"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\nkeep = 1.1', "keep to be more than 0"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\nkeep = true', "keep to be more than 0"),
        ('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\nworker = 2', "unknown keys: worker"),
    ],
)
def test_says_what_is_wrong_with_releases(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "releases.toml"
    path.write_text(text)
    with pytest.raises(ReleasesError, match=message):
        releases.read(path)


def test_takes_the_least_and_the_most_that_may_be(tmp_path: Path) -> None:
    path = tmp_path / "releases.toml"
    numbers = "workers = 1\nthreads = 1\nbatch = 1\ndelay = 0\nkeep = 1"
    path.write_text(f'[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\n{numbers}\n')
    assert releases.read(path) == [Release("cifar10", "1.0", ("1.0",), 1, 1, 1, 0, 1)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleasesError, match=r"releases\.toml is missing"):
        releases.read(tmp_path / "releases.toml")
    with pytest.raises(ServerError, match=r"config\.properties is missing"):
        config.read(tmp_path / "config.properties")
    (tmp_path / "config.properties").write_text("vmargs=-Xmx1g \\\n  -Xms1g\n")
    with pytest.raises(ServerError, match="on one line"):
        config.read(tmp_path / "config.properties")


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("# für alle\n".encode("latin-1"))
    with pytest.raises(ReleasesError, match=r"file is no TOML: .*can't decode byte 0xfc"):
        releases.read(path)
    with pytest.raises(ServerError, match=r"file is not UTF-8: .*can't decode byte 0xfc"):
        config.read(path)


def test_tls_is_left_to_a_proxy(tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text("inference_address=https://127.0.0.1:8443\n")
    with pytest.raises(ServerError, match="inference_address: TLS is a proxy's"):
        config.read(path)


def test_the_generated_configuration_serves_the_releases(tmp_path: Path) -> None:
    text = config.generate(
        {"inference_address": "http://127.0.0.1:1", "load_models": "all", "model_store": "other"},
        [Release("cifar10", "2.0", ("1.0", "2.0"), workers=3)],
        Path("/store"),
        MODEL_CONFIG,
        Path("run"),
    )
    path = tmp_path / "config.properties"
    path.write_text(text)
    generated = config.read(path)
    snapshot = json.loads(generated.pop("model_snapshot"))
    assert generated == {"inference_address": "http://127.0.0.1:1", "model_store": "/store"}
    assert snapshot["modelCount"] == 2
    served = snapshot["models"]["cifar10"]
    assert {version: v["defaultVersion"] for version, v in served.items()} == {
        "1.0": False,
        "2.0": True,
    }
    assert served["2.0"]["marName"] == "cifar10-2.0.mar"
    assert served["2.0"]["minWorkers"] == served["2.0"]["maxWorkers"] == 3
    settings = yaml.safe_load(MODEL_CONFIG.read_text())
    assert served["2.0"]["responseTimeout"] == settings["responseTimeout"]


def test_files_are_named_as_they_are_found_from_elsewhere() -> None:
    own = config.read(Path("config.properties"))
    text = config.generate(own, [], Path("/store"), MODEL_CONFIG, Path("some/run"))
    assert "\nmetrics_config=../../deploy/metrics.yaml\n" in text
    assert "=../../deploy/log4j2.xml" in text


def test_what_listens_everywhere_is_asked_on_loopback() -> None:
    everywhere = {"inference_address": "http://0.0.0.0:8080"}
    assert config.address(everywhere, "inference") == "http://127.0.0.1:8080"
    assert config.listening(everywhere, "inference") == "http://0.0.0.0:8080"
    assert config.address(everywhere, "management") == "http://127.0.0.1:8081", "the default"
    one = {"inference_address": "http://10.0.0.0:8080"}
    assert config.address(one, "inference") == "http://10.0.0.0:8080"


def test_what_releases_say_of_sizes_is_served() -> None:
    release = Release("cifar10", "1.0", ("1.0",), workers=3, threads=4, batch=5, delay=6)
    assert config.sizes(release, MODEL_CONFIG) == config.Sizes(3, 4, 5, 6)
    text = config.generate({}, [release], Path("/store"), MODEL_CONFIG, Path("run"))
    assert '"batchSize": 5, "maxBatchDelay": 6' in text
    assert config.threads([release], MODEL_CONFIG) == {"CLASSIFIER_THREADS": '{"cifar10": 4}'}


def test_workers_are_told_what_to_keep(tmp_path: Path) -> None:
    path = tmp_path / "releases.toml"
    table = 'default = "1.0"\nversions = ["1.0"]\n'
    path.write_text(f"[cifar10]\n{table}keep = 0.05\n[pets]\n{table}")
    kept, other = releases.read(path)
    assert json.loads(config.keeping([kept, other], tmp_path)["CLASSIFIER_KEEP"]) == {
        "cifar10": {"folder": str(tmp_path / "cifar10"), "share": 0.05}
    }
    assert config.keeping([other], tmp_path) == {"CLASSIFIER_KEEP": "{}"}


@pytest.mark.parametrize(
    ("cores", "gpus", "workers", "threads"),
    [(1, 0, 1, 1), (2, 0, 2, 1), (8, 0, 8, 1), (64, 0, 8, 8), (16, 1, 2, 8), (16, 4, 8, 2)],
)
def test_sizes_fit_the_machine(
    cores: int, gpus: int, workers: int, threads: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(config, "gpus", config.gpus.__wrapped__)  # asks each time
    monkeypatch.setattr(config, "cpu_count", lambda: cores)
    if gpus:
        smi = tmp_path / "nvidia-smi"
        lines = "".join(f"echo 'GPU {i}: NVIDIA (UUID: GPU-{i})'\n" for i in range(gpus))
        smi.write_text(f"#!/bin/sh\n{lines}echo 'a note'\n")
        smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if gpus else str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = yaml.safe_load(MODEL_CONFIG.read_text())
    assert config.sizes(Release("cifar10", "1.0", ("1.0",)), MODEL_CONFIG) == config.Sizes(
        workers, threads, settings["batchSize"], 0
    )


def test_the_static_configuration_repeats_the_model_s_batching() -> None:
    static = config.read(Path("config.properties"))
    (served,) = json.loads(static["model_snapshot"])["models"]["cifar10"].values()
    settings = yaml.safe_load(MODEL_CONFIG.read_text())
    for key in ("batchSize", "responseTimeout"):
        assert served[key] == settings[key]
    assert served["maxBatchDelay"] == Release("cifar10", "1.0", ("1.0",)).delay


def test_the_model_s_configuration_sets_no_workers() -> None:
    settings = yaml.safe_load(MODEL_CONFIG.read_text())
    assert not {"minWorkers", "maxWorkers"} & settings.keys()


@pytest.mark.parametrize("said", [None, b"{}", b'{"0": ["n01440764", "tench"]}', b"[]", b"\xff"])
def test_an_archive_without_names_for_its_classes_is_told(
    store: Path, tmp_path: Path, said: bytes | None
) -> None:
    """TorchServe's own archives may have none, or lists of names."""
    with (
        zipfile.ZipFile(store / "cifar10-1.0.mar") as ours,
        zipfile.ZipFile(tmp_path / "cifar10-1.0.mar", "w") as theirs,
    ):
        theirs.writestr("MAR-INF/MANIFEST.json", ours.read("MAR-INF/MANIFEST.json"))
        if said is not None:
            theirs.writestr("index_to_name.json", said)
    with pytest.raises(ArchiveError, match=r"cifar10-1\.0\.mar has no index_to_name\.json with"):
        labels(tmp_path, ["cifar10:1.0"])
    assert labels(store, ["cifar10:1.0"])[3] == "cat"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("inference_address=http://127.0.0.1:808O", "808O is no address"),
        ("inference_address=http://127.0.0.1:80800", "80800 is no address"),
        ("readiness_address=127.0.0.1:8083", "readiness_address=127.0.0.1:8083 is no address"),
        ("readiness_address=http://127.0.0.1:8083/ready", "/ready is no address"),
        ("inference_address=http://127.0.0.1:8080/", ":8080/ is no address"),
        ("inference_address=http://me@127.0.0.1:8080", "me@127.0.0.1:8080 is no address"),
        ("management_address=http://[::1]:8081", "is no address: write http://, a name or an IPv4"),
        ("grpc_inference_port=", "grpc_inference_port= is no port"),
        ("grpc_inference_port=many", "grpc_inference_port=many is no port: write a number"),
        ("inference_address: http://127.0.0.1:9090", "write the setting 'inference_address: http"),
        ("vmargs: -Dfile=x", "write the setting 'vmargs: -Dfile=x' as key=value"),
        ("job_queue_size 512", "write the setting 'job_queue_size 512' as key=value"),
    ],
)
def test_what_is_no_address_or_port_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "config.properties"
    path.write_text(f"{line}\n")
    with pytest.raises(ServerError) as caught:
        config.read(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["batchSize: 16\n", "batchSize: [\n", "batchSize: many\n", ""])
def test_a_models_configuration_without_its_numbers_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model-config.yaml"
    path.write_text(text)
    release = Release("cifar10", "1.0", ("1.0",))
    with pytest.raises(
        ServerError, match="must give a number to each of batchSize, responseTimeout"
    ):
        config.sizes(release, path)


def test_gpus_that_are_kept_from_the_server_get_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    assert config.gpus.__wrapped__() == 3
