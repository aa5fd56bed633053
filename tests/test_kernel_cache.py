"""Compiled kernels are found where they belong, whoever is imported first, and nobody else's are run."""

import json
import os
import stat
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from support.numba_forks import Forker

from localoss.kernels import compiled, isa
from localoss.settings import SIMD_NAMES

ROOT = Path(__file__).parent.parent
# Two modules of kernels: one calls the other's.
CALLEE = "def twice(jit):\n    @jit\n    def twice(x):\n        return {factor} * x\n    return twice\n"
CALLER = """
import sys
from pathlib import Path
import numba
from callee import twice
from quant.format.kernel_cache import KernelFolder

folder = KernelFolder([Path(__file__), Path(__file__).with_name("callee.py")], "tests")
double = twice(lambda function: folder.cached(numba.njit(function)))

def calls(x):
    return double(x) + 1

calls = folder.cached(numba.njit(calls))
print(calls(20), len(calls.stats.cache_hits), folder.path)
"""


@pytest.fixture
def environment(tmp_path):
    """Variables with which a process's caches lie in the test's folder."""
    (tmp_path / "cache").mkdir(mode=0o700)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def python(tmp_path, environment):
    """Run a script in a process of its own: its output's lines, and its errors."""

    def run(script, *arguments, **variables):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | variables,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    return run


@pytest.fixture(scope="module")
def forker():
    if not hasattr(os, "fork"):
        yield None
        return
    with closing(Forker(ROOT)) as forker:
        yield forker


@pytest.fixture
def modules(tmp_path, environment, python, forker):
    """Run the two modules, the callee multiplying by `factor`: result, hits, folder, and what was said."""

    def run(factor=2, **variables):
        (tmp_path / "callee.py").write_text(CALLEE.format(factor=factor))
        (tmp_path / "caller.py").write_text(CALLER)
        if forker:
            (line,), said = forker.run("import caller", environment | variables, tmp_path)
        else:
            (line,), said = python("import caller", **variables)
        result, hits, folder = line.split(" ", 2)
        return int(result), int(hits), Path(folder), said

    return run


def kernels_of(folder):
    return sorted(folder.glob("*.kernel"))


def test_found_again_and_only_then(modules, tmp_path):
    assert modules()[:2] == (41, 0)
    result, hits, folder, said = modules()
    assert (result, hits, said) == (41, 1, "") and folder.is_relative_to(tmp_path / "cache")
    for made in (folder, folder.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in kernels_of(folder))


def test_a_changed_callee_is_noticed(modules):
    assert modules(factor=2)[0] == 41
    result, hits, _, _ = modules(factor=3)
    assert (result, hits) == (61, 0), "the caller was compiled with the old one"
    assert modules(factor=2)[:2] == (41, 1)


def test_a_caller_is_compiled_with_a_callee_from_the_disk(modules):
    """Loading leaves the callee's bitcode alone; here it is read."""
    _, _, folder, _ = modules()
    caller, callee = sorted(kernels_of(folder), key=lambda file: not file.name.startswith("caller."))
    caller.unlink()
    written = callee.stat().st_mtime_ns
    assert modules()[:2] == (41, 0)
    assert kernels_of(folder) == sorted([caller, callee]) and callee.stat().st_mtime_ns == written


def test_what_numba_inlined_is_not_imported_again(python, tmp_path):
    """And what it raises is raised all the same."""
    source = """
        import sys
        from pathlib import Path
        import numba
        import numpy as np
        from quant.format.kernel_cache import KernelFolder

        def largest(x):
            return np.argmax(x)

        largest = KernelFolder([Path(__file__)], "tests").cached(numba.njit(largest))
        print(largest(np.array([3.0, 7.0, 5.0])), "numba.np.arraymath" in sys.modules)
        try:
            largest(np.array([1.0])[:0])
        except ValueError as error:
            print(error)
    """
    (tmp_path / "largest.py").write_text(textwrap.dedent(source))
    told = "attempt to get argmax of an empty sequence"
    for imported in (True, False):
        assert python("import largest") == ([f"1 {imported}", told], "")


def test_the_folder_depends_on_every_source_that_kernels_are_made_from():
    """Whatever a kernel module imports of ours is in the hash, or has no part in compiled code."""
    hashed = {Path(path).resolve() for path in compiled._SOURCES}
    uncompiled = {"errors", "settings", "isa", "config", "layout", "kernel_cache"}
    for path in sorted((ROOT / "localoss" / "kernels").rglob("*.py")):
        assert path.resolve() in hashed
        for line in path.read_text().splitlines():
            if line.startswith("from localoss.") and "localoss.kernels" not in line:
                _, package, _, *names = line.replace(",", " ").split()
                found = [ROOT / f"{package}.{name}".replace(".", "/") for name in names]
                sources = [path.with_suffix(".py") for path in (*found, ROOT / package.replace(".", "/"))]
                known = {source.resolve() for source in sources if source.exists()}
                assert known & hashed or {source.stem for source in sources} & uncompiled, line


ORDERS = {
    "run": ["localoss.cli", "localoss.cli.run", "localoss.engine.loader"],
    "serve": ["localoss.cli.serve", "localoss.server.run", "localoss.engine.loader"],
    "eval": ["localoss.measure.evaluate", "localoss.engine.loader"],
    "gpu": ["localoss.measure.gpu_split", "localoss.engine.loader"],
    "bench": ["localoss.measure.bench", "localoss.engine.loader"],
    "calibrate": ["localoss.measure.calibration", "localoss.measure.start_calibration"],
    "a program": ["localoss.engine.engine"],
    "quantize": ["quant.convert"],
}


