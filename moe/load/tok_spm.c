/* SentencePiece-style vocabularies: scores instead of merges, "▁" for a space, bytes as fallback.
 *
 * Knows only what such a vocabulary means; reading it from the file is tok.c, merging tok_merge.c.
 *
 * DESIGN: words
 *
 * The family has no pre-tokenizer: the whole text is one row of characters.  But hardly any
 * vocabulary has a token with a space behind another character.  Where none has (word_split, found
 * out at open), no merge ever crosses such a place, and merges on its two sides do not see each
 * other: cutting there changes no id.  So text is cut into "spaces and what follows them", which
 * keeps scratch memory small and lets repeated words be remembered.  Other vocabularies take the
 * text whole.
 *
 * Gemma 4's vocabulary is of this family, but has ranked merges instead of scores, and divides text
 * into lines and what lies between them first: a run of newlines is a token where one spells it.
 *
 * Only normal and user-defined tokens take part in merging: control, unknown, byte and unused ones
 * cannot come out of plain text, whatever it spells. */
#include <stdlib.h>
#include <string.h>

#include "moe/load/tok_int.h"

static const char SPACE[] = "\xe2\x96\x81"; /* U+2581 */
enum { SPACE_LEN = 3 };

static bool is_space(const char *s, size_t n)
{
    return n >= SPACE_LEN && !memcmp(s, SPACE, SPACE_LEN);
}

/* ---- open ---- */

