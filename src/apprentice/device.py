"""Where to compute, and how precisely."""

import copy
import time
from typing import Any

import torch

PROBES = 3  # timed steps of each precision


def best_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU."""
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
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss, _ = model(batch)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
