/* Architectures: one file each, one row each in the registry (arch.c).
 *
 * An architecture only describes: it reads its keys, binds its tensors with the shapes that follow
 * from the keys, and lists the ops of a forward pass.  It calls no kernel, no device, no cache. */
#ifndef MODELS_ARCH_H
#define MODELS_ARCH_H

#include "moe/load/gguf.h"
#include "moe/plan/build.h"

/* What the keys of a file say, in the terms that all these architectures share. */
struct hparams {
    int n_layer, n_embd, n_vocab, n_ctx_train;
    int n_heads, n_kv_heads, head_dim;
    int n_ff;                   /* dense feed-forward width, 0 = none */
    int n_expert, n_expert_used, n_ff_expert; /* 0 = dense */
    float norm_eps;
    struct rope_params rope;
    int rope_divisor;           /* rope_freqs.weight divides the angles (Llama 3.1) */
};

struct arch {
    const char *name;           /* general.architecture */
    const char *what;           /* one line for `tessera help` and the README */
    enum status (*hparams)(const struct gguf *g, struct hparams *h, struct err *e);
    void (*describe)(struct build *b, const struct hparams *h); /* errors stick to b */
};

/* ERR_UNSUPPORTED names the ones that are known. */
enum status arch_find(const struct gguf *g, const struct arch **out, struct err *e);
const struct arch *arch_at(int i); /* NULL past the end */

/* ---- what the architecture files share (models/block.c) ---- */

/* Reads the keys that every one of them has, and checks that they make sense together. */
enum status hparams_common(const struct gguf *g, const char *arch, struct hparams *h,
                           struct err *e);

/* "<arch>.<key>" as a non-negative int; dflt < 0: the key must be there. */
enum status hparams_int(const struct gguf *g, const char *arch, const char *key, int dflt,
                        int *out, struct err *e);

/* The variants of the pre-norm transformer block with rotary attention. */
struct block_style {
    enum { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_ROW } qk_norm; /* per head, or over the whole row */
    struct route_params route;  /* n_expert 0 = dense feed-forward */
};

/* The whole model: embedding, layers, last norm, head.  Only rows that need logits pass the last
 * layer's query, feed-forward and head. */
void block_model(struct build *b, const struct hparams *h, const struct block_style *style);

#endif
