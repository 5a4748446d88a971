"""Gates of the shipped toy model: `python -m benchmarks.toyworld [--quick] [--json FILE]`.

Is the VAE good enough, does the commanded camera path come out, are boxes boxes and balls balls,
and are there both consistent and inconsistent samples for reinforcement learning to choose from?
The judges (toyworld.measures) are validated in the same run on clips whose answers are known.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from numpy.typing import NDArray
from PIL import Image

from prompts.motions import PRIMITIVES, Motion
from toyworld.architecture import MAX_TEXT_TOKENS
from toyworld.measures import best_motion, consistency_db, primitive_paths, segment, shape_of
from toyworld.scenes import (
    CORRUPTIONS,
    FRAMES,
    HEIGHT,
    WIDTH,
    Scene,
    command,
    random_scene,
    render_clip,
    sample_clip,
)
from toyworld.vae_training import reconstruction_psnr, to_float

Videos = NDArray[np.uint8]
MODEL = Path(__file__).parents[1] / "toyworld" / "model"
SHEET = Path(__file__).parent / "results" / "toyworld_samples.png"
STEPS, GUIDANCE = 16, 2.5


@dataclass(frozen=True)
class Row:
    """One line of the table; `goal` is None for figures that are only reported."""

    name: str
    measured: float
    goal: tuple[float, float] | None = None
    """Lowest and highest value that passes."""
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.goal is None or self.goal[0] <= self.measured <= self.goal[1]


@dataclass(frozen=True)
class Job:
    """A scene and the single motion that is commanded for it."""

    scene: Scene
    motion: Motion

    @property
    def text(self) -> str:
        return f"{command(self.motion.value)} {self.scene.describe()}"


def draw_jobs(count: int, seed: int) -> list[Job]:
    """`count` random scenes, the nine motions in turn."""
    rng, motions = np.random.default_rng(seed), list(PRIMITIVES)
    return [Job(random_scene(rng), motions[i % len(motions)]) for i in range(count)]


def true_clips(jobs: list[Job], corrupted: bool) -> Videos:
    """Rendered clips uint8 [N, F, H, W, 3] of the jobs, each corruption in turn if `corrupted`."""
    kinds = [CORRUPTIONS[i % len(CORRUPTIONS)] if corrupted else "none" for i in range(len(jobs))]
    clips = [
        render_clip(job.scene, (job.motion,), kind) for job, kind in zip(jobs, kinds, strict=True)
    ]
    return np.stack([clip.video for clip in clips])


@torch.no_grad()
def through_vae(vae: AutoencoderKLWan, videos: Videos, batch: int = 9) -> Videos:
    """The clips as the VAE gives them back: what a perfect transformer could make."""
    parts = []
    for start in range(0, len(videos), batch):
        latents = vae.encode(to_float(videos[start : start + batch])).latent_dist.mode()
        decoded = (vae.decode(latents).sample + 1) * 127.5
        parts.append(decoded.round().byte().permute(0, 2, 3, 4, 1).numpy())
    return np.concatenate(parts)


def sample(pipeline: WanPipeline, texts: list[str], guidance: float, batch: int = 9) -> Videos:
    """Videos uint8 [N, F, H, W, 3] sampled by the ODE, from fixed noises."""
    parts = []
    for start in range(0, len(texts), batch):
        frames = pipeline(
            prompt=texts[start : start + batch],
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            max_sequence_length=MAX_TEXT_TOKENS,
            generator=torch.Generator().manual_seed(start),
            output_type="np",
        ).frames
        parts.append((frames * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def share(yes: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Share of true values, in %."""
    return 100 * float(np.mean(yes))


def camera_hits(videos: Videos, jobs: list[Job]) -> float:
    """Share (%) of clips that the commanded motion's path explains best of the nine."""
    paths = primitive_paths(FRAMES)
    hits = [best_motion(v, paths) is job.motion for v, job in zip(videos, jobs, strict=True)]
    return share(hits)


def consistencies(videos: Videos, jobs: list[Job]) -> NDArray[np.float64]:
    """Photo-consistency (dB) of each clip under its commanded path."""
    paths = primitive_paths(FRAMES)
    return np.array(
        [consistency_db(v, paths[job.motion]) for v, job in zip(videos, jobs, strict=True)]
    )


