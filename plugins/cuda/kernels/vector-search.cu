// The nearest rows of a matrix to each query, exactly: scan, then the best of each chunk, then the best of those.
//
// Compiled once for each kind of row: ROW is 32 (float), 16 (half) or 8 (signed char). METRIC_DOT multiplies a row's dot
// product with its scale (1 over its length gives a cosine, 1 the product itself); METRIC_L2 takes the negated squared
// distance. Either way greater is nearer, and of two equal rows the one with the smaller number comes first.
//
// A score is the same bits that the vector plugin computes on a CPU: products are rounded before they are added, to one of
// LANES partial sums by a component's number, and those are added up by halves. So it does not matter who answers.

#define LANES 32
#define SCAN_THREADS 256  // of a block of `scan`
#define TOGETHER 4        // queries that a row is read for at once
#define SORT_THREADS 256  // of a block of all others
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

#define WIDE (16 / (int)sizeof(Component))  // components that a thread reads at once: 16 bytes, and as many partial sums
#define TEAM (LANES / WIDE)                 // threads that share a row
#define SCAN_ROWS (SCAN_THREADS / TEAM)     // rows of a block of `scan`: 32, 64 or 128

struct __align__(16) Piece {
    Component components[WIDE];
};

// WIDE components of a row from `at` on; 0 behind its end, which adds nothing to any score.
__device__ void read(const Component* row, long long at, long long width, float* values) {
    if (width % WIDE == 0) {
        Piece piece = *(const Piece*)(row + at);
#pragma unroll
        for (int c = 0; c < WIDE; c++) {
            values[c] = value(piece.components[c]);
        }
    } else {
#pragma unroll
        for (int c = 0; c < WIDE; c++) {
            values[c] = at + c < width ? value(row[at + c]) : 0.0f;
        }
    }
}

__device__ float term(float component, float query, long long metric) {
    float factor = metric == METRIC_DOT ? component : __fsub_rn(component, query);
    return __fmul_rn(factor, metric == METRIC_DOT ? query : factor);
}

// scores[queries, count]. A row is read from memory once for TOGETHER queries, and from the cache for the next ones.
// `factors`, one a query, may be null: then they are 1. `width`: components from one row, and from one query, to the next.
// Grid: ceil_div(count, SCAN_ROWS). Block: SCAN_THREADS.
extern "C" __global__ void scan(const Component* rows, const float* scales, const float* factors, const float* queries,
                                float* scores, long long count, long long width, long long query_count,
                                long long metric) {
    long long row = (long long)blockIdx.x * SCAN_ROWS + threadIdx.x / TEAM;
    int member = threadIdx.x % TEAM;
    bool is_row = row < count;
    // A team without a row reads the last one too: whoever shares its warp needs it in the shuffles.
    const Component* own = rows + (is_row ? row : count - 1) * width;
    for (long long first = 0; first < query_count; first += TOGETHER) {
        float sums[TOGETHER][WIDE];
#pragma unroll
        for (int q = 0; q < TOGETHER; q++) {
#pragma unroll
            for (int c = 0; c < WIDE; c++) {
                sums[q][c] = 0.0f;
            }
        }
        for (long long at = member * WIDE; at < width; at += LANES) {
            float values[WIDE];
            read(own, at, width, values);
#pragma unroll
            for (int q = 0; q < TOGETHER; q++) {
                if (query_count <= first + q) {
                    continue;
                }
                const float* query = queries + (first + q) * width;
#pragma unroll
                for (int c = 0; c < WIDE; c++) {
                    float other = at + c < width ? query[at + c] : 0.0f;
                    sums[q][c] = __fadd_rn(sums[q][c], term(values[c], other, metric));
                }
            }
        }
#pragma unroll
        for (int q = 0; q < TOGETHER; q++) {
            if (query_count <= first + q) {
                continue;  // all threads alike
            }
#pragma unroll
            for (int other = TEAM / 2; 0 < other; other /= 2) {
#pragma unroll
                for (int c = 0; c < WIDE; c++) {
                    sums[q][c] = __fadd_rn(sums[q][c], __shfl_xor_sync(0xffffffff, sums[q][c], other));
                }
            }
#pragma unroll
            for (int half = WIDE / 2; 0 < half; half /= 2) {
#pragma unroll
                for (int c = 0; c < half; c++) {
                    sums[q][c] = __fadd_rn(sums[q][c], sums[q][c + half]);
                }
            }
            if (member == 0 && is_row) {
                float sum = sums[q][0];
                if (metric == METRIC_DOT) {
                    sum = __fmul_rn(sum, scales[row]);
                    sum = factors ? __fmul_rn(sum, factors[first + q]) : sum;
                }
                scores[(first + q) * count + row] = metric == METRIC_DOT ? sum : -sum;
            }
        }
    }
}

// Rows whose bit of `allowed` is 0 come behind all others, whatever their scores.
// Grid: ceil_div(count, SORT_THREADS), queries. Block: SORT_THREADS.
extern "C" __global__ void hide(float* scores, const unsigned int* allowed, long long count) {
    long long row = (long long)blockIdx.x * SORT_THREADS + threadIdx.x;
    if (row < count && !(allowed[row / 32] >> row % 32 & 1)) {
        scores[blockIdx.y * count + row] = __uint_as_float(0xff800000);  // -infinity, which no row has
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

// All rows as near as the one at place `last` of a query's found ones, or nearer, in any order: where many are equally
// near, it is for whoever asked to choose among them. `counts` has to be 0 before; it may end up beyond `room`.
// Grid: ceil_div(count, SORT_THREADS), queries. Block: SORT_THREADS.
extern "C" __global__ void gather(const float* scores, const float* found_scores, int* counts, float* gathered_scores,
                                  int* gathered_rows, long long count, long long k, long long last, long long room) {
    long long row = (long long)blockIdx.x * SORT_THREADS + threadIdx.x;
    if (count <= row || scores[blockIdx.y * count + row] < found_scores[blockIdx.y * k + last]) {
        return;
    }
    long long place = atomicAdd(counts + blockIdx.y, 1);
    if (place < room) {
        gathered_scores[blockIdx.y * room + place] = scores[blockIdx.y * count + row];
        gathered_rows[blockIdx.y * room + place] = (int)row;
    }
}
