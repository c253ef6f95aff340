"""Files of our own that are damaged: one line says which file, what was expected of it, and what was found."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tests.support import CAMERAS

from apprentice.common import adapters
from apprentice.common.device import best_device
from apprentice.common.errors import UserError
from apprentice.common.files import write_json
from apprentice.data.contract import Contract
from apprentice.distill.caches.cache import remembered
from apprentice.distill.runs.checkpoint import MANIFEST, Position, damage, seal
from apprentice.distill.runs.run import carry_out
from apprentice.experts.kinds import kind_of
from apprentice.nano.pretrain import PretrainConfig
from apprentice.nano.scenes.shards import mapped
from apprentice.nano.score.score import score
from apprentice.nano.trainer import Trainer
from apprentice.offline import parts
from apprentice.serve.checkpoint import inspect_checkpoint
from apprentice.simulators.collection.episode_jobs import scenes
from apprentice.simulators.libero.convention import contract as libero_contract

ASSETS = Path(__file__).parents[2] / "assets"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 123456\n"

Make = Callable[[Path], Callable[[], Any]]  # writes what belongs into a folder; reads it


def contract(folder: Path) -> Callable[[], Any]:
    libero_contract(64, "fast").save(folder)
    return lambda: Contract.load(folder)


def collected(folder: Path) -> Callable[[], Any]:
    (folder / "meta").mkdir()
    shutil.copy(ASSETS / "demonstrations" / "libero_goal" / "meta" / "collection.json", folder / "meta")
    return lambda: scenes(folder)


def split(folder: Path) -> Callable[[], Any]:
    (folder / "whole").mkdir()
    (folder / "whole" / "file").write_text("content")
    parts.split(folder / "whole", folder / "parts")

    def join() -> None:
        shutil.rmtree(folder / "again", ignore_errors=True)
        parts.join(folder / "parts", folder / "again")

    return join


def chosen_caches(folder: Path) -> Callable[[], Any]:
    write_json(folder / "caches.json", ["image tokens", "expert latents"])
    return lambda: remembered([], 1.0, folder / "caches.json")


def sealed(folder: Path) -> Callable[[], Any]:
    (folder / "weights").write_text("content")
    seal(folder, Position(3, 12, best=0.5, best_step=2, weights=3))
    return lambda: Position.of(folder)


def run(folder: Path) -> Callable[[], Any]:
    before = [{"until": 3, "batch_size": 8}]
    write_json(folder / "config.json", {"stage": "align", "steps": 5, "cwd": "/", "before": before})
    return lambda: carry_out("align", Accelerator(cpu=True), folder, {"steps": 5}, lambda position: None)


def policy(folder: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "seer", folder / "policy"))


def evaluated(folder: Path) -> Callable[[], Any]:
    place = policy(folder)
    return lambda: inspect_checkpoint("seer", place, Contract(cameras=CAMERAS))


def taught(folder: Path) -> Callable[[], Any]:
    place = policy(folder)
    return lambda: kind_of(place)


def served(folder: Path) -> Callable[[], Any]:
    place = policy(folder)
    return lambda: adapters.rename_map(place)


def adapted(folder: Path) -> Callable[[], Any]:
    place = policy(folder)
    write_json(place / adapters.FILE, {"peft_type": "LORA", "base_model_name_or_path": str(ASSETS / "seer")})
    (place / "adapter_model.safetensors").touch()
    return lambda: adapters.whole_checkpoint(place)


def pretrained(folder: Path) -> Callable[[], Any]:
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").touch()
    write_json(folder / "config.json", asdict(PretrainConfig("data", "out")))

    def read() -> None:
        try:
            score("none", folder, folder)
        except UserError as error:
            if "expected the text-only twin" not in str(error):  # which is asked for when this one was read
                raise

    return read


FILES: dict[str, tuple[Make, str, tuple[str, ...]]] = {  # how it is made, the file, fields that it must have
    "a contract": (contract, "contract.json", ()),
    "how a dataset was collected": (collected, "meta/collection.json", ("suite", "tasks", "per_task", "start_noise")),
    "the list of parts": (split, "parts/parts.json", ("parts", "files")),
    "the caches of a run": (chosen_caches, "caches.json", ()),
    "a checkpoint's manifest": (sealed, MANIFEST, ("step", "samples", "weights", "files")),
    "a run": (run, "config.json", ("steps",)),
    "a policy that is evaluated": (evaluated, "policy/config.json", ("input_features", "type")),
    "a policy that teaches": (taught, "policy/config.json", ("type",)),
    "a policy's processor": (served, "policy/policy_preprocessor.json", ("steps",)),
    "a pre-trained VLM": (pretrained, "config.json", ("blind", "steps", "nano")),
    "adapters": (adapted, "policy/adapter_config.json", ("base_model_name_or_path",)),
}


def cut(text: str) -> str:
    return text[: len(text) // 2]


def retyped(text: str) -> str:
    """Every value of the outermost object, or list, is of another type."""
    content = json.loads(text)
    if isinstance(content, list):
        return json.dumps([[each] for each in content])
    return json.dumps({key: 7 if isinstance(value, str) else "seven" for key, value in content.items()})


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut off": cut,
    "empty": lambda text: "",
    "a pointer": lambda text: POINTER,
    "a list": lambda text: "[[]]",
    "a number": lambda text: "3",
    "of other types": retyped,
    "deep": lambda text: "[" * 10_000,
    "no text": lambda text: "\udcff",
}


def is_one_line(error: UserError, place: Path) -> bool:
    said = str(error)
    return "\n" not in said and str(place) in said and all(word in said for word in ("expected ", "found", "; fix: "))


@pytest.mark.parametrize("name", FILES)
def test_each_damage_of_each_file_is_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    make, path, fields = FILES[name]
    read, file = make(tmp_path), tmp_path / path
    whole = file.read_text()
    read()
    damaged = {kind: change(whole) for kind, change in DAMAGES.items()}
    damaged |= {f"without {f}": json.dumps({k: v for k, v in json.loads(whole).items() if k != f}) for f in fields}
    for kind, text in damaged.items():
        file.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError) as caught:
            read()
            pytest.fail(f"{name}, {kind}: nothing was found")
        place = file if kind in DAMAGES and kind != "of other types" else file.parent
        assert is_one_line(caught.value, place), (kind, str(caught.value))
    file.write_text(whole)
    read()


class Line(Trainer):
    """The smallest training there is."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1).to(best_device())
        named = dict(self.module.named_parameters())
        super().__init__(PretrainConfig("none", "none"), named, [{"params": [*named.values()], "scale": 1.0}])

    def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"line": self.module(batch["x"]).square().mean()}


