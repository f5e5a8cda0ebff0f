"""Lesson 01: attention and causal masking."""

TOPIC = "queries, keys, values, heads, masks"
QUESTION = "How does a token look at the tokens before it?"
