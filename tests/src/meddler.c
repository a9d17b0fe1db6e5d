/* Preloaded into a process to stand between it and the system: a clock that is off, a kill at a sync, a full or
 * read-only folder. What is to happen is read from files in the folder EVERWHEN_MEDDLER, so that it can change while
 * the process runs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The word in a file of the folder; 0 when there is none. Raw system calls: open and write are ours here. */
static int told(const char *name, char *word, size_t size) {
    const char *folder = getenv("EVERWHEN_MEDDLER");
    char path[PATH_MAX];
    if (!folder) return 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    long n = syscall(SYS_read, fd, word, size - 1);
    syscall(SYS_close, fd);
    if (n < 0) n = 0;
    word[n] = 0;
    return 1;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    long result = syscall(SYS_clock_gettime, clock, at);
    char word[32];
    int saved = errno;
    if (result == 0 && clock == CLOCK_REALTIME && told("clock", word, sizeof word)) at->tv_sec += atol(word);
    errno = saved;
    return (int)result;
}

/* `path`: files whose name ends like this kill the process when they are synced. */
static void die_at(int fd) {
    char suffix[64], link[64], path[PATH_MAX];
    if (!told("die-at-sync", suffix, sizeof suffix)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = readlink(link, path, sizeof path - 1);
    size_t len = strlen(suffix);
    if (n < (long)len) return;
    path[n] = 0;
    if (strcmp(path + n - len, suffix) == 0) kill(getpid(), SIGKILL);
}

int fsync(int fd) {
    die_at(fd);
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    die_at(fd);
    return (int)syscall(SYS_fdatasync, fd);
}

static int is_under(const char *path, const char *folder) {
    size_t len = strlen(folder);
    return len > 0 && strncmp(path, folder, len) == 0;
}

/* `full`: nothing can be written to files under this folder. */
ssize_t write(int fd, const void *bytes, size_t count) {
    char folder[PATH_MAX], link[64], path[PATH_MAX];
    if (fd > 2 && told("full", folder, sizeof folder)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        long n = readlink(link, path, sizeof path - 1);
        if (n > 0) {
            path[n] = 0;
            if (is_under(path, folder)) {
                errno = ENOSPC;
                return -1;
            }
        }
    }
    return syscall(SYS_write, fd, bytes, count);
}

/* `read-only`: no file under this folder can be made. */
static int opened(const char *path, int flags, mode_t mode) {
    char folder[PATH_MAX];
    if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && told("read-only", folder, sizeof folder) && is_under(path, folder)) {
        errno = EROFS;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return opened(path, flags | O_LARGEFILE, mode);
}
