"""Lesson 10: fast int8."""

TOPIC = "int8 kernels against a 16-bit control"
QUESTION = "When are 8 bits faster?"
