"""Lesson 09: FlashAttention."""

TOPIC = "online softmax, tiles, traffic, backends"
