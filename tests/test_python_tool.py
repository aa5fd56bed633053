"""The python tool's two backends: state, bounds of time, memory and output, and what none can reach."""

import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from localoss import settings
from localoss.chat.agent import Stop
from localoss.chat.harmony import Message
from localoss.errors import UsageError
from localoss.tools import sandbox, seccomp
from localoss.tools.bubblewrap import Bubblewrap
from localoss.tools.output import Output
from localoss.tools.python_tool import NO_OUTPUT, RESTARTED, PythonTool, code_of, showing_last

SECRET = "the-secret-of-this-test"
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap isn't installed")
BACKENDS = ["monty", pytest.param("cpython", marks=needs_bubblewrap)]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A file with a secret, and a server that says one: what nobody may reach."""
    path = tmp_path_factory.mktemp("outside") / "secret.txt"
    path.write_text(SECRET)
    server = socket.create_server(("127.0.0.1", 0))
    reached = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            reached.append(connection)
            connection.sendall(SECRET.encode())
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield path, server.getsockname()[1], reached
    server.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Backends by name, each started once."""
    os.environ["SECRET_OF_THE_TEST"] = SECRET
    before = os.environ.get("LOCALOSS_HOME")
    os.environ["LOCALOSS_HOME"] = str(tmp_path_factory.mktemp("home"))
    there = {}

    def get(name):
        if name not in there:
            if name == "monty":
                pytest.importorskip("pydantic_monty")
                from localoss.tools.monty import MontyPython

                there[name] = PythonTool(MontyPython())
            else:
                try:
                    there[name] = PythonTool(sandbox.SandboxedPython())
                except UsageError as error:
                    assert "doesn't hold" not in str(error)
                    pytest.skip(str(error))
        return there[name]

    yield get
    for tool in there.values():
        tool.close()
    del os.environ["SECRET_OF_THE_TEST"]
    os.environ.pop("LOCALOSS_HOME")
    if before is not None:
        os.environ["LOCALOSS_HOME"] = before


def call(code):
    return Message("assistant", code, "analysis", "python", "code")


@pytest.fixture
def python(request, started):
    tool = started(request.param)

    def run(code, stop=None):
        return tool.run(call(code), stop or Stop())

    run.name = request.param
    return run


on_each = pytest.mark.parametrize("python", BACKENDS, indirect=True)


@on_each
def test_it_shows_what_a_notebook_shows(python):
    assert python("x = 20").text == NO_OUTPUT
    assert python("print('first')\nx + 1").text == "first\n21\n"
    assert python("x;").text == NO_OUTPUT
    assert python("None").text == NO_OUTPUT
    assert python("def twice(n):\n    return 2 * n\n[twice(x),\n 'é']").text == "[40, 'é']\n"
    assert python('{"code": "x"}').text == "20\n"  # as models write it, too
    for code, says in [("1 / 0", "ZeroDivisionError"), ("x +", "SyntaxError"), ("nothing", "NameError")]:
        result = python(code)
        assert not result.ok and "Traceback" in result.text + "Traceback" * (says == "SyntaxError")
        assert says in result.text and "localoss" not in result.text and "/sandbox.py" not in result.text
    assert python("x").text == "20\n"  # errors leave the state


@on_each
def test_an_endless_loop_ends_when_it_is_told_and_the_worker_is_replaced(python):
    python("kept = 1")
    stop = Stop()
    threading.Timer(0.5, stop.request, ["time"]).start()
    began = time.monotonic()
    result = python("print('begun')\nwhile True:\n    pass", stop)
    assert time.monotonic() - began < 20 and not result.ok
    assert result.text.startswith("begun\n") and "TimeoutError" in result.text and RESTARTED in result.text
    assert python("1 + 1").text == "2\n" and "NameError" in python("kept").text


@on_each
def test_what_was_started_in_one_call_keeps_its_state_for_the_next(python):
    def on_a_thread(code, stop=None):
        results = []
        thread = threading.Thread(target=lambda: results.append(python(code, stop)))
        thread.start()
        thread.join()
        return results[0]

    stop = Stop()
    threading.Timer(0.3, stop.request, ["user"]).start()
    assert not on_a_thread("while True: pass", stop).ok
    for number in range(3):
        on_a_thread("kept = 1" if number == 0 else "kept += 1")
        time.sleep(0.3)  # what the system ends with a thread is gone then
    assert on_a_thread("kept").text == "3\n"


@on_each
def test_four_gigabytes_are_refused_and_nothing_is_lost(python):
    python("kept = 1")
    for code in ("b'x' * (4 << 30)", "[0] * (4 << 30)"):
        result = python(code)
        assert not result.ok and "MemoryError" in result.text
    assert python("kept").text == "1\n"


@on_each
def test_a_hundred_megabytes_of_output_are_read_and_cut(python):
    result = python("for i in range(100):\n    print('x' * 1_000_000)\nprint('end')")
    assert (
        len(result.text) < 500_000
        and result.text.endswith("x\nend\n")
        and "characters left out" in result.text
    )


