"""An animated picture of a student that acts, for the README: an evaluation's episodes in large pictures.

    python scripts/student_film.py runs/demo/eval --policy two-stage --out docs/student.webp

A trace holds the actions. The same layout and the same actions give the same episode.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apprentice.evaluate.episode.probes import PLAIN
from apprentice.evaluate.episode.runner import begin
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.results import Episode, Evaluation
from apprentice.simulators.base import simulator_of

SIZE, CAPTION = 224, 34  # px, of a scene and of the instruction below it
SPEED, FPS = 2, 20  # faster than the robot; pictures a second
PAUSE = 2 * FPS  # pictures of the end


def scenes(evaluation: Evaluation, episode: Episode) -> list[np.ndarray]:
    """What the first camera shows (SIZE, SIZE, 3), FPS times a second.

    Raises SystemExit if the episode does not end as it did.
    """
    protocol, simulator = evaluation.protocol, simulator_of(episode.suite)
    env = simulator.environment(episode.suite, episode.task, render="exact", size=SIZE)
    begin(protocol, env, episode.init_state)
    path = evaluation.file("traces", episode.trace)
    if path is None:
        raise SystemExit(f"{episode.stem}: the evaluation kept no trace")
    done, pictures = False, []
    for step, action in enumerate(Trace.load(path).actions):
        if step % (SPEED * simulator.fps // FPS) == 0:
            pictures.append(simulator.film(env.observe()))
        done = env.step(action)
    if done != episode.success:
        raise SystemExit(f"{episode.stem}: expected the same end, found success={done}")
    return [*pictures, simulator.film(env.observe())]


def caption(text: str) -> Image.Image:
    """The instruction, over two lines if it is long."""
    image = Image.new("RGB", (SIZE, CAPTION), "white")
    font = ImageFont.load_default(12)
    words, lines = text.split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) < SIZE - 8 else [*lines, word]
    ImageDraw.Draw(image).multiline_text((4, 2), "\n".join(lines), fill="black", font=font, spacing=2)
    return image


def main() -> None:
    """Play, draw side by side, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--policy", default="two-stage")
    parser.add_argument("--tasks", type=int, nargs="+", help="default: all; one episode of each, the first success")
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    evaluation = Evaluation.load(flags.evaluation)
    shown: dict[int, Episode] = {}
    for episode in sorted(evaluation.episodes, key=lambda each: each.init_state):
        plain = episode.instructed == episode.task and episode.probe == PLAIN
        if plain and episode.policy == flags.policy and episode.success:
            shown.setdefault(episode.task, episode)
    shown = {task: shown[task] for task in flags.tasks or sorted(shown)}
    films = {task: scenes(evaluation, episode) for task, episode in shown.items()}
    captions = {task: caption(episode.instruction) for task, episode in shown.items()}
    length = max(map(len, films.values())) + PAUSE
    frames = []
    for index in range(length):
        frame = Image.new("RGB", (len(films) * (SIZE + 4) - 4, SIZE + CAPTION), "white")
        for column, (task, pictures) in enumerate(films.items()):
            frame.paste(Image.fromarray(pictures[min(index, len(pictures) - 1)]), (column * (SIZE + 4), 0))
            frame.paste(captions[task], (column * (SIZE + 4), SIZE))
        frames.append(frame)
    frames[0].save(
        flags.out, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0, quality=70, method=4
    )
    print(f"{flags.out}: {len(frames)} pictures, {flags.out.stat().st_size / 1e6:.1f} MB", flush=True)
    os._exit(0)  # robosuite's renderer prints a traceback when Python ends


if __name__ == "__main__":
    main()
