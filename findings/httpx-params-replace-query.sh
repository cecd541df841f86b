#!/bin/sh
# httpx with params= for an address that has a query already: a signed address of an object store, a server's next page.
# Versions: httpx 0.28.1, requests 2.34.2, aiohttp 3.14.5.
# Guess: the parameters are added to those of the address, as requests and aiohttp do; what differs between the two
#   libraries is in httpx's guide for users of requests, which does not name this.
# Behaviour: the address loses its query, whatever params holds, and {} removes it too. The signature is gone and the
#   store answers 403, or the page number is gone and every page is the first one. The same happens where params are
#   those of the client, set once for all requests (a key, a version): each request with a query of its own loses it.
#   url.copy_merge_params() adds.
# Output seen (for /p?sig=a and size=224): requests sig=a&size=224, aiohttp sig=a&size=224, httpx size=224; of {}: sig=a,
#   sig=a, nothing; parameters of the client or session: sig=a&size=224, sig=a&size=224, size=224.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check httpx==0.28.1 requests==2.34.2 aiohttp==3.14.5
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import asyncio
import http.server
import threading

import aiohttp
import httpx
import requests


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers with the query that arrived."""

    def do_GET(self):
        body = self.path.partition("?")[2].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/p?sig=a"
SIZE = {"size": "224"}


def by_requests(params, of_session):
    with requests.Session() as session:
        session.params = of_session
        return session.get(address, params=params).text


def by_aiohttp(params, of_session):
    async def get():
        async with aiohttp.ClientSession() as session:  # its sessions have no parameters
            async with session.get(address, params={**of_session, **(params or {})}) as answer:
                return await answer.text()

    return asyncio.run(get())


def by_httpx(params, of_session):
    with httpx.Client(params=of_session) as client:
        return client.get(address, params=params).text


for name, get, wanted in [
    ("requests", by_requests, ["sig=a&size=224", "sig=a", "sig=a&size=224"]),
    ("aiohttp", by_aiohttp, ["sig=a&size=224", "sig=a", "sig=a&size=224"]),
    ("httpx", by_httpx, ["size=224", "", "size=224"]),
]:
    seen = [get(SIZE, {}), get({}, {}), get(None, SIZE)]
    print(f"{name}: params {seen[0]!r}, empty params {seen[1]!r}, of the client {seen[2]!r}")
    assert seen == wanted, f"{name} answers otherwise now"
assert str(httpx.URL(address).copy_merge_params(SIZE)).endswith("?sig=a&size=224")
PY
