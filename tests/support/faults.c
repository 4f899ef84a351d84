/* A disk and a clock that go wrong when a test says so: preloaded into the real program, in front of the C library.
 *
 * The test and the program share a small control file (`Control`, the same fields in `disk.rs`):
 * - errors: writes and syncs fail with an errno, and are counted. Only regular files, and never the standard streams.
 * - clock: an offset is added to the wall clock. The monotonic clock is left alone.
 *
 * What a loss of power would leave of each file is kept in the folder of the control file, beside the real files:
 * - FILE.dirty   what was written since: the header, then one `Change` each, as long as no sync covered them
 * - FILE.kept    the file as it is on the disk: changes arrive here when a sync has succeeded
 * A sync that fails drops the changes that it should have covered: Linux takes such pages for clean, so that a later
 * sync does not write them. FILE is the device, the inode and the time of birth, because inodes are used again.
 *
 * Changes are noted before they are made. If the process is killed between the two, a later sync copies what the file
 * really holds, so that a note too many does no harm.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t sync_errno;
    int64_t write_errno;
    int64_t clock_offset_ms;
    int64_t failed_syncs;
    int64_t failed_writes;
    int64_t syncs;
    int64_t writes;
};

/* Bytes `offset..offset + length` were written, or with length -1 the file got the length `offset`. */
struct change {
    int64_t offset;
    int64_t length;
};

/* At the beginning of FILE.dirty, as long as a change: how many of the changes behind it are settled. */
struct header {
    int64_t settled;
    int64_t unused;
};

static struct control *control;
static char folder[PATH_MAX - 128];
static pthread_mutex_t notes = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("DISK_FAULTS");
    if (path == NULL || strlen(path) >= sizeof folder)
        return;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared == MAP_FAILED)
        return;
    strcpy(folder, path);
    *strrchr(folder, '/') = 0;
    control = shared;
}

static int64_t field(const int64_t *at) {
    return control == NULL ? 0 : __atomic_load_n(at, __ATOMIC_SEQ_CST);
}

static void count(int64_t *at) {
    __atomic_add_fetch(at, 1, __ATOMIC_SEQ_CST);
}

/* The C library's own functions are not called for our own files: they would end here again. */
static int open_own(const char *path, int flags) {
    return syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600);
}

static ssize_t read_own(int fd, void *bytes, size_t length, off_t offset) {
    return syscall(SYS_pread64, fd, bytes, length, offset);
}

static void write_own(int fd, const void *bytes, size_t length, off_t offset) {
    if (syscall(SYS_pwrite64, fd, bytes, length, offset) != (ssize_t)length)
        abort(); /* The test could not tell any more what is on the disk. */
}

/* Copies `length` bytes from `offset` on, as many as there are; zeros stay holes. */
static void copy(int from, int to, int64_t offset, int64_t length) {
    static const char zeros[4096];
    char bytes[4096];
    while (length > 0) {
        size_t part = sizeof bytes - offset % sizeof bytes;
        if ((int64_t)part > length)
            part = length;
        ssize_t got = read_own(from, bytes, part, offset);
        if (got <= 0)
            return;
        struct stat there;
        int beyond = fstat(to, &there) == 0 && there.st_size <= offset;
        if (!(beyond && memcmp(bytes, zeros, got) == 0))
            write_own(to, bytes, got, offset);
        offset += got;
        length -= got;
    }
}

/* The path of what is kept about an open regular file; 0 when it is none of ours. */
static int known(int fd, const char *ending, char *path, struct stat *meta) {
    if (control == NULL || fd <= 2 || fstat(fd, meta) != 0 || !S_ISREG(meta->st_mode))
        return 0;
    struct statx birth;
    memset(&birth, 0, sizeof birth);
    statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &birth);
    snprintf(path, PATH_MAX, "%s/%llu-%llu-%lld-%u.%s", folder, (unsigned long long)meta->st_dev,
             (unsigned long long)meta->st_ino, (long long)birth.stx_btime.tv_sec, birth.stx_btime.tv_nsec, ending);
    return 1;
}

/* The same file, open for reading. */
static int reopen(int fd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open_own(path, O_RDONLY);
}

/* Notes a change that is about to be made; with offset -1 it is made where the file stands. */
static void note(int fd, int64_t offset, int64_t length) {
    char path[PATH_MAX];
    struct stat meta;
    if (!known(fd, "dirty", path, &meta))
        return;
    int saved = errno;
    pthread_mutex_lock(&notes);
    int dirty = open_own(path, O_RDWR);
    if (dirty < 0) {
        dirty = open_own(path, O_RDWR | O_CREAT);
        if (meta.st_size > 0) {
            /* It was there before us: all of it is on the disk. */
            char kept_path[PATH_MAX];
            known(fd, "kept", kept_path, &meta);
            int from = reopen(fd), kept = open_own(kept_path, O_RDWR | O_CREAT);
            copy(from, kept, 0, meta.st_size);
            syscall(SYS_ftruncate, kept, meta.st_size);
            syscall(SYS_close, kept);
            syscall(SYS_close, from);
        }
        struct header header = {0, 0};
        write_own(dirty, &header, sizeof header, 0);
    }
    if (offset < 0) {
        int appends = (fcntl(fd, F_GETFL) & O_APPEND) != 0;
        offset = appends ? meta.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    }
    struct stat length_of;
    fstat(dirty, &length_of);
    struct change change = {offset, length};
    write_own(dirty, &change, sizeof change, length_of.st_size);
    syscall(SYS_close, dirty);
    pthread_mutex_unlock(&notes);
    errno = saved;
}

