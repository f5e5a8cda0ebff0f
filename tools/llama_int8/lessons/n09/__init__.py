"""Lesson 09: FlashAttention."""
