/* Private to quant/build/stack*.c: the job of encoding and writing, and the work file. */
#ifndef QUANT_BUILD_STACK_INT_H
#define QUANT_BUILD_STACK_INT_H

#include "quant/build/stack_build.h"

struct stack_job {
    const struct stack_build *b;
    struct pool *pool;
    struct requant_job io; /* source, stack file and progress */
};

/* The work file at OUT.work.part and what is done of it at OUT.done.part: opened, going on where an earlier
 * build of the same ended; all matrices of a tensor are in it; closed, and gone unless b->keep. */
enum status stack_work_open(struct stack_build *b, const char *out, struct err *e);
enum status stack_work_coded(struct stack_build *b, struct stack_part *p, struct err *e);
void stack_work_close(struct stack_build *b);
enum status stack_work_get(const struct stack_build *b, void *p, size_t n, uint64_t at, struct err *e);

/* FNV-1a, from STACK_HASH on. */
#define STACK_HASH 0xcbf29ce484222325u
static inline uint64_t stack_hash(uint64_t h, const void *p, size_t n)
{
    const unsigned char *c = p;
    for (size_t i = 0; i < n; i++) h = (h ^ c[i]) * 0x100000001b3u;
    return h;
}

/* The factored codec: decomposes a matrix whose rows are at `in`; sum: squared activations of the
 * columns.  See stack_factor.c. */
enum status stack_factor(struct stack_job *s, const struct stack_part *p, int mat, const char *in,
                         const double *sum, struct err *e);

#endif
