"""The families that the conformance suite runs over: real classes of model and processor at a tiny size.

A family is one function that returns a model with random weights and its processor. Chat templates write one turn of
images and text as the families' own do; PaliGemma has none.
"""

from collections.abc import Callable
from typing import Any

import transformers as hf
from tests.vlm.tiny_tokenizers import FOR_EACH_PART, tiny_tokenizer
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from apprentice.nano.tokenizer import CHAT_TEMPLATE as SMOLVLM_TEMPLATE

Built = tuple[Any, Any]
TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    + FOR_EACH_PART
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ids(tokenizer: Any) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def idefics3(kind: str = "Idefics3", splitting: bool = False) -> Built:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", *tiles]
    tokenizer = tiny_tokenizer("<|im_start|>", "<end_of_utterance>", special)
    size = {"size": {"longest_edge": 128 if splitting else 64}, "max_image_size": {"longest_edge": 64}}
    images = getattr(hf, f"{kind}ImageProcessor")(**size, do_image_splitting=splitting)
    videos = {"video_processor": SmolVLMVideoProcessor(**size)} if kind == "SmolVLM" else {}
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=images, tokenizer=tokenizer, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE, **videos
    )
    config = getattr(hf, f"{kind}Config")(
        vision_config=VISION | {"image_size": 64, "patch_size": 16},
        text_config=hf.LlamaConfig(**TEXT, **ids(tokenizer)).to_dict(),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **ids(tokenizer),
    )
    return getattr(hf, f"{kind}ForConditionalGeneration")(config), processor


def smolvlm() -> Built:
    return idefics3("SmolVLM", splitting=True)


def qwen(kind: str, images: Any, videos: Any, text: dict[str, Any], vision: dict[str, Any]) -> Built:
    tokens = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = tiny_tokenizer(None, "<|im_end|>", ["<|im_start|>", *tokens])
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = getattr(hf, f"{kind}Processor")(images, tokenizer, videos, chat_template=template)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    config = getattr(hf, f"{kind}Config")(
        text_config=TEXT | text | ids(tokenizer),
        vision_config={"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2} | vision,
        **dict(zip(names, map(tokenizer.convert_tokens_to_ids, tokens), strict=True)),
    )
    return getattr(hf, f"{kind}ForConditionalGeneration")(config), processor


def qwen2_5_vl() -> Built:
    images = hf.Qwen2VLImageProcessor(min_pixels=80**2, max_pixels=200**2)
    text = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
    vision = {"out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 56}
    return qwen("Qwen2_5_VL", images, Qwen2VLVideoProcessor(), text, vision)


def qwen3_vl() -> Built:
    images = hf.Qwen2VLImageProcessor(min_pixels=80**2, max_pixels=200**2, patch_size=16)
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 1e4}
    vision = {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return qwen("Qwen3VL", images, Qwen3VLVideoProcessor(), {"rope_parameters": rope, "head_dim": 16}, vision)


def paligemma2() -> Built:
    tokenizer = tiny_tokenizer("<bos>", "<eos>", ["<image>"])
    images = hf.SiglipImageProcessor(size={"height": 42, "width": 42})
    images.image_seq_length = 9
    processor = hf.PaliGemmaProcessor(images, tokenizer)
    text = TEXT | {"vocab_size": len(tokenizer), "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
    config = hf.PaliGemmaConfig(
        text_config=hf.Gemma2Config(**text, **ids(tokenizer)).to_dict(),
        vision_config=VISION | {"model_type": "siglip_vision_model", "image_size": 42, "patch_size": 14},
        image_token_index=processor.image_token_id,
        projection_dim=32,
        **ids(tokenizer),
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def gemma3() -> Built:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = tiny_tokenizer("<bos>", "<eos>", turns, named, adds_bos=True)
    template = (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        + FOR_EACH_PART.replace("IMAGE", "<start_of_image>")
        + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    images = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    text = TEXT | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    config = hf.Gemma3Config(
        text_config=text | ids(tokenizer),
        vision_config=VISION | {"image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        **ids(tokenizer),
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def internvl3() -> Built:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tiny_tokenizer(None, "<|im_end|>", ["<|im_start|>"], named)
    size = {"height": 28, "width": 28}
    images = hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4)
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
    processor = hf.InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size=size), image_seq_length=1, chat_template=template
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**TEXT, **ids(tokenizer)).to_dict(),
        vision_config=VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=processor.image_token_id,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def llava_onevision() -> Built:
    tokenizer = tiny_tokenizer(None, "<|im_end|>", ["<|im_start|>", "<image>", "<video>"])
    size, grid = {"height": 28, "width": 28}, [[28, 28], [28, 56], [56, 28], [56, 56]]
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**TEXT, **ids(tokenizer)).to_dict(),
        vision_config=VISION | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
        image_grid_pinpoints=grid,
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def fastvlm() -> Built:
    """With a ConvNeXt in place of timm's FastViT, as the built-in VLM has it."""
    tokenizer = tiny_tokenizer(None, "<|im_end|>", ["<|im_start|>", "<image>"])
    processor = hf.LlavaProcessor(
        hf.SiglipImageProcessor(size={"height": 64, "width": 64}),
        tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )
    tower = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "initializer_range": 0.2}
    config = hf.FastVlmConfig(
        text_config=hf.Qwen2Config(**TEXT, **ids(tokenizer)),
        vision_config=hf.ConvNextConfig(**tower, image_size=64, hidden_size=32),
        image_token_index=processor.image_token_id,
    )
    return hf.FastVlmForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], Built]] = {
    "SmolVLM2": smolvlm,
    "Idefics3": idefics3,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "PaliGemma 2": paligemma2,
    "Gemma 3": gemma3,
    "InternVL3": internvl3,
    "LLaVA-OneVision": llava_onevision,
    "FastVLM": fastvlm,
}
