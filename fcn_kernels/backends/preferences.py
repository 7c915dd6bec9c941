"""The faster GPU backend of every operator: data, which benchmarks/gpu_preferences.py writes anew from results.

Not yet measured.
"""

# The file that the numbers were read from, and the GPU they are of; None: nobody has measured.
SOURCE: str | None = None
GPU: str | None = None

# operator -> (the faster backend, how many times faster: the geometric mean over its workloads)
FASTER: dict[str, tuple[str, float]] = {}
