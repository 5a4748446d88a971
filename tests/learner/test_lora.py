"""Export: WanPipeline reads what was trained, scale included."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from actors.config import PolicyConfig
from actors.policy import Policy
from learner.lora import average_decay, save_adapter, start_average, update_average
from tests.learner.small import Published


def test_wan_pipeline_loads_the_export(
    policy: PolicyConfig, model: Path, trained: Published, tmp_path: Path
) -> None:
    """Velocity of the pipeline with the exported adapter = that of the policy, to 1e-6, and far
    from the base model's; alpha is not the rank, so that a lost alpha would show."""
    path = save_adapter(trained[1], policy.lora, tmp_path)
    assert path.is_file()
    ours = Policy.load(policy, "cpu", with_decoder=False, with_text_encoder=False)
    ours.load_lora(trained[1])
    pipeline = WanPipeline.from_pretrained(model)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 16, 3, 4, 6, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 16, 24, generator=generator),
        "return_dict": False,
    }
    with torch.no_grad():
        expected = ours.transformer(**inputs)[0]
        base = pipeline.transformer(**inputs)[0]
        pipeline.load_lora_weights(tmp_path)
        loaded = pipeline.transformer(**inputs)[0]
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-6)
    assert float((base - expected).abs().max()) > 1e-3


def test_export_refuses_what_is_no_adapter(policy: PolicyConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.weight is no LoRA tensor"):
        save_adapter({"blocks.0.weight": np.zeros(2, np.float32)}, policy.lora, tmp_path)
    nan = {"blocks.0.lora_A.weight": np.full(2, math.nan, np.float32)}
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        save_adapter(nan, policy.lora, tmp_path)


def test_a_young_average_forgets_where_it_began() -> None:
    """(1 + n) / (10 + n) until that is the decay: 2/11, 11/20, then .9 from n = 80 on."""
    assert average_decay(1, 0.9) == pytest.approx(2 / 11)
    assert average_decay(10, 0.9) == pytest.approx(0.55)
    assert average_decay(80, 0.9) == average_decay(1000, 0.9) == 0.9
    assert average_decay(1, 0.0) == 0.0
    # Weights that grow by 1 at each update: after 24 the average holds nine tenths of them.
    current, average = {"a": torch.zeros(1)}, {"a": torch.zeros(1)}
    for update in range(1, 25):
        current["a"] += 1
        update_average(average, current, average_decay(update, 0.99))
    assert float(average["a"]) / 24 == pytest.approx(0.9, abs=0.01)


def test_average_by_hand() -> None:
    """From 1 towards 3 at decay 0.75: 1.5, then 1.875; a decay of 0 copies."""
    current = {"a": torch.ones(2)}
    average = start_average(current)
    current["a"] += 2
    update_average(average, current, 0.75)
    assert average["a"].tolist() == [1.5, 1.5]
    update_average(average, current, 0.75)
    assert average["a"].tolist() == [1.875, 1.875]
    update_average(average, current, 0.0)
    assert average["a"].tolist() == [3.0, 3.0]
