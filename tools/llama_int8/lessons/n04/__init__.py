"""Lesson 04: LLaMA from scratch."""

TOPIC = "RMSNorm, RoPE, SwiGLU, shared heads, Meta's files"
