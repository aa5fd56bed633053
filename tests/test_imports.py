"""The shape of the code: who imports whom, how long files are, how fast help comes."""

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module imports only from its own line and the lines above it; a name stands for all that it contains.
LAYERS = [
    {"quant.errors"},
    {"localoss.errors"},
    {"localoss.options"},
    {"localoss.settings"},
    {"quant.format"},
    {"quant.sources"},
    {"quant"},
    {"localoss.plan"},
    {"localoss.kernels"},
    {"localoss.hub"},
    {"localoss.model"},
    {"localoss.gpu"},
    {"localoss.engine"},
    {"localoss.measure"},
    {"localoss.chat"},
    {"localoss.tools"},
    {"localoss"},
    {"localoss.demo"},
    {"localoss.server"},
    {"localoss.cluster"},
    {"localoss.cli"},
    {"localoss.__main__"},
]
# Libraries that belong to some parts only.
HOMES = {
    "typer": {"localoss.cli"},
    "inspect_ai": {"localoss.server.suites", "localoss.cli.eval_suite"},
    "inspect_evals": {"localoss.server.suites"},
    "rich": {"localoss.cli"},
    "markdown_it": {"localoss.cli"},
    "prompt_toolkit": {"localoss.cli"},
    "openai_harmony": {"localoss.chat"},
    "llguidance": {"localoss.chat"},
    "pydantic_monty": {"localoss.tools"},
    "trafilatura": {"localoss.tools"},
    "lxml": {"localoss.tools"},
    "httpx2": {"localoss.server.suites", "localoss.tools"},
    "mcp": {"localoss.tools"},
    "fastapi": {"localoss.server"},
    "starlette": {"localoss.server", "localoss.cluster"},
    "uvicorn": {"localoss.server"},
    "pydantic": {"localoss.server"},
    "prometheus_client": {"localoss.server"},
    "ray": {"localoss.cluster"},
    "openai": set(),
    "huggingface_hub": {"localoss.hub"},
    "wgpu": {"localoss.gpu"},
    "numba": {"localoss.kernels", "quant.format"},
    "llvmlite": {"localoss.kernels", "quant.format"},
    "pytest": set(),
    "hypothesis": set(),
    "torch": set(),
    "transformers": set(),
}
MAX_LINES = 400


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in ("localoss", "quant") for path in ROOT.glob(f"{package}/**/*.py")
}


@functools.cache
def nodes_of(name):
    """All of a module's syntax tree."""
    return list(ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))))


def imports_of(name):
    """Modules that `name` imports, at the top or within functions."""
    for node in nodes_of(name):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide where a name comes from"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [module for module in inner if module in MODULES]
            yield from submodules
            if len(submodules) < len(inner):
                yield node.module


def within(name, parts):
    return any(name == part or name.startswith(part + ".") for part in parts)


def layer_of(name):
    """The layer that names the longest beginning of `name`."""
    found = [
        (len(part), index) for index, layer in enumerate(LAYERS) for part in layer if within(name, {part})
    ]
    return max(found)[1]


def test_every_module_has_a_layer_of_its_own_package():
    misplaced = [name for name in MODULES if name != "localoss" and LAYERS[layer_of(name)] == {"localoss"}]
    assert not misplaced, "add them to LAYERS"


# A test for all modules: a test for each, 1,400 of them, costs ten seconds of pytest's own work.
def test_imports_point_one_way():
    upward = [
        f"{name} imports {other}"
        for name in MODULES
        for other in imports_of(name)
        if within(other, {"localoss", "quant"}) and layer_of(other) > layer_of(name)
    ]
    assert not upward, "which stand above them"


def test_libraries_stay_where_they_belong():
    strays = [
        f"{name} imports {other}"
        for name in MODULES
        for other in imports_of(name)
        for library, homes in HOMES.items()
        if within(other, {library}) and not within(name, homes)
    ]
    assert not strays


