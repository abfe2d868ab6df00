"""Relocatable object in, flat image out: machine code that is loaded by copying it, with nothing left to link.

    0                code       the object's executable sections, then a stub for each imported function it calls
    align(code)      data       constants and tables, then a word for each address that only the loader knows
                                (of an imported function, or of a place in the image that is used through a table)

Code and constants find one another by their distance, which the image fixes, so it may lie anywhere. What the loader
writes are whole words in the data: `rebases` are places in the image, `imports` functions of the C library. After that
nothing is written any more.

Only ELF objects of x86-64 and AArch64 are read, with the kinds of relocation that LLVM emits for position-independent
code of the small model; anything else is refused. References: System V ABI, AMD64 supplement, version 1.0, chapter 4.4;
ELF for the Arm 64-bit Architecture, 2024Q3, chapter 5.7.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["IMPORTS", "SEGMENT_ALIGNMENT", "FlatImage", "flat_image"]

# Pages are at most this large where the code runs, so code and data can be protected each by itself.
SEGMENT_ALIGNMENT = 1 << 16

# What code may ask the C library for; a file that asks for anything else is not loaded.
IMPORTS = frozenset(
    "memcpy memmove memset malloc free getpid sched_yield pthread_create pthread_join pthread_attr_init "
    "pthread_attr_destroy pthread_attr_setstacksize pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock "
    "pthread_mutex_unlock pthread_cond_init pthread_cond_destroy pthread_cond_wait pthread_cond_signal "
    "pthread_cond_broadcast".split()
)


@dataclass(frozen=True)
class FlatImage:
    """Machine code to be copied to an address that is a multiple of `SEGMENT_ALIGNMENT`.

    code, data: the segments, the first at the start and the other at `data_offset`.
    rebases: (offset of a word, offset in the image of what it is to hold the address of).
    imports: (offset of a word, function of the C library that it is to hold the address of).
    symbols: offset of each exported symbol.
    """

    code: bytes
    data: bytes
    rebases: tuple[tuple[int, int], ...]
    imports: tuple[tuple[int, str], ...]
    symbols: dict[str, int]

    @property
    def data_offset(self) -> int:
        return _aligned(len(self.code), SEGMENT_ALIGNMENT)

    @property
    def size(self) -> int:
        return self.data_offset + len(self.data)

    def check(self) -> None:
        """ValueError unless every offset lies where it belongs: for images that come from a file."""
        taken: set[int] = set()
        for offset, _ in (*self.rebases, *self.imports):
            if offset % 8 or not self.data_offset <= offset <= self.size - 8 or offset in taken:
                raise ValueError(f"flat_image: a word to fill at {offset}, expected one of its own in the data")
            taken.add(offset)
        for _, place in self.rebases:
            if not 0 <= place < self.size:
                raise ValueError(f"flat_image: the address of {place}, expected a place in {self.size} bytes")
        for name in {name for _, name in self.imports} - IMPORTS:
            raise ValueError(f"flat_image: the code asks for the function {name!r}, which it should not need")
        for name, offset in self.symbols.items():
            if not 0 <= offset < self.size:
                raise ValueError(f"flat_image: the symbol {name} at {offset}, expected a place in {self.size} bytes")


def flat_image(object_bytes: bytes, exported: Collection[str]) -> FlatImage:
    """The image of a relocatable object, with the exported symbols.

    ValueError for what is no such object, for sections and relocations that are not expected in it, for an undefined
    symbol that is not one of `IMPORTS`, and for an exported name that is not defined.
    """
    try:
        return _Layout(_Object(object_bytes)).image(exported)
    except (struct.error, IndexError) as error:
        raise ValueError(f"flat_image: the object is damaged: {error}") from None


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


# --- reading the object ----------------------------------------------------------------------------------------------

_X86_64, _AARCH64 = 62, 183

_PROGBITS, _SYMTAB, _RELA, _NOBITS, _REL = 1, 2, 4, 8, 9
_WRITE, _ALLOC, _EXECUTE, _TLS = 1, 2, 4, 0x400
_UNDEFINED, _RESERVED = 0, 0xFF00


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    content: bytes
    link: int
    info: int
    alignment: int

    @property
    def is_kept(self) -> bool:
        """Whether it is a part of the image. Tables to unwind the stack are not: nothing throws."""
        return bool(self.flags & _ALLOC) and not self.name.startswith(".eh_frame") and bool(self.content)


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int
    value: int


@dataclass(frozen=True)
class _Relocation:
    section: int
    offset: int
    symbol: int
    kind: int
    addend: int


class _Object:
    """An ELF object's sections, symbols and relocations."""

    def __init__(self, content: bytes):
        self.content = content
        header = struct.unpack_from("<16sHHIQQQIHHHHHH", content)
        identity, kind, self.machine = header[:3]
        if identity[:6] != b"\x7fELF\x02\x01" or kind != 1 or self.machine not in (_X86_64, _AARCH64):
            raise ValueError("flat_image: expected a relocatable ELF object for x86-64 or AArch64")
        start, size, count, names = header[6], *header[11:14]
        raw = [struct.unpack_from("<IIQQQQIIQQ", content, start + number * size) for number in range(count)]
        strings = self._bytes(raw[names])
        self.sections = [self._section(fields, strings) for fields in raw]
        self.symbols = self._symbols()
        self.relocations = self._relocations()

    def _bytes(self, fields: tuple[int, ...]) -> bytes:
        kind, offset, size = fields[1], fields[4], fields[5]
        if kind == _NOBITS:
            return bytes(size)
        if offset + size > len(self.content):
            raise ValueError("flat_image: a section lies outside of the object")
        return self.content[offset : offset + size]

    def _section(self, fields: tuple[int, ...], strings: bytes) -> _Section:
        name, kind, flags, _, _, _, link, info, alignment, _ = fields
        section = _Section(_text(strings, name), kind, flags, self._bytes(fields), link, info, max(1, alignment))
        writable = flags & _WRITE and not section.name.startswith(".data.rel.ro")
        if section.is_kept and (writable or flags & _TLS or kind not in (_PROGBITS, _NOBITS)):
            raise ValueError(f"flat_image: got a section {section.name}, expected code and constants")
        if section.is_kept and alignment > SEGMENT_ALIGNMENT:
            raise ValueError(f"flat_image: {section.name} is to be aligned to {alignment} bytes")
        return section

    def _symbols(self) -> list[_Symbol]:
        (table,) = [section for section in self.sections if section.kind == _SYMTAB]
        strings = self.sections[table.link].content
        symbols = []
        for fields in struct.iter_unpack("<IBBHQQ", table.content):
            name, _, _, section, value, _ = fields
            symbols.append(_Symbol(_text(strings, name), section, value))
        return symbols

    def _relocations(self) -> list[_Relocation]:
        found = []
        for section in self.sections:
            if section.kind not in (_RELA, _REL) or not self.sections[section.info].is_kept:
                continue
            if section.kind == _REL:
                raise ValueError(f"flat_image: got relocations without addends for {self.sections[section.info].name}")
            for offset, info, addend in struct.iter_unpack("<QQq", section.content):
                found.append(_Relocation(section.info, offset, info >> 32, info & 0xFFFFFFFF, addend))
        return found


