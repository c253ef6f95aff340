"""Do two pictures show the same, and which side is up?"""

import numpy as np

MARGIN = 0.03  # by which another view must be more alike than the expected one
ORIENTATIONS = ("upright", "turned by 180 degrees", "upside down", "mirrored")


def likeness(recorded: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Correlation (4,) of an image (H, W, 3) with a drawn one in each of ORIENTATIONS, at 32 x 32 pixels."""
    seen = _standardised(recorded)
    views = (drawn, drawn[::-1, ::-1], drawn[::-1], drawn[:, ::-1])
    return np.array([np.mean(seen * _standardised(view)) for view in views])


def best_view(alike: np.ndarray, camera: int) -> tuple[int, int]:
    """Camera and orientation that a recorded camera shows, from likenesses (2, 4); the expected ones if in doubt."""
    if alike[camera, 0] >= alike.max() - MARGIN:
        return camera, 0
    found, orientation = np.unravel_index(alike.argmax(), alike.shape)
    return int(found), int(orientation)


def _standardised(image: np.ndarray) -> np.ndarray:
    height, width = (max(1, side // 32) for side in image.shape[:2])
    cut = image[: 32 * height, : 32 * width].astype(np.float64)
    small = cut.reshape(cut.shape[0] // height, height, cut.shape[1] // width, width, 3).mean(axis=(1, 3))
    return (small - small.mean()) / max(float(small.std()), 1e-9)
