"""Recordings for the Rerun viewer, if it is installed."""

from pathlib import Path

import numpy as np
import pytest
from example_evaluation import write_evaluation

from apprentice.common.errors import UserError
from apprentice.evaluate.episode import recording
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.results import Evaluation


def test_without_rerun_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lerobot_policy_apprentice\[rerun\]'"):
        recording.check_rerun()


def test_a_recording_holds_what_was_seen_and_done(tmp_path: Path) -> None:
    rerun = pytest.importorskip("rerun")
    episode = Evaluation.load(write_evaluation(tmp_path / "run")).episodes[0]
    trace = Trace.of([np.full(8, k) for k in range(4)], [np.full(7, k / 2) for k in range(3)], [(0, 0.5), (2, 0.25)])
    seen = [{"observation.images.image": np.full((8, 8, 3), 50 * k, np.uint8)} for k in range(2)]
    (tmp_path / "a.rrd").write_bytes(recording.record(episode, trace, seen, 20))
    found = rerun.recording.load_recording(tmp_path / "a.rrd")
    assert found.recording_id() == episode.stem
    names = {str(column.entity_path) for column in found.schema().component_columns()}
    assert {"/action", "/observation/state", "/observation/images/image", "/instruction"} <= names
