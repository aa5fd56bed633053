"""A model directory as one GGUF file for llama.cpp: codes and scales as they are, in ggml's order.

int8 becomes Q8_0, int4 Q4_0 and MXFP4 MXFP4, all without rounding; vectors and router are float32. Needs the
gguf package.
"""

from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantError
from quant.format import disk
from quant.format.config import ModelConfig
from quant.format.hf_names import EMBEDDING, EXPERT_MATRICES, FINAL_NORM, UNEMBEDDING, layer_prefix
from quant.format.numbers import GROUP, bf16_to_f32
from quant.format.weight_formats import MXFP4, WEIGHT_FORMATS
from quant.format.writer import PART
from quant.gguf_vocabulary import CALL, add_placeholder, add_vocabulary
from quant.sources.gguf import LAYER_NAMES
from quant.sources.gguf_file import FORMATS, ggml_mxfp4
from quant.sources.model import Coded, ModelSource

ROWS = 4096  # of a matrix, coded at once
FILE_TYPE_MXFP4 = 38  # MOSTLY_MXFP4_MOE
Progress = Callable[[int, int], None]
Tensor = tuple[str, str, tuple[int, ...], Callable[[], Iterator[NDArray[Any]]]]  # name, format, shape, data


def export_gguf(
    model: Path, out: Path, progress: Progress | None = None, vocabulary: Path | None = None
) -> int:
    """Write model directory `model` into the new GGUF file `out`; gives its size in bytes.

    `progress(done_bytes, total_bytes)`. `vocabulary`: tiktoken's o200k_base.tiktoken; without it, and with
    fewer tokens than gpt-oss has, ids are right but have no text. Raises: QuantError if `model` is no model,
    `out` is there already, cannot be written or has no room, or the gguf package is missing.
    """
    gguf = _gguf()
    if out.exists():
        raise QuantError(f"{out}: is there already; name a new file")
    part = out.with_name(out.name + PART)
    with ModelSource(model, as_stored=True) as source:
        source.require_tensors()
        try:
            _write(gguf, source, part, progress, vocabulary)
            with FileIO(part, "r+") as file:
                disk.sync(file)
            disk.replace(part, out)
            disk.sync_folder(out.absolute().parent)
        except OSError as error:
            raise disk.disk_error(error, out) from None
        finally:
            part.unlink(missing_ok=True)
    return out.stat().st_size


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise QuantError("writing GGUF needs the gguf package: pip install 'localoss[gguf]'") from None
    return gguf


