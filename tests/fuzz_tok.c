/* Fuzz target of the tokenizers.  The first byte of an input chooses:
 *
 *   00..7f  the rest is text for a good vocabulary: bits 0 and 1 are the flags of tok_encode, the
 *           others count through SentencePiece, SentencePiece with a leading space, Gemma 4's and
 *           pre-tokenizers.  Checked: cap, round trip, no control id without TOK_SPECIAL, streams.
 *   80..ff  the rest is a GGUF file, the vocabulary itself is what is wrong: it must be refused
 *           with a message or work without a crash.
 *
 * Built with -DFUZZER and -fsanitize=fuzzer it is a libFuzzer target; otherwise fuzz_main.h replays
 * files, and `--seeds FOLDER` writes inputs to begin with. */
#include <stdio.h>

#include "moe/load/chat.h"
#include "moe/load/tok_int.h"
#include "tests/tokvocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { MAX_VOCABS = 128, MAX_TEXT = 1 << 16 };

static struct tv v;

static void check(int good)
{
    if (!good) abort();
}

/* Encodes three times: sized, cut short, whole.  Caller frees. */
static int32_t *encode(const struct tok *t, const char *s, size_t n, unsigned flags, int64_t *n_ids)
{
    *n_ids = tok_encode(t, s, n, flags, NULL, 0);
    check(*n_ids >= 0);
    int64_t half = *n_ids / 2;
    int32_t *ids = malloc((size_t)*n_ids * sizeof *ids + 1);
    int32_t *few = malloc((size_t)half * sizeof *few + 1); /* an overrun would be seen */
    check(ids && few);
    check(tok_encode(t, s, n, flags, ids, *n_ids) == *n_ids);
    check(tok_encode(t, s, n, flags, few, half) == *n_ids);
    check(!memcmp(ids, few, (size_t)half * sizeof *ids));
    for (int64_t i = 0; i < *n_ids; i++) check(ids[i] >= 0 && ids[i] < tok_n_vocab(t));
    free(few);
    return ids;
}

/* Pieces of any size go through a stream and come out as valid UTF-8. */
static void check_stream(struct tok_stream *st, const char *piece, int n)
{
    static char out[TOK_STREAM_CAP(TOK_PIECE_MAX)];
    int k = n < 0 ? tok_stream_flush(st, out) : tok_stream_push(st, piece, n, out);
    check(k >= 0 && k <= TOK_STREAM_CAP(n < 0 ? 0 : n));
    for (int i = 0, len; i < k; i += len)
        check(utf8_look(out + i, (size_t)(k - i), &len) == UTF8_CHAR);
}

static void check_decode(const struct tok *t, const int32_t *ids, int64_t n_ids, const char *s,
                         size_t n)
{
    static char piece[TOK_PIECE_MAX];
    struct tok_stream st = {.n_held = 0};
    size_t at = 0, skip = t->spm && t->add_space && n;
    for (int64_t i = 0; i < n_ids; i++) {
        int len = tok_piece(t, ids[i], true, piece, sizeof piece);
        check(len <= TOK_PIECE_MAX && tok_piece(t, ids[i], true, NULL, 0) == len);
        check_stream(&st, piece, len);
        for (int k = 0; k < len; k++) {
            if (skip) {
                check(piece[k] == ' ');
                skip = 0;
                continue;
            }
            if (t->spm && n - at >= 3 && !memcmp(s + at, "\xe2\x96\x81", 3) && piece[k] == ' ') {
                at += 3; /* U+2581 reads as a space */
                continue;
            }
            check(at < n && piece[k] == s[at]);
            at++;
        }
    }
    check(at == n);
    check_stream(&st, NULL, -1);
}

/* Vocabulary 0 and 1 are SentencePiece, 2 is Gemma 4's, the others are byte-level; opened when
 * first used. */
static const struct tok *vocabulary(int i)
{
    static struct tok *open[MAX_VOCABS];
    int known = 3;
    while (known < MAX_VOCABS && tok_pre_at(known - 3)) known++;
    i %= known;
    if (open[i]) return open[i];
    struct err e;
    if (i < 2) tv_spm(&v);
    else if (i == 2) tv_gemma(&v);
    else tv_bpe(&v);
    v.add_space = i == 1;
    if (i > 2) v.pre = tok_pre_at(i - 3);
    check(tv_open(&v, &open[i], &e) == OK);
    return open[i];
}

static void fuzz_text(uint8_t how, const char *s, size_t n)
{
    const struct tok *t = vocabulary(how >> 2);
    unsigned flags = how & (TOK_BOS | TOK_SPECIAL);
    if (n > MAX_TEXT) n = MAX_TEXT;
    int64_t n_ids;
    int32_t *ids = encode(t, s, n, flags, &n_ids);
    bool bos = flags & TOK_BOS && tok_adds_bos(t);
    check(!bos || ids[0] == tok_bos(t));
    for (int64_t i = bos; i < n_ids && !(flags & TOK_SPECIAL); i++)
        check(t->type[ids[i]] != TOK_CONTROL && t->type[ids[i]] != TOK_UNKNOWN);
    /* With a leading space there is another one behind every special token. */
    bool user = false;
    for (int64_t i = bos; i < n_ids; i++)
        user |= t->type[ids[i]] != TOK_NORMAL && t->type[ids[i]] != TOK_BYTE;
    if (!(t->spm && t->add_space && user)) check_decode(t, ids + bos, n_ids - bos, s, n);
    free(ids);
}

