// Preloaded: a process takes the time of day, and the times of files, for AHEAD_S seconds later than they
// are. What measures how long things take stays right. (libfaketime 0.9.10 breaks Python's sleep, and
// takes files for old.)
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>

static time_t ahead_s;
static int (*real_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *told = getenv("AHEAD_S");
    ahead_s = told ? atol(told) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_gettime) real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real_gettime(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead_s;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec read;
    int failed = clock_gettime(CLOCK_REALTIME, &read);
    if (!failed) *now = (struct timeval){read.tv_sec, read.tv_nsec / 1000};
    return failed;
}

time_t time(time_t *now) {
    struct timespec read;
    clock_gettime(CLOCK_REALTIME, &read);
    if (now) *now = read.tv_sec;
    return read.tv_sec;
}

// Not sources: Python would take what it has compiled of them for old, and compile it each time.
static time_t shift_of(const char *path) {
    size_t length = strlen(path);
    return length > 3 && !strcmp(path + length - 3, ".py") ? 0 : ahead_s;
}

#define SHIFTED(call, path)                                                                       \
    if (!real) real = dlsym(RTLD_NEXT, __func__);                                                 \
    int failed = call;                                                                            \
    time_t by_s = failed ? 0 : shift_of(path);                                                    \
    if (!failed) found->st_mtime += by_s, found->st_ctime += by_s, found->st_atime += by_s;       \
    return failed;
#define STATS(suffix)                                                                             \
    int stat##suffix(const char *path, struct stat##suffix *found) {                              \
        static int (*real)(const char *, struct stat##suffix *);                                  \
        SHIFTED(real(path, found), path)                                                          \
    }                                                                                             \
    int lstat##suffix(const char *path, struct stat##suffix *found) {                             \
        static int (*real)(const char *, struct stat##suffix *);                                  \
        SHIFTED(real(path, found), path)                                                          \
    }                                                                                             \
    int fstat##suffix(int file, struct stat##suffix *found) {                                     \
        static int (*real)(int, struct stat##suffix *);                                           \
        SHIFTED(real(file, found), "")                                                            \
    }                                                                                             \
    int fstatat##suffix(int folder, const char *path, struct stat##suffix *found, int flags) {    \
        static int (*real)(int, const char *, struct stat##suffix *, int);                        \
        SHIFTED(real(folder, path, found, flags), path)                                           \
    }
STATS()
STATS(64)

static const struct timespec *behind(const struct timespec from[2], struct timespec to[2]) {
    if (!from) return NULL;
    for (int k = 0; k < 2; k++) {
        to[k] = from[k];
        if (to[k].tv_nsec != UTIME_NOW && to[k].tv_nsec != UTIME_OMIT) to[k].tv_sec -= ahead_s;
    }
    return to;
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    static int (*real)(int, const char *, const struct timespec[2], int);
    struct timespec told[2];
    if (!real) real = dlsym(RTLD_NEXT, "utimensat");
    return real(folder, path, behind(times, told), flags);
}

int futimens(int file, const struct timespec times[2]) {
    static int (*real)(int, const struct timespec[2]);
    struct timespec told[2];
    if (!real) real = dlsym(RTLD_NEXT, "futimens");
    return real(file, behind(times, told));
}
