/* See hf_vocab.h.
 *
 * Owns the parsed files as long as it lives: texts point into them, or into a list of texts of its
 * own where they had to be changed. */
#include "moe/load/hf_vocab.h"

#include <stdlib.h>
#include <string.h>

#include "moe/load/hf_int.h"

enum { VOCAB_MAX = 1 << 22, TEMPLATES_MAX = 16 };

struct entry { /* the tokens by text */
    struct gguf_str text;
    uint32_t id;
};

struct text { /* a text of our own */
    struct text *next;
    char s[];
};

enum special { BOS, EOS, UNK, SEP, PAD, MASK, EOT, EOM, N_SPECIAL };
static const struct {
    const char *text, *id, *key; /* in tokenizer_config.json, in config.json, in GGUF */
} specials[N_SPECIAL] = {
    [BOS] = {"bos_token", "bos_token_id", "tokenizer.ggml.bos_token_id"},
    [EOS] = {"eos_token", "eos_token_id", "tokenizer.ggml.eos_token_id"},
    [UNK] = {"unk_token", "unk_token_id", "tokenizer.ggml.unknown_token_id"},
    [SEP] = {"sep_token", "sep_token_id", "tokenizer.ggml.seperator_token_id"},
    [PAD] = {"pad_token", "pad_token_id", "tokenizer.ggml.padding_token_id"},
    [MASK] = {"mask_token", "mask_token_id", "tokenizer.ggml.mask_token_id"},
    [EOT] = {NULL, NULL, "tokenizer.ggml.eot_token_id"},
    [EOM] = {NULL, NULL, "tokenizer.ggml.eom_token_id"},
};

enum said { NOT_SAID, NO, YES };

struct hf_vocab {
    char *dir;
    cJSON *tokenizer, *config, *added, *generation, *template_json; /* NULL: not there */
    char *template_text, *model_bytes;
    struct hf_piece *piece; /* of model_bytes */
    uint32_t n_piece;
    struct text *texts;

    bool spm;
    const char *pre;
    uint32_t n, n_dropped;
    struct gguf_str *text; /* [n] s NULL: no file has it */
    float *score;          /* [n] */
    int32_t *type;         /* [n] enum tok_type */
    struct entry *entry;   /* [n_entry] sorted by text */
    uint32_t n_entry;
    struct gguf_str *merge; /* [n_merge] "a b" */
    uint32_t n_merge;
    int64_t id[N_SPECIAL];  /* -1: none */
    enum said add_bos, add_eos, add_space;
};

static enum status no_memory(const struct hf_vocab *v, struct err *e)
{
    return err_set(e, ERR_MEMORY, "no memory for the vocabulary of %s", v->dir);
}

/* ---- files ---- */

static char *path_of(const char *dir, const char *name)
{
    const size_t n = strlen(dir) + strlen(name) + 2;
    char *p = malloc(n);
    if (p) (void)snprintf(p, n, "%s/%s", dir, name);
    return p;
}

static enum status read_json(struct hf_vocab *v, const struct osfile_ops *ops, const char *name,
                             cJSON **out, struct err *e)
{
    char *path = path_of(v->dir, name);
    enum status s = path ? jf_read_if_there(path, ops, out, e) : no_memory(v, e);
    free(path);
    return s;
}

static enum status read_text(struct hf_vocab *v, const struct osfile_ops *ops, const char *name,
                             char **out, size_t *n, struct err *e)
{
    char *path = path_of(v->dir, name);
    enum status s = path ? jf_text_if_there(path, ops, out, n, e) : no_memory(v, e);
    free(path);
    return s;
}

static enum status read_model(struct hf_vocab *v, const struct osfile_ops *ops, struct err *e)
{
    size_t n;
    bool space = true;
    enum status s = read_text(v, ops, "tokenizer.model", &v->model_bytes, &n, e);
    if (s || !v->model_bytes) return s;
    char *path = path_of(v->dir, "tokenizer.model");
    if (!path) return no_memory(v, e);
    s = hf_spm_parse(path, v->model_bytes, n, &v->piece, &v->n_piece, &space, e);
    free(path);
    if (!space) v->add_space = NO;
    return s;
}

