// The nearest rows of a matrix to each query, exactly: scan, then the best of each chunk, then the best of those.
//
// Compiled once for each kind of row: ROW is 32 (float), 16 (half) or 8 (signed char). METRIC_DOT multiplies a row's dot
// product with its scale (1 over its length gives a cosine, 1 the product itself); METRIC_L2 takes the negated squared
// distance. Either way greater is nearer, and of two equal rows the one with the smaller number comes first.

#define WARP 32
#define SCAN_WARPS 8      // rows of a block of `scan`, one each
#define SORT_THREADS 256  // of a block of `best` and `merge`
#define CHUNK 2048        // scores that a block of `best` sorts

#define METRIC_DOT 0
#define METRIC_L2 1

typedef unsigned long long Key;
#define NOTHING 0xffffffffffffffffULL  // sorts behind every score

#if ROW == 32
typedef float Component;
__device__ float value(Component component) { return component; }
#elif ROW == 16
typedef unsigned short Component;
__device__ float value(Component bits) {
#ifdef __CUDA_ARCH__
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
    return number;
#else
    return half_to_float(bits);
#endif
}
#elif ROW == 8
typedef signed char Component;
__device__ float value(Component component) { return (float)component; }
#endif

// Components that a thread reads at once: 16 bytes.
#define WIDE (16 / (int)sizeof(Component))

struct __align__(16) Piece {
    Component components[WIDE];
};

__device__ float term(float component, float query, long long metric) {
    if (metric == METRIC_DOT) {
        return component * query;
    }
    float difference = component - query;
    return -difference * difference;
}

// A warp reads a row: 16 bytes a thread where every row begins at a multiple of that, else one component.
__device__ float score(const Component* row, const float* query, long long dimension, long long metric, int lane) {
    float sum = 0.0f;
    if (dimension % WIDE == 0) {
        const Piece* pieces = (const Piece*)row;
        for (long long piece = lane; piece < dimension / WIDE; piece += WARP) {
            Piece read = pieces[piece];
            for (int at = 0; at < WIDE; at++) {
                sum += term(value(read.components[at]), query[piece * WIDE + at], metric);
            }
        }
    } else {
        for (long long at = lane; at < dimension; at += WARP) {
            sum += term(value(row[at]), query[at], metric);
        }
    }
    for (int other = WARP / 2; 0 < other; other /= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, other);
    }
    return sum;
}

// scores[queries, count]. A row is read from memory once, for all queries: after the first it is in the cache.
// Grid: ceil_div(count, SCAN_WARPS). Block: SCAN_WARPS * WARP.
extern "C" __global__ void scan(const Component* rows, const float* scales, const float* queries, float* scores,
                                long long count, long long dimension, long long query_count, long long metric) {
    long long row = (long long)blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (count <= row) {
        return;  // a whole warp
    }
    for (long long query = 0; query < query_count; query++) {
        float sum = score(rows + row * dimension, queries + query * dimension, dimension, metric, lane);
        if (lane == 0) {
            scores[query * count + row] = metric == METRIC_DOT ? sum * scales[row] : sum;
        }
    }
}

// Less is better: the score's bits turned so that they sort downwards, then the row.
__device__ Key key_of(float score, long long row) {
    unsigned int bits = __float_as_uint(score == 0.0f ? 0.0f : score);  // -0 is 0
    bits = bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
    return (Key)bits << 32 | (unsigned int)row;
}

__device__ float score_of(Key key) {
    unsigned int bits = (unsigned int)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits : ~bits & 0x7fffffffu);
}

// Bitonic sort of CHUNK keys in shared memory by SORT_THREADS threads.
__device__ void sort(Key* keys) {
    for (int size = 2; size <= CHUNK; size *= 2) {
        for (int step = size / 2; 0 < step; step /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < CHUNK / 2; pair += SORT_THREADS) {
                int low = pair / step * step * 2 + pair % step;
                int high = low + step;
                bool up = (low & size) == 0;
                if ((keys[high] < keys[low]) == up) {
                    Key held = keys[low];
                    keys[low] = keys[high];
                    keys[high] = held;
                }
            }
        }
    }
    __syncthreads();
}

// candidates[queries, chunks, k]: the best k of each chunk of scores.
// Grid: chunks, queries. Block: SORT_THREADS.
extern "C" __global__ void best(const float* scores, Key* candidates, long long count, long long k) {
    __shared__ Key keys[CHUNK];
    long long first = (long long)blockIdx.x * CHUNK;
    const float* own = scores + blockIdx.y * count;
    for (int at = threadIdx.x; at < CHUNK; at += SORT_THREADS) {
        long long row = first + at;
        keys[at] = row < count ? key_of(own[row], row) : NOTHING;
    }
    sort(keys);
    Key* out = candidates + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * k;
    for (int at = threadIdx.x; at < k; at += SORT_THREADS) {
        out[at] = keys[at];
    }
}

// The best k of all candidates of a query, best first; -1 where there are no more rows.
// Grid: queries. Block: SORT_THREADS.
extern "C" __global__ void merge(const Key* candidates, float* found_scores, int* found_rows, long long candidate_count,
                                 long long k) {
    __shared__ Key keys[CHUNK];
    const Key* own = candidates + blockIdx.x * candidate_count;
    for (int at = threadIdx.x; at < CHUNK; at += SORT_THREADS) {
        keys[at] = NOTHING;
    }
    // The first k are the best so far; the rest of the chunk is filled with what comes next.
    for (long long taken = 0; taken < candidate_count; taken += CHUNK - k) {
        __syncthreads();
        for (long long at = k + threadIdx.x; at < CHUNK; at += SORT_THREADS) {
            long long next = taken + at - k;
            keys[at] = next < candidate_count ? own[next] : NOTHING;
        }
        sort(keys);
    }
    for (long long at = threadIdx.x; at < k; at += SORT_THREADS) {
        bool is_row = keys[at] != NOTHING;
        found_scores[blockIdx.x * k + at] = is_row ? score_of(keys[at]) : 0.0f;
        found_rows[blockIdx.x * k + at] = is_row ? (int)(unsigned int)keys[at] : -1;
    }
}
