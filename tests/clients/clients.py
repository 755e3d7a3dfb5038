"""Servers and clients as people have them: gRPC by grpcio, WebSocket by websockets.

`serve` prints the ports it listens on and serves until its standard input ends. `call HOST:PORT UNARY MESSAGES` asks them
by name through a proxy, UNARY unary calls and MESSAGES messages in streams and over WebSocket, and ends with an error at
the first thing that is not as it should be. Messages are plain bytes, so that no compiler of protobuf is needed.
"""

import asyncio
import hashlib
import json
import socket
import sys
import time

import grpc
import grpc.aio
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve as serve_websocket


class Demo(grpc.GenericRpcHandler):
    """`/demo/…` with every kind of call."""

    def service(self, details):
        kinds = {
            "/demo/unary": grpc.unary_unary_rpc_method_handler(unary),
            "/demo/down": grpc.unary_stream_rpc_method_handler(down),
            "/demo/up": grpc.stream_unary_rpc_method_handler(up),
            "/demo/both": grpc.stream_stream_rpc_method_handler(both),
            "/demo/missing": grpc.unary_unary_rpc_method_handler(missing),
            "/demo/slow": grpc.unary_unary_rpc_method_handler(slow),
        }
        return kinds.get(details.method)


async def unary(request, context):
    context.set_trailing_metadata((("x-digest", hashlib.sha256(request).hexdigest()),))
    return request[::-1]


async def down(request, context):
    for number in range(int(request)):
        yield b"%d" % number


async def up(requests, context):
    count = size = 0
    async for request in requests:
        count, size = count + 1, size + len(request)
    return b"%d %d" % (count, size)


async def both(requests, context):
    async for request in requests:
        yield request.upper()


async def missing(request, context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: \u00fc")


async def slow(request, context):
    left = context.time_remaining()
    await asyncio.sleep(30)
    return b"%f" % left


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def serve():
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Demo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with serve_websocket(echo, "127.0.0.1", 0, max_size=None) as websocket:
        print(json.dumps({"grpc": port, "websocket": websocket.sockets[0].getsockname()[1]}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


def expect(what, found, wanted):
    if found != wanted:
        raise SystemExit(f"{what}: {found!r} instead of {wanted!r}")


async def grpc_calls(proxy, unary_calls, calls):
    options = [("grpc.default_authority", "grpc.mesh"), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(proxy, options) as channel:
        ask = channel.unary_unary("/demo/unary")

        async def some(first, count):
            for number in range(first, first + count):
                request = b"request %d" % number
                call = ask(request, timeout=30, metadata=(("x-number", str(number)),))
                expect("unary", await call, request[::-1])
                trailers = dict(await call.trailing_metadata())
                expect("trailer", trailers.get("x-digest"), hashlib.sha256(request).hexdigest())

        await asyncio.gather(*(some(n * (unary_calls // 40), unary_calls // 40) for n in range(40)))
        expect("empty", await ask(b""), b"")
        large = bytes(range(256)) * 4096 * 8
        expect("8 MiB", await ask(large, timeout=60) == large[::-1], True)

        got = [answer async for answer in channel.unary_stream("/demo/down")(b"%d" % calls, timeout=60)]
        expect("server stream", got, [b"%d" % number for number in range(calls)])

        async def requests():
            for number in range(calls):
                yield b"%d" % number

        size = sum(len(str(number)) for number in range(calls))
        expect("client stream", await channel.stream_unary("/demo/up")(requests(), timeout=60), b"%d %d" % (calls, size))

        async def talk():
            call = channel.stream_stream("/demo/both")(timeout=60)
            for number in range(calls // 20):
                await call.write(b"word %d" % number)
                expect("both ways", await call.read(), b"WORD %d" % number)
            await call.done_writing()
            expect("end", await call.read(), grpc.aio.EOF)
            expect("status", await call.code(), grpc.StatusCode.OK)

        await asyncio.gather(*(talk() for _ in range(20)))

        await fails(channel.unary_unary("/demo/missing")(b"", timeout=10), "NOT_FOUND", "no such thing: \u00fc")
        await fails(channel.unary_unary("/demo/nothing")(b"", timeout=10), "UNIMPLEMENTED", "")
        began = time.monotonic()
        await fails(channel.unary_unary("/demo/slow")(b"", timeout=0.5), "DEADLINE_EXCEEDED", "")
        expect("deadline kept", time.monotonic() - began < 5, True)
    nobody = [("grpc.default_authority", "nobody.mesh")]
    async with grpc.aio.insecure_channel(proxy, nobody) as channel:
        await fails(channel.unary_unary("/demo/unary")(b"", timeout=10), "UNAVAILABLE", "no node offers a service")


async def fails(call, code, part):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        expect("code", error.code().name, code)
        expect(f"{part!r} in {error.details()!r}", part in error.details(), True)
    else:
        raise SystemExit(f"no {code}")


async def websocket_messages(proxy, messages):
    host, port = proxy.rsplit(":", 1)
    to_proxy = socket.create_connection((host, int(port)))
    async with connect("ws://websocket.mesh/", sock=to_proxy, max_size=None, proxy=None) as connection:
        for number in range(messages):
            await connection.send(f"message {number}")
            expect("message", await connection.recv(), f"message {number}")
        large = bytes(range(256)) * 4096 * 4
        await connection.send(large)
        expect("4 MiB", await connection.recv() == large, True)
        await (await connection.ping())
    expect("close", (connection.close_code, connection.close_reason), (1000, ""))


async def call(proxy, unary_calls, calls):
    began = time.monotonic()
    await grpc_calls(proxy, unary_calls, calls)
    between = time.monotonic()
    await websocket_messages(proxy, calls)
    end = time.monotonic()
    print(json.dumps({"grpc_s": round(between - began, 2), "websocket_s": round(end - between, 2)}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        asyncio.run(call(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
