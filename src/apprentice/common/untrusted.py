"""What a checkpoint that somebody else made may hold: checked before LeRobot, PEFT or Transformers read it.

A checkpoint is data, but these libraries run code that its files name: a processor step's `class`, a model's
`auto_map`, a pickle among its weights. This project never needs that. So a folder passes only if

- every step of its processors has a name of `STEPS`, its policy a type that LeRobot builds without foreign code;
- no JSON file asks for code (`auto_map`, `trust_remote_code`, a kernel from the hub, another library);
- its weights are safetensors, and every file that it names lies inside it.

What a name on the hub stands for is checked likewise, and then loaded in exactly the revision that was checked.
"""

import json
import os
import re
from collections.abc import Iterator
from errno import ENOENT
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from apprentice.common.errors import FileError, UserError
from apprentice.common.files import inside, read_text

CAMERA_SIZE = "apprentice_camera_size"  # our own step
# Steps that compute with what they are given. Not on the list: what imports or downloads a model that it names
# (action_tokenizer_processor trusts remote code, reward_classifier_processor, groot's, molmoact2's, eo1's) and what
# belongs to robots and teleoperation.
STEPS = frozenset(
    {
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "normalizer_processor",
        "unnormalizer_processor",
        "relative_actions_processor",
        "absolute_actions_processor",
        "tokenizer_processor",  # the folder that it names is checked, too
        "smolvla_new_line_processor",
        "pi0_new_line_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        CAMERA_SIZE,
    }
)
# Of LeRobot's own policies. The others trust code of repositories that their configuration names (groot, pi0_fast,
# wall_x, gaussian_actor), or have steps that are not listed.
POLICIES = frozenset({"act", "diffusion", "vqbet", "multi_task_dit", "tdmpc", "smolvla", "pi0", "pi05"})
NAMES = ("tokenizer_name", "vlm_model_name", "vision_encoder_name", "text_encoder_name")  # of models, in such files
# Keys that ask for code, or for a model of somebody else, unless they are empty. PEFT imports a module that it calls
# Megatron, timm unpickles a checkpoint, a processor fetches its audio tokenizer.
CODE = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "custom_generate",
        "custom_pipelines",
        "megatron_config",
        "checkpoint_path",
        "audio_tokenizer",
        "audio_tokenizer_name_or_path",
    }
)
KERNELS = ("attn_implementation", "experts_implementation")  # "owner/name" would be fetched and run
# Their keys are the words of a vocabulary; and what a training run notes for itself, which nothing here reads.
WORDS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "train_config.json"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".npy", ".npz"})
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
ADAPTER = "adapter_config.json"


def check_policy(folder: Path | str) -> None:
    """Check a policy's checkpoint folder: an expert, a student, or adapters of one. Raises UserError."""
    folder = Path(folder)
    found = _checked(folder)
    kind = found.get(folder / "config.json", {}).get("type")
    if isinstance(kind, str) and kind.isidentifier() and kind not in POLICIES and _is_lerobots(kind):
        _refuse(
            f"a policy that is loaded without foreign code ({', '.join(sorted(POLICIES))}, or an installed plugin's)",
            folder / "config.json",
            kind,
            "put it behind its own policy server and evaluate that",
        )
    for name in ("config.json", *PROCESSORS):
        for key, value in _pairs(found.get(folder / name)):
            if key in NAMES and value and isinstance(value, str) and os.path.isdir(value):
                check_model(value)
    for name in PROCESSORS:
        if (folder / name).exists() and not isinstance(found.get(folder / name, {}).get("steps"), list):
            _refuse("a list of steps", folder / name, "none", "train or copy the checkpoint again")
    if folder / ADAPTER in found and not (folder / "adapter_model.safetensors").is_file():
        _refuse(
            "adapter_model.safetensors beside it", folder / ADAPTER, "none", "copy or convert the adapters' weights"
        )
    _check_weights(folder)


def check_model(folder: Path | str, weights: bool = True) -> None:
    """Check the folder of a model of Transformers, with or without its `weights`. Raises UserError."""
    folder = Path(folder)
    found = _checked(folder)
    if folder / ADAPTER in found:
        _refuse("no adapters in a model's folder", folder / ADAPTER, "some", "merge them into the model, and save that")
    if weights:
        _check_weights(folder)


def place_of(name: Path | str, local: bool = False) -> dict[str, Any]:
    """Where Transformers is to load a checked model from: keyword arguments of `from_pretrained`.

    Args:
        name: folder, or name on the hub; of a Path, a folder alone.
        local: take what was fetched of it before; ask no hub.

    Raises UserError if the check fails, OSError or ValueError if there is no such folder, no such name, or no network.
    """
    from huggingface_hub import snapshot_download

    safe: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
    if str(name) and os.path.isdir(name):
        check_model(name)
        return {"pretrained_model_name_or_path": str(name), "local_files_only": True, **safe}
    if isinstance(name, Path):
        raise FileNotFoundError(ENOENT, "no such folder", str(name))
    snapshot = Path(snapshot_download(str(name), allow_patterns=["*.json", "*/*.json"], local_files_only=local))
    check_model(snapshot, weights=False)
    return {"pretrained_model_name_or_path": str(name), "revision": snapshot.name, "local_files_only": local, **safe}


