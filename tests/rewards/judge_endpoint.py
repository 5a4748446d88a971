"""A loopback server that answers a judge's requests with whatever a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

IDS = tuple(range(15, 25))
"""Token ids of the digits in the answers of this server."""


@dataclass
class Reply:
    """Status and body of one response."""

    body: bytes
    status: int = 200
    kind: str = "application/json"


@dataclass
class Endpoint:
    """What the server was asked, and what it answers next."""

    url: str
    reply: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def completion(log_probabilities: list[float], digit: str | None = None) -> dict[str, Any]:
    """A chat completion as vLLM 0.32 writes it, with the fields that a judge does not read."""
    written = str(int(np.argmax(log_probabilities))) if digit is None else digit
    top = [
        {"token": f"token_id:{i}", "logprob": value, "bytes": [48 + i - IDS[0]]}
        for i, value in zip(IDS, log_probabilities, strict=True)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": written, "tool_calls": []},
                "logprobs": {"content": [{**top[int(written)], "top_logprobs": top}]},
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 300, "total_tokens": 301, "completion_tokens": 1},
    }


def tokens_of(text: str) -> Reply:
    ids = [IDS[0] + int(text)] if text.isdigit() else [0, 1]
    return Reply(json.dumps({"tokens": ids, "count": len(ids), "max_model_len": 4096}).encode())


class _Quiet(ThreadingHTTPServer):
    """Says nothing of a client that has left."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def endpoint(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Endpoint]:
    """Serve until the block ends; `reply` is asked for each chat completion."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                answer = tokens_of(asked["prompt"])
            else:
                assert self.path == "/v1/chat/completions"
                found.requests.append(asked)
                found.keys.append(self.headers["Authorization"])
                answer = found.reply(asked)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    server = _Quiet(("127.0.0.1", 0), Handler)
    found = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", reply)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
