"""The container, without an engine: its image's files serve, and what is around them fits.

The image is laid out in a folder from the lines of the Containerfile (tests/image.py), and its own
command is run there: what the image lacks, that command lacks.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import kubernetes_validate
import psutil
import pytest
import yaml
from check_jsonschema import main as check
from click.testing import CliRunner

from classifier.process import wait as wait_until_ended
from classifier.serving import config, releases
from classifier.serving.server import START_DEADLINE, STOP_DEADLINE

from .conftest import do_without
from .deployment import PORTS, on_free_ports
from .image import CONTAINERFILE, ENVIRONMENT, Image, context, named, required, stages
from .images import SAMPLE
from .test_monitor import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = Path("deploy/container/config.properties")
COMPOSE = Path("deploy/container/compose.yaml")
KUBERNETES = Path("deploy/kubernetes/classifier.yaml")
USER = 10001
TEMPORARY = "/tmp"  # noqa: S108
PUBLISHED = {"inference_address", "readiness_address"}
END = 2 * STOP_DEADLINE
"""Seconds that the end may take after the grace: awaiting answers, and killing what hangs."""

ISOLATED = """
set -eu
root=$1 folder=$2 user=$3 tmpfs=$4 keep=$5
shift 5
mount --make-rprivate /
mount --bind "$root" "$root"
for each in $tmpfs; do
    mkdir -p "$root${each%%:*}"
    mount -t tmpfs -o "nosuid,nodev,noexec,${each#*:}" tmpfs "$root${each%%:*}"
done
for path in $keep; do
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
done
mkdir -p "$root/proc"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$folder" \
    setpriv --reuid=$user --regid=$user --clear-groups --no-new-privs --inh-caps=-all \
    --bounding-set=-all "$@"
