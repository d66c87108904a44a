/* Small vocabularies for the tests of the tokenizer: described in a struct, written as GGUF bytes.
 *
 * tv_spm() and tv_bpe() fill the struct with good ones; a test changes what it wants to be wrong.
 * Owns nothing but the static texts; one thread. */
#ifndef TESTS_TOKVOCAB_H
#define TESTS_TOKVOCAB_H

#include <stdbool.h>
#include <stdio.h>

#include "moe/load/tok.h"
#include "tests/ggufblob.h"
#include "tests/memfile.h"

enum { TV_TOKS = 400, TV_MERGES = 64, TV_NONE = -1 };

struct tv_tok {
    char text[40];
    int n; /* bytes of text */
    int type;
    float score;
};

struct tv_pair {
    const char *key, *value;
};

struct tv {
    const char *model, *pre, *chat; /* NULL: no such key */
    struct tv_pair variant[2];      /* more templates, NULL: none */
    struct tv_tok tok[TV_TOKS];
    const char *merge[TV_MERGES];
    int n_tok, n_merge;
    int n_scores, n_types; /* values written; TV_NONE: no such key */
    int64_t bos, eos, unk, eot; /* TV_NONE: no such key */
    int add_bos, add_eos, add_space, ignore_merges; /* 0, 1 or TV_NONE */
};

static inline int tv_add(struct tv *v, const char *text, int type, float score)
{
    struct tv_tok *t = &v->tok[v->n_tok];
    t->n = (int)strlen(text);
    memcpy(t->text, text, strlen(text));
    t->type = type;
    t->score = score;
    return v->n_tok++;
}

/* "<0x00>" .. "<0xFF>" */
static inline void tv_add_bytes(struct tv *v)
{
    char text[8];
    for (int b = 0; b < 256; b++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        tv_add(v, text, 6, 0);
    }
}

/* How a byte-level vocabulary writes a byte: GPT-2's table, written down a second time. */
static inline void tv_disguise(int b, char out[4])
{
    bool plain = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
    int shift = b <= 0x20 ? 0x100 + b : b == 0xad ? 0x143 : 0x100 + 0x21 + b - 0x7f;
    int c = plain ? b : shift;
    snprintf(out, 4, c < 0x80 ? "%c" : "%c%c", c < 0x80 ? c : 0xc0 | c >> 6, 0x80 | (c & 0x3f));
}

static inline void tv_start(struct tv *v, const char *model)
{
    memset(v, 0, sizeof *v);
    v->model = model;
    v->bos = v->eos = v->unk = v->eot = TV_NONE;
    v->add_bos = v->add_eos = v->add_space = v->ignore_merges = TV_NONE;
}

/* Everything has been added: as many scores and types as tokens. */
static inline void tv_ready(struct tv *v)
{
    v->n_types = v->n_tok;
    v->n_scores = strcmp(v->model, "llama") ? TV_NONE : v->n_tok;
}

/* 0 <unk>, 1 <s>, 2 </s>, then the markers, the bytes, and a few words. */
static inline void tv_spm(struct tv *v)
{
    static const char *const words[] = {
        "\xe2\x96\x81", "e", "t", "a", "o", "h", "l", "w", "r", "d", "s", "<", ">", "/", "|", "\n",
        "th", "he", "\xe2\x96\x81t", "\xe2\x96\x81the", "the", "ll", "lo", "llo", "hello",
        "\xe2\x96\x81hello", "\xe2\x96\x81w", "or", "ld", "orld", "\xe2\x96\x81world", "aa", "aaaa",
        "\xe2\x96\x81\xe2\x96\x81", "\xc3\xa9", "\xe2\x82\xac", "<s", "s>", "</", "<|", "|>", "im",
    };
    tv_start(v, "llama");
    tv_add(v, "<unk>", 2, 0);
    tv_add(v, "<s>", 3, 0);
    tv_add(v, "</s>", 3, 0);
    tv_add(v, "<|im_start|>", 3, 0);
    tv_add(v, "<|im_end|>", 3, 0);
    tv_add(v, "<user>", 4, 0);
    tv_add_bytes(v);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        tv_add(v, words[i], 1, -(float)i);
    v->bos = 1;
    v->eos = 2;
    v->unk = 0;
    tv_ready(v);
}