def without_weights(place: dict[str, Any]) -> dict[str, Any]:
    """The same place for a configuration, a tokenizer or a processor."""
    return {key: value for key, value in place.items() if key != "use_safetensors"}


def _checked(folder: Path) -> dict[Path, dict[str, Any]]:
    """The JSON objects in a folder and in those inside it: none asks for code, or names a file elsewhere."""
    _ask_nobody()
    found = {}
    for file in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        if file.name in WORDS:
            continue
        content = _parsed(file)
        for key, value in _pairs(content):
            if key in CODE and value:
                _refuse("no code to run", file, f"{key}: {_short(value)}", f"take out {key}, or use another checkpoint")
            if key.endswith(KERNELS) and "/" in str(value):
                _refuse("no code to run", file, f"{key}: {_short(value)}", 'write "sdpa" or "eager"')
            if key == "chat_template":
                _check_templates(file, value)
        if isinstance(content, dict):
            found[file] = content
            _check_names(file, content)
            _check_steps(file, content)
    return found


def _check_names(file: Path, content: dict[str, Any]) -> None:
    """The files that a model's or a tokenizer's configuration names, and the kind of adapters."""
    shards = content.get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else [shards]
    for name in {json.dumps(name): name for name in [*names, content.get("transformers_weights")]}.values():
        if name and not inside(file.parent, name, file).name.endswith((".safetensors", ".safetensors.index.json")):
            _refuse("weights in safetensors", file, name, "convert them: model.save_pretrained(folder)")
    if file.name == "tokenizer_config.json":
        for key, value in content.items():
            if key.endswith("_file") and isinstance(value, str) and os.path.exists(value):
                inside(file.parent, str(Path(value).resolve().relative_to(file.parent.resolve(), walk_up=True)), file)
        versions = content.get("fast_tokenizer_files")
        for name in versions if isinstance(versions, list) else []:
            inside(file.parent, name, file)
    if file.name == ADAPTER and content.get("peft_type") != "LORA":
        _refuse("adapters of type LORA", file, _short(content.get("peft_type")), "train adapters with LoRA")


def _check_steps(file: Path, content: dict[str, Any]) -> None:
    """The steps of a pipeline of LeRobot, whatever its file is called."""
    steps = content.get("steps")
    if not isinstance(steps, list) or not (file.name in PROCESSORS or any(isinstance(step, dict) for step in steps)):
        return
    for step in steps:
        name = step.get("registry_name") if isinstance(step, dict) else step
        if not isinstance(name, str) or name not in STEPS or "class" in step:
            named = step.get("class", name) if isinstance(step, dict) else step
            _refuse(
                f"steps named {', '.join(sorted(STEPS))}",
                file,
                _short(named),
                "a checkpoint must not choose what is run; use one that was trained with LeRobot's own steps",
            )
        if "state_file" in step and not inside(file.parent, step["state_file"], file).name.endswith(".safetensors"):
            _refuse("a step's state in safetensors", file, _short(step["state_file"]), "train or copy it again")


def _check_templates(file: Path, templates: Any) -> None:
    """Several chat templates have names, and each is written to a file of its name when a student is saved."""
    names = list(templates) if isinstance(templates, dict | list) else []
    for name in (each.get("name") if isinstance(each, dict) else each for each in names):
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            _refuse("chat templates with plain names", file, _short(name), "another name")


def _check_weights(folder: Path) -> None:
    """Pickles beside safetensors are not read; alone they would be."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        _refuse(
            "weights in safetensors",
            folder,
            f"{pickles[0]}, a format that can run code when it is read",
            "convert it where you trust it: model.save_pretrained(folder) of Transformers 5",
        )


def _ask_nobody() -> None:
    """Let Transformers refuse code of a repository where it would ask on the terminal: LeRobot leaves that open."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def _is_lerobots(kind: str) -> bool:
    return find_spec(f"lerobot.policies.{kind}") is not None


def _parsed(file: Path) -> Any:
    try:
        return json.loads(read_text(file, "JSON"))
    except FileError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected JSON in {file}, found: {error}; fix: copy the file again") from error


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    open_ends = [content]
    while open_ends:
        match open_ends.pop():
            case dict() as items:
                yield from items.items()
                open_ends += items.values()
            case list() as items:
                open_ends += items


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:120]} ..."


def _refuse(expected: str, file: Path, found: object, fix: str) -> NoReturn:
    raise UserError(f"expected {expected} in {file}, found {found}; fix: {fix}")
