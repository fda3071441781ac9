/* A fake, for tests only: a file system that fails or stalls where and when a test says so.
 *
 * Preloaded into a process, it answers calls of libc on chosen paths the way a sick file server would. What is chosen
 * stands in the file that FAULTY_FS names, which is read anew at every call, so that a test can begin and end a fault at
 * any moment (by renaming another file into its place). One rule a line, the first that matches counts:
 *
 *     <calls, with commas> <who> <how> <error number> <how often> <pattern of paths, see fnmatch(3)>
 *
 *   calls     open (only those that may create: create), write fsync close rename link symlink readlink mkdir opendir
 *             stat unlink flock fcntl (only locks); paths are those of the file that is made or looked at (for rename
 *             and link: the new name). clock: what time of day it is; its path is /clock
 *   who       agent, run (the fork server and its children), any
 *   how       fail: not done, and the error is the answer;  lost: done, but the error is the answer;
 *             stale: as fail, and that descriptor answers so until it is closed, even when the rule is gone;
 *             short: half of what was to be written is written;  stall: done once the rule is gone;
 *             lie: not done, and success is the answer;  jump: the error number is by how many seconds the clock is off
 *   how often in each process, from the moment the rule stands there; -1: always
 *
 * Each fault that is dealt out is written down in the file <FAULTY_FS>.hits: the call, the process id, the path.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { RULES = 16, FDS = 4096 };

static const char *who = "agent";
static unsigned long counted; /* the inode of the file of rules that `used` counts for */
static int used[RULES];
static int stale[FDS]; /* the error that a descriptor answers with from now on */

__attribute__((constructor)) static void begin(void)
{
	static char line[8192];
	int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY);
	long n = fd < 0 ? 0 : syscall(SYS_read, fd, line, sizeof line - 1);
	for (long i = 0; i < n; i++)
		if (!strncmp(line + i, "clusterduck.agent.forkserver", 28))
			who = "run";
	if (fd >= 0)
		syscall(SYS_close, fd);
}

struct fault {
	char how[16];
	int error;
};

static int in_list(const char *list, const char *word)
{
	size_t n = strlen(word);
	for (const char *at = list; (at = strstr(at, word)); at += n)
		if ((at == list || at[-1] == ',') && (at[n] == ',' || at[n] == 0))
			return 1;
	return 0;
}

/* Which fault there is for a call on an absolute path, if any. */
static int look_up(const char *call, const char *path, struct fault *fault, int counts)
{
	const char *rules = getenv("FAULTY_FS");
	char text[8192], calls[128], whose[16], pattern[1024];
	struct stat info;
	int often, fd;
	if (!rules || path[0] != '/' || (fd = (int)syscall(SYS_openat, AT_FDCWD, rules, O_RDONLY | O_CLOEXEC)) < 0)
		return 0;
	long n = syscall(SYS_read, fd, text, sizeof text - 1);
	fstat(fd, &info);
	syscall(SYS_close, fd);
	text[n > 0 ? n : 0] = 0;
	if (info.st_ino != counted) {
		counted = info.st_ino;
		memset(used, 0, sizeof used);
	}
	int index = 0;
	for (char *save, *line = strtok_r(text, "\n", &save); line && index < RULES; line = strtok_r(NULL, "\n", &save), index++) {
		if (sscanf(line, "%127s %15s %15s %d %d %1023[^\n]", calls, whose, fault->how, &fault->error, &often, pattern) != 6)
			continue;
		if (!in_list(calls, call) || (strcmp(whose, "any") && strcmp(whose, who)) || fnmatch(pattern, path, 0))
			continue;
		if (often >= 0 && used[index] >= often)
			continue;
		used[index] += counts;
		return 1;
	}
	return 0;
}

/* Finds the fault for a call, writes it down, and waits if it is a stall. Returns 1 if there is one to deal out. */
static int strikes(const char *call, const char *path, struct fault *fault)
{
	int kept = errno;
	if (!look_up(call, path, fault, 1)) {
		errno = kept;
		return 0;
	}
	char name[PATH_MAX], line[PATH_MAX + 64];
	snprintf(name, sizeof name, "%s.hits", getenv("FAULTY_FS"));
	int fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0) {
		int n = snprintf(line, sizeof line, "%s %d %s\n", call, (int)getpid(), path);
		syscall(SYS_write, fd, line, n);
		syscall(SYS_close, fd);
	}
	if (!strcmp(fault->how, "stall")) {
		struct timespec moment = {0, 5000000};
		while (look_up(call, path, fault, 0) && !strcmp(fault->how, "stall"))
			nanosleep(&moment, NULL);
		errno = kept;
		return 0;
	}
	errno = fault->error;
	return 1;
}

