"""The scenes of LIBERO-90 and the words for what is in them."""

import re
from pathlib import Path

SUITE = "libero_90"
HELD_OUT = (  # never trained on: the test suite LIBERO-10 plays in them
    "KITCHEN_SCENE3", "KITCHEN_SCENE4", "KITCHEN_SCENE6", "KITCHEN_SCENE8", "LIVING_ROOM_SCENE1",
    "LIVING_ROOM_SCENE2", "LIVING_ROOM_SCENE5", "LIVING_ROOM_SCENE6", "STUDY_SCENE1",
)  # fmt: skip
SIZE, CELL = 128, 4  # px

NAMES = {  # type of object in LIBERO -> its name in LIBERO's instructions
    "akita_black_bowl": "black bowl", "white_bowl": "white bowl", "plate": "plate", "chefmate_8_frypan": "frying pan",
    "moka_pot": "moka pot", "wine_bottle": "wine bottle", "ketchup": "ketchup", "alphabet_soup": "alphabet soup",
    "cream_cheese": "cream cheese", "tomato_sauce": "tomato sauce", "orange_juice": "orange juice", "milk": "milk",
    "butter": "butter", "chocolate_pudding": "chocolate pudding", "new_salad_dressing": "salad dressing",
    "basket": "basket", "wooden_tray": "tray", "porcelain_mug": "white mug", "red_coffee_mug": "red mug",
    "white_yellow_mug": "yellow and white mug", "black_book": "black book", "yellow_book": "yellow book",
    "desk_caddy": "caddy", "wooden_cabinet": "cabinet", "white_cabinet": "white cabinet", "flat_stove": "stove",
    "microwave": "microwave", "wine_rack": "wine rack", "wooden_two_layer_shelf": "cabinet shelf",
}  # fmt: skip
DRAWERS = ("top drawer", "middle drawer", "bottom drawer")
CATEGORIES = ("background", "table", "arm", "gripper", *NAMES.values(), *DRAWERS, "knob", "microwave door")
TYPES = sorted(NAMES, key=len, reverse=True)


def scene_of(problem: str) -> str:
    """Name of the scene of a BDDL file, "KITCHEN_SCENE5_close_..." -> "KITCHEN_SCENE5"."""
    return re.match(r"[A-Z_]+SCENE\d+", Path(problem).name).group()  # type: ignore[union-attr]


def problems() -> dict[str, Path]:
    """Scene name -> BDDL file of its first task, for the 20 scenes of LIBERO-90."""
    from libero.libero import get_libero_path

    found: dict[str, Path] = {}
    for path in sorted((Path(get_libero_path("bddl_files")) / SUITE).glob("*.bddl")):
        found.setdefault(scene_of(path.name), path)
    return found


def instructions(scene: str) -> list[str]:
    """The LIBERO-90 instructions given in a scene."""
    folder = problems()[scene].parent
    return [path.stem.removeprefix(scene + "_").replace("_", " ") for path in sorted(folder.glob(f"{scene}_*.bddl"))]


def kind_of(name: str) -> str:
    """Type of a LIBERO object: "plate_1" -> "plate"."""
    return next(kind for kind in TYPES if name.startswith(kind))
