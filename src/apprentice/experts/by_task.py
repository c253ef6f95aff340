"""One expert a task, for experts that read no instructions: all of them taught to one student.

    # experts.yaml: instruction: checkpoint folder, absolute or beside this file
    put the bowl on the stove: act_stove
    put the bowl on the plate: act_plate

While teaching, an instruction chooses its expert. The student chooses by itself: a latent is the expert's own
latent plus one number for each expert, 1 for the one that gave it and 0 for the others, so the student learns to say
whose latent it means, and words that no expert knows lead to the expert that the student takes them for.

The experts' latent spaces have nothing to do with each other and their decoders differ, so every expert's decoder moves
into the student, each with its own normalisation; the student grows by a decoder for each expert (3,591 numbers for an
ACT of width 512, millions for a Diffusion Policy). Fine-tuning trains each decoder on the samples whose instruction its
expert knows, and the choice itself as a classification of those; a sample with another instruction trains the decoder
that the student chooses.
"""

from pathlib import Path
from typing import Any, cast

import torch
from lerobot.utils.constants import ACTION
from torch import Tensor, nn
from torch.nn import functional as F

from apprentice.common.errors import UserError
from apprentice.common.files import read_yaml
from apprentice.data.batch import ACTION_IS_PAD, TASK, Batch
from apprentice.experts.base import ActionDecoder, ActionExpert
from apprentice.experts.kinds import DECODERS, EXPERTS, kind_of

CHOICE_SCALE = 8.0  # a logit for each unit of choice: a softmax of 0 and 1 gives 1 a probability of 0.9997
CHOICE_WEIGHT = 0.1  # of the classification against the decoders' own losses
ALIKE = ("kind", "latent_count", "latent_dim", "horizon", "action_dim", "action_window", "n_obs_steps")


class ByTaskDecoder(ActionDecoder):
    """The decoders of several experts of one kind, and the choice among them.

    `relative` holds each expert's normalisation (offset and scale) in terms of the first one's, which is the student's.
    """

    relative: Tensor

    def __init__(self, kind: str, settings: list[dict[str, Any]], action_dim: int, instructions: dict[str, int]):
        super().__init__()
        self.settings = {"kind": kind, "settings": settings, "action_dim": action_dim, "instructions": instructions}
        self.instructions = instructions
        self.decoders = nn.ModuleList(DECODERS[kind](**each) for each in settings)
        self.register_buffer("relative", torch.tensor([[0.0], [1.0]]).repeat(len(settings), 1, action_dim))

    def decode(self, latents: Tensor) -> Tensor:
        own, choice = self._split(latents)
        actions: dict[int, Tensor] = {}
        for expert, rows in _groups(choice.argmax(-1)):
            offset, scale = self.relative[expert]
            actions |= dict(zip(rows.tolist(), self._decoder(expert).decode(own[rows]) * scale + offset, strict=True))
        return torch.stack([actions[row] for row in range(len(latents))])

    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean of the samples' losses, each by its expert's decoder, and cross-entropy of the choice where known."""
        own, choice = self._split(latents)
        numbers = torch.tensor([self.instructions.get(task, -1) for task in batch[TASK]], device=latents.device)
        total = latents.new_zeros(())
        parts: dict[str, float] = {}
        for expert, rows in _groups(torch.where(numbers < 0, choice.argmax(-1), numbers)):
            offset, scale = self.relative[expert]
            picked = {key: batch[key][rows] for key in (ACTION, ACTION_IS_PAD) if key in batch}
            picked[ACTION] = (picked[ACTION] - offset) / torch.where(scale == 0, 1.0, scale)
            loss, of_expert = self._decoder(expert).loss(own[rows], picked)
            share = len(rows) / len(latents)
            total = total + share * loss
            for name, value in of_expert.items():
                parts[name] = parts.get(name, 0.0) + share * value
        known = numbers >= 0
        if known.any():
            chosen = F.cross_entropy(CHOICE_SCALE * choice[known], numbers[known])
            parts["choice_loss"] = chosen.item()
            total = total + CHOICE_WEIGHT * chosen
        return total, parts

    def _decoder(self, expert: int) -> ActionDecoder:
        return cast(ActionDecoder, self.decoders[expert])

    def _split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, N, D + K) to those of an expert (B, N, D) and the choice among K experts (B, K)."""
        count = len(self.decoders)
        return latents[..., :-count], latents[..., -count:].mean(1)


