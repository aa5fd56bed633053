"""Containers: users without a home, nothing that can be written, quotas, few files, a umask of 000.

Namespaces of this process's own stand in for them, where the system gives them to its user.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from support.demo import put_into

ROOT = Path(__file__).parent.parent
KERNELS = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")}
LOCALOSS = [sys.executable, "-m", "localoss"]
# A user whom /etc/passwd doesn't know, who owns what the one who runs the tests owns.
STRANGER = ["unshare", "--user", "--map-user=54321"]
# $1: folders that get a file system of their own, which can be written. All else can't.
READ_ONLY = f"""
mount --make-rprivate / && mounts=$(cut -d' ' -f2 /proc/mounts) || exit 125
for where in $mounts; do
    case $where in /proc*|/sys*) ;; *) mount -o remount,bind,ro "$where" 2>/dev/null ;; esac
done
for where in $1; do
    mount -t tmpfs tmpfs "$where" || exit 125
done
for where in / /tmp /dev/shm {ROOT}; do
    case " $1 " in *" $where "*) ;; *) touch "$where/.localoss-$$" 2>/dev/null && exit 125 ;; esac
done
shift
exec {" ".join(STRANGER)} "$@"
"""
SITUATIONS = {
    "nothing can be written": ("", {}),
    "no home, a /dev/shm": ("/dev/shm", {}),
    "home is /": ("/dev/shm", {"HOME": "/"}),
    "home is no folder": ("/dev/shm", {"HOME": "/dev/null"}),
}


def localoss(*command, cwd, before=(), code=0, lines=3, **environment):
    """Run a command with these variables alone. It says few lines, with the code that is expected."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    } | environment
    done = subprocess.run(
        [*before, *command],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env=environment,
        input="Hi\n",
    )
    if done.returncode == 125 and before:
        pytest.skip("the system doesn't let its user make such a container")
    assert "Traceback" not in done.stderr and "a bug" not in done.stderr, done.stderr
    assert done.returncode == code and done.stderr.count("\n") <= lines, (done.returncode, done.stderr)
    return done


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    if not shutil.which("unshare") or subprocess.run([*STRANGER, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and the right to use it")


def read_only(writable):
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", writable]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_but_what_is_named_can_be_written(situation, tmp_path):
    writable, variables = SITUATIONS[situation]

    def run(*command, code=0):
        return localoss(
            *LOCALOSS, *command, cwd="/", before=read_only(writable), code=code, **KERNELS, **variables
        )  # fmt: skip

    assert "gpt-oss-20b" in run("list").stdout
    assert "no session yet" in run("sessions", "list").stdout
    if not writable:
        said = run("show", "demo", code=2).stderr
        assert "Read-only file system" in said and "LOCALOSS_HOME" in said
    else:
        assert "localoss-54321" in run("show", "demo").stderr


def test_a_home_can_be_read_though_not_written(tmp_path):
    """As in an image that brings its model: what is there is used."""
    home = tmp_path / "home"
    put_into(home / ".local" / "share" / "localoss")
    before = sorted(home.rglob("*"))
    shown = localoss(*LOCALOSS, "show", "demo", cwd="/", before=read_only(""), HOME=str(home), **KERNELS)
    assert "in all, on disk" in shown.stdout and sorted(home.rglob("*")) == before


def test_only_localoss_home_is_given(tmp_path):
    """Everything is kept there, compiled kernels too; nothing is said of it."""
    find = "from localoss.kernels import compiled\n"
    find += "from quant.format import kernel_cache; print(kernel_cache.kernel_root())"
    script = f"$1 -m localoss list && $1 -c '{find}' && find {tmp_path} -maxdepth 1"
    inside = read_only(str(tmp_path))
    home = {"LOCALOSS_HOME": str(tmp_path)}
    done = localoss("sh", "-c", script, "sh", sys.executable, cwd="/", before=inside, **home)
    kernels, *found = done.stdout.splitlines()[-3:]
    assert kernels == str(tmp_path / "kernels")
    assert sorted(found) == [str(tmp_path), str(tmp_path / "kernels")]
    assert "no home" not in done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_answer_with_nothing_to_keep_kernels_in(situation, tmp_path):
    """A minute of compiling, and an answer."""
    writable, variables = SITUATIONS[situation]
    home = tmp_path / "home"
    localoss(*LOCALOSS, "show", "demo", cwd=tmp_path, LOCALOSS_HOME=str(home), **KERNELS)
    asked = [*LOCALOSS, "run", str(home / "models" / "demo"), "Hi"]
    if writable:
        asked = [*LOCALOSS, "run", "demo", "Hi"]
    done = localoss(*asked, cwd="/", before=read_only(writable), **variables)
    assert "demo model" in done.stdout


def test_no_home_and_no_entry_in_passwd(tmp_path):
    """A folder for temporary files stands in, which nobody else may enter; one line says so."""
    (tmp_path / "t").mkdir()
    for command in (["list"], ["sessions", "list"]):
        localoss(*LOCALOSS, *command, cwd=tmp_path, before=STRANGER, TMPDIR=str(tmp_path / "t"))
    assert not (tmp_path / "~").exists(), "a folder by that name"
    assert stat.S_IMODE((tmp_path / "t" / "localoss-54321").stat().st_mode) == 0o700


def test_a_umask_of_000(tmp_path):
    """What is written can be changed by its user alone, and sessions be read by nobody else."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    chat = ["sh", "-c", 'umask 000; exec "$@"', "sh", *LOCALOSS, "chat", "demo", "--session", "x"]
    localoss(*chat, cwd=tmp_path, lines=5, HOME=str(home), **KERNELS)
    made = [path for path in home.rglob("*") if not path.is_symlink()]
    assert any("session" in path.name for path in made)
    open_to_others = [path for path in made if path.stat().st_mode & 0o022]
    assert not open_to_others
    for path in made:
        if path.is_file() and "sessions" in path.parts:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize(("mask", "kept"), [(0o000, 0o022), (0o022, 0o022), (0o002, 0o002), (0o077, 0o077)])
def test_which_umask_is_kept(mask, kept):
    from localoss import settings

    before = os.umask(mask)
    try:
        settings.close_to_others()
        assert os.umask(before) == kept
    finally:
        os.umask(before)


def test_sixty_four_open_files(tmp_path):
    few = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"]
    home = {"LOCALOSS_HOME": str(put_into(tmp_path / "home"))}
    answer = localoss(*few, *LOCALOSS, "run", "demo", "Hi", cwd=tmp_path, **home, **KERNELS)
    assert answer.stdout.strip()


@pytest.fixture
def group():
    """A control group of the processor in one of this process's, as folders; gone at the end."""
    roots = [Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")]
    made = []
    for root in roots:
        outer = root / f"localoss-test-{uuid.uuid4().hex[:8]}"
        with suppress(OSError):
            (outer / "inner").mkdir(parents=True)
            made = [outer, outer / "inner"]
            if (outer / "cpu.cfs_quota_us").exists() or (outer / "cpu.max").exists():
                break
            raise OSError
        for folder in (outer / "inner", outer):
            with suppress(OSError):
                folder.rmdir()
        made = []
    if not made:
        pytest.skip("needs the right to make control groups")
    yield made
    for folder in reversed(made):
        folder.rmdir()


@pytest.mark.parametrize("level", [0, 1], ids=["outer", "inner"])
def test_a_quota_at_any_level(group, level, tmp_path):
    """150 % of a processor is one thread, wherever it is said."""
    version_1 = group[level] / "cpu.cfs_quota_us"
    if version_1.exists():
        (group[level] / "cpu.cfs_period_us").write_text("100000")
        version_1.write_text("150000")
    else:
        (group[level] / "cpu.max").write_text("150000 100000")
    script = "from localoss.plan.machine import *; print([cpu_quota(), usual_threads()])"
    enter = ["sh", "-c", f'echo $$ > {group[1] / "cgroup.procs"} && exec "$@"', "sh"]
    done = localoss(*enter, sys.executable, "-c", script, cwd=tmp_path)
    assert json.loads(done.stdout) == [1, 1]
