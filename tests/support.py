"""Small real things that tests are made of: a LeRobotDataset, an expert's checkpoint, a VLM; LeRobot's commands."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.scripts import lerobot_train
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch.utils.data import DataLoader, default_collate

from apprentice.data.dataset import open_dataset
from apprentice.data.local import LocalDataset
from apprentice.distill.config import CacheConfig
from apprentice.experts.seer.configuration_seer import SeerConfig
from apprentice.experts.seer.modeling_seer import SeerPolicy
from apprentice.experts.seer.processor_seer import make_seer_pre_post_processors
from apprentice.nano.model import NanoConfig, build_model, build_processor
from apprentice.nano.tokenizer import train_tokenizer
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.simulators.libero.convention import contract as libero_contract

CAMERAS = ("observation.images.image", "observation.images.image2")
EXACT = CacheConfig(cache_precision="float32")
TASKS = ("put the bowl on the stove", "turn on the stove")


def make_dataset(
    root: Path,
    video: bool = True,
    episodes: int = 3,
    size: int = 64,
    state: int = 8,
    scenes: int = 2,
    file_mb: float | None = None,
) -> Path:
    """Two cameras that see a square wander, a state that knows where it is, actions that push it.

    With two scenes each task has its own; with one, every episode shows the same, whatever its instruction. A file
    that is larger than `file_mb` (MB) takes no further episode.
    """
    image = {"dtype": "video" if video else "image", "shape": (size, size, 3), "names": ["height", "width", "channel"]}
    vector = {"observation.state": state, "action": 7}
    features = {key: image for key in CAMERAS}
    features |= {
        k: {"dtype": "float32", "shape": (n,), "names": [f"{k}{i}" for i in range(n)]} for k, n in vector.items()
    }
    dataset = LeRobotDataset.create("local/small", 20, features, root=root, robot_type="panda", use_videos=video)
    dataset.meta.update_chunk_settings(data_files_size_in_mb=file_mb, video_files_size_in_mb=file_mb)
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        if scenes == 1:
            rng = np.random.default_rng(0)
        place = rng.uniform(10, size - 10, 2)
        for _ in range(11 + episode):
            action = rng.uniform(-1, 1, 7).astype(np.float32)
            action[6] = np.sign(action[6])
            place = np.clip(place + 4 * action[:2], 8, size - 8)
            picture = np.full((size, size, 3), 40 + 60 * (episode % scenes), dtype=np.uint8)
            row, column = place.astype(int)
            picture[row - 6 : row + 6, column - 6 : column + 6] = (220, 80, 40)
            proprioception = np.concatenate([place / size, rng.normal(size=state - 2)]).astype(np.float32)
            frame = {"observation.state": proprioception, "action": action, "task": TASKS[episode % 2]}
            dataset.add_frame(frame | {CAMERAS[0]: picture, CAMERAS[1]: picture[::-1].copy()})
        dataset.save_episode()
    dataset.finalize()
    libero_contract(size, "fast").save(root / "meta")
    return root


def make_expert(folder: Path, dataset: LeRobotDataset) -> Path:
    """A small Seer with random weights and the dataset's statistics."""
    torch.manual_seed(0)
    features = dataset_to_policy_features(dataset.meta.features)
    config = SeerConfig(
        width=48,
        layers=1,
        heads=2,
        chunk_size=4,
        n_action_steps=4,
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        device="cpu",
    )
    SeerPolicy(config, dataset_meta=dataset.meta).save_pretrained(folder)
    for processor in make_seer_pre_post_processors(config, dataset.meta.stats):
        processor.save_pretrained(folder)
    return folder


def make_vlm(folder: Path) -> Path:
    """A nano VLM of two narrow layers with random weights, and its processor."""
    torch.manual_seed(0)
    config = NanoConfig(
        image=64,
        vision_widths=(8, 16, 32, 64),
        vision_depths=(0, 0, 1, 1),
        width=64,
        text_layers=2,
        text_mlp=64,
        heads=2,
        kv_heads=1,
    )
    tokenizer = train_tokenizer(TASKS, vocab_size=560)
    build_model(config, tokenizer).save_pretrained(folder)
    build_processor(config, tokenizer).save_pretrained(folder)
    return folder


@cache
def opened(root: Path) -> LocalDataset:
    """A dataset that no test changes, read once."""
    return open_dataset(root)


