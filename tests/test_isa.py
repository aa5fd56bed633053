"""Every instruction set gives the same integers, and is compiled to the instructions that it is for.

What this machine can't run is compiled for the others all the same. arm64 is run too, where qemu and a cross
compiler are installed (Debian: qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross).
"""

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
from llvmlite import binding
from numba import config
from numba.core.registry import cpu_target
from support import naive
from support.tiled import address
from support.traced import compile_for, trace

from localoss import settings
from localoss.errors import UsageError
from localoss.kernels import attention, isa, pairs, products
from quant.format.tiles import to_tiles

# What every_operation reads and writes.
RECORD = np.dtype(
    [
        ("x_4bit", np.int8, 32),  # activations, with the offset that weights of 4 bits want
        ("x_8bit", np.int8, 32),
        ("fp4", np.uint8, 128),  # one tile each
        ("int4", np.uint8, 128),
        ("int8", np.uint8, 256),
        ("f16", np.float16, 16),  # 8, twice
        ("f32", np.float32, 8),
    ]
)
RESULT = np.dtype(
    [
        ("fp4_decoded", np.int8, (8, 8, 4)),  # 8 vectors of 4 columns of 8 rows
        ("int4_decoded", np.int8, (8, 8, 4)),
        ("fp4_dots", np.int32, 8),
        ("int4_dots", np.int32, 8),
        ("int8_dots", np.int32, 8),
        ("i8_loaded", np.float32, 8),
        ("fp4_tile_dots", np.int32, 8),
        ("int4_tile_dots", np.int32, 8),
        ("int8_tile_dots", np.int32, 8),
        ("f16_loaded", np.float32, 8),
        ("f16w_loaded", np.float32, 16),  # of which the variant has F32_LANES
        ("f32_stored", np.float16, 8),
    ]
)
COUNT = (1 << 16) // 8  # all float16


def at(kind, name):
    return kind.fields[name][1]


def every_operation(t, record, result):
    """Emit all that an instruction set offers, each once or for one tile."""
    four_bits, eight_bits = (t.isa.correction_4bit, t.isa.dot_4bit), (t.isa.correction_8bit, t.isa.dot_8bit)
    for name, load, x, (correction, dot) in (
        ("fp4", products.load_fp4, "x_4bit", four_bits),
        ("int4", products.load_int4, "x_4bit", four_bits),
        ("int8", products.load_8bit, "x_8bit", eight_bits),
    ):
        w = t.traced(load)(record + at(RECORD, name))
        if name != "int8":
            t.store(result + at(RESULT, f"{name}_decoded"), w)
        dots = dot(record + at(RECORD, x), w, correction(w))
        t.store(result + at(RESULT, f"{name}_dots"), [dots])
        tile_dots = getattr(t.isa, f"dot_{name}_tile")(record + at(RECORD, x), record + at(RECORD, name))
        t.store(result + at(RESULT, f"{name}_tile_dots"), [tile_dots])
    bytes_loaded = t.traced(attention.load_i8x8)(record + at(RECORD, "int8"))
    t.store(result + at(RESULT, "i8_loaded"), [bytes_loaded])
    t.store(result + at(RESULT, "f16_loaded"), [t.isa.load_f16(record + at(RECORD, "f16"))])
    t.store(result + at(RESULT, "f16w_loaded"), [t.isa.load_f16w(record + at(RECORD, "f16"))])
    floats = t.traced(products.load_f32x8)(record + at(RECORD, "f32"))
    t.isa.store_f16(result + at(RESULT, "f32_stored"), floats)


def row_group_kernels(t, sums, codes, scales, x, x_scales):
    """Emit the innermost loops over each kind of weights, for 1 and 3 tokens of 5 and 1 block."""
    kernel = t.traced(products.add_row_group)
    for kind in (products.MXFP4, products.INT4, products.INT8):
        for tokens in (1, 3):
            kernel(kind, False, sums, codes, scales, x, x_scales, tokens, 5, 1, 0)
        if hasattr(t.isa, "add_to_pair"):
            pair = t.traced(pairs.write_row_pair)
            pair(kind, sums, codes, scales, x, x_scales, 3, 5, 1, scales)


