"""What can be typed in a chat besides messages: each command, right and wrong, over pipes."""

import io
import json
import os
import sys

import pytest
from support.scripted import ScriptedEngine

import localoss
from localoss import cli
from localoss.chat import harmony
from localoss.cli.chat import outside
from localoss.cli.chat.commands import COMMANDS
from localoss.errors import ModelError

FINAL = "<|channel|>final<|message|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ANSWERS = [f"{THOUGHT}{FINAL}Answer {number}.<|return|>" for number in range(9)]
EDITOR = "import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write({change})"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("tiny", "other"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "localoss.json").write_text(name)
    for name in ("VISUAL", "EDITOR", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def chat(monkeypatch, capsys):
    """Pipe lines into a chat: gives the answers, what was said besides, and the prompts as text."""

    def run(*lines, arguments=(), code=0, **script):
        engine = ScriptedEngine(**{"answers": ANSWERS} | script)
        monkeypatch.setattr(localoss, "load", lambda folder, options, listener: engine)
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        assert cli.main(["chat", "tiny", *arguments]) == code
        out, err = capsys.readouterr()
        run.engine = engine
        return out.splitlines(), err, [harmony.encoding().decode(prompt) for prompt in engine.prompts]

    return run


def test_every_command_says_something_without_an_argument(chat):
    """Before there is anything to work on: no traceback, no silence."""
    for name in COMMANDS:
        _, err, _ = chat(f"/{name}")
        said = err.split("/help for help\n")[1]
        assert said or name == "exit", name
        assert "Traceback" not in err and "a bug" not in err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/regne", "there is no /regne; did you mean /regen?"),
        ("/xyzzy", "/help lists what there is"),
        ("/effort max", "effort is 'max'; choose one of low, medium, high"),
        ("/think maybe", "/think show, /think hide"),
        ("/regen", "there is nothing to answer yet"),
        ("/undo", "there is nothing to take back"),
        ("/copy", "there is no answer to copy yet"),
        ("/read nowhere.txt", "nowhere.txt: No such file"),
        ("/read /", "/: has more than 1,000 files"),
        ("/save", "which file? /save FILE"),
        ("/load", "which file? /load FILE"),
        ("/load nowhere.json", "nowhere.json: No such file"),
        ("/save /no/such/folder/file", "No such file"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set temperature hot", "temperature is 'hot'; give a number from 0 to 100"),
        ("/set top_p 0", "top_p is '0'"),
        ("/set top_k 1.5", "give a whole number from 0"),
        ("/set temperature nan", "temperature is 'nan'"),
        ("/model nosuch", "nosuch"),
        ("/edit", "there is no editor"),
    ],
)
def test_wrong_commands_are_one_line(chat, line, says, monkeypatch):
    monkeypatch.setattr(outside, "_EDITORS", ())
    out, err, prompts = chat(line)
    said = err.split("/help for help\n")[1]
    assert says in said and said.count("\n") == 1, said
    assert not prompts and not out


def test_lines_that_only_look_like_commands_are_messages(chat):
    _, err, prompts = chat("/usr/bin/env is a file", " /exit", "exit", "1/2")
    assert len(prompts) == 4 and "there is no" not in err
    assert (
        "<|message|>/usr/bin/env is a file<|end|>" in prompts[0] and "<|message|>/exit<|end|>" in prompts[1]
    )


def test_sampling_is_set_and_shown(chat):
    lines = ["/set parameter temperature 0.7", "/set top-p=0.9", "/set --top_k 5", "/set seed 3", "Hi"]
    _, err, _ = chat(*lines, "/set seed", "/set seed none", "/set max_tokens 50", "/set")
    assert chat.engine.params.temperature == 0.7 and chat.engine.params.top_p == 0.9
    assert "(temperature 0.7)" in err and err.count("(seed 3)") == 2 and "(max_tokens 50)" in err
    assert err.endswith(
        "temperature 0.7\ntop_p 0.9\ntop_k 5\nmin_p 0.0\nseed none\nmax_tokens 50\nthink_budget none\n"
        "trim none\n"
    )


def test_instructions(chat):
    _, err, prompts = chat("/system Speak Latin.", "Hi", "/system", '/system ""', "Hi", "/system")
    assert "Speak Latin." in prompts[0] and "Speak Latin." not in prompts[1]
    assert err.count("(instructions: Speak Latin.)") == 2 and err.count("(instructions: none)") == 2


def test_regen_and_undo(chat):
    out, err, prompts = chat("One", "Two", "/regen", "/undo", "Three", "/undo", "/undo", "/undo")
    assert out == [f"Answer {number}." for number in range(4)]
    assert prompts[2] == prompts[1], "the same question"
    assert "One" in prompts[3] and "Two" not in prompts[3] and "Answer 0." in prompts[3]
    assert "(taken back: Two)" in err and "(taken back: One)" in err and "nothing to take back" in err


