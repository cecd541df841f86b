"""A client of `python -m pipeline serve`: sends image files, prints their best classes.

    python examples/client.py cat.jpg dog.jpg
    python examples/client.py --grpc cat.jpg dog.jpg              # pip install 'tritonclient[grpc]'
    TOKEN=... python examples/client.py --url https://HOST:8080 --ca ca.pem cat.jpg

Over REST it needs Python alone. A line per image and class: file, class, score, name.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

Row = tuple[str, int, float, str]  # file, class, score, name


def ask(url: str, body: bytes | None, token: str | None, ca: str | None) -> object:
    """Return the JSON that a GET, or with a body a POST, is answered with."""
    request = urllib.request.Request(url, body, {} if token is None else {"authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as err:  # the server says what is wrong in a line
        raise SystemExit(f"error: {err.code}: {json.load(err)['error']}") from None
    except urllib.error.URLError as err:
        raise SystemExit(f"error: {url}: {err.reason}") from None


def over_rest(args: argparse.Namespace, token: str | None) -> Iterator[Row]:
    model = args.model or str(ask(f"{args.url}/v2/models", None, token, args.ca)["models"][0])  # type: ignore[index]
    for path in args.images:
        url = f"{args.url}/v2/models/{model}/classify?topk={args.topk}"
        (found,) = ask(url, path.read_bytes(), token, args.ca)  # type: ignore[misc]
        ranked = zip(found["class_ids"], found["scores"], found["label_names"], strict=True)
        for class_id, score, label in ranked:
            yield str(path), class_id, score, label


def over_grpc(args: argparse.Namespace, token: str | None) -> Iterator[Row]:
    import numpy as np
    from tritonclient import grpc

    secure = args.url.startswith("https:")
    client = grpc.InferenceServerClient(urlsplit(args.url).netloc, ssl=secure, root_certificates=args.ca)
    headers = None if token is None else {"authorization": f"Bearer {token}"}
    # All images in one request: the server computes them together.
    files = grpc.InferInput("encoded_image", [len(args.images)], "BYTES")
    files.set_data_from_numpy(np.array([path.read_bytes() for path in args.images], dtype=object))
    best = [grpc.InferRequestedOutput("probabilities", class_count=args.topk)]
    try:
        answer = client.infer(args.model, [files], outputs=best, headers=headers)
    except grpc.InferenceServerException as err:
        raise SystemExit(f"error: {err.status()}: {err.message()}") from None
    finally:
        client.close()
    for path, row in zip(args.images, answer.as_numpy("probabilities"), strict=True):
        for text in row:
            score, class_id, label = text.decode().split(":", 2)
            yield str(path), int(class_id), float(score), label


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--grpc", action="store_true", help="over gRPC, by tritonclient; needs --model")
    parser.add_argument("--url", help="http(s)://HOST:PORT (default: port 8080 of this machine, with --grpc 8081)")
    parser.add_argument("--model", help="name of the model (default over REST: the one that is served)")
    parser.add_argument("--topk", type=int, default=5, help="classes per image (%(default)s)")
    parser.add_argument("--ca", metavar="FILE", help="of TLS: who vouches for the server (default: the system's)")
    args = parser.parse_args(arguments)
    args.url = (args.url or f"http://localhost:{8081 if args.grpc else 8080}").rstrip("/")
    if args.grpc and args.model is None:
        parser.error("--grpc: give --model")
    for row in (over_grpc if args.grpc else over_rest)(args, os.environ.get("TOKEN")):
        print(*row, sep="\t", file=sys.stdout)


if __name__ == "__main__":
    main()
