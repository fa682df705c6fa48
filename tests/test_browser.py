"""The pages of `classifier ui`, in a real browser."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import FilePayload, expect, sync_playwright

from classifier.commands import browsing

from .conftest import do_without
from .images import SAMPLE
from .test_lifecycle import COMMAND

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page, Route

    from .deployment import Deployment

PHONE = {"width": 360, "height": 740}
PATIENCE = 60_000  # ms


@contextmanager
def serving(deployment: Deployment) -> Iterator[str]:
    """Run `classifier ui`; yield its address."""
    command = [*COMMAND, *deployment.options, "ui", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address(shared_deployment: Deployment) -> Iterator[str]:
    with serving(shared_deployment) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    program = found or do_without("none of these browsers is installed: " + ", ".join(names))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=2 * PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page on which nothing may fail, and which may ask nobody else."""
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("request", lambda r: None if _is_ours(r.url, address) else failures.append(r.url))
    page.goto(address)
    yield page
    page.close()
    assert failures == []


def _is_ours(url: str, address: str) -> bool:
    return url.startswith((address, f"blob:{address}", "data:"))


def send(page: Page, event: str, name: str, data: bytes) -> None:
    """Send a file by an event as a browser makes it when a user drops or pastes one."""
    page.evaluate(
        """([event, name, data]) => {
            const files = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            files.items.add(new File([bytes], name));
            const told = event === "paste"
                ? new ClipboardEvent(event, {clipboardData: files, bubbles: true})
                : new DragEvent(event, {dataTransfer: files, bubbles: true, cancelable: true});
            document.getElementById("drop").dispatchEvent(told);
        }""",
        [event, name, base64.b64encode(data).decode()],
    )


def answers(page: Page, name: str) -> Locator:
    """Return the answers about a picture."""
    card = page.get_by_role("article").filter(has=page.get_by_role("img", name=name)).first
    return card.locator(".answer")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_or_paste_a_picture_and_read_the_label(
    page: Page, event: str, shared_deployment: Deployment
) -> None:
    send(page, event, "mine.jpg", SAMPLE.read_bytes())
    probability = shared_deployment.predict(SAMPLE.read_bytes()).json()["cat"]
    row = answers(page, "mine.jpg").get_by_role("row")
    expect(row.first).to_have_text(f"cat{100 * probability:.1f} %")
    expect(row).to_have_count(5)


def test_the_keyboard_is_enough(page: Page) -> None:
    file, sample = page.locator("#file"), page.get_by_role("button", name="Try cat.jpg")
    expect(sample).to_be_visible()
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if sample.evaluate("(button) => button === document.activeElement"):
            break
    assert {"A", "version", "other", "explain", "file"} <= seen
    page.keyboard.press("Enter")
    expect(answers(page, "cat.jpg").get_by_role("row").first).to_contain_text("cat")
    file.set_input_files(SAMPLE)
    expect(page.get_by_role("article")).to_have_count(2)


