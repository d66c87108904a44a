/* Writes GGUF models with random weights, of any size: for benchmarks (gigabytes at disk speed) and
 * for tests (a few kilobytes).  Architectures llama (dense and Mixtral), qwen3moe, olmoe, the
 * repeated mor and ouro, conceptmoe, and ecdlm, which sees both sides and whose experts choose tokens.
 *
 * DESIGN.  Weights are drawn as valid blocks of their format, not quantised from floats: random
 * codes and a scale such that the weights have the standard deviation 1/sqrt(columns), which keeps
 * activations finite.  A tensor of up to GEN_POOL bytes is drawn block by block; a larger one is
 * cut from a pool of that many random bytes at random block offsets, so that rows differ and the
 * disk is the limit.  One seed gives one file, byte for byte.  With a trace the routers are not
 * random but replay it: bench/gen_trace.h.
 *
 * Header only (static functions), because tests and benches link one source each.  Never used by
 * the runtime. */
#ifndef BENCH_GEN_H
#define BENCH_GEN_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gen_trace.h"
#include "moe/base/err.h"
#include "moe/base/f16.h"
#include "moe/base/rng.h"
#include "moe/load/gguf.h"
#include "quant/codec.h"
#include "quant/qtype.h"

#define GEN_SQRT12 3.4641016f

enum { GEN_POOL = 4 << 20, GEN_TENSORS = 16384, GEN_POOLS = 16 };

/* A weight type, or the mixture of llama-quantize's Q4_K_M. */
enum { GEN_Q4_K_M = 1000 };

struct gen_spec {
    const char *arch; /* "qwen3moe", "olmoe", "llama", "mor", "ouro", "ecdlm" */
    const char *name; /* general.name */
    int n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff; /* n_ff: of one expert */
    int n_expert, n_expert_used; /* 0 = dense (llama only) */
    int n_ctx;
    float rope_base, rms_eps;
    unsigned type;     /* enum qtype or GEN_Q4_K_M */
    bool rows_choose;  /* ecdlm: tokens choose their experts, not experts their tokens */
    bool tied;         /* no output.weight */
    const char *vocab; /* GGUF whose tokenizer is copied; NULL = no tokenizer, n_vocab ids */
    bool byte_vocab;   /* else: a small tokenizer of our own, bytes and letters, with ChatML */
    const char *chat;  /* its chat template; NULL = ChatML's, "" = none */
    int n_vocab;
    const struct trace *trace; /* qwen3moe: the routers replay it; brings its own tokens, "[0]" ... */
    /* mor: recursions of the layers but the first and the last, and what a score must reach for each;
     * ouro: loops.  Routers and gates have that spread: with 0 every score, and every chance to
     * stop, is a half. */
    int n_repeats;
    float threshold[8], router_sigma;
    /* conceptmoe: its first and its last layers.  Boundaries are planted: column 0 of the embedding says
     * if an id is odd, the routers see that column alone, and so a concept begins wherever an odd id
     * follows an even one or the other way round, whatever the layers make of the rest. */
    int n_encoder, n_decoder;
    float concept_threshold; /* of the chances, which are 0 and 1 */
    uint64_t seed;
};

/* The 8-layer model of the speed comparison, without a vocabulary. */
static inline struct gen_spec gen_defaults(void)
{
    return (struct gen_spec){
        .arch = "qwen3moe", .name = "random weights", .n_layer = 8, .n_embd = 2048, .n_head = 32,
        .n_head_kv = 4, .head_dim = 128, .n_ff = 768, .n_expert = 128, .n_expert_used = 8,
        .n_ctx = 32768, .rope_base = 1e6f, .rms_eps = 1e-6f, .type = QTYPE_Q8_0, .n_vocab = 256,
        .n_encoder = 1, .n_decoder = 1, .concept_threshold = 0.5f, .threshold = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f}, .seed = 1,
    };
}

/* A few tens of kilobytes in F32: two layers, 64 wide (256 wide where a type needs it). */
static inline struct gen_spec gen_tiny(const char *arch, enum qtype type)
{
    struct gen_spec g = gen_defaults();
    bool wide = qtype_info(type) && qtype_info(type)->block > 64;
    g.arch = arch;
    g.name = "tiny";
    g.type = type;
    g.n_layer = 2;
    g.n_embd = wide ? 256 : 64;
    g.n_head = 4;
    g.n_head_kv = strcmp(arch, "olmoe") ? 2 : 4;
    g.head_dim = wide ? 64 : 16;
    g.n_ff = wide ? 256 : 64;
    g.n_expert = 8;
    g.n_expert_used = 2;
    g.n_ctx = 256;
    g.n_vocab = 96;
    return g;
}

/* ---- random blocks ---- */

/* About normal, standard deviation 1: the sum of four uniform numbers. */
static float gen_normal(struct rng *r)
{
    uint64_t u = rng_u64(r);
    float sum = 0;
    for (int i = 0; i < 4; i++, u >>= 16) sum += (float)(u & 0xffff) * 0x1p-16f;
    return (sum - 2.0f) * (GEN_SQRT12 / 2.0f);
}

