"""A run's folder of any size, written in the formats of the run itself: input of the report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cluster.config import RunConfig, to_json
from cluster.held_out import EvalSample, video_file
from cluster.kept import KeptGroup, KeptMember, step_folder
from cluster.storage import RunFolder, scores_file
from cluster.video import encode_mp4
from learner.schedule import phase_of
from prompts.camera import camera_path
from prompts.motions import detect_segments

PROMPT = "Camera push in, then pan left. A red box <on> a green & white floor."


def spread(mean: float) -> dict[str, float]:
    return {"mean": mean, "std": 0.1, "n": 8}


def step_row(step: int, phase: str) -> dict[str, object]:
    parts = ("gen",) if phase == "dynamic" else ("recon", "traj", "meta", "gen")
    rng = np.random.default_rng(step)
    values = {name: 0.5 + 0.001 * step + 0.05 * rng.normal() for name in parts}
    window = {
        f"window_{w}/{name}": 1e-5 * (step + w)
        for w in range(2)
        for name in ("kl", "ratio_max_dev")
    }
    clock = {"busy_s": 2.0, "starved_s": 1.0, "blocked_s": 0.5, "queued_s": 0.0}
    raw = {"content": spread(0.9)}
    if phase == "main":
        raw |= {"sharpness": spread(4.0), "motion": spread(1.0), "psnr": spread(25.0)}
    return {
        "kind": "step",
        "step": step,
        "phase": phase,
        "reward": spread(sum(values.values())),
        "parts": {name: spread(value) for name, value in values.items()},
        "raw": raw,
        "learner": {"kl": 1e-4 * step, "muted_positive": 0.1, "muted_negative": 0.2, **window},
        "grad_norm": 1e-3,
        "groups": {"trained": 2, "no_gradient": step % 5 == 0, "too_few_scored": 0},
        "failed_members": 0,
        "seconds": {"rollout": 2.0, "rewards": 3.0, "learner": 1.0, "step": 4.0},
        "stages": dict.fromkeys(("rollout", "reconstruction", "learner"), clock),
        "bottleneck": "reconstruction",
    }


def make_run(config: RunConfig, steps: int, groups: int, evals: tuple[int, ...]) -> RunFolder:
    """A run of `config` after `steps` steps, with `groups` kept groups and some evaluations."""
    folder = RunFolder(config.run)
    folder.write_text("config.json", to_json(config))
    rows = [step_row(step, phase_of(step, config.schedule)) for step in range(steps)]
    frames = np.linspace(0, 255, config.rollout.frames).astype(np.uint8)
    clip = np.broadcast_to(frames[:, None, None, None], (config.rollout.frames, 64, 96, 3))
    data = encode_mp4(np.ascontiguousarray(clip))
    for step in evals:
        for average in (False, True) if step else (False,):
            samples = [
                EvalSample(f"p{i}", PROMPT, i, 2.0 + 0.01 * step, {"gen": 0.5}, {"psnr": 25.0})
                for i in range(4)
            ]
            folder.write_text(
                scores_file(step, average), json.dumps([asdict(sample) for sample in samples])
            )
            for sample in samples:
                folder.write_bytes(video_file(step, sample.prompt_id, sample.seed, average), data)
            raw = {name: spread(1.0) for name in ("psnr", "content", "sharpness", "motion")}
            kind = "ema" if average else "eval"
            figures = {"reward": spread(2.0), "parts": {"gen": spread(0.5)}, "raw": raw}
            second = {"proxy": spread(1.5), "gold": spread(1.2), "gold_failures": 1}
            rows.append({"kind": kind, "step": step, **figures, **second})
        if step:
            alarm = {"kind": "motion", "text": "motion dies: 2.0 → 1.0"}
            rows.append({"kind": "alarm", "step": step, "alarms": [alarm]})
    folder.write_text("metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    for serial in range(groups):
        _make_group(folder, config, serial % max(steps, 1), serial, data)
    return folder


def _make_group(folder: RunFolder, config: RunConfig, step: int, serial: int, data: bytes) -> None:
    path = camera_path(detect_segments(PROMPT), config.rollout.frames)
    assert path is not None
    base, members = f"group_{serial:06d}", []
    png = (Path(__file__).parents[2] / "rewards/canary/orbit_consistent.png").read_bytes()
    for index in range(config.rollout.group_size):
        stem = f"{base}/member_{index:02d}"
        videos = (f"{stem}.mp4", *(f"{stem}_{n}.mp4" for n in ("rerender", "depth", "cameras")))
        for name in videos:
            folder.write_bytes(f"{step_folder(step)}/{name}", data)
        folder.write_bytes(f"{step_folder(step)}/{stem}_meta.png", png)
        folder.write_bytes(f"{step_folder(step)}/{stem}.ply", b"ply")
        bent = path.c2w.copy()
        bent[:, :3, 3] *= 1 + 0.1 * index
        members.append(
            KeptMember(
                member=index,
                video=f"{stem}.mp4",
                rerender=f"{stem}_rerender.mp4",
                meta_view=f"{stem}_meta.png",
                depth=f"{stem}_depth.mp4",
                overlay=f"{stem}_cameras.mp4",
                splats=f"{stem}.ply",
                digits=(0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.4, 0.2, 0.1, 0.0),
                extreme="best" if index == 0 else None,
                reward=2.0 + 0.1 * index,
                advantage=0.5 - index,
                parts={"recon": 0.5, "traj": 0.5, "meta": 0.5, "gen": -0.5},
                raw={},
                notes=("motion gate: S_traj = 0",) if index else (),
                recovered_c2w=bent.tolist(),
            )
        )
    group = KeptGroup(
        step=step,
        phase="main",
        group=serial,
        prompt_id="p",
        prompt=PROMPT,
        window_start=1,
        requested_c2w=path.c2w.tolist(),
        members=tuple(members),
    )
    folder.write_text(f"{step_folder(step)}/{base}.json", group.model_dump_json())
