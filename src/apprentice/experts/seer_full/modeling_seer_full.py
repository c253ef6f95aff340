"""Seer as published (Tian et al. 2024, arXiv 2412.15109), built like its public code so that its weights fit.

    images --> MAE (frozen) --> resampler --+                  +--> at action tokens: latents --> decoder --> actions
    states, instruction --> CLIP (frozen) --+--> GPT-2 blocks -+
    foresight and action tokens ------------+                  +--> at foresight tokens --> painter --> pictures

A type of its own, beside the small `seer`: they share the action decoder, the processors, the contract and the adapter
to `ActionExpert`; nothing before the latents is alike. Left out of the public code: the attention masks of its
pre-training without actions, and tensors that its own forward pass never uses.
"""

from collections import deque
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.modeling_act import ACTTemporalEnsembler
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor
from transformers import CLIPTokenizer

from apprentice.common.untrusted import place_of, without_weights
from apprentice.data.batch import ACTION_IS_PAD, STATE_IS_PAD, TASK, Batch
from apprentice.data.contract import Contract
from apprentice.experts.contracted import Contracted
from apprentice.experts.seer.decoder import SeerDecoder, gripper_of
from apprentice.experts.seer.modeling_seer import augment
from apprentice.experts.seer_full.backbone import Backbone, StepEncoder
from apprentice.experts.seer_full.configuration_seer_full import SeerFullConfig
from apprentice.experts.seer_full.encoders import (
    TextEncoder,
    VisionEncoder,
    letter_tokenizer,
    prepare,
    pretrained_clip,
    pretrained_mae,
)
from apprentice.experts.seer_full.foresight import Painter, foresight_loss

TOKENIZER = "tokenizer"  # folder in a checkpoint


