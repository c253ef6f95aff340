"""Seer: the decoder's loss against its formula, the policy as LeRobot runs it, and the cut into encoder and decoder."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from tests.support import loss_on_held_out, resume
from torch.utils.data import default_collate

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.data.dataset import open_dataset
from apprentice.experts import DECODERS, load_expert
from apprentice.experts.seer.configuration_seer import SeerConfig
from apprentice.experts.seer.modeling_seer import SeerPolicy, augment
from apprentice.simulators.libero.convention import STATE as LIBERO_STATE

CPU = torch.device("cpu")


def config(**fields: object) -> SeerConfig:
    image = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
    inputs = {
        "observation.images.image": image,
        "observation.images.image2": image,
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    }
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    return SeerConfig(
        **{"device": "cpu", "gripper": "binary", "input_features": inputs, "output_features": outputs, **fields}
    )


def batch(size: int = 3) -> dict:
    torch.manual_seed(1)
    return {
        "observation.images.image": torch.rand(size, 3, 64, 64),
        "observation.images.image2": torch.rand(size, 3, 64, 64),
        "observation.state": torch.randn(size, 8),
        "action": torch.rand(size, 8, 7) * 2 - 1,
        "action_is_pad": torch.arange(8).expand(size, 8) >= torch.tensor([8, 5, 1])[:size, None],
        "task": ["put the bowl on the stove", "put the bowl on the plate", "open the drawer"][:size],
    }


def frames(root: Path, count: int = 5) -> dict:
    dataset = LeRobotDataset("local/small", root=root, delta_timestamps={"action": [t / 20 for t in range(8)]})
    return default_collate([dataset[i] for i in range(0, 4 * count, 4)])


def test_gradient_reaches_every_parameter() -> None:
    policy = SeerPolicy(config()).train()
    policy(batch())[0].backward()
    missing = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


def test_small_fast_and_told_apart_by_instruction_state_and_each_camera() -> None:
    policy, data = SeerPolicy(config()).eval(), batch(2)
    assert 2e6 < sum(p.numel() for p in policy.parameters()) < 3.5e6
    with torch.no_grad():
        before = policy.latents(data)
        assert before.shape == (2, 8, 192)
        for key in ("observation.images.image", "observation.images.image2", "observation.state", "task"):
            swapped = data[key][::-1] if key == "task" else data[key].flip(0)
            assert not torch.equal(policy.latents({**data, key: swapped}), before)
        assert (before[:, 0] - before[:, 1]).abs().max() > 1e-3  # the queries differ


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    policy, data = SeerPolicy(config(shift=0, jitter=0.0)).train(), batch()
    data["action"][..., 6] = data["action"][..., 6].sign()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    for _ in range(60):
        loss = policy(data)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = ~data["action_is_pad"]
    assert (policy.predict_action_chunk(data)[kept][:, 6] == data["action"][kept][:, 6]).all()
    assert loss.item() < 0.05


def test_augmentation_is_a_shift_with_repeated_edges() -> None:
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(augment(images, 0, 0.0), images)
    moved = augment(images, 4, 0.0)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="replicate")
    for before, after in zip(padded, moved, strict=True):
        windows = (before[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9))
        assert any(torch.allclose(window, after) for window in windows)


def test_cameras_of_different_sizes_are_each_encoded_as_they_are() -> None:
    """Every token of every camera reaches the latents, and one camera's size leaves another's tokens alone."""
    sizes = {"front": (48, 100), "wrist": (64, 64), "side": (48, 100), "top": (33, 40)}
    inputs = {f"observation.images.{k}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for k, size in sizes.items()}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    policy, data = SeerPolicy(config(input_features=inputs)).eval(), batch()
    data |= {key: torch.rand(3, *feature.shape) for key, feature in inputs.items() if "images" in key}
    tokens = policy.images(data)
    assert [part.shape[1] for part in tokens] == [2 * 4, 2 * 2, 2 * 4, 1 * 2]
    for key, part, places in zip(policy.config.image_features, tokens, policy.places, strict=True):
        alone = policy.visual(2 * data[key] - 1).flatten(2).transpose(1, 2) + places
        torch.testing.assert_close(part, alone, atol=1e-5, rtol=1e-5)
    policy.train()(data)[0].backward()
    assert all((places.grad.abs().amax(1) > 0).all() for places in policy.places)


@pytest.mark.parametrize("size", [1, 6])
def test_a_state_needs_no_gripper_and_may_have_one_entry(size: int) -> None:
    inputs = {"observation.images.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (size,))
    policy, data = SeerPolicy(config(input_features=inputs)).train(), batch()
    data["observation.state"] = torch.randn(3, size, requires_grad=True)
    policy(data)[0].backward()
    assert (data["observation.state"].grad.abs() > 0).any(0).all()


def test_noise_on_the_state_is_a_millimetre_and_a_hundredth_of_a_radian(small_dataset: Path) -> None:
    """Measured behind the processors' own normalisation: what the policy's first layer of the state is given."""
    meta = open_dataset(small_dataset).meta
    policy = SeerPolicy(config(position_noise_mm=1.0, angle_noise_rad=0.01), dataset_meta=meta).train()
    assert Contract.of_dataset(small_dataset).state == LIBERO_STATE  # three lengths, three angles, two fingers
    assert (torch.as_tensor(meta.stats["observation.state"]["std"]) > 0.01).all()
    given: list[torch.Tensor] = []
    policy.state.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach()))
    before, _ = make_pre_post_processors(policy.config, dataset_stats=meta.stats)
    raw = {**batch(1), "observation.state": torch.full((1, 8), 0.5), "task": ["open the drawer"]}
    data = before(raw)
    data = {
        key: value.expand(250, *value.shape[1:]) if torch.is_tensor(value) else value for key, value in data.items()
    }
    data["task"] = data["task"] * 250
    std = torch.as_tensor(meta.stats["observation.state"]["std"], dtype=torch.float32)
    with torch.no_grad():
        for _ in range(2):
            policy.latents(data)
    noise = (torch.cat(given) - data["observation.state"][:1]) * std
    wanted = torch.tensor([0.001] * 3 + [0.01] * 3 + [0.001] * 2)
    # 500 draws: the deviation's own standard error is 1 / sqrt(1000) = 3.2 %, the mean's 1 / sqrt(500) = 4.5 %
    assert ((noise.std(0) / wanted - 1).abs() < 0.16).all(), noise.std(0)
    assert (noise.mean(0).abs() < 0.2 * wanted).all()
    policy.eval().latents(data)
    assert torch.equal(given[-1], data["observation.state"])


def test_noise_in_units_needs_the_statistics_that_normalise_the_state(
    checkpoint: Path, small_dataset: Path, tmp_path: Path
) -> None:
    meta = open_dataset(small_dataset).meta
    policy = SeerPolicy.from_pretrained(checkpoint).train()
    wanted = torch.as_tensor(meta.stats["observation.state"]["std"], dtype=torch.float32)
    assert policy.state_std is not None
    torch.testing.assert_close(policy.state_std, wanted)
    policy(batch())
    others = {**meta.stats, "observation.state": {"std": 2 * wanted}}
    given = SeerPolicy.from_pretrained(checkpoint, dataset_stats=others, dataset_meta=meta)
    torch.testing.assert_close(given.noise(), policy.noise() / 2)
    policy.save_pretrained(tmp_path)
    alone = SeerPolicy.from_pretrained(tmp_path).train()
    with pytest.raises(UserError, match=r"statistics of observation.state.*found none; fix"):
        alone(batch())
    alone.config.position_noise_mm = alone.config.angle_noise_rad = 0.0
    alone(batch())


def test_select_action_looks_again_every_n_action_steps() -> None:
    policy, data = SeerPolicy(config(n_action_steps=3)), batch(2)
    other = {**data, "observation.state": data["observation.state"] + 1}
    chunk, later = policy.predict_action_chunk(data), policy.predict_action_chunk(other)
    taken = torch.stack([policy.select_action(d) for d in (data, other, other, other)], dim=1)
    assert torch.equal(taken, torch.cat([chunk[:, :3], later[:, :1]], dim=1))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"n_action_steps": 9}, "n_action_steps"),
        ({"input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}}, "images"),
        ({"input_features": {"observation.images.a": PolicyFeature(FeatureType.VISUAL, (3, 31, 60))}}, "32 px"),
        ({"gripper": "auto"}, "statistics of the action"),
        ({"gripper": "two"}, "gripper auto, binary, continuous"),
        ({"normalization_mapping": {}}, "normalization_mapping"),
        ({"input_features": {"observation.images.a": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))}}, "state"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict, word: str) -> None:
    with pytest.raises(UserError, match=rf"expected.*{word}.*found.*fix"):
        SeerPolicy(config(**fields))


def test_lerobot_train_writes_a_checkpoint_that_another_policy_reads_back(checkpoint: Path) -> None:
    names = {p.name for p in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} <= names
    policy = SeerPolicy.from_pretrained(checkpoint, strict=True)
    again = SeerPolicy(policy.config).eval()
    data = batch()
    assert not torch.equal(again.latents(data), policy.latents(data))
    again.load_state_dict(policy.state_dict())
    assert torch.equal(again.latents(data), policy.latents(data))


def test_the_held_out_episodes_are_scored(run: Path, checkpoint: Path, small_dataset: Path) -> None:
    found = re.findall(r"step (\d+): eval_loss=([\d.]+)", (run / "printed.txt").read_text())
    assert [step for step, _ in found] == ["2"]
    assert float(found[0][1]) == pytest.approx(loss_on_held_out(checkpoint, small_dataset), abs=1e-4)


def test_training_resumes(run: Path) -> None:
    first, second = (run / "checkpoints" / step / "pretrained_model" for step in ("000001", "000002"))
    straight = SeerPolicy.from_pretrained(second).state_dict()
    resume(run, 1)
    resumed = SeerPolicy.from_pretrained(second).state_dict()
    start = SeerPolicy.from_pretrained(first).state_dict()
    assert any(not torch.equal(resumed[key], start[key]) for key in start)
    assert all(torch.allclose(resumed[key], straight[key], atol=2e-3) for key in start)


def test_expert_encodes_raw_frames_to_what_its_policy_acts_on(checkpoint: Path, small_dataset: Path) -> None:
    expert, data = load_expert(checkpoint, CPU), frames(small_dataset)
    latents = expert.encode(data)
    assert latents.shape == (5, expert.horizon, expert.latent_dim) and not latents.requires_grad
    policy = SeerPolicy.from_pretrained(checkpoint)
    pre, post = make_pre_post_processors(policy.config, str(checkpoint))
    actions = post(expert.decoder.decode(latents))
    assert torch.equal(actions, post(policy.predict_action_chunk(pre(data))))
    as_bytes = {k: (v * 255).round().byte() if k.startswith("observation.images") else v for k, v in data.items()}
    assert torch.allclose(expert.encode(as_bytes), latents, atol=1e-5)
    observation = {k: v for k, v in data.items() if k.startswith("observation.") or k == "task"}
    assert torch.equal(expert.encode(observation), latents)


def test_expert_normalises_with_its_own_statistics(checkpoint: Path, small_dataset: Path) -> None:
    expert = load_expert(checkpoint, CPU)
    offset, scale = expert.action_affine()
    dataset = LeRobotDataset("local/small", root=small_dataset)
    recorded = torch.stack([row["action"] for row in dataset.hf_dataset])
    assert torch.allclose(offset - scale, recorded.min(0).values, atol=1e-6)
    assert torch.allclose(offset + scale, recorded.max(0).values, atol=1e-6)
    raw = frames(small_dataset)
    policy = SeerPolicy.from_pretrained(checkpoint)
    normalised = make_pre_post_processors(policy.config, str(checkpoint))[0](raw)["action"]
    assert torch.allclose((raw["action"] - offset) / scale, normalised, atol=1e-5)


def test_checkpoint_carries_the_contract_of_its_data(checkpoint: Path, small_dataset: Path) -> None:
    contract = Contract.load(checkpoint)
    assert contract == Contract.load(small_dataset / "meta").having(horizon=8)
    other = SimpleNamespace(root=small_dataset.parent / "other", stats={})
    contract.having(horizon=None, rotation=0).save(other.root / "meta")
    with pytest.raises(UserError, match="rotation"):
        SeerPolicy.from_pretrained(checkpoint, dataset_meta=other)


def test_the_committed_expert_acts_as_it_always_did() -> None:
    """Its numbers at the commit that added `seer_full`; a change of them is a change of the demo's expert."""
    expert = load_expert(Path(__file__).parents[2] / "assets" / "seer", CPU)

    def ramp(*shape: int) -> torch.Tensor:
        return (torch.arange(math.prod(shape)) * 0.6180339887 % 1).reshape(shape).float()

    image = ramp(1, 3, 128, 128)
    cameras = {"observation.images.image": image, "observation.images.image2": image.flip(-1)}
    actions = expert.decoder.decode(
        expert.encode({**cameras, "observation.state": ramp(1, 8), "task": ["put the bowl on the stove"]})
    )
    assert actions[0, 0, :3].tolist() == pytest.approx([-0.0818206, -0.3148897, -0.0315079], abs=1e-4)
    assert actions[0, 7, :3].tolist() == pytest.approx([0.0759013, -0.0801508, 0.0039858], abs=1e-4)
    assert (actions[..., 6] == -1).all()


def test_decoder_is_rebuilt_from_its_settings(checkpoint: Path) -> None:
    expert = load_expert(checkpoint, CPU)
    rebuilt = DECODERS[expert.kind](**expert.decoder.settings)
    rebuilt.load_state_dict(expert.decoder.state_dict())
    latents = torch.randn(2, expert.horizon, expert.latent_dim)
    assert torch.equal(rebuilt.decode(latents), expert.decoder.decode(latents))


def test_what_is_no_expert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="checkpoint folder"):
        load_expert(tmp_path, CPU)
    (tmp_path / "config.json").write_text('{"type": "pi0"}')
    with pytest.raises(UserError, match="pi0"):
        load_expert(tmp_path, CPU)
