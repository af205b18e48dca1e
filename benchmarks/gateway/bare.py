"""What gRPC's client and aiohttp's server take by themselves: messages in, events out, and nothing between them.

No token is looked at: each message of a decode worker becomes the same event. `python -m benchmarks.gateway.bare DECODE
PORT` is given to the benchmark as a `--peer`.
"""

import argparse
import asyncio
import gc
import json

import grpc.aio
import uvloop
from aiohttp import web

from shared.proto import prfaas_pb2 as pb
from shared.rpc.options import client_options

_GENERATE = f"/{pb.DESCRIPTOR.services_by_name['Decode'].full_name}/Generate"
_CHOICE = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
_CHUNK = {"id": f"cmpl-{0:032x}", "created": 1 << 30, "model": "a-model-of-some", "object": "text_completion"}
_EVENT = f"data: {json.dumps({**_CHUNK, 'choices': [_CHOICE]})}\n\n".encode()


async def serve(decode: str, port: int) -> None:
    channel = grpc.aio.insecure_channel(decode, options=client_options())
    generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_GENERATE)

    async def completions(request: web.Request) -> web.StreamResponse:
        sampling = pb.Sampling(max_tokens=json.loads(await request.read()).get("max_tokens", 1))
        order = pb.Control(start=pb.GenerateRequest(sampling=sampling, token_ids=range(30)))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for _ in generate(order.SerializeToString()):
            await response.write(_EVENT)
        await response.write_eof(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.add_routes([web.post("/v1/completions", completions)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decode", help="address")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.decode, options.port))
