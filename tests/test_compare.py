"""benchmarks/compare.py against a llama.cpp that is a few lines of Python: what is run, kept and judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measure  # noqa: E402
import rows  # noqa: E402

PEER = """
import json, sys
print("a line that llama.cpp writes")
with open(sys.argv[1], "a") as file:
    file.write("x")
print(json.dumps({"load_s": 50.0, "prefill_tokens_per_s": 1e-3, "decode_tokens_per_s": 2e-3}))
"""


@pytest.fixture
def compare(model, tmp_path):
    """Run compare.py with a small model and a false llama.cpp; gives the exit code and stderr."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "peer_llamacpp.py").write_text(PEER)
    (tmp_path / "peer.gguf").write_text("")
    folder = model("window")

    def run(*arguments):
        command = [sys.executable, BENCHMARKS / "compare.py", "--quick", "--threads", "1"]
        command += ["--model", folder, "--gguf", tmp_path / "peer.gguf", "--peer-python", sys.executable]
        command += ["--peer-tools", tmp_path / "tools", "--output", tmp_path, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr

    return run


def test_a_row_is_measured_kept_and_judged(compare, tmp_path):
    assert compare("--pairs", "1", "--rows", "prefill") == (0, "")
    kept = json.loads((tmp_path / "RESULTS.json").read_text())
    assert set(kept["measurements"]) == {"prefill", "peer-prefill"}
    assert len((tmp_path / "peer.gguf").read_text()) == 1
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    met = next(line for line in lines if line.startswith("| prefill, 64 tokens"))
    assert "llama.cpp: 0.00 tokens/s" in met and met.endswith("| ≥ 3.5 × the best peer | yes |")
    assert sum("not measured" in line for line in lines) > 5
    assert str(tmp_path) not in (tmp_path / "RESULTS.json").read_text()  # nothing of this machine's folders

    # The second pair alone is taken now; then nothing; then, asked to, all of it anew.
    assert compare("--pairs", "2", "--rows", "prefill") == (0, "")
    assert compare("--pairs", "2", "--rows", "prefill") == (0, "")
    assert len((tmp_path / "peer.gguf").read_text()) == 2
    compare("--pairs", "1", "--rows", "prefill", "--again")
    assert len((tmp_path / "peer.gguf").read_text()) == 3
    again = json.loads((tmp_path / "RESULTS.json").read_text())["measurements"]
    assert [len(again[name]["runs"]) for name in ("prefill", "peer-prefill")] == [1, 1]


def test_each_row_names_the_best_of_several_peers(compare, tmp_path):
    """One is faster at prefill than the other; what both did is in the table of single values."""
    script = tmp_path / "fast.py"
    script.write_text(PEER.replace('"prefill_tokens_per_s": 1e-3', '"prefill_tokens_per_s": 1e9'))
    peer = f"fast one={sys.executable} {script}"
    assert compare("--pairs", "1", "--rows", "prefill", "--peer", peer) == (0, "")
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    met = next(line for line in lines if line.startswith("| prefill, 64 tokens"))
    assert "fast one: 1000000000.00 tokens/s" in met and met.endswith("| **no** |")
    assert any(line.startswith("| peer-prefill@fast one |") for line in lines)
    assert any(line.startswith("| peer-prefill |") for line in lines)
    assert str(tmp_path) not in (tmp_path / "RESULTS.md").read_text()
    code, err = compare("--peer", "nonsense")
    assert code == 2 and "nonsense: give NAME=COMMAND" in err


def test_what_fails_is_told_and_the_rest_goes_on(compare, tmp_path):
    (tmp_path / "tools" / "peer_llamacpp.py").write_text("raise SystemExit('no memory left')")
    code, err = compare("--pairs", "2", "--rows", "prefill")
    assert code == 1
    assert err.startswith("error: peer-prefill failed after") and err.endswith("no memory left\n")
    kept = json.loads((tmp_path / "RESULTS.json").read_text())["measurements"]
    assert len(kept["prefill"]["runs"]) == 2 and "peer-prefill" not in kept
    assert "not measured: peer-prefill" in (tmp_path / "RESULTS.md").read_text()


def test_an_unknown_row_is_told(compare):
    code, err = compare("--rows", "prefil")
    assert code == 1 and "'prefil'" in err and "deep-prefill" in err


def test_memory_that_is_not_there_is_warned_of(tmp_path, capsys):
    script = (sys.executable, "-c", "print('{\"a\": 1}')")
    run = measure.take(measure.Measurement("huge", script, tmp_path, needs_bytes=1 << 60), 60)
    assert run["a"] == 1 and run["first_output_s"] <= run["wall_s"]
    assert "huge takes about 1152921504.6 GB" in capsys.readouterr().err
    measure.take(measure.Measurement("small", script, tmp_path), 60)
    assert capsys.readouterr().err == ""


def test_a_process_that_hangs_is_ended(tmp_path):
    script = (sys.executable, "-c", "import time; time.sleep(60)")
    with pytest.raises(measure.MeasureError, match="killed by signal 9"):
        measure.take(measure.Measurement("hangs", script, tmp_path), 0.5)


@pytest.mark.parametrize("text", ["", "no JSON", "{broken", '{"a": 1}\n{"b": '])
def test_output_without_json(text):
    with pytest.raises(measure.MeasureError):
        measure.last_json(text)


def test_json_after_other_lines():
    assert measure.last_json('log {x}\n{"a": 0}\n{\n "a": {\n  "b": 2}\n}\n') == {"a": {"b": 2}}


# Rows


def judged(name, **measured):
    """The verdict of row `name`; measured: name -> runs."""
    row = next(row for row in rows.table(rows.Sizes()) if row.name == name)
    return row.judge(rows.Results({key.replace("_", "-"): runs for key, runs in measured.items()}))


def decode(speed, read=2e9, bandwidth=40e9):
    return {
        "decode_tokens_per_s": speed,
        "decode_bytes_per_token": read,
        "read_bandwidth_bytes_per_s": bandwidth,
        "bandwidth_share": speed * read / bandwidth,
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [(15, 10, True), (14.9, 10, False), (19, 18, True), (18.9, 18, False)],  # the limit is 20 tokens/s
)
def test_decode_beats_the_peer_or_reaches_the_limit(ours, theirs, met):
    verdict = judged("decode", decode=[decode(ours)], peer_decode=[{"decode_tokens_per_s": theirs}])
    assert (verdict.met, verdict.ratio) == (met, pytest.approx(ours / theirs))


def test_ratios_are_of_medians():
    verdict = judged(
        "decode",
        decode=[decode(speed) for speed in (10, 30, 12)],
        peer_decode=[{"decode_tokens_per_s": speed} for speed in (6, 1, 100)],
    )
    assert verdict.ratio == 2


def test_the_share_is_of_the_bandwidth_beside_it():
    """A machine whose memory was fast in the run with slow tokens: no ratio of medians shows the share."""
    runs = [decode(18, bandwidth=40e9), decode(36, bandwidth=80e9), decode(27, bandwidth=61e9)]
    verdict = judged("bandwidth", decode=runs, read_bandwidth=[{"median_bytes_per_s": 41e9}])
    assert verdict.met and verdict.ratio == pytest.approx(0.9) and "41.0 GB/s" in verdict.note


def test_pythons_share_is_the_larger_figure():
    run = {
        "decode_profile_s": {"matmul": 0.02, "python": 0.0004},
        "calling_s": 0.0011,
        "decode_tokens_per_s": 20,
    }
    assert not judged("python", profile=[run]).met
    assert judged("python", profile=[run | {"calling_s": 0.0002}]).ours == "0.40 ms"


def test_every_row_needs_measurements_that_exist(tmp_path):
    (tmp_path / "file").write_text("")
    setup = rows.Setup(
        tmp_path, 2, rows.Sizes(), tmp_path, tmp_path, tmp_path / "file", sys.executable, tmp_path
    )
    can = rows.measurements(setup)
    used = {name for row in rows.table(setup.sizes) for name in (*row.needs, *row.also)}
    assert used == set(can)
