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

bool talk_add(struct talk *t, const char *role, const char *content, const char *thinking)
{
    if (t->n_msgs == t->cap_msgs) {
        int cap = t->cap_msgs * 2 + 16;
        struct chat_msg *more = realloc(t->msgs, (size_t)cap * sizeof *more);
        if (!more) return no_memory();
        t->msgs = more;
        t->cap_msgs = cap;
    }
    char *r = strdup(role), *c = strdup(content), *h = thinking ? strdup(thinking) : NULL;
    if (!r || !c || (thinking && !h)) {
        free(r);
        free(c);
        free(h);
        return no_memory();
    }
    t->msgs[t->n_msgs++] = (struct chat_msg){.role = r, .content = c, .thinking = h};
    return true;
}

static void free_message(struct chat_msg *m)
{
    free((char *)m->role);
    free((char *)m->content);
    free((char *)m->thinking);
}

void talk_pop(struct talk *t) { free_message(&t->msgs[--t->n_msgs]); }

bool talk_clear(struct talk *t)
{
    while (t->n_msgs) talk_pop(t);
    return !t->system || talk_add(t, "system", t->system, NULL);
}

bool talk_set_system(struct talk *t, const char *text)
{
    char *copy = text && *text ? strdup(text) : NULL;
    if (text && *text && !copy) return no_memory();
    bool had = t->n_msgs && !strcmp(t->msgs[0].role, "system");
    free(t->system);
    t->system = copy;
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
        if (!talk_add(t, "system", copy, NULL)) return false;
        struct chat_msg last = t->msgs[t->n_msgs - 1];
        memmove(t->msgs + 1, t->msgs, (size_t)(t->n_msgs - 1) * sizeof last);
        t->msgs[0] = last;
    }
    return true;
}

bool talk_set_think(struct talk *t, const char *think)
{
    struct err err;
    char what[128];
    err_clear(&err);
    if (chat_think_check(t->chat, think, what, sizeof what, &err)) {
        (void)cli_fail(&err);
        return false;
    }
    (void)snprintf(t->think, sizeof t->think, "%s", think);
    if (t->in && line_interactive(t->in)) fprintf(stderr, "  think %s: %s\n", think, what);
    return true;
}

void talk_close(struct talk *t)
{
    while (t->n_msgs) talk_pop(t);
    free(t->msgs);
    free(t->ids);
    free(t->system);
    free(t->read);
    chat_close(t->chat);
    if (t->s) tessera_session_close(t->s);
    if (t->e) cli_close_engine(t->e);
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

/* The ids of all messages, opening the answer. */
static enum status encode_prompt(const struct talk *t, struct chat_prompt *out, struct err *err)
{
    const struct chat_turn turn = {.msgs = t->msgs, .n = t->n_msgs, .add_prompt = true,
                                   .think = *t->think ? t->think : NULL,
                                   .held = t->ids, .n_held = t->n_ids};
    return chat_encode(t->chat, &turn, out, err);
}

/* ---- printing ---- */

static bool put(FILE *to, const char *s, size_t n)
{
    return to == stdout ? cli_out(s, n) : fwrite(s, 1, n, to) == n;
}

/* Prints text; on a terminal without what could steer it.  What is left out are the control
 * characters except line end and tab, the two-byte ones included. */
static bool print_text(FILE *to, const char *s, size_t n)
{
    if (!cli_tty(to)) return put(to, s, n);
    size_t from = 0;
    bool ok = true;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i], d = i + 1 < n ? (unsigned char)s[i + 1] : 0;
        size_t bad = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f ? 1
                     : c == 0xc2 && d >= 0x80 && d < 0xa0 ? 2 : 0;
        if (!bad) continue;
        ok = ok && (i == from || put(to, s + from, i - from));
        from = i + bad;
        i += bad - 1;
    }
    return ok && (from >= n || put(to, s + from, n - from));
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

struct text {
    char *s; /* owned, terminated; NULL = nothing yet */
    size_t n, cap;
};

struct answer {
    struct talk *t;
    struct text said, thought;
    struct chat_reader reader;
    bool thinking; /* the last thing shown was thought */
    enum tessera_stop stop;
    struct tessera_timing timing;
};

static bool keep_text(struct text *a, const char *s, size_t n)
{
    if (a->n + n + 1 > a->cap) {
        size_t cap = (a->n + n + 1) * 2 + 256;
        char *more = realloc(a->s, cap);
        if (!more) return no_memory();
        a->s = more;
        a->cap = cap;
    }
    if (n) memcpy(a->s + a->n, s, n);
    a->n += n;
    a->s[a->n] = 0;
    return true;
}

static void free_answer(struct answer *a)
{
    free(a->said.s);
    free(a->thought.s);
}

/* Thinking is no part of the answer: it goes to stderr, dimmed or, where that does not show,
 * between two lines. */
