"""--folder and --write: what is listed, read, found and patched, and nothing outside."""

import json
import os

import pytest

from localoss.chat.agent import Agent, Stop
from localoss.chat.harmony import Message
from localoss.errors import LocalossError, UsageError
from localoss.tools.approval import REFUSED, Approvals
from localoss.tools.files import Files
from localoss.tools.patch import PatchError, changes_of
from localoss.tools.toolset import Toolset


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "src" / "app.py").write_text("def greet():\n    print('Hi')\n\n\ngreet()\n")
    (folder / "notes.txt").write_text("one\ntwo\nthree\n")
    (folder / "picture.bin").write_bytes(b"\0\1")
    (folder / ".git" / "config").write_text("hidden")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def call(name, **arguments):
    return Message("assistant", json.dumps(arguments), "commentary", f"functions.{name}", "json")


def agent(folder, said="yes", writes=True):
    asked = []

    def ask(question):
        asked.append(question)
        return said

    made = Agent(Toolset([Files(folder, writes)], Approvals(ask, None)))
    made.asked = asked
    return made


def text(made, name, **arguments):
    return made.carry_out(call(name, **arguments)).result.text


def patch(*lines):
    return "\n".join(["*** Begin Patch", *lines, "*** End Patch"])


def test_reading(folder):
    made = agent(folder)
    assert text(made, "list_files") == "notes.txt  14 bytes\npicture.bin  2 bytes\nsrc/app.py  39 bytes"
    assert text(made, "list_files", path="src") == "src/app.py  39 bytes"
    shown = text(made, "read_file", path="notes.txt", first_line=2, lines=1)
    assert shown == "notes.txt, lines 2 to 2 of 4\n2: two"
    assert text(made, "grep", text="PRINT") == "src/app.py:2: print('Hi')"
    assert text(made, "grep", text="t", glob="*.txt") == "notes.txt:2: two\nnotes.txt:3: three"
    assert "no text file" in text(made, "read_file", path="picture.bin")
    assert "No such file" in text(made, "read_file", path="none")
    assert not made.asked


