"""Rows in a GPU's own memory, where they find room: a step then copies nothing from the disk or the CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from apprentice.common.device import free_memory
from apprentice.common.progress import Meter, console
from apprentice.distill.caches.rows import Rows, Views

SHARE = 0.5  # of what is free there; the rest is for a step
BLOCK = 256e6  # bytes to copy at a time


class Resident:
    """Rows, all of them, on a device."""

    def __init__(self, rows: Rows, device: torch.device):
        count, about = rows.about.count, rows.about
        self.dtype = rows.dtype
        self._rows = torch.empty(count, *about.shape, dtype=rows.dtype, device=device)
        block = max(1, int(BLOCK // about.row_bytes))
        with Meter(f"{about.what} to the GPU", count) as meter:
            for first in range(0, count, block):
                index = np.arange(first, min(first + block, count))
                self._rows[first : first + len(index)] = rows[index].to(device)
                meter.advance(len(index))

    def __getitem__(self, index: np.ndarray) -> Tensor:
        """Rows (*index's shape, *shape) at `index`, on the device."""
        flat = torch.from_numpy(np.ascontiguousarray(index.reshape(-1))).to(self._rows.device)
        return self._rows.index_select(0, flat).unflatten(0, index.shape)


def on_device(found: Sequence[dict[str, Views]], device: torch.device) -> list[dict[str, Views]]:
    """What caches keep of datasets, by its name in a batch; on the device if it has memory of its own and half of what
    is free there holds it. Of several things those go first that are larger, each whole, of all datasets.
    """
    room = free_memory(device) * SHARE
    names = [name for name in found[0] if all(isinstance(r, Rows) for of_it in found for r in of_it[name].rows)]
    sizes = {name: sum(r.size for of_it in found for r in of_it[name].rows) for name in names}  # type: ignore[attr-defined]
    moved = [dict(of_it) for of_it in found]
    for name in sorted(names, key=lambda name: -sizes[name]):
        if sizes[name] > room:
            continue
        room -= sizes[name]
        console.print(f"{name}: {sizes[name] / 1e9:.3g} GB are copied to the GPU's memory", highlight=False)
        for of_it in moved:
            of_it[name] = Views([Resident(r, device) for r in of_it[name].rows])  # type: ignore[arg-type]
    return moved
