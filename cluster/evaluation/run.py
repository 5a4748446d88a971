"""An evaluation from its sources to its files.

OUT/evaluation.json   everything       OUT/clips.csv   a row a clip
OUT/evaluation.md     the tables       OUT/index.html  tables and clips side by side
OUT/videos/a, b       the clips, sampled here or copied
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.clips import write_index
from cluster.config import RunConfig
from cluster.evaluation.measure import ClipFigures, Measurer
from cluster.evaluation.page import to_html
from cluster.evaluation.result import Evaluation, Side, to_csv, to_json, to_markdown
from cluster.evaluation.sources import Source, fixed_pairs, listed, read_videos
from cluster.evaluation.vbench import add_vbench
from cluster.local import local_rewards
from cluster.pools import Rewards
from cluster.storage import RunFolder

IN_PROCESS = ("photometric", "embedded", "endpoint")
"""Backends that need neither a GPU nor an environment of their own."""
EMBEDDED_NOTE = (
    "Embedded, weight-free scorers stand in for Depth Anything 3, LPIPS, Qwen3-VL and HPSv3: "
    "compare figures within this table, not with published ones."
)


@dataclass(frozen=True, slots=True)
class Request:
    """What `worldr1 evaluate` is asked for."""

    sources: Sequence[Source]
    """One, or two to compare."""
    config: RunConfig
    """Samples and scores."""
    prompts: str | None
    """Prompt set of sampled models, or of a folder without an index."""
    pairs: int
    """Pairs that a model is sampled on."""
    frames: int | None
    """First frames of each clip that are looked at; all of them by default."""
    vbench: str | None
    """Python of an environment that holds the vbench package."""
    device: str


def evaluate(request: Request, out: RunFolder, say: Callable[[str], None] = print) -> Evaluation:
    """Sample what has to be sampled, measure every clip, write all files."""
    urls = [
        source.videos or _sampled(request, source, f"{out.url}/videos/{letter}", say)
        for letter, source in zip("ab", request.sources, strict=False)
    ]
    sides = []
    with scoring_workers(request.config) as rewards, asyncio.Runner() as runner:
        measurer = Measurer(rewards, request.config.camera)
        scorers = runner.run(measurer.scorers())
        for letter, url, source in zip("ab", urls, request.sources, strict=False):
            measured = _measured(source.title, url, request, measurer, out, letter, say)
            sides.append(runner.run(measured))
    notes = [EMBEDDED_NOTE] if _embedded(request.config) else []
    if request.vbench is not None:
        sides = [add_vbench(request.vbench, out, side) for side in sides]
        if request.frames is not None:
            notes.append(f"VBench saw whole clips, not their first {request.frames} frames.")
    else:
        notes.append("VBench was not asked for (--vbench PYTHON of an environment that has it).")
    evaluation = Evaluation(_distinct(sides), scorers, notes)
    write(evaluation, out)
    return evaluation


@contextlib.contextmanager
def scoring_workers(config: RunConfig) -> Iterator[Rewards]:
    """One reward worker of each kind: in this process where all are embedded, else on Ray, each in
    its environment and on its GPUs."""
    rewards = config.rewards
    backends = (rewards.reconstruction.backend, rewards.judge.backend, rewards.aesthetic.backend)
    if all(backend in IN_PROCESS for backend in backends):
        with local_rewards(config, any_length=True) as workers:
            yield workers
        return
    from cluster.handles import connect, ray_rewards  # Ray only where it is needed

    one = {"min_workers": 1, "max_workers": 1}
    pools = {kind: pool.model_copy(update=one) for kind, pool in rewards.pools.items()}
    connect()
    alone = config.model_copy(update={"rewards": rewards.model_copy(update=pools)})
    with ray_rewards(alone, any_length=True) as workers:
        yield workers


def write(evaluation: Evaluation, out: RunFolder) -> None:
    """All files of an evaluation but its videos."""
    out.write_text("clips.csv", to_csv(evaluation))
    out.write_text("evaluation.md", to_markdown(evaluation))
    out.write_text("index.html", to_html(evaluation))
    # Last: where it is, the evaluation is whole.
    out.write_text("evaluation.json", to_json(evaluation))


def _sampled(request: Request, source: Source, url: str, say: Callable[[str], None]) -> str:
    """Sample a model on the fixed pairs; the URL of its videos."""
    from rich.progress import Progress

    from cluster.generate import generate, load_policy, network_passes

    pairs = fixed_pairs(request.config, request.prompts, request.pairs)
    policy = load_policy(request.config, source.trained, request.device)
    say(f"{source.title}: sampling {len(pairs)} (prompt, seed) pairs")
    with Progress(transient=True) as progress:
        task = progress.add_task("denoising", total=network_passes(request.config, len(pairs)))
        generate(
            policy,
            request.config,
            pairs,
            RunFolder(url),
            source.title,
            lambda: progress.advance(task),
        )
    if request.device == "cuda":
        import torch

        del policy
        torch.cuda.empty_cache()  # the scorers may get the same GPU
    return url


async def _measured(
    title: str,
    url: str,
    request: Request,
    measurer: Measurer,
    out: RunFolder,
    letter: str,
    say: Callable[[str], None],
) -> Side:
    """Measure the clips of a folder, and keep copies for the page."""
    figures: list[ClipFigures] = []
    files: list[str] = []
    clips, kept = listed(url, request.prompts), RunFolder(f"{out.url}/videos/{letter}")
    amplitudes = request.config.camera.amplitudes
    for clip, prompt, video, data in read_videos(url, clips, request.frames, amplitudes):
        figures.append(await measurer.measure(video, prompt, clip.seed))
        if kept.url != url:
            kept.write_bytes(clip.file, data)
        files.append(f"videos/{letter}/{clip.file}")
        failed = "".join(f"; {who} failed" for who in figures[-1].failures)
        say(f"{title}: {len(figures)}/{len(clips)} {clip.file}{failed}")
    write_index(kept, clips)
    return Side(title, figures, files)


def _distinct(sides: Sequence[Side]) -> list[Side]:
    """Sides whose titles tell them apart."""
    if len(sides) == 2 and sides[0].title == sides[1].title:
        return [
            Side(f"{letter}: {side.title}", side.clips, side.videos)
            for letter, side in zip("AB", sides, strict=True)
        ]
    return list(sides)


def _embedded(config: RunConfig) -> bool:
    rewards = config.rewards
    backends = (rewards.reconstruction, rewards.perceptual, rewards.judge, rewards.aesthetic)
    return any(part.backend in ("photometric", "multiscale", "embedded") for part in backends)