def _text(strings: bytes, start: int) -> str:
    return strings[start : strings.index(b"\0", start)].decode()


# --- laying it out ---------------------------------------------------------------------------------------------------


class _Layout:
    """Where everything of an object lies in the image, and the image's bytes as they are relocated."""

    def __init__(self, source: _Object):
        self.source = source
        self.imports: dict[str, int] = {}  # the word of each imported function
        self.words: dict[int, int] = {}  # the word of each place whose address is loaded from one
        self.rebases: list[tuple[int, int]] = []
        self.starts: dict[int, int] = {}
        kept = [(number, section) for number, section in enumerate(source.sections) if section.is_kept]
        code = self._place([pair for pair in kept if pair[1].flags & _EXECUTE], 0)
        called = self._called()
        self.stubs = {name: _aligned(code, 16) + 16 * number for number, name in enumerate(called)}
        code_bytes = _aligned(code, 16) + 16 * len(called) if called else code
        self.data_offset = _aligned(code_bytes, SEGMENT_ALIGNMENT)
        end = self._place([pair for pair in kept if not pair[1].flags & _EXECUTE], self.data_offset)
        self.end = _aligned(end, 8)
        self.content = bytearray(self.end)
        for number, section in kept:
            self.content[self.starts[number] : self.starts[number] + len(section.content)] = section.content
        self.code_bytes = code_bytes

    def _place(self, sections: list[tuple[int, _Section]], offset: int) -> int:
        for number, section in sections:
            offset = _aligned(offset, section.alignment)
            self.starts[number] = offset
            offset += len(section.content)
        return offset

    def _called(self) -> list[str]:
        """The imported functions that code jumps to."""
        jumps = _JUMPS[self.source.machine]
        symbols = (self.source.symbols[r.symbol] for r in self.source.relocations if r.kind in jumps)
        return sorted({symbol.name for symbol in symbols if symbol.section == _UNDEFINED})

    def image(self, exported: Collection[str]) -> FlatImage:
        for name, offset in self.stubs.items():
            self._write(offset, _stub(self.source.machine, offset, self.import_word(name)))
        for relocation in self.source.relocations:
            self._relocate(relocation)
        defined = {symbol.name: symbol for symbol in self.source.symbols if symbol.section != _UNDEFINED}
        for name in exported:
            if name not in defined:
                raise ValueError(f"flat_image: the object does not define {name}")
        image = FlatImage(
            code=bytes(self.content[: self.code_bytes]),
            data=bytes(self.content[self.data_offset :]),
            rebases=tuple(sorted(self.rebases)),
            imports=tuple(sorted((offset, name) for name, offset in self.imports.items())),
            symbols={name: self._address(defined[name]) for name in sorted(exported)},
        )
        image.check()
        return image

    def _address(self, symbol: _Symbol) -> int:
        """Where a defined symbol lies in the image."""
        if symbol.section >= _RESERVED or symbol.section not in self.starts:
            raise ValueError(f"flat_image: {symbol.name or 'a section'} is no place in the object's code or constants")
        return self.starts[symbol.section] + symbol.value

    def import_word(self, name: str) -> int:
        """The word that will hold the address of a function of the C library."""
        if name not in self.imports:
            self.imports[name] = self._new_word()
        return self.imports[name]

    def _new_word(self) -> int:
        self.content += bytes(8)
        self.end += 8
        return self.end - 8

    def _relocate(self, relocation: _Relocation) -> None:
        symbol = self.source.symbols[relocation.symbol]
        where = self.starts[relocation.section] + relocation.offset
        size = len(self.source.sections[relocation.section].content)
        if relocation.offset > size - (8 if relocation.kind in _WORDS else 4):
            raise ValueError("flat_image: a relocation lies outside of its section")
        if self.source.machine == _X86_64:
            _relocate_x86_64(self, relocation, symbol, where)
        else:
            _relocate_aarch64(self, relocation, symbol, where)

    # What the relocations of both machines are made of.

    def target(self, symbol: _Symbol, relocation: _Relocation) -> int:
        """S + A for what is used by its distance: a place in the image, or the stub of an imported function."""
        if symbol.section != _UNDEFINED:
            return self._address(symbol) + relocation.addend
        if symbol.name not in self.stubs:
            raise ValueError(f"flat_image: the object uses {symbol.name or 'a symbol'} other than by calling it")
        return self.stubs[symbol.name] + relocation.addend

    def word_for(self, symbol: _Symbol) -> int:
        """The word from which the address of a symbol is loaded."""
        if symbol.section == _UNDEFINED:
            return self.import_word(symbol.name)
        place = self._address(symbol)
        if place not in self.words:
            self.words[place] = self._new_word()
            self.rebases.append((self.words[place], place))
        return self.words[place]

    def absolute(self, where: int, symbol: _Symbol, relocation: _Relocation) -> None:
        """A word of the data that holds the address of a place in the image."""
        if where < self.data_offset or symbol.section == _UNDEFINED:
            raise ValueError(f"flat_image: the address of {symbol.name or 'a section'} is in a place that is not data")
        self.rebases.append((where, self._address(symbol) + relocation.addend))

    def distance(self, where: int, value: int, form: str) -> None:
        """Write a distance. ValueError if it does not fit."""
        try:
            self._write(where, struct.pack(form, value))
        except struct.error:
            raise ValueError(f"flat_image: a distance of {value} bytes is too far for its instruction") from None

    def bits(self, where: int, value: int, width: int, at: int, signed: bool = True) -> None:
        """Set `width` bits of the instruction, from bit `at` on. ValueError for a value that does not fit."""
        low, high = (-(1 << width - 1), 1 << width - 1) if signed else (0, 1 << width)
        if not low <= value < high:
            raise ValueError(f"flat_image: a distance of {value} is too far for its instruction")
        (word,) = struct.unpack_from("<I", self.content, where)
        mask = (1 << width) - 1
        self._write(where, struct.pack("<I", word & ~(mask << at) | (value & mask) << at))

    def _write(self, where: int, content: bytes) -> None:
        self.content[where : where + len(content)] = content


