/* Byte-level BPE vocabularies: words cut by expressions, bytes as symbols, merges in ranked order.
 *
 * Token texts stand in the file in a printable disguise: each byte is one character (GPT-2's
 * table).  Symbols here are ids from the start, so that a merge is a look-up of two ids and no text
 * is built.  Owns the merge table and the compiled expressions of struct tok.
 *
 * DESIGN: cutting
 *
 * A pre-tokenizer is a list of expressions.  The first cuts the text into its matches and the gaps
 * between them; the next cuts each of those the same way, and so on; what the last one leaves are
 * the words.  One cursor per expression walks this tree depth first: no recursion, no lists.
 *
 * PCRE2 wants valid UTF-8, text need not be: valid stretches are cut by the expressions, every byte
 * outside them is a word of its own.  Matches do not look across such a byte.
 *
 * The expressions are linear and need no stack worth speaking of (tok_pre.c), so the just-in-time
 * code runs on its default 32 KiB; should it ever report that this was not enough, the interpreter
 * takes over, and should that give up too, the rest of the stretch counts as a gap.  Each of those
 * depends on the text alone. */
#include <stdlib.h>
#include <string.h>

#include "moe/load/tok_int.h"

/* ---- bytes in disguise ------------------------------------------------------------------------
 * Printable Latin-1 bytes stand for themselves, the other 68 are U+0100 and following, in order. */

static bool is_plain(int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 255 && b != 173); }

static int byte_char(int b)
{
    if (is_plain(b)) return b;
    int k = 0;
    for (int i = 0; i < b; i++) k += !is_plain(i);
    return 256 + k;
}

/* Writes the disguise of a byte; returns its length, 1 or 2. */
static int put_disguise(char *out, int b)
{
    int c = byte_char(b);
    if (c < 128) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

/* The byte behind the character of len bytes at s, -1 = none. */
static int reveal(const char *s, int len)
{
    int c = (unsigned char)s[0];
    if (len > 2) return -1;
    if (len == 2) c = (c & 0x1f) << 6 | ((unsigned char)s[1] & 0x3f);
    if (c < 256) return is_plain(c) ? c : -1;
    for (int b = 0; b < 256; b++)
        if (!is_plain(b) && 256 == c--) return b;
    return -1;
}

int bpe_piece(const struct tok *t, int32_t id, char *buf, int cap)
{
    uint32_t n;
    const char *s = tok_text(t, id, &n);
    int k = 0;
    for (uint32_t i = 0; i < n;) {
        int len;
        if (utf8_look(s + i, n - i, &len) != UTF8_CHAR) len = 1;
        int b = len == 1 && (unsigned char)s[i] >= 0x80 ? -1 : reveal(s + i, len);
        if (b >= 0) {
            if (k < cap) buf[k] = (char)b;
            k++;
        }
        for (int j = 0; b < 0 && j < len; j++, k++)
            if (k < cap) buf[k] = s[i + (uint32_t)j];
        i += (uint32_t)len;
    }
    return k;
}

/* ---- merges ---- */

static uint32_t pair_slot(const struct tok *t, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 32) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)((h >> 32) * t->n_pair >> 32);
}

const struct pair *bpe_pair(const struct tok *t, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return NULL;
    for (uint32_t i = pair_slot(t, left, right); t->pair[i].left >= 0;) {
        if (t->pair[i].left == left && t->pair[i].right == right) return &t->pair[i];
        if (++i == t->n_pair) i = 0;
    }
    return NULL;
}

bool bpe_is_merged(const struct tok *t, int32_t id)
{
    uint32_t n;
    const char *s = tok_text(t, id, &n);
    for (uint32_t i = 1; i < n; i++)
        if (bpe_pair(t, tok_lookup(t, s, i), tok_lookup(t, s + i, n - i))) return true;
    return false;
}

static void add_pair(struct tok *t, struct pair p)
{
    if (bpe_pair(t, p.left, p.right)) return; /* listed twice: the better rank stays */
    uint32_t i = pair_slot(t, p.left, p.right);
    while (t->pair[i].left >= 0)
        if (++i == t->n_pair) i = 0;
    t->pair[i] = p;
}

static int show(struct gguf_str s) { return (int)(s.n < 60 ? s.n : 60); }

