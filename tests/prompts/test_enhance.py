"""The endpoint route against a local server of its protocol, malformed answers included."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from prompts.dataset import load_prompts
from prompts.enhance import EndpointConfig, EndpointRefused, Tally, enhance_prompts
from prompts.schema import Prompt

SOURCES = tuple(
    Prompt.from_text(f"s{i}", f"Camera push in. A harbour number {i}.", domain="Artistic Styles")
    for i in range(6)
)

Reply = tuple[int, str]
"""Status and body of a response."""


def good_text(source: str, words: int = 75) -> str:
    """A text that passes every gate and is like no other source's."""
    number = int(source.rstrip(".").split()[-1])
    tokens = [
        f"{chr(97 + (i * 7 + number * 5) % 26)}{'aeiou'[(i + number) % 5]}t" for i in range(8)
    ]
    body = " ".join(tokens[(i * i + number) % 8] for i in range(words))
    return f"Camera push in. A harbour. {body.capitalize()}."


def completion(content: str | None, tokens: int = 100) -> Reply:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return 200, json.dumps({**body, "choices": [choice], "usage": usage})


def answer(text: str, tokens: int = 100) -> Reply:
    return completion(json.dumps({"text": text}), tokens)


@contextmanager
def endpoint(reply: Callable[[str, int], Reply]) -> Iterator[tuple[str, list[dict]]]:
    """URL of a server that answers `reply`(source text, times asked), and its requests."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            source = request["messages"][1]["content"]
            before = sum(r["messages"][1]["content"] == source for r in asked)
            asked.append({**request, "authorization": self.headers["Authorization"]})
            status, body = reply(source, before)
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(url: str, out: Path, sources: tuple[Prompt, ...] = SOURCES, **fields: object) -> Tally:
    config = EndpointConfig.model_validate(
        {"url": url, "model": "m", "backoff_s": 0.0, "concurrency": 2, **fields}
    )
    return asyncio.run(enhance_prompts(sources, out, config))


def test_answers_become_prompts_with_the_fields_of_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    out = tmp_path / "out.jsonl"
    with endpoint(lambda source, _: answer(good_text(source))) as (url, asked):
        tally = run(url, out, key_variable="MY_KEY", seed=7)
    assert (tally.kept, tally.refused, tally.errors, tally.tokens) == (6, 0, 0, 600)
    prompts = load_prompts(out)
    assert {p.id for p in prompts} == {f"s{i}-enhanced" for i in range(6)}
    for prompt in prompts:
        assert (prompt.domain, prompt.taxonomy) == ("Artistic Styles", "intra-scene")
        assert (prompt.source, prompt.seed) == ("endpoint/m", 7)
    assert {r["authorization"] for r in asked} == {"Bearer sesame"}
    assert asked[0]["response_format"]["json_schema"]["schema"]["required"] == ["text"]
    assert "sesame" not in out.read_text()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (completion("I would be glad to help!"), "Invalid JSON"),
        (completion('{"text": "cut off in the mid'), "Invalid JSON"),
        (completion('{"prompt": "a wrong key"}'), "Field required"),
        (completion('{"text": 3}'), "valid string"),
        (completion(None), "Invalid JSON"),
        ((200, '{"choices": []}'), "Invalid JSON"),
        ((200, '{"choices": [{"message": null}], "usage": {"total_tokens": "x"}}'), "Invalid JSON"),
        ((200, "[1, 2]"), "Invalid JSON"),
        (answer("Camera push in. Too short."), "has 5 words"),
        (answer(good_text("A 1.", 200)), "has 205 words"),
        (answer(good_text("A 1.").replace("push in", "pan left")), 'motions ["pan left"]'),
        (answer(good_text("A 1.").replace("push in", "dives")), "motions []"),
        (answer(good_text("A 1.").replace("A harbour", "A Picasso")), "no persons, no brands"),
        (answer(good_text("A 1.") + " \x00"), "control character"),
    ],
)
def test_a_malformed_answer_is_refused_and_asked_again(
    tmp_path: Path, bad: Reply, reason: str
) -> None:
    def reply(source: str, before: int) -> Reply:
        return bad if before == 0 else answer(good_text(source))

    with endpoint(reply) as (url, asked):
        tally = run(url, tmp_path / "out.jsonl", SOURCES[:1])
    assert (tally.kept, tally.refused, tally.errors, tally.failed) == (1, 1, 0, 0)
    assert reason in tally.last_reason
    assert [r["seed"] for r in asked] == [0, 1]


@pytest.mark.parametrize("bad", [(500, "{}"), (429, "{}"), (503, "down"), (200, "no JSON")])
def test_a_failed_request_is_tried_again(tmp_path: Path, bad: Reply) -> None:
    def reply(source: str, before: int) -> Reply:
        return bad if before < 2 else answer(good_text(source))

    with endpoint(reply) as (url, asked):
        tally = run(url, tmp_path / "out.jsonl", SOURCES[:1])
    assert (tally.kept, tally.errors, len(asked)) == (1, 2, 3)


def test_tries_end_and_other_prompts_go_on(tmp_path: Path) -> None:
    def reply(source: str, _: int) -> Reply:
        return (500, "{}") if source == SOURCES[2].text else answer(good_text(source))

    with endpoint(reply) as (url, asked):
        tally = run(url, tmp_path / "out.jsonl", attempts=3)
    assert (tally.kept, tally.failed, tally.errors, len(asked)) == (5, 1, 3, 8)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_request_that_no_try_can_mend_stops_at_once(tmp_path: Path, status: int) -> None:
    refused = pytest.raises(EndpointRefused, match=f"answers {status} for model 'm'")
    with endpoint(lambda *_: (status, "{}")) as (url, asked), refused:
        run(url, tmp_path / "out.jsonl", concurrency=1)
    assert len(asked) == 1


def test_a_prompt_that_a_filter_refuses_does_not_stop_the_others(tmp_path: Path) -> None:
    def reply(source: str, _: int) -> Reply:
        return (400, "{}") if source == SOURCES[2].text else answer(good_text(source))

    with endpoint(reply) as (url, asked):
        tally = run(url, tmp_path / "out.jsonl", attempts=2, concurrency=1)
    assert (tally.kept, tally.failed, tally.errors, len(asked)) == (5, 1, 2, 7)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Camera push in by 30 degrees.", "'push in' is asked for by 30 degrees"),
        ("Camera push in by 0.3 depths.", '"push in by 0.3 depths"], asked were ["push in"]'),
    ],
)
def test_an_answer_with_another_amount_is_refused(tmp_path: Path, said: str, reason: str) -> None:
    def reply(source: str, before: int) -> Reply:
        text = good_text(source)
        return answer(text if before else text.replace("Camera push in.", said))

    with endpoint(reply) as (url, _):
        tally = run(url, tmp_path / "out.jsonl", SOURCES[:1])
    assert (tally.kept, tally.refused) == (1, 1)
    assert reason in tally.last_reason


def test_a_given_path_is_kept(tmp_path: Path) -> None:
    path = np.tile(np.eye(4), (3, 1, 1)).tolist()
    source = Prompt(**{**SOURCES[0].model_dump(), "c2w": path})
    with endpoint(lambda source, _: answer(good_text(source))) as (url, _):
        run(url, tmp_path / "out.jsonl", [source])
    (kept,) = load_prompts(tmp_path / "out.jsonl")
    assert kept.c2w == source.c2w


def test_nobody_listening_is_an_error_that_is_counted(tmp_path: Path) -> None:
    tally = run("http://127.0.0.1:9/v1", tmp_path / "out.jsonl", SOURCES[:1], attempts=2)
    assert (tally.failed, tally.errors, tally.last_reason) == (1, 2, "APIConnectionError")


def test_a_near_duplicate_of_an_earlier_answer_is_refused(tmp_path: Path) -> None:
    with endpoint(lambda *_: answer(good_text("A 1."))) as (url, _):
        tally = run(url, tmp_path / "out.jsonl", SOURCES[:2], attempts=2, concurrency=1)
    assert (tally.kept, tally.refused, tally.failed) == (1, 2, 1)
    assert tally.last_reason == "it nearly repeats an earlier prompt"


def test_the_budget_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with endpoint(lambda source, _: answer(good_text(source))) as (url, asked):
        first = run(url, out, budget_tokens=250, concurrency=1)
        assert (first.kept, first.left, len(asked)) == (3, 3, 3)
        # A kill in the middle of a line.
        whole = out.read_bytes()
        out.write_bytes(whole[:-40])
        second = run(url, out, concurrency=1)
        assert (second.already, second.kept, len(asked)) == (2, 4, 7)
        assert out.read_bytes().startswith(whole)
        third = run(url, out)
    assert (third.already, third.kept, third.tokens, len(asked)) == (6, 0, 0, 7)
    assert len(load_prompts(out)) == 6


def test_a_file_that_is_no_prompt_file_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("something else\n")
    with pytest.raises(ValueError, match="mend or remove the file"):
        run("http://127.0.0.1:9/v1", out)
    assert out.read_text() == "something else\n"


@pytest.mark.hand
def test_a_real_server_answers(tmp_path: Path) -> None:
    """Against the server of WORLDR1_ENDPOINT and WORLDR1_MODEL (docs/prompts.md): whatever a model
    answers, the run ends, counts every answer and writes only prompts that pass."""
    url, model = os.environ["WORLDR1_ENDPOINT"], os.environ["WORLDR1_MODEL"]
    out = tmp_path / "out.jsonl"
    tally = run(url, out, model=model, attempts=3, timeout_s=120)
    print(tally)
    assert tally.errors == 0
    assert tally.kept + tally.failed == 6
    assert tally.kept + tally.refused >= 6
    assert tally.tokens > 0
    assert len(load_prompts(out) if tally.kept else ()) == tally.kept
