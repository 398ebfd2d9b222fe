// A source of GPU kernels on the emulated warp; GPU_SOURCE is its path, with its constants, and NTK_KERNELS names its kernels.
// It comes after emulated_warp.h. `run` is 0 where a kernel of the name takes so many arguments.
#include GPU_SOURCE

extern "C" int parameters(const char* name) {
#define NTK_COUNT(kernel) \
    if (!std::strcmp(name, #kernel)) return emulated::parameters(kernel);
    NTK_KERNELS(NTK_COUNT)
    return -1;
}

extern "C" int run(const char* name, long blocks, int threads, const int64_t* arguments, int count) {
    if (count != parameters(name)) return 1;
    emulated::grid = {(unsigned)blocks, 1, 1};
    emulated::size = {(unsigned)threads, 1, 1};
#define NTK_RUN(kernel) \
    if (!std::strcmp(name, #kernel)) emulated::launch(kernel, arguments);
    NTK_KERNELS(NTK_RUN)
    return 0;
}