def _stub(machine: int, where: int, word: int) -> bytes:
    """Code that jumps to the address in a word."""
    if machine == _X86_64:
        return b"\xff\x25" + struct.pack("<i", word - (where + 6)) + b"\xcc" * 10  # jmp *[rip + distance]
    pages = (word >> 12) - (where >> 12)
    adrp = 0x90000010 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5  # adrp x16, word
    load = 0xF9400210 | (word & 0xFFF) >> 3 << 10  # ldr x16, [x16, word's place in the page]
    return struct.pack("<IIII", adrp, load, 0xD61F0200, 0xD4200000)  # br x16; brk


# --- the relocations -------------------------------------------------------------------------------------------------

# Kinds that a call or jump has, which may go to a stub; and kinds that fill a whole word.
_JUMPS = {_X86_64: {2, 4}, _AARCH64: {282, 283}}
_WORDS = {1, 24, 257, 260}
_AARCH64_DISTANCES = {260, 261, 273, 274, 275, 277, 278, 279, 280, 282, 283, 284, 285, 286, 299}


def _unknown(kind: int, machine: str) -> ValueError:
    return ValueError(f"flat_image: got a relocation of kind {kind} of {machine}, which is not known here")


def _relocate_x86_64(layout: _Layout, relocation: _Relocation, symbol: _Symbol, where: int) -> None:
    match relocation.kind:
        case 1:  # R_X86_64_64
            layout.absolute(where, symbol, relocation)
        case 2 | 4:  # R_X86_64_PC32, R_X86_64_PLT32
            layout.distance(where, layout.target(symbol, relocation) - where, "<i")
        case 24:  # R_X86_64_PC64
            layout.distance(where, layout.target(symbol, relocation) - where, "<q")
        case 9 | 41 | 42:  # R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX
            layout.distance(where, layout.word_for(symbol) + relocation.addend - where, "<i")
        case kind:
            raise _unknown(kind, "x86-64")


