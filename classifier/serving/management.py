"""TorchServe's management API: what is served, and how to change it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import tenacity

from ..errors import ServerError, error_of
from ..tokens import TokenAuth
from . import config

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from .config import Sizes
    from .releases import Release

TIMEOUT = 10.0  # seconds
ARCHIVE_TIMEOUT = 60.0  # seconds until an archive is unpacked
FIXED = (
    "what is served can't be changed while it runs (enable_model_api=false): let releases.toml say "
    "it, then stop and start the server"
)
"""What 405 means."""
LISTINGS = 5
"""How often versions are listed at most, when some go meanwhile."""


class _VersionGoneError(ServerError):
    """The server has no such version, or no longer."""


@dataclass(frozen=True)
class Worker:
    """A worker of a version.

    Attributes:
        pid: its process.
        is_ready: it has loaded the model. TorchServe calls all else UNLOADING: a worker that
            loads, one that waits for its next start, and one that it has given up.
    """

    pid: int
    is_ready: bool


class Management:
    """TorchServe's management API.

    Args:
        url: the management address.
        token: returns the current token, where the server wants one.

    Every method raises httpx.TransportError where the server does not answer, and ServerError
    where it refuses.
    """

    def __init__(self, url: str, token: Callable[[], str] | None = None) -> None:
        self.url = url
        auth = TokenAuth(token) if token else None
        self._http = httpx.Client(base_url=url, auth=auth, timeout=TIMEOUT, trust_env=False)
        weakref.finalize(self, self._http.close)

    def models(self) -> list[str]:
        """Return the names of the models that are registered."""
        answer = self._call("GET", "/models?limit=1000")
        return [model["modelName"] for model in answer["models"]]

    def versions(self, model: str) -> dict[str, int]:
        """Return the READY workers of each registered version of a model."""
        return {version: ready for version, (ready, _) in self.staffing(model).items()}

    def registered(self) -> dict[tuple[str, str], int]:
        """Return the READY workers of each registered version, by model and version."""
        return {(m, v): ready for m in self.models() for v, ready in self.versions(m).items()}

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(_VersionGoneError),
        stop=tenacity.stop_after_attempt(LISTINGS),
        reraise=True,
    )
    def staffing(self, model: str) -> dict[str, tuple[int, int]]:
        """Return of each registered version its READY workers, and how many it shall have.

        TorchServe looks for each version that it has just listed, and answers 404 if one is gone.
        """
        return {
            version["modelVersion"]: (
                sum(worker["status"] == "READY" for worker in version["workers"]),
                int(version["minWorkers"]),
            )
            for version in self._call("GET", f"/models/{model}/all")
        }

    def default(self, model: str) -> str:
        """Return the version that answers when none is asked for."""
        version: str = self._call("GET", f"/models/{model}")[0]["modelVersion"]
        return version

    def describe(self, model: str, version: str) -> dict[str, Any]:
        """Return what TorchServe knows of a version."""
        described: dict[str, Any] = self._call("GET", f"/models/{model}/{version}")[0]
        return described

    def workers(self, model: str, version: str) -> list[Worker]:
        """Return the workers of a version."""
        listed = self.describe(model, version)["workers"]
        return [Worker(worker["pid"], worker["status"] == "READY") for worker in listed]

    def pending(self, model: str, version: str) -> int:
        """Return how many requests wait for a version, without those that a worker has taken."""
        return int(self.describe(model, version)["jobQueueStatus"]["pendingRequests"])

    def ask_worker(self, model: str, version: str, timeout: float = TIMEOUT) -> int | None:
        """Let the next free worker of a version answer; return its process.

        The question waits in the version's queue, behind the requests that came before. None
        where the version's handler does not tell: one that is not ours.
        """
        path = f"/models/{model}/{version}?customized=true"
        described = self._call("GET", path, timeout)[0].get("customizedMetadata")
        return described.get("worker") if isinstance(described, dict) else None

    def register(self, archive: str, sizes: Sizes) -> None:
        """Register an archive of the model store, without workers: `scale` starts them.

        Asked to start workers at once, TorchServe waits for them in one of the threads that answer
        requests: for seconds every connection of that thread gets no answer.
        """
        settings: dict[str, str | int] = {
            "url": archive,
            "batch_size": sizes.batch,
            "max_batch_delay": sizes.delay,
            "initial_workers": 0,
        }
        self._call("POST", f"/models?{httpx.QueryParams(settings)}", ARCHIVE_TIMEOUT)

    def scale(self, model: str, version: str, workers: int) -> None:
        """Start or stop workers of a version; it does not wait for them either."""
        path = f"/models/{model}/{version}?min_worker={workers}&max_worker={workers}"
        self._call("PUT", path)

    def set_default(self, model: str, version: str) -> None:
        """Let a version answer when none is asked for."""
        self._call("PUT", f"/models/{model}/{version}/set-default")

    def unregister(self, model: str, version: str) -> None:
        """Take a version out of service; what still waits for it is never answered."""
        self._call("DELETE", f"/models/{model}/{version}")

    def _call(self, method: str, path: str, timeout: float = TIMEOUT) -> Any:
        answer = self._http.request(method, path, timeout=timeout)
        if answer.is_error:
            kind, message = error_of(answer)
            if answer.status_code == httpx.codes.METHOD_NOT_ALLOWED:
                message = FIXED
            is_gone = kind == "ModelVersionNotFoundException"
            raise (_VersionGoneError if is_gone else ServerError)(
                f"{self.url}{path} answers {answer.status_code}: {message}"
            )
        return answer.json()


def unregistered(registered: Container[tuple[str, str]], releases: Iterable[Release]) -> list[str]:
    """Return the versions, as `model:version`, that should be served but aren't registered."""
    return [
        f"{release.model}:{version}"
        for release in releases
        for version in release.versions
        if (release.model, version) not in registered
    ]


def differences(management: Management, releases: Sequence[Release]) -> list[str]:
    """Return, in words, each way in which the server differs from releases.toml."""
    ready = management.registered()
    wanted = {(r.model, v): config.workers(r) for r in releases for v in r.versions}
    found = [f"{name} is not registered" for name in unregistered(ready, releases)]
    found += [f"{m}:{v} is served, but not released" for m, v in ready if (m, v) not in wanted]
    found += [
        f"{m}:{v} has {ready[m, v]} of {workers} workers READY"
        for (m, v), workers in wanted.items()
        if ready.get((m, v), workers) != workers
    ]
    registered = {model for model, _ in ready}
    defaults = {r.model: r.default for r in releases if r.model in registered}
    for model, default in defaults.items():
        if (now := management.default(model)) != default:
            found.append(f"{model}'s default is {now}, but {default} is released")
    return found