/* Does tokenizer.json hold a BPE, and is it of bytes? */
static bool is_bpe(const struct hf_vocab *v)
{
    const char *type = jf_str(jf_get(v->tokenizer, "model"), "type");
    return v->tokenizer && (!type || !strcmp(type, "BPE"));
}

static bool is_byte_level(const struct hf_vocab *v)
{
    return is_bpe(v) && !jf_true(jf_get(v->tokenizer, "model"), "byte_fallback");
}

static enum status read_files(struct hf_vocab *v, const struct osfile_ops *ops, struct err *e)
{
    enum status s;
    size_t n;
    if ((s = read_json(v, ops, "tokenizer.json", &v->tokenizer, e)) ||
        (s = read_json(v, ops, "tokenizer_config.json", &v->config, e)) ||
        (s = read_json(v, ops, "added_tokens.json", &v->added, e)) ||
        (s = read_json(v, ops, "generation_config.json", &v->generation, e)) ||
        (s = read_json(v, ops, "chat_template.json", &v->template_json, e)) ||
        (s = read_text(v, ops, "chat_template.jinja", &v->template_text, &n, e)))
        return s;
    if (is_byte_level(v)) return OK;
    v->spm = true;
    if ((s = read_model(v, ops, e)) || v->piece || is_bpe(v)) return s;
    if (v->tokenizer)
        return err_set(e, ERR_UNSUPPORTED, "%s/tokenizer.json: a model of type %.20s; BPE is "
                       "supported", v->dir, jf_str(jf_get(v->tokenizer, "model"), "type"));
    return err_set(e, ERR_MISSING,
                   "%s has neither tokenizer.json nor tokenizer.model: is it a whole checkpoint?",
                   v->dir);
}

/* ---- tokens ---- */

static bool looks_special(const char *s, size_t n)
{
    static const char bar[] = "\xef\xbd\x9c"; /* U+FF5C */
    if (n >= 4 && !memcmp(s, "<|", 2) && !memcmp(s + n - 2, "|>", 2)) return true;
    return (n == 5 && !memcmp(s, "<pad>", 5)) || (n == 6 && !memcmp(s, "<mask>", 6)) ||
           (n >= 8 && s[0] == '<' && !memcmp(s + 1, bar, 3) && !memcmp(s + n - 4, bar, 3) &&
            s[n - 1] == '>') ||
           (n >= 8 && !memcmp(s, "<unused", 7) && s[n - 1] == '>');
}

static struct text *new_text(struct hf_vocab *v, size_t n)
{
    struct text *t = malloc(sizeof *t + n);
    if (!t) return NULL;
    t->next = v->texts;
    v->texts = t;
    return t;
}

/* User-defined tokens are looked for in the text as it is: "▁" becomes a space.  s NULL: no
 * memory. */
static struct gguf_str with_spaces(struct hf_vocab *v, struct gguf_str in)
{
    static const char mark[] = "\xe2\x96\x81";
    struct text *t = new_text(v, (size_t)in.n + 1);
    if (!t) return (struct gguf_str){NULL, 0};
    uint64_t n = 0;
    for (uint64_t i = 0; i < in.n; n++) {
        const bool is_mark = in.n - i >= 3 && !memcmp(in.s + i, mark, 3);
        t->s[n] = is_mark ? ' ' : in.s[i];
        i += is_mark ? 3 : 1;
    }
    return (struct gguf_str){t->s, n};
}

