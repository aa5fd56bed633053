"""Texts from pipes and files: whatever the locale and the encoding, they arrive whole or are refused."""

import codecs
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.pdf import pdf
from support.scripted import HELLO

from localoss.chat import documents, transcript
from localoss.chat.conversation import Conversation
from localoss.chat.documents import decode_text
from localoss.chat.harmony import ChatSetup, File
from localoss.errors import UsageError

TESTS = Path(__file__).parent
TEXT = "Größe 你好 हिन्दी 👩‍👩‍👧"
LOCALES = [
    pytest.param({"LC_ALL": "C"}, marks=pytest.mark.soak),
    pytest.param({"LC_ALL": "C.UTF-8"}, marks=pytest.mark.soak),
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
    ],
)
def test_marks_tell_the_encoding(data):
    assert decode_text(data, "x") == TEXT


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF\x02\x01\x01" + bytes(range(256)),
        "Größe".encode("latin-1"),
        "plain".encode("utf-16-le"),
        codecs.BOM_UTF16_LE + b"odd",
        codecs.BOM_UTF16_LE + b"\x00\xd8x\x00",
        b"a\xed\xa0\x80b",
    ],
)
def test_what_is_no_text_is_refused(data):
    with pytest.raises(UsageError, match=r"^stdin: not UTF-8 text"):
        decode_text(data, "stdin")


