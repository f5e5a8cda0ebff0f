"""Lesson 04: LLaMA from scratch."""

TOPIC = "RMSNorm, RoPE, SwiGLU, shared heads, Meta's files"
QUESTION = "What did LLaMA change, and does our own agree with the real one?"
