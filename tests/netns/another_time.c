/* A clock before 2025, or one that nobody keeps: what no namespace can show (a time namespace has no real time). */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int result = syscall(SYS_clock_gettime, clock, time);

	if (clock == CLOCK_REALTIME && getenv("LONG_AGO"))
		time->tv_sec = 86400;
	return result;
}

int adjtimex(struct timex *timex)
{
	int result = syscall(SYS_adjtimex, timex);

	timex->status = getenv("UNKEPT") ? timex->status | STA_UNSYNC : timex->status & ~STA_UNSYNC;
	return result;
}
