"""OpenTelemetry traces, received by a collector that is a small HTTP server here."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import NAME, REPOSITORY, TinyWorkspace
from serve_fixtures import Server, command, encoded, running

if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)

from pipeline.serve.tracing import open_tracing

needs_otel = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.exporter") is None,
    reason="OpenTelemetry's exporter is not installed: pip install '.[otel]'",
)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
CLASSIFY = f"/v2/models/{NAME}/classify"


@dataclass
class Collector:
    """What arrived at /v1/traces."""

    address: str = ""
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)

    def receive(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(part.resource.attributes))
            for scope in part.scope_spans:
                self.spans.extend(scope.spans)

    def wait_for(self, count: int) -> list[Any]:
        deadline = time.monotonic() + 30
        while len(self.spans) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(self.spans) == count, [span.name for span in self.spans]
        return self.spans

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.address, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf":
                found.receive(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
                self.send_response(200)
            else:
                self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def traced(workspace: TinyWorkspace, collector: Collector, *flags: str, **more: str) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**collector.environment, **more}.items():
            patch.setenv(key, value)
        with running(workspace.package, "-b", "2", *flags) as server:
            yield server


@pytest.mark.slow
@needs_otel
def test_a_request_over_rest_is_a_part_of_the_clients_trace(
    tiny_workspace_master: TinyWorkspace, collector: Collector
) -> None:
    with traced(tiny_workspace_master, collector) as server:
        begun = time.time_ns()
        assert server.post(f"{CLASSIFY}?topk=2", encoded(0), traceparent=SAMPLED)[0] == 200
        ended = time.time_ns()
        assert server.get("/v2/health/ready")[0] == 200
        assert server.get("/metrics")[0] == 200
        spans = {span.name: span for span in collector.wait_for(4)}
    request = spans.pop("POST /v2/models/{model_name}/classify")
    assert set(spans) == {"decode", "queue", "compute"}
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.kind == request.SPAN_KIND_SERVER
    assert begun < request.start_time_unix_nano < ended
    # It ends when the answer is sent, which may be a moment after the client has it.
    assert request.start_time_unix_nano < request.end_time_unix_nano < ended + 1_000_000_000
    assert values(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model_name}/classify",
        "url.path": CLASSIFY,
        "client.address": "127.0.0.1",
        "http.response.status_code": 200,
        "model.name": NAME,
        "model.version": "1",
    }
    slack = 1_000_000  # ns: moments of one clock, seen from another
    for span in spans.values():
        assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id)
        assert request.start_time_unix_nano - slack <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano + slack
    assert spans["decode"].end_time_unix_nano <= spans["queue"].start_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["compute"].start_time_unix_nano
    assert values(spans["decode"].attributes) == {"pipeline.bytes": len(encoded(0))}
    assert values(spans["compute"].attributes) == {"pipeline.images": 1, "pipeline.batch": 1}
    (resource,) = {tuple(sorted(each.items())) for each in collector.resources}
    assert dict(resource)["service.name"] == "int8-classifier-pipeline"


@pytest.mark.slow
@needs_otel
def test_a_request_over_grpc_is_a_part_of_the_clients_trace(
    tiny_workspace_master: TinyWorkspace, collector: Collector
) -> None:
    triton, np = pytest.importorskip("tritonclient.grpc"), pytest.importorskip("numpy")
    with traced(tiny_workspace_master, collector, OTEL_SERVICE_NAME="birds") as server:
        client = triton.InferenceServerClient(server.grpc)
        files = triton.InferInput("encoded_image", [2], "BYTES")
        files.set_data_from_numpy(np.array([encoded(0), encoded(1)], dtype=object))
        assert client.is_server_ready()
        client.infer(NAME, [files], headers={"traceparent": SAMPLED})
        with pytest.raises(triton.InferenceServerException):
            client.infer("none", [files], headers={"traceparent": SAMPLED})
        client.close()
        server.stop()
        spans = collector.spans  # what was left is sent when it stops
    good, bad = sorted((span for span in spans if "/" in span.name), key=lambda span: span.start_time_unix_nano)
    assert good.name == bad.name == "inference.GRPCInferenceService/ModelInfer"
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {good.parent_span_id.hex(), bad.parent_span_id.hex()} == {PARENT}
    steps = [span for span in spans if span.parent_span_id == good.span_id]
    assert sorted(span.name for span in steps)[-3:].count("queue") in (1, 2)
    assert [span.name for span in steps].count("decode") == 2
    assert sum(values(span.attributes)["pipeline.images"] for span in steps if span.name == "compute") == 2
    found = values(good.attributes)
    assert (found["rpc.system.name"], found["rpc.response.status_code"]) == ("grpc", "OK")
    assert values(bad.attributes)["rpc.response.status_code"] == "NOT_FOUND"
    assert good.status.code == bad.status.code == 0  # a client's fault is none of the server
    assert {each["service.name"] for each in collector.resources} == {"birds"}


@pytest.mark.slow
@needs_otel
def test_workers_trace_what_clients_sample(tiny_workspace_master: TinyWorkspace, collector: Collector) -> None:
    with traced(tiny_workspace_master, collector, "--workers", "2", "--drain", "0.2") as server:
        for header in [NOT_SAMPLED] * 4 + [SAMPLED] * 16:
            assert server.post(CLASSIFY, encoded(0), traceparent=header)[0] == 200
        assert server.get("/v2/models/none")[0] == 404
        assert server.stop()[0] == 0
        spans = collector.spans
    assert sum(span.name.endswith("/classify") for span in spans) == 16
    assert len({each["process.pid"] for each in collector.resources}) == 2
    (other,) = [span for span in spans if span.trace_id.hex() != TRACE]  # a new trace
    assert (other.name, other.parent_span_id) == ("GET /v2/models/{model_name}", b"")


@pytest.mark.slow
@needs_otel
def test_a_collector_that_is_gone_is_a_line_and_requests_are_answered(tiny_workspace_master: TinyWorkspace) -> None:
    gone = Collector("http://127.0.0.1:9")
    with traced(tiny_workspace_master, gone, "--drain", "0", OTEL_EXPORTER_OTLP_TIMEOUT="1") as server:
        for _ in range(3):
            assert server.post(CLASSIFY, encoded(0))[0] == 200
            time.sleep(0.5)
        begun = time.perf_counter()
        code, out = server.stop()
        assert time.perf_counter() - begun < 10
    assert code == 0
    assert len(re.findall(r"^OpenTelemetry: ", out, re.MULTILINE)) == 1
    assert "Traceback" not in out


@pytest.mark.slow
def test_the_server_says_what_is_missing_and_goes_on(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> None:
    hiding = "import sys\nsys.modules['opentelemetry.exporter'] = None\nsys.modules['opentelemetry.sdk'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hiding)
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    environment = {**os.environ, **endpoint, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    with subprocess.Popen(
        [*command(tiny_workspace_master.package), "--max_queue", "1", "-b", "8"],  # it ends by itself
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        _, said = process.communicate(timeout=60)
    pattern = (
        r"^OTEL_EXPORTER_OTLP_ENDPOINT: opentelemetry\.\S+ is not installed, so there are no traces; "
        r"run: pip install -c constraints\.txt -e '\.\[otel\]'$"
    )
    assert re.search(pattern, said, re.MULTILINE), said
    assert said.endswith("fewer than the 8 images of a batch; give more\n")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ({"OTEL_SERVICE_NAME": "birds"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: traces are sent by OTLP as http/protobuf only, not with grpc as its "
            "protocol; there are none\n",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_EXPORTER_OTLP_ENDPOINT: traces are sent by OTLP as http/protobuf only, not with zipkin as its "
            "exporter; there are none\n",
        ),
    ],
)
def test_open_tracing_gives_none_when_no_collector_is_named_or_it_speaks_otherwise(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert open_tracing() is None
    assert capsys.readouterr().err == said
