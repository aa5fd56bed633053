"""Random damage to GGUF files' headers, reproducible by the random.Random that is given."""

import struct
from dataclasses import dataclass, field

from support.mutations import HUGE, WORDS, mutate_bytes

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
COUNTS = [0, 1, 2, 7, 2**16, 2**20, 2**31, 2**32, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1]
NAMES = [word.encode("utf-8", "surrogatepass") for word in WORDS] + [
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\0",
]


@dataclass
class Header:
    """A header taken apart; lengths and counts that are None are the true ones."""

    version: int = 3
    pairs: list = field(default_factory=list)  # [key, kind, value bytes]
    tensors: list = field(default_factory=list)  # [name, axes, format, offset]
    data: bytes = b""
    counts: list = field(default_factory=lambda: [None, None])  # of tensors, of pairs
    lies: dict = field(default_factory=dict)  # index of a pair or tensor -> length told of its name


def take_apart(content):
    at = 4

    def scalar(form):
        nonlocal at
        (value,) = struct.unpack_from(form, content, at)
        at += struct.calcsize(form)
        return value

    def string():
        nonlocal at
        length = scalar("<Q")
        at += length
        return content[at - length : at]

    def skip(kind):
        nonlocal at
        if kind == STRING:
            string()
        elif kind == ARRAY:
            inner, count = scalar("<I"), scalar("<Q")
            for _ in range(count):
                skip(inner)
        else:
            at += SIZES[kind]

    header = Header(scalar("<I"))
    tensor_count, pair_count = scalar("<Q"), scalar("<Q")
    for _ in range(pair_count):
        key, kind = string(), scalar("<I")
        start = at
        skip(kind)
        header.pairs.append([key, kind, content[start:at]])
    for _ in range(tensor_count):
        name, axes = string(), scalar("<I")
        header.tensors.append([name, [scalar("<Q") for _ in range(axes)], scalar("<I"), scalar("<Q")])
    header.data = content[-(-at // 32) * 32 :]
    return header


def put_together(header):
    def named(name, place):
        return struct.pack("<Q", header.lies.get(place, len(name))) + name

    tensors = len(header.tensors) if header.counts[0] is None else header.counts[0]
    pairs = len(header.pairs) if header.counts[1] is None else header.counts[1]
    parts = [b"GGUF", struct.pack("<IQQ", header.version, tensors, pairs)]
    for i, (key, kind, value) in enumerate(header.pairs):
        parts += [named(key, ("pair", i)), struct.pack("<I", kind % 2**32), value]
    for i, (name, axes, number, offset) in enumerate(header.tensors):
        parts += [named(name, ("tensor", i)), struct.pack("<I", len(axes))]
        parts += [struct.pack("<Q", axis % 2**64) for axis in axes]
        parts += [struct.pack("<IQ", number % 2**32, offset % 2**64)]
    text = b"".join(parts)
    return text + b"\0" * (-len(text) % 32) + header.data


def mutate_gguf(numbers, content):
    """A GGUF file with one to three things in its header changed, or bytes of it."""
    header = take_apart(content)
    if numbers.randrange(5) == 0:
        text = content[: len(content) - len(header.data)]
        return mutate_bytes(numbers, text) + header.data
    if numbers.randrange(12) == 0:
        return content[: numbers.randrange(len(content))]
    for _ in range(numbers.choice([1, 1, 2, 3])):
        if not header.pairs or not header.tensors:
            break
        numbers.choice([_change_pair, _change_tensor, _change_tensor, _change_frame])(numbers, header)
    return put_together(header)


def _change_pair(numbers, header):
    at = numbers.randrange(len(header.pairs))
    pair = header.pairs[at]
    match numbers.randrange(7):
        case 0:
            pair[0] = numbers.choice(NAMES)
        case 1:
            header.lies["pair", at] = numbers.choice(COUNTS)
        case 2:
            pair[1] = numbers.choice([*range(14), 255, 2**31, 2**32 - 1])
        case 3:
            pair[2] = numbers.randbytes(len(pair[2]))
        case 4 if pair[1] == STRING:
            text = numbers.choice([*NAMES, b"x" * 3_000_000])
            pair[2] = struct.pack("<Q", numbers.choice([len(text), *COUNTS])) + text
        case 4 if pair[1] == ARRAY:
            inner = numbers.choice([*range(14), 99])
            pair[2] = struct.pack("<IQ", inner, numbers.choice(COUNTS)) + numbers.choice([b"", pair[2][12:]])
        case 4 | 5:
            numbers.shuffle(header.pairs)
            if numbers.randrange(2):
                header.pairs.append(pair)
        case _:
            del header.pairs[at]


def _change_tensor(numbers, header):
    at, other = numbers.randrange(len(header.tensors)), numbers.choice(header.tensors)
    tensor = header.tensors[at]
    huge = numbers.choice([value for value in HUGE if type(value) is int] + COUNTS)
    match numbers.randrange(9):
        case 0:
            tensor[0] = numbers.choice([*NAMES, other[0]])
        case 1:
            header.lies["tensor", at] = numbers.choice(COUNTS)
        case 2:
            tensor[1] = numbers.choice([[], [huge], [2**32] * 2, [2**16] * 4, [32] * 5, [0], [32] * 90_000])
        case 3 if tensor[1]:
            tensor[1][numbers.randrange(len(tensor[1]))] = huge
        case 4 if tensor[1]:
            tensor[1][numbers.randrange(len(tensor[1]))] += numbers.choice([-1, 1, 32, -32])
        case 5:
            tensor[2] = numbers.choice([*range(42), 99, 2**31, 2**32 - 1])
        case 6:
            tensor[3] += numbers.choice([-32, 32, 1, -1, 4096, 2**40, 2**63, -(2**20)])
        case 7:
            tensor[3], other[3] = other[3], tensor[3]
        case _:
            tensor[3] = numbers.choice([other[3], huge])


def _change_frame(numbers, header):
    match numbers.randrange(6):
        case 0:
            header.version = numbers.choice([0, 1, 2, 4, 2**31, 2**32 - 1, 0x03000000])
        case 1:
            header.counts[numbers.randrange(2)] = numbers.choice(COUNTS)
        case 2:
            value = numbers.choice([0, 1, 3, 8, 64, 4096, 2**31, 2**32 - 1])
            key = numbers.choice([b"general.alignment", b"split.count"])
            header.pairs.append([key, 4, struct.pack("<I", value)])
        case 3:
            header.data = header.data[: numbers.randrange(len(header.data))]
        case 4:
            header.pairs += [[b"key%d" % i, 4, b"\1\0\0\0"] for i in range(numbers.choice([10, 20_000]))]
        case _:
            header.tensors += [[b"more%d" % i, [32], 0, 0] for i in range(numbers.choice([10, 20_000]))]
