/* A host that has slept for an hour since /run/asleep is there: CLOCK_BOOTTIME has gone on, CLOCK_MONOTONIC has not. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int result = syscall(SYS_clock_gettime, clock, time);

	if (clock == CLOCK_BOOTTIME && syscall(SYS_faccessat, -100, "/run/asleep", F_OK) == 0)
		time->tv_sec += 3600;
	return result;
}