static void gen_bytes(struct rng *r, unsigned char *p, size_t n)
{
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t u = rng_u64(r);
        memcpy(p, &u, 8);
    }
    uint64_t u = rng_u64(r);
    memcpy(p, &u, n);
}

static void gen_half(unsigned char *p, float x)
{
    uint16_t h = f16_from_f32(x);
    memcpy(p, &h, 2);
}

/* 12 bytes with eight 6-bit scales and the same eight as minima (the packing of Q4_K). */
static void gen_scales_k4(struct rng *r, unsigned char *p)
{
    unsigned s[8];
    for (int i = 0; i < 8; i++) s[i] = 32 + rng_below(r, 32);
    for (int i = 0; i < 4; i++) {
        p[i] = p[i + 4] = (unsigned char)(s[i] | (s[i + 4] >> 4) << 6);
        p[i + 8] = (unsigned char)((s[i + 4] & 15) | (s[i + 4] & 15) << 4);
    }
}

/* Random codes have a fixed spread: the block's scale is sigma over it, varied by a fifth. */
static float gen_scale(struct rng *r, float sigma, float spread)
{
    return sigma / spread * rng_range(r, 0.8f, 1.2f);
}

/* The root mean square of a grid type's weights when all bits but those of d are random and d is 1. */
static float gen_grid_rms(enum qtype type)
{
    switch (type) {
    case QTYPE_IQ3_S: return 140.5f;
    case QTYPE_IQ3_XXS: return 142.7f;
    case QTYPE_IQ2_S: return 56.4f;
    case QTYPE_IQ2_XS: return 56.0f;
    case QTYPE_IQ2_XXS: return 53.5f;
    default: return 7.2f; /* IQ1_S, IQ1_M */
    }
}

/* One block with weights of standard deviation sigma; false for a type without a generator. */
static bool gen_block(struct rng *r, enum qtype type, float sigma, unsigned char *p)
{
    float x = 0;
    int exponent = 0;
    uint16_t h;
    switch (type) {
    case QTYPE_F32:
        x = sigma * gen_normal(r);
        memcpy(p, &x, 4);
        return true;
    case QTYPE_F16:
        gen_half(p, sigma * gen_normal(r));
        return true;
    case QTYPE_BF16:
        h = bf16_from_f32(sigma * gen_normal(r));
        memcpy(p, &h, 2);
        return true;
    case QTYPE_Q8_0: /* half d, int8 q[32] */
        gen_bytes(r, p + 2, 32);
        for (int i = 2; i < 34; i++) p[i] = p[i] == 128 ? 0 : p[i]; /* encoders never say -128 */
        gen_half(p, gen_scale(r, sigma, 256 / GEN_SQRT12));
        return true;
    case QTYPE_Q4_0: /* half d, 4-bit q[32] less 8 */
        gen_bytes(r, p + 2, 16);
        x = gen_scale(r, sigma, 16 / GEN_SQRT12);
        gen_half(p, rng_u64(r) & 1 ? x : -x); /* the codes' mean is -0.5: without signs a drift */
        return true;
    case QTYPE_Q4_K: /* half d, dmin, scales[12], 4-bit q[256]; dmin = 7.5 d centres the codes */
        gen_scales_k4(r, p + 4);
        gen_bytes(r, p + 16, 128);
        x = gen_scale(r, sigma, 16 / GEN_SQRT12 * 48);
        gen_half(p, x);
        gen_half(p + 2, 7.5f * x);
        return true;
    case QTYPE_Q6_K: /* low[128], high[64], int8 scales[16], half d */
        gen_bytes(r, p, 192);
        for (int i = 0; i < 16; i++) p[192 + i] = (unsigned char)((64 + rng_below(r, 64)) *
                                                                  (rng_u64(r) & 1 ? 1u : 255u));
        gen_half(p + 208, gen_scale(r, sigma, 64 / GEN_SQRT12 * 96));
        return true;
    case QTYPE_Q5_K: /* half d, dmin, scales[12], fifth bits[32], q[128]; as Q4_K */
        gen_scales_k4(r, p + 4);
        gen_bytes(r, p + 16, 160);
        x = gen_scale(r, sigma, 32 / GEN_SQRT12 * 48);
        gen_half(p, x);
        gen_half(p + 2, 15.5f * x);
        return true;
    case QTYPE_Q2_K: /* scale and min nibbles[16], 2-bit q[64], half d, dmin; dmin = 1.5 d */
        for (int i = 0; i < 16; i++) p[i] = (unsigned char)(0x11 * (8 + rng_below(r, 8)));
        gen_bytes(r, p + 16, 64);
        x = gen_scale(r, sigma, 4 / GEN_SQRT12 * 12);
        gen_half(p + 80, x);
        gen_half(p + 82, 1.5f * x);
        return true;
    case QTYPE_Q3_K: /* third bits[32], 2-bit q[64], scales[12] of either sign, half d */
        gen_bytes(r, p, 108);
        gen_half(p + 108, gen_scale(r, sigma, 2.35f * 64 / GEN_SQRT12));
        return true;
    case QTYPE_IQ4_XS: /* half d, u16 and u8[4] scales of either sign, codes[128] of rms 72 */
        gen_bytes(r, p + 2, 134);
        gen_half(p, gen_scale(r, sigma, 72 * 64 / GEN_SQRT12));
        return true;
    case QTYPE_MXFP4: /* u8 exponent, codes[16], of rms 5.85 in halves */
        gen_bytes(r, p + 1, 16);
        for (x = sigma / 5.85f; x < 1; x *= 2) exponent--;
        p[0] = (unsigned char)(128 + exponent + (int)(rng_u64(r) & 1));
        return true;
    case QTYPE_IQ3_S: /* half d, codes, signs and scales */
    case QTYPE_IQ3_XXS:
    case QTYPE_IQ2_S:
    case QTYPE_IQ2_XS:
    case QTYPE_IQ2_XXS:
    case QTYPE_IQ1_S:
        gen_bytes(r, p + 2, (size_t)qtype_info(type)->block_bytes - 2);
        gen_half(p, gen_scale(r, sigma, gen_grid_rms(type)));
        return true;
    case QTYPE_IQ1_M: /* the same, d being the top nibbles of the last four words */
        gen_bytes(r, p, 56);
        h = f16_from_f32(gen_scale(r, sigma, gen_grid_rms(type)));
        for (int i = 0; i < 4; i++)
            p[49 + 2 * i] = (unsigned char)((p[49 + 2 * i] & 15) | (h >> 4 * i & 15) << 4);
        return true;
    default: break; /* no generator for this type */
    }
    return false;
}

