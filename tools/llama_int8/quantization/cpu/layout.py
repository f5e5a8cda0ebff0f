"""How `int8-fast` lays out the codes of a layer; kept apart from whatever needs PyTorch."""

import math

GROUP = 64  # activations that share a scale
ROWS = 32  # rows of weights that the kernel reads together
FORMAT_VERSION = 1  # of the file; another layout gets another number


def packed_shape(outputs: int, inputs: int) -> tuple[int, int, int, int]:
    """Shape of a layer's packed codes: blocks of rows, fours of inputs, rows in a block, 4."""
    return (-(-outputs // ROWS), -(-inputs // GROUP) * GROUP // 4, ROWS, 4)


def packed_bytes(outputs: int, inputs: int) -> int:
    """Bytes of a layer's packed codes, what fills them up included; the scales are apart."""
    return math.prod(packed_shape(outputs, inputs))
