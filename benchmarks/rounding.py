"""What the search for scales brings: error and divergence with the rule's scales alone, and with the search.

python benchmarks/rounding.py        # on normal weights, and on tests/support/checkpoints.py
python benchmarks/rounding.py --calibrate    # int4 searched without and with a calibration text
python benchmarks/rounding.py --demo    # the same on the demo model, with dialogues of its training
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support import checkpoints
from support.golden_files import NAMES, kl_divergence, read_golden

import localoss
from localoss.chat import harmony
from localoss.demo.dialogues import SKILLS, Case, held_out, training
from localoss.hub.bundled import WEIGHTS
from localoss.measure.start_calibration import start_calibration
from quant.calibration import Calibration
from quant.convert import convert
from quant.format import jit_loops as fast
from quant.format import jit_scales as fast_scales
from quant.format.manifest import Dtypes
from quant.format.numbers import INT4, INT8, decode_int, decode_mxfp4, unpack_blocks
from quant.format.tiles import from_tiles, scales_from_tiles

CALIBRATION_TOKENS = 1024
FORMS = ("int8", "int4", "mxfp4")


def search(wanted: bool) -> None:
    """Turn the search on or off."""
    fast.INT8 = INT8 if wanted else INT8._replace(steps=())
    fast.INT4 = INT4 if wanted else INT4._replace(steps=())
    fast_scales.MXFP4_STEPS = (1, -1) if wanted else ()


def relative_rms(form: str) -> float:
    weights = np.random.RandomState(0).standard_normal((512, 2880)).astype(np.float32)
    if form == "mxfp4":
        blocks, scales = fast.encode_mxfp4_blocks(weights)
        decoded = decode_mxfp4(unpack_blocks(blocks), scales)
    else:
        tiles, scales = (fast.tile_int8 if form == "int8" else fast.tile_int4)(weights)
        decoded = decode_int(from_tiles(tiles, form), scales_from_tiles(scales))
    return float(np.sqrt(np.square(decoded - weights).mean() / np.square(weights).mean()))


def weighed_rms(spread: float, calibrated: bool) -> float:
    """int4's RMS error on normal weights, columns weighed by mean squares of log-normal `spread`."""
    numbers = np.random.RandomState(0)
    weights = numbers.standard_normal((512, 2880)).astype(np.float32)
    moments = np.exp(spread * numbers.standard_normal(2880)).astype(np.float32)
    tiles, scales = fast.tile_int4(weights, moments if calibrated else None)
    errors = decode_int(from_tiles(tiles, "int4"), scales_from_tiles(scales)) - weights
    return float(np.sqrt((moments * np.square(errors)).mean() / (moments * np.square(weights)).mean()))


def divergence(dtypes: Dtypes, scratch: Path, calibrated: bool = False) -> float:
    """KL(transformers || localoss) in nats, mean over the positions of all golden checkpoints.

    The calibration text is 1,024 random tokens, not those that are compared.
    """
    found = []
    for name in NAMES:
        source, golden = scratch / name, read_golden(name)
        if not source.exists():
            checkpoints.write_named(name, source)
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            calibration = None
            if calibrated:
                vocabulary = checkpoints.CHECKPOINTS[name]["vocab"]
                tokens = np.random.RandomState(7).randint(0, vocabulary, CALIBRATION_TOKENS).tolist()
                calibration = start_calibration(tokens, "random tokens", None, compiling=lambda kernel: None)
            convert(source, Path(out) / "model", dtypes, calibration=calibration)
            engine = localoss.load(Path(out) / "model", context_tokens=len(golden.tokens))
            found.append(kl_divergence(golden.logits, engine.logits(golden.tokens, golden.positions)))
    return float(np.concatenate(found).mean())


def table(columns: tuple[str, str], rows: dict[str, list[float]]) -> None:
    print(f"{'':24}{columns[0]:>10}{columns[1]:>10}{'ratio':>8}")
    for name, (before, after) in rows.items():
        print(f"{name:24}{before:10.5f}{after:10.5f}{after / before:8.3f}")


