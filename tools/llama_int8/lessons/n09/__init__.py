"""Lesson 09: FlashAttention."""

TOPIC = "online softmax, tiles, traffic, backends"
QUESTION = "Must attention write all its scores to memory?"
