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
from apprentice.data.dataset import frames, instructions, task_names
from apprentice.data.frames import Frames, seen_at
from apprentice.data.images import images
from apprentice.data.local import LocalDataset
from apprentice.distill.augment import view_of
from apprentice.distill.rows import Computed, Rows, Views, content
from apprentice.distill.store import About, frames_folder
from apprentice.experts import checkpoints
from apprentice.experts.base import Batch
from apprentice.policy.inputs import camera_images
from apprentice.policy.modeling_apprentice import EXPERT_LATENTS, IMAGE_TOKENS, PREFIX, ApprenticePolicy
from apprentice.vlm.packed import packed
from apprentice.vlm.pixels import alike

BATCH = 32
MARGIN = 2e9  # bytes that stay free on the disk
CACHE_GB = 32.0
PRECISION = "bfloat16"
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8-bit": torch.bfloat16}  # of image tokens
WHAT = {IMAGE_TOKENS: "image tokens", EXPERT_LATENTS: "expert latents", PREFIX: "keys and values"}


@dataclass(frozen=True)
class Kind:
    """One of the things that can be kept.

    Attributes:
        key: its name in a batch.
        rows: of each view, on the disk.
        fill: batches of rows of a view, from a row on.
        compute: rows of a view at some frames, from the dataset; None for what the policy computes by itself.
    """

    key: str
    rows: list[Rows]
    fill: Callable[[int, int], Iterator[Tensor]]
    compute: Callable[[int, np.ndarray], Tensor] | None = None

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
            rows.prepare(partial(self.fill, view))
        return Views(self.rows)

    def recomputed(self) -> Views:
        """Its rows, computed whenever they are asked for."""
        assert self.compute is not None
        return Views([Computed(partial(self.compute, view), rows.dtype) for view, rows in enumerate(self.rows)])


def cached(
    policy: ApprenticePolicy,
    dataset: LocalDataset,
    every: int = 1,
    views: int = 1,
    cache_gb: float = CACHE_GB,
    precision: str = PRECISION,
    choice: Path | None = None,
) -> dict[str, Views]:
    """`cached_each` of one dataset."""
    return cached_each(policy, [dataset], every, views, cache_gb, precision, choice)[0]


def cached_each(
    policy: ApprenticePolicy,
    datasets: Sequence[LocalDataset],
    every: int = 1,
    views: int = 1,
    cache_gb: float = CACHE_GB,
    precision: str = PRECISION,
    choice: Path | None = None,
) -> list[dict[str, Views]]:
    """What the policy's stage needs of every n-th frame of each dataset, by its name in a batch.

    To fine-tune, that is image tokens, and the expert's latents if they count. To align, those latents and the prefix's
    keys and values; or image tokens again if those find no room, are not all that a suffix needs, the VLM does not
    split, or there is a history.

    Args:
        policy: the student, in its stage.
        datasets: whose frames. All have the same things kept; each has its own caches.
        every: n.
        views: K views of each frame. The expert's latents are of the pictures themselves in all of them: they are what
            the student is to see through the change, and a moved picture does not change what is to be done.
        cache_gb: all rows together may take that much (GB); those that are missing no more than what is free on the
            disk, less a margin.
        precision: float32, bfloat16 or 8-bit, see `STORED`; 8-bit is for keys and values. Latents are float32: they are
            small, and what is learnt.
        choice: a file that remembers what was kept, so that a run goes on as it began.
    """
    tasks = sorted({name for dataset in datasets for name in task_names(dataset).values()})
    frozen = [Frozen(policy, dataset, every, precision, tasks) for dataset in datasets]
    kinds = [[each.image_tokens(views) for each in frozen]]
    if policy.config.reads_expert:
        kinds.append([each.latents() for each in frozen])
    if policy.config.stage == "align":
        prefixes = [frozen[0].keys_and_values(views)]
        prefixes += [each.keys_and_values(views) for each in frozen[1:] if prefixes[0]]
        kinds.append([prefix for prefix in prefixes if prefix])
    kinds = [kind for kind in kinds if kind]
    kept = remembered(kinds, cache_gb, choice)
    found: list[dict[str, Views]] = [{} for _ in datasets]
    for kind in kinds:
        for each, of_dataset, rows in zip(frozen, kind, found, strict=True):
            if of_dataset.key in kept:
                each.ready[of_dataset.key] = rows[of_dataset.key] = of_dataset.kept()
            elif of_dataset.compute:
                rows[of_dataset.key] = of_dataset.recomputed()
    for rows in found:
        if PREFIX in rows:
            del rows[IMAGE_TOKENS]
    return found