/* How many changes are noted; what a sync covers that begins now. */
static int64_t noted(int fd) {
    char path[PATH_MAX];
    struct stat meta;
    if (!known(fd, "dirty", path, &meta) || stat(path, &meta) != 0)
        return -1;
    return (meta.st_size - (int64_t)sizeof(struct header)) / (int64_t)sizeof(struct change);
}

/* The first `covered` changes are on the disk now, or never will be. */
static void settle(int fd, int64_t covered, int kept_all) {
    char path[PATH_MAX];
    struct stat meta;
    if (covered < 0 || !known(fd, "dirty", path, &meta))
        return;
    int saved = errno;
    pthread_mutex_lock(&notes);
    int dirty = open_own(path, O_RDWR);
    known(fd, "kept", path, &meta);
    int from = reopen(fd), kept = open_own(path, O_RDWR | O_CREAT);
    struct header header = {0, 0};
    if (dirty < 0 || from < 0 || kept < 0)
        abort();
    read_own(dirty, &header, sizeof header, 0);
    for (int64_t at = header.settled; kept_all && at < covered; at++) {
        struct change change = {0, 0};
        read_own(dirty, &change, sizeof change, sizeof header + at * sizeof change);
        if (change.length < 0)
            syscall(SYS_ftruncate, kept, change.offset);
        else
            copy(from, kept, change.offset, change.length);
    }
    if (kept_all)
        syscall(SYS_ftruncate, kept, meta.st_size);
    if (covered > header.settled) {
        header.settled = covered;
        write_own(dirty, &header, sizeof header, 0);
    }
    syscall(SYS_close, dirty);
    syscall(SYS_close, from);
    syscall(SYS_close, kept);
    pthread_mutex_unlock(&notes);
    errno = saved;
}

/* Whether this write is to fail; if not, it is noted. */
static int refuses(int fd, int64_t offset, int64_t length) {
    struct stat meta;
    if (control == NULL || fd <= 2 || fstat(fd, &meta) != 0 || !S_ISREG(meta.st_mode))
        return 0;
    int64_t error = field(&control->write_errno);
    if (error != 0) {
        count(&control->failed_writes);
        errno = (int)error;
        return 1;
    }
    count(&control->writes);
    note(fd, offset, length);
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int sync_with(int fd, int (*really)(int)) {
    struct stat meta;
    if (control == NULL || fstat(fd, &meta) != 0 || !(S_ISREG(meta.st_mode) || S_ISDIR(meta.st_mode)))
        return really(fd);
    int64_t covered = noted(fd);
    int64_t error = field(&control->sync_errno);
    if (error != 0) {
        count(&control->failed_syncs);
        settle(fd, covered, 0);
        errno = (int)error;
        return -1;
    }
    count(&control->syncs);
    int result = really(fd);
    if (result == 0)
        settle(fd, covered, 1);
    return result;
}

int fsync(int fd) {
    return sync_with(fd, REAL(fsync));
}

int fdatasync(int fd) {
    return sync_with(fd, REAL(fdatasync));
}

ssize_t write(int fd, const void *bytes, size_t length) {
    return refuses(fd, -1, length) ? -1 : REAL(write)(fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *parts, int part_count) {
    int64_t length = 0;
    for (int at = 0; at < part_count; at++)
        length += parts[at].iov_len;
    return refuses(fd, -1, length) ? -1 : REAL(writev)(fd, parts, part_count);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    return refuses(fd, offset, length) ? -1 : REAL(pwrite)(fd, bytes, length, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    return refuses(fd, offset, length) ? -1 : REAL(pwrite64)(fd, bytes, length, offset);
}

int ftruncate(int fd, off_t length) {
    return refuses(fd, length, -1) ? -1 : REAL(ftruncate)(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    return refuses(fd, length, -1) ? -1 : REAL(ftruncate64)(fd, length);
}

/* Reserving space changes nothing that could be read, so that it only may fail. */
int fallocate(int fd, int mode, off_t offset, off_t length) {
    return refuses(fd, offset, 0) ? -1 : REAL(fallocate)(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    return refuses(fd, offset, 0) ? -1 : REAL(fallocate64)(fd, mode, offset, length);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*really)(clockid_t, struct timespec *);
    if (really == NULL)
        really = REAL(clock_gettime);
    int result = really(clock, time);
    int64_t offset_ms = control == NULL ? 0 : field(&control->clock_offset_ms);
    if (result == 0 && offset_ms != 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t nanoseconds = time->tv_nsec + offset_ms % 1000 * 1000000;
        time->tv_sec += offset_ms / 1000 + (nanoseconds >= 1000000000) - (nanoseconds < 0);
        time->tv_nsec = (nanoseconds + 1000000000) % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *there) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (there != NULL)
        *there = now.tv_sec;
    return now.tv_sec;
}
