"""The text of a shader: files of shaders/ one after the other, with constants before them."""

from functools import cache
from importlib import resources

from quant.format.weight_formats import WEIGHT_FORMATS

_BATCH = """struct Batch {
  tokens: u32,
  position: u32,  // of the first token in its sequence, where these are the tokens of one
  first_row: u32,  // of x or qkv, where not all rows are wanted
  runs: u32,  // how many runs of experts.wgsl are dispatched
}
"""
# What main has besides in a shader with whole_subgroups.wgsl.
_SUBGROUPS = """,
    @builtin(subgroup_id) its_number: u32,
    @builtin(num_subgroups) its_count: u32,
    @builtin(subgroup_invocation_id) its_place: u32) {
  subgroup_number = its_number;
  subgroup_count = its_count;
  subgroup_place = its_place;"""
# Quads of columns that a thread takes of a tile: two where a byte holds two columns.
_QUADS = {name: 2 if form.bits == 4 else 1 for name, form in WEIGHT_FORMATS.items()}


def source(*files: str, **constants: int | float | bool) -> str:
    """`files` of shaders/ without their ending, the first ones used by the later ones.

    `constants` become WGSL constants. A float32 is written so that it reads back as the same number.
    """
    repeats = {"m": range(int(constants.get("M", 1))), "q": range(1, max(_QUADS.get(f, 1) for f in files))}
    lines = [line for file in files for line in _expand(_read(file).splitlines(), repeats)]
    if "whole_subgroups" in files:
        lines = [
            line.removesuffix(") {") + _SUBGROUPS if line.startswith("fn main(") else line for line in lines
        ]
    head = [f"const {name} = {_literal(value)};" for name, value in constants.items()]
    return "\n".join([*head, _BATCH, *lines])


@cache
def _read(file: str) -> str:
    return (resources.files(__package__) / "shaders" / f"{file}.wgsl").read_text(encoding="utf-8")


def _literal(value: int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value}u" if isinstance(value, int) else f"{value!r}f"


def _expand(lines: list[str], repeats: dict[str, range]) -> list[str]:
    """Write what stands between `// each m` and `// end` once for each m, which @ stands for ($ for q).

    Sums in variables of their own stay in registers, whatever a driver's compiler does about loops.
    """
    out: list[str] = []
    at = 0
    while at < len(lines):
        if not lines[at].startswith("// each "):
            out.append(lines[at])
            at += 1
            continue
        name, end = lines[at].removeprefix("// each "), _end(lines, at)
        inner = lines[at + 1 : end]
        for value in repeats[name]:
            mark = {"m": "@", "q": "$"}[name]
            out += _expand([line.replace(mark, str(value)) for line in inner], repeats)
        at = end + 1
    return out


def _end(lines: list[str], begin: int) -> int:
    """Where the `// end` of the `// each` in line `begin` is."""
    depth = 0
    for at in range(begin, len(lines)):
        depth += lines[at].startswith("// each ") - (lines[at] == "// end")
        if not depth:
            return at
    raise ValueError(f"no end for {lines[begin]!r}")
