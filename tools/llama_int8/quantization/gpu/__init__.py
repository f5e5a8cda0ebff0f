"""`int8-fast` on a GPU: weights in int8, activations in 16 bit, one graph for each decode step."""

FEW = 16  # tokens that the kernel takes, in two launches: it reads one byte where cuBLAS needs five
