#!/bin/sh
# A gRPC server that refuses a call with a long text: the names of the labels it expects, a quoted request, a traceback.
# Versions: grpcio 1.85.3.
# Guess: the client gets the server's code and the text, or the code with a text that is cut.
# Behaviour: the text travels in the trailers, which a client takes up to 8 KiB, by chance between 8 and 16 KiB, and
#   never beyond. In place of INVALID_ARGUMENT the caller then sees RESOURCE_EXHAUSTED, a code that clients answer by
#   waiting and sending the same wrong request again. Every byte that is not printable ASCII is sent as three, so 1000
#   Chinese characters are enough. The client's grpc.max_metadata_size and grpc.absolute_max_metadata_size raise it.
# Output seen (characters: INVALID_ARGUMENT, RESOURCE_EXHAUSTED of 40 calls): a 8000: 40, 0; a 12000: 19, 21;
#   a 20000: 0, 40; Chinese 500: 40, 0; Chinese 2000: 0, 40; Chinese 2000 to a client with larger bounds: 40, 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check grpcio==1.85.3
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import collections
import concurrent.futures

import grpc


class Refusing(grpc.GenericRpcHandler):
    def service(self, _):
        def refuse(request, context):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.decode())

        return grpc.unary_unary_rpc_method_handler(refuse)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Refusing(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
usual = grpc.insecure_channel(f"127.0.0.1:{port}")
sizes = [("grpc.max_metadata_size", 65536), ("grpc.absolute_max_metadata_size", 131072)]
larger = grpc.insecure_channel(f"127.0.0.1:{port}", sizes)


def codes(channel, text):
    found = collections.Counter()
    for _ in range(40):
        try:
            channel.unary_unary("/a/b")(text.encode(), timeout=10)
        except grpc.RpcError as error:
            assert error.code() != grpc.StatusCode.INVALID_ARGUMENT or error.details() == text
            found[error.code().name] += 1
    print(f"{text[0]!a} {len(text)}: {dict(found)}")
    return found


right, other = "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"
assert codes(usual, "a" * 8000) == {right: 40}
assert set(codes(usual, "a" * 12000)) == {right, other}
assert codes(usual, "a" * 20000) == {other: 40}, "long texts arrive now, or with another code"
assert codes(usual, "\u732b" * 500) == {right: 40}
assert codes(usual, "\u732b" * 2000) == {other: 40}
assert codes(larger, "\u732b" * 2000) == {right: 40}
usual.close()
larger.close()
server.stop(0)
PY
