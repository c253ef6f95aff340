"""Variants of LIBERO's tasks: objects exchanged and spread over the table, so that a policy must look and listen.

In the published suites objects stay within millimetres or centimetres; a policy can remember instead of looking. A
variant is a BDDL file of LIBERO's own language, written from a task's; what it says about fixtures stays. Where things
stand is drawn at each reset (`layout.py`). The LIBERO-PRO suites, which perturb tasks in similar ways, are for tests
alone and are not used here.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from apprentice.common.errors import UserError
from apprentice.common.files import cache_folder, fingerprint, write_text
from apprentice.simulators.libero.simulator.suites import Task, tasks

# Things that can stand for one another, with what instructions call them.
GROCERIES = {
    name: name.replace("_", " ")
    for name in (
        *("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cream_cheese"),
        *("ketchup", "milk", "orange_juice", "salad_dressing", "tomato_sauce"),
    )
}
MUGS = {"porcelain_mug": "white mug", "red_coffee_mug": "red mug", "white_yellow_mug": "yellow and white mug"}
CONTAINERS = ("basket", "wooden_tray")  # take any of them


@dataclass(frozen=True)
class TaskText:
    """What a BDDL file says that we change."""

    text: str
    categories: dict[str, str]  # object -> category, of all that can be moved
    goal: frozenset[str]  # words of the goal: objects, regions, predicates

    @classmethod
    def of(cls, task: Task) -> "TaskText":
        text = task.bddl.read_text()
        categories: dict[str, str] = {}
        for names, category in re.findall(r"^\s*([\w ]+?) - (\w+)\s*$", _block(text, "objects"), re.MULTILINE):
            categories |= dict.fromkeys(names.split(), category)
        return cls(text, categories, frozenset(re.findall(r"\w+", _block(text, "goal"))))

    @property
    def loose(self) -> set[str]:
        """Objects that stand on the table itself, but for those that the goal's places on it are named after."""
        (table,) = re.findall(r"\b(\w*[a-z]) - \w+", _block(self.text, "fixtures"))  # all others are numbered
        standing = re.findall(rf"\(on (\w+) {table}_\w+\)", _block(self.text, "init"), re.IGNORECASE)
        places = [word for word in self.goal if word.startswith(f"{table}_")]
        return {
            name
            for name in self.categories.keys() & set(standing)
            if not any(self.categories[name] in place for place in places)
        }


def find_task(suite: str, index: int, variant: int | None = None) -> Task:
    """A suite's task, or the task's variant of that number. Raises UserError."""
    task = tasks(suite)[index]
    return task if variant is None else variant_task(task, variant)


def variant_task(task: Task, seed: int) -> Task:
    """A variant of the task: other objects of the same kinds. Its file is cached.

    Raises UserError if the instruction tells things apart by their places, which then would no longer hold, or if
    nothing can be exchanged or moved.
    """
    scene = TaskText.of(task)
    wanted = [scene.categories[name] for name in sorted(scene.goal & scene.categories.keys())]
    several = {category for category in wanted if list(scene.categories.values()).count(category) > 1}
    if several:
        raise UserError(
            f"expected one object of each kind in '{task.instruction}', found several {', '.join(sorted(several))}; "
            "fix: a task that does not tell them apart by their places"
        )
    swaps = _exchange(scene, np.random.default_rng(seed))
    if not (swaps or scene.loose):
        raise UserError(
            f"expected an object to exchange or to move in {task.suite} task {task.index}, '{task.instruction}', found "
            "none: what stands on the table is what its goal names a place after; fix: leave out the task or --variants"
        )
    names = GROCERIES | MUGS
    spoken = task.instruction.replace("cream cheese box", "cream cheese") if swaps else task.instruction
    instruction = _replace({names[old]: names[new] for old, new in swaps.items()}, spoken)
    text = re.sub(r"\(:language.*?\)", f"(:language {instruction})", scene.text, count=1)
    objects = {
        name: _replace({category: swaps.get(category, category)}, name) for name, category in scene.categories.items()
    }
    text = _replace(objects | {f"- {old}": f"- {new}" for old, new in swaps.items()}, text)
    path = cache_folder() / "variants" / f"{task.bddl.stem}-{fingerprint(text)}.bddl"
    if not path.exists():
        write_text(path, text)
    return replace(task, instruction=instruction, bddl=path)


def _exchange(scene: TaskText, rng: np.random.Generator) -> dict[str, str]:
    """Which category stands for which; things of the goal change only if they end in a container that takes any."""
    free = any(scene.categories.get(word.removesuffix("_contain_region")) in CONTAINERS for word in scene.goal)
    swaps: dict[str, str] = {}
    for kind in (GROCERIES, MUGS):
        there = sorted({category for category in scene.categories.values() if category in kind})
        kept = set() if free else {scene.categories[name] for name in scene.goal & scene.categories.keys()}
        kept |= {category for category in there for word in scene.goal if f"{category}_" in word.partition("table_")[2]}
        changed = [category for category in there if category not in kept]
        fresh = rng.permutation([category for category in kind if category not in kept])
        swaps |= {old: str(new) for old, new in zip(changed, fresh, strict=False)}
    return swaps


def _block(text: str, name: str) -> str:
    """The text of (:name ...), by counting brackets."""
    start = text.index(f"(:{name}")
    depth = 0
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return text[start : end + 1]
    raise ValueError(f"no end of {name}")


def _replace(words: dict[str, str], text: str) -> str:
    """Replace all at once, so that two can change places."""
    if not words:
        return text
    longest = sorted(words, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(word)}(?![a-zA-Z])" for word in longest)
    return re.sub(pattern, lambda match: words[match[0]], text)
