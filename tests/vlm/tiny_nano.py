"""The smallest nano VLM, for tests."""

from apprentice.vlm.nano.model import NanoConfig

TINY = NanoConfig(
    width=32,
    vision_width=32,
    vision_layers=1,
    vision_mlp=32,
    vision_heads=2,
    text_layers=2,
    text_mlp=32,
    heads=2,
    kv_heads=1,
)
