"""Scoring models: tasks, log-likelihoods, perplexity, and comparisons of precisions."""
