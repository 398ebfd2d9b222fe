// Finds what one thread after another cannot show: two that touch the same memory, one of them writing, with no barrier between
// them. Kernels are compiled with -fsanitize=thread and so call the functions at the end at every access; that sanitizer's
// own library is not linked. Blocks are never ordered among one another, and lanes of a warp no more than other threads:
// a shuffle orders no memory. As racecheck does, it lets be what writes the value that is there already.
#include "emulated_races.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <unordered_map>

namespace races {

Who me;
Range stack{}, shared{};

namespace {

bool watching = false;

// The last writer and the last reader of four bytes; whether others of its block's interval read them too, and other blocks.
struct Cell {
    long era = 0;
    Who writer, reader;
    bool readers = false, blocks = false;
};

constexpr uintptr_t PAGE = 1 << 14;
constexpr size_t MOST_PAGES = 512;
std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
uintptr_t number = 0;
Cell* page = nullptr;  // the one of that number
long launches = 0, blocks = 0;
// Written by two at once.
const uint32_t* rewritten = nullptr;
uint32_t before;
Who first, second;

[[noreturn]] void found(const void* at, const Who& one, const Who& other) {
    std::fprintf(stderr, "a race in %s memory: thread %d of block %ld and thread %d of block %ld\n",
                 shared.holds(at) ? "shared" : "global", one.thread, one.block, other.thread, other.block);
    std::abort();
}

bool at_once(const Who& other) {
    return other.block >= 0 &&
           (other.block != me.block || (other.interval == me.interval && other.thread != me.thread));
}

Cell& cell_of(uintptr_t at) {
    if (!page || number != at / PAGE) {
        number = at / PAGE;
        std::unique_ptr<Cell[]>& cells = pages[number];
        if (!cells) cells.reset(new Cell[PAGE / 4]);
        page = cells.get();
    }
    Cell& cell = page[at % PAGE / 4];
    const long era = shared.holds((const void*)at) ? -blocks : launches;
    if (cell.era != era) cell = Cell{era};
    return cell;
}

void touch(uintptr_t at, bool writes) {
    Cell& cell = cell_of(at);
    const Who reader = cell.reader;
    const bool read_now = reader.block == me.block && reader.interval == me.interval;
    if (writes) {
        if (at_once(reader) || cell.blocks || (read_now && cell.readers)) found((const void*)at, reader, me);
        if (at_once(cell.writer)) rewritten = (const uint32_t*)at, before = *rewritten, first = cell.writer, second = me;
        cell.writer = me;
    } else {
        if (at_once(cell.writer)) found((const void*)at, cell.writer, me);
        cell.blocks |= reader.block >= 0 && reader.block != me.block;
        cell.readers = read_now && (cell.readers || reader.thread != me.thread);
        cell.reader = me;
    }
}

}  // namespace

bool watch(bool from_now) {
    const bool before = watching;
    return watching = from_now, before;
}

void settle() {
    if (rewritten && *rewritten != before) found(rewritten, first, second);
    rewritten = nullptr;
}

void record(const void* at, size_t bytes, bool writes) {
    if (stack.holds(at)) return;
    settle();
    for (uintptr_t place = (uintptr_t)at & ~(uintptr_t)3; place < (uintptr_t)at + bytes; place += 4) touch(place, writes);
}

void begin_launch(const Range& of_shared) {
    launches++, shared = of_shared;
    if (pages.size() > MOST_PAGES) pages.clear(), page = nullptr;
}

void begin_block() {
    blocks++;
    std::memset((void*)shared.begin, 0xff, shared.end - shared.begin);
}

}  // namespace races

static void access(const void* at, size_t bytes, bool writes) {
    if (races::watching) races::record(at, bytes, writes);
}

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* at, size_t bytes) { access(at, bytes, false); }
void __tsan_write_range(void* at, size_t bytes) { access(at, bytes, true); }
#define NTK_HOOKS(bytes)                                                 \
    void __tsan_read##bytes(void* at) { access(at, bytes, false); }      \
    void __tsan_write##bytes(void* at) { access(at, bytes, true); }      \
    void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, false); } \
    void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, true); }
NTK_HOOKS(1)
NTK_HOOKS(2)
NTK_HOOKS(4)
NTK_HOOKS(8)
NTK_HOOKS(16)
}