def run(tmp_path, *arguments, stdin, variables=(), **script):
    (tmp_path / "models" / "tiny").mkdir(parents=True, exist_ok=True)
    (tmp_path / "models" / "tiny" / "localoss.json").touch()
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"log": str(tmp_path / "log")} | script))
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "LOCALOSS_HOME": str(tmp_path)}
    if variables or sys.platform == "win32":  # a locale is read when Python starts
        command = [sys.executable, str(TESTS / "support" / "scripted.py"), str(path), *arguments]
        done = subprocess.run(
            command, env=environment | dict(variables), input=stdin, capture_output=True, timeout=60
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        from support import forked

        code, out, err = forked.run([str(path), *arguments], environment, stdin)
    log = tmp_path / "log"
    prompts = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    return code, out, err.decode(), prompts


@pytest.mark.parametrize("variables", LOCALES)
@pytest.mark.parametrize(
    ("command", "data"),
    [
        ("run", codecs.BOM_UTF8 + TEXT.encode()),
        pytest.param("run", TEXT.encode("utf-16"), marks=pytest.mark.soak),
        pytest.param("chat", codecs.BOM_UTF8 + TEXT.encode(), marks=pytest.mark.soak),
        ("chat", TEXT.encode("utf-16")),
    ],
    ids=["run utf-8", "run utf-16", "chat utf-8", "chat utf-16"],
)
def test_pipes_are_utf8_in_every_locale(tmp_path, variables, command, data):
    """Whatever the locale says; the answer too."""
    answer = HELLO.replace("Hello!", TEXT)
    code, out, err, prompts = run(
        tmp_path, command, "tiny", stdin=data, variables=variables, answers=[answer]
    )
    assert (code, out) == (0, TEXT.encode() + os.linesep.encode()), err
    assert f"<|message|>{TEXT}<|end|>" in prompts[-1]


@pytest.mark.parametrize("variables", LOCALES)
@pytest.mark.parametrize("command", ["run", pytest.param("chat", marks=pytest.mark.soak)])
def test_what_is_no_text_is_refused_in_every_locale(tmp_path, variables, command):
    code, out, err, _ = run(tmp_path, command, "tiny", stdin=b"\x7fELF\xff\0", variables=variables)
    assert (code, out) == (2, b"") and "stdin: not UTF-8 text" in err and "Traceback" not in err


def test_a_piped_chat_in_utf16_has_its_lines(tmp_path):
    lines = f'One\r\n"""{TEXT}\r\nmore"""\r\nTwo\r\n'
    code, _, err, prompts = run(tmp_path, "chat", "tiny", stdin=lines.encode("utf-16"))
    assert code == 0 and len(prompts) == 3, err
    assert f"<|message|>{TEXT}\nmore<|end|>" in prompts[1] and "<|message|>Two<|end|>" in prompts[2]


def test_files_written_by_windows_editors(tmp_path):
    """A mark before UTF-8 is no part of it, in any file that a user writes."""
    from localoss.chat.tools import read_tool_file
    from quant.format.json_file import read_json

    (tmp_path / "t.json").write_bytes(codecs.BOM_UTF8 + b'[{"name": "f"}]')
    assert read_json(tmp_path / "t.json") == [{"name": "f"}]
    assert read_tool_file(tmp_path / "t.json").functions[0].name == "f"
    (tmp_path / "system.txt").write_bytes("Speak Latin.".encode("utf-16"))
    (tmp_path / "models.toml").write_bytes(codecs.BOM_UTF8 + b'[mine]\nrepository = "me/mine"\n')
    code, _, err, prompts = run(
        tmp_path, "run", "tiny", "--system-file", str(tmp_path / "system.txt"), stdin=b"Hi"
    )
    assert code == 0 and "Speak Latin." in prompts[0], err
    _, _, err, _ = run(tmp_path, "show", "mine", stdin=b"")
    assert "not TOML" not in err


def docx(*paragraphs):
    document = pytest.importorskip("docx").Document()
    for text in paragraphs:
        document.add_paragraph(text)
    row = document.add_table(1, 2).rows[0].cells
    row[0].text, row[1].text = "left", "right"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_pdf_and_word_files(tmp_path):
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(pdf("Notes in a page"))
    assert documents.read_document(tmp_path / "a.pdf") == "Notes in a page"
    (tmp_path / "a.docx").write_bytes(docx("Größe", "two"))
    assert documents.read_document(tmp_path / "a.docx") == "Größe\ntwo\nleft | right"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pdf", b"", "not a PDF file"),
        ("a.pdf", b"%PDF-1.4\nnothing", "not a PDF file"),
        ("b.pdf", pdf(""), "has no text"),
        ("a.docx", b"PK\x03\x04 broken", "not a Word file"),
        ("a.docx", b"", "not a Word file"),
        ("a.txt", b"\xff\xfe\x00", "nor the UTF-16"),
    ],
)
def test_damaged_documents_are_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        documents.read_document(tmp_path / name)
    assert says in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_a_word_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_MOST_UNPACKED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * 5000)
    with pytest.raises(UsageError, match="unpacks to more"):
        documents.read_document(tmp_path / "a.docx")


def test_folders_and_patterns(tmp_path, monkeypatch):
    for name in ("b.md", "a.md", "sub/c.md", ".git/config", "sub/.hidden", "x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [path.relative_to(tmp_path).as_posix() for path in documents.matching_files(str(tmp_path))]
    assert names == ["a.md", "b.md", "sub/c.md", "x.txt"]
    monkeypatch.chdir(tmp_path)
    assert [path.as_posix() for path in documents.matching_files("*.md")] == ["a.md", "b.md"]
    assert [path.name for path in documents.matching_files("**/*.md")] == ["a.md", "b.md", "c.md"]
    with pytest.raises(UsageError, match="no file there"):
        documents.matching_files("*.rst")


def test_files_are_parts_of_a_message_on_disk_too(tmp_path):
    conversation = Conversation(ChatSetup())
    conversation.ask("Compare", [File("a.txt", "Some notes."), File("b.txt", "More.")])
    (tmp_path / "kept.json").write_bytes(transcript.to_json(conversation, "tiny"))
    again, _ = transcript.read(tmp_path / "kept.json")
    assert again.messages == conversation.messages and again.tokens() == conversation.tokens()
    assert again.messages[0].content == "a.txt:\n\nSome notes.\n\nb.txt:\n\nMore.\n\nCompare"
