"""`worldr1 submit`: a job file to the Jobs API of any Ray cluster, followed to its end.

The token of the cluster comes from where Ray looks for it: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN
or RAY_AUTH_TOKEN_PATH.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.config import INTERRUPTED, ConfigError, RunStopped
from cluster.job_file import JobFile
from learner.storage_errors import is_transient

T = TypeVar("T")

POLL_S = 1.0
QUIET_S = 300.0
"""A log without a new line for so long is read from a new connection."""
PAUSE_S = 5.0
"""Time before a broken log is opened again."""
LAST_LINES_S = 30.0
"""Bound of the wait for the last lines of a job that has ended."""
ANSWER_S = 60.0
"""Bound of one question to the cluster."""
AGENT_TIMEOUT_S = 120.0
"""Bound of the wait for the agent that starts jobs: it comes up after the Jobs API."""
SILENCE_S = 600.0
"""A cluster that does not say for so long what became of a job is given up."""
LONGEST_WAIT_S = 600.0
"""Bound of the time before a failed job is started again."""
BAD_INPUT = 2
"""Exit code of `worldr1` for input that no retry will mend."""


def submit_job(
    job: JobFile,
    address: str,
    follow: bool,
    say: Callable[[str], None],
    first_wait_s: float,
) -> int:
    """Submit, follow the log, start again after failures as often as the file allows; the exit code
    of the last attempt. The first wait is `first_wait_s`, each later one twice as long. Without
    `follow`: 0 as soon as the job is accepted."""
    client = connect(address)
    wait_s, code = first_wait_s, 0
    for attempt in range(job.retries + 1):
        submission = _submit(client, job, attempt, say)
        say(f"submitted {submission} to {address}: {job.entrypoint}")
        if not follow:
            say(f"follow it: ray job logs --address {address} --follow {submission}")
            return 0
        code = follow_job(client, submission, say)
        if code in (0, BAD_INPUT, INTERRUPTED) or attempt == job.retries:
            return code
        say(
            f"{submission} failed with exit code {code}; attempt {attempt + 2} of "
            f"{job.retries + 1} resumes the run in {wait_s:.0f} s"
        )
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    return code


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs API; ConfigError where nobody answers or the token is refused."""
    # Ray lets RAY_ADDRESS override what it is told; here the command line has the last word.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        reason = (
            "its token was refused or is missing; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH"
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = _reason(error, 200)
    raise ConfigError(f"--address {address!r} cannot be used: {reason}")


def _submit(
    client: JobSubmissionClient, job: JobFile, attempt: int, say: Callable[[str], None]
) -> str:
    """A retry gets an id of its own: Ray takes each only once, so that a request whose answer was
    lost can be repeated."""
    name = f"{job.job_id}-{attempt}" if job.job_id and attempt else job.job_id
    submission = name or f"worldr1_{secrets.token_hex(8)}"
    deadline, unanswered = time.monotonic() + AGENT_TIMEOUT_S, False
    while True:
        try:
            return client.submit_job(
                entrypoint=job.entrypoint,
                runtime_env=job.runtime_env,
                metadata=job.metadata,
                submission_id=submission,
                entrypoint_num_cpus=job.cpus,
                entrypoint_num_gpus=job.gpus,
                entrypoint_resources=job.resources,
            )
        except OSError as error:
            if not is_transient(error):  # of this machine: a folder that cannot be uploaded
                raise ConfigError(f"the job was not sent: {_reason(error, 300)}") from None
            reason, waiting = _reason(error, 200), "the cluster does not answer"
            unanswered = True
        except (RuntimeError, ValueError, TypeError) as error:
            reason, waiting = _reason(error, 300), "the cluster has no agent yet to start jobs"
            if unanswered and f"{submission} already exists" in reason:
                return submission
            if "No available agent" not in reason:
                raise ConfigError(f"the job was not accepted: {reason}") from None
        if time.monotonic() > deadline:
            raise ConfigError(f"the job was not accepted: {reason}")
        say(f"{waiting}; trying again")
        time.sleep(POLL_S)