def cached_images(
    datasets: Sequence[LocalDataset], cameras: Sequence[str], cache_gb: float = CACHE_GB, choice: Path | None = None
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

    def fill(view: int, first: int) -> Iterator[Tensor]:
        return (torch.from_numpy(image).permute(2, 0, 1)[None] for image in frames(dataset, camera, first))

    def compute(view: int, index: np.ndarray) -> Tensor:
        return torch.from_numpy(images(dataset, camera)[index]).permute(0, 3, 1, 2)

    return Kind(camera, [rows], fill, compute)


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
            search = ", and videos are searched for the pictures, which is slow" if kind[0].compute else ""
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
        every: int,
        precision: str,
        tasks: list[str] | None = None,
    ):
        self.policy, self.precision = policy, precision
        self.source = Frames(dataset, list(policy.config.image_features), every, policy.vectors)
        self.content = fingerprint(Path(dataset.root), *self.source.cameras, str(every), *dataset.changes)
        self.tasks = instructions(dataset)[::every]
        self.all_tasks = tasks or sorted(set(self.tasks))
        self.ready: dict[str, Views] = {}

    # ---- kinds

    def image_tokens(self, views: int) -> Kind:
        """Image tokens (n, C) of each view."""
        vision = [*self.policy.parts()["vision tower"], *self.policy.parts()["projector"]]
        key = self._seen() + _weights(vision)
        rows = self._rows(IMAGE_TOKENS, key, self._sample, STORED[self.precision], views)
        return Kind(IMAGE_TOKENS, rows, self._fill_tokens, self._tokens_at)

    def latents(self) -> Kind:
        """The expert's latents (N, D)."""
        config = self.policy.config
        place = config.find_expert()
        files = sorted({Path(place), *checkpoints(place)})
        key = fingerprint(str(config.expert_obs_steps), *files)
        rows = self._rows(EXPERT_LATENTS, key, next(self._fill_latents(0, 0, 1)), torch.float32, 1)
        return Kind(EXPERT_LATENTS, rows, self._fill_latents, self._latents_at)

    def keys_and_values(self, views: int) -> Kind | None:
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
        prompts = self.policy.prompt({"task": self.all_tasks})
        key = self._seen() + _weights(self.policy.vlm.parameters()) + fingerprint(content(prompts.ids.cpu()))
        return Kind(PREFIX, self._rows(PREFIX, key, sample, dtype, views), self._fill_prefixes)

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
                    dataset=str(self.source.dataset.root),
                    model=config.expert if key == EXPERT_LATENTS else config.vlm,
                    view=view,
                    dtype="8-bit" if dtype == torch.uint8 else str(dtype).removeprefix("torch."),
                    shape=shape,
                    count=len(self.source),
                    row_bytes=int(np.prod(shape)) * dtype.itemsize,
                ),
                dtype,
            )
            for view, name in enumerate(names)
        ]

    @cached_property
    def _sample(self) -> Tensor:
        """Image tokens (1, n, C) of the first frame."""
        return next(self._fill_tokens(0, 0, 1))

    def _seen(self) -> str:
        """What the VLM makes of a picture before its weights meet it."""
        generator = torch.Generator().manual_seed(0)
        seen = []
        for size, cameras in alike(self.policy.image_sizes).items():
            noise = torch.randint(0, 256, (1, len(cameras), 3, *size), generator=generator, dtype=torch.uint8)
            seen += [content(value.cpu()) for value in self.policy.vlm.pixels(noise).values()]
        return fingerprint(*seen)

    # ---- rows in order

    def _fill_tokens(self, view: int, first: int, size: int = BATCH) -> Iterator[Tensor]:
        for batch in self.source.batches(first, size):
            count = len(batch["task"])
            yield self._tokens(batch, range(first, first + count), view)
            first += count

    def _fill_latents(self, view: int, first: int, size: int = BATCH) -> Iterator[Tensor]:
        return map(self.policy.expert.encode, self.source.batches(first, size, self.policy.config.expert_obs_steps))

    def _fill_prefixes(self, view: int, first: int, size: int = BATCH) -> Iterator[Tensor]:
        for start in range(first, len(self.tasks), size):
            index = np.arange(start, min(start + size, len(self.tasks)))
            rows = self._packed(index, self.ready[IMAGE_TOKENS].rows[view][index])
            assert rows is not None
            yield rows

    # ---- rows anywhere

    def _tokens_at(self, view: int, index: np.ndarray) -> Tensor:
        return self._tokens(seen_at(self.source.dataset, index * self.source.every), index, view)

    def _latents_at(self, view: int, index: np.ndarray) -> Tensor:
        steps = self.policy.config.expert_obs_steps
        return self.policy.expert.encode(seen_at(self.source.dataset, index * self.source.every, steps))

    # ---- what is computed

    @torch.no_grad()
    def _tokens(self, batch: Batch, index: Iterable[int], view: int) -> Tensor:
        """Image tokens (b, n, C) of a batch that holds the frames `index`."""
        images = view_of(camera_images(self.policy.config, batch), (int(i) * self.source.every for i in index), view)
        with mixed_precision(self.policy.vlm.device):
            return self.policy.vlm.image_tokens(images)

    @torch.no_grad()
    def _packed(self, index: np.ndarray, tokens: Tensor) -> Tensor | None:
        """The prefixes' keys and values (b, layers, 2, heads, L, d) at `index`, or None if they cannot be packed."""
        vlm = self.policy.vlm
        length = len(self.policy.prompt({"task": self.all_tasks}))
        batch: Batch = {"task": [self.tasks[i] for i in index], IMAGE_TOKENS: tokens.to(vlm.device, vlm.model.dtype)}
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
