"""The client: what it sends, which failures it asks again, and what it says at last."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
import re
import ssl
import struct
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from classifier import (
    AsyncClient,
    Client,
    InputError,
    Prediction,
    PredictionError,
    TokenError,
    UnavailableError,
)
from classifier.predicting.prediction import ORIENTATION, to_bytes

from .images import SAMPLE, crops, encode, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from classifier import Picture

    from .deployment import Deployment

    Answer = tuple[int, dict[str, Any]] | None
    Script = list[Answer] | Callable[[bytes], Answer]

ANSWER = (200, {"cat": 0.9, "dog": 0.1})


class Scripted:
    """A server that answers as a test has written: a status and JSON, or (None) hangs up.

    The script is a list of answers, or makes an answer of a request's body.
    """

    def __init__(self, script: Script) -> None:
        rest = iter(script if isinstance(script, list) else [])
        self.tokens: list[str | None] = []
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.tokens.append(self.headers["Authorization"])
                outer.bodies.append(body)
                answer = next(rest) if isinstance(script, list) else script(body)
                if answer is None:
                    self.close_connection = True
                    return
                said = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(said)))
                self.send_header("X-Model-Version", "1.0")
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *arguments: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # who asked has gone
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def asked(self) -> int:
        """How many requests came."""
        return len(self.tokens)


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], Scripted]]:
    servers: list[Scripted] = []

    def start(script: Script) -> Scripted:
        servers.append(Scripted(script))
        return servers[-1]

    yield start
    for made in servers:
        made.server.shutdown()
        made.server.server_close()


def ask(url: str, is_async: bool, **options: Any) -> Prediction:
    """Ask once, by either client."""
    if not is_async:
        with Client(url, **options) as client:
            return client.predict(b"x")

    async def run() -> Prediction:
        async with AsyncClient(url, **options) as client:
            return await client.predict(b"x")

    return asyncio.run(run())


@pytest.mark.parametrize("is_async", [False, True])
def test_own_headers_are_sent(scripted: Callable[[Script], Scripted], is_async: bool) -> None:
    server = scripted([ANSWER])
    ask(server.url, is_async, headers={"Authorization": "Basic eDp5"})
    assert server.tokens == ["Basic eDp5"]


def ask_each(
    url: str, pictures: Iterable[Picture], is_async: bool, **options: Any
) -> list[Prediction | PredictionError]:
    """Ask for each of many pictures, by either client."""
    if not is_async:
        with Client(url, **options) as client:
            return list(client.predict_each(pictures))

    async def run() -> list[Prediction | PredictionError]:
        async with AsyncClient(url, **options) as client:
            return [found async for found in client.predict_each(pictures)]

    return asyncio.run(run())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_proxy_of_the_environment_is_used_unless_it_is_not_trusted(
    scripted: Callable[[Script], Scripted],
    monkeypatch: pytest.MonkeyPatch,
    is_async: bool,
    free_port: int,
) -> None:
    proxy = scripted([ANSWER])
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    url = f"http://127.0.0.2:{free_port}"  # where nobody listens, and which is not in LOOPBACK
    with pytest.raises(UnavailableError, match="gives no answer"):
        ask(url, is_async, deadline=0.1, trust_env=False)
    assert proxy.asked == 0
    assert ask(url, is_async).label == "cat"


def test_a_servers_own_client_asks_no_proxy(
    deployment: Deployment,
    scripted: Callable[[Script], Scripted],
    monkeypatch: pytest.MonkeyPatch,
    free_port: int,
) -> None:
    proxy = scripted([ANSWER])
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    text = deployment.place.config.read_text()
    address = f"inference_address=http://127.0.0.2:{free_port}"
    text = re.sub("^inference_address=.*$", address, text, flags=re.MULTILINE)
    deployment.place.config.write_text(text)
    fail = mock.Mock(side_effect=UnavailableError("nobody listens there"))
    with deployment.server.client("cifar10", fail) as client, pytest.raises(UnavailableError):
        client.predict(b"x")
    assert proxy.asked == 0


def error(status: int, message: str, kind: str = "SomeException") -> tuple[int, dict[str, Any]]:
    return status, {"code": status, "type": kind, "message": message}


PASSING = {
    "queue full": error(503, "Model cifar10 has no worker to serve inference request."),
    "out of memory": error(507, "CUDA out of memory"),
    "a batch failed": error(503, "Prediction failed", "InternalServerException"),
    "worker died": error(500, "Worker died."),
    "worker too slow": error(500, "Worker did not respond in time"),
    "proxy": error(502, "Bad Gateway"),
    "slow proxy": error(504, "Gateway Timeout"),
    "a proxy's limit": error(429, "Too Many Requests"),
    "a proxy's patience": error(408, "Request Timeout"),
    "hung up": None,
}
LASTING = {
    "bad image": (error(400, "not an image"), InputError),
    "no such model": (error(404, "Model not found"), InputError),
    "too large": (error(413, ""), InputError),
    "handler failed": (error(500, "Prediction failed"), UnavailableError),
    "a proxy wants to know who": (error(401, "Unauthorized"), TokenError),
    "a proxy forbids it": (error(403, "Forbidden"), TokenError),
    "no token": (error(400, "Token Authentication failed", "InvalidKeyException"), TokenError),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_failures_that_pass_are_asked_again(
    scripted: Callable[[Script], Scripted], failure: Any, is_async: bool
) -> None:
    server, told = scripted([failure, failure, ANSWER]), list[str]()
    answer = ask(server.url, is_async, on_retry=told.append)
    assert (answer.label, answer.probability, answer.version) == ("cat", 0.9, "1.0")
    assert server.asked == 3
    assert len(told) == 2
    assert all(server.url in reason for reason in told)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "//127.0.0.1:8080",
        "ftp://127.0.0.1",
        "http://127.0.0.1:80a",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(InputError, match="is no address: write it as http://"):
        Client(url)


def test_a_password_in_the_address_is_sent_and_not_told(
    scripted: Callable[[Script], Scripted],
) -> None:
    server = scripted([error(400, "not an image")])
    with (
        Client(server.url.replace("//", "//user:secret@")) as client,
        pytest.raises(InputError) as caught,
    ):
        client.predict(b"x")
    assert server.tokens == ["Basic " + base64.b64encode(b"user:secret").decode()]
    assert str(caught.value) == f"{server.url} answers 400: not an image"


def test_a_proxy_that_can_not_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    for proxy in ("socks://127.0.0.1:1", "ftp://127.0.0.1:1"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        for kind in (Client, AsyncClient):
            with pytest.raises(InputError, match="the environment's proxy can't be used"):
                kind(f"http://127.0.0.2:{free_port}")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of localhost that nobody vouches for, and its key."""
    path = tmp_path / "localhost.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {path} -out {tmp_path}/public.pem"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "public.pem").read_text())
    return path


