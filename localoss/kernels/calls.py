"""Kernels that compiled code calls by their address.

Numba compiles what a function calls once more with the function, and again with whoever calls that: a quarter
of a first start. By address the machine code is there once, the same for everybody, to the last bit.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic


def entry_point(kernel: Any, arguments: tuple[Any, ...]) -> int:
    """Where the machine code lies that `kernel`, which was called with `arguments` before, ran for them.

    Raises: KeyError if it never was called with such.
    """
    return _address(kernel, tuple(map(kernel.typeof_pyval, arguments)))


def _address(kernel: Any, kinds: tuple[Any, ...]) -> int:
    compiled = kernel.overloads[kinds]
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address


class Routine:
    """`kernel`, for arguments of these types alone: what gives its address."""

    def __init__(self, kernel: Any, *kinds: Any) -> None:
        self._kernel, self._kinds = kernel, kinds

    @cached_property
    def address(self) -> int:
        """Compiles it, or loads it from the disk."""
        self._kernel.compile(self._kinds)
        return _address(self._kernel, self._kinds)


def _called(result: Any, arguments: Any) -> Any:
    """What an intrinsic gives that calls what lies at an address with a tuple of arguments."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, packed = values
        kinds = signature.args[1].types
        function = context.call_conv.get_function_type(result, kinds)
        pointer = builder.inttoptr(address, function.as_pointer())
        unpacked = cgutils.unpack_tuple(builder, packed)
        status, value = context.call_conv.call_function(builder, pointer, result, kinds, unpacked)
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value() if result == types.none else value

    return result(types.int64, arguments), build


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call what gives nothing and takes arguments of just these types."""
    return _called(types.none, arguments)


@intrinsic
def call_for_number(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call what gives an i64 and takes arguments of just these types."""
    return _called(types.int64, arguments)


def _put(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    place = cgutils.alloca_once(builder, values[0].type)
    builder.store(values[0], place)
    return builder.ptrtoint(place, context.get_value_type(types.int64))


def _taken(result: Any) -> Any:
    """What an intrinsic gives that reads a tuple of this type at an address."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = context.get_value_type(result)
        value = builder.load(builder.inttoptr(values[0], kind.as_pointer()))
        return impl_ret_borrowed(context, builder, result, value)

    return build


def _writable(kind: Any) -> Any:
    """`kind`, with its arrays for writing: mapped files' lie in memory as all others do."""
    if isinstance(kind, types.Array):
        return kind.copy(readonly=False)
    return types.Tuple([*map(_writable, kind)]) if isinstance(kind, types.BaseTuple) else kind


def packing(kinds: Sequence[Any] | Mapping[str, Sequence[Any]]) -> tuple[Any, Any]:
    """Two functions for compiled code, by which a tuple goes through an address.

    The first gives the address of a tuple's copy, which lasts as long as the function that asks for it runs.
    Its types must be these kinds, or those of one of the words: no other tuple compiles. The second one reads
    it: of an address, and of the word, if there are several, which is known when it is compiled.
    """
    forms = kinds if isinstance(kinds, Mapping) else {"": kinds}
    known = {word: types.Tuple(its) for word, its in forms.items()}

    @intrinsic
    def put(typing_context: Any, arguments: Any) -> Any:
        if _writable(arguments) not in known.values():
            raise TypingError(f"{arguments} isn't one of {[*known.values()]}")
        return types.int64(arguments), _put

    @intrinsic(prefer_literal=True)
    def take_of(typing_context: Any, address: Any, word: Any) -> Any:
        result = known[word.literal_value]
        return result(types.int64, word), _taken(result)

    @intrinsic
    def take(typing_context: Any, address: Any) -> Any:
        return known[""](types.int64), _taken(known[""])

    return put, take_of if forms is kinds else take
