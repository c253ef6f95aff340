"""From an ACT of your own and the dataset that it was trained on to a student that sees, reads and acts.

    lerobot-train --policy.type=act --policy.push_to_hub=false --dataset.repo_id=me/data --dataset.root=data \
        --output_dir=act
    python examples/bring_your_own.py --expert act/checkpoints/last/pretrained_model --dataset data --out runs/mine

The result, `runs/mine/finetune/checkpoint`, is an ordinary LeRobot policy: `lerobot-eval --policy.path=...`,
`lerobot-rollout --policy.path=...`. A dataset with several tasks takes one ACT a task and `--expert experts.yaml`, see
`src/apprentice/experts/by_task.py`. Killed? The same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from apprentice.data.dataset import open_dataset
from apprentice.data.items import observed
from apprentice.distill.check import expert_check
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.policy.modeling_apprentice import ApprenticePolicy

VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


def bring(expert: str, dataset: str, out: str, vlm: str = VLM, steps: int = 2000, batch_size: int = 32) -> Path:
    """Teach a VLM what an expert does; return the student's checkpoint."""
    if not expert_check(expert, dataset):
        sys.exit("this policy cannot teach, see above")
    common = {"dataset": dataset, "steps": steps, "batch_size": batch_size}
    aligned = align(StageConfig(vlm=vlm, expert=expert, out=f"{out}/align", **common))
    # the expert's latents stay in the loss: without them fine-tuning undoes a part of the alignment
    return finetune(StageConfig(student=str(aligned), out=f"{out}/finetune", latent_weight=1.0, **common))


def main() -> None:
    parser = argparse.ArgumentParser(description="From an ACT checkpoint and a dataset to a student.")
    parser.add_argument("--expert", required=True, help="the ACT's checkpoint folder")
    parser.add_argument("--dataset", required=True, help="folder of a LeRobotDataset v3.0")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--vlm", default=VLM, help="folder or hub name of a Hugging Face VLM")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each of the two stages")
    parser.add_argument("--batch-size", type=int, default=32, help="samples a step")
    arguments = parser.parse_args()
    student = ApprenticePolicy.from_pretrained(bring(**vars(arguments)))
    first = observed(open_dataset(arguments.dataset)).batch(np.array([0]))
    print(f"'{first['task'][0]}', first action of the student: {student.select_action(first)[0].tolist()}")


if __name__ == "__main__":
    main()
