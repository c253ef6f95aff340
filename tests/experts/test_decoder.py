"""Seer's decoder: its loss against the formula, and which gripper a dataset's statistics decide for."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from torch.nn import functional as F

from apprentice.common.errors import UserError
from apprentice.data.dataset import open_dataset
from apprentice.experts import load_expert
from apprentice.experts.seer.configuration_seer import SeerConfig
from apprentice.experts.seer.decoder import SeerDecoder, gripper_of

ROOT = Path(__file__).parents[2]


def batch() -> dict:
    torch.manual_seed(1)
    pad = torch.arange(8).expand(3, 8) >= torch.tensor([8, 5, 1])[:, None]
    return {"action": torch.rand(3, 8, 7) * 2 - 1, "action_is_pad": pad}


def test_loss_is_smooth_l1_and_weighted_cross_entropy_of_what_is_not_padding() -> None:
    torch.manual_seed(0)
    decoder, data = SeerDecoder(24, 7, gripper_weight=0.3), batch()
    latents = torch.randn(3, 8, 24)
    arm, logit = decoder.heads(latents)
    arm_terms, gripper_terms = [], []
    for b in range(3):
        for t in range(8):
            if data["action_is_pad"][b, t]:
                continue
            for i in range(6):
                off = abs(arm[b, t, i].item() - data["action"][b, t, i].item())
                arm_terms.append(off**2 / 2 if off < 1 else off - 0.5)
            closes = (data["action"][b, t, 6].item() + 1) / 2
            p = 1 / (1 + math.exp(-logit[b, t].item()))
            gripper_terms.append(-closes * math.log(p) - (1 - closes) * math.log(1 - p))
    assert len(gripper_terms) == 8 + 5 + 1
    expected_arm, expected_gripper = sum(arm_terms) / len(arm_terms), sum(gripper_terms) / len(gripper_terms)
    loss, parts = decoder.loss(latents, data)
    assert parts["arm_loss"] == pytest.approx(expected_arm, rel=1e-5)
    assert parts["gripper_loss"] == pytest.approx(expected_gripper, rel=1e-5)
    assert loss.item() == pytest.approx(expected_arm + 0.3 * expected_gripper, rel=1e-5)


def test_gripper_term_trains_and_padding_does_not() -> None:
    decoder, data = SeerDecoder(24, 7, gripper_weight=0.01), batch()
    latents = torch.randn(3, 8, 24, requires_grad=True)
    decoder.loss(latents, data)[0].backward()
    assert decoder.gripper.weight.grad is not None and decoder.gripper.weight.grad.abs().max() > 0
    assert latents.grad is not None
    assert (latents.grad[data["action_is_pad"]] == 0).all()
    assert (latents.grad[~data["action_is_pad"]].abs().amax(-1) > 0).all()
    del data["action_is_pad"]
    assert torch.isfinite(decoder.loss(latents, data)[0])


def test_a_binary_gripper_is_decoded_to_open_or_closed_and_the_arm_stays_in_range() -> None:
    decoder, latents = SeerDecoder(24, 7, 0.1), 10 * torch.randn(50, 8, 24)
    with torch.no_grad():
        decoder.gripper.bias -= decoder.heads(latents)[1].median()  # so that about half of them close
    actions = decoder.decode(latents)
    assert set(actions[..., 6].unique().tolist()) == {-1.0, 1.0}
    assert actions[..., :6].abs().max() <= 1


def test_a_continuous_gripper_is_one_entry_among_others() -> None:
    decoder, data = SeerDecoder(24, 14, gripper_weight=0.3, gripper="continuous"), batch()
    data["action"] = torch.rand(3, 8, 14) * 2 - 1
    latents = torch.randn(3, 8, 24, requires_grad=True)
    actions = decoder.decode(latents)
    assert actions.shape == (3, 8, 14) and actions.abs().max() < 1
    kept = ~data["action_is_pad"]
    loss, parts = decoder.loss(latents, data)
    assert loss.item() == pytest.approx(F.smooth_l1_loss(actions[kept], data["action"][kept]).item(), rel=1e-5)
    assert list(parts) == ["arm_loss"]
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())
    weights = torch.tensor([[1.0], [0.75], [0.0]])
    now, earlier = torch.rand(1, 3, 14), torch.rand(3, 14)
    torch.testing.assert_close(decoder.mix(now, earlier, weights), weights * earlier + (1 - weights) * now)
    binary = SeerDecoder(24, 14, 0.3).mix(now, earlier, weights)
    torch.testing.assert_close(binary[..., :-1], (weights * earlier + (1 - weights) * now)[..., :-1])
    torch.testing.assert_close(binary[0, :, -1], torch.stack([earlier[0, -1], earlier[1, -1], now[0, 2, -1]]))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_action_may_be_a_gripper_alone() -> None:
    decoder = SeerDecoder(24, 1, 1.0)
    data = {"action": torch.ones(2, 8, 1)}
    loss, parts = decoder.loss(torch.randn(2, 8, 24), data)
    assert loss.item() == pytest.approx(parts["gripper_loss"]) and math.isfinite(loss.item())


def stats_of(values: np.ndarray) -> dict:
    """As LeRobot computes them, of an action whose last column these are."""
    from lerobot.datasets.compute_stats import get_feature_stats

    actions = np.stack([np.linspace(-3, 3, len(values)), values], 1).astype(np.float32)
    return {"action": get_feature_stats(actions, axis=0, keepdims=False)}


rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (rng.choice([-1.0, 1.0], 5000), "binary"),
        (rng.choice([0.0, 1.0], 5000, p=[0.98, 0.02]), "binary"),
        (rng.choice([3.0, 97.0], 300_001, p=[0.4, 0.6]), "binary"),
        (np.full(200, -1.0), "binary"),  # never moved: either would do
        (rng.uniform(0, 100, 5000), "continuous"),
        (np.clip(rng.normal(0, 3, 5000), -1, 1), "continuous"),  # three quarters at the ends
        (np.where(rng.random(20_000) < 0.01, 50.0, rng.choice([0.0, 100.0], 20_000)), "continuous"),  # 1 % halfway
        (rng.choice([0.0, 0.5, 1.0], 5000), "continuous"),
        (rng.choice([0.0, 0.5, 1.0], 5000, p=[0.98, 0.01, 0.01]), "continuous"),
    ],
)
def test_a_gripper_is_binary_if_its_variance_is_the_largest_that_mean_and_range_allow(
    values: np.ndarray, wanted: str
) -> None:
    assert gripper_of("auto", stats_of(values)) == wanted
    assert gripper_of("binary", stats_of(values)) == "binary" and gripper_of("continuous", None) == "continuous"


def test_without_statistics_nothing_is_guessed() -> None:
    for stats in (None, {}, {"action": {"min": [0.0], "max": [1.0]}}):
        with pytest.raises(UserError, match=r"statistics of the action.*found none; fix: --policy.gripper"):
            gripper_of("auto", stats)


def test_libero_demonstrations_have_a_binary_gripper() -> None:
    assert gripper_of("auto", open_dataset(ROOT / "assets" / "demonstrations" / "libero_goal").meta.stats) == "binary"


@pytest.fixture(scope="module")
def so101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One episode of an SO-101 as LeRobot records it: degrees, a gripper of 0 to 100; cameras of two sizes."""
    root = tmp_path_factory.mktemp("so101") / "data"
    joints = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    vector = {"dtype": "float32", "shape": (6,), "names": [f"{joint}.pos" for joint in joints]}
    names = ["height", "width", "channels"]
    features = {
        "observation.images.front": {"dtype": "image", "shape": (48, 64, 3), "names": names},
        "observation.images.wrist": {"dtype": "image", "shape": (40, 40, 3), "names": names},
        "observation.state": vector,
        "action": vector,
    }
    dataset = LeRobotDataset.create("local/so101", 30, features, root=root, robot_type="so101", use_videos=False)
    generator = np.random.default_rng(0)
    for step in range(20):
        joints_now = np.append(generator.uniform(-90, 90, 5), min(100, 8 * step)).astype(np.float32)
        dataset.add_frame(
            {
                "observation.images.front": generator.integers(0, 256, (48, 64, 3), dtype=np.uint8),
                "observation.images.wrist": generator.integers(0, 256, (40, 40, 3), dtype=np.uint8),
                "observation.state": joints_now,
                "action": joints_now,
                "task": "拿起碗",
            }
        )
    dataset.save_episode()
    dataset.finalize()
    return root