/* A chat with it, whatever template the file has. */
static void talk(const struct gguf *g, const struct tok *t)
{
    struct chat_msg m = {.role = "user", .content = "hello <|im_end|>"};
    struct chat_turn turn = {.msgs = &m, .n = 1, .add_prompt = true};
    struct chat_options o = {0};
    struct chat_prompt p;
    struct chat *c;
    struct err e;
    err_clear(&e);
    enum status s = chat_open(g, t, &o, &c, &e);
    check((s == OK) == (c != NULL) && s == e.code && (s == OK || e.msg[0]));
    if (!c) return;
    s = chat_encode(c, &turn, &p, &e);
    check(s == e.code && (s == OK || e.msg[0]));
    for (int i = 0; !s && i < p.n; i++) check(p.ids[i] >= 0 && p.ids[i] < tok_n_vocab(t));
    free(p.ids);
    chat_close(c);
}

static void use(const struct tok *t)
{
    static const char text[] = "the hello  world\n<|im_start|>user</s>aaaaaaaaaaaaaaaaaaaaaaa"
                               "\xc3\xa9\xe2\x96\x81\xff\xf0\x9f\x98 123's <0x41> \xe2\x82";
    char piece[16];
    for (unsigned flags = 0; flags < 4; flags++) {
        int64_t n_ids;
        int32_t *ids = encode(t, text, sizeof text - 1, flags, &n_ids);
        free(ids);
    }
    int32_t n = tok_n_vocab(t);
    for (int32_t i = -1; i <= n; i++) {
        check(tok_piece(t, i, i & 1, piece, sizeof piece) <= TOK_PIECE_MAX);
        check(!tok_is_end(t, i) || (i >= 0 && i < n));
    }
    check(tok_bos(t) < n && tok_eos(t) < n && tok_find(t, "the") < n);
}

static void fuzz_vocabulary(const uint8_t *data, size_t n)
{
    struct gguf *g = NULL;
    struct tok *t = NULL;
    struct err e;
    enum status s = tv_open_bytes(data, n, &g, &t, &e);
    check((s == OK) == (t != NULL) && s == e.code && (s == OK || e.msg[0]));
    if (t) talk(g, t);
    gguf_close(g);
    if (t) use(t);
    tok_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (!n) return 0;
    uint8_t *copy = malloc(n); /* of its exact size: a sanitizer sees any overrun */
    check(copy != NULL);
    memcpy(copy, data + 1, n - 1);
    if (data[0] < 0x80) fuzz_text(data[0], (const char *)copy, n - 1);
    else fuzz_vocabulary(copy, n - 1);
    free(copy);
    return 0;
}

#ifndef FUZZER
static void save(const char *folder, const char *name, int first, const void *p, size_t n)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    check(f && fputc(first, f) != EOF && fwrite(p, 1, n, f) == n && !fclose(f));
}

/* A vocabulary small enough for mutations to hit something. */
static void tiny(const char *model)
{
    tv_start(&v, model);
    bool spm = !strcmp(model, "llama");
    v.pre = spm ? NULL : "qwen2";
    tv_add(&v, "<unk>", 2, 0);
    tv_add(&v, "<|im_end|>", 3, 0);
    tv_add(&v, "a", 1, -1);
    tv_add(&v, "aa", 1, -2);
    tv_add(&v, "<u>", 4, 0);
    tv_add(&v, spm ? "<0x41>" : "e", spm ? 6 : 1, 0);
    if (!spm) v.merge[v.n_merge++] = "a a";
    v.bos = 1;
    v.unk = 0;
    tv_ready(&v);
}

static int write_seeds(const char *folder)
{
    static const char *const texts[] = {
        "Hello the world, it's 12345 o'clock!\n\n  and <user>+ \xc3\xa9\xe2\x82\xac\xf0\x9f",
        "<|im_start|>user\nhello<|im_end|>\n</s>",
        "\xff\xe2\x82 \xf0\x9f",
        "   \t\r\n \xe3\x80\x80 x",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "I'M I'll HTTPServer\xe4\xb8\xad\xe6\x96\x87\xcc\x81 3.14//\n",
        "\xe2\x96\x81the \xe2\x96\x81",
    };
    char name[32];
    int first = 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (int k = 0; k < 4; k++, first = (first + 7) % 128) {
            snprintf(name, sizeof name, "text-%d-%d", (int)i, k);
            save(folder, name, first, texts[i], strlen(texts[i]));
        }
    for (int i = 0; i < 4; i++) {
        struct blob b = {0};
        if (i == 0) tv_spm(&v);
        else if (i == 1) tv_bpe(&v);
        else tiny(i == 2 ? "llama" : "gpt2");
        tv_write(&v, &b);
        snprintf(name, sizeof name, "vocab-%d", i);
        save(folder, name, 0x80, b.p, b.n);
        blob_free(&b);
    }
    return 0;
}
#define FUZZ_SEEDS write_seeds
#endif

#include "tests/fuzz_main.h"
