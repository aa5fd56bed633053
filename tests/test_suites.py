"""`localoss eval --suite`: questions, scores with intervals, table, plot; runs where inspect-ai is."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from localoss.cli import app
from localoss.errors import UsageError
from localoss.server.suites.results import Result, interval, plot, published, table
from localoss.server.suites.tasks import is_own, name_of, read_questions

NEEDS = pytest.mark.skipif(find_spec("inspect_ai") is None, reason="needs inspect-ai, of the extra eval")
RESULT = Result("sums", "low", 40, 1, 0.625, 0.47, 0.76, tokens=800, published=0.5)


@pytest.fixture
def sums(tmp_path):
    """Three sums that the demo model gets right, and one whose answer is given wrong."""
    path = tmp_path / "sums.jsonl"
    asked = [(37, 48, 85), (12, 30, 42), (25, 16, 41), (9, 9, 19)]
    lines = [json.dumps({"question": f"What is {a} + {b}?", "answer": given}) for a, b, given in asked]
    path.write_text("\n".join(lines) + "\n")
    return path


# Wilson's interval, worked out by hand from https://doi.org/10.1080/01621459.1927.10502953.
@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (30, 30, 0.8865, 1.0)]
)
def test_shares_of_right_answers_have_wilsons_interval(right, count, low, high):
    assert interval([1.0] * right + [0.0] * (count - right)) == pytest.approx((low, high), abs=1e-4)


def test_means_over_epochs_scatter_between_questions():
    low, high = interval([0.25, 0.5, 0.75, 1.0])
    half = 1.959964 * math.sqrt(0.3125 / 3 / 4)
    assert (low, high) == pytest.approx((0.625 - half, 0.625 + half))
    assert interval([0.5]) == interval([]) == (0.0, 1.0)


def test_openais_figures_are_of_the_model_by_its_layers():
    assert published("aime2025", "high", 24) == pytest.approx(0.917)
    assert published("gpqa_diamond", "low", 36) == pytest.approx(0.671)
    assert published("aime2025", "high", 4) is None and published("sums", "low", 24) is None


def test_the_table_has_what_was_asked():
    row = table([RESULT, replace(RESULT, epochs=2, failed=3, published=None)]).splitlines()[2:]
    assert row == [
        "| sums | low | 40 | 62.5 | 47.0–76.0 | 50.0 | 20 |",
        "| sums | low | 40 × 2, 3 failed | 62.5 | 47.0–76.0 |  | 10 |",
    ]


def test_the_plot_shows_score_interval_and_openais_figure():
    picture = plot([RESULT, replace(RESULT, suite="<b>", published=None)], "a & b")
    root = ET.fromstring(picture)
    circles = [(float(c.get("cx")), c.get("fill")) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert [fill for _, fill in circles].count("none") == 1, "one of the two has a published figure"
    (score, _), (theirs, _) = circles[:2]
    assert score > theirs, "62.5 % lies to the right of 50 %"
    assert "<b>" not in picture.replace("&lt;b&gt;", "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no questions"),
        ("nonsense", "line 1: no question"),
        ("[" * 100_000, "line 1: no question"),
        ('{"question": "a?"}', "line 1: its answer is no text"),
        ('{"question": "a?", "answer": true}', "line 1: its answer is no text"),
        ('\n{"question": "a?", "answer": "x", "choices": ["y", "z"]}', "line 2: its answer isn't one of"),
        ('{"question": "a?", "answer": "x", "choices": "xy"}', "its choices are no list"),
    ],
)
def test_what_is_wrong_with_questions_is_said_with_file_and_line(text, complaint, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        list(read_questions(path))


def test_a_folder_is_a_suite_of_its_files(tmp_path, sums):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / f"{name}.jsonl").write_text(f'\ufeff{{"question": "{name}?", "answer": 1}}\n', "utf-8")
    assert [one["question"] for one in read_questions(folder)] == ["a?", "b?"]
    assert is_own(str(folder)) and is_own(str(sums)) and not is_own("aime2025")
    assert [name_of(suite) for suite in (str(sums), "inspect_evals/aime2025", "gpqa_diamond")] == [
        "sums",
        "aime2025",
        "gpqa_diamond",
    ]


def run_eval(*arguments):
    return CliRunner().invoke(app, ["eval", "demo", *map(str, arguments)])


@pytest.mark.skipif(find_spec("inspect_ai") is not None, reason="inspect-ai is there")
def test_without_inspect_ai_it_says_what_to_install(sums):
    done = run_eval("--suite", sums)
    assert done.exit_code and isinstance(done.exception, UsageError | SystemExit)
    assert "pip install 'localoss[eval]'" in str(done.exception) + done.output


@NEEDS
def test_the_demo_model_is_scored_and_nothing_is_asked_twice(sums, tmp_path):
    out = tmp_path / "out"
    arguments = ("--suite", sums, "--effort", "low,high", "-o", out, "--context", 512)
    assert run_eval(*arguments).exit_code == 0
    results = json.loads((out / "results.json").read_text())
    assert [(one["effort"], one["questions"], one["score"]) for one in results] == [
        ("low", 4, 0.75),
        ("high", 4, 0.75),
    ]
    assert all(one["low"] < 0.75 < one["high"] and one["tokens"] > 8 for one in results)
    assert (out / "results.md").read_text().count("| sums |") == 2 and "<svg" in (
        out / "plot.svg"
    ).read_text()
    logs = sorted(out.glob("sums-*/*.eval"))
    again = run_eval(*arguments, "--json")
    assert json.loads(again.stdout)["results"] == results
    assert sorted(out.glob("sums-*/*.eval")) == logs
