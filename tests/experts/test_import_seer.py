"""Checkpoints in the public Seer code's format: every tensor accounted for, and the forward pass that they were for."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation
from tests import seer_published as published
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from apprentice.common.errors import UserError
from apprentice.common.files import read_json
from apprentice.experts import load_expert
from apprentice.experts.seer_full.backbone import usual_angles
from apprentice.experts.seer_full.encoders import letter_tokenizer, prepare
from apprentice.experts.seer_full.foresight import to_patches
from apprentice.experts.seer_full.import_seer import import_seer
from apprentice.experts.seer_full.modeling_seer_full import SeerFullPolicy

CAMERAS = ("observation.images.image", "observation.images.image2")
TASKS = ["put the bowl on the stove", "open the drawer"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP text model with its tokenizer, as Transformers saves them."""
    torch.manual_seed(3)
    folder, tokenizer = tmp_path_factory.mktemp("clip"), letter_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=published.TEXT,
        intermediate_size=4 * published.TEXT,
        num_hidden_layers=1,
        num_attention_heads=published.TEXT // 64,
        projection_dim=published.FEATURES,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save(path: Path, weights: dict[str, Tensor]) -> Path:
    """As the public code's training loop does, inside its wrapper for several GPUs."""
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in weights.items())
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}
    scheduler = {"last_epoch": 3, "lr_lambdas": [{}]}
    torch.save(
        {
            "epoch": 3,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer,
            "lr_scheduler_state_dict": scheduler,
        },
        path,
    )
    return path


def window(size: int = 2) -> dict:
    torch.manual_seed(7)
    images = {key: torch.rand(size, published.STEPS, 3, 32, 32) for key in CAMERAS}
    return {**images, "observation.state": 2 * torch.randn(size, published.STEPS, 8), "task": TASKS[:size]}


def expected(weights: dict[str, Tensor], batch: dict, words: Tensor) -> dict[str, Tensor]:
    """The published equations on a batch; the weights were trained on pictures that LeRobot turns, and on LIBERO's
    axis-angle numbers as the public loader takes them: for Euler angles, which SciPy brings into their ranges.
    """
    images = [prepare(batch[key].flatten(0, 1).flip(-1, -2), 32).unflatten(0, (2, -1)) for key in CAMERAS]
    state = batch["observation.state"].clone()
    angles = Rotation.from_euler("xyz", state[..., 3:6].flatten(0, 1).numpy()).as_euler("xyz")
    state[..., 3:6] = torch.from_numpy(angles).unflatten(0, state.shape[:2])
    return published.seer(weights, (images[0], images[1]), state[..., :6], state[..., 6:], words)


@pytest.fixture(scope="module", params=[(384, 2, "whole"), (384, 1, "trained alone"), (1024, 1, "trained alone")])
def imported(
    request: pytest.FixtureRequest, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SeerFullPolicy, dict[str, Tensor], dict, Path]:
    """A policy, the weights that it comes from, the importer's report, its folder."""
    width, layers, kind = request.param
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("seer")
    weights = published.noise(published.trained_shapes(width, layers))
    vision = published.noise(published.vision_shapes())
    frozen = {f"vision_encoder.{name}": tensor for name, tensor in vision.items()}
    mae = folder / "mae.pth"
    if kind == "whole":
        frozen |= published.noise(published.text_shapes(), "clip_model.")
        weights |= frozen
        weights["attention_mask"] = torch.zeros(9, 9)
        weights["image_decoder_position_embedding"] = torch.zeros(1, 8, width)
        weights["vision_encoder.decoder_embed.weight"] = torch.zeros(4, published.VISION)
    else:
        torch.save({"model": vision}, mae)
    report = import_seer(save(folder / "39.pth", weights), folder / "expert", str(mae), str(clip_folder))
    policy = SeerFullPolicy.from_pretrained(folder / "expert")
    return policy, {**weights, **frozen}, report, folder


