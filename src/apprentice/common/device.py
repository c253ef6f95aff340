"""Where to compute, and how precisely."""

import copy
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PROBES = 3  # timed steps of each precision
YES = ("1", "true", "yes", "on", "y", "t")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS adds up in any order; read when it starts


def best_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU; the CPU also where Accelerate is to use it."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in YES:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_bfloat16(device: torch.device) -> bool:
    """Does bfloat16 make this device faster? A GPU, mostly; a CPU never, so that all CPUs train to the same result:
    without AVX-512 it multiplies 50 times slower, with it the demo's fine-tuning took as long (24.0 s against 23.9).
    """
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster, nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device))


def free_memory(device: torch.device) -> int:
    """Bytes that are free in a device's own memory; 0 for one that shares the CPU's."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


@contextmanager
def same_bits(device: torch.device) -> Iterator[None]:
    """Inside, a CUDA device gives the same bits each time, and RuntimeError for what it cannot compute so; a CPU with
    as many threads does so anyway.
    """
    if device.type != "cuda":
        yield
        return
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, for debugging
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def bfloat16_is_faster(policy: Any, batch: dict[str, Any]) -> bool:
    """Try: does the policy's loss on a batch, with its gradients, take less time in bfloat16 here? Training steps of a
    copy are timed in both precisions; the faster of a few counts, and one hopeless step ends the trial.
    """
    device = next(policy.parameters()).device
    with torch.random.fork_rng():
        whole = min(_step_time(policy, batch, device, False) for _ in range(1 + PROBES))
        halves = [_step_time(policy, batch, device, True)]
        while len(halves) <= PROBES and min(halves) < 10 * whole:
            halves.append(_step_time(policy, batch, device, True))
    return min(halves) < whole


def _step_time(policy: Any, batch: dict[str, Any], device: torch.device, bfloat16: bool) -> float:
    model = copy.deepcopy(policy).train()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss, _ = model(batch)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