static enum status set_token(struct hf_vocab *v, const char *file, uint64_t id,
                             struct gguf_str text, int type, float score, struct err *e)
{
    if (text.n > TOK_PIECE_MAX)
        return err_set(e, ERR_UNSUPPORTED, "%s/%s: token %llu has %llu bytes; %d at most are "
                       "supported", v->dir, file, (unsigned long long)id,
                       (unsigned long long)text.n, TOK_PIECE_MAX);
    if (id >= v->n) {
        v->n_dropped++;
        return OK;
    }
    if (type == TOK_USER && !(text = with_spaces(v, text)).s) return no_memory(v, e);
    v->text[id] = text;
    v->type[id] = type;
    v->score[id] = score;
    return OK;
}

static struct gguf_str str(const char *s) { return (struct gguf_str){s, strlen(s)}; }

/* A token of added_tokens, added_tokens_decoder or added_tokens.json. */
static enum status add_token(struct hf_vocab *v, const char *file, uint64_t id, const char *content,
                             bool special, struct err *e)
{
    const bool control = special || looks_special(content, strlen(content));
    return set_token(v, file, id, str(content), control ? TOK_CONTROL : TOK_USER,
                     v->spm ? -1000.0f : 0, e);
}

static enum status bad_token(const struct hf_vocab *v, const char *file, const char *what,
                             struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s/%s: %s: the file is damaged", v->dir, file, what);
}

static enum status add_listed(struct hf_vocab *v, struct err *e)
{
    const cJSON *list = jf_get(v->tokenizer, "added_tokens");
    for (const cJSON *t = list ? list->child : NULL; t; t = t->next) {
        uint64_t id;
        const char *content = jf_str(t, "content");
        if (!content || !jf_u64(jf_get(t, "id"), &id))
            return bad_token(v, "tokenizer.json", "an added token without \"id\" or \"content\"",
                             e);
        enum status s = add_token(v, "tokenizer.json", id, content, jf_true(t, "special"), e);
        if (s) return s;
    }
    return OK;
}

static enum status add_from_config(struct hf_vocab *v, struct err *e)
{
    const cJSON *list = jf_get(v->config, "added_tokens_decoder");
    for (const cJSON *t = list ? list->child : NULL; t; t = t->next) {
        char *end;
        const char *content = jf_str(t, "content");
        if (!content || !t->string || *t->string < '0' || *t->string > '9')
            return bad_token(v, "tokenizer_config.json", "an added token without id or content", e);
        const unsigned long long id = strtoull(t->string, &end, 10);
        if (*end)
            return bad_token(v, "tokenizer_config.json", "an added token's id is no number", e);
        enum status s =
            add_token(v, "tokenizer_config.json", id, content, jf_true(t, "special"), e);
        if (s) return s;
    }
    return OK;
}

static enum status add_from_map(struct hf_vocab *v, struct err *e)
{
    for (const cJSON *t = v->added ? v->added->child : NULL; t; t = t->next) {
        uint64_t id;
        if (!jf_u64(t, &id))
            return bad_token(v, "added_tokens.json", "an id is no whole number", e);
        enum status s =
            set_token(v, "added_tokens.json", id, str(t->string), TOK_USER, -1000.0f, e);
        if (s) return s;
    }
    return OK;
}

static enum status read_vocab(struct hf_vocab *v, struct err *e)
{
    const cJSON *map = jf_get(jf_get(v->tokenizer, "model"), "vocab");
    if (!cJSON_IsObject(map)) return bad_token(v, "tokenizer.json", "no \"vocab\"", e);
    for (const cJSON *t = map->child; t; t = t->next) {
        uint64_t id;
        if (!jf_u64(t, &id)) return bad_token(v, "tokenizer.json", "a token's id is no number", e);
        if (id >= v->n)
            return err_set(e, ERR_FORMAT,
                           "%s/tokenizer.json: token %llu is beyond the vocab_size %u of "
                           "config.json: the files do not belong together",
                           v->dir, (unsigned long long)id, v->n);
        if (v->text[id].s)
            return err_set(e, ERR_FORMAT, "%s/tokenizer.json: token %llu is there twice", v->dir,
                           (unsigned long long)id);
        const struct gguf_str text = str(t->string);
        const int type = v->spm && spm_byte_text(text.s, text.n) >= 0 ? TOK_BYTE : TOK_NORMAL;
        enum status s = set_token(v, "tokenizer.json", id, text, type, 0, e);
        if (s) return s;
    }
    return OK;
}

