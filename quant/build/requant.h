/* Requantising a model file: every matrix to the weight type that a recipe gives it, the rest as it
 * is.
 *
 * Offline tool code: reads the source in pieces, never a whole tensor, and writes aside and renames
 * at the end.  Norms, biases, routers and other vectors keep their type (routers stay f32).  One
 * caller thread; encoding runs on the given pool. */
#ifndef QUANT_BUILD_REQUANT_H
#define QUANT_BUILD_REQUANT_H

#include <stdbool.h>

#include "moe/base/osfile.h"
#include "moe/base/thread.h"
#include "moe/load/gguf.h"
#include "quant/build/imatrix.h"
#include "quant/build/recipe.h"

struct requant_tensor {
    const struct gguf_tensor *in;
    enum qtype type;        /* what it becomes */
    uint64_t bytes;         /* what it takes then */
    bool kept;              /* copied as it is */
    bool fallback;          /* not the type that the recipe wants, because of its columns */
    const struct imatrix_entry *importance; /* of its columns; NULL = all alike */
};

struct requant {
    const struct gguf *in;
    const struct recipe *recipe;
    const struct imatrix *imatrix;   /* NULL = none */
    struct requant_tensor *tensor;   /* [n] in file order */
    uint64_t n, bytes_in, bytes_out;
    const struct requant_tensor *lossy; /* the first that is quantised already and changes type */
    uint64_t n_searched;             /* matrices that importance would help ... */
    uint64_t n_missing;              /* ... and has nothing for, though there is a matrix: */
    const struct requant_tensor *missing; /* the first of them */
};

/* Decides every tensor's type.  imatrix may be NULL; it, the options' recipe and `in` are borrowed.
 * ERR_UNSUPPORTED for a type that cannot be written, or a tensor whose type cannot be read;
 * ERR_SHAPE where an importance matrix has other sizes than its tensor, ERR_MISSING where it has
 * nothing for any of them. */
enum status requant_plan(struct requant *r, const struct gguf *in, const struct recipe_options *o,
                         const struct imatrix *imatrix, struct err *e);
void requant_free(struct requant *r);

/* What the header will say of the importance matrix's origin; either may be NULL. */
struct requant_origin {
    const char *imatrix_file, *imatrix_dataset;
};

typedef bool requant_progress(void *arg, uint64_t done, uint64_t total);

/* Writes the file; progress may be NULL and cancels by returning false. */
enum status requant_write(const struct requant *r, const char *out,
                          const struct requant_origin *origin, struct pool *pool,
                          requant_progress *progress, void *arg, struct err *e);

/* ---- its parts, for files that hold other tensors beside the plan's (stack_build.c) ---- */

struct requant_job {
    const struct requant *r;
    struct osfile *file;    /* [shards] the source */
    struct gguf_writer *w;
    char *in, *out;         /* room for so many weights at their widest: a piece, or a longer row */
    float *x;
    uint64_t room;
    requant_progress *progress;
    void *arg;
    uint64_t done, total;   /* bytes, as progress hears of them */
};

/* With r, progress, arg and total set; close also after an error. */
enum status requant_open(struct requant_job *j, struct err *e);
void requant_close(struct requant_job *j);
/* Header: the source's keys, without those that describe its weights; a tensor as planned. */
void requant_put_keys(struct requant_job *j);
void requant_put_tensor(struct requant_job *j, const struct requant_tensor *t);
/* Its data, as planned. */
enum status requant_write_tensor(struct requant_job *j, const struct requant_tensor *t,
                                 struct pool *pool, struct err *e);
/* So many more bytes are done; ERR_CANCELLED: says progress. */
enum status requant_went(struct requant_job *j, uint64_t bytes, struct err *e);

#endif
