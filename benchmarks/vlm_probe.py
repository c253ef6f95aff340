"""How exactly a linear map reads the place of a named thing off a VLM's frozen image tokens.

    python benchmarks/vlm_probe.py --data scenes                       # the built-in VLM
    python benchmarks/vlm_probe.py --data scenes --model run/model

Fitted on layouts that it may have seen, judged on layouts that it has not: of LIBERO-90's scenes that it is trained on
("layouts"), of scenes of ours that it is not trained on ("own"), of LIBERO-90's scenes that it is not trained on
("scenes"). About two minutes on one core.
"""

import argparse

import torch
from rich.table import Table
from transformers import AutoModelForImageTextToText

from apprentice.common.device import best_device
from apprentice.common.progress import console
from apprentice.nano.score.probe import FITTED, probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of scenes, made by `apprentice scenes`")
    parser.add_argument("--model", default="assets/nano-vlm", help="folder of the VLM")
    parser.add_argument("--fitted", type=int, default=FITTED, help="layouts to fit on")
    options = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32).to(best_device()).eval()
    table = Table("judged on", "what", "places", "median error", "constant", title=options.model)
    for found in probe(model, options.data, ("layouts", "own", "scenes"), options.fitted):
        what = "way from the hand" if found.from_hand else "place in the workspace"
        table.add_row(found.part, what, str(found.places), f"{found.error:.0f} mm", f"{found.constant:.0f} mm")
    console.print(table)


if __name__ == "__main__":
    main()
