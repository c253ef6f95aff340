"""How long a chunk of actions takes: a student of ours against LeRobot's SmolVLA on the same backbone.

    python benchmarks/infer.py                   # about 5 minutes on a quiet core

Equal: vision tower, projector, language model (all layers, random weights, float32), two cameras, size of the images
and number of their tokens, instruction and its tokenizer, state, horizon (50 actions), one observation at a time, one
thread, processors included. Different: after the prefix SmolVLA runs ten steps of its action expert (three quarters of
the language model's width, as it comes); ours runs 51 tokens more through the language model, once, and a Seer's
decoder. Our prompt holds the chat template's tokens, SmolVLA's does not. Rounds alternate. With one thread, CPU seconds
are counted, which a busy machine does not change; with more, those of the clock.
Required: ratio at least 2 (language model of 135 M parameters).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from rich.table import Table
from transformers import LlamaConfig, SmolVLMConfig

from apprentice.common.progress import console
from apprentice.experts.seer.configuration_seer import SeerConfig
from apprentice.experts.seer.modeling_seer import SeerPolicy
from apprentice.experts.seer.processor_seer import make_seer_pre_post_processors
from apprentice.nano.compose import SMOLVLM_MARKS, smolvlm_processor
from apprentice.nano.tokenizer import CHAT_TEMPLATE, train_tokenizer
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.policy.processor_apprentice import make_apprentice_pre_post_processors

HORIZON = 50  # SmolVLA's own
INSTRUCTION = "put the bowl on the plate"
CAMERAS = ("observation.images.image", "observation.images.image2")
Act = Callable[[dict[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Backbone:
    """Sizes of a SmolVLM.

    Attributes:
        image: side of the images (px); `scale` x `scale` patches of `patch` px make one token.
        vision, text: width, layers, MLP, heads; and of the text heads of keys and values.
        vocabulary: number of token embeddings.
    """

    name: str
    image: int
    scale: int
    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int, int]
    patch: int = 16
    vocabulary: int = 1024

    def save(self, folder: Path) -> Path:
        """Configuration and processor, no weights."""
        tokenizer = train_tokenizer([INSTRUCTION] * 10, vocab_size=560)
        tokenizer.add_special_tokens({"additional_special_tokens": SMOLVLM_MARKS})
        for name, token in zip(("fake_image_token", "global_image_token"), SMOLVLM_MARKS[1:], strict=True):
            tokenizer._set_model_specific_special_tokens({name: token})
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        text = LlamaConfig(**dict(zip(names, self.text, strict=True)), vocab_size=self.vocabulary, **ids)
        vision = dict(zip(names, self.vision, strict=False)) | {"image_size": self.image, "patch_size": self.patch}
        SmolVLMConfig(
            vision_config=vision,
            text_config=text.to_dict(),
            scale_factor=self.scale,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            **ids,
        ).save_pretrained(folder)
        tokens = (self.image // self.patch // self.scale) ** 2
        smolvlm_processor(self.image, tokens, tokenizer, CHAT_TEMPLATE).save_pretrained(folder)
        return folder


BACKBONES = {
    "8M": Backbone("a VLM of 8 M parameters", 128, 2, (256, 6, 1024, 4), (256, 4, 768, 4, 2)),
    "135M": Backbone("135 M language model, the same tower", 128, 2, (256, 6, 1024, 4), (576, 30, 1536, 9, 3)),
    "256M": Backbone("SmolVLM2-256M", 512, 4, (768, 12, 3072, 12), (576, 30, 1536, 9, 3)),
}
COUNTS = {"8M": 100, "135M": 40, "256M": 2}


def features(image: int) -> dict[str, dict[str, PolicyFeature]]:
    seen = {key: PolicyFeature(FeatureType.VISUAL, (3, image, image)) for key in CAMERAS}
    felt = {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}
    return {"input_features": {**seen, **felt}, "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))}}


def statistics() -> dict[str, Any]:
    sizes = {"observation.state": 8, "action": 7}
    return {
        key: {"mean": torch.zeros(n), "std": torch.ones(n), "min": -torch.ones(n), "max": torch.ones(n)}
        for key, n in sizes.items()
    }


def acting(policy: Any, processors: Any) -> Act:
    """An observation as it comes from a robot to a chunk (T, A) in its units."""
    before, after = processors

    def act(observation: dict[str, Any]) -> torch.Tensor:
        return after(policy.predict_action_chunk(before(dict(observation))))[0]

    return act


def smolvla(backbone: Path, image: int, device: str) -> Act:
    config = SmolVLAConfig(
        vlm_model_name=str(backbone),
        load_vlm_weights=False,
        num_vlm_layers=0,
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        resize_imgs_with_padding=(image, image),
        device=device,
        **features(image),
    )
    return acting(SmolVLAPolicy(config).to(device).eval(), make_smolvla_pre_post_processors(config, statistics()))


def student(backbone: Path, image: int, folder: Path, device: str) -> Act:
    expert = SeerConfig(chunk_size=HORIZON, n_action_steps=HORIZON, gripper="binary", device=device, **features(image))
    SeerPolicy(expert).save_pretrained(folder)
    for processor in make_seer_pre_post_processors(expert, statistics()):
        processor.save_pretrained(folder)
    config = ApprenticeConfig(
        vlm=str(backbone), expert=str(folder), scratch=True, stage="finetune", device=device, **features(image)
    )
    policy = ApprenticePolicy(config, dataset_stats=statistics()).to(device).eval()
    return acting(policy, make_apprentice_pre_post_processors(config))


@torch.inference_mode()
def compare(backbone: Backbone, count: int, clock: Callable[[], float], device: str = "cpu") -> np.ndarray:
    """Seconds (count, 2) of SmolVLA's chunks and ours, by turns."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        place = backbone.save(Path(folder) / "vlm")
        sides = (
            smolvla(place, backbone.image, device),
            student(place, backbone.image, Path(folder) / "expert", device),
        )
    times = []
    for _ in range(count + 1):
        observation = {key: torch.rand(3, backbone.image, backbone.image) for key in CAMERAS}
        observation |= {"observation.state": torch.randn(8), "task": INSTRUCTION}
        row = []
        for act in sides:
            start = clock()
            chunk = act(observation)
            row.append(clock() - start)
            assert chunk.shape == (HORIZON, 7) and chunk.isfinite().all()
        times.append(row)
    return np.array(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    table = Table("backbone", "chunks", "", "p50 ms", "p99 ms", "actions/s", "ratio")
    ratios = {}
    for key in options.backbones:
        times = compare(BACKBONES[key], COUNTS[key], clock)
        ratios[key] = float(np.median(times[:, 0]) / np.median(times[:, 1]))
        for side, seconds in zip(("SmolVLA", "ours"), times.T, strict=True):
            middle, slow = np.percentile(seconds, (50, 99))
            cells = f"{1e3 * middle:.0f}", f"{1e3 * slow:.0f}", f"{HORIZON / middle:.0f}"
            ratio = f"{ratios[key]:.2f}" if side == "ours" else ""
            table.add_row(BACKBONES[key].name, str(len(seconds)), side, *cells, ratio)
    console.print(table)
    print(f"ratio: {ratios.get('135M', next(iter(ratios.values()))):.2f}")


if __name__ == "__main__":
    main()