def test_any_import_order_keeps_them_in_the_same_place(python, tmp_path):
    """None lands in a package's __pycache__, and Numba's own settings stay as they were."""
    script = """
        import importlib, json, os, sys
        import numba
        before = numba.config.CACHE_DIR

        def look(names):
            for name in names:
                importlib.import_module(name)
            from localoss.kernels import activations
            from quant.format import jit_loops
            print(activations.gather.stats.cache_path)
            print(jit_loops._encode_int8.stats.cache_path)
            print(numba.config.CACHE_DIR == before, flush=True)

        orders = json.loads(sys.argv[1])
        for names in orders[1:]:  # each from here on in a process of its own
            child = os.fork()
            if child == 0:
                look(names)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        look(orders[0])
    """
    orders = list(ORDERS.values())
    for together in [orders] if hasattr(os, "fork") else [[order] for order in orders]:
        lines, _ = python(script, json.dumps(together))
        assert len(lines) == 3 * len(together)
        for kernels, loops, same in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
            assert Path(kernels) == tmp_path / "cache" / "localoss" / "kernels" / compiled.FOLDER._name
            assert Path(loops).parent == Path(kernels).parent and same == "True"


def test_the_instruction_set_is_obeyed_from_the_second_run_on(python):
    script = """
        from localoss.kernels import isa, sampling
        import numpy as np
        print(isa.NAME, sampling.best(np.arange(16, dtype=np.float32)), sampling.best.stats.cache_path)
    """
    names = [name for name in SIMD_NAMES if name in isa.available()]
    folders = []
    for name in (names[0], names[-1], names[0]):
        (line,), _ = python(script, LOCALOSS_SIMD=name)
        used, best, folder = line.split(" ", 2)
        assert (used, best) == (name, "15")
        folders.append(folder)
    assert folders[0] == folders[2] != folders[1]


def test_a_host_programs_own_functions_stay_with_it(python, tmp_path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "program.py").write_text(
        "import localoss.engine.engine\nimport numba\n@numba.njit(cache=True)\ndef f(x):\n    return x + 1\n"
    )
    script = "import sys; sys.path.insert(0, 'host'); import program; print(program.f(1))"
    assert python(script)[0] == ["2"]
    kept = {path.parent for path in tmp_path.rglob("*.nbc")}
    assert kept == {tmp_path / "host" / "__pycache__"}


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "another pickle": lambda content: b"cos\nsystem\n(S'false'\ntR.",
}


def test_damaged_files_are_compiled_again(modules):
    _, _, folder, _ = modules()
    for name, damaged in DAMAGES.items():
        for path in kernels_of(folder):
            path.write_bytes(damaged(path.read_bytes()))
        result, hits, _, said = modules()
        assert (result, hits) == (41, 0), name
        assert said == "note: files of compiled kernels were damaged; they are compiled again\n"
    assert modules()[1] == 1


needs_owners = pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders here have no such owners")


@needs_owners
def test_what_others_could_write_is_not_run(modules):
    _, _, folder, _ = modules()
    folder.chmod(0o777)
    result, hits, again, _ = modules()
    assert (result, hits, again) == (41, 0, folder), "what lay there is gone"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@needs_owners
def test_a_folder_under_one_that_anybody_can_write_to_is_not_used(modules, tmp_path):
    modules()
    (tmp_path / "cache").chmod(0o777)
    result, hits, folder, _ = modules()
    assert (result, hits) == (41, 0) and folder.parent.name.startswith("localoss-kernels-")
    assert not folder.exists(), "a private folder is removed at the end"
    (tmp_path / "cache").chmod(0o1777)  # as /tmp: nobody can put another in the place of ours
    assert modules()[1] == 1


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_not_used(modules):
    _, _, folder, _ = modules()
    os.chown(folder.parent, 12345, 12345)
    result, hits, folder, _ = modules()
    assert (result, hits) == (41, 0) and folder.parent.name.startswith("localoss-kernels-")


def test_a_home_that_is_a_file(modules, tmp_path):
    (tmp_path / "file").write_text("")
    result, _, folder, said = modules(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert result == 41 and folder.parent.name.startswith("localoss-kernels-") and said == ""
    assert not list(tmp_path.glob("localoss-kernels-*"))


@pytest.mark.soak
def test_the_first_start_of_all(python, tmp_path):
    """Both halves compile, and a second start finds everything."""
    script = """
        import localoss
        compiled = []
        engine = localoss.load("demo", compiling=compiled.append)
        print(len(compiled), engine.kv_dtype)
    """
    first, said = python(script)
    again, _ = python(script)
    assert int(first[0].split()[0]) > 50 and again == ["0 f16"], said


def test_nowhere_to_keep_them(python, tmp_path):
    """Compiled for this process alone, and said once."""
    (tmp_path / "callee.py").write_text(CALLEE.format(factor=2))
    (tmp_path / "caller.py").write_text(CALLER)
    script = """
        import tempfile, os
        from pathlib import Path
        def refuse(*arguments, **options):
            raise OSError(30, "Read-only file system")
        os.mkdir = refuse
        Path.mkdir = refuse
        import caller
    """
    (line,), said = python(script)
    assert line == "41 0 None"
    assert said.count("\n") == 1 and "no folder to keep compiled kernels in" in said