int spm_byte_text(const char *s, size_t n)
{
    static const char hex[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>' || !s[3] || !s[4]) return -1;
    const char *hi = strchr(hex, s[3]);
    const char *lo = strchr(hex, s[4]);
    return hi && lo ? (int)((hi - hex) << 4 | (lo - hex)) : -1;
}

static bool can_merge(const struct tok *t, int32_t id)
{
    return t->type[id] == TOK_NORMAL || t->type[id] == TOK_USER;
}

static bool has_inner_space(const char *s, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (is_space(s + i, n - i) && !(i >= SPACE_LEN && is_space(s + i - SPACE_LEN, SPACE_LEN)))
            return true;
    return false;
}

/* Higher scores merge first; the bits of a float, turned so that they compare like numbers. */
static uint32_t score_order(float score)
{
    uint32_t u;
    score += 0.0f; /* -0 and 0 are the same score */
    memcpy(&u, &score, sizeof u);
    return u >> 31 ? u : ~u & 0x7fffffffu;
}

static enum status read_scores(struct tok *t, const struct gguf *g, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.scores");
    if (!kv)
        return err_set(e, ERR_MISSING, "the file has no tokenizer.ggml.scores, which the tokenizer "
                                       "model \"llama\" needs");
    const struct gguf_value *v = &kv->value;
    if (v->type != GGUF_ARRAY || (v->elem != GGUF_F32 && v->elem != GGUF_F64))
        return err_set_at(e, ERR_SHAPE, kv->pos, "tokenizer.ggml.scores is not an array of floats");
    if (v->n != (uint64_t)t->n)
        return err_set_at(e, ERR_FORMAT, kv->pos,
                          "tokenizer.ggml.scores has %llu values for %d tokens",
                          (unsigned long long)v->n, t->n);
    t->order = malloc((size_t)t->n * sizeof *t->order);
    if (!t->order) return err_set(e, ERR_MEMORY, "no memory for %d scores", t->n);
    for (int32_t i = 0; i < t->n; i++) {
        float score = (float)gguf_elem_f64(v, (uint64_t)i);
        if (score != score)
            return err_set_at(e, ERR_FORMAT, kv->pos, "the score of token %d is not a number", i);
        t->order[i] = score_order(score);
    }
    return OK;
}

enum status spm_open(struct tok *t, const struct gguf *g, struct err *e)
{
    enum status s = t->ranked ? bpe_read_merges(t, g, e) : read_scores(t, g, e);
    if (!s && !t->ranked)
        s = gguf_get_bool_or(g, "tokenizer.ggml.add_space_prefix", true, &t->add_space, e);
    if (s) return s;
    t->word_split = true;
    for (int32_t i = 0; i < t->n; i++) {
        uint32_t len;
        const char *text = tok_text(t, i, &len);
        if (t->type[i] == TOK_BYTE) {
            int b = spm_byte_text(text, len);
            if (b < 0)
                return err_set(e, ERR_FORMAT, "token %d is a byte token but reads \"%.*s\", not "
                                              "\"<0x00>\" to \"<0xFF>\"",
                               i, (int)(len < 40 ? len : 40), text);
            t->byte_id[b] = i;
        } else if (can_merge(t, i) && has_inner_space(text, len)) {
            t->word_split = false;
        }
    }
    return OK;
}

/* ---- encode ---- */

static int32_t find_mergeable(const struct tok *t, const char *s, size_t n)
{
    int32_t id = tok_lookup(t, s, n);
    return id >= 0 && can_merge(t, id) ? id : -1;
}

bool spm_pair(const struct tok *t, const char *word, const struct sym *a, const struct sym *b,
              struct cand *c)
{
    int32_t id = find_mergeable(t, word + a->pos, (size_t)a->len + (size_t)b->len);
    if (id < 0) return false;
    c->order = t->order[id];
    c->id = id;
    return true;
}

/* A character that no token spells becomes its bytes; without tokens for those the unknown id. */
void spm_put_bytes(struct enc *e, const char *s, size_t n)
{
    const struct tok *t = e->t;
    for (size_t i = 0; i < n; i++) {
        if (t->byte_id[(unsigned char)s[i]] >= 0) continue;
        if (t->unk >= 0) enc_put(e, t->unk);
        return;
    }
    for (size_t i = 0; i < n; i++) enc_put(e, t->byte_id[(unsigned char)s[i]]);
}

/* The row of characters of a word whose spaces are escaped; a byte that belongs to no valid
 * character stands alone. */
static int32_t lay_out(struct enc *e, const char *s, size_t n)
{
    int32_t count = 0;
    for (size_t i = 0; i < n;) {
        int len;
        if (utf8_look(s + i, n - i, &len) != UTF8_CHAR) len = 1;
        struct sym *y = &e->sym[count];
        y->prev = count - 1;
        y->next = count + 1;
        y->pos = (int32_t)i;
        y->len = len;
        y->id = find_mergeable(e->t, s + i, (size_t)len);
        i += (size_t)len;
        count++;
    }
    if (count) e->sym[count - 1].next = -1;
    return count;
}

/* Spaces as U+2581, and one more in front with lead. */
static size_t escape(char *out, const char *s, size_t n, bool lead)
{
    size_t k = 0;
    for (size_t i = 0; i < n + lead; i++) {
        bool space = i < lead || s[i - lead] == ' ';
        if (space) memcpy(out + k, SPACE, SPACE_LEN);
        else out[k] = s[i - lead];
        k += space ? SPACE_LEN : 1;
    }
    return k;
}

static bool text_room(struct enc *e, size_t n)
{
    if (n <= e->cap_text) return true;
    char *text = malloc(n + n / 4);
    if (!text) {
        e->oom = true;
        return false;
    }
    free(e->text);
    e->text = text;
    e->cap_text = n + n / 4;
    return true;
}

static void encode_word(struct enc *e, const char *s, size_t n, bool lead)
{
    size_t n_spaces = lead;
    const int32_t newlines = e->t->ranked && s[0] == '\n' ? find_mergeable(e->t, s, n) : -1;
    if (newlines >= 0) {
        enc_put(e, newlines);
        return;
    }
    for (size_t i = 0; i < n; i++) n_spaces += s[i] == ' ';
    if (!merge_room(e, n + lead) || !text_room(e, n + SPACE_LEN * n_spaces)) return;
    int32_t count = lay_out(e, e->text, escape(e->text, s, n, lead));
    merge_run(e, e->text, count);
    for (int32_t i = count ? 0 : -1; i >= 0; i = e->sym[i].next) {
        const struct sym *y = &e->sym[i];
        if (y->id >= 0) enc_put(e, y->id);
        else spm_put_bytes(e, e->text + y->pos, (size_t)y->len);
    }
}

/* The length of the first word: spaces, then everything up to the next space. */
static size_t word_len(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && (s[i] == ' ' || is_space(s + i, n - i))) i += s[i] == ' ' ? 1 : SPACE_LEN;
    while (i < n && s[i] != ' ' && !(s[i] == SPACE[0] && is_space(s + i, n - i))) i++;
    return i;
}

static void encode_words(struct enc *e, const char *s, size_t n, bool lead)
{
    while (n && !e->oom) {
        size_t len = e->t->word_split ? word_len(s, n) : n;
        if (lead || !word_known(e, s, len)) {
            encode_word(e, s, len, lead);
            if (!lead) word_learn(e, s, len);
        }
        lead = false;
        s += len;
        n -= len;
    }
}

/* The length of the run of newlines, or of what is none, that begins the text. */
static size_t run_len(const char *s, size_t n)
{
    const bool newline = s[0] == '\n';
    size_t i = 1;
    while (i < n && (s[i] == '\n') == newline) i++;
    return i;
}

void spm_encode(struct enc *e, const char *s, size_t n, bool lead)
{
    while (n && !e->oom) {
        const size_t len = e->t->ranked ? run_len(s, n) : n;
        encode_words(e, s, len, lead && e->t->add_space);
        lead = false;
        s += len;
        n -= len;
    }
}

/* ---- decode ---- */

int spm_piece(const struct tok *t, int32_t id, char *buf, int cap)
{
    uint32_t len;
    const char *s = tok_text(t, id, &len);
    int k = 0;
    for (size_t i = 0; i < len; k++) {
        bool space = is_space(s + i, len - i);
        if (k < cap) buf[k] = space ? ' ' : s[i];
        i += space ? SPACE_LEN : 1;
    }
    return k;
}
