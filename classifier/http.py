"""HTTP to TorchServe."""

from __future__ import annotations

import requests

from .errors import ServerError


def session() -> requests.Session:
    """Return a session that ignores proxies: TorchServe listens on this machine."""
    made = requests.Session()
    made.trust_env = False
    return made


def predict(session: requests.Session, url: str, image: bytes) -> dict[str, float]:
    """Classify an image file's bytes; return the likeliest labels, likeliest first.

    Args:
        session: to ask with.
        url: of the model, such as http://127.0.0.1:8080/predictions/cifar10.
        image: the bytes of an image file.

    Raises:
        ServerError: the answer is none.
    """
    try:
        answer = session.put(url, data=image, timeout=60)
        if not answer.ok:
            raise ServerError(f"{url} answers {answer.status_code}: {answer.text}")
        labels: dict[str, float] = answer.json()
    except requests.RequestException as error:
        raise ServerError(f"{url} gives no answer: {error}") from None
    return labels
