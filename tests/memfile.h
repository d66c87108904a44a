/* Files that live in memory, for tests of readers: an osfile_ops over a small table.
 *
 * memfile_add() puts a file (bytes borrowed) in the table; `size` may promise more than there is,
 * the rest then reads as zeros.  Knobs make reads short, interrupted or failing.  Owns nothing but
 * the table, which is one per test program; never used by the library.  One thread. */
#ifndef TESTS_MEMFILE_H
#define TESTS_MEMFILE_H

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "moe/base/osfile.h"

enum { MEMFILE_MAX = 16 };

struct memfile {
    const char *path; /* NULL: free */
    const void *data;
    uint64_t n, size;
};

static struct memfile memfile_table[MEMFILE_MAX];
static struct {
    int opened, closed;   /* counted */
    uint64_t bytes;       /* read so far */
    uint64_t short_reads; /* most bytes per read; 0: all */
    uint64_t fail_at;     /* a read that reaches this byte gives EIO; 0: none */
    int interrupt;        /* every second read gives EINTR */
} memfile_io;

static inline void memfile_reset(void)
{
    memset(memfile_table, 0, sizeof memfile_table);
    memset(&memfile_io, 0, sizeof memfile_io);
}

static inline void memfile_add(const char *path, const void *data, uint64_t n, uint64_t size)
{
    for (int i = 0; i < MEMFILE_MAX; i++) {
        if (memfile_table[i].path) continue;
        memfile_table[i] = (struct memfile){path, data, n, size};
        return;
    }
}

static inline int memfile_open(const char *path, int how)
{
    (void)how;
    for (int i = 0; i < MEMFILE_MAX; i++) {
        if (!memfile_table[i].path || strcmp(path, memfile_table[i].path)) continue;
        memfile_io.opened++;
        return i;
    }
    return -ENOENT;
}

static inline int64_t memfile_pread(int fd, void *buf, size_t n, uint64_t offset)
{
    const struct memfile *f = &memfile_table[fd];
    static int turn;
    if (memfile_io.interrupt && (turn ^= 1)) return -EINTR;
    if (memfile_io.fail_at && offset + n > memfile_io.fail_at) return -EIO;
    if (offset >= f->size) return 0;
    if (n > f->size - offset) n = (size_t)(f->size - offset);
    if (memfile_io.short_reads && n > memfile_io.short_reads) n = (size_t)memfile_io.short_reads;
    memset(buf, 0, n);
    if (offset < f->n)
        memcpy(buf, (const char *)f->data + offset,
               (size_t)(n < f->n - offset ? n : f->n - offset));
    memfile_io.bytes += n;
    return (int64_t)n;
}

static inline int memfile_close(int fd)
{
    (void)fd;
    memfile_io.closed++;
    return 0;
}

static inline void memfile_drop(int fd, uint64_t offset, uint64_t n)
{
    (void)fd;
    (void)offset;
    (void)n;
}

static inline int64_t memfile_size(int fd) { return (int64_t)memfile_table[fd].size; }

static const struct osfile_ops memfile_ops = {memfile_open, memfile_pread, memfile_close,
                                              memfile_drop, memfile_size, NULL};

#endif
