/* ChatML: rendering, encoding, and finding out whether a file wants it.
 *
 * Owns nothing.  Runs no template language: a file whose template is something else is refused
 * with advice, not approximated. */
#include <stdlib.h>
#include <string.h>

#include "moe/load/tok_int.h"

static const char START[] = "<|im_start|>";
static const char END[] = "<|im_end|>";

/* ---- rendering ---- */

struct sink {
    char *buf;
    size_t n, cap; /* n counts on beyond cap */
};

static void put(struct sink *s, const char *text)
{
    for (; *text; text++, s->n++)
        if (s->n < s->cap) s->buf[s->n] = *text;
}

size_t chat_render(const struct chat_msg *msgs, int n, bool add_prompt, char *buf, size_t cap)
{
    struct sink s = {.buf = buf, .cap = cap};
    for (int i = 0; i < n; i++) {
        put(&s, START);
        put(&s, msgs[i].role);
        put(&s, "\n");
        put(&s, msgs[i].content);
        put(&s, END);
        put(&s, "\n");
    }
    if (add_prompt) {
        put(&s, START);
        put(&s, "assistant\n");
    }
    return s.n;
}

/* ---- encoding --------------------------------------------------------------------------------
 * Between two markers lies one stretch of plain text, the role with the content or a line end; it
 * is joined before it is encoded, because tokens may reach across the seam. */

struct stretch {
    struct enc e;
    int32_t start, end; /* the markers' ids */
    char *text;         /* [cap] */
    size_t n, cap;
};

static void add(struct stretch *c, const char *text)
{
    size_t len = strlen(text);
    memcpy(c->text + c->n, text, len);
    c->n += len;
}

/* The stretch is complete: its ids, then the marker's.  Vocabularies without markers spell them. */
static void close_with(struct stretch *c, int32_t marker, const char *text)
{
    if (marker < 0) {
        add(c, text);
        return;
    }
    enc_text(&c->e, c->text, c->n, false);
    enc_put(&c->e, marker);
    c->e.after_special = true;
    c->n = 0;
}

static void encode(struct stretch *c, const struct chat_msg *msgs, int n, bool add_prompt)
{
    for (int i = 0; i < n; i++) {
        close_with(c, c->start, START);
        add(c, msgs[i].role);
        add(c, "\n");
        add(c, msgs[i].content);
        close_with(c, c->end, END);
        add(c, "\n");
    }
    if (add_prompt) {
        close_with(c, c->start, START);
        add(c, "assistant\n");
    }
    enc_text(&c->e, c->text, c->n, false);
}

static int64_t encode_behind(const struct tok *t, const char *before, const struct chat_msg *msgs,
                             int n, bool add_prompt, int32_t *ids, int64_t cap)
{
    struct stretch c = {.start = tok_find(t, START), .end = tok_find(t, END)};
    c.cap = strlen(before) + chat_render(msgs, n, add_prompt, NULL, 0);
    c.text = malloc(c.cap + 1);
    if (!c.text) return -1;
    enc_begin(&c.e, t, c.cap, ids, cap);
    if (!*before && tok_adds_bos(t)) enc_put(&c.e, tok_bos(t));
    add(&c, before);
    encode(&c, msgs, n, add_prompt);
    free(c.text);
    return enc_end(&c.e);
}

int64_t chat_encode(const struct tok *t, const struct chat_msg *msgs, int n, bool add_prompt,
                    int32_t *ids, int64_t cap)
{
    return encode_behind(t, "", msgs, n, add_prompt, ids, cap);
}

int64_t chat_encode_next(const struct tok *t, const struct chat_msg *msgs, int n, bool add_prompt,
                         int32_t *ids, int64_t cap)
{
    return encode_behind(t, "\n", msgs, n, add_prompt, ids, cap);
}

/* ---- what the file wants ---- */

static bool contains(struct gguf_str s, const char *part)
{
    size_t n = strlen(part);
    for (uint64_t i = 0; i + n <= s.n; i++)
        if (!memcmp(s.s + i, part, n)) return true;
    return false;
}

static bool has_token(const struct gguf *g, const char *text)
{
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.tokens");
    if (!kv || kv->value.type != GGUF_ARRAY || kv->value.elem != GGUF_STRING) return false;
    size_t n = strlen(text);
    uint64_t cursor = 0;
    for (uint64_t i = 0; i < kv->value.n; i++) {
        struct gguf_str s = gguf_elem_next_str(&kv->value, &cursor);
        if (s.n == n && !memcmp(s.s, text, n)) return true;
    }
    return false;
}

enum status chat_check(const struct gguf *g, struct err *e)
{
    const char *why = "the file has neither a chat template nor ChatML's markers in its vocabulary";
    if (gguf_find(g, "tokenizer.chat_template")) {
        struct gguf_str text;
        enum status s = gguf_get_str(g, "tokenizer.chat_template", &text, e);
        if (s) return s;
        if (contains(text, START)) return OK;
        why = "the file's chat template is not ChatML, the only one that Tessera speaks (it has no "
              "\"<|im_start|>\")";
    } else if (has_token(g, START)) {
        return OK;
    }
    return err_set(e, ERR_UNSUPPORTED, "%s; write the prompt out as the model wants it and use "
                                       "`tessera run -p`",
                   why);
}
