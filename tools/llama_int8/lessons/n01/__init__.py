"""Lesson 01: attention and causal masking."""

TOPIC = "queries, keys, values, heads, masks"