@on_each
def test_a_worker_that_is_killed_is_replaced(python, started):
    import psutil

    python("kept = 1")
    mine = psutil.Process().children()
    name = "monty" if python.name == "monty" else "bwrap"
    for process in mine:
        if process.name().startswith(name):
            process.kill()
            process.wait(10)
    result = python("kept")
    assert not result.ok and (RESTARTED in result.text or "NameError" in result.text)
    assert python("1 + 1").text == "2\n"


READ = "open({path!r}).read()"
CONNECT = "import socket\ns = socket.create_connection(('127.0.0.1', {port}), 2)\ns.recv(100).decode()"
ESCAPES = [
    # files
    READ,
    "from pathlib import Path\nPath({path!r}).read_text()",
    "import os\nfd = os.open({path!r}, os.O_RDONLY)\nos.read(fd, 100).decode()",
    "import io\nio.open({path!r}).read()",
    "import io\nio.FileIO({path!r}).read()",
    "import os\nos.symlink({path!r}, 'link')\nopen('link').read()",
    "import os\nos.link({path!r}, 'hard')\nopen('hard').read()",
    "open('../' * 20 + {path!r}).read()",
    "open('/proc/self/root' + {path!r}).read()",
    "open('/proc/1/root' + {path!r}).read()",
    "import glob\n''.join(open(p).read() for p in glob.glob({folder!r} + '/*'))",
    "import os\nos.chroot('..')\nopen({path!r}).read()",
    "import os\nos.listdir({folder!r})",
    "import shutil\nshutil.copy({path!r}, 'copy')\nopen('copy').read()",
    "import mmap, os\nmmap.mmap(os.open({path!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)[:]",
    "import ctypes\nlibc = ctypes.CDLL(None)\nfd = libc.open({path!r}.encode(), 0)\n"
    "b = ctypes.create_string_buffer(99)\n"
    "libc.read(fd, b, 99)\nb.value",
    "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.unshare(0x10000000)\n"
    "libc.mount(b'/', b'/mnt/data', None, 4096, None)\n"
    "open('/mnt/data' + {path!r}).read()",
    "import sys\nsys.modules['os'].open({path!r}, 0)",
    "().__class__.__base__.__subclasses__()\n__import__('builtins').open({path!r}).read()",
    "eval(compile('open({path!r}).read()', 'x', 'eval'))",
    "getattr(__builtins__, 'open')({path!r}).read()",
    # programs
    "import os\nos.popen('cat ' + {path!r}).read()",
    "import subprocess\nsubprocess.check_output(['/bin/cat', {path!r}]).decode()",
    "import os\nos.execv('/bin/cat', ['cat', {path!r}])",
    "import os\nos.posix_spawn('/bin/cat', ['cat', {path!r}], {{}})",
    "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    # the environment, this process, the network
    "import os\nos.environ['SECRET_OF_THE_TEST']",
    "open('/proc/self/environ').read() + open('/proc/{pid}/environ').read()",
    "import os\nos.kill({pid}, 15)",
    CONNECT,
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}', timeout=2).read()",
    "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.sendto(b'x', ('1.1.1.1', 53))\n'sent'",
    "import socket\nsocket.getaddrinfo('example.org', 80)",
]


@on_each
def test_no_escape_succeeds(python, outside):
    path, port, reached = outside
    words = {"path": str(path), "folder": str(path.parent), "port": port, "pid": os.getpid()}
    assert len(ESCAPES) >= 30
    succeeded = []
    for escape in ESCAPES:
        code = escape.format(**words)
        result = python(code)
        said = result.text.replace(code, "")
        if SECRET in said or (result.ok and said not in (NO_OUTPUT, "''\n", "b''\n")):
            succeeded.append((code, result.text))
    assert not succeeded and not reached


@on_each
def test_what_it_writes_stays_inside(python, outside):
    path, _, _ = outside
    target = path.with_name("written.txt")
    for where in (target, Path.home() / "localoss-was-here", Path("/usr/was-here"), Path("/was-here")):
        python(f"open({str(where)!r}, 'w').write('x')")
        assert not where.exists()
    python(f"import os\nos.remove({str(path)!r})")
    assert path.read_text() == SECRET


@on_each
def test_a_fork_bomb_is_none(python):
    import psutil

    before = len(psutil.pids())
    result = python("import os\nwhile True:\n    os.fork()")
    assert not result.ok and len(psutil.pids()) < before + 200
    assert python("1 + 1").text == "2\n"