/* ---- what is in the file ---- */

struct gen_tensor {
    char name[48];
    enum qtype type;
    int n_dims;
    uint64_t dim[3], bytes;
    float sigma, mean;
};

struct gen_model {
    struct gen_spec spec;
    int n_tensors;
    struct gen_tensor *tensor; /* [GEN_TENSORS] */
    bool fell_back;            /* a tensor's columns do not fit its type: it is Q8_0 or F16 */
    struct gen_carry carry;    /* of spec.trace */
};

/* llama-quantize gives the first and last eighth and every third layer between more bits. */
static bool gen_more_bits(int layer, int n_layer)
{
    return layer < n_layer / 8 || layer >= 7 * n_layer / 8 || (layer - n_layer / 8) % 3 == 2;
}

/* The type of a matrix: what was asked for, as llama-quantize's mixtures have it. */
static enum qtype gen_type(const struct gen_spec *g, const char *name, int layer)
{
    bool plain = g->type == QTYPE_F32 || g->type == QTYPE_F16 || g->type == QTYPE_BF16 ||
                 g->type == QTYPE_Q8_0;
    if (!plain && !strcmp(name, "output")) return QTYPE_Q6_K;
    if (g->type != GEN_Q4_K_M) return (enum qtype)g->type;
    bool heavy = !strcmp(name, "attn_v") || !strncmp(name, "ffn_down", 8);
    return heavy && gen_more_bits(layer, g->n_layer) ? QTYPE_Q6_K : QTYPE_Q4_K;
}

static void gen_add(struct gen_model *m, const char *name, int layer, struct gen_tensor t)
{
    ASSERT(m->n_tensors < GEN_TENSORS);
    if (layer < 0)
        (void)snprintf(t.name, sizeof t.name, "%s.weight", name);
    else
        (void)snprintf(t.name, sizeof t.name, "blk.%d.%s.weight", layer, name);
    uint64_t n = 1;
    for (int i = 0; i < t.n_dims; i++) n *= t.dim[i];
    t.bytes = qtype_bytes(t.type, n);
    m->tensor[m->n_tensors++] = t;
}

/* 1 / sqrt(n) by Newton's method: a test that includes this header needs no libm. */
static float gen_spread(int n)
{
    float x = 1;
    for (int i = 0; i < 40; i++) x = 0.5f * (x + 1.0f / ((float)n * x));
    return x;
}

/* A matrix of `out` rows of `in` columns, or n_expert of them when experts > 0. */
static void gen_matrix(struct gen_model *m, const char *name, int layer, int in, int out,
                       int experts)
{
    enum qtype type = gen_type(&m->spec, name, layer);
    if (in % qtype_info(type)->block) {
        type = in % 32 ? QTYPE_F16 : QTYPE_Q8_0;
        m->fell_back = true;
    }
    struct gen_tensor t = {.type = type, .n_dims = experts ? 3 : 2,
                           .dim = {(uint64_t)in, (uint64_t)out, (uint64_t)experts},
                           .sigma = gen_spread(in)};
    gen_add(m, name, layer, t);
}

static void gen_norm(struct gen_model *m, const char *name, int layer, int n)
{
    gen_add(m, name, layer, (struct gen_tensor){.type = QTYPE_F32, .n_dims = 1,
                                                .dim = {(uint64_t)n}, .mean = 1,
                                                .sigma = m->spec.trace ? 0 : 0.1f});
}

static bool gen_is(const struct gen_spec *g, const char *arch) { return !strcmp(g->arch, arch); }

static void gen_router(struct gen_model *m, const char *name)
{
    gen_add(m, name, -1, (struct gen_tensor){.type = QTYPE_F32, .n_dims = 2,
                                             .dim = {(uint64_t)m->spec.n_embd, 1},
                                             .sigma = m->spec.router_sigma});
}

