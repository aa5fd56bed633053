"""A filter of system calls for the sandbox: one process with threads, and none of what reaches around it.

Programs can't be started and processes can't be forked, so that there is nothing to bomb with. Written as the
kernel takes it: instructions of classic BPF. Source: seccomp(2), linux/filter.h, linux/audit.h.
"""

import platform
import struct

from localoss.errors import UsageError

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | 1, 0x00050000 | 38
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, whose low half comes first
_CLONE_THREAD = 0x00010000
_X32_NUMBERS = 0x40000000
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_SOCKET = {"x86_64": 41, "aarch64": 198}
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6, which have namespaces; AF_VSOCK reaches a machine's host
# fork, vfork, execve, execveat, mount, umount2, pivot_root, chroot, ptrace, process_vm_*, unshare, setns,
# keys, bpf, perf, userfaultfd, io_uring, kexec, modules, open_by_handle_at; and what has memory that no bound
# of addresses counts: memfd_create, memfd_secret, shmget
_FORBIDDEN = {
    "x86_64": (
        57, 58, 59, 322, 165, 166, 155, 161, 101, 310, 311, 272, 308, 248, 249, 250, 321, 298, 323, 425,
        426, 427, 246, 175, 176, 313, 304, 319, 447, 29,
    ),
    "aarch64": (
        221, 281, 40, 39, 41, 51, 117, 270, 271, 97, 268, 217, 218, 219, 280, 241, 282, 425, 426, 427,
        104, 105, 106, 273, 265, 279, 447, 194,
    ),
}  # fmt: skip


def program(machine: str | None = None) -> bytes:
    """The filter for `machine`, this one by default. Raises: UsageError for one that isn't known."""
    machine = machine or platform.machine()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine)
    if machine not in _AUDIT:
        raise UsageError(f"cpython's sandbox isn't known for {machine}; use the python tool")
    rules = [
        _step(_LOAD, _ARCH),
        _step(_JUMP_EQUAL, _AUDIT[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        rules += [_step(_JUMP_AT_LEAST, _X32_NUMBERS, 0, 1), _step(_RETURN, _KILL)]
    for number in _FORBIDDEN[machine]:
        rules += [_step(_JUMP_EQUAL, number, 0, 1), _step(_RETURN, _EPERM)]
    count = len(_FAMILIES)
    rules += [
        _step(_JUMP_EQUAL, _SOCKET[machine], 0, count + 3),
        _step(_LOAD, _FIRST_ARGUMENT),
        *(_step(_JUMP_EQUAL, family, count - i, 0) for i, family in enumerate(_FAMILIES)),
        _step(_RETURN, _EPERM),
        _step(_RETURN, _ALLOW),
        _step(_JUMP_EQUAL, _CLONE3, 0, 1),
        _step(_RETURN, _ENOSYS),  # the C library then uses clone, whose flags can be looked at
        _step(_JUMP_EQUAL, _CLONE[machine], 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_AND, _CLONE_THREAD),
        _step(_JUMP_EQUAL, _CLONE_THREAD, 1, 0),
        _step(_RETURN, _EPERM),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(rules)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
