"""What a worker of TorchServe 0.12 does for each request and need not do.

It reads each number and each text of a request from the socket by a system call of its own, some
thirty a request; and it prints two lines for each batch, which Java then reads and parses. Both
are mended from within, for TorchServe has no settings for them. Of any other version nothing is
touched.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import socket

VERSION = "0.12.0"
CHUNK = 65536
"""Bytes that are asked for at once: the most that malloc takes from memory it has at hand."""
_METRICS = "ts.metrics.caching_metric"


class Reader:
    """Reads from a worker's one connection ahead of what is asked for."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def __call__(self, connection: socket, length: int) -> bytes:
        """Return the next `length` bytes; end the worker where TorchServe has gone."""
        if self._at + length > len(self._data):
            self._fill(connection, length)
        begin, self._at = self._at, self._at + length
        return self._data[begin : self._at]

    def _fill(self, connection: socket, length: int) -> None:
        """Read until what was not yet taken holds `length` bytes or more."""
        parts = [self._data[self._at :]]
        missing = length - len(parts[0])
        while missing > 0:
            packet = connection.recv(CHUNK)
            if not packet:
                sys.exit(0)
            parts.append(packet)
            missing -= len(packet)
        self._data, self._at = b"".join(parts), 0


def hasten(version: str) -> None:
    """Let the worker that this runs in read ahead, and print no lines but warnings and metrics."""
    if version != VERSION:
        return
    from ts.protocol import otf_message_handler

    otf_message_handler._retrieve_buffer = Reader()
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.addFilter(_is_kept)
    metrics = logging.getLogger(_METRICS)
    metrics.setLevel(logging.INFO)
    metrics.addFilter(_is_wanted)


def mute() -> None:
    """Let nothing be printed of what is odd in a picture: its sender says how often.

    Each warning would be kept for ever, too, as one that was given already.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _is_kept(record: logging.LogRecord) -> bool:
    """Keep every line but those about a body that can't be decoded as what its sender calls it.

    Such a line comes with a traceback of a dozen more, and whoever sends nonsense says how often.
    The sender gets an answer that tells what is wrong.
    """
    return not str(record.msg).endswith("decoding of input data. Forwarding encoded payload")


def _is_wanted(record: logging.LogRecord) -> bool:
    """Tell whether a line is not that of PredictionTime, a gauge of each single batch."""
    return not str(record.msg).startswith("[METRICS]PredictionTime")
