"""A server that wants tokens: `classifier serve` with the production configuration."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from classifier import Client, TokenError, tokens
from classifier.archiving.archive import WEIGHTS, build
from classifier.errors import ServerError
from classifier.serving import config, rollout
from classifier.serving.server import Server
from classifier.tokens import Kind

from .images import SAMPLE
from .test_lifecycle import classifier
from .test_monitor import ask

if TYPE_CHECKING:
    from .deployment import Deployment


def bearer(token: str) -> dict[str, str]:
    """Return the header that bears a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def production(deployment: Deployment) -> Deployment:
    """A server of deploy/config.properties."""
    deployment.configure(Path("deploy/config.properties"))
    return deployment


def test_tokens_are_wanted_given_and_renewed(
    production: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "LEAST_LEFT", 0.5)
    with production.place.config.open("a") as file:
        file.write("token_expiration_min=0.05\n")  # 3 seconds
    production.start()
    assert ask(production) == (200, {"ready": True, "reasons": []})
    with Client(production.inference) as client, pytest.raises(TokenError, match="Token") as caught:
        client.predict(SAMPLE)
    assert caught.value.status == 400

    server = production.server
    with server.client("cifar10") as client:
        first = server.token(Kind.INFERENCE)
        assert first is not None
        before = first()
        assert client.predict(SAMPLE).label == "cat"
        image, end = SAMPLE.read_bytes(), time.monotonic() + 60
        while (answer := production.predict(image, headers=bearer(before))).ok:
            assert time.monotonic() < end, "a token of 3 seconds"
            time.sleep(0.1)
        assert answer.status_code == 400
        assert "expired" in answer.text
        assert client.predict(SAMPLE).label == "cat", "with a new token"
    server.check()


def test_tokens_that_are_not_there_yet_are_no_failure_of_a_start(production: Deployment) -> None:
    """On a busy machine Java takes longer to write them than `token` waits for them."""
    production.place.run.mkdir()
    assert production.server._progress() == ["it has made no tokens yet"]


def test_the_command_prints_a_token_that_others_can_use(production: Deployment) -> None:
    production.start()
    urls = {
        "inference": f"{production.inference}/ping",
        "management": f"{production.management}/models",
    }
    printed = {kind: classifier(*production.options, "token", kind).stdout.strip() for kind in urls}
    for kind, url in urls.items():
        told = json.loads(classifier(*production.options, "token", kind, "--json").stdout)
        assert told == {"kind": kind, "token": printed[kind]}
        assert requests.get(url, timeout=60).status_code == 400
        for token in (*printed.values(), "nonsense", printed[kind][:-1]):
            answer = requests.get(url, headers=bearer(token), timeout=60)
            assert answer.status_code == (200 if token == printed[kind] else 400), answer.text
    token = classifier(*production.options, "token").stdout.strip()
    ask = [*production.options, "predict", f"--server={production.inference}", str(SAMPLE)]
    assert classifier(*ask, f"--token={token}").stdout.startswith("cat")
    assert "answers 400" in classifier(*ask).stderr


def test_no_version_is_registered_in_production(production: Deployment) -> None:
    production.start()
    server = production.server
    sizes = config.sizes(server.releases[0], production.place.model_config)
    with pytest.raises(ServerError, match="answers 405"):
        rollout.register(server, "cifar10", "1.0", sizes)


def test_in_production_what_is_served_already_is_promoted(production: Deployment) -> None:
    build("cifar10", "2.0", Path(WEIGHTS), production.place.model_store)
    production.release("1.0", ["1.0", "2.0"])
    production.start()
    options = ["--for=1s", "--data=samples"]
    said = classifier(*production.options, "shadow", "2.0", *options)
    assert said.returncode == 0, said.stderr
    for command, now in (("promote", "2.0"), ("rollback", "1.0")):
        arguments = ["2.0", "--probes=5", "--watch=0"] if command == "promote" else []
        said = classifier(*production.options, command, *arguments)
        assert said.returncode == 0, said.stderr
        assert production.server.management.default("cifar10") == now


def test_commands_ask_the_server_as_it_was_started(production: Deployment) -> None:
    """Whoever forgets --config must not stop it without its queue answered."""
    production.start()
    forgotten = replace(production.place, config=Path("config.properties"))
    assert Server(forgotten).management.registered() == {("cifar10", "1.0"): 1}
    options = [option for option in production.options if not option.startswith("--config")]
    token = classifier(*options, "token").stdout.strip()
    answer = requests.get(f"{production.inference}/ping", headers=bearer(token), timeout=60)
    assert answer.status_code == 200
    for command in ("ready", "status", "stop"):
        said = classifier(*options, command)
        assert said.returncode == 0, said.stdout + said.stderr


def test_a_server_without_tokens_says_so(deployment: Deployment) -> None:
    said = classifier(*deployment.options, "token")
    assert said.returncode == 1
    assert "is not running" in said.stderr, "whether it wants tokens is not known then"
    deployment.start()
    said = classifier(*deployment.options, "token")
    assert said.returncode == 1
    assert "wants no tokens" in said.stderr


def test_a_key_file_that_is_no_good_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PATIENCE", 0.1)
    path = tmp_path / "key_file.json"
    for text in (None, "", '{"API": {}}'):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ServerError, match=r"key_file\.json gives no token"):
            tokens.source(path, Kind.INFERENCE)()
