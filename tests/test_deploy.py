"""deploy/: the files say what the command takes, run nothing as root, and ask for metrics that there are."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands.cli import make_parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "int8-classifiers.service"


def parse(arguments: list[str]) -> Namespace:
    """Parse the arguments of `serve`; flags that there are not end the test."""
    return make_parser().parse_args(["serve", *arguments])


def dockerfile() -> dict[str, list[str]]:
    """Return the instructions of the last stage, each with its lines."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found = {}
        if word.isupper():
            found.setdefault(word, []).append(rest)
    return found


def manifests() -> dict[str, Any]:
    """Return the documents of deploy/kubernetes by kind."""
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (DEPLOY / "kubernetes").glob("*.yaml")]
    return {each["kind"]: each for each in documents}


def container() -> dict[str, Any]:
    (found,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def unit_lines(key: str) -> list[str]:
    return [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith(f"{key}=")]


def compose() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["classifiers"]
    assert isinstance(found, dict)
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    yield "Dockerfile", json.loads(dockerfile()["CMD"][0])
    yield "compose", compose()["command"]
    yield "kubernetes", container()["args"]
    (line,) = unit_lines("ExecStart")
    words = shlex.split(line)
    assert words[1:4] == ["-m", "pipeline", "serve"]
    yield "systemd", words[4:]


@pytest.mark.parametrize(
    ("source", "arguments"), list(commands()), ids=lambda each: each if isinstance(each, str) else ""
)
def test_deployment_gives_flags_that_serve_has_and_asks_who_comes(source: str, arguments: list[str]) -> None:
    args = parse(arguments)
    assert args.host == "0.0.0.0"
    assert None not in (args.models, args.tls_cert, args.tls_key, args.tokens)
    assert not args.insecure
    assert (args.http_port, args.grpc_port) == (8080, 8081)


def test_dockerfile_runs_serve_without_root_and_copies_what_there_is() -> None:
    last = dockerfile()
    assert json.loads(last["ENTRYPOINT"][0]) == ["python", "-m", "pipeline", "serve"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"][0])
    assert last["EXPOSE"] == ["8080 8081"]
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in copied} <= set(ignored)
    assert "torch" not in text.replace("no torch", "")
    # The extras of the server, without the library's own dependencies, of which torch is one.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("serve", "otel", "fast"):
        (wanted,) = re.findall(rf"^{extra} = (\[.*\])$", project, re.MULTILINE)
        assert [each for each in json.loads(wanted) if f"'{each}'" not in text] == []
    check = json.loads(last["HEALTHCHECK"][0].partition("CMD ")[2])
    compile(check[2], "health check", "exec")


def test_dockerfile_installs_the_extra_fast_only_when_asked() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if "numba" in line)
    assert line.startswith('RUN [ -z "$FAST" ] || ')
    assert "\nARG FAST=\n" in text.partition(line)[0]
    said = subprocess.run(
        ["sh", "-ec", line.removeprefix("RUN ").replace("/venv/bin/pip", "echo")], env={"FAST": ""}, capture_output=True
    )
    assert (said.returncode, said.stdout) == (0, b"")
    # As user 10001 Numba cannot write to the packages' folders: its caches go to HOME's.
    (variables,) = dockerfile()["ENV"]
    assert "HOME=/tmp" in variables.split()


def test_compose_has_a_read_only_root_and_no_privileges() -> None:
    service = compose()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    args = parse(service["command"])
    assert {str(args.models), str(args.tls_cert.parent), str(args.tokens.parent)} == mounted
    assert int(service["stop_grace_period"].removesuffix("s")) > args.drain + args.grace


def test_containers_name_the_service_in_traces_and_have_none_unless_asked() -> None:
    (variables,) = dockerfile()["ENV"]
    assert "OTEL_SERVICE_NAME=" in variables
    assert "OTEL_EXPORTER" not in variables
    assert compose()["environment"] == {"OTEL_EXPORTER_OTLP_ENDPOINT": "${OTEL_EXPORTER_OTLP_ENDPOINT:-}"}


