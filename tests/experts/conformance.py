"""What every expert has to be able to do. `python -m tests.experts.conformance` writes the table in docs/experts.md.

A new expert is a line in `zoo.ZOO`. The tests hold every cell of the table against what the check says now.
"""

import os
import re
import shutil
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.constants import ACTION
from safetensors.torch import load_file
from tests import support
from tests.experts.zoo import ZOO

from apprentice.data.batch import Batch
from apprentice.data.dataset import instructions, open_dataset
from apprentice.data.items import observed
from apprentice.distill.caches.cache import cached
from apprentice.distill.samples import Samples
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.experts import load_expert
from apprentice.experts.base import SEED, ActionExpert, scaled_images
from apprentice.policy.modeling_apprentice import ApprenticePolicy

PAGE = Path(__file__).parents[2] / "docs" / "experts.md"
FRAMES = (0, 1, 8, 15)  # the first of an episode, its second, a later one, and one of another episode and task


class Candidate:
    """One expert of the zoo, with what the checks share: its student after each stage."""

    def __init__(self, name: str, dataset: Path, vlm: Path, folder: Path):
        self.name, self.dataset, self.vlm, self.folder = name, dataset, vlm, folder
        self.data = open_dataset(dataset)
        self.path = ZOO[name](folder / "expert", dataset)

    @cached_property
    def expert(self) -> ActionExpert:
        return load_expert(self.path, torch.device("cpu"))

    def config(self, **fields: Any) -> StageConfig:
        common = {"dataset": str(self.dataset), "vlm": str(self.vlm), "expert": str(self.path), "batch_size": 8}
        return StageConfig(**{**common, **fields})

    @property
    def samples(self) -> bool:
        """Whether its plans are drawn."""
        return self.name.split(",")[0] in ("diffusion", "vqbet", "multi_task_dit")

    @cached_property
    def aligned(self) -> Path:
        every_frame = len(self.data)  # in each step, so that the order of the samples plays no part
        out = str(self.folder / "align")
        return align(self.config(out=out, steps=60, learning_rate=1e-2, batch_size=every_frame))

    @cached_property
    def tuned(self) -> Path:
        return finetune(self.config(out=str(self.folder / "tuned"), student=str(self.aligned), steps=3))

    def batch(self, frame: int, steps: int) -> Batch:
        """One frame of the dataset, with the past that the expert reads."""
        return observed(self.data, steps).batch(np.array([frame]))


@cache
def lerobot_policy(folder: Path) -> tuple[Any, Any, Any]:
    """A policy as LeRobot loads it, and its processors."""
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_backbone_weights = None
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    return policy, *make_pre_post_processors(config, str(folder))


def plans_itself(folder: Path, frames: list[Batch]) -> torch.Tensor:
    """The chunk (1, T, A) that LeRobot's own policy plans after it was shown `frames`, as a robot would."""
    policy, before, after = lerobot_policy(folder)
    policy.reset()
    with torch.random.fork_rng():
        for frame in frames:
            observation = before(scaled_images(frame))
            if not hasattr(policy, "_queues"):
                return after(policy.predict_action_chunk(observation))
            policy._queues[ACTION].clear()
            torch.manual_seed(SEED)
            actions = [policy.select_action(observation), *policy._queues[ACTION]]
    return after(torch.stack(actions, 1))


