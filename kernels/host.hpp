// Runs kernels on the host, for tests: the threads of a block are fibers, switched where they wait for each other, and
// blocks follow one another. Shared memory is static memory. What it cannot show is what hardware adds: races between
// warps, alignment beyond what is checked here, limits of a launch.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

struct Index { u32 x, y, z; };

namespace host {
constexpr u32 MAX_THREADS = 1024;
constexpr size_t STACK = 96 * 1024;

struct Fiber {
    ucontext_t context;
    bool done;
};

// State of the block that runs; kernels run one at a time.
inline Index thread, block, grid, block_dim;
inline std::vector<Fiber> fibers;
inline std::vector<char> stacks;
inline ucontext_t scheduler;
inline u32 current, alive, waiting, generation;
struct Warp { u32 waiting, generation; u64 values[32]; };
inline Warp warps[MAX_THREADS / 32];
inline const std::function<void()>* body;

inline void fail(const char* what) {
    std::fprintf(stderr, "kernel on the host: %s\n", what);
    std::abort();
}
inline void yield() {
    u32 me = current;
    swapcontext(&fibers[me].context, &scheduler);
    current = me;
    thread = Index{me, 0, 0};
}
inline void sync_block() {
    u32 mine = generation;
    if (++waiting == alive) {
        waiting = 0;
        generation++;
    }
    while (generation == mine) yield();
}
inline void sync_warp() {
    Warp& warp = warps[current / 32];
    u32 mine = warp.generation;
    if (++warp.waiting == 32) {
        warp.waiting = 0;
        warp.generation++;
    }
    while (warp.generation == mine) yield();
}
inline void check_aligned(const void* p, size_t n) {
    if ((size_t)p % n != 0) fail("a vector load from an address that is not aligned");
}
inline void entry() {
    (*body)();
    fibers[current].done = true;
    alive--;
    if (waiting != 0 && waiting == alive) fail("some threads ended while others wait for them");
    swapcontext(&fibers[current].context, &scheduler);
}
struct Launch { u32 grid[3]; u32 threads; };

inline void run(const Launch& launch, const std::function<void()>& f) {
    u32 threads = launch.threads;
    if (threads == 0 || threads > MAX_THREADS || threads % 32 != 0) fail("a block of so many threads");
    fibers.resize(threads);
    stacks.resize(threads * STACK);
    grid = Index{launch.grid[0], launch.grid[1], launch.grid[2]};
    block_dim = Index{threads, 1, 1};
    body = &f;
    for (u32 z = 0; z < grid.z; z++)
        for (u32 y = 0; y < grid.y; y++)
            for (u32 x = 0; x < grid.x; x++) {
                block = Index{x, y, z};
                alive = threads;
                waiting = 0;
                std::memset(warps, 0, sizeof warps);
                for (u32 t = 0; t < threads; t++) {
                    Fiber& fiber = fibers[t];
                    fiber.done = false;
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = &stacks[t * STACK];
                    fiber.context.uc_stack.ss_size = STACK;
                    fiber.context.uc_link = nullptr;
                    makecontext(&fiber.context, entry, 0);
                }
                while (alive > 0)
                    for (u32 t = 0; t < threads; t++) {
                        if (fibers[t].done) continue;
                        current = t;
                        thread = Index{t, 0, 0};
                        swapcontext(&scheduler, &fibers[t].context);
                    }
            }
}

// What all 32 lanes brought, in each.
inline const u64* exchange(u64 value) {
    sync_warp();
    warps[current / 32].values[current % 32] = value;
    sync_warp();
    return warps[current / 32].values;
}
}  // namespace host

#define threadIdx host::thread
#define blockIdx host::block
#define gridDim host::grid
#define blockDim host::block_dim
#define __shared__ static
#define DEVICE inline
#define KERNEL(name, Args, most, ...)                                                                              \
    extern "C" void name(const host::Launch* launch, const void* args) {                                           \
        if (launch->threads > (most)) host::fail(#name ": more threads than it was compiled for");             \
        const Args& a = *static_cast<const Args*>(args);                                                           \
        host::run(*launch, [&] { __VA_ARGS__; });                                                                  \
    }

inline f32 f16_to_f32(u16 bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return (f32)half;
}
inline i32 dot4(u32 a, u32 b, i32 sum) {
    for (int i = 0; i < 4; i++) sum += (i32)(i8)(a >> 8 * i) * (i32)(i8)(b >> 8 * i);
    return sum;
}
// Compiled without contraction.
inline f32 mul(f32 a, f32 b) { return a * b; }
inline f32 add(f32 a, f32 b) { return a + b; }
inline f64 mul(f64 a, f64 b) { return a * b; }
inline f64 add(f64 a, f64 b) { return a + b; }
inline u32 bits_of(f32 x) { u32 b; std::memcpy(&b, &x, 4); return b; }
inline f32 f32_of(u32 b) { f32 x; std::memcpy(&x, &b, 4); return x; }
inline u64 bits_of(f64 x) { u64 b; std::memcpy(&b, &x, 8); return b; }
inline f64 f64_of(u64 b) { f64 x; std::memcpy(&x, &b, 8); return x; }
template <typename T> T shuffle_xor(T x, u32 lanes) {
    u64 bits = 0;
    std::memcpy(&bits, &x, sizeof x);
    u64 other = host::exchange(bits)[(host::current % 32) ^ lanes];
    std::memcpy(&x, &other, sizeof x);
    return x;
}
inline void sync_block() { host::sync_block(); }
template <typename T> T atomicAdd(T* at, T n) {
    T old = *at;
    *at += n;
    return old;
}
using std::fabs;
#define NEGATIVE_INFINITY (-__builtin_inff())
#define POSITIVE_INFINITY (__builtin_inff())
#define NOT_A_NUMBER (__builtin_nanf(""))
