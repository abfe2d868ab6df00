"""`kaun viz`: every stage of a compiled function in one page, or one graph in a form that other tools read."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from kaun.compiler.ir import Graph
from kaun.runtime import activity, engine
from kaun.runtime import target as targets
from kaun.tools import subject
from kaun.tools.arguments import parser_of
from kaun.tools.failures import refuse
from kaun.tools.files import writing, wrote
from kaun.tools.status import shown
from kaun.tools.viz.formats import FORMATS, as_networkx
from kaun.tools.viz.model import GRAPH_STAGES, Model, make_model
from kaun.tools.viz.page import page

from kaun import execution, profiling, whole_files
from kaun.debug.native import host_compilation

_PURPOSES = {
    "html": "open it in a browser (--open does)",
    "dot": "draw it with Graphviz: dot -Tsvg FILE",
    "svg": "open it in a browser",
    "graphml": "open it in yEd, Gephi or Cytoscape, or read it with networkx.read_graphml",
    "json": "read it with networkx.node_link_graph",
}
# The kernels are timed for about so long.
_SECONDS = 0.3


def main(arguments: Sequence[str], prog: str = "kaun viz") -> int:
    """Write the page or the graph to a file. The exit status is 1 if it could not be written."""
    parser = parser_of(
        prog,
        "Show a compiled function: its graphs, kernels, loop IR, LLVM IR, assembly and source.",
        examples=[
            "kaun viz kaun.tools.bench.steps:gpt_128 --out gpt.html",
            "kaun viz examples/digits_cnn.py:compiled --open",
            "kaun viz examples/digits_cnn.py:compiled --format svg --stage traced",
        ],
    )
    parser.add_argument("target", metavar="TARGET", help=subject.HELP)
    parser.add_argument("--part", metavar="NAME", help="which function of a compiled training step (default: the step)")
    parser.add_argument("-o", "--out", metavar="FILE", help="default: the target's name with the format's ending")
    parser.add_argument(
        "--format", choices=("html", *FORMATS), default="html", help="a page (default), or a graph for other programs"
    )
    parser.add_argument("--stage", choices=GRAPH_STAGES, default="simplified", help="which graph, unless it is a page")
    parser.add_argument("--no-times", action="store_true", help="do not run the kernels to time them for the page")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    given = parser.parse_args(arguments)
    place, colon, function = given.target.rpartition("/")[2].rpartition(":")
    name = (place if place.endswith(".py") else place.rpartition(".")[2]) + colon + function
    path = Path(given.out or name.replace(".py", "").replace(":", "-").replace(".", "-") + f".{given.format}")
    with shown(f"looking for {given.target}"):
        try:
            found = subject.find(given.target, given.part)
        except subject.SubjectError as error:
            refuse(prog, error)
        if given.format == "html":
            text = page(model_of(found.graph, name, times=not given.no_times))
        else:
            activity.now(f"drawing {given.stage}")
            text = FORMATS[given.format](as_networkx(getattr(host_compilation(found.graph), given.stage)))
        with writing(path):
            whole_files.write(path, text.encode())
    wrote(path, _PURPOSES[given.format], is_result=True)
    if given.open:
        webbrowser.open(path.resolve().as_uri())
    return 0


def model_of(graph: Graph, title: str, *, times: bool = True) -> Model:
    """The viewer's model of a graph compiled for this machine; with `times`, each kernel is run and timed."""
    target = targets.host()
    compilation = host_compilation(graph)
    seconds = None
    activity.now(f"compiling a graph of {len(graph.nodes):,} nodes")
    program = compilation.program
    if times:
        inputs = [execution.Storage.of(array) for array in subject.example_inputs(graph)]
        compiled = execution.compiled(graph)
        activity.now(f"timing {len(program.calls)} kernels")
        seconds = profiling.kernel_seconds(compiled, inputs, seconds=_SECONDS)
    launches = "1 launch" if len(program.bundles) == 1 else f"{len(program.bundles)} launches"
    summary = f"{len(program.calls)} kernels in {launches} for {target.name}"
    numbers = count(1)

    def assembly(llvm: str) -> str:
        activity.now(f"writing out kernel {next(numbers)} of {len(program.kernels)}")
        return engine.assembly(llvm, target)

    return make_model(title, compilation, assembly, seconds, summary)