/* One line of tokenizer.ggml.merges: "left right". */
static enum status read_merge(struct tok *t, struct gguf_str m, uint64_t rank, uint64_t pos,
                              struct err *e)
{
    const char *gap = m.n > 2 ? memchr(m.s + 1, ' ', m.n - 2) : NULL;
    if (!gap || m.n > 2 * TOK_PIECE_MAX)
        return err_set_at(e, ERR_FORMAT, pos,
                          "merge %llu is \"%.*s\", not two tokens with a space between them",
                          (unsigned long long)rank, show(m), m.s);
    char joined[2 * TOK_PIECE_MAX];
    size_t n_left = (size_t)(gap - m.s);
    size_t n_right = m.n - n_left - 1;
    memcpy(joined, m.s, n_left);
    memcpy(joined + n_left, gap + 1, n_right);
    struct pair p = {.left = tok_lookup(t, m.s, n_left),
                     .right = tok_lookup(t, gap + 1, n_right),
                     .rank = (uint32_t)rank,
                     .id = tok_lookup(t, joined, n_left + n_right)};
    const char *missing = p.left < 0    ? "its left half"
                          : p.right < 0 ? "its right half"
                          : p.id < 0    ? "what it makes"
                                        : NULL;
    if (missing)
        return err_set_at(e, ERR_FORMAT, pos, "merge %llu is \"%.*s\", but %s is not a token",
                          (unsigned long long)rank, show(m), m.s, missing);
    /* Plain text must never become a control token. */
    if (t->type[p.id] != TOK_CONTROL && t->type[p.id] != TOK_UNKNOWN) add_pair(t, p);
    return OK;
}

enum status bpe_read_merges(struct tok *t, const struct gguf *g, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.merges");
    if (!kv)
        return err_set(e, ERR_MISSING, "the file has no tokenizer.ggml.merges, which the tokenizer "
                                       "model \"%s\" needs", tok_model(t));
    const struct gguf_value *v = &kv->value;
    if (v->type != GGUF_ARRAY || v->elem != GGUF_STRING)
        return err_set_at(e, ERR_SHAPE, kv->pos,
                          "tokenizer.ggml.merges is not an array of strings");
    if (v->n > INT32_MAX / 2)
        return err_set_at(e, ERR_UNSUPPORTED, kv->pos, "%llu merges are more than Tessera reads",
                          (unsigned long long)v->n);
    t->n_pair = (uint32_t)(v->n + v->n / 3 + 1); /* three quarters full, never quite */
    t->pair = malloc(t->n_pair * sizeof *t->pair);
    if (!t->pair) return err_set(e, ERR_MEMORY, "no memory for %u merges", (unsigned)v->n);
    for (uint32_t i = 0; i < t->n_pair; i++) t->pair[i].left = -1;
    uint64_t cursor = 0;
    for (uint64_t rank = 0; rank < v->n; rank++) {
        struct gguf_str m = gguf_elem_next_str(v, &cursor);
        enum status s = read_merge(t, m, rank, kv->pos, e);
        if (s) return s;
    }
    return OK;
}

/* ---- open ---- */

static enum status choose_pre(struct tok *t, const struct gguf *g, struct err *e)
{
    struct gguf_str name = {"default", 7};
    if (gguf_find(g, "tokenizer.ggml.pre")) {
        enum status s = gguf_get_str(g, "tokenizer.ggml.pre", &name, e);
        if (s) return s;
    }
    t->pre = pre_find(name.s, name.n);
    if (t->pre) return OK;
    char list[400];
    size_t k = 0;
    for (int i = 0; tok_pre_at(i) && k + strlen(tok_pre_at(i)) + 2 < sizeof list; i++) {
        if (k) list[k++] = ' ';
        memcpy(list + k, tok_pre_at(i), strlen(tok_pre_at(i)));
        k += strlen(tok_pre_at(i));
    }
    return err_set(e, ERR_UNSUPPORTED, "the pre-tokenizer \"%.*s\" is not known; these are: %.*s",
                   show(name), name.s, (int)k, list);
}

static enum status compile(struct tok *t, struct err *e)
{
    for (; t->n_code < PRE_EXPRS && t->pre->expr[t->n_code]; t->n_code++) {
        int code;
        PCRE2_SIZE at;
        pcre2_code *c = pcre2_compile((PCRE2_SPTR)t->pre->expr[t->n_code], PCRE2_ZERO_TERMINATED,
                                      PCRE2_UTF | PCRE2_NO_UTF_CHECK, &code, &at, NULL);
        if (!c && code == PCRE2_ERROR_NOMEMORY)
            return err_set(e, ERR_MEMORY, "no memory for the pre-tokenizer %s", t->pre->name);
        if (!c)
            return err_set(e, ERR_UNSUPPORTED, "this PCRE2 does not take the expression of the "
                                               "pre-tokenizer %s (error %d at %zu)",
                           t->pre->name, code, (size_t)at);
        /* Where there is no just-in-time compiler pcre2_match interprets. */
        (void)pcre2_jit_compile(c, PCRE2_JIT_COMPLETE);
        t->code[t->n_code] = c;
    }
    return OK;
}

enum status bpe_open(struct tok *t, const struct gguf *g, struct err *e)
{
    enum status s = choose_pre(t, g, e);
    if (s) return s;
    s = gguf_get_bool_or(g, "tokenizer.ggml.ignore_merges", t->pre->ignore_merges,
                         &t->ignore_merges, e);
    if (s) return s;
    for (int b = 0; b < 256; b++) {
        char text[2];
        int32_t id = tok_lookup(t, text, (size_t)put_disguise(text, b));
        if (id >= 0 && t->type[id] != TOK_CONTROL && t->type[id] != TOK_UNKNOWN) t->byte_id[b] = id;
    }
    s = bpe_read_merges(t, g, e);
    return s ? s : compile(t, e);
}

