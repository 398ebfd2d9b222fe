// libcuda.so.1 for a machine without a GPU: two devices, whose kernels are those of the libraries that $STUB_KERNELS names
// (emulated_gpu.cpp), a colon between them, run where they are launched. So launches go through cuda.core as they would to a real driver. Says on
// stderr what is asked of it. $STUB_FAIL: "load", or the name of a kernel whose launch fails.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500 };
enum { TOO_MANY_RESOURCES = 701, NOT_SUPPORTED = 801 };
// As in cuda.h.
typedef struct {
    unsigned grid[3], block[3], shared;
    void* stream;
    void* attributes;
    unsigned attribute_count;
} Launch;
typedef struct {
    int context;  // of the device that it was loaded on
    char name[64];
} Kernel;

static int contexts[2];
static _Thread_local int* current;

int short_of_memory = 0;  // so many of the next launches find none: for who runs them to set

static int device_of(const int* context) { return context ? (int)(context - contexts) : -1; }
static int fails(const char* what) {
    const char* failing = getenv("STUB_FAIL");
    return failing && !strcmp(failing, what);
}

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int* version) { return *version = 13000, OK; }
int cuDeviceGetCount(int* count) { return *count = 2, OK; }
int cuDeviceGet(int* device, int index) { return *device = index, OK; }
int cuDevicePrimaryCtxRetain(int** context, int device) { return *context = &contexts[device], OK; }
int cuDevicePrimaryCtxRelease(int device) { return OK; }
int cuCtxGetCurrent(int** context) { return *context = current, OK; }
int cuCtxSetCurrent(int* context) { return current = context, OK; }
int cuCtxGetDevice(int* device) { return *device = device_of(current), current ? OK : NO_CONTEXT; }
int cuGetErrorName(int error, const char** name) {
    return *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_STUB", OK;
}
int cuGetErrorString(int error, const char** text) { return *text = "asked for by the test", OK; }

int cuLibraryLoadData(int** library, const void* code, ...) {
    const int good = !memcmp(code, "\177ELF", 4) && current && !fails("load");
    fprintf(stderr, "load on %d\n", device_of(current));
    return *library = current, good ? OK : NO_BINARY;
}
int cuLibraryUnload(int* library) { return OK; }
int cuLibraryGetKernel(Kernel** kernel, int* library, const char* name) {
    *kernel = calloc(1, sizeof(Kernel));
    (*kernel)->context = device_of(library);
    strncpy((*kernel)->name, name, 63);
    return OK;
}
int cuKernelGetFunction(void** function, Kernel* kernel) { return *function = kernel, OK; }

int cuLaunchKernelEx(const Launch* launch, Kernel* kernel, void** parameters, void** extra) {
    char names[4096] = {}, *rest = names;
    strncpy(names, getenv("STUB_KERNELS"), sizeof(names) - 1);
    void* kernels;
    int count = -1;
    for (char* name; count < 0 && (name = strsep(&rest, ":"));) {
        kernels = dlopen(name, RTLD_NOW);
        count = ((int (*)(const char*))dlsym(kernels, "parameters"))(kernel->name);
    }
    int (*run)(const char*, long, int, const int64_t*, int) = dlsym(kernels, "run");
    int64_t arguments[32];
    for (int k = 0; k < count; k++) memcpy(&arguments[k], parameters[k], 8);
    fprintf(stderr, "launch %s of %d on %d, stream %#lx\n", kernel->name, kernel->context, device_of(current),
            (unsigned long)launch->stream);
    if (fails(kernel->name)) return TOO_MANY_RESOURCES;
    if (short_of_memory > 0) return short_of_memory--, OUT_OF_MEMORY;
    return run(kernel->name, launch->grid[0], launch->block[0], arguments, count) ? NOT_FOUND : OK;
}

static int unknown(void) {
    fprintf(stderr, "a function of the driver that the stub has not\n");
    return NOT_SUPPORTED;
}
int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status) {
    *function = !strcmp(name, "cuGetProcAddress") ? (void*)cuGetProcAddress_v2 : dlsym(RTLD_DEFAULT, name);
    Dl_info from, here;
    dladdr((void*)unknown, &here);
    if (!*function || !dladdr(*function, &from) || from.dli_fbase != here.dli_fbase) *function = (void*)unknown;
    if (status) *status = 0;
    return OK;
}
