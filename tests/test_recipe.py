"""Recipes with real steps: small programs that leave a trace each time they run."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from apprentice import closure as closures
from apprentice.common.errors import UserError
from apprentice.recipe import Recipe, _code, run_recipe

APPEND = "import sys; open(sys.argv[2], 'a').write(open(sys.argv[1]).read())"


def write(folder: Path, steps: dict[str, dict[str, object]]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "out": str(folder / "out"), "steps": steps}, sort_keys=False))
    return path


def append(source: Path | str, target: str) -> dict[str, object]:
    """A step that appends its input to its output, so that the output tells how often it ran."""
    run = f'python -c "{APPEND}" {source} {{out}}/{target}'
    return {"run": run, "inputs": [str(source)], "outputs": [f"{{out}}/{target}"]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_text("a")
    return path


def start(recipe: Path, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "apprentice", "run", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_steps_run_in_order_and_only_once(tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = write(tmp_path, {"one": append(source, "first"), "two": append("{out}/first", "second")})
    run_recipe(recipe)
    run_recipe(recipe)
    assert (tmp_path / "out/second").read_text() == "a"
    assert capfd.readouterr().out.count("up to date") == 2


def test_a_changed_input_redoes_what_depends_on_it(tmp_path: Path, source: Path) -> None:
    other = tmp_path / "other"
    other.write_text("o")
    steps = {
        "one": append(source, "first"),
        "two": append("{out}/first", "second"),
        "apart": append(other, "third"),
    }
    recipe = write(tmp_path, steps)
    run_recipe(recipe)
    stamp = (tmp_path / "out/third").stat().st_mtime_ns
    source.write_text("b")
    run_recipe(recipe)
    assert (tmp_path / "out/second").read_text() == "b"  # not "ab": the old output was deleted first
    assert (tmp_path / "out/third").stat().st_mtime_ns == stamp


def test_a_changed_command_a_missing_output_and_force_redo_a_step(tmp_path: Path, source: Path) -> None:
    run_recipe(write(tmp_path, {"one": append(source, "first")}))
    recipe = write(tmp_path, {"one": append(source, "renamed")})
    run_recipe(recipe)
    output = tmp_path / "out/renamed"
    output.unlink()
    run_recipe(recipe)
    assert output.read_text() == "a"
    output.write_text("spoilt")
    run_recipe(recipe)
    assert output.read_text() == "spoilt"
    run_recipe(recipe, force=["one"])
    assert output.read_text() == "a"


def test_each_value_makes_a_step(tmp_path: Path, source: Path) -> None:
    trained = {**append(source, "trained-{seed}"), "each": {"seed": [3, 5]}}
    run_recipe(write(tmp_path, {"train": trained, "last": append("{out}/trained-5", "last")}))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == [
        "last",
        "trained-3",
        "trained-5",
    ]
    assert [step.name for step in Recipe.load(tmp_path / "recipe.yaml").steps] == ["train-3", "train-5", "last"]
    trained = {"run": "python {a} {b}", "outputs": ["{out}/{a}-{b}"], "each": {"a": [1, 2], "b": [3e-4, "c"]}}
    steps = Recipe.load(write(tmp_path, {"train": trained})).steps
    assert [step.run for step in steps] == ["python 1 0.0003", "python 1 c", "python 2 0.0003", "python 2 c"]


def test_what_is_said_often_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{name: a, out: b, vars: {data: '{out}/d=4 {out}/e-{seed}'}, steps: {c: {run: 'f {data}', inputs: ['{out}/d'],"
        " outputs: ['{out}/g-{seed}'], each: {seed: [1]}}}}"
    )
    assert Recipe.load(path).steps[0].run == "f b/d=4 b/e-1"


def test_out_can_be_elsewhere(tmp_path: Path, source: Path) -> None:
    run_recipe(write(tmp_path, {"one": append(source, "first")}), out=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/first").exists() and not (tmp_path / "out").exists()


def test_a_failure_names_step_log_and_remedy(tmp_path: Path, source: Path) -> None:
    broken = {"run": "python -c \"print('the reason'); raise SystemExit(3)\""}
    recipe = write(tmp_path, {"one": append(source, "first"), "broken": broken, "never": append(source, "last")})
    done = start(recipe)
    printed, _ = done.communicate(timeout=200)
    assert done.returncode == 2 and "Traceback" not in printed
    assert "step broken failed ([2/3] broken): exit code 3" in printed
    assert f"apprentice run {recipe}" in printed
    log = tmp_path / "out/logs/broken.log"
    assert str(log) in printed and log.read_text() == "the reason\n"
    assert not (tmp_path / "out/last").exists()


def test_a_step_that_makes_nothing_has_failed(tmp_path: Path) -> None:
    recipe = write(tmp_path, {"idle": {"run": "python -c pass", "outputs": ["{out}/model"]}})
    with pytest.raises(UserError, match=r"idle failed.*without making .*out/model"):
        run_recipe(recipe)


# Counts to 40 in a file that it goes on with, as training goes on with its checkpoint.
COUNT = """
import sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
ticks = folder / "ticks"
for k in range(len(ticks.read_text()) if ticks.exists() else 0, 40):
    with ticks.open("a") as stream: stream.write("x")
    while k == 20 and not (folder.parent.parent / "go on").exists(): time.sleep(0.01)
