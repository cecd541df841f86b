#!/bin/sh
# An HTTP answer with content-encoding gzip whose body is made of several gzip members, one behind the other, as a
# server makes it that joins parts it has compressed before (a table's header and its rows), or as bgzip writes files.
# Versions: httpx 0.28.1, requests 2.34.2, aiohttp 3.14.5.
# Guess: RFC 1952 calls such a sequence a gzip file, gzip and Python's own gzip module decompress all of it, and so does
#   every client.
# Behaviour: httpx stops at the end of the first member and drops the rest, without an error: a body of three parts is
#   the first part. requests and aiohttp give all three.
# Output seen (bytes of 21): httpx 7, httpx streamed 7, requests 21, aiohttp 21; one member: 21 by each.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check httpx==0.28.1 requests==2.34.2 aiohttp==3.14.5
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import asyncio
import gzip
import http.server
import threading

import aiohttp
import httpx
import requests

PARTS = [b"part 1\n", b"part 2\n", b"part 3\n"]
BODIES = {"/one": gzip.compress(b"".join(PARTS)), "/three": b"".join(map(gzip.compress, PARTS))}
assert gzip.decompress(BODIES["/three"]) == b"".join(PARTS)


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(BODIES[self.path])))
        self.end_headers()
        self.wfile.write(BODIES[self.path])

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"


def streamed(path):
    with httpx.stream("GET", base + path) as answer:
        return b"".join(answer.iter_bytes())


async def by_aiohttp(path):
    async with aiohttp.ClientSession() as session, session.get(base + path) as answer:
        return await answer.read()


clients = {
    "httpx": lambda path: httpx.get(base + path).content,
    "httpx streamed": streamed,
    "requests": lambda path: requests.get(base + path).content,
    "aiohttp": lambda path: asyncio.run(by_aiohttp(path)),
}
whole = b"".join(PARTS)
for name, get in clients.items():
    one, three = get("/one"), get("/three")
    print(f"{name}: {len(one)} bytes of one member, {len(three)} of three")
    assert one == whole
    assert three == (PARTS[0] if name.startswith("httpx") else whole), f"{name} gives {three!r} now"
PY
