"""`localoss bench`: what it reports, on a small model. Nothing here looks at a speed."""

import ast
import inspect
import json

import pytest

from localoss import cli
from localoss.engine import sampler
from localoss.kernels import layer as layer_kernels
from localoss.measure import profile
from localoss.measure.bench import Benchmark, run_benchmark
from localoss.model import cpu_layers, forward

FIXED = {  # relied on from outside
    "load_s": float,
    "prefill_tokens_per_s": float,
    "decode_tokens_per_s": float,
    "decode_bytes_per_token": int,
    "read_bandwidth_bytes_per_s": float,
    "peak_rss_bytes": int,
    "threads": int,
    "simd": str,
}
SIZES = ("--prompt-tokens", "11", "--gen-tokens", "3", "--threads", "1")


@pytest.fixture
def bench(capsys):
    """Run `localoss bench` in this process: arguments to (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.main(["bench", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def engine(model):
    import localoss

    return localoss.load(model("window"), context_tokens=100, threads=1)


def test_json(model, bench):
    folder = model("window")
    code, out, _ = bench(folder, *SIZES, "--json")
    assert code == 0
    report = json.loads(out)
    assert {name: type(report[name]) for name in FIXED} == FIXED
    assert set(Benchmark.__annotations__) | {"model"} == set(report)
    assert all(report[name] > 0 for name in FIXED if name != "simd")
    assert (report["prompt_tokens"], report["gen_tokens"], report["threads"]) == (11, 3, 1)
    assert report["decode_runs_tokens_per_s"] == [report["decode_tokens_per_s"]]


def test_what_a_token_reads(model, bench):
    """int4 attention takes fewer bytes than int8; experts count as often as a token uses them."""
    reports = [
        json.loads(bench(model("window", attention=dtype), *SIZES, "--json")[1]) for dtype in ("int8", "int4")
    ]
    read = [report["decode_bytes_per_token"] for report in reports]
    assert read[1] < read[0] < reports[0]["weights_bytes"]
    layers, hidden, qkv_rows, output_columns = 4, 128, (10 + 2 * 5) * 16, 10 * 16
    weights = layers * (qkv_rows + output_columns) * hidden
    assert read[0] - read[1] == weights // 2  # half a byte less each; scales are the same


def test_repetitions_and_depth(model, bench):
    code, out, _ = bench(model("window"), *SIZES, "--depth", "150", "--repetitions", "3", "--json")
    report = json.loads(out)
    assert (code, report["depth"], report["repetitions"]) == (0, 150, 3)
    for kind in ("prefill", "decode"):
        runs = report[f"{kind}_runs_tokens_per_s"]
        assert len(runs) == 3
        assert report[f"{kind}_tokens_per_s"] == pytest.approx(sum(runs) / 3)


def test_each_repetition_runs_the_whole_prompt(engine, monkeypatch):
    ran = []
    forward = engine.model.forward

    def counted(chunks, cancelled):
        ran.append((len(chunks[0].tokens), chunks[0].position))
        return forward(chunks, cancelled)

    monkeypatch.setattr(engine.model, "forward", counted)
    run_benchmark(engine, 0.0, prompt_tokens=7, gen_tokens=2, depth=5, repetitions=2)
    once = [(5, 0), (7, 5), (1, 11), (1, 12), (1, 13)]  # depth, prompt, its last token again, two tokens
    assert ran == once * 2


def test_table(model, bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = bench(model("window"), *SIZES, "--depth", "20", "--repetitions", "2")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line]
    assert rows[0] == ["model", "size", "threads", "simd", "test", "tokens/s"]
    assert [row[4] for row in rows[2:]] == ["pp11 @ 20", "tg3 @ 31"]
    assert all("±" in row[5] for row in rows[2:])
    _, once, _ = bench(model("window"), *SIZES)
    assert "pp11 " in once and "tg3 @ 11" in once and "±" not in once


def test_a_narrow_terminal_cuts_no_number(model, bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    options = ["--depth", "20", "--repetitions", "2", "--depths", "0,9", "--parallel", "1,2"]
    code, out, err = bench(model("window"), *SIZES, *options)
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith(("|", "model", "depth", " "))]
    assert max(map(len, lines)) <= 40 and "…" not in out
    assert "pp11 @ 20" in out and "tg3 @ 31" in out and out.startswith("model ")


def test_too_many_tokens_is_one_line(model, bench):
    code, out, err = bench(model("window"), "--depth", "131072")
    assert code != 0 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and "131,072" in err


# Where the time goes


def test_profile_in_json_and_as_a_table(model, bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    _, out, _ = bench(model("window"), *SIZES, "--profile", "--json")
    report = json.loads(out)
    for kind in ("decode_profile_s", "prefill_profile_s"):
        assert {"norm_and_multiply qkv", "multiply output", "norm_and_multiply unembedding", "python"} <= set(
            report[kind]
        )
        assert all(seconds >= 0 for seconds in report[kind].values())
    assert report["calling_s"] > 0
    _, out, _ = bench(model("window"), *SIZES, "--profile")
    assert "A token after 11" in out and "A prompt of 11 after 0" in out and "in all" in out


def test_a_profile_leaves_the_kernels_as_they_were(engine):
    before, module = [caller.kernels for caller in engine.kernel_callers], dict(vars(layer_kernels))
    assert len(before) == 3  # the model, its layers, the sampler
    with profile.profiled(engine):
        for caller in engine.kernel_callers:
            assert caller.kernels not in before
        assert vars(layer_kernels) == module  # other engines call what they called
    assert [caller.kernels for caller in engine.kernel_callers] == before
    with pytest.raises(ZeroDivisionError), profile.profiled(engine):
        _ = 1 / 0
    assert [caller.kernels for caller in engine.kernel_callers] == before


def test_a_clock_gives_every_second_to_a_kernel_or_to_python(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    clock = profile.Clock({(1, 2): "qkv"})
    matmul, norm = clock.timed("matmul", lambda *_: passes(5)), clock.timed("norm", lambda *_: passes(2))
    passes(3)
    matmul((1, 2), [7])
    norm((3,))
    matmul((9, 9))
    norm()
    passes(1)
    laps = clock.lap()
    assert laps == {"matmul qkv": 5, "matmul": 5, "norm": 4, "python": 4}
    assert list(laps.values()) == [5, 5, 4, 4]  # the longest first
    passes(6)
    assert clock.lap() == {"python": 6}


@pytest.mark.parametrize("module", [cpu_layers, forward, sampler], ids=lambda module: module.__name__)
def test_no_kernel_that_python_calls_goes_unseen(module):
    """Kernels are called as self.kernels.NAME, where a profile can time them, and in no other way."""
    calls = [n.func for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, ast.Call)]
    direct = {ast.unparse(call) for call in calls} & {
        *(name for name, value in vars(module).items() if hasattr(value, "py_func")),
        *(f"kernels.{name}" for name, value in vars(module.kernels).items() if hasattr(value, "py_func")),
    }
    assert not direct
    assert any(ast.unparse(call).startswith("self.kernels.") for call in calls)


def test_side_by_side(model, bench):
    folder = model("window")
    code, out, _ = bench(folder, *SIZES, "--parallel", "3,2", "--repetitions", "2", "--json")
    report = json.loads(out)
    assert code == 0 and [one["sequences"] for one in report["parallel"]] == [1, 2, 3]
    for one in report["parallel"]:
        assert one["tokens_per_s"] > 0 and one["step_s"] == sorted(one["step_s"])
    assert report["parallel"][0]["speedup"] == 1
    code, out, _ = bench(folder, *SIZES, "--parallel", "2")
    assert code == 0 and "over one" in out
    for wrong in ("0,2", "65", "two"):
        code, _, err = bench(folder, *SIZES, "--parallel", wrong)
        assert code == 2 and "--parallel" in err
