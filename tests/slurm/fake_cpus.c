/* A fake, for tests only: makes a process believe in the CPUs that its virtual node claims.
 *
 * The test cluster's nodes claim more CPUs than this machine has, and its Slurm binds nothing (task/none). Preloaded into
 * a job's tasks, this library answers sched_getaffinity and sched_setaffinity as a node with FAKE_CPUS CPUs would, and the
 * number of CPUs with them. Nothing is really bound. FAKE_CPUS_BOUND=n makes the task start bound to the node's first n
 * CPUs, as Slurm's task/affinity does when no CPUs per task were asked for; like there, the task may widen that again.
 *
 * An affinity is kept in the process's own memory, so children of a fork have it too, and put into the environment, so
 * that a program that is started from there begins with it. Affinities of other processes are not known.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned long all;     /* the node's CPUs, one bit each; 0: not a fake node, the real calls answer */
static unsigned long current; /* those this process may use */

extern long syscall(long number, ...);
#include <sys/syscall.h>

__attribute__((constructor)) static void begin(void)
{
	const char *count = getenv("FAKE_CPUS"), *bound = getenv("FAKE_CPUS_BOUND"), *mask = getenv("FAKE_CPUS_MASK");
	int n = count ? atoi(count) : 0;
	if (n < 1 || n > 60)
		return;
	all = (1UL << n) - 1;
	current = bound && atoi(bound) > 0 && atoi(bound) < n ? (1UL << atoi(bound)) - 1 : all;
	if (mask && (strtoul(mask, NULL, 16) & all))
		current = strtoul(mask, NULL, 16) & all;
}

static int is_self(pid_t pid)
{
	return pid == 0 || pid == getpid() || pid == (pid_t)syscall(SYS_gettid);
}

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
	if (!all || !is_self(pid)) {
		long n = syscall(SYS_sched_getaffinity, pid, size, set);
		if (n < 0)
			return -1;
		memset((char *)set + n, 0, size - (size_t)n);
		return 0;
	}
	memset(set, 0, size);
	memcpy(set, &current, size < sizeof current ? size : sizeof current);
	return 0;
}

int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set)
{
	unsigned long wanted = 0;
	char text[32];
	if (!all || !is_self(pid))
		return (int)syscall(SYS_sched_setaffinity, pid, size, set);
	memcpy(&wanted, set, size < sizeof wanted ? size : sizeof wanted);
	if (!(wanted & all)) {
		errno = EINVAL;
		return -1;
	}
	current = wanted & all;
	snprintf(text, sizeof text, "%lx", current);
	setenv("FAKE_CPUS_MASK", text, 1);
	return 0;
}

long sysconf(int name)
{
	static long (*real)(int);
	extern void *dlsym(void *, const char *);
	if (all && (name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF))
		return __builtin_popcountl(all);
	if (!real)
		real = (long (*)(int))dlsym((void *)-1L /* RTLD_NEXT */, "sysconf");
	return real(name);
}