void bpe_close(struct tok *t)
{
    for (int i = 0; i < t->n_code; i++) pcre2_code_free(t->code[i]);
    free(t->pair);
}

/* ---- encode ---- */

/* A word that is a token as it stands, for vocabularies that ask for it (ignore_merges). */
static int32_t whole_word(const struct tok *t, const char *s, size_t n)
{
    char text[TOK_PIECE_MAX];
    size_t k = 0;
    if (n > sizeof text / 2) return -1;
    for (size_t i = 0; i < n; i++) k += (size_t)put_disguise(text + k, (unsigned char)s[i]);
    int32_t id = tok_lookup(t, text, k);
    return id >= 0 && t->type[id] == TOK_NORMAL ? id : -1;
}

static void merge_word(struct enc *e, const char *s, size_t n)
{
    if (!merge_room(e, n)) return;
    for (size_t i = 0; i < n; i++) {
        int32_t next = i + 1 < n ? (int32_t)i + 1 : -1;
        e->sym[i] = (struct sym){.prev = (int32_t)i - 1,
                                 .next = next,
                                 .pos = (int32_t)i,
                                 .len = 1,
                                 .id = e->t->byte_id[(unsigned char)s[i]]};
    }
    merge_run(e, s, (int32_t)n);
    for (int32_t i = 0; i >= 0; i = e->sym[i].next) {
        int32_t id = e->sym[i].id >= 0 ? e->sym[i].id : e->t->unk;
        if (id >= 0) enc_put(e, id);
    }
}

static void encode_word(struct enc *e, const char *s, size_t n)
{
    if (word_known(e, s, n)) return;
    int32_t id = e->t->ignore_merges ? whole_word(e->t, s, n) : -1;
    if (id >= 0) enc_put(e, id);
    else merge_word(e, s, n);
    word_learn(e, s, n);
}

/* Finds the next match at or behind c->pos; without one from and to are the end. */
static void find_match(struct enc *e, int level, const char *s, struct cut *c)
{
    const pcre2_code *code = e->t->code[level];
    PCRE2_SPTR text = (PCRE2_SPTR)s + c->base;
    size_t n = c->end - c->base;
    size_t start = c->pos - c->base;
    uint32_t how = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int r = pcre2_match(code, text, n, start, how, e->md, NULL);
    if (r < 0 && r != PCRE2_ERROR_NOMATCH)
        r = pcre2_match(code, text, n, start, how | PCRE2_NO_JIT, e->md, NULL);
    if (r == PCRE2_ERROR_NOMEMORY) e->oom = true;
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(e->md);
    bool found = r >= 0 && at[0] >= start && at[1] > at[0];
    c->from = found ? c->base + at[0] : c->end;
    c->to = found ? c->base + at[1] : c->end;
}

/* The next stretch of a cut: the gap before the match, or the match.  Returns its end. */
static size_t next_stretch(struct enc *e, int level, const char *s, struct cut *c)
{
    if (c->to <= c->pos) find_match(e, level, s, c);
    return c->pos < c->from ? c->from : c->to;
}

void cutter_begin(struct cutter *k, struct enc *e, const char *s, size_t n)
{
    if (!e->md) e->md = pcre2_match_data_create(1, NULL);
    if (!e->md) e->oom = true;
    k->e = e;
    k->s = s;
    k->level = 0;
    k->cut[0] = (struct cut){.end = n};
}

bool cutter_next(struct cutter *k, size_t *from, size_t *to)
{
    const int last = k->e->t->n_code - 1;
    while (k->level >= 0 && !k->e->oom) {
        struct cut *c = &k->cut[k->level];
        if (c->pos == c->end) {
            k->level--;
            continue;
        }
        *from = c->pos;
        *to = c->pos = next_stretch(k->e, k->level, k->s, c);
        if (k->level == last) return true;
        k->cut[++k->level] = (struct cut){.base = *from, .end = *to, .pos = *from};
    }
    return false;
}

static void encode_valid(struct enc *e, const char *s, size_t n)
{
    struct cutter k;
    size_t from, to;
    cutter_begin(&k, e, s, n);
    while (cutter_next(&k, &from, &to)) encode_word(e, s + from, to - from);
}

static size_t valid_stretch(const char *s, size_t n)
{
    size_t i = 0;
    int len;
    while (i < n) {
        if ((unsigned char)s[i] < 0x80) len = 1;
        else if (utf8_look(s + i, n - i, &len) != UTF8_CHAR) break;
        i += (size_t)len;
    }
    return i;
}

void bpe_encode(struct enc *e, const char *s, size_t n)
{
    while (n && !e->oom) {
        size_t valid = valid_stretch(s, n);
        if (valid) encode_valid(e, s, valid);
        else encode_word(e, s, 1);
        s += valid ? valid : 1;
        n -= valid ? valid : 1;
    }
}