with (folder / "starts").open("a") as stream: stream.write("s")
"""


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    program = tmp_path / "count.py"
    program.write_text(COUNT)
    run = f"python {program} {{out}}/count"
    return write(tmp_path, {"count": {"run": run, "inputs": [str(program)], "outputs": ["{out}/count"]}})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, counting: Path, number: signal.Signals) -> None:
    ticks = tmp_path / "out/count/ticks"
    first = start(counting)
    wait_for(ticks)
    first.send_signal(number)
    printed, _ = first.communicate(timeout=200)  # returns only when the step is dead too: it holds the pipe
    counted = len(ticks.read_text())
    assert 0 < counted < 40
    if number != signal.SIGKILL:
        assert first.returncode == 130
        assert "interrupted in step count" in printed and f"apprentice run {counting}" in printed
    (tmp_path / "go on").touch()
    run_recipe(counting)
    assert len(ticks.read_text()) == 40
    assert (tmp_path / "out/count/starts").read_text() == "s"  # the first one never came to its end


def test_a_step_killed_alone_is_a_failure_that_can_be_resumed(tmp_path: Path) -> None:
    suicide = "import os, sys; os.kill(os.getpid(), 9)"
    with pytest.raises(UserError, match="exit code -9"):
        run_recipe(write(tmp_path, {"one": {"run": f'python -c "{suicide}"'}}))


def test_a_step_can_be_interrupted_though_a_shell_had_us_ignore_it(tmp_path: Path) -> None:
    deaf = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of what is started with & in a script
    try:
        assert subprocess.run([sys.executable, "-c", deaf]).returncode == 1
        run_recipe(write(tmp_path, {"one": {"run": f'python -c "{deaf}"'}}))
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_runs_do_not_share_a_folder(tmp_path: Path, counting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(counting)
    wait_for(tmp_path / "out/count/ticks")
    monkeypatch.setattr("apprentice.common.files.PATIENCE", 0.1)
    with pytest.raises(UserError, match="another run"):
        run_recipe(counting)
    (tmp_path / "go on").touch()
    assert first.wait(60) == 0


def test_a_step_on_a_terminal_sees_a_terminal_and_its_bar_is_logged_once(tmp_path: Path) -> None:
    program = tmp_path / "bar.py"
    program.write_text(
        "import sys\nassert sys.stdout.isatty()\n"
        "for k in range(9): print(f'\\r\\x1b[2K\\x1b[31mstep {k}\\x1b[0m', end='')\nprint('\\nend')\n"
    )
    recipe = write(tmp_path, {"bar": {"run": f"python {program}"}})
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-m", "apprentice", "run", str(recipe)], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert done.wait(60) == 0
    assert b"step 3" in shown
    assert (tmp_path / "out/logs/bar.log").read_text() == "step 8\nend\n"


# Refuses a folder that it did not make, as lerobot-train does; killed once before and once after its first
# checkpoint.
TRAIN = """#!/bin/sh
case "$*" in
*--resume=true*) touch "${1#--config_path=}.resumed";;
*) folder="${1#--output_dir=}"; mkdir "$folder" || exit 9
   if [ -e "$folder/../once" ]; then
     mkdir -p "$folder/checkpoints/last/pretrained_model"
     touch "$folder/checkpoints/last/pretrained_model/train_config.json"
   fi
   touch "$folder/../once"; kill -9 $$;;