@needs_bubblewrap
@pytest.mark.parametrize("python", ["cpython"], indirect=True)
def test_cpython_has_threads_bounds_of_disk_and_pictures(python):
    threads = (
        "import threading\nl = []\nt = threading.Thread(target=l.append, args=[7])\nt.start(); t.join()\nl"
    )
    assert python(threads).text == "[7]\n"
    filled = python("open('big', 'wb').write(bytes(150 << 20)); open('more', 'wb').write(bytes(150 << 20))")
    assert "No space left" in filled.text and python("import os\nos.remove('big'); os.remove('more')").ok
    png = "import zlib, base64\nopen('a.png', 'wb').write(b'\\x89PNG\\r\\n\\x1a\\n' + b'rest')"
    result = python(png)
    assert len(result.pictures) == 1 and Path(result.pictures[0]).read_bytes().startswith(b"\x89PNG")
    assert Path(result.pictures[0]).parent == settings.home() / "pictures"
    assert python("1").pictures == ()  # each is given once
    for crash in ("import os\nos._exit(3)", "import ctypes\nctypes.string_at(0)"):
        result = python(crash)
        assert not result.ok and result.text == f"it crashed\n{RESTARTED}"
    forged = python(
        "import os\nfor fd in range(3, 20):\n"
        "    try:\n        os.write(fd, b'no json\\n')\n    except OSError:\n        pass"
    )
    assert "its reply can't be read" in forged.text or forged.ok
    assert python("1 + 1").text == "2\n"


@needs_bubblewrap
def test_a_sandbox_that_doesnt_hold_is_none(monkeypatch):
    command = Bubblewrap.command

    def leaking(cage):
        words = command(cage)
        at = words.index("--remount-ro")
        return [*words[:at], "--bind", "/tmp", "/tmp", "--share-net", *words[at:]]

    monkeypatch.setattr(Bubblewrap, "command", leaking)
    with pytest.raises(UsageError, match="it doesn't hold: reached files, reached writing, reached network"):
        sandbox.SandboxedPython()


@needs_bubblewrap
def test_memory_that_is_no_address_is_refused(started):
    tool = started("cpython")
    memory = "import os\nfd = os.memfd_create('x')\nos.write(fd, b'x' * 10)"
    result = tool.run(call(memory), Stop())
    assert not result.ok and "PermissionError" in result.text
    segment = "import ctypes\nctypes.CDLL(None).shmget(0, 1 << 30, 0o1600)"
    assert tool.run(call(segment), Stop()).text == "-1\n"


@needs_bubblewrap
def test_only_networks_with_a_namespace_have_sockets(started):
    """AF_VSOCK has none: through it a sandbox in a virtual machine would reach the machine's host."""
    tool = started("cpython")
    for family in (16, 17, 38, 40, 44):  # netlink, packets, the kernel's cryptography, vsock, xdp
        result = tool.run(call(f"import socket\nsocket.socket({family}, socket.SOCK_STREAM)"), Stop())
        assert not result.ok and "PermissionError" in result.text
    connect = "import socket\nfor family in (1, 2, 10): socket.socket(family).close()\n"
    assert tool.run(call(f"{connect}a, b = socket.socketpair()\na.send(b'x')"), Stop()).text == "1\n"


def test_where_there_is_no_sandbox_a_line_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        UsageError, match=r"install the package bubblewrap|sandbox-exec, which isn't here|needs Linux"
    ):
        sandbox.SandboxedPython()
    with pytest.raises(UsageError, match="isn't known for riscv64"):
        seccomp.program("riscv64")
    assert len(seccomp.program("aarch64")) % 8 == len(seccomp.program("x86_64")) % 8 == 0


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("", ""),
        ("x", "_ = x\nif _ is not None: print(repr(_))"),
        ("a = 1", "a = 1"),
        ("if a:\n    b", "if a:\n    b"),
        ("f(\n  1,\n)", "_ = f(\n  1,\n)\nif _ is not None: print(repr(_))"),
        ("a; (b)", "a; _ = (b)\nif _ is not None: print(repr(_))"),
        ("'é'; é", "'é'; _ = é\nif _ is not None: print(repr(_))"),
        ("x;", "x;"),
        ("x  # why", "_ = x  # why\nif _ is not None: print(repr(_))"),
        ("await f()", "_ = await f()\nif _ is not None: print(repr(_))"),
        ("not python at all", "not python at all"),
        ("\0", "\0"),
    ],
)
def test_the_last_expression_is_shown(code, shown):
    assert showing_last(code) == shown


def test_code_that_is_json_is_code():
    assert code_of(call('{"a": 1}')) == '{"a": 1}' and code_of(call('{"code": "x"}')) == "x"
    assert code_of(call('{"a": "b", "c": "d"}')) == '{"a": "b", "c": "d"}'


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_output_keeps_its_beginning_and_its_end(size):
    text = "".join(chr(97 + i % 26) for i in range(5000))
    output = Output(half_chars=1000)
    for start in range(0, len(text), size):
        output.write(text[start : start + size])
    head, _, rest = str(output).partition("\n[… ")
    assert head == text[:1000] and text.endswith(rest.partition(" …]\n")[2])
    assert 1000 <= len(rest.partition(" …]\n")[2]) < 1000 + max(size, 2)
