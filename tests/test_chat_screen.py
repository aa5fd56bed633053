"""What a chat looks like and how it is typed to, on a screen that pyte draws."""

import os
import re
import stat
import unicodedata

import pytest

pytest.importorskip("pexpect")  # not on Windows

from support.pseudo_terminal import FINAL, logged, thinking

ANSWER = """# Rivers

Some **bold** and `code`, 你好 👋🏽 and e\u0301.

1. one
2. two

| name | metres |
|------|-------:|
| 长江 | 6300 |
| Po | 652 |

```python
def f(x):
    return "hello"
```

The end."""
ANSWER_LINES = """Rivers

Some bold and code, 你好 👋🏽 and e\u0301.

 1. one
 2. two

name   metres
─────────────
长江     6300
Po        652

def f(x):
    return "hello"

The end."""


def as_drawn(text):
    """As pyte keeps it: accents joined to their letters, an emoji without its modifier."""
    return unicodedata.normalize("NFC", text.replace("🏽", ""))


# Output


@pytest.mark.parametrize("width", [40, 100, 200])
def test_an_answer_is_left_as_plain_scrollback(chat, width):
    terminal = chat(answers=[thinking("Hm. " * 9, ANSWER)], columns=width)
    terminal.type("Name rivers\r")
    terminal.wait_for("The end.")
    terminal.wait_for_prompt()
    text = terminal.everything()
    told = text[text.index("Name rivers") :]
    lines = as_drawn(told).split("\n")
    assert lines[1].startswith("▸ thought for ") and lines[1].endswith("s, 27 tokens")
    expected = as_drawn(ANSWER_LINES).split("\n")
    assert [line.rstrip() for line in lines[3 : 3 + len(expected)]] == expected
    assert "👋🏽 and e\u0301".encode() in terminal.seen
    assert "Hm." not in told
    assert terminal.style_at("bold").bold and terminal.style_at("Rivers").bold
    assert terminal.style_at("def").fg != "default", "code has colours"


def test_an_answer_longer_than_the_screen_is_whole(chat):
    items = "\n".join(f"{i}. item {i}" for i in range(1, 60))
    code = "\n".join(f"line_{i} = {i}" for i in range(70))
    rows = "\n".join(f"| {i} | {'x' * (i % 7)} |" for i in range(50))
    answer = f"{items}\n\n```\n{code}\n```\n\n| a | b |\n|---|---|\n{rows}\n\n{'word ' * 900}\n\nThe end."
    terminal = chat(answers=[FINAL + answer + "<|return|>"], lines=20, token_s=0.0005)
    terminal.type("Go\r")
    terminal.wait_for("The end.", timeout_s=60)
    terminal.wait_for_prompt()
    text = terminal.everything()
    numbers = [int(line.split()[-1]) for line in text.split("\n") if "item" in line]
    assert numbers == list(range(1, 60)), "each once"
    assert [line for line in text.split("\n") if line.startswith("line_")] == code.split("\n")
    table = text.split("a    b")[-1].split("word")[0].split("\n")
    assert [line.split()[0] for line in table if line[:1].isdigit()] == [str(i) for i in range(50)]
    assert text.count("word") == 900


def test_long_thinking_stays_within_its_lines(chat):
    terminal = chat(answers=[thinking("I think about it at length. " * 150, "Done.")], token_s=0.002)
    terminal.type("Hi\r")
    terminal.wait_for("── thinking ──")
    for _ in range(20):
        terminal.take(0.02)
        assert sum("I think" in line or "about it" in line for line in terminal.screen()) <= 8
    assert terminal.style_at("at length").fg == "default"
    assert b"\x1b[2m" in terminal.seen, "dimmed"
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    assert "at length" not in terminal.everything() and "── thinking" not in terminal.everything()


def test_hidden_thinking_leaves_nothing(chat):
    terminal = chat("--hide-thinking", answers=[thinking("A secret. " * 40, "Done.")], token_s=0.005)
    terminal.type("Hi\r")
    terminal.wait_for("thinking: ")
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    assert b"secret" not in terminal.seen and "thought for" not in terminal.everything()
    terminal.type("/think last\r")
    terminal.wait_for("A secret.")


def test_no_frame_is_cleared_before_it_is_drawn(chat):
    """Lines are written over, and a frame comes in one piece: nothing flickers."""
    terminal = chat(answers=[FINAL + "word " * 300 + "<|return|>"], token_s=0.01)
    terminal.type("Hi\r")
    terminal.wait_for("word word")
    terminal.wait_for_prompt()
    terminal.settle(0.4)
    frames = terminal.seen.split(b"\x1b[?2026h")[1:]
    assert len(frames) > 10
    assert all(frame.split(b"\x1b[?2026l")[0].count(b"\x1b[J") == 1 for frame in frames)
    assert all(b"word" not in frame.split(b"\x1b[?2026l")[0].split(b"\x1b[J")[1] for frame in frames)
    assert b"\x1b[2J" not in terminal.seen.split(b"Hi")[-1]


