"""Tiles of the matrix products by shape class: data, which `python benchmarks/tune.py` measures and writes anew.

"ieee" is exact float32, "tf32" float32 on tensor cores. Chosen such that the accumulator leaves the planned occupancy;
not yet measured.
"""

# arithmetic -> results of a tile -> (depth of a tile, warps, stages)
MATMUL = {
    "half": {256: (64, 1, 3), 512: (64, 2, 3), 1024: (64, 4, 3), 2048: (64, 4, 3), 4096: (64, 4, 3)},
    "tf32": {256: (32, 1, 3), 512: (32, 2, 3), 1024: (32, 4, 3), 2048: (32, 4, 3), 4096: (32, 4, 3)},
    "ieee": {256: (32, 1, 3), 512: (32, 2, 3), 1024: (32, 4, 3), 2048: (16, 4, 3), 4096: (16, 8, 3)},
    "double": {256: (16, 1, 2), 512: (16, 2, 2), 1024: (16, 4, 2), 2048: (16, 4, 2), 4096: (16, 4, 2)},
}

# arithmetic -> classes of a tile -> (pixels of a tile, depth, warps, stages)
SCORE = {
    "half": {16: (64, 64, 4, 3), 32: (64, 64, 4, 3), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 8, 3)},
    "tf32": {16: (64, 32, 4, 3), 32: (64, 32, 4, 3), 64: (64, 32, 4, 3), 128: (64, 32, 8, 3), 256: (64, 32, 8, 3)},
    "ieee": {16: (64, 32, 4, 3), 32: (64, 32, 4, 3), 64: (64, 16, 4, 3), 128: (64, 16, 8, 3), 256: (32, 16, 8, 3)},
    "double": {16: (32, 16, 4, 2), 32: (32, 16, 4, 2), 64: (32, 16, 4, 2)},
}

# The products of conv_transpose_add, whose pixels have masks and pointers of their own: as MATMUL.
CONV_TRANSPOSE = {
    "half": {256: (32, 1, 2), 512: (32, 2, 2), 1024: (32, 4, 2), 2048: (32, 4, 2), 4096: (32, 8, 2)},
    "tf32": {256: (16, 1, 2), 512: (16, 2, 2), 1024: (16, 4, 2), 2048: (16, 4, 2), 4096: (16, 8, 2)},
    "ieee": {256: (16, 1, 2), 512: (16, 2, 2), 1024: (16, 4, 2), 2048: (16, 4, 2), 4096: (16, 8, 2)},
    "double": {256: (16, 1, 2), 512: (16, 2, 2), 1024: (16, 4, 2), 2048: (16, 8, 2), 4096: (16, 8, 2)},
}
