/* A monotonic clock that goes 50 times slower, for a program that runs 50 times slower: it sees the time that it takes.
   Preloaded by `profile`; the clock of the wall stays as it is. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TIMES 50

int clock_gettime(clockid_t clock, struct timespec *found)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, found);
    if (!failed && clock == CLOCK_MONOTONIC) {
        long long nanoseconds = (found->tv_sec * 1000000000LL + found->tv_nsec) / TIMES;
        found->tv_sec = nanoseconds / 1000000000LL;
        found->tv_nsec = nanoseconds % 1000000000LL;
    }
    return failed;
}
