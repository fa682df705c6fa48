"""README: its commands run as printed, and it tells of all there are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from classifier.archiving import archive
from classifier.cli import app
from model import decode, load

from . import reference
from .images import SAMPLE

if TYPE_CHECKING:
    import pytest

    from .deployment import Deployment

README = Path("README.md").read_text()
PUBLISHED = {
    "http://127.0.0.1:8080": "inference_address",
    "http://127.0.0.1:8081": "management_address",
    "http://127.0.0.1:8083": "readiness_address",
    "127.0.0.1:7070": "grpc_inference_port",
}


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def lines(start: str) -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith(start)]


def elsewhere(text: str, deployment: Deployment) -> str:
    """Put a test server's addresses in the place of the published ones."""
    for published, key in PUBLISHED.items():
        address = deployment.port(key)
        text = text.replace(published, address if ":" in address else f"127.0.0.1:{address}")
    return text


def test_curl_lines_work_as_printed(deployment: Deployment, curl: str) -> None:
    deployment.start()
    store_option = f"--store={deployment.place.model_store}"
    made = [sys.executable, "-m", "classifier", store_option, "archive", "--version=2.0"]
    subprocess.run(made, check=True, capture_output=True)  # make archive VERSION=2.0
    commands = lines("curl")
    assert len(commands) >= 12
    for command in commands:
        shown = elsewhere(command, deployment)
        shown = shown.replace("curl", f"{curl} -sS -w '\\n%{{http_code}}'", 1)
        bash = ["/bin/bash", "-c", shown]
        done = subprocess.run(bash, capture_output=True, text=True, timeout=120)
        body, _, status = done.stdout.rpartition("\n")
        expected = "400" if "README.md" in command else "202" if "min_worker" in command else "200"
        assert status == expected, f"{command}: {done.stdout} {done.stderr}"
        if expected == "400":
            assert body in README, "the answer that README shows"
    deployment.server.check()  # they end where they began


def test_commands_work_as_printed(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.build("cifar10", "2.0", Path(archive.WEIGHTS), deployment.place.model_store)
    deployment.start()
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    options = " ".join(deployment.options)
    stays = "classifier ui"  # until Ctrl-C; test_browser.py tries it
    commands = [command for command in lines("classifier") if not command.startswith(stays)]
    assert len(commands) >= 7
    for command in commands:
        shown = command.replace("classifier", f"classifier {options}", 1)
        done = subprocess.run(
            ["/bin/bash", "-c", shown], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert "cat" in done.stdout or "default" in done.stdout or "agree" in done.stdout
    deployment.server.check()


def test_python_blocks_work_as_printed(
    shared_deployment: Deployment, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = blocks("python")
    assert len(shown) >= 3
    for block in shown:
        code = elsewhere(block, shared_deployment).replace('"model_store/', f'"{store}/')
        exec(code, {})  # noqa: S102
        assert "cat" in capsys.readouterr().out


def test_readme_shows_the_answer_of_the_released_weights() -> None:
    (row,) = load("model").probabilities(decode(SAMPLE.read_bytes())[None])
    reference.assert_agrees(
        json.loads(blocks("json")[0]), dict(zip(reference.LABELS, row, strict=True))
    )
    lock = json.loads(Path("model/weights.lock").read_text())
    accuracy = f"{100 * lock['accuracy']['cifar10-test']:.2f} %"
    integers = f"{100 * lock['int8']['accuracy']:.2f} %"
    text = " ".join(README.split())
    assert f"right for {accuracy} of the 10,000 test images, and for {integers} in" in text


def test_every_make_target_is_documented() -> None:
    makefile = Path("Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    for target in phony.split():
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), f"{target} tells no help"
        assert target in ("lint", "clean") or f"make {target}" in README, target


def test_every_command_is_documented() -> None:
    assert len(app.registered_commands) >= 13
    for command in app.registered_commands:
        assert command.callback is not None
        name, told = command.callback.__name__, command.callback.__doc__ or ""
        assert f"classifier {name}" in README or f"make {name}" in README, name
        assert f": classifier {name}" in told, f"{name} --help shows no example"


def test_every_file_that_readme_names_is_there() -> None:
    named = re.findall(r"\]\(([\w./-]+)\)|`((?:\w+/)+[\w.]*)`", README)
    assert len(named) >= 20
    generated = ("run/", "data/", ".venv/", "../")
    for link, path in named:
        name = link or path
        assert name.startswith(generated) or Path(name).exists(), name
