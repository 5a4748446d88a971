"""A cluster whose agent is late, as a server that speaks the needed part of Ray's protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread
from typing import cast

import aiohttp
import pytest
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster import submit
from cluster.config import INTERRUPTED, ConfigError
from cluster.job_file import JobFile

LATE = "No available agent to submit job, please try again later."
JOB = JobFile(entrypoint="true", runtime_env={}, metadata={}, retries=0)


def answered_by(refusals: list[str], act: Callable[[str], None]) -> None:
    """Act on the address of a Jobs API that gives these refusals and then accepts."""

    class Jobs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, json.dumps({"version": "4", "ray_version": "2.0", "ray_commit": ""}))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if refusals:
                self.answer(500, refusals.pop(0))
            else:
                self.answer(200, json.dumps({"job_id": "a", "submission_id": "accepted"}))

        def answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Jobs) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        act(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def submitted(address: str, said: list[str]) -> int:
    return submit.submit_job(JOB, address, follow=False, say=said.append, first_wait_s=0)


class Interrupted:
    """A client whose connection breaks: the log's in the middle, the status's a few times."""

    LOG = ("one\ntwo\n", "three\nfour\n")

    def __init__(self, silent: int, breaks: Sequence[Exception | str] = ()) -> None:
        """`breaks`: how the streams of the log end after their first part; an error, "silence", or
        "end", as if that had been all."""
        self.silent, self.breaks, self.read_to_the_end = silent, list(breaks), False

    async def tail_job_logs(self, submission: str) -> AsyncIterator[str]:
        if not self.breaks:
            yield "".join(self.LOG)
            self.read_to_the_end = True
            return
        yield self.LOG[0]
        error = self.breaks.pop(0)
        if isinstance(error, Exception):
            raise error
        await asyncio.sleep(60 if error == "silence" else 0)

    def get_job_info(self, submission: str) -> JobDetails:
        if self.silent:
            self.silent -= 1
            raise requests.exceptions.ConnectionError("refused")
        status = JobStatus.SUCCEEDED if self.read_to_the_end else JobStatus.RUNNING
        return JobDetails(type=JobType.SUBMISSION, status=status, entrypoint="true")


def test_a_broken_connection_is_no_end_of_a_job_and_repeats_no_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.setattr(submit, "PAUSE_S", 0.0)
    monkeypatch.setattr(submit, "QUIET_S", 0.05)
    said: list[str] = []
    broken = [aiohttp.ServerDisconnectedError(), "silence", "end", RuntimeError("code 1006")]
    client = cast(JobSubmissionClient, Interrupted(3, broken))
    assert submit.follow_job(client, "job", said.append) == 0
    log = [line for line in said if not line.startswith("(")]
    assert log == ["one\ntwo", "three\nfour"]
    assert sum("log interrupted" in line for line in said) == 2
    assert sum("no answer about job" in line for line in said) == 3


def test_a_job_that_somebody_stopped_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job stop` leaves no exit code; starting the job again would take the GPUs back."""
    monkeypatch.setattr(submit, "POLL_S", 0.01)

    class Stopped(Interrupted):
        submitted = 0

        def submit_job(self, **job: object) -> str:
            self.submitted += 1
            return "job"

        def get_job_info(self, submission: str) -> JobDetails:
            return JobDetails(
                type=JobType.SUBMISSION, status=JobStatus.STOPPED, entrypoint="worldr1 train toy"
            )

    client = Stopped(0)
    monkeypatch.setattr(submit, "connect", lambda address: client)
    said: list[str] = []
    job = replace(JOB, retries=5)
    assert submit.submit_job(job, "there", True, said.append, 0.0) == INTERRUPTED
    assert client.submitted == 1
    assert "stopped; the same command resumes the run" in said[-1]


def test_a_log_that_falls_silent_hides_no_end_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.setattr(submit, "LAST_LINES_S", 0.05)
    client = Interrupted(0, ["silence"])
    client.read_to_the_end = True  # as far as the job's state goes
    said: list[str] = []
    assert submit.follow_job(cast(JobSubmissionClient, client), "job", said.append) == 0
    assert said == ["one\ntwo"]


def test_a_question_that_hangs_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "ANSWER_S", 0.05)
    monkeypatch.setattr(submit, "SILENCE_S", 0.02)
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    hanging = Event()

    class Hanging(Interrupted):
        def get_job_info(self, submission: str) -> JobDetails:
            hanging.wait()
            raise AssertionError

    client = cast(JobSubmissionClient, Hanging(0))
    with pytest.raises(submit.ClusterSilent, match="TimeoutError"):
        submit.follow_job(client, "job", lambda line: None)
    hanging.set()


def test_a_cluster_that_never_answers_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SILENCE_S", -1.0)
    client = cast(JobSubmissionClient, Interrupted(silent=10**6))
    with pytest.raises(submit.ClusterSilent, match="what became of job"):
        submit.follow_job(client, "job", lambda line: None)


@pytest.mark.parametrize("accepted", [True, False])
def test_a_request_whose_answer_is_lost_is_repeated_and_starts_one_job(
    monkeypatch: pytest.MonkeyPatch, accepted: bool
) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    asked: list[str] = []

    class Lossy(JobSubmissionClient):
        def submit_job(self, *, submission_id: str | None = None, **_: object) -> str:  # type: ignore[override]
            asked.append(str(submission_id))
            if len(asked) == 1:
                raise requests.exceptions.ConnectionError("connection reset")
            if accepted:
                raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
            return str(submission_id)

    monkeypatch.setattr(submit, "JobSubmissionClient", Lossy)
    said: list[str] = []
    answered_by([], lambda address: said.append(str(submitted(address, said))))
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert said[0] == "the cluster does not answer; trying again"
    assert said[1].startswith(f"submitted {asked[0]} to ")


def test_late_agent_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    refusals, said = [LATE, LATE], list[str]()
    answered_by(refusals, lambda address: said.append(str(submitted(address, said))))
    assert refusals == []
    assert [line.split(";")[0] for line in said[:2]] == 2 * [
        "the cluster has no agent yet to start jobs"
    ]
    assert said[2].startswith("submitted accepted to http://127.0.0.1:")
    assert said[-1] == "0"


@pytest.mark.parametrize(("refusal", "patience_s"), [(LATE, -1.0), ("disk is full", 60.0)])
def test_other_refusals_and_an_agent_that_never_comes_are_errors(
    refusal: str, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "AGENT_TIMEOUT_S", patience_s)
    said: list[str] = []

    def act(address: str) -> None:
        with pytest.raises(ConfigError, match=f"the job was not accepted: .*{refusal[:9]}"):
            submitted(address, said)

    answered_by([refusal], act)
    assert said == []
