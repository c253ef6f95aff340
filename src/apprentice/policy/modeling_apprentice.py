"""The student: a vision-language model, a state encoder, action tokens, a mapper and the expert's action decoder.

    images, instruction ----> VLM prefix -----------------+ keys and values
    state ----> state encoder ----> <state> --+           v
    action tokens (N) --------------------------> VLM suffix ----> hidden (B, N, H)
    hidden ----> mapper ----> latents (B, N, D) ----> expert's decoder ----> action chunk (B, T, A)

With a history (`n_obs_steps` K > 1) this is the last turn of a chat, and in training every turn is one of these; see
`apprentice.policy.history`.

Method: VITA-VLA, arXiv 2510.09607. Three things differ from its public code: statistics travel in the weights, so they
can be neither missing nor stale nor applied twice; a history is read once, not again with each step; and latents are
learnt in units of their own deviation.
"""

import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from apprentice.common.errors import UserError
from apprentice.data.batch import COUNTS, EXPERT_LATENTS, IMAGE_TOKENS, PREFIX, STATE_NOISE, STEP_COUNT, TASK, Batch
from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.contract import Contract, check_features, hash_of
from apprentice.data.features import policy_shapes
from apprentice.data.noise import state_noise
from apprentice.data.statistics import is_constant
from apprentice.experts import DECODERS, checkpoints, load_expert
from apprentice.experts.base import ActionDecoder, ActionExpert, check_units
from apprentice.experts.realtime import RealTime
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.history import History, Turn, each_step, own_steps, step_is_pad
from apprentice.policy.inputs import StateEncoder, camera_images
from apprentice.vlm.base import VLM
from apprentice.vlm.image_settings import Size, see_whole
from apprentice.vlm.prefix import Prefix
from apprentice.vlm.prompt import Prompt

LEAST_SCALE = 1e-2  # of a number in latents, against the largest; some are always zero

TRAINED = {
    "align": ("state encoder", "action tokens", "mapper"),
    "finetune": ("language model", "state encoder", "action tokens", "mapper", "action decoder"),
}