static void gen_routers(struct gen_model *m)
{
    char name[32];
    if (gen_is(&m->spec, "ouro")) gen_router(m, "exit_gate");
    for (int i = 0; gen_is(&m->spec, "conceptmoe") && i < 2; i++)
        gen_add(m, i ? "concept.router_k" : "concept.router_q", -1,
                (struct gen_tensor){.type = QTYPE_F32, .n_dims = 2, .dim = {
                    (uint64_t)m->spec.n_embd, (uint64_t)m->spec.n_embd}});
    for (int r = 1; gen_is(&m->spec, "mor") && r <= m->spec.n_repeats; r++) {
        (void)snprintf(name, sizeof name, "rec.%d.router", r);
        gen_router(m, name);
    }
}

static void gen_layer(struct gen_model *m, int l)
{
    const struct gen_spec *g = &m->spec;
    const bool joint = gen_is(g, "conceptmoe") && l >= g->n_layer - g->n_decoder;
    int q = g->n_head * g->head_dim, kv = g->n_head_kv * g->head_dim, n = g->n_expert;
    bool olmoe = !strcmp(g->arch, "olmoe"), qwen = !strcmp(g->arch, "qwen3moe") ||
                                                  !strcmp(g->arch, "ecdlm");
    gen_norm(m, "attn_norm", l, g->n_embd);
    gen_matrix(m, "attn_q", l, g->n_embd, q, 0);
    gen_matrix(m, "attn_k", l, g->n_embd, kv, 0);
    gen_matrix(m, "attn_v", l, g->n_embd, kv, 0);
    gen_matrix(m, "attn_output", l, q, g->n_embd, 0);
    if (joint) {
        gen_matrix(m, "attn_q_concept", l, g->n_embd, q, 0);
        gen_matrix(m, "attn_k_concept", l, g->n_embd, kv, 0);
        gen_matrix(m, "attn_v_concept", l, g->n_embd, kv, 0);
    }
    if (olmoe || qwen) {
        gen_norm(m, "attn_q_norm", l, olmoe ? q : g->head_dim);
        gen_norm(m, "attn_k_norm", l, olmoe ? kv : g->head_dim);
    }
    gen_norm(m, "ffn_norm", l, g->n_embd);
    if (gen_is(g, "ouro")) {
        gen_norm(m, "post_attention_norm", l, g->n_embd);
        gen_norm(m, "post_ffw_norm", l, g->n_embd);
    }
    if (n) {
        /* The router stays F32; twice the spread gives it clear preferences. */
        gen_add(m, "ffn_gate_inp", l,
                (struct gen_tensor){.type = QTYPE_F32, .n_dims = 2,
                                    .dim = {(uint64_t)g->n_embd, (uint64_t)n},
                                    .sigma = 2 * gen_spread(g->n_embd)});
    }
    gen_matrix(m, n ? "ffn_gate_exps" : "ffn_gate", l, g->n_embd, g->n_ff, n);
    gen_matrix(m, n ? "ffn_up_exps" : "ffn_up", l, g->n_embd, g->n_ff, n);
    gen_matrix(m, n ? "ffn_down_exps" : "ffn_down", l, g->n_ff, g->n_embd, n);
}

static void gen_tensors(struct gen_model *m)
{
    const struct gen_spec *g = &m->spec;
    gen_norm(m, "output_norm", -1, g->n_embd);
    if (g->trace)
        gen_add(m, "token_embd", -1,
                (struct gen_tensor){.type = QTYPE_F32, .n_dims = 2,
                                    .dim = {(uint64_t)g->n_embd, (uint64_t)g->n_vocab}});
    else
        gen_matrix(m, "token_embd", -1, g->n_embd, g->n_vocab, 0);
    if (!g->tied) gen_matrix(m, "output", -1, g->n_embd, g->n_vocab, 0);
    gen_routers(m);
    for (int l = 0; l < g->n_layer; l++) gen_layer(m, l);
}

/* ---- checks and keys ---- */

