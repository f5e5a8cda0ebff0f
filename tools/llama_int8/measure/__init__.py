"""Speed, memory, profiles, statistics, and the files that keep what was measured."""
