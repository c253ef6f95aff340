"""The full Seer as a policy: what a window sees, what its losses are, how it trains under LeRobot and acts."""

import json
from pathlib import Path

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from tests.support import train
from torch import Tensor

import lerobot_policy_apprentice  # noqa: F401  registers the policy
from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.experts import DECODERS, load_expert
from apprentice.experts.seer_full.configuration_seer_full import SeerFullConfig
from apprentice.experts.seer_full.encoders import letter_tokenizer
from apprentice.experts.seer_full.foresight import to_patches
from apprentice.experts.seer_full.modeling_seer_full import SeerFullPolicy

CAMERAS = ("observation.images.image", "observation.images.image2")
TASKS = ["put the bowl on the stove", "open the drawer"]
TINY = {
    "mae": None,
    "clip": None,
    "n_obs_steps": 3,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "resampler_tokens": 2,
    "resampler_layers": 1,
    "foresight_tokens": 4,
    "foresight_layers": 1,
    "image_size": 32,
    "vision_width": 32,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "text_features": 16,
    "shift": 2,
}


def config(**fields: object) -> SeerFullConfig:
    image = PolicyFeature(FeatureType.VISUAL, (3, 48, 64))
    inputs = {key: image for key in CAMERAS} | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    features = {"input_features": inputs, "output_features": outputs}
    return SeerFullConfig(**{"device": "cpu", "gripper": "binary", **features, **TINY, **fields})


def batch() -> dict:
    """Two windows of 3 steps with 3 frames more; the second ends with its last step."""
    torch.manual_seed(1)
    frames_end = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    return {
        **{key: torch.rand(2, 6, 3, 48, 64) for key in CAMERAS},
        "observation.state": torch.randn(2, 6, 8),
        "observation.state_is_pad": frames_end,
        "action": torch.rand(2, 5, 7) * 2 - 1,
        "action_is_pad": frames_end[:, :5],
        "task": TASKS,
    }


def observed(data: dict, frames: object) -> dict:
    """Some frames of a batch, and its instructions."""
    return {k: v[:, frames] for k, v in data.items() if torch.is_tensor(v) and "action" not in k} | {
        "task": data["task"]
    }


@pytest.fixture(scope="module")
def policy() -> SeerFullPolicy:
    torch.manual_seed(0)
    return SeerFullPolicy(config()).eval()


def per_step(policy: SeerFullPolicy, data: dict) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        images = policy.images(data)[:, :3]
        return policy.backbone(policy.steps(images, data["observation.state"][:, :3], data["task"]))


def test_a_step_sees_the_past_and_the_present_alone(policy: SeerFullPolicy) -> None:
    data = batch()
    foresight, latents = per_step(policy, data)
    for key in (*CAMERAS, "observation.state"):
        changed = {**data, key: data[key].clone()}
        changed[key][:, 1] += 0.5
        for before, after in zip((foresight, latents), per_step(policy, changed), strict=True):
            assert torch.equal(before[:, 0], after[:, 0])
            assert all((before[:, step] - after[:, step]).abs().max() > 1e-4 for step in (1, 2)), key
    swapped = per_step(policy, {**data, "task": TASKS[::-1]})[1]
    assert (swapped - latents).abs().amax((1, 2, 3)).min() > 1e-4


def test_actions_follow_from_the_expected_future(policy: SeerFullPolicy) -> None:
    """A step's action tokens see its foresight tokens, which see no other and no action."""
    foresight, latents = per_step(policy, batch())
    kept = policy.backbone.foresight_tokens.data.clone()
    policy.backbone.foresight_tokens.data[0] += torch.linspace(-1, 1, 32)
    other_foresight, other_latents = per_step(policy, batch())
    policy.backbone.foresight_tokens.data.copy_(kept)
    assert (other_latents - latents).abs().amax((0, 2, 3)).min() > 1e-5
    assert torch.equal(other_foresight[:, :, 1:], foresight[:, :, 1:])
    kept = policy.backbone.action_tokens.data.clone()
    policy.backbone.action_tokens.data[0] += torch.linspace(-1, 1, 32)
    other_foresight, other_latents = per_step(policy, batch())
    policy.backbone.action_tokens.data.copy_(kept)
    assert torch.equal(other_foresight, foresight) and torch.equal(other_latents[:, :, 1:], latents[:, :, 1:])
    assert not torch.equal(other_latents[:, :, 0], latents[:, :, 0])


@torch.no_grad()
def test_frames_before_the_episode_leave_no_trace(policy: SeerFullPolicy) -> None:
    data = observed(batch(), slice(0, 3))
    data["observation.state_is_pad"] = torch.tensor([[True, True, False], [True, False, False]])
    latents = policy.latents(data)
    assert torch.allclose(latents[:1], policy.latents(row(observed(data, 2), 0)), atol=1e-6)
    assert torch.allclose(latents[1:], policy.latents(row(observed(data, slice(1, 3)), 1)), atol=1e-6)
    del data["observation.state_is_pad"]
    assert not torch.allclose(latents, policy.latents(data), atol=1e-3)
    longer = {k: torch.cat([v[:, :1], v], 1) if torch.is_tensor(v) else v for k, v in data.items()}
    assert torch.allclose(policy.latents(longer), policy.latents(data), atol=1e-6)  # more than a window holds


def row(data: dict, index: int) -> dict:
    """One sample of a batch, as it was observed."""
    return {k: v[index : index + 1] for k, v in data.items() if not k.endswith("_is_pad")}