static enum status gen_check(const struct gen_spec *g, struct err *e)
{
    struct rng r;
    unsigned char block[512];
    bool olmoe = !strcmp(g->arch, "olmoe"), llama = !strcmp(g->arch, "llama");
    const bool repeats = !strcmp(g->arch, "mor") || !strcmp(g->arch, "ouro");
    const bool concepts = !strcmp(g->arch, "conceptmoe");
    rng_seed(&r, 0);
    if (!llama && !olmoe && !repeats && !concepts && strcmp(g->arch, "qwen3moe") &&
        strcmp(g->arch, "ecdlm"))
        return err_set(e, ERR_USAGE, "cannot generate %s; known: qwen3moe olmoe llama mor ouro "
                       "conceptmoe ecdlm", g->arch);
    if (concepts && (g->n_encoder < 1 || g->n_decoder < 1 ||
                     g->n_encoder >= g->n_layer - g->n_decoder))
        return err_set(e, ERR_USAGE, "%d and %d of %d layers leave none for concepts", g->n_encoder,
                       g->n_decoder, g->n_layer);
    if (repeats && (g->n_expert || g->n_repeats < 1 || g->n_repeats > 8))
        return err_set(e, ERR_USAGE, "%s takes 1 to 8 --repeats and no experts", g->arch);
    if (g->type != GEN_Q4_K_M &&
        (!qtype_info(g->type) || !gen_block(&r, (enum qtype)g->type, 1, block)))
        return err_set(e, ERR_USAGE, "cannot generate weights of type %u", g->type);
    if (!llama && !repeats && !g->n_expert)
        return err_set(e, ERR_USAGE, "%s needs experts", g->arch);
    if (g->n_expert && (g->n_expert_used < 1 || g->n_expert_used > g->n_expert))
        return err_set(e, ERR_USAGE, "%d of %d experts cannot be used", g->n_expert_used,
                       g->n_expert);
    if (g->n_layer < 1 || g->n_embd < 1 || g->n_ff < 1 || g->head_dim < 2 || g->n_vocab < 1 ||
        g->n_head < 1 || g->n_head_kv < 1 || g->n_head % g->n_head_kv || g->head_dim % 2)
        return err_set(e, ERR_USAGE, "a size is not positive, or heads do not divide");
    if (olmoe && (g->n_head != g->n_head_kv || g->n_head * g->head_dim != g->n_embd))
        return err_set(e, ERR_USAGE, "olmoe needs as many KV heads as heads, filling embd");
    if (g->n_layer > (GEN_TENSORS - 3) / 13)
        return err_set(e, ERR_USAGE, "too many layers");
    if (g->trace && (strcmp(g->arch, "qwen3moe") || g->tied || g->n_embd < 64 ||
                     g->n_expert != g->trace->n_experts || g->n_expert_used != g->trace->n_used))
        return err_set(e, ERR_USAGE, "a trace takes qwen3moe with its own %d of %d experts, an output "
                       "matrix and at least 64 columns", g->trace->n_used, g->trace->n_experts);
    return OK;
}

static const char *gen_key(char buf[96], const struct gen_spec *g, const char *key)
{
    (void)snprintf(buf, 96, "%s.%s", g->arch, key);
    return buf;
}

/* llama.cpp's file_type number; its bench prints it. */
static uint32_t gen_file_type(unsigned type)
{
    switch (type) {
    case QTYPE_F32: return 0;
    case QTYPE_F16: return 1;
    case QTYPE_Q4_0: return 2;
    case QTYPE_Q8_0: return 7;
    case QTYPE_Q2_K: return 10;
    case QTYPE_Q3_K: return 12;
    case QTYPE_Q5_K: return 17;
    case QTYPE_Q6_K: return 18;
    case QTYPE_IQ4_XS: return 30;
    case QTYPE_BF16: return 32;
    default: return 15;
    }
}

/* SentencePiece-style: five specials, 256 bytes, then pieces; the earlier the better. */
static const char *const gen_pieces[] = {
    "\xe2\x96\x81the", "\xe2\x96\x81t", "he", "th", "the", "in", "er", "an", "\xe2\x96\x81",
    "e", "t", "a", "o", "i", "n", "s", "h", "r", "d", "l", "u", "c", "m", "w", "f", "g", "y", "p",
    "b", "v", "k", ".", ",",
};
enum {
    GEN_SPECIALS = 5, /* <unk> <s> </s> <|im_start|> <|im_end|> */
    GEN_PIECES = sizeof gen_pieces / sizeof *gen_pieces,
    GEN_BYTE_VOCAB = GEN_SPECIALS + 256 + GEN_PIECES
};

static void gen_byte_vocab(struct gguf_writer *w, const char *chat)
{
    static const char chatml[] =
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    static const char *const specials[] = {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"};
    struct gguf_str tokens[GEN_BYTE_VOCAB];
    char bytes[256][8];
    float scores[GEN_BYTE_VOCAB];
    int32_t types[GEN_BYTE_VOCAB]; /* 1 normal, 2 unknown, 3 control, 6 byte */
    for (int i = 0; i < GEN_BYTE_VOCAB; i++) {
        const char *s = i < GEN_SPECIALS ? specials[i] : "";
        int byte = i - GEN_SPECIALS, piece = byte - 256;
        if (byte >= 0 && byte < 256) {
            (void)snprintf(bytes[byte], sizeof bytes[byte], "<0x%02X>", (unsigned)byte);
            s = bytes[byte];
        } else if (piece >= 0) {
            s = gen_pieces[piece];
        }
        tokens[i] = (struct gguf_str){s, strlen(s)};
        scores[i] = piece > 0 ? -(float)piece : 0;
        types[i] = i == 0 ? 2 : i < GEN_SPECIALS ? 3 : piece < 0 ? 6 : 1;
    }
    gguf_put_str(w, "tokenizer.ggml.model", "llama");
    gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, GEN_BYTE_VOCAB);
    gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, GEN_BYTE_VOCAB);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, types, GEN_BYTE_VOCAB);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 4);
    gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", 0);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", false);
    if (!chat || *chat) gguf_put_str(w, "tokenizer.chat_template", chat ? chat : chatml);
}

