"""A random HPSv3 of the real classes at tiny size; run by the interpreter of its environment.

`python tiny_hpsv3.py build FOLDER` writes a base Qwen2-VL and the weights of a reward model on it.
`python tiny_hpsv3.py score FOLDER FRAMES.npy PROMPT` prints what the package itself says: one
[mu, sigma] a frame, as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

WEIGHTS = "HPSv3.safetensors"
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    _write_base(folder)
    model = _inferencer(folder, None).model
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
            if name.endswith("rm_head.5.weight"):
                parameter.mul_(4)
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)


def score(folder: Path, frames: Path, prompt: str) -> list[list[float]]:
    import numpy as np
    import torch
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in np.load(frames)]
    with torch.no_grad():
        answers = [
            _inferencer(folder, folder / WEIGHTS).reward(image_paths=[p], prompts=[prompt])[0]
            for p in pictures
        ]
    return [answer.tolist() for answer in answers]


def _write_base(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLProcessor

    symbols = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = Qwen2TokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
    )  # fmt: skip
    Qwen2VLProcessor(Qwen2VLImageProcessor(), fast, chat_template=TEMPLATE).save_pretrained(folder)
    config = Qwen2VLConfig(
        vocab_size=len(ids), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=8192,
        tie_word_embeddings=False, rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64},
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)


def _inferencer(folder: Path, weights: Path | None) -> Any:
    """The package's inferencer on the tiny base; without weights those that it drew itself."""
    import hpsv3
    import yaml
    from safetensors.torch import save_file

    settings = yaml.safe_load(
        (Path(hpsv3.__file__).parent / "config" / "HPSv3_7B.yaml").read_text()
    )
    del settings["deepspeed"]
    with tempfile.TemporaryDirectory() as scratch:
        settings |= {
            "model_name_or_path": str(folder), "output_dir": scratch, "bf16": False,
            "torch_dtype": "float32", "use_cpu": True,
        }  # fmt: skip
        file = Path(scratch) / "settings.yaml"
        file.write_text(yaml.safe_dump(settings))
        if weights is not None:
            return hpsv3.HPSv3RewardInferencer(str(file), str(weights), device="cpu")
        from hpsv3.inference import create_model_and_processor
        from hpsv3.utils.parser import (
            DataConfig,
            ModelConfig,
            PEFTLoraConfig,
            TrainingConfig,
            parse_args_with_yaml,
        )

        (_, training, model, lora), _ = parse_args_with_yaml(
            (DataConfig, TrainingConfig, ModelConfig, PEFTLoraConfig), str(file), is_train=False
        )
        made, _, _ = create_model_and_processor(model, lora, training)
        first = Path(scratch) / WEIGHTS
        save_file({n: t.clone().contiguous() for n, t in made.state_dict().items()}, first)
        return hpsv3.HPSv3RewardInferencer(str(file), str(first), device="cpu")


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    else:
        print(json.dumps(score(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
