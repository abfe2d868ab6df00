"""Compiled functions and steps from what a file says of them: trees out of plain data, and every signature checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kaun import tree_data
from kaun.arguments import Argument
from kaun.artifact_data import ArtifactData
from kaun.compiled import Compiled
from kaun.compiled_step import CompiledStep, Signature
from kaun.compiler.ir import dtypes
from kaun.compiler.ir.dtypes import float32, int32, uint32
from kaun.execution import Storage, computed_leaf
from kaun.native import Native
from kaun.nx import Tensor
from kaun.plain_data import Plain
from kaun.ptree import Structure
from kaun.runtime.artifact import Leaf, Numbers
from kaun.runtime.saved_file import Section
from kaun.runtime.target import Target
from kaun.training_state import State
from kaun.training_step import row_paths


def rebuilt(
    data: ArtifactData,
    natives: Mapping[str, Native],
    target: Target,
    initial: tuple[Numbers, ...] | None,
    sections: dict[str, Section] | None,
) -> Compiled | CompiledStep:
    """What the file describes, of these functions. ValueError if its parts do not fit one another."""
    trees = Plain(dict(data.trees), "trees")
    if data.kind == "function":
        made: Compiled | CompiledStep = _function(data, natives, target, trees)
    elif data.kind == "step":
        made = _step(data, natives, target, trees, initial)
    else:
        raise ValueError(f"got the kind {data.kind!r}, expected a function or a step")
    made._versions = dict(data.versions)
    made._sections = sections
    return made


def _function(data: ArtifactData, natives: Mapping[str, Native], target: Target, trees: Plain) -> Compiled:
    _check(list(natives) == ["call"] and not data.state and not data.has_initial, "the functions")
    native = natives["call"]
    left = list(_given(native))
    arguments = []
    for item in trees.items("arguments"):
        label, structure = item.as_items(2)
        arguments.append(_argument(label.as_text(), tree_data.decoded(structure.value), left))
    result = tree_data.decoded(trees.at("result").value)
    _check(not left and result.leaf_count == len(native.outputs), "the function's arguments and result")
    return Compiled(data.name, native, tuple(arguments), result, target)


def _argument(label: str, structure: Structure, left: list[Leaf]) -> Argument:
    """An argument of the next leaves, which are taken from the list."""
    _check(structure.leaf_count <= len(left), label)
    leaves, left[:] = tuple(left[: structure.leaf_count]), left[structure.leaf_count :]
    return Argument(label, structure, leaves)


def _step(
    data: ArtifactData, natives: Mapping[str, Native], target: Target, trees: Plain, initial: tuple[Numbers, ...] | None
) -> CompiledStep:
    step = natives.get("step")
    _check(step is not None and bool(data.state), "the functions")
    assert step is not None
    structure = tree_data.decoded(trees.at("state").value)
    row, rates = data.state[:-1], trees.number("rates", high=len(step.inputs))
    _check(structure.kind is tuple and len(structure.children) == 4, "the state")
    _check(structure.leaf_count == len(row) and row_paths(structure) == [leaf.name for leaf in row], "the state")
    dtype = dtypes.BY_NAME.get(trees.text("dtype"))
    _check(dtype is not None and dtype.is_float, "the variables' dtype")
    assert dtype is not None
    left = list(_given(step)[len(data.state) + rates :])
    x = _argument("x", tree_data.decoded(trees.at("x").value), left)
    answers = _argument("y", tree_data.decoded(trees.at("targets").value), left)
    _check(answers.structure.kind is tuple and len(answers.structure.children) <= 1, "the targets")
    context = _argument("ctx", tree_data.decoded(trees.at("context").value), left)
    no_init = None if trees.at("no_init").value is None else trees.text("no_init")
    output = tree_data.decoded(trees.at("output").value)
    draws = trees.number("draws", high=1 << 31)
    signature = Signature(structure, row, dtype, x, answers, context, rates, output, draws, no_init)
    _check_functions(signature, natives, data.state)
    return CompiledStep(signature, natives, target, _state(initial, signature))


def _check_functions(signature: Signature, natives: Mapping[str, Native], state: tuple[Leaf, ...]) -> None:
    """ValueError unless the functions take and give what those of a step do."""
    row, variables = signature.row, signature.row[: signature.variables]
    rates = [Leaf(f"rates.{number}", float32, ()) for number in range(signature.rates)]
    x, answers, context = (argument.leaves for argument in (signature.x, signature.targets, signature.context))
    params, optimizer = signature.part(0).leaves, signature.part(2).leaves
    key = [Leaf("key", uint32, (2,)), Leaf("first", uint32, ())]
    expected: dict[str, tuple[Sequence[Leaf], Sequence[Leaf] | None]] = {
        "step": ((*state, *rates, *x, *answers, *context), None),
        "predict": ((*variables, *x, *context), None),
        "evaluate": ((*variables, *x, *answers, *context), None),
        "start": (params, optimizer),
        "init": (key, state),
    }
    _check(state[-1] == signature.rng and row[-1] == Leaf("step", int32, ()), "the state")
    required = expected.keys() - {"init"}
    _check(required <= natives.keys() <= expected.keys(), "the functions")
    for name, native in natives.items():
        inputs, outputs = expected[name]
        _check(list(_given(native)) == list(inputs), f"what {name!r} takes")
        found = [(leaf.dtype, leaf.shape) for leaf in native.outputs]
        _check(outputs is None or found == [(leaf.dtype, leaf.shape) for leaf in outputs], f"what {name!r} gives")
    _check(natives["step"].outputs[1:] == row, "what 'step' gives")
    for name in ("step", "evaluate"):
        value = natives[name].outputs[:1]
        _check(bool(value) and value[0].dtype.is_float and value[0].shape == (), f"the loss of {name!r}")
    _check(len(natives["evaluate"].outputs) == 1, "what 'evaluate' gives")
    _check(len(natives["predict"].outputs) == signature.output.leaf_count, "what 'predict' gives")


def _state(initial: tuple[Numbers, ...] | None, signature: Signature) -> State | None:
    if initial is None:
        return None
    *row, rng = [Storage.of(array) for array in initial]
    return State._of(row, signature.form, Tensor(computed_leaf(rng)))


def _given(native: Native) -> tuple[Leaf, ...]:
    """The inputs without the constants."""
    return native.inputs[: len(native.inputs) - len(native.constants)]


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} of the file do not fit the rest")
