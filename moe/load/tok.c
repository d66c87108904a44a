/* Tokenizers, the part that both families share: reading the vocabulary, finding texts and special
 * tokens, and one call of encoding from beginning to end.
 *
 * Owns struct tok.  How plain text becomes ids is tok_spm.c or tok_bpe.c.  Never keeps a pointer
 * into the file. */
#include <stdlib.h>
#include <string.h>

#include "moe/load/tok_int.h"

/* Texts that end an answer in the vocabularies of the known model families, where no metadata says
 * so; and the marker that must not come out of plain text although some files call it ordinary. */
static const char *const end_texts[] = {
    "<|im_end|>",      "<|endoftext|>",  "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",
    "<end_of_turn>",   "</s>",           "<|end|>",    "<|return|>", "<|call|>",
    "<|calls|>",       "<|flush|>",      "<EOT>",      "_<EOT>",     "[EOT]",
    "[EOS]",           "<eos>",          "<turn|>",    "[e~[",       "<end_of_utterance>",
    "<|tool_response>",
    "<\xef\xbd\x9c\x65nd\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>", /* DeepSeek */
};
static const char start_text[] = "<|im_start|>";

bool tok_is_end_text(const char *s, size_t n)
{
    for (size_t i = 0; i < sizeof end_texts / sizeof *end_texts; i++)
        if (strlen(end_texts[i]) == n && !memcmp(end_texts[i], s, n)) return true;
    return false;
}

/* ---- texts ---- */

static uint64_t mix(uint64_t h)
{
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

uint64_t tok_hash(const char *s, size_t n)
{
    uint64_t h = n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        h = mix(h ^ word);
    }
    uint64_t tail = 0;
    memcpy(&tail, s, n);
    return mix(mix(h ^ tail));
}

static uint32_t text_slot(const struct tok *t, const char *s, size_t n)
{
    return (uint32_t)((tok_hash(s, n) >> 32) * t->n_slot >> 32);
}

int32_t tok_lookup(const struct tok *t, const char *s, size_t n)
{
    if (!n || n > TOK_PIECE_MAX) return -1;
    for (uint32_t i = text_slot(t, s, n); t->slot[i] >= 0;) {
        uint32_t len;
        const char *text = tok_text(t, t->slot[i], &len);
        if (len == n && !memcmp(text, s, n)) return t->slot[i];
        if (++i == t->n_slot) i = 0;
    }
    return -1;
}

/* Files in the wild have tokens without text; nothing ever matches those. */
static enum status index_texts(struct tok *t, uint64_t pos, struct err *e)
{
    t->n_slot = (uint32_t)t->n + (uint32_t)t->n / 2 + 1; /* two thirds full */
    t->slot = malloc(t->n_slot * sizeof *t->slot);
    if (!t->slot) return err_set(e, ERR_MEMORY, "no memory for a vocabulary of %d tokens", t->n);
    memset(t->slot, 0xff, t->n_slot * sizeof *t->slot);
    for (int32_t id = 0; id < t->n; id++) {
        uint32_t len;
        const char *text = tok_text(t, id, &len);
        if (!len) continue;
        int32_t twin = tok_lookup(t, text, len);
        if (twin >= 0)
            return err_set_at(e, ERR_FORMAT, pos, "tokens %d and %d have the same text \"%.*s\"",
                              twin, id, (int)(len < 60 ? len : 60), text);
        uint32_t i = text_slot(t, text, len);
        while (t->slot[i] >= 0)
            if (++i == t->n_slot) i = 0;
        t->slot[i] = id;
    }
    return OK;
}

/* ---- reading the file ---- */

static enum status copy_texts(struct tok *t, const struct gguf_value *v, uint64_t pos,
                              struct err *e)
{
    uint64_t total = 0, cursor = 0;
    for (uint64_t i = 0; i < v->n; i++) {
        struct gguf_str s = gguf_elem_next_str(v, &cursor);
        if (s.n > TOK_PIECE_MAX)
            return err_set_at(e, ERR_UNSUPPORTED, pos,
                              "token %llu is %llu bytes long; Tessera takes at most %d",
                              (unsigned long long)i, (unsigned long long)s.n, TOK_PIECE_MAX);
        total += s.n;
    }
    if (total > UINT32_MAX)
        return err_set_at(e, ERR_UNSUPPORTED, pos, "the vocabulary has %llu bytes of text",
                          (unsigned long long)total);
    t->blob = malloc(total ? total : 1);
    t->off = malloc((v->n + 1) * sizeof *t->off);
    t->type = malloc(v->n);
    t->end = calloc(v->n, sizeof *t->end);
    if (!t->blob || !t->off || !t->type || !t->end)
        return err_set(e, ERR_MEMORY, "no memory for a vocabulary of %d tokens", t->n);
    cursor = 0;
    t->off[0] = 0;
    for (uint64_t i = 0; i < v->n; i++) {
        struct gguf_str s = gguf_elem_next_str(v, &cursor);
        memcpy(t->blob + t->off[i], s.s, s.n);
        t->off[i + 1] = t->off[i] + (uint32_t)s.n;
    }
    return OK;
}

