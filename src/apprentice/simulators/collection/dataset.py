"""Finished episodes become a LeRobotDataset v3.0."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from apprentice.common.files import read_json, write_json
from apprentice.common.progress import track
from apprentice.data.contract import Contract
from apprentice.simulators.base import Demonstrator


def assemble(
    episodes: Sequence[tuple[Path, str]],
    root: Path,
    contract: Contract,
    robot: Demonstrator,
    images: bool,
    longest: int,
) -> None:
    """Write episodes, in order, as a dataset into the folder `root`.

    Args:
        episodes: the .npz file of each, with a column a feature, and its instruction.
        contract: cameras, the size of their images, the frame rate.
        robot: names of the robot and of its states and actions.
        images: keep each image as PNG in place of videos.
        longest: actions that a policy may take in an episode.
    """
    import av.logging
    import datasets
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    image = {
        "dtype": "image" if images else "video",
        "shape": (*(contract.image_size or ()), 3),
        "names": ["height", "width", "channels"],
    }
    state, action = (
        {"dtype": "float32", "shape": (len(names),), "names": list(names)}
        for names in (robot.state_names, robot.action_names)
    )
    fps = int(contract.fps or 0)
    dataset = LeRobotDataset.create(
        repo_id=f"local/{root.name}",
        fps=fps,
        root=root,
        robot_type=robot.robot_type,
        use_videos=not images,
        video_backend="pyav",  # for reading; else LeRobot tries torchcodec, and prints why it has no FFmpeg
        features={
            **dict.fromkeys(contract.cameras or (), image),
            "observation.state": state,
            "action": action,
            "executed": action,
        },
        # About 0.7 KB a frame at 128 px, at 36 to 39 dB; one key frame a second.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=20, g=fps, preset="slow", extra_options=_same_bytes()),
        image_writer_threads=4 if images else 0,
        streaming_encoding=not images,
        encoder_queue_maxsize=2 * longest,  # a full queue would drop frames
        encoder_threads=1,  # with more, the bytes would depend on the number of cores
    )
    with _lean_writing(images):
        for file, instruction in track(episodes, "writing the dataset"):
            with np.load(file, allow_pickle=False) as episode:
                columns = {key: episode[key] for key in dataset.features if key in episode}
            for index in range(len(columns["action"])):
                dataset.add_frame({"task": instruction, **{key: values[index] for key, values in columns.items()}})
            dataset.save_episode()
    dataset.finalize()
    shutil.rmtree(root / "images", ignore_errors=True)  # empty by now
    statistics = root / "meta" / "stats.json"  # in the order of a set, another in each process
    write_json(statistics, dict(sorted(read_json(statistics).items())))


def _same_bytes() -> dict[str, str]:
    """Options of x264 with which the same frames give the same bytes: its AVX-512 code does not keep to it."""
    import torch

    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return {"x264-params": "asm=avx2"} if wide else {}


@contextmanager
def _lean_writing(images: bool) -> Iterator[None]:
    """Statistics of every fourth image alone, and without images no search for them in the table.

    LeRobot samples images too, but not those of a video that it encodes as they come: it sorts the pixels of each,
    which takes longer than to encode it. And it embeds images in a way that writes a random number into the file.
    """
    import datasets
    from datasets.table import embed_table_storage
    from lerobot.datasets import compute_stats, dataset_writer

    def embedded(table: datasets.Dataset) -> datasets.Dataset:
        if not images:
            return table
        return datasets.Dataset(embed_table_storage(table.data.table), fingerprint="frames")

    class Sampled(compute_stats.RunningQuantileStats):  # type: ignore[misc]
        calls = -1

        def update(self, batch: np.ndarray) -> None:
            self.calls += 1
            if self.calls % 4 == 0:
                super().update(batch)

    whole, embed = compute_stats.RunningQuantileStats, dataset_writer.embed_images
    compute_stats.RunningQuantileStats = Sampled
    dataset_writer.embed_images = embedded
    try:
        yield
    finally:
        compute_stats.RunningQuantileStats, dataset_writer.embed_images = whole, embed
