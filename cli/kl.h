/* Saved distributions of a base model and the divergence of another from them.
 *
 * The file is llama-perplexity's, so that either program reads the other's (little endian):
 *   "_logits_" | u32 n_ctx | i32 n_vocab | i32 n_chunk | i32 ids[n_chunk * n_ctx]
 *   per scored position:  f32 scale | f32 min | u16 q[n_vocab, even]     log p = scale * q + min
 * Positions n_ctx/2 .. n_ctx-2 of every chunk are scored.  Each struct belongs to one thread. */
#ifndef CLI_KL_H
#define CLI_KL_H

#include <stdint.h>
#include <stdio.h>

#include "moe/base/err.h"
#include "moe/base/osfile.h"

/* KL(p || q) of two rows of logits, in nats; z, may be NULL: the log of the sum of each one's exp. */
double kl_rows(const float *p, const float *q, int n, double z[2]);

struct kl_writer {
    struct osfile_writer w; /* w.fp NULL = not open */
    int n_vocab;
    uint16_t *row; /* one position as it stands in the file */
    size_t row_bytes;
};

enum status kl_create(struct kl_writer *k, const char *path, int n_vocab, int n_ctx, int n_chunk,
                      const int32_t *ids, struct err *e);
enum status kl_put(struct kl_writer *k, const float *logits, struct err *e);
enum status kl_commit(struct kl_writer *k, struct err *e);
void kl_abort(struct kl_writer *k); /* harmless after commit and on a zeroed struct */

struct kl_reader {
    FILE *f; /* NULL = not open */
    const char *path;
    int n_vocab;
    uint16_t *row;
    size_t row_bytes;
};

/* Opens and checks; *ids is malloc'd, [n_chunk * n_ctx]. */
enum status kl_open(struct kl_reader *k, const char *path, int n_vocab, int *n_ctx, int *n_chunk,
                    int32_t **ids, struct err *e);
void kl_close(struct kl_reader *k);

/* Sums over positions; all zero to begin with. */
struct kl_sum {
    double nll, nll2, base, base2, nll_base; /* of the right token, here and in the base */
    double kld, kld2, dp, dp2, dp4;          /* dp: difference of its probability */
    int64_t count, same_top;
    float *klds, *dps; /* [count] each */
    int64_t cap;
};

/* Reads the next position of the base and adds what the logits make of it; next is the token that
 * really follows. */
enum status kl_compare(struct kl_reader *k, const float *logits, int32_t next, struct kl_sum *s,
                       struct err *e);
void kl_sum_free(struct kl_sum *s);
/* Running line of a chunk (0 = the heading), and the closing statistics, on stdout. */
void kl_print_chunk(const struct kl_sum *s, int chunk);
void kl_print(struct kl_sum *s);

#endif
