/* Hugging Face checkpoints of the architectures: which tensors they have under which names, what
 * has to be done to them, and what config.json says, in GGUF's terms.
 *
 * Data and pure functions; reads no weights.  quant/build/convert.c does what the tables say.  A
 * new architecture is a table of rows (hf_rows.c), a function for its keys (hf_config.c) and one
 * line in the list there. */
#ifndef MODELS_HF_H
#define MODELS_HF_H

#include <stdbool.h>
#include <stdint.h>

#include "moe/load/gguf.h"
#include "moe/load/jsonfile.h"

/* How the values of a GGUF tensor lie in the checkpoint.  Dimensions as the checkpoint has them:
 * [experts][out][in]. */
enum hf_op {
    HF_AS_IS,
    HF_PAIRS_Q,    /* rows of each head: the rotated halves (i, i + dim/2) become neighbours */
    HF_PAIRS_KV,   /* the same, as many heads as K has */
    HF_EXPERTS,    /* one tensor per expert (* in its name), stacked */
    HF_FIRST_ROWS, /* the first half of the rows of each expert */
    HF_LAST_ROWS,  /* the second half */
    HF_EVEN_COLS,  /* gpt-oss, where gate and up take turns: biases, [experts][2 out] */
    HF_ODD_COLS,
    HF_TURNED,     /* [experts][in][out] */
    HF_TURNED_EVEN, /* [experts][in][2 out] */
    HF_TURNED_ODD,
    HF_K_B,        /* latent attention: the keys' rows of kv_b_proj, turned: [heads][rank][nope] */
    HF_V_B,        /* the values' rows: [heads][v][rank] */
    HF_MXFP4,      /* NAME_blocks and NAME_scales, in 32s that share a power of two */
    HF_MXFP4_EVEN,
    HF_MXFP4_ODD,
    HF_ROPE_FREQS, /* not in the checkpoint: struct hf_model has them */
};

/* When a row must be there. */
enum hf_when {
    HF_MUST,
    HF_MAY,
    HF_UNTIED, /* unless the embedding is the head too; left out then */
    HF_DENSE,  /* in layers without experts, and only there */
    HF_MOE,    /* in layers with experts, and only there */
    HF_MOE_MAY,
    HF_SHARED, /* in layers with experts, if some are shared */
    HF_ROUTED, HF_ROUTED_MAY, /* recursions that have a router */
    HF_PLAIN_Q, HF_LATENT_Q, /* latent attention: the query has a latent too, or not */
};

/* # is the layer, * the expert, @ the recursion (from 1; in `from` the wrapper's place).  Rows with
 * the same `to` follow each other: forms of one thing, the first that a checkpoint has counts. */
struct hf_row {
    const char *to, *from; /* to NULL ends a table */
    enum hf_op op;
    enum hf_when when;
};

enum { HF_ROPE_MAX = 256 };

/* What config.json says. */
struct hf_model {
    const struct hf_arch *arch;
    int n_layer, n_head, n_kv_head, head_dim;
    int n_expert, n_dense_lead; /* layers from n_dense_lead on have experts */
    int n_shared;               /* experts that all tokens pass */
    int dim_nope, dim_v;        /* of a head in kv_b_proj */
    bool latent_q;
    bool add_bos;               /* a text begins with it, whatever the tokenizer's files say */
    bool tied;                  /* the embedding is the head too */
    bool mxfp4;                 /* some weights are in it */
    bool fp8;                   /* some have a NAME_scale_inv ... */
    int fp8_rows, fp8_cols;     /* ... per so many rows and columns; 0: one for all */
    int ignored_window; /* a sliding window that GGUF's architecture does not have; 0: none */
    /* Recursive models: a checkpoint holds the layers of a block once for each time that they run. */
    int n_recursions;           /* 0 = none */
    int first, n_block;         /* physical layers before the block, in it */
    bool in_place;              /* each layer is repeated at its place, else the block */
    bool wrapped;               /* a router's wrapper holds each recursion's layers */
    float rope_freqs[HF_ROPE_MAX];
    int n_rope_freqs;
};

struct hf_config; /* hf_config.c */

struct hf_arch {
    const char *classes; /* of config.json's "architectures", with blanks between */
    const char *name;    /* general.architecture */
    const struct hf_row *rows;
    bool nextn;          /* layers behind the last one predict further tokens and are left out */
    void (*keys)(struct hf_config *c); /* errors stick to c */
};

/* Reads config.json and puts the keys that follow from it.  ERR_UNSUPPORTED names what is not
 * known: anything that would change the result is an error. */
enum status hf_model_read(const cJSON *config, const char *path, struct gguf_writer *w,
                          struct hf_model *m, struct err *e);

/* What stands for # in `from`: copy number `copy` of a layer; false when there are no more. */
bool hf_layer_name(const struct hf_model *m, int layer, int copy, char out[32]);

/* The i-th known architecture, NULL past the end. */
const struct hf_arch *hf_arch_at(int i);

/* Tensors that are no weights. */
bool hf_is_ignored(const struct hf_model *m, const char *name);

/* ---- inside: hf_rows.c and hf_config.c ---- */

extern const struct hf_row hf_rows_llama[], hf_rows_mixtral[], hf_rows_qwen2[], hf_rows_qwen2moe[],
    hf_rows_qwen3[], hf_rows_qwen3moe[], hf_rows_deepseek[], hf_rows_gptoss[], hf_rows_ouro[],
    hf_rows_mor[], hf_rows_llada[];

#endif