static void show_thought(struct answer *a, const char *s, size_t n)
{
    if (!a->thinking && !*cli_dim()) fprintf(stderr, "[thinking]\n");
    a->thinking = true;
    fputs(cli_dim(), stderr);
    (void)print_text(stderr, s, n);
    fputs(cli_plain(), stderr);
}

static void end_thought(struct answer *a)
{
    if (!a->thinking) return;
    if (a->thought.s[a->thought.n - 1] != '\n') fprintf(stderr, "\n");
    fprintf(stderr, "%s\n", *cli_dim() ? "" : "[/thinking]");
    a->thinking = false;
}

const char *talk_depth_colour(int depth, int n_max)
{
    static const char *const ramp[] = {"\033[38;5;33m", "\033[38;5;37m", "\033[38;5;71m",
                                       "\033[38;5;142m", "\033[38;5;172m", "\033[38;5;160m"};
    enum { N = sizeof ramp / sizeof *ramp };
    return ramp[depth >= n_max ? N - 1 : depth * (N - 1) / n_max];
}

/* A mark where the token before the one that comes now, whose pass was the last one, closes a concept. */
static bool print_mark(const struct talk *t)
{
    const unsigned char *depth = tessera_session_depths(t->s);
    const int at = tessera_session_n(t->s) - 1;
    if (!t->show_concepts || !depth || at < 0 || !depth[at]) return true;
    const bool colour = *cli_dim() && cli_tty(stdout);
    return (!colour || cli_out(cli_dim(), strlen(cli_dim()))) && cli_out("|", 1) &&
           (!colour || cli_out(cli_plain(), strlen(cli_plain())));
}

/* Text of the token whose pass came last. */
static bool print_said(const struct talk *t, const char *s, size_t n)
{
    const unsigned char *depth = tessera_session_depths(t->s);
    const int at = tessera_session_n(t->s) - 1;
    if (!t->show_depth || !depth || at < 0 || !*cli_dim() || !cli_tty(stdout))
        return print_text(stdout, s, n);
    const char *colour = talk_depth_colour(depth[at], tessera_depth(t->e).n_max);
    return cli_out(colour, strlen(colour)) && print_text(stdout, s, n) && cli_out("\033[0m", 4);
}

static bool show(void *arg, enum chat_part part, const char *s, size_t n)
{
    struct answer *a = arg;
    if (part == CHAT_THOUGHT) {
        if (!keep_text(&a->thought, s, n)) return false;
        show_thought(a, s, n);
        return true;
    }
    end_thought(a);
    return keep_text(&a->said, s, n) && print_mark(a->t) && print_said(a->t, s, n);
}

/* Takes in what the generator gave. */
static bool read_step(struct answer *a, const struct tessera_answer *g)
{
    size_t n = (size_t)g->n_text;
    char text[TOK_PIECE_MAX];
    if (a->t->a->special) return !n || show(a, CHAT_SAID, g->text, n); /* as it comes */
    if (n && !chat_read_text(&a->reader, g->text, n, show, a)) return false;
    bool hidden = g->id >= 0 && !g->canvas && g->stop != TESSERA_STOP_END &&
                  !tok_piece(a->t->tok, g->id, false, NULL, 0);
    if (!hidden) return true;
    int len = tok_piece(a->t->tok, g->id, true, text, TOK_PIECE_MAX);
    return chat_read_special(&a->reader, text, (size_t)len, (size_t)g->n_held, show, a);
}

static struct tessera_generator_options options(const struct talk *t)
{
    struct cli_args mine = *t->a;
    if (mine.seed >= 0) mine.seed += t->n_answers; /* fixed: the whole conversation repeats */
    return (struct tessera_generator_options){
        .sampling = cli_sampling(&mine, tessera_session_n_ctx(t->s)), .stops = t->a->stops.at,
        .n_stops = t->a->stops.n, .n_gen_max = t->a->n_predict < 0 ? -1 : t->a->n_predict,
        .ignore_end = t->a->ignore_eos, .special_text = t->a->special,
        .denoise = cli_denoising(t->a),
    };
}

/* The ids of the answer so far, an end token and what is behind it left out. */
static bool push_settled(struct talk *t, const struct tessera_answer *a, int n_prompt)
{
    t->n_ids = n_prompt;
    for (int i = n_prompt; i < a->n_settled; i++) {
        if (a->stop == TESSERA_STOP_END && tok_is_end(t->tok, a->canvas[i])) break;
        if (!push_id(t, a->canvas[i])) return false;
    }
    return true;
}

