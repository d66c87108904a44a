/* Chats, the way there: choosing a template, rendering messages, turning the text into ids.
 *
 * Owns struct chat.  Jinja itself is jinja.h; the way back is chat_read.c.
 *
 * DESIGN.  Templates may drop what they wrote a turn before (thinking, dates, tool results), so
 * nothing is appended: every turn renders and encodes the whole conversation, and the session keeps
 * the prefix of ids that did not change.  Text is cut into tokens between special tokens, each
 * stretch for itself; `keep` makes use of that.  Invariant: a stretch of the prompt that spells what
 * the session holds in that place has the session's ids. */
#include "moe/load/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/chat_int.h"
#include "moe/load/tok_int.h"

/* ---- bytes ---- */

void chat_put(struct chat_text *b, const char *s, size_t n)
{
    if (b->oom) return;
    if (b->n + n >= b->cap) {
        size_t cap = (b->n + n) * 2 + 256;
        char *more = realloc(b->s, cap);
        if (!more) {
            b->oom = true;
            return;
        }
        b->s = more;
        b->cap = cap;
    }
    memcpy(b->s + b->n, s, n);
    b->n += n;
    b->s[b->n] = 0;
}

void chat_puts(struct chat_text *b, const char *s) { chat_put(b, s, strlen(s)); }

void chat_put_json(struct chat_text *b, const char *s)
{
    chat_puts(b, "\"");
    while (*s) {
        size_t plain = 0;
        while ((unsigned char)s[plain] >= 0x20 && s[plain] != '"' && s[plain] != '\\') plain++;
        chat_put(b, s, plain);
        s += plain;
        if (!*s) break;
        char esc[8];
        (void)snprintf(esc, sizeof esc, "\\u%04x", (unsigned)(unsigned char)*s++);
        chat_puts(b, esc);
    }
    chat_puts(b, "\"");
}

const char *chat_find(const char *s, size_t n, const char *part)
{
    size_t len = strlen(part);
    const char *end = s + n;
    while ((size_t)(end - s) >= len && (s = memchr(s, part[0], (size_t)(end - s) - len + 1))) {
        if (!memcmp(s, part, len)) return s;
        s++;
    }
    return NULL;
}

/* ---- choosing a template ---- */

static enum status no_memory(struct err *e)
{
    return err_set(e, ERR_MEMORY, "no memory for the chat template");
}

static enum status take(struct chat *c, const char *s, size_t n, struct err *e)
{
    c->src = malloc(n + 1);
    if (!c->src) return no_memory(e);
    memcpy(c->src, s, n);
    c->src[n] = 0;
    c->n_src = n;
    return OK;
}

static enum status take_builtin(struct chat *c, const char *name, struct err *e)
{
    const char *text = chat_builtin(name);
    (void)snprintf(c->origin, sizeof c->origin, "the built-in template %s", name);
    if (!strcmp(name, "plain")) c->stop = "\nUser:";
    return take(c, text, strlen(text), e);
}

/* Takes the file's template of that key; leaves c->src NULL when there is none, or only blanks. */
static enum status take_key(struct chat *c, const struct gguf *g, const char *key, struct err *e)
{
    struct gguf_str text;
    if (!gguf_find(g, key)) return OK;
    enum status s = gguf_get_str(g, key, &text, e);
    if (s) return s;
    size_t blank = 0;
    while (blank < text.n && strchr(" \t\r\n", text.s[blank])) blank++;
    if (blank == text.n) return OK;
    (void)snprintf(c->origin, sizeof c->origin, "the model's %s", key);
    return take(c, text.s, text.n, e);
}

static enum status take_named(struct chat *c, const struct gguf *g, const char *name,
                              struct err *e)
{
    char key[128];
    (void)snprintf(key, sizeof key, "tokenizer.chat_template.%.90s", name);
    enum status s = take_key(c, g, key, e);
    if (s || c->src) return s;
    if (chat_builtin(name)) return take_builtin(c, name, e);
    return err_set(e, ERR_MISSING, "there is no chat template called \"%.60s\", neither built in nor "
                                   "in the model (%s)", name, key);
}

static const char plain_note[] =
    "the model has no chat template and no ChatML markers: turns are plain text (\"User: ...\", "
    "\"Assistant: ...\"); --chat-template names another";

