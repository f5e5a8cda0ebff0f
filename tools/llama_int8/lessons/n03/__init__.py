"""Lesson 03: generation and decoding."""

TOPIC = "KV cache, batching, sampling, copying heads, recall"
QUESTION = "How does a text come out of probabilities?"
