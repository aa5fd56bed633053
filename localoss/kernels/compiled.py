"""How kernels are jitted: their floating-point rules, and where compiled code is kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel as regions

from localoss import settings
from localoss.plan import sizes
from quant.format import weight_formats
from quant.format.kernel_cache import KernelFolder, keep_else_in

# No nnan and no ninf: with them isnan is compiled away, and the softmax relies on infinities.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
_SOURCES = [*Path(__file__).parent.rglob("*.py"), Path(sizes.__file__), Path(weight_formats.__file__)]
keep_else_in(settings.given_home)
FOLDER = KernelFolder(_SOURCES, settings.simd() or "best")


def _kept(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's jit with `options`, whose compiled code is kept on disk; without the form for callers in C."""
    compiled = njit(nogil=True, no_cfunc_wrapper=True, **options)
    return lambda function: FOLDER.cached(_without_lock(compiled(function)))


def _without_lock(dispatcher: Any) -> Any:
    """`dispatcher`, a jitted function, whose parallel loops leave Python's lock alone.

    Numba has each of them take it twice, to be sure that it lets go of it, which our callers have done: 121
    loops a token of 24 layers, and where another thread runs Python each waits for that thread.
    """
    usual = dispatcher._compiler.compile

    def compile_it(args: Any, return_type: Any) -> Any:
        with global_compiler_lock, _loops_without_lock():
            return usual(args, return_type)

    dispatcher._compiler.compile = compile_it
    return dispatcher


@contextmanager
def _loops_without_lock() -> Iterator[None]:
    """Have Numba compile parallel loops so; a host program's functions are compiled as they were."""
    usual = getattr(regions, "build_gufunc_kernel", None)
    if usual is None:  # another Numba, whose loops take the lock
        yield
        return

    def build(library: Any, context: Any, *rest: Any) -> Any:
        return usual(library, _Context(context), *rest)

    regions.build_gufunc_kernel = build
    try:
        yield
    finally:
        regions.build_gufunc_kernel = usual


class _Context:
    """Numba's context, but that Python's lock is neither taken nor given back in what is compiled with it."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def get_python_api(self, builder: Any) -> Any:
        return _NoLock()


class _NoLock:
    def gil_ensure(self) -> None:
        """Nothing is ensured."""

    def save_thread(self) -> None:
        """The caller has let go of it."""

    def restore_thread(self, state: None) -> None:
        """The caller takes it again."""

    def gil_release(self, state: None) -> None:
        """Nothing was ensured."""


def _for_kernels_alone(made: Callable[[Callable[..., Any]], Any]) -> Callable[[Callable[..., Any]], Any]:
    """As `made`, which leaves out the form for callers in Python; calling it from there is an error."""

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = made(function)

        def add_overload(compiled: Any) -> None:
            kernel.overloads[tuple(compiled.signature.args)] = compiled  # where C looks, it isn't found

        def refuse(*arguments: Any, **named: Any) -> None:
            raise TypeError(f"{function.__name__} is for other kernels: Python can't call it")

        kernel.add_overload, kernel._compile_for_args = add_overload, refuse
        return kernel

    return decorate


jit = _kept(fastmath=FASTMATH)
# A function's form for Python takes a fifth of what compiling a small one does.
inner = _for_kernels_alone(_kept(fastmath=FASTMATH, no_cpython_wrapper=True))
parallel = _kept(fastmath=FASTMATH, parallel=True)
# Where how long a loop runs hangs on how a prompt was cut: the order of a sum must not hang on that.
_IN_ORDER = {"nsz", "contract"}
jit_in_order = _kept(fastmath=_IN_ORDER)
inner_in_order = _for_kernels_alone(_kept(fastmath=_IN_ORDER, no_cpython_wrapper=True))
