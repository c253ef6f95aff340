"""What does not change while a policy trains is computed once for a frame: an expert's decoded images; of each view, a
student's image tokens, its expert's latents and, to align, the keys and values of the VLM's prefix.

Each is kept in rows on the disk that are named after the content they were computed from, so that runs share them. What
finds no room is computed again in each step, and gives the same loss.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apprentice.common.device import fast_bfloat16, mixed_precision
from apprentice.common.files import fingerprint, read_json, write_json
from apprentice.common.progress import console
from apprentice.data.batch import EXPERT_LATENTS, IMAGE_TOKENS, PREFIX, TASK, Batch
from apprentice.data.dataset import instructions, task_names
from apprentice.data.images import images
from apprentice.data.items import Items, observed
from apprentice.data.local import LocalDataset
from apprentice.distill.augment import view_of
from apprentice.distill.caches.rows import Computed, Rows, Views, content
from apprentice.distill.caches.store import About, frames_folder
from apprentice.distill.config import CacheConfig
from apprentice.experts import checkpoints
from apprentice.policy.inputs import camera_images
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.vlm.image_settings import alike
from apprentice.vlm.quantized import packed

BATCH = 32
MARGIN = 2e9  # bytes that stay free on the disk
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8-bit": torch.bfloat16}  # of image tokens
WHAT = {IMAGE_TOKENS: "image tokens", EXPERT_LATENTS: "expert latents", PREFIX: "keys and values"}


@dataclass(frozen=True)
class Kind:
    """One of the things that can be kept.

    Attributes:
        key: its name in a batch.
        rows: of each view, on the disk.
        compute: rows of a view, by their numbers (b,).
    """

    key: str
    rows: list[Rows]
    compute: Callable[[int, np.ndarray], Tensor]

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return sum(rows.size for rows in self.rows)

    @property
    def missing(self) -> int:
        """Bytes that are not there yet."""
        return sum(rows.size - rows.done() * rows.about.row_bytes for rows in self.rows)

    def kept(self) -> Views:
        """Its rows, from the disk; those that are missing are computed now."""
        for view, rows in enumerate(self.rows):
            rows.prepare(partial(self._batches, view))
        return Views(self.rows)

    def recomputed(self) -> Views:
        """Its rows, computed whenever they are asked for."""
        return Views([Computed(partial(self.compute, view), rows.dtype) for view, rows in enumerate(self.rows)])

    def _batches(self, view: int, first: int) -> Iterator[Tensor]:
        """The rows of a view in order, from one on."""
        count = self.rows[view].about.count
        return (self.compute(view, np.arange(i, min(i + BATCH, count))) for i in range(first, count, BATCH))


def cached(
    policy: ApprenticePolicy, dataset: LocalDataset, config: CacheConfig | None = None, choice: Path | None = None
) -> dict[str, Views]:
    """`cached_each` of one dataset."""
    return cached_each(policy, [dataset], config, choice)[0]


def cached_each(
    policy: ApprenticePolicy,
    datasets: Sequence[LocalDataset],
    config: CacheConfig | None = None,
    choice: Path | None = None,
) -> list[dict[str, Views]]:
    """What the policy's stage needs of every n-th frame of each dataset, by its name in a batch.

    To fine-tune, that is image tokens, and the expert's latents if they count. To align, those latents and the prefix's
    keys and values; or image tokens again if those find no room, are not all that a suffix needs, the VLM does not
    split, or there is a history.

    Args:
        policy: the student, in its stage.
        datasets: whose frames. All have the same things kept; each has its own caches.
        config: which frames and views, how much room there is, how rows are kept. Of all views the expert's latents are
            those of the pictures themselves: they are what the student is to see through the change, and a moved
            picture does not change what is to be done. Latents are float32: they are small, and what is learnt. Rows
            that are missing take no more than what is free on the disk, less a margin.
        choice: a file that remembers what was kept, so that a run goes on as it began.
    """
    config = config or CacheConfig()
    tasks = sorted({name for dataset in datasets for name in task_names(dataset).values()})
    frozen = [Frozen(policy, dataset, config, tasks) for dataset in datasets]
    kinds = [[each.image_tokens() for each in frozen]]
    if policy.config.reads_expert:
        kinds.append([each.latents() for each in frozen])
    if policy.config.stage == "align":
        prefixes = [frozen[0].keys_and_values()]
        prefixes += [each.keys_and_values() for each in frozen[1:] if prefixes[0]]
        kinds.append([prefix for prefix in prefixes if prefix])
    kinds = [kind for kind in kinds if kind]
    kept = remembered(kinds, config.cache_gb, choice)
    found: list[dict[str, Views]] = [{} for _ in datasets]
    for kind in kinds:
        for each, of_dataset, rows in zip(frozen, kind, found, strict=True):
            if of_dataset.key in kept:
                each.ready[of_dataset.key] = rows[of_dataset.key] = of_dataset.kept()
            elif of_dataset.key != PREFIX:
                rows[of_dataset.key] = of_dataset.recomputed()
    for rows in found:
        if PREFIX in rows:
            del rows[IMAGE_TOKENS]
    return found


def cached_images(
    datasets: Sequence[LocalDataset],
    cameras: Sequence[str],
    cache_gb: float = CacheConfig.cache_gb,
    choice: Path | None = None,
) -> list[dict[str, Views]]:
    """Decoded images (3, h, w), uint8, of each frame of each dataset, by camera; see `cached_each`."""
    contents = [fingerprint(Path(dataset.root)) for dataset in datasets]
    of_each = list(zip(datasets, contents, strict=True))
    kinds = [[images_of(dataset, content, camera) for dataset, content in of_each] for camera in cameras]
    kept = remembered(kinds, cache_gb, choice)
    return [
        {each.key: each.kept() if each.key in kept else each.recomputed() for each in of_dataset}
        for of_dataset in zip(*kinds, strict=True)
    ]


def images_of(dataset: LocalDataset, content: str, camera: str) -> Kind:
    """One camera's images, which depend on the `content` of the dataset alone."""
    height, width = dataset.meta.features[camera]["shape"][:2]
    about = About(
        what=f"images of {camera.rpartition('.')[2]}",
        dataset=str(dataset.root),
        model="",
        view=0,
        dtype="uint8",
        shape=(3, height, width),
        count=dataset.num_frames,
        row_bytes=3 * height * width,
    )
    rows = Rows(fingerprint("images", camera, content, *dataset.changes), about, torch.uint8)

    pictures = images(dataset, camera)

    def compute(view: int, index: np.ndarray) -> Tensor:
        return torch.from_numpy(pictures[index]).permute(0, 3, 1, 2)

    return Kind(camera, [rows], compute)