def make_student(dataset: Path, expert: Path, vlm: Path, **fields: Any) -> ApprenticePolicy:
    """A fresh student of the expert, in eval mode."""
    torch.manual_seed(0)
    meta = opened(dataset).meta
    features = dataset_to_policy_features(meta.features)
    config = ApprenticeConfig(
        vlm=str(vlm),
        expert=str(expert),
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        device="cpu",
        **fields,
    )
    return ApprenticePolicy(config, dataset_stats=meta.stats, dataset_meta=meta).eval()


def make_batch(root: Path, frames: Sequence[int]) -> dict[str, Any]:
    """Frames of a dataset as a raw batch of LeRobot's data loader."""
    dataset = opened(root)
    items = [dataset[i] for i in frames]
    keys = [*CAMERAS, "observation.state"]
    return {key: torch.stack([item[key] for item in items]) for key in keys} | {"task": [i["task"] for i in items]}


def make_history(root: Path, config: ApprenticeConfig, frames: Sequence[int]) -> dict[str, Any]:
    """Frames of a dataset as LeRobot's data loader yields them to a student with a history."""
    meta = opened(root).meta
    deltas = resolve_delta_timestamps(config, meta)
    dataset = LeRobotDataset(meta.repo_id, root=root, delta_timestamps=deltas, video_backend="pyav", return_uint8=True)
    return default_collate([dataset[i] for i in frames])


def command(name: str, *arguments: str, **environment: str) -> str:
    """Run a command of the environment in a process of its own; what it printed."""
    program = str(Path(sys.executable).with_name(name))
    done = subprocess.run([program, *arguments], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def call(main: Callable[[], Any], *arguments: str) -> None:
    """Run the function behind one of LeRobot's commands in this process: importing it all again takes long."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [main.__module__, *arguments])
        try:
            main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_flags(dataset: Path, out: Path, *arguments: str) -> list[str]:
    """Arguments of `lerobot-train` for two steps on a small dataset; later ones override."""
    return [
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        "--dataset.repo_id=local/small",
        f"--dataset.root={dataset}",
        "--dataset.video_backend=pyav",
        f"--output_dir={out}",
        "--batch_size=4",
        "--steps=2",
        "--save_freq=1",
        "--num_workers=0",
        "--wandb.enable=false",
        *arguments,
    ]


def train(dataset: Path, out: Path, *arguments: str, alone: bool = False) -> Path:
    """Run `lerobot-train`, in this process or alone in one of its own, which leaves `printed.txt`; the checkpoint."""
    flags = train_flags(dataset, out, *arguments)
    if alone:
        printed = command("lerobot-train", *flags)
        (out / "printed.txt").write_text(printed)
    else:
        call(lerobot_train.main, *flags)
    return out / "checkpoints" / "last" / "pretrained_model"


def resume(out: Path, step: int) -> None:
    """Let `lerobot-train` go on from a checkpoint, in this process."""
    config = out / "checkpoints" / f"{step:06}" / "pretrained_model" / "train_config.json"
    call(lerobot_train.main, f"--config_path={config}", "--resume=true", f"--output_dir={out}")


HELD_OUT = ["--dataset.eval_split=0.3", "--eval_steps=2"]  # of each task's episodes, those that begin last


def loss_on_held_out(checkpoint: Path, root: Path) -> float:
    """What `lerobot-train` should print with `HELD_OUT` on `make_dataset`: an episode of each task, in batches of 4."""
    config = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(config.type).from_pretrained(checkpoint)
    before, _ = make_pre_post_processors(config, str(checkpoint))
    deltas = resolve_delta_timestamps(config, open_dataset(root).meta)
    dataset = LeRobotDataset("local/small", root=root, episodes=[2, 1], delta_timestamps=deltas, video_backend="pyav")
    with torch.no_grad():
        losses = [policy(before(batch))[0].item() for batch in DataLoader(dataset, batch_size=4)]
    return sum(losses) / len(losses)


def spread_here(run: Callable[[Any], Any], jobs: Sequence[Any], workers: int, **_: Any) -> Iterator[Any]:
    """What workers would do, here, where all is loaded, with one thread as they have; jobs and results can be sent."""
    torch.set_num_threads(1)
    return (pickle.loads(pickle.dumps(run(pickle.loads(pickle.dumps(job))))) for job in jobs)


def interrupted_here(run: Callable[[Any], Any], jobs: Sequence[Any], workers: int, **_: Any) -> Iterator[Any]:
    """As `spread_here`, the last job first, and interrupted after it."""
    yield from spread_here(run, jobs[-1:], workers)
    raise KeyboardInterrupt
