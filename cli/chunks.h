/* A text in chunks, as llama.cpp's tools cut it: what `perplexity` and `imatrix` share.
 *
 * The text is tokenised as a whole and cut into chunks of n_ctx tokens; what is left at the end is
 * not used.  Each chunk runs from an empty context, its first token replaced by BOS where the
 * vocabulary adds one.  Positions n_ctx/2 .. n_ctx-2 are scored:
 *   PPL = exp(mean nll), uncertainty = PPL * sqrt((mean nll^2 - (mean nll)^2) / (count - 1)) */
#ifndef CLI_CHUNKS_H
#define CLI_CHUNKS_H

#include "cli/cli.h"

struct chunks {
    tessera_engine *e;        /* borrowed */
    tessera_session *session; /* owned */
    int32_t *ids;             /* [n], owned */
    int n, n_ctx, n_chunk, n_vocab, n_ubatch;
    int bos;                  /* -1: chunks keep their first token */
    double nll, nll2;         /* of the scored positions */
    int count;
};

/* -c when it is absent: 512, or the model's own when that is smaller (said on stderr). */
void chunks_default_ctx(struct cli_args *a);

/* CLI_USAGE for a context that leaves nothing to score. */
int chunks_check(const char *cmd, const struct cli_args *a);

/* Takes sizes from the engine and the context from a; no text yet. */
void chunks_init(struct chunks *c, tessera_engine *e, const struct cli_args *a);

/* The text of -f or -p in chunks: all of them, or the first `most` when that is >= 0.  flags of
 * tok_encode, beside TOK_BOS.  ERR_RANGE for fewer than two. */
enum status chunks_read(struct chunks *c, const struct cli_args *a, unsigned flags, int most,
                        struct err *err);

/* Opens the session that chunks run in; c->n_ctx is final. */
enum status chunks_begin(struct chunks *c, struct err *err);
void chunks_free(struct chunks *c);

/* Runs chunk i.  Without `all` its last token is only predicted, and logits are asked for where
 * positions are scored.  Every scored position adds to nll, and goes to score (may be NULL) with
 * the logits and the token that follows. */
enum status chunks_run(struct chunks *c, int i, bool all,
                       enum status (*score)(void *arg, const float *logits, int32_t next,
                                            struct err *err),
                       void *arg, struct err *err);

/* "[i]PPL so far,"; nothing for chunk 0. */
void chunks_print(const struct chunks *c, int i);
/* "Final estimate: PPL = ..." */
void chunks_print_final(const struct chunks *c);

#endif