def shapes_right(videos: Videos, jobs: list[Job]) -> float:
    """Share (%) of named objects that the first frame shows in their colour and shape."""
    right = [
        shape_of(segment(video[0], thing.color)) == thing.shape
        for video, job in zip(videos, jobs, strict=True)
        for thing in job.scene.objects
    ]
    return share(right)


def threshold_between(consistent: NDArray[np.float64], broken: NDArray[np.float64]) -> float:
    """The threshold (dB) that tells true consistent clips from corrupted ones best."""
    candidates = np.sort(np.concatenate([consistent, broken]))
    balance = [(consistent >= c).mean() + (broken < c).mean() for c in candidates]
    return float(candidates[int(np.argmax(balance))])


def measure(quick: bool) -> list[Row]:
    """All the rows of the table; writes the contact sheet on the way."""
    pipeline = WanPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows, limit = judge_rows(pipeline.vae, draw_jobs(18 if quick else 54, seed=11), quick)
    jobs = draw_jobs(18 if quick else 72, seed=10)
    for guidance in (GUIDANCE, 1.0):
        videos = sample(pipeline, [job.text for job in jobs], guidance)
        rows += sample_rows(videos, jobs, guidance, limit)
        if guidance == GUIDANCE:
            write_sheet(videos[:18], SHEET)
    return rows


def judge_rows(vae: AutoencoderKLWan, known: list[Job], quick: bool) -> tuple[list[Row], float]:
    """Rows on the VAE and on the judges, and the threshold (dB) of consistency."""
    count = 32 if quick else 128
    heldout = [sample_clip(np.random.default_rng((1, i))).video for i in range(count)]
    clean = through_vae(vae, true_clips(known, corrupted=False))
    broken = through_vae(vae, true_clips(known, corrupted=True))
    clean_db, broken_db = consistencies(clean, known), consistencies(broken, known)
    limit = threshold_between(clean_db, broken_db)
    rows = [
        Row("VAE, held-out PSNR", reconstruction_psnr(vae, np.stack(heldout)), (28, 99), "dB"),
        Row("judge of cameras on true clips", camera_hits(clean, known), (90, 100), "%"),
        Row("judge of shapes on true clips", shapes_right(clean, known), (90, 100), "%"),
        Row("consistency threshold", limit, unit="dB"),
        Row("true consistent clips above it", share(clean_db >= limit), (90, 100), "%"),
        Row("true corrupted clips above it", share(broken_db >= limit), (0, 10), "%"),
    ]
    return rows, limit


def sample_rows(videos: Videos, jobs: list[Job], guidance: float, limit: float) -> list[Row]:
    """Rows on the samples; only those at the standard guidance are gated."""
    gated, tag = guidance == GUIDANCE, f"samples (guidance {guidance:g})"
    decibels = consistencies(videos, jobs)

    def row(name: str, measured: float, low: float, high: float) -> Row:
        return Row(f"{tag}: {name}", measured, (low, high) if gated else None, "%")

    return [
        row("commanded camera is best", camera_hits(videos, jobs), 50, 100),
        row("shapes right", shapes_right(videos, jobs), 75, 100),
        row("consistent", share(decibels >= limit), 10, 90),
        Row(f"{tag}: median consistency", float(np.median(decibels)), unit="dB"),
    ]


def write_sheet(videos: Videos, path: Path) -> None:
    """A picture with one row per video, its frames from left to right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(list(v), axis=1) for v in videos])).save(path)


def main() -> None:
    """Print the table; exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description="Gates of the shipped toy model.")
    parser.add_argument("--quick", action="store_true", help="a quarter of the samples")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = measure(options.quick)
    for row in rows:
        goal = f"{row.goal[0]:g} to {row.goal[1]:g}" if row.goal else "-"
        verdict = "" if row.goal is None else ("ok" if row.passed else "MISSED")
        print(f"{row.name:50} {row.measured:8.2f} {row.unit:3} goal {goal:10} {verdict}")
    if options.json:
        context = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
            "sampling": {"steps": STEPS, "guidance": GUIDANCE},
        }
        table = [{**asdict(row), "passed": row.passed} for row in rows]
        options.json.write_text(json.dumps({**context, "rows": table}, indent=1) + "\n")
    sys.exit(0 if all(row.passed for row in rows) else 1)


if __name__ == "__main__":
    main()