def variant_of(name):
    return import_module(f"localoss.kernels.isa.{name}")


@pytest.fixture(scope="module")
def numbers():
    """Weights (COUNT, 8, 32) of each kind, activations (COUNT, 32) and floats, at their limits and random."""
    rng = np.random.RandomState(0)
    made = {
        "x": rng.randint(-127, 128, (COUNT, 32)),
        "fp4": rng.randint(0, 16, (COUNT, 8, 32)),
        "int4": rng.randint(-8, 8, (COUNT, 8, 32)),
        "int8": rng.randint(-127, 128, (COUNT, 8, 32)),
    }
    for name, limits in (("x", (-127, 127)), ("fp4", (7, 15)), ("int4", (-8, 7)), ("int8", (-127, 127))):
        made[name][:2], made[name][2:4] = limits[0], limits[1]
        made[name][4:99] = rng.choice(limits, made[name][4:99].shape)
    made["x"][[0, 2]] *= -1  # all signs of both
    halves = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    made["f16"] = np.where(np.isfinite(halves), halves, 0).reshape(COUNT, 8)
    # Between two float16 in the middle, just below and just above.
    beyond = rng.choice([0, 0xFFF, 0x1000, 0x1001, 0x1777], (COUNT, 8))
    made["f32"] = (made["f16"].astype(np.float32).view(np.int32) + beyond).astype(np.int32).view(np.float32)
    made["f32"][0] = [65519, 65520, -65520, 65536, -1e5, 1e9, -3e38, np.inf]
    return made


def records_of(numbers, variant):
    records = np.zeros(COUNT, RECORD)
    records["x_4bit"] = (numbers["x"] + variant.OFFSET_4BIT).astype(np.int8)  # modulo 256
    records["x_8bit"] = (numbers["x"] + variant.OFFSET_8BIT).astype(np.int8)
    for name, dtype, kind in (
        ("fp4", "mxfp4", np.uint8),
        ("int4", "int4", np.int8),
        ("int8", "int8", np.int8),
    ):
        codes = numbers[name].astype(kind).reshape(COUNT * 8, 32)
        records[name] = to_tiles(codes, dtype).reshape(COUNT, -1).view(np.uint8)
    records["f16"], records["f32"] = np.tile(numbers["f16"], 2), numbers["f32"]
    return records


def assert_results(results, numbers, lanes):
    weights = {**numbers, "fp4": (2 * naive.FP4[numbers["fp4"]]).astype(np.int64)}
    for name in ("fp4", "int4", "int8"):
        dots = np.einsum("nri,ni->nr", weights[name], numbers["x"])
        np.testing.assert_array_equal(results[f"{name}_dots"], dots, err_msg=name)
        np.testing.assert_array_equal(results[f"{name}_tile_dots"], dots, err_msg=name)
    for name in ("fp4", "int4"):
        decoded = weights[name].reshape(COUNT, 8, 8, 4).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(results[f"{name}_decoded"], decoded, err_msg=name)
    tile = to_tiles(numbers["int8"].astype(np.int8).reshape(COUNT * 8, 32), "int8").reshape(COUNT, -1)
    np.testing.assert_array_equal(results["i8_loaded"], tile.view(np.int8)[:, :8])
    loaded, stored = results["f16_loaded"], results["f32_stored"]
    np.testing.assert_array_equal(loaded.view(np.int32), numbers["f16"].astype(np.float32).view(np.int32))
    wide = results["f16w_loaded"][:, :lanes].reshape(COUNT, -1, 8)
    assert (wide.view(np.int32) == loaded[:, None].view(np.int32)).all()
    with np.errstate(over="ignore"):
        halves = numbers["f32"].astype(np.float16)
    np.testing.assert_array_equal(stored.view(np.int16), halves.view(np.int16))


