"""The API's description is true: what it tells is what the running server takes and answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from classifier.releasing import listing
from classifier.ui import openapi

from .images import SAMPLE

if TYPE_CHECKING:
    import pytest

    from .deployment import Deployment

UNTRUE = {
    # JSON Schema can't tell which bytes are an image, or how much data a shape holds.
    "positive_data_acceptance",
    # What is wrong with one image of several is said in its place, and the others are answered.
    "negative_data_rejection",
    # TorchServe answers TRACE, which has no body, as it answers POST.
    "unsupported_method",
}
"""What schemathesis would check, and can't be so."""


def test_any_request_is_answered_as_described(deployment: Deployment, tmp_path: Path) -> None:
    deployment.start()
    told = openapi.describe(listing.served(deployment.server), [SAMPLE])
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(told))
    tried = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            "run",
            description,
            f"--url={deployment.inference}",
            "--phases=examples,coverage,fuzzing",
            f"--exclude-checks={','.join(UNTRUE)}",
            "--max-examples=30",
            "--seed=1",
            "--request-timeout=60",
            "--no-color",
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.openapi_hooks"},
        capture_output=True,
        text=True,
        check=False,
    )
    operations = sum(len(methods) for methods in told["paths"].values())
    assert tried.returncode == 0, tried.stdout[-8000:] + tried.stderr
    assert f"Tested: {operations}" in tried.stdout, tried.stdout


def test_examples_are_of_what_is_served() -> None:
    served = [
        listing.Served("b", "2.0", {"2.0": (1, 1), "10.0": (1, 1)}),
        listing.Served("a", "1.0", {"1.0": (1, 1)}),
    ]
    parameters = openapi.describe(served)["components"]["parameters"]
    assert [parameters[name]["example"] for name in ("model", "version")] == ["b", "2.0"]
    assert parameters["version"]["schema"]["enum"] == ["1.0", "2.0", "10.0"]


def test_a_sample_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    broken, gone = tmp_path / "a.jpg", tmp_path / "b.jpg"
    broken.write_bytes(SAMPLE.read_bytes()[:100])
    told = [openapi.describe([], samples) for samples in ([broken, gone, SAMPLE], [SAMPLE])]
    assert told[0] == told[1] != openapi.describe([], [broken, gone])


def test_it_tells_the_size_of_ones_own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("model", tmp_path / "model")
    image = tmp_path / "model" / "image.py"
    image.write_text(image.read_text().replace("SIZE = (32, 32)", "SIZE = (48, 24)"))
    monkeypatch.chdir(tmp_path)
    schemas = openapi.describe([])["components"]["schemas"]
    shape = schemas["Pixels"]["properties"]["shape"]["prefixItems"]
    assert [item.get("const") for item in shape] == [None, 24, 48, 3]
    assert "N×24×48×3" in schemas["Pixels"]["description"]
    columns = (rows := schemas["Explanation"]["properties"]["map"])["items"]
    assert (rows["maxItems"], columns["maxItems"]) == (24, 48)


def test_without_a_server_it_is_a_description_all_the_same() -> None:
    told = openapi.describe([])
    assert told["openapi"].startswith("3.1")
    assert "enum" not in told["components"]["parameters"]["model"]["schema"]