/* Without a template. */
static enum status take_default(struct chat *c, struct err *e)
{
    if (tok_find(c->t, "<|im_start|>") >= 0 && tok_find(c->t, "<|im_end|>") >= 0) {
        c->note = "the model has no chat template: ChatML, which its vocabulary has the markers of";
        return take_builtin(c, "chatml", e);
    }
    c->note = plain_note;
    return take_builtin(c, "plain", e);
}

static enum status choose(struct chat *c, const struct gguf *g, const struct chat_options *o,
                          struct err *e)
{
    if (o->text) {
        (void)snprintf(c->origin, sizeof c->origin, "%s", o->origin);
        return take(c, o->text, o->n, e);
    }
    if (o->name) return take_named(c, g, o->name, e);
    enum status s = take_key(c, g, "tokenizer.chat_template", e);
    if (!s && !c->src) s = take_key(c, g, "tokenizer.chat_template.default", e);
    return s || c->src ? s : take_default(c, e);
}

/* Says whose mistake it is and what to do. */
static enum status blame(const struct chat *c, const struct err *inner, struct err *e)
{
    if (inner->code == ERR_MEMORY || inner->code == ERR_USAGE)
        return err_set(e, inner->code, "%s", inner->msg);
    return err_set(e, inner->code, "%s, %s (--chat-template FILE takes another)", c->origin,
                   inner->msg);
}

/* ---- what never changes ---- */

static void put_token(struct chat_text *b, const struct tok *t, const char *name, int32_t id)
{
    char text[TOK_PIECE_MAX + 1];
    if (id < 0) return;
    int n = tok_piece(t, id, true, text, TOK_PIECE_MAX);
    text[n] = 0;
    chat_puts(b, ",");
    chat_put_json(b, name);
    chat_puts(b, ":");
    chat_put_json(b, text);
}

/* A template of nothing reads the variables all the same. */
static enum status check_kwargs(const char *kwargs, struct err *e)
{
    struct jinja *none;
    struct jinja_text text;
    enum status s = jinja_parse("", 0, &none, e);
    if (s) return s;
    s = jinja_render(none, kwargs, NULL, NULL, &text, e);
    jinja_text_free(&text);
    jinja_free(none);
    return s;
}

/* What Hugging Face passes, then the caller's variables: of equal names the last one counts. */
static enum status make_head(struct chat *c, const char *kwargs, struct err *e)
{
    struct chat_text b = {0};
    enum status s = kwargs ? check_kwargs(kwargs, e) : OK;
    if (s) return s;
    chat_puts(&b, "{\"tools\":null,\"documents\":null");
    put_token(&b, c->t, "bos_token", tok_bos(c->t));
    put_token(&b, c->t, "eos_token", tok_eos(c->t));
    if (kwargs) {
        const char *from = strchr(kwargs, '{') + 1, *to = strrchr(kwargs, '}');
        from += strspn(from, " \t\r\n");
        if (from < to) chat_puts(&b, ",");
        if (from < to) chat_put(&b, from, (size_t)(to - from));
    }
    c->head = b.s;
    return b.oom ? no_memory(e) : OK;
}

/* Is that a marker, although the file calls it a word of its users'?  By its looks alone, or by
 * looks and because the template spells it; runs of spaces and the like are neither. */
static bool is_marker(const struct chat *c, const char *s, uint32_t n)
{
    char text[64];
    if (n < 3 || n >= sizeof text) return false;
    bool angle = s[0] == '<' && s[n - 1] == '>', square = s[0] == '[' && s[n - 1] == ']';
    if (!angle && !square) return false;
    if (angle && (s[1] == '|' || s[n - 2] == '|' || !memcmp(s + 1, "\xef\xbd\x9c", 3))) return true;
    memcpy(text, s, n);
    text[n] = 0;
    return chat_find(c->src, c->n_src, text) != NULL;
}

static enum status make_types(struct chat *c, struct err *e)
{
    const struct tok *t = c->t;
    c->type = malloc((size_t)t->n);
    if (!c->type) return no_memory(e);
    memcpy(c->type, t->type, (size_t)t->n);
    for (int32_t i = 0; i < t->n_special; i++) {
        uint32_t len;
        int32_t id = t->special[i];
        const char *text = tok_text(t, id, &len);
        if (t->type[id] == TOK_USER && is_marker(c, text, len)) c->type[id] = TOK_CONTROL;
    }
    return OK;
}