class ByTaskExpert(ActionExpert):
    """Experts of one kind and shape, each for its own instructions."""

    kind = "by_task"

    def __init__(self, path: Path | str, device: torch.device):
        tasks = read_tasks(path)
        folders = list(dict.fromkeys(tasks.values()))
        self.numbers = {task: folders.index(folder) for task, folder in tasks.items()}
        self.experts = [EXPERTS[kind_of(folder)](folder, device) for folder in folders]
        first = self.first = self.experts[0]
        for folder, expert in zip(folders, self.experts, strict=True):
            for name in (*ALIKE, "inputs"):
                own, others = getattr(first, name), getattr(expert, name)
                if own != others:
                    raise UserError(
                        f"expected experts of one shape in {path}, found {name} {own} in {folders[0]} and {others} in "
                        f"{folder}; fix: train all of them with one configuration"
                    )
        self.horizon, self.action_dim, self.inputs = first.horizon, first.action_dim, first.inputs
        self.n_obs_steps = first.n_obs_steps
        self.latent_dim = first.latent_dim + len(self.experts)
        settings = [expert.decoder.settings for expert in self.experts]
        self.decoder = ByTaskDecoder(first.kind, settings, self.action_dim, self.numbers).to(device).eval()
        affines = [expert.action_affine() for expert in self.experts]
        offset, scale = affines[0]
        for _, other in affines[1:]:  # what is constant for one expert may move for another
            scale = torch.where(scale == 0, other, scale)
        self.affine, unit = (offset, scale), torch.where(scale == 0, 1.0, scale)
        for number, expert in enumerate(self.experts):
            self.decoder.decoders[number].load_state_dict(expert.decoder.state_dict())
            own_offset, own_scale = affines[number]
            self.decoder.relative[number] = torch.stack([(own_offset - offset) / unit, own_scale / unit])

    @property
    def latent_count(self) -> int:
        return self.first.latent_count

    @property
    def most_obs_steps(self) -> int:
        return min(expert.most_obs_steps for expert in self.experts)

    @property
    def action_window(self) -> tuple[int, int]:
        return self.first.action_window

    def encode(self, batch: Batch) -> Tensor:
        """Each row by the expert of its instruction. Raises UserError for an instruction that none has."""

        def of(number: int, rows: Batch) -> Tensor:
            latents = self.experts[number].encode(rows)
            choice = latents.new_zeros(*latents.shape[:2], len(self.experts))
            choice[..., number] = 1.0
            return torch.cat([latents, choice], -1)

        return self._routed(batch, of)

    def action_affine(self) -> tuple[Tensor, Tensor]:
        return self.affine

    def normalisations(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Those of all experts' data together, as if each had as much: mean, and deviation within and between."""
        found = {}
        for key in self.first.normalisations():
            offsets, scales = (
                torch.stack(each) for each in zip(*(e.normalisations()[key] for e in self.experts), strict=True)
            )
            found[key] = offsets.mean(0), (scales.square().mean(0) + offsets.var(0, correction=0)).sqrt()
        return found

    def own_actions(self, batch: Batch) -> Tensor:
        return self._routed(batch, lambda number, rows: self.experts[number].own_actions(rows))

    def _routed(self, batch: Batch, run: Any) -> Tensor:
        unknown = sorted(set(batch[TASK]) - set(self.numbers))
        if unknown:
            raise UserError(
                f"expected instructions among {sorted(self.numbers)}, found {unknown}; fix: name an expert for each of "
                "them, or leave their episodes out of the dataset"
            )
        results: dict[int, Tensor] = {}
        for number, rows in _groups(torch.tensor([self.numbers[task] for task in batch[TASK]])):
            picked = {key: _rows(value, rows) for key, value in batch.items()}
            results |= dict(zip(rows.tolist(), run(number, picked), strict=True))
        return torch.stack([results[row] for row in range(len(batch[TASK]))])


def read_tasks(path: Path | str) -> dict[str, Path]:
    """The checkpoint folder of each instruction in an experts.yaml. Raises UserError if it is not such a file."""
    what = "lines 'instruction: checkpoint folder'"
    try:
        content: dict[str, str] = read_yaml(path, dict[str, str], what)
    except FileNotFoundError:
        raise UserError(f"expected {what} at {path}, found nothing; fix: write them") from None
    if not content:
        raise UserError(f"expected {what} at {path}, found none; fix: write them")
    return {task: Path(path).parent / folder for task, folder in content.items()}


def _groups(numbers: Tensor) -> list[tuple[int, Tensor]]:
    """Each number with the rows (b,) that hold it."""
    return [(int(number), (numbers == number).nonzero()[:, 0]) for number in numbers.unique()]


def _rows(value: Any, rows: Tensor) -> Any:
    return [value[int(row)] for row in rows] if isinstance(value, list) else value[rows.to(value.device)]
