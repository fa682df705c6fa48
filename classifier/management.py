"""Ask a running TorchServe what it serves, and what differs from releases.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import config
from .http import session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .releases import Release

TIMEOUT = 10.0  # seconds


class Management:
    """TorchServe's management API.

    Args:
        url: the management address.

    Every method raises requests.RequestException where the server does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = session()

    def models(self) -> list[str]:
        """Return the names of the models that are registered."""
        answer = self._get("/models?limit=1000")
        return [model["modelName"] for model in answer["models"]]

    def versions(self, model: str) -> dict[str, int]:
        """Return the READY workers of each registered version of a model."""
        return {
            version["modelVersion"]: sum(w["status"] == "READY" for w in version["workers"])
            for version in self._get(f"/models/{model}/all")
        }

    def default(self, model: str) -> str:
        """Return the version that answers when none is asked for."""
        version: str = self._get(f"/models/{model}")[0]["modelVersion"]
        return version

    def _get(self, path: str) -> Any:
        answer = self._session.get(self.url + path, timeout=TIMEOUT)
        answer.raise_for_status()
        return answer.json()


def unregistered(management: Management, releases: Iterable[Release]) -> list[str]:
    """Return the versions, as `model:version`, that should be served but aren't registered."""
    present = set(management.models())
    missing = []
    for release in releases:
        has = management.versions(release.model) if release.model in present else {}
        missing += [f"{release.model}:{v}" for v in release.versions if v not in has]
    return missing


def differences(management: Management, released: Iterable[Release]) -> list[str]:
    """Return, in words, each way in which the server differs from releases.toml."""
    releases = {release.model: release for release in released}
    present = management.models()
    found = [f"{model} is served, but not released" for model in present if model not in releases]
    for release in releases.values():
        if release.model in present:
            found += _differences(management, release)
        else:
            found.append(f"{release.model} is not registered")
    return found


def _differences(management: Management, release: Release) -> list[str]:
    name, wanted = release.model, config.workers(release)
    ready = management.versions(name)
    found = [f"{name}:{v} is not registered" for v in release.versions if v not in ready]
    found += [f"{name}:{v} is served, but not released" for v in ready if v not in release.versions]
    found += [
        f"{name}:{v} has {ready[v]} of {wanted} workers READY"
        for v in release.versions
        if v in ready and ready[v] != wanted
    ]
    default = management.default(name)
    if default != release.default:
        found.append(f"{name}'s default is {default}, but {release.default} is released")
    return found
