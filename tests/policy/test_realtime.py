"""Real-time chunking of policies that plan in one pass: closed forms of the mixture, and LeRobot's queue of actions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import supports_rtc_inference
from tests.support import make_batch, make_student

from apprentice.experts.seer.modeling_seer import SeerPolicy

HORIZON = 4  # of the small expert and its student


@pytest.fixture(scope="module", params=["apprentice", "seer"])
def policy(request: pytest.FixtureRequest, small_dataset: Path, small_expert: Path, small_vlm: Path) -> Any:
    if request.param == "seer":
        return SeerPolicy.from_pretrained(small_expert)
    return make_student(small_dataset, small_expert, small_vlm)


@pytest.fixture(scope="module")
def frames(small_dataset: Path) -> list[dict[str, Any]]:
    """Two moments."""
    batches = [make_batch(small_dataset, [index]) for index in (3, 20)]
    return [{k: v / 255 if ".images." in k else v for k, v in batch.items()} for batch in batches]


def use_rtc(policy: Any, **settings: Any) -> RTCConfig:
    """What `lerobot-rollout` does to a policy."""
    policy.config.rtc_config = RTCConfig(**settings)
    policy.init_rtc_processor()
    return policy.config.rtc_config


def test_lerobot_takes_them_for_rtc_unless_they_have_a_history(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supports_rtc_inference(policy)
    monkeypatch.setattr(policy.config, "n_obs_steps", 2)
    assert not supports_rtc_inference(policy)


@pytest.mark.parametrize(
    ("schedule", "delay", "horizon", "count", "weights"),
    [
        ("LINEAR", 1, 10, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("LINEAR", 1, 10, 3, [1, 2 / 3, 1 / 3, 0]),
        ("LINEAR", 0, 2, 4, [2 / 3, 1 / 3, 0, 0]),
        ("LINEAR", 3, 2, 4, [1, 1, 0, 0]),
        ("LINEAR", 9, 10, 2, [1, 1, 0, 0]),
        ("ONES", 0, 3, 4, [1, 1, 1, 0]),
        ("ZEROS", 2, 10, 4, [1, 1, 0, 0]),
    ],
)
def test_a_chunk_goes_on_from_the_left_over(
    policy: Any,
    frames: list[dict[str, Any]],
    schedule: str,
    delay: int,
    horizon: int,
    count: int,
    weights: list[float],
) -> None:
    use_rtc(policy, prefix_attention_schedule=RTCAttentionSchedule[schedule], execution_horizon=horizon)
    alone = policy.predict_action_chunk(frames[0])
    left_over = torch.rand(count, 7, generator=torch.Generator().manual_seed(0)) - 0.5
    left_over[:, 6] = -alone[0, :count, 6]  # the gripper does the opposite
    filled = torch.cat([left_over, torch.zeros(10 - count, 7)])[: max(horizon, count)]  # LeRobot fills with zeros
    found = policy.predict_action_chunk(frames[0], inference_delay=delay, prev_chunk_left_over=filled)
    assert found.shape == alone.shape == (1, HORIZON, 7)
    for step, weight in enumerate(weights):
        earlier = left_over[step] if step < count else torch.zeros(7)
        wanted = weight * earlier[:6] + (1 - weight) * alone[0, step, :6]
        torch.testing.assert_close(found[0, step, :6], wanted, atol=1e-6, rtol=1e-5)
        assert found[0, step, 6] == (earlier if weight > 0.5 else alone[0, step])[6]  # never half-closed


@pytest.mark.parametrize("real_delay", [0, 1, 2])
def test_however_long_planning_takes_the_robot_goes_on_where_it_is(
    policy: Any, frames: list[dict[str, Any]], real_delay: int
) -> None:
    queue = ActionQueue(use_rtc(policy))
    first = policy.predict_action_chunk(frames[0])[0]
    queue.merge(first, first, 0, 0)
    queue.get()
    seen = queue.get_action_index()
    second = policy.predict_action_chunk(frames[1], inference_delay=2, prev_chunk_left_over=queue.get_left_over())[0]
    done = [queue.get() for _ in range(real_delay)]  # while it was planned
    queue.merge(second, second, real_delay, seen)
    done += [queue.get() for _ in range(2 - real_delay)]
    torch.testing.assert_close(torch.stack(done), first[1:3], atol=0, rtol=0)
    rest = torch.stack([queue.get() for _ in range(2)])
    use_rtc(policy, enabled=False)
    alone = policy.predict_action_chunk(frames[1], inference_delay=2, prev_chunk_left_over=first[1:])[0]
    torch.testing.assert_close(rest[0, :6], (first[3, :6] + alone[2, :6]) / 2, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rest[1], alone[3], atol=0, rtol=0)
    assert (first[1:] - alone[:3]).abs().max() > 1e-3


def test_nothing_is_left_over(policy: Any, frames: list[dict[str, Any]]) -> None:
    use_rtc(policy)
    alone = policy.predict_action_chunk(frames[0])
    for empty in (None, torch.zeros(10, 7)):
        found = policy.predict_action_chunk(frames[0], inference_delay=3, prev_chunk_left_over=empty)
        torch.testing.assert_close(found, alone, atol=0, rtol=0)