@pytest.mark.parametrize("is_async", [False, True])
def test_who_vouches_for_a_server_may_be_the_systems_own(
    scripted: Callable[[Script], Scripted],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_async: bool,
) -> None:
    server = scripted([ANSWER])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    url = f"https://localhost:{server.server.server_port}"
    with pytest.raises(UnavailableError, match="SSL_CERT_FILE may name"):
        ask(url, is_async)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask(url, is_async).label == "cat"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("failure", "raised"), LASTING.values(), ids=LASTING)
def test_other_failures_are_told_at_once(
    scripted: Callable[[Script], Scripted],
    failure: Any,
    raised: type[PredictionError],
    is_async: bool,
) -> None:
    server = scripted([failure, ANSWER])
    with pytest.raises(raised) as caught:
        ask(server.url, is_async)
    assert caught.value.status == failure[0]
    assert failure[1]["message"] in str(caught.value)
    assert server.asked == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_asking_again_ends_at_the_deadline(
    scripted: Callable[[Script], Scripted], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr(
        "classifier.predicting.asker.SHORTEST", 2.0
    )  # what the last attempt has at least
    server = scripted([PASSING["queue full"]] * 1000)
    with pytest.raises(UnavailableError, match=r"no worker .* again within 4 s") as caught:
        ask(server.url, is_async, deadline=4)
    assert caught.value.status == 503
    assert 1 < server.asked < 1000


def test_what_nobody_waits_for_is_asked_no_more(scripted: Callable[[Script], Scripted]) -> None:
    answers: list[Answer] = [PASSING["queue full"]] * 3
    server = scripted(lambda _: answers[-1])
    with Client(server.url, deadline=3600) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.predict, b"x")
        while server.asked < 2:
            time.sleep(0.01)
        client.abandon()
        assert isinstance(asked.exception(timeout=60), UnavailableError)
        answers.append(ANSWER)
        assert client.predict(b"x").label == "cat", "what is asked later is asked"