/* "[0]" "[1]" ... one per row of the trace, after specials and bytes; user-defined, so that every
 * engine reads a prompt "[0]" as that one token. */
static enum status gen_trace_vocab(struct gguf_writer *w, int n, struct err *e)
{
    static const char *const specials[] = {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"};
    struct gguf_str *tokens = calloc((size_t)n, sizeof *tokens);
    char (*text)[16] = calloc((size_t)n, sizeof *text);
    float *scores = calloc((size_t)n, sizeof *scores);
    int32_t *types = calloc((size_t)n, sizeof *types);
    enum status s = tokens && text && scores && types ? OK : ERR_MEMORY;
    for (int i = 0; i < n && !s; i++) {
        if (i < GEN_SPECIALS) (void)snprintf(text[i], sizeof text[i], "%s", specials[i]);
        else if (i < GEN_TRACE_FIRST)
            (void)snprintf(text[i], sizeof text[i], "<0x%02X>", (unsigned)(i - GEN_SPECIALS));
        else (void)snprintf(text[i], sizeof text[i], "[%d]", i - GEN_TRACE_FIRST);
        tokens[i] = (struct gguf_str){text[i], strlen(text[i])};
        types[i] = !i ? 2 : i < GEN_SPECIALS ? 3 : i < GEN_TRACE_FIRST ? 6 : 4;
    }
    if (!s) {
        gguf_put_str(w, "tokenizer.ggml.model", "llama");
        gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, (uint64_t)n);
        gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, (uint64_t)n);
        gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, types, (uint64_t)n);
        gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
        gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
        gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", 0);
        gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
        gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", false);
    }
    free(tokens);
    free(text);
    free(scores);
    free(types);
    return s ? err_set(e, s, "no memory for a vocabulary") : OK;
}

static void gen_keys(struct gguf_writer *w, const struct gen_spec *g, const struct gguf *vocab)
{
    char k[96];
    gguf_put_str(w, "general.architecture", g->arch);
    gguf_put_str(w, "general.name", g->name);
    gguf_put_u32(w, "general.file_type", gen_file_type(g->type));
    gguf_put_u32(w, "general.quantization_version", 2);
    const struct { const char *key; int value; } u32s[] = {
        {"vocab_size", g->n_vocab}, {"context_length", g->n_ctx}, {"embedding_length", g->n_embd},
        {"block_count", g->n_layer}, {"feed_forward_length", g->n_ff},
        {"attention.head_count", g->n_head}, {"attention.head_count_kv", g->n_head_kv},
        {"attention.key_length", g->head_dim}, {"attention.value_length", g->head_dim},
        {"rope.dimension_count", g->head_dim},
    };
    for (size_t i = 0; i < sizeof u32s / sizeof *u32s; i++)
        gguf_put_u32(w, gen_key(k, g, u32s[i].key), (uint32_t)u32s[i].value);
    gguf_put_f32(w, gen_key(k, g, "attention.layer_norm_rms_epsilon"), g->rms_eps);
    gguf_put_f32(w, gen_key(k, g, "rope.freq_base"), g->rope_base);
    if (g->n_expert) {
        gguf_put_u32(w, gen_key(k, g, "expert_count"), (uint32_t)g->n_expert);
        gguf_put_u32(w, gen_key(k, g, "expert_used_count"), (uint32_t)g->n_expert_used);
    }
    if (!strcmp(g->arch, "ouro"))
        gguf_put_u32(w, gen_key(k, g, "num_loops"), (uint32_t)g->n_repeats);
    if (!strcmp(g->arch, "mor")) {
        gguf_put_u32(w, gen_key(k, g, "recursion.count"), (uint32_t)g->n_repeats);
        gguf_put_array(w, gen_key(k, g, "recursion.threshold"), GGUF_F32, g->threshold,
                       (uint64_t)g->n_repeats);
    }
    if (!strcmp(g->arch, "conceptmoe")) {
        gguf_put_u32(w, gen_key(k, g, "concept.encoder_block_count"), (uint32_t)g->n_encoder);
        gguf_put_u32(w, gen_key(k, g, "concept.decoder_block_count"), (uint32_t)g->n_decoder);
        gguf_put_f32(w, gen_key(k, g, "concept.target_ratio"), 2);
        gguf_put_f32(w, gen_key(k, g, "concept.threshold"), g->concept_threshold);
        gguf_put_bool(w, gen_key(k, g, "expert_weights_norm"), true);
    }
    if (!strcmp(g->arch, "ecdlm")) {
        gguf_put_u32(w, "tokenizer.ggml.mask_token_id", 0);
        gguf_put_str(w, "ecdlm.expert_routing", g->rows_choose ? "token_choice" : "expert_choice");
    }
    if (!strcmp(g->arch, "qwen3moe"))
        gguf_put_u32(w, gen_key(k, g, "expert_feed_forward_length"), (uint32_t)g->n_ff);
    if (!vocab && g->byte_vocab && !g->trace) gen_byte_vocab(w, g->chat);
    if (!vocab && !g->byte_vocab && !g->trace) gguf_put_str(w, "tokenizer.ggml.model", "no_vocab");
    for (uint64_t i = 0; vocab && i < gguf_n_kv(vocab); i++) {
        const struct gguf_kv *kv = gguf_kv_at(vocab, i);
        if (kv->key.n > 10 && !memcmp(kv->key.s, "tokenizer.", 10)) gguf_put_kv(w, kv);
    }
}

