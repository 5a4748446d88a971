"""A cluster whose agent is late, as a server that speaks the needed part of Ray's protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import cast

import aiohttp
import pytest
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster import submit
from cluster.config import ConfigError
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
    """A client whose connection breaks: the log's at once, the status's a few times."""

    def __init__(self, silent: int) -> None:
        self.silent = silent

    async def tail_job_logs(self, submission: str) -> AsyncIterator[str]:
        yield "a line\n"
        raise aiohttp.ServerDisconnectedError

    def get_job_info(self, submission: str) -> JobDetails:
        if self.silent:
            self.silent -= 1
            raise requests.exceptions.ConnectionError("refused")
        return JobDetails(type=JobType.SUBMISSION, status=JobStatus.SUCCEEDED, entrypoint="true")


def test_a_broken_connection_is_no_end_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    said: list[str] = []
    client = cast(JobSubmissionClient, Interrupted(silent=3))
    assert submit.follow_job(client, "job", said.append) == 0
    assert said[0] == "a line"
    assert "log interrupted" in said[1]
    assert sum("no answer about job" in line for line in said) == 3


def test_a_cluster_that_never_answers_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SILENCE_S", -1.0)
    client = cast(JobSubmissionClient, Interrupted(silent=10**6))
    with pytest.raises(submit.ClusterSilent, match="what became of job"):
        submit.follow_job(client, "job", lambda line: None)


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
