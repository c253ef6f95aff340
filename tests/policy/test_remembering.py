"""A student that reads the past: what it is taught, what it remembers, what that costs, and when it forgets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experts import zoo
from tests.support import make_batch, make_history, make_student
from tests.vlm.families import paligemma2

from apprentice.common.errors import UserError
from apprentice.data.batch import EXPERT_LATENTS, PREFIX
from apprentice.data.contract import Contract
from apprentice.data.dataset import open_dataset
from apprentice.distill.caches.cache import cached
from apprentice.distill.samples import Samples
from apprentice.distill.stages import StageConfig, align
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.serve.checkpoint import Checkpoint
from apprentice.vlm.families import CAUSAL_TOKEN_TYPE

STEP_COUNT, SPACING = 3, 2  # of a Seer that plans 4 actions


@pytest.fixture
def policy(small_dataset: Path, small_expert: Path, small_vlm: Path) -> ApprenticePolicy:
    return make_student(small_dataset, small_expert, small_vlm, n_obs_steps=STEP_COUNT)


@pytest.fixture
def episode(small_dataset: Path) -> list[dict[str, Any]]:
    """What two robots with different instructions see, every other frame of 10."""
    return [make_batch(small_dataset, (frame, 11 + frame)) for frame in range(0, 10, SPACING)]


@pytest.fixture
def passed(policy: ApprenticePolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens a row each pass of the language model was given."""
    counts: list[int] = []
    own = policy.vlm._pass

    def counted(prompt: Any, *arguments: Any, **settings: Any) -> Any:
        counts.append(len(prompt))
        return own(prompt, *arguments, **settings)

    monkeypatch.setattr(policy.vlm, "_pass", counted)
    return counts


