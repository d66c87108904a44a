/* Turns of a conversation: from a message to ids, from ids to a printed answer. */
#include "cli/talk.h"

#include <stdlib.h>
#include <string.h>

/* ---- messages ---- */

static bool no_memory(void)
{
    fprintf(stderr, "tessera: no memory for the conversation\n");
    return false;
}

bool talk_add(struct talk *t, const char *role, const char *content)
{
    if (t->n_msgs == t->cap_msgs) {
        int cap = t->cap_msgs * 2 + 16;
        struct chat_msg *more = realloc(t->msgs, (size_t)cap * sizeof *more);
        if (!more) return no_memory();
        t->msgs = more;
        t->cap_msgs = cap;
    }
    char *r = strdup(role), *c = strdup(content);
    if (!r || !c) {
        free(r);
        free(c);
        return no_memory();
    }
    t->msgs[t->n_msgs++] = (struct chat_msg){.role = r, .content = c};
    return true;
}

void talk_pop(struct talk *t)
{
    struct chat_msg *m = &t->msgs[--t->n_msgs];
    free((char *)m->role);
    free((char *)m->content);
}

static void forget_ids(struct talk *t)
{
    t->n_ids = t->n_prompt = 0;
    t->exact = false;
}

bool talk_clear(struct talk *t)
{
    while (t->n_msgs) talk_pop(t);
    forget_ids(t);
    return !t->system || talk_add(t, "system", t->system);
}

bool talk_set_system(struct talk *t, const char *text)
{
    char *copy = text && *text ? strdup(text) : NULL;
    if (text && *text && !copy) return no_memory();
    bool had = t->n_msgs && !strcmp(t->msgs[0].role, "system");
    free(t->system);
    t->system = copy;
    forget_ids(t);
    if (had && copy) {
        char *content = strdup(copy);
        if (!content) return no_memory();
        free((char *)t->msgs[0].content);
        t->msgs[0].content = content;
    } else if (had) {
        struct chat_msg first = t->msgs[0];
        memmove(t->msgs, t->msgs + 1, (size_t)(t->n_msgs - 1) * sizeof first);
        t->msgs[t->n_msgs - 1] = first;
        talk_pop(t);
    } else if (copy) {
        if (!talk_add(t, "system", copy)) return false;
        struct chat_msg last = t->msgs[t->n_msgs - 1];
        memmove(t->msgs + 1, t->msgs, (size_t)(t->n_msgs - 1) * sizeof last);
        t->msgs[0] = last;
    }
    return true;
}

void talk_close(struct talk *t)
{
    while (t->n_msgs) talk_pop(t);
    free(t->msgs);
    free(t->ids);
    free(t->system);
    free(t->read);
    if (t->s) tessera_session_close(t->s);
    if (t->e) tessera_close(t->e);
}

/* ---- ids ---- */

static bool reserve_ids(struct talk *t, int64_t n)
{
    if (n <= t->cap_ids) return true;
    if (n > INT32_MAX / 2) return no_memory();
    int32_t *more = realloc(t->ids, (size_t)n * 2 * sizeof *more);
    if (!more) return no_memory();
    t->ids = more;
    t->cap_ids = (int)n * 2;
    return true;
}

static bool push_id(struct talk *t, int32_t id)
{
    if (!reserve_ids(t, t->n_ids + 1)) return false;
    t->ids[t->n_ids++] = id;
    return true;
}

/* Encodes the prompt of the last message: behind what is there when that is exact, else all. */
static bool encode_prompt(struct talk *t)
{
    bool next = t->exact && t->n_ids > 0;
    int from = next ? t->n_msgs - 1 : 0, at = next ? t->n_ids : 0;
    for (int64_t need = t->n_msgs ? 256 : 0;;) {
        if (!reserve_ids(t, at + need)) return false;
        int64_t room = t->cap_ids - at;
        int64_t n = next ? chat_encode_next(t->tok, t->msgs + from, 1, true, t->ids + at, room)
                         : chat_encode(t->tok, t->msgs, t->n_msgs, true, t->ids, room);
        if (n < 0) return no_memory();
        if (n <= room) {
            t->n_ids = t->n_prompt = at + (int)n;
            return true;
        }
        need = n;
    }
}

/* ---- printing ---- */

