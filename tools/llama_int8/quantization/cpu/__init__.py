"""`int8-fast`: int8 on a CPU with the speed of int8 activations and the quality of 16 bit."""
