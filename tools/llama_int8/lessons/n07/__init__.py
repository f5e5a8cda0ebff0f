"""Lesson 07: outliers and LLM.int8()."""
