"""A processor step that brings pictures to the size that a policy learned: a robot's camera sends 480 x 640 px.

Importing this module registers the step with LeRobot, which then finds it by the name in a checkpoint.
"""

from dataclasses import dataclass, field
from typing import Any

from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from apprentice.common.adapters import same_proportions
from apprentice.common.errors import UserError
from apprentice.common.untrusted import CAMERA_SIZE


@ProcessorStepRegistry.register(CAMERA_SIZE)
@dataclass
class CameraSizeProcessorStep(ObservationProcessorStep):
    """Resizes pictures (..., 3, h, w) whose proportions are those that the policy learned. Others are left as they are.

    Attributes:
        sizes: height and width (px) that the policy learned, by camera.
        stretched: cameras whose pictures may have any proportions: those of --resize.
    """

    sizes: dict[str, list[int]]
    stretched: list[str] = field(default_factory=list)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Raises UserError if a picture has other proportions."""
        return {key: self._sized(key, value) if key in self.sizes else value for key, value in observation.items()}

    def get_config(self) -> dict[str, Any]:
        return {"sizes": self.sizes, "stretched": self.stretched}

    def transform_features(self, features: Any) -> Any:
        return features

    def _sized(self, key: str, picture: Tensor) -> Tensor:
        found, wanted = list(picture.shape[-2:]), list(self.sizes[key])
        if found == wanted:
            return picture
        if key not in self.stretched and not same_proportions(found, wanted):
            raise UserError(
                f"expected pictures of {wanted[0]} x {wanted[1]} px (height x width) of {key}, or of the same "
                f"proportions, found {found[0]} x {found[1]}; fix: another resolution of the camera, or train with "
                f"--resize {key}={wanted[0]}x{wanted[1]}"
            )
        there = picture.cpu() if picture.device.type == "mps" else picture  # MPS cannot resize
        return resize(there, wanted, antialias=True).to(picture.device)


def with_camera_sizes(before: Any, input_features: Any, stretched: Any = ()) -> Any:
    """A policy's preprocessor with this step after its first one, which renames; `before` is changed."""
    sizes = {key: list(each.shape[-2:]) for key, each in (input_features or {}).items() if each.type.name == "VISUAL"}
    before.steps = [
        before.steps[0],
        CameraSizeProcessorStep(sizes, sorted(stretched)),
        *(step for step in before.steps[1:] if not isinstance(step, CameraSizeProcessorStep)),
    ]
    return before
