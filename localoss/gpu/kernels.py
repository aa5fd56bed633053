"""The shaders of one model, compiled for its dimensions."""

from typing import Any

from localoss.gpu.device import Device, Kernel
from localoss.gpu.features import Features, features_of
from localoss.gpu.sources import source
from localoss.gpu.weights import GpuMatrix
from quant.format.config import SWIGLU_ALPHA, ModelConfig
from quant.format.layout import expert_run, round_up
from quant.format.manifest import Dtypes
from quant.format.weight_formats import MXFP4, WEIGHT_FORMATS


class Kernels:
    """Every kernel is compiled when it is first asked for, and kept. `at_once`: sizes.tokens_at_once's."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        dtypes: Dtypes,
        kv_dtype: str,
        features: Features | None = None,
    ):
        """features: those of the device, if no others are to be used."""
        self._device, self._config, self._dtypes, self._kv_dtype = device, config, dtypes, kv_dtype
        self._features = features or features_of(device)
        self._compiled: dict[tuple[Any, ...], Kernel] = {}
        self._heads = {
            "HEADS": config.heads,
            "KV_HEADS": config.kv_heads,
            "HEAD_DIM": config.head_dim,
        }

    def norm(self, adding: bool = False) -> Kernel:
        return self._kernel(
            "wrrrrwu",
            self._whole,
            "norm",
            COLUMNS=self._config.hidden,
            ACTIVE=self._config.active_experts,
            EPS=float(self._config.rms_norm_eps),
            ADDING=adding,
        )

    def matmul(self, matrix: GpuMatrix, adding: bool, at_once: int, normed: bool) -> Kernel:
        """normed: its input, of one token, is to be normed on the way."""
        return self._kernel(
            "rrrrwuur" if normed else "rrrrwuu",
            *self._decoding(matrix.dtype),
            "normed" if normed else "plain",
            *self._adding_up(at_once),
            "tiles",
            "matmul",
            M=at_once,
            THREADS=_threads(matrix.dtype, matrix.blocks, at_once),
            BLOCKS=matrix.blocks,
            ROWS=8 * matrix.groups,
            BIASED=matrix.bias is not None,
            ADDING=adding,
            EPS=float(self._config.rms_norm_eps),
        )

    def rotate(self, slots: int) -> Kernel:
        files = f"cache_{self._kv_dtype}", "offsets", "keep", "rotate"
        return self._kernel("wrwwwrru", *files, SIDES=1, SLOTS=slots, **self._heads)

    def attend(self, slots: int, window: int, alone: bool) -> Kernel:
        """alone: of one token of its sequence, which isn't rotated or in the cache yet."""
        constants = {"ALONE": alone, "SLOTS": slots, "WINDOW": window, **self._heads}
        cache = f"cache_{self._kv_dtype}", "offsets", self._whole
        if alone:
            constants |= {"SIDES": 3, "THREADS": 256}
            return self._kernel("rwwwrrrwu", *cache, "keep", "attend_alone", "attend", **constants)
        return self._kernel("rrrrrrwu", *cache, "attend_many", "attend", THREADS=64, **constants)

    def route(self) -> Kernel:
        experts, active = self._config.experts, self._config.active_experts
        constants = {"EXPERTS": experts, "ACTIVE": active, "LOGITS_ROW": round_up(experts, 8)}
        return self._kernel("rrww", "chosen", "route", **constants)

    def sort(self, at_once: int) -> Kernel:
        experts, active = self._config.experts, self._config.active_experts
        return self._kernel("rwwwu", "sort", M=at_once, EXPERTS=experts, ACTIVE=active)

    def gate_up(self, at_once: int) -> Kernel:
        run = expert_run(self._config, self._dtypes.experts)
        places = (run.gate_up_codes, run.gate_up_scales, run.gate_up_bias)
        rows, columns = 2 * self._config.intermediate, self._config.hidden
        if at_once == 1:
            files = "normed", "tiles", "chosen", "alone", "experts"
            return self._experts("rrrwrrur", files, places, (rows, columns), 1)
        sorted_files = "plain", "tiles", "sorted", "experts"
        return self._experts("rrrwrru", sorted_files, places, (rows, columns), at_once)

    def down(self, at_once: int) -> Kernel:
        run = expert_run(self._config, self._dtypes.experts)
        places = (run.down_codes, run.down_scales, run.down_bias)
        rows, columns = self._config.hidden, self._config.intermediate
        last = ("chosen", "alone", "down_alone") if at_once == 1 else ("sorted", "experts")
        return self._experts("rrrwrru", ("plain", "tiles", *last), places, (rows, columns), at_once)

    def _experts(
        self,
        access: str,
        files: tuple[str, ...],
        places: tuple[int, int, int],
        shape: tuple[int, int],
        at_once: int,
    ) -> Kernel:
        """places: byte offsets of codes, scales and bias in an expert's run. shape: rows, columns."""
        run, (codes, scales, bias), (rows, columns) = (
            expert_run(self._config, self._dtypes.experts),
            places,
            shape,
        )
        return self._kernel(
            access,
            *self._decoding(self._dtypes.experts),
            *self._adding_up(at_once),
            *files,
            M=at_once,
            THREADS=_threads(self._dtypes.experts, columns // 32, at_once),
            BLOCKS=columns // 32,
            ROWS=rows,
            GATE_UP=codes == run.gate_up_codes,
            EXPERTS=self._config.experts,
            ACTIVE=self._config.active_experts,
            EPS=float(self._config.rms_norm_eps),
            EXPERT_WORDS=run.size // 4,
            CODES_WORD=codes // 4,
            SCALES_WORD=scales // 4,
            BIAS_WORD=bias // 4,
            ALPHA=SWIGLU_ALPHA,
            LIMIT=float(self._config.swiglu_limit),
        )

    @property
    def _whole(self) -> str:
        """The file that adds up over a workgroup."""
        return "whole_subgroups" if self._features.subgroups else "whole_tree"

    def _adding_up(self, at_once: int) -> tuple[str, ...]:
        """The files that add up products; those of many tokens share few threads, and need no subgroups."""
        if at_once == 1 and self._features.subgroups:
            return "whole_subgroups", "rows_subgroups"
        return "whole_tree", "rows_tree"

    def _decoding(self, dtype: str) -> tuple[str, ...]:
        """The files that decode weights of a format."""
        return (dtype, self._features.fp4_file) if dtype == MXFP4.name else (dtype,)

    def _kernel(self, access: str, *files: str, **constants: int | float | bool) -> Kernel:
        key = (*files, *constants.items())
        if key not in self._compiled:
            self._compiled[key] = self._device.kernel(source(*files, **constants), access)
        return self._compiled[key]


def _threads(dtype: str, blocks: int, at_once: int) -> int:
    """How many threads a workgroup has, for 8 rows of `blocks` blocks.

    Products of a lone token wait for memory, and many threads have much of it on its way at a time.
    """
    if at_once > 1:
        return 64
    lanes = 8 if WEIGHT_FORMATS[dtype].bits == 4 else 16
    return min(max(64, 1 << (blocks * lanes - 1).bit_length()), 256)
