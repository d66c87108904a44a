/* Makes the Nth allocation, mapping, read or write of a program fail, to prove that every error
 * path ends in a clean error: no crash, no leak, no half-written file.
 *
 *     for (int n = 1;; n++) {
 *         fault_arm(FAULT_ALL, n);
 *         ... call what is tested ...
 *         if (!fault_disarm()) break;      no Nth call any more: all of them have failed once
 *     }
 *
 * Works through the linker: a test that includes this file (once) is linked with FAULT_LINK of the
 * Makefile, which lists --wrap for every function below.  Only calls from our own objects are
 * seen, not those inside shared libraries.  Counts living heap blocks too, so that leaks show up
 * without a sanitizer.  Any thread may run while armed. */
#ifndef TESTS_FAULT_H
#define TESTS_FAULT_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/types.h>

enum fault_kind {
    FAULT_ALLOC = 1, /* malloc, calloc, realloc, aligned_alloc, strdup: NULL */
    FAULT_MAP = 2,   /* mmap, mprotect: ENOMEM */
    FAULT_READ = 4,  /* open, pread: EIO */
    FAULT_WRITE = 8, /* fopen, fwrite, fflush, fsync, fclose, rename: ENOSPC */
    FAULT_THREAD = 16, /* pthread_create: EAGAIN */
    FAULT_ALL = 31,
};

static _Atomic int fault_kinds;  /* 0: not armed */
static _Atomic int fault_left;   /* calls until the one that fails */
static _Atomic long fault_blocks; /* living heap blocks */

/* The n-th call (from 1) of the kinds fails; later ones work again. */
static inline void fault_arm(int kinds, int n)
{
    atomic_store(&fault_left, n);
    atomic_store(&fault_kinds, kinds);
}

/* Whether a call has failed since fault_arm. */
static inline int fault_disarm(void)
{
    atomic_store(&fault_kinds, 0);
    return atomic_load(&fault_left) <= 0;
}

static inline long fault_living(void) { return atomic_load(&fault_blocks); }

static inline int fault_now(enum fault_kind kind, int code)
{
    if (!(atomic_load(&fault_kinds) & (int)kind)) return 0;
    if (atomic_fetch_sub(&fault_left, 1) != 1) return 0;
    errno = code;
    return 1;
}

static inline void *fault_counted(void *p)
{
    if (p) atomic_fetch_add(&fault_blocks, 1);
    return p;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t to, size_t n);
char *__real_strdup(const char *s);
void __real_free(void *p);
void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);
int __real_mprotect(void *at, size_t n, int prot);
int __real_open(const char *path, int flags, ...);
ssize_t __real_pread(int fd, void *buf, size_t n, off_t offset);
FILE *__real_fopen(const char *path, const char *mode);
size_t __real_fwrite(const void *p, size_t size, size_t n, FILE *fp);
int __real_fflush(FILE *fp);
int __real_fsync(int fd);
int __real_fclose(FILE *fp);
int __real_rename(const char *from, const char *to);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t to, size_t n);
char *__wrap_strdup(const char *s);
void __wrap_free(void *p);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);
int __wrap_mprotect(void *at, size_t n, int prot);
int __wrap_open(const char *path, int flags, ...);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t offset);
FILE *__wrap_fopen(const char *path, const char *mode);
size_t __wrap_fwrite(const void *p, size_t size, size_t n, FILE *fp);
int __wrap_fflush(FILE *fp);
int __wrap_fsync(int fd);
int __wrap_fclose(FILE *fp);
int __wrap_rename(const char *from, const char *to);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);

void *__wrap_malloc(size_t n)
{
    return fault_now(FAULT_ALLOC, ENOMEM) ? NULL : fault_counted(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fault_now(FAULT_ALLOC, ENOMEM) ? NULL : fault_counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n)
{
    if (fault_now(FAULT_ALLOC, ENOMEM)) return NULL;
    void *q = __real_realloc(p, n);
    return p ? q : fault_counted(q);
}

void *__wrap_aligned_alloc(size_t to, size_t n)
{
    return fault_now(FAULT_ALLOC, ENOMEM) ? NULL : fault_counted(__real_aligned_alloc(to, n));
}

char *__wrap_strdup(const char *s)
{
    return fault_now(FAULT_ALLOC, ENOMEM) ? NULL : fault_counted(__real_strdup(s));
}

void __wrap_free(void *p)
{
    if (p) atomic_fetch_sub(&fault_blocks, 1);
    __real_free(p);
}

void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    if (fault_now(FAULT_MAP, ENOMEM)) return MAP_FAILED;
    return __real_mmap(at, n, prot, flags, fd, offset);
}

int __wrap_mprotect(void *at, size_t n, int prot)
{
    return fault_now(FAULT_MAP, ENOMEM) ? -1 : __real_mprotect(at, n, prot);
}

int __wrap_open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return fault_now(FAULT_READ, EIO) ? -1 : __real_open(path, flags, mode);
}

ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t offset)
{
    return fault_now(FAULT_READ, EIO) ? -1 : __real_pread(fd, buf, n, offset);
}

FILE *__wrap_fopen(const char *path, const char *mode)
{
    return fault_now(FAULT_WRITE, ENOSPC) ? NULL : __real_fopen(path, mode);
}

size_t __wrap_fwrite(const void *p, size_t size, size_t n, FILE *fp)
{
    return fault_now(FAULT_WRITE, ENOSPC) ? 0 : __real_fwrite(p, size, n, fp);
}

int __wrap_fflush(FILE *fp) { return fault_now(FAULT_WRITE, ENOSPC) ? EOF : __real_fflush(fp); }

int __wrap_fsync(int fd) { return fault_now(FAULT_WRITE, ENOSPC) ? -1 : __real_fsync(fd); }

int __wrap_fclose(FILE *fp)
{
    int fail = fault_now(FAULT_WRITE, ENOSPC), r = __real_fclose(fp); /* closed in any case */
    if (fail) errno = ENOSPC;
    return fail ? EOF : r;
}

int __wrap_rename(const char *from, const char *to)
{
    return fault_now(FAULT_WRITE, ENOSPC) ? -1 : __real_rename(from, to);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
    return fault_now(FAULT_THREAD, EAGAIN) ? EAGAIN : __real_pthread_create(t, a, fn, arg);
}

#endif
