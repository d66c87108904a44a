/* Importance matrices: how large the activations are that each column of a weight matrix meets.
 *
 * One entry per tensor: per matrix of it (expert, head, or the one) the sum of the squared
 * activations of every column, and how many rows went into it.  Two files hold them: llama.cpp's
 * GGUF form (general.type "imatrix"; per tensor NAME.in_sum2 and NAME.counts in F32, and the keys
 * imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size), which is read and written, and its
 * older .dat, which is read:
 *
 *   i32 n | n times: i32 length, name | i32 calls | i32 n_values | f32 value[] = mean * calls
 *   | then, where the file goes on: i32 chunks | i32 length, name of the text
 *
 * One thread at a time. */
#ifndef QUANT_BUILD_IMATRIX_H
#define QUANT_BUILD_IMATRIX_H

#include <stdint.h>

#include "moe/base/err.h"
#include "moe/load/gguf.h"

struct imatrix_entry {
    char *name;       /* of the weight tensor */
    uint64_t n_sums;  /* n_mats * n_cols, matrix by matrix */
    uint64_t n_counts;/* n_mats, or 1 that stands for all of them */
    double *sum;      /* [n_sums] */
    double *count;    /* [n_counts] rows */
};

struct imatrix {
    struct imatrix_entry *entry; /* [n] sorted by name */
    uint64_t n, cap;
    char **dataset;              /* [n_datasets] the texts it was made from */
    uint64_t n_datasets;
    uint32_t n_chunks, chunk_size;
};

/* Reads either form.  On failure m is empty: ERR_IO, ERR_FORMAT with the byte, ERR_SHAPE for sizes
 * that do not match, ERR_RANGE for sums that are negative or not finite, ERR_MEMORY. */
enum status imatrix_read(const char *path, struct imatrix *m, struct err *e);
void imatrix_free(struct imatrix *m);

/* Writes the GGUF form, aside and renamed. */
enum status imatrix_write(const struct imatrix *m, const char *path, struct err *e);

/* The entry of a tensor, NULL when there is none. */
const struct imatrix_entry *imatrix_find(const struct imatrix *m, struct gguf_str name);

/* The same, made with zeros where there is none.  NULL: no memory, or ERR_SHAPE when it is there
 * with other sizes. */
struct imatrix_entry *imatrix_want(struct imatrix *m, const char *name, uint64_t n_mats,
                                   uint64_t n_cols, struct err *e);

enum status imatrix_add_dataset(struct imatrix *m, const char *name, struct err *e);

/* Adds everything of another matrix to m. */
enum status imatrix_merge(struct imatrix *m, const struct imatrix *from, struct err *e);

/* What encoders take (quant/codec.h): the mean squared activation of each column of matrix `mat`,
 * scaled to a mean of 1.  A matrix that no row met counts every column alike.  out[n_cols]; the
 * entry's n_sums is a multiple of n_cols. */
void imatrix_weights(const struct imatrix_entry *x, uint64_t mat, uint64_t n_cols, float *out);

#endif
