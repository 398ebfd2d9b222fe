// What the emulated warp tells emulated_races.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

namespace races {

// interval: between which of the block's barriers.
struct Who {
    long block = -1, interval = 0;
    int thread = 0;
};

struct Range {
    const char *begin, *end;

    bool holds(const void* at) const { return at >= begin && at < end; }
};

extern Who me;               // whose code runs
extern Range stack, shared;  // its own memory, and the block's

// Whether loads and stores are a kernel's own from now on; returns whether they were.
bool watch(bool from_now);

// While other code runs in a kernel's place.
struct Aside {
    const bool before = watch(false);
    ~Aside() { watch(before); }
};

void begin_launch(const Range& of_shared);
// Shared memory begins as anything, here as NaN and as pointers to nowhere.
void begin_block();
void record(const void* at, size_t bytes, bool writes);
// Stops the program if two have written one place, and not the same.
void settle();

}  // namespace races
