/* Converts a llama2.c checkpoint and its tokenizer (the format of karpathy/llama2.c: a header of
 * seven int32, then float32 weights; tokenizer: max length, then score, length, bytes per token)
 * to a GGUF of architecture llama.  For tests; needs files whose tokenizer begins with <unk>, <s>,
 * </s> and 256 byte tokens, as SentencePiece makes them. */
#ifndef TESTS_LLAMA2C_H
#define TESTS_LLAMA2C_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/gguf.h"

struct llama2c {
    int32_t dim, hidden, layers, heads, kv_heads, vocab, seq; /* as in the file */
    float *w;
    size_t n_w;
};

static inline int llama2c_read(const char *path, struct llama2c *m)
{
    FILE *f = fopen(path, "rb");
    if (!f) return 0;
    int ok = fread(m, sizeof(int32_t), 7, f) == 7 && !fseek(f, 0, SEEK_END);
    m->n_w = ok ? ((size_t)ftell(f) - 28) / sizeof(float) : 0;
    m->w = malloc(m->n_w * sizeof(float));
    ok = ok && m->w && !fseek(f, 28, SEEK_SET) && fread(m->w, sizeof(float), m->n_w, f) == m->n_w;
    (void)fclose(f);
    return ok;
}

static inline int llama2c_put_vocab(struct gguf_writer *w, const char *path, int n)
{
    enum { ROOM = 64 };
    FILE *f = fopen(path, "rb");
    struct gguf_str *tok = calloc((size_t)n, sizeof *tok);
    char *text = calloc((size_t)n, ROOM);
    float *score = calloc((size_t)n, sizeof *score);
    int32_t *type = calloc((size_t)n, sizeof *type), max, len;
    int ok = f && tok && text && score && type && fread(&max, 4, 1, f) == 1;
    for (int i = 0; i < n && ok; i++) {
        char raw[ROOM], *t = text + (size_t)i * ROOM;
        ok = fread(&score[i], 4, 1, f) == 1 && fread(&len, 4, 1, f) == 1 && len < ROOM / 3 &&
             fread(raw, 1, (size_t)len, f) == (size_t)len;
        size_t at = 0;
        for (int k = 0; ok && k < len; k++) {
            if (raw[k] == ' ') {
                memcpy(t + at, "\xe2\x96\x81", 3); /* U+2581 stands for a space */
                at += 3;
            } else {
                t[at++] = raw[k];
            }
        }
        type[i] = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1;
        if (i > 0 && i < 3) at = (size_t)sprintf(t, "%s", i == 1 ? "<s>" : "</s>");
        tok[i] = (struct gguf_str){t, at};
    }
    if (ok) {
        gguf_put_str(w, "tokenizer.ggml.model", "llama");
        gguf_put_strs(w, "tokenizer.ggml.tokens", tok, (uint64_t)n);
        gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, score, (uint64_t)n);
        gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, type, (uint64_t)n);
        gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
        gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
    }
    if (f) (void)fclose(f);
    free(tok);
    free(text);
    free(score);
    free(type);
    return ok;
}

/* The tensors of a layer in the order of the checkpoint, each for all layers. */
static const struct llama2c_tensor {
    const char *name;
    int cols, rows; /* 1 dim, 2 hidden, 3 kv width, 4 vocab, 0 = one row */
    int per_layer;
} llama2c_tensors[] = {
    {"token_embd", 1, 4, 0},  {"attn_norm", 1, 0, 1},   {"attn_q", 1, 1, 1},
    {"attn_k", 1, 3, 1},      {"attn_v", 1, 3, 1},      {"attn_output", 1, 1, 1},
    {"ffn_norm", 1, 0, 1},    {"ffn_gate", 1, 2, 1},    {"ffn_down", 2, 1, 1},
    {"ffn_up", 1, 2, 1},      {"output_norm", 1, 0, 0},
};
enum { LLAMA2C_TENSORS = sizeof llama2c_tensors / sizeof *llama2c_tensors };

static inline uint64_t llama2c_size(const struct llama2c *m, int what)
{
    switch (what) {
    case 1: return (uint64_t)m->dim;
    case 2: return (uint64_t)m->hidden;
    case 3: return (uint64_t)(m->dim / m->heads * m->kv_heads);
    case 4: return (uint64_t)abs(m->vocab);
    default: return 1;
    }
}

/* Runs over all tensors in file order; pass 0 declares them, pass 1 writes their data. */
static inline enum status llama2c_tensors_pass(const struct llama2c *m, struct gguf_writer *w,
                                               int pass, struct err *e)
{
    const float *at = m->w;
    for (int i = 0; i < LLAMA2C_TENSORS; i++) {
        const struct llama2c_tensor *t = &llama2c_tensors[i];
        const uint64_t dim[2] = {llama2c_size(m, t->cols), llama2c_size(m, t->rows)};
        const uint64_t n = dim[0] * dim[1];
        for (int l = 0; l < (t->per_layer ? m->layers : 1); l++, at += n) {
            char name[64];
            if (t->per_layer) (void)snprintf(name, sizeof name, "blk.%d.%s.weight", l, t->name);
            else (void)snprintf(name, sizeof name, "%s.weight", t->name);
            if (!pass) gguf_put_tensor(w, name, 0, t->rows ? 2 : 1, dim, n * sizeof(float));
            else if (gguf_writer_data(w, at, n * sizeof(float), e)) return e->code;
        }
    }
    return OK;
}

static inline enum status llama2c_convert(const char *model, const char *tokenizer,
                                          const char *out, struct err *e)
{
    struct llama2c m = {0};
    struct gguf_writer *w = gguf_writer_new();
    enum status s = OK;
    if (!w || !llama2c_read(model, &m) || m.vocab < 0)
        s = err_set(e, ERR_IO, "cannot read %s", model);
    if (!s) {
        gguf_put_str(w, "general.architecture", "llama");
        gguf_put_str(w, "general.name", "stories260K");
        gguf_put_u32(w, "llama.context_length", (uint32_t)m.seq);
        gguf_put_u32(w, "llama.embedding_length", (uint32_t)m.dim);
        gguf_put_u32(w, "llama.block_count", (uint32_t)m.layers);
        gguf_put_u32(w, "llama.feed_forward_length", (uint32_t)m.hidden);
        gguf_put_u32(w, "llama.attention.head_count", (uint32_t)m.heads);
        gguf_put_u32(w, "llama.attention.head_count_kv", (uint32_t)m.kv_heads);
        gguf_put_u32(w, "llama.rope.dimension_count", (uint32_t)(m.dim / m.heads));
        gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
        if (!llama2c_put_vocab(w, tokenizer, m.vocab))
            s = err_set(e, ERR_IO, "cannot read %s", tokenizer);
    }
    if (!s) s = llama2c_tensors_pass(&m, w, 0, e);
    if (!s) s = gguf_writer_begin(w, out, e);
    if (!s) s = llama2c_tensors_pass(&m, w, 1, e);
    if (!s) s = gguf_writer_end(w, e);
    gguf_writer_close(w);
    free(m.w);
    return s;
}

#endif