def test_with_a_seed_every_attempt_differs_and_comes_again(chat, monkeypatch):
    seeds = []
    generate = ScriptedEngine.generate

    def note(self, tokens, params, **options):
        seeds.append(params.seed)
        return generate(self, tokens, params, **options)

    monkeypatch.setattr(ScriptedEngine, "generate", note)
    chat("One", "/regen", "/regen", arguments=["--seed", "7"])
    first = seeds[:]
    seeds.clear()
    chat("One", "/regen", "/regen", arguments=["--seed", "7"])
    assert seeds == first and len(set(first)) == 3


def test_edit_sends_what_the_editor_saved(chat, monkeypatch, tmp_path):
    script = tmp_path / "editor.py"
    script.write_text(EDITOR.format(change="t.replace('cat', 'dog\\nand more')"))
    monkeypatch.setenv("EDITOR", f"'{sys.executable}' '{script}'")
    out, _, prompts = chat("A cat", "/edit")
    assert out == ["Answer 0.", "Answer 1."]
    assert "<|message|>A dog\nand more<|end|>" in prompts[1] and "A cat" not in prompts[1]
    script.write_text(EDITOR.format(change="t"))
    _, err, prompts = chat("A cat", "/edit")
    assert len(prompts) == 1 and "(nothing was changed)" in err
    script.write_text("raise SystemExit(3)")
    _, err, prompts = chat("A cat", "/edit", "More")
    assert "exit code 3; nothing was changed" in err and "A cat" in prompts[1]


def test_copy_uses_the_program_that_is_there(chat, monkeypatch, tmp_path):
    program = tmp_path / "bin" / "wl-copy"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat > '{tmp_path}/clipboard'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    _, err, _ = chat("One", "/copy")
    assert (tmp_path / "clipboard").read_text() == "Answer 0."
    assert "9 characters, copied by wl-copy" in err
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    _, err, _ = chat("One", "/copy")
    assert "no clipboard program was found" in err


def test_save_and_load(chat, tmp_path):
    path = tmp_path / "kept.json"
    _, err, _ = chat("/effort high", "/system Speak Latin.", "One", f"/save {path}")
    assert f"(2 messages in {path})" in err and "Hm." not in path.read_text()
    assert [m["text"] for m in json.loads(path.read_text())["messages"]] == ["One", "Answer 0."]
    _, err, prompts = chat(f"/load {path}", "Two", f'/save "{path}"')
    assert "(2 messages, effort high)" in err and "(4 messages in" in err
    assert all(part in prompts[0] for part in ("Reasoning: high", "Speak Latin.", "One", "Answer 0.", "Two"))
    path.write_text("my diary")
    _, err, _ = chat("One", f"/save {path}", f"/load {path}")
    assert "holds something else; name a new file" in err and "not a saved conversation" in err
    assert path.read_text() == "my diary"


def test_read_goes_with_the_next_message_alone(chat, tmp_path):
    (tmp_path / "a.txt").write_text("Some notes.")
    (tmp_path / "b.txt").write_text("More notes.")
    (tmp_path / "raw").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.txt").write_text("word " * 9000)
    lines = [f"/read {tmp_path}/{name}" for name in ("a.txt", "b.txt", "raw", "long.txt")]
    _, err, prompts = chat(*lines, "/read", "Compare", "Again")
    assert "<|message|>a.txt:\n\nSome notes.\n\nb.txt:\n\nMore notes.\n\nCompare<|end|>" in prompts[0]
    assert prompts[1].count("Some notes.") == 1, "as a part of the conversation"
    assert "not UTF-8" in err and "long.txt has 9,001 tokens, and the context has room for" in err
    assert err.count("(a.txt: 3 tokens, for your next message)") == 2


def test_another_model(chat, tmp_path):
    _, err, prompts = chat("One", "/model other", "Two", "/model")
    assert "(other · effort medium · " in err and "One" in prompts[1]
    assert f"({tmp_path / 'models' / 'other'}; installed: other, tiny)" in err


