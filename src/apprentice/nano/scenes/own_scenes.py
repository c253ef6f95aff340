"""Scenes of our own: LIBERO-90's rooms and fixtures in new company, and a dozen objects of which a layout shows some.

A LIBERO-90 scene always holds the same few things, so that what is there tells where it is. Here any object of the
suite may stand in any of its rooms. At most two fixtures: no scene of LIBERO-Goal can come about, and the rooms, the
objects or both of the other test suites are not here; a layout that shows just what a LIBERO-10 scene holds is drawn
again (`layout.draw`).
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from apprentice.common.files import cache_folder, fingerprint, write_text
from apprentice.nano.scenes.catalogue import HELD_OUT, problems

OWN = "OWN"  # what the names of our scenes hold: "KITCHEN_OWN012"
OBJECTS = 12  # in a scene; each layout shows `SHOWN` of them
SHOWN = (2, 8)
ROOMS = {"KITCHEN": 0.5, "LIVING_ROOM": 0.3, "STUDY": 0.2}  # how often
ORIGIN = {"KITCHEN": 0.0, "LIVING_ROOM": 0.0, "STUDY": -0.2}  # m, where x begins in a room's BDDL files
CENTRE = {"KITCHEN": 0.0, "LIVING_ROOM": -0.053, "STUDY": -0.2}  # m, x of the workspace's middle
FEW = {  # combinations of fixtures, and how often
    (): 0.15, ("wooden_cabinet",): 0.12, ("white_cabinet",): 0.12, ("flat_stove",): 0.1, ("microwave",): 0.12,
    ("wine_rack",): 0.05, ("wooden_two_layer_shelf",): 0.07, ("desk_caddy",): 0.07,
    ("flat_stove", "wooden_two_layer_shelf"): 0.05, ("flat_stove", "white_cabinet"): 0.05,
    ("wooden_cabinet", "flat_stove"): 0.04, ("microwave", "wine_rack"): 0.03, ("white_cabinet", "desk_caddy"): 0.03,
}  # fmt: skip


def room_of(scene: str) -> str:
    """The room of a scene: "LIVING_ROOM_SCENE5" -> "LIVING_ROOM"."""
    return re.sub(r"_(SCENE|OWN)\d+$", "", scene)


def own_scenes(count: int) -> list[str]:
    """Names of our first `count` scenes, each with the room that its number draws."""
    rooms, shares = list(ROOMS), np.array(list(ROOMS.values()))
    return [f"{np.random.default_rng([n, 2]).choice(rooms, p=shares)}_{OWN}{n:03d}" for n in range(count)]


def kept_for_tests(scene: str) -> bool:
    """Whether a scene of ours is never trained on: one in ten, the first among them."""
    number = re.search(rf"{OWN}(\d+)$", scene)
    return number is not None and int(number[1]) % 10 == 0


def bddl(scene: str) -> Path:
    """The scene's file: LIBERO-90's own, or one that is written from what the number of our scene draws."""
    if OWN not in scene:
        return problems()[scene]
    text = _written(scene)
    path = cache_folder() / "variants" / f"{scene}-{fingerprint(text)}.bddl"
    if not path.exists():
        write_text(path, text)
    return path


def contents(text: str) -> tuple[tuple[str, int], ...]:
    """How many of each kind a BDDL text holds: fixtures, the room's table included, and objects."""
    held = Counter[str]()
    for part in ("fixtures", "objects"):
        block = re.search(rf"\(:{part}(.*?)\)", text, re.DOTALL)
        for names, kind in re.findall(r"([\w ]+?) - (\w+)", block[1] if block else ""):
            held[kind] += len(names.split())
    return tuple(sorted(held.items()))


@cache
def forbidden() -> frozenset[tuple[tuple[str, int], ...]]:
    """What the scenes that are kept for tests hold."""
    return frozenset(contents(problems()[scene].read_text()) for scene in HELD_OUT)


