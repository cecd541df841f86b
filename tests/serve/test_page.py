"""The page at `/`, in a browser: a picture dropped on it, in light and dark, on a phone, with and without a token."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_fixtures import CLASS_IDS, NAME, TinyWorkspace
from serve_fixtures import Server, encoded, running

from pipeline.serve.tokens import make_token

if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tiny_workspace_master: TinyWorkspace) -> Iterator[Server]:
    with running(tiny_workspace_master.package, "-b", "1", "-i", "1") as server:
        yield server


def test_the_page_is_whole_and_allows_itself_only(server: Server) -> None:
    with urllib.request.urlopen(f"http://{server.http}/", timeout=20) as answer:
        text, headers = answer.read().decode(), answer.headers
    assert headers["content-type"].startswith("text/html")
    assert set(re.findall(r"(?:src|href)=\"([^\"]*)", text)) == {"data:,", "metrics", "v2/models", "v2/health/ready"}
    assert "http://" not in text
    assert "https://" not in text
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy


class Tab:
    """A page of Chromium, over its debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.addresses: list[str] = []  # that the page asked for
        self.faults: list[str] = []

    def do(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("method") == "Network.requestWillBeSent":
                self.addresses.append(message["params"]["request"]["url"])
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.faults.append(json.dumps(message["params"]))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def value(self, expression: str) -> Any:
        found = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        for _ in range(200):
            if self.value(expression):
                return
            time.sleep(0.1)
        pytest.fail(f"{expression} does not come true: {self.value('document.body.innerText')}; {self.faults}")

    def drop(self, content: bytes) -> None:
        """Drop a file on the page."""
        text = base64.b64encode(content).decode()
        self.value(
            f"""(() => {{
            const bytes = Uint8Array.from(atob({text!r}), (each) => each.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "picture.png", {{type: "image/png"}}));
            for (const kind of ["dragenter", "dragover", "drop"]) {{
                const options = {{bubbles: true, cancelable: true, dataTransfer: transfer}};
                document.getElementById("drop").dispatchEvent(new DragEvent(kind, options));
            }} }})()"""
        )

    def screenshot(self) -> np.ndarray:
        """Return uint8 [H, W, 3]."""
        data = self.do("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@contextmanager
def browser(folder: Path, address: str, width: int = 1000, height: int = 900, scheme: str = "light") -> Iterator[Tab]:
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium here")
    client = pytest.importorskip("websockets.sync.client", reason="no websockets, which talks to Chromium")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, "--remote-debugging-port=0"]
    profile = folder / "profile"
    command = [found, *flags, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            port_file = profile / "DevToolsActivePort"
            for _ in range(300):
                if port_file.exists() and port_file.read_text():
                    break
                time.sleep(0.1)
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                (page,) = [each for each in json.load(answer) if each["type"] == "page"]
            with client.connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
                tab = Tab(socket)
                for domain in ("Network", "Page", "Runtime", "Log"):
                    tab.do(f"{domain}.enable")
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
                tab.do("Emulation.setDeviceMetricsOverride", **size)
                tab.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                tab.do("Page.navigate", url=address)
                tab.wait_for("document.readyState === 'complete' && document.getElementById('ready') !== null")
                yield tab
        finally:
            process.kill()


LINES = "[...document.querySelectorAll('#best li')].map((each) => each.innerText)"


@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (1000, "dark"), (375, "light"), (375, "dark")])
def test_a_dropped_picture_shows_its_best_classes(server: Server, tmp_path: Path, width: int, scheme: str) -> None:
    (wanted,) = server.post(f"/v2/models/{NAME}/classify?topk=5", encoded(1))[1]
    with browser(tmp_path, f"http://{server.http}/", width, scheme=scheme) as tab:
        tab.wait_for("document.getElementById('model').value !== ''")
        tab.drop(encoded(1))
        tab.wait_for("document.querySelectorAll('#best li').length > 0")
        lines = [line.split("\n") for line in tab.value(LINES)]
        rows = zip(wanted["label_names"], wanted["scores"], strict=True)
        assert lines == [[name, f"{100 * score:.1f}%"] for name, score in rows]
        assert re.fullmatch(r"\d+ ms, round trip", tab.value("document.getElementById('time').innerText"))
        assert tab.value("document.getElementById('ready').innerText") == "ready"
        about = f"version 1; 32 x 32 pixels, {len(CLASS_IDS)} classes"
        assert tab.value("document.getElementById('about').innerText") == about
        widths = tab.value("[...document.querySelectorAll('.bar')].map((each) => each.getBoundingClientRect().width)")
        full = tab.value("document.querySelector('.track').getBoundingClientRect().width")
        np.testing.assert_allclose(widths, np.array(wanted["scores"]) * full, atol=1)
        assert tab.value("document.documentElement.scrollWidth") <= width
        shown = tab.screenshot()
        Image.fromarray(shown).save(tmp_path / "shown.png")
        assert bool(shown[5, 5].mean() < 60) is (scheme == "dark")
        bar = (91, 155, 217) if scheme == "dark" else (47, 111, 179)
        assert (shown == bar).all(axis=2).sum() > 100
        assert {address.split("/")[2] for address in tab.addresses if address.startswith("http")} == {server.http}
        assert tab.faults == []


def test_a_file_that_is_no_picture_is_said(server: Server, tmp_path: Path) -> None:
    with browser(tmp_path, f"http://{server.http}/") as tab:
        tab.wait_for("document.getElementById('model').value !== ''")
        tab.drop(b"no picture")
        tab.wait_for("!document.getElementById('fault').hidden")
        assert "cannot be decoded as an image" in tab.value("document.getElementById('fault').innerText")
        assert tab.value("document.getElementById('result').hidden")


def test_the_calls_that_it_shows_work(server: Server, tmp_path: Path) -> None:
    with browser(tmp_path, f"http://{server.http}/") as tab:
        tab.wait_for("document.getElementById('model').value !== ''")
        tab.wait_for(f"document.getElementById('curl').innerText.includes('{NAME}/classify')")
        curl, code = (tab.value(f"document.getElementById('{name}').textContent") for name in ("curl", "python"))
    (tmp_path / "picture.jpg").write_bytes(encoded(2))
    wanted = server.post(f"/v2/models/{NAME}/classify?topk=5", encoded(2))[1]
    ran = subprocess.run(["python3", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(wanted)
    if shutil.which("curl"):
        asked = subprocess.run(["sh", "-c", curl], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert json.loads(asked.stdout) == wanted


def test_it_asks_for_a_token_where_one_is_wanted(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> None:
    token = make_token(tmp_path / "tokens.txt", "alice", None)
    with (
        running(tiny_workspace_master.package, "-b", "1", "--tokens", str(tmp_path / "tokens.txt")) as server,
        browser(tmp_path, f"http://{server.http}/") as tab,
    ):
        tab.wait_for("!document.getElementById('entry').hidden")
        assert NAME not in tab.value("document.documentElement.outerHTML")
        tab.value(f"document.getElementById('token').value = {token!r}")
        tab.value("document.querySelector('#entry button').click()")
        tab.wait_for(f"document.getElementById('model').value === {NAME!r}")
        tab.drop(encoded(0))
        tab.wait_for("document.querySelectorAll('#best li').length > 0")
        assert tab.value("document.getElementById('entry').hidden")
        assert "Bearer $TOKEN" in tab.value("document.getElementById('curl').innerText")
        assert token not in tab.value("document.body.innerText")
