"""The twin's suites, tasks and words. Nothing here needs MuJoCo.

A suite is a level of faults. `so101_twin` has those of a real arm, drawn anew in each episode; its variants have none,
more, or one kind alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from apprentice.common.errors import UserError

REAL, CLEAN, SHIFTED = "so101_twin", "clean", "shifted"
KINDS = {
    "delay": "commands arrive 1 to 3 frames late",
    "cameradelay": "pictures are 1 to 4 frames old",
    "play": "gears with a free play of 1 degree",
    "droop": "servos that give way under load",
    "encoder": "joints read in steps of 0.088 degrees, with noise",
    "light": "another lamp and another room",
    "exposure": "another exposure and white balance",
    "sensor": "noise, blur and JPEG in the pictures",
    "camera": "the front camera moved",
    "objects": "other friction, mass and size of objects",
    "push": "in every second episode the object slides away by 3 cm before it is grasped",
    "shove": "in every second episode the hand is pushed with 3 N while it carries",
    "distractors": "up to two objects that no task names",
    "joints": "joints calibrated otherwise, by up to 2 degrees",
}
REAL_KINDS = tuple(kind for kind in KINDS if kind != "joints")  # the same arm recorded the data and is tested
VARIANTS: dict[str, str] = {
    CLEAN: "no faults",
    SHIFTED: "faults twice as large, joints calibrated otherwise",
} | {kind: f"this fault alone: {what}" for kind, what in KINDS.items()}
MOST_STEPS = 540  # 18 s: twice what the demonstrator takes
SUITES: dict[str, int] = {REAL: MOST_STEPS} | {f"{REAL}_{ending}": MOST_STEPS for ending in VARIANTS}
FPS = 30
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

DRAWER, CUPS, BLOCKS, SPONGE, BLOCK = range(5)
INSTRUCTIONS = (
    "close the drawer",
    "put the red cup into the blue cup",
    "put the red block on the green block",
    "put the sponge on the plate",
    "put the red block on the plate",
)
TASK_NAMES = ("drawer", "cups", "blocks", "sponge", "block")  # for --env.task and the like
CARRIED: Mapping[int, str] = {CUPS: "cup_red", BLOCKS: "block_red", SPONGE: "sponge", BLOCK: "block_red"}
ONTO: Mapping[int, str] = {CUPS: "cup_blue", BLOCKS: "block_green", SPONGE: "plate", BLOCK: "plate"}
OTHER_WORDS: Mapping[str, tuple[str, ...]] = {
    INSTRUCTIONS[DRAWER]: ("shut the drawer", "push the drawer shut", "push the drawer closed"),
    INSTRUCTIONS[CUPS]: ("place the red cup in the blue cup", "stack the red cup inside the blue cup"),
    INSTRUCTIONS[BLOCKS]: ("stack the red block on the green block", "place the red cube on top of the green cube"),
    INSTRUCTIONS[SPONGE]: ("place the sponge on the plate", "move the sponge onto the plate"),
    INSTRUCTIONS[BLOCK]: ("place the red block on the plate", "move the red cube onto the plate"),
}


@dataclass(frozen=True)
class Task:
    suite: str
    index: int
    instruction: str


def tasks(suite: str) -> list[Task]:
    """The five tasks. Raises UserError for an unknown suite, or without MuJoCo."""
    if suite not in SUITES:
        raise UserError(f"expected a suite of {', '.join(SUITES)}, found {suite!r}; fix: name one of them")
    check_simulator()
    return [Task(suite, index, said) for index, said in enumerate(INSTRUCTIONS)]


def check_simulator() -> None:
    """Raise UserError unless MuJoCo is installed, in the version that the results are of."""
    try:
        found = version("mujoco")
    except PackageNotFoundError as error:
        raise UserError(
            "expected MuJoCo for the SO-101 twin, found none; fix: pip install 'lerobot_policy_apprentice[so101]'"
        ) from error
    if not found.startswith("3.3."):
        raise UserError(
            f"expected MuJoCo 3.3 (others move otherwise), found {found}; fix: pip install 'mujoco>=3.3,<3.4'"
        )
