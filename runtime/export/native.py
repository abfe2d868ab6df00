"""The functions that C calls, as LLVM IR around the entries of the programs.

    int NAME_init(void *state)                                      where initial numbers are in the object
    int NAME_load(void *state, const void *bytes, size_t size)      a file in memory, see `state_file.py`
    int NAME_save(const void *state, void *bytes, size_t size)
    int NAME_run(state, inputs, outputs, workspace)                 and predict, evaluate: one for each program
    int NAME_threads_start(void *workspace, int threads)
    int NAME_threads_stop(void *workspace)

Each looks at what it was given before it touches anything: addresses that are null or not aligned, a workspace whose
first word is neither null nor that of a pool, a file that is not one. Nothing is static but constants, and nothing is
allocated, so calls with different states and workspaces may happen at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kaun.runtime.export import state_file
from kaun.runtime.export.layout import ALIGNMENT, Entry, Layout, Where, aligned
from kaun.runtime.one_object import entry_symbol
from kaun.runtime.pool_module import YIELDS, pool_bytes

# What the functions return. None of them is zero, and `threads_start` returns positive counts.
OK, NULL, ALIGN, WORKSPACE, FILE, THREADS = 0, -1, -2, -3, -4, -5

# How often a thread that waits for work pauses, before it yields: some ten microseconds, whatever a pause takes.
_SPINS = {"x86_64": 400, "aarch64": 800}
_SPINS_ELSEWHERE = 4000

_HELPERS = f"""\
define internal i32 @check(ptr %p, i64 %mask) nounwind {{
  %null = icmp eq ptr %p, null
  %address = ptrtoint ptr %p to i64
  %low = and i64 %address, %mask
  %crooked = icmp ne i64 %low, 0
  %second = select i1 %crooked, i32 {ALIGN}, i32 {OK}
  %code = select i1 %null, i32 {NULL}, i32 %second
  ret i32 %code
}}

; The sums that `state_file.py` describes, of words of 64 bits.
define internal {{ i64, i64 }} @sums(ptr %words, i64 %count) nounwind {{
entry:
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ %i.next, %add ]
  %sum = phi i64 [ 0, %entry ], [ %sum.next, %add ]
  %weighted = phi i64 [ 0, %entry ], [ %weighted.next, %add ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %add, label %done
add:
  %word.p = getelementptr i64, ptr %words, i64 %i
  %word = load i64, ptr %word.p, align 1
  %twice = shl i64 %i, 1
  %weight = or i64 %twice, 1
  %product = mul i64 %word, %weight
  %sum.next = add i64 %sum, %word
  %weighted.next = add i64 %weighted, %product
  %i.next = add i64 %i, 1
  br label %look
done:
  %first = insertvalue {{ i64, i64 }} undef, i64 %sum, 0
  %both = insertvalue {{ i64, i64 }} %first, i64 %weighted, 1
  ret {{ i64, i64 }} %both
}}

