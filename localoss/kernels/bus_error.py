"""What is said when a mapped file loses its end: reading there is a SIGBUS, which no Python code can catch.

A handler in machine code looks up whose memory it was, writes one line, and ends the process. Where the fault
is in other memory, or a host program has a handler of its own, all is as it would be without this.
"""

import ctypes
import functools
import mmap
import signal
import sys
import weakref
from typing import Any

import numpy as np
from llvmlite import binding, ir

_ENTRIES = 4096  # files of a model, and then some: what comes later is not looked up
_ADDRESS_IN_SIGINFO = 16  # bytes; si_addr, on 64-bit Linux
_FLAGS = 4 | 0x80000000 | 0x40000000  # SA_SIGINFO, SA_RESETHAND, SA_NODEFER: a second fault ends it at once
_Entries = ctypes.c_int64 * (4 * _ENTRIES)


class _Sigaction(ctypes.Structure):
    """struct sigaction of glibc and musl."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def name_faults(mapped: mmap.mmap, line: str) -> None:
    """As long as `mapped` is there, a fault in it is told as `line`, and ends the process with code 1."""
    if (entries := _table()) is None:
        return
    free = next((at for at in range(0, len(entries), 4) if not entries[at]), None)
    if free is None:
        return
    begin = np.frombuffer(mapped, np.uint8).ctypes.data
    text = ctypes.create_string_buffer(f"error: {line}\n".encode())
    entries[free + 1 : free + 4] = [begin + len(mapped), ctypes.addressof(text), len(text) - 1]
    entries[free] = begin  # last: from now on it counts
    weakref.finalize(mapped, _forget, entries, free, text).atexit = False


def _forget(entries: Any, at: int, text: Any) -> None:
    entries[at] = 0


@functools.cache
def _table() -> Any:
    """Where the handler looks: begin, end, and a line's address and bytes, of each file; None without one."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    libc = ctypes.CDLL(None)
    before = _Sigaction()
    if libc.sigaction(signal.SIGBUS, None, ctypes.byref(before)) or before.handler:
        return None
    entries = _Entries()
    address = _compiled(ctypes.addressof(entries), libc)
    wanted = _Sigaction(handler=address, flags=ctypes.c_int(_FLAGS & 0xFFFFFFFF).value)
    if libc.sigaction(signal.SIGBUS, ctypes.byref(wanted), None):
        return None
    return entries


def _compiled(table: int, libc: Any) -> int:
    """The address of the handler, which stays for as long as the process."""
    module = _module(table, *(_address(function) for function in (libc.write, libc._exit)))
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine()
    parsed = binding.parse_assembly(str(module))
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _kept.append(engine)
    return int(engine.get_function_address("on_bus_error"))


_kept: list[Any] = []


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _module(table: int, write: int, leave: int) -> ir.Module:
    """on_bus_error(signal, siginfo, context): it allocates and locks nothing, and makes two system calls."""
    i32, i64 = ir.IntType(32), ir.IntType(64)
    module = ir.Module()
    handler = ir.Function(module, ir.FunctionType(ir.VoidType(), [i32, i64, i64]), "on_bus_error")
    start, loop, look, tell, after, end = (handler.append_basic_block(name) for name in "abcdef")
    build = ir.IRBuilder(start)

    def load(address: Any) -> Any:
        return build.load(build.inttoptr(address, i64.as_pointer()))

    def call(address: int, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [one.type for one in arguments])
        return build.call(build.inttoptr(i64(address), kind.as_pointer()), arguments)

    fault = load(build.add(handler.args[1], i64(_ADDRESS_IN_SIGINFO)))
    build.branch(loop)
    build.position_at_end(loop)
    at = build.phi(i64)
    at.add_incoming(i64(table), start)
    begin = load(at)
    is_after = build.icmp_unsigned(">=", fault, begin)
    build.cbranch(build.and_(build.icmp_unsigned("!=", begin, i64(0)), is_after), look, after)
    build.position_at_end(look)
    build.cbranch(build.icmp_unsigned("<", fault, load(build.add(at, i64(8)))), tell, after)
    build.position_at_end(tell)
    text, size = load(build.add(at, i64(16))), load(build.add(at, i64(24)))
    call(write, i64, i32(2), text, size)
    call(leave, ir.VoidType(), i32(1))
    build.branch(end)
    build.position_at_end(after)
    following = build.add(at, i64(32))
    at.add_incoming(following, after)
    is_last = build.icmp_unsigned(">=", following, i64(table + 32 * _ENTRIES))
    build.cbranch(is_last, end, loop)
    build.position_at_end(end)
    build.ret_void()
    return module