/* ---- data ---- */

struct gen_pool {
    enum qtype type;
    float sigma;
    unsigned char *data; /* [GEN_POOL], whole blocks from the start */
};

struct gen_pools {
    struct rng rng;
    int n;
    struct gen_pool pool[GEN_POOLS];
};

static void gen_fill(struct rng *r, const struct gen_tensor *t, unsigned char *to, uint64_t bytes)
{
    size_t step = (size_t)qtype_info(t->type)->block_bytes;
    for (uint64_t at = 0; at + step <= bytes; at += step) {
        (void)gen_block(r, t->type, t->sigma, to + at);
        if (t->mean != 0) { /* norms are F32 */
            float x;
            memcpy(&x, to + at, 4);
            x += t->mean;
            memcpy(to + at, &x, 4);
        }
    }
}

/* The pool of this type and spread, drawn when it is first asked for; NULL without memory. */
static const struct gen_pool *gen_pool_of(struct gen_pools *p, const struct gen_tensor *t)
{
    for (int i = 0; i < p->n; i++)
        if (p->pool[i].type == t->type && !(p->pool[i].sigma < t->sigma) &&
            !(p->pool[i].sigma > t->sigma))
            return &p->pool[i];
    struct gen_pool *q = &p->pool[p->n < GEN_POOLS ? p->n : GEN_POOLS - 1];
    if (!q->data) q->data = malloc(GEN_POOL);
    if (!q->data) return NULL;
    if (p->n < GEN_POOLS) p->n++;
    q->type = t->type;
    q->sigma = t->sigma;
    gen_fill(&p->rng, t, q->data, GEN_POOL);
    return q;
}

static enum status gen_random(struct gguf_writer *w, struct gen_pools *p,
                              const struct gen_tensor *t, uint64_t bytes, unsigned char *small,
                              struct err *e)
{
    if (bytes <= GEN_POOL) {
        gen_fill(&p->rng, t, small, bytes);
        return gguf_writer_data(w, small, bytes, e);
    }
    const struct gen_pool *q = gen_pool_of(p, t);
    if (!q) return err_set(e, ERR_MEMORY, "no memory for random weights");
    uint64_t step = (uint64_t)qtype_info(t->type)->block_bytes, n_blocks = GEN_POOL / step;
    for (uint64_t left = bytes; left;) {
        uint64_t at = rng_u64(&p->rng) % n_blocks * step;
        uint64_t n = n_blocks * step - at;
        if (n > left) n = left;
        enum status s = gguf_writer_data(w, q->data + at, n, e);
        if (s) return s;
        left -= n;
    }
    return OK;
}

/* A matrix that the trace decides, row by row. */
static enum status gen_carried(struct gguf_writer *w, struct gen_pools *p, struct gen_model *m,
                               const struct gen_tensor *t, struct err *e)
{
    const struct gen_carry *c = &m->carry;
    const size_t row_bytes = (size_t)qtype_bytes(t->type, t->dim[0]);
    float *x = malloc(sizeof *x * (size_t)t->dim[0]);
    unsigned char *row = malloc(row_bytes);
    int layer = 0;
    enum status s = x && row ? OK : err_set(e, ERR_MEMORY, "no memory for a row");
    (void)sscanf(t->name, "blk.%d.", &layer);
    for (int i = 0; i < (int)t->dim[1] && !s; i++) {
        if (!strncmp(t->name, "token_embd", 10)) gen_carry_embed(c, i, &p->rng, x);
        else if (!strncmp(t->name, "output", 6)) gen_carry_output(c, i, x);
        else gen_carry_gate(c, layer, i, x);
        if (t->type == QTYPE_F32) memcpy(row, x, row_bytes);
        else codec_encode(CPU_REF, t->type, x, NULL, row, (int64_t)t->dim[0]);
        s = gguf_writer_data(w, row, row_bytes, e);
    }
    free(x);
    free(row);
    return s;
}

/* Random matrices whose first rows, the carrier's, are zero: zero bytes are in every format here. */
static enum status gen_around(struct gguf_writer *w, struct gen_pools *p, struct gen_model *m,
                              const struct gen_tensor *t, unsigned char *small, struct err *e)
{
    static const unsigned char zeros[4096];
    const uint64_t row = qtype_bytes(t->type, t->dim[0]), keep = (uint64_t)m->carry.n_carry * row;
    enum status s = OK;
    for (uint64_t i = 0; i < (t->n_dims == 3 ? t->dim[2] : 1) && !s; i++) {
        for (uint64_t left = keep; left && !s;) {
            const uint64_t n = left < sizeof zeros ? left : sizeof zeros;
            s = gguf_writer_data(w, zeros, n, e);
            left -= n;
        }
        if (!s) s = gen_random(w, p, t, t->dim[1] * row - keep, small, e);
    }
    return s;
}

