"""Lesson 05: how LLaMA is trained."""
