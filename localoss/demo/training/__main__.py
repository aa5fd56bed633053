"""`python -m localoss.demo.training`: trains the demo model, or goes on where it stopped."""

import argparse
from pathlib import Path

import torch

from localoss.demo.training.train import Settings, Training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m localoss.demo.training", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/demo"), help="where the state is kept")
    parser.add_argument("--weights", type=Path, help="where the trained weights go")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--dialogues", type=int, default=Settings.dialogues, help="in a step")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, help="CPU threads; one per core if not given")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    settings = Settings(steps=given.steps, dialogues=given.dialogues, seed=given.seed)
    Training(settings, given.folder, lambda line: print(line, flush=True)).run(given.weights)


if __name__ == "__main__":
    main()
