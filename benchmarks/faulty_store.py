"""An S3 server on loopback behind a proxy that fails as networks and stores do, from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import aiohttp
from aiohttp import web
from moto.server import ThreadedMotoServer
from yarl import URL

Fault = Literal["none", "delay", "unavailable", "reset", "answer lost", "truncated"]

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}
BUCKET = "bucket"


@dataclass(frozen=True)
class Faults:
    """How often requests fail; the shares add up to at most 1."""

    errors: float = 0.2
    """Share of requests that fail: equally often a 503 before it is carried out, a connection reset
    before, a connection reset after it was carried out, and a body cut in half."""
    delays: float = 0.1
    """Share of requests that are answered late."""
    delay_s: float = 2.0
    """How late."""
    seed: int = 0

    def draw(self, source: random.Random) -> Fault:
        """What happens to the next request."""
        value = source.random()
        if value < self.errors:
            kinds: tuple[Fault, ...] = ("unavailable", "reset", "answer lost", "truncated")
            return kinds[int(value / self.errors * len(kinds))]
        return "delay" if value < self.errors + self.delays else "none"


class FaultyProxy:
    """Passes requests on to an HTTP server, not always; runs in a thread of its own."""

    def __init__(self, target: str, faults: Faults) -> None:
        self.faults = faults
        self.counts: Counter[str] = Counter()
        """Requests by what happened to them."""
        self._target, self._source = target, random.Random(faults.seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> str:
        """Listen; the address to talk to."""
        self._thread.start()
        self._ready.wait()
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _listen(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._ready.set()

    async def _close(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault = self.faults.draw(self._source)
        self.counts[fault] += 1
        if fault == "delay":
            await asyncio.sleep(self.faults.delay_s)
        if fault == "unavailable":
            return web.Response(status=503, body=SLOW_DOWN, content_type="application/xml")
        if fault == "reset":
            return self._reset(request)
        status, headers, answer = await self._forward(request, body)
        if fault == "answer lost" or (fault == "truncated" and len(answer) < 2):
            return self._reset(request)
        response = web.StreamResponse(status=status, headers=headers)
        if request.method != "HEAD":
            response.content_length = len(answer)
        await response.prepare(request)
        await response.write(answer[: len(answer) // 2] if fault == "truncated" else answer)
        if fault == "truncated":
            return self._reset(request)
        await response.write_eof()
        return response

    async def _forward(
        self, request: web.Request, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        url = URL(f"{self._target}{request.raw_path}", encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            if request.method == "HEAD" and "Content-Length" in answer.headers:
                kept["Content-Length"] = answer.headers["Content-Length"]
            return answer.status, kept, await answer.read()

    def _reset(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


def empty_bucket(url: str, name: str) -> None:
    """Make a bucket on a server of moto's, all of which share one memory: what another one of this
    process was given goes first."""
    import boto3

    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=name)


@contextlib.contextmanager
def faulty_s3(faults: Faults) -> Iterator[tuple[FaultyProxy, str]]:
    """An empty bucket behind the proxy; the client's environment leads to the proxy inside. Also
    the address of the server itself, for what has to happen without faults."""
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    direct = f"http://{host}:{port}"
    proxy = FaultyProxy(direct, faults)
    environment = {
        "AWS_ENDPOINT_URL": proxy.start(),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    s3fs.S3FileSystem.clear_instance_cache()
    empty_bucket(direct, BUCKET)
    try:
        yield proxy, direct
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        proxy.stop()
        server.stop()
