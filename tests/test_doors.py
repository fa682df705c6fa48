"""Ways into a server that nobody should have; docs/security.md says how each is closed."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import requests

from classifier.archiving import store
from classifier.serving import config, log
from classifier.serving.launch import CONSOLE
from classifier.tokens import Kind

from .deployment import PORTS

if TYPE_CHECKING:
    from .deployment import Deployment

URLS = (
    "file://{store}/x.mar",
    "{store}/x.mar",
    "http://127.0.0.1:9/x.mar",
    "https://127.0.0.1:9/x.mar",
    "../x.mar",
    "../intruder",
    "x/../../x.mar",
)
LOG_SIZE, LOG_FILES = 20_480, 6
LONGEST = 8_192
"""Bytes of one entry of the log, with a stack trace, by which a file may pass its limit."""
FORMS = 300


@pytest.fixture
def folder(deployment: Deployment, tmp_path: Path) -> Path:
    """An unpacked archive of a model called intruder, outside of the model store."""
    folder = tmp_path / "intruder"
    with zipfile.ZipFile(deployment.place.model_store / "cifar10-1.0.mar") as packed:
        packed.extractall(folder)
    manifest = folder / store.MANIFEST
    manifest.write_text(manifest.read_text().replace('"cifar10"', '"intruder"'))
    shutil.copy(deployment.place.model_store / "cifar10-1.0.mar", tmp_path / "x.mar")
    return folder


def register(deployment: Deployment, url: str, token: str = "") -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    where = f"{deployment.management}/models"
    return requests.post(where, params={"url": url}, headers=headers, timeout=60)


def test_models_come_from_the_store_alone(deployment: Deployment, folder: Path) -> None:
    deployment.start()
    for url in URLS:
        answer = register(deployment, url.format(store=folder.parent))
        assert answer.status_code == 404, answer.text
    assert deployment.server.management.models() == ["cifar10"]
    # TorchServe looks at no setting here: that is why production takes no models at all.
    assert register(deployment, str(folder)).status_code == 200
    assert "intruder" in deployment.server.management.models()


def test_production_takes_no_models_at_all(deployment: Deployment, folder: Path) -> None:
    deployment.configure(Path("deploy/config.properties"))
    deployment.start()
    token = deployment.server.token(Kind.MANAGEMENT)
    assert token is not None
    for url in (*URLS, str(folder), "cifar10-1.0.mar"):
        answer = register(deployment, url.format(store=folder.parent), token())
        assert answer.status_code == 405, answer.text
        assert register(deployment, url).status_code == 400, "without a token"
    assert deployment.server.management.models() == ["cifar10"]
    assert deployment.place.tokens.stat().st_mode & 0o777 == 0o600
    assert deployment.place.working.stat().st_mode & 0o777 == 0o700, "nor while it is written"


@pytest.mark.parametrize("path", ["config.properties", "deploy/config.properties"])
def test_everything_listens_on_loopback(deployment: Deployment, path: str) -> None:
    deployment.configure(Path(path))
    deployment.start()
    process = deployment.server.process()
    assert process is not None
    family = [process, *process.children(recursive=True)]
    listening = {
        connection.laddr
        for member in family
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) == len(PORTS) - 1, "all but the monitor's"
    assert all(ip in ("127.0.0.1", "::ffff:127.0.0.1") for ip, _ in listening), listening
    readiness = config.listening(deployment.server.properties, "readiness")
    assert readiness.startswith("http://127.0.0.1:")


def test_nonsense_does_not_fill_the_disk(deployment: Deployment, tmp_path: Path) -> None:
    """Forms that can't be parsed: TorchServe logs a stack trace for each, as an error."""
    text, small = Path("deploy/log4j2.xml").read_text(), tmp_path / "log4j2.xml"
    assert 'size="10 MB"' in text
    small.write_text(text.replace('size="10 MB"', f'size="{LOG_SIZE}"'))
    configuration = deployment.place.config.read_text()
    assert "deploy/log4j2.xml" in configuration
    deployment.place.config.write_text(configuration.replace("deploy/log4j2.xml", str(small)))
    deployment.start()
    logs = deployment.place.logs
    printed = (logs / CONSOLE).read_text()
    url = f"{deployment.inference}/predictions/cifar10"
    broken = {"Content-Type": "multipart/form-data; boundary="}
    with requests.Session() as session:
        for _ in range(FORMS):
            assert session.post(url, b"x", headers=broken, timeout=60).status_code == 500
    sizes = {path.name: path.stat().st_size for path in logs.glob("torchserve*.log")}
    assert len(sizes) == LOG_FILES, sizes
    assert all(size <= LOG_SIZE + LONGEST for size in sizes.values()), sizes
    assert "Exception" in (logs / log.FILE).read_text(), "nonsense is logged"
    assert (logs / CONSOLE).read_text() == printed
