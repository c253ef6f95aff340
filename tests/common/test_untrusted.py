"""A checkpoint from somebody else runs no program, on whatever way it comes in.

Each attack is first shown to work on the library that would read the file; a marker tells that code ran.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from PIL import Image
from tests import support
from tests.experts import zoo
from transformers import AutoConfig, AutoProcessor, dynamic_module_utils

from apprentice import cli
from apprentice.common.adapters import load_policy
from apprentice.common.errors import UserError
from apprentice.common.files import write_json
from apprentice.common.untrusted import check_model, check_policy, place_of
from apprentice.experts import load_expert
from apprentice.nano.compose import graft
from apprentice.nano.pretrain import PretrainConfig
from apprentice.vlm.base import VLM

BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    edit(content)
    file.write_text(json.dumps(content))


def program(marker: Path) -> dict[str, Any]:
    """A step of LeRobot's processors that is any program."""
    return {"class": "subprocess.call", "config": {"args": ["touch", str(marker)]}}


def module(folder: Path, marker: Path) -> None:
    """Code beside a model, of all the kinds that Transformers knows."""
    kinds = ("Config", "Tokenizer", "Processor", "ImageProcessor")
    classes = "\n".join(f"class {kind}:\n    register_for_auto_class = None" for kind in kinds)
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n{classes}\n")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-has-run"


@pytest.fixture
def expert(small_expert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_expert, tmp_path / "expert"))


@pytest.fixture
def vlm(small_vlm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_vlm, tmp_path / "vlm"))


@pytest.fixture(scope="module")
def honest_student(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A student's checkpoint, as a stage of training writes it."""
    folder = tmp_path_factory.mktemp("student") / "checkpoint"
    support.make_student(small_dataset, small_expert, small_vlm).save_pretrained(folder)
    for name in (BEFORE, AFTER):
        (folder / name).write_text(json.dumps({"name": name, "steps": []}))
    return folder


@pytest.fixture
def student(honest_student: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest_student, tmp_path / "student"))


# The commands that take a policy's checkpoint, and what they are given beside it.
WAYS = {
    "serve": ["serve", "POLICY"],
    "eval": ["eval", "--policies", "it=POLICY", "--suite", "libero_goal", "--tasks", "1", "--out-dir", "OUT"],
    "align": ["align", "--vlm", "VLM", "--expert", "POLICY", "--dataset", "DATA", "--out", "OUT", "--steps", "1"],
    "align, one a task": ["align", "--vlm", "VLM", "--expert", "YAML", "--dataset", "DATA", "--out", "OUT"],
    "finetune": ["finetune", "--vlm", "VLM", "--expert", "POLICY", "--dataset", "DATA", "--out", "OUT"],
    "plan": ["plan", "--vlm", "VLM", "--expert", "POLICY"],
    "expert-check": ["expert-check", "POLICY", "--dataset", "DATA"],
    "train-expert": ["train-expert", "--init", "POLICY", "--dataset", "DATA", "--out", "OUT", "--steps", "1"],
    "correct": ["correct", "--policy", "POLICY", "--suite", "libero_goal", "--episodes", "1", "--out", "OUT"],
}


@pytest.mark.parametrize("file", [BEFORE, AFTER])
def test_a_step_is_no_program(expert: Path, marker: Path, file: str) -> None:
    change(expert / file, lambda content: content["steps"].append(program(marker)))
    with pytest.raises(TypeError):  # LeRobot ran it; what it gave back is no step
        make_pre_post_processors(PreTrainedConfig.from_pretrained(expert), str(expert))
    assert marker.exists()
    marker.unlink()
    with pytest.raises(UserError, match=rf"expected steps named .* in {expert / file}, found \"subprocess.call\""):
        load_expert(expert, torch.device("cpu"))
    assert not marker.exists()


