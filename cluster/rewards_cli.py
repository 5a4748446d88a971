"""`worldr1 rewards`: examine the scorers on clips whose order is known, and explain one score."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import ConfigError, RunConfig, load
from rewards.environments import FAMILIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prompts.schema import Prompt


def add_rewards_command(commands: Any) -> None:
    """Register the command group with the subparsers of `worldr1`."""
    group = commands.add_parser("rewards", help="examine the scorers; explain a video's score")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser(
        "check", help="score every known-answer clip and demand their order (1 where it is broken)"
    )
    check.set_defaults(command=check_rewards)
    score = actions.add_parser("score", help="numbers and pictures for one mp4")
    score.add_argument("video", type=Path, metavar="VIDEO", help="an mp4, or what PyAV reads")
    score.add_argument("--prompt", required=True, help='what it shows, "Camera push in. A red box"')
    score.add_argument("--out", type=Path, metavar="DIR", help="default: beside VIDEO, NAME_score")
    score.set_defaults(command=score_video)
    for action in (check, score):
        action.add_argument(
            "overrides", nargs="*", metavar="key=value", help="e.g. rewards.reconstruction.gpus=1"
        )
        action.add_argument("--preset", default="toy", metavar="NAME", help="default: toy")


def check_rewards(options: argparse.Namespace) -> int:
    """Print the scores of the known clips and every broken relation: 0, or 1 where there is one."""
    config = _config(options)
    from rewards.examiner import examine, faults
    from rewards.known_answer import KnownAnswerError

    worker = _reconstruction(config, frames=9)
    print(f"reconstruction: {worker.scorer}, S_traj {config.rewards.variant}")
    rows = examine(worker)
    print(f"{'clip':28} {'S_recon':>8} {'S_traj':>8} {'PSNR dB':>8}")
    for name, row in rows.items():
        cells = (row.get(part) for part in ("recon", "traj", "psnr"))
        print(
            f"{name:28} " + " ".join(f"{'–' if c is None else format(c, '.3f'):>8}" for c in cells)
        )
    broken = faults(rows)
    for other in _other_workers(config):
        try:
            answers = other.known_answers()
        except KnownAnswerError as error:
            broken.append(str(error))
        else:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in answers.items())
            print(f"{other.describe()['kind']}: {shown}")
    for fault in broken:
        print(f"BROKEN  {fault}")
    print(
        f"{len(rows)} clips: " + (f"{len(broken)} relations broken" if broken else "all in order")
    )
    return 1 if broken else 0


def score_video(options: argparse.Namespace) -> int:
    """Score one video, print its parts, write its pictures: 0, or 1 where a scorer failed."""
    config = _config(options)
    video, prompt = _read_video(options.video), _prompt(options.prompt)
    out = options.out or options.video.with_name(f"{options.video.stem}_score")
    from rewards.score import Score
    from rewards.scoring import combine

    worker = _reconstruction(config, frames=len(video))
    geometry, meta_view, artifacts = worker.score(video, prompt, keep_artifacts=True)
    outcomes = [geometry]
    for other in _other_workers(config):
        kind = other.describe()["kind"]
        if kind == "aesthetic":
            outcomes.append(other.score(video, prompt))
        elif meta_view is not None:
            outcomes.append(other.score(meta_view, prompt))
    parts: dict[str, float] = {}
    described: list[dict[str, Any]] = []
    for outcome in outcomes:
        if isinstance(outcome, Score):
            parts |= outcome.parts
            described.append(_shown(outcome))
        else:
            print(f"{outcome.kind}: no score: {outcome.reason}")
            described.append({"kind": outcome.kind, "failed": outcome.reason})
    try:
        total, _ = combine(parts, config.rewards.weights, "main")
        print(f"total: {total:.3f}")
    except ValueError as error:
        total = None
        print(f"total: none ({error})")
    try:
        out.mkdir(parents=True, exist_ok=True)
        table = {"prompt": prompt.text, "total": total, "parts": parts, "scores": described}
        (out / "score.json").write_text(json.dumps(table, indent=1) + "\n")
        if artifacts is not None:
            _write_pictures(out, video, artifacts)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error}") from None
    print(f"pictures: {out}")
    return 0 if len(described) == sum("failed" not in row for row in described) else 1


def _config(options: argparse.Namespace) -> RunConfig:
    """ConfigError where a scorer runs elsewhere: this process examines those that it can hold."""
    config = load(options.preset, options.overrides)
    for family in FAMILIES:
        scorer = config.rewards.pools[family]
        served = family == "judge" and config.rewards.judge.backend != "embedded"
        if scorer.env or served:
            where = f"env = {scorer.env!r}" if scorer.env else "backend, a served model,"
            raise ConfigError(
                f"rewards.{family}.{where} is not of this process, where `worldr1 rewards` looks "
                "at scorers; `worldr1 evaluate` scores videos by all of them, a run examines its "
                "own every rewards.examine_every steps"
            )
    return config


def _reconstruction(config: RunConfig, frames: int) -> Any:
    from rewards.worker import ReconstructionWorker

    device = "cuda" if config.rewards.reconstruction.gpus else "cpu"
    try:
        return ReconstructionWorker(config.rewards, config.camera, frames, device, config.threads)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _other_workers(config: RunConfig) -> list[Any]:
    """Judge and frame scorer."""
    from rewards.aesthetic_worker import AestheticWorker
    from rewards.judge_worker import JudgeWorker

    device = "cuda" if config.rewards.aesthetic.gpus else "cpu"
    try:
        return [JudgeWorker(config.rewards), AestheticWorker(config.rewards, device)]
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _read_video(file: Path) -> NDArray[np.uint8]:
    from cluster.video import decode_mp4

    try:
        return decode_mp4(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"VIDEO = {str(file)!r} cannot be read: {reason}") from None


def _prompt(text: str) -> Prompt:
    from prompts.schema import Prompt

    try:
        return Prompt.from_text("scored", text)
    except ValueError as error:
        raise ConfigError(f"--prompt {text!r} cannot be used: {error}") from None


def _shown(score: Any) -> dict[str, Any]:
    """Print one worker's answer line by line; the same as JSON."""
    print(f"{score.kind} ({score.scorer}, {score.seconds:.1f} s)")
    for name, value in score.parts.items():
        print(f"  {name:20} {value:.4f}")
    for name, value in score.raw.items():
        print(f"    {name:18} {value:.4g}")
    for note in score.notes:
        print(f"    {note}")
    if score.digits:
        print("    digits             " + " ".join(f"{p:.2f}" for p in score.digits))
    return {
        "kind": score.kind,
        "scorer": score.scorer,
        "parts": dict(score.parts),
        "raw": dict(score.raw),
        "notes": list(score.notes),
        "digits": list(score.digits),
    }


def _write_pictures(out: Path, video: NDArray[np.uint8], artifacts: Any) -> None:
    from cluster.artifacts import encode_png, picture_files
    from cluster.pictures import score_sheet

    for file, data in picture_files(video, artifacts, "sample").values():
        (out / file).write_bytes(data)
    (out / "sheet.png").write_bytes(encode_png(score_sheet(video, artifacts)))
