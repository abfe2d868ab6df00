"""A small program for an export: it trains on a file of raw data, or runs a function on one, and shows how to do it."""

from __future__ import annotations

from collections.abc import Iterator
from string import Template

from kaun.runtime.export.header import macro
from kaun.runtime.export.layout import Layout
from kaun.runtime.export.names import c_type

_TOP = Template("""\
/* main.c: ${does}

       cc -O2 -o main main.c ${name}.o${flag}
       ./main ${usage}

${data}   Generated, to be changed at will. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "${name}.h"

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\\n", what, why);
    exit(1);
}

/* End the program if a function says that something is wrong. */
static void check(int code, const char *what)
{
    if (code == ${ERROR_FILE})
        fail(what, "not a state of this model, not whole, or not of this size");
    if (code < 0) {
        fprintf(stderr, "%s: code %d, see ${name}.h\\n", what, code);
        exit(1);
    }
}

/* Zeroed memory, aligned as states and workspaces have to be. It is kept until the program ends. */
static void *aligned_memory(size_t size)
{
    char *memory = (char *)calloc(1, size + ${ALIGNMENT});
    if (memory == NULL)
        fail("main", "out of memory");
    return memory + (${ALIGNMENT} - (uintptr_t)memory % ${ALIGNMENT});
}
""")

_READ_ARRAY = """
/* Read an array. False at the end of the file, where the first array of a batch may be missing, but no other. */
static int read_array(FILE *file, void *array, size_t size, int is_first)
{
    size_t found = size == 0 ? 0 : fread(array, 1, size, file);
    if (found == 0 && size != 0 && is_first && feof(file))
        return 0;
    if (found != size)
        fail("main", "the data does not end with a whole batch");
    return 1;
}
"""

_LOAD = Template("""
/* A state from a file that `save_state`, or Kaun, has written. */
static void load_state(const char *path, void *state)
{
    /* One byte more than a state has: a file that fills it is too long. */
    char *bytes = (char *)malloc(${FILE_SIZE} + 1);
    FILE *file = fopen(path, "rb");
    size_t size;
    if (bytes == NULL || file == NULL)
        fail(path, "cannot be read${hint}");
    size = fread(bytes, 1, ${FILE_SIZE} + 1, file);
    fclose(file);
    check(${prefix}_load(state, bytes, size), path);
    free(bytes);
}

static void save_state(const char *path, const void *state)
{
    char *bytes = (char *)malloc(${FILE_SIZE});
    FILE *file = fopen(path, "wb");
    if (bytes == NULL || file == NULL)
        fail(path, "cannot be written");
    check(${prefix}_save(state, bytes, ${FILE_SIZE}), path);
    if (fwrite(bytes, 1, ${FILE_SIZE}, file) != ${FILE_SIZE} || fclose(file) != 0)
        fail(path, "cannot be written");
    free(bytes);
}
""")

_HINT = """\
, and there are no other numbers to start from. In Python,\\n\
`step.write_state(state, path)` writes such a file; what is compiled by\\n\
`kn.train.compile(..., state=state)` is exported with one."""

# What a number of these types is, as a double.
_VALUES = {
    "bfloat16": """
/* The number whose upper half a bfloat16 is. */
static double value(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return (double)number;
}
""",
    "float16": """
/* The number that the bits of a float16 mean. */
static double value(uint16_t half)
{
    int exponent = half >> 10 & 31;
    int steps = (exponent == 0 ? 1 : exponent) - 25;
    double number = (double)((half & 1023) + (exponent == 0 ? 0 : 1024));
    if (exponent == 31)
        number *= 1e300 * 1e300; /* infinity; for a NaN, too large is as good */
    for (; steps > 0; steps--)
        number *= 2;
    for (; steps < 0; steps++)
        number /= 2;
    return half >> 15 ? -number : number;
}
""",
}

_OPTIONS = Template("""
struct options {
${members}
};

static struct options read_options(int argc, char **argv)
{
    struct options options = {${defaults}};
    int i;
    for (i = 1; i < argc; i++) {
        const char *word = argv[i], *next = i + 1 < argc ? argv[i + 1] : NULL;
        ${choices}
        else {
            fprintf(stderr, "usage: main ${usage}\\n");
            exit(2);
        }
    }
    if (${wrong})
        fail("usage", "main ${usage}");
${limits}    return options;
}
""")

_LOOP = Template("""\
    while (options.steps == 0 || step < options.steps) {
        if (!read_batch(${batch})) {
            if (step == 0)
                fail(options.data, "holds no batch");
            if (options.steps == 0)
                break;
            /* More steps than batches: begin again. */
            if (fseek(file, 0, SEEK_SET) != 0 || !read_batch(${batch}))
                fail(options.data, "cannot be read again");
        }
        check(${call}, "${function}");
        step++;
${result}    }
    fclose(file);
""")