/* Gemma 4's: SentencePiece texts, merged by rank.  0 <pad>, 1 <eos>, 2 <bos>, 3 <unk>, the markers,
 * the bytes, and a few words; the vocabulary has "\n\n\n", which no merge makes. */
static inline void tv_gemma(struct tv *v)
{
    static const char *const chars[] = {
        "\xe2\x96\x81", "e", "t", "a", "o", "h", "l", "w", "r", "d", "s", "<", ">", "/", "|", "\n",
        "\n\n\n", "\xc3\xa9",
    };
    static const char *const merges[] = {
        "h e", "l l", "he ll", "hell o", "\xe2\x96\x81 w", "o r", "\xe2\x96\x81w or", "l d",
        "\xe2\x96\x81wor ld", "a a", "aa aa", "\xe2\x96\x81 t", "\xe2\x96\x81t he",
        "\xe2\x96\x81 \xe2\x96\x81", "< /", "</ s", "</s >", "\n \n",
    };
    static const char *const markers[] = {"<|turn>", "<turn|>", "<|channel>", "<|tool_response>"};
    char text[40];
    tv_start(v, "gemma4");
    tv_add(v, "<pad>", 3, 0);
    tv_add(v, "<eos>", 3, 0);
    tv_add(v, "<bos>", 3, 0);
    tv_add(v, "<unk>", 2, 0);
    for (int i = 0; i < 4; i++) tv_add(v, markers[i], i < 2 ? 3 : 4, 0);
    tv_add_bytes(v);
    for (size_t i = 0; i < sizeof chars / sizeof *chars; i++) tv_add(v, chars[i], 1, 0);
    v->n_merge = (int)(sizeof merges / sizeof *merges);
    for (int i = 0; i < v->n_merge; i++) {
        v->merge[i] = merges[i];
        const char *gap = strchr(merges[i], ' ');
        snprintf(text, sizeof text, "%.*s%s", (int)(gap - merges[i]), merges[i], gap + 1);
        tv_add(v, text, 1, 0);
    }
    v->eos = 1;
    v->bos = 2;
    v->unk = 3;
    tv_ready(v);
}

/* 0 .. 255 the bytes, 256 .. what the merges make, then special ones. */
static inline void tv_bpe(struct tv *v)
{
    static const char *const merges[] = {
        "h e", "l l", "he ll", "hell o", "\xc4\xa0 w", "o r", "\xc4\xa0w or", "l d",
        "\xc4\xa0wor ld", "a a", "aa aa", "aaaa aaaa", "\xc4\xa0 t", "\xc4\xa0t he",
        "\xc4\xa0 \xc4\xa0", "< /", "</ s", "</s >", "\xc3\xa2 \xc4\xa4", "\xc3\x83 \xc2\xa9",
        "\xc4\x8a \xc4\x8a", "t h", "th e",
    };
    char text[40];
    tv_start(v, "gpt2");
    v->pre = "gpt-2";
    for (int b = 0; b < 256; b++) {
        tv_disguise(b, text);
        tv_add(v, text, 1, 0);
    }
    v->n_merge = (int)(sizeof merges / sizeof *merges);
    for (int i = 0; i < v->n_merge; i++) {
        v->merge[i] = merges[i];
        const char *gap = strchr(merges[i], ' ');
        snprintf(text, sizeof text, "%.*s%s", (int)(gap - merges[i]), merges[i], gap + 1);
        bool twice = false;
        for (int k = 0; k < v->n_tok; k++) twice |= !strcmp(v->tok[k].text, text);
        if (!twice) tv_add(v, text, 1, 0);
    }
    v->bos = v->eos = tv_add(v, "<|endoftext|>", 3, 0);
    tv_add(v, "<|im_start|>", 3, 0);
    tv_add(v, "<|im_end|>", 3, 0);
    tv_add(v, "<user>", 4, 0);
    tv_add(v, "<user>+", 4, 0);
    tv_add(v, "<none>", 5, 0);
    tv_ready(v);
}

static inline int tv_id(const struct tv *v, const char *text)
{
    int n = (int)strlen(text);
    for (int i = 0; i < v->n_tok; i++)
        if (v->tok[i].n == n && !memcmp(v->tok[i].text, text, (size_t)n)) return i;
    return -1;
}