/* Prints text; on a terminal without what could steer it.  What is left out are the control
 * characters except line end and tab, the two-byte ones included. */
static bool print_text(const char *s, int n)
{
    if (!cli_tty(stdout)) return cli_out(s, (size_t)n);
    int from = 0;
    bool ok = true;
    for (int i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i], d = i + 1 < n ? (unsigned char)s[i + 1] : 0;
        int bad = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f ? 1
                  : c == 0xc2 && d >= 0x80 && d < 0xa0 ? 2 : 0;
        if (!bad) continue;
        ok = ok && (i == from || cli_out(s + from, (size_t)(i - from)));
        from = i + bad;
        i += bad - 1;
    }
    return ok && (from >= n || cli_out(s + from, (size_t)(n - from)));
}

static void say_full(const struct talk *t, bool cut)
{
    struct tessera_model m = tessera_model(t->e);
    int n_ctx = tessera_session_n_ctx(t->s);
    fprintf(stderr, "tessera: %s: the context holds %d tokens.  The choices:\n",
            cut ? "the answer was cut" : "this message does not fit any more", n_ctx);
    fprintf(stderr, "  /clear          forget the conversation and begin anew\n");
    fprintf(stderr, "  /set n 100      then /regen: the last answer again, shorter\n");
    if (n_ctx < m.n_ctx_train)
        fprintf(stderr, "  tessera chat -c %d   a larger context, the model's own (/save first, "
                        "/load then)\n", m.n_ctx_train);
    else
        fprintf(stderr, "  (this is the model's own context; -c cannot make it larger)\n");
}

/* ---- an answer ---- */

struct answer {
    char *text; /* owned */
    size_t n, cap;
    enum tessera_stop stop;
    struct tessera_timing timing;
};

static bool keep_text(struct answer *a, const char *s, int n)
{
    if (a->n + (size_t)n + 1 > a->cap) {
        size_t cap = (a->n + (size_t)n + 1) * 2 + 256;
        char *more = realloc(a->text, cap);
        if (!more) return no_memory();
        a->text = more;
        a->cap = cap;
    }
    if (n) memcpy(a->text + a->n, s, (size_t)n);
    a->n += (size_t)n;
    a->text[a->n] = 0;
    return true;
}

static struct tessera_generator_options options(const struct talk *t)
{
    struct cli_args mine = *t->a;
    if (mine.seed >= 0) mine.seed += t->n_answers; /* fixed: the whole conversation repeats */
    return (struct tessera_generator_options){
        .sampling = cli_sampling(&mine, tessera_session_n_ctx(t->s)), .stops = t->a->stops.at,
        .n_stops = t->a->stops.n, .n_gen_max = t->a->n_predict < 0 ? -1 : t->a->n_predict,
        .ignore_end = t->a->ignore_eos, .special_text = t->a->special,
    };
}

/* Prints and keeps tokens until the end.  ERR_CANCELLED is an end like others. */
static enum status stream(struct talk *t, tessera_generator *g, struct answer *out,
                          struct err *err)
{
    while (!out->stop) {
        struct tessera_answer a;
        enum status s = tessera_generator_next(g, &a, err);
        if (s == ERR_CANCELLED && !cli_interrupted() && !out->n) return s; /* see talk_answer */
        if (s == ERR_FULL && t->n_ids > t->n_prompt) {
            out->stop = TESSERA_STOP_FULL;
        } else if (s == ERR_CANCELLED) {
            out->stop = TESSERA_STOP_CANCELLED;
        } else if (s) {
            return s;
        } else {
            if (a.n_text && (!keep_text(out, a.text, a.n_text) || !print_text(a.text, a.n_text)))
                return err_set(err, ERR_IO, "%s", "");
            if (a.id >= 0 && a.stop != TESSERA_STOP_END && !push_id(t, a.id))
                return err_set(err, ERR_MEMORY, "no memory for the answer");
            out->stop = cli_interrupted() && !a.stop ? TESSERA_STOP_CANCELLED : a.stop;
        }
    }
    out->timing = tessera_generator_timing(g);
    return OK;
}

