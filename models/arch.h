/* Architectures: one file each, one row each in the registry (arch.c).
 *
 * An architecture only describes: it reads its keys, binds its tensors with the shapes that follow
 * from the keys, and lists the ops of a forward pass.  It calls no kernel, no device, no cache. */
#ifndef MODELS_ARCH_H
#define MODELS_ARCH_H

#include "moe/load/gguf.h"
#include "moe/plan/build.h"

/* Multi-head latent attention (deepseek2.c). */
struct mla_params {
    int q_rank, kv_rank;        /* widths of the latents; q_rank 0 = a plain query */
    int dim_k, dim_v;           /* values of a head, the rotated ones (at its end) included */
    bool latent;                /* attn_k_b and attn_v_b, not attn_kv_b: the cache holds latents */
};

/* Recurrent layers: which ones, the tensors say. */
struct delta_params {
    int taps;                   /* inputs of the convolution, the present one included */
    int n_k, n_v, dim;          /* gated DeltaNet: heads of q and k, of v; values of each */
    bool tiled;                 /* head h of v meets head h % n_k of k, else h / (n_v / n_k) */
};

/* Layers with a sliding window, where they have heads of their own, and an input that every layer
 * takes from the token itself (gemma4.c). */
struct gemma_params {
    int window_kv_heads, window_head_dim, window_n_rot;
    int n_embd_layer;           /* width of that input, 0 = none */
    int n_ff_shared_kv;         /* n_ff of the last n_shared_kv layers */
};

/* Layers that run more than once. */
enum { LAYERS_MAX = 4096, LOOPS_MAX = 64, RECURSIONS_MAX = ROWS_MAX - ROWS_FIRST };

struct loop_params {            /* the whole stack (models/loop.c) */
    int n, n_run;               /* loops; of them run */
    bool skip_norm;             /* the last norm is not applied between loops */
    bool has_gate;              /* exit_gate.weight, .bias: the chance to stop after each loop */
    float exit_at;              /* rows leave when their chances sum to it; 1 = never */
    bool weighted;              /* the mean of all loops, by these chances */
};

struct recursion_params {       /* a block of layers (mor.c) */
    int n;                      /* recursions; 0 = none */
    int first, n_block;         /* physical layers before the block, in it */
    bool in_place;              /* each layer is repeated at its place, else the block as a whole */
    enum { ROUTER_NONE, ROUTER_EXPERT, ROUTER_TOKEN } router;
    enum depth_score score;
    float alpha, temp;
    float threshold[RECURSIONS_MAX], capacity[RECURSIONS_MAX];
    bool shared_kv;             /* a layer's first run leaves K and V, for all rows; later ones look */
    bool update_kv;             /* later ones leave their own for those who look in the same recursion */
    bool gated, gate_every_step;
    bool exact;                 /* the best rows of whole texts, by capacity */
};

/* Text that is denoised (masked diffusion), not continued. */
struct denoise_params {
    int sees;                   /* of attention: op.h's SEES_BEFORE, SEES_ALL, or a block's positions */
    bool shift;                 /* what is hidden at i is read from the logits at i - 1 */
    int32_t mask;               /* the token that hides others; -1 = no key names it */
    bool by_entropy;            /* Dream's ways, not LLaDA's: the answer is one block, the surest by
                                   entropy settle first, and these sampling defaults */
    float temp, top_p;          /* 0 and 1 otherwise */
};

struct concept_params {         /* tokens merge into concepts (conceptmoe.c) */
    int n_encoder, n_decoder;   /* layers before and behind them, which see tokens */
    int n_embd;                 /* width of concepts */
    int n_heads, n_kv_heads, n_ff, n_ff_expert, n_used; /* of their layers */
    float ratio, threshold;     /* tokens per concept, expected; chance of a boundary */
    bool sum;                   /* of a span's tokens, else its last one */
    bool previous;              /* the query is of the token before, the key of the present one */
    bool joint;                 /* the decoder's Q, K and V see the concept, too */
    int loop_first, loop_count, loop_times; /* concept layers that run more than once */
};

enum { HNET_STAGES_MAX = 8 };

struct hnet_params {            /* stages of chunks, outermost first (hnet.c) */
    int n;
    struct hnet_stage {
        int n_embd, n_heads, n_ff, n_rot, window;
        char encoder[132], decoder[132]; /* a letter for each layer */
    } stage[HNET_STAGES_MAX];
};