@cache
def _known() -> tuple[tuple[str, ...], dict[str, tuple[float, float, str]]]:
    """LIBERO-90's kinds of objects; and of its fixtures x and y (m, from the workspace's middle) and the yaw's text."""
    kinds: set[str] = set()
    fixtures: dict[str, tuple[float, float, str]] = {}
    for scene, path in problems().items():
        text = path.read_text()
        objects = re.search(r"\(:objects(.*?)\)", text, re.DOTALL)
        kinds |= set(re.findall(r"- (\w+)", objects[1] if objects else ""))
        for name, kind in re.findall(r"(\w+_1) - (\w+)", re.search(r"\(:fixtures(.*?)\)", text, re.DOTALL)[1]):  # type: ignore[index]
            region = re.search(rf"\(On {name} \w+?_table_(\w+)\)", text)
            assert region is not None
            found = re.search(
                rf"\({region[1]}\s.*?:ranges \(\s*\((.*?)\).*?:yaw_rotation \(\s*\((.*?)\)", text, re.DOTALL
            )
            assert found is not None
            low_x, low_y, high_x, high_y = (float(value) for value in found[1].split())
            x = (low_x + high_x) / 2 + ORIGIN[room_of(scene)] - CENTRE[room_of(scene)]
            fixtures.setdefault(kind, (x, (low_y + high_y) / 2, found[2].strip()))
    return tuple(sorted(kinds)), fixtures


def _written(scene: str) -> str:
    room, rng = room_of(scene), np.random.default_rng([int(scene[-3:]), 3])
    kinds, places = _known()
    combinations, shares = list(FEW), np.array(list(FEW.values()))
    fixtures = combinations[rng.choice(len(combinations), p=shares / shares.sum())]
    objects = [str(kind) for kind in rng.choice(kinds, OBJECTS - 2, replace=False)]
    objects += [str(kind) for kind in rng.choice(objects, 2, replace=False)]  # twins
    table = f"{room.lower()}_table"
    regions: list[tuple[str, float, float, str]] = []
    begins = []
    for n, kind in enumerate(fixtures):
        x, y, yaw = places[kind]
        if n and y * regions[0][2] > 0:  # to the other side, turned round
            y, yaw = -y, " ".join(str(float(angle) + np.pi) for angle in yaw.split())
        regions.append((f"{kind}_init", x + CENTRE[room] - ORIGIN[room], y, yaw))
        begins.append(f"(On {kind}_1 {table}_{kind}_init)")
    names = []
    for n, kind in enumerate(objects):  # apart from one another, anywhere: layouts move them
        names.append(f"{kind}_{objects[:n].count(kind) + 1}")
        regions.append((f"place_{n}", 0.4 * (n % 4) - 0.6, 0.4 * (n // 4) - 0.4, "0.0 0.0"))
        begins.append(f"(On {names[-1]} {table}_place_{n})")
    problem = "_".join(word.capitalize() for word in room.split("_"))
    alike = {kind: " ".join(name for name in names if name[:-2] == kind) for kind in dict.fromkeys(objects)}
    lines = [
        f"(define (problem LIBERO_{problem}_Tabletop_Manipulation)", "(:domain robosuite)", "(:language look)",
        "(:regions", *(_region(table, *region) for region in regions), ")",
        f"(:fixtures {table} - {table}", *(f"{kind}_1 - {kind}" for kind in fixtures), ")",
        "(:objects", *(f"{same} - {kind}" for kind, same in alike.items()), ")",
        f"(:obj_of_interest {names[0]})", "(:init", *begins, ")", f"(:goal (And (On {names[0]} {table}_place_0)))", ")",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _region(table: str, name: str, x: float, y: float, yaw: str) -> str:
    corners = f"{x - 0.01:.4f} {y - 0.01:.4f} {x + 0.01:.4f} {y + 0.01:.4f}"
    return f"({name} (:target {table}) (:ranges (({corners}))) (:yaw_rotation (({yaw}))))"
