"""Where to compute, and how precisely."""

import torch


def best_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_bfloat16(device: torch.device) -> bool:
    """Does bfloat16 make this device faster? A CPU without AVX-512 multiplies it 50 times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster, nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device))
