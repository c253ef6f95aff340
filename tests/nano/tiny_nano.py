"""The smallest nano VLM, for tests."""

from apprentice.nano.model import NanoConfig

TINY = NanoConfig(
    width=32,
    vision_widths=(8, 16, 32, 32),
    vision_depths=(0, 0, 1, 1),
    text_layers=2,
    text_mlp=32,
    heads=2,
    kv_heads=1,
)
