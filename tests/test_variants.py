"""The tests of the kernels again, on every instruction set of this machine, and on Numba's own threads.

Each in a process of its own, for Numba reads its settings once. This process runs them on the best
instruction set and on the threads that Numba takes by itself. What is compiled for another instruction set
is used by no other test, so `make test` runs there the innermost loops alone; `make soak` runs all.
"""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from support.tiled import WAYS
from test_attention import Shape

from localoss.kernels import isa
from localoss.settings import SIMD_NAMES

HERE = Path(__file__).parent
KERNELS = ["test_kernels.py", "test_activations.py", "test_attention.py", "test_sampler.py"]
OPERATIONS = ["test_set_operations.py"]
ATTENTION = "test_set_operations.py::test_attention_products"
PRODUCTS = [
    *(f"test_kernels.py::test_matmul[{dtype}-{exact}-3-19]" for dtype, exact in WAYS),
    "test_kernels.py::test_gate_up[mxfp4-False]",
    f"test_attention.py::test_attention[{Shape(3, 4, 40, slots=192, window=65)}-f16]",
]
ENGINE = [
    "test_golden.py::test_prefill_in_one_chunk[short]",
    "test_engine.py::test_two_engines_and_another_thread",
]
ALL = pytest.param(KERNELS + ENGINE, marks=pytest.mark.soak)


def run(arguments, **variables):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | variables,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=1800,  # a busy machine that compiles
    )


def run_tests(names, but=(), **variables):
    arguments = [str(HERE / name) for name in names] + [f"--deselect={HERE.name}/{name}" for name in but]
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], **variables)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def is_as_wide_as_a_better_one(name):
    """Whether attention's tiles, written once for each width of registers, are tested without this set."""
    widths = [import_module(f"localoss.kernels.isa.{one}").F32_LANES for one in isa.available()]
    here = isa.available().index(name)
    return widths[here] in widths[:here]


@pytest.mark.parametrize("tests", [OPERATIONS, ALL], ids=["operations", "all"])
@pytest.mark.parametrize("name", [name for name in SIMD_NAMES if name != isa.NAME])
def test_instruction_set(name, tests):
    if name not in isa.available():
        pytest.skip(f"this machine does not run {name}")
    run_tests(tests, [ATTENTION] if is_as_wide_as_a_better_one(name) else [], LOCALOSS_SIMD=name)


@pytest.mark.parametrize("tests", [PRODUCTS + ENGINE[1:], ALL], ids=["products", "all"])
def test_workqueue(tests):
    """Numba's fallback where there is no OpenMP, as on macOS."""
    run_tests(tests, NUMBA_THREADING_LAYER="workqueue")


def test_the_forced_instruction_set_is_used():
    show = "from localoss.kernels import isa; print(isa.NAME)"
    assert run(["-c", show], LOCALOSS_SIMD="portable").stdout == "portable\n"


def test_the_best_instruction_set_is_used_by_itself():
    show = "from localoss.kernels import isa; print(isa.NAME)"
    assert run(["-c", show], LOCALOSS_SIMD="").stdout.split() == isa.available()[:1]


AVX2 = dict(avx2=True, fma=True, f16c=True)
AVX512 = [f"avx512{name}" for name in ("f", "bw", "dq", "vl", "vbmi", "vnni")]


@pytest.mark.parametrize(
    ("machine", "features", "names"),
    [
        ("x86_64", AVX2 | dict(avxvnni=True), ["vnni", "avx2", "portable"]),
        ("AMD64", AVX2 | dict.fromkeys(AVX512, True), ["avx512", "vnni", "avx2", "portable"]),
        ("AMD64", AVX2 | dict(avx512vnni=True, avx512vl=True), ["vnni", "avx2", "portable"]),
        ("x86_64", AVX2 | dict(avx512vnni=True), ["avx2", "portable"]),  # 512 bits only
        ("x86_64", AVX2, ["avx2", "portable"]),
        ("x86_64", AVX2 | dict(fma=False, avxvnni=True), ["portable"]),
        ("x86_64", {}, ["portable"]),
        ("riscv64", {"v": True}, ["portable"]),
    ],
)
def test_what_a_machine_can_run(machine, features, names, monkeypatch):
    monkeypatch.setattr(isa.platform, "machine", lambda: machine)
    monkeypatch.setattr(isa.llvm, "get_host_cpu_features", lambda: features)
    assert isa.available() == names


@pytest.mark.parametrize("name", ["nonsense", "avx", *(n for n in SIMD_NAMES if n not in isa.available())])
def test_an_instruction_set_that_cannot_run_is_one_line(name, model):
    """From Python as from the command line."""
    command = ["-m", "localoss", "run", str(model("harmony")), "hello"]
    done = run(command, LOCALOSS_SIMD=name)
    assert done.returncode == 2
    assert f"LOCALOSS_SIMD is {name!r}" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    loading = "import localoss, sys; localoss.load(sys.argv[1])"
    failed = run(["-c", loading, str(model("harmony"))], LOCALOSS_SIMD=name)
    assert failed.stderr.splitlines()[-1].startswith(f"localoss.errors.UsageError: LOCALOSS_SIMD is {name!r}")
