/* The generator: from a prompt and a session to text, above the step and the sampler; see
 * tessera.h.  In a model that sees both sides denoise.c says what a step settles; in the others it is
 * one token.
 *
 * DESIGN.  Text leaves as soon as it is settled.  Two things hold bytes back: a UTF-8 character
 * that is not whole yet (tok_stream), and a tail that could still become a stop string.  Invariant:
 * `text` begins with what was not handed out yet, and no stop string ever leaves. */
#include <stdlib.h>
#include <string.h>

#include "moe/run/denoise.h"
#include "moe/run/engine_int.h"
#include "moe/run/sampler.h"

struct tessera_generator {
    struct tessera_session *s;
    struct tessera_generator_options opt;
    struct sampler sampler;
    struct denoise *denoise; /* NULL = a step settles one token */
    char **stops;
    int32_t *ids;      /* prompt, then every sampled token: the whole timeline wanted */
    int n_ids, cap_ids;
    int n_gen;
    struct tok_stream stream;
    char *text;        /* settled or held bytes not handed out yet */
    int n_text, cap_text, n_given;
    enum tessera_stop stop;
    struct tessera_timing timing;
    double t_mark;
};

static enum status push_id(struct tessera_generator *g, int32_t id, struct err *err)
{
    if (g->n_ids == g->cap_ids) {
        int cap = 2 * g->cap_ids + 64;
        int32_t *ids = realloc(g->ids, sizeof *ids * (size_t)cap);
        if (!ids) return err_set(err, ERR_MEMORY, "no memory for the answer");
        g->ids = ids;
        g->cap_ids = cap;
    }
    g->ids[g->n_ids++] = id;
    return OK;
}

static enum status copy_options(struct tessera_generator *g,
                                const struct tessera_generator_options *o, struct err *err)
{
    g->opt = *o;
    g->stops = calloc((size_t)o->n_stops + 1, sizeof *g->stops);
    if (!g->stops) return err_set(err, ERR_MEMORY, "no memory for the answer");
    for (int i = 0; i < o->n_stops; i++) {
        g->stops[i] = strdup(o->stops[i]);
        if (!g->stops[i]) return err_set(err, ERR_MEMORY, "no memory for the answer");
    }
    g->opt.stops = NULL;
    return OK;
}

enum status tessera_generator_open(tessera_session *s, const int32_t *ids, int n,
                                   const struct tessera_generator_options *o,
                                   tessera_generator **out, struct err *err)
{
    *out = NULL;
    if (n < 1) return err_set(err, ERR_RANGE, "the prompt is empty: there is nothing to continue");
    if (n > s->n_ctx)
        return err_set(err, ERR_FULL, "the prompt has %d tokens, the context only %d: use a larger "
                       "-c or a shorter prompt", n, s->n_ctx);
    struct tessera_generator *g = calloc(1, sizeof *g);
    if (!g) return err_set(err, ERR_MEMORY, "no memory for the answer");
    g->s = s;
    enum status st = copy_options(g, o, err);
    for (int i = 0; i < n && !st; i++) {
        if (ids[i] < 0 || ids[i] >= s->engine->model.n_vocab)
            st = err_set(err, ERR_RANGE, "token id %d is outside the vocabulary (0 to %d)", ids[i],
                         s->engine->model.n_vocab - 1);
        else
            st = push_id(g, ids[i], err);
    }
    if (!st) st = sampler_open(&g->sampler, &o->sampling, s->engine->model.n_vocab, err);
    if (st) {
        tessera_generator_close(g);
        return st;
    }
    atomic_store(&s->engine->cancel, 0); /* a cancel meant for an earlier answer is not for this */
    g->timing.n_prompt = n;
    if (o->n_gen_max == 0) g->stop = TESSERA_STOP_LENGTH;
    const struct tessera_denoising *w = &o->denoise;
    if (!s->engine->hp.denoise.sees &&
        (w->alg || w->cache || w->block || w->steps || w->threshold > 0 || w->guidance > 0 ||
         w->alg_temp > 0)) {
        tessera_generator_close(g);
        return err_set(err, ERR_USAGE, "%s writes token by token: steps, blocks, an order, a threshold, "
                       "a cache and guidance are for models that see both sides", s->engine->arch->name);
    }
    if (s->engine->hp.denoise.sees) {
        if (!g->stop && (st = denoise_open(s, ids, n, o, &g->denoise, err))) {
            tessera_generator_close(g);
            return st;
        }
        *out = g;
        return OK;
    }
    g->timing.n_prompt_reused = tessera_session_reuse(s, ids, n);
    state_ask(s, n - 1); /* from there the same prompt can be answered again */
    *out = g;
    return OK;
}

