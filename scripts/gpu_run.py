"""On a machine with a GPU and without network: unpack the wheels, test, measure, train, and lay out what goes back.

    python3 scripts/gpu_run.py --out back               # from the pack's folder: sh run.sh
    python3 scripts/gpu_run.py --out back --device cpu  # a trial where there is no GPU

It needs Python with PyTorch, and nothing of ours installed. OUT gets results.json, rewritten after every step, so that
it is there when the machine is taken away; logs of each step; and checkpoints in parts of at most 15 MB. Back home:
`apprentice join OUT FOLDER`. A training that does not end in time is stopped, and goes on from its checkpoint.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TAIL = 3000  # characters of a step's output in results.json
GRACE = 20.0  # s for a stopped step to end
TO_SPLIT = 20.0  # s that are kept for the last step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="what goes back")
    parser.add_argument("--recipe", default="recipes/gpu.yaml", help="what is trained, by its place in the pack")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--part-mb", type=float, default=15.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--skip", nargs="*", default=[], choices=("tests", "benchmark", "train"))
    options = parser.parse_args()
    out, end = options.out.resolve(), time.monotonic() + 60 * options.minutes - TO_SPLIT
    out.mkdir(parents=True, exist_ok=True)
    environment = prepared()
    quick = ["--quick"] if options.device == "cpu" else []
    steps = {
        "tests": ([sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/gpu"], 0.3),
        "benchmark": ([sys.executable, "benchmarks/gpu.py", "--out", str(out / "benchmark.json"), *quick], 0.5),
        "train": ([sys.executable, "-m", "apprentice", "run", options.recipe, "--out", "runs/gpu"], 1.0),
    }
    if options.device == "cpu":
        environment |= {"APPRENTICE_TEST_DEVICE": "cpu", "ACCELERATE_USE_CPU": "true"}
    results = {"machine": machine(), "device": options.device, "steps": {}}
    for name, (command, share) in steps.items():
        if name in options.skip:
            continue
        limit = max(1.0, (end - time.monotonic()) * share)
        results["steps"][name] = step(name, command, environment, out / f"{name}.log", limit)
        if (out / "benchmark.json").exists():
            results["benchmark"] = json.loads((out / "benchmark.json").read_text())
        write(out / "results.json", results)
    results["parts"] = brought(ROOT / "runs" / "gpu", out, options.part_mb)
    write(out / "results.json", results)
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB to take back", flush=True)
    return max([0, *(done["exit_code"] for done in results["steps"].values() if not done["stopped"])], key=abs)


def prepared() -> dict[str, str]:
    """Wheels unpacked, and an environment in which they are found, our source, and the command `apprentice`."""
    site = ROOT / "site"
    for wheel in sorted((ROOT / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    command = ROOT / "bin" / "apprentice"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m apprentice "$@"\n')
    command.chmod(0o755)
    places = [str(site), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "PATH": os.pathsep.join([str(command.parent), os.environ.get("PATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "APPRENTICE_CACHE": os.environ.get("APPRENTICE_CACHE", str(ROOT / "runs" / "cache")),
    }


def step(name: str, command: list[str], environment: dict[str, str], log: Path, limit: float) -> dict[str, object]:
    """Run a command for at most `limit` s, with its output shown and kept; interrupt it then, so that it can save."""
    print(f"--- {name}, at most {limit:.0f} s", flush=True)
    start = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        stopped = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = True
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    tail = log.read_text(errors="replace")[-TAIL:]
    seconds = round(time.monotonic() - start, 1)
    print(f"{tail}\n--- {name}: exit code {process.returncode} after {seconds} s", flush=True)
    return {"exit_code": process.returncode, "stopped": stopped, "seconds": seconds, "tail": tail}


def brought(runs: Path, out: Path, part_mb: float) -> list[str]:
    """The checkpoints of all runs, with their logs, in parts; their names."""
    parts = runpy.run_path(str(ROOT / "src" / "apprentice" / "offline" / "parts.py"))
    keep = [checkpoint.parent for checkpoint in sorted(runs.rglob("checkpoint")) if checkpoint.is_dir()]
    files = [file for run in keep for file in sorted((run / "checkpoint").rglob("*"))]
    files += [run / name for run in keep for name in ("config.json", "log.jsonl", "cost.json", "precision.json")]
    files += [run / "caches.json" for run in keep]
    named = {str(file.relative_to(runs)): file for file in files if file.is_file()}
    return [part.name for part in parts["split_files"](named, out, part_mb)] if named else []


def machine() -> dict[str, str]:
    """What computes: Python, PyTorch, the GPU."""
    gpu = "none"
    if smi := shutil.which("nvidia-smi"):
        ask = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    torch = importlib.metadata.version("torch")
    return {"python": platform.python_version(), "torch": torch, "gpu": gpu, "cores": str(os.cpu_count())}


def write(file: Path, content: object) -> None:
    """JSON, whole or not at all."""
    fresh = file.with_suffix(".fresh")
    fresh.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(fresh, file)


if __name__ == "__main__":
    sys.exit(main())