@pytest.mark.parametrize("name", settings.SIMD_NAMES)
def test_the_same_integers(name, numbers):
    if name not in isa.available():
        pytest.skip(f"this machine has no {name}")
    variant = variant_of(name)
    here = cpu_target.target_context.codegen().magic_tuple()
    module, machine = compile_for(trace(variant, every_operation, 2), *here)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(
        engine.get_function_address("every_operation")
    )
    records, results = records_of(numbers, variant), np.zeros(COUNT, RESULT)
    for i in range(COUNT):
        run(address(records[i : i + 1]), address(results[i : i + 1]))
    assert_results(results, numbers, variant.F32_LANES)


# What other machines run

X86, ARM64 = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
AVX2 = "+avx2,+fma,+f16c"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vbmi,+avx512vnni"
TARGETS = [
    # instruction set, triple, CPU, features, how many of which instructions every_operation has at least
    ("neon", ARM64, "generic", "+dotprod", {"sdot": 48, "tbl": 32, "fcvtl": 1, "fcvtl2": 1}),
    ("neon", "arm64-apple-macosx", "apple-m1", "", {"sdot": 48, "tbl": 32, "fcvtl": 1, "fcvtl2": 1}),
    ("avx512", X86, "x86-64", AVX512, {"vpdpbusd": 24 + 17, "vpermb": 8, "vcvtph2ps": 2}),
    ("vnni", X86, "x86-64", f"{AVX2},+avxvnni", {"{vex} vpdpbusd": 24, "vpshufb": 16, "vcvtph2ps": 1}),
    ("vnni", X86, "x86-64", f"{AVX2},+avx512vnni,+avx512vl", {"vpdpbusd": 24, "vpshufb": 16}),
    ("avx2", X86, "x86-64", AVX2, {"vpmaddubsw": 24, "vpshufb": 16, "vcvtph2ps": 1}),
    ("avx2", "x86_64-pc-windows-msvc", "x86-64", AVX2, {"vpmaddubsw": 24, "vpshufb": 16, "vcvtph2ps": 1}),
    ("portable", X86, "x86-64", "", {}),
    ("portable", ARM64, "generic", "", {}),
    ("portable", "powerpc64le-unknown-linux-gnu", "pwr8", "", {}),
]
CALL = "call[lq]?|jmp[lq]?|blr?|br?"


def instructions(write, addresses, name, *target):
    """How often each instruction comes in what `write` emits, and the lines that call something."""
    module, machine = compile_for(trace(variant_of(name), write, addresses), *target)
    assembly = machine.emit_assembly(module)
    lines = re.findall(r"^\s+((?:\{vex\}\s+)?[a-z]\w*)\b(.*)", assembly, re.MULTILINE)
    calls = [(instruction, to) for instruction, to in lines if to and re.fullmatch(CALL, instruction)]
    return Counter(" ".join(instruction.split()) for instruction, _ in lines), calls


@pytest.mark.parametrize(("name", "triple", "cpu", "features", "expected"), TARGETS)
def test_compiled_for_other_machines(name, triple, cpu, features, expected):
    """The instructions that it is for, and no call: what the compiler can't do it calls a library for."""
    try:
        binding.Target.from_triple(triple)
    except RuntimeError as error:  # an llvmlite built for fewer
        pytest.skip(str(error))
    found, calls = instructions(every_operation, 2, name, triple, cpu, features)
    assert found >= Counter(expected)
    assert not calls
    found, calls = instructions(row_group_kernels, 5, name, triple, cpu, features)
    assert set(expected) <= set(found)
    assert not calls


MAIN = """
#include <stdint.h>
#include <stdio.h>
void every_operation(int64_t, int64_t);
int main(void) {
    static char record[%d], result[%d];
    while (fread(record, sizeof record, 1, stdin)) {
        every_operation((int64_t)record, (int64_t)result);
        fwrite(result, sizeof result, 1, stdout);
    }
}
"""


