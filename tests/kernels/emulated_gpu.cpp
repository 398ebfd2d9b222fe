// gpu.cu on the emulated warp; GPU_SOURCE is the path of the source with its constants.
#include "emulated_warp.h"
#include GPU_SOURCE

extern "C" int run(const char* name, long blocks, int threads, const int64_t* arguments) {
    emulated::grid = {(unsigned)blocks, 1, 1};
    emulated::size = {(unsigned)threads, 1, 1};
#define NTK_KERNEL(kernel) \
    if (!std::strcmp(name, #kernel)) return emulated::launch(kernel, arguments), 0;
    NTK_KERNEL(ntk_pooled)
    NTK_KERNEL(ntk_vanilla)
    NTK_KERNEL(ntk_zero_offset)
    NTK_KERNEL(ntk_collect)
    NTK_KERNEL(ntk_multiply_adds)
    return 1;
}
