"""The LoRA adapter of the policy: injection, weights in and out, and switching it off.

The adapter's weights are float32 whatever the model's dtype: PEFT casts a layer's input up to
float32, runs A and B there and casts the *sum* with the frozen layer's output back down, so that
a bfloat16 forward pass sees float32 master weights without a copy of them. It is never merged:
merged weights would be another density than the one that the learner differentiates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import peft
import torch
from diffusers.models.modeling_utils import ModelMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from actors.config import LoraConfig
from actors.seeds import keyed_generator
from actors.trajectory import LoraWeights

_ADAPTER = "default"


def add_lora(model: ModelMixin, config: LoraConfig) -> int:
    """Inject the adapter into `model`, frozen otherwise; the number of modules it matched.

    Initialised from a fixed seed and the parameter's name, hence equal on every worker and rank:
    A by Kaiming's uniform rule with a = √5 and B zero, as PEFT does, so that an untrained adapter
    changes nothing. ValueError if one of `config.targets` matches no module.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"policy.lora.targets holds {target!r}, which matches no linear module of "
                f"{type(model).__name__}; allowed: suffixes of names such as {names[:4]}"
            )
    adapter = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # a float scales as well
        target_modules=list(config.targets),
        init_lora_weights=False,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # PEFT fills the layers once before we do
        model.add_adapter(adapter, _ADAPTER)
    for name, parameter in lora_parameters(model).items():
        parameter.data = parameter.data.float()
        _initialise(name, parameter)
    return sum(isinstance(module, BaseTunerLayer) for module in model.modules())


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters in the order of their names, without PEFT's adapter name.

    Names such as "blocks.0.attn1.to_q.lora_A.weight"; those of every exported weight. Sharding a
    model in place (FSDP2) or compiling its blocks does not change them.
    """
    found = {
        name.replace(f".{_ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
    return dict(sorted(found.items()))


def export_lora(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of the adapter's weights, float32 numpy; the model must not be sharded."""
    return {
        name: parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in lora_parameters(model).items()
    }


@torch.no_grad()
def load_lora(model: nn.Module, weights: LoraWeights) -> None:
    """Copy `weights` (read-only arrays welcome) into the adapter.

    ValueError, with nothing changed, unless names and shapes are exactly the adapter's and all
    values are finite.
    """
    parameters = lora_parameters(model)
    missing = sorted(set(parameters) - set(weights))
    unknown = sorted(set(weights) - set(parameters))
    if missing or unknown:
        raise ValueError(
            f"LoRA weights do not fit the policy: {len(missing)} missing (first: {missing[:2]}), "
            f"{len(unknown)} unknown (first: {unknown[:2]})"
        )
    for name, parameter in parameters.items():
        array = weights[name]
        if array.shape != tuple(parameter.shape) or array.dtype != np.float32:
            raise ValueError(
                f"LoRA weight {name} is {array.dtype} {list(array.shape)}; "
                f"allowed: float32 {list(parameter.shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"LoRA weight {name} holds NaN or infinity; allowed: finite numbers")
    for name, parameter in parameters.items():
        # A copy, since torch warns about wrapping the object store's read-only memory.
        parameter.copy_(torch.from_numpy(np.array(weights[name])))


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Run `model` without its adapter: the reference policy of the KL, at no extra memory."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def _initialise(name: str, parameter: Tensor) -> None:
    if ".lora_B." in name:
        parameter.zero_()
        return
    drawn = torch.empty(parameter.shape)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=keyed_generator("lora", name))
    parameter.copy_(drawn)
