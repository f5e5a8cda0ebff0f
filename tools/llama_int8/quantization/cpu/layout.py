"""How `int8-fast` lays out the codes of a layer; kept apart from whatever needs PyTorch."""

import math

GROUP = 32  # inputs that share a scale, of a token and of a row of weights
ROWS = 32  # rows of weights that the kernel reads together
FORMAT_VERSION = 2  # of the file format; another layout gets another number


def packed_shape(outputs: int, inputs: int) -> tuple[int, int, int, int]:
    """Shape of a layer's packed codes: blocks of rows, fours of inputs, rows in a block, 4."""
    return (-(-outputs // ROWS), -(-inputs // GROUP) * GROUP // 4, ROWS, 4)


def scale_shape(outputs: int, inputs: int) -> tuple[int, int, int]:
    """Shape of the scales, in bf16: blocks of rows, groups of inputs, rows in a block."""
    return (-(-outputs // ROWS), -(-inputs // GROUP), ROWS)


def packed_bytes(outputs: int, inputs: int) -> int:
    """Bytes of a layer's packed codes, what fills them up included."""
    return math.prod(packed_shape(outputs, inputs))


def scale_bytes(outputs: int, inputs: int) -> int:
    """Bytes of a layer's scales."""
    return 2 * math.prod(scale_shape(outputs, inputs))
