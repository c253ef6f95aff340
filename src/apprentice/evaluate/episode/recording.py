"""Recordings for the Rerun viewer: what the policy saw, its state and its actions, on one time line."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from apprentice.common.errors import UserError
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.results import Episode


def check_rerun() -> None:
    """Raise UserError unless Rerun is installed."""
    if find_spec("rerun") is None:
        raise UserError(
            "expected the package rerun-sdk for --rerun, found none; "
            "fix: pip install 'lerobot_policy_apprentice[rerun]', or leave --rerun out"
        )


def record(episode: Episode, trace: Trace, seen: list[dict[str, np.ndarray]], fps: float) -> bytes:
    """An .rrd file; `seen` holds the observation of each plan, `fps` is the control frequency (Hz)."""
    import rerun

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.rrd"
        with rerun.RecordingStream("apprentice", recording_id=episode.stem) as stream:
            stream.save(path)
            outcome = "success" if episode.success else "failure"
            stream.log("instruction", rerun.TextDocument(f"{episode.instruction}: {outcome}"), static=True)
            for step, observation in zip(trace.plan_steps, seen, strict=True):
                stream.set_time("time", duration=step / fps)
                for key, value in observation.items():
                    if value.ndim == 3:
                        stream.log(key.replace(".", "/"), rerun.Image(value))
            for step, state in enumerate(trace.states):
                stream.set_time("time", duration=step / fps)
                stream.log("observation/state", rerun.Scalars(state))
                if step < len(trace.actions):
                    stream.log("action", rerun.Scalars(trace.actions[step]))
        return path.read_bytes()