@torch.no_grad()
def test_the_loss_is_that_of_every_step_and_of_the_pictures_that_came(policy: SeerFullPolicy) -> None:
    data = batch()
    loss, parts = policy(data)
    foresight, latents = per_step(policy, data)
    arm, gripper, pictures = [], [], []
    images, painted = policy.images(data), policy.painter(foresight)
    for b in range(2):
        for step in range(3):
            for ahead in range(3):
                if not data["action_is_pad"][b, step + ahead]:
                    target = {"action": data["action"][b, step + ahead].expand(1, 1, 7)}
                    metrics = policy.decoder.loss(latents[b, step, ahead].expand(1, 1, -1), target)[1]
                    arm.append(metrics["arm_loss"])
                    gripper.append(metrics["gripper_loss"])
            if not data["observation.state_is_pad"][b, step + 3]:
                pictures.append((painted[b, step] - to_patches(images[b, step + 3], 16)).square().mean().item())
    assert (len(arm), len(pictures)) == (9 + 6, 3)
    wanted = {"arm_loss": arm, "gripper_loss": gripper, "foresight_loss": pictures}
    for name, terms in wanted.items():
        assert parts[name] == pytest.approx(sum(terms) / len(terms), rel=1e-4), name
    total = parts["arm_loss"] + 0.01 * parts["gripper_loss"] + 0.1 * parts["foresight_loss"]
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_gradient_reaches_every_parameter_and_training_helps() -> None:
    torch.manual_seed(0)
    policy, data = SeerFullPolicy(config(dropout=0.0, shift=0)).train(), batch()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss, parts = policy(data)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert not [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        optimizer.step()
        losses.append(parts)
    assert all(losses[-1][name] < 0.9 * losses[0][name] for name in ("arm_loss", "foresight_loss"))


def test_without_foresight_nothing_is_painted() -> None:
    policy = SeerFullPolicy(config(foresight_steps=0))
    assert not [n for n in policy.state_dict() if n.startswith("painter.") or "foresight" in n]
    assert policy.config.observation_delta_indices == [0, 1, 2]
    assert set(policy(observed(batch(), slice(0, 3)) | {k: v for k, v in batch().items() if "action" in k})[1]) == {
        "arm_loss",
        "gripper_loss",
    }


def test_without_ensembling_each_step_takes_the_first_action_of_its_chunk() -> None:
    policy, data = SeerFullPolicy(config(temporal_ensemble_coeff=None)), batch()
    for now in range(5):
        chunk = policy.predict_action_chunk(
            observed(data, slice(max(0, now - 2), now + 1))
            | {"observation.state_is_pad": torch.zeros(2, 3, dtype=torch.bool)[:, : now + 1]}
        )
        assert torch.allclose(policy.select_action(observed(data, now)), chunk[:, 0], atol=1e-5)
    policy.reset()
    alone = policy.predict_action_chunk(
        observed(data, 4) | {"observation.state_is_pad": torch.zeros(2, 1, dtype=torch.bool)}
    )
    assert torch.allclose(policy.select_action(observed(data, 4)), alone[:, 0], atol=1e-5)


def test_letters_are_tokens() -> None:
    tokenizer = letter_tokenizer()
    ids = tokenizer(["Put it", "é"])["input_ids"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in ids[0]] == [
        "<|startoftext|>",
        "p",
        "u",
        "t</w>",
        "i",
        "t</w>",
        "<|endoftext|>",
    ]
    assert len(ids[1]) == 4 and max(ids[1]) == tokenizer.eos_token_id == len(tokenizer) - 1


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"foresight_tokens": 5}, "square"),
        ({"gripper_states": 3}, "gripper_states"),
        ({"width": 40}, "width"),
        ({"n_obs_steps": 0}, "n_obs_steps"),
        ({"mae": "no/such"}, "ViT-MAE"),
        ({"clip": "no/such"}, "CLIP"),
        ({"input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}}, "images"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict, word: str) -> None:
    with pytest.raises(UserError, match=rf"expected.*{word}.*found.*fix"):
        SeerFullPolicy(config(**fields))


@pytest.fixture(scope="module")
def checkpoint(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two steps of `lerobot-train --policy.type=seer_full`, in this process: imports take long."""
    output = tmp_path_factory.mktemp("runs") / "seer_full"
    sizes = [f"--policy.{name}={'null' if value is None else value}" for name, value in TINY.items()]
    return train(small_dataset, output, "--policy.type=seer_full", *sizes)


def test_lerobot_train_writes_a_checkpoint_that_acts_and_teaches(checkpoint: Path, small_dataset: Path) -> None:
    policy = SeerFullPolicy.from_pretrained(checkpoint)
    assert json.loads((checkpoint / "config.json").read_text())["type"] == "seer_full"
    assert Contract.load(checkpoint) == Contract.load(small_dataset / "meta").having(horizon=3)
    policy.save_pretrained(checkpoint.parent / "again")
    again = SeerFullPolicy.from_pretrained(checkpoint.parent / "again")
    torch.manual_seed(4)
    raw = {key: torch.rand(2, 3, 64, 64) for key in CAMERAS} | {"observation.state": torch.randn(2, 8), "task": TASKS}
    pre, post = make_pre_post_processors(policy.config, str(checkpoint))
    expert = load_expert(checkpoint, torch.device("cpu"))
    actions = post(policy.predict_action_chunk(pre(raw)))
    assert actions.shape == (2, 3, 7)
    assert torch.equal(actions, post(again.predict_action_chunk(pre(raw))))
    assert torch.equal(actions, post(expert.decoder.decode(expert.encode(raw))))
    assert (expert.horizon, expert.latent_dim, expert.action_dim) == (3, 32, 7)
    rebuilt = DECODERS[expert.kind](**expert.decoder.settings)
    rebuilt.load_state_dict(expert.decoder.state_dict())
    for _ in range(4):
        assert policy.select_action(pre(raw)).shape == (2, 7)
