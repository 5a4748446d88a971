"""From a configuration to a finished run: checks before anything starts, resume, the last table."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from cluster.checkpoint import CheckpointStore, IncompatibleCheckpoint, RunState
from cluster.config import (
    ConfigError,
    RunConfig,
    RunStopped,
    fingerprint,
    flatten,
    resolve_model,
    to_json,
)
from cluster.kept import drop_superseded
from cluster.lease import Holding, held
from cluster.letter import explain
from cluster.patience import again
from cluster.report.refresh import Refresher
from cluster.rows import rows_before
from cluster.storage import (
    RunFolder,
    absolute_url,
    has_evaluation,
    missing_evaluations,
    stored_config,
)
from cluster.trackers import open_tracker, require_tracker
from cluster.versions import Lineages
from prompts.camera import require_paths
from prompts.dataset import load_prompts, without_camera
from prompts.schema import Prompt
from rewards.config import RewardConfig
from rewards.environments import EnvironmentProblem, require_backends

if TYPE_CHECKING:
    from cluster.live import View
    from cluster.pools import Workers

OpenWorkers: TypeAlias = "Callable[[RunConfig], AbstractContextManager[Workers]]"
"""Brings a run's workers up, and down again when its block ends."""


def check_before_start(config: RunConfig) -> dict[str, Sequence[Prompt]]:
    """Read and write everything that a wrong path would break later; the prompts of each split.

    Raises ConfigError in one sentence, before torch is imported or a worker exists.
    """
    resolve_model(config.policy.model)
    prompts: dict[str, Sequence[Prompt]] = {}
    for split, source in config.prompts.sources.items():
        try:
            prompts[split] = load_prompts(source)
            require_paths(prompts[split], config.rollout.frames, config.camera)
        except (ValueError, OSError) as error:
            raise ConfigError(f"prompts.{split} = {source!r} cannot be used: {error}") from None
    require_tracker(config.metrics.tracker)
    check_backends(config.rewards)
    RunFolder(config.run).require_writable()
    return prompts


def check_backends(rewards: RewardConfig) -> None:
    """ConfigError where a scorer needs a package or an environment that is not there."""
    try:
        require_backends(rewards)
    except EnvironmentProblem as problem:
        raise ConfigError(str(problem)) from None


def run_training(
    config: RunConfig,
    open_workers: OpenWorkers,
    say: Callable[[str], None] = print,
    view: View | None = None,
) -> RunState:
    """Train a run from its newest checkpoint, or from the start; says what a person follows.

    `open_workers` is `on_ray` or `in_this_process`; `view` is shown figures besides the lines.
    """
    config = config.model_copy(update={"run": absolute_url(config.run)})
    prompts = check_before_start(config)
    with held(RunFolder(config.run), say) as holding:
        return _train(config, prompts, open_workers, say, view, holding)


def _train(
    config: RunConfig,
    prompts: dict[str, Sequence[Prompt]],
    open_workers: OpenWorkers,
    say: Callable[[str], None],
    view: View | None,
    holding: Holding,
) -> RunState:
    folder, store = RunFolder(config.run), CheckpointStore(config.run)
    state = start_or_resume(config, store, say)
    if _is_whole(config, folder, state.step):
        say(f"run {config.run} has all of its {config.steps} steps")
        show_result(folder, state.step, say)
        return state
    if state.step > 0:
        _say_changed_rate(folder, config, say)
    folder.write_text("config.json", to_json(config))
    again("deleting what an earlier start kept", partial(drop_superseded, folder, state.step))
    say(
        f"run {config.run}: {config.steps} steps of {config.rollout.groups_per_step} groups x "
        f"{config.rollout.group_size} samples, from step {state.step}"
    )
    for line in without_camera(prompts["train"]):
        say(f"prompts.train: {line}")
    started = time.perf_counter()
    reporter = Refresher(config.run, config.metrics.report_every_s, say)
    # Before any worker takes a GPU: a service may not let it in.
    tracker = open_tracker(
        config.metrics.tracker, folder, state.step, state.tracker_run_id, flatten(config)
    )
    with contextlib.closing(tracker), open_workers(config) as workers:
        from cluster.collect import RequestSource
        from cluster.evaluate import Evaluator
        from cluster.ledger import Ledger
        from cluster.loop import Trainer
        from cluster.metrics import MetricsLog, stage_meters

        state = state.model_copy(update={"tracker_run_id": tracker.run_id})
        metrics = MetricsLog(
            folder,
            config.steps,
            state.step,
            say,
            gauges=config.metrics.prometheus and open_workers is on_ray,
            followers=(tracker,) if view is None else (tracker, view),
            refresher=reporter,
            require_held=holding.require,
        )
        trainer = Trainer(
            config=config,
            workers=workers,
            source=RequestSource(
                config.seed, config.rollout, prompts, state.next_group, state.cursors
            ),
            checkpoints=store,
            metrics=metrics,
            evaluator=Evaluator(config, prompts["test"], folder, metrics),
            ledger=Ledger(folder, state.ledger),
            holding=holding,
        )
        say(f"workers are up after {time.perf_counter() - started:.0f} s")
        if view is not None:
            view.watch(config.run, config.steps, state.step, stage_meters(workers))
        try:
            with contextlib.closing(metrics):
                state = asyncio.run(trainer.train(state))
        except RunStopped as error:
            explain(error, folder)
            raise
        finally:
            page = asyncio.run(reporter.write())
            if page:
                say(f"report: {page}")
    if state.step < config.steps:
        say(f"stopped after {state.step} of {config.steps} steps; the same command goes on")
        if trainer.interrupted:
            raise KeyboardInterrupt  # whoever waits for the command must not go on
        return state
    say(f"final weights {state.weights_checksum[:16]} after {state.step} steps")
    show_result(folder, state.step, say)
    return state