/* By how many seconds the clock is off; the first time that a process is told so is written down. */
static int clock_off(void)
{
	static unsigned long told;
	struct fault fault;
	int kept = errno, off = 0;
	if (look_up("clock", "/clock", &fault, 0)) {
		off = fault.error;
		if (told != counted) {
			told = counted;
			strikes("clock", "/clock", &fault);
		}
	}
	errno = kept;
	return off;
}

static const char *absolute(int folder, const char *path, char *into)
{
	char link[64];
	ssize_t n;
	if (path[0] == '/')
		return path;
	if (folder == AT_FDCWD)
		strcpy(link, "/proc/self/cwd");
	else
		snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
	n = syscall(SYS_readlinkat, AT_FDCWD, link, into, PATH_MAX - 1);
	snprintf(into + (n > 0 ? n : 0), PATH_MAX - (n > 0 ? n : 0), "/%s", path);
	return into;
}

static int fd_strikes(const char *call, int fd, struct fault *fault)
{
	char link[64], path[PATH_MAX];
	if (fd < 0 || fd >= FDS)
		return 0;
	if (stale[fd]) {
		strcpy(fault->how, "fail");
		errno = stale[fd];
		return 1;
	}
	int kept = errno;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
	errno = kept;
	if (n <= 0)
		return 0;
	path[n] = 0;
	if (!strikes(call, path, fault))
		return 0;
	if (!strcmp(fault->how, "stale"))
		stale[fd] = fault->error;
	return 1;
}

#define REAL(result, name, ...)                                 \
	static result (*real)(__VA_ARGS__);                     \
	if (!real)                                              \
		real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* With "lost", the call is carried out and its answer replaced. */
#define DEAL(call)                                \
	do {                                      \
		if (!strcmp(fault.how, "lost")) { \
			int error = errno;        \
			call;                     \
			errno = error;            \
		}                                 \
		return -1;                        \
	} while (0)

static int open_fault(int folder, const char *path, int flags, mode_t mode)
{
	char into[PATH_MAX];
	struct fault fault;
	const char *full = absolute(folder, path, into);
	if (strikes("open", full, &fault) || ((flags & O_CREAT) && strikes("create", full, &fault))) {
		if (!strcmp(fault.how, "lost")) {
			int error = errno;
			long fd = syscall(SYS_openat, folder, path, flags, mode);
			if (fd >= 0)
				syscall(SYS_close, fd);
			errno = error;
		}
		return 1;
	}
	return 0;
}

