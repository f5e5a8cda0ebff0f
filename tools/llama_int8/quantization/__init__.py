"""Numbers in 8 bits: codes, integer products, outliers, LLM.int8(). Knows nothing of measuring."""
