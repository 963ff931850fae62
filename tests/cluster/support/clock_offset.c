/* Shifts the wall clock of one host's processes (LD_PRELOAD), while they run.
 *
 * The kernel has no time namespace for CLOCK_REALTIME. The offset, in nanoseconds, is the first eight bytes of the
 * file that CLOCK_OFFSET_FILE names. The monotonic clocks stay as they are, as when a machine's clock is set. Waits
 * until a moment on the wall clock are given to the kernel as it counts; what waits already when the clock jumps, ends
 * when it would have ended.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL

static const volatile int64_t none = 0;
static const volatile int64_t *offset_ns = &none;

__attribute__((constructor)) static void map_offset(void)
{
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        offset_ns = mapped;
    close(file);
}

static struct timespec shifted(struct timespec at, int64_t by)
{
    int64_t ns = at.tv_nsec + by % NS_PER_S;
    at.tv_sec += by / NS_PER_S + (ns >= NS_PER_S) - (ns < 0);
    at.tv_nsec = ns + (ns < 0) * NS_PER_S - (ns >= NS_PER_S) * NS_PER_S;
    return at;
}

static int is_wall(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

/* The function of that name that would have been called without us. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static __typeof__(&clock_gettime) next;
    if (!next)
        next = NEXT(clock_gettime);
    int failed = next(clock, now);
    if (!failed && is_wall(clock))
        *now = shifted(*now, *offset_ns);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec at;
    int failed = clock_gettime(CLOCK_REALTIME, &at);
    (void)zone; /* Linux keeps none */
    if (!failed)
        *now = (struct timeval){at.tv_sec, at.tv_nsec / 1000};
    return failed;
}

time_t time(time_t *out)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (out)
        *out = at.tv_sec;
    return at.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    /* Which clock a condition counts by is its own affair; only those that are far off on the monotonic one are ours. */
    struct timespec monotonic, at = *until;
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    if (until->tv_sec - monotonic.tv_sec > 10LL * 365 * 86400)
        at = shifted(*until, -*offset_ns);
    return NEXT(pthread_cond_timedwait)(condition, mutex, &at);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until)
{
    struct timespec at = shifted(*until, -*offset_ns);
    return NEXT(pthread_mutex_timedlock)(mutex, &at);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    struct timespec at = shifted(*until, -*offset_ns);
    return NEXT(sem_timedwait)(semaphore, &at);
}

/* Abseil, and so gRPC, waits by futexes of its own. */
long syscall(long number, ...)
{
    static __typeof__(&syscall) next;
    if (!next)
        next = NEXT(syscall);
    long a[6];
    va_list list;
    va_start(list, number);
    for (int n = 0; n < 6; n++)
        a[n] = va_arg(list, long);
    va_end(list);
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && a[3]) {
        struct timespec at = shifted(*(const struct timespec *)a[3], -*offset_ns);
        return next(number, a[0], a[1], a[2], (long)&at, a[4], a[5]);
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
