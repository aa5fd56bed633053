"""`python -m tools.demo_training`: trains the demo model, or goes on where it stopped."""

import argparse
from pathlib import Path

from tools.demo_training.export import write_mean
from tools.demo_training.train import SITTINGS, Settings, Training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.demo_training", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/demo"), help="where the state is kept")
    parser.add_argument("--weights", type=Path, help="where the trained weights go")
    parser.add_argument("--earlier", type=Path, help="weights to begin that sitting with")
    parser.add_argument("--sitting", type=int, default=1, help="the first to run")
    parser.add_argument("--threads", type=int, help="CPU threads; one per core if not given")
    parser.add_argument("--small", action="store_true", help="a minute's worth, which learns next to nothing")
    given = parser.parse_args()
    if (given.sitting > 1) != (given.earlier is not None) or not 1 <= given.sitting <= len(SITTINGS):
        parser.error(f"--sitting is 1 to {len(SITTINGS)}, and from 2 on it needs --earlier")

    def say(line: str) -> None:
        print(line, flush=True)

    if given.small:
        small = Settings(steps=20, dialogues=24, layers=2, sampled=500)
        Training(small, given.folder, say, given.threads).run(given.weights)
        return
    left = [given.earlier]  # what each sitting left
    for sitting in SITTINGS[given.sitting - 1 :]:
        folder = given.folder / f"sitting {sitting.sitting}"
        if sitting.from_mean and len(left) > 1:  # or it is the first: what was given is that mean
            write_mean(given.folder / "mean", *left[-2:])
            left.append(given.folder / "mean")
        Training(sitting, folder, say, given.threads, left[-1]).run(folder / "weights")
        left.append(folder / "weights")
    if given.weights:
        write_mean(given.weights, *left[-2:])


if __name__ == "__main__":
    main()
