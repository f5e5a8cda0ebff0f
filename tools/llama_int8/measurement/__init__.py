"""Memory, latency and quality of a model, with their uncertainty, and the files they go to."""