def together(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps of an episode as one batch (B, K, ...)."""
    seen = {key: torch.stack([step[key] for step in steps], 1) for key in steps[0] if key != "task"}
    return seen | {"task": steps[-1]["task"]}


@torch.no_grad()
def test_what_is_remembered_is_what_would_be_read_anew(
    policy: ApprenticePolicy, episode: list[dict[str, Any]], passed: list[int]
) -> None:
    """Also when the window slides: the fourth step of at most three forgets the first two."""
    remembered = ([0], [0, 1], [0, 1, 2], [2, 3], [2, 3, 4])
    for now, seen in enumerate(remembered):
        plan = policy.predict_action_chunk(episode[now])
        anew = policy.predict_action_chunk(together([episode[step] for step in seen]))
        torch.testing.assert_close(plan, anew, atol=1e-4, rtol=0)
    turn = passed[0]
    assert passed[::2] == [turn, turn, turn, 2 * turn, turn]  # one turn a step, but for the one that slides
    assert passed[1::2] == [len(seen) * turn for seen in remembered]
    alone = policy.predict_action_chunk(together(episode[4:5]))
    assert (alone - plan).abs().max() > 1e-3


@torch.no_grad()
def test_each_step_keeps_the_instruction_that_was_given_with_it(
    policy: ApprenticePolicy, episode: list[dict[str, Any]]
) -> None:
    episode[3]["task"] = ["now turn on the stove, please", "stop"]
    plans = [policy.predict_action_chunk(step) for step in episode[:4]]
    policy.reset()
    again = [policy.predict_action_chunk(step) for step in episode[2:4]]  # what the fourth step is read with
    torch.testing.assert_close(plans[3], again[1], atol=1e-4, rtol=0)


def test_select_action_remembers_what_it_planned_from_until_reset(
    policy: ApprenticePolicy, episode: list[dict[str, Any]], passed: list[int]
) -> None:
    actions = [policy.select_action(episode[frame // SPACING]) for frame in range(6)]
    assert len(passed) == 3  # a plan every other frame
    chunk = policy.predict_action_chunk(together(episode[:3]))
    torch.testing.assert_close(torch.stack(actions[4:], 1), chunk[:, :SPACING], atol=1e-4, rtol=0)
    one = {key: value[:1] for key, value in episode[0].items()}
    with pytest.raises(UserError, match=r"observations of 2 episodes as before, found 1; fix: call the policy's reset"):
        policy.predict_action_chunk(one)
    policy.reset()
    torch.testing.assert_close(policy.select_action(episode[0]), actions[0], atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), "<image>"])
def test_a_step_whose_plan_failed_is_not_remembered(
    policy: ApprenticePolicy, episode: list[dict[str, Any]], wrong: float | str
) -> None:
    """What comes after it equals, to the last bit, what comes without it; also where the window slides."""
    steps = [*episode, *episode]
    expected = [policy.predict_action_chunk(step) for step in steps]
    policy.reset()
    for number, step in enumerate(steps):
        bad = {**step, "observation.state": step["observation.state"].clone()}
        if isinstance(wrong, str):
            bad["task"] = [f"{wrong} {text}" for text in step["task"]]
        else:
            bad["observation.state"][1, 3] = wrong
        with pytest.raises(Exception, match=r"finite actions, found|image"):
            policy.predict_action_chunk(bad)
        assert torch.equal(policy.predict_action_chunk(step), expected[number])


def test_what_the_loader_is_asked_for(policy: ApprenticePolicy) -> None:
    config = policy.config
    assert config.observation_delta_indices == [-4, -2, 0]
    assert config.action_delta_indices == list(range(-4, 4))
    config.history_spacing = 6
    assert config.action_delta_indices == [*range(-12, -8), *range(-6, -2), *range(4)]


@torch.no_grad()
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_every_step_is_supervised_and_none_before_the_episode(
    policy: ApprenticePolicy, small_dataset: Path, stage: str
) -> None:
    """The loss is the mean of what each step alone, with its own past, target and actions, would cost."""
    policy.set_stage(stage)
    frames = (0, 3, 18)  # with one, two and three steps; no action is padding
    losses = []
    for frame, first in zip(frames, (0, 0, 11), strict=True):
        present = [step for step in (frame - 4, frame - 2, frame) if step >= first]
        for count, step in enumerate(present, 1):
            batch = make_history(small_dataset, policy.config, [step])
            seen = {k: v[:, STEP_COUNT - count :] if k.startswith("observation.") else v for k, v in batch.items()}
            latents = policy.latents(seen)[:, -1]
            if stage == "align":
                loss = (latents - policy.expert.encode(make_batch(small_dataset, [step]))).square().mean()
            else:
                action = (batch["action"][:, 4:] - policy.action_offset) / policy.action_scale
                target = {"action": action, "action_is_pad": batch["action_is_pad"][:, 4:], "task": batch["task"]}
                loss, _ = policy.decoder.loss(latents, target)
            losses.append(loss)
    assert len(losses) == 6
    found = policy(make_history(small_dataset, policy.config, frames))[0]
    torch.testing.assert_close(found, torch.stack(losses).mean(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("expert", "past"), [("seer", 1), ("seer_full", 3), ("diffusion", 2)])
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_cached_batches_give_the_loss_of_the_loader(
    small_dataset: Path,
    small_vlm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expert: str,
    past: int,
    stage: str,
) -> None:
    """Each step is taught what the expert yields there, with the past that the expert reads."""
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    folder = zoo.ZOO[expert](tmp_path / "expert", small_dataset)
    policy = make_student(small_dataset, folder, small_vlm, n_obs_steps=STEP_COUNT, stage=stage, latent_weight=0.5)
    assert policy.config.expert_obs_steps == past
    dataset = open_dataset(small_dataset)
    rows = cached(policy, dataset)
    assert EXPERT_LATENTS in rows and PREFIX not in rows
    samples = Samples(dataset, policy.config, rows, policy.vlm.device)
    index = np.array([0, 4, 9, 13, 30])
    batches = samples[index], make_history(small_dataset, policy.config, index.tolist())
    losses = []
    for batch in batches:
        torch.manual_seed(0)  # a denoising loss draws noise
        losses.append(policy(batch)[0])
    assert torch.isclose(*losses, rtol=1e-2)  # image tokens are kept in bfloat16


def test_a_history_between_the_cached_frames_is_refused(policy: ApprenticePolicy, small_dataset: Path) -> None:
    with pytest.raises(UserError, match="divide the 2 frames between steps of a history, found 3; fix"):
        Samples(open_dataset(small_dataset), policy.config, {}, policy.vlm.device, every=3)
    assert len(Samples(open_dataset(small_dataset), policy.config, {}, policy.vlm.device, every=2)) == 18


def test_early_tokens_learn_through_later_steps(policy: ApprenticePolicy, small_dataset: Path) -> None:
    state = make_history(small_dataset, policy.config, [9])
    state["observation.state"].requires_grad_()
    policy.latents(state)[:, -1].sum().backward()
    gradient = state["observation.state"].grad
    assert gradient is not None and (gradient.abs().sum(-1) > 0).all()


def test_another_spacing_than_in_training_is_refused(policy: ApprenticePolicy, tmp_path: Path) -> None:
    policy.config.n_action_steps = 1
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"n_action_steps 2, .* in training, found 1; fix: --policy.n_action_steps=2"):
        ApprenticePolicy.from_pretrained(tmp_path)


def test_a_vlm_that_reads_ahead_is_refused(
    small_dataset: Path, small_expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CAUSAL_TOKEN_TYPE, "paligemma")  # our tokens and the next turn are then seen by the prompt
    torch.manual_seed(0)
    for part in paligemma2():
        part.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="turns read nothing that comes after, found PaliGemma"):
        make_student(small_dataset, small_expert, tmp_path, n_obs_steps=2)


def test_an_aligned_student_remembers_in_evaluation(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `align --n-obs-steps 3` to the plans of an evaluation, `n_action_steps` at a time."""
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    paths = {"dataset": small_dataset, "expert": small_expert, "vlm": small_vlm, "out": tmp_path / "run"}
    config = StageConfig(**{k: str(v) for k, v in paths.items()}, n_obs_steps=3, steps=30, batch_size=4)
    checkpoint = Checkpoint("student", align(config), torch.device("cpu"))
    assert Contract.load(tmp_path / "run" / "checkpoint").horizon == 4
    frames = [make_batch(small_dataset, [frame]) for frame in (0, 2, 4)]
    checkpoint.reset(0)
    for frame in frames:
        seen = {key: value[0].numpy() for key, value in frame.items() if key != "task"}
        pictures = {key: value.transpose(1, 2, 0) for key, value in seen.items() if value.ndim == 3}
        plan = checkpoint.plan(seen | pictures, frame["task"][0])
    anew = checkpoint.policy.predict_action_chunk(together(frames))[0, :SPACING]
    torch.testing.assert_close(torch.from_numpy(plan), anew, atol=1e-4, rtol=0)