def _write(
    gguf: Any, source: ModelSource, path: Path, progress: Progress | None, vocabulary: Path | None
) -> None:
    writer = gguf.GGUFWriter(path, "gpt-oss")
    writer.add_name(source.manifest.source.name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_metadata(gguf, writer, source.config)
    if vocabulary and source.config.vocab > CALL:
        add_vocabulary(writer, vocabulary, source.config.vocab)
    else:
        add_placeholder(writer, source.config.vocab)
    tensors = list(_tensors(source))
    total_bytes = done_bytes = 0
    for name, form, shape, _ in tensors:
        _, weights, size = next(known for known in FORMATS.values() if known[0] == form)
        row_bytes = shape[-1] // weights * size
        nbytes = int(np.prod(shape[:-1])) * row_bytes
        total_bytes += nbytes
        kind = gguf.GGMLQuantizationType[form]
        dtype = np.dtype(np.float32 if form == "F32" else np.uint8)
        given = shape if form == "F32" else (*shape[:-1], row_bytes)
        writer.add_tensor_info(name, given, dtype, nbytes, raw_dtype=kind)
    disk.check_room(path.with_suffix(""), total_bytes, disk.free_bytes(path.absolute().parent))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    output = writer.fout[0]
    for _, _, _, pieces in tensors:
        writer.write_padding(output, output.tell())
        for piece in pieces():
            output.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            done_bytes += piece.nbytes
            if progress:
                progress(done_bytes, total_bytes)
    writer.write_padding(output, output.tell())
    writer.close()


def _add_metadata(gguf: Any, writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_expert_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope.factor)
    writer.add_rope_scaling_orig_ctx_len(config.rope.original_context)
    writer.add_rope_scaling_yarn_beta_fast(config.rope.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(config.rope.beta_slow)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.experts)
    writer.add_expert_used_count(config.active_experts)
    writer.add_sliding_window(config.sliding_window)
    writer.add_file_type(FILE_TYPE_MXFP4)


def _tensors(source: ModelSource) -> Iterator[Tensor]:
    """Every tensor of the file, its data made when asked for."""
    dtypes, config = source.manifest.dtypes, source.config
    yield _matrix(source, "token_embd.weight", EMBEDDING, dtypes.embedding)
    yield _vector(source, "output_norm.weight", FINAL_NORM)
    yield _matrix(source, "output.weight", UNEMBEDDING, dtypes.unembedding)
    for layer in range(config.layers):
        prefix, block = layer_prefix(layer), f"blk.{layer}."
        for name, stored in LAYER_NAMES.items():
            if name == "mlp.router.weight":
                yield _router(source, block + stored[0], prefix + name)
            elif name.endswith("o_proj.weight"):
                yield _matrix(source, block + stored[0], prefix + name, dtypes.attention)
            else:
                yield _vector(source, block + stored[0], prefix + name)
        for letter in "qkv":
            name = f"{prefix}self_attn.{letter}_proj."
            yield _matrix(source, f"{block}attn_{letter}.weight", name + "weight", dtypes.attention)
            yield _vector(source, f"{block}attn_{letter}.bias", name + "bias")
        gate_up, down = EXPERT_MATRICES
        for name, matrix, rows in (
            ("gate", gate_up, slice(0, None, 2)),
            ("up", gate_up, slice(1, None, 2)),
            ("down", down, slice(None)),
        ):
            yield from _experts(source, f"{block}ffn_{name}_exps.", layer, matrix, rows)


def _matrix(source: ModelSource, stored: str, name: str, dtype: str) -> Tensor:
    def pieces() -> Iterator[NDArray[Any]]:
        rows = source.shape(name)[0]
        for start in range(0, rows, ROWS):
            yield _ggml(source.coded(name, start, min(start + ROWS, rows)))

    return stored, WEIGHT_FORMATS[dtype].ggml, source.shape(name), pieces


def _router(source: ModelSource, stored: str, name: str) -> Tensor:
    rows, columns = source.shape(name)
    return stored, "F32", (rows, columns), lambda: iter([bf16_to_f32(source.rows(name, 0, rows))])


def _vector(source: ModelSource, stored: str, name: str) -> Tensor:
    return stored, "F32", source.shape(name), lambda: iter([source.vector(name)])


def _experts(source: ModelSource, stored: str, layer: int, matrix: str, rows: slice) -> Iterator[Tensor]:
    config = source.config
    columns = config.intermediate if matrix == "down_proj" else config.hidden
    count = config.hidden if matrix == "down_proj" else config.intermediate

    def weights() -> Iterator[NDArray[Any]]:
        for expert in range(config.experts):
            dtype, codes, scales = source.coded_expert(layer, matrix, expert)
            yield _ggml(Coded(dtype, codes[rows], None if scales is None else scales[rows]))

    def biases() -> Iterator[NDArray[Any]]:
        for expert in range(config.experts):
            yield source.expert_bias(layer, matrix, expert)[rows]

    form = WEIGHT_FORMATS[source.manifest.dtypes.experts].ggml
    yield f"{stored}weight", form, (config.experts, count, columns), weights
    yield f"{stored}bias", "F32", (config.experts, count), biases


def _ggml(coded: Coded) -> NDArray[Any]:
    """`coded` in ggml's order: every block of 32 with its scale before it."""
    if coded.scales is None:
        return coded.codes  # bfloat16
    if coded.dtype == MXFP4.name:
        return ggml_mxfp4(coded.codes, coded.scales)
    blocks = coded.codes.reshape(len(coded.codes), -1, GROUP)
    if WEIGHT_FORMATS[coded.dtype].bits == 4:  # column i beside i + 16, both 8 above what they mean
        halves = (blocks + np.int8(8)).astype(np.uint8)
        blocks = halves[..., :16] | (halves[..., 16:] << 4)
    scales = np.ascontiguousarray(coded.scales)[:, :, None].view(np.uint8)
    return np.concatenate([scales, blocks.view(np.uint8)], axis=2)
