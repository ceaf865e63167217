// CUDA C++ on a processor: the source of a kernel is compiled as it is, and run block after block. The threads of a block
// take turns: each runs until it ends or has to wait for others, at a barrier of the block or of its warp.
//
// The program reads commands from its standard input, as `tests/emulator/mod.rs` writes them, and answers on its output.
//
// It shows that a kernel's arithmetic, its indices and its barriers are right for the sizes it is run with. It shows nothing
// of speed, and not every race: threads never run at once.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <ucontext.h>
#include <utility>
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

// Not to be made one instruction: the compiler is told to leave them apart (-ffp-contract=off).
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }

// Threads never run at once.
static inline int atomicAdd(int* place, int number) {
    int before = *place;
    *place += number;
    return before;
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

// Memory of the device: filled with a pattern before, and fenced, so that what a kernel leaves out or writes beside it is
// seen.
struct Memory {
    static const size_t FENCE = 4096;
    size_t bytes = 0;
    char* memory = nullptr;

    void alloc(size_t count) {
        bytes = count;
        size_t all = (bytes + 2 * FENCE + 255) / 256 * 256;
        memory = (char*)aligned_alloc(256, all);
        memset(memory, 0xA5, all);
    }
    char* data(size_t offset, size_t count) const {
        if (bytes < offset + count) {
            fprintf(stderr, "the host reads or writes beside memory of the device\n");
            exit(4);
        }
        return memory + FENCE + offset;
    }
    void check() const {
        for (size_t at = 0; at < FENCE; at++) {
            if (memory[at] != (char)0xA5 || memory[FENCE + bytes + at] != (char)0xA5) {
                fprintf(stderr, "the kernel wrote beside memory of %zu bytes\n", bytes);
                exit(6);
            }
        }
    }
};
static std::map<uint64_t, Memory> memories;

// A function of the program, with its arguments as 64 bits each.
struct Entry {
    const char* name;
    size_t arguments;
    std::function<void(const uint64_t*)> call;
};

template <typename T>
static T as(uint64_t bits) {
    return (T)bits;
}

template <typename... A, size_t... N>
static Entry entry(const char* name, void (*function)(A...), std::index_sequence<N...>) {
    return {name, sizeof...(A), [function](const uint64_t* bits) { function(as<A>(bits[N])...); }};
}

template <typename... A>
static Entry entry(const char* name, void (*function)(A...)) {
    return entry(name, function, std::index_sequence_for<A...>());
}

static void take(void* to, size_t bytes) {
    // The end of the input is the end of the device.
    if (fread(to, 1, bytes, stdin) != bytes) exit(0);
}

static uint64_t take() {
    uint64_t number;
    take(&number, sizeof number);
    return number;
}

static void done() {
    fputc('.', stdout);
    fflush(stdout);
}

static void run_launch(const std::vector<Entry>& entries) {
    std::string name(take(), 0);
    take(&name[0], name.size());
    unsigned sizes[6];
    take(sizes, sizeof sizes);
    std::vector<uint64_t> arguments(take());
    for (uint64_t& argument : arguments) {
        bool is_memory = take();
        argument = take();
        if (is_memory) argument = (uint64_t)memories.at(argument).data(0, 0);
    }
    for (const Entry& entry : entries) {
        if (name != entry.name) continue;
        if (arguments.size() != entry.arguments) {
            fprintf(stderr, "%s takes %zu arguments, not %zu\n", entry.name, entry.arguments, arguments.size());
            exit(7);
        }
        launch({sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]}, [&] { entry.call(arguments.data()); });
        for (const auto& memory : memories) memory.second.check();
        return done();
    }
    fprintf(stderr, "there is no %s\n", name.c_str());
    exit(8);
}

static int serve(const std::vector<Entry>& entries) {
    for (;;) {
        char command;
        take(&command, 1);
        if (command == 'L') {
            run_launch(entries);
            continue;
        }
        uint64_t number = take();
        Memory& memory = memories[number];
        switch (command) {
            case 'A':
                memory.alloc(take());
                break;
            case 'F':
                free(memory.memory);
                memories.erase(number);
                break;
            case 'Z':
                memset(memory.data(0, 0), 0, memory.bytes);
                break;
            case 'W': {
                uint64_t offset = take(), bytes = take();
                take(memory.data(offset, bytes), bytes);
                break;
            }
            case 'C': {
                uint64_t to = take(), bytes = take();
                memcpy(memories.at(to).data(0, bytes), memory.data(0, bytes), bytes);
                break;
            }
            case 'R': {
                uint64_t offset = take(), bytes = take();
                fwrite(memory.data(offset, bytes), 1, bytes, stdout);
                break;
            }
            default:
                exit(9);
        }
        done();
    }
}
