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

from cluster.clips import Clip, write_index
from cluster.collect import gather_or_cancel
from cluster.config import ConfigError, RunConfig
from cluster.evaluation.kept_figures import KeptFigures
from cluster.evaluation.measure import ClipFigures, Measurer
from cluster.evaluation.page import to_html
from cluster.evaluation.result import Evaluation, Side, to_csv, to_json, to_markdown
from cluster.evaluation.sampling import rollout_workers, sample, sampled_unlike_trained
from cluster.evaluation.sources import (
    Source,
    UnreadableClip,
    fixed_pairs,
    listed,
    read_video,
    require_comparable,
)
from cluster.evaluation.vbench import add_vbench
from cluster.local import local_rewards
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
SIDES = "ab"
"""Folders of the sides."""


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
    """Of a sampler in this process: "cpu" or "cuda"."""
    workers: int | None = None
    """Rollout workers on Ray, and the configuration's reward workers; None: this process, but for
    learned scorers, of which one worker each starts on Ray."""


def check(request: Request, out: RunFolder) -> None:
    """Whatever is wrong shows before anything is loaded. ConfigError."""
    clips = []
    for letter, source in zip(SIDES, request.sources, strict=False):
        if source.videos is None:
            pairs = fixed_pairs(request.config, request.prompts, request.pairs)
            clips.append([Clip.of(prompt, seed) for prompt, seed in pairs])
            continue
        clips.append(listed(source.videos, request.prompts))
        place, own = RunFolder(source.videos).root, _videos(out, letter).root
        if f"{place}/".startswith(f"{out.root.rstrip('/')}/") and place != own:
            raise ConfigError(
                f"{source.videos!r} lies in --out {out.url!r}, which would be written over it; "
                "choose another --out"
            )
    lengths = [_frames(request, *side) for side in zip(request.sources, clips, strict=True)]
    if len(clips) == 2:
        require_comparable(clips[0], clips[1], [source.name for source in request.sources])
        if lengths[0] != lengths[1]:
            raise ConfigError(
                f"clips of {lengths[0]} and of {lengths[1]} frames do not compare: errors of "
                f"cameras are sums over frames; allowed: --frames {min(lengths)} or fewer"
            )


def _frames(request: Request, source: Source, clips: Sequence[Clip]) -> int:
    """Frames that a side's first clip is measured by."""
    frames, config = request.frames, request.config
    if source.videos is None:
        there = config.rollout.frames
        if frames is not None and frames > there:
            raise ConfigError(
                f"--frames {frames}: {source.title} is sampled with rollout.frames = {there}; "
                "allowed: as many or fewer"
            )
        return frames or there
    data = RunFolder(source.videos).read_bytes(clips[0].file)
    try:
        return len(read_video(data, clips[0], frames, config.camera.amplitudes)[1])
    except UnreadableClip as error:
        raise ConfigError(f"{source.videos!r}: {error}") from None


def evaluate(request: Request, out: RunFolder, say: Callable[[str], None] = print) -> Evaluation:
    """Sample what has to be sampled, measure every clip, write all files."""
    check(request, out)
    out.require_writable()
    if request.workers is not None:
        _require_scorers(request.config.rewards)
    out.remove("evaluation.json")  # what is there is no longer whole
    urls = [
        source.videos or _sampled(request, source, _videos(out, letter), say)
        for letter, source in zip(SIDES, request.sources, strict=False)
    ]
    with (
        scoring_workers(request.config, request.workers is not None) as rewards,
        asyncio.Runner() as runner,
    ):
        measurer = Measurer(rewards, request.config.camera, request.workers is not None)
        work = _Measuring(request, measurer, runner.run(measurer.scorers()), out, say)
        sides = [
            runner.run(work.side(source.title, url, letter))
            for letter, url, source in zip(SIDES, urls, request.sources, strict=False)
        ]
    evaluation = Evaluation(_distinct(sides), work.scorers, _notes(request))
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


def _videos(out: RunFolder, letter: str) -> RunFolder:
    return RunFolder(f"{out.url}/videos/{letter}")


def _sampled(
    request: Request, source: Source, folder: RunFolder, say: Callable[[str], None]
) -> str:
    """Sample a model on the fixed pairs; the URL of its videos."""
    pairs = fixed_pairs(request.config, request.prompts, request.pairs)
    config = with_adapter(request.config, source.trained)
    with rollout_workers(config, request.workers, request.device) as rollouts:
        asyncio.run(sample(rollouts, config, source, pairs, folder, say))
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

    async def side(self, title: str, url: str, letter: str) -> Side:
        """Measure a folder: as many clips at once as there are workers to reconstruct them."""
        clips, videos = listed(url, self.request.prompts), _videos(self.out, letter)
        config = self.request.config
        what = [self.scorers, config.rewards.model_dump(mode="json"), self.request.frames]
        kept = KeptFigures(self.out, letter, [*what, config.camera.model_dump(mode="json")])
        places = asyncio.Semaphore(self.measurer.rewards.pools["reconstruction"].size)
        self.done = 0

        async def one(clip: Clip) -> ClipFigures:
            async with places:
                data = await asyncio.to_thread(RunFolder(url).read_bytes, clip.file)
                if videos.root != RunFolder(url).root:
                    await asyncio.to_thread(videos.write_bytes, clip.file, data)
                found = kept.read(clip, data)
                if found is None:
                    found = await self._measured(clip, data)
                    await asyncio.to_thread(kept.write, clip, data, found)
            self.done += 1
            failed = "".join(f"; {who} failed" for who in found.failures)
            self.say(f"{title}: {self.done}/{len(clips)} {clip.file}{failed}")
            return found

        figures = await gather_or_cancel([one(clip) for clip in clips])
        write_index(videos, clips)
        return Side(title, figures, [f"videos/{letter}/{clip.file}" for clip in clips])

    async def _measured(self, clip: Clip, data: bytes) -> ClipFigures:
        amplitudes = self.request.config.camera.amplitudes
        try:
            prompt, video = read_video(data, clip, self.request.frames, amplitudes)
        except UnreadableClip as error:
            return ClipFigures(clip.id, clip.prompt, clip.seed, {}, {"file": str(error)})
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