static enum status read_pieces(struct hf_vocab *v, struct err *e)
{
    for (uint32_t i = 0; i < v->n_piece; i++) {
        const struct hf_piece *p = &v->piece[i];
        enum status s = set_token(v, "tokenizer.model", i, (struct gguf_str){p->s, p->n}, p->type,
                                  p->score, e);
        if (s) return s;
    }
    enum status s = add_from_map(v, e);
    return s ? s : add_from_config(v, e);
}

/* Ids that no file names. */
static enum status fill_gaps(struct hf_vocab *v, struct err *e)
{
    uint32_t gaps = 0;
    for (uint32_t i = 0; i < v->n; i++) gaps += !v->text[i].s;
    if (gaps == v->n) return bad_token(v, "tokenizer.json", "no tokens", e);
    if (!gaps) return OK;
    enum { ROOM = 20 };
    struct text *t = new_text(v, (size_t)gaps * ROOM);
    if (!t) return no_memory(v, e);
    char *at = t->s;
    for (uint32_t i = 0; i < v->n; i++) {
        if (v->text[i].s) continue;
        v->text[i] = (struct gguf_str){at, (uint64_t)snprintf(at, ROOM, "[PAD%u]", i)};
        v->type[i] = TOK_UNUSED;
        v->score[i] = v->spm ? -10000.0f : 0;
        at += ROOM;
    }
    return OK;
}

