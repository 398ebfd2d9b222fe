// Enough of CUDA for gpu.cu to run on a CPU as it stands: every thread of a block is a fiber, and a warp's shuffles
// and a block's barriers are where fibers wait for one another. Warps run as far ahead of the others as barriers let
// them, in either order; a missing barrier that does not show so is found by emulated_races.cpp.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "emulated_races.h"

#define __CUDACC__
#define __device__
#define __global__
#define __shared__ static __attribute__((section("ntk_shared")))
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct Index {
    unsigned x, y, z;
};

// Of the library that this is compiled into.
extern "C" char __start_ntk_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_ntk_shared[] __attribute__((weak, visibility("hidden")));

namespace emulated {

struct Warp {
    uint64_t slots[2][32];
    int kinds[2];
    long arrived = 0;
};

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

struct Fiber {
    std::vector<Copy> copies;  // that have not landed yet
    ucontext_t context;  // where it begins; later it is resumed by a jump, which asks nothing of the system
    jmp_buf resume;
    std::unique_ptr<char[]> stack;
    Index thread{};
    Warp* warp = nullptr;
    long shuffles = 0, barriers = 0;
    bool begun = false, done = true;
};

constexpr int STACK = 256 << 10;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Fiber* current;
inline jmp_buf scheduler;
inline Index block, grid, size;
inline long at_barrier;
inline void (*body)(const void*);
inline const void* body_state;

inline void wait() {
    if (!_setjmp(current->resume)) _longjmp(scheduler, 1);
}

inline void barrier() {
    const races::Aside aside;
    const long until = ++current->barriers * (long)size.x;
    at_barrier++;
    while (at_barrier < until) wait();
    races::me.interval = current->barriers;
}

// Copies to shared memory land at the latest when they are waited for: in every other two blocks then, so that nothing may
// count on them before, and at once in the others, so that nothing may still read what they overwrite.
inline void copy_later(void* to, const void* from, size_t bytes) {
    const races::Aside aside;
    if (((uintptr_t)to | (uintptr_t)from) % bytes) std::fprintf(stderr, "a copy of misaligned words\n"), std::abort();
    races::record(from, bytes, false), races::record(to, bytes, true);
    if (block.x / 2 % 2)
        std::memcpy(to, from, bytes);
    else
        current->copies.push_back({to, from, bytes});
}

inline void land() {
    const races::Aside aside;
    for (const Copy& copy : current->copies) {
        races::record(copy.to, copy.bytes, true);
        std::memcpy(copy.to, copy.from, copy.bytes);
    }
    current->copies.clear();
}

// Every lane of a warp must make the same shuffles in the same order; anything else stops the program.
template <class V> V shuffle(V value, int kind, int source) {
    static_assert(sizeof(V) <= 8);
    const races::Aside aside;
    Fiber& me = *current;
    Warp& warp = *me.warp;
    const long turn = me.shuffles++;
    const int lane = me.thread.x % 32;
    if (warp.arrived == 32 * turn) warp.kinds[turn % 2] = kind;
    if (warp.kinds[turn % 2] != kind) std::fprintf(stderr, "lanes of a warp make different shuffles\n"), std::abort();
    std::memcpy(&warp.slots[turn % 2][lane], &value, sizeof(V));
    warp.arrived++;
    while (warp.arrived < 32 * (turn + 1)) wait();
    std::memcpy(&value, &warp.slots[turn % 2][source], sizeof(V));
    return value;
}

inline void enter() {
    races::watch(true);
    body(body_state);
    races::watch(false);
    current->done = true;
    _longjmp(scheduler, 1);
}

inline void start(Fiber& fiber, unsigned thread) {
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.thread = {thread, 0, 0};
    fiber.warp = &warps[thread / 32];
    fiber.shuffles = fiber.barriers = 0;
    fiber.begun = fiber.done = false;
}

inline void resume(Fiber& fiber) {
    current = &fiber;
    races::me = {block.x, fiber.barriers, (int)fiber.thread.x};
    races::stack = {fiber.stack.get(), fiber.stack.get() + STACK};
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.resume, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

// Run one warp until all its lanes are done or wait at a barrier. Returns whether any lane moved.
inline bool run_warp(unsigned warp) {
    bool moved = false, moving = true;
    while (moving) {
        moving = false;
        for (unsigned t = 32 * warp; t < 32 * warp + 32; t++) {
            Fiber& fiber = fibers[t];
            if (fiber.done || at_barrier < fiber.barriers * (long)size.x) continue;
            resume(fiber);
            moved = moving = true;
        }
    }
    return moved;
}

inline void run_block(bool backwards) {
    const unsigned count = size.x / 32;
    races::begin_block();
    warps.assign(count, Warp{});
    at_barrier = 0;
    for (unsigned t = 0; t < size.x; t++) start(fibers[t], t);
    for (bool moved = true; moved;) {
        moved = false;
        for (unsigned w = 0; w < count; w++) moved |= run_warp(backwards ? count - 1 - w : w);
    }
    for (unsigned t = 0; t < size.x; t++)
        if (!fibers[t].done || !fibers[t].copies.empty())
            std::fprintf(stderr, "a thread waits at a barrier for ever, or not for its copies\n"), std::abort();
    races::settle();
}

template <class... A> constexpr int parameters(void (*)(A...)) { return sizeof...(A); }

template <class A> A argument(int64_t bits) {
    static_assert(sizeof(A) == 8, "a launch passes every argument as 64 bits");
    if constexpr (std::is_pointer_v<A>)
        return reinterpret_cast<A>(bits);
    else
        return static_cast<A>(bits);
}

template <class... A, size_t... k>
void launch(void (*kernel)(A...), const int64_t* arguments, std::index_sequence<k...>) {
    auto call = [&] { kernel(argument<A>(arguments[k])...); };
    body = [](const void* state) { (*static_cast<const decltype(call)*>(state))(); };
    body_state = &call;
    races::begin_launch({__start_ntk_shared, __stop_ntk_shared});
    if (fibers.size() < size.x) fibers = std::vector<Fiber>(size.x);
    for (block.y = 0; block.y < grid.y; block.y++)
        for (block.x = 0; block.x < grid.x; block.x++) run_block((block.x + block.y) % 2);
}

template <class... A> void launch(void (*kernel)(A...), const int64_t* arguments) {
    launch(kernel, arguments, std::index_sequence_for<A...>{});
}

}  // namespace emulated

#define threadIdx (emulated::current->thread)
#define blockIdx (emulated::block)
#define gridDim (emulated::grid)
#define blockDim (emulated::size)

template <class V> inline void copy_later(V* to, const V* from) { emulated::copy_later(to, from, sizeof(V)); }
inline void wait_for_copies() { emulated::land(); }
inline void __syncthreads() { emulated::barrier(); }
template <class V> V __shfl_up_sync(unsigned, V v, int by) {
    const int lane = threadIdx.x % 32;
    return emulated::shuffle(v, by, lane < by ? lane : lane - by);
}
template <class V> V __shfl_down_sync(unsigned, V v, int by) {
    const int lane = threadIdx.x % 32;
    return emulated::shuffle(v, -by, lane + by > 31 ? lane : lane + by);
}
inline int atomicAdd(int* to, int by) {
    const races::Aside aside;
    *to += by;
    return *to - by;
}

// sqrt.approx.ftz.f32 may be off by 2^-23 of its value: here it always is, to either side.
inline float root(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const float y = std::sqrt(x), off = std::ldexp(y, -23);
    return (bits * 2654435761u >> 31) ? y + off : y - off;
}
inline double root(double x) { return std::sqrt(x); }