"""
"""What an engine does, in little: namespaces of processes and mounts; the image as root folder,
read-only but for compose.yaml's tmpfs; a user of no rights. This machine lends `keep`: its system's
libraries, and the Python and the packages that the image's environment is made of."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image's files, on free ports."""
    image = Image(tmp_path_factory.mktemp("container"))
    path = image.folder / CONFIG
    path.write_text(on_free_ports(path.read_text()))
    return image


class Running:
    """The image's own command, running.

    Args:
        image: its files.
        isolated: whether in namespaces of its own, as an engine would; else it is only run in the
            image's folder, by this user.
    """

    def __init__(self, image: Image, isolated: bool) -> None:
        self.image, self._isolated = image, isolated
        self._environment = image.environment if isolated else outside(image)
        self.properties = config.read(image.folder / CONFIG)
        self.process = subprocess.Popen(
            [*(isolation(image) if isolated else []), *image.command],
            cwd=image.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def readiness(self) -> str:
        """URL of /ready and the like."""
        return config.address(self.properties, "readiness")

    @property
    def first(self) -> psutil.Process:
        """What the image's command became: a container's process 1."""
        process = psutil.Process(self.process.pid)
        return process.children()[0] if self._isolated else process

    def wait_until_ready(self) -> None:
        """Wait until it serves; fail if it ends before that."""

        def ready() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0]
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.readiness}/ready", timeout=30).is_success
            return False

        wait_for(ready, START_DEADLINE)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `docker exec` does."""
        target, user = f"--target={self.first.pid}", [f"--setuid={USER}", f"--setgid={USER}"]
        enter = ["nsenter", target, "--mount", "--pid", "--root", "--wd", *user]
        return subprocess.run(
            [*(enter if self._isolated else []), *command],
            cwd=self.image.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stop(self) -> tuple[int, str]:
        """Stop it as an engine does; return its exit status and what it printed."""
        self.first.send_signal(getattr(signal, self.image.last.one("STOPSIGNAL")))
        printed, _ = self.process.communicate(timeout=START_DEADLINE)
        return self.process.returncode, printed


def outside(image: Image) -> dict[str, str]:
    """Return the image's environment, with its paths as they are outside."""
    there = {ENVIRONMENT: str(image.root) + ENVIRONMENT}
    path = image.environment["PATH"].replace(ENVIRONMENT, there[ENVIRONMENT])
    return image.environment | {"PATH": path, "HOME": str(image.folder / "run")}


def isolation(image: Image) -> list[str]:
    """Return what to put before a command that shall run as in a container."""
    system = ["/usr", "/bin", "/lib", "/lib64", "/etc", "/dev"]
    keep = " ".join([*system, *map(str, image.lent)])
    begin = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", ISOLATED]
    tmpfs = " ".join(service()["tmpfs"])
    return [*begin, "sh", str(image.root), image.last.folder, str(USER), tmpfs, keep]


def service() -> dict[str, Any]:
    """Return what compose.yaml says of the only service."""
    (only,) = yaml.safe_load(COMPOSE.read_text())["services"].values()
    return dict(only)


def may_isolate() -> bool:
    """Tell whether this user may make namespaces and mount what it likes in them."""
    probe = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt"
    command = ["unshare", "--mount", "--pid", "--fork", "/bin/sh", "-c", probe]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(params=["in its folder", "isolated"])
def running(request: pytest.FixtureRequest, image: Image) -> Iterator[Running]:
    """The image's command, when it is ready."""
    isolated = request.param == "isolated"
    if isolated and not may_isolate():
        pytest.skip("namespaces and mounts are for root, and not for each")
    running = Running(image, isolated)
    try:
        running.wait_until_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def listening(processes: list[psutil.Process]) -> dict[int, str]:
    """Return the hosts on which processes listen, by port; Java writes them as IPv6."""
    found = {
        connection.laddr.port: connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    return {port: config.EVERYWHERE if ip == "::" else ip for port, ip in found.items()}


def test_the_image_serves_by_its_own_command(running: Running) -> None:
    inference = config.address(running.properties, "inference") + "/predictions/cifar10"
    told = running.run([*running.image.last.command("ENTRYPOINT")[:5], "token"])
    assert told.returncode == 0, told.stderr
    bearer = {"Authorization": f"Bearer {told.stdout.strip()}"}
    photo = SAMPLE.read_bytes()
    answer = httpx.put(inference, content=photo, headers=bearer, timeout=60)
    assert (answer.status_code, next(iter(answer.json()))) == (200, "cat"), answer.text
    assert httpx.put(inference, content=photo, timeout=60).status_code == 400, "without a token"

    healthy = running.run(running.image.last.command("HEALTHCHECK"))
    assert (healthy.returncode, healthy.stdout) == (0, "ready\n"), healthy.stderr
    metrics = httpx.get(f"{running.readiness}/metrics", timeout=60)
    assert "ts_inference_requests_total" in metrics.text

    family = [running.first, *running.first.children(recursive=True)]
    (java,) = (member for member in family if member.name() == "java")
    maps = Path(f"/proc/{java.pid}/maps").read_text()
    assert f"{ENVIRONMENT}/java/torchserve.aot" in maps, "Java's cache is not used"
    ports = {key: int(running.properties[key].rpartition(":")[2]) for key in PORTS}
    assert listening(family) == {
        port: config.EVERYWHERE if key in PUBLISHED else "127.0.0.1" for key, port in ports.items()
    }

    code, printed = running.stop()
    assert code == 0, printed
    assert "SIGTERM: what has come is answered first" in printed
    assert printed.endswith("TorchServe has stopped.\n")
    assert not wait_until_ended(family, 0)


def test_an_exact_base_a_user_without_rights_and_no_shell_in_between() -> None:
    *_, last = stages()
    (base,) = re.findall(r"^ARG BASE=(.*)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert re.search(r"python:3\.11\.\d+-slim-\w+(@sha256:\w+)?$", base), "a tag that stays"
    assert {stage.base for stage in stages()} <= {"${BASE}", *(stage.name for stage in stages())}
    assert last.one("USER") == f"{USER}:{USER}"
    user = last.instructions.index(("USER", f"{USER}:{USER}"))
    assert not {"RUN", "COPY"} & {name for name, _ in last.instructions[user:]}
    for instruction in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        assert last.command(instruction), "exec form"
    assert last.one("EXPOSE").split() == ["8080", "8083"]
    assert last.one("STOPSIGNAL") == "SIGTERM"
    assert f"--uid {USER} --gid {USER}" in last.all("RUN")[0]


def test_hadolint_finds_nothing() -> None:
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    hadolint = shutil.which("hadolint", path=places) or do_without("hadolint is not installed")
    done = subprocess.run([hadolint, CONTAINERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_build_sees_what_it_copies_and_nothing_else(tmp_path: Path) -> None:
    lines = [shlex.split(line) for stage in stages() for line in stage.all("COPY")]
    copied = [Path(word) for line in lines for word in line[:-1] if not line[0].startswith("--")]
    seen = {Path(name) for name in context()} - {CONTAINERFILE, Path(".dockerignore")}
    files = {path for path in seen if path.is_file()}
    assert {p for p in files if not {p, *p.parents} & set(copied)} == set()

    kept_out = (
        ".venv/bin/python",
        ".git/config",
        "run/torchserve/key_file.json",
        "run/logs/torchserve.log",
        "data/cifar-10/a",
        "key_file.json",
        "model_store/cifar10-1.0.mar",
        "model/__pycache__/net.pyc",
        "deploy/container/key_file.json",
        "tests/images.py",
    )
    for name in (*kept_out, "model/net.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {name for name in context(tmp_path) if (tmp_path / name).is_file()} == {"model/net.py"}


def test_serving_needs_nothing_of_training_and_tests() -> None:
    serving = required(Path("requirements-serving.txt"))
    everything = required(Path("requirements.txt"))
    assert serving < everything
    assert not serving & {"torchvision", "nncf", "pytest", "mypy", "grpcio", "starlette"}
    locked = {r.name.lower(): r.specifier for r in named(Path("constraints.txt"))}
    for requirement in named(Path("requirements-serving.txt")):
        assert locked[requirement.name] == requirement.specifier, requirement


def test_its_configuration_is_that_of_production_but_for_where_it_listens() -> None:
    there, here = config.read(Path("deploy/config.properties")), config.read(CONFIG)
    there.pop("model_snapshot")  # for TorchServe by hand; in the container releases.toml says it
    changed = {key for key in there.keys() | here.keys() if there.get(key) != here.get(key)}
    assert changed == PUBLISHED
    for key in PUBLISHED:
        assert here[key] == there[key].replace("127.0.0.1", config.EVERYWHERE)
    assert config.address(here, "inference") == "http://127.0.0.1:8080"
    assert config.address(here, "readiness") == "http://127.0.0.1:8083"


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_the_unit_of_systemd_ends_it_as_a_container_does() -> None:
    unit = ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names are case-sensitive
    unit.read("deploy/systemd/classifier.service")
    told = unit["Service"]
    *_, config_file, serve, foreground, _, grace = told["ExecStart"].split()
    assert (serve, foreground) == ("serve", "--foreground")
    assert Path(config_file).is_file()
    assert told["KillMode"] == "mixed"
    assert float(told["TimeoutStopSec"]) > float(grace) + END


def test_compose_keeps_what_it_promises() -> None:
    found = CliRunner().invoke(check, ["--builtin-schema", "vendor.compose-spec", str(COMPOSE)])
    assert found.exit_code == 0, found.output
    told = service()
    build = COMPOSE.parent / told["build"]["context"]
    assert build.resolve() == Path.cwd()
    assert build / told["build"]["dockerfile"] == build / CONTAINERFILE
    *_, last = stages()
    grace = float(last.command("CMD")[1])
    assert last.command("CMD")[0] == "--grace"
    assert seconds(told["stop_grace_period"]) > grace + END
    assert told["read_only"]
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert told["cap_drop"] == ["ALL"]
    assert told["mem_limit"]
    assert told["cpus"]
    places = {place: options for place, _, options in (t.partition(":") for t in told["tmpfs"])}
    assert places.keys() == {f"{last.folder}/run", TEMPORARY}
    names = [{o.partition("=")[0] for o in options.split(",")} for options in places.values()]
    assert all({"mode", "size"} <= found <= {"mode", "size", "exec"} for found in names), (
        "they count as memory, are for another user than root, and Podman takes no uid"
    )
    published = [port.rsplit(":", 2) for port in told["ports"]]
    assert all(host == "127.0.0.1" for host, _, _ in published), "a proxy goes in front"
    assert {inside for _, _, inside in published} == set(last.one("EXPOSE").split())


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """What is told to Kubernetes, by kind."""
    documents = list(yaml.safe_load_all(KUBERNETES.read_text()))
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


def test_kubernetes_would_take_each_manifest(manifests: dict[str, Any]) -> None:
    for document in manifests.values():
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    broken = manifests["Deployment"] | {"spec": {**manifests["Deployment"]["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_deployment_changes_without_a_gap(manifests: dict[str, Any]) -> None:
    deployment = manifests["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert manifests["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    option, grace = container["args"]
    assert option == "--grace"
    assert pod["terminationGracePeriodSeconds"] > float(grace) + END

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    asked = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in asked.items()}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/live"}
    assert all(ports[probe["httpGet"]["port"]] == 8083 for probe in asked.values())
    startup, readiness = asked["startup"], asked["readiness"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > START_DEADLINE
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < float(grace)

    labels = deployment["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert manifests[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifests["Service"]["spec"]["selector"].items() <= labels.items()
    assert ports[manifests["Service"]["spec"]["ports"][0]["targetPort"]] == 8080
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()


def test_pods_have_no_rights_and_room_where_the_image_writes(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    *_, last = stages()
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": USER}.items()
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    kinds = {volume["name"]: volume.keys() for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: kinds[mount["name"]] for mount in container["volumeMounts"]}
    assert {path for path, kind in mounts.items() if "emptyDir" in kind} == {
        f"{last.folder}/run",
        TEMPORARY,
    }


def test_kubernetes_runs_the_image_with_settings_of_its_own(
    manifests: dict[str, Any], tmp_path: Path
) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    *_, last = stages()
    first, rest = last.command("ENTRYPOINT"), container["command"]
    options = [word for word in rest if word.startswith("--") and "=" in word]
    without = [word for word in rest if word not in options]
    assert without == [w for w in first if w not in ("--config", str(CONFIG))]
    (mount,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "settings"]
    assert options == [f"--config={mount}/config.properties", f"--releases={mount}/releases.toml"]

    for name, text in manifests["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    assert manifests["ConfigMap"]["data"].keys() == {"config.properties", "releases.toml"}
    there, here = config.read(CONFIG), config.read(tmp_path / "config.properties")
    assert here == there | {"disable_token_authorization": "true"}, "and NetworkPolicy in its place"
    assert releases.read(tmp_path / "releases.toml") == releases.read(Path("releases.toml"))
    predictions, readiness = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert predictions["ports"] == [{"port": "http"}]
    (asking,) = predictions["from"]
    assert asking["podSelector"]["matchLabels"] == {"classifier-access": "true"}, "not everybody"
    assert readiness["ports"] == [{"port": "readiness"}]