def features(policy: SeerFullPolicy, weights: dict[str, Tensor], clip_folder: Path) -> Tensor:
    tokens = policy.steps.text.tokenizer(TASKS, padding=True, return_tensors="pt")["input_ids"]
    if "clip_model.ln_final.weight" in weights:
        return published.clip(weights, tokens)
    return CLIPTextModelWithProjection.from_pretrained(clip_folder)(input_ids=tokens).text_embeds


@torch.no_grad()
def test_forward_agrees_with_the_published_equations(imported: tuple, clip_folder: Path) -> None:
    policy, weights, _, _ = imported
    batch = window()
    wanted = expected(weights, batch, features(policy, weights, clip_folder))
    images = policy.images(batch)
    foresight, latents = policy.backbone(policy.steps(images, batch["observation.state"], TASKS))
    arm, logit = policy.decoder.heads(latents)
    found = {
        "latents": latents,
        "arm": arm,
        "gripper": logit.sigmoid()[..., None],
        "pictures": policy.painter(foresight),
    }
    for name, value in wanted.items():
        assert value.abs().mean() > 0.1, name
        assert (found[name] - value).abs().max() < 1e-4, name
    assert (latents[:, :, 0] - latents[:, :, 1]).abs().max() > 0.1  # the action tokens differ
    assert torch.allclose(to_patches(images, 16), published.patches(images), atol=1e-5)


@torch.no_grad()
def test_acting_agrees_with_the_published_equations(imported: tuple, clip_folder: Path) -> None:
    """Frame by frame: the window grows, then slides, and each action is an average of up to three chunks."""
    policy, weights, _, _ = imported
    torch.manual_seed(9)
    frames = {key: torch.rand(2, 5, 3, 32, 32) for key in CAMERAS} | {"observation.state": 2 * torch.randn(2, 5, 8)}
    words = features(policy, weights, clip_folder)
    chunks: list[Tensor] = []
    policy.reset()
    for now in range(5):
        recent = slice(max(0, now - published.STEPS + 1), now + 1)
        wanted = expected(weights, {k: v[:, recent] for k, v in frames.items()}, words)
        chunks.append(torch.cat([wanted["arm"], wanted["gripper"]], -1)[:, -1])
        said = [chunks[then][:, now - then] for then in range(max(0, now - published.CHUNK + 1), now + 1)]
        factors = torch.tensor([2.718281828459045 ** (-0.01 * i) for i in range(len(said))])
        mean = sum(f * s for f, s in zip(factors, said, strict=True)) / factors.sum()
        action = policy.select_action({**{k: v[:, now] for k, v in frames.items()}, "task": TASKS})
        assert torch.allclose(action[:, :6], mean[:, :6], atol=1e-4)
        assert torch.equal(action[:, 6], torch.where(mean[:, 6] > 0.5, 1.0, -1.0))


def test_angles_come_into_their_ranges_as_scipy_brings_them() -> None:
    torch.manual_seed(0)
    angles = 8 * torch.rand(1000, 3, dtype=torch.float64) - 4
    angles[0] = torch.tensor([3.3, 0.2, -0.1])  # a hand that points down: above pi in LIBERO's axis-angle
    wanted = torch.from_numpy(Rotation.from_euler("xyz", angles.numpy()).as_euler("xyz"))
    assert (usual_angles(angles) - wanted).abs().max() < 1e-9
    assert torch.allclose(wanted[0], torch.tensor([3.3 - 2 * torch.pi, 0.2, -0.1], dtype=torch.float64))


def test_every_tensor_is_mapped_or_named_as_unused(imported: tuple) -> None:
    policy, weights, report, folder = imported
    assert read_json(folder / "expert" / "imported.json") == report
    in_file = {n for n in weights if not report["elsewhere"] or not n.startswith("vision_encoder.")}
    given = set(report["mapped"]) | set(report["unused"])
    assert in_file <= given and not set(report["mapped"]) & set(report["unused"])
    filled = [ours for names in report["mapped"].values() for ours in names]
    assert len(filled) == len(set(filled))
    rest = {name for name in policy.state_dict() if name not in filled}
    assert rest == {name for name in policy.state_dict() if name.startswith(tuple(report["elsewhere"]))}
    assert {"recon_state_decoder.0.weight", "action_projector.bias"} <= set(report["unused"])
    frozen = [p for n, p in policy.named_parameters() if n.startswith(("steps.vision.", "steps.text."))]
    assert frozen and not any(p.requires_grad for p in frozen)