class SeerFullPolicy(Contracted, PreTrainedPolicy):
    """LeRobot policy `seer_full`. Batches are normalised by its processors; images are in [0, 1].

    In training, observations (B, S + foresight_steps, ...) begin a window. Elsewhere they are one frame (B, ...), or
    past frames (B, F, ...) that end with the present one.
    """

    config_class = SeerFullConfig
    name = "seer_full"
    config: SeerFullConfig
    _fsdp_wrap_modules = ("GPT2Block",)

    def __init__(
        self,
        config: SeerFullConfig,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: Any = None,
        checkpoint: Path | None = None,
        **kwargs: Any,
    ):
        """Build a fresh policy from `config.mae` and `config.clip`, or an empty one for the weights in `checkpoint`.

        Raises UserError if the encoders cannot be read or the features do not fit.
        """
        super().__init__(config)
        config.validate_features()
        config.gripper = gripper_of(config.gripper, dataset_stats or (dataset_meta.stats if dataset_meta else None))
        assert config.action_feature
        self.contract = Contract.of_dataset(dataset_meta.root) if dataset_meta else Contract()
        seen = pretrained_mae(config) if config.mae and checkpoint is None else None
        tokenizer, read = letter_tokenizer(), None
        if checkpoint is not None:
            tokenizer = CLIPTokenizer.from_pretrained(**without_weights(place_of(checkpoint / TOKENIZER)))
        elif config.clip:
            tokenizer, read = pretrained_clip(config)
        else:
            config.vocabulary = len(tokenizer)
        vision, text = VisionEncoder(config), TextEncoder(config, tokenizer)
        if seen is not None:
            vision.model.load_state_dict(seen)
        if read is not None:
            text.model.load_state_dict(read)
        self.steps = StepEncoder(config, vision, text)
        self.backbone = Backbone(config)
        self.decoder = SeerDecoder(config.width, config.action_feature.shape[0], config.gripper_weight, config.gripper)
        self.painter = Painter(config) if config.foresight_steps else None
        self.reset()

    # ---- passes

    def images(self, batch: Batch) -> Tensor:
        """The cameras' images as the encoders want them (B, F, cameras, 3, h, w), shifted at random in training."""
        prepared = []
        for key in self.config.image_features:
            images = batch[key] if batch[key].ndim == 5 else batch[key][:, None]
            flat = prepare(images.flatten(0, 1), self.config.image_size).unflatten(0, images.shape[:2])
            flat = flat.flip(-1, -2) if self.config.turn_images else flat
            if self.training and self.config.shift:  # one shift for a camera's whole window
                flat = augment(flat.flatten(1, 2), self.config.shift, 0.0).unflatten(1, (-1, 3))
            prepared.append(flat)
        return torch.stack(prepared, dim=2)

    def latents(self, batch: Batch) -> Tensor:
        """Encode a normalised batch: what the decoder consumes at the present step (B, T, D).

        With several frames, the last is the present one; of older ones as many as the window holds are used. Frames
        before an episode's beginning (`observation.state_is_pad`) leave no trace: the window is shorter then.
        """
        images, state = self.images(batch), with_time(batch[OBS_STATE], 2)
        steps = min(self.config.n_obs_steps, state.shape[1])
        images, state = images[:, -steps:], state[:, -steps:]
        is_pad = batch.get(STATE_IS_PAD)
        missing = is_pad[:, -steps:].sum(1) if is_pad is not None else state.new_zeros(len(state), dtype=torch.long)
        present = steps - 1 - missing
        order = (torch.arange(steps, device=state.device) + missing[:, None]).clamp(max=steps - 1)  # missing ones last
        rows = torch.arange(len(state), device=state.device)
        tokens = self.steps(images, state, batch[TASK])[rows[:, None], order]
        return self.backbone(tokens)[1][rows, present]

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:  # type: ignore[override]
        """The loss of the actions and of the predicted pictures at every step of a window, and its parts."""
        steps, chunk = self.config.n_obs_steps, self.config.chunk_size
        images, state = self.images(batch), with_time(batch[OBS_STATE], 2)
        foresight, latents = self.backbone(self.steps(images[:, :steps], state[:, :steps], batch[TASK]))
        is_pad = batch.get(ACTION_IS_PAD, torch.zeros_like(batch[ACTION][..., 0], dtype=torch.bool))
        targets = {
            ACTION: batch[ACTION].unfold(1, chunk, 1).transpose(2, 3).flatten(0, 1),
            ACTION_IS_PAD: is_pad.unfold(1, chunk, 1).flatten(0, 1),
        }
        loss, parts = self.decoder.loss(latents.flatten(0, 1), targets)
        if self.painter is not None:
            ahead = self.config.foresight_steps
            missing = batch.get(STATE_IS_PAD, torch.zeros_like(state[..., 0], dtype=torch.bool))
            future, counts = images[:, ahead : ahead + steps], ~missing[:, ahead : ahead + steps]
            pictures = foresight_loss(self.painter(foresight), future, counts, self.config.patch_size)
            loss = loss + self.config.foresight_weight * pictures
            parts["foresight_loss"] = pictures.item()
        return loss, parts

    # ---- acting

    def reset(self) -> None:
        """Forget the episode."""
        self._past: deque[Tensor] = deque(maxlen=self.config.n_obs_steps)
        coefficient = self.config.temporal_ensemble_coeff
        self._ensemble = None if coefficient is None else ACTTemporalEnsembler(coefficient, self.config.chunk_size)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Predict normalised actions (B, T, A) from the frames in the batch alone."""
        self.eval()
        return self.decoder.decode(self.latents(batch))

    @torch.no_grad()
    def select_action(self, batch: Batch, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Give the next normalised action (B, A) for one more frame of the episode, seen after those since `reset`.

        The tokens of past steps are kept, so each image is encoded once.
        """
        self.eval()
        self._past.append(self.steps(self.images(batch), batch[OBS_STATE][:, None], batch[TASK]))
        latents = self.backbone(torch.cat(list(self._past), dim=1))[1][:, -1]
        if self._ensemble is None:
            return self.decoder.decode(latents)[:, 0]
        arm, logit = self.decoder.heads(latents)
        if logit is None:
            return self._ensemble.update(arm)
        action = self._ensemble.update(torch.cat([arm, logit.sigmoid().unsqueeze(-1)], dim=-1))
        return torch.cat([action[:, :-1], torch.where(action[:, -1:] > 0.5, 1.0, -1.0)], dim=-1)

    # ---- training and checkpoints

    def get_optim_params(self) -> Any:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict)
        self.steps.text.tokenizer.save_pretrained(save_directory / TOKENIZER)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> "SeerFullPolicy":
        """Load a checkpoint, from a folder without network, or from the hub; strictly, encoders included."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=kwargs.get("revision")))
        config = config or PreTrainedConfig.from_pretrained(folder)
        return super().from_pretrained(folder, config=config, **{**kwargs, "strict": True, "checkpoint": folder})


def with_time(values: Tensor, plain: int) -> Tensor:
    """Give values of one frame, which have `plain` axes (B, ...), an axis of time (B, 1, ...)."""
    return values[:, None] if values.ndim == plain else values
