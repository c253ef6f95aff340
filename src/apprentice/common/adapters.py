"""Checkpoints of LeRobot policies, also those of adapters (LoRA), which hold what differs from another checkpoint.

Each folder is checked (`apprentice.common.untrusted`) before a library reads it.
"""

import contextlib
import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from apprentice.common.errors import UserError
from apprentice.common.files import read_json
from apprentice.common.untrusted import ADAPTER as FILE
from apprentice.common.untrusted import CAMERA_SIZE, PROCESSORS, check_policy


class Feature(TypedDict):
    """What a policy's config.json says of an input or output."""

    type: str
    shape: list[int]


class PolicyFile(TypedDict):
    """What is read of a policy's config.json."""

    type: str
    input_features: dict[str, Feature]


class StepSettings(TypedDict):
    """What is read of a processor step's settings."""

    rename_map: NotRequired[dict[str, str] | None]
    sizes: NotRequired[dict[str, list[int]]]
    stretched: NotRequired[list[str]]


class ProcessorStep(TypedDict):
    """What is read of a processor step; its state is a file beside it."""

    registry_name: NotRequired[str]
    config: NotRequired[StepSettings]
    state_file: NotRequired[str]


class ProcessorFile(TypedDict):
    """What is read of policy_preprocessor.json."""

    steps: list[ProcessorStep]


def policy_file(folder: Path | str) -> dict[str, Any]:
    """A policy's config.json, with all its fields. Raises FileNotFoundError and FileError."""
    found: dict[str, Any] = read_json(Path(folder) / "config.json", PolicyFile, "a policy's configuration", more=True)
    return found


def policy_type(folder: Path | str) -> str | None:
    """The kind of policy in a folder, None for a model that is none. Raises FileNotFoundError and FileError."""
    kind: str | None = read_json(Path(folder) / "config.json", dict[str, Any], "a model's configuration").get("type")
    return kind


def preprocessing(folder: Path | str) -> list[ProcessorStep]:
    """The steps before a policy. Raises FileNotFoundError and FileError."""
    file: ProcessorFile = read_json(Path(folder) / PROCESSORS[0], ProcessorFile, "a policy's processor", more=True)
    return file["steps"]


def rename_map(folder: Path | str) -> dict[str, str]:
    """The names that a checkpoint's processor gives to observations, by those that it is sent."""
    maps = [step.get("config", {}).get("rename_map") or {} for step in preprocessing(folder)]
    return {old: new for names in maps for old, new in names.items()}


def same_proportions(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Do two pictures (height, width, px) have the same proportions, up to a pixel of the first?"""
    return abs(found[1] * wanted[0] - wanted[1] * found[0]) <= max(found)


def resized_cameras(folder: Path | str) -> dict[str, bool]:
    """Cameras whose pictures a checkpoint's processor resizes; True if they may have any proportions."""
    steps = [step.get("config", {}) for step in preprocessing(folder) if step.get("registry_name") == CAMERA_SIZE]
    return {key: key in step.get("stretched", []) for step in steps for key in step.get("sizes", {})}


def whole_checkpoint(folder: Path | str) -> Path:
    """The checkpoint folder with all weights: this one, or the one behind its adapters.

    Raises UserError if it left, or if one of both may not be loaded.
    """
    check_policy(folder)
    if not (Path(folder) / FILE).exists():
        return Path(folder)
    base = read_json(Path(folder) / FILE, dict[str, Any], "adapters' configuration").get("base_model_name_or_path")
    if not isinstance(base, str) or not Path(base).is_dir():
        raise UserError(
            f"expected in {base} the checkpoint that the adapters in {folder} were trained on, found none; "
            f"fix: put it there, or write where it is into {FILE} (base_model_name_or_path)"
        )
    check_policy(base)
    return Path(base)


def complete(folder: Path | str, whose: str = "") -> Path:
    """The folder with all weights behind a checkpoint. Raises UserError, begun with `whose`, if a file is missing."""
    folder = Path(folder)
    whole = whole_checkpoint(folder)
    weights = "model.safetensors" if whole == folder else "adapter_model.safetensors"
    missing = [file for file in ("config.json", weights, *PROCESSORS) if not (folder / file).exists()]
    if missing:
        fix = "give the folder that holds config.json (for lerobot-train: checkpoints/last/pretrained_model)"
        if missing == [*PROCESSORS]:
            fix = (
                "if LeRobot wrote it before it had processors: "
                f"python -m lerobot.processor.migrate_policy_normalization --pretrained-path {folder}"
            )
        raise UserError(f"{whose}expected a LeRobot checkpoint in {folder}, found no {', '.join(missing)}; fix: {fix}")
    return whole


def load_config(folder: Path | str, whose: str = "") -> Any:
    """The configuration of a checkpoint's policy, once the checkpoint is found complete. Raises UserError."""
    complete(folder, whose)
    return known_config(folder, whose)


def known_config(folder: Path | str, whose: str = "") -> Any:
    """The configuration of a complete checkpoint's policy.

    Raises UserError, begun with `whose`, if a field or its value is not known.
    """
    from draccus.utils import DecodingError
    from lerobot.configs import PreTrainedConfig

    try:
        return PreTrainedConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError, AttributeError, KeyError, DecodingError) as error:
        raise UserError(
            f"{whose}expected in {Path(folder) / 'config.json'} the settings of a policy that the installed LeRobot "
            f"({version('lerobot')}) knows, found: {str(error).splitlines()[0]}; fix: install the LeRobot that wrote "
            "it, or remove the field that is not known"
        ) from error


def load_processors(folder: Path | str, config: Any) -> tuple[Any, Any]:
    """What goes before and after a policy, as its checkpoint holds them, on the device of its configuration.

    Raises UserError if they may not be loaded.
    """
    from lerobot.policies.factory import make_pre_post_processors

    import apprentice.common.camera_size  # noqa: F401  registers the step

    check_policy(folder)
    override = {"device_processor": {"device": str(config.device)}}
    return make_pre_post_processors(config, str(folder), preprocessor_overrides=override)


def load_policy(folder: Path | str, config: Any, **options: Any) -> Any:
    """Load a policy of this configuration with its weights, adapters merged into them; quietly, in eval mode.

    Raises UserError if there are adapters, and PEFT or the checkpoint behind them is missing.
    """
    from lerobot.policies.factory import get_policy_class

    base = whole_checkpoint(folder)
    with contextlib.redirect_stdout(io.StringIO()):  # LeRobot prints where it loads from
        policy = get_policy_class(config.type).from_pretrained(base, config=config, **options)
    if base != Path(folder):
        try:
            from peft import PeftModel
        except ImportError:
            raise UserError(
                f"expected PEFT for the adapters in {folder}, found none; fix: pip install -e '.[lora]'"
            ) from None
        config.use_peft = False
        policy = PeftModel.from_pretrained(policy, str(folder)).merge_and_unload()
    return policy.eval()