def _relocate_aarch64(layout: _Layout, relocation: _Relocation, symbol: _Symbol, where: int) -> None:
    kind = relocation.kind
    if kind == 257:  # R_AARCH64_ABS64
        layout.absolute(where, symbol, relocation)
        return
    if kind in (311, 312):  # R_AARCH64_ADR_GOT_PAGE, R_AARCH64_LD64_GOT_LO12_NC
        value = layout.word_for(symbol)
        kind = {311: 275, 312: 286}[kind]
    elif kind not in _AARCH64_DISTANCES:
        raise _unknown(kind, "AArch64")
    else:
        value = layout.target(symbol, relocation)
    match kind:
        case 261:  # R_AARCH64_PREL32
            layout.distance(where, value - where, "<i")
        case 260:  # R_AARCH64_PREL64
            layout.distance(where, value - where, "<q")
        case 275:  # R_AARCH64_ADR_PREL_PG_HI21
            _address_bits(layout, where, (value >> 12) - (where >> 12))
        case 274:  # R_AARCH64_ADR_PREL_LO21
            _address_bits(layout, where, value - where)
        case 277:  # R_AARCH64_ADD_ABS_LO12_NC
            layout.bits(where, value & 0xFFF, 12, 10, signed=False)
        case 278 | 284 | 285 | 286 | 299:  # R_AARCH64_LDST8, 16, 32, 64, 128_ABS_LO12_NC
            scale = {278: 0, 284: 1, 285: 2, 286: 3, 299: 4}[kind]
            if value & (1 << scale) - 1:
                raise ValueError(f"flat_image: {symbol.name or 'a constant'} is not aligned as its load expects")
            layout.bits(where, (value & 0xFFF) >> scale, 12, 10, signed=False)
        case 273 | 280:  # R_AARCH64_LD_PREL_LO19, R_AARCH64_CONDBR19
            layout.bits(where, _instructions(value - where), 19, 5)
        case 279:  # R_AARCH64_TSTBR14
            layout.bits(where, _instructions(value - where), 14, 5)
        case 282 | 283:  # R_AARCH64_JUMP26, R_AARCH64_CALL26
            layout.bits(where, _instructions(value - where), 26, 0)


def _address_bits(layout: _Layout, where: int, value: int) -> None:
    """The operand of adr or adrp: 21 bits, the lowest two by themselves."""
    layout.bits(where, value >> 2, 19, 5)
    layout.bits(where, value & 3, 2, 29, signed=False)


def _instructions(distance: int) -> int:
    if distance % 4:
        raise ValueError(f"flat_image: a distance of {distance} bytes is not one of whole instructions")
    return distance // 4