static enum status open_chat(struct chat *c, const struct gguf *g, const struct chat_options *o,
                             struct err *e)
{
    struct err inner;
    err_clear(&inner);
    enum status s = choose(c, g, o, e);
    if (!s && jinja_parse(c->src, c->n_src, &c->tpl, &inner)) s = blame(c, &inner, e);
    if (!s) s = make_head(c, o->kwargs, e);
    if (!s) s = make_types(c, e);
    if (s) return s;
    if (o->now) c->now = *o->now;
    c->fixed_now = o->now != NULL;
    c->marks = chat_marks(c->src, c->n_src);
    return chat_think_find(c, e);
}

enum status chat_open(const struct gguf *g, const struct tok *t, const struct chat_options *o,
                      struct chat **out, struct err *e)
{
    *out = NULL;
    struct chat *c = calloc(1, sizeof *c);
    if (!c) return no_memory(e);
    c->t = t;
    enum status s = open_chat(c, g, o, e);
    if (s) {
        chat_close(c);
        return s;
    }
    *out = c;
    return OK;
}

void chat_close(struct chat *c)
{
    if (!c) return;
    jinja_free(c->tpl);
    free(c->src);
    free(c->head);
    free(c->type);
    free(c);
}

const char *chat_origin(const struct chat *c) { return c->origin; }
const char *chat_note(const struct chat *c) { return c->note; }
const char *chat_stop(const struct chat *c) { return c->stop; }

/* ---- rendering ---- */

/* The name under which the template looks for it, as a name or as a text; one name only, because
 * some would print it twice. */
static const char *thinking_key(const struct chat *c)
{
    bool usual = chat_find(c->src, c->n_src, "reasoning_content");
    return !usual && chat_find(c->src, c->n_src, "thinking") ? "thinking" : "reasoning_content";
}

static void put_messages(const struct chat *c, const struct chat_turn *turn, struct chat_text *b)
{
    const char *key = thinking_key(c);
    for (int i = 0; i < turn->n; i++) {
        const struct chat_msg *m = &turn->msgs[i];
        chat_puts(b, i ? ",{\"role\":" : "{\"role\":");
        chat_put_json(b, m->role);
        chat_puts(b, ",\"content\":");
        chat_put_json(b, m->content);
        if (m->thinking && *m->thinking) {
            chat_puts(b, ",");
            chat_put_json(b, key);
            chat_puts(b, ":");
            chat_put_json(b, m->thinking);
        }
        chat_puts(b, "}");
    }
}

static bool tell_time(void *arg, struct tm *local)
{
    const struct chat *c = arg;
    *local = c->now;
    return true;
}

enum status chat_render(const struct chat *c, const struct chat_turn *turn, struct jinja_text *out,
                        struct err *e)
{
    struct chat_text b = {0};
    struct err inner;
    const struct jinja_env env = {.now = c->fixed_now ? tell_time : NULL, .arg = (void *)c};
    *out = (struct jinja_text){0};
    err_clear(&inner);
    chat_puts(&b, c->head);
    chat_think_put(c, turn->think, &b);
    chat_puts(&b, ",\"messages\":[");
    put_messages(c, turn, &b);
    chat_puts(&b, turn->add_prompt ? "],\"add_generation_prompt\":true}"
                                   : "],\"add_generation_prompt\":false}");
    /* The costliest templates known take 15 times the conversation. */
    const struct jinja_limits limits = {.bytes = ((size_t)16 << 20) + 64 * b.n,
                                        .output = ((size_t)1 << 20) + 4 * b.n};
    enum status s = b.oom ? no_memory(e) : OK;
    if (!s && jinja_render(c->tpl, b.s, &limits, &env, out, &inner)) s = blame(c, &inner, e);
    free(b.s);
    return s;
}

/* ---- ids ---- */

/* Does the template write the BOS token itself? */
static bool begins_with_bos(const struct tok *t, const struct jinja_text *text)
{
    uint32_t len;
    const char *bos = tok_text(t, tok_bos(t), &len);
    return len && text->n_runs && !text->run[0].from_variable && text->run[0].end >= len &&
           !memcmp(text->s, bos, len);
}

static int64_t encode(const struct chat *c, const struct jinja_text *text,
                      const struct enc_span *span, int32_t *ids, int64_t cap)
{
    struct enc e;
    enc_begin(&e, c->t, text->n, ids, cap);
    e.type = c->type;
    if (tok_adds_bos(c->t) && !begins_with_bos(c->t, text)) enc_put(&e, tok_bos(c->t));
    enc_spans(&e, text->s, text->n, span);
    return enc_end(&e);
}

