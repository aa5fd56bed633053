"""What the README and docs/ show is there: each link's target, each command with its options."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from localoss.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
MOST_README_LINES = 150
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TYPED = re.compile(r"(?:\$ )?(?:.*\| )?(localoss .*)")
INLINE = re.compile(r"`(localoss [^`]+)`")


def heading_anchor(heading):
    """The anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors_of(page):
    return {
        heading_anchor(line.lstrip("#")) for line in page.read_text().splitlines() if line.startswith("#")
    }


def broken_links(page, text):
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


def commands_in(text):
    """Each command of localoss that `text` shows, as words, without comments and pipes."""
    shown = INLINE.findall(FENCE.sub("", text))
    for _, block in FENCE.findall(text):
        shown += [found[1] for line in block.splitlines() if (found := TYPED.match(line))]
    commands = []
    for line in shown:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a sentence with an apostrophe within a block of output
            continue
        ends = [at for at, word in enumerate(words) if word in ("|", "&&", ">", ";", "…")]
        words = words[: min(ends, default=len(words))]
        if len(words) > 1 and words[0] == "localoss":
            commands.append(words)
    return commands


def unknown_words(words):
    """What of a command isn't there: its name, or options that it doesn't take."""
    command = typer.main.get_command(app)
    rest = words[1:]
    while rest and hasattr(command, "commands"):
        if rest[0].startswith("-"):
            break
        if rest[0] not in command.commands:
            return [] if rest[0].isupper() else [rest[0]]
        command, rest = command.commands[rest[0]], rest[1:]
    taken = {"--help", "-h", "--version"}
    for parameter in command.params:
        taken.update([*parameter.opts, *parameter.secondary_opts])
    return [word for word in rest if re.match(r"--?[a-z]", word) and word.split("=")[0] not in taken]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert not broken_links(page, page.read_text(encoding="utf-8"))


# Other pages are history: decisions.md names what was tried and left.
@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "decisions.md"], ids=lambda page: page.name)
def test_commands_are_there(page):
    wrong = {
        " ".join(words): unknown
        for words in commands_in(page.read_text(encoding="utf-8"))
        if (unknown := unknown_words(words))
    }
    assert not wrong


def test_the_site_has_each_page():
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_container_runs_a_command_that_is_there():
    """Its instructions are those of a Containerfile, and what it starts takes the words that it is given."""
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [tuple(line.split(maxsplit=1)) for line in lines]
    known = {"FROM", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} <= known and instructions[0][0] == "FROM"
    given = dict(instructions)  # the last of each
    assert given["USER"] == "localoss"
    words = json.loads(given["ENTRYPOINT"]) + json.loads(given["CMD"])
    assert words[0] == "localoss" and not unknown_words(words)
    assert f"[default: {given['EXPOSE']}" in CliRunner().invoke(app, ["serve", "--help"]).output


@pytest.mark.soak
def test_the_container_builds():
    """Where there are buildah and the base image, from a registry or from before."""
    buildah = shutil.which("buildah")
    if not buildah:
        pytest.skip("needs buildah")
    base = re.search(r"^FROM (\S+)$", (ROOT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    if subprocess.run([buildah, "pull", "--policy", "missing", base], capture_output=True).returncode:
        pytest.skip(f"{base} can't be had here")
    subprocess.run([buildah, "build", "--isolation", "chroot", "-t", "localoss-test", str(ROOT)], check=True)
    made = subprocess.check_output([buildah, "from", "localoss-test"], text=True).strip()
    try:
        run = [buildah, "run", "--isolation", "chroot", made, "--"]
        answer = subprocess.check_output([*run, "localoss", "run", "demo", "What is 37 + 48?"], text=True)
        assert answer.strip() == "37 + 48 = 85"
    finally:
        subprocess.run([buildah, "rm", made], check=True)


def test_what_is_wrong_is_found():
    assert broken_links(ROOT / "README.md", "[a](docs/no.md) [b](LICENSE) [c](docs/gpu.md#no)") == [
        "docs/no.md",
        "docs/gpu.md#no",
    ]
    text = "`localoss run m --no-such 1`\n```\n$ localoss flies  # there\n```\n"
    assert [unknown_words(words) for words in commands_in(text)] == [["--no-such"], ["flies"]]


def test_commands_are_found_at_all():
    assert len(commands_in((ROOT / "README.md").read_text(encoding="utf-8"))) > 15


def test_the_readme_is_short_and_links_each_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_README_LINES
    missing = [page.name for page in PAGES if page.parent.name == "docs" and f"docs/{page.name}" not in text]
    assert not missing
