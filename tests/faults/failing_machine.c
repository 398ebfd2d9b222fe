// Preloaded: fails what a process does below one folder, as a full disk, a quota, a read-only or lockless file system
// does, and sets its clock back. Nothing fails until `ntk_fail` is called.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { WRITES = 1, CREATES = 2, LOCKS = 4 };

static char folder[4096];
static int failing, number;
static atomic_long left;  // bytes or files that still succeed
static atomic_long seconds_back;

void ntk_fail(const char *below, int what, int error, long after) {
    strncpy(folder, below, sizeof folder - 1);
    number = error;
    left = after;
    failing = what;
}

void ntk_set_clock_back(long seconds) { seconds_back = seconds; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_below(const char *path) { return strncmp(path, folder, strlen(folder)) == 0; }

static int is_ours(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int refused(int what, long cost) {
    if (!(failing & what) || atomic_fetch_sub(&left, cost) >= cost) return 0;
    errno = number;
    return 1;
}

ssize_t write(int file, const void *data, size_t size) {
    if ((failing & WRITES) && is_ours(file) && refused(WRITES, size)) return -1;
    return REAL(write)(file, data, size);
}

static int refused_open(const char *path, int flags) {
    return (failing & CREATES) && (flags & O_CREAT) && is_below(path) && refused(CREATES, 1);
}

#define OPEN(name, arguments, ...)                                                                                     \
    int name arguments {                                                                                               \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0;                                      \
        va_end(more);                                                                                                  \
        return refused_open(path, flags) ? -1 : REAL(name)(__VA_ARGS__, mode);                                         \
    }

OPEN(open, (const char *path, int flags, ...), path, flags)
OPEN(open64, (const char *path, int flags, ...), path, flags)
OPEN(openat, (int at, const char *path, int flags, ...), at, path, flags)
OPEN(openat64, (int at, const char *path, int flags, ...), at, path, flags)

int mkdir(const char *path, mode_t mode) {
    if ((failing & CREATES) && is_below(path) && refused(CREATES, 1)) return -1;
    return REAL(mkdir)(path, mode);
}

int flock(int file, int operation) {
    if ((failing & LOCKS) && is_ours(file) && refused(LOCKS, 1)) return -1;
    return REAL(flock)(file, operation);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec -= seconds_back;
    return status;
}
