"""`localoss list`, `show`, `rm` and `verify` on a store of the test's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localoss import cli
from localoss.hub import registry
from localoss.plan.machine import Machine
from quant.format import disk

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    registry.known_models.cache_clear()
    yield tmp_path / "home"
    registry.known_models.cache_clear()


@pytest.fixture
def tiny(home, model):
    """A model of the store named tiny."""
    folder = shutil.copytree(model("short"), home / "models" / "tiny")
    manifest = json.loads((folder / "localoss.json").read_text())
    manifest["source"]["revision"] = "0" * 40  # as if it had been pulled
    (folder / "localoss.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def unfinished(home, model):
    folder = shutil.copytree(model("short"), home / "models" / "someone--half")
    (folder / "localoss.json").rename(folder / "localoss.json.part")
    (folder / "layer-002.safetensors").unlink()
    sources = home / "sources" / "someone--half"
    sources.mkdir(parents=True)
    (sources / "model-00001-of-00002.safetensors.part").write_bytes(bytes(5000))
    return folder


@pytest.fixture
def localoss_cli(capsys):
    """Run the command line in this process: arguments to (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def flip(path, at=-100):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_an_empty_store_says_what_to_pull(localoss_cli):
    code, out, err = localoss_cli("list")
    assert (code, err) == (0, "")
    assert out.startswith("nothing installed yet") and "gpt-oss-20b" in out and "13.76 GB" in out


def test_list(tiny, unfinished, localoss_cli):
    code, out, err = localoss_cli("list")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[1].startswith("someone/half") and "`localoss pull someone/half` goes on" in lines[1]
    assert lines[2].startswith("tiny") and "mxfp4, rest int8" in lines[2] and lines[2].endswith("fits")
    listed = json.loads(localoss_cli("list", "--json")[1])
    half, whole = listed["models"]
    assert (half["name"], half["state"]) == ("someone/half", "unfinished")
    assert half["total_bytes"] == size_of(unfinished) + 5000
    assert (whole["state"], whole["dtypes"]["experts"]) == ("complete", "mxfp4")
    assert whole["total_bytes"] == size_of(tiny) - (tiny / "localoss.json").stat().st_size
    assert listed["not_installed"][0]["name"] == "gpt-oss-20b"


def test_list_takes_damage_in_its_stride(tiny, localoss_cli):
    (tiny / "localoss.json").write_text("{")
    code, out, _ = localoss_cli("list")
    assert code == 0 and "damaged: " in out
    (tiny / "localoss.json").unlink()
    assert localoss_cli("list")[0] == 0


def test_show_an_installed_model(tiny, localoss_cli):
    code, out, _ = localoss_cli("show", "tiny")
    assert code == 0
    for words in (["layers", "3,"], ["experts", "10,"], ["made from", "short"], ["unembedding", "int8"]):
        assert any(all(word in line for word in words) for line in out.splitlines()), words
    shown = json.loads(localoss_cli("show", "tiny", "--json")[1])
    assert shown["architecture"]["experts"] == 10 and shown["source"]["name"] == "short"
    weights = size_of(tiny) - sum((tiny / name).stat().st_size for name in ("localoss.json", "config.json"))
    assert sum(shown["class_bytes"].values()) == weights - 4 * 4096  # four headers of one page


def test_show_takes_a_folder_and_a_known_model(model, localoss_cli):
    assert json.loads(localoss_cli("show", str(model("short")), "--json")[1])["state"] == "complete"
    code, out, _ = localoss_cli("show", "openai/gpt-oss-120b")
    assert code == 0 and "not installed" in out and "116.8 billion" in out and "65.25 GB" in out
    assert json.loads(localoss_cli("show", "gpt-oss-20b", "--json")[1])["parameters"] == 20_914_757_184


@pytest.mark.parametrize(
    ("machine_gb", "verdict", "words"),
    [
        (16, "fits", "fits in"),
        (8, "from disk", "runs slowly, from the disk"),
        (0.5, "too large", "too large in"),
    ],
)
def test_whether_it_fits_this_machine(machine_gb, verdict, words, localoss_cli, monkeypatch):
    machine = Machine(int(machine_gb * 1e9), 0)  # whatever else runs on it now
    monkeypatch.setattr("localoss.plan.machine.this_machine", lambda: machine)
    (line,) = [line for line in localoss_cli("list")[1].splitlines() if " gpt-oss-20b " in line]
    assert verdict in line
    assert words in localoss_cli("show", "gpt-oss-20b")[1]
    assert json.loads(localoss_cli("show", "gpt-oss-20b", "--json")[1])["memory"]["verdict"] == verdict


def test_a_mistyped_name_gets_the_nearest(tiny, localoss_cli):
    for command in ("show", "verify", "rm"):
        code, out, err = localoss_cli(command, "tinny")
        assert (code, out) == (2, "") and err.count("\n") == 1 and "did you mean tiny?" in err


# verify


def test_verify_a_whole_model(tiny, localoss_cli):
    code, out, _ = localoss_cli("verify", "tiny")
    assert code == 0 and "all 5 files are whole" in out
    report = json.loads(localoss_cli("verify", "tiny", "--json")[1])
    assert report["ok"] and {file["state"] for file in report["files"]} == {"ok"}


def test_verify_names_the_bad_files_and_the_remedy(tiny, localoss_cli):
    flip(tiny / "layer-001.safetensors")
    (tiny / "layer-002.safetensors").unlink()
    os.truncate(tiny / "config.json", 10)
    code, out, _ = localoss_cli("verify", "tiny")
    assert code == 1
    assert "layer-001.safetensors: damaged another sha256" in out
    assert "layer-002.safetensors: missing" in out
    assert "config.json: damaged 10 bytes instead of" in out
    assert "layer-000" not in out and "`localoss pull tiny --repair`" in out
    code, out, _ = localoss_cli("verify", "--json")
    (report,) = json.loads(out)
    bad = {file["name"]: file["state"] for file in report["files"] if file["state"] != "ok"}
    assert code == 1 and not report["ok"] and "pull tiny --repair" in report["remedy"]
    assert bad == {
        "layer-001.safetensors": "damaged", "layer-002.safetensors": "missing", "config.json": "damaged",
    }  # fmt: skip


def test_verify_a_folder_says_how_it_was_made(tiny, tmp_path, localoss_cli):
    folder = shutil.move(tiny, tmp_path / "elsewhere")
    flip(folder / "vocabulary.safetensors")
    code, out, _ = localoss_cli("verify", str(folder))
    assert code == 1 and f"from short: `localoss quantize SRC {folder} --force`" in out


def test_verify_without_models(localoss_cli):
    code, _, err = localoss_cli("verify")
    assert code == 2 and "localoss pull" in err and err.count("\n") == 1


def test_verify_a_model_without_a_readable_manifest(tiny, localoss_cli):
    (tiny / "localoss.json").write_text("{}")
    code, out, _ = localoss_cli("verify", "tiny")
    assert code == 1 and "damaged" in out


# rm


def test_rm_frees_what_it_says(tiny, unfinished, home, localoss_cli):
    size = size_of(tiny)
    assert json.loads(localoss_cli("rm", "tiny", "--yes", "--json")[1]) == {
        "removed": ["tiny"], "freed_bytes": size,
    }  # fmt: skip
    assert not tiny.exists() and unfinished.exists()
    code, out, _ = localoss_cli("rm", "someone/half", "--yes")
    assert code == 0 and "someone/half" in out
    assert not unfinished.exists() and not (home / "sources" / "someone--half").exists()


def test_rm_asks_first(tiny, localoss_cli, monkeypatch):
    code, _, err = localoss_cli("rm", "tiny")
    assert code == 2 and "--yes" in err and tiny.exists()
    terminal = pytest.importorskip("pexpect")
    for answer, is_left in (("n", True), ("y", False)):
        child = terminal.spawn(sys.executable, ["-m", "localoss", "rm", "tiny"], cwd=str(ROOT), timeout=30)
        child.expect(r"remove tiny and free .*\?")
        child.sendline(answer)
        child.expect(terminal.EOF)
        child.close()
        assert tiny.exists() == is_left and child.exitstatus == (130 if is_left else 0)


def test_rm_stays_in_the_store(tiny, tmp_path, model, home, localoss_cli):
    outside = shutil.copytree(model("short"), tmp_path / "outside")
    before = size_of(outside)
    for name in (str(outside), "..", "../../outside", str(home)):
        code, _, err = localoss_cli("rm", name, "--yes")
        assert code == 2 and err.count("\n") == 1, name
    (home / "models" / "link").symlink_to(outside, target_is_directory=True)
    (tiny / "inner").symlink_to(outside, target_is_directory=True)
    assert localoss_cli("rm", "link", "tiny", "--yes")[0] == 0
    assert size_of(outside) == before and not tiny.exists() and registry.installed_models() == []


def test_rm_leaves_alone_what_another_command_writes(tiny, localoss_cli):
    with disk.locked(tiny):
        code = "import sys; from localoss import cli; sys.exit(cli.main(['rm', 'tiny', '--yes']))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "another localoss command is writing there" in done.stderr
    assert localoss_cli("verify", "tiny")[0] == 0


def test_names_complete_in_the_shell(tiny, monkeypatch):
    environment = {
        **os.environ,
        "_LOCALOSS_COMPLETE": "complete_bash",
        "COMP_WORDS": "localoss chat ti",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from localoss.cli import app; app(prog_name='localoss')"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["tiny"]
