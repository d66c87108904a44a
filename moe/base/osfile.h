/* Files and the clock as structs of pointers, so that tests can fail the Nth read or freeze time.
 *
 * Owns an open file; a struct osfile may be read from several threads at once (reads carry their
 * offset).  Writing goes through osfile_writer, which writes aside and renames at commit: a
 * failed or abandoned write leaves no half-written file behind. */
#ifndef MOE_BASE_OSFILE_H
#define MOE_BASE_OSFILE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "moe/base/err.h"

struct osfile_ops {
    int (*open)(const char *path, int how);      /* enum osfile_how; fd or -errno */
    int64_t (*pread)(int fd, void *buf, size_t n, uint64_t offset);      /* bytes or -errno */
    int (*close)(int fd);
    void (*drop)(int fd, uint64_t offset, uint64_t n);                   /* give page cache back */
    int64_t (*size)(int fd); /* bytes or -errno (-EISDIR, -EINVAL: no regular file); NULL: fstat */
    int64_t (*stamp)(int fd); /* differs when the file was written to; NULL: never */
    /* Copies a range that the page cache holds in whole: n; else -EAGAIN, and nothing is read from
     * the drive.  fd is not a direct one.  NULL: never. */
    int64_t (*peek)(int fd, void *buf, size_t n, uint64_t offset);
};

enum osfile_how {
    OSFILE_BUFFERED,
    OSFILE_DIRECT, /* past the page cache */
    OSFILE_RANDOM, /* through it, but the system reads nothing ahead: what was read can be dropped */
};

extern const struct osfile_ops osfile_system; /* the real thing */

struct osfile {
    const struct osfile_ops *ops;
    int fd;        /* -1 = not open */
    int direct;    /* opened without the page cache: offset, size and buffer in 4096s */
    uint64_t size; /* bytes, at open */
    int64_t stamp; /* at open */
    char *path;    /* owned */
};

enum { OSFILE_ALIGN = 4096 };

/* Opens for reading; OSFILE_DIRECT falls back to OSFILE_RANDOM where the file system refuses it
 * (f->direct tells).  ERR_IO names the path and the reason.  ops NULL = the system's. */
enum status osfile_open(struct osfile *f, const char *path, enum osfile_how how,
                        const struct osfile_ops *ops, struct err *e);
void osfile_close(struct osfile *f);

/* Reads exactly n bytes or fails with ERR_IO (end of file included: says where). */
enum status osfile_read(const struct osfile *f, void *buf, size_t n, uint64_t offset,
                        struct err *e);

/* ERR_IO when the file was written to, or changed its size, since it was opened. */
enum status osfile_unchanged(const struct osfile *f, struct err *e);

struct osfile_writer {
    FILE *fp;
    char *path, *aside; /* owned */
    uint64_t keep;      /* bytes that may wait in the page cache, see below; 0 = any number */
    uint64_t settled;
    int code;           /* errno, if that failed */
};

/* Creates "<path>.part"; write through fp with stdio, then commit (flush, sync, rename) or abort
 * (unlink).  ERR_IO names the path and the reason.  "/dev/..." is written in place. */
enum status osfile_writer_open(struct osfile_writer *w, const char *path, struct err *e);
enum status osfile_writer_commit(struct osfile_writer *w, struct err *e);
void osfile_writer_abort(struct osfile_writer *w);

/* What may wait so in a process of that budget; bytes. */
static inline uint64_t osfile_keep(uint64_t budget)
{
    const uint64_t n = budget / 128;
    return n < 64 << 10 ? 64 << 10 : n > 64 << 20 ? 64 << 20 : n;
}

/* A budget is charged for what has been written and is not on the disk yet: when that is more than
 * w->keep bytes it is put there, and its pages are given back.  Errors are the commit's to tell. */
void osfile_writer_settle(struct osfile_writer *w);

/* Monotonic seconds. */
double os_seconds(void);

#endif
