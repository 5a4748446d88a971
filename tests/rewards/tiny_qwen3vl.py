"""A random Qwen3-VL of the real classes, small enough to be made in a test, and what transformers
says of its answers.

Its weights are drawn so large, and from such a seed, that the expected digit moves by more than one
between pictures: two programs that only agreed on "no opinion" would show nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rewards.judge_protocol import DIGITS, INSTRUCTIONS, QUESTION

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
SPLIT = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}
{%- else -%}<|vision_start|><|image_pad|><|vision_end|>
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
PATCH, MERGE = 16, 2


def build(folder: Path) -> Path:
    """Write model, tokenizer and processor as a hub repository would hold them."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder)
    _write_processor(folder)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(ids), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 32, "max_position_embeddings": 8192, "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
            "out_hidden_size": 64, "patch_size": PATCH, "spatial_merge_size": MERGE,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config).to(torch.float32)
    torch.manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
            if "q_norm" in name:
                parameter.fill_(2.0)
            if "lm_head" in name:
                parameter.mul_(1.5)
    model.save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """Byte-level BPE with the special tokens of Qwen and a token for each digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([INSTRUCTIONS, QUESTION], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "model_max_length": 8192, "chat_template": TEMPLATE,
        "additional_special_tokens": list(SPECIAL[1:]), "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return dict(tokenizer.get_vocab())


def _write_processor(folder: Path) -> None:
    """Pictures of 32 x 32 pixels and more are taken as they are: no resizing has to agree."""
    image = {
        "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor",
        "patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 512 * 512},
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    video = image | {"video_processor_type": "Qwen3VLVideoProcessor"}
    del video["image_processor_type"]
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))


def reference(
    folder: Path, picture: NDArray[np.uint8], messages: list[dict[str, Any]]
) -> NDArray[np.float64]:
    """Log-probabilities [10] of the digits by transformers in this process, without torchvision:
    the picture's placeholders are expanded by hand."""
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    wanted = ("patch_size", "merge_size", "temporal_patch_size", "size", "image_mean", "image_std")
    processor = Qwen2VLImageProcessorPil(**{name: settings[name] for name in wanted})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    seen = processor(images=[Image.fromarray(picture)], return_tensors="pt")
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    places = int(seen["image_grid_thw"][0].prod()) // MERGE**2
    text = text.replace("<|image_pad|>", "<|image_pad|>" * places)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            pixel_values=seen["pixel_values"].float(),
            image_grid_thw=seen["image_grid_thw"],
        ).logits[0, -1]
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in DIGITS]
    return torch.log_softmax(logits.double(), -1)[digits].numpy()
