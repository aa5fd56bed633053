"""What the demo model can do in each number format, on cases that its training never saw."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import localoss
from localoss.chat import harmony
from localoss.chat.generate import generate
from localoss.chat.harmony import EFFORTS, ChatSetup, Message
from localoss.chat.turn import Turn
from localoss.demo.dialogues import SKILLS, Case, held_out
from localoss.hub.bundled import WEIGHTS
from localoss.measure.evaluate import Scores, joined, score
from localoss.options import SamplingParams
from quant.convert import convert
from quant.format.manifest import Dtypes

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.engine.sequence import Sequence

# The weights as they were trained, then what the quantizer makes of them; each is compared with the first.
FORMATS = {
    "bf16": Dtypes("bf16", "bf16", "bf16", "bf16"),
    "mxfp4+int8": Dtypes(),
    "mxfp4+int4": Dtypes(attention="int4", unembedding="int4"),
    "int4+int8": Dtypes(experts="int4"),
}
WARM_SKILL = "sums"  # whose accuracy is measured at temperature 1 too
_CONTEXT_TOKENS = 2048
_MOST_TOKENS = 400  # of an answer; the longest that was trained has half of that
_SEED = 0


Cases = dict[str, list[Case]]  # by skill
Tell = Callable[[str], None]


@dataclass
class FormatScore:
    """One number format. Shares are from 0 to 1, of the cases of a skill or of all.

    accuracy, at temperature 0, and well_formed, at temperature 1, by skill. analysis_tokens: mean length of
    the thinking by effort, at temperature 0. scores: of the tokens of right replies, each compared with bf16.
    """

    dtypes: Dtypes
    model_bytes: int
    accuracy: dict[str, float] = field(default_factory=dict)
    warm_accuracy: float = 0.0
    well_formed: dict[str, float] = field(default_factory=dict)
    analysis_tokens: dict[str, float] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)


def score_formats(
    cases: int, threads: int | None, tell: Tell, weights: Path = WEIGHTS
) -> dict[str, FormatScore]:
    """Score the reduced checkpoint `weights` in each of FORMATS, on `cases` held-out cases a skill.

    `tell` gets a few words about what is going on. Raises: QuantError if the models cannot be written.
    """
    drawn = {skill: held_out(skill, cases, _SEED) for skill in SKILLS}
    # A mapped file cannot be removed on Windows: what is left there is in the system's temporary folder.
    with TemporaryDirectory(prefix="localoss-eval-", ignore_cleanup_errors=True) as temporary:
        return _score_formats(weights, Path(temporary), drawn, threads, tell)


def _score_formats(
    weights: Path, folder: Path, drawn: Cases, threads: int | None, tell: Tell
) -> dict[str, FormatScore]:
    results: dict[str, FormatScore] = {}
    reference = None
    for name, dtypes in FORMATS.items():

        def tell_more(words: str, name: str = name) -> None:
            tell(f"{name}: {words}")

        tell_more("quantizing")
        manifest = convert(weights, folder / name, dtypes).manifest
        engine = localoss.load(
            folder / name,
            context_tokens=_CONTEXT_TOKENS,
            threads=threads,
            compiling=lambda kernel: tell(f"compiling kernels, once on this machine: {kernel}"),
        )
        reference = reference or engine
        result = results[name] = FormatScore(dtypes, manifest.total_bytes)
        _answer_all(engine, drawn, result, tell_more)
        tell_more("comparing predictions")
        result.scores = joined([*_reply_scores(engine, reference, drawn)])
    return results


def _answer_all(engine: "Engine", drawn: Cases, result: FormatScore, tell: Tell) -> None:
    """Let the model go on after every case, at temperature 0 and at 1, and note how it does."""
    lengths: dict[str, list[int]] = {effort: [] for effort in EFFORTS}
    sequence = engine.sequence()  # what a prompt has in common with the last one isn't run again
    for skill, cases in drawn.items():
        right, warm_right, well_formed = [], [], []
        for number, case in enumerate(cases):
            tell(f"{skill}, {number} of {len(cases)}")
            cold, warm = (_turn(engine, case, temperature, number, sequence) for temperature in (0.0, 1.0))
            right.append(case.is_right(cold.messages))
            warm_right.append(case.is_right(warm.messages))
            well_formed.append(is_well_formed(warm, case.setup))
            lengths[case.setup.effort].append(len(harmony.encode_raw(cold.thinking)))
        result.accuracy[skill], result.well_formed[skill] = mean(right), mean(well_formed)
        if skill == WARM_SKILL:
            result.warm_accuracy = mean(warm_right)
    result.analysis_tokens = {effort: mean(counts) for effort, counts in lengths.items() if counts}


def _turn(engine: "Engine", case: Case, temperature: float, seed: int, sequence: "Sequence") -> Turn:
    """The model's turn after the case's messages, over: its events are all that happened."""
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=_MOST_TOKENS)
    turn = Turn(harmony.render(case.setup, case.messages), case.setup, params)
    for _ in generate(engine, turn, sequence):
        pass
    return turn


def is_well_formed(turn: Turn, setup: ChatSetup) -> bool:
    """Whether a turn ends in an answer, or in a call of a function that exists with a JSON object."""
    if not turn.messages:
        return False
    *before, last = turn.messages
    if any(message.channel == "final" or message.recipient for message in before):
        return False
    if turn.finish == "return":
        return last.channel == "final" and bool(last.text.strip())
    return turn.finish == "call" and _is_call(last, setup)


def _is_call(message: Message, setup: ChatSetup) -> bool:
    if message.recipient not in {f"functions.{function.name}" for function in setup.functions}:
        return False
    try:
        return isinstance(json.loads(message.text), dict)
    except ValueError:
        return False


def _reply_scores(engine: "Engine", reference: "Engine", drawn: Cases) -> Iterator[Scores]:
    """Scores of what a right reply adds to each case's prompt: tokens that the model would write."""
    for cases in drawn.values():
        for case in cases:
            prompt = harmony.render(case.setup, case.messages)
            reply = [token for tokens, _ in harmony.render_reply(case.reply) for token in tokens]
            other = None if engine is reference else reference
            yield from score(engine, [*prompt, *reply], len(prompt), other)
