"""How FP32, FP16 and bf16 store a number (IEEE 754-2019, section 3.4)."""

import torch

EXPONENT_BITS = {torch.float32: 8, torch.float16: 5, torch.bfloat16: 8}


def bit_fields(value: float, dtype: torch.dtype) -> tuple[str, str, str]:
    """Sign, exponent and mantissa of `value` as `dtype` stores it, as strings of 0 and 1."""
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    width = 8 * dtype.itemsize
    stored = torch.tensor(value, dtype=dtype).view(integer).item() % 2**width
    bits = f"{stored:0{width}b}"
    return bits[0], bits[1 : 1 + EXPONENT_BITS[dtype]], bits[1 + EXPONENT_BITS[dtype] :]


def value_of_bits(sign: str, exponent: str, mantissa: str) -> float:
    """The finite number that the bits stand for."""
    bias = 2 ** (len(exponent) - 1) - 1
    fraction = int(mantissa, 2) / 2 ** len(mantissa)
    power = int(exponent, 2)
    size = fraction * 2.0 ** (1 - bias) if power == 0 else (1 + fraction) * 2.0 ** (power - bias)
    return -size if sign == "1" else size
