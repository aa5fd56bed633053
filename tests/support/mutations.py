"""Random damage to JSON texts and safetensors headers, reproducible by the random.Random that is given."""

import copy
import json
import struct

HUGE = [2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, 2**53 + 1, 1e308, float("nan"), float("inf")]
WORDS = [
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "C:\\x", "model.safetensors/../x", "a\nb\r\x1b[2J",
    "\ud800", "\ud800.safetensors", "\0", "é" * 300, "x" * 100_000, "../up.safetensors", "x.safetensors",
    "BF16", "F64", "F4", "I8", "BOOL", "null", "__metadata__",
]  # fmt: skip
ODD = [None, True, False, -1, 0, 1, 7, 1.5, -0.0, [], {}, [[]], [0] * 50, {"a": 1}, [2**40] * 6, [-1, 5]]


def deep(depth):
    """`depth` lists inside each other."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def odd_value(numbers):
    kind = numbers.randrange(8)
    if kind < 3:
        return numbers.choice(HUGE)
    if kind < 5:
        return numbers.choice(WORDS)
    if kind == 5 and numbers.random() < 0.3:
        return deep(numbers.choice([3, 90]))
    return copy.deepcopy(numbers.choice(ODD))


def is_flat(value):
    """Whether nothing in `value` has an inside of its own: it may change places without making a circle."""
    inside = value if isinstance(value, list) else [value]
    return not any(isinstance(v, list | dict) for v in inside)


def places(value):
    """(container, key) of everything inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in items:
        found.append((value, key))
        found += places(inner)
    return found


def mutate_value(numbers, value):
    """A copy of JSON `value`, one to three things in it replaced, removed, renamed, swapped or shifted."""
    value = copy.deepcopy(value)
    for _ in range(numbers.choice([1, 1, 2, 3])):
        options = places(value)
        if not options:
            break
        container, key = numbers.choice(options)
        other, other_key = numbers.choice(options)
        match numbers.randrange(6):
            case 0 | 1:
                container[key] = odd_value(numbers)
            case 2:
                del container[key]
            case 3 if isinstance(container, dict):
                container[numbers.choice(WORDS)] = container.pop(key)
            case 4 if is_flat(container[key]) and type(container[key]) is type(other[other_key]):
                container[key], other[other_key] = other[other_key], container[key]
            case _:
                if type(container[key]) is int:
                    container[key] += numbers.choice([-1, 1, 2, -(2**20), 2**20, 2**32, -(2**40)])
                else:
                    container[key] = odd_value(numbers)
    return value


def mutate_bytes(numbers, content):
    """`content` with a few bytes changed, cut off, doubled or put in."""
    content = bytearray(content)
    for _ in range(numbers.choice([1, 2, 8])):
        at = numbers.randrange(len(content) + 1)
        match numbers.randrange(5):
            case 0:
                content[at : at + 1] = bytes([numbers.randrange(256)])
            case 1:
                del content[at : at + numbers.choice([1, 10, 10_000])]
            case 2:
                content[at:at] = numbers.choice(
                    [b"\xff\xfe", b"[" * 50_000, b"9" * 5000, b'"', b"}", b"\0" * 9]
                )
            case 3:
                content[at:at] = content[at : at + 200]
            case 4:
                content[at : at + 8] = numbers.randbytes(8)
    return bytes(content)


def mutate_json(numbers, text):
    """Damaged JSON: on three of four occasions still JSON."""
    if numbers.randrange(4) == 0:
        return mutate_bytes(numbers, text)
    if numbers.randrange(100) == 0:
        return b"[" * 200_000
    if numbers.randrange(100) == 0:
        return text.rstrip()[:-1] + b', "more": [' + b"[]," * 200_000 + b"0]}"
    value = mutate_value(numbers, json.loads(text))
    return json.dumps(value, ensure_ascii=numbers.random() < 0.5).encode("utf-8", "surrogatepass")


def mutate_safetensors(numbers, content):
    """A safetensors file with a damaged header, a wrong length of it, or another end."""
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    match numbers.randrange(10):
        case 0:
            sizes = [0, 1, 7, length - 1, length + 1, len(content), len(content) - 8, 2**31, 2**63, 2**64 - 1]
            return struct.pack("<Q", numbers.choice(sizes)) + content[8:]
        case 1:
            return content[: numbers.randrange(len(content))]
        case 2:
            return content + b"\0" * numbers.choice([1, 8, 4096])
        case _:
            text = mutate_json(numbers, text)
            return struct.pack("<Q", len(text)) + text + data
