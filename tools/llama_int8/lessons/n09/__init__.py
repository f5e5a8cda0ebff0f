"""Lesson 09: FlashAttention."""

TOPIC = "online softmax, tiles, traffic, backends"
QUESTION = "What about the memory that attention moves?"