static int by_text(const void *a, const void *b)
{
    const struct gguf_str *x = &((const struct entry *)a)->text,
                          *y = &((const struct entry *)b)->text;
    const int c = memcmp(x->s, y->s, (size_t)(x->n < y->n ? x->n : y->n));
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

static int64_t find(const struct hf_vocab *v, const char *s, size_t n)
{
    const struct entry key = {.text = {s, n}};
    const struct entry *at = v->n_entry
        ? bsearch(&key, v->entry, v->n_entry, sizeof key, by_text) : NULL;
    return at ? (int64_t)at->id : -1;
}

static enum status index_texts(struct hf_vocab *v, struct err *e)
{
    v->entry = malloc(v->n * sizeof *v->entry);
    if (!v->entry) return no_memory(v, e);
    for (uint32_t i = 0; i < v->n; i++)
        if (v->text[i].n) v->entry[v->n_entry++] = (struct entry){v->text[i], i};
    qsort(v->entry, v->n_entry, sizeof *v->entry, by_text);
    for (uint32_t i = 1; i < v->n_entry; i++)
        if (!by_text(&v->entry[i - 1], &v->entry[i]))
            return err_set(e, ERR_FORMAT, "%s: tokens %u and %u have the same text \"%.*s\"",
                           v->dir, v->entry[i - 1].id, v->entry[i].id,
                           (int)(v->entry[i].text.n < 60 ? v->entry[i].text.n : 60),
                           v->entry[i].text.s);
    return OK;
}

/* ---- merges ---- */

/* The two halves of a merge, "a b" or ["a", "b"]. */
static bool halves(const cJSON *m, struct gguf_str half[2])
{
    const char *s = cJSON_GetStringValue(m);
    if (s) {
        const char *space = strchr(s, ' ');
        if (!space || space == s || !space[1] || strchr(space + 1, ' ')) return false;
        half[0] = (struct gguf_str){s, (uint64_t)(space - s)};
        half[1] = (struct gguf_str){space + 1, strlen(space + 1)};
        return true;
    }
    if (!cJSON_IsArray(m) || cJSON_GetArraySize(m) != 2) return false;
    const char *a = cJSON_GetStringValue(m->child), *b = cJSON_GetStringValue(m->child->next);
    if (!a || !b || !*a || !*b) return false;
    half[0] = (struct gguf_str){a, strlen(a)};
    half[1] = (struct gguf_str){b, strlen(b)};
    return true;
}

/* A space inside a half is written as the letter that stands for its byte. */
static char *put_half(char *at, struct gguf_str half)
{
    for (uint64_t i = 0; i < half.n; i++) {
        if (half.s[i] != ' ') {
            *at++ = half.s[i];
        } else {
            *at++ = '\xc4';
            *at++ = '\xa0';
        }
    }
    return at;
}

static enum status keep_merges(struct hf_vocab *v, const cJSON *list, uint32_t n, struct err *e)
{
    struct gguf_str half[2];
    size_t room = 0;
    for (const cJSON *m = list->child; m; m = m->next)
        if (halves(m, half)) room += 2 * (size_t)(half[0].n + half[1].n) + 1;
    struct text *t = new_text(v, room);
    v->merge = malloc(((size_t)n + 1) * sizeof *v->merge);
    if (!t || !v->merge) return no_memory(v, e);
    char *at = t->s;
    for (const cJSON *m = list->child; m; m = m->next) {
        if (!halves(m, half))
            return err_set(e, ERR_FORMAT,
                           "%s/tokenizer.json: merge %u is no pair of texts: the file is damaged",
                           v->dir, v->n_merge);
        char *from = at;
        at = put_half(at, half[0]);
        *at++ = ' ';
        at = put_half(at, half[1]);
        v->merge[v->n_merge++] = (struct gguf_str){from, (uint64_t)(at - from)};
    }
    return OK;
}

/* SentencePiece-style: what is merged earlier has the higher score. */
static enum status score_merges(struct hf_vocab *v, const cJSON *list, uint32_t n, struct err *e)
{
    uint32_t rank = 0;
    for (uint32_t i = 0; i < v->n; i++)
        if (v->type[i] == TOK_NORMAL) v->score[i] = -(float)n - 1;
    for (const cJSON *m = list->child; m; m = m->next, rank++) {
        struct gguf_str half[2];
        char joined[2 * TOK_PIECE_MAX];
        if (!halves(m, half) || half[0].n > TOK_PIECE_MAX || half[1].n > TOK_PIECE_MAX)
            return err_set(e, ERR_FORMAT,
                           "%s/tokenizer.json: merge %u is no pair of texts: the file is damaged",
                           v->dir, rank);
        memcpy(joined, half[0].s, half[0].n);
        memcpy(joined + half[0].n, half[1].s, half[1].n);
        const int64_t id = find(v, joined, half[0].n + half[1].n);
        if (id < 0)
            return err_set(e, ERR_FORMAT, "%s/tokenizer.json: merge %u makes no token", v->dir,
                           rank);
        if (v->type[id] == TOK_NORMAL && v->score[id] < -(float)n) v->score[id] = -(float)rank;
    }
    return OK;
}

static enum status read_merges(struct hf_vocab *v, struct err *e)
{
    const cJSON *list = jf_get(jf_get(v->tokenizer, "model"), "merges");
    if (!cJSON_IsArray(list)) return bad_token(v, "tokenizer.json", "no \"merges\"", e);
    const uint32_t n = (uint32_t)cJSON_GetArraySize(list);
    return v->spm ? score_merges(v, list, n, e) : keep_merges(v, list, n, e);
}

/* ---- what surrounds the model ---- */

static enum status strange(const struct hf_vocab *v, const char *part, const char *type,
                           struct err *e)
{
    return err_set(e, ERR_UNSUPPORTED, "%s/tokenizer.json: a \"%s\" of type %.40s is not supported "
                   "here", v->dir, part, type ? type : "?");
}

static const cJSON *first_of(const cJSON *o, const char *list)
{
    const cJSON *l = jf_get(o, list);
    return cJSON_IsArray(l) ? l->child : o;
}

/* Byte-level text is taken as it is; NFC, which no GGUF runtime applies, changes nothing in nearly
 * all of it.  SentencePiece-style: "▁" first, then for each space. */
static enum status check_normalizer(struct hf_vocab *v, struct err *e)
{
    const cJSON *norm = jf_get(v->tokenizer, "normalizer");
    v->add_space = NO;
    for (const cJSON *p = first_of(norm, "normalizers"); p; p = p->next) {
        const char *type = jf_str(p, "type");
        const bool prepend = type && !strcmp(type, "Prepend");
        if (v->spm && prepend) v->add_space = YES;
        else if (!type || strcmp(type, v->spm ? "Replace" : "NFC"))
            return strange(v, "normalizer", type, e);
        if (p == norm) break;
    }
    return OK;
}

static enum status check_metaspace(struct hf_vocab *v, struct err *e)
{
    const cJSON *pre = jf_get(v->tokenizer, "pre_tokenizer");
    if (!pre) return OK;
    const char *type = jf_str(pre, "type"), *scheme = jf_str(pre, "prepend_scheme");
    if (!type || strcmp(type, "Metaspace")) return strange(v, "pre_tokenizer", type, e);
    const bool never = scheme ? !strcmp(scheme, "never")
                              : cJSON_IsFalse(jf_get(pre, "add_prefix_space"));
    v->add_space = never ? NO : YES;
    return OK;
}

/* A bos token in front and an eos token behind, as the post-processor's template has them. */
static void read_template_processing(struct hf_vocab *v)
{
    const cJSON *post = jf_get(v->tokenizer, "post_processor");
    for (const cJSON *p = first_of(post, "processors"); p; p = p->next) {
        const char *type = jf_str(p, "type");
        const cJSON *single = jf_get(p, "single");
        if (type && !strcmp(type, "TemplateProcessing") && cJSON_GetArraySize(single) > 1) {
            const cJSON *last = single->child;
            while (last->next) last = last->next;
            const char *bos = jf_str(jf_get(single->child, "SpecialToken"), "id");
            const char *eos = jf_str(jf_get(last, "SpecialToken"), "id");
            const int64_t b = bos ? find(v, bos, strlen(bos)) : -1;
            const int64_t x = eos ? find(v, eos, strlen(eos)) : -1;
            if (bos && v->id[BOS] < 0) v->id[BOS] = b;
            if (bos) v->add_bos = b >= 0 && b == v->id[BOS] ? YES : NO;
            if (eos) v->add_eos = x >= 0 && x == v->id[EOS] ? YES : NO;
        }
        if (p == post) break;
    }
}

static enum said said_bool(const cJSON *o, const char *name, enum said dflt)
{
    const cJSON *v = jf_get(o, name);
    return cJSON_IsBool(v) ? (cJSON_IsTrue(v) ? YES : NO) : dflt;
}

/* ---- special ids ---- */

static int64_t valid_id(struct hf_vocab *v, const cJSON *x)
{
    uint64_t id;
    if (cJSON_IsArray(x)) x = x->child;
    if (!jf_u64(x, &id)) return -1; /* -1 and the like mean none */
    if (id < v->n) return (int64_t)id;
    v->n_dropped++;
    return -1;
}

static void read_special(struct hf_vocab *v, const cJSON *model_config, enum special which)
{
    const cJSON *t = jf_get(v->config, specials[which].text);
    const char *text = cJSON_IsString(t) ? t->valuestring : jf_str(t, "content");
    if (text) v->id[which] = find(v, text, strlen(text));
    if (v->id[which] < 0) v->id[which] = valid_id(v, jf_get(model_config, specials[which].id));
}

/* Whatever else ends an answer, if its text does not say so. */
static void read_ends(struct hf_vocab *v)
{
    const cJSON *ends = jf_get(v->generation, "eos_token_id");
    for (const cJSON *x = cJSON_IsArray(ends) ? ends->child : ends; x; x = x->next) {
        const int64_t id = valid_id(v, x);
        if (v->id[EOS] < 0) v->id[EOS] = id;
        if (id >= 0 && id != v->id[EOS] &&
            !tok_is_end_text(v->text[id].s, v->text[id].n)) {
            if (v->id[EOT] < 0) v->id[EOT] = id;
            else if (v->id[EOM] < 0 && id != v->id[EOT]) v->id[EOM] = id;
        }
        if (x == ends) break;
    }
}

static void read_specials(struct hf_vocab *v, const cJSON *model_config)
{
    for (int i = 0; i < N_SPECIAL; i++) v->id[i] = -1;
    for (int i = BOS; i <= MASK; i++) read_special(v, model_config, (enum special)i);
    read_template_processing(v);
    read_ends(v);
    v->add_bos = said_bool(v->config, "add_bos_token", v->add_bos);
    v->add_eos = said_bool(v->config, "add_eos_token", v->add_eos);
    v->add_space = said_bool(v->config, "add_prefix_space", v->add_space == NO ? NO : NOT_SAID);
}

/* ---- open, put, close ---- */

static enum status choose_pre(struct hf_vocab *v, const char *pre, struct err *e)
{
    if (v->spm) {
        v->pre = "default";
        return pre ? err_set(e, ERR_UNSUPPORTED, "%s has a SentencePiece-style tokenizer, for which "
                             "--pre means nothing", v->dir) : OK;
    }
    if (pre) {
        const struct pre *known = pre_find(pre, strlen(pre));
        v->pre = known ? known->name : NULL;
        return known ? OK : err_set(e, ERR_UNSUPPORTED, "the pre-tokenizer %.40s is not known", pre);
    }
    char *path = path_of(v->dir, "tokenizer.json");
    if (!path) return no_memory(v, e);
    v->pre = hf_pre_name(path, jf_get(v->tokenizer, "pre_tokenizer"),
                         jf_true(jf_get(v->tokenizer, "model"), "ignore_merges"), e);
    free(path);
    return v->pre ? OK : e->code;
}

static enum status fill(struct hf_vocab *v, const struct osfile_ops *ops, const cJSON *config,
                        const char *pre, struct err *e)
{
    uint64_t n;
    if (!jf_u64(jf_get(config, "vocab_size"), &n) || !n || n > VOCAB_MAX)
        return err_set(e, ERR_FORMAT, "%s/config.json: \"vocab_size\" is missing or impossible",
                       v->dir);
    v->n = (uint32_t)n;
    v->text = calloc(v->n, sizeof *v->text);
    v->score = calloc(v->n, sizeof *v->score);
    v->type = calloc(v->n, sizeof *v->type);
    if (!v->text || !v->score || !v->type) return no_memory(v, e);
    enum status s = read_files(v, ops, e);
    if (!s) s = choose_pre(v, pre, e);
    if (!s && v->piece) s = read_pieces(v, e);
    if (!s && !v->piece) {
        if (!(s = check_normalizer(v, e)) && v->spm) s = check_metaspace(v, e);
        if (!s && !(s = read_vocab(v, e))) s = add_listed(v, e);
    }
    if (!s) s = fill_gaps(v, e);
    if (!s) s = index_texts(v, e);
    if (!s && !v->piece) s = read_merges(v, e);
    if (!s) read_specials(v, config);
    return s;
}

enum status hf_vocab_open(const char *dir, const struct osfile_ops *ops, const cJSON *config,
                          const char *pre, struct hf_vocab **out, struct err *e)
{
    struct err own;
    if (!e) err_clear(e = &own);
    *out = NULL;
    struct hf_vocab *v = calloc(1, sizeof *v);
    if (!v) return err_set(e, ERR_MEMORY, "no memory for the vocabulary of %s", dir);
    v->dir = strdup(dir);
    enum status s = v->dir ? fill(v, ops, config, pre, e)
                           : err_set(e, ERR_MEMORY, "no memory for the vocabulary of %s", dir);
    if (s) {
        hf_vocab_close(v);
        return s;
    }
    *out = v;
    return OK;
}

void hf_vocab_close(struct hf_vocab *v)
{
    if (!v) return;
    cJSON *const files[] = {v->tokenizer, v->config, v->added, v->generation, v->template_json};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) cJSON_Delete(files[i]);
    while (v->texts) {
        struct text *next = v->texts->next;
        free(v->texts);
        v->texts = next;
    }
    free(v->dir);
    free(v->template_text);
    free(v->model_bytes);
    free(v->piece);
    free(v->text);
    free(v->score);
    free(v->type);
    free(v->entry);
    free(v->merge);
    free(v);
}

