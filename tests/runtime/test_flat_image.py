"""Flat images: an object's code, copied anywhere, computes what it should, and what is not known is refused."""

import ctypes
import shutil
import struct
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from kaun.runtime import engine, flat_image, mapped_image
from kaun.runtime import target as targets
from kaun.runtime.flat_image import SEGMENT_ALIGNMENT, FlatImage

# Everything an image has to get right: constants in sections of their own, a table of functions, calls between
# functions that are not inlined, calls of libc, addresses of functions that are used as values.
MODULE = """
@numbers = internal constant [4 x i64] [i64 3, i64 5, i64 7, i64 11], align 64
@zeros = internal constant [3 x i64] zeroinitializer
@table = constant [3 x ptr] [ptr @double, ptr @triple, ptr getelementptr ([4 x i64], ptr @numbers, i64 0, i64 2)]

declare ptr @memcpy(ptr, ptr, i64)
declare ptr @malloc(i64)
declare void @free(ptr)

define internal i64 @double(i64 %x) noinline { %r = shl i64 %x, 1 ret i64 %r }
define internal i64 @triple(i64 %x) noinline { %r = mul i64 %x, 3 ret i64 %r }

define i64 @sum(ptr %given, i64 %which) {
  %copy = call ptr @malloc(i64 32)
  %end = call ptr @memcpy(ptr %copy, ptr %given, i64 32)
  %place = getelementptr i64, ptr %copy, i64 %which
  %value = load i64, ptr %place
  call void @free(ptr %copy)
  %constant.p = getelementptr [4 x i64], ptr @numbers, i64 0, i64 %which
  %constant = load i64, ptr %constant.p
  %zero.p = getelementptr [3 x i64], ptr @zeros, i64 0, i64 %which
  %zero = load volatile i64, ptr %zero.p
  %doubled = call i64 @double(i64 %value)
  %function.p = getelementptr [3 x ptr], ptr @table, i64 0, i64 1
  %function = load volatile ptr, ptr %function.p
  %tripled = call i64 %function(i64 %constant)
  %both = add i64 %doubled, %tripled
  %all = add i64 %both, %zero
  ret i64 %all
}

define ptr @address_of_memcpy() { ret ptr @memcpy }
define double @scaled(double %x) { %r = fmul double %x, 0x400921FB54442D18 ret double %r }
"""
EXPORTED = ["sum", "scaled", "table", "address_of_memcpy"]


def image_for(target, module=MODULE, exported=EXPORTED):
    return flat_image.flat_image(engine.compile_module(module, target, 1), exported)


def expected(given, which):
    return 2 * given[which] + 3 * (3, 5, 7, 11)[which]


@pytest.mark.skipif(targets.host().architecture not in ("x86_64", "aarch64"), reason="code of other machines")
def test_a_mapped_image_runs_and_finds_its_constants_tables_and_libc():
    image = image_for(replace(targets.host(), triple=f"{targets.host().architecture}-unknown-linux-gnu"))
    given = np.array([1, 10, 100, 1000], np.int64)
    bases = [mapped_image.map_image(image) for _ in range(2)]
    assert bases[0] != bases[1] and all(base % SEGMENT_ALIGNMENT == 0 for base in bases)
    for base in bases:
        total = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(base + image.symbols["sum"])
        for which in range(3):
            assert total(given.ctypes.data, which) == expected(given, which)
        scaled = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(base + image.symbols["scaled"])
        assert scaled(2.0) == 2.0 * np.pi
        table = (ctypes.c_uint64 * 3).from_address(base + image.symbols["table"])
        assert ctypes.c_int64.from_address(table[2]).value == 7
        memcpy = ctypes.CFUNCTYPE(ctypes.c_void_p)(base + image.symbols["address_of_memcpy"])()
        assert memcpy == ctypes.cast(ctypes.CDLL(None).memcpy, ctypes.c_void_p).value