static enum status read_texts(struct tok *t, const struct gguf *g, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.tokens");
    if (!kv) return err_set(e, ERR_MISSING, "the file has no tokenizer.ggml.tokens");
    const struct gguf_value *v = &kv->value;
    if (v->type != GGUF_ARRAY || v->elem != GGUF_STRING)
        return err_set_at(e, ERR_SHAPE, kv->pos,
                          "tokenizer.ggml.tokens is not an array of strings");
    if (!v->n || v->n > INT32_MAX / 2)
        return err_set_at(e, ERR_FORMAT, kv->pos, "tokenizer.ggml.tokens has %llu tokens",
                          (unsigned long long)v->n);
    t->n = (int32_t)v->n;
    enum status s = copy_texts(t, v, kv->pos, e);
    return s ? s : index_texts(t, kv->pos, e);
}

/* Without tokenizer.ggml.token_type only the texts of byte tokens tell. */
static void guess_types(struct tok *t)
{
    for (int32_t i = 0; i < t->n; i++) {
        uint32_t len;
        const char *text = tok_text(t, i, &len);
        t->type[i] = t->spm && spm_byte_text(text, len) >= 0 ? TOK_BYTE : TOK_NORMAL;
    }
}

static enum status read_types(struct tok *t, const struct gguf *g, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.token_type");
    if (!kv) {
        guess_types(t);
        return OK;
    }
    const struct gguf_value *v = &kv->value;
    bool is_int = v->type == GGUF_ARRAY && v->elem != GGUF_STRING && v->elem != GGUF_ARRAY &&
                  v->elem != GGUF_F32 && v->elem != GGUF_F64 && v->elem != GGUF_BOOL;
    if (!is_int)
        return err_set_at(e, ERR_SHAPE, kv->pos,
                          "tokenizer.ggml.token_type is not an array of integers");
    if (v->n != (uint64_t)t->n)
        return err_set_at(e, ERR_FORMAT, kv->pos,
                          "tokenizer.ggml.token_type has %llu values for %d tokens",
                          (unsigned long long)v->n, t->n);
    for (int32_t i = 0; i < t->n; i++) {
        int64_t type = gguf_elem_i64(v, (uint64_t)i);
        if (type < 0 || type > TOK_BYTE)
            return err_set_at(e, ERR_FORMAT, kv->pos,
                              "token %d has the type %lld; types are 1 to %d", i, (long long)type,
                              TOK_BYTE);
        t->type[i] = type ? (uint8_t)type : TOK_NORMAL; /* 0 = not said */
    }
    return OK;
}

/* The id that a key names, or dflt; UINT32_MAX is how some writers say "none". */
static enum status read_id(const struct tok *t, const struct gguf *g, const char *key,
                           int32_t dflt, int32_t *id, struct err *e)
{
    *id = dflt;
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return OK;
    uint64_t v;
    enum status s = gguf_get_u64(g, key, &v, e);
    if (s) return s;
    if (v == UINT32_MAX) {
        *id = -1;
        return OK;
    }
    if (v >= (uint64_t)t->n)
        return err_set_at(e, ERR_FORMAT, kv->pos,
                          "%s is %llu, but the vocabulary has %d tokens", key,
                          (unsigned long long)v, t->n);
    *id = (int32_t)v;
    return OK;
}

/* SentencePiece files that name no ids mean 0, 1 and 2, if those are no ordinary text. */
static int32_t usual_id(const struct tok *t, int32_t id)
{
    bool special = id < t->n && (t->type[id] == TOK_CONTROL || t->type[id] == TOK_UNKNOWN);
    return t->spm && !t->ranked && special ? id : -1;
}

static void mark_end(struct tok *t, int32_t id)
{
    if (id >= 0) t->end[id] = true;
}

