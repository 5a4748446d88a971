"""An evaluation from its sources to its files; started again, it goes on where it stopped.

OUT/evaluation.json   everything       OUT/clips.csv    a row a clip
OUT/evaluation.md     the tables       OUT/index.html   tables and clips side by side
OUT/videos/a, b       the clips, sampled here or copied
OUT/figures/a, b      what was measured, a file a clip, kept for a later start
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.clips import Clip, write_index
from cluster.collect import gather_or_cancel
from cluster.config import ConfigError, RunConfig
from cluster.evaluation.kept_figures import KeptFigures
from cluster.evaluation.measure import ClipFigures, Measurer
from cluster.evaluation.page import to_html
from cluster.evaluation.request import (
    LETTERS,
    PlannedSide,
    Request,
    notes_on,
    plan_sides,
    videos_folder,
)
from cluster.evaluation.result import Evaluation, Side, to_csv, to_json, to_markdown
from cluster.evaluation.sampling import rollout_workers, sample, sampled_unlike_trained
from cluster.evaluation.sources import UnreadableClip, listed, read_video
from cluster.evaluation.vbench import add_vbench
from cluster.local import local_rewards
from cluster.patience import again
from cluster.pools import Rewards
from cluster.storage import RunFolder
from cluster.weights import with_adapter
from rewards.config import RewardConfig
from rewards.environments import located

IN_PROCESS = ("photometric", "embedded", "endpoint")
"""Backends that need neither a GPU nor an environment of their own."""
EMBEDDED_NOTE = (
    "Embedded, weight-free scorers stand in for {}: compare figures within this table, not with "
    "published ones."
)


def evaluate(request: Request, out: RunFolder, say: Callable[[str], None] = print) -> Evaluation:
    """Sample what has to be sampled, measure every clip, write all files."""
    planned = plan_sides(request, out)
    out.require_writable()
    if request.workers is not None:
        _require_scorers(request.config.rewards)
    out.remove("evaluation.json")  # what is there is no longer whole
    urls = [
        side.source.videos or _sampled(request, side, videos_folder(out, letter), say)
        for letter, side in zip(LETTERS, planned, strict=False)
    ]
    with (
        scoring_workers(request.config, request.workers is not None) as rewards,
        asyncio.Runner() as runner,
    ):
        config = request.config
        frames = config.rewards.reconstruction.max_frames
        measurer = Measurer(rewards, config.camera, frames, request.workers is not None)
        work = _Measuring(request, measurer, runner.run(measurer.scorers()), out, say)
        sides = [
            runner.run(work.side(side, url, letter))
            for letter, url, side in zip(LETTERS, urls, planned, strict=False)
        ]
    notes = [*notes_on(planned), *_notes(request)]
    evaluation = Evaluation(_distinct(sides), work.scorers, notes)
    write(evaluation, out)
    if request.vbench is not None:  # its failure takes nothing of the above away
        judged = [add_vbench(request.vbench, out, side) for side in evaluation.sides]
        evaluation = replace(evaluation, sides=judged)
        write(evaluation, out)
    return evaluation


def _require_scorers(rewards: RewardConfig) -> None:
    """A node without a scorer's environment is found before hours of sampling, not after."""
    from cluster.handles import connect, require_environments  # Ray only where it is needed

    connect()
    require_environments(located(rewards))


def _sampled(
    request: Request, side: PlannedSide, folder: RunFolder, say: Callable[[str], None]
) -> str:
    """Sample a model on its pairs; the URL of its videos."""
    config = with_adapter(request.config, side.source.trained)
    with rollout_workers(config, request.workers, request.device) as rollouts:
        asyncio.run(sample(rollouts, config, side.source, side.pairs, folder, say))
    if request.device == "cuda":
        import torch

        del rollouts
        gc.collect()  # a cycle would keep the weights
        torch.cuda.empty_cache()  # the scorers may get the same GPU
    return folder.url


@contextlib.contextmanager
def scoring_workers(config: RunConfig, pooled: bool = False) -> Iterator[Rewards]:
    """Reward workers on Ray, each in its environment and on its GPUs: `pooled`, as many as a run
    starts with, else one of each kind; or in this process, where all are embedded."""
    rewards = config.rewards
    backends = (rewards.reconstruction.backend, rewards.judge.backend, rewards.aesthetic.backend)
    if not pooled and all(backend in IN_PROCESS for backend in backends):
        with local_rewards(config, any_length=True) as found:
            yield found
        return
    from cluster.handles import connect, ray_rewards  # Ray only where it is needed

    pools = {}
    for kind, pool in rewards.pools.items():
        size = pool.min_workers if pooled else 1
        pools[kind] = pool.model_copy(update={"min_workers": size, "max_workers": size})
    connect()
    sized = config.model_copy(update={"rewards": rewards.model_copy(update=pools)})
    with ray_rewards(sized, any_length=True) as found:
        yield found