/* The ids as the text has them. */
static enum status encode_text(const struct chat *c, const struct jinja_text *text, int32_t **ids,
                               int64_t *n, struct err *e)
{
    int64_t cap = (int64_t)text->n + 16; /* enough but for the rarest vocabularies */
    struct enc_span *span = malloc((text->n_runs + 1) * sizeof *span);
    *ids = malloc((size_t)cap * sizeof **ids);
    *n = -1;
    for (size_t i = 0; span && i < text->n_runs; i++)
        span[i] = (struct enc_span){text->run[i].end, !text->run[i].from_variable};
    if (span && *ids) *n = encode(c, text, span, *ids, cap);
    if (*n > cap) {
        int32_t *more = realloc(*ids, (size_t)*n * sizeof *more);
        if (more) *ids = more;
        *n = more ? encode(c, text, span, more, *n) : -1;
    }
    free(span);
    return *n >= 0 && *n <= INT32_MAX ? OK : err_set(e, ERR_MEMORY, "no memory for the prompt");
}

/* The first token of ids[i..n) that cuts the text, or n. */
static int64_t next_special(const struct tok *t, const int32_t *ids, int64_t i, int64_t n)
{
    for (; i < n; i++) {
        uint8_t type = ids[i] >= 0 && ids[i] < t->n ? t->type[ids[i]] : TOK_UNKNOWN;
        if (type == TOK_CONTROL || type == TOK_UNKNOWN || type == TOK_USER) break;
    }
    return i;
}

struct spelling {
    const int32_t *ids, *end;
    int at, n; /* in the piece of ids[-1] */
    char piece[TOK_PIECE_MAX];
};

static bool spell(const struct tok *t, struct spelling *s)
{
    while (s->at == s->n && s->ids < s->end) {
        s->n = tok_piece(t, *s->ids++, true, s->piece, TOK_PIECE_MAX);
        s->at = 0;
    }
    return s->at < s->n;
}

/* Do both lists spell the same bytes? */
static bool same_text(const struct tok *t, const int32_t *a, int64_t na, const int32_t *b,
                      int64_t nb)
{
    struct spelling x = {.ids = a, .end = a + na}, y = {.ids = b, .end = b + nb};
    for (;;) {
        bool more = spell(t, &x);
        if (more != spell(t, &y)) return false;
        if (!more) return true;
        if (x.piece[x.at++] != y.piece[y.at++]) return false;
    }
}

/* Writes ids[n] to out[n + n_held], with the stretches of `held` that spell the same. */
static int64_t keep(const struct tok *t, const int32_t *ids, int64_t n, const int32_t *held,
                    int64_t n_held, int32_t *out)
{
    int64_t i = 0, j = 0, k = 0;
    while (i < n && j < n_held) {
        if (ids[i] == held[j]) {
            out[k++] = ids[i++];
            j++;
            continue;
        }
        int64_t i_end = next_special(t, ids, i, n), j_end = next_special(t, held, j, n_held);
        if (i_end == i || j_end == j || !same_text(t, ids + i, i_end - i, held + j, j_end - j))
            break;
        while (j < j_end) out[k++] = held[j++];
        i = i_end;
    }
    while (i < n) out[k++] = ids[i++];
    return k;
}

enum status chat_encode(const struct chat *c, const struct chat_turn *turn,
                        struct chat_prompt *out, struct err *e)
{
    struct jinja_text text;
    int32_t *ids = NULL;
    int64_t n = 0;
    *out = (struct chat_prompt){0};
    enum status s = chat_render(c, turn, &text, e);
    if (s) return s;
    s = encode_text(c, &text, &ids, &n, e);
    if (!s && turn->n_held > 0) {
        int32_t *kept = malloc((size_t)(n + turn->n_held) * sizeof *kept);
        if (!kept) s = err_set(e, ERR_MEMORY, "no memory for the prompt");
        if (kept) n = keep(c->t, ids, n, turn->held, turn->n_held, kept);
        free(ids);
        ids = kept;
    }
    if (!s) {
        size_t tail = text.n_runs && !text.run[text.n_runs - 1].from_variable
                          ? text.run[text.n_runs - 1].start : text.n;
        *out = (struct chat_prompt){.ids = ids, .n = (int)n};
        chat_reader_begin(&out->reader, c->marks, text.s + tail, text.n - tail);
    } else {
        free(ids);
    }
    jinja_text_free(&text);
    return s;
}
