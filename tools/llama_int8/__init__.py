"""The package behind the course "LLaMA in 8 bits": models, transformer, quantization, measurement.

Imports point one way: classroom -> measurement -> quantization -> transformer. `models` is the one
door to every model and uses `measurement.cost` to say beforehand what a model needs.
"""

import os

# Before torch is imported: its memory profiler warns of every block that it has not seen begin.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says when it starts and stops

__version__ = "0.1.0"