def compare_calibrated() -> None:
    rms = {
        f"RMS, spread e^{spread}": [weighed_rms(spread, text) for text in (False, True)] for spread in (1, 2)
    }
    table(("search", "text"), rms)
    kinds = {"attention": Dtypes(attention="int4"), "unembedding": Dtypes(unembedding="int4")}
    with tempfile.TemporaryDirectory() as scratch:
        table(
            ("search", "text"),
            {
                f"KL, {kind} int4": [divergence(dtypes, Path(scratch), text) for text in (False, True)]
                for kind, dtypes in kinds.items()
            },
        )


def compare_on_demo(cases: int = 40) -> None:
    """KL(bf16 || int4) in nats of right replies to held-out cases, mean over their tokens.

    Few tokens make most of it: hence an interval for the ratio, from drawing the cases anew.
    """
    drawn = [case for skill in SKILLS for case in held_out(skill, cases, seed=0)]
    dialogues = [
        [*harmony.render(case.setup, case.messages), *reply(case)] for case in islice(training("text"), 60)
    ]
    tokens = [token for dialogue in dialogues for token in dialogue]
    calibration = start_calibration(tokens, "dialogues", None, compiling=lambda kernel: None)
    from localoss.measure.evaluate import (  # only now: kernels are to be found where they are kept
        joined,
        score,
    )

    kinds = {
        "attention int4": Dtypes("int4", "bf16", "bf16", "bf16"),
        "unembedding int4": Dtypes("bf16", "bf16", "int4", "bf16"),
        "experts int4": Dtypes("bf16", "bf16", "bf16", "int4"),
        "all int4": Dtypes("int4", "int8", "int4", "int4"),
    }
    with tempfile.TemporaryDirectory() as scratch:

        def engine(dtypes: Dtypes, text: Calibration | None = None):
            folder = Path(tempfile.mkdtemp(dir=scratch)) / "model"
            convert(WEIGHTS, folder, dtypes, calibration=text)
            return localoss.load(folder, context_tokens=2048, threads=1)

        exact = engine(Dtypes("bf16", "bf16", "bf16", "bf16"))
        print(f"{len(drawn)} cases, a text of {calibration.text.tokens} tokens")
        print(f"{'':20}{'search':>10}{'text':>10}{'ratio':>8}  90 % of draws")
        for kind, dtypes in kinds.items():
            sums = []  # of each case, without and with the text
            for text in (None, calibration):
                ours = engine(dtypes, text)
                prompts = [harmony.render(case.setup, case.messages) for case in drawn]
                replies = [[*prompt, *reply(case)] for prompt, case in zip(prompts, drawn, strict=True)]
                kls = [
                    joined(list(score(ours, tokens, len(prompt), exact))).kl
                    for prompt, tokens in zip(prompts, replies, strict=True)
                ]
                sums.append(np.array([kl.sum() for kl in kls]))
            places = sum(len(kl) for kl in kls)
            search, with_text = (total.sum() / places for total in sums)
            low, high = _interval(*sums)
            ratio = with_text / search
            print(
                f"KL, {kind:16}{search:10.5f}{with_text:10.5f}{ratio:8.3f}  {low:.2f} to {high:.2f}",
                flush=True,
            )


def _interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Between what 90 % of the ratios of sums lie, over draws of the cases with replacement."""
    random = np.random.default_rng(0)
    draws = (random.integers(0, len(one), len(one)) for _ in range(2000))
    ratios = [other[draw].sum() / one[draw].sum() for draw in draws]
    return float(np.percentile(ratios, 5)), float(np.percentile(ratios, 95))


def reply(case: Case) -> list[int]:
    return [token for tokens, _ in harmony.render_reply(case.reply) for token in tokens]


def main() -> None:
    if "--demo" in sys.argv:
        compare_on_demo()
        return
    if "--calibrate" in sys.argv:
        compare_calibrated()
        return
    kinds = {
        "all int8": Dtypes(),
        "attention int4": Dtypes(attention="int4"),
        "unembedding int4": Dtypes(unembedding="int4"),
    }
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for wanted in (False, True):
            search(wanted)
            for form in FORMS:
                rows.setdefault(f"RMS error, {form}", []).append(relative_rms(form))
            for kind, dtypes in kinds.items():
                rows.setdefault(f"KL, {kind}", []).append(divergence(dtypes, Path(scratch)))
    table(("rule", "search"), rows)


if __name__ == "__main__":
    main()
