"""Lesson 03: generation and decoding."""

TOPIC = "KV cache, sampling, chat templates, limits"
QUESTION = "How does a text come out of probabilities?"