"""

_POOL = """\
declare void @kaun_parallel_for(ptr, ptr, ptr, i64, ptr, i64)
declare i64 @kaun_pool_start(ptr, i64, i64, i64)
declare i1 @kaun_pool_is_here(ptr)
declare void @kaun_pool_stop(ptr)
"""


def functions(layout: Layout, embedded: Sequence[bytes] | None) -> str:
    """The module. `embedded`: the bytes of each leaf at the start, for an `init`."""
    size = _size_type(layout)
    parts = [
        _HELPERS,
        f"declare void @llvm.memcpy.p0.p0.{size}(ptr, ptr, {size}, i1)",
        f"declare void @llvm.memset.p0.{size}(ptr, i8, {size}, i1)\n",
    ]
    if layout.most_threads > 1:
        parts += [_POOL, _threads_start(layout), _threads_stop(layout)]
    parts += [_constant(f"constant{i}", data) for i, data in enumerate(layout.constants)]
    if embedded is not None:
        parts += _init(layout, embedded)
    if layout.state.slots:
        parts += [_load(layout), _save(layout)]
    for entry in layout.entries:
        parts.append(f"declare void @{entry_symbol(entry.function.name)}(ptr, ptr, ptr)\n")
        parts.append(_call(layout, entry))
    return "\n".join(parts)


def symbols(layout: Layout, embedded: bool) -> list[str]:
    """The names of the functions."""
    endings = [entry.verb for entry in layout.entries]
    endings += ["threads_start", "threads_stop"] if layout.most_threads > 1 else []
    endings += ["load", "save"] if layout.state.slots else []
    endings += ["init"] if embedded else []
    return [f"{layout.prefix}_{ending}" for ending in endings]


def _size_type(layout: Layout) -> str:
    return f"i{layout.artifact.target.pointer_bits}"


class _Body:
    """The lines of a function that returns a code."""

    def __init__(self, layout: Layout, ending: str, parameters: str):
        self.lines = [f"define i32 @{layout.prefix}_{ending}({parameters}) nounwind {{", "entry:"]
        self.size = _size_type(layout)
        self.numbers = iter(range(1 << 30))

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def value(self, instruction: str) -> str:
        name = f"%v{next(self.numbers)}"
        self.line(f"{name} = {instruction}")
        return name

    def at(self, base: str, nbytes: int) -> str:
        return self.value(f"getelementptr i8, ptr {base}, i64 {nbytes}")

    def unless(self, condition: str, code: str | int) -> None:
        """Return the code unless the condition holds."""
        number = next(self.numbers)
        self.line(f"br i1 {condition}, label %good{number}, label %bad{number}")
        self.lines.append(f"bad{number}:")
        self.line(f"ret i32 {code}")
        self.lines.append(f"good{number}:")

    def check(self, pointer: str, alignment: int = 1) -> None:
        """Return a code if the address is null or not aligned."""
        code = self.value(f"call i32 @check(ptr {pointer}, i64 {alignment - 1})")
        self.unless(self.value(f"icmp eq i32 {code}, {OK}"), code)

    def copy(self, destination: str, source: str, nbytes: int) -> None:
        self.line(
            f"call void @llvm.memcpy.p0.p0.{self.size}(ptr {destination}, ptr {source}, {self.size} {nbytes}, i1 false)"
        )

    def clear(self, destination: str, nbytes: int) -> None:
        self.line(f"call void @llvm.memset.p0.{self.size}(ptr {destination}, i8 0, {self.size} {nbytes}, i1 false)")

    def has_pool(self) -> str:
        """Whether there is a pool in the checked workspace, be it that of the process that this one was forked from."""
        word = self.value("load ptr, ptr %workspace")
        none = self.value(f"icmp eq ptr {word}, null")
        ours = self.value(f"icmp eq ptr {word}, @kaun_parallel_for")
        self.unless(self.value(f"or i1 {none}, {ours}"), WORKSPACE)
        return ours

    def pool(self) -> str:
        """The pool that runs in the checked workspace, or null."""
        self.has_pool()
        here = self.value("call i1 @kaun_pool_is_here(ptr %workspace)")
        return self.value(f"select i1 {here}, ptr %workspace, ptr null")

    def text(self) -> str:
        return "\n".join([*self.lines, f"  ret i32 {OK}", "}", ""])


def _constant(name: str, data: bytes) -> str:
    escaped = "".join(_ESCAPED[byte] for byte in data)
    return f'@{name} = internal constant [{len(data)} x i8] c"{escaped}", align {ALIGNMENT}\n'


_ESCAPED = [chr(i) if 32 <= i < 127 and chr(i) not in '"\\' else f"\\{i:02X}" for i in range(256)]


def _init(layout: Layout, embedded: Sequence[bytes]) -> Iterator[str]:
    """The numbers that are not all zero, and what puts them into a state."""
    body = _Body(layout, "init", "ptr %state")
    body.check("%state", ALIGNMENT)
    body.clear("%state", layout.state.nbytes)
    for number, (slot, data) in enumerate(zip(layout.state.slots, embedded, strict=True)):
        if any(data):
            yield _constant(f"initial{number}", data)
            body.copy(body.at("%state", slot.offset), f"@initial{number}", len(data))
    yield body.text()


def _load(layout: Layout) -> str:
    body = _with_file(layout, "load")
    sums = _sums(body, layout, body.at("%bytes", state_file.HEADER_BYTES))
    for number, expected in enumerate(_header_words(layout, sums)):
        found = body.value(f"load i64, ptr {body.at('%bytes', 8 * number)}, align 1")
        body.unless(body.value(f"icmp eq i64 {found}, {expected}"), FILE)
    body.copy("%state", body.at("%bytes", state_file.HEADER_BYTES), layout.state.nbytes)
    return body.text()


def _save(layout: Layout) -> str:
    body = _with_file(layout, "save")
    for number, value in enumerate(_header_words(layout, _sums(body, layout, "%state"))):
        body.line(f"store i64 {value}, ptr {body.at('%bytes', 8 * number)}, align 1")
    body.copy(body.at("%bytes", state_file.HEADER_BYTES), "%state", layout.state.nbytes)
    return body.text()


def _with_file(layout: Layout, ending: str) -> _Body:
    """The beginning of what is given a state, and memory for just a file of one."""
    size = _size_type(layout)
    body = _Body(layout, ending, f"ptr %state, ptr %bytes, {size} %size")
    body.check("%state", ALIGNMENT)
    body.check("%bytes")
    total = state_file.HEADER_BYTES + layout.state.nbytes
    body.unless(body.value(f"icmp eq {size} %size, {total}"), FILE)
    return body


def _header_words(layout: Layout, sums: tuple[str, str]) -> list[str]:
    """The words that a file begins with: numbers, and the sums as they are computed."""
    words = state_file.header_words(layout.state.nbytes, layout.state.fingerprint, (0, 0))
    computed = dict(zip(state_file.SUM_WORDS, sums, strict=True))
    return [computed.get(number, str(_signed(word))) for number, word in enumerate(words)]


def _sums(body: _Body, layout: Layout, words: str) -> tuple[str, str]:
    both = body.value(f"call {{ i64, i64 }} @sums(ptr {words}, i64 {layout.state.nbytes // 8})")
    return body.value(f"extractvalue {{ i64, i64 }} {both}, 0"), body.value(f"extractvalue {{ i64, i64 }} {both}, 1")


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _call(layout: Layout, entry: Entry) -> str:
    """Check what was given, gather addresses, run the program, copy."""
    parameters = ("ptr %state, " if layout.state.slots else "") + "ptr %inputs, ptr %outputs, ptr %workspace"
    body = _Body(layout, entry.verb, parameters)
    if layout.state.slots:
        body.check("%state", ALIGNMENT)
    given: dict[tuple[str, int], str] = {}
    for kind, leaves in (("input", entry.inputs), ("output", entry.outputs)):
        if leaves:
            body.check(f"%{kind}s", layout.artifact.target.pointer_bits // 8)
        for number, leaf in enumerate(leaves):
            place = body.value(f"getelementptr ptr, ptr %{kind}s, i64 {number}")
            given[kind, number] = body.value(f"load ptr, ptr {place}")
            if leaf.nbytes:
                body.check(given[kind, number], leaf.dtype.itemsize)
    body.check("%workspace", ALIGNMENT)
    pool = body.pool() if layout.most_threads > 1 else "null"
    staging = body.at("%workspace", layout.header_bytes)
    arena = body.at(staging, aligned(entry.staging_bytes))
    known: dict[Where, str] = {}

    def address(where: Where) -> str:
        if where not in known:
            if where.kind in ("input", "output"):
                known[where] = given[where.kind, where.position]
            elif where.kind == "constant":
                known[where] = f"@constant{where.position}"
            else:
                known[where] = body.at("%state" if where.kind == "state" else staging, where.position)
        return known[where]

    arguments = body.value(f"alloca ptr, i64 {max(1, len(entry.arguments))}")
    for number, where in enumerate(entry.arguments):
        value = address(where)
        body.line(f"store ptr {value}, ptr {body.value(f'getelementptr ptr, ptr {arguments}, i64 {number}')}")
    body.line(f"call void @{entry_symbol(entry.function.name)}(ptr {arguments}, ptr {pool}, ptr {arena})")
    for copy in entry.copies:
        body.copy(address(copy.destination), address(copy.source), copy.nbytes)
    return body.text()


def _threads_start(layout: Layout) -> str:
    body = _Body(layout, "threads_start", "ptr %workspace, i32 %threads")
    body.check("%workspace", ALIGNMENT)
    body.unless(body.value("icmp sge i32 %threads, 1"), THREADS)
    body.unless(body.value(f"icmp sle i32 %threads, {layout.most_threads}"), THREADS)
    body.unless(body.value(f"icmp eq ptr {body.pool()}, null"), WORKSPACE)
    # One thread is the caller's, for whom no pool is needed.
    body.unless(body.value("icmp sgt i32 %threads, 1"), "%threads")
    body.clear("%workspace", layout.header_bytes)
    count = body.value("sext i32 %threads to i64")
    spins = _SPINS.get(layout.artifact.target.architecture, _SPINS_ELSEWHERE)
    started = body.value(f"call i64 @kaun_pool_start(ptr %workspace, i64 {count}, i64 {spins}, i64 {YIELDS})")
    body.line(f"ret i32 {body.value(f'trunc i64 {started} to i32')}")
    return "\n".join([*body.lines, "}", ""])


def _threads_stop(layout: Layout) -> str:
    body = _Body(layout, "threads_stop", "ptr %workspace")
    body.check("%workspace", ALIGNMENT)
    body.unless(body.has_pool(), OK)
    body.line("call void @kaun_pool_stop(ptr %workspace)")
    body.clear("%workspace", pool_bytes(layout.most_threads))
    return body.text()