def test_the_top_of_the_package_stays_bare():
    top = {name for name in MODULES if name.count(".") == 1 and name.startswith("localoss.")}
    files = {name for name in top if MODULES[name].name != "__init__.py"}
    assert files <= {f"localoss.{name}" for name in ("__main__", "options", "errors", "settings")}


def test_an_edge_against_the_layers_is_found():
    assert layer_of("localoss.cli.run") > layer_of("localoss.server.app") > layer_of("localoss.engine.engine")
    assert layer_of("localoss.engine.engine") > layer_of("localoss.model.forward") > layer_of("localoss.plan")
    assert layer_of("localoss.plan.memory") > layer_of("quant.convert") > layer_of("quant.format.layout")


# The GPU's own modules, those that choose and measure it, and the names of options, errors and report fields.
MENTION_THE_GPU = {"localoss", "localoss.errors", "localoss.options", "localoss.settings"}
MENTION_THE_GPU |= {"localoss.gpu", "localoss.plan", "localoss.cli", "localoss.engine.loader"}
MENTION_THE_GPU |= {"localoss.measure.bench", "localoss.measure.gpu_split"}
MENTION_THE_GPU |= {"localoss.measure.gpu_rates", "localoss.server.ollama.schemas"}


def test_what_runs_a_model_knows_of_no_gpu():
    home = MENTION_THE_GPU - {"localoss"}
    ours = [name for name in MODULES if name.startswith("localoss.") and not within(name, home)]
    assert not [name for name in ours if "gpu" in MODULES[name].read_text(encoding="utf-8").lower()]


MAX_PARAMETERS, MAX_FUNCTION_LINES = 7, 60


def large_functions(name):
    for node in nodes_of(name):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            lines = node.end_lineno - node.lineno + 1
            is_command = name.startswith("localoss.cli") and node.col_offset == 0
            if not is_command and (count > MAX_PARAMETERS or lines > MAX_FUNCTION_LINES):
                yield f"{name}.{node.name}"


def test_functions_are_short_and_take_little():
    """Kernels take what their loops need, and commands what a user can say."""
    kernels = {"localoss.kernels", "quant.format.jit_loops", "quant.format.jit_scales"}
    assert not [large for name in MODULES if not within(name, kernels) for large in large_functions(name)]


def test_environment_variables_are_read_in_one_place():
    readers = [
        name for name, path in MODULES.items() if any(w in path.read_text() for w in ("os.environ", "getenv"))
    ]
    assert readers == ["localoss.settings"]


def test_no_file_is_long():
    folders = ("localoss", "quant", "tests", "benchmarks")
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in ROOT.glob(f"{folder}/**/*.py")
    }
    assert len(lengths) > 30
    assert not {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["version"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import json, sys\nfrom localoss import cli\n"
        f"code = cli.main({arguments!r})\nprint()\nprint(json.dumps([code, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    heavy = {"numpy", "numba", "huggingface_hub", "openai_harmony", "safetensors", "psutil", "prompt_toolkit"}
    heavy |= {"fastapi", "uvicorn", "llguidance", "wgpu", "pydantic_monty", "mcp", "httpx2", "trafilatura"}
    assert not heavy.intersection(modules)


# On Windows a process doesn't learn what time its children took, so the child says what it took itself.
TIMED_HELP = """
import runpy, sys, time
sys.argv = ["localoss", "--help"]
try:
    runpy.run_module("localoss", run_name="__main__", alter_sys=True)
finally:
    print(time.process_time(), file=sys.stderr)
"""


def test_help_comes_at_once():
    """In processor time, which is all of it on an idle machine: the best of five, for this may be none."""
    times_s = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", TIMED_HELP], check=True, capture_output=True, text=True, cwd=ROOT
        )
        assert "Usage" in done.stdout
        times_s.append(float(done.stderr))
    assert 0 < min(times_s) < 0.5
