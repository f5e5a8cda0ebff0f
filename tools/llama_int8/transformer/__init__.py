"""The transformer and LLaMA, in floating point. Knows nothing of int8."""
