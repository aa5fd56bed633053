"""A GGUF file written again with other tensors, metadata or kind, by the gguf package."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Tensors = Iterable[tuple[str, Any, Any]]  # name, data, gguf's number format


def rewrite(
    source: Path,
    out: Path,
    tensor: Callable[[Any], Tensors] = lambda tensor: [(tensor.name, tensor.data, tensor.tensor_type)],
    architecture: str = "gpt-oss",
    drop: tuple[str, ...] = (),
    add: dict[str, Any] | None = None,
) -> Path:
    """Write `out` from `source`: `tensor` gives what becomes of each, `drop` names keys to leave out."""
    import gguf

    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", *drop):
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        inner = {"sub_type": field.types[-1]} if is_array else {}
        writer.add_key_value(field.name, field.contents(), field.types[0], **inner)
    for key, value in (add or {}).items():
        _add(writer, key, value)
    for given in reader.tensors:
        for name, data, kind in tensor(given):
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
