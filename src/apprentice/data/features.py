"""The features of a dataset: which of them a policy reads, and how cameras are described.

| feature | kept if |
| --- | --- |
| a camera (`image` or `video`) | its pictures have three colours and are no depth maps |
| `observation.state`, `observation.environment_state`, `action` | always |
| all others (efforts, velocities, labels, texts) | never: no policy here reads them |
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apprentice.common.errors import UserError

if TYPE_CHECKING:  # contracts need cameras' sizes, and LeRobot takes seconds to import
    from lerobot.configs import PolicyFeature, PreTrainedConfig

CAMERA_TYPES = ("image", "video")
READ = ("observation.state", "observation.environment_state")
VECTORS = (*READ, "action")
CHANNELS = (1, 3, 4)  # grey, colours, colours and alpha
NAMES = ("height", "width", "channels")


def is_camera(feature: Mapping[str, Any]) -> bool:
    """Whether a feature of `info.json` holds pictures."""
    return feature["dtype"] in CAMERA_TYPES


def picture_shape(key: str, feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """Height, width (px) and channels of a camera in `info.json`, whichever order its axes have.

    Converters leave out the names of the axes, or write others than LeRobot's: the axis of 1, 3 or 4 is the channels;
    if both ends may be, names decide, then LeRobot's own order. Raises UserError if neither end may be.
    """
    shape = tuple(feature["shape"])
    names = feature.get("names")
    first = str(names[0]).lower() if isinstance(names, list | tuple) and len(names) == 3 else ""
    ends = [len(shape) == 3 and shape[place] in CHANNELS for place in (0, -1)]
    if not any(ends):
        raise UserError(
            f"expected height, width and channels (1, 3 or 4) of {key} in meta/info.json, found the shape {shape}; "
            "fix: correct it"
        )
    if ends[0] and (not ends[1] or first in ("c", "channel", "channels", "rgb")):
        return shape[1], shape[2], shape[0]
    return shape[0], shape[1], shape[2]


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a camera's pictures are depth maps, as LeRobot marks them."""
    marks = [feature.get(name) or {} for name in ("info", "video_info")]
    return any(mark.get(name) for mark in marks for name in ("is_depth_map", "video.is_depth_map"))


def is_picture(key: str, feature: Mapping[str, Any]) -> bool:
    """Whether a feature is a camera that a policy can read: three colours, no depth."""
    return is_camera(feature) and not is_depth(feature) and picture_shape(key, feature)[2] == 3


def policy_features(features: Mapping[str, dict[str, Any]]) -> "dict[str, PolicyFeature]":
    """What a policy can read and do of a dataset's features, images (3, h, w), in their order."""
    from lerobot.utils.feature_utils import dataset_to_policy_features

    kept = {}
    for key, feature in features.items():
        if key in VECTORS:
            kept[key] = feature
        elif is_picture(key, feature):
            kept[key] = {**feature, "shape": picture_shape(key, feature), "names": list(NAMES)}
    return dataset_to_policy_features(kept)


def read_features(features: "Mapping[str, PolicyFeature] | None") -> "dict[str, PolicyFeature]":
    """Those inputs of a policy's configuration that it reads: LeRobot lists every observation of its dataset there."""
    return {key: each for key, each in (features or {}).items() if each.type.name == "VISUAL" or key in READ}


def policy_shapes(config: "PreTrainedConfig") -> dict[str, tuple[int, ...]]:
    """Shapes of all that a policy reads, images (3, h, w), and does."""
    features = read_features(config.input_features)
    features |= {key: each for key, each in (config.output_features or {}).items() if key == "action"}
    return {key: tuple(feature.shape) for key, feature in features.items()}