/* What the keys of a file say, in the terms that these architectures share (models/keys.c). */
struct hparams {
    int n_layer, n_embd, n_vocab, n_ctx_train;
    int n_heads, n_kv_heads, head_dim;
    int n_ff;                   /* dense feed-forward width, 0 = none */
    int n_expert, n_expert_used, n_ff_expert; /* 0 = dense */
    int n_ff_shared;            /* width of the shared experts together, 0 = none */
    int n_dense_lead, moe_step; /* the first layers, and all but every moe_step-th, are dense */
    int n_nextn;                /* layers behind the last one, which do not run */
    int n_shared_kv;            /* the last layers, which attend to K and V of earlier ones */
    struct route_params route;
    float norm_eps;
    struct rope_params rope;    /* n_rot 0 = nothing is rotated */
    enum {
        DIVISOR_NONE,
        DIVISOR_ALL,            /* rope_freqs divides the angles (Llama 3.1) */
        DIVISOR_BY_CTX          /* rope_factors_long or _short do (LongRoPE, arXiv 2402.13753) */
    } rope_divisor;
    int window, window_period;  /* positions that windowed layers see, 0 = none is windowed */
    float window_rope_base;     /* rope.base of windowed layers */
    float embed_scale, residual_scale, logit_scale; /* logits are divided by the last */
    float attn_scale;           /* of scores; 0 = 1/sqrt(head_dim) */
    float logit_softcap;        /* 0 = none */
    struct mla_params mla;
    struct delta_params delta;
    struct gemma_params gemma;
    struct loop_params loop;
    struct recursion_params rec;
    struct denoise_params denoise;
    const struct gguf_kv *choice_scale; /* of gates, by how many experts took a row; NULL = none */
    struct concept_params concept;
    struct hnet_params hnet;
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

/* ---- keys that the architecture files share (models/keys.c) ---- */

/* Reads the keys that every one of them has, and checks that they make sense together. */
enum status hparams_common(const struct gguf *g, const char *arch, struct hparams *h,
                           struct err *e);

/* "<arch>.<key>" as a non-negative int, or a finite float; dflt < 0: the key must be there. */
enum status hparams_int(const struct gguf *g, const char *arch, const char *key, int dflt,
                        int *out, struct err *e);
enum status hparams_f32(const struct gguf *g, const char *arch, const char *key, float dflt,
                        float *out, struct err *e);
enum status hparams_bool(const struct gguf *g, const char *arch, const char *key, bool dflt,
                         bool *out, struct err *e);
/* A text: its index in names, which NULL ends; absent: 0. */
enum status hparams_one_of(const struct gguf *g, const char *arch, const char *key,
                           const char *const *names, int *out, struct err *e);
/* The same where the key holds one number for all layers or one for each. */
enum status hparams_of_layer(const struct gguf *g, const char *arch, const char *key, int layer,
                             int dflt, int *out, struct err *e);
bool hparams_has(const struct gguf *g, const char *arch, const char *key);

/* Do heads, widths and counts make sense together? */
enum status hparams_check(const struct gguf *g, const char *arch, const struct hparams *h,
                          struct err *e);

/* What only some have; each after hparams_common. */
enum status hparams_need_experts(const struct gguf *g, const char *arch, const struct hparams *h,
                                 struct err *e);
/* expert_gating_func (1 softmax, 2 sigmoid, 3 softmax over the chosen; dflt_gate < 0: the key must
 * be there), expert_weights_norm, expert_weights_scale. */
enum status hparams_router(const struct gguf *g, const char *arch, int dflt_gate, struct hparams *h,
                           struct err *e);
/* n shared experts of that width, as one. */
enum status hparams_shared(const struct gguf *g, const char *arch, int n, int width,
                           struct hparams *h, struct err *e);
/* nextn_predict_layers: the last of block_count layers predict further tokens and do not run. */
enum status hparams_nextn(const struct gguf *g, const char *arch, struct hparams *h, struct err *e);
/* ssm.*: the heads of gated DeltaNet layers (models/deltanet.c). */
enum status hparams_delta(const struct gguf *g, const char *arch, bool tiled, struct hparams *h,
                          struct err *e);
/* attention.sliding_window, its pattern's period, rope.freq_base_swa. */
enum status hparams_window(const struct gguf *g, const char *arch, int dflt_period,
                           struct hparams *h, struct err *e);

/* ---- the block that the architecture files share (models/block.c) ---- */

/* Tensors that are used where a file has them, but whose absence is an error here. */
enum {
    MUST_OUTPUT = 1,       /* output.weight: never tied to the embedding */
    MUST_OUTPUT_BIAS = 2,  /* output.bias */
    MUST_ATTN_BIAS = 4,    /* attn_output.bias */
    MUST_NORM_BIAS = 8,    /* of all norms */
    MUST_ROUTER_BIAS = 16, /* ffn_gate_inp.bias */
    MUST_EXPERT_BIAS = 32, /* ffn_{gate,up,down}_exps.bias */
    MUST_CHOOSE_BIAS = 64, /* exp_probs_b.bias */
};

/* The variants of the pre-norm transformer block with rotary attention: what no key says.  Biases
 * and fused tensors (attn_qkv, ffn_gate_up_exps) are used where a file has them. */
struct block_style {
    enum { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_ROW } qk_norm; /* per head, or over the whole row */
    bool qk_norm_optional;  /* only where the file has it */
    bool qk_norm_late;      /* after the rotation */
    bool sinks;             /* attn_sinks: a score without a value per head */
    bool full_first;        /* of window_period layers the first sees everything, else the last */
    int no_rope_every;      /* every so many-th layer, from layer 0, is not rotated; 0 = none */
    bool v_norm;            /* an RMS norm without weights per head of V; and where a file has no
                               attn_v, V is what attn_k gives, before its norm */
    bool attn_post_norm;    /* post_attention_norm on what attention adds */
    bool ffn_post_norm;     /* post_ffw_norm on what the feed-forward adds */
    bool q_gate;            /* attn_q holds a gate per head too: sigmoid, on attention's output */
    const char *output_norm; /* its tensor; NULL = "output_norm.weight" */
    const char *ffn_norm;   /* the norm before the feed-forward; NULL = "ffn_norm" */
    bool router_first;      /* the router sees what attention sees, before its norm */
    bool shared_gate;       /* sigmoid(ffn_gate_inp_shexp) scales the shared expert */
    enum glu_act act;
    unsigned must;          /* MUST_* */
};

/* A description being made. */
struct block {
    struct build *b;
    const struct hparams *h;
    const struct block_style *style;
    int embd;               /* token_embd */
    int rope[2][ROWS_MAX];  /* tables: of full and windowed layers, per row set; 0 = not yet */
    int slot;               /* of the last layer that left K and V */
    bool more;              /* layers follow whatever the last one's number: nothing is narrowed */
    int use_slot;           /* for the next layer, made before; 0 = a new one, else 1 + its number */
    bool reads_slot;        /* it looks at K and V there and leaves none */
    int joint;              /* rows that attn_{q,k,v}_concept see beside the normed ones; 0 = none */
};

/* The whole model: embedding, layers, last norm, head.  Only rows that need logits pass the last
 * layer's query, feed-forward and head. */
void block_model(struct build *b, const struct hparams *h, const struct block_style *style);

/* Its pieces, for models whose layers are not all of this kind. */
int block_begin(struct block *k, struct build *b, const struct hparams *h,
                const struct block_style *style);          /* returns the embedded rows */
void block_rope_tables(struct block *k);                   /* block_begin's; for another block */
void block_attention(struct block *k, int l, int *x);      /* opens layer l; adds to *x, narrows it
                                                              in the last layer that leaves K and
                                                              V: all behind it need only those */
void block_feed_forward(struct block *k, int l, int x, int router); /* adds to x; router 0 = from
                                                              the normed x */
void block_layer(struct block *k, int l, int *x);          /* both, with experts or without */
int block_kv_slot(struct block *k);                        /* a slot for the rows at hand */
int block_last_norm(struct block *k, int x);               /* these two are block_end */
void block_head(struct block *k, int x);
void block_end(struct block *k, int x);
/* Pieces of a feed-forward: <stem>.weight over the row; ffn_{gate,up,down}<suffix>, n_ff wide; the
 * routed experts. */
int block_norm(struct block *k, const char *stem, int l, int x);
int block_gated_unit(struct block *k, int l, int n, const char *suffix, int n_ff);
int block_experts(struct block *k, int l, int n, int logits);

/* A model that sees both sides: attention.causal must not say otherwise, diffusion.shift_logits,
 * tokenizer.ggml.mask_token_id. */
enum status hparams_denoise(const struct gguf *g, const char *arch, struct hparams *h,
                            struct err *e);

/* expert_routing, expert_choice.*: experts that choose their rows; after hparams_denoise. */
enum status hparams_choice(const struct gguf *g, const char *arch, struct hparams *h, struct err *e);

/* The whole stack, h->loop.n_run times (models/loop.c). */
enum status hparams_loop(const struct gguf *g, const char *arch, struct hparams *h, struct err *e);
void loop_model(struct build *b, const struct hparams *h, const struct block_style *style);

/* Layers of models/deltanet.c and lfm2moe.c; like block_attention each opens layer l, adds to *x
 * and narrows it in the last layer. */
void block_delta(struct block *k, int l, int *x);
/* What qwen3next and qwen35moe are made of. */
void delta_model(struct build *b, const struct hparams *h);

#endif
