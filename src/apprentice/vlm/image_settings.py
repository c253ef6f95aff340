"""How often an image is seen, and with which settings a processor calls its image processor."""

from collections.abc import Callable, Sequence
from typing import Any

Size = tuple[int, int]  # height and width (px)


def alike(sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """Which images have a size, for each size, in the order of the first of each."""
    return {size: [place for place, each in enumerate(sizes) if each == size] for size in dict.fromkeys(sizes)}


def see_whole(image_processor: Any) -> None:
    """From now on see each image once. Idefics3's and SmolVLM's processors enlarge a small one and cut it into tiles
    beside the whole: 17 times the tokens, for nothing that a robot's camera saw.
    """
    if getattr(image_processor, "do_image_splitting", False):
        image_processor.do_image_splitting, image_processor.size = False, image_processor.max_image_size


def settings_of_call(image_processor: Any, call: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Make a call that uses an image processor; return the settings that this was called with, and the result.

    With these, images can be prepared without a prompt around them.
    """
    used: dict[str, Any] = {}

    def preprocess(images: Any, **settings: Any) -> Any:
        used.update(settings)
        return type(image_processor).preprocess(image_processor, images, **settings)

    image_processor.preprocess = preprocess
    try:
        return used, call()
    finally:
        del image_processor.preprocess
