/* Building a stack file (moe/load/stackfile.h) from a model file: every matrix of the layers becomes a
 * base and levels, the rest is quantised as Q6_K files have it.
 *
 * In two passes, because the order of the levels follows from how much each of them helps:
 *   stack_encode()  codes every matrix and puts base and levels into a work file; notes what error is
 *                   left at every depth, weighted by the activations that each column meets
 *   stack_write()   writes the stack file with the levels in a given order
 * Offline tool code: reads the source in pieces.  One caller thread; work runs on the given pool.
 * Both files are written aside.  The work file is gone after stack_build_close(), unless `keep` was set: then
 * stack_encode() of the same source, options and importance goes on behind the last tensor that it has. */
#ifndef QUANT_BUILD_STACK_BUILD_H
#define QUANT_BUILD_STACK_BUILD_H

#include <stdbool.h>

#include "moe/base/thread.h"
#include "moe/load/gguf.h"
#include "quant/build/imatrix.h"
#include "quant/build/requant.h"
#include "quant/stack.h"

struct stack_options {
    enum qtype base;        /* QTYPE_NEST2 or QTYPE_SIGN1: the codec */
    int rank, n_levels;     /* factored: rank; levels above the base */
};

/* One matrix: what is left of its weighted energy at each depth. */
struct stack_mat {
    double energy, error[STACK_LEVELS + 1];
};

struct stack_part {
    const struct requant_tensor *t;
    int n_cols, n_rows, n_mats;
    uint64_t at, stride;    /* in the work file: matrix 0's base; from matrix to matrix */
    struct stack_mat *mat;  /* [n_mats] */
    double worth;           /* what a unit of error costs; stack_order() multiplies by it */
    bool coded;             /* it is in the work file */
};

struct stack_build {
    struct stack_options o;
    struct requant plan;    /* of all tensors; those in part[] are stacked instead */
    struct stack_part *part; /* [n_parts] in file order */
    int n_parts;
    int *part_of;           /* [plan.n] -1 = not stacked */
    char *work_path, *state_path;
    int work, state;        /* descriptors of the work file, and of what is done of it */
    int n_coded;            /* tensors that an earlier build had coded */
    bool keep;              /* close() leaves the work file for a later build */
};

struct stack_curve {
    const int *units;
    const float *ppl;
    int n;
    const char *text;
};

/* Decides which tensors are stacked.  ERR_UNSUPPORTED when none can be.  `in` and imatrix (may be
 * NULL) are borrowed until close. */
enum status stack_build_open(struct stack_build *b, const struct gguf *in,
                             const struct stack_options *o, const struct imatrix *imatrix,
                             struct err *e);
void stack_build_close(struct stack_build *b);

enum status stack_encode(struct stack_build *b, const char *out, struct pool *pool,
                         requant_progress *progress, void *arg, struct err *e);

/* The units in the order of what they are worth per byte: worth * the error that they take away.
 * order[3 n] tensor, matrix, level; returns n.  NULL when out of memory. */
int32_t *stack_order(const struct stack_build *b, int *n, int *n_floor);

enum status stack_write(const struct stack_build *b, const char *out, const int32_t *order, int n,
                        int n_floor, const struct stack_curve *curve, struct pool *pool,
                        requant_progress *progress, void *arg, struct err *e);

/* The work file: of every matrix base rows, then levels 0 .. n_levels (level 0 of no bytes, nested).  Their
 * bytes, where they are (level -1 = the base), and writing them, for a tool that has codes of its own. */
size_t stack_mat_bytes(const struct stack_build *b, const struct stack_part *p);
size_t stack_unit_bytes(const struct stack_build *b, const struct stack_part *p, int level);
uint64_t stack_unit_at(const struct stack_build *b, const struct stack_part *p, int mat, int level);
enum status stack_work_put(const struct stack_build *b, const void *p, size_t n, uint64_t at,
                           struct err *e);

/* Bytes of the first n units, the head included. */
uint64_t stack_order_bytes(const struct stack_build *b, const int32_t *order, int n);

#endif