@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_runs_a_step(
    way: str,
    expert: Path,
    small_vlm: Path,
    small_dataset: Path,
    tmp_path: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(expert / BEFORE, lambda content: content["steps"].insert(0, program(marker)))
    (tmp_path / "experts.yaml").write_text("".join(f"{task}: expert\n" for task in support.TASKS))
    places = {"POLICY": expert, "VLM": small_vlm, "DATA": small_dataset, "OUT": tmp_path / "out"}
    places["YAML"] = tmp_path / "experts.yaml"
    words = [*WAYS[way]]
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert cli.main(words) in (1, 2)
    printed = capsys.readouterr()
    message = "".join((printed.out + printed.err).split())
    assert "".join(f"in {expert / BEFORE}, found".split()) in message and "Traceback" not in message
    assert not marker.exists()


@pytest.mark.parametrize("way", ["serve", "finetune"])
def test_nor_does_a_students(
    way: str, student: Path, small_dataset: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(student / AFTER, lambda content: content["steps"].append(program(marker)))
    training = ["finetune", "--student", str(student), "--dataset", str(small_dataset), "--out", str(tmp_path / "out")]
    assert cli.main(["serve", str(student)] if way == "serve" else training) == 2
    assert "expected steps named" in capsys.readouterr().err
    assert not marker.exists()


def test_a_student_that_lost_its_vlm_asks_no_hub_for_it(student: Path) -> None:
    shutil.rmtree(student / "vlm")
    with pytest.raises(UserError, match=r"expected a student's checkpoint in .* no such folder: .*vlm"):
        load_policy(student, PreTrainedConfig.from_pretrained(student))


OTHERS: dict[str, dict[str, Any]] = {
    "of a class of LeRobot's": {"class": "lerobot.processor.DeviceProcessorStep", "config": {}},
    "with a name and a class": {"registry_name": "device_processor", "class": "os.system", "config": {}},
    "that loads code": {"registry_name": "action_tokenizer_processor", "config": {"action_tokenizer_name": "x/y"}},
    "of a model's reward": {"registry_name": "reward_classifier_processor", "config": {"pretrained_path": "x/y"}},
    "with code trusted": {"registry_name": "device_processor", "config": {"trust_remote_code": True}},
    "without a name": {"config": {}},
    "whose name is no text": {"registry_name": ["device_processor"]},
    "whose state is elsewhere": {"registry_name": "normalizer_processor", "state_file": "../other.safetensors"},
    "whose state is a pickle": {"registry_name": "normalizer_processor", "state_file": "state.bin"},
}


@pytest.mark.parametrize("step", OTHERS)
def test_a_step_is_one_of_ours(expert: Path, step: str) -> None:
    check_policy(expert)
    change(expert / AFTER, lambda content: content["steps"].append(OTHERS[step]))
    with pytest.raises(UserError, match=AFTER):
        check_policy(expert)


def test_a_pipeline_under_another_name_is_checked_too(expert: Path, marker: Path) -> None:
    (expert / "other.json").write_text(json.dumps({"steps": [program(marker)]}))
    with pytest.raises(UserError, match=r"other\.json"):
        check_policy(expert)


@pytest.mark.parametrize("content", ["[1]", "{", '{"steps": {}}', "[" * 100_000, "\xff\xfe"])
def test_a_file_that_is_no_pipeline(expert: Path, content: str) -> None:
    (expert / BEFORE).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=BEFORE):
        check_policy(expert)


def test_a_tokenizer_that_a_step_names_is_checked(
    small_dataset: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """multi_task_dit's step names its tokenizer; Transformers would ask on the terminal whether to run its code."""
    folder = zoo.multi_task_dit(tmp_path / "dit", small_dataset)
    check_policy(folder)
    evil = Path(shutil.copytree(folder / "clip", tmp_path / "evil"))
    module(evil, marker)
    change(evil / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}))
    change(
        folder / BEFORE,
        lambda c: next(s for s in c["steps"] if "tokenizer" in s["registry_name"])["config"].update(
            tokenizer_name=str(evil)
        ),
    )
    monkeypatch.setattr("builtins.input", lambda _: "y")
    with pytest.raises(UserError, match=r"expected no code to run in .*evil/tokenizer_config\.json"):
        load_expert(folder, torch.device("cpu"))
    assert not marker.exists()


def test_policies_whose_loading_runs_foreign_code(expert: Path) -> None:
    change(expert / "config.json", lambda content: content.update(vlm_model_name=str(expert)))  # it names itself
    check_policy(expert)
    for kind in ("pi0_fast", "groot", "gaussian_actor", "wall_x", "xvla"):
        change(expert / "config.json", lambda content, kind=kind: content.update(type=kind))
        with pytest.raises(UserError, match=f"found {kind}; fix"):
            check_policy(expert)


# ---- models of Transformers

