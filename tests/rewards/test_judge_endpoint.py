"""The judge's client against a server that misbehaves in every way; the answers' arithmetic.

Not covered here: a real vLLM server (tests/cluster/test_judge_served.py).
"""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from prompts.schema import Prompt
from rewards.config import JudgeConfig, RewardConfig
from rewards.judge_protocol import (
    DIGITS,
    JudgeAnswerError,
    digit_token_ids,
    read_answer,
    sampling,
)
from rewards.judge_server import serve_command, serve_environment
from rewards.judge_worker import JudgeWorker
from rewards.score import Score, ScoreFailure
from tests.rewards.judge_endpoint import IDS, Reply, completion, endpoint
from tests.rewards.mutations import LOG_PROBABILITIES, mutations

PROMPT = Prompt.from_text("p", "Camera push in. A red box and a blue ball on a green floor.")
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
RIGHT = Reply(json.dumps(completion(LOG_PROBABILITIES)).encode())


def worker(url: str, timeout_s: float = 20.0, **changes: Any) -> JudgeWorker:
    judge = JudgeConfig(backend="endpoint", url=url, model="judge", **changes)
    return JudgeWorker(RewardConfig(judge=judge, timeout_s=timeout_s))


def failed(outcome: Score | ScoreFailure) -> ScoreFailure:
    assert isinstance(outcome, ScoreFailure), outcome
    assert outcome.kind == "judge"
    assert outcome.reason
    assert outcome.scorer.startswith("judge+rubric-")
    return outcome


def test_a_right_answer_is_the_expectation_over_ten_digits() -> None:
    """The same by hand: p_d = exp(l_d) / sum, score = 0.1 sum d p_d."""
    with endpoint(lambda _: RIGHT) as served:
        outcome = worker(served.url).score(PICTURE, PROMPT)
    assert isinstance(outcome, Score)
    mass = sum(math.exp(value) for value in LOG_PROBABILITIES)
    by_hand = 0.1 * sum(d * math.exp(v) / mass for d, v in enumerate(LOG_PROBABILITIES))
    assert outcome.parts == {"meta": pytest.approx(by_hand, abs=1e-12)}
    assert outcome.digits[6] == pytest.approx(math.exp(-1.7) / mass, abs=1e-12)
    assert math.fsum(outcome.digits) == pytest.approx(1, abs=1e-12)


def test_the_request_holds_the_picture_the_description_and_the_served_ids() -> None:
    with endpoint(lambda _: RIGHT) as served:
        worker(served.url).score(PICTURE, PROMPT)
    (asked,) = served.requests
    assert {name: asked[name] for name in sampling(IDS)} == sampling(IDS)
    assert asked["logprob_token_ids"] == list(IDS)
    picture, text = asked["messages"][1]["content"]
    header, _, data = picture["image_url"]["url"].partition(",")
    assert header == "data:image/png;base64"
    sent = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert sent is not None
    assert (sent[..., ::-1] == PICTURE).all(), "without loss"
    assert PROMPT.text in text["text"]


@pytest.mark.slow
def test_a_thousand_wrong_answers_are_a_thousand_failures() -> None:
    """Every reply is spoilt; the right one before and after is scored, so that the failures are the
    replies' and not the connection's."""
    replies = iter([RIGHT, *islice(mutations(seed=0), 1000), RIGHT])
    with endpoint(lambda _: next(replies)) as served:
        judge = worker(served.url)
        assert isinstance(judge.score(PICTURE, PROMPT), Score)
        outcomes = [judge.score(PICTURE, PROMPT) for _ in range(1000)]
        numbers = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        assert not numbers, numbers[:3]
        for outcome in outcomes:
            failed(outcome)
        assert isinstance(judge.score(PICTURE, PROMPT), Score)
    kinds = {outcome.error for outcome in outcomes if isinstance(outcome, ScoreFailure)}
    assert kinds >= {"JudgeAnswerError", "JudgeUnavailable", "JudgeRefusal"}


@pytest.mark.parametrize(
    ("status", "final"), [(400, True), (401, True), (404, True), (413, True), (429, False),
                          (500, False), (503, False)],
)  # fmt: skip
def test_what_no_further_attempt_would_change_is_final(status: int, final: bool) -> None:
    said = b'{"error": {"message": "image of 24 x 32 pixels is refused"}}'
    with endpoint(lambda _: Reply(said, status)) as served:
        failure = failed(worker(served.url).score(PICTURE, PROMPT))
    assert failure.retry is not final
    assert f"answers {status} for 'judge'" in failure.reason
    assert "24 x 32 pixels is refused" in failure.reason
    assert len(served.requests) == 1, "attempts are the caller's to make"


def test_a_slow_judge_is_a_failure_in_time() -> None:
    over = threading.Event()

    def slow(_: dict[str, Any]) -> Reply:
        over.wait(60)
        return RIGHT

    with endpoint(slow) as served:
        judge = worker(served.url, request_timeout_s=0.3)
        failure = failed(judge.score(PICTURE, PROMPT))
        over.set()
    assert failure.error == "TimeoutError"
    assert "no answer within 0.3 s" in failure.reason
    assert failure.retry


