#!/bin/sh
# KServe's InferenceGRPCClient(retries=N), "the number of retries if the request fails", on a server that is busy.
# Versions: kserve 0.21.0, grpcio 1.85.3.
# Guess: N retries are sent after the first try: 2 requests with retries=1, 4 with 3, 11 with 10; with retries=0 one.
#   Options given as channel_args belong to the caller.
# Behaviour: N is gRPC's number of attempts. With retries=1 nothing is ever sent: gRPC wants 2 at least, and every call,
#   to a server that is well too, ends with INVALID_ARGUMENT as if the request were wrong. 10 are 5, gRPC's limit.
#   The client adds its retries to the list given as channel_args, so that a second client made with the same list and
#   retries=0 repeats requests as the first.
# Output seen (retries: requests, code): 0: 1 UNAVAILABLE; 1: 0 INVALID_ARGUMENT; 2: 2 UNAVAILABLE; 3: 3 UNAVAILABLE;
#   10: 5 UNAVAILABLE; a list of options shared with retries=3, then 0: 3 UNAVAILABLE.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check kserve==0.21.0 grpcio==1.85.3
cd "$dir"
"$dir/venv/bin/python" - 2>/dev/null <<'PY'
import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

requests = 0


class Busy(grpc.GenericRpcHandler):
    def service(self, _):
        async def refuse(_, context):
            global requests
            requests += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def ask(port, retries, options=None):
    """Return the requests that the server saw, and the code that the caller gets."""
    global requests
    requests = 0
    given = InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.zeros(1, np.float32), binary_data=True)
    client = InferenceGRPCClient(f"127.0.0.1:{port}", retries=retries, channel_args=options)
    try:
        await client.infer(InferRequest("model", [given]))
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    await client.close()
    return requests, code


async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Busy(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = {retries: await ask(port, retries) for retries in (0, 1, 2, 3, 10)}
    shared = [("grpc.max_receive_message_length", -1)]
    await ask(port, 3, shared)
    found["0 after 3"] = await ask(port, 0, shared)
    await server.stop(0)
    return found


found = asyncio.run(main())
for retries, (count, code) in found.items():
    print(f"retries={retries}: {count} requests, {code}")
busy = "UNAVAILABLE"
wanted = {0: (1, busy), 1: (0, "INVALID_ARGUMENT"), 2: (2, busy), 3: (3, busy), 10: (5, busy), "0 after 3": (3, busy)}
if found != wanted:
    print(f"the behaviour has changed: it was {wanted}")
    sys.exit(1)
PY
