"""Trains the shipped toy model from nothing: `python -m toyworld.pretrain`.

Renders clips, trains the VAE, encodes the clips, trains transformer and text encoder together, and
writes a WanPipeline. Stages can be run one at a time and resume from their states in `--work`.

The shipped model took 27 + 35 minutes on one core of an AMD EPYC (3 minutes of rendering before,
2 of encoding between them), then 40 more for the transformer on as many other clips:
`OMP_NUM_THREADS=1 taskset -c 0 python -m toyworld.pretrain --threads 1`, then with
`--stage transformer --start toyworld/model --seed 2 --transformer-minutes 40 --work OTHER_FOLDER`.
`python -m benchmarks.toyworld` is its gate. Beside other work one pinned thread is faster than two:
OpenMP threads that wait for a core spin, and a step took 22 s.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from toyworld.architecture import save_pipeline
from toyworld.clips import render_set
from toyworld.training_tools import TrainingLog
from toyworld.vae_training import train_vae

HELDOUT_CLIPS = 256
HELDOUT_SEED_OFFSET = 1


def main() -> None:
    """Parse the command line and run the stages."""
    options = _parse()
    torch.set_num_threads(options.threads)
    log = TrainingLog(options.out / "pretrain.log")
    # Rendering processes multiply small matrices: one thread each.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    videos, texts = render_set(options.work / "train", options.clips, options.seed, options.threads)
    heldout, _ = render_set(
        options.work / "heldout", HELDOUT_CLIPS, options.seed + HELDOUT_SEED_OFFSET, options.threads
    )
    vae_folder = options.work / "vae"
    if options.stage in ("vae", "all"):
        vae = train_vae(videos, heldout, options.vae_minutes, options.seed, options.work, log)
        vae.save_pretrained(vae_folder)
    if options.stage in ("transformer", "all"):
        from toyworld.flow_training import train_transformer

        start = options.start
        vae = AutoencoderKLWan.from_pretrained(start / "vae" if start else vae_folder)
        models = train_transformer(
            vae,
            videos,
            texts,
            minutes=options.transformer_minutes,
            seed=options.seed,
            work=options.work,
            log=log,
            out=options.out,
            start=start,
        )
        save_pipeline(options.out, vae, models.transformer, models.text_encoder)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the toy Wan pipeline from scratch.")
    parser.add_argument("--out", type=Path, default=Path("toyworld/model"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/toyworld_ckpt"))
    parser.add_argument("--stage", choices=("vae", "transformer", "all"), default="all")
    parser.add_argument(
        "--start",
        type=Path,
        help="a pipeline whose VAE, transformer and text encoder to go on from",
    )
    parser.add_argument("--vae-minutes", type=float, default=27.0)
    parser.add_argument("--transformer-minutes", type=float, default=35.0)
    parser.add_argument("--clips", type=int, default=10240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
