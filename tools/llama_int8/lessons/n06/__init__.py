"""Lesson 06: quantization mathematics."""
