"""A vision-language judge behind the OpenAI protocol: its own vLLM server, or one that is there."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import openai
from numpy.typing import NDArray

from rewards.config import JudgeConfig
from rewards.judge_protocol import (
    DigitAnswer,
    digit_token_ids,
    messages,
    read_answer,
    rubric_hash,
    sampling,
)
from rewards.judge_server import MAX_FAILED_STARTS, JudgeServer, Served
from rewards.score import Verdict
from rewards.scoring import digit_expectation

MAX_DEATHS = 3
"""A sample in flight at so many deaths of the server is set aside."""
SILENT_ROUNDS = 2
"""So many full rounds of requests without an answer, and a server is replaced."""
MIN_REQUEST_S = 1.0
"""A request is given this long, however late its call is."""
REFUSALS = (400, 401, 403, 404, 413, 422)
"""Statuses with which every further attempt would be answered, too."""


class JudgeUnavailable(ConnectionError):
    """No answer, for a reason that may pass."""


class JudgeRefusal(ValueError):
    """The server does not serve this request at all: another attempt would not help."""


class VisionLanguageJudge:
    """Judges pictures; may be called from many threads at once."""

    def __init__(self, config: JudgeConfig, limit_s: float, device: str) -> None:
        """Wait for the server and ask its tokenizer for the ten digits; a call takes at most
        `limit_s`, restarts of the server included."""
        self._config, self._limit_s = config, limit_s
        self._key = os.environ.get(config.key_variable, "none")
        self.server = JudgeServer(config, device) if config.backend == "vllm" else None
        self._lock = threading.Lock()
        self._unanswered = 0
        """Requests in a row that timed out."""
        self._connections: dict[int, tuple[openai.OpenAI, tuple[int, ...]]] = {}
        self.version = f"{config.model}+rubric-{rubric_hash()}"
        try:
            self._connection(self._served(MAX_FAILED_STARTS * config.start_timeout_s + 60))
        except openai.APIError as error:
            self.close()
            raise self._explained(error) from error
        except BaseException:
            self.close()
            raise

    def __call__(self, picture: NDArray[np.uint8], description: str) -> Verdict:
        """Judge a picture uint8 [H, W, 3] of a video made for a description."""
        answer = self._ask(picture, description)
        score = digit_expectation(answer.log_probabilities)
        return Verdict(score, digits=answer.probabilities)

    def close(self) -> None:
        """End the server, where it is the judge's own."""
        if self.server is not None:
            self.server.close()

    def _ask(self, picture: NDArray[np.uint8], description: str) -> DigitAnswer:
        """Ask until a server has answered: its death is not the sample's fault."""
        deadline = time.monotonic() + self._limit_s
        conversation = messages(picture, description)
        for _ in range(MAX_DEATHS):
            served = self._served(deadline - time.monotonic())
            try:
                client, ids = self._connection(served)
                left = max(deadline - time.monotonic(), MIN_REQUEST_S)
                response = client.with_options(
                    timeout=min(self._config.request_timeout_s, left)
                ).chat.completions.with_raw_response.create(
                    model=self._config.model,
                    messages=conversation,  # type: ignore[arg-type]
                    extra_body=sampling(ids),
                )
                self._unanswered = 0
                return read_answer(response.text, ids)
            except (openai.APIConnectionError, openai.APIStatusError) as error:
                if not self._died(served, error):
                    raise self._explained(error) from error
        raise JudgeRefusal(f"quarantined: in flight at {MAX_DEATHS} deaths of the judge's server")

    def _served(self, limit_s: float) -> Served:
        if self.server is not None:
            return self.server.wait(max(limit_s, 0.0))
        return Served(self._config.url.rstrip("/").removesuffix("/v1"), self._key, 0)

    def _died(self, served: Served, error: openai.APIError) -> bool:
        if self.server is None:
            return False
        if isinstance(error, openai.APITimeoutError):
            self._note_silence(self.server, served)
        refused = isinstance(error, openai.APIStatusError) and error.status_code < 500
        return not refused and self.server.died_since(served)

    def _note_silence(self, server: JudgeServer, served: Served) -> None:
        """Replace a server whose front says that it is well while nothing behind it answers."""
        with self._lock:
            self._unanswered += 1
            if self._unanswered >= SILENT_ROUNDS * self._config.calls_at_once:
                self._unanswered = 0
                server.replace(served)

    def _connection(self, served: Served) -> tuple[openai.OpenAI, tuple[int, ...]]:
        """Client and digit ids of a server; the ids are those of the tokenizer that answers."""
        with self._lock:
            found = self._connections.get(served.generation)
            if found is None:
                own = self.server is not None
                client = openai.OpenAI(
                    api_key=served.key,
                    base_url=f"{served.root}/v1" if own else self._config.url,
                    max_retries=0,
                    timeout=self._config.request_timeout_s,
                    # Proxies know nothing of this machine's loopback.
                    http_client=openai.DefaultHttpxClient(trust_env=not own),
                )
                ids = digit_token_ids(lambda text: self._tokens(client, served, text))
                found = client, ids
                self._connections = {served.generation: found}
            return found

    def _tokens(self, client: openai.OpenAI, served: Served, text: str) -> Any:
        answer = client.with_options(base_url=served.root).post(
            "/tokenize",
            body={"model": self._config.model, "prompt": text, "add_special_tokens": False},
            cast_to=object,
        )
        return answer.get("tokens") if isinstance(answer, dict) else answer

    def _explained(self, error: openai.APIError) -> Exception:
        """The same in a sentence, without the key that some servers repeat."""
        where = "the judge's server" if self.server is not None else self._config.url
        if isinstance(error, openai.APITimeoutError):
            limit = self._config.request_timeout_s
            return TimeoutError(f"{where} gave no answer within {limit:g} s")
        if not isinstance(error, openai.APIStatusError):
            cause = type(error.__cause__ or error).__name__
            return JudgeUnavailable(f"{where} cannot be reached ({cause})")
        said = " ".join(error.response.text.split())[:200]
        if self._key != "none":
            said = said.replace(self._key, "(key)")
        sentence = f"{where} answers {error.status_code} for {self._config.model!r}: {said}"
        if error.status_code in REFUSALS:
            return JudgeRefusal(sentence)
        return JudgeUnavailable(sentence)