static enum status read_ids(struct tok *t, const struct gguf *g, struct err *e)
{
    int32_t eot, eom;
    enum status s = read_id(t, g, "tokenizer.ggml.bos_token_id", usual_id(t, 1), &t->bos, e);
    if (!s) s = read_id(t, g, "tokenizer.ggml.eos_token_id", usual_id(t, 2), &t->eos, e);
    if (!s) s = read_id(t, g, "tokenizer.ggml.unknown_token_id", usual_id(t, 0), &t->unk, e);
    if (!s) s = read_id(t, g, "tokenizer.ggml.eot_token_id", -1, &eot, e);
    if (!s) s = read_id(t, g, "tokenizer.ggml.eom_token_id", -1, &eom, e);
    if (s) return s;
    mark_end(t, t->eos);
    mark_end(t, eot);
    mark_end(t, eom);
    if (!gguf_find(g, "tokenizer.ggml.token_type")) {
        if (t->bos >= 0) t->type[t->bos] = TOK_CONTROL;
        if (t->eos >= 0) t->type[t->eos] = TOK_CONTROL;
        if (t->unk >= 0) t->type[t->unk] = TOK_UNKNOWN;
    }
    bool bos = t->spm || t->pre->add_bos;
    s = gguf_get_bool_or(g, "tokenizer.ggml.add_bos_token", bos, &t->add_bos, e);
    if (!s) s = gguf_get_bool_or(g, "tokenizer.ggml.add_eos_token", false, &t->add_eos, e);
    /* Some gemma4 files say no and mean yes: the model cannot do without. */
    t->add_bos = (t->add_bos || t->ranked) && t->bos >= 0;
    t->add_eos = t->add_eos && t->eos >= 0;
    return s;
}

/* ---- special tokens ---- */

/* Makes a control token of a text that can only be one.  A token that merges spell ("</s>" in
 * vocabularies that have seen HTML) is ordinary text. */
static int32_t claim(struct tok *t, const char *text)
{
    int32_t id = tok_lookup(t, text, strlen(text));
    if (id < 0) return -1;
    if (t->type[id] == TOK_NORMAL && t->pair && bpe_is_merged(t, id)) return -1;
    t->type[id] = TOK_CONTROL;
    return id;
}

static void find_ends(struct tok *t)
{
    (void)claim(t, start_text);
    /* In the vocabulary of Gemma 4 "</s>" is a tag like others, and ends nothing. */
    const int32_t tag = tok_find(t, "<|tool_response>") < 0 ? -1 : tok_find(t, "</s>");
    for (size_t i = 0; i < sizeof end_texts / sizeof *end_texts; i++)
        if (tag < 0 || strcmp(end_texts[i], "</s>")) mark_end(t, claim(t, end_texts[i]));
    if (tag >= 0 && tag != t->eos) t->type[tag] = TOK_NORMAL;
    /* The harmony format of gpt-oss ends messages with <|end|>, answers with the other two. */
    int32_t end = tok_find(t, "<|end|>");
    bool answers = tok_find(t, "<|call|>") >= 0 && tok_find(t, "<|return|>") >= 0;
    bool calls = tok_find(t, "<|calls|>") >= 0 && tok_find(t, "<|flush|>") >= 0;
    if (end >= 0 && end != t->eos && (answers || calls)) t->end[end] = false;
}

struct special {
    const char *text;
    uint32_t len;
    int32_t id;
};

static int by_text(const void *a, const void *b)
{
    const struct special *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static bool is_special(const struct tok *t, int32_t id)
{
    int type = t->type[id];
    return (type == TOK_CONTROL || type == TOK_UNKNOWN || type == TOK_USER) &&
           t->off[id + 1] > t->off[id];
}

static enum status sort_specials(struct tok *t, struct err *e)
{
    for (int32_t i = 0; i < t->n; i++) t->n_special += is_special(t, i);
    size_t room = t->n_special ? (size_t)t->n_special : 1;
    struct special *list = malloc(room * sizeof *list);
    t->special = malloc(room * sizeof *t->special);
    if (!list || !t->special) {
        free(list);
        return err_set(e, ERR_MEMORY, "no memory for %d special tokens", t->n_special);
    }
    int32_t k = 0;
    for (int32_t i = 0; i < t->n; i++) {
        if (!is_special(t, i)) continue;
        list[k].id = i;
        list[k].text = tok_text(t, i, &list[k].len);
        unsigned char first = (unsigned char)list[k++].text[0];
        t->first_any[first] = true;
        if (t->type[i] == TOK_USER) t->first_user[first] = true;
    }
    if (k) qsort(list, (size_t)k, sizeof *list, by_text);
    for (int32_t i = 0; i < k; i++) t->special[i] = list[i].id;
    free(list);
    return OK;
}

/* The first special of lo .. hi whose byte d is at least b (all have more than d bytes). */
static int32_t first_at_least(const struct tok *t, int32_t lo, int32_t hi, uint32_t d, int b)
{
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)t->blob[t->off[t->special[mid]] + d] < b) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* The longest special text that begins at s, -1 = none.  The sorted list is a trie: lo .. hi are
 * the texts that begin with the first d bytes, and the one that ends there comes first. */
