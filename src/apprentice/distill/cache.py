"""What does not change while a student trains is computed once: image tokens and the expert's latents of every frame.

A cache is one file of rows, named after the content that it was computed from. It is written row after row, so a killed
run goes on where it stopped and a full disk is an error instead of a crash; it is renamed when complete and then read
through a memory map.
"""

import errno
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from apprentice.data.dataset import column, frames, instructions
from apprentice.device import mixed_precision
from apprentice.errors import UserError
from apprentice.experts.base import Batch
from apprentice.files import cache_folder, fingerprint
from apprentice.policy.modeling_apprentice import EXPERT_LATENTS, IMAGE_TOKENS, ApprenticePolicy
from apprentice.progress import Meter

BATCH = 32


class Rows:
    """A file of rows, one a frame, each a tensor of one shape and type."""

    def __init__(self, name: str, count: int, shape: tuple[int, ...], dtype: torch.dtype):
        self.path = cache_folder() / "frames" / f"{name}.rows"
        self.partial = self.path.with_suffix(".partial")
        self.count, self.shape, self.dtype = count, shape, dtype
        self.row_bytes = int(np.prod(shape)) * dtype.itemsize

    def done(self) -> int:
        """How many rows are there already; a torn last row is cut off."""
        if self.path.exists():
            return self.count
        if not self.partial.exists():
            return 0
        whole = self.partial.stat().st_size // self.row_bytes
        os.truncate(self.partial, whole * self.row_bytes)
        return whole

    def fill(self, batches: Iterator[Tensor], description: str) -> None:
        """Append batches of rows (b, *shape) until all are there. Raises UserError if the disk is full."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done = self.done()
        try:
            with self.partial.open("ab") as stream, Meter(description, self.count, done) as meter:
                for rows in batches:
                    stream.write(_bytes(rows.to("cpu", self.dtype)))
                    meter.advance(len(rows))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"expected {(self.count - done) * self.row_bytes / 1e6:.0f} MB free for {self.path}, "
                "found a full disk; fix: free some, or set APPRENTICE_CACHE to another disk; "
                "what is computed so far is kept"
            ) from error
        os.replace(self.partial, self.path)

    def __getitem__(self, index: np.ndarray) -> Tensor:
        """Rows (b, *shape) at `index` (b,)."""
        raw = np.memmap(self.path, mode="r", dtype=np.uint8).reshape(self.count, self.row_bytes)[index]
        return torch.from_numpy(np.ascontiguousarray(raw)).view(self.dtype).reshape(len(index), *self.shape)


def cached(policy: ApprenticePolicy, dataset: LeRobotDataset, latents: bool, every: int = 1) -> dict[str, Rows]:
    """Make sure that image tokens and, if wanted, the expert's latents of every n-th frame of `dataset` are on disk."""
    data, cameras = fingerprint(Path(dataset.root)), list(policy.config.image_features)
    rows = {}
    vision = b"".join(_bytes(p.detach().cpu()) for p in policy.parts()["vision tower, projector, embeddings, head"])
    count = len(range(0, dataset.num_frames, every))
    probe = next(_raw(dataset, cameras, every, 0, 1))
    sample = policy.vlm.image_tokens(policy.images(probe))
    name = fingerprint("image tokens", data, vision, *cameras, str(every))
    rows[IMAGE_TOKENS] = Rows(name, count, tuple(sample.shape[1:]), torch.bfloat16)
    if latents:
        expert = policy.expert
        name = fingerprint("expert latents", data, Path(policy.config.expert), *cameras, str(every))
        shape = (expert.horizon, expert.latent_dim)
        rows[EXPERT_LATENTS] = Rows(name, count, shape, torch.float32)
    if not rows[IMAGE_TOKENS].path.exists():
        rest = _raw(dataset, cameras, every, rows[IMAGE_TOKENS].done())
        rows[IMAGE_TOKENS].fill(_image_tokens(policy, rest), "image tokens")
    if latents and not rows[EXPERT_LATENTS].path.exists():
        rest = _raw(dataset, cameras, every, rows[EXPERT_LATENTS].done())
        rows[EXPERT_LATENTS].fill(map(policy.expert.encode, rest), "expert latents")
    return rows


@torch.no_grad()
def _image_tokens(policy: ApprenticePolicy, batches: Iterator[Batch]) -> Iterator[Tensor]:
    for batch in batches:
        with mixed_precision(policy.vlm.device):
            yield policy.vlm.image_tokens(policy.images(batch))


def _raw(dataset: LeRobotDataset, cameras: list[str], every: int, start: int, size: int = BATCH) -> Iterator[Batch]:
    """Batches of every n-th frame in order, from the `start`-th of them on, as LeRobot's data loader would yield them:
    uint8 images (b, 3, h, w), state, task.
    """
    state, task = torch.from_numpy(column(dataset, OBS_STATE)[::every]), instructions(dataset)[::every]
    streams = [islice(frames(dataset, camera, start * every), 0, None, every) for camera in cameras]
    for first in range(start, len(task), size):
        last = min(first + size, len(task))
        batch: Batch = {OBS_STATE: state[first:last], "task": task[first:last]}
        for camera, stream in zip(cameras, streams, strict=True):
            images = np.stack([next(stream) for _ in range(first, last)])
            batch[camera] = torch.from_numpy(images).permute(0, 3, 1, 2)
        yield batch


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