class ApprenticePolicy(RealTime, PreTrainedPolicy):
    """A LeRobot policy. Its batches are raw: it normalises by itself, with statistics kept in its weights."""

    config_class = ApprenticeConfig  # type: ignore[assignment]
    remembers_plans = True  # `predict_action_chunk` keeps the steps that it planned from; no frame between them is read
    name = "apprentice"  # type: ignore[assignment]
    config: ApprenticeConfig

    def __init__(
        self,
        config: ApprenticeConfig,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: Any = None,
        checkpoint: Path | None = None,
        contract: Contract | None = None,
        **kwargs: Any,
    ):
        """Build a fresh student from `config.vlm` and `config.expert`, or an empty one for the weights in `checkpoint`.

        The `contract` is that of the data; without it, the one that stands beside `dataset_meta`.

        Raises UserError if the VLM, the expert or the dataset do not fit.
        """
        super().__init__(config)
        config.validate_features()
        assert config.robot_state_feature is not None and config.action_feature is not None
        state_dim, action_dim = config.robot_state_feature.shape[0], config.action_feature.shape[0]
        self._expert: ActionExpert | None = None
        if checkpoint is None:
            self.contract = self._fresh_contract(dataset_meta, contract)
            config.adopt(self.expert)
            check_features(
                {**self.expert.inputs, ACTION: (self.expert.action_dim,)},
                policy_shapes(config),
                f"expert {config.expert}",
                "the dataset",
            )
            name = config.vlm
            self.vlm = VLM.from_config(name) if config.scratch else VLM.from_pretrained(name)
        else:
            self.contract = Contract.load(checkpoint)
            self.vlm = VLM.from_config(checkpoint / "vlm")
        see_whole(self.vlm.processor.image_processor)
        if config.n_obs_steps > 1 and not self.vlm.converses:
            raise UserError(
                f"expected a VLM whose turns read nothing that comes after, found {type(self.vlm.model).__name__}; "
                "fix: --n-obs-steps=1, or another VLM"
            )
        hidden, latent = self.vlm.hidden_size, config.latent_dim
        self.state_encoder = StateEncoder(state_dim, config.gripper_dims, hidden)
        start = torch.randn(config.latent_count, hidden) * self.vlm.embedding_scale()
        self.action_tokens = nn.Embedding.from_pretrained(start, freeze=False)
        self.mapper = nn.Sequential(
            nn.Linear(hidden, latent),
            nn.GELU(),
            nn.Linear(latent, latent),
            nn.GELU(),
            nn.Linear(latent, latent),
        )
        self.decoder: ActionDecoder = DECODERS[config.decoder_kind](**config.decoder_settings)
        for part, size in (("state", state_dim), ("action", action_dim)):
            self.register_buffer(f"{part}_offset", torch.zeros(size))
            self.register_buffer(f"{part}_scale", torch.ones(size))
        self.register_buffer("latent_offset", torch.zeros(config.latent_count, latent))
        self.register_buffer("latent_scale", torch.ones(config.latent_count, latent))
        if checkpoint is None:
            self._take_over(dataset_stats or {})
        self._queue: deque[Tensor] = deque()
        self._history = History(config.n_obs_steps)
        self.set_stage(config.stage)

    # ---- what trains

    @property
    def _no_split_modules(self) -> list[str]:
        """The kinds of layers that FSDP cuts the VLM into, for Accelerate; families name some that they do not have."""
        lists = [module for module in self.vlm.modules() if isinstance(module, nn.ModuleList)]
        return sorted({type(layer).__name__ for layers in lists for layer in layers})

    @property
    def expert(self) -> ActionExpert:
        """The teacher, loaded when first needed, never part of the weights. Raises UserError if it is gone."""
        if self._expert is None:
            self._expert = load_expert(self.config.find_expert(), torch.device(self.config.device or "cpu"))
        return self._expert

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter under the name of its part; no parameter in two."""
        return {
            **self.vlm.parts(),
            "state encoder": list(self.state_encoder.parameters()),
            "action tokens": list(self.action_tokens.parameters()),
            "mapper": list(self.mapper.parameters()),
            "action decoder": list(self.decoder.parameters()),
        }

    def set_stage(self, stage: str) -> None:
        """Choose which parts train: "align" or "finetune"."""
        self.config.stage = stage
        for part, parameters in self.parts().items():
            for parameter in parameters:
                parameter.requires_grad_(part in TRAINED[stage])

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Two groups: the pretrained language model at a lower learning rate, and all that is ours."""
        parts = self.parts()
        language = [p for p in parts.pop("language model") if p.requires_grad]
        ours = [p for parameters in parts.values() for p in parameters if p.requires_grad]
        rate = self.config.learning_rate
        groups = [{"params": ours, "lr": rate}]
        if language:
            groups.append({"params": language, "lr": rate * self.config.language_rate_factor})
        return groups

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """For `lerobot-train --peft.*`: adapters in the language model's linear layers; what is ours trains whole."""
        decoder = self.vlm.model.get_decoder()
        place = next(name for name, module in self.named_modules() if module is decoder)
        leaves = {n.rpartition(".")[2] for n, module in decoder.named_modules() if isinstance(module, nn.Linear)}
        return {
            "target_modules": rf"{re.escape(place)}\..*\.({'|'.join(sorted(leaves))})",
            "modules_to_save": ["state_encoder", "action_tokens", "mapper", "decoder"],
        }

    # ---- passes

    def latents(self, batch: Batch) -> Tensor:
        """Map a raw batch to latents in the expert's space: (B, N, D), or (B, K, N, D) of K steps (B, K, ...).

        To align, only the suffix is run with gradients; without any, or with a history, whose later turns read the
        tokens of earlier ones, all is one pass.
        """
        tokens = self._tokens(batch)
        if tokens.ndim == 4:
            hidden = self.vlm.turns(self._turns(batch), self._image_tokens(batch), tokens)[0]
        elif PREFIX in batch or (torch.is_grad_enabled() and self.config.stage == "align" and self.vlm.splits):
            hidden = self.vlm.suffix(self.prefix(batch), tokens)
        else:
            hidden = self.vlm.whole(self.prompt(batch), self._image_tokens(batch), tokens)
        return self._mapped(hidden)

    def _tokens(self, batch: Batch) -> Tensor:
        """State token and action tokens (..., 1 + N, H) of states (..., S)."""
        state = (batch[OBS_STATE].float() - self.state_offset) / self.state_scale
        if self.training:
            noise, config = batch.get(STATE_NOISE), self.config
            size = state_noise(self.contract.state, self.state_scale, config.position_noise_mm, config.angle_noise_rad)
            state = state + size * (torch.randn_like(state) if noise is None else noise)
        order = torch.arange(self.config.latent_count, device=state.device).expand(*state.shape[:-1], -1)
        return torch.cat([self.state_encoder(state), self.action_tokens(order)], -2)

    def _mapped(self, hidden: Tensor) -> Tensor:
        """Hidden states of our tokens (..., 1 + N, H) to latents (..., N, D)."""
        return self.mapper(hidden[..., -self.config.latent_count :, :]) * self.latent_scale + self.latent_offset

    def _turns(self, batch: Batch) -> list[Prompt]:
        """A prompt for each of K steps (B, K, ...), empty in rows whose episode had not begun."""
        is_pad = step_is_pad(batch).to(self.vlm.device)
        begins = is_pad.sum(1)
        steps = range(is_pad.shape[1])
        prompts = [self.vlm.prompt(batch[TASK], self.image_sizes, first=(begins == k).tolist()) for k in steps]
        return [prompt.without(is_pad[:, k]) for k, prompt in enumerate(prompts)]

    @property
    def image_sizes(self) -> tuple[Size, ...]:
        """Height and width (px) of each camera's images."""
        return tuple((feature.shape[-2], feature.shape[-1]) for feature in self.config.image_features.values())

    @property
    def vectors(self) -> tuple[str, ...]:
        """The observations that are no images and that it reads, or its expert where that counts."""
        read = self.expert.inputs if self.config.reads_expert else {}
        return tuple(dict.fromkeys([OBS_STATE, *(key for key, shape in read.items() if len(shape) == 1)]))

    @torch.no_grad()
    def prefix(self, batch: Batch, length: int = 0) -> Prefix:
        """What the VLM keeps of images and instructions, from the batch's cache if it has one; of `length` tokens."""
        packed = batch.get(PREFIX)
        if packed is None:
            return self.vlm.prefix(self.prompt(batch, length), self._image_tokens(batch))
        return Prefix.unpack(packed, self.prompt(batch, packed.shape[-2]), self.vlm.model)

    def prompt(self, batch: Batch, length: int = 0) -> Prompt:
        """The batch's instructions behind placeholders for the cameras' images, at least `length` tokens long."""
        return self.vlm.prompt(batch[TASK], self.image_sizes, length)

    @torch.no_grad()
    def _image_tokens(self, batch: Batch) -> Tensor:
        """Image tokens (B, n, C), or (B, K, n, C) of K steps, from the batch's cache if it has them."""
        if IMAGE_TOKENS in batch:
            return batch[IMAGE_TOKENS]
        cameras = camera_images(self.config, batch)
        steps = cameras[0].shape[:-3]
        return self.vlm.image_tokens([camera.flatten(0, -4) for camera in cameras]).unflatten(0, steps)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:  # type: ignore[override]
        """The loss of the present stage on a raw batch, and its parts (docs/paper.md, Equations).

        The paper drops the alignment when it fine-tunes; with `latent_weight` it stays, and the student closer to its
        expert. With a history it is the mean over all steps that lie in their episode; a step before its beginning is
        neither read nor counted.
        """
        own = own_steps(self.config, batch)
        latents = self.latents(own).float()
        if self.config.n_obs_steps > 1:
            valid = ~step_is_pad(own)
            counts = {key: batch[key] for key in COUNTS if key in batch}
            latents, batch = latents[valid], each_step(self.config, batch, valid) | counts
        if self.config.stage == "align":
            loss = self._align_loss(latents, batch)
            return loss, {"align": loss.item()}
        scale = torch.where(self.action_scale == 0, 1.0, self.action_scale)  # of a constant: whatever is decoded, it is
        action = (batch[ACTION].float() - self.action_offset) / scale
        loss, parts = self.decoder.loss(latents, {**batch, ACTION: action})
        if self.config.latent_weight:
            align = self._align_loss(latents, batch)
            parts = {**parts, "action_loss": loss.item(), "align": align.item()}
            loss = loss + self.config.latent_weight * align
        return loss, parts

    def _align_loss(self, latents: Tensor, batch: Batch) -> Tensor:
        """How far latents (B, N, D) are from the expert's, in units of these; 1 is as far as their mean, by "mse"."""
        difference = (latents - self._target(batch).to(latents)) / self.latent_scale
        mse = self.config.align_loss == "mse"
        distances = difference.square().mean((1, 2)) if mse else difference.norm(dim=-1).mean(1)
        return distances.sum() / batch.get(STEP_COUNT, len(distances))

    def _target(self, batch: Batch) -> Tensor:
        """The expert's latents (B, N, D), from the batch's cache if it has them."""
        return batch[EXPERT_LATENTS] if EXPERT_LATENTS in batch else self.expert.encode(batch)

    @torch.no_grad()
    def standardise(self, batches: Iterable[Batch]) -> None:
        """Count latents from now on in units of the expert's in raw `batches`: mean and deviation of each number.

        The scale of latents is an accident of the expert: raw, those of a Diffusion Policy are so small that the mapper
        hardly learns them, and in fine-tuning weigh nothing.
        """
        found = []
        for batch in batches:
            if self.config.n_obs_steps > 1:
                batch = each_step(self.config, batch, ~step_is_pad(own_steps(self.config, batch)))
            found.append(self._target(batch).float())
        scale, offset = torch.std_mean(torch.cat(found), 0, correction=0)
        self.latent_offset.copy_(offset)
        self.latent_scale.copy_(scale.clamp(min=max(LEAST_SCALE * float(scale.max()), 1e-6)))

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Plan: a chunk of actions (B, T, A) in the robot's own units.

        A student with a history remembers: every call is the next step of the episode, `n_action_steps` frames after
        the last, until `reset`. Given all K steps of observation (B, K, ...) it plans from these and remembers nothing.
        Raises UserError if the plan is not finite; a step whose plan failed is not remembered.
        """
        self.eval()
        history = self._history
        if self.config.n_obs_steps > 1 and batch[OBS_STATE].ndim == 2:
            turn = Turn(batch[TASK], self._image_tokens(batch), self._tokens(batch))
            hidden, history = self._history.read(self.vlm, self.image_sizes, turn)
            latents = self._mapped(hidden)
        else:
            latents = self.latents(batch)
            latents = latents[:, -1] if latents.ndim == 4 else latents
        actions = self.decoder.decode(latents.float()) * self.action_scale + self.action_offset
        if not actions.isfinite().all():
            found, state = actions[~actions.isfinite()][0].item(), batch[OBS_STATE]
            raise UserError(
                f"expected finite actions, found {found} from a state with numbers from {state.min().item():.3g} to "
                f"{state.max().item():.3g}; "
                "fix: check the state, or the training if the state is right"
            )
        self._history = history
        return self.continued(actions, **kwargs)

    @torch.no_grad()
    def select_action(self, batch: Batch, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Return the next action (B, A), planning again when the last chunk is used up."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch)
            self._queue.extend(chunk[:, : self.config.n_action_steps].transpose(0, 1))
        return self._queue.popleft()

    def reset(self) -> None:
        """Forget the planned chunk and the episode."""
        self._queue.clear()
        self._history = History(self.config.n_obs_steps)

    # ---- checkpoints

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict)
        self.vlm.save_config(save_directory / "vlm")
        self.contract.save(save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> "ApprenticePolicy":
        """Load a checkpoint, from a folder without network and without expert, or from the hub. Raises UserError."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=kwargs.get("revision")))
        config = config or PreTrainedConfig.from_pretrained(folder)
        if isinstance(config, ApprenticeConfig):
            config.check_same(folder)
        kwargs = {**kwargs, "strict": True, "checkpoint": folder}
        try:
            return cast(ApprenticePolicy, super().from_pretrained(folder, config=config, **kwargs))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"expected a student's checkpoint in {folder}, found: {error}; fix: name the folder that holds "
                "config.json, model.safetensors and vlm/"
            ) from error

    def _fresh_contract(self, dataset_meta: Any, contract: Contract | None) -> Contract:
        name = "the dataset" if dataset_meta is None else f"dataset {dataset_meta.root}"
        if contract is None:
            contract = Contract() if dataset_meta is None else Contract.of_dataset(dataset_meta.root)
        for known in checkpoints(self.config.expert):
            if (known / CONTRACT).exists():
                Contract.load(known).check(contract, f"expert {known}", name)
        return contract

    def _take_over(self, dataset_stats: dict[str, dict[str, Any]]) -> None:
        """Copy the expert's decoder and the statistics: of the actions from the expert, of the state from the data."""
        check_units(self.expert, dataset_stats, f"expert {self.config.expert}", "the dataset")
        self.decoder.load_state_dict(self.expert.decoder.state_dict())
        offset, scale = self.expert.action_affine()
        self.action_offset.copy_(offset)
        self.action_scale.copy_(scale)
        if OBS_STATE in dataset_stats:
            stats = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in dataset_stats[OBS_STATE].items()}
            self.state_offset.copy_(stats["mean"])
            still = torch.from_numpy(is_constant(stats["std"].numpy(), stats["mean"].numpy()))
            self.state_scale.copy_(torch.where(still, torch.ones(()), stats["std"]))
        statistics = {"state": {"offset": self.state_offset, "scale": self.state_scale}}
        statistics["action"] = {"offset": self.action_offset, "scale": self.action_scale}
        self.contract = self.contract.having(
            horizon=self.config.chunk_size, statistics=hash_of(statistics), versions={"vlm": self.config.vlm}
        )