OUTSIDE = [
    "../secret.txt",
    "/etc/passwd",
    "src/../../secret.txt",
    "link.txt",
    "out/secret.txt",
    "a\0b",
    "~/x",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside(folder, path):
    try:
        (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
        (folder / "out").symlink_to(folder.parent)
    except OSError:
        pytest.skip("no symbolic links here")
    made = agent(folder)
    for name, arguments in [("read_file", {"path": path}), ("grep", {"text": "s", "path": path})]:
        said = text(made, name, **arguments)
        assert "outside the folder" in said or "no path" in said or "o such file" in said
        assert "secret\n" not in said and "root:" not in said
    written = patch(f"*** Add File: {path}", "+evil")
    text(made, "apply_patch", patch=written)
    assert (folder.parent / "secret.txt").read_text() == "secret"
    assert not any("evil" in p.read_text() for p in folder.parent.glob("*.txt"))
    assert "secret" not in text(made, "grep", text="secret") and "out" not in text(made, "list_files")


def test_a_patch_is_shown_as_a_diff_and_asked_for(folder):
    change = patch(
        "*** Update File: src/app.py",
        "@@ def greet():",
        "-    print('Hi')",
        "+    print('Hello')",
        "*** Add File: new/hello.txt",
        "+Hello",
        "*** Delete File: notes.txt",
    )
    refused = agent(folder, "no")
    assert text(refused, "apply_patch", patch=change) == REFUSED and (folder / "notes.txt").exists()
    diff = refused.asked[0].detail
    assert "-    print('Hi')\n+    print('Hello')" in diff and "+++ b/new/hello.txt" in diff
    made = agent(folder)
    said = text(made, "apply_patch", patch=change)
    assert said == "updated src/app.py\nadded new/hello.txt\ndeleted notes.txt"
    assert (folder / "src" / "app.py").read_text() == "def greet():\n    print('Hello')\n\n\ngreet()\n"
    assert (folder / "new" / "hello.txt").read_text() == "Hello\n" and not (folder / "notes.txt").exists()
    assert not list(folder.rglob("*localoss-new*"))


def test_a_patch_that_doesnt_fit_changes_nothing(folder):
    made = agent(folder)
    change = patch("*** Delete File: notes.txt", "*** Update File: src/app.py", "@@", "-nowhere", "+x")
    assert "these lines aren't there" in text(made, "apply_patch", patch=change)
    assert (folder / "notes.txt").exists() and not made.asked
    assert "outside the folder" in text(made, "apply_patch", patch=patch("*** Add File: ../x", "+y"))


def test_a_file_that_changed_at_the_question_isnt_written(folder):
    def ask(question):
        (folder / "notes.txt").write_text("changed\n")
        return "yes"

    made = Agent(Toolset([Files(folder, True)], Approvals(ask, None)))
    change = patch("*** Update File: notes.txt", "@@", "-two", "+2")
    assert "was changed meanwhile; nothing was written" in text(made, "apply_patch", patch=change)
    assert (folder / "notes.txt").read_text() == "changed\n"


def test_without_write_there_is_no_patch(folder):
    tool = Files(folder, writes=False)
    assert "apply_patch" not in [function.name for function in tool.functions]
    with pytest.raises(LocalossError, match="wasn't looked at"):
        Files(folder, True).run(call("apply_patch", patch=patch("*** Delete File: notes.txt")), Stop())
    with pytest.raises(UsageError, match=r"No such file|cannot find"):
        Files(folder / "none", False)
    with pytest.raises(UsageError, match="not a folder"):
        Files(folder / "notes.txt", False)


FILE = "a\nb\n  c  \nd\nb\n"


@pytest.mark.parametrize(
    ("lines", "after"),
    [
        (["@@", "-b", "+B"], "a\nB\n  c  \nd\nb\n"),
        (["@@ d", "-b", "+B"], "a\nb\n  c  \nd\nB\n"),
        (["@@", "-b", "+B", "*** End of File"], "a\nb\n  c  \nd\nB\n"),
        (["@@", " b", "-c", "+C", " d"], "a\nb\nC\nd\nb\n"),
        (["@@", " c", "+new"], "a\nb\n  c  \nnew\nd\nb\n"),  # the context keeps its blanks
        (["@@ a", "+after a"], "a\nafter a\nb\n  c  \nd\nb\n"),
        (["@@", "+last"], "a\nb\n  c  \nd\nb\nlast\n"),
        (["-a", "+A"], "A\nb\n  c  \nd\nb\n"),
        (["@@", "-a", "+A", "@@", "-d", "+D"], "A\nb\n  c  \nD\nb\n"),
        (["*** Move to: g"], None),
    ],
)
def test_hunks(lines, after):
    changes = changes_of(patch("*** Update File: f", *lines), {"f": FILE}.get)
    found = {change.path: change.after for change in changes}
    assert found == ({"f": after} if after is not None else {"f": None, "g": FILE})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\r\nb\r\n", "a\r\nB\r\n"),
        ("a\nb", "a\nB"),
        ("b", "B"),
        ("a\n\nb\n", "a\n\nB\n"),
        ("a\r\nb\nc\n", "a\r\nB\nc\n"),  # mixed ones, too
        ("a\r\nc\r\nb", "a\r\nc\r\nB"),
        ("b\r\na", "B\r\na"),
        ("\ufeffb\n", "\ufeffB\n"),
    ],
)
def test_line_ends_stay(before, after):
    change = patch("*** Update File: f", "@@", "-b", "+B")
    assert changes_of(change, {"f": before}.get)[0].after == after


@pytest.mark.parametrize(
    ("before", "lines", "after"),
    [
        ("a\r\nb", ["@@", " b", "+c", "*** End of File"], "a\r\nb\r\nc"),
        ("a\nb\nc", ["@@", "-c"], "a\nb"),
        ("a\nb\n", ["@@", "-a", "-b"], ""),
        ("", ["@@", "+a"], "a\n"),
        ("a\nb\n", ["@@ -1,2 +1,2 @@", "-a", "+A"], "A\nb\n"),
        ("a\nb\n", ["@@", "-a", "+A", ""], "A\nb\n"),  # an empty line before what follows
        ("a\n\nb\n", ["@@", "-a", "+A", ""], "A\n\nb\n"),
        ("say(“a – b”)\n", ["@@", '-say("a - b")', "+say()"], "say()\n"),
        ("\ta\nb\n", ["@@", "     a", "-b", "+B"], "\ta\nB\n"),
    ],
)
def test_what_models_write_beside_the_grammar(before, lines, after):
    (change,) = changes_of(patch("*** Update File: f", *lines), {"f": before}.get)
    assert change.after == after