def test_kubernetes_manifests_fit_each_other() -> None:
    found = manifests()
    resources = found["Kustomization"]["resources"]
    assert {*resources, "kustomization.yaml"} == {path.name for path in (DEPLOY / "kubernetes").iterdir()}
    pod = found["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    assert "replicas" not in found["Deployment"]["spec"]
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    args = parse(container()["args"])
    assert ports == {"rest": args.http_port, "grpc": args.grpc_port}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == set(ports)
    assert {mount["name"] for mount in container()["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    assert pod["spec"]["terminationGracePeriodSeconds"] > args.drain + args.grace


def test_kubernetes_pod_is_confined_and_probed() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    confined = container()["securityContext"]
    assert confined["readOnlyRootFilesystem"] is True
    assert confined["allowPrivilegeEscalation"] is False
    assert confined["capabilities"] == {"drop": ["ALL"]}
    assert set(container()["resources"]) == {"requests", "limits"}
    routes = (ROOT / "pipeline" / "serve" / "rest.py").read_text(encoding="utf-8")
    guard = (ROOT / "pipeline" / "serve" / "guard.py").read_text(encoding="utf-8")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container()[probe]["httpGet"]
        assert f'"{asked["path"]}"' in routes
        assert f'"{asked["path"]}"' in guard, "a probe has no token"
        assert asked["scheme"] == "HTTPS"
    for volume in pod["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] & 0o022 == 0  # serve refuses tokens that others may write


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kubernetes_manifests_are_one_kustomization() -> None:
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    kinds = [each["kind"] for each in yaml.safe_load_all(done.stdout)]
    assert sorted(kinds) == ["Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_unit_verifies(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    made = text.replace("/opt/int8-classifiers/bin/python", sys.executable)  # it must be there to verify
    made = made.replace("User=int8-classifiers", "User=daemon").replace("Group=int8-classifiers", "Group=daemon")
    (tmp_path / UNIT.name).write_text(made, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)], capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, []), done.stderr
    args = parse(shlex.split(unit_lines("ExecStart")[0])[4:])
    assert int(unit_lines("TimeoutStopSec")[0]) > args.drain + args.grace


def linter(name: str) -> str:
    """Return the path of a program of the extra `ci`, in this environment or elsewhere."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"no {name}: pip install '.[ci]'")


def test_dockerfile_is_as_hadolint_wants_it(tmp_path: Path) -> None:
    command = [linter("hadolint"), "--no-color"]
    done = subprocess.run([*command, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python\n")
    assert subprocess.run([*command, str(tmp_path / "Dockerfile")], capture_output=True, timeout=60).returncode == 1


def test_kubernetes_manifests_have_no_keys_that_there_are_not(tmp_path: Path) -> None:
    """By the schemas of Kubernetes; a kustomization is none of its resources."""
    command = [linter("kubernetes-validate"), "--strict"]
    files = [path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) if path.name != "kustomization.yaml"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    wrong = (DEPLOY / "kubernetes" / "service.yaml").read_text(encoding="utf-8").replace("targetPort", "targetPorts")
    (tmp_path / "service.yaml").write_text(wrong, encoding="utf-8")
    assert subprocess.run([*command, str(tmp_path / "service.yaml")], capture_output=True, timeout=120).returncode != 0


def metric_names() -> set[str]:
    """Return what a scrape brings, of our own metrics and of the process, by the names of its samples."""
    pytest.importorskip("prometheus_client", reason="serve's packages are not installed: pip install '.[serve]'")
    from prometheus_client import REGISTRY

    from pipeline.serve import metrics

    assert metrics.IMAGES
    found = set()
    for family in REGISTRY.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        found |= {f"{family.name}{suffix}" for suffix in suffixes}
    return found


def expressions() -> Iterator[str]:
    board = json.loads((DEPLOY / "monitoring" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    rules = yaml.safe_load((DEPLOY / "monitoring" / "alerts.yaml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
            yield rule["expr"]


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    known = metric_names()
    asked = {name for each in expressions() for name in re.findall(r"\b(?:pipeline|process|request)_[a-z_]+", each)}
    kserve = {"request_predict_seconds_bucket"}
    assert asked - known - kserve == set()
    assert len(asked) > 8
    for each in expressions():
        assert each.count("(") == each.count(")")
        assert each.count("{") == each.count("}")


def test_alerts_name_reasons_that_the_server_counts() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline" / "serve").glob("*.py"))
    for each in expressions():
        for reasons in re.findall(r'reason=~?"([^"]*)"', each):
            for reason in reasons.split("|"):
                assert f'REFUSED.labels("{reason}")' in code, reason


@pytest.mark.skipif(importlib.util.find_spec("prometheus_client") is None, reason="no prometheus_client")
def test_labels_of_the_dashboard_are_those_of_the_metrics() -> None:
    pytest.importorskip("prometheus_client")
    from pipeline.serve import metrics

    assert metrics.IMAGES._labelnames == metrics.WAIT._labelnames == metrics.DECODE._labelnames == ("model",)
    assert metrics.COMPUTE._labelnames == ("model", "batch")