void tessera_generator_close(tessera_generator *g)
{
    if (!g) return;
    for (int i = 0; g->stops && i < g->opt.n_stops; i++) free(g->stops[i]);
    free(g->stops);
    sampler_close(&g->sampler);
    denoise_close(g->denoise);
    free(g->ids);
    free(g->text);
    free(g);
}

bool tessera_generator_want(tessera_generator *g, int n_rows_max, struct tessera_input *in)
{
    if (g->stop || n_rows_max < 1) return false;
    g->t_mark = os_seconds();
    if (g->denoise) return denoise_want(g->denoise, in);
    const int left = g->n_ids - g->s->n;
    const int n = left < n_rows_max ? left : n_rows_max;
    *in = (struct tessera_input){
        .session = g->s, .ids = g->ids + g->s->n, .n = n,
        .logits = n == left ? TESSERA_LOGITS_LAST : TESSERA_LOGITS_NONE,
    };
    return true;
}

/* ---- text ---- */

static enum status append_piece(struct tessera_generator *g, const char *piece, int n,
                                struct err *err)
{
    if (g->cap_text < g->n_text + TOK_STREAM_CAP(n)) {
        int cap = 2 * (g->n_text + TOK_STREAM_CAP(n)) + 256;
        char *text = realloc(g->text, (size_t)cap);
        if (!text) return err_set(err, ERR_MEMORY, "no memory for the answer");
        g->text = text;
        g->cap_text = cap;
    }
    g->n_text += piece ? tok_stream_push(&g->stream, piece, n, g->text + g->n_text)
                       : tok_stream_flush(&g->stream, g->text + g->n_text);
    return OK;
}

static enum status append_token(struct tessera_generator *g, int32_t id, struct err *err)
{
    char piece[TOK_PIECE_MAX];
    const struct tok *t = g->s->engine->tok;
    if (!t || id >= tok_n_vocab(t)) return OK;
    int n = tok_piece(t, id, g->opt.special_text, piece, sizeof piece);
    return append_piece(g, piece, n, err);
}

/* Cuts the text at the first stop string; returns whether there was one. */
static bool cut_at_stop(struct tessera_generator *g)
{
    int best = -1;
    for (int k = 0; k < g->opt.n_stops; k++) {
        const int n = (int)strlen(g->stops[k]);
        for (int i = 0; n && i + n <= g->n_text; i++)
            if (!memcmp(g->text + i, g->stops[k], (size_t)n)) {
                if (best < 0 || i < best) best = i;
                break;
            }
    }
    if (best >= 0) g->n_text = best;
    return best >= 0;
}

/* Bytes at the end that could be the beginning of a stop string. */
static int held_back(const struct tessera_generator *g)
{
    int held = 0;
    for (int k = 0; k < g->opt.n_stops; k++) {
        int n = (int)strlen(g->stops[k]) - 1;
        if (n > g->n_text) n = g->n_text;
        for (; n > held; n--)
            if (!memcmp(g->text + g->n_text - n, g->stops[k], (size_t)n)) held = n;
    }
    return held;
}

static void hand_out(struct tessera_generator *g, struct tessera_answer *a)
{
    const int n = g->n_text - (g->stop ? 0 : held_back(g));
    a->text = g->text ? g->text : "";
    a->n_text = n;
    a->n_held = g->n_text - n;
    a->stop = g->stop;
    g->n_given = n;
}

/* Drops what the last call handed out. */
static void drop_given(struct tessera_generator *g)
{
    if (g->n_given) memmove(g->text, g->text + g->n_given, (size_t)(g->n_text - g->n_given));
    g->n_text -= g->n_given;
    g->n_given = 0;
}

/* The token has been sampled: does the answer go on? */
static enum tessera_stop after_token(const struct tessera_generator *g)
{
    if (g->opt.n_gen_max > 0 && g->n_gen >= g->opt.n_gen_max) return TESSERA_STOP_LENGTH;
    return g->n_ids > g->s->n_ctx ? TESSERA_STOP_FULL : TESSERA_RUNNING;
}

