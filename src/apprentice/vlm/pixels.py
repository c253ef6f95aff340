"""What a processor tells its image processor, so that images can be prepared without writing a prompt around them."""

from collections.abc import Callable
from typing import Any


def told(image_processor: Any, call: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Make a call that uses an image processor; return the settings that this was called with, and the result."""
    heard: dict[str, Any] = {}

    def preprocess(images: Any, **settings: Any) -> Any:
        heard.update(settings)
        return type(image_processor).preprocess(image_processor, images, **settings)

    image_processor.preprocess = preprocess
    try:
        return heard, call()
    finally:
        del image_processor.preprocess