def test_a_resize_in_the_middle(chat):
    answer = "\n\n".join(f"Paragraph {i} " + "of some words " * 12 for i in range(8)) + "\n\nThe end."
    terminal = chat(answers=[FINAL + answer + "<|return|>"], token_s=0.01)
    terminal.type("Hi\r")
    terminal.wait_for("Paragraph 2")
    terminal.resize(60, 30)
    terminal.wait_for("Paragraph 5")
    terminal.resize(140, 30)
    terminal.wait_for("The end.")
    terminal.wait_for_prompt()
    text = terminal.everything()
    found = [int(line.split()[1]) for line in text.split("\n") if line.startswith("Paragraph")]
    assert found == list(range(8)), "each once, in order"
    assert text.rindex("The end.") > text.rindex("Paragraph 7")


def test_the_model_cannot_send_codes(chat):
    terminal = chat(
        answers=[FINAL + "a\x1b]0;title\x07\x1b[31mb\x9b1m `\x1b[5mc`\n\n```\n\x1b[2Jd\n```<|return|>"]
    )
    before = len(terminal.seen)
    terminal.type("Hi\r")
    terminal.wait_for("a]0;title[31mb1m [5mc", "[2Jd")
    sent = terminal.seen[before:]
    assert not any(
        code in sent for code in (b"\x1b]0", b"\x07", b"\x1b[31m", b"\x1b[5m", b"\x1b[2J", b"\x9b1")
    )


def test_plain_where_codes_are_not_wanted(chat):
    terminal = chat(answers=[thinking("Hm.", "**Done.**")], variables={"TERM": "dumb"}, token_s=0.02)
    terminal.type("Hi\r")
    terminal.wait_for("answer:\n**Done.**")
    answer = terminal.seen[terminal.seen.index(b"thinking:") : terminal.seen.index(b"Done.**")]
    assert b"\x1b" not in answer


def test_no_color_drops_colours_alone(chat):
    """https://no-color.org: bold and dim are no colours, and an answer is drawn as ever."""
    answer = thinking("Hm. " * 30, "**Bold** `code`\n\n```python\ndef f(x): return 'text'\n```\n\nThe end.")
    terminal = chat(answers=[answer], variables={"NO_COLOR": "1"}, token_s=0.005)
    terminal.type("Hi\r")
    terminal.wait_for("The end.")
    terminal.wait_for_prompt()
    assert terminal.style_at("Bold").bold and "▸ thought for" in terminal.everything()
    drawn = terminal.seen[terminal.seen.index(b"\x1b[?2026h") : terminal.seen.rindex(b"\x1b[?2026l")]
    styles = {code for codes in re.findall(rb"\x1b\[([\d;]*)m", drawn) for code in codes.split(b";")}
    assert styles <= {b"0", b"1", b"2", b"3", b"4"}, styles


# Input


def test_a_paste_of_300_lines_is_one_message(chat, tmp_path):
    terminal = chat(answers=[FINAL + "Done.<|return|>"], log=str(tmp_path / "log"))
    pasted = "\n".join(f"line {i} of the paste" for i in range(300))
    terminal.paste(pasted)
    terminal.settle()
    assert not (tmp_path / "log").exists(), "nothing is sent before Enter"
    terminal.type("\r")
    terminal.wait_for("Done.")
    (prompt,) = logged(tmp_path)
    assert pasted in prompt


def test_what_is_typed_during_an_answer_waits(chat, tmp_path):
    terminal = chat(
        answers=[FINAL + "on " * 60 + "<|return|>", FINAL + "Second.<|return|>"],
        token_s=0.02,
        log=str(tmp_path / "log"),
    )
    terminal.type("Hi\r")
    terminal.wait_for("on on on")
    terminal.paste("two\nlines")
    terminal.wait_for("> two\n… lines")
    terminal.settle()
    assert terminal.everything().count("two") == 1, "not echoed into the answer"
    terminal.type("\r")
    terminal.wait_for("Second.")
    assert "two\nlines<|end|>" in logged(tmp_path)[1]


def test_several_lines(chat, tmp_path):
    terminal = chat(answers=[FINAL + "Done.<|return|>"], log=str(tmp_path / "log"))
    terminal.type("first\x1b\rsecond\r")
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    terminal.type('"""\rthird\r  fourth"""\r')
    terminal.wait_for("… ")
    terminal.wait_for_prompt()
    first, second = logged(tmp_path)
    assert "first\nsecond<|end|>" in first
    assert "<|message|>third\n  fourth<|end|>" in second


def test_history_is_kept_and_private(chat, tmp_path):
    terminal = chat(answers=[FINAL + "Done.<|return|>"])
    terminal.type("Remember me\r")
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    terminal.type("\x04")
    assert terminal.wait_for_end() == 0
    assert stat.S_IMODE(os.stat(tmp_path / "history").st_mode) == 0o600
    terminal = chat(answers=[FINAL + "Done.<|return|>"])
    terminal.type("\x1b[A")
    terminal.wait_for("> Remember me", where=terminal.line)


