"""The nano VLM's model card."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from apprentice.common.intervals import wilson
from apprentice.nano.model import NanoConfig
from apprentice.nano.scenes.catalogue import HELD_OUT
from apprentice.nano.scenes.own_scenes import OWN
from apprentice.nano.score.grading import DISTANCE, NEAR, PIXEL
from apprentice.nano.score.probe import Probed

PARTS = {
    "layouts": "New layouts of LIBERO-90's scenes that it was trained on",
    "own": "Scenes of ours that it never saw: other objects and fixtures together",
    "scenes": f"The {len(HELD_OUT)} scenes that it never saw, those of LIBERO-10",
}


@dataclass
class Score:
    """Right answers to one kind of question about one part of the held-out pictures: of the VLM, of its text-only twin
    and of the best constant; `error` is the VLM's median one (px, or cm where no pixel is asked for).
    """

    part: str
    kind: str
    example: str
    asked: int
    right: int
    text_only: int
    constant: int
    error: float | None


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
language: en
tags: [robotics, libero, fastvlm]
---
# Nano VLM

A vision-language model of {size:.1f} M parameters that knows one thing: what a robot's table in LIBERO looks like. It
exists so that a VLM can be taught to act in minutes on a CPU, offline. Hugging Face's FastVLM classes; a tokenizer of
its own with 128 tokens for pixels and 128 for centimetres; two {image} px images (agent view, wrist), {tokens} tokens
each, one for {square} px squares.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
content = [{{"type": "image"}}, {{"type": "image"}}, {{"type": "text", "text": "point to the plate"}}]
prompt = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
answer = model.generate(**processor(text=prompt, images=[agent_view, wrist], return_tensors="pt"), max_new_tokens=30)
```

## Data

{layouts:,} random layouts, drawn by MuJoCo: {published:,} of the 11 LIBERO-90 scenes that no test suite plays in, and
{own:,} of {scenes} scenes of our own, which put any of LIBERO-90's objects and at most two of its fixtures into its
rooms. Questions and pointing are made from the simulator's state. No scene of LIBERO-Spatial, -Object, -Goal and -10
was used, though objects of theirs occur.

Trained for {total} steps of {batch} layouts; for the first {seeing} the vision tower and the connector alone, by a
dense head that is dropped afterwards (category and depth of every 4 px, where in the picture a named thing is, its
place in the workspace and from the hand), then with {questions} questions about each layout as well. The weights are a
moving average ({ema} is kept at a step).

## Where things are, as a linear map reads it off the frozen image tokens

Medians over things of layouts that it never saw. "Constant": the mean place of the thing's name.

{probe}

## Results

Greedy answers. Words count if the whole answer is the right one, points within {px:.0f} px (of 128) or on the right
object, distances within {cm:.0f} cm; of several numbers all must be right. In brackets: Wilson 95 % intervals.
"Constant": the best single answer to that kind of question in the training data. "Text only": the same architecture,
trained for {twin_steps} steps on the same questions behind grey pictures. "Error": the median of the VLM's, of its
points where it has any, otherwise of its distances.

{tables}
Questions about one picture are not independent: true intervals are a little wider.

## Limits

- Simulated pictures of LIBERO's objects at 128 px, seen from LIBERO's cameras; nothing else was ever shown to it.
- It understands the sentences it was trained on: LIBERO's instructions and {kinds} forms of question, in English.
- "Left", "in front" and distances are the robot's, as in LIBERO's instructions, not the picture's.
{weak}
## To make it again

    apprentice scenes --folder scenes
{commands}
    apprentice score-vlm --data scenes --run vlm --twin twin
"""