/* Prints and keeps tokens until the end.  ERR_CANCELLED is an end like others. */
static enum status stream(struct talk *t, tessera_generator *g, struct answer *out,
                          struct err *err)
{
    const int n_prompt = t->n_ids;
    while (!out->stop) {
        struct tessera_answer a;
        enum status s = tessera_generator_next(g, &a, err);
        if (s == ERR_CANCELLED && !cli_interrupted() && t->n_ids == n_prompt) return s;
        if (s == ERR_FULL && t->n_ids > n_prompt) {
            out->stop = TESSERA_STOP_FULL;
        } else if (s == ERR_CANCELLED) {
            out->stop = TESSERA_STOP_CANCELLED;
        } else if (s) {
            return s;
        } else {
            if (!read_step(out, &a)) return err_set(err, ERR_IO, "%s", "");
            const bool pushed = a.canvas ? push_settled(t, &a, n_prompt)
                                         : a.id < 0 || a.stop == TESSERA_STOP_END || push_id(t, a.id);
            if (!pushed)
                return err_set(err, ERR_MEMORY, "no memory for the answer");
            out->stop = cli_interrupted() && !a.stop ? TESSERA_STOP_CANCELLED : a.stop;
        }
    }
    out->timing = tessera_generator_timing(g);
    if (!chat_read_end(&out->reader, show, out)) return err_set(err, ERR_IO, "%s", "");
    return OK;
}

static enum status generate(struct talk *t, struct answer *out, struct err *err)
{
    tessera_generator *g = NULL;
    struct tessera_generator_options o = options(t);
    enum status s = tessera_generator_open(t->s, t->ids, t->n_ids, &o, &g, err);
    if (s) return s;
    if (!o.n_gen_max)
        out->stop = TESSERA_STOP_LENGTH;
    else
        s = stream(t, g, out, err);
    tessera_generator_close(g);
    return s;
}

/* Makes the answer the last message. */
static void settle(struct talk *t, const struct answer *a)
{
    if (!talk_add(t, "assistant", a->said.s ? a->said.s : "", a->thought.s)) t->failed = true;
    t->n_answers++;
    t->last = a->timing;
    t->sum.n_prompt += a->timing.n_prompt - a->timing.n_prompt_reused;
    t->sum.n_prompt_reused += a->timing.n_prompt_reused;
    t->sum.n_gen += a->timing.n_gen;
    t->sum.prompt_s += a->timing.prompt_s;
    t->sum.gen_s += a->timing.gen_s;
    t->sum.n_depth += a->timing.n_depth;
    t->sum.depth_sum += a->timing.depth_sum;
}

static void end_line(struct answer *a)
{
    end_thought(a);
    if (!a->said.n || a->said.s[a->said.n - 1] != '\n') (void)cli_out("\n", 1);
}

/* After an answer that failed: what the session holds is all there is. */
static void take_session_ids(struct talk *t)
{
    int n = tessera_session_n(t->s);
    t->n_ids = 0;
    if (!n || !reserve_ids(t, n)) return;
    memcpy(t->ids, tessera_session_ids(t->s), (size_t)n * sizeof *t->ids);
    t->n_ids = n;
}

/* Answers the prompt, which t->ids takes over.  False when there is no answer. */
static bool talk_answer(struct talk *t, const struct chat_prompt *p)
{
    struct err err;
    struct answer a = {.t = t, .reader = p->reader};
    enum status s;
    free(t->ids);
    t->ids = p->ids;
    t->n_ids = t->cap_ids = p->n;
    cli_interrupt_target(t->e);
    for (int attempt = 0;; attempt++) {
        err_clear(&err);
        s = generate(t, &a, &err);
        /* A cancellation that nobody asked for is left over from the answer before: once more. */
        if (s != ERR_CANCELLED || attempt || cli_interrupted()) break;
    }
    cli_interrupt_target(NULL);
    if (s && (a.said.n || a.thinking)) end_line(&a);
    if (s) {
        t->failed = true;
        take_session_ids(t);
        if (!ferror(stdout)) (void)cli_fail(&err);
        free_answer(&a);
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
    free_answer(&a);
    return true;
}

/* Answers the messages as they are now. */
static bool answer_all(struct talk *t)
{
    struct err err;
    struct chat_prompt p;
    err_clear(&err);
    if (encode_prompt(t, &p, &err)) {
        t->failed = true;
        (void)cli_fail(&err);
        return false;
    }
    if (p.n < tessera_session_n_ctx(t->s)) return talk_answer(t, &p);
    free(p.ids);
    say_full(t, false);
    return false;
}

void talk_send(struct talk *t, const char *text)
{
    if (!talk_add(t, "user", text, NULL)) return;
    if (!answer_all(t)) talk_pop(t); /* as if it had not been said */
}

void talk_again(struct talk *t)
{
    if (!t->n_msgs || strcmp(t->msgs[t->n_msgs - 1].role, "assistant")) {
        fprintf(stderr, "tessera: there is no answer to give again\n");
        return;
    }
    struct chat_msg old = t->msgs[--t->n_msgs];
    if (answer_all(t)) free_message(&old);
    else t->msgs[t->n_msgs++] = old; /* its place is still there */
}
