"""The student against references: a whole pass, the expert's own decoder, its own checkpoint, the untouched VLM."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from tests import support
from tests.support import make_batch, make_student

from apprentice.common.errors import UserError
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.simulators.libero.convention import contract as libero_contract
from apprentice.vlm.base import VLM


@pytest.fixture
def policy(small_dataset: Path, small_expert: Path, small_vlm: Path) -> ApprenticePolicy:
    return make_student(small_dataset, small_expert, small_vlm)


@pytest.fixture
def batch(small_dataset: Path) -> dict[str, Any]:
    return make_batch(small_dataset, (0, 15, 30))


def test_both_stages_see_the_same_latents(policy: ApprenticePolicy, batch: dict[str, Any]) -> None:
    policy.set_stage("align")
    split = policy.latents(batch)
    with torch.no_grad():
        torch.testing.assert_close(policy.latents(batch), split, atol=1e-4, rtol=0)
    policy.set_stage("finetune")
    torch.testing.assert_close(policy.latents(batch), split, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_plan_reads_images_prompt_and_tokens_in_one_pass(
    policy: ApprenticePolicy, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either stage, and no text is written once the instruction is known."""
    policy.predict_action_chunk(batch)
    passes = []
    policy.vlm.model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(policy.vlm, "inputs", None)
    for stage in ("align", "finetune"):
        policy.set_stage(stage)
        policy.predict_action_chunk(batch)
    assert len(passes) == 2


@torch.no_grad()
def test_padding_changes_nothing(policy: ApprenticePolicy, batch: dict[str, Any]) -> None:
    assert len({len(task.split()) for task in batch["task"]}) > 1
    one = {key: value[1:2] for key, value in batch.items()}
    torch.testing.assert_close(policy.latents(one), policy.latents(batch)[1:2], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_student_that_hits_the_latents_acts_like_the_expert(
    policy: ApprenticePolicy, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "latents", policy.expert.encode)
    expert = policy.expert.policy  # type: ignore[attr-defined]
    images = {key: batch[key] / 255 for key in support.CAMERAS}
    own = policy.expert.preprocessor({**batch, **images})  # type: ignore[attr-defined]
    wanted = policy.expert.postprocessor(expert.predict_action_chunk(own))  # type: ignore[attr-defined]
    torch.testing.assert_close(policy.predict_action_chunk(batch), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_latent_weight_adds_the_distance_from_the_expert(policy: ApprenticePolicy, batch: dict[str, Any]) -> None:
    policy.set_stage("finetune")
    batch["action"] = torch.rand(3, policy.config.chunk_size, 7) * 2 - 1
    acts = policy(batch)[0]
    policy.config.latent_weight = 0.5
    distance = torch.nn.functional.mse_loss(policy.latents(batch), policy.expert.encode(batch))
    torch.testing.assert_close(policy(batch)[0], acts + 0.5 * distance)


@torch.no_grad()
def test_checkpoint_stands_alone(
    small_dataset: Path, small_expert: Path, small_vlm: Path, batch: dict[str, Any], tmp_path: Path
) -> None:
    expert, vlm = (Path(shutil.copytree(p, tmp_path / p.name)) for p in (small_expert, small_vlm))
    policy = make_student(small_dataset, expert, vlm)
    policy.save_pretrained(tmp_path / "student")
    wanted = policy.predict_action_chunk(batch)
    shutil.rmtree(expert)
    shutil.rmtree(vlm)
    config = PreTrainedConfig.from_pretrained(tmp_path / "student")
    loaded = get_policy_class("apprentice").from_pretrained(tmp_path / "student", config=config)
    torch.testing.assert_close(loaded.predict_action_chunk(batch), wanted, atol=0, rtol=0)
    assert loaded.contract == policy.contract and loaded.contract.horizon == 4


def test_select_action_walks_through_half_of_the_chunk(policy: ApprenticePolicy, batch: dict[str, Any]) -> None:
    chunk = policy.predict_action_chunk(batch)
    policy.reset()
    actions = torch.stack([policy.select_action(batch) for _ in range(3)], 1)
    torch.testing.assert_close(actions, chunk[:, [0, 1, 0]])  # half of the chunk, then it plans again


def test_processors_pass_raw_batches_through(policy: ApprenticePolicy, batch: dict[str, Any]) -> None:
    stats = {"observation.state": {"mean": torch.full((8,), 5.0), "std": torch.full((8,), 2.0)}}
    before, _ = make_pre_post_processors(policy.config, dataset_stats=stats)
    torch.testing.assert_close(before(dict(batch))["observation.state"], batch["observation.state"])


def test_unknown_vlm_is_named(small_dataset: Path, small_expert: Path) -> None:
    with pytest.raises(UserError, match="'nobody/nothing'"):
        make_student(small_dataset, small_expert, Path("nobody/nothing"))


def test_an_expert_of_another_contract_is_refused(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path
) -> None:

    expert = Path(shutil.copytree(small_expert, tmp_path / "expert"))
    libero_contract(64, "fast").having(gripper="opens", rotation=0).save(expert)
    with pytest.raises(UserError, match=r"(?s)rotation: .* has 0, .* has 180; fix:.*gripper: .* has opens"):
        make_student(small_dataset, expert, small_vlm)


def test_vlm_random_weights_differ_from_pretrained(small_vlm: Path) -> None:
    torch.manual_seed(1)
    pretrained, scratch = VLM.from_pretrained(str(small_vlm)), VLM.from_config(small_vlm)
    key = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(pretrained.model.state_dict()[key], scratch.model.state_dict()[key])