uint32_t hf_vocab_n_dropped(const struct hf_vocab *v) { return v->n_dropped; }

static const char *default_of(const cJSON *t)
{
    if (cJSON_IsString(t)) return t->valuestring;
    for (const cJSON *x = cJSON_IsArray(t) ? t->child : NULL; x; x = x->next) {
        const char *name = jf_str(x, "name");
        if (name && !strcmp(name, "default")) return jf_str(x, "template");
    }
    return NULL;
}

/* The other named ones, tokenizer.chat_template.NAME, and the list of their names. */
static void put_named_templates(const cJSON *t, struct gguf_writer *w)
{
    struct gguf_str names[TEMPLATES_MAX];
    uint64_t n = 0;
    for (const cJSON *x = cJSON_IsArray(t) ? t->child : NULL; x && n < TEMPLATES_MAX; x = x->next) {
        const char *name = jf_str(x, "name"), *text = jf_str(x, "template");
        char key[96];
        if (!name || !text || !strcmp(name, "default") || strlen(name) > 40 ||
            strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") !=
                strlen(name))
            continue;
        (void)snprintf(key, sizeof key, "tokenizer.chat_template.%s", name);
        gguf_put_str(w, key, text);
        names[n++] = (struct gguf_str){name, strlen(name)};
    }
    if (n) gguf_put_strs(w, "tokenizer.chat_templates", names, n);
}

