"""TorchServe's gRPC stubs, made from the .proto files inside its own jar."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ServerError

if TYPE_CHECKING:
    from types import ModuleType


def inference() -> tuple[ModuleType, ModuleType]:
    """Make and import the stubs of the inference API: its messages and its services.

    Raises:
        ServerError: the .proto can't be compiled.
    """
    if "inference_pb2" not in sys.modules:
        with tempfile.TemporaryDirectory(prefix="stubs-") as folder:
            generate(Path(folder))
            sys.path.insert(0, folder)
            try:
                importlib.import_module("inference_pb2_grpc")
            finally:
                sys.path.remove(folder)
    return sys.modules["inference_pb2"], sys.modules["inference_pb2_grpc"]


def generate(folder: Path) -> None:
    """Write inference_pb2.py and inference_pb2_grpc.py to a folder.

    Raises:
        ServerError: the .proto can't be compiled.
    """
    from grpc_tools import protoc

    jar = _folder("ts") / "frontend" / "model-server.jar"
    with zipfile.ZipFile(jar) as packed:
        packed.extract("inference.proto", folder)
    includes = [
        folder,
        _folder("grpc_tools") / "_proto",
        _folder("google.rpc").parent.parent,
    ]
    options = [f"-I{include}" for include in includes]
    options += [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(["protoc", *options, "inference.proto"]) != 0:
        raise ServerError(f"the .proto in {jar} can't be compiled: see the lines above")


def _folder(package: str) -> Path:
    """Return where a package lies, without importing it: TorchServe's does much at import."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the package {package} is missing: `pip install -r requirements.txt`")
    return Path(next(iter(spec.submodule_search_locations)))
