"""Kernels' Python run as it stands, each vector operation emitting its LLVM IR, for any CPU.

Numba compiles for the machine that it runs on alone. But between a kernel's operations on vectors there is
only Python about addresses and counts: with counts known, running it writes the kernel out as straight code.
"""

from types import FunctionType, ModuleType, SimpleNamespace

from llvmlite import binding, ir
from numba.core.registry import cpu_target
from numba.extending import _Intrinsic

from localoss.kernels import isa, products, simd

ADDRESS = ir.IntType(64)
VECTORS = {str(thing.llvm): thing for thing in vars(simd).values() if isinstance(thing, simd.Vector)}

binding.initialize_all_targets()
binding.initialize_all_asmprinters()


class Address:
    """An address known only when the code runs; counts are Python's integers."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def __add__(self, count):
        return Address(self.builder, self.builder.add(self.value, ADDRESS(int(count))))


class Tracer:
    """Emits into `builder` what kernels call; the module `variant` stands for this machine's isa."""

    def __init__(self, builder, variant):
        self.builder = builder
        names = [name for name in vars(isa) if hasattr(variant, name) and not name.startswith("__")]
        self.isa = SimpleNamespace()  # its functions call each other
        vars(self.isa).update({name: self.traced(getattr(variant, name)) for name in names})

    def traced(self, thing):
        """What stands for `thing`, a global that a kernel uses."""
        if isinstance(thing, _Intrinsic):
            return lambda *arguments: self._emit(thing, arguments)
        if hasattr(thing, "py_func"):
            return self._plain(thing.py_func)
        if isinstance(thing, ModuleType) and thing is isa:
            return self.isa
        return thing

    def _plain(self, function):
        used = [name for name in function.__code__.co_names if name in function.__globals__]
        scope = {name: self.traced(function.__globals__[name]) for name in used}
        if "_add_tokens_mxfp4" in scope:  # chosen for this machine when products was imported
            scope["_add_tokens_mxfp4"] = self.traced(
                products.tokens_mxfp4(hasattr(self.isa, "powers_of_two"))
            )
        return FunctionType(function.__code__, scope, function.__name__)

    def _emit(self, intrinsic, arguments):
        signature, codegen = intrinsic._defn(None, *map(self._kind, arguments))
        context = cpu_target.target_context
        kinds = map(context.get_value_type, signature.args)
        values = [self._value(kind, argument) for kind, argument in zip(kinds, arguments, strict=True)]
        return codegen(context, self.builder, signature, values)

    def _kind(self, argument):
        """The type of a vector, as Numba knows it: some operations take any."""
        vector = isinstance(argument, ir.Value) and isinstance(argument.type, ir.VectorType)
        return VECTORS[str(argument.type)] if vector else argument

    def _value(self, kind, argument):
        if isinstance(argument, Address):
            return argument.value
        if isinstance(argument, tuple):
            aggregate = ir.Constant(kind, ir.Undefined)
            for i, element in enumerate(argument):
                whole = element.value if isinstance(element, Address) else element
                aggregate = self.builder.insert_value(aggregate, whole, i)
            return aggregate
        return argument if isinstance(argument, ir.Value) else ir.Constant(kind, argument)

    def store(self, address, vectors):
        """Write vectors of 32 bytes one after the other."""
        for i, vector in enumerate(vectors):
            place = self.builder.inttoptr((address + 32 * i).value, vector.type.as_pointer())
            self.builder.store(vector, place, align=1)


def trace(variant, write, addresses):
    """LLVM IR of a C function, named as `write`, that does what write(tracer, *addresses) emits."""
    module = ir.Module(write.__name__)
    kind = ir.FunctionType(ir.VoidType(), [ADDRESS] * addresses)
    function = ir.Function(module, kind, write.__name__)
    builder = ir.IRBuilder(function.append_basic_block())
    write(Tracer(builder, variant), *(Address(builder, argument) for argument in function.args))
    builder.ret_void()
    return str(module)


def compile_for(code, triple, cpu, features, reloc="default"):
    """The module and the machine to compile it for."""
    module = binding.parse_assembly(code)
    module.triple = triple
    module.verify()
    target = binding.Target.from_triple(triple)
    return module, target.create_target_machine(cpu=cpu, features=features, opt=3, reloc=reloc)