def remembered(kinds: Sequence[Sequence[Kind]], cache_gb: float, choice: Path | None) -> list[str]:
    """What is `chosen`, or what was when a run began."""
    if choice is not None and choice.exists():
        kept: list[str] = read_json(choice, list[str], "the names of the caches that the run began with")
        return kept
    kept = chosen(kinds, cache_gb)
    if choice is not None:
        write_json(choice, kept)
    return kept


def chosen(kinds: Sequence[Sequence[Kind]], cache_gb: float) -> list[str]:
    """Which kinds, each of one or more datasets, are kept, each whole, if there is no room for all; what is not, and
    why, is printed.

    The first that fit, in the order of what a byte saves: image tokens, latents, keys and values. In FLOP a byte, for
    two cameras: image tokens 75,000 (nano VLM) and 3 million (a SigLIP-B that looks at 512 px), a small Seer's latents
    about as much as the former, keys and values 3,000 (nano VLM), 9,000 (135 M parameters) and 150,000 (7 B). Keys and
    values are computed from image tokens, so they come only after these.
    """
    room, disk, kept = cache_gb * 1e9, _free() - MARGIN, []
    for kind in kinds:
        key, size, missing = kind[0].key, sum(each.size for each in kind), sum(each.missing for each in kind)
        reason = ""
        if size > room:
            reason = f"{room / 1e9:.3g} of the {cache_gb:g} GB of --cache-gb are left"
        elif missing > disk:
            reason = f"{max(disk, 0) / 1e9:.3g} GB are free on the disk, less a margin of {MARGIN / 1e9:g}"
        elif key == PREFIX and IMAGE_TOKENS not in kept:
            reason = "they are computed from image tokens, which find no room"
        if reason:
            search = ", and videos are searched for the pictures, which is slow" if key != PREFIX else ""
            what = kind[0].rows[0].about.what
            _say(f"{what} are computed again in each step: {size / 1e9:.3g} GB, {reason}{search}")
            continue
        room, disk = room - size, disk - missing
        kept.append(key)
    return kept