esac
"""


def test_lerobot_train_gets_the_flags_to_resume_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scripts/lerobot-train"
    program.parent.mkdir()
    program.write_text(TRAIN)
    program.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(program.parent))
    run = "lerobot-train --output_dir={out}/expert"
    recipe = write(tmp_path, {"expert": {"run": run, "outputs": ["{out}/expert/checkpoints/last"]}})
    for _ in ("killed before there is a checkpoint", "killed after"):
        with pytest.raises(UserError, match="exit code -9"):
            run_recipe(recipe)
    run_recipe(recipe)
    assert (tmp_path / "out/expert/checkpoints/last/pretrained_model/train_config.json.resumed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "expected a recipe at .*, found: input should be"),
        ("{name: a, out: b}", "found in steps: field required"),
        ("{name: a, out: b, steps: {c: {inputs: []}}}", "found in steps.c.run: field required"),
        ("{name: a, out: b, steps: {c: {run: d, when: e}}}", "found in steps.c.when: an unknown key"),
        ("{name: a, out: b, steps: {c: {run: d, outputs: [/elsewhere]}}}", "inside b, found /elsewhere"),
        ("{name: a, out: b, steps: {c: {run: d, outputs: ['{out}/e'], each: {seed: [0]}}}}", "an output for each seed"),
        ("{name: a, out: b, steps: {../../c: {run: d}}}", "expected a step's name .* found ../../c; fix"),
        ("{name: a, out: b, steps: {/tmp/c: {run: d}}}", "expected a step's name .* found /tmp/c; fix"),
        ("{name: a, out: b, steps: {.c: {run: d}}}", "expected a step's name .* found .c; fix"),
        (
            "{name: a, out: b, steps: {c: {run: d, each: {seed: [../e]}}}}",
            "expected a step's name .* found c-../e; fix",
        ),
        ("{name: a, out: b, steps: {c: {run: d, each: {x: [1]}}, c-1: {run: d}}}", "found c-1 twice"),
        ("{name: a, out: b, steps: {c: {run: lerobot-train --output_dir=/home}}}", "inside b, found /home"),
        ("{name: a, out: b, steps: {c: {run: d, each: {seed: 0}}}}", "found in steps.c.each.seed: input should be"),
        ("{name: a", "expected a recipe at .*, found on line"),
        ("{name: a, out: b, steps: {c: {run: d, input: [e]}}}", "an unknown key; did you mean inputs?"),
        ("{name: a, out: b, steps: {}}", "expected steps in"),
        ("{name: a, out: b, steps: {c: {run: d 'e}}}", "expected a command line, found: No closing quotation"),
        ("{name: a, out: b, steps: {../c: {run: d}}}", "a step's name of letters"),
        ("{name: a, out: b, steps: {c: {run: apprentice algn}}}", "step c: .* did you mean align?"),
        ("{name: a, out: b, steps: {c: {run: apprentice align --stepz 3}}}", "step c: .* did you mean --steps?"),
        ("{name: a, out: b, steps: {c: {run: apprentice rates}}}", "step c: rates: expected RUNS, found none"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        Recipe.load(path)


def test_missing_recipe_input_and_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found nothing"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"step one: expected its input .*absent"):
        run_recipe(write(tmp_path, {"one": append(tmp_path / "absent", "first")}))
    with pytest.raises(UserError, match="no such-command"):
        run_recipe(write(tmp_path, {"one": {"run": "such-command"}}))


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_recipes_only_read_what_is_there_or_made_before(path: Path) -> None:
    recipe = Recipe.load(path)
    assert f"apprentice run {path}" in path.read_text().split("name:")[0], "the header holds the command"
    made: list[Path] = []
    for step in recipe.steps:
        for name in step.inputs:
            inside = any(Path(name).is_relative_to(output) for output in made)
            assert inside or name.startswith(("assets/", "recipes/")), f"{step.name} reads {name}, which no step makes"
        made += [Path(output) for output in step.outputs]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of our sources, so that one can be edited; the recipe fingerprints these."""
    copy = tmp_path / "src"
    shutil.copytree(closures.SRC, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    monkeypatch.setattr(closures, "SRC", copy)
    closures._file.cache_clear()
    yield copy / "apprentice"
    closures._file.cache_clear()


ALIGN = "align --vlm vlm --expert expert --dataset data --out out"
EVAL = "eval --policies a=a --suite libero_goal --out-dir out"


@pytest.mark.parametrize(
    ("edited", "again", "not_again"),
    [
        ("common/device.py", [ALIGN, EVAL], ["split a b"]),
        ("common/files.py", [ALIGN, EVAL, "collect --suite libero_goal --episodes 1 --out out"], []),
        ("common/intervals.py", [EVAL], [ALIGN]),
        ("common/pool.py", [EVAL], [ALIGN]),
        ("data/items.py", [ALIGN], ["doctor data"]),
        ("experts/act.py", [ALIGN], ["doctor data"]),
        ("vlm/base.py", [ALIGN, EVAL, "serve a"], ["doctor data"]),
        ("policy/modeling_apprentice.py", [ALIGN, EVAL], ["doctor data"]),
        ("distill/caches/cache.py", [ALIGN], [EVAL]),
        ("evaluate/during_training.py", [f"{ALIGN} --rollouts 1"], [ALIGN]),
        ("simulators/libero/dataset/doctor.py", ["doctor data"], [ALIGN, EVAL]),
        ("simulators/libero/simulator/env.py", [EVAL, f"{ALIGN} --rollouts 1"], [ALIGN]),
        ("nano/score/model_card.py", ["score-vlm --data a --run b --twin c"], [ALIGN, EVAL]),
        ("evaluate/report/report.html.jinja", ["report --evaluation a --out b.html"], [ALIGN, "doctor data"]),
        ("serve/server.py", ["serve a"], [ALIGN, EVAL]),
        ("cli.py", [ALIGN, EVAL], []),
    ],
)
def test_a_step_runs_again_if_a_file_that_it_imports_changed(
    sources: Path, edited: str, again: list[str], not_again: list[str]
) -> None:
    key = {words: _code(["apprentice", *words.split()]) for words in [*again, *not_again]}
    with (sources / edited).open("a") as file:
        file.write("\n")
    assert [words for words in again if _code(["apprentice", *words.split()]) == key[words]] == []
    assert [words for words in not_again if _code(["apprentice", *words.split()]) != key[words]] == []


def test_lerobots_commands_depend_on_the_plugin_alone(sources: Path) -> None:
    before = _code(["lerobot-train", "--policy.type=apprentice"])
    (sources / "simulators" / "libero" / "simulator" / "env.py").write_text("")
    assert _code(["lerobot-train", "--policy.type=apprentice"]) == before != _code(["sh", "-c", "true"])
    (sources / "experts" / "seer" / "modeling_seer.py").write_text("")
    assert _code(["lerobot-train", "--policy.type=apprentice"]) != before
