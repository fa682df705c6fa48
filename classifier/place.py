"""Where a server's files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """The files that one server is made of, and how it starts."""

    run: Path = Path("run")
    """Generated state: the configuration, logs and the process's identity."""
    model_store: Path = Path("model_store")
    releases: Path = Path("releases.toml")
    config: Path = Path("config.properties")
    model_config: Path = Path("model/model-config.yaml")
    warm_up: float = 5.0
    """Seconds for which a new server is asked before it counts as ready."""

    @property
    def logs(self) -> Path:
        """The folder of TorchServe's logs."""
        return self.run / "logs"

    @property
    def state(self) -> Path:
        """The file that identifies the processes that were started."""
        return self.run / "server.json"

    @property
    def working(self) -> Path:
        """The folder in which TorchServe runs and writes its tokens, for it chooses no other.

        It is empty at the start: Java takes no cache where a folder among its classes holds files.
        """
        return self.run / "torchserve"

    @property
    def tokens(self) -> Path:
        """The file to which TorchServe writes its tokens."""
        return self.working / "key_file.json"

    @property
    def generated(self) -> Path:
        """The configuration that TorchServe reads."""
        return self.run / "config.properties"

    @property
    def history(self) -> Path:
        """The history of releases, beside releases.toml."""
        return self.releases.with_suffix(".history.jsonl")

    @property
    def served(self) -> Path:
        """What the running server was told to serve: releases.toml as it was then, with workers."""
        return self.run / "releases.toml"

    @property
    def journal(self) -> Path:
        """The file that is there while a default is being changed."""
        return self.run / "promotion.json"

    @property
    def traffic(self) -> Path:
        """The folder of users' pictures that are kept, with a folder for each model."""
        return self.run / "traffic"

    @property
    def draining(self) -> Path:
        """The file that is there while the server is about to stop."""
        return self.run / "draining"