LOADER = r"""
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
typedef int64_t (*sum_t)(int64_t *, int64_t);
int main(int argc, char **argv) {
  FILE *f = fopen(argv[1], "rb");
  uint64_t head[10];
  if (fread(head, 8, 10, f) != 10) return 1;
  uint64_t code = head[0], data = head[1], at = head[2], rebases = head[3], imports = head[4];
  char *memory = mmap(0, at + data + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *base = (char *)(((uintptr_t)memory + 65535) & ~(uintptr_t)65535);
  if (fread(base, 1, code, f) != code || fread(base + at, 1, data, f) != data) return 2;
  for (uint64_t i = 0; i < rebases; i++) {
    uint64_t pair[2];
    if (fread(pair, 8, 2, f) != 2) return 3;
    *(uint64_t *)(base + pair[0]) = (uint64_t)(base + pair[1]);
  }
  for (uint64_t i = 0; i < imports; i++) {
    struct { uint64_t offset; char name[56]; } import;
    if (fread(&import, 1, 64, f) != 64) return 4;
    void *address = !strcmp(import.name, "memcpy") ? (void *)memcpy : !strcmp(import.name, "malloc") ? (void *)malloc
                  : !strcmp(import.name, "free") ? (void *)free : 0;
    *(uint64_t *)(base + import.offset) = (uint64_t)address;
  }
  if (mprotect(base, at, PROT_READ | PROT_EXEC)) return 5;
  int64_t given[4] = {1, 10, 100, 1000};
  for (int64_t which = 0; which < 3; which++) printf("%ld ", (long)((sum_t)(base + head[5]))(given, which));
  printf("%.17g ", ((double (*)(double))(base + head[6]))(2.0));
  printf("%ld ", (long)*((int64_t **)(base + head[7]))[2]);
  printf("%d\n", ((void *(*)(void))(base + head[8]))() == (void *)memcpy);
  return 0;
}
"""

CROSS = {"x86_64": ("gcc", None), "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64")}