@pytest.mark.parametrize(
    "text",
    [
        "```\n{}\n```",
        "```diff\n{}\n```\n",
        "\n  {}  \n\n",
    ],
)
def test_what_stands_around_a_patch(text):
    whole = text.format(patch("  *** Update File:  f ", "@@", "-b", "+B", "*** Delete File: g"))
    for ends in ("\n", "\r\n"):
        changes = changes_of(whole.replace("\n", ends), {"f": "b\n", "g": "x"}.get)
        assert [change.after for change in changes] == ["B\n", None]


def test_one_file_by_two_paths_and_links(folder, tmp_path):
    try:
        (folder / "link.txt").symlink_to(folder / "notes.txt")
        (folder / "out").symlink_to(tmp_path)
    except OSError:
        pytest.skip("no symbolic links here")
    both = patch(
        *("*** Update File: notes.txt", "@@", "-one", "+1", "*** Update File: ./src/../notes.txt", "@@"),
        *("-two", "+2", "*** Update File: link.txt", "@@", "-three", "+3"),
    )
    made = agent(folder)
    assert text(made, "apply_patch", patch=both) == "updated notes.txt"
    assert (folder / "notes.txt").read_text() == "1\n2\n3\n" and (folder / "link.txt").is_symlink()
    for change in (
        ["*** Delete File: out/secret.txt"],
        ["*** Add File: out/new.txt", "+x"],
        ["*** Update File: notes.txt", "*** Move to: out/notes.txt"],
        ["*** Update File: out/secret.txt", "@@", "-secret", "+x"],
    ):
        assert "outside the folder" in text(made, "apply_patch", patch=patch(*change))
    assert (tmp_path / "secret.txt").read_text() == "secret" and not (tmp_path / "new.txt").exists()


def test_a_move_keeps_permissions_and_the_file_until_it_stands(folder):
    (folder / "notes.txt").chmod(0o700)
    moved = patch("*** Update File: notes.txt", "*** Move to: {}", "@@", "-two", "+2")
    (folder / "file").write_text("")
    assert "can't be written" in text(agent(folder), "apply_patch", patch=moved.format("file/below"))
    assert (folder / "notes.txt").read_text() == "one\ntwo\nthree\n"
    assert "added new/place.txt" in text(agent(folder), "apply_patch", patch=moved.format("new/place.txt"))
    assert (folder / "new" / "place.txt").read_text() == "one\n2\nthree\n"
    assert not (folder / "notes.txt").exists()
    if os.name == "posix":
        assert (folder / "new" / "place.txt").stat().st_mode & 0o777 == 0o700


def test_no_change_is_unseen_in_the_question(folder):
    (folder / "odd.txt").write_bytes("\ufffd a\r\nb\n".encode())
    for change in (
        ["*** Update File: notes.txt", "@@", "-two", "+two\u202e"],
        ["*** Update File: odd.txt", "@@", "-b", "+b\x0c"],
        ["*** Add File: empty.txt", "+"],
    ):
        made = agent(folder, "no")
        text(made, "apply_patch", patch=patch(*change))
        diff = [line for line in made.asked[0].detail.split("\n") if not line.startswith(("+++", "---"))]
        assert [line for line in diff if line.startswith("+")]
        assert "\u202e" not in made.asked[0].detail and "\x0c" not in made.asked[0].detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with the line"),
        ("*** Begin Patch\n*** Add File: x\n+y", "ends with the line"),
        (patch(), "changes no file"),
        (patch("+x"), "a file's header must come first"),
        (patch("*** Add File: x", "y"), r"begins with \+"),
        (patch("*** Add File: f", "+y"), "is there already"),
        (patch("*** Delete File: none"), "no such file"),
        (patch("*** Delete File: f", "-a"), "nothing follows"),
        (patch("*** Update File: f"), "needs hunks"),
        (patch("*** Update File: f", "@@", "*a"), "neither a blank"),
        (patch("*** Update File: f", "@@ nowhere", "-a"), "isn't there"),
        (patch("*** Update File: f", "*** Move to: g"), "nothing is moved onto it"),
        (patch("*** Add File: "), "names no file"),
    ],
)
def test_patches_that_are_none(text, says):
    with pytest.raises(PatchError, match=says):
        changes_of(text, {"f": FILE, "g": "x"}.get)


def test_permissions_stay(folder):
    if os.name != "posix":
        pytest.skip("no permissions here")
    (folder / "notes.txt").chmod(0o755)
    text(agent(folder), "apply_patch", patch=patch("*** Update File: notes.txt", "@@", "-two", "+2"))
    assert (folder / "notes.txt").stat().st_mode & 0o777 == 0o755
