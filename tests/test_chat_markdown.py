"""An answer's layout, piece by piece: nothing that was written is lost, and code can be copied."""

import io
import re

import pytest

pytest.importorskip("pexpect")  # not on Windows

import pyte
from rich.console import Console

from localoss.cli.chat.markdown import Piece, Renderer, split_code, split_finished
from localoss.cli.chat.region import Region

LONG = "print('" + "abc " * 30 + "')"


@pytest.fixture
def renderer():
    return Renderer(Console(force_terminal=True, color_system=None, highlight=False))


def shown(renderer, text, width=60, **options):
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(renderer.markdown(text, width, **options)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\(a^2 + b_1\) and \[ x \]", r"\(a^2 + b_1\) and \[ x \]"),
        (r"\{ \frac{a}{b} \\ c \, d \}", r"\{ \frac{a}{b} \\ c \, d \}"),
        (r"\*no\* 1\. \_emphasis\_ \# \$5", "*no* 1. _emphasis_ # $5"),
        (r"`\(code\)` C:\Users", r"\(code\) C:\Users"),
        ("a <b>tag</b> and ![picture](x.png)", "a <b>tag</b> and picture (x.png)"),
        ("9. nine\n10. ten", " 9. nine\n10. ten"),
        ("one\ntwo", "one\ntwo"),
    ],
)
def test_what_was_written_is_shown(renderer, text, expected):
    assert shown(renderer, text) == expected


def test_long_lines_of_code_are_whole_once_they_stand(renderer):
    text = f"```python\nif True:\n\t{LONG}\n```"
    assert shown(renderer, text, 40, wraps_code=False) == f"if True:\n\t{LONG}"
    wrapped = shown(renderer, text, 40).split("\n")
    assert len(wrapped) > 3 and all(len(line) <= 40 for line in wrapped)
    mixed = shown(renderer, f"{'word ' * 30}\n\n{text}", 40, wraps_code=False).split("\n")
    assert all(len(line) <= 40 for line in mixed), "a piece is one block; others stay as they are"


@pytest.mark.parametrize("length", [19, 20, 21, 39, 40, 41, 60])
def test_printed_lines_may_fill_rows(monkeypatch, length):
    """Whatever their length, nothing of them is cleared and nothing of what was there before stays."""
    out, screen = io.StringIO(), pyte.Screen(20, 12)
    screen.set_mode(pyte.modes.LNM)
    region = Region(out)
    monkeypatch.setattr(region, "_size", lambda: type("size", (), {"columns": 20, "lines": 12})())
    region.update(["#" * 19] * 6)
    line = "".join(chr(ord("a") + index % 26) for index in range(length))
    region.update(["status"], [line, "next"])
    pyte.Stream(screen).feed(out.getvalue())
    rows = [row.rstrip() for row in screen.display]
    parts = [line[start : start + 20] for start in range(0, length, 20)]
    assert rows == [*parts, "next", "status", *[""] * (10 - len(parts))]


def test_pieces_of_a_growing_answer_are_those_of_the_whole(renderer):
    text = "# A\n\nSome text\nhere.\n\n1. one\n2. two\n\n```\ncode\n\nmore\n```\n\n"
    text += "| a |\n|---|\n| b |\n\nThe end."
    whole, last = split_finished(text)
    printed, rest, goes_on = [], "", False
    for character in text:
        finished, open_piece = split_finished(rest + character, goes_on)
        printed += finished
        rest, goes_on = open_piece.text, open_piece.goes_on
    assert [piece.text.strip("\n") for piece in printed] == [piece.text.strip("\n") for piece in whole]
    assert rest == last.text == "The end."


def test_code_cut_at_a_line_s_end_keeps_the_break():
    """What comes next begins a line of its own."""
    lines = [f"line {i}" for i in range(20)]
    head, rest = split_code(Piece("```\n" + "\n".join(lines) + "\n"), 8)
    assert len(head) == 1 and rest.text.endswith("line 19\n")
    printed = head[0].text.split("\n")[1:-1]
    assert [*printed, *rest.text.split("\n")[1:-1]] == lines