static enum status generate(struct talk *t, struct answer *out, struct err *err)
{
    tessera_generator *g = NULL;
    struct tessera_generator_options o = options(t);
    t->n_ids = t->n_prompt;
    enum status s = tessera_generator_open(t->s, t->ids, t->n_prompt, &o, &g, err);
    if (s) return s;
    if (!o.n_gen_max)
        out->stop = TESSERA_STOP_LENGTH;
    else
        s = stream(t, g, out, err);
    tessera_generator_close(g);
    return s;
}

/* Makes the answer the last message and closes its turn in ids. */
static void settle(struct talk *t, struct answer *a)
{
    int32_t end = tok_find(t->tok, "<|im_end|>");
    t->exact = a->stop != TESSERA_STOP_STRING && end >= 0 && push_id(t, end);
    if (!keep_text(a, "", 0) || !talk_add(t, "assistant", a->text)) t->failed = true;
    t->n_answers++;
    t->last = a->timing;
    t->sum.n_prompt += a->timing.n_prompt - a->timing.n_prompt_reused;
    t->sum.n_prompt_reused += a->timing.n_prompt_reused;
    t->sum.n_gen += a->timing.n_gen;
    t->sum.prompt_s += a->timing.prompt_s;
    t->sum.gen_s += a->timing.gen_s;
}

static void end_line(const struct answer *a)
{
    if (!a->n || a->text[a->n - 1] != '\n') (void)cli_out("\n", 1);
}

/* Answers t->ids[n_prompt], the prompt of all messages.  False when there is no answer. */
static bool talk_answer(struct talk *t)
{
    struct err err;
    struct answer a = {0};
    enum status s;
    cli_clear_interrupt();
    cli_interrupt_target(t->e);
    for (int attempt = 0;; attempt++) {
        err_clear(&err);
        s = generate(t, &a, &err);
        /* A cancellation that nobody asked for is left over from the answer before: once more. */
        if (s != ERR_CANCELLED || attempt || cli_interrupted()) break;
    }
    cli_interrupt_target(NULL);
    if (s && a.n) end_line(&a);
    if (s) {
        t->failed = true;
        if (!ferror(stdout)) (void)cli_fail(&err);
        free(a.text);
        return false;
    }
    end_line(&a);
    if (a.stop == TESSERA_STOP_CANCELLED) fprintf(stderr, "%s(stopped)%s ", cli_dim(), cli_plain());
    settle(t, &a);
    cli_print_speed(&a.timing, t->e, "");
    if (a.stop == TESSERA_STOP_FULL) say_full(t, true);
    if (a.stop == TESSERA_STOP_LENGTH && t->a->n_predict > 0 && cli_tty(stderr))
        fprintf(stderr, "%s(cut at %d tokens: -n)%s\n", cli_dim(), t->a->n_predict, cli_plain());
    if (line_interactive(t->in)) fprintf(stderr, "\n");
    free(a.text);
    return true;
}

void talk_send(struct talk *t, const char *text)
{
    int before = t->n_ids, prompt_before = t->n_prompt;
    bool exact = t->exact;
    if (!talk_add(t, "user", text)) return;
    bool ok = encode_prompt(t);
    if (ok && t->n_prompt >= tessera_session_n_ctx(t->s)) {
        say_full(t, false);
        ok = false;
    } else if (ok) {
        ok = talk_answer(t);
    }
    if (ok) return;
    /* As if it had not been said. */
    talk_pop(t);
    t->exact = exact;
    t->n_ids = exact ? before : 0;
    t->n_prompt = exact ? prompt_before : 0;
}

void talk_again(struct talk *t)
{
    if (!t->n_msgs || strcmp(t->msgs[t->n_msgs - 1].role, "assistant")) {
        fprintf(stderr, "tessera: there is no answer to give again\n");
        return;
    }
    char *old = strdup(t->msgs[t->n_msgs - 1].content);
    if (!old) return (void)no_memory();
    talk_pop(t);
    t->exact = t->exact && t->n_prompt > 0;
    bool ok = true;
    if (t->exact)
        t->n_ids = t->n_prompt;
    else
        ok = encode_prompt(t);
    if (ok && t->n_prompt >= tessera_session_n_ctx(t->s)) {
        say_full(t, false);
        ok = false;
    }
    if (!ok || !talk_answer(t)) { /* the old answer stays */
        (void)talk_add(t, "assistant", old);
        forget_ids(t);
    }
    free(old);
}
