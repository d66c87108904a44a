/* See osfile.h. */
#define _GNU_SOURCE
#include "moe/base/osfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int sys_open(const char *path, int how)
{
    /* O_NONBLOCK only so that a named pipe without a writer cannot hang us: it is refused below,
     * and asynchronous reads of real files must not see the flag. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (how == OSFILE_DIRECT ? O_DIRECT : 0));
    if (fd < 0) return -errno;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0) (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    if (how == OSFILE_RANDOM) (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    return fd;
}

static int64_t sys_pread(int fd, void *buf, size_t n, uint64_t offset)
{
    ssize_t r = pread(fd, buf, n, (off_t)offset);
    return r < 0 ? -errno : r;
}

static int sys_close(int fd) { return close(fd); }

static void sys_drop(int fd, uint64_t offset, uint64_t n)
{
    (void)posix_fadvise(fd, (off_t)offset, (off_t)n, POSIX_FADV_DONTNEED);
}

static int64_t sys_size(int fd)
{
    struct stat st;
    if (fstat(fd, &st)) return -errno;
    if (S_ISDIR(st.st_mode)) return -EISDIR;
    return S_ISREG(st.st_mode) ? (int64_t)st.st_size : -EINVAL;
}

static int64_t sys_stamp(int fd)
{
    struct stat st;
    if (fstat(fd, &st)) return -1;
    return (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

/* The system is asked first: a read that may not wait would still begin to read ahead. */
static int64_t sys_peek(int fd, void *buf, size_t n, uint64_t offset)
{
    enum { CACHESTAT = 451 }; /* Linux 6.5; the number is the same on every architecture */
    struct { uint64_t offset, n; } range = {offset, n};
    struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } have;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t pages = (offset + n + page - 1) / page - offset / page;
    if (!n || syscall(CACHESTAT, fd, &range, &have, 0u) || have.cached < pages) return -EAGAIN;
    struct iovec to = {buf, n};
    return preadv2(fd, &to, 1, (off_t)offset, RWF_NOWAIT) == (ssize_t)n ? (int64_t)n : -EAGAIN;
}

const struct osfile_ops osfile_system = {sys_open, sys_pread, sys_close, sys_drop,
                                         sys_size, sys_stamp, sys_peek};

static const char *size_reason(int64_t code)
{
    if (code == -EISDIR) return "it is a directory";
    return code == -EINVAL ? "it is not a regular file" : strerror((int)-code);
}

enum status osfile_open(struct osfile *f, const char *path, enum osfile_how how,
                        const struct osfile_ops *ops, struct err *e)
{
    memset(f, 0, sizeof *f);
    f->fd = -1;
    f->ops = ops ? ops : &osfile_system;
    int fd = f->ops->open(path, (int)how);
    if (fd < 0 && how == OSFILE_DIRECT) {
        how = OSFILE_RANDOM;
        fd = f->ops->open(path, (int)how);
    }
    if (fd < 0) return err_set(e, ERR_IO, "cannot open %s: %s", path, strerror(-fd));
    int64_t size = f->ops->size ? f->ops->size(fd) : sys_size(fd);
    if (size < 0) {
        f->ops->close(fd);
        return err_set(e, ERR_IO, "cannot read %s: %s", path, size_reason(size));
    }
    f->path = strdup(path);
    if (!f->path) {
        f->ops->close(fd);
        return err_set(e, ERR_MEMORY, "no memory to open %s", path);
    }
    f->fd = fd;
    f->direct = how == OSFILE_DIRECT;
    f->size = (uint64_t)size;
    f->stamp = f->ops->stamp ? f->ops->stamp(fd) : 0;
    return OK;
}

enum status osfile_unchanged(const struct osfile *f, struct err *e)
{
    if (!f->ops->stamp) return OK;
    const int64_t size = f->ops->size ? f->ops->size(f->fd) : sys_size(f->fd);
    if (f->ops->stamp(f->fd) == f->stamp && size >= 0 && (uint64_t)size == f->size) return OK;
    return err_set(e, ERR_IO, "%s was written to while it was in use: open it anew", f->path);
}

void osfile_close(struct osfile *f)
{
    if (f->path && f->fd >= 0) f->ops->close(f->fd);
    free(f->path);
    f->path = NULL;
    f->fd = -1;
}

enum status osfile_read(const struct osfile *f, void *buf, size_t n, uint64_t offset, struct err *e)
{
    size_t done = 0;
    while (done < n) {
        int64_t r = f->ops->pread(f->fd, (char *)buf + done, n - done, offset + done);
        if (r == -EINTR) continue;
        if (r < 0)
            return err_set_at(e, ERR_IO, offset + done, "cannot read %s at byte %llu: %s", f->path,
                              (unsigned long long)(offset + done), strerror((int)-r));
        if (r == 0) {
            return err_set_at(e, ERR_IO, offset + done,
                              "%s ends at byte %llu where more was promised: the file was "
                              "truncated or changed",
                              f->path, (unsigned long long)(offset + done));
        }
        done += (size_t)r;
    }
    return OK;
}

static void writer_free(struct osfile_writer *w)
{
    free(w->path);
    free(w->aside);
    memset(w, 0, sizeof *w);
}

enum status osfile_writer_open(struct osfile_writer *w, const char *path, struct err *e)
{
    memset(w, 0, sizeof *w);
    struct stat st;
    int in_place = !stat(path, &st) && !S_ISREG(st.st_mode);
    size_t n = strlen(path) + sizeof ".part";
    w->path = strdup(path);
    w->aside = malloc(n);
    if (!w->path || !w->aside) {
        writer_free(w);
        return err_set(e, ERR_MEMORY, "no memory to write %s", path);
    }
    (void)snprintf(w->aside, n, "%s%s", path, in_place ? "" : ".part");
    w->fp = fopen(w->aside, "wb");
    if (!w->fp) {
        int code = errno;
        writer_free(w);
        return err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(code));
    }
    return OK;
}

enum status osfile_writer_commit(struct osfile_writer *w, struct err *e)
{
    int in_place = !strcmp(w->path, w->aside);
    errno = 0;
    int bad = w->code || ferror(w->fp) || fflush(w->fp) || (!in_place && fsync(fileno(w->fp)));
    int code = w->code ? w->code : errno;
    if (fclose(w->fp) && !bad) {
        bad = 1;
        code = errno;
    }
    w->fp = NULL;
    if (!bad && !in_place && rename(w->aside, w->path)) {
        bad = 1;
        code = errno;
    }
    enum status s = OK;
    if (bad) {
        s = err_set(e, ERR_IO, "cannot write %s: %s", w->path, strerror(code ? code : EIO));
        if (!in_place) (void)unlink(w->aside);
    }
    writer_free(w);
    return s;
}

void osfile_writer_settle(struct osfile_writer *w)
{
    const off_t at = w->keep && !w->code ? ftello(w->fp) : 0;
    if (at <= 0 || (uint64_t)at - w->settled < w->keep) return;
    errno = 0;
    if (fflush(w->fp) || (strcmp(w->path, w->aside) && fdatasync(fileno(w->fp)))) w->code = errno;
    (void)posix_fadvise(fileno(w->fp), 0, 0, POSIX_FADV_DONTNEED);
    w->settled = (uint64_t)at;
}

void osfile_writer_abort(struct osfile_writer *w)
{
    if (w->fp) (void)fclose(w->fp);
    if (w->aside && strcmp(w->path, w->aside)) (void)unlink(w->aside);
    writer_free(w);
}

double os_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
