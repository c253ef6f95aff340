"""Pictures of another size are resized by the checkpoint's own processor; of other proportions they are refused."""

from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.factory import make_pre_post_processors
from torchvision.transforms.v2.functional import resize

from apprentice.common.adapters import load_processors, resized_cameras, same_proportions
from apprentice.common.camera_size import CameraSizeProcessorStep, with_camera_sizes
from apprentice.common.errors import UserError

FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ((480, 640), (96, 128), True),
        ((96, 128), (480, 640), True),
        ((360, 640), (90, 160), True),
        ((721, 1280), (96, 171), True),  # as near as whole pixels get
        ((720, 1280), (96, 128), False),
        ((640, 480), (96, 128), False),
        ((480, 480), (96, 128), False),
    ],
)
def test_proportions(found: tuple[int, int], wanted: tuple[int, int], same: bool) -> None:
    assert same_proportions(found, wanted) is same


def test_a_saved_processor_resizes_and_refuses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {FRONT: (96, 128), WRIST: (64, 64)}
    features = {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in sizes.items()}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    act = ACTConfig(input_features=features, output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))})
    act.device = "cpu"
    pair = make_pre_post_processors(act, dataset_stats={})
    with_camera_sizes(with_camera_sizes(pair[0], features), features, [WRIST])  # again: still one step
    for processor in pair:
        processor.save_pretrained(tmp_path)
    assert resized_cameras(tmp_path) == {FRONT: False, WRIST: True}
    before, _ = load_processors(tmp_path, act)
    assert sum(isinstance(step, CameraSizeProcessorStep) for step in before.steps) == 1
    state = torch.zeros(6)
    front, wrist = torch.rand(3, 480, 640), torch.rand(3, 48, 80)
    seen = before({FRONT: front, WRIST: wrist, "observation.state": state})
    torch.testing.assert_close(seen[FRONT][0], resize(front, [96, 128], antialias=True))
    assert seen[WRIST].shape == (1, 3, 64, 64)
    fits = {FRONT: torch.rand(3, 96, 128), WRIST: torch.rand(3, 64, 64), "observation.state": state}
    for key, value in before(fits).items():
        if key in sizes:
            torch.testing.assert_close(value[0], fits[key], atol=0, rtol=0)
    with pytest.raises(UserError, match=r"expected pictures of 96 x 128 px .*front, .*found 480 x 480; fix"):
        before({**fits, FRONT: torch.rand(3, 480, 480)})