ASKING = {
    "config.json": {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Config"},
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", None]},
    "processor_config.json": {"AutoProcessor": "evil.Processor"},
    "preprocessor_config.json": {"AutoImageProcessor": "evil.ImageProcessor"},
}


@pytest.mark.parametrize("file", ASKING)
def test_a_vlm_brings_no_code(vlm: Path, marker: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    module(vlm, marker)
    change(vlm / file, lambda content: content.update(auto_map=ASKING[file], model_type="evil"))
    if file != "preprocessor_config.json":  # read only where processor_config.json has none
        monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
        with suppress(AttributeError, TypeError, ValueError):  # what the code makes is useless, but it runs
            if file == "config.json":
                AutoConfig.from_pretrained(vlm)  # somebody typed "y"
            else:
                AutoProcessor.from_pretrained(vlm, trust_remote_code=True)
        assert marker.exists()
        marker.unlink()
    for load in (VLM.from_pretrained, VLM.from_config):
        with pytest.raises(UserError, match=f"expected no code to run in .*{file}"):
            load(str(vlm))
    assert not marker.exists()


VLM_WAYS = {
    "align": ["align", "--vlm", "VLM", "--expert", "POLICY", "--dataset", "DATA", "--out", "OUT", "--steps", "1"],
    "plan": ["plan", "--vlm", "VLM", "--expert", "POLICY"],
    "ask": ["ask", "VLM", "PICTURE", "what is this?"],
    "build-vlm": ["build-vlm", "--data", "OUT", "--output", "OUT", "--llm", "VLM"],
    "score-vlm": ["score-vlm", "--data", "OUT", "--run", "RUN", "--twin", "TWIN"],
}


@pytest.mark.parametrize("way", VLM_WAYS)
def test_no_way_in_runs_a_vlms_code(
    way: str,
    vlm: Path,
    small_expert: Path,
    small_dataset: Path,
    tmp_path: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    module(vlm, marker)
    change(vlm / "tokenizer_config.json", lambda content: content.update(auto_map=ASKING["tokenizer_config.json"]))
    places = {"VLM": vlm, "POLICY": small_expert, "DATA": small_dataset, "OUT": tmp_path / "out"}
    places |= {"PICTURE": tmp_path / "a.png", "RUN": tmp_path / "run", "TWIN": tmp_path / "twin"}
    Image.new("RGB", (64, 64)).save(places["PICTURE"])
    places["OUT"].mkdir()
    for name, blind in (("RUN", False), ("TWIN", True)):
        places[name].mkdir()
        (places[name] / "model").symlink_to(vlm)
        write_json(places[name] / "config.json", asdict(PretrainConfig("data", "out", blind=blind)))
    assert cli.main([str(places.get(word, word)) for word in VLM_WAYS[way]]) == 2
    message = capsys.readouterr().err
    assert "expected no code to run in" in message and "tokenizer_config.json, found auto_map" in message
    assert not marker.exists()


def test_nor_does_a_vision_towers(vlm: Path, marker: Path) -> None:
    module(vlm, marker)
    change(vlm / "config.json", lambda content: content.update(auto_map=ASKING["config.json"]))
    with pytest.raises(UserError, match="expected no code to run"):
        graft(None, None, str(vlm))  # type: ignore[arg-type]
    assert not marker.exists()


def test_code_is_found_however_deep(vlm: Path) -> None:
    nested = {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.ImageProcessor"}}}
    change(vlm / "processor_config.json", lambda content: content.update(nested))
    with pytest.raises(UserError, match="auto_map"):
        check_model(vlm)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trust_remote_code", True),
        ("attn_implementation", "evil/kernel"),
        ("_attn_implementation", "evil/kernel"),
        ("checkpoint_path", "evil.pth"),
        ("audio_tokenizer_name_or_path", "evil/audio"),
    ],
)
def test_nor_does_it_ask_for_any(vlm: Path, key: str, value: object) -> None:
    change(vlm / "config.json", lambda content: content["text_config"].update({key: value}))
    with pytest.raises(UserError, match=f"expected no code to run in .*, found {key}"):
        check_model(vlm)
    change(vlm / "config.json", lambda content: content["text_config"].update({key: None}))
    check_model(vlm)


class Bomb:
    """A pickle that is a program."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_weights_are_no_pickle(vlm: Path, expert: Path, marker: Path, name: str) -> None:
    for folder in (vlm, expert):
        (folder / "model.safetensors").rename(folder / name)
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    pickle.loads((vlm / name).read_bytes())
    assert marker.exists()
    marker.unlink()
    for file in expert.glob("*.safetensors"):
        file.unlink()
    for check in (lambda: VLM.from_pretrained(str(vlm)), lambda: check_policy(expert)):
        with pytest.raises(UserError, match=f"expected weights in safetensors in .*, found {name}"):
            check()
    assert not marker.exists()


def test_a_pickle_beside_safetensors_is_left_alone(vlm: Path, marker: Path) -> None:
    (vlm / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    VLM.from_pretrained(str(vlm))
    assert not marker.exists()


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "weights.bin", 3])
def test_shards_lie_beside_their_index(vlm: Path, shard: object) -> None:
    shutil.copytree(vlm, vlm.parent / "other")
    (vlm / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (vlm / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        VLM.from_pretrained(str(vlm))


def test_a_template_of_another_name_is_not_written_elsewhere(vlm: Path, tmp_path: Path) -> None:
    """A student's checkpoint holds the VLM's chat templates, a file for each."""
    own = (vlm / "chat_template.jinja").read_text()
    (vlm / "chat_template.jinja").unlink()
    (tmp_path / "saved" / "additional_chat_templates").mkdir(parents=True)
    named = [{"name": "default", "template": own}, {"name": "../../escaped", "template": "evil"}]
    change(vlm / "tokenizer_config.json", lambda content: content.update(chat_template=named))
    AutoProcessor.from_pretrained(vlm).tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "escaped.jinja").exists()  # so Transformers does it
    for templates in (named, {"default": own, "../../escaped": "evil"}, [{"template": "evil"}]):
        change(vlm / "tokenizer_config.json", lambda c, templates=templates: c.update(chat_template=templates))
        with pytest.raises(UserError, match="expected chat templates with plain names"):
            VLM.from_pretrained(str(vlm))
    change(vlm / "tokenizer_config.json", lambda content: content.update(chat_template=named[:1]))
    check_model(vlm)


def test_named_weights_lie_in_the_folder(vlm: Path) -> None:
    (vlm / "adapter_model.bin").touch()
    for name in ("../other.safetensors", "adapter_model.bin"):
        change(vlm / "config.json", lambda content, name=name: content.update(transformers_weights=name))
        with pytest.raises(UserError, match=r"config\.json"):
            check_model(vlm)


def test_a_tokenizers_files_lie_beside_it(vlm: Path, tmp_path: Path) -> None:
    change(vlm / "tokenizer_config.json", lambda content: content.update(tokenizer_file=str(tmp_path / "gone.json")))
    check_model(vlm)  # a path of the machine where it was made
    shutil.copy(vlm / "tokenizer.json", tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        check_model(vlm)


def test_adapters_are_plain_ones(expert: Path) -> None:
    (expert / "adapter_model.safetensors").touch()
    plain = {"peft_type": "LORA", "base_model_name_or_path": "somewhere", "megatron_core": "megatron.core"}
    for wrong in ({"peft_type": "XLORA"}, {"megatron_config": {"a": 1}, "megatron_core": "evil"}):
        (expert / "adapter_config.json").write_text(json.dumps(plain | wrong))
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            check_policy(expert)
    (expert / "adapter_config.json").write_text(json.dumps(plain))
    check_policy(expert)
    with pytest.raises(UserError, match="adapters"):
        check_model(expert)
    (expert / "adapter_model.safetensors").rename(expert / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        check_policy(expert)


def test_what_adapters_stand_on_is_checked(expert: Path, tmp_path: Path, marker: Path) -> None:
    adapted = Path(shutil.copytree(expert, tmp_path / "adapted"))
    (adapted / "adapter_model.safetensors").touch()
    (adapted / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(expert)})
    )
    change(expert / BEFORE, lambda content: content["steps"].append(program(marker)))
    with pytest.raises(UserError, match="expected steps named"):
        load_policy(adapted, PreTrainedConfig.from_pretrained(expert))


def test_a_name_on_the_hub_is_loaded_in_the_revision_that_was_checked(
    vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--vlm"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(vlm, repository / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place = place_of("some/vlm", local=True)
    assert place["revision"] == revision and place["trust_remote_code"] is False and place["use_safetensors"] is True
    config = repository / "snapshots" / revision / "config.json"
    change(config, lambda content: content.update(auto_map=ASKING["config.json"]))
    with pytest.raises(UserError, match="expected no code to run"):
        VLM.from_pretrained("some/vlm", local=True)


def test_all_our_own_pass(honest_student: Path) -> None:
    check_policy(honest_student)
    for asset in Path(__file__).parents[2].glob("assets/*/config.json"):
        (check_model if asset.parent.name.endswith("vlm") else check_policy)(asset.parent)
