"""What does not change while a student trains is computed once for a frame: image tokens, the expert's latents and, to
align, the keys and values of the VLM's prefix.

A cache is one file of rows, named after the content that it was computed from. It is written row after row, so a killed
run goes on where it stopped and a full disk is an error instead of a crash; it is renamed when complete and then read
through a memory map.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor

from apprentice.data.dataset import instructions
from apprentice.data.frames import Frames
from apprentice.device import mixed_precision
from apprentice.errors import UserError
from apprentice.experts import checkpoints
from apprentice.experts.base import Batch
from apprentice.files import cache_folder, fingerprint
from apprentice.policy.modeling_apprentice import EXPERT_LATENTS, IMAGE_TOKENS, PREFIX, ApprenticePolicy
from apprentice.progress import Meter, console

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
        """Rows (*index's shape, *shape) at `index`."""
        raw = np.memmap(self.path, mode="r", dtype=np.uint8).reshape(self.count, self.row_bytes)[index]
        return torch.from_numpy(np.ascontiguousarray(raw)).view(self.dtype).reshape(*index.shape, *self.shape)


def cached(
    policy: ApprenticePolicy, dataset: LeRobotDataset, every: int = 1, prefix_gb: float = 0.0
) -> dict[str, Rows]:
    """Make sure that what the policy's stage needs of every n-th frame of `dataset` is on disk.

    To fine-tune, that is image tokens, and the expert's latents if they count. To align, those latents and the prefix's
    keys and values, or image tokens again if those would take more than `prefix_gb` (GB), are not all that a suffix
    needs, the VLM does not split, or there is a history.
    """
    source = Frames(dataset, list(policy.config.image_features), every)
    content = fingerprint(Path(dataset.root), *source.cameras, str(every))
    vision = [*policy.parts()["vision tower"], *policy.parts()["projector"]]
    tokens = _filled(
        "image tokens", (content, _weights(vision)), source, partial(_image_tokens, policy, source), torch.bfloat16
    )
    if not policy.config.reads_expert:
        return {IMAGE_TOKENS: tokens}
    expert = sorted({Path(policy.config.expert), *checkpoints(policy.config.expert)})
    past = str(policy.config.expert_obs_steps)
    latents = _filled(
        "expert latents", (content, past, *expert), source, partial(_latents, policy, source), torch.float32
    )
    fill = partial(_prefixes, policy, source, tokens)
    if policy.config.stage == "finetune" or not _worth_keeping(policy, source, fill, prefix_gb):
        return {IMAGE_TOKENS: tokens, EXPERT_LATENTS: latents}
    whole = (content, _weights(policy.vlm.parameters()))
    return {PREFIX: _filled("keys and values", whole, source, fill, torch.bfloat16), EXPERT_LATENTS: latents}


def _worth_keeping(
    policy: ApprenticePolicy, source: Frames, fill: Callable[[int, int], Iterator[Tensor]], prefix_gb: float
) -> bool:
    """Whether the prefix's keys and values can be kept, within `prefix_gb`; if not, the reason is printed."""
    if policy.config.n_obs_steps > 1:
        console.print("each step runs the whole history: later turns read tokens that train")
        return False
    if not policy.vlm.splits:
        console.print("each step runs the whole prompt: this VLM's prompt reads what comes after it")
        return False
    sample = next(fill(0, 1), None)
    size = 0.0 if sample is None else sample.numel() * 2 * len(source) / 1e9
    if sample is None or size > prefix_gb:
        reason = "this VLM needs more than them" if sample is None else f"{size:.1f} GB, {prefix_gb} are given"
        console.print(f"the prefix's keys and values are computed again in each step: {reason}")
        return False
    return True


def _filled(
    what: str,
    key: tuple[str | bytes | Path, ...],
    source: Frames,
    fill: Callable[[int, int], Iterator[Tensor]],
    dtype: torch.dtype,
) -> Rows:
    """Rows named by `key`; those that are missing come from `fill(first row, rows a batch)`."""
    rows = Rows(fingerprint(what, *key), len(source), tuple(next(fill(0, 1)).shape[1:]), dtype)
    if not rows.path.exists():
        rows.fill(fill(rows.done(), BATCH), what)
    return rows


@torch.no_grad()
def _image_tokens(policy: ApprenticePolicy, source: Frames, start: int, size: int) -> Iterator[Tensor]:
    for batch in source.batches(start, size):
        with mixed_precision(policy.vlm.device):
            yield policy.vlm.image_tokens(policy.images(batch))


def _latents(policy: ApprenticePolicy, source: Frames, start: int, size: int) -> Iterator[Tensor]:
    return map(policy.expert.encode, source.batches(start, size, policy.config.expert_obs_steps))


@torch.no_grad()
def _prefixes(policy: ApprenticePolicy, source: Frames, tokens: Rows, start: int, size: int) -> Iterator[Tensor]:
    """Nothing if the VLM's prefixes cannot be packed."""
    tasks = instructions(source.dataset)[:: source.every]
    length = policy.prompt({"task": sorted(set(tasks))}).ids.shape[1]
    for first in range(start, len(tasks), size):
        index = np.arange(first, min(first + size, len(tasks)))
        image_tokens = tokens[index].to(policy.vlm.device, policy.vlm.model.dtype)
        batch: Batch = {"task": [tasks[i] for i in index], IMAGE_TOKENS: image_tokens}
        with mixed_precision(policy.vlm.device):
            packed = policy.vlm.pack(policy.prefix(batch, length))
        if packed is None:
            return
        yield packed


def _weights(parameters: Iterable[Tensor]) -> str:
    return fingerprint(*(_bytes(p.detach().cpu()) for p in parameters))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