def decodes_to_its_own_plan(candidate: Candidate) -> None:
    expert = candidate.expert
    tasks = instructions(candidate.data)
    folders = {task: candidate.path for task in tasks}
    if candidate.path.is_file():
        folders = {task: candidate.path.parent / f"act{n}" for n, task in enumerate(support.TASKS)}
    plans = []
    for index in FRAMES:
        torch.manual_seed(index)  # must make no difference
        start = 0 if index < 11 else 11
        shown = [candidate.batch(i, 1) for i in range(max(start, index + 1 - expert.n_obs_steps), index + 1)]
        plans.append(plans_itself(folders[tasks[index]], shown))
        latents = expert.encode(candidate.batch(index, expert.n_obs_steps))
        assert latents.shape == (1, expert.latent_count, expert.latent_dim) and not latents.requires_grad
        torch.testing.assert_close(expert.decoded(latents), plans[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expert.decoded(latents), expert.decoded(latents), atol=0, rtol=0)
    assert plans[0].shape == (1, expert.horizon, expert.action_dim)
    assert all((plans[0] - other).abs().max() > 1e-4 for other in plans[2:])


def aligns(candidate: Candidate) -> None:
    """A student that knows their mean alone is at 1 from the expert's latents."""
    policy = ApprenticePolicy.from_pretrained(candidate.aligned)
    dataset = candidate.data
    samples = Samples(dataset, policy.config, cached(policy, dataset), policy.vlm.device)
    with torch.no_grad():
        assert policy(samples[np.arange(len(samples))])[0] < 0.8


def finetunes(candidate: Candidate) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (candidate.aligned, candidate.tuned))
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"action_tokens", "state_encoder", "mapper", "decoder", "vlm"}


def comes_back(candidate: Candidate) -> None:
    batch = candidate.batch(8, 1)
    policy = ApprenticePolicy.from_pretrained(candidate.tuned)
    again = candidate.folder / "again"
    policy.save_pretrained(again)
    plans = []
    for each in (policy, ApprenticePolicy.from_pretrained(again)):
        torch.manual_seed(SEED)
        plans.append(each.predict_action_chunk(batch))
    wanted, found = plans
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def runs_alone(candidate: Candidate) -> None:
    """Without the expert's folder, and with LeRobot's own processors around it."""
    tuned, horizon = candidate.tuned, candidate.expert.horizon
    away = candidate.folder / "away"
    home = candidate.folder / "expert"
    home.rename(away)
    try:
        policy = ApprenticePolicy.from_pretrained(tuned)
        before, after = make_pre_post_processors(policy.config, str(tuned))
        observation = before(scaled_images(candidate.batch(8, 1)))
        chunks = []
        for seed in (SEED, SEED, 5):
            torch.manual_seed(seed)
            chunks.append(after(policy.predict_action_chunk(observation)))
        assert chunks[0].shape == (1, horizon, 7) and torch.isfinite(chunks[0]).all()
        torch.testing.assert_close(chunks[1], chunks[0], atol=0, rtol=0)
        assert torch.equal(chunks[2], chunks[0]) != candidate.samples
    finally:
        away.rename(home)


CHECKS = {
    "decode(encode) is its own plan": decodes_to_its_own_plan,
    "align": aligns,
    "fine-tune": finetunes,
    "checkpoint round trip": comes_back,
    "student runs without it": runs_alone,
}


def recorded() -> dict[str, dict[str, str]]:
    """The table of the page: a dict of cells by check for each expert."""
    return {row.pop("expert"): row for row in rows(PAGE.read_text())}


def measured(name: str, folder: Path) -> list[str]:
    """Run all checks on one expert."""
    candidate = Candidate(name, support.make_dataset(folder / "data"), support.make_vlm(folder / "vlm"), folder)
    cells = []
    for check in CHECKS.values():
        try:
            check(candidate)
            cells.append("yes")
        except Exception as error:
            print(name, check.__name__, repr(error)[:500])
            cells.append("no")
    return cells


def rows(text: str) -> list[dict[str, str]]:
    """The first table of a page, each row by column."""
    lines = re.search(r"(?m)^\|.*\n(?:\|.*\n)+", text)
    assert lines, "no table"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def write() -> None:
    """Put the measured table in place of the page's."""
    lines = [f"| expert | {' | '.join(CHECKS)} |", f"| --- |{' --- |' * len(CHECKS)}"]
    for name in ZOO:
        folder = Path(tempfile.mkdtemp())
        os.environ["APPRENTICE_CACHE"] = str(folder / "cache")
        lines.append(f"| {name} | {' | '.join(measured(name, folder))} |")
        shutil.rmtree(folder)
    text = re.sub(r"(?m)(^\|.*\n)+", "\n".join(lines) + "\n", PAGE.read_text(), count=1)
    PAGE.write_text(text)


if __name__ == "__main__":
    write()
