"""What the code generators need to know of a processor: its vectors, its registers and its caches."""

from dataclasses import dataclass

ELEMENT_BITS: dict[str, int] = {
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
    "int32": 32,
    "uint32": 32,
    "int64": 64,
    "uint64": 64,
    "float32": 32,
    "float64": 64,
}


@dataclass(frozen=True)
class VectorTarget:
    """A processor as the templates see it; the runtime fills it in once for the host.

    vector_bits:      width of one vector register in bits; anything below an element's width means scalar code
    vector_registers: how many of them the instruction set names (16 for AVX2, 32 for AVX-512 and NEON)
    has_fma:          whether a fused multiply-add is one instruction (if not, it is never emitted)
    l1_bytes, l2_bytes, l3_bytes: data cache sizes one core can use; 0 where a level is missing or unknown
    has_f16c:         whether float16 converts to and from float32 in one instruction
    attributes:       LLVM attributes for every function of a kernel
    cores:            how many the machine has, 0 if unknown; only what changes no result may depend on it
    """

    vector_bits: int
    vector_registers: int
    has_fma: bool
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    has_f16c: bool = False
    attributes: str = "nounwind"
    cores: int = 0

    def lanes(self, element: str) -> int:
        """Elements of one vector: a power of two, at least 1."""
        return 1 << (max(1, self.vector_bits // element_bits(element)).bit_length() - 1)


def element_bits(element: str) -> int:
    """Width of an accumulator type in bits; ValueError for a name that is not one."""
    if element not in ELEMENT_BITS:
        raise ValueError(f"vector_target.element_bits: got {element!r}, expected one of {', '.join(ELEMENT_BITS)}")
    return ELEMENT_BITS[element]