@pytest.mark.parametrize("architecture", sorted(CROSS))
@pytest.mark.parametrize("level", [0, 2])
def test_a_c_program_loads_the_image_of_either_architecture(architecture, level, tmp_path):
    compiler, emulator = CROSS[architecture]
    for tool in filter(None, (compiler, emulator)):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    target = targets.named("linux-x86_64-v2" if architecture == "x86_64" else "linux-aarch64")
    image = flat_image.flat_image(engine.compile_module(MODULE, target, level), EXPORTED)
    symbols = [image.symbols[name] for name in EXPORTED]
    head = [len(image.code), len(image.data), image.data_offset, len(image.rebases), len(image.imports), *symbols, 0]
    content = struct.pack("<10Q", *head) + image.code + image.data
    content += b"".join(struct.pack("<QQ", *pair) for pair in image.rebases)
    content += b"".join(struct.pack("<Q56s", offset, name.encode()) for offset, name in image.imports)
    (tmp_path / "image").write_bytes(content)
    (tmp_path / "loader.c").write_text(LOADER)
    subprocess.run(
        [compiler, "-O1", "-static", str(tmp_path / "loader.c"), "-o", str(tmp_path / "loader")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    command = [*([emulator] if emulator else []), str(tmp_path / "loader"), str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    sums = " ".join(str(expected([1, 10, 100, 1000], which)) for which in range(3))
    assert done.stdout == f"{sums} {2.0 * np.pi:.17g} 7 1\n", (done.returncode, done.stderr)


@pytest.mark.parametrize("name", ["linux-x86_64-v3", "linux-aarch64"])
def test_the_words_to_fill_lie_in_the_data_and_name_places_in_the_image(name):
    image = image_for(targets.named(name))
    assert {function for _, function in image.imports} == {"memcpy", "malloc", "free"}
    assert len(image.rebases) >= 3 and image.data_offset % SEGMENT_ALIGNMENT == 0
    image.check()
    table = image.symbols["table"]
    places = dict(image.rebases)
    assert all(0 <= places[table + 8 * number] < len(image.code) for number in range(2))
    numbers = places[table + 16] - image.data_offset
    assert image.data[numbers : numbers + 8] == (7).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rebases": ((4, 0),)}, "a word to fill at 4"),
        ({"rebases": ((0, 0),)}, "a word to fill at 0"),
        ({"rebases": ((SEGMENT_ALIGNMENT, 0), (SEGMENT_ALIGNMENT, 8))}, "one of its own"),
        ({"rebases": ((SEGMENT_ALIGNMENT, 1 << 40),)}, f"the address of {1 << 40}"),
        ({"rebases": ((SEGMENT_ALIGNMENT, -8),)}, "the address of -8"),
        ({"imports": ((SEGMENT_ALIGNMENT + 16, "memcpy"),)}, f"a word to fill at {SEGMENT_ALIGNMENT + 16}"),
        ({"imports": ((SEGMENT_ALIGNMENT, "system"),)}, "asks for the function 'system'"),
        ({"symbols": {"run": 1 << 40}}, "the symbol run"),
    ],
)
def test_offsets_of_an_image_from_a_file_are_checked(change, message):
    image = FlatImage(bytes(64), bytes(16), (), (), {"run": 0})
    image.check()
    with pytest.raises(ValueError, match=message):
        replace(image, **change).check()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("@counter = global i64 1\ndefine ptr @f() { ret ptr @counter }", "got a section .data, expected code"),
        ("@counter = global i64 0\ndefine ptr @f() { ret ptr @counter }", "got a section .bss, expected code"),
        ("@counter = thread_local global i64 1\ndefine i64 @f() { %v = load i64, ptr @counter ret i64 %v }", "section"),
        ("declare i32 @system(ptr)\ndefine i32 @f() { %r = call i32 @system(ptr null) ret i32 %r }", "'system'"),
        ("@errno = external global i32\ndefine i32 @f() { %r = load i32, ptr @errno ret i32 %r }", "'errno'"),
        ("define void @g() { ret void }", "does not define f"),
        ("@llvm.global_ctors = appending global [1 x {i32, ptr, ptr}] [{i32, ptr, ptr} {i32 1, ptr @f, ptr null}]\n"
         "define void @f() { ret void }", "got a section .ctors"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["linux-x86_64-v3", "linux-aarch64"])
def test_objects_that_need_more_than_copying_are_refused(module, message, name):
    with pytest.raises(ValueError, match=message):
        image_for(targets.named(name), module, ["f"])


@pytest.mark.parametrize("name", ["linux-x86_64-v3", "linux-aarch64"])
def test_unknown_relocations_are_refused_by_their_number(name):
    code = bytearray(engine.compile_module(MODULE, targets.named(name), 1))
    start, size, count = struct.unpack_from("<Q", code, 40)[0], *struct.unpack_from("<HH", code, 58)
    for number in range(count):
        fields = struct.unpack_from("<IIQQQQIIQQ", code, start + number * size)
        if fields[1] == 4:
            struct.pack_into("<I", code, fields[4] + 8, 199)
    with pytest.raises(ValueError, match=r"got a relocation of kind 199 of .*, which is not known here"):
        flat_image.flat_image(bytes(code), EXPORTED)


def test_a_damaged_object_is_a_value_error():
    whole = engine.compile_module(MODULE, targets.named("linux-x86_64-v3"), 1)
    generator = np.random.default_rng(0)
    refused = 0
    for number in range(400):
        damaged = bytearray(whole[: int(generator.integers(len(whole)))] if number % 4 == 0 else whole)
        for place in generator.integers(0, max(1, len(damaged)), 3) if damaged else ():
            damaged[place] ^= 1 << int(generator.integers(8))
        try:
            flat_image.flat_image(bytes(damaged), EXPORTED)
        except ValueError:
            refused += 1
    assert refused > 100


def test_objects_of_other_kinds_are_refused():
    module = "define void @f() { ret void }"
    for content in (b"", b"\x7fELF", engine.compile_module(module, targets.named("wasm32"), 1)):
        with pytest.raises(ValueError, match="flat_image: "):
            flat_image.flat_image(content, ["f"])


def test_a_function_that_this_process_lacks_is_named():
    image = FlatImage(bytes(64), bytes(8), (), ((SEGMENT_ALIGNMENT, "kaun_no_such_function"),), {})
    with pytest.raises(ValueError, match="has no function kaun_no_such_function"):
        mapped_image.map_image(image)
