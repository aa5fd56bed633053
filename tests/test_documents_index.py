"""The index of documents: what is found, what changed, what can't be read, and being killed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from localoss import cli
from localoss.errors import Cancelled, LocalossError, UsageError
from localoss.tools import documents_index
from localoss.tools.documents_index import DocumentsIndex

pytest.importorskip("lxml")
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("lm", "rn", "st", "x")]


@pytest.fixture
def index(tmp_path):
    index = DocumentsIndex(tmp_path / "index.sqlite3")
    yield index
    index.close()


@pytest.fixture
def papers(tmp_path):
    folder = tmp_path / "papers"
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / "moon.md").write_text("# On the Moon\n\nThe Moon is made of basalt.\n")
    (folder / "sub" / "sun.html").write_text("<title>The Sun</title><p>The Sun is <b>very</b> hot: naïve.")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "data.bin").write_bytes(b"basalt")
    (folder / ".hidden.md").write_text("basalt")
    (folder / "sub" / ".git" / "x.txt").write_text("basalt")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    return folder


def names(hits):
    return [hit.path.name for hit in hits]


def test_what_is_found(index, papers):
    done = index.add(papers)
    assert (done.read, done.removed, done.kept) == (4, 0, 0)
    assert sorted(path.rpartition(os.sep)[2] for path, _ in done.problems) == ["broken.pdf", "latin.txt"]
    assert names(index.search("basalt", 10)) == ["moon.md"]
    assert index.search("basalt", 10)[0].title == "On the Moon (moon.md)"
    assert names(index.search("NAIVE sun?", 10)) == ["sun.html"]  # without accents and case
    assert names(index.search('moon AND (sun OR "x', 10)) == ["moon.md", "sun.html"]  # operators are words
    assert index.search("…", 10) == [] and index.search("basalt", 10, [papers / "sub"]) == []
    assert index.text_of(papers / "moon.md")[1].startswith("# On the Moon")
    assert index.text_of(papers / ".hidden.md") is None
    index.check()


def test_only_what_changed_is_read(index, papers):
    index.add(papers)
    assert index.add(papers).read == 0
    (papers / "moon.md").write_text("Cheese, after all.\n")
    (papers / "sub" / "sun.html").unlink()
    (papers / "latin.txt").write_text("café")
    done = index.add(papers)
    assert (done.read, done.removed, done.kept) == (2, 1, 1)
    assert index.search("basalt", 10) == [] and names(index.search("cheese cafe", 10)) == [
        "latin.txt",
        "moon.md",
    ]
    index.check()


def test_links_lead_nowhere(index, papers, tmp_path):
    (tmp_path / "outside.txt").write_text("secret")
    try:
        (papers / "link.txt").symlink_to(tmp_path / "outside.txt")
        (papers / "folder").symlink_to(tmp_path)
    except OSError:
        pytest.skip("no symbolic links here")
    index.add(papers)
    assert index.search("secret", 10) == []


def test_odd_names_and_kinds_of_files_keep_nothing_else_from_being_read(index, papers):
    (papers / "sub").rename(papers / "sub_")  # its name begins as another folder's
    (papers / "sub").mkdir()
    (papers / "sub" / "moon.txt").write_text("basalt")
    odd = os.fsencode(papers) + b"/odd\xff.txt"
    try:
        with open(odd, "w") as file:
            file.write("basalt")
        os.mkfifo(papers / "pipe.txt")  # to read it would wait for ever
    except (OSError, AttributeError, UnicodeError):
        pytest.skip("no such files here")
    done = index.add(papers)
    assert [said for _, said in done.problems if "isn't UTF-8; rename it" in said]
    assert sorted(names(index.search("basalt", 10))) == ["moon.md", "moon.txt"]
    assert names(index.search("basalt", 10, [papers / "sub"])) == ["moon.txt"]
    both = [papers / "sub_", papers / "sub"]
    assert names(index.search("sun basalt", 10, both)) == ["sun.html", "moon.txt"]
    index.check()


def test_folders_within_folders(index, papers):
    index.add(papers)
    index.add(papers / "sub")
    assert index.remove(papers / "sub") == 0 and names(index.search("hot", 5)) == ["sun.html"]
    assert index.remove(papers) == 4 and index.search("hot basalt", 5) == []
    with pytest.raises(UsageError, match="isn't among the documents"):
        index.remove(papers)
    index.check()


def test_what_is_no_folder_and_no_index(index, tmp_path):
    with pytest.raises(UsageError, match=r"No such file|cannot find"):
        index.add(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        index.add(tmp_path / "file")
    (tmp_path / "bad.sqlite3").write_bytes(b"no database at all" * 1000)
    with pytest.raises(LocalossError, match="no index of documents"):
        DocumentsIndex(tmp_path / "bad.sqlite3")


def test_the_command_line(papers, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    assert cli.main(["docs", "add", str(papers)]) == 0
    said = capsys.readouterr()
    assert "4 files read, 0 unchanged, 0 gone" in said.out and said.err.count("not readable: ") == 2
    assert cli.main(["docs", "search", "basalt"]) == 0 and "moon.md" in capsys.readouterr().out
    assert cli.main(["docs", "list"]) == 0 and "2 files" in capsys.readouterr().out
    assert cli.main(["docs", "update"]) == 0 and "0 files read" in capsys.readouterr().out
    assert cli.main(["docs", "rm", str(papers)]) == 0 and "4 files forgotten" in capsys.readouterr().out
    assert cli.main(["docs", "add", str(tmp_path / "none")]) == 2


def generate(folder, count, seed):
    """`count` text files of some hundred words."""
    rng = random.Random(seed)
    for number in range(count):
        below = folder / f"{number // 500:02d}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number}.txt").write_text(" ".join(rng.choices(WORDS, k=300)) + f" unique{number}\n")


CHILD = (
    "import sys; from pathlib import Path\n"
    "from localoss.tools import documents_index\n"
    "documents_index._BATCH_FILES = 20\n"
    "print('begun', flush=True)\n"
    "documents_index.DocumentsIndex(Path(sys.argv[1])).add(Path(sys.argv[2]))\n"
)


def kill_and_go_on(tmp_path, files, kills, seed):
    """Index, killed `kills` times; what is there is consistent each time, and complete at the end."""
    folder, path = tmp_path / "many", tmp_path / "killed.sqlite3"
    generate(folder, files, seed)
    rng, counts = random.Random(seed), []
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(folder)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        process.communicate()
        index = DocumentsIndex(path)
        index.check()
        counts.append(index.count(folder))
        index.close()
    index = DocumentsIndex(path)
    index.add(folder)
    index.check()
    assert index.count(folder) == files and counts == sorted(counts)
    assert names(index.search(f"unique{files - 1}", 3)) == [f"{files - 1}.txt"]
    index.close()
    return counts


def test_killed_at_random_it_is_consistent(tmp_path):
    kill_and_go_on(tmp_path, 600, 3, seed=1)


def test_cancelled_it_keeps_what_was_read(index, tmp_path, monkeypatch):
    monkeypatch.setattr(documents_index, "_BATCH_FILES", 10)
    generate(tmp_path / "many", 100, seed=2)
    asked = iter(range(1000))
    with pytest.raises(Cancelled):
        index.add(tmp_path / "many", cancelled=lambda: next(asked) >= 55)
    assert index.count(tmp_path / "many") == 50
    index.check()


@pytest.mark.soak
def test_ten_thousand_files(index, tmp_path):
    generate(tmp_path / "many", 10_000, seed=3)
    began = time.perf_counter()
    index.add(tmp_path / "many")
    took_s = time.perf_counter() - began
    queries = [" ".join(random.Random(seed).choices(WORDS, k=4)) for seed in range(50)] + ["unique77", "balm"]
    times_s = []
    for query in queries:
        began = time.perf_counter()
        assert index.search(query, 10)
        times_s.append(time.perf_counter() - began)
    times_s.sort()
    began = time.perf_counter()
    assert index.add(tmp_path / "many").read == 0
    again_s = time.perf_counter() - began
    print(f"\n10,000 files in {took_s:.1f} s, again in {again_s:.2f} s; a query {times_s[26] * 1e3:.1f} ms, "
          f"the slowest {times_s[-1] * 1e3:.1f} ms")  # fmt: skip


@pytest.mark.soak
def test_killed_fifty_times(tmp_path):
    counts = kill_and_go_on(tmp_path, 4000, 50, seed=4)
    print(f"\nfiles after each kill: {counts}")
