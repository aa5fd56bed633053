"""A reader of model directories written from docs/format.md alone: every weight as float32."""

import json
import struct

import numpy as np

TYPES = {"U8": "u1", "I8": "i1", "F16": "<f2", "F32": "<f4", "BF16": "<u2"}
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "f4")
FP4 = np.concatenate([FP4, -FP4])


def read_file(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    bounds = {
        name: [8 + length + offset for offset in entry["data_offsets"]] for name, entry in header.items()
    }
    return {
        name: np.frombuffer(data[bounds[name][0] : bounds[name][1]], TYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def bf16(bits):
    return (bits.astype("u4") << 16).view("f4")


def untile(tiles, scales, kind):
    """(R, C) float32 of tiles (R/8, C/32, bytes) and scales (R/8, C/32, 8)."""
    codes = np.empty((len(tiles), 8, tiles.shape[1], 32), "u2" if kind == "bf16" else "u1")  # R/8, r, C/32, c
    units = tiles.view("<u2") if kind == "bf16" else tiles
    for r in range(8):
        for c in range(32):
            if kind == "bf16":
                codes[:, r, :, c] = units[:, :, 16 * (c // 2) + 2 * r + c % 2]
            elif kind == "int8":
                codes[:, r, :, c] = units[:, :, 32 * (c // 4) + 4 * r + c % 4]
            else:
                codes[:, r, :, c] = units[:, :, 32 * (c // 8) + 4 * r + c % 4] >> (4 if c % 8 > 3 else 0) & 15
    if kind == "bf16":
        values = bf16(codes)
    else:
        scales = scales.transpose(0, 2, 1)[:, :, :, None]
        if kind == "mxfp4":
            values = FP4[codes] * np.exp2(scales.astype("f4") - 127)
        else:
            signed = codes.view("i1").astype("f4") if kind == "int8" else (codes ^ 8).astype("f4") - 8
            values = signed * scales.astype("f4")
    return values.reshape(8 * len(tiles), -1)


def matrix(tensors, name, kind, rows):
    return untile(tensors[f"{name}.codes"], tensors.get(f"{name}.scales"), kind)[:rows]


def expert(run, d, i, kind):
    """gate_up (2I, D), down (D, I) and their biases from one expert's run."""
    half, item, type_ = {"mxfp4": (1, 1, "u1"), "int4": (1, 2, "<f2"), "bf16": (4, 0, "u1")}[kind]
    at, parts = 0, []
    for size in (half * i * d, i * d // 16 * item, half * d * i // 2, d * i // 32 * item, 8 * i, 4 * d):
        parts.append(run[at : at + size])
        at += -(-size // 64) * 64
    shapes = [(2 * i // 8, d // 32, -1), (d // 8, i // 32, -1)]
    gate_up, down = (
        untile(parts[2 * n].reshape(shapes[n]), parts[2 * n + 1].view(type_).reshape(shapes[n]), kind)
        for n in (0, 1)
    )
    return gate_up, down, parts[4].view("<f4"), parts[5].view("<f4")
