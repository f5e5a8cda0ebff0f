"""What LLM.int8() is called in code and in figures, and its threshold."""

THRESHOLD = 6.0  # from this magnitude on the paper and bitsandbytes keep a column in 16 bit
INT8 = "int8"
NO_DECOMPOSITION = "int8, threshold 0"  # the same int8 model; no column is kept in 16 bit
LABELS = {INT8: "LLM.int8()", NO_DECOMPOSITION: "LLM.int8(), threshold 0"}


def label(precision: str) -> str:
    """A precision's name for readers; those that readers know already keep theirs."""
    return LABELS.get(precision, precision)


# The labels as names: races on a CPU and on a GPU record their measurements under them.
LLM_INT8, LLM_INT8_AT_0 = label(INT8), label(NO_DECOMPOSITION)
