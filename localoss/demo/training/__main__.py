"""`python -m localoss.demo.training`: trains the demo model, or goes on where it stopped."""

import argparse
from pathlib import Path

from localoss.demo.training.train import Settings, Training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m localoss.demo.training", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/demo"), help="where the state is kept")
    parser.add_argument("--weights", type=Path, help="where the trained weights go")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--dialogues", type=int, default=Settings.dialogues, help="in a step")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, help="CPU threads; one per core if not given")
    parser.add_argument("--small", action="store_true", help="a minute's worth, which learns next to nothing")
    given = parser.parse_args()
    settings = Settings(steps=given.steps, dialogues=given.dialogues, seed=given.seed)
    if given.small:
        settings = Settings(steps=20, dialogues=24, seed=given.seed, layers=2, sampled=500)
    Training(settings, given.folder, lambda line: print(line, flush=True), given.threads).run(given.weights)


if __name__ == "__main__":
    main()
