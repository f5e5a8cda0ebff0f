"""Lesson 08: FP16 against int8."""

TOPIC = "memory, quality with intervals, speed in turns, PIQA"
QUESTION = "Is int8 smaller, faster and as good, and how would you prove it?"
