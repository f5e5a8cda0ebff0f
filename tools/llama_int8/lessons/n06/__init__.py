"""Lesson 06: quantization mathematics."""

TOPIC = "scales, rounding, signal-to-noise ratio"
QUESTION = "How does a number fit into 8 bits, and what is lost?"
