"""A matrix product and a top-k behind it, for `cuda.rs`: `cublas.py ROWS DIMENSION QUERIES K ROUNDS`, `--cpu` to try it out.

By JAX, whose products are cuBLAS's on a GPU, on the rows and the queries of plugins/cuda/examples/search.rs, in 16 bits. A round is
what a search is: queries from the host's memory, hits back in it. Prints the median of the rounds and the first query's hits."""

import os
import sys
import time

arguments = [int(word) for word in sys.argv[1:] if word != "--cpu"]
# Triton's products, which XLA may choose, are not what is asked for; and memory is taken as it is needed.
os.environ["XLA_FLAGS"] = "--xla_gpu_enable_triton_gemm=false"
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
os.environ["JAX_PLATFORMS"] = "cpu" if "--cpu" in sys.argv else "cuda"

import jax
import numpy as np

ROWS, DIMENSION, QUERIES, K, ROUNDS = arguments
BATCH = 10_000

# The generator of the example, many steps at once: the nth state is `a[n] * seed + c[n]`, modulo 2**64.
factor, step = np.uint64(6_364_136_223_846_793_005), np.uint64(1_442_695_040_888_963_407)
a = np.cumprod(np.full(BATCH * DIMENSION, factor))
c = step * np.cumsum(np.concatenate([[np.uint64(1)], a[:-1]]))


def noise(seed: int, rows: int) -> np.ndarray:
    count = rows * DIMENSION
    state = a[:count] * np.uint64(seed + 1) + c[:count]
    return (state >> np.uint64(40)).astype(np.uint8).view(np.int8).reshape(rows, DIMENSION)


def directions(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@jax.jit
def search(rows, queries):
    return jax.lax.top_k(queries @ rows.T, K)


matrix = np.empty((ROWS, DIMENSION), np.float16)
for first in range(0, ROWS, BATCH):
    matrix[first : first + BATCH] = directions(noise(first, min(BATCH, ROWS - first)))
rows = jax.device_put(matrix).block_until_ready()

times, first_hits = [], []
for turn in range(-1, ROUNDS):  # the first compiles, and does not count
    queries = directions(noise(max(turn, 0) + 7, QUERIES))
    began = time.perf_counter()
    scores, ids = (np.asarray(part) for part in search(rows, queries))
    times.append((time.perf_counter() - began) * 1e3)
    first_hits = first_hits or ids[0].tolist()
hits = ",".join(map(str, first_hits))
print(f'bench on="{jax.devices()[0].device_kind}" ms={np.median(times[1:]):.4f} hits={hits}')