def test_says_that_it_asks_until_all_have_answered(page: Page) -> None:
    held: list[Route] = []
    page.route("**/predictions/**", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/predictions/**"):
        send(page, "drop", "first.jpg", SAMPLE.read_bytes())
    send(page, "drop", "second.jpg", SAMPLE.read_bytes())
    expect(answers(page, "second.jpg").get_by_role("row").first).to_contain_text("cat")
    expect(page.locator("#status")).to_have_text("Asking …")
    held[0].continue_()
    expect(answers(page, "first.jpg").get_by_role("row").first).to_contain_text("cat")
    expect(page.locator("#status")).to_have_text("")


def test_switch_versions_and_see_two_side_by_side(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="Try cat.jpg").click()
    heading = answers(page, "cat.jpg").get_by_role("heading")
    expect(heading).to_have_text(["Version 1.0"])
    page.get_by_label("Version").select_option("1.1")
    expect(heading).to_have_text(["Version 1.1"])
    page.get_by_label("Compare with").select_option("1.0")
    expect(heading).to_have_text(["Version 1.1", "Version 1.0"])
    expect(answers(page, "cat.jpg").get_by_role("row")).to_have_count(10)
    paths = [url.partition("/predictions/")[2] for url in asked if "/predictions/" in url]
    assert paths == ["cifar10/1.0", "cifar10/1.1", "cifar10/1.1", "cifar10/1.0"]


def test_see_what_an_answer_rests_on(page: Page) -> None:
    page.get_by_role("button", name="Try cat.jpg").click()
    page.get_by_label("Show what it rests on").check()
    heat = answers(page, "cat.jpg").get_by_role("img", name="What speaks for cat")
    expect(heat).to_be_visible()
    opacities = heat.evaluate(
        """(canvas) => [...canvas.getContext("2d").getImageData(0, 0, 32, 32).data]
            .filter((_, place) => place % 4 === 3)"""
    )
    assert max(opacities) == 255
    assert len(set(opacities)) > 100


def test_what_is_no_picture_says_why_and_the_others_go_on(page: Page) -> None:
    send(page, "drop", "notes.txt", b"no picture")
    send(page, "drop", "cat.jpg", SAMPLE.read_bytes())
    expect(answers(page, "notes.txt").locator(".error")).to_contain_text("not an image")
    expect(answers(page, "cat.jpg").get_by_role("row").first).to_contain_text("cat")


def test_a_picture_that_is_too_large_says_so(page: Page) -> None:
    send(page, "drop", "large.tif", bytes(16 * 2**20 + 1))
    expect(answers(page, "large.tif").locator(".error")).to_have_text(
        "413: the picture is too large"
    )


def test_of_many_pictures_the_first_are_shown(page: Page) -> None:
    image = FilePayload(name="cat.jpg", mimeType="image/jpeg", buffer=SAMPLE.read_bytes())
    page.locator("#file").set_input_files([image] * 23)
    expect(page.get_by_role("article")).to_have_count(20)
    expect(page.locator("#hint")).to_contain_text("3 are left out")
    expect(page.locator("tr:first-child")).to_have_count(20)


def test_it_fits_a_phone(page: Page) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.get_by_label("Compare with").select_option("1.1")
    page.get_by_role("button", name="Try cat.jpg").click()
    expect(answers(page, "cat.jpg")).to_have_count(2)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]


def operation(page: Page, address: str, name: str) -> Locator:
    """Open an operation on the Swagger page."""
    page.goto(f"{address}/docs")
    block = page.locator(f"#operations-{name}")
    block.locator("button.opblock-summary-control").click()
    return block


def test_swagger_tries_a_picture_out(page: Page, address: str) -> None:
    block = operation(page, address, "predictions-predictByVersion")
    block.locator("tr[data-param-name=version]").get_by_role("combobox").select_option("1.1")
    block.locator("input[type=file]").set_input_files(SAMPLE)
    block.get_by_role("button", name="Execute").click()
    live = block.locator(".live-responses-table")
    expect(live.locator(".response-col_status").last).to_contain_text("200")
    expect(live).to_contain_text('"cat": 0.99')
    expect(live).to_contain_text("x-model-version: 1.1")


def test_swagger_tries_the_example_of_a_protocol_out(page: Page, address: str) -> None:
    block = operation(page, address, "protocols-predictInstances")
    block.get_by_role("button", name="Execute").click()
    live = block.locator(".live-responses-table")
    expect(live.locator(".response-col_status").last).to_contain_text("200")
    expect(live).to_contain_text('"label": "cat"')


def test_swagger_fits_a_phone(page: Page, address: str) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    block = operation(page, address, "predictions-predict")
    block.locator("input[type=file]").set_input_files(SAMPLE)
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table")).to_contain_text('"cat": 0.99')
    beyond = """(block, width) => [...block.querySelectorAll("table, button, input, select")]
        .filter((part) => part.getBoundingClientRect().right > width)
        .map((part) => part.className)"""
    assert block.evaluate(beyond, PHONE["width"]) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until something has the focus."""
    for _ in range(100):
        page.keyboard.press("Tab")
        if target.evaluate("(part) => part === document.activeElement"):
            return
    pytest.fail(f"Tab does not reach {target}")


def test_swagger_needs_the_keyboard_only(page: Page, address: str) -> None:
    page.goto(f"{address}/docs")
    block = page.locator("#operations-predictions-predict")
    tab_to(page, block.locator("button.opblock-summary-control"))
    page.keyboard.press("Enter")
    with page.expect_file_chooser() as chooser:  # before Tab: it is not in force at once
        tab_to(page, block.locator("input[type=file]"))
        page.keyboard.press("Space")
    chooser.value.set_files(SAMPLE)
    tab_to(page, block.get_by_role("button", name="Execute"))
    page.keyboard.press("Enter")
    expect(block.locator(".live-responses-table")).to_contain_text('"cat": 0.99')


def test_it_answers_under_its_own_name_only(address: str) -> None:
    """Another site could give its name this machine's address, and then read what it says."""
    answer = httpx.get(f"{address}/served", headers={"Host": "elsewhere.example"}, timeout=60)
    assert answer.status_code == 400
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_another_sites_page_can_neither_ask_nor_read(address: str, headers: dict[str, str]) -> None:
    image = SAMPLE.read_bytes()
    url = f"{address}/predictions/cifar10"
    assert httpx.post(url, content=image, headers=headers, timeout=60).status_code == 403
    read = httpx.get(f"{address}/served", headers=headers, timeout=60)
    assert not any(name.startswith("access-control") for name in read.headers)
    own = {"Origin": address, "Sec-Fetch-Site": "same-origin"}
    assert httpx.post(url, content=image, headers=own, timeout=60).status_code == 200
    assert httpx.put(url, content=image, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("POST", "/models?url=cifar10-1.0.mar"),
        ("DELETE", "/predictions/cifar10"),
        ("GET", "/samples/..%2Freleases.toml"),
        ("GET", "/metrics"),
    ],
)
def test_what_is_not_described_is_not_passed_on(address: str, method: str, path: str) -> None:
    answer = httpx.request(method, address + path, timeout=60)
    assert answer.status_code in (404, 405)
    assert set(answer.json()) == {"code", "type", "message"}


@pytest.mark.parametrize("path", ["/predictions/../models", "/predictions/cifar10/.."])
def test_dots_lead_nowhere(address: str, path: str) -> None:
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    connection.request("POST", path, SAMPLE.read_bytes())  # as it is: httpx would resolve it
    assert connection.getresponse().status == 404
    connection.close()


def test_it_brings_the_token_that_the_server_wants(deployment: Deployment) -> None:
    text = deployment.place.config.read_text()
    off = "disable_token_authorization=true"
    assert off in text
    deployment.place.config.write_text(text.replace(off, off.replace("true", "false")))
    deployment.start()
    with serving(deployment) as address:
        url = f"{address}/predictions/cifar10"
        answer = httpx.post(url, content=SAMPLE.read_bytes(), timeout=60)
        assert next(iter(answer.json())) == "cat"
        assert httpx.get(f"{address}/served", timeout=60).json()[0]["versions"] == ["1.0"]


def test_it_says_that_torchserve_has_gone(deployment: Deployment) -> None:
    deployment.start()
    with serving(deployment) as address:
        deployment.stop()
        answer = httpx.post(
            f"{address}/predictions/cifar10", content=SAMPLE.read_bytes(), timeout=60
        )
        assert answer.status_code == 502
        assert "TorchServe gives no answer" in answer.json()["message"]


def test_a_taken_port_is_told_in_one_line(shared_deployment: Deployment, address: str) -> None:
    port = address.rpartition(":")[2]
    command = [*COMMAND, *shared_deployment.options, "ui", f"--port={port}"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert said.stderr.startswith(f"classifier: port {port} can't be used")
    assert len(said.stderr.splitlines()) == 1


def test_the_description_tells_what_is_served(address: str) -> None:
    told = httpx.get(f"{address}/openapi.json", timeout=60).json()
    parameters = told["components"]["parameters"]
    assert parameters["model"]["schema"]["enum"] == ["cifar10"]
    assert parameters["version"]["schema"]["enum"] == ["1.0", "1.1"]
    assert json.dumps(told).count("examples") > 3


def test_without_its_packages_it_says_what_to_do(shared_deployment: Deployment) -> None:
    hide = "import sys; sys.modules['starlette.applications'] = None"
    code = f"{hide}; from classifier import cli; cli.main()"
    command = [sys.executable, "-c", code, *shared_deployment.options, "ui"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert said.stderr.startswith("classifier: the pages need the package starlette")


def test_labels_that_are_numbers_come_likeliest_first(page: Page) -> None:
    likely = '{"7": 0.9, "1": 0.06, "0": 0.02}'
    page.route("**/predictions/**", lambda route: route.fulfill(body=likely))
    send(page, "drop", "seven.png", SAMPLE.read_bytes())
    row = answers(page, "seven.png").get_by_role("row")
    expect(row).to_have_text(["790.0 %", "16.0 %", "02.0 %"])


def refuse(route: Route) -> None:
    route.fulfill(status=502, body='{"message": "TorchServe gives no answer"}')


def test_labels_stay_where_their_explanation_fails(page: Page) -> None:
    page.route("**/explanations/**", refuse)
    page.get_by_label("Show what it rests on").check()
    send(page, "drop", "cat.jpg", SAMPLE.read_bytes())
    expect(answers(page, "cat.jpg").get_by_role("row")).to_have_count(5)
    expect(answers(page, "cat.jpg").locator(".error")).to_have_text("TorchServe gives no answer")


def test_a_page_that_was_opened_too_early_recovers(page: Page) -> None:
    page.route("**/served", refuse)
    page.reload()
    expect(page.get_by_role("status").first).to_have_text("TorchServe gives no answer")
    send(page, "drop", "early.jpg", SAMPLE.read_bytes())
    card = page.get_by_role("article").filter(has=page.get_by_role("img", name="early.jpg"))
    expect(card.locator(".error")).to_have_text("TorchServe gives no answer")
    page.unroute("**/served")
    send(page, "drop", "late.jpg", SAMPLE.read_bytes())
    expect(answers(page, "late.jpg").get_by_role("row").first).to_contain_text("cat")
    page.get_by_role("button", name="Try cat.jpg").click()
    expect(answers(page, "cat.jpg").get_by_role("row").first).to_contain_text("cat")


def test_who_comes_back_sees_what_is_served_now(page: Page) -> None:
    page.get_by_label("Compare with").select_option("1.1")
    now = '[{"name": "cifar10", "default": "1.1", "versions": ["1.1"]}]'
    page.route("**/served", lambda route: route.fulfill(body=now))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#version option")).to_have_text(["1.1 (default)"])
    expect(page.get_by_label("Compare with")).to_have_value("1.1")


def test_a_sample_that_cannot_be_had_is_told(page: Page) -> None:
    page.route("**/samples/cat.jpg", refuse)
    page.get_by_role("button", name="Try cat.jpg").click()
    expect(page.get_by_role("status").first).to_have_text("TorchServe gives no answer")
    expect(page.get_by_role("article")).to_have_count(0)


def test_a_file_that_cannot_be_read_is_not_blamed_on_the_server(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "mine.jpg"
    path.write_bytes(SAMPLE.read_bytes())
    page.locator("#file").set_input_files(path)
    expect(answers(page, "mine.jpg").get_by_role("row").first).to_contain_text("cat")
    path.unlink()
    page.get_by_label("Version").select_option("1.1")
    expect(answers(page, "mine.jpg").locator(".error")).to_have_text(
        "This can't be read any more: choose it again"
    )


def test_without_a_screen_no_browser_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def opens(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", opens)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not browsing._open("http://there")
    monkeypatch.setenv("DISPLAY", ":0")
    assert browsing._open("http://there")
    assert opened == ["http://there"]