_LOOP_WITHOUT_DATA = Template("""\
    for (; step < (options.steps == 0 ? 1 : options.steps); step++) {
        check(${call}, "${function}");
${result}    }
""")


def main_c(layout: Layout, embedded: bool) -> str:
    """The text of the program. `embedded`: the object has the state at the start of training."""
    return "".join(_Program(layout, embedded).parts())


class _Program:
    """The parts of the program, one after the other."""

    def __init__(self, layout: Layout, embedded: bool):
        self.layout, self.embedded = layout, embedded
        self.entry = next(entry for entry in layout.entries if entry.verb == "run")
        self.function = f"{layout.prefix}_{self.entry.verb}"
        self.reads = any(leaf.nbytes for leaf in self.entry.inputs)
        # Option and member; the word that a member is a path for is a const char pointer.
        self.paths = {"--state": "state", "--save": "save"} if layout.state.slots else {"--outputs": "outputs"}
        self.numbers = ["steps", "threads"] if layout.most_threads > 1 else ["steps"]
        words = ["DATA"] if self.reads else []
        words += [f"[--{name} COUNT]" for name in self.numbers]
        self.usage = " ".join([*words, *(f"[{option} FILE]" for option in self.paths)])
        self.words = {"name": layout.name, "prefix": layout.prefix, "usage": self.usage}
        self.words |= {word: macro(layout, word) for word in ("ALIGNMENT", "FILE_SIZE", "WORKSPACE_SIZE", "ERROR_FILE")}

    def parts(self) -> Iterator[str]:
        layout, entry = self.layout, self.entry
        does = "trains on a file of raw data." if layout.state.slots else "calls the function on raw data."
        flag = " -pthread" if layout.most_threads > 1 else ""
        yield _TOP.substitute(self.words, does=does, flag=flag, data=self.data())
        if self.reads:
            yield _READ_ARRAY
            yield "\n".join(self.read_batch())
        if layout.state.slots:
            yield _LOAD.substitute(self.words, hint="" if self.embedded else _HINT.replace("\n", '"\n             "'))
            yield _VALUES.get(entry.outputs[0].dtype.name, "") if entry.outputs else ""
        yield self.options()
        yield "\n".join(self.main())

    def count(self, name: str) -> str:
        return macro(self.layout, self.entry.verb, name, "count")

    def arrays(self, inputs: bool) -> list[tuple[str, str, str]]:
        """(type, variable, bytes) of each array. Nothing else in the program is named like a variable of these."""
        entry = self.entry
        leaves, found = (entry.inputs, entry.input_names) if inputs else (entry.outputs, entry.output_names)
        return [
            (c_type(leaf.dtype), f"{name}_values", f"{self.count(name)} * sizeof *{name}_values")
            for leaf, name in zip(leaves, found, strict=True)
        ]

    def data(self) -> str:
        """What the comment says about the file."""
        if not self.reads:
            return ""
        named = zip(self.entry.inputs, self.entry.input_names, strict=True)
        lines = [f"       {c_type(leaf.dtype)} {name}[{self.count(name)}];" for leaf, name in named]
        text = "\n".join(lines)
        return f"   The file holds batches one after the other, each of the arrays\n\n{text}\n\n"

    def read_batch(self) -> Iterator[str]:
        arrays = self.arrays(inputs=True)
        yield "\n/* Read the arrays of a batch. False at the end of the file. */"
        yield f"static int read_batch(FILE *file, {', '.join(f'{kind} *{name}' for kind, name, _ in arrays)})\n{{"
        first = next((number for number, leaf in enumerate(self.entry.inputs) if leaf.nbytes), 0)
        for number, (_, name, size) in enumerate(arrays):
            yield f"    if (!read_array(file, {name}, {size}, {int(number == first)}))\n        return 0;"
        yield "    return 1;\n}\n"

    def options(self) -> str:
        layout = self.layout
        start = f'"{layout.name}.state"' if layout.state.slots and not self.embedded else "NULL"
        members, defaults, choices, wrong = [], [], [], ["options.steps < 0"]
        if self.reads:
            members.append("    const char *data;")
            defaults.append("NULL")
            wrong.append("options.data == NULL")
        for name in self.numbers:
            members.append(f"    long {name};" + (" /* 0: as many as there is data for */" if name == "steps" else ""))
            defaults.append("0" if name == "steps" else "1")
            choices.append(f'if (strcmp(word, "--{name}") == 0 && next != NULL)\n'
                           f"            options.{name} = strtol(argv[++i], NULL, 10);")  # fmt: skip
        limits = ""
        if layout.most_threads > 1:
            limits = (
                f"    if (options.threads < 1 || options.threads > {macro(layout, 'MOST_THREADS')})\n"
                f'        fail("--threads", "expected 1 to {layout.most_threads}");\n'
            )
        for option, name in self.paths.items():
            members.append(f"    const char *{name};")
            defaults.append(start if name == "state" else "NULL")
            choices.append(f'if (strcmp(word, "{option}") == 0 && next != NULL)\n'
                           f"            options.{name} = argv[++i];")  # fmt: skip
        if self.reads:
            choices.append("if (word[0] != '-' && options.data == NULL)\n            options.data = word;")
        return _OPTIONS.substitute(
            self.words,
            members="\n".join(members),
            defaults=", ".join(defaults),
            choices="\n        else ".join(choices),
            wrong=" || ".join(wrong),
            limits=limits,
        )

    def main(self) -> Iterator[str]:
        layout = self.layout
        yield "\nint main(int argc, char **argv)\n{"
        yield "    const struct options options = read_options(argc, argv);"
        if self.reads:
            yield '    FILE *file = fopen(options.data, "rb");'
        if "outputs" in self.paths.values():
            yield '    FILE *results = options.outputs == NULL ? NULL : fopen(options.outputs, "wb");'
        if layout.state.slots:
            yield f"    void *state = aligned_memory({macro(layout, 'STATE_SIZE')});"
        threads = "options.threads" if layout.most_threads > 1 else "1"
        yield f"    void *workspace = aligned_memory({macro(layout, 'WORKSPACE_SIZE')}({threads}));"
        for kind, name, size in self.arrays(inputs=True) + self.arrays(inputs=False):
            yield f"    {kind} *{name} = ({kind} *)aligned_memory({size});"
        for which in ("inputs", "outputs"):
            found = [name for _, name, _ in self.arrays(which == "inputs")]
            if found:
                yield f"    const {self.function}_{which} {which} = {{{', '.join(found)}}};"
        yield "    long step = 0;\n"
        if self.reads:
            yield '    if (file == NULL)\n        fail(options.data, "cannot be read");'
        if layout.state.slots:
            yield from self.start()
        if layout.most_threads > 1:
            yield f'    check({layout.prefix}_threads_start(workspace, (int)options.threads), "--threads");\n'
        yield self.loop()
        yield from self.end()

    def start(self) -> Iterator[str]:
        """Where the state comes from."""
        if not self.embedded:
            yield "    load_state(options.state, state);"
            return
        yield "    if (options.state != NULL)\n        load_state(options.state, state);"
        yield f'    else\n        check({self.layout.prefix}_init(state), "{self.layout.prefix}_init");'

    def loop(self) -> str:
        entry, arguments = self.entry, ["state"] if self.layout.state.slots else []
        arguments += ["&inputs" if entry.inputs else "NULL", "&outputs" if entry.outputs else "NULL", "workspace"]
        loop = _LOOP if self.reads else _LOOP_WITHOUT_DATA
        return loop.substitute(
            batch=", ".join(["file", *(name for _, name, _ in self.arrays(inputs=True))]),
            call=f"{self.function}({', '.join(arguments)})",
            function=self.function,
            result="\n".join([*self.result(), ""]),
        )

    def result(self) -> Iterator[str]:
        """What is done with the results of a call."""
        if not self.layout.state.slots:
            for _, name, size in self.arrays(inputs=False):
                yield f"        if (results != NULL && fwrite({name}, 1, {size}, results) != {size})"
                yield '            fail(options.outputs, "cannot be written");'
        elif self.entry.outputs:
            leaf, name = self.entry.outputs[0], self.entry.output_names[0]
            number = f"value({name}_values[0])" if leaf.dtype.name in _VALUES else f"(double){name}_values[0]"
            digits = 17 if leaf.dtype.name == "float64" else 9  # enough to be read back as the same number
            yield f'        printf("step %ld: {name} %.{digits}g\\n", step, {number});'

    def end(self) -> Iterator[str]:
        layout = self.layout
        if layout.most_threads > 1:
            yield f'    check({layout.prefix}_threads_stop(workspace), "{layout.prefix}_threads_stop");'
        if layout.state.slots:
            yield "    if (options.save != NULL)\n        save_state(options.save, state);"
        else:
            yield "    if (results != NULL && fclose(results) != 0)"
            yield '        fail(options.outputs, "cannot be written");'
            yield '    printf("calls: %ld\\n", step);'
        yield "    return 0;\n}\n"