static inline void tv_put_str(struct blob *b, uint64_t *n, const char *key, const char *s)
{
    if (!s) return;
    blob_kv_str(b, key, s);
    ++*n;
}

static inline void tv_put_int(struct blob *b, uint64_t *n, const char *key, enum gguf_type type,
                              int64_t value)
{
    if (value == TV_NONE) return;
    blob_kv_int(b, key, type, (uint64_t)value);
    ++*n;
}

static inline void tv_put_arrays(const struct tv *v, struct blob *b, uint64_t *n_kv)
{
    blob_array(b, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)v->n_tok);
    for (int i = 0; i < v->n_tok; i++) {
        blob_u64(b, (uint64_t)v->tok[i].n);
        blob_put(b, v->tok[i].text, (size_t)v->tok[i].n);
    }
    ++*n_kv;
    if (v->n_scores >= 0) {
        blob_array(b, "tokenizer.ggml.scores", GGUF_F32, (uint64_t)v->n_scores);
        for (int i = 0; i < v->n_scores; i++) blob_put(b, &v->tok[i].score, 4);
        ++*n_kv;
    }
    if (v->n_types >= 0) {
        blob_array(b, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)v->n_types);
        for (int i = 0; i < v->n_types; i++) blob_u32(b, (uint32_t)v->tok[i].type);
        ++*n_kv;
    }
    if (v->n_merge) {
        blob_array(b, "tokenizer.ggml.merges", GGUF_STRING, (uint64_t)v->n_merge);
        for (int i = 0; i < v->n_merge; i++) blob_str(b, v->merge[i]);
        ++*n_kv;
    }
}

static inline void tv_write(const struct tv *v, struct blob *b)
{
    uint64_t n = 0;
    blob_head(b, 3, 0, 0);
    tv_put_str(b, &n, "tokenizer.ggml.model", v->model);
    tv_put_str(b, &n, "tokenizer.ggml.pre", v->pre);
    tv_put_str(b, &n, "tokenizer.chat_template", v->chat);
    for (int i = 0; i < 2; i++) tv_put_str(b, &n, v->variant[i].key, v->variant[i].value);
    tv_put_arrays(v, b, &n);
    tv_put_int(b, &n, "tokenizer.ggml.bos_token_id", GGUF_U32, v->bos);
    tv_put_int(b, &n, "tokenizer.ggml.eos_token_id", GGUF_U32, v->eos);
    tv_put_int(b, &n, "tokenizer.ggml.unknown_token_id", GGUF_U32, v->unk);
    tv_put_int(b, &n, "tokenizer.ggml.eot_token_id", GGUF_U32, v->eot);
    tv_put_int(b, &n, "tokenizer.ggml.add_bos_token", GGUF_BOOL, v->add_bos);
    tv_put_int(b, &n, "tokenizer.ggml.add_eos_token", GGUF_BOOL, v->add_eos);
    tv_put_int(b, &n, "tokenizer.ggml.add_space_prefix", GGUF_BOOL, v->add_space);
    tv_put_int(b, &n, "tokenizer.ggml.ignore_merges", GGUF_BOOL, v->ignore_merges);
    blob_pad(b, 32);
    memcpy(b->p + 16, &n, 8);
}

/* Opens GGUF bytes as they are.  *g is the caller's to close, also when the tokenizer failed. */
static inline enum status tv_open_bytes(const void *p, size_t n, struct gguf **g, struct tok **t,
                                        struct err *e)
{
    *t = NULL;
    err_clear(e);
    memfile_reset();
    memfile_add("v.gguf", p, n, n);
    enum status s = gguf_open("v.gguf", &memfile_ops, g, e);
    return s ? s : tok_open(*g, t, e);
}

/* The vocabulary as a tokenizer that stands alone, or its error. */
static inline enum status tv_open(const struct tv *v, struct tok **t, struct err *e)
{
    struct blob b = {0};
    struct gguf *g = NULL;
    tv_write(v, &b);
    enum status s = tv_open_bytes(b.p, b.n, &g, t, e);
    gguf_close(g);
    blob_free(&b);
    return s;
}

#endif