def write(evaluation: Evaluation, out: RunFolder) -> None:
    """All files of an evaluation but its videos."""
    out.write_text("clips.csv", to_csv(evaluation))
    out.write_text("evaluation.md", to_markdown(evaluation))
    out.write_text("index.html", to_html(evaluation))
    # Last: where it is, the evaluation is whole.
    out.write_text("evaluation.json", to_json(evaluation))


@dataclass
class _Measuring:
    """Measures the clips of a folder, and keeps copies for the page."""

    request: Request
    measurer: Measurer
    scorers: dict[str, str]
    out: RunFolder
    say: Callable[[str], None]
    done: int = field(default=0, init=False)

    async def side(self, planned: PlannedSide, url: str, letter: str) -> Side:
        """Measure a folder: as many clips at once as there are workers to reconstruct them."""
        title = planned.source.title
        clips, videos = listed(url, self.request.prompts), videos_folder(self.out, letter)
        config = self.request.config
        lengths = [self.request.frames, planned.frames]
        what = [self.scorers, config.rewards.model_dump(mode="json"), *lengths]
        kept = KeptFigures(self.out, letter, [*what, config.camera.model_dump(mode="json")])
        places = asyncio.Semaphore(self.measurer.rewards.pools["reconstruction"].size)
        self.done = 0

        async def one(clip: Clip) -> ClipFigures:
            async with places:
                read = partial(RunFolder(url).read_bytes, clip.file)
                data = await asyncio.to_thread(again, f"reading {clip.file}", read)
                if videos.root != RunFolder(url).root:
                    copy = partial(videos.write_bytes, clip.file, data)
                    await asyncio.to_thread(again, f"writing {clip.file}", copy)
                found = kept.read(clip, data)
                if found is None:
                    found = await self._measured(clip, data, planned.frames)
                    keep = partial(kept.write, clip, data, found)
                    await asyncio.to_thread(again, f"keeping {clip.file}", keep)
            self.done += 1
            failed = "".join(f"; {who} failed" for who in found.failures)
            self.say(f"{title}: {self.done}/{len(clips)} {clip.file}{failed}")
            return found

        figures = await gather_or_cancel([one(clip) for clip in clips])
        others = sum("length" in found.failures for found in figures)
        if 2 * others > len(figures):
            raise ConfigError(
                f"{others} of {len(figures)} clips of {url!r} have not the {planned.frames} frames "
                "of its first; allowed: --frames N, of which all have as many"
            )
        write_index(videos, clips)
        return Side(title, figures, [f"videos/{letter}/{clip.file}" for clip in clips])

    async def _measured(self, clip: Clip, data: bytes, frames: int) -> ClipFigures:
        amplitudes = self.request.config.camera.amplitudes
        try:
            prompt, video = read_video(data, clip, self.request.frames, amplitudes)
        except UnreadableClip as error:
            return ClipFigures(clip.id, clip.prompt, clip.seed, {}, {"file": str(error)})
        if len(video) != frames:
            reason = f"{len(video)} frames, not {frames}: errors of cameras are sums over frames"
            return ClipFigures(clip.id, clip.prompt, clip.seed, {}, {"length": reason})
        return await self.measurer.measure(video, prompt, clip.seed)


def _notes(request: Request) -> list[str]:
    rewards = request.config.rewards
    parts = {
        "Depth Anything 3": rewards.reconstruction.backend == "photometric",
        "LPIPS": rewards.perceptual.backend == "multiscale",
        "Qwen3-VL": rewards.judge.backend == "embedded",
        "HPSv3": rewards.aesthetic.backend == "embedded",
    }
    stood_for = [name for name, embedded in parts.items() if embedded]
    notes = [EMBEDDED_NOTE.format(", ".join(stood_for))] if stood_for else []
    sampled = [source for source in request.sources if source.videos is None]
    notes += sampled_unlike_trained(request.config, sampled)
    if request.vbench is None:
        notes.append("VBench was not asked for (--vbench PYTHON of an environment that has it).")
    elif request.frames is not None:
        notes.append(f"VBench saw whole clips, not their first {request.frames} frames.")
    return notes


def _distinct(sides: Sequence[Side]) -> list[Side]:
    """Sides whose titles tell them apart."""
    if len(sides) == 2 and sides[0].title == sides[1].title:
        return [
            Side(f"{letter}: {side.title}", side.clips, side.videos)
            for letter, side in zip("AB", sides, strict=True)
        ]
    return list(sides)