def card(
    scores: list[Score],
    probed: list[Probed],
    runs: list[dict[str, Any]],
    twin: dict[str, Any],
    parameters: int,
    scenes: list[str],
) -> str:
    """The card's text, Markdown with Hugging Face's front matter.

    Args:
        scores: what was found.
        probed: how well a linear map reads places off its image tokens.
        runs: the settings of pre-training, of each run that went on with the weights of the one before.
        twin: those of the text-only twin.
        parameters: how many the model has.
        scenes: of each layout that it was trained on, the scene.
    """
    config = runs[-1]
    own = [scene for scene in scenes if OWN in scene]
    nano = NanoConfig(**config["nano"])
    return CARD.format(
        size=parameters / 1e6,
        image=nano.image,
        tokens=nano.image_tokens,
        square=nano.square,
        layouts=len(scenes),
        published=len(scenes) - len(own),
        own=len(own),
        scenes=len(set(own)),
        total=sum(run["steps"] for run in runs),
        seeing=sum(round(run["vision_share"] * run["steps"]) for run in runs),
        commands="\n".join(_commands(runs, twin)),
        probe=_probe(probed),
        px=NEAR[PIXEL],
        cm=NEAR[DISTANCE],
        tables="\n".join(_table(part, [s for s in scores if s.part == part]) for part in PARTS),
        kinds=len({s.kind for s in scores}),
        weak=_weak(scores),
        twin_steps=twin["steps"],
        **{key: config[key] for key in ("batch", "questions", "ema")},
    )


def _commands(runs: list[dict[str, Any]], twin: dict[str, Any]) -> Iterator[str]:
    """The trainings, each as one types it."""
    names = [*(f"before-{place}" for place in range(1, len(runs))), "vlm"]
    starts = ["", *(f" --start {name}" for name in names)]
    for run, name, more in zip([*runs, twin], [*names, "twin"], [*starts[:-1], " --blind"], strict=True):
        flags = " ".join(f"--{key.replace('_', '-')} {run[key]}" for key in ("steps", "batch", "lr", "vision_share"))
        yield f"    apprentice pretrain-vlm --data scenes --output {name}{more} {flags}"


def _probe(probed: list[Probed]) -> str:
    """Markdown: a line for each part and sort of place."""
    lines = ["| layouts | what | places | error | constant |", "| --- | --- | --- | --- | --- |"]
    for p in probed:
        what = "way from the hand" if p.from_hand else "place in the workspace"
        lines.append(f"| {PARTS[p.part]} | {what} | {p.places} | {p.error:.0f} mm | {p.constant:.0f} mm |")
    return "\n".join(lines)


def _table(part: str, scores: list[Score]) -> str:
    """Markdown: a line for each kind of question, and one for all."""
    sums = [sum(getattr(s, key) for s in scores) for key in ("asked", "right", "text_only", "constant")]
    if not scores:
        return ""
    lines = [
        f"### {PARTS[part]}\n",
        "| question, for example | asked | right | text only | constant | error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for s in [*scores, Score(part, "all", "all", sums[0], sums[1], sums[2], sums[3], None)]:
        unit = "px" if s.kind.startswith("point") or s.kind == "act" else "cm"
        error = "" if s.error is None else f"{s.error:.1f} {unit}" if isfinite(s.error) else "seldom a number"
        right, text_only = _rate(s.right, s.asked), _rate(s.text_only, s.asked)
        constant = f"{s.constant / max(1, s.asked):.1%}"
        lines.append(f"| {s.example} | {s.asked} | {right} | {text_only} | {constant} | {error} |")
    return "\n".join(lines) + "\n"


def _rate(right: int, asked: int) -> str:
    low, high = wilson(right, asked)
    return f"{right / max(1, asked):.1%} ({100 * low:.0f} to {100 * high:.0f})"


def _weak(scores: list[Score]) -> str:
    """A limit: what it answers no better than without the pictures."""
    weak = [
        f'"{s.example}" (new {s.part})'
        for s in scores
        if wilson(s.right, s.asked)[0] <= max(wilson(s.text_only, s.asked)[1], s.constant / s.asked)
    ]
    return f"- Not shown to be better than the text-only twin and a constant: {'; '.join(weak)}.\n" if weak else ""
