"""Lesson 01: attention and causal masking."""