@pytest.mark.parametrize("name", ["neon", "portable"])
def test_run_on_an_emulated_arm64(name, numbers, tmp_path):
    qemu, cross_compiler = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")
    if not (qemu and cross_compiler):
        pytest.skip("needs qemu-aarch64 and aarch64-linux-gnu-gcc")
    variant = variant_of(name)
    features = "+dotprod" if name == "neon" else ""
    code = trace(variant, every_operation, 2)
    module, machine = compile_for(code, ARM64, "generic", features, reloc="pic")
    (tmp_path / "kernel.o").write_bytes(machine.emit_object(module))
    (tmp_path / "main.c").write_text(MAIN % (RECORD.itemsize, RESULT.itemsize))
    program = tmp_path / "program"
    sources = [tmp_path / "main.c", tmp_path / "kernel.o"]
    built = subprocess.run(
        [cross_compiler, "-static", *sources, "-o", program], capture_output=True, text=True
    )
    if "libc" in built.stderr or "crt1.o" in built.stderr:
        pytest.skip("needs libc6-dev-arm64-cross")
    assert built.returncode == 0, built.stderr
    records = records_of(numbers, variant).tobytes()
    ran = subprocess.run(
        [qemu, "-cpu", "max", program], input=records, capture_output=True, check=True, timeout=60
    )
    assert_results(np.frombuffer(ran.stdout, RESULT), numbers, variant.F32_LANES)


# Which one a machine gets


def test_sdot_is_named_to_numba_but_not_too_late(monkeypatch):
    """Numba has long compiled for this machine, an x86 or an arm64 that has been told."""
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    assert isa._compiles_sdot() == ("neon" in isa.available())
    assert "+dotprod" in config.CPU_FEATURES.split(",")


@pytest.mark.parametrize(("has", "compiles", "expected"), [(1, 1, ["neon"]), (0, 1, []), (1, 0, [])])
@pytest.mark.parametrize("machine", ["arm64", "aarch64", "ARM64"])
def test_arm64_takes_sdot_where_it_can(machine, has, compiles, expected, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(isa, "_has_sdot", lambda: has)
    monkeypatch.setattr(isa, "_compiles_sdot", lambda: compiles)
    assert isa.available() == [*expected, "portable"]


X86_FEATURES = [
    ("avx2 fma f16c avxvnni", ["vnni", "avx2", "portable"]),
    (AVX512.replace("+", "").replace(",", " "), ["avx512", "vnni", "avx2", "portable"]),
    ("avx2 fma f16c avx512vnni avx512vl", ["vnni", "avx2", "portable"]),
    ("avx2 fma f16c avx512vnni", ["avx2", "portable"]),
    ("avx2 fma avxvnni", ["portable"]),
    ("", ["portable"]),
]


@pytest.mark.parametrize(("features", "expected"), X86_FEATURES)
def test_x86_takes_the_best_that_it_has(features, expected, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    monkeypatch.setattr(isa, "_llvm_features", lambda: dict.fromkeys(features.split(), True))
    assert isa.available() == expected
    assert [isa._choose(None), isa._choose("portable")] == [expected[0], "portable"]
    with pytest.raises(UsageError, match=f"'neon'; this machine can run {', '.join(expected)}"):
        isa._choose("neon")


def test_other_machines_take_plain_code(monkeypatch):
    def unknown():
        raise RuntimeError

    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr(binding, "get_host_cpu_features", unknown)
    assert isa.available() == ["portable"]


@pytest.mark.parametrize(
    ("machine", "cpu", "well"),
    [
        ("x86_64", "znver5", True),
        ("AMD64", "znver3", True),
        ("x86_64", "sapphirerapids", False),
        ("AMD64", "alderlake", False),
        ("arm64", "apple-m1", True),
    ],
)
def test_only_where_it_streams_well_is_a_line_asked_for_as_read_once(machine, cpu, well, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: cpu)
    assert isa._streams_well() is well