@torch.no_grad()
def test_imported_folder_is_an_expert_that_leaves_actions_as_they_are(imported: tuple, clip_folder: Path) -> None:
    policy, weights, _, folder = imported
    expert = load_expert(folder / "expert", torch.device("cpu"))
    batch = window()
    frame = {k: v[:, -1] if k != "task" else v for k, v in batch.items()}
    alone = expected(
        weights, {k: v[:, -1:] for k, v in batch.items() if k != "task"}, features(policy, weights, clip_folder)
    )
    assert torch.allclose(expert.encode(frame), alone["latents"][:, -1], atol=1e-4)
    whole = expected(weights, batch, features(policy, weights, clip_folder))
    assert torch.allclose(expert.encode(batch), whole["latents"][:, -1], atol=1e-4)
    offset, scale = expert.action_affine()
    assert not offset.any() and (scale == 1).all()
    assert (expert.horizon, expert.latent_dim) == (3, weights["text_projector.weight"].shape[0])


def test_calvin_has_one_flag_for_the_gripper(imported: tuple, clip_folder: Path, tmp_path: Path) -> None:
    policy, _, _, folder = imported
    import_seer(folder / "39.pth", tmp_path / "calvin", str(folder / "mae.pth"), str(clip_folder), "calvin")
    calvin = SeerFullPolicy.from_pretrained(tmp_path / "calvin")
    batch = window()
    images = policy.images(batch)
    state = batch["observation.state"][..., :7].clone()
    state[..., 3:6] = state[..., 3:6].clamp(-1, 1)  # LIBERO's angles are wrapped, see test_angles
    state[..., 6] = state[..., 6].sign()
    flags = torch.stack([state[..., 6] < 0, state[..., 6] > 0], -1).float()
    with torch.no_grad():
        found = calvin.steps(images, state, TASKS)
        assert torch.allclose(found, policy.steps(images, torch.cat([state[..., :6], flags], -1), TASKS), atol=1e-6)


def test_mae_from_a_transformers_folder_is_the_same(imported: tuple, clip_folder: Path, tmp_path: Path) -> None:
    policy, weights, _, _ = imported
    policy.steps.vision.model.save_pretrained(tmp_path / "mae")
    trained = {n: t for n, t in weights.items() if not n.startswith("vision_encoder.")}
    report = import_seer(save(tmp_path / "a.pth", trained), tmp_path / "out", str(tmp_path / "mae"), str(clip_folder))
    assert "steps.vision." in report["elsewhere"]
    again = SeerFullPolicy.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in policy.state_dict().items())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda w: w.pop("mask_token"), "missing: painter.mask_token"),
        (lambda w: w.update({"lora.a": torch.zeros(2)}), "lora.a .*unknown"),
        (lambda w: w.update({"obs_tokens": torch.zeros(1, 1, 8, 5)}), "obs_tokens"),
        (lambda w: w.pop("action_pred_token"), "action_pred_token"),
        (lambda w: w.clear(), "found none"),
    ],
)
def test_what_is_no_seer_is_refused(clip_folder: Path, tmp_path: Path, change: object, word: str) -> None:
    weights = published.noise(published.trained_shapes(384, 1))
    change(weights)  # type: ignore[operator]
    torch.save({"model": published.noise(published.vision_shapes())}, tmp_path / "mae.pth")
    with pytest.raises(UserError, match=rf"(?s)expected.*{word}.*fix"):
        import_seer(save(tmp_path / "a.pth", weights), tmp_path / "out", str(tmp_path / "mae.pth"), str(clip_folder))
    assert not (tmp_path / "out").exists()


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    torch.save({"model_state_dict": Path("evil")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="expected a file of tensors"):
        import_seer(tmp_path / "a.pth", tmp_path / "out")
