"""The conventions behind a dataset, an expert, a student or an environment, in one small JSON file.

Most robot policies that score 0 % were trained well and met a flipped image, swapped cameras, another gripper sign or a
newer simulator. Each of these is a field here, and whenever two things meet, their contracts are compared.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from apprentice.common.errors import UserError
from apprentice.common.files import read_json, write_json
from apprentice.data.features import is_picture, picture_shape
from apprentice.data.info import read_info

FILE = "contract.json"


FIX = {
    "cameras": "rename the dataset's cameras (--rename YOURS=EXPECTED), or train on data with these cameras",
    "image_size": "render or record at the expected size; --resize changes what the policy sees",
    "rotation": "rotate the images by 180 degrees once, where they are recorded",
    "state": "record the proprioception in the expected order and units",
    "action": "convert the actions to the expected layout, or use an expert for this layout",
    "gripper": "flip the sign of the gripper action in the dataset",
    "fps": "resample the dataset, or use an expert trained at this rate",
    "horizon": "use the expert's own horizon (chunk size)",
    "statistics": "use the statistics that the weights were trained with",
    "versions": "install the expected version; another one changes images and physics",
}


@dataclass(frozen=True)
class Contract:
    """What must agree. A field that is None is not known and is not compared.

    Attributes:
        cameras: observation keys, in the order in which a policy reads them.
        image_size: height and width (px).
        rotation: degrees by which recorded images are turned against the raw camera.
        state: names and units of the proprioception's columns.
        action: names and units of the action's columns.
        gripper: what +1 means for the last action column, "closes" or "opens".
        fps: control frequency (Hz).
        horizon: actions in a chunk.
        statistics: `hash_of` the normalisation statistics.
        render: "fast" or "exact"; recorded, not compared: both show the same scene.
        versions: of the packages that decide physics and pictures, and of the VLM.
    """

    cameras: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    rotation: int | None = None
    state: tuple[str, ...] | None = None
    action: tuple[str, ...] | None = None
    gripper: str | None = None
    fps: int | float | None = None
    horizon: int | None = None
    statistics: str | None = None
    render: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | str) -> "Contract":
        """Read `contract.json` in `folder`. Raises UserError if it is missing or damaged."""
        path = Path(folder) / FILE
        try:
            found: Contract = read_json(path, cls, "a contract")
            return found
        except FileNotFoundError:
            raise UserError(
                f"expected a contract at {path}, found none; fix: see docs on bringing your own data"
            ) from None

    @classmethod
    def of_dataset(cls, root: Path | str) -> "Contract":
        """The contract that stands beside a LeRobotDataset, or as much of one as its `info.json` tells."""
        meta = Path(root) / "meta"
        if (meta / FILE).exists():
            return cls.load(meta)
        info = read_info(Path(root))
        cameras = {key: feature for key, feature in info["features"].items() if is_picture(key, feature)}
        return cls(cameras=tuple(cameras), image_size=common_size(cameras), fps=info["fps"])

    def save(self, folder: Path | str) -> None:
        """Write `contract.json` into `folder`."""
        write_json(Path(folder) / FILE, asdict(self))

    def having(self, **fields: Any) -> "Contract":
        """A copy with some fields replaced; `versions` are merged."""
        if "versions" in fields:
            fields["versions"] = {**self.versions, **fields["versions"]}
        return replace(self, **fields)

    def completed(self, other: "Contract") -> "Contract":
        """A copy that also knows what another, which agrees with it, knows; `render` if both have the same."""
        missing = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) is None}
        render = self.render if self.render == other.render else None
        return self.having(**{**missing, "render": render, "versions": other.versions})

    def check(self, other: "Contract", name: str, other_name: str) -> None:
        """Compare what both know. Raises UserError naming every field that differs, both values and the fix."""
        problems = []
        for key in FIX:
            own, others = getattr(self, key), getattr(other, key)
            if key == "versions":
                shared = sorted(set(own) & set(others))
                own, others = ({k: versions[k] for k in shared} for versions in (own, others))
            if own is not None and others is not None and own != others:
                problems.append(f"{key}: {name} has {own}, {other_name} has {others}; fix: {FIX[key]}")
        if problems:
            raise UserError(f"{name} and {other_name} do not fit together:\n  " + "\n  ".join(problems))


def common_size(cameras: Mapping[str, dict[str, Any]]) -> tuple[int, int] | None:
    """Height and width (px) of the cameras' pictures, by `info.json`; None if they have several sizes, or are none."""
    sizes = {picture_shape(key, feature)[:2] for key, feature in cameras.items()}
    return sizes.pop() if len(sizes) == 1 else None


def check_features(
    wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], name: str, other_name: str
) -> None:
    """Check that `found` offers every wanted feature in its shape. Raises UserError naming all that do not fit."""
    problems = [
        f"{key}: {name} reads {shape}, {other_name} has {found.get(key, 'none')}"
        for key, shape in wanted.items()
        if found.get(key) != shape
    ]
    if problems:
        fix = "--rename YOURS=EXPECTED or --resize CAMERA=HEIGHTxWIDTH, or train on what there is"
        raise UserError(f"{name} and {other_name} do not fit together; fix: {fix}\n  " + "\n  ".join(problems))


def hash_of(statistics: dict[str, Any]) -> str:
    """A short hash of normalisation statistics `{feature: {"min": ..., ...}}`, equal for arrays, tensors and lists."""
    plain = {
        k: {s: [f"{x:.6g}" for x in _flat(v)] for s, v in sorted(stats.items())} for k, stats in statistics.items()
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _flat(value: Any) -> list[float]:
    value = value.tolist() if hasattr(value, "tolist") else value
    return [x for v in value for x in _flat(v)] if isinstance(value, list) else [float(value)]


def installed(*names: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