def _is_whole(config: RunConfig, folder: RunFolder, step: int) -> bool:
    """Whether nothing is left to do: all steps, and the evaluations of the last one."""
    if not 0 < step >= config.steps:
        return False
    return not missing_evaluations(config, folder, step, rows_before(folder, step))


def start_or_resume(
    config: RunConfig, store: CheckpointStore, say: Callable[[str], None]
) -> RunState:
    """The newest valid state under a fresh lineage; ConfigError where another run lies there."""
    lineage = secrets.token_hex(4)
    try:
        found = store.newest_valid(fingerprint(config))
    except IncompatibleCheckpoint as error:
        raise ConfigError(f"run = {config.run!r} cannot be resumed: {error}") from None
    damaged = [skipped for skipped in found.skipped if skipped.damaged]
    if found.checkpoint is None and damaged:
        raise ConfigError(
            f"run = {config.run!r} cannot be resumed: none of its checkpoints is whole, the newest "
            f"damaged one is of step {damaged[0].step} ({damaged[0].reason}); restore the file, or "
            "start in another folder"
        )
    for skipped in found.skipped:
        say(f"checkpoint of step {skipped.step} skipped: {skipped.reason}")
    if found.checkpoint is None:
        return RunState(step=0, seed=config.seed, lineages=Lineages().branch(lineage, 0))
    say(f"resuming {config.run} from its checkpoint of step {found.checkpoint.step}")
    state = found.checkpoint.state
    return state.model_copy(update={"lineages": state.lineages.branch(lineage, state.step)})


def _say_changed_rate(folder: RunFolder, config: RunConfig, say: Callable[[str], None]) -> None:
    """The one key that decides results and may differ on resume is changed by nobody unawares."""
    with contextlib.suppress(ConfigError):
        before, now = stored_config(folder).learner.learning_rate, config.learner.learning_rate
        if before != now:
            say(f"learner.learning_rate was {before:g} until this start and is {now:g} from now on")


def show_result(folder: RunFolder, step: int, say: Callable[[str], None]) -> None:
    """Print the paired table of the first and last evaluation and write their sheet of pictures.

    Says nothing where the run was not evaluated.
    """
    if not step or not has_evaluation(folder, 0) or not has_evaluation(folder, step):
        return
    from cluster.held_out import gains_table, load_evaluation, paired_gains
    from cluster.report.sheet import write_sheet

    before, after = load_evaluation(folder, 0), load_evaluation(folder, step)
    if not before or not after:
        say("no held-out pair could be scored; see metrics.jsonl")
        return
    say(gains_table(paired_gains(before, after)))
    sheet = write_sheet(folder, before, step)
    say(f"pictures: {sheet}")


@contextlib.contextmanager
def in_this_process(config: RunConfig) -> Iterator[Workers]:
    """Workers as plain objects, without Ray."""
    from cluster.local import local_workers

    with local_workers(config) as workers:
        yield workers


@contextlib.contextmanager
def on_ray(config: RunConfig) -> Iterator[Workers]:
    """Workers as actors of the cluster that RAY_ADDRESS names, or of one started here."""
    from cluster.handles import check_cluster, connect, ray_workers

    connect()
    if config.placement.check_nodes:
        from cluster.doctor import require_fit

        require_fit(check_cluster(config))
    with ray_workers(config) as workers:
        yield workers