class Frozen:
    """What can be kept for a policy of every n-th frame of a dataset, and how it is computed.

    Prompts are as long as the longest of all `tasks`, which may be of other datasets too.

    Attributes:
        ready: what is there already, by its name in a batch.
    """

    def __init__(
        self,
        policy: ApprenticePolicy,
        dataset: LocalDataset,
        config: CacheConfig,
        tasks: list[str] | None = None,
    ):
        self.policy, self.dataset, self.config = policy, dataset, config
        self.every, self.precision = config.every, config.cache_precision
        self.cameras = list(policy.config.image_features)
        self.content = fingerprint(Path(dataset.root), *self.cameras, str(self.every), *dataset.changes)
        self.tasks = instructions(dataset)[:: self.every]
        self.all_tasks = tasks or sorted(set(self.tasks))
        self.ready: dict[str, Views] = {}

    # ---- kinds

    def image_tokens(self) -> Kind:
        """Image tokens (n, C) of each view."""
        vision = [*self.policy.parts()["vision tower"], *self.policy.parts()["projector"]]
        key = self._seen() + _weights(vision)
        rows = self._rows(IMAGE_TOKENS, key, self._sample, STORED[self.precision], self.config.views)
        return Kind(IMAGE_TOKENS, rows, self._tokens)

    def latents(self) -> Kind:
        """The expert's latents (N, D)."""
        config = self.policy.config
        place = config.find_expert()
        files = sorted({Path(place), *checkpoints(place)})
        key = fingerprint(str(config.expert_obs_steps), *files)
        rows = self._rows(EXPERT_LATENTS, key, self._latents(0, np.arange(1)), torch.float32, 1)
        return Kind(EXPERT_LATENTS, rows, self._latents)

    def keys_and_values(self) -> Kind | None:
        """The prefix's keys and values (layers, 2, heads, L, d) of each view; None, and the reason is printed, if they
        are not all that a step needs of the prompt.
        """
        if self.policy.config.n_obs_steps > 1:
            _say("each step runs the whole history: later turns read tokens that train")
            return None
        if not self.policy.vlm.splits:
            _say("each step runs the whole prompt: this VLM's prompt reads what comes after it")
            return None
        sample = self._packed(np.arange(1), self._sample)
        if sample is None:
            _say("keys and values are computed again in each step: this VLM needs more than them")
            return None
        dtype = sample.dtype if sample.dtype == torch.uint8 else STORED[self.precision]
        prompts = self.policy.prompt({TASK: self.all_tasks})
        key = self._seen() + _weights(self.policy.vlm.parameters()) + fingerprint(content(prompts.ids.cpu()))
        return Kind(PREFIX, self._rows(PREFIX, key, sample, dtype, self.config.views), self._prefixes)

    def _rows(self, key: str, origin: str, sample: Tensor, dtype: torch.dtype, views: int) -> list[Rows]:
        shape, config = tuple(sample.shape[1:]), self.policy.config
        # A GPU computes what the VLM yields in bfloat16: a run on a CPU is not to find that in place of its own.
        rounded = "bfloat16" if key != EXPERT_LATENTS and fast_bfloat16(self.policy.vlm.device) else ""
        names = [fingerprint(key, self.content, origin + rounded, str(dtype), str(view)) for view in range(views)]
        return [
            Rows(
                name,
                About(
                    what=WHAT[key],
                    dataset=str(self.dataset.root),
                    model=config.expert if key == EXPERT_LATENTS else config.vlm,
                    view=view,
                    dtype="8-bit" if dtype == torch.uint8 else str(dtype).removeprefix("torch."),
                    shape=shape,
                    count=len(self.tasks),
                    row_bytes=int(np.prod(shape)) * dtype.itemsize,
                ),
                dtype,
            )
            for view, name in enumerate(names)
        ]

    @cached_property
    def _sample(self) -> Tensor:
        """Image tokens (1, n, C) of the first frame."""
        return self._tokens(0, np.arange(1))

    def _seen(self) -> str:
        """What the VLM makes of a picture before its weights meet it."""
        generator = torch.Generator().manual_seed(0)
        seen = []
        for size, cameras in alike(self.policy.image_sizes).items():
            noise = torch.randint(0, 256, (1, len(cameras), 3, *size), generator=generator, dtype=torch.uint8)
            seen += [content(value.cpu()) for value in self.policy.vlm.pixels(noise).values()]
        return fingerprint(*seen)

    # ---- rows at `index`, of every n-th frame

    @cached_property
    def _pictures(self) -> Items:
        return observed(self.dataset, keys=self.cameras)

    @cached_property
    def _expert_observations(self) -> Items:
        return observed(self.dataset, self.policy.config.expert_obs_steps, [*self.cameras, *self.policy.vectors])

    @torch.no_grad()
    def _tokens(self, view: int, index: np.ndarray) -> Tensor:
        """Image tokens (b, n, C)."""
        frames = index * self.every
        images = view_of(camera_images(self.policy.config, self._pictures.batch(frames)), frames, view)
        with mixed_precision(self.policy.vlm.device):
            return self.policy.vlm.image_tokens(images)

    def _latents(self, view: int, index: np.ndarray) -> Tensor:
        """The expert's latents (b, N, D)."""
        return self.policy.expert.encode(self._expert_observations.batch(index * self.every))

    def _prefixes(self, view: int, index: np.ndarray) -> Tensor:
        """Keys and values (b, layers, 2, heads, L, d), from image tokens that are there."""
        rows = self._packed(index, self.ready[IMAGE_TOKENS].rows[view][index])
        assert rows is not None
        return rows

    @torch.no_grad()
    def _packed(self, index: np.ndarray, tokens: Tensor) -> Tensor | None:
        """The prefixes' keys and values (b, layers, 2, heads, L, d) at `index`, or None if they cannot be packed."""
        vlm = self.policy.vlm
        length = len(self.policy.prompt({TASK: self.all_tasks}))
        batch: Batch = {TASK: [self.tasks[i] for i in index], IMAGE_TOKENS: tokens.to(vlm.device, vlm.model.dtype)}
        with mixed_precision(vlm.device):
            prefix = self.policy.prefix(batch, length).pack()
        return packed(prefix) if prefix is not None and self.precision == "8-bit" else prefix


def _free() -> float:
    """Bytes that are free where caches lie."""
    place = frames_folder()
    while not place.exists():
        place = place.parent
    return float(shutil.disk_usage(place).free)


def _say(text: str) -> None:
    console.print(text, highlight=False)


def _weights(parameters: Iterable[Tensor]) -> str:
    return fingerprint(*(content(p.detach().cpu()) for p in parameters))
