"""Lesson 04: LLaMA from scratch."""
