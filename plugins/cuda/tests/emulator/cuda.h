// CUDA C++ on a processor: the source of a kernel is compiled as it is, and run block after block. The threads of a block
// take turns: each runs until it ends or has to wait for others, at a barrier of the block or of its warp.
//
// It shows that a kernel's arithmetic, its indices and its barriers are right for the sizes it is run with. It shows nothing
// of speed, and not every race: threads never run at once.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__ static inline
#define __shared__ static
#define __restrict__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

enum Waits { NOT, FOR_WARP, FOR_BLOCK, ENDED };

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    Index index;
    Waits waits;
    uint32_t shuffled;
};
static std::vector<Thread> threads;
static size_t running;
static ucontext_t scheduler;
static std::function<void()> body;

static void run_body() {
    body();
    threads[running].waits = ENDED;
    swapcontext(&threads[running].context, &scheduler);
}

static void wait(Waits what) {
    threads[running].waits = what;
    swapcontext(&threads[running].context, &scheduler);
}

static inline void __syncthreads() { wait(FOR_BLOCK); }
static inline void __syncwarp(unsigned = 0xffffffff) { wait(FOR_WARP); }

static inline float __shfl_xor_sync(unsigned, float number, int other) {
    size_t self = running;
    memcpy(&threads[self].shuffled, &number, 4);
    wait(FOR_WARP);
    float taken;
    memcpy(&taken, &threads[self / 32 * 32 + ((self % 32) ^ other)].shuffled, 4);
    wait(FOR_WARP);
    return taken;
}

static inline uint32_t __float_as_uint(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    return bits;
}

static inline float __uint_as_float(uint32_t bits) {
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

// What the instruction `cvt.f32.f16` does.
static inline float half_to_float(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float number = exponent == 31 ? (fraction ? NAN : INFINITY)
                   : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                  : ldexpf((float)fraction, -24);
    return bits & 0x8000 ? -number : number;
}

// Lets go on who waits for nobody that still runs; says whether anybody did.
static bool release(size_t first, size_t end, Waits what) {
    bool any = false;
    for (size_t at = first; at < end; at++) {
        if (threads[at].waits == ENDED) continue;
        if (threads[at].waits != what) return false;
        any = true;
    }
    for (size_t at = first; at < end; at++) {
        if (threads[at].waits == what) threads[at].waits = NOT;
    }
    return any;
}

static void run_block() {
    for (Thread& thread : threads) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        thread.waits = NOT;
        makecontext(&thread.context, run_body, 0);
    }
    for (;;) {
        bool ended = true;
        for (running = 0; running < threads.size(); running++) {
            if (threads[running].waits != NOT) continue;
            threadIdx = threads[running].index;
            swapcontext(&scheduler, &threads[running].context);
        }
        bool released = release(0, threads.size(), FOR_BLOCK);
        for (size_t warp = 0; warp < threads.size(); warp += 32) {
            released |= release(warp, warp + 32 < threads.size() ? warp + 32 : threads.size(), FOR_WARP);
        }
        for (Thread& thread : threads) ended &= thread.waits == ENDED;
        if (ended) return;
        if (!released) {
            fprintf(stderr, "threads of a block wait for each other: a barrier that not all of them reach\n");
            exit(3);
        }
    }
}

static void launch(Index grid, Index block, std::function<void()> with) {
    body = with, gridDim = grid, blockDim = block;
    threads = std::vector<Thread>((size_t)block.x * block.y * block.z);
    for (size_t at = 0; at < threads.size(); at++) {
        threads[at].stack.resize(64 << 10);
        threads[at].index = {(unsigned)(at % block.x), (unsigned)(at / block.x % block.y), (unsigned)(at / block.x / block.y)};
    }
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block();
}

// A tensor: filled with a pattern before, and fenced, so that what a kernel leaves out or writes beside it is seen.
struct Tensor {
    static const size_t FENCE = 4096;
    size_t bytes;
    char* memory;

    explicit Tensor(size_t bytes) : bytes(bytes) {
        size_t all = (bytes + 2 * FENCE + 255) / 256 * 256;
        memory = (char*)aligned_alloc(256, all);
        memset(memory, 0xA5, all);
    }
    template <typename T>
    operator T*() const {
        return (T*)(memory + FENCE);
    }
    void read(FILE* from) {
        if (fread(memory + FENCE, 1, bytes, from) != bytes) exit(4);
    }
    void write(FILE* to) const {
        if (fwrite(memory + FENCE, 1, bytes, to) != bytes) exit(5);
    }
    void check(const char* name) const {
        for (size_t at = 0; at < FENCE; at++) {
            if (memory[at] != (char)0xA5 || memory[FENCE + bytes + at] != (char)0xA5) {
                fprintf(stderr, "the kernel wrote beside `%s`\n", name);
                exit(6);
            }
        }
    }
};
