"""deploy/nginx/upstreams.sh: which servers nginx is told of."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path("deploy/nginx/upstreams.sh").resolve()


@contextmanager
def saying(status: int | None) -> Iterator[str]:
    """Run what is asked whether a server is ready; with None it takes its time."""
    asked_for_long = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status is None:
                asked_for_long.wait()
            else:
                self.send_response(status)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/ready"
    finally:
        asked_for_long.set()
        server.shutdown()
        server.server_close()


def told(folder: Path, **servers: str) -> set[str]:
    """Return which of some servers nginx is told of, by their names."""
    pairs = [f"{name}={url}" for name, url in servers.items()]
    environment = os.environ | {"ONCE": "1"}
    subprocess.run(["/bin/sh", SCRIPT, *pairs], cwd=folder, env=environment, check=True)
    lines = (folder / "upstreams.conf").read_text().splitlines()
    return {line.removeprefix("server ").removesuffix(" max_fails=0;") for line in lines}


@pytest.mark.parametrize("status", [503, 500])
def test_what_is_not_ready_is_left_out(tmp_path: Path, free_port: int, status: int) -> None:
    gone = f"http://127.0.0.1:{free_port}/ready"
    with saying(200) as well, saying(status) as ill:
        assert told(tmp_path, well=well, ill=ill, gone=gone) == {"well"}
        assert told(tmp_path, ill=ill, gone=gone) == {"ill", "gone"}, "late is better than never"


def test_who_has_much_to_do_is_what_it_was(tmp_path: Path) -> None:
    with saying(200) as ready, saying(503) as unready, saying(None) as busy:
        assert told(tmp_path, a=ready, b=ready) == {"a", "b"}
        assert told(tmp_path, a=ready, b=busy) == {"a", "b"}
        assert told(tmp_path, a=ready, b=unready) == {"a"}
        assert told(tmp_path, a=ready, b=busy) == {"a"}
        assert told(tmp_path, a=ready, b=ready) == {"a", "b"}