def test_damaged_files_of_a_pre_training_are_named(tmp_path: Path) -> None:
    scenes_file, state = tmp_path / "shard.npz", tmp_path / "training.safetensors"
    np.savez(scenes_file, images=np.zeros((2, 3)), facts=np.frombuffer(b'[{"a": 1}]', np.uint8))
    first, again = Line(), Line()
    first.update({"x": torch.ones(1, 1)})
    first.save(state)
    again.resume(state)
    assert again.step == 1 and torch.equal(first.module.weight, again.module.weight)
    assert mapped(scenes_file, "images").shape == (2, 3)
    for file, read in ((scenes_file, lambda: mapped(scenes_file, "images")), (state, lambda: Line().resume(state))):
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", POINTER.encode(), b"[" * 1000, whole[:8] + b"{}"):
            file.write_bytes(damaged)
            with pytest.raises(UserError) as caught:
                read()
            assert is_one_line(caught.value, file), str(caught.value)
    save_file({"weight": torch.ones(1, 1)}, state)  # without what else a training keeps
    with pytest.raises(UserError, match=f"in {state}, found: TypeError"):
        Line().resume(state)


def test_a_manifest_that_is_damaged_is_no_whole_checkpoint(tmp_path: Path) -> None:
    sealed(tmp_path)
    assert not damage(tmp_path)
    for text in ("{}", "[]", "{", '{"files": {}}', POINTER):
        (tmp_path / MANIFEST).write_text(text)
        assert damage(tmp_path) == f"no readable {MANIFEST}"
