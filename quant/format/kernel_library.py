"""Compiled functions as they are kept on disk, made ready without what only a compiler of callers needs.

Numba's own way parses a function's bitcode at once, asks LLVM for the name of each thing in it, and imports
Numba's modules that it was inlined from: more than half of what loading takes. Bitcode is for inlining alone,
so here the names are kept beside it; and of those modules machine code in nopython mode needs nothing.
"""

import io
import pickle
import sys
from typing import Any

import llvmlite.binding as llvm
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult
from numba.core.environment import Environment, _rebuild_env
from numba.core.serialize import dumps


class _KeptLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The library of one function; its bitcode is parsed when another function is compiled with it."""

    def __init__(self, codegen: Any, code: Any, symbols: frozenset[str]) -> None:
        name, _, (machine_code, self._bitcode) = code
        super().__init__(codegen, name)
        self._linked: Any = None
        self.enable_object_caching()
        self._set_compiled_object(machine_code)
        self._finalize_final_module()
        codegen._engine._defined_symbols |= symbols

    def _get_module_for_linking(self) -> Any:
        if self._linked is None:
            self._linked = llvm.parse_bitcode(self._bitcode)
        return self._linked


def _environment(module: str, constants: list[Any], name: str) -> Any:
    """As Numba's own, but that it imports none of Numba's modules: only object mode looks into one."""
    found = Environment._memo.get(name)
    if found is not None or module in sys.modules or not module.startswith("numba."):
        return _rebuild_env(module, constants, name)
    made = Environment({"__name__": module})
    made.consts[:] = constants
    made.env_name = name
    Environment._memo[name] = made
    return made


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (_rebuild_env.__module__, _rebuild_env.__name__):
            return _environment
        return super().find_class(module, name)


def serialized(compiled: Any) -> bytes:
    """What `restored` makes a compiled function of."""
    parts = compiled._reduce()
    module = compiled.library._get_module_for_linking()
    both = (module.functions, module.global_variables)
    names = frozenset(one.name for group in both for one in group if not one.is_declaration)
    content: bytes = dumps((parts, names))
    return content


def restored(context: Any, content: bytes) -> Any:
    """The compiled function that `serialized` gave, in a target's context; as CompileResult._rebuild.

    Which does it where Numba is of a version whose inside this module doesn't know: more slowly.
    Raises: whatever unpickling raises, if `content` is anything else.
    """
    parts, names = _Unpickler(io.BytesIO(content)).load()
    try:
        return _quickly_rebuilt(context, names, *parts)
    except (AttributeError, TypeError):
        return CompileResult._rebuild(context, *parts)


def _quickly_rebuilt(
    context: Any,
    names: frozenset[str],
    code: Any,
    fndesc: Any,
    environment: Any,
    signature: Any,
    *others: Any,
) -> Any:
    """A compiled function of what CompileResult._reduce gave, and the names that its library defines."""
    is_object, lifted, annotation, inits, environments = others
    for init in inits:
        init()
    library = _KeptLibrary(context.codegen(), code, names)
    for one in environments:
        library.codegen.set_env(one.env_name, one)
    return CompileResult(
        target_context=context,
        typing_context=context.typing_context,
        library=library,
        environment=environment,
        entry_point=context.get_executable(library, fndesc, environment),
        fndesc=fndesc,
        type_annotation=annotation,
        signature=signature,
        objectmode=is_object,
        lifted=lifted,
        typing_error=None,
        call_helper=None,
        metadata=None,
        reload_init=inits,
        referenced_envs=environments,
    )
