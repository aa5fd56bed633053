"""Ctrl-C while a command starts: it ends, and nobody sees a traceback.

It comes at the n-th import after the program's own begin, so at the same place however fast the machine is.
What comes before that is Python's own start, which no program can change.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.demo import put_into

ROOT = Path(__file__).parent.parent
AT_AN_IMPORT = """
import os, signal, sys
from localoss.__main__ import main
seen, wanted = 0, int(sys.argv.pop(1))
class Counting:
    def find_spec(self, name, path=None, target=None):
        global seen
        seen += 1
        if seen == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Counting())
code = main()
if not wanted:
    print(f"imports {seen}", file=sys.stderr)
sys.exit(code)
"""
COMMANDS = """--version; --help; list; show demo; verify demo; rm none; run demo Hi; chat demo; ps; stop
serve none --port 0; web none --port 0; batch none.jsonl; plan gpt-oss-20b; launch none; pull none/none
quantize none; merge none none; export demo out.gguf; bench demo; eval none; config; gpu; sessions list
docs list; tools list; mcp list"""
COMMANDS = [command.split() for command in COMMANDS.replace("\n", ";").split(";")]

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGINT to send to one process"
)


# One process goes through a command, and at each of the moments a copy of it is interrupted instead.
AT_MANY_IMPORTS = """
import json, os, signal, sys, tempfile
from localoss.__main__ import main
every, ends, seen, is_copy = int(sys.argv.pop(1)), [], 0, False
class Copying:
    def find_spec(self, name, path=None, target=None):
        global seen, is_copy
        seen += 1
        if is_copy or seen > 2 and seen % every:
            return
        with tempfile.TemporaryFile() as said:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                is_copy = True
                os.dup2(said.fileno(), 2)
                os.kill(os.getpid(), signal.SIGINT)
                return
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said.seek(0)
            ends.append((seen, code, said.read().decode()))
sys.meta_path.insert(0, Copying())
code = main()
if not is_copy:
    print(json.dumps(ends))
sys.exit(code)
"""


@pytest.fixture
def command(tmp_path):
    put_into(tmp_path / "home")

    def run(arguments, at, program=AT_AN_IMPORT):
        return subprocess.run(
            [sys.executable, "-c", program, str(at), *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LOCALOSS_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        )

    return run


def check(code, said, arguments, at):
    what = f"{arguments} at import {at}: {code}\n{said}"
    assert code in (-2, 0, 1, 2, 130), what
    for word in ("Traceback", "KeyboardInterrupt", "Exception ignored", "a bug"):
        assert word not in said, what


def imports_of(command, arguments):
    done = command(arguments, 0)
    return int(done.stderr.split("imports ")[-1])


@pytest.mark.parametrize(
    ("arguments", "every"),
    [(["list"], 30), (["run", "demo", "--max-tokens", "1", "Hi"], 75)],
    ids=["shows something", "loads the engine"],
)
def test_at_many_imports(arguments, every, command):
    """The first two, and one now and then; the soak has processes of their own."""
    done = command(arguments, every, AT_MANY_IMPORTS)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert len(ends) >= 12
    for at, code, said in ends:
        check(code, said, arguments, at)
    assert sum(code in (-2, 130) for _, code, _ in ends) >= 10  # some are heard of by nobody


@pytest.mark.soak
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_at_twenty_moments(arguments, command):
    count = imports_of(command, arguments)
    for at in [1, *random.Random(7).sample(range(2, count), 19)]:
        done = command(arguments, at)
        check(done.returncode, done.stderr, arguments, at)


def serving(tmp_path, arguments, environment, *program):
    """`localoss serve` or `web`, which has a model to load first."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"LOCALOSS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "BROWSER": "true"}
        | environment,
    )


def interrupt(process, codes=(130,)):
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode in codes, said
    for word in ("Traceback", "KeyboardInterrupt", "Exception ignored", "a bug", "error"):
        assert word not in said, said


def test_while_a_model_loads(tmp_path):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "script.json").write_text('{"load_s": 100}')
    script = str(ROOT / "tests" / "support" / "scripted.py"), str(tmp_path / "script.json")
    process = serving(tmp_path, ["serve", "tiny"], {}, *script)
    assert process.stderr.readline().startswith("compiling"), "it loads"
    interrupt(process)


@pytest.mark.soak
@pytest.mark.parametrize("command", ["serve", "web"])
@pytest.mark.parametrize("compiles", [False, True])
def test_at_any_moment_while_a_model_loads(tmp_path, command, compiles):
    """From what is compiled and what is not; as late as after the server has begun."""
    home = os.environ | {"LOCALOSS_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "localoss", "show", "demo"], env=home, check=True)
    for moment in range(25):
        cache = tmp_path / f"cache-{moment}"
        cache.mkdir(mode=0o700)
        environment = {"XDG_CACHE_HOME": str(cache)} if compiles else {}
        process = serving(tmp_path, [command, "demo"], environment, "-m", "localoss")
        time.sleep(0.4 * moment if compiles else 0.2 * moment)
        interrupt(process, codes=(-2, 0, 130))
