"""What Python runs first in a worker, for it lies at the root of the archive: torch comes late.

TorchServe's worker imports torch only to tell tensors among answers. Ours are bytes, and OpenVINO
needs no torch: without it a worker takes 330 MB (PSS) less, and starts 1.5 s sooner. Whoever needs
torch, such as an explanation, imports it as ever.
"""

import importlib
import sys
from types import ModuleType


class Later(ModuleType):
    """Stands for a module; imports it when something is taken from it."""

    def __getattr__(self, name: str) -> object:
        """Take something from the module itself."""
        return getattr(importlib.import_module(self.__name__), name)


def spare() -> None:
    """Import that part of TorchServe with a stand-in for torch; nobody else ever sees it."""
    sys.modules["torch"] = Later("torch")
    try:
        importlib.import_module("ts.protocol.otf_message_handler")
    except ImportError:  # the worker imports it, too, and tells what is missing
        pass
    finally:
        del sys.modules["torch"]


spare()
