"""Pieces of the pretraining: rendering by several processes, schedule, flow loss, resumption."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toyworld import flow_training, training_tools
from toyworld.architecture import build_text_encoder, build_tokenizer, build_transformer, build_vae
from toyworld.clips import render_set
from toyworld.flow_training import Models, embed, flow_loss, tokenize, train_transformer
from toyworld.prompts import build_sets, write_sets
from toyworld.scenes import sample_clip
from toyworld.training_tools import TrainingLog, load_state, rate_factor

TEXT = "Camera push in. A red box and a blue ball on a green floor."


def test_rendered_sets_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    one, texts = render_set(tmp_path / "one", 3, seed=5, workers=1)
    two, _ = render_set(tmp_path / "two", 3, seed=5, workers=2)
    np.testing.assert_array_equal(one, two)
    clip = sample_clip(np.random.default_rng((5, 1)))
    np.testing.assert_array_equal(one[1], clip.video)
    assert texts[1] == clip.prompt.text
    again, _ = render_set(tmp_path / "one", 3, seed=5, workers=1)
    np.testing.assert_array_equal(one, again)


def test_the_shipped_prompt_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write_sets(tmp_path)
    shipped = Path(__file__).parents[2] / "prompts" / "data"
    for name in build_sets():
        assert (tmp_path / f"{name}.jsonl").read_text() == (shipped / f"{name}.jsonl").read_text()


def test_the_schedule_warms_up_peaks_and_ends_at_one_percent() -> None:
    assert rate_factor(0, 0.0) == pytest.approx(0.01)
    assert rate_factor(200, 0.0) == pytest.approx(1.0)
    assert rate_factor(200, 0.5) == pytest.approx(0.505)
    assert rate_factor(200, 1.0) == pytest.approx(0.01)


def test_padding_embeds_to_zero_and_the_empty_prompt_is_its_end_token() -> None:
    tokens = tokenize([TEXT, ""])
    assert tokens.shape == (2, 32)
    assert tokens[1].tolist() == [1, *[0] * 31]
    with torch.no_grad():
        hidden = embed(build_text_encoder(len(build_tokenizer())), tokens)
    assert (hidden[1, 1:] == 0).all()
    assert (hidden[0, : int(tokens[0].ne(0).sum())].abs().sum(-1) > 0).all()


def test_a_perfect_velocity_has_no_flow_loss() -> None:
    class Oracle(torch.nn.Module):
        """Knows the clean latents, hence the velocity (x_σ - x) / σ."""

        def forward(self, hidden_states, timestep, **_):
            return ((hidden_states - clean) / (timestep / 1000).view(-1, 1, 1, 1, 1),)

    clean = torch.randn(4, 16, 3, 8, 12)
    encoder = build_text_encoder(len(build_tokenizer()))
    loss = flow_loss(Models(Oracle(), encoder), clean, tokenize([TEXT] * 4))
    assert loss.item() < 1e-6


@pytest.mark.slow
def test_training_resumes_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    latents = torch.randn(264, 16, 3, 8, 12).half()
    monkeypatch.setattr(flow_training, "_cached_latents", lambda *_: latents)
    monkeypatch.setattr(flow_training, "BATCH", 2)
    monkeypatch.setattr(flow_training, "HELDOUT", 8)
    monkeypatch.setattr(flow_training, "REPORT_S", 0.0)
    log = TrainingLog(tmp_path / "train.log")

    ticks = itertools.count(step=0.1)  # a busy machine's seconds would be over before a step is
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(training_tools, "time", clock)

    def train(minutes: float) -> Models:
        return train_transformer(
            build_vae(), np.empty(0), [TEXT] * 264, minutes, 0, tmp_path, log, tmp_path / "out"
        )

    train(0.02)
    first = load_state(tmp_path / "flow.pt")
    assert first is not None
    assert first["step"] > 0
    models = train(0.04)
    second = load_state(tmp_path / "flow.pt")
    assert second is not None
    assert second["step"] > first["step"]
    assert second["spent_s"] > first["spent_s"]
    fresh = build_transformer().state_dict()
    trained = models.transformer.state_dict()
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)
    assert (tmp_path / "train.log").read_text().count("heldout_loss") >= 2