def test_an_so101_gripper_stays_continuous_from_training_to_the_expert(so101: Path, tmp_path: Path) -> None:
    """As `lerobot-train` makes the policy; the checkpoint holds what was decided, and its expert a decoder of it."""
    meta = open_dataset(so101).meta
    config = SeerConfig(device="cpu", width=48, layers=1, heads=2, push_to_hub=False)
    policy = make_policy(config, ds_meta=meta)
    assert config.gripper == policy.config.gripper == "continuous"
    policy.save_pretrained(tmp_path)
    before, after = make_pre_post_processors(policy.config, dataset_stats=meta.stats)
    for processor in (before, after):
        processor.save_pretrained(tmp_path)
    expert = load_expert(tmp_path, torch.device("cpu"))
    assert expert.decoder.settings["gripper"] == "continuous"
    frame = open_dataset(so101)[7]
    raw = {k: v[None] for k, v in frame.items() if k.startswith("observation.")} | {"task": [frame["task"]]}
    latents = expert.encode(raw)
    actions = expert.decoded(latents)
    torch.testing.assert_close(actions, expert.own_actions(raw), atol=1e-4, rtol=1e-5)
    assert actions.shape == (1, 8, 6)
    gripper = actions[..., 5]  # random weights: near the middle of 0 to 100
    assert ((gripper > 20) & (gripper < 80)).all()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    data = before(raw | {"action": torch.full((1, 8, 6), 30.0)})
    policy.train()
    for _ in range(40):
        loss = policy(data)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert after(policy.predict_action_chunk(data))[..., 5].mean().item() == pytest.approx(30, abs=4)