static void put_template(const struct hf_vocab *v, struct gguf_writer *w)
{
    const cJSON *t = jf_get(v->config, "chat_template");
    if (!t && !v->template_text) t = jf_get(v->template_json, "chat_template");
    const char *text = t ? default_of(t) : v->template_text;
    put_named_templates(t, w);
    if (text) gguf_put_str(w, "tokenizer.chat_template", text);
}

void hf_vocab_put(const struct hf_vocab *v, struct gguf_writer *w, bool add_bos)
{
    gguf_put_str(w, "tokenizer.ggml.model", v->spm ? "llama" : "gpt2");
    gguf_put_str(w, "tokenizer.ggml.pre", v->pre);
    gguf_put_strs(w, "tokenizer.ggml.tokens", v->text, v->n);
    if (v->spm) gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, v->score, v->n);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, v->type, v->n);
    if (!v->spm) gguf_put_strs(w, "tokenizer.ggml.merges", v->merge, v->n_merge);
    for (int i = 0; i < N_SPECIAL; i++)
        if (v->id[i] >= 0) gguf_put_u32(w, specials[i].key, (uint32_t)v->id[i]);
    const bool assumed = v->spm || pre_find(v->pre, strlen(v->pre))->add_bos;
    if (add_bos || v->add_bos || assumed)
        gguf_put_bool(w, "tokenizer.ggml.add_bos_token", add_bos || v->add_bos == YES);
    if (v->add_eos) gguf_put_bool(w, "tokenizer.ggml.add_eos_token", v->add_eos == YES);
    if (v->spm && v->add_space)
        gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->add_space == YES);
    put_template(v, w);
}