#define OPEN(name)                                                \
	int name(const char *path, int flags, ...)                \
	{                                                         \
		REAL(int, #name, const char *, int, ...);         \
		va_list rest;                                     \
		va_start(rest, flags);                            \
		mode_t mode = va_arg(rest, mode_t);               \
		va_end(rest);                                     \
		if (open_fault(AT_FDCWD, path, flags, mode))      \
			return -1;                                \
		return real(path, flags, mode);                   \
	}
#define OPENAT(name)                                              \
	int name(int folder, const char *path, int flags, ...)    \
	{                                                         \
		REAL(int, #name, int, const char *, int, ...);    \
		va_list rest;                                     \
		va_start(rest, flags);                            \
		mode_t mode = va_arg(rest, mode_t);               \
		va_end(rest);                                     \
		if (open_fault(folder, path, flags, mode))        \
			return -1;                                \
		return real(folder, path, flags, mode);           \
	}
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size)
{
	REAL(ssize_t, "write", int, const void *, size_t);
	struct fault fault;
	if (fd_strikes("write", fd, &fault)) {
		if (!strcmp(fault.how, "short"))
			return real(fd, data, size > 1 ? size / 2 : size);
		DEAL(real(fd, data, size));
	}
	return real(fd, data, size);
}

int fsync(int fd)
{
	REAL(int, "fsync", int);
	struct fault fault;
	if (fd_strikes("fsync", fd, &fault))
		DEAL(real(fd));
	return real(fd);
}

int close(int fd)
{
	REAL(int, "close", int);
	struct fault fault;
	int error = errno;
	int struck = fd >= 0 && fd < FDS && !stale[fd] && fd_strikes("close", fd, &fault);
	if (struck)
		error = errno;
	if (fd >= 0 && fd < FDS)
		stale[fd] = 0;
	int answer = real(fd); /* the descriptor is gone whatever the answer */
	if (struck) {
		errno = error;
		return -1;
	}
	return answer;
}

#define ON_PATH(name, call, parameters, types, folder, path, ...) \
	int name parameters                                       \
	{                                                         \
		static int(*real) types;                          \
		char into[PATH_MAX];                              \
		struct fault fault;                               \
		if (!real)                                        \
			real = (int(*) types)dlsym(RTLD_NEXT, #name); \
		if (strikes(call, absolute(folder, path, into), &fault)) \
			DEAL(real(__VA_ARGS__));                  \
		return real(__VA_ARGS__);                         \
	}
ON_PATH(rename, "rename", (const char *a, const char *b), (const char *, const char *), AT_FDCWD, b, a, b)
ON_PATH(renameat, "rename", (int f, const char *a, int g, const char *b), (int, const char *, int, const char *), g, b, f, a, g, b)
ON_PATH(link, "link", (const char *a, const char *b), (const char *, const char *), AT_FDCWD, b, a, b)
ON_PATH(linkat, "link", (int f, const char *a, int g, const char *b, int how), (int, const char *, int, const char *, int), g, b, f, a, g, b, how)
ON_PATH(symlink, "symlink", (const char *a, const char *b), (const char *, const char *), AT_FDCWD, b, a, b)
ON_PATH(symlinkat, "symlink", (const char *a, int g, const char *b), (const char *, int, const char *), g, b, a, g, b)
ON_PATH(mkdir, "mkdir", (const char *a, mode_t mode), (const char *, mode_t), AT_FDCWD, a, a, mode)
ON_PATH(mkdirat, "mkdir", (int f, const char *a, mode_t mode), (int, const char *, mode_t), f, a, f, a, mode)
ON_PATH(unlink, "unlink", (const char *a), (const char *), AT_FDCWD, a, a)
ON_PATH(unlinkat, "unlink", (int f, const char *a, int how), (int, const char *, int), f, a, f, a, how)
ON_PATH(stat64, "stat", (const char *a, struct stat64 *s), (const char *, struct stat64 *), AT_FDCWD, a, a, s)
ON_PATH(lstat64, "stat", (const char *a, struct stat64 *s), (const char *, struct stat64 *), AT_FDCWD, a, a, s)
ON_PATH(fstatat64, "stat", (int f, const char *a, struct stat64 *s, int how), (int, const char *, struct stat64 *, int), f, a, f, a, s, how)

ssize_t readlink(const char *path, char *to, size_t size)
{
	REAL(ssize_t, "readlink", const char *, char *, size_t);
	char into[PATH_MAX];
	struct fault fault;
	if (strikes("readlink", absolute(AT_FDCWD, path, into), &fault))
		return -1;
	return real(path, to, size);
}

DIR *opendir(const char *path)
{
	REAL(DIR *, "opendir", const char *);
	char into[PATH_MAX];
	struct fault fault;
	if (strikes("opendir", absolute(AT_FDCWD, path, into), &fault))
		return NULL;
	return real(path);
}

int flock(int fd, int what)
{
	REAL(int, "flock", int, int);
	struct fault fault;
	if (fd_strikes("flock", fd, &fault))
		return strcmp(fault.how, "lie") ? -1 : 0;
	return real(fd, what);
}

#define FCNTL(name)                                                                     \
	int name(int fd, int what, ...)                                                 \
	{                                                                               \
		REAL(int, #name, int, int, ...);                                        \
		va_list rest;                                                           \
		va_start(rest, what);                                                   \
		void *argument = va_arg(rest, void *);                                  \
		va_end(rest);                                                           \
		struct fault fault;                                                     \
		int is_lock = what == F_SETLK || what == F_SETLKW || what == F_GETLK || \
			      what == F_OFD_SETLK || what == F_OFD_SETLKW;              \
		if (is_lock && fd_strikes("fcntl", fd, &fault)) {                       \
			if (strcmp(fault.how, "lie"))                                   \
				return -1;                                              \
			if (what == F_GETLK)                                            \
				((struct flock *)argument)->l_type = F_UNLCK;           \
			return 0;                                                       \
		}                                                                       \
		return real(fd, what, argument);                                        \
	}
FCNTL(fcntl)
FCNTL(fcntl64)

int clock_gettime(clockid_t which, struct timespec *now)
{
	REAL(int, "clock_gettime", clockid_t, struct timespec *);
	int answer = real(which, now);
	if (answer == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
		now->tv_sec += clock_off();
	return answer;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	REAL(int, "gettimeofday", struct timeval *, void *);
	int answer = real(now, zone);
	if (answer == 0)
		now->tv_sec += clock_off();
	return answer;
}

time_t time(time_t *into)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (into)
		*into = now.tv_sec;
	return now.tv_sec;
}
