"""Which films a report shows, and how: inside the page, each with its last picture, so that it can also be printed."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import av

from apprentice.evaluate.episode.probes import PLAIN
from apprentice.evaluate.results import Episode, Evaluation

SUCCESSES, LANGUAGE, FAILURES = 6, 6, 60  # films shown: of each policy, of the language probe, of all kinds together


@dataclass(frozen=True)
class Film:
    """An episode to look at, and data: addresses of its film and of that film's last picture."""

    episode: Episode
    source: str
    poster: str


def successes(evaluation: Evaluation, policy: str) -> list[Film]:
    """Some successes of a policy, by turns from every task."""
    own = [e for e in evaluation.episodes if e.policy == policy and e.success and e.probe == PLAIN and e.video]
    return _films(evaluation, sorted(own, key=lambda episode: (episode.init_state, episode.task)), SUCCESSES)


def other_instruction(evaluations: Iterable[Evaluation]) -> list[Film]:
    """The first episode of each policy and pair of tasks."""
    films: list[Film] = []
    for evaluation in evaluations:
        first = [e for e in evaluation.episodes if e.init_state == 0 and e.task != e.instructed]
        films += _films(evaluation, first, LANGUAGE - len(films))
    return films


def failures(evaluations: Iterable[Evaluation], kinds: Iterable[str]) -> dict[str, list[Film]]:
    """Films of failures, by kind; by turns from every kind, and within one from every evaluation, policy and task."""
    failed = [(e, evaluation) for evaluation in evaluations for e in evaluation.episodes if e.failure and e.video]
    failed = _by_turns(failed, lambda pair: (id(pair[1]), pair[0].policy, pair[0].task, pair[0].probe))
    failed = _by_turns(failed, lambda pair: pair[0].failure)[:FAILURES]
    found = [film for episode, evaluation in failed for film in _films(evaluation, [episode], 1)]
    return {kind: [film for film in found if film.episode.failure == kind] for kind in kinds}


def _by_turns[T](entries: list[T], group: Callable[[T], object]) -> list[T]:
    """The first of each group, then the second of each, and so on."""
    seen: Counter[object] = Counter()
    turns = []
    for entry in entries:
        seen[group(entry)] += 1
        turns.append(seen[group(entry)])
    return [entry for _, entry in sorted(zip(turns, entries, strict=True), key=lambda pair: pair[0])]


def _films(evaluation: Evaluation, episodes: list[Episode], most: int) -> list[Film]:
    films = []
    for episode in episodes[:most]:
        if path := evaluation.file("videos", episode.video):
            content = path.read_bytes()
            films.append(Film(episode, _address("video/mp4", content), _address("image/jpeg", _last_picture(content))))
    return films


def _last_picture(film: bytes) -> bytes:
    """As JPEG."""
    with av.open(io.BytesIO(film), "r") as container:
        *_, last = container.decode(video=0)
    stream = io.BytesIO()
    last.to_image().save(stream, "JPEG", quality=75)
    return stream.getvalue()


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