def test_a_judge_that_is_down_is_a_failure_once_it_was_up() -> None:
    with endpoint(lambda _: RIGHT) as served:
        judge = worker(served.url)
    failure = failed(judge.score(PICTURE, PROMPT))
    assert failure.error == "JudgeUnavailable"
    assert "cannot be reached" in failure.reason
    with pytest.raises(OSError, match="cannot be reached"):
        worker(served.url)


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k-very-secret")
    refusal = Reply(b'{"error": "wrong key k-very-secret"}', 401)
    with endpoint(lambda _: refusal) as served:
        judge = worker(served.url, key_variable="JUDGE_KEY")
        failure = failed(judge.score(PICTURE, PROMPT))
    assert served.keys == ["Bearer k-very-secret"]
    assert "wrong key (key)" in failure.reason
    shown = f"{failure} {judge.describe()} {judge.__dict__} {served.requests}"
    assert "very-secret" not in shown


def test_a_tokenizer_without_single_digits_is_refused() -> None:
    assert digit_token_ids(lambda text: [7 + int(text)]) == tuple(range(7, 17))
    wrong: tuple[Callable[[str], object], ...] = (
        lambda text: [1, 2],
        lambda text: [],
        lambda text: None,
        lambda text: ["7"],
        lambda text: [True],
        lambda text: [3],
    )
    for tokenize in wrong:
        with pytest.raises(JudgeAnswerError, match="the served tokenizer"):
            digit_token_ids(tokenize)


def test_minus_infinity_of_one_digit_is_an_answer() -> None:
    """vLLM writes -9999: that digit has no weight, the others are as they were."""
    values = [-1.0, -9999.0, *[-3.5] * 8]
    answer = read_answer(json.dumps(completion(values)), IDS)
    assert answer.digit == DIGITS[0]
    assert answer.probabilities[1] == 0.0
    mass = math.exp(-1) + 8 * math.exp(-3.5)
    assert answer.probabilities[0] == pytest.approx(math.exp(-1) / mass, abs=1e-12)


def test_the_server_is_told_to_listen_on_loopback_without_credentials_or_telemetry() -> None:
    config = JudgeConfig(
        backend="vllm", model="m", gpus=2, tensor_parallel=2, gpu_memory=0.4, concurrency=16
    )
    command = serve_command(config, 8123, "cuda")
    for option, value in {
        "--host": "127.0.0.1", "--port": "8123", "--tensor-parallel-size": "2",
        "--gpu-memory-utilization": "0.4", "--limit-mm-per-prompt": '{"image": 1, "video": 0}',
        "--max-num-seqs": "16",
    }.items():  # fmt: skip
        assert command[command.index(option) + 1] == value
    assert "--enforce-eager" in serve_command(JudgeConfig(backend="vllm"), 1, "cpu")
    assert "--trust-remote-code" not in command
    taken = (
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "RAY_AUTH_TOKEN"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_CONNECTION_STRING", "PYTHONPATH"),
    )
    given = {"PATH": "/bin", "HF_TOKEN": "h", "HF_TOKEN_PATH": "/h"}
    kept = serve_environment("own", "cpu", given | dict.fromkeys(taken, "x"))
    assert kept["VLLM_API_KEY"] == "own"
    assert kept["VLLM_NO_USAGE_STATS"] == "1"
    assert not set(taken) & set(kept)
    assert given.items() <= kept.items()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"backend": "endpoint"}, "needs rewards.judge.url"),
        ({"url": "http://a/v1"}, "has no use for rewards.judge.url"),
        ({"backend": "endpoint", "url": "http://user:pw@a/v1"}, "url"),
        ({"backend": "vllm", "tensor_parallel": 2}, "is not rewards.judge.tensor_parallel = 2"),
        ({"tensor_parallel": 2, "gpus": 2}, "needs rewards.judge.backend = 'vllm'"),
        ({"gpus": 1}, "runs on the CPU only"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        JudgeConfig(**keys)


def test_only_a_server_that_shares_its_gpu_is_told_the_size_of_its_cache() -> None:
    """vLLM would count what the GPU's other worker loads meanwhile (vLLM's issue 55827)."""

    def cache(**keys: Any) -> str | None:
        command = serve_command(JudgeConfig(backend="vllm", **keys), 1, "cuda")
        name = "--kv-cache-memory-bytes"
        return command[command.index(name) + 1] if name in command else None

    assert cache(gpus=0.5) == "3000000000"
    assert cache(gpus=1) is None
    assert cache(gpus=1, cache_gb=12.5) == "12500000000"


def test_a_fraction_of_a_gpu_is_a_fraction_of_its_memory() -> None:
    assert JudgeConfig(backend="vllm", gpus=0.5).gpu_share == pytest.approx(0.45)
    assert JudgeConfig(backend="vllm", gpus=2, tensor_parallel=2).gpu_share == pytest.approx(0.9)