def follow_job(client: JobSubmissionClient, submission: str, say: Callable[[str], None]) -> int:
    """Say a job's log until it ends; its exit code, 1 where it was lost, `INTERRUPTED` where
    somebody stopped it, who does not want it back."""
    info = asyncio.run(_followed(client, submission, say))
    if info.status is JobStatus.SUCCEEDED:
        return 0
    if info.status is JobStatus.STOPPED:
        say(f"{submission}: stopped; the same command resumes the run")
        return INTERRUPTED
    say(f"{submission}: {info.status.value}. {' '.join(str(info.message or '').split())[:300]}")
    code = info.driver_exit_code
    return code if code else 1


class ClusterSilent(RunStopped):
    """Nobody says any more what became of a job."""

    advice = "look for it with `ray job status` before you submit it again: it may still run"


async def _followed(
    client: JobSubmissionClient, submission: str, say: Callable[[str], None]
) -> JobDetails:
    """The job's end is asked for, and not concluded from that of its log."""
    over = asyncio.Event()
    log = asyncio.create_task(_tail(client, submission, say, over))
    try:
        info = await _ended(client, submission, say)
        over.set()
        await asyncio.wait([log], timeout=LAST_LINES_S)
        return info
    finally:
        log.cancel()
        await asyncio.gather(log, return_exceptions=True)


async def _ended(
    client: JobSubmissionClient, submission: str, say: Callable[[str], None]
) -> JobDetails:
    """Wait for a job's end, over interruptions of the connection. ClusterSilent."""
    heard = time.monotonic()
    while True:
        try:
            info = await _answered(lambda: client.get_job_info(submission))
        except (RuntimeError, OSError) as error:
            reason = _reason(error, 120)
            if time.monotonic() - heard > SILENCE_S:
                raise ClusterSilent(
                    f"the cluster has not answered for {SILENCE_S:g} s what became of {submission} "
                    f"({reason})"
                ) from error
            say(f"(no answer about {submission}: {reason}; asking again)")
        else:
            heard = time.monotonic()
            if info.status.is_terminal():
                return info
        await asyncio.sleep(POLL_S)


async def _answered(call: Callable[[], T]) -> T:
    """What a blocking call answers, in a thread that holds up nobody's end: a request may hang for
    ever. TimeoutError after `ANSWER_S`."""
    loop, answer = asyncio.get_running_loop(), asyncio.Future[T]()

    def tell(method: Callable[[Any], None], value: Any) -> None:
        if not answer.done():
            method(value)

    def work() -> None:
        try:
            told: tuple[Callable[[Any], None], Any] = answer.set_result, call()
        except Exception as error:
            told = answer.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=work, daemon=True).start()
    async with asyncio.timeout(ANSWER_S):
        return await answer


async def _tail(
    client: JobSubmissionClient,
    submission: str,
    say: Callable[[str], None],
    over: asyncio.Event,
) -> None:
    """Say the log, to its end once the job is `over`. A stream that ends before, breaks or falls
    quiet is opened anew: between two steps a connection may be dropped somewhere on its way
    without either end being told."""
    said = 0
    while True:
        last = over.is_set()
        # Every stream begins at the log's first character.
        known, stream = said, client.tail_job_logs(submission)
        try:
            while True:
                async with asyncio.timeout(QUIET_S):
                    text = await anext(stream)
                new, known = text[known:], max(known - len(text), 0)
                said += len(new)
                if new:
                    say(new.removesuffix("\n"))
        except StopAsyncIteration:
            if last:
                return
        except TimeoutError:
            continue
        except Exception as error:  # whatever broke it: the job's state is asked for beside it
            say(f"(log interrupted: {_reason(error, 120)}; reading on)")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S):
                await over.wait()


def _reason(error: Exception, length: int) -> str:
    """Ray's refusals end with what was wrong."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[-length:]}"