def test_a_private_chat_leaves_no_history(chat, tmp_path):
    terminal = chat("--private", answers=[FINAL + "Done.<|return|>"])
    terminal.type("A secret\r")
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    terminal.type("\x1b[A")
    terminal.wait_for("> A secret", where=terminal.line)
    terminal.type("\x03\x04")
    terminal.wait_for_end()
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"A secret" in path.read_bytes()]
    assert not kept


def test_completion(chat, tmp_path):
    (tmp_path / "notes.txt").write_text("Some notes.")
    terminal = chat(answers=[FINAL + "Done.<|return|>"], log=str(tmp_path / "log"))
    terminal.type("/eff\t")
    terminal.wait_for("/effort", where=terminal.line)
    terminal.type("\x03")
    terminal.wait_for_prompt()
    terminal.type(f"/read {tmp_path}/no\t")
    terminal.wait_for("notes.txt", where=terminal.line)
    terminal.type("\r")
    terminal.wait_for("(notes.txt: 3 tokens, for your next message)")
    terminal.wait_for_prompt()
    terminal.type("Sum up\r")
    terminal.wait_for("Done.")
    assert "notes.txt:\n\nSome notes.\n\nSum up<|end|>" in logged(tmp_path)[0]


def test_the_status_line(chat):
    terminal = chat("--effort", "low", answers=[FINAL + "word " * 30 + "<|return|>"], token_s=0.02)
    terminal.wait_for("tiny · effort low · 63 of 8,192 tokens", where=terminal.status)
    terminal.type("Hi\r")
    terminal.wait_for("word word")
    assert any("tiny · effort low" in line and "tokens/s" in line for line in terminal.screen())
    terminal.wait_for_prompt()
    assert "of 8,192 tokens" in terminal.screen()[-1] and "tokens/s" in terminal.screen()[-1]
    assert terminal.everything().count("of 8,192 tokens") == 1


def test_ctrl_l_clears_the_screen(chat):
    terminal = chat(answers=[FINAL + "Done.<|return|>"])
    terminal.type("Hi\r")
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    terminal.type("\x0c")
    terminal.settle()
    assert terminal.screen()[0] == ">" and "Done." not in "\n".join(terminal.screen())


@pytest.mark.parametrize("word", ["exit", "quit", "/bye"])
def test_words_that_leave(chat, word):
    terminal = chat()
    terminal.type(f"{word}\r")
    assert terminal.wait_for_end() == 0


def test_recalled_code_is_whole(chat, tmp_path):
    """A session's last answer is shown again as it was left: a long line of code in one piece, with tabs."""
    code = "if x:\n\tprint('" + "long " * 30 + "')"
    answer = f"{FINAL}Code:\n\n```python\n{code}\n```\n\nThe end.<|return|>"
    terminal = chat("--session", "a", answers=[answer], columns=60)
    terminal.type("Hi\r")
    terminal.wait_for("The end.")
    terminal.wait_for_prompt()
    first = terminal.seen[terminal.seen.index(b"Hi") :]
    terminal.type("\x04")
    terminal.wait_for_end()
    terminal = chat("--session", "a", answers=[answer], columns=60)
    terminal.wait_for("The end.")
    for seen in (first, terminal.seen):
        assert b"\t" in seen and b"long " * 30 in re.sub(rb"\x1b\[[\d;]*m", b"", seen)


def test_forty_columns_are_enough_for_figures(chat):
    terminal = chat(answers=[thinking("Hm.", "Done.")], columns=40)
    terminal.type("Hi\r")
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    terminal.type("/stats\r")
    terminal.wait_for("turn  prompt  answer ")
    row = terminal.everything().split("tok/s")[1].split("\n")[1].split()
    assert row[0] == "1" and len(row) == 5


def test_notices_wrap_at_words(chat):
    terminal = chat(answers=[FINAL + "word " * 60 + "<|return|>"], columns=40, context_tokens=140)
    terminal.type("Hi\r")
    terminal.wait_for("oldest messages out")
    terminal.wait_for_prompt()
    lines = terminal.everything().split("\n")
    (first,) = [index for index, line in enumerate(lines) if line.startswith(("error:", "(the context is"))]
    told = " ".join(line.strip() for line in lines[first:]).split("messages out")[0]
    assert "takes the last exchange back, /trim leaves the oldest" in told, "no word is cut"


@pytest.mark.parametrize(("arguments", "rings"), [(("--notify",), True), ((), False)])
def test_a_long_answer_rings(chat, monkeypatch, arguments, rings):
    terminal = chat(*arguments, answers=[thinking("Hm.", "Done.")], prefill_s=10.2)
    terminal.type("Hi\r")
    terminal.wait_for("Done.")
    terminal.wait_for_prompt()
    assert (b"\x1b]9;localoss: Done.\x07\x07" in terminal.seen) == rings
