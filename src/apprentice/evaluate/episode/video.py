"""Small films of roll-outs, as every browser plays them."""

import io

import av
import numpy as np

SIZE = 256  # px; images of 128 px look coarse when a browser enlarges what was compressed small


def encode(frames: list[np.ndarray], fps: float) -> bytes:
    """Encode frames (H, W, 3) uint8 as an mp4 (H.264, yuv420p), enlarged to a height of `SIZE` px."""
    stream = io.BytesIO()
    height, width, _ = frames[0].shape
    size = 2 * round(SIZE * width / height / 2), SIZE  # of even numbers
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=round(fps), options={"crf": "26", "preset": "veryfast"})
        track.width, track.height = size
        track.pix_fmt = "yuv420p"
        track.codec_context.thread_count = 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
            container.mux(track.encode(frame.reformat(*size, "yuv420p", interpolation="BICUBIC")))
        container.mux(track.encode())
    return stream.getvalue()