static int32_t match_special(const struct tok *t, const uint8_t *type, const char *s, size_t n,
                             bool any)
{
    int32_t lo = 0, hi = t->n_special, best = -1;
    for (uint32_t d = 0; lo < hi; d++) {
        int32_t id = t->special[lo];
        if (t->off[id + 1] - t->off[id] == d) {
            if (any || type[id] == TOK_USER) best = id;
            lo++;
        }
        if (d == n) break;
        int b = (unsigned char)s[d];
        lo = first_at_least(t, lo, hi, d, b);
        hi = first_at_least(t, lo, hi, d, b + 1);
    }
    return best;
}

/* ---- open and close ---- */

static enum status choose_model(struct tok *t, const struct gguf *g, struct err *e)
{
    struct gguf_str model;
    if (!gguf_find(g, "tokenizer.ggml.model"))
        return err_set(e, ERR_MISSING,
                       "the file has no tokenizer (tokenizer.ggml.model); token ids still work");
    enum status s = gguf_get_str(g, "tokenizer.ggml.model", &model, e);
    if (s) return s;
    t->ranked = model.n == 6 && !memcmp(model.s, "gemma4", 6);
    t->spm = t->ranked || (model.n == 5 && !memcmp(model.s, "llama", 5));
    if (t->spm || (model.n == 4 && !memcmp(model.s, "gpt2", 4))) return OK;
    if ((model.n == 8 && !memcmp(model.s, "no_vocab", 8)) ||
        (model.n == 4 && !memcmp(model.s, "none", 4)))
        return err_set(e, ERR_MISSING,
                       "the file says that it has no tokenizer; token ids still work");
    return err_set(e, ERR_UNSUPPORTED,
                   "the tokenizer model \"%.*s\" is not known; \"llama\", \"gpt2\" and "
                   "\"gemma4\" are",
                   (int)(model.n < 60 ? model.n : 60), model.s);
}

static enum status fill(struct tok *t, const struct gguf *g, struct err *e)
{
    enum status s = choose_model(t, g, e);
    if (!s) s = read_texts(t, g, e);
    if (!s) s = read_types(t, g, e);
    if (!s) s = t->spm ? spm_open(t, g, e) : bpe_open(t, g, e);
    if (!s) s = read_ids(t, g, e);
    if (s) return s;
    find_ends(t);
    return sort_specials(t, e);
}

enum status tok_open(const struct gguf *g, struct tok **out, struct err *e)
{
    *out = NULL;
    struct tok *t = calloc(1, sizeof *t);
    if (!t) return err_set(e, ERR_MEMORY, "no memory for the tokenizer");
    t->bos = t->eos = t->unk = -1;
    for (int b = 0; b < 256; b++) t->byte_id[b] = -1;
    enum status s = fill(t, g, e);
    if (s) {
        tok_close(t);
        return s;
    }
    *out = t;
    return OK;
}

void tok_close(struct tok *t)
{
    if (!t) return;
    bpe_close(t);
    free(t->blob);
    free(t->off);
    free(t->type);
    free(t->end);
    free(t->slot);
    free(t->special);
    free(t->order);
    free(t);
}

/* ---- encode ---- */

void enc_begin(struct enc *e, const struct tok *t, size_t n_hint, int32_t *ids, int64_t cap)
{
    /* Not the small arrays: they are written before they are read, and short texts are frequent. */
    memset(e, 0, offsetof(struct enc, small_sym));
    e->t = t;
    e->type = t->type;
    e->ids = ids;
    e->cap = cap;
    e->sym = e->small_sym;
    e->heap = e->small_heap;
    e->cap_sym = SMALL_SYMS;
    e->after_special = true;
    if (n_hint < 512) return;
    e->words = calloc(WORD_SLOTS, sizeof *e->words); /* without: slower, not wrong */
}

