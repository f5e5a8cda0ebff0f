"""`int8-fast` on a GPU: weights in int8, activations in 16 bit, one graph for each decode step."""
