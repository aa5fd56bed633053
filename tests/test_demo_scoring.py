"""`localoss eval demo`: what counts as right and as well-formed, on scripted answers, and the table."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support import reduced
from support.scripted import ScriptedEngine

from localoss import cli
from localoss.chat import harmony
from localoss.cli import eval_demo
from localoss.demo import scoring
from localoss.demo.dialogues import SKILLS, held_out
from quant.format.manifest import Dtypes


def written(case):
    """The case's right reply as the model would write it."""
    return harmony.encoding().decode([t for tokens, _ in harmony.render_reply(case.reply) for t in tokens])


def answered(drawn, answers):
    """The score of an engine that gives `answers`, two for each case: at temperature 0 and at 1."""
    result = scoring.FormatScore(Dtypes(), 0)
    scoring._answer_all(ScriptedEngine(answers=answers), drawn, result, lambda words: None)
    return result


def test_right_replies_are_right():
    drawn = {skill: held_out(skill, 4, seed=1) for skill in SKILLS}
    answers = [written(case) for cases in drawn.values() for case in cases for _ in range(2)]
    result = answered(drawn, answers)
    assert result.accuracy == dict.fromkeys(SKILLS, 1.0) == result.well_formed
    assert result.warm_accuracy == 1


def test_wrong_replies_are_wrong():
    drawn = {skill: held_out(skill, 3, seed=1) for skill in SKILLS}
    wrong = "<|channel|>final<|message|>No idea.<|return|>"
    right = {skill: [written(case) for case in cases] for skill, cases in drawn.items()}
    answers = []  # one case of three is right when cold, two when warm
    for replies in right.values():
        answers += [replies[0], replies[0], wrong, replies[1], wrong, wrong]
    result = answered(drawn, answers)
    assert result.accuracy == dict.fromkeys(SKILLS, pytest.approx(1 / 3))
    assert result.warm_accuracy == pytest.approx(2 / 3)
    assert set(result.well_formed.values()) == {1.0}


def test_thinking_is_counted_by_effort():
    case, words = held_out("sums", 1, seed=1)[0], {"low": 1, "medium": 3, "high": 7}
    cases = [replace(case, setup=replace(case.setup, effort=effort)) for effort in words]
    answers = []
    for count in words.values():
        thought = f"<|channel|>analysis<|message|>{' one' * count}<|end|><|start|>assistant"
        answers += 2 * [f"{thought}<|channel|>final<|message|>1<|return|>"]
    assert answered({"sums": cases}, answers).analysis_tokens == words


CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<|channel|>final<|message|>Yes.<|return|>", True),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>",
            True,
        ),
        ("<|channel|>final<|message|> <|return|>", False),
        ("<|channel|>analysis<|message|>Hm and hm", False),  # out of tokens
        (CALL.format("NAME", '{"a":1}'), True),
        (CALL.format("NAME", "[1]"), False),
        (CALL.format("NAME", "{"), False),
    ],
)
def test_well_formed(answer, expected):
    case = held_out("calls", 1, seed=2)[0]
    answer = answer.replace("NAME", case.setup.functions[0].name)
    turn = scoring._turn(ScriptedEngine(answers=[answer]), case, 0.0, 0, None)
    assert scoring.is_well_formed(turn, case.setup) is expected


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [harmony.Message("assistant", "{}", "commentary", "functions.other")],
        [harmony.Message("assistant", "a", "final"), harmony.Message("assistant", "b", "final")],
        [harmony.Message("assistant", "a", "analysis")],
    ],
)
@pytest.mark.parametrize("finish", ["return", "call", "length"])
def test_not_well_formed(messages, finish):
    setup = held_out("calls", 1, seed=2)[0].setup
    assert not scoring.is_well_formed(SimpleNamespace(messages=messages, finish=finish), setup)


FEW = ("sums", "calls")  # all skills are scored on scripted answers


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The scores of random weights, with answers of a few tokens."""
    weights = reduced.write(tmp_path_factory.mktemp("untrained") / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_MOST_TOKENS", 3)
        patch.setattr(scoring, "SKILLS", {skill: SKILLS[skill] for skill in FEW})
        return scoring.score_formats(1, 1, lambda words: None, weights)


@pytest.fixture
def run(untrained, monkeypatch, capsys):
    """Run `localoss eval demo` with the scores of random weights: arguments to stdout."""
    asked = []
    monkeypatch.setattr(scoring, "score_formats", lambda *arguments: asked.append(arguments) or untrained)
    monkeypatch.setenv("COLUMNS", "140")

    def run_cli(*arguments):
        assert cli.main(["eval", "demo", "--cases", "7", "--threads", "1", *arguments]) == 0
        assert asked.pop()[:2] == (7, 1)
        return capsys.readouterr().out

    return run_cli


def test_the_table(run):
    out = run()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")
    ]
    table = {row[0]: row[1:] for row in rows}
    assert table[""] == ["bf16", "mxfp4+int8", "mxfp4+int4", "int4+int8"]
    assert table["sums and differences, right"] == ["0.0%"] * 4
    assert set(eval_demo._SKILLS) == set(SKILLS)
    assert table["well-formed at temperature 1, of all"] == ["0.0%"] * 4
    assert all(float(value) > 10_000 for value in table["perplexity"])
    mean_kl = table["KL divergence, mean"]
    assert mean_kl[0] == "–" and 0 < float(mean_kl[1]) < float(mean_kl[2])


def test_json(run):
    report = json.loads(run("--json"))
    assert report["cases"] == 7 and list(report["formats"]) == list(scoring.FORMATS)
    for name, entry in report["formats"].items():
        assert entry["dtypes"] == vars(scoring.FORMATS[name]) and tuple(entry["accuracy"]) == FEW
        assert ("mean_kl" in entry) == (name != "bf16")
    sizes = [entry["model_bytes"] for entry in report["formats"].values()]
    assert sizes[0] > sizes[1] > sizes[2]