/* An embedding whose column 0 says if the id is odd, and a router that sees nothing else. */
static enum status gen_planted(struct gguf_writer *w, struct gen_pools *p, const struct gen_tensor *t,
                               struct err *e)
{
    const size_t row_bytes = (size_t)qtype_bytes(t->type, t->dim[0]);
    const bool embd = !strcmp(t->name, "token_embd.weight");
    float *x = malloc(sizeof *x * (size_t)t->dim[0]);
    unsigned char *row = malloc(row_bytes);
    enum status s = x && row ? OK : err_set(e, ERR_MEMORY, "no memory for a row");
    for (int i = 0; i < (int)t->dim[1] && !s; i++) {
        for (int k = 0; k < (int)t->dim[0]; k++) x[k] = embd ? gen_normal(&p->rng) : 0;
        if (embd) x[0] = i % 2 ? 16 : -16;
        else x[0] = i == 0;
        if (t->type == QTYPE_F32) memcpy(row, x, row_bytes);
        else codec_encode(CPU_REF, t->type, x, NULL, row, (int64_t)t->dim[0]);
        s = gguf_writer_data(w, row, row_bytes, e);
    }
    free(x);
    free(row);
    return s;
}

static enum status gen_data(struct gguf_writer *w, struct gen_pools *p, struct gen_model *m,
                            const struct gen_tensor *t, unsigned char *small, struct err *e)
{
    if (m->spec.trace) {
        if (!strcmp(t->name, "token_embd.weight") || !strcmp(t->name, "output.weight") ||
            strstr(t->name, ".ffn_gate_inp.")) return gen_carried(w, p, m, t, e);
        if (strstr(t->name, ".attn_output.") || strstr(t->name, ".ffn_down_exps."))
            return gen_around(w, p, m, t, small, e);
    }
    if (gen_is(&m->spec, "conceptmoe") &&
        (!strcmp(t->name, "token_embd.weight") || !strncmp(t->name, "concept.", 8)))
        return gen_planted(w, p, t, e);
    return gen_random(w, p, t, t->bytes, small, e);
}

static enum status gen_write_all(struct gguf_writer *w, struct gen_model *m, const char *path,
                                 struct err *e)
{
    struct gen_pools *pools = calloc(1, sizeof *pools);
    unsigned char *small = malloc(GEN_POOL);
    enum status s = pools && small ? OK : err_set(e, ERR_MEMORY, "no memory for random weights");
    for (int i = 0; i < m->n_tensors; i++) {
        const struct gen_tensor *t = &m->tensor[i];
        gguf_put_tensor(w, t->name, (uint32_t)t->type, t->n_dims, t->dim, t->bytes);
    }
    if (!s) s = gguf_writer_begin(w, path, e);
    if (!s) rng_seed(&pools->rng, m->spec.seed);
    for (int i = 0; i < m->n_tensors && !s; i++) s = gen_data(w, pools, m, &m->tensor[i], small, e);
    if (!s) s = gguf_writer_end(w, e);
    for (int i = 0; pools && i < pools->n; i++) free(pools->pool[i].data);
    free(pools);
    free(small);
    return s;
}

/* Writes the model; fell_back (may be NULL) tells if some matrix had to take another type because
 * its columns are no multiple of the type's block. */
static enum status gen_write(const struct gen_spec *spec, const char *path, bool *fell_back,
                             struct err *e)
{
    struct gen_model m = {.spec = *spec};
    struct gguf *vocab = NULL;
    struct gguf_writer *w = NULL;
    enum status s = OK;
    if (spec->vocab) s = gguf_open(spec->vocab, NULL, &vocab, e);
    if (!s && vocab) {
        const struct gguf_kv *kv = gguf_find(vocab, "tokenizer.ggml.tokens");
        if (kv && kv->value.type == GGUF_ARRAY && kv->value.n && kv->value.n < 1 << 24)
            m.spec.n_vocab = (int)kv->value.n;
        else
            s = err_set(e, ERR_MISSING, "%s has no tokenizer.ggml.tokens", spec->vocab);
    }
    if (!vocab && spec->byte_vocab) m.spec.n_vocab = GEN_BYTE_VOCAB;
    if (spec->trace) m.spec.n_vocab = GEN_TRACE_FIRST + spec->trace->n_rows;
    if (!s) s = gen_check(&m.spec, e);
    if (!s && spec->trace)
        s = gen_carry_make(&m.carry, spec->trace, spec->n_embd, spec->n_layer, spec->seed, e);
    if (!s) {
        m.tensor = calloc(GEN_TENSORS, sizeof *m.tensor);
        w = gguf_writer_new();
        if (!w || !m.tensor) s = err_set(e, ERR_MEMORY, "no memory to describe the model");
    }
    if (!s) {
        gen_tensors(&m);
        gen_keys(w, &m.spec, vocab);
        if (spec->trace) s = gen_trace_vocab(w, m.spec.n_vocab, e);
        if (!s) s = gen_write_all(w, &m, path, e);
    }
    if (fell_back) *fell_back = m.fell_back;
    if (w) gguf_writer_close(w);
    free(m.tensor);
    gen_carry_free(&m.carry);
    if (vocab) gguf_close(vocab);
    return s;
}

#endif
