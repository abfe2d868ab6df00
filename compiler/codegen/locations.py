"""Debug locations: for which line of a kernel's text each instruction is, for whoever reads the code.

They are LLVM's own: its passes keep them, and assembly has them as `.loc`. Instructions are the same with and without.
Helpers such as micro-kernels have none: what they do is done for the lines of their calls. Line 0 is no line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from llvmlite import ir

from ..schedule.loop_ir import Origin
from .arithmetic import I64
from .control_flow import POINTER

_UNITS = "llvm.dbg.cu"


def ask_for_locations(module: ir.Module) -> None:
    """Have the kernel function of the module emitted with locations."""
    file = module.add_debug_info("DIFile", {"filename": f"{module.name}.loop", "directory": ""})
    unit = {
        "language": ir.DIToken("DW_LANG_C99"), "file": file, "producer": "kaun", "isOptimized": True,
        "runtimeVersion": 0, "emissionKind": ir.DIToken("DebugDirectivesOnly"),
    }  # fmt: skip
    module.add_named_metadata(_UNITS, module.add_debug_info("DICompileUnit", unit, is_distinct=True))
    number = ir.IntType(32)
    # "Override" with the version of LLVM's debug metadata: without it, all of it is dropped.
    flag = [ir.Constant(number, 2), "Debug Info Version", ir.Constant(number, 3)]
    module.add_named_metadata("llvm.module.flags", flag)


def kernel_function(module: ir.Module, name: str) -> tuple[ir.Function, ir.IRBuilder]:
    """`void name(ptr buffers, i64 begin, i64 end, ptr scratch)`, and a builder in its entry block."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, POINTER]), name)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    if _UNITS in module.namedmetadata:
        unit = module.namedmetadata[_UNITS].operands[0]
        file = dict(unit.operands)["file"]
        kind = module.add_debug_info("DISubroutineType", {"types": module.add_metadata([None])})
        description = {
            "name": name, "scope": file, "file": file, "line": 0, "type": kind, "unit": unit,
            "spFlags": ir.DIToken("DISPFlagDefinition | DISPFlagOptimized"),
        }  # fmt: skip
        scope = module.add_debug_info("DISubprogram", description, is_distinct=True)
        function.set_metadata("dbg", scope)
        builder.debug_metadata = module.add_debug_info("DILocation", {"line": 0, "column": 0, "scope": scope})
    return function, builder


def located(builder: ir.IRBuilder, origin: Origin) -> AbstractContextManager[None]:
    """What is emitted inside is for the line `origin`, unless that is none or nobody has asked."""
    asked = builder.debug_metadata is not None and isinstance(origin, int)
    return _on_line(builder, origin) if asked else _ANYWHERE


_ANYWHERE = nullcontext()


@contextmanager
def _on_line(builder: ir.IRBuilder, line: Origin) -> Iterator[None]:
    before = builder.debug_metadata
    place = {"line": line, "column": 0, "scope": builder.function.metadata["dbg"]}
    builder.debug_metadata = builder.module.add_debug_info("DILocation", place)
    try:
        yield
    finally:
        builder.debug_metadata = before