static void plain_text(struct enc *e, const char *s, size_t n)
{
    if (!n || e->oom) return;
    if (n > TEXT_MAX) e->oom = true;
    else if (e->t->spm) spm_encode(e, s, n, e->after_special);
    else bpe_encode(e, s, n);
    e->after_special = false;
}

/* The special token at byte i of the text, -1 = none.  Where special ones count, any of them that
 * ends within the span; everywhere, user-defined ones, across spans too; the longer one wins. */
static int32_t special_at(const struct enc *e, const char *s, size_t i, size_t n, size_t end,
                          bool special)
{
    const struct tok *t = e->t;
    unsigned char b = (unsigned char)s[i];
    int32_t any = -1, user = -1;
    if (special && t->first_any[b]) any = match_special(t, e->type, s + i, end - i, true);
    if ((!special || end < n) && t->first_user[b])
        user = match_special(t, e->type, s + i, n - i, false);
    if (any < 0 || user < 0) return any < 0 ? user : any;
    return t->off[user + 1] - t->off[user] > t->off[any + 1] - t->off[any] ? user : any;
}

void enc_spans(struct enc *e, const char *s, size_t n, const struct enc_span *span)
{
    const struct tok *t = e->t;
    size_t start = 0;
    for (size_t i = 0; i < n;) {
        while (span->end <= i) span++;
        int32_t id = special_at(e, s, i, n, span->end, span->special);
        if (id < 0) {
            i++;
            continue;
        }
        plain_text(e, s + start, i - start);
        enc_put(e, id);
        e->after_special = true;
        i += t->off[id + 1] - t->off[id];
        start = i;
    }
    if (start < n) plain_text(e, s + start, n - start);
}

int64_t enc_end(struct enc *e)
{
    if (e->sym != e->small_sym) free(e->sym);
    if (e->heap != e->small_heap) free(e->heap);
    free(e->words);
    free(e->text);
    pcre2_match_data_free(e->md);
    return e->oom ? -1 : e->n;
}

int64_t tok_encode(const struct tok *t, const char *text, size_t n, unsigned flags, int32_t *ids,
                   int64_t cap)
{
    struct enc e;
    enc_begin(&e, t, n, ids, cap);
    if (flags & TOK_BOS && t->add_bos) enc_put(&e, t->bos);
    enc_spans(&e, text, n, &(struct enc_span){n, flags & TOK_SPECIAL});
    if (flags & TOK_BOS && t->add_eos) enc_put(&e, t->eos);
    return enc_end(&e);
}

/* ---- decode and questions ---- */

int tok_piece(const struct tok *t, int32_t id, bool special, char *buf, int cap)
{
    if (id < 0 || id >= t->n) return 0;
    int type = t->type[id];
    if (!special && (type == TOK_CONTROL || type == TOK_UNKNOWN || type == TOK_UNUSED)) return 0;
    uint32_t len;
    const char *text = tok_text(t, id, &len);
    int byte = type == TOK_BYTE ? spm_byte_text(text, len) : -1;
    if (byte >= 0) {
        if (cap > 0) buf[0] = (char)byte;
        return 1;
    }
    if (type == TOK_NORMAL && t->spm) return spm_piece(t, id, buf, cap);
    if (type == TOK_NORMAL) return bpe_piece(t, id, buf, cap);
    if (cap > 0) memcpy(buf, text, len < (uint32_t)cap ? len : (uint32_t)cap);
    return (int)len;
}

int32_t tok_n_vocab(const struct tok *t) { return t->n; }
int32_t tok_bos(const struct tok *t) { return t->bos; }
int32_t tok_eos(const struct tok *t) { return t->eos; }
bool tok_adds_bos(const struct tok *t) { return t->add_bos; }
bool tok_is_end(const struct tok *t, int32_t id) { return id >= 0 && id < t->n && t->end[id]; }
int32_t tok_find(const struct tok *t, const char *text)
{
    return tok_lookup(t, text, strlen(text));
}
const char *tok_model(const struct tok *t)
{
    return t->ranked ? "gemma4" : t->spm ? "llama" : "gpt2";
}
const char *tok_pre(const struct tok *t) { return t->spm ? "-" : t->pre->name; }