def test_what_waits_to_be_asked_again_is_not_once_nobody_waits_for_it(
    scripted: Callable[[Script], Scripted],
) -> None:
    server = scripted([PASSING["queue full"], ANSWER])
    client = Client(server.url, on_retry=lambda _: client.abandon())
    with client, pytest.raises(UnavailableError, match="nobody waits"):
        client.predict(b"x")
    assert server.asked == 1


def test_a_picture_is_read_beside_other_tasks(scripted: Callable[[Script], Scripted]) -> None:
    readers = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.append(threading.get_ident())
            return super().read(size)

    async def both() -> None:
        async with AsyncClient(scripted([ANSWER]).url) as client:
            await client.predict(File(b"x"))

    asyncio.run(both())
    assert readers
    assert threading.get_ident() not in readers


@pytest.mark.parametrize("is_async", [False, True])
def test_no_answer_is_waited_for_beyond_the_deadline_or_an_attempts_time(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    go_on = threading.Event()
    server = scripted(lambda _: ANSWER if go_on.wait(30) else None)
    try:
        for options in ({"deadline": 0.3}, {"deadline": 2, "timeout": 0.1}):
            begin = time.monotonic()
            with pytest.raises(UnavailableError, match="gives no answer"):
                ask(server.url, is_async, **options)
            assert time.monotonic() - begin < 10
        assert server.asked > 2, "with little time for each it was asked again"
    finally:
        go_on.set()


@pytest.mark.parametrize("is_async", [False, True])
def test_this_machine_itself_is_asked_without_a_proxy(
    scripted: Callable[[Script], Scripted], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    server, proxy = scripted([ANSWER] * 2), scripted([ANSWER] * 2)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    for host in ("127.0.0.1", "localhost"):
        assert ask(server.url.replace("127.0.0.1", host) + "/", is_async).label == "cat"
    assert (server.asked, proxy.asked) == (2, 0)


@pytest.mark.parametrize("is_async", [False, True])
def test_nobody_listening_is_told(is_async: bool, free_port: int) -> None:
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{free_port} gives no answer"):
        ask(f"http://127.0.0.1:{free_port}", is_async, deadline=0.3)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_expired_token_is_fetched_anew_once(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    expired = LASTING["no token"][0]
    tokens = iter(["old", "new", "new"])
    server = scripted([expired, ANSWER])
    assert ask(server.url, is_async, token=lambda: next(tokens)).label == "cat"
    assert server.tokens == ["Bearer old", "Bearer new"]
    server = scripted([expired, expired, ANSWER])
    with pytest.raises(TokenError):
        ask(server.url, is_async, token=lambda: "same")
    assert server.asked == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_token_may_come_with_the_end_of_its_line(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    server = scripted([ANSWER, ANSWER])
    ask(server.url, is_async, token="secret\n")  # noqa: S106
    ask(server.url, is_async, token=lambda: "secret\n")
    assert server.tokens == ["Bearer secret"] * 2


@pytest.mark.parametrize("is_async", [False, True])
def test_what_no_header_can_hold_is_told_at_once(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    server, told = scripted([ANSWER] * 9), list[str]()
    for token in ("sec\nret", "sécret"):
        with pytest.raises(TokenError, match="letters that no header can hold") as caught:
            ask(server.url, is_async, token=token, on_retry=told.append)
        assert token not in str(caught.value)
    with pytest.raises(UnavailableError, match="header value"):
        ask(server.url, is_async, headers={"X-Own": "a\nb"}, on_retry=told.append)
    assert (server.asked, told) == (0, [])


@pytest.mark.parametrize("is_async", [False, True])
def test_a_token_is_kept_until_it_is_refused(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    server = scripted([ANSWER, ANSWER, LASTING["no token"][0], ANSWER, ANSWER])
    tokens = iter(["old", "new"])
    found = ask_each(server.url, [b"x" * 700_000] * 4, is_async, token=lambda: next(tokens))
    assert [isinstance(one, Prediction) for one in found] == [True] * 4
    assert set(server.tokens) == {"Bearer old", "Bearer new"}


def stream(*pictures: Picture) -> Iterator[Picture]:
    """Yield pictures of which nobody knows how many will come."""
    yield from pictures


def each(body: bytes) -> tuple[int, dict[str, Any]]:
    """Answer a file, or a body of KServe's protocol v1: the label is what the file says."""
    if not body.startswith(b"{"):
        return 200, {body[:9].decode(): 1.0}
    images = [base64.b64decode(item["b64"]) for item in json.loads(body)["instances"]]
    return 200, {
        "predictions": [
            {"error": "no image"} if image == b"bad" else {"probabilities": each(image)[1]}
            for image in images
        ]
    }


@pytest.mark.parametrize("is_async", [False, True])
def test_many_small_pictures_go_together(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    server = scripted(each)
    pictures = [b"%d" % number for number in range(1000)]
    found = ask_each(server.url, stream(*pictures), is_async)
    labels = [one.label for one in found if isinstance(one, Prediction)]
    assert labels == [str(number) for number in range(1000)]
    assert server.asked == 63
    assert {one.version for one in found if isinstance(one, Prediction)} == {"1.0"}


@pytest.mark.parametrize("is_async", [False, True])
def test_of_a_slow_net_fewer_are_asked_at_once(
    scripted: Callable[[Script], Scripted], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    """Else none of all that is under way would be answered in time."""

    def slowly(body: bytes) -> Answer:
        answer = each(body)
        time.sleep(0.02 * len(answer[1].get("predictions", "x")))
        return answer

    monkeypatch.setattr("classifier.predicting.asker.IN_GOOD_TIME", 1.0)  # 50 pictures, or fewer
    server = scripted(slowly)
    found = ask_each(server.url, [b"%d" % number for number in range(40)], is_async)
    assert [one.label for one in found if isinstance(one, Prediction)] == list(map(str, range(40)))
    first, *rest = (body.count(b"b64") or 1 for body in server.bodies)
    assert first == 16
    assert max(rest) <= 3
    assert sum(rest) == 24


def test_pictures_are_read_beside_the_event_loop(scripted: Callable[[Script], Scripted]) -> None:
    server, threads = scripted(each), []

    def pictures() -> Iterator[bytes]:
        for number in range(40):
            threads.append(threading.current_thread())
            yield b"%d" % number

    assert len(ask_each(server.url, pictures(), is_async=True)) == 40
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("is_async", [False, True])
def test_large_pictures_go_alone(scripted: Callable[[Script], Scripted], is_async: bool) -> None:
    server = scripted(each)
    large = [letter * 700_000 for letter in (b"a", b"b", b"c")]
    found = ask_each(server.url, stream(*large, b"d", b"e"), is_async)
    labels = [one.label for one in found if isinstance(one, Prediction)]
    assert labels == ["aaaaaaaaa", "bbbbbbbbb", "ccccccccc", "d", "e"]
    # Asked at once, they arrive in any order.
    assert sorted(body[:1] for body in server.bodies) == [b"a", b"b", b"{"]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_wrong_with_a_picture_stands_in_its_place(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    server = scripted(each)
    found = ask_each(server.url, stream(b"a", b"bad", "absent.jpg", b"b"), is_async)
    assert [found[0], found[3]] == [Prediction({"a": 1.0}, "1.0"), Prediction({"b": 1.0}, "1.0")]
    assert isinstance(found[1], InputError)
    assert found[1].status == 400
    assert "answers 400: no image" in str(found[1])
    assert "absent.jpg can't be read" in str(found[2])
    assert server.asked == 1


REFUSALS: dict[str, Answer] = {
    "too large": error(413, "too large"),
    "takes files only": error(400, "the request holds JSON, not an image"),
    "handler failed": error(500, "Prediction failed"),
    "its own form": (200, {"cat": 1.0}),
    "too few": (200, {"predictions": [{"probabilities": {"cat": 1.0}}]}),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_pictures_that_are_not_taken_together_are_asked_alone(
    scripted: Callable[[Script], Scripted], refusal: Answer, is_async: bool
) -> None:
    server = scripted(lambda body: refusal if body.startswith(b"{") else each(body))
    found = ask_each(server.url, stream(b"a", b"b"), is_async)
    assert found == [Prediction({"a": 1.0}, "1.0"), Prediction({"b": 1.0}, "1.0")]
    assert server.asked == 3


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("failure", ["worker died", "a batch failed"])
def test_a_picture_that_fails_its_worker_spoils_no_other(
    scripted: Callable[[Script], Scripted], failure: str, is_async: bool
) -> None:
    died = PASSING[failure]
    killer = base64.b64encode(b"killer")
    server = scripted(lambda body: died if b"killer" in body or killer in body else each(body))
    pictures = [b"%d" % number for number in range(40)]
    pictures[20] = b"killer"
    found = ask_each(server.url, pictures, is_async, deadline=15)
    assert [isinstance(one, Prediction) for one in found] == [n != 20 for n in range(40)]
    assert isinstance(found[20], UnavailableError)
    assert sum(killer in body for body in server.bodies) == 1, "together it is asked once"


@pytest.mark.parametrize("is_async", [False, True])
def test_pictures_that_are_asked_alone_share_the_deadline(
    scripted: Callable[[Script], Scripted], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    now = itertools.count(step=0.5)  # seconds that go by when somebody looks, or is asked
    monkeypatch.setattr("classifier.predicting.asker.time", mock.Mock(monotonic=lambda: next(now)))

    def dies(_: bytes) -> Answer:
        next(now)
        return error(500, "Worker died.")

    server = scripted(dies)
    pictures = [b"a", b"b", b"c", b"d"]
    found = ask_each(server.url, pictures, is_async, deadline=30)
    assert all(isinstance(one, UnavailableError) for one in found)
    assert next(now) < 33
    asked = Counter(server.bodies)
    assert len(asked) == 5, "together, and each alone"
    assert all(asked[picture] > 1 for picture in pictures)


def test_a_list_ends_at_what_is_no_picture(scripted: Callable[[Script], Scripted]) -> None:
    server = scripted(each)
    with Client(server.url) as client, pytest.raises(InputError, match=r"absent\.jpg"):
        client.predict(list(stream("absent.jpg", *[b"x"] * 5000)))
    assert server.asked < 100


@pytest.mark.parametrize("is_async", [False, True])
def test_an_answer_in_a_form_of_its_own_is_no_prediction(
    scripted: Callable[[Script], Scripted], is_async: bool
) -> None:
    for said in ({"label": "cat"}, {}):
        server = scripted(lambda _, said=said: (200, said))  # type: ignore[misc]
        found = ask_each(server.url, [b"a"], is_async)
        assert "no labels and probabilities" in str(found[0])


@pytest.mark.parametrize("data", ["text", ValueError("closed"), OSError("gone")])
def test_a_file_that_gives_no_bytes_is_told(data: object) -> None:
    file = mock.Mock(read=mock.Mock(side_effect=[data]))
    with pytest.raises(InputError, match=r"can't be read|for reading bytes"):
        Client().predict(file)


VAIN: dict[str, tuple[Answer, type[PredictionError]]] = {
    "no such model": (error(404, "Model not found"), InputError),
    "queue full": (error(503, "no worker to serve"), UnavailableError),
    "nobody there": (None, UnavailableError),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("answer", "raised"), VAIN.values(), ids=VAIN)
def test_pictures_are_not_asked_alone_in_vain(
    scripted: Callable[[Script], Scripted],
    answer: Answer,
    raised: type[PredictionError],
    is_async: bool,
) -> None:
    server = scripted(lambda _: answer)
    seconds = 30 if raised is InputError else 1  # what is no such failure comes at once
    found = ask_each(server.url, stream(b"a", b"b"), is_async, deadline=seconds)
    assert len(found) == 2
    assert all(isinstance(one, raised) for one in found)
    assert server.asked == sum(body.startswith(b"{") for body in server.bodies)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_refused_token_ends_it(scripted: Callable[[Script], Scripted], is_async: bool) -> None:
    server = scripted(lambda _: LASTING["no token"][0])
    with pytest.raises(TokenError):
        ask_each(server.url, stream(b"a", b"b"), is_async, token="old")  # noqa: S106


def test_pictures_are_read_when_their_turn_comes(scripted: Callable[[Script], Scripted]) -> None:
    taken = itertools.count()
    with Client(scripted(each).url) as client:
        found = client.predict_each(b"%d" % next(taken) for _ in itertools.count())
        assert isinstance(next(found), Prediction)
        found.close()
    assert next(taken) < 400


def test_once_closed_no_request_is_under_way(scripted: Callable[[Script], Scripted]) -> None:
    go_on = threading.Event()

    def late(body: bytes) -> Answer:
        assert body.startswith(b"a") or go_on.wait(10)
        return each(body)

    async def run() -> set[asyncio.Task[Any]]:
        async with AsyncClient(scripted(late).url) as client:
            found = client.predict_each([b"a" * 700_000, *[b"b" * 700_000] * 9])
            assert isinstance(await anext(found), Prediction)
            await found.aclose()
            return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert asyncio.run(run()) == set()
    go_on.set()


def test_open_files_are_taken(shared_deployment: Deployment) -> None:
    with SAMPLE.open("rb") as file, Client(shared_deployment.inference) as client:
        assert client.predict(file, "1.1").label == "cat"


def test_every_kind_of_picture_is_taken(shared_deployment: Deployment) -> None:
    photo = sample()
    pictures: list[Picture] = [str(SAMPLE), SAMPLE, SAMPLE.read_bytes(), photo, np.asarray(photo)]
    with Client(shared_deployment.inference) as client:
        answers = client.predict(pictures)
        assert [answer.label for answer in answers] == ["cat"] * 5
        # The batches that they came in differ, and with them, on some processors, the last bits.
        for answer, same in zip(answers, [*answers[:1] * 3, *answers[3:4] * 2], strict=True):
            assert answer.probabilities == pytest.approx(same.probabilities, abs=1e-5)
        assert client.predict(photo.convert("L"), version="1.1").version == "1.1"


def test_a_list_is_answered_in_its_order(shared_deployment: Deployment) -> None:
    images = list(crops(50))
    with Client(shared_deployment.inference) as client:
        one_by_one = [client.predict(image, "1.1").label for image in images[:3]]
        together = client.predict(images, "1.1")

    async def run() -> list[Prediction]:
        async with AsyncClient(shared_deployment.inference) as client:
            return await client.predict(images, "1.1")

    assert [answer.label for answer in together[:3]] == one_by_one
    assert [a.label for a in asyncio.run(run())] == [a.label for a in together]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("absent.jpg", "absent.jpg can't be read: No such file"),
        (np.zeros((3, 32, 32), np.uint8), "uint8 3×32×32 is no picture"),
        (np.zeros((32, 32, 3), np.float32), "float32 32×32×3 is no picture"),
        (42, "a int is no picture"),
        (Image.new("LAB", (4, 4)), "mode LAB can't be sent"),
        (b"hello", "answers 400: not an image that can be read"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "pixels of 32 bits"),
    ],
)
def test_what_is_no_picture_is_told(
    shared_deployment: Deployment, picture: Any, message: str
) -> None:
    with Client(shared_deployment.inference) as client, pytest.raises(InputError, match=message):
        client.predict(picture)


def test_a_picture_that_is_too_large_spoils_no_other(shared_deployment: Deployment) -> None:
    with Client(shared_deployment.inference) as client:
        for _ in range(5):
            with pytest.raises(PredictionError):
                client.predict(bytes(17 * 2**20))
            assert client.predict(SAMPLE, "1.1").label == "cat"


def test_a_version_that_is_not_served_is_told(shared_deployment: Deployment) -> None:
    with Client(shared_deployment.inference) as client:
        with pytest.raises(InputError, match=r"answers 404: .*9\.9"):
            client.predict(SAMPLE, version="9.9")
        with pytest.raises(InputError, match="answers 404"):
            Client(shared_deployment.inference, model="dogs").predict(SAMPLE)


def odd_exif() -> Image.Image:
    """A picture on its side whose EXIF has an entry that Pillow reads, and can't write."""
    turned = Image.open(io.BytesIO(encode(sample().rotate(90, expand=True), "JPEG")))
    turned.getexif().update({ORIENTATION: 6, 0x0100: "no number"})
    return turned


def test_of_exif_only_which_way_is_up_is_sent() -> None:
    with pytest.raises((TypeError, ValueError, struct.error)):
        encode(odd_exif(), exif=odd_exif().getexif())
    sent = Image.open(io.BytesIO(to_bytes(odd_exif())))
    assert dict(sent.getexif()) == {ORIENTATION: 6}
    assert not Image.open(io.BytesIO(to_bytes(sample()))).getexif()


def test_a_pil_image_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    sample().save(tmp_path / "closed.png")
    with Image.open(tmp_path / "closed.png") as closed:
        pass
    for image in (closed, Image.new("RGB", (0, 5))):
        with pytest.raises(InputError, match="a PIL image of mode RGB can't be sent"):
            to_bytes(image)
