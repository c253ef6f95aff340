"""Can this policy teach? What alignment needs of an expert, tried on a dataset before hours are spent on it."""

from dataclasses import dataclass

import numpy as np
import torch
from lerobot.utils.constants import ACTION
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from apprentice.common.device import best_device
from apprentice.common.errors import UserError
from apprentice.common.progress import console
from apprentice.common.result import Result
from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.contract import Contract, check_features
from apprentice.data.dataset import action_chunks, open_dataset
from apprentice.data.features import policy_features
from apprentice.data.items import observed
from apprentice.data.local import LocalDataset
from apprentice.data.mixture import contract_of
from apprentice.experts import checkpoints, load_expert
from apprentice.experts.base import ActionExpert, check_units

BATCH = 16
SAME = 1e-3  # of the normalisation's scale: decoded latents and the policy's own actions may differ by so much


@dataclass(frozen=True)
class Findings:
    """What an expert does on some frames.

    Attributes:
        difference: largest difference of decoded latents and the policy's own actions.
        error: root mean square error (A,) of its actions against the recorded ones.
        spread: standard deviation (A,) of those recorded actions: the error of their mean.

    All three are in scales of the expert's normalisation, so that no column counts more than it did in its training.
    """

    difference: float
    error: Tensor
    spread: Tensor

    @property
    def relative_error(self) -> float:
        """Error against that of a constant answer: 0 is perfect, 1 is useless."""
        return float(self.error.norm() / self.spread.norm())


def expert_check(
    checkpoint: str,
    dataset: str,
    frames: int = 64,
    rename: dict[str, str] | None = None,
    resize: dict[str, str] | None = None,
) -> Result:
    """Find out whether a policy can teach on a dataset, and what to do about it if it cannot.

    Args:
        checkpoint: folder of the policy's checkpoint, or a YAML file with one checkpoint for each instruction.
        dataset: folder of a LeRobotDataset v3.0.
        frames: number of frames, spread over the dataset, on which its actions are compared.
        rename: new names of the dataset's features, such as observation.images.top=observation.images.image.
        resize: sizes (px) in which cameras are read, such as observation.images.image=240x320 (height x width).

    Raises UserError if there is no such dataset.
    """
    data = open_dataset(dataset, rename, resize)
    findings: Findings | None = None
    try:
        expert = load_expert(checkpoint, best_device())
        console.print(summary(expert))
        problems = meeting(expert, checkpoint, data)
        if not problems:
            actions, findings = action_table(expert, data), compared(expert, data, frames)
            console.print(actions)
            console.print(
                "largest difference between its actions and its decoded latents: "
                f"{findings.difference:.1e} of the actions' scale\n"
                f"error on the recorded actions: {findings.relative_error:.2f} of the error of a constant action"
            )
            problems = unfit(findings)
    except UserError as error:
        problems = [str(error)]
    for problem in problems:
        console.print(f"[red]cannot teach:[/red] {escape(problem)}", highlight=False)
    if not problems:
        console.print("[green]can teach[/green]")
    return Result({"can_teach": not problems, "problems": problems, "findings": findings}, not problems)


def summary(expert: ActionExpert) -> Table:
    """What the expert is: its kind, latents, actions and inputs."""
    table = Table(title="expert", title_justify="left", show_header=False)
    first, stop = expert.action_window
    parameters = sum(p.numel() for p in expert.decoder.parameters())
    rows = {
        "kind": expert.kind,
        "latents": f"{expert.latent_count} of {expert.latent_dim} numbers: as many action tokens in the student",
        "actions": f"{expert.horizon} of {expert.action_dim} numbers; its loss reads steps {first} to {stop - 1}",
        "decoder": f"{parameters:,} parameters move into the student",
        "observation": f"{expert.n_obs_steps} steps" if expert.n_obs_steps > 1 else "the present alone",
        "inputs": "\n".join(f"{key} {shape}" for key, shape in expert.inputs.items()),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def meeting(expert: ActionExpert, checkpoint: str, dataset: LocalDataset) -> list[str]:
    """Where features and contracts of expert and dataset do not fit together."""
    problems = []
    found = {key: tuple(feature.shape) for key, feature in policy_features(dataset.meta.features).items()}
    try:
        check_features({**expert.inputs, ACTION: (expert.action_dim,)}, found, "the expert", "the dataset")
        check_units(expert, dataset.meta.stats, "the expert", "the dataset")
    except UserError as error:
        problems.append(str(error))
    for folder in checkpoints(checkpoint):
        if not (folder / CONTRACT).exists():
            console.print(f"{folder} has no contract: conventions (units, rotation, gripper) are not compared")
            continue
        try:
            Contract.load(folder).check(contract_of(dataset), f"expert {folder}", "the dataset")
        except UserError as error:
            problems.append(str(error))
    return problems


def action_table(expert: ActionExpert, dataset: LocalDataset) -> Table:
    """The dataset's actions beside the expert's normalisation of them."""
    table = Table(title="actions", title_justify="left")
    for name in ("column", "recorded mean", "recorded spread", "expert's offset", "expert's scale"):
        table.add_column(name, justify="right")
    recorded = _recorded(dataset)
    columns = zip(range(expert.action_dim), recorded.mean(0), recorded.std(0), *expert.action_affine(), strict=True)
    for number, *values in columns:
        table.add_row(str(number), *(f"{float(value):.3f}" for value in values))
    return table


@torch.no_grad()
def compared(expert: ActionExpert, dataset: LocalDataset, count: int) -> Findings:
    """Compare the expert's decoded latents with its own and with the recorded actions, on `count` frames at most."""
    index = np.unique(np.linspace(0, dataset.num_frames - 1, count).round().astype(int))
    truth, pad = (torch.from_numpy(values[index]) for values in action_chunks(dataset, range(expert.horizon)))
    decoded, difference = [], 0.0
    scale = expert.action_affine()[1].cpu()
    scale = torch.where(scale == 0, 1.0, scale)
    items = observed(dataset, expert.n_obs_steps)
    for first in range(0, len(index), BATCH):
        batch = items.batch(index[first : first + BATCH])
        actions = expert.decoded(expert.encode(batch)).cpu()
        own = expert.own_actions(batch).cpu()
        difference = max(difference, float(((actions - own) / scale).abs().max()))
        decoded.append(actions)
    errors = (torch.cat(decoded) - truth)[~pad] / scale
    return Findings(difference, errors.square().mean(0).sqrt(), (truth[~pad] / scale).std(0, correction=0))


def unfit(findings: Findings) -> list[str]:
    """What the findings say against this expert."""
    problems = []
    if not findings.difference < SAME:
        problems.append(
            f"expected decoded latents to be its own actions, found a difference of {findings.difference:.1e}; "
            "fix: report it with this checkpoint, it is a fault of ours"
        )
    if not findings.spread.norm() > 0:
        problems.append("expected recorded actions that vary, found all alike; fix: record more frames")
    elif not findings.relative_error < 1:
        problems.append(
            f"expected actions nearer to the recorded ones than their mean is, found {findings.relative_error:.2f} "
            "times its error; fix: train it longer, and on this dataset"
        )
    return problems


def _recorded(dataset: LocalDataset) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(action_chunks(dataset, [0])[0][:, 0]))
