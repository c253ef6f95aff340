"""Questions about a scene with answers from the simulator's truth, in the words of LIBERO's instructions.

Positions in an image are two location tokens, `<loc057><loc101>` = pixel x 57, y 101 of a 128 px image; distances are
whole centimetres, `<cm-07>`: first forward (away from the robot's base), then to the robot's left, then up.
"Left" and "front" are LIBERO's: left is smaller y of the world, front is larger x.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from apprentice.nano.scenes.catalogue import DRAWERS, NAMES

SEEN = 14  # px that must be visible before something is asked about
KINDS = (
    "objects", "count", "present", "colour", "side", "depth", "place", "opened", "holding", "gripper", "nearest",
    "point", "point_wrist", "point_gripper", "height", "offset", "act", "possible",
)  # fmt: skip
Facts = dict[str, Any]


@dataclass
class Question:
    """`ask` and `answer` are what the model reads and writes; `kind` is one of KINDS.

    `image`: which image its location tokens refer to, -1 if it has none.
    """

    kind: str
    ask: str
    answer: str
    image: int = -1


def loc(pixel: list[int]) -> str:
    """Pixel [x, y] as two tokens."""
    return "".join(f"<loc{value:03d}>" for value in pixel)


def cm(metres: float) -> str:
    """A signed distance as one token, in whole centimetres from -64 to 63."""
    return f"<cm{int(np.clip(round(metres * 100), -64, 63)):+03d}>"


def things(facts: Facts) -> list[dict[str, Any]]:
    """Objects and fixtures, without their drawers, knobs and doors."""
    return [thing for thing in facts["things"] if "of" not in thing]


def names(facts: Facts, rng: np.random.Generator) -> dict[str, str]:
    """A name, unique in this scene, for every object: "black bowl", "bowl", "left black bowl", "butter at the back"."""
    found: dict[str, str] = {}
    everything = things(facts)
    for thing in everything:
        name = thing["name"]
        twins = [t for t in everything if t["name"] == name]
        if len(twins) == 1:
            noun = name.split()[-1]
            alone = sum(t["name"].split()[-1] == noun for t in everything) == 1
            short = noun in ("bowl", "mug", "book", "rack", "shelf", "cabinet") and alone and rng.random() < 0.5
            found[thing["id"]] = noun if short else name
            continue
        spread = np.ptp([t["position"][:2] for t in twins], axis=0)
        axis = int(spread[1] > spread[0])
        order = sorted(twins, key=lambda t: t["position"][axis])
        gaps = np.diff([t["position"][axis] for t in order])
        if gaps.min() < 0.04:
            continue
        words = ("left", "right") if axis else ("back", "front")
        word = ([words[0], "middle", words[1]] if len(twins) == 3 else list(words))[order.index(thing)]
        after = {"left": "on the left", "right": "on the right", "middle": "in the middle"}.get(word, f"at the {word}")
        found[thing["id"]] = f"{word} {name}" if rng.random() < 0.5 else f"{name} {after}"
    return found


class Asker:
    """Draws questions about one scene."""

    def __init__(self, facts: Facts, rng: np.random.Generator):
        self.facts, self.rng = facts, rng
        self.names = names(facts, rng)
        self.all = things(facts)
        self.seen = [t for t in self.all if t["seen"][0] >= SEEN and t["id"] in self.names]
        self.parts = {t["name"]: t for t in facts["things"] if "of" in t}

    def draw(self, kind: str) -> Question | None:
        """A question of a kind, None if the scene has none."""
        ask: Callable[[], tuple[str, str] | tuple[str, str, int] | None] = getattr(self, f"_{kind}")
        found = ask()
        return None if found is None else Question(kind, *found)

    def _pick(self, options: list[Any]) -> Any:
        return options[self.rng.integers(len(options))] if options else None

    def _objects(self) -> tuple[str, str]:
        listed = sorted({t["name"] for t in self.all if t["seen"][0] >= SEEN})
        return "which objects are there?", ", ".join(listed) or "none"

    def _missing_name(self) -> str:
        return str(self._pick(sorted(set(NAMES.values()) - {t["name"] for t in self.all})))

    def _count(self) -> tuple[str, str] | None:
        name = self._pick([t["name"] for t in self.all]) if self.rng.random() < 0.7 else self._missing_name()
        same = [t for t in self.all if t["name"] == name]
        if any(t["seen"][0] < SEEN for t in same):
            return None
        return f"how many {name}s?", str(len(same))

    def _present(self) -> tuple[str, str] | None:
        if self.rng.random() < 0.5:
            return f"is there a {self._missing_name()}?", "no"
        thing = self._pick(self.seen)
        return None if thing is None else (f"is there a {thing['name']}?", "yes")

    def _colour(self) -> tuple[str, str] | None:
        colours = r"(black|white|red|yellow and white|yellow) (bowl|mug|book|cabinet)$"
        options = [m for t in self.seen if (m := re.match(colours, t["name"]))]
        single = [m for m in options if sum(t["name"].endswith(m[2]) for t in self.all) == 1]
        found = self._pick(single)
        return None if found is None else (f"what colour is the {found[2]}?", found[1])

    def _pair(self, axis: int) -> tuple[Any, Any] | None:
        pairs = [
            (a, b) for a in self.seen for b in self.seen
            if abs(a["position"][axis] - b["position"][axis]) > 0.05 and not (a["held"] or b["held"])
        ]  # fmt: skip
        return self._pick(pairs)

    def _side(self) -> tuple[str, str] | None:
        pair = self._pair(1)
        if pair is None:
            return None
        a, b = pair
        side = "left" if a["position"][1] < b["position"][1] else "right"
        return f"is the {self.names[a['id']]} left or right of the {self.names[b['id']]}?", side

    def _depth(self) -> tuple[str, str] | None:
        pair = self._pair(0)
        if pair is None:
            return None
        a, b = pair
        side = "front" if a["position"][0] > b["position"][0] else "behind"
        return f"is the {self.names[a['id']]} in front of or behind the {self.names[b['id']]}?", side

    def _place(self) -> tuple[str, str] | None:
        options = [t for t in self.seen if t["movable"]]
        special = [t for t in options if t["held"] or t["parent"]]
        thing = self._pick(special if special and self.rng.random() < 0.6 else options)
        if thing is None:
            return None
        place = "on the table"
        if thing["held"]:
            place = "in the gripper"
        elif thing["parent"]:
            parent = next(t for t in self.all if t["id"] == thing["parent"])
            place = f"{thing['relation']} the {parent['name']}"
        return f"where is the {self.names[thing['id']]}?", place

    def _opened(self) -> tuple[str, str] | None:
        part = self._pick(list(self.parts.values()))
        if part is None or 0.1 < part["open"] < 0.3:
            return None
        answer = "yes" if part["open"] >= 0.3 else "no"
        if part["name"] == "knob":
            return "is the stove on?", answer
        return f"is the {part['name'].removesuffix(' door')} open?", answer

    def _holding(self) -> tuple[str, str] | None:
        held = [t for t in self.all if t["held"]]
        if held and max(held[0]["seen"]) < SEEN:
            return None
        return "what is the gripper holding?", held[0]["name"] if held else "nothing"

    def _gripper(self) -> tuple[str, str] | None:
        opening = self.facts["gripper"]["opening"]
        if any(t["held"] for t in self.all) or 0.02 < opening < 0.06:
            return None
        return "is the gripper open or closed?", "open" if opening >= 0.06 else "closed"

    def _nearest(self) -> tuple[str, str] | None:
        free = [t for t in self.all if not t["held"]]
        far = [np.linalg.norm(np.subtract(t["position"], self.facts["gripper"]["position"])) for t in free]
        order = np.argsort(far)
        if len(free) < 2 or far[order[1]] - far[order[0]] < 0.03 or max(free[order[0]]["seen"]) < SEEN:
            return None
        return "what is nearest to the gripper?", free[order[0]]["name"]

    def _spots(self, camera: int) -> list[tuple[str, list[int]]]:
        spots = [(self.names[t["id"]], t["px"][camera]) for t in self.all
                 if t["seen"][camera] >= SEEN and t["id"] in self.names]  # fmt: skip
        return spots + [(n, t["px"][camera]) for n, t in self.parts.items() if t["seen"][camera] >= SEEN]

    def _point(self) -> tuple[str, str, int] | None:
        spot = self._pick(self._spots(0))
        return None if spot is None else (f"point to the {spot[0]}", loc(spot[1]), 0)

    def _point_wrist(self) -> tuple[str, str, int] | None:
        hidden = [self.names[t["id"]] for t in self.all if t["seen"][1] == 0 and t["id"] in self.names]
        spots: list[tuple[str, Any]] = self._spots(1)
        spot = self._pick(spots if self.rng.random() < 0.8 else [(name, None) for name in hidden])
        if spot is None:
            return None
        return f"point to the {spot[0]} in the second image", loc(spot[1]) if spot[1] else "not visible", 1

    def _point_gripper(self) -> tuple[str, str, int] | None:
        pixel = self.facts["gripper"]["px"][0]
        return None if pixel is None else ("point to the gripper", loc(pixel), 0)

    def _height(self) -> tuple[str, str]:
        return "how high is the gripper?", cm(self.facts["gripper"]["height"])

    def _way(self, position: list[float]) -> str:
        return "".join(cm(value) for value in np.subtract(position, self.facts["gripper"]["position"]))

    def _offset(self) -> tuple[str, str] | None:
        thing = self._pick(self.seen)
        return None if thing is None else (f"how far is the {self.names[thing['id']]}?", self._way(thing["position"]))

    def _act(self) -> tuple[str, str, int] | None:
        """An instruction; the answer: where it begins, how far from the gripper that is, where it ends."""
        found = self._pick(list(self._tasks()))
        if found is None:
            return None
        text, start, end = found
        if start["seen"][0] < SEEN or end["seen"][0] < SEEN:
            return None
        return text, loc(start["px"][0]) + self._way(start["position"]) + loc(end["px"][0]), 0

    def _possible(self) -> tuple[str, str] | None:
        movable = [t for t in self.seen if t["movable"] and t["name"] not in ("basket", "tray")]
        target = self._pick(["plate", "stove", "basket", "tray", "cabinet", "caddy", "white bowl", "microwave"])
        thing = self._pick(movable)
        if thing is None:
            return None
        names_seen = {word for t in self.seen for word in (t["name"], t["name"].split()[-1])}
        name = thing["name"] if self.rng.random() < 0.6 else self._missing_name()
        word = "on" if target in ("plate", "stove") else "in"
        answer = "yes" if name == thing["name"] and target in names_seen and target != name else "no"
        return f"is this possible: put the {name} {word} the {target}", answer

    def _tasks(self) -> Iterator[tuple[str, Any, Any]]:
        """Instructions that make sense here, with the thing to grasp and the thing to end at."""
        grasped = ("basket", "tray")
        cabinet = next((t["name"] for t in self.all if t["name"].endswith("cabinet")), "")
        for drawer in DRAWERS:
            if drawer in self.parts:
                verb = "close" if self.parts[drawer]["open"] > 0.3 else "open"
                yield f"{verb} the {drawer} of the cabinet", self.parts[drawer], self.parts[drawer]
        if "knob" in self.parts:
            yield "turn on the stove", self.parts["knob"], self.parts["knob"]
            yield "turn off the stove", self.parts["knob"], self.parts["knob"]
        if "microwave door" in self.parts:
            verb = self._pick(["open", "close"])
            yield f"{verb} the microwave", self.parts["microwave door"], self.parts["microwave door"]
        for a in self.seen:
            if not a["movable"] or a["name"] in grasped:
                continue
            x = self.names[a["id"]]
            for b in self.seen:
                if b is a or a["parent"] == b["id"]:
                    continue
                y, kind = self.names[b["id"]], b["name"]
                if kind in ("plate", "stove", "wine rack"):
                    yield self._pick([f"put the {x} on the {y}", f"pick up the {x} and place it on the {y}"]), a, b
                elif kind in ("basket", "tray", "caddy", "microwave") or kind.endswith("bowl"):
                    verb = self._pick(["put the {} in the {}", "pick up the {} and place it in the {}",
                                       "pick up the {} and put it in the {}"])  # fmt: skip
                    yield verb.format(x, y), a, b
                elif kind == cabinet or kind == "cabinet shelf":
                    yield f"put the {x} on top of the {y}", a, b
                elif b["movable"]:
                    side = self._pick(["left", "right", "front"])
                    yield f"put the {x} to the {side} of the {y}", a, b
            for drawer in ("top drawer", "bottom drawer"):
                if drawer in self.parts:
                    yield f"put the {x} in the {drawer} of the cabinet", a, self.parts[drawer]


WEIGHTS = {"act": 5, "point": 4, "point_wrist": 3, "offset": 3, "nearest": 2, "holding": 2, "place": 2, "height": 2}


def questions(facts: Facts, rng: np.random.Generator, count: int) -> list[Question]:
    """Draw at most `count` different questions; pointing and instructions come more often than the rest."""
    weights = np.array([WEIGHTS.get(kind, 1) for kind in KINDS], dtype=float)
    drawn: dict[str, Question] = {}
    for _ in range(8):
        if len(drawn) == count:
            break
        asker = Asker(facts, rng)  # new names
        for kind in rng.choice(KINDS, size=count // 4 + 1, p=weights / weights.sum()):
            question = asker.draw(str(kind))
            if question is not None and len(drawn) < count:
                drawn.setdefault(question.ask, question)
    return list(drawn.values())