def test_a_model_that_cannot_be_loaded_leaves_the_one_in_use(monkeypatch, capsys):
    def load(folder, options, listener):
        if folder.name == "other":
            raise ModelError("other: damaged")
        return ScriptedEngine(ANSWERS)

    monkeypatch.setattr(sys, "stdin", io.StringIO("One\n/model other\nTwo\n"))
    monkeypatch.setattr(localoss, "load", load)
    assert cli.main(["chat", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out == "Answer 0.\nAnswer 0.\n" and err.endswith("(tiny stays)\nother: damaged\n")


def test_stats_and_context_add_up(chat):
    _, err, _ = chat("One", "Two", "/stats", "/context")
    rows = [line.split() for line in err.split("turn  prompt")[1].splitlines()[1:4]]
    prompts = chat.engine.prompts
    assert [row[0] for row in rows] == ["1", "2", "all"]
    assert [int(row[1]) for row in rows[:2]] == [len(prompt) for prompt in prompts]
    assert int(rows[2][1]) == int(rows[0][2]) + int(rows[1][2])
    legend = [line.split() for line in err.splitlines() if line[:1] in "siuar·" and line[1:3] == "  "]
    total = sum(int(line[1].replace(",", "")) for line in legend)
    assert total == 8192 and {line[0] for line in legend} == set("sua·")


def test_the_context_fills(chat):
    """A warning once at 80 %, then an error with the counts and the choices."""
    answers = [f"{FINAL}{'word ' * 60}<|return|>"]
    lines = ["One", "Two", "Three", "Four", "/undo", "/context", "/clear", "Five"]
    _, err, prompts = chat(*lines, answers=answers, context_tokens=300)
    assert err.count("% full: ") == 1 and " of 300 tokens; /clear begins anew, /undo takes the last" in err
    assert "error: the answer broke off: " in err and "fill the context of 300: /clear begins anew" in err
    assert "Five" in prompts[-1] and "One" not in prompts[-1]
    _, err, prompts = chat("One", "word " * 200, answers=answers, context_tokens=300, code=1)
    assert len(prompts) == 1 and " tokens with your message, and the context holds 300: /clear" in err
    assert "/trim leaves the oldest messages out" in err and "localoss chat" not in err
    _, err, prompts = chat("One", "word " * 300, answers=answers, context_tokens=300, code=1)
    assert "your message alone has " in err and len(prompts) == 1


def test_trim_makes_room_in_the_chat(chat):
    answers = [f"{FINAL}{'word ' * 60}<|return|>"]
    _, err, prompts = chat("One", "Two", "/trim", "Three", "/trim", answers=answers, context_tokens=300)
    assert "(the model no longer sees the 2 oldest messages; " in err and len(prompts) == 3
    assert "One" not in prompts[2] and "Two" in prompts[2] and "broke off" not in err
    assert "(nothing was left out: " in chat("/trim")[1]


def test_trim_oldest_is_a_choice(chat):
    long = [f"{FINAL}{'word ' * 60}<|return|>"]
    lines = [f"Question {number}" for number in range(8)]
    _, err, prompts = chat(*lines, arguments=["--trim", "oldest"], answers=long, context_tokens=400)
    assert "(--trim oldest: the model no longer sees the" in err and len(prompts) == 8
    assert "Question 0" not in prompts[-1] and "Question 7" in prompts[-1]
    assert "the context holds" not in err
    _, err, prompts = chat("/set trim oldest", *lines, answers=long, context_tokens=400)
    assert len(prompts) == 8 and "(trim oldest)" in err


def test_options_are_the_commands(chat, tmp_path):
    (tmp_path / "system.txt").write_text("Speak Latin.\n")
    options = ["--system-file", str(tmp_path / "system.txt"), "--effort", "low", "--temperature", "0.2"]
    _, err, prompts = chat("Hi", "/set", arguments=[*options, "--top-k", "3", "--think-budget", "9"])
    assert "Speak Latin." in prompts[0] and "Reasoning: low" in prompts[0]
    assert "temperature 0.2\n" in err and "top_k 3\n" in err and "think_budget 9\n" in err


def test_files_are_parts_of_their_own(chat, tmp_path, monkeypatch):
    """The same file twice is one; /read - lists, /drop removes; /undo and /edit mean the question."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(f"Content of {name}.")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\xff\0")
    script = tmp_path / "editor.py"
    script.write_text(EDITOR.format(change="t.replace('these', 'those') if 'Content' not in t else 'wrong'"))
    monkeypatch.setenv("EDITOR", f"'{sys.executable}' '{script}'")
    lines = [f"/read {folder}/a.txt", f"/read {folder}", "/read -", "/drop b.txt", "Read these", "/edit"]
    _, err, prompts = chat(*lines, f"/read {folder}/a.txt", "/undo", "/drop a.txt")
    assert err.count("(a.txt: ") == 3 and "(1 left out, which are not text: picture.png)" in err
    assert "<|message|>a.txt:\n\nContent of a.txt.\n\nRead these<|end|>" in prompts[0]
    assert "<|message|>a.txt:\n\nContent of a.txt.\n\nRead those<|end|>" in prompts[1]
    assert prompts[1].count("Content of a.txt.") == 1 and "b.txt" not in prompts[1]
    assert "(a.txt is a part of the conversation already)" in err
    assert "(taken back: Read those, with a.txt)" in err and "no file waits for your next message" in err


def test_drop_names_what_there_is(chat, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    lines = ["/drop x", f"/read {tmp_path}/*.txt", "/drop", "/drop all", "/read -"]
    _, err, _ = chat(*lines)
    assert "which file? /drop NAME, of a.txt, b.txt, or all" in err
    assert "(a.txt, b.txt does not go" in err and err.endswith("/read FILE adds one)\n")


def test_experts_of_the_last_answer(chat):
    _, err, _ = chat("/experts", "One", "/experts")
    assert "there is no answer yet" in err and "2 layers down, 2 experts across" in err
