"""JSON files of a dataset, read and checked before anything relies on them."""

import json
import math
from pathlib import Path
from typing import Any

from apprentice.common.errors import UserError

INFO = "meta/info.json"
POINTER = b"version https://git-lfs"
COPY = "copy or record the dataset again"


def read_info(root: Path) -> dict[str, Any]:
    """`meta/info.json`, with all fields that are used of the types that they must have. Raises UserError."""
    path = root / INFO
    fix = f"name a dataset's folder, which holds {INFO}, data/ and videos/; one of the hub is downloaded first"
    try:
        present(path)
    except UserError as error:
        if not path.exists():
            raise UserError(f"expected a LeRobotDataset in {root}, found no {INFO}; fix: {fix}") from None
        raise error
    info = read_object(path, COPY)
    version = info.get("codebase_version")
    if version != "v3.0":
        raise UserError(
            f"expected dataset version v3.0 in {root}, found {version}; fix: "
            f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=local --root={root} --push-to-hub=false"
        )
    fps, features = info.get("fps"), info.get("features")
    wrong = []
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        wrong.append(f"fps {fps!r}")
    for name in ("total_episodes", "total_frames"):
        if not isinstance(info.get(name), int) or info[name] < 1:
            wrong.append(f"{name} {info.get(name)!r}")
    if not isinstance(features, dict) or not features:
        wrong.append(f"features {features!r}")
    else:
        wrong += [f"the feature {key} {each!r}" for key, each in features.items() if not _is_feature(each)]
    if wrong:
        raise UserError(f"expected numbers and features of a dataset in {path}, found {'; '.join(wrong)}; fix: {COPY}")
    return info


def _is_feature(feature: Any) -> bool:
    if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
        return False
    shape = feature.get("shape")
    notes = all(isinstance(feature.get(name) or {}, dict) for name in ("info", "video_info"))
    return notes and isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises UserError."""
    present(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected JSON in {path}, found: {error}; fix: {fix}") from None
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object in {path}, found {type(content).__name__}; fix: {fix}")
    return content


def present(path: Path) -> None:
    """Raises UserError unless there is a file, with content, and no pointer to one that Git LFS keeps elsewhere."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(POINTER))
    except OSError as error:
        raise UserError(f"expected the file {path}, found: {error.strerror}; fix: {COPY}") from None
    if start == POINTER:
        raise UserError(f"expected the content of {path}, found a pointer of Git LFS; fix: git lfs pull")
    if not start:
        raise UserError(f"expected the content of {path}, found an empty file; fix: {COPY}")
