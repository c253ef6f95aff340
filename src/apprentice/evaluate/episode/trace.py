"""What an episode did, step by step: a small file beside its outcome, and those of a whole evaluation as one table."""

import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apprentice.common.files import fingerprint, replacing
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.results import Episode, Evaluation
from apprentice.simulators.base import simulator_of

TABLE = "episodes.parquet"
ROWS = 100  # episodes in memory at a time
TYPES = {"str": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
LISTS = ("states", "actions", "plan_steps", "plan_seconds")


@dataclass(frozen=True)
class Trace:
    """N actions in P plans. With the seed and the initial state, the actions are enough to play the episode again.

    Attributes:
        states: (N + 1, S) before each action and at the end, in the units of the simulator's contract.
        actions: (N, A) as they were executed.
        plan_steps: (P,) how many actions had been executed when a plan was made.
        plan_seconds: (P,) how long it took to make (s).
    """

    states: np.ndarray
    actions: np.ndarray
    plan_steps: np.ndarray
    plan_seconds: np.ndarray

    @classmethod
    def of(cls, states: list[np.ndarray], actions: list[np.ndarray], plans: list[tuple[int, float]]) -> "Trace":
        """From what was gathered step by step; `plans` as (actions executed before, seconds)."""
        steps, seconds = zip(*plans, strict=True) if plans else ((), ())
        return cls(
            np.array(states, np.float32),
            np.array(actions, np.float32),
            np.array(steps, np.int32),
            np.array(seconds, np.float32),
        )

    def to_bytes(self) -> bytes:
        """As an .npz file."""
        stream = io.BytesIO()
        np.savez_compressed(stream, **asdict(self))
        return stream.getvalue()

    @classmethod
    def load(cls, file: Path | IO[bytes]) -> "Trace":
        """Raises OSError if there is none."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in LISTS})


def write_table(evaluation: Evaluation) -> Path:
    """Write the evaluation's episodes and traces as one Parquet file, a row an episode, unless it is there already.

    The protocol stands in the file's metadata. Lists are null for an episode whose trace was not kept.
    """
    path = evaluation.folder / TABLE
    content = json.dumps([asdict(episode) for episode in evaluation.episodes])
    about = {"protocol": json.dumps(asdict(evaluation.protocol)), "episodes": fingerprint(content)}
    if path.exists() and (pq.read_schema(path).metadata or {}).items() >= _encoded(about).items():
        return path
    columns = [(field.name, TYPES[_type_name(field.type)]) for field in fields(Episode)]
    schema = pa.schema([*columns, *_list_types(evaluation.protocol).items()], metadata=about)
    with replacing(path) as fresh, pq.ParquetWriter(fresh, schema, compression="zstd") as writer:
        for first in range(0, len(evaluation.episodes), ROWS):
            episodes = evaluation.episodes[first : first + ROWS]
            rows = [asdict(episode) | _lists(evaluation, episode) for episode in episodes]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return path


def _list_types(protocol: Protocol) -> dict[str, pa.DataType]:
    contract = simulator_of(protocol.suite).contract(protocol.suite, protocol.image_size, protocol.render)
    vectors = [pa.list_(pa.list_(pa.float32(), len(names or ()) or -1)) for names in (contract.state, contract.action)]
    return dict(zip(LISTS, [*vectors, pa.list_(pa.int32()), pa.list_(pa.float32())], strict=True))


def _encoded(about: dict[str, str]) -> dict[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in about.items()}


def _lists(evaluation: Evaluation, episode: Episode) -> dict[str, list | None]:
    path = evaluation.file("traces", episode.trace)
    if path is None:
        return dict.fromkeys(LISTS)
    return {name: array.tolist() for name, array in asdict(Trace.load(path)).items()}


def _type_name(kind: object) -> str:
    """`int` of int, `str` of str | None."""
    return (kind.__name__ if isinstance(kind, type) else str(kind)).removesuffix(" | None")