/* Depths of the tokens that the last step has taken in. */
static void note_depths(struct tessera_generator *g)
{
    const unsigned char *depth = g->s->depth;
    for (int at = g->timing.n_prompt_reused + g->timing.n_depth; depth && at < g->s->n; at++) {
        g->timing.depth_sum += depth[at];
        g->timing.n_depth++;
    }
}

/* A character that is cut short comes out when the answer ends. */
static enum status flush_text(struct tessera_generator *g, struct err *err)
{
    if (!g->stop || g->stop == TESSERA_STOP_STRING || !g->stream.n_held) return OK;
    enum status st = append_piece(g, NULL, 0, err);
    if (!st && cut_at_stop(g)) g->stop = TESSERA_STOP_STRING;
    return st;
}

/* What the pass has settled at the beginning of the text goes on as if it had been sampled. */
static enum status take_settled(struct tessera_generator *g, int i_in, struct tessera_answer *a,
                                struct err *err)
{
    const struct tok *t = g->s->engine->tok;
    int n_new;
    enum status st = denoise_take(g->denoise, i_in, &n_new, err);
    if (st) return st;
    a->canvas = denoise_text(g->denoise, &a->n_canvas);
    a->n_settled = denoise_settled(g->denoise);
    g->timing.n_passes = denoise_passes(g->denoise);
    denoise_measured(g->denoise, &g->timing);
    if (!n_new) return OK; /* the first of two passes: guidance, a cache that is measured */
    for (; g->n_ids < a->n_settled && !g->stop; g->timing.n_gen = ++g->n_gen) {
        const int32_t id = a->canvas[g->n_ids];
        a->id = id;
        if (t && !g->opt.ignore_end && tok_is_end(t, id)) {
            g->stop = TESSERA_STOP_END;
        } else {
            if ((st = push_id(g, id, err)) || (st = append_token(g, id, err))) return st;
            if (cut_at_stop(g)) g->stop = TESSERA_STOP_STRING;
        }
    }
    if (!g->stop && a->n_settled == a->n_canvas) g->stop = TESSERA_STOP_LENGTH;
    if (a->id < 0) a->id = 0; /* something has settled, further on */
    st = flush_text(g, err);
    if (!st) hand_out(g, a);
    return st;
}

enum status tessera_generator_take(tessera_generator *g, int i_in, struct tessera_answer *a,
                                   struct err *err)
{
    *a = (struct tessera_answer){.text = "", .id = -1};
    drop_given(g);
    const double now = os_seconds(), spent = now - g->t_mark;
    if (g->n_gen == 0 && !g->timing.n_passes) g->timing.prompt_s += spent;
    else g->timing.gen_s += spent;
    if (g->denoise) return take_settled(g, i_in, a, err);
    note_depths(g);
    if (g->s->n < g->n_ids) return OK; /* more of the prompt to come */
    const float *logits = tessera_logits(g->s->engine, i_in, g->s->engine->input[i_in].n - 1);
    ASSERT(logits);
    const int32_t id = sampler_draw(&g->sampler, logits, g->ids, g->n_ids);
    const struct tok *t = g->s->engine->tok;
    g->n_gen++;
    g->timing.n_gen = g->n_gen;
    a->id = id;
    enum status st = OK;
    if (t && !g->opt.ignore_end && tok_is_end(t, id)) {
        g->stop = TESSERA_STOP_END;
    } else {
        if ((st = push_id(g, id, err)) || (st = append_token(g, id, err))) return st;
        g->stop = cut_at_stop(g) ? TESSERA_STOP_STRING : after_token(g);
    }
    st = flush_text(g, err);
    if (!st) hand_out(g, a);
    return st;
}

enum status tessera_generator_next(tessera_generator *g, struct tessera_answer *a, struct err *err)
{
    struct tessera_input in;
    struct err local;
    if (!err) err = &local;
    *a = (struct tessera_answer){.text = "", .id = -1};
    while (tessera_generator_want(g, fit_batch(g->s->engine), &in)) {
        enum status st = tessera_step(g->s->engine, &in, 1, err);
        if (st == ERR_CANCELLED) {
            drop_given(g);
            g->stop = TESSERA_STOP_CANCELLED;
            hand_out(g, a);
            err_clear(err);
            return OK;
        }
        if (!st) st = tessera_generator_take(g, 0, a, err);
        if (st || a->id >= 0) return st;
    }
    a->stop = g->stop;
    return OK;
}

struct tessera_timing tessera_generator_timing(const tessera_generator *g) { return g->timing; }
