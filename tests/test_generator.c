/* The generator on tiny random models with a small vocabulary of their own: when an answer ends and
 * what of it is handed out (stop strings, end tokens, length, full context, cancel), that text is
 * whole UTF-8 in whatever pieces it comes, that a kept prefix and a batch change no bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/run/engine_int.h"
#include "tests/engine.h"

enum { GEN_MAX = 256, TEXT_MAX = 1 << 16 };

static char dir[64] = "/tmp/tessera-generator-XXXXXX";
static const int32_t prompt[] = {1, 40, 80, 265, 262, 270};
enum { N_PROMPT = sizeof prompt / sizeof *prompt };

static const char *model_file(const char *vocab)
{
    static char path[128];
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_tiny("qwen3moe", QTYPE_Q8_0);
    g.byte_vocab = !vocab;
    g.vocab = vocab;
    (void)snprintf(path, sizeof path, "%s/%s.gguf", dir, vocab ? "other" : "tiny");
    if (access(path, R_OK) && gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    return path;
}

static tessera_engine *open_engine(int n_ubatch, int n_sessions)
{
    struct err err;
    tessera_engine *e;
    struct tessera_options o = tessera_defaults();
    o.model_path = model_file(NULL);
    o.n_threads = 1;
    o.n_ubatch = n_ubatch;
    o.n_sessions = n_sessions;
    o.mem_budget = UINT64_MAX;
    if (tessera_open(&o, &e, &err)) fail_msg("%s", err.msg);
    assert_non_null(tessera_tok(e));
    return e;
}

static tessera_session *session_of(tessera_engine *e, int n_ctx)
{
    struct err err;
    tessera_session *s;
    if (tessera_session_open(e, n_ctx, &s, &err)) fail_msg("%s", err.msg);
    return s;
}

/* An answer as it came: ids, and the text after each of them. */
struct answer {
    int n, n_text;
    int32_t id[GEN_MAX];
    int end[GEN_MAX]; /* bytes of text after id[i] */
    char text[TEXT_MAX];
    enum tessera_stop stop;
};

/* Is it whole UTF-8?  (The models' vocabularies have no other way to say U+FFFD.) */
static bool is_utf8(const char *s, int n)
{
    for (int i = 0; i < n;) {
        const unsigned char c = (unsigned char)s[i++];
        int more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2
                 : c >= 0xf0 && c < 0xf5 ? 3 : -1;
        if (more < 0 || i + more > n) return false;
        for (; more; more--)
            if (((unsigned char)s[i++] & 0xc0) != 0x80) return false;
    }
    return true;
}

static void add(struct answer *out, const struct tessera_answer *a)
{
    assert_true(a->n_text >= 0 && out->n_text + a->n_text < TEXT_MAX);
    assert_non_null(a->text);
    assert_true(is_utf8(a->text, a->n_text));
    memcpy(out->text + out->n_text, a->text, (size_t)a->n_text);
    out->n_text += a->n_text;
    out->text[out->n_text] = 0;
    if (a->id >= 0) {
        assert_true(out->n < GEN_MAX);
        out->id[out->n] = a->id;
        out->end[out->n++] = out->n_text;
    }
    out->stop = a->stop;
}

static struct tessera_generator_options options(float temp, uint64_t seed, int n)
{
    struct tessera_generator_options o = {.n_gen_max = n};
    o.sampling = tessera_sampling_defaults();
    o.sampling.temp = temp;
    o.sampling.top_k = 0;
    o.sampling.min_p = 0;
    o.sampling.top_p = 1;
    o.sampling.seed = seed;
    return o;
}

static tessera_generator *generator(tessera_session *s, const int32_t *ids, int n,
                                    const struct tessera_generator_options *o)
{
    struct err err;
    tessera_generator *g;
    err_clear(&err);
    if (tessera_generator_open(s, ids, n, o, &g, &err)) fail_msg("%s", err.msg);
    return g;
}

static void run(tessera_generator *g, struct answer *out)
{
    struct err err;
    struct tessera_answer a;
    memset(out, 0, sizeof *out);
    err_clear(&err);
    do {
        if (tessera_generator_next(g, &a, &err)) fail_msg("%s", err.msg);
        add(out, &a);
    } while (!a.stop);
    /* It has ended: nothing more comes, and it says so again. */
    const enum tessera_stop stop = a.stop;
    assert_int_equal(tessera_generator_next(g, &a, &err), OK);
    assert_int_equal(a.stop, stop);
    assert_int_equal(a.id, -1);
    assert_int_equal(a.n_text, 0);
}

/* The answer to a prompt, from an empty timeline. */
static void answer_to(tessera_engine *e, const int32_t *ids, int n,
                      const struct tessera_generator_options *o, struct answer *out)
{
    tessera_session *s = session_of(e, 0);
    tessera_generator *g = generator(s, ids, n, o);
    run(g, out);
    tessera_generator_close(g);
    tessera_session_close(s);
}

static struct answer *answers(int n)
{
    struct answer *a = calloc((size_t)n, sizeof *a);
    assert_non_null(a);
    return a;
}

/* Options and the answer of the first seed whose text has no zero byte, so that it can be a C
 * string. */
static struct tessera_generator_options plain_answer(tessera_engine *e, float temp, int n,
                                                     struct answer *out)
{
    for (uint64_t seed = 1; seed < 50; seed++) {
        struct tessera_generator_options o = options(temp, seed, n);
        o.ignore_end = true;
        answer_to(e, prompt, N_PROMPT, &o, out);
        if (strlen(out->text) == (size_t)out->n_text && out->n_text) return o;
    }
    fail_msg("every answer has a zero byte");
    return options(temp, 0, n);
}

/* ---- stop strings ---- */

/* Where a stop string first stands whole in the first n bytes; -1 = nowhere. */
static int first_stop(const char *text, int n, const char *const *stops, int n_stops)
{
    int best = -1;
    for (int k = 0; k < n_stops; k++) {
        const int len = (int)strlen(stops[k]);
        for (int i = 0; i + len <= n && len; i++)
            if (!memcmp(text + i, stops[k], (size_t)len) && (best < 0 || i < best)) best = i;
    }
    return best;
}

static bool says(const struct answer *a, const char *what)
{
    return first_stop(a->text, a->n_text, &what, 1) >= 0;
}

static void assert_same(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->id, b->id, sizeof *a->id * (size_t)a->n);
    assert_int_equal(a->n_text, b->n_text);
    assert_memory_equal(a->text, b->text, (size_t)a->n_text);
}

/* Runs with stop strings; must give what `free_run` gave up to the first one that is complete. */
static bool check_stops(tessera_engine *e, const struct answer *free_run,
                        struct tessera_generator_options o, const char *const *stops, int n_stops)
{
    struct answer *got = answers(1);
    int at = -1, n = 0;
    while (at < 0 && n < free_run->n) {
        at = first_stop(free_run->text, free_run->end[n], stops, n_stops);
        n++;
    }
    o.stops = stops;
    o.n_stops = n_stops;
    answer_to(e, prompt, N_PROMPT, &o, got);
    assert_int_equal(first_stop(got->text, got->n_text, stops, n_stops), -1);
    if (at < 0) {
        assert_int_equal(got->stop, free_run->stop);
        assert_int_equal(got->n_text, free_run->n_text);
        assert_int_equal(got->n, free_run->n);
    } else {
        assert_int_equal(got->stop, TESSERA_STOP_STRING);
        assert_int_equal(got->n_text, at);
        assert_int_equal(got->n, n);
    }
    assert_memory_equal(got->text, free_run->text, (size_t)got->n_text);
    assert_memory_equal(got->id, free_run->id, sizeof *got->id * (size_t)got->n);
    free(got);
    return at >= 0;
}

/* Does a character begin at byte i? */
static bool at_character(const struct answer *a, int i)
{
    return ((unsigned char)a->text[i] & 0xc0) != 0x80;
}

static void test_stop_strings(void **state)
{
    (void)state;
    tessera_engine *e = open_engine(16, 1);
    struct answer *whole = answers(1);
    struct rng r;
    int stopped = 0, across = 0;
    rng_seed(&r, 1);
    for (uint64_t seed = 0; seed < 6; seed++) {
        struct tessera_generator_options o = options(1.2f, seed, 60);
        o.ignore_end = true;
        answer_to(e, prompt, N_PROMPT, &o, whole);
        if (strlen(whole->text) < (size_t)whole->n_text) continue; /* a zero byte: no C string */
        assert_int_equal(whole->stop, TESSERA_STOP_LENGTH);
        assert_true(whole->n_text > 60 && is_utf8(whole->text, whole->n_text));
        for (int trial = 0; trial < 20; trial++) {
            /* One to three stop strings, of text that will come or of text that nearly will. */
            char stop[3][16];
            const char *list[3] = {stop[0], stop[1], stop[2]};
            const int n_stops = 1 + (int)rng_below(&r, 3);
            for (int k = 0; k < n_stops; k++) {
                int from = (int)rng_below(&r, (uint32_t)whole->n_text - 16);
                while (!at_character(whole, from)) from++;
                const int len = 1 + (int)rng_below(&r, 12);
                memcpy(stop[k], whole->text + from, (size_t)len);
                stop[k][len] = 0;
                if (trial % 4 == 3) stop[k][len - 1] = '~';
                for (int i = 0; i < whole->n; i++)
                    across += whole->end[i] > from && whole->end[i] < from + len;
            }
            stopped += check_stops(e, whole, o, list, n_stops);
        }
        /* The whole text, one byte more, and stops that mean nothing. */
        char *more = malloc((size_t)whole->n_text + 2);
        assert_non_null(more);
        memcpy(more, whole->text, (size_t)whole->n_text + 1);
        assert_true(check_stops(e, whole, o, (const char *const[]){more}, 1));
        more[whole->n_text] = '!';
        more[whole->n_text + 1] = 0;
        assert_false(check_stops(e, whole, o, (const char *const[]){more}, 1));
        assert_false(check_stops(e, whole, o, (const char *const[]){"", "\x01\x02\x03\x04"}, 2));
        free(more);
    }
    assert_true(stopped > 40 && across > 100);
    free(whole);
    tessera_close(e);
}

/* What could become a stop string is held back, and comes out when it cannot any more. */
static void test_held_back(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e = open_engine(16, 1);
    struct answer *whole = answers(1);
    struct tessera_generator_options o = plain_answer(e, 1.2f, 40, whole);
    char all[TEXT_MAX];
    memcpy(all, whole->text, (size_t)whole->n_text);
    memcpy(all + whole->n_text, "!", 2);
    const char *stops[1] = {all};
    o.stops = stops;
    o.n_stops = 1;
    tessera_session *s = session_of(e, 0);
    tessera_generator *g = generator(s, prompt, N_PROMPT, &o);
    struct tessera_answer a;
    int n = 0, k = 0;
    do {
        assert_int_equal(tessera_generator_next(g, &a, &err), OK);
        n += a.n_text;
        if (!a.stop) assert_int_equal(n, 0); /* all of it may still be the stop string */
        assert_int_equal(a.n_held, a.stop ? 0 : whole->end[k++]);
    } while (!a.stop);
    assert_int_equal(a.stop, TESSERA_STOP_LENGTH);
    assert_int_equal(n, whole->n_text);
    assert_memory_equal(a.text, whole->text, (size_t)n);
    tessera_generator_close(g);
    /* The caller's strings are not needed after opening. */
    char *own = strdup("\x7f\x7f");
    assert_non_null(own);
    stops[0] = own;
    g = generator(s, prompt, N_PROMPT, &o);
    memset(own, 0, 2);
    free(own);
    struct answer *got = answers(1);
    run(g, got);
    assert_int_equal(got->n, 40);
    tessera_generator_close(g);
    tessera_session_close(s);
    free(got);
    free(whole);
    tessera_close(e);
}

/* ---- ends ---- */

static void test_end_token(void **state)
{
    (void)state;
    tessera_engine *e = open_engine(16, 1);
    const struct tok *t = tessera_tok(e);
    struct answer *a = answers(3);
    int ended = 0;
    for (uint64_t seed = 0; seed < 12; seed++) {
        struct tessera_generator_options o = options(1.5f, seed, 150);
        o.ignore_end = true;
        answer_to(e, prompt, N_PROMPT, &o, &a[0]);
        assert_int_equal(a[0].stop, TESSERA_STOP_LENGTH);
        assert_int_equal(a[0].n, 150);
        int at = 0;
        while (at < a[0].n && !tok_is_end(t, a[0].id[at])) at++;
        o.ignore_end = false;
        answer_to(e, prompt, N_PROMPT, &o, &a[1]);
        o.special_text = true;
        answer_to(e, prompt, N_PROMPT, &o, &a[2]);
        if (at == a[0].n) {
            assert_int_equal(a[1].stop, TESSERA_STOP_LENGTH);
            continue;
        }
        ended++;
        for (int k = 1; k < 3; k++) { /* the end token is counted, and is no text */
            assert_int_equal(a[k].stop, TESSERA_STOP_END);
            assert_int_equal(a[k].n, at + 1);
            assert_memory_equal(a[k].id, a[0].id, sizeof *a->id * (size_t)a[k].n);
            const int n = at ? a[0].end[at - 1] : 0;
            if (k == 1) assert_memory_equal(a[1].text, a[0].text, (size_t)n);
            assert_false(says(&a[k], "im_end"));
        }
        /* Going on past it with special text prints it. */
        o.ignore_end = true;
        answer_to(e, prompt, N_PROMPT, &o, &a[2]);
        assert_int_equal(a[2].n, 150);
        assert_true(says(&a[2], "<|im_end|>") || says(&a[2], "</s>"));
    }
    assert_true(ended > 3);
    free(a);
    tessera_close(e);
}

static void test_length(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e = open_engine(4, 1);
    struct answer *a = answers(1);
    static const int lengths[] = {0, 1, 2, 7};
    for (int i = 0; i < 4; i++) {
        struct tessera_generator_options o = options(0, 0, lengths[i]);
        o.ignore_end = true;
        tessera_session *s = session_of(e, 0);
        tessera_generator *g = generator(s, prompt, N_PROMPT, &o);
        run(g, a);
        assert_int_equal(a->stop, TESSERA_STOP_LENGTH);
        assert_int_equal(a->n, lengths[i]);
        const struct tessera_timing t = tessera_generator_timing(g);
        assert_int_equal(t.n_gen, lengths[i]);
        assert_int_equal(t.n_prompt, N_PROMPT);
        assert_int_equal(t.n_prompt_reused, 0);
        /* The last token was sampled, not yet fed. */
        assert_int_equal(tessera_session_n(s), lengths[i] ? N_PROMPT + lengths[i] - 1 : 0);
        tessera_generator_close(g);
        tessera_session_close(s);
    }
    /* Prompts that cannot be. */
    tessera_session *s = session_of(e, 0);
    tessera_generator *g;
    const struct tessera_generator_options o = options(0, 0, 1);
    const int32_t wrong[2][2] = {{1, -1}, {1, GEN_BYTE_VOCAB}};
    err_clear(&err);
    assert_int_equal(tessera_generator_open(s, prompt, 0, &o, &g, &err), ERR_RANGE);
    assert_null(g);
    for (int i = 0; i < 2; i++) {
        err_clear(&err);
        assert_int_equal(tessera_generator_open(s, wrong[i], 2, &o, &g, &err), ERR_RANGE);
        assert_null(g);
    }
    tessera_generator_close(NULL);
    tessera_session_close(s);
    free(a);
    tessera_close(e);
}

static void test_full(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e = open_engine(16, 1);
    struct answer *a = answers(2);
    int32_t ids[32];
    for (int i = 0; i < 32; i++) ids[i] = 261 + i;
    struct tessera_generator_options o = options(0, 0, -1);
    o.ignore_end = true;
    for (int n = 15; n <= 21; n++) {
        tessera_session *s = session_of(e, 20);
        tessera_generator *g;
        err_clear(&err);
        if (n > 20) {
            assert_int_equal(tessera_generator_open(s, ids, n, &o, &g, &err), ERR_FULL);
            assert_null(g);
            assert_non_null(strstr(err.msg, "20"));
        } else {
            /* Logits of every position are worth a token: one more than there is room for. */
            g = generator(s, ids, n, &o);
            run(g, &a[0]);
            assert_int_equal(a[0].stop, TESSERA_STOP_FULL);
            assert_int_equal(a[0].n, 20 - n + 1);
            assert_int_equal(tessera_session_n(s), 20);
            tessera_generator_close(g);
            struct tessera_generator_options p = o;
            p.n_gen_max = a[0].n;
            answer_to(e, ids, n, &p, &a[1]); /* the same in a context with room */
            assert_int_equal(a[1].stop, TESSERA_STOP_LENGTH);
            assert_same(&a[0], &a[1]);
        }
        tessera_session_close(s);
    }
    free(a);
    tessera_close(e);
}

static void test_cancel(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e = open_engine(4, 1);
    struct answer *a = answers(2);
    struct tessera_generator_options o = plain_answer(e, 0.9f, 12, &a[0]);
    for (int at = 0; at < 12; at++) {
        tessera_session *s = session_of(e, 0);
        tessera_cancel(e); /* meant for something earlier: opening forgets it */
        tessera_generator *g = generator(s, prompt, N_PROMPT, &o);
        struct tessera_answer x;
        memset(&a[1], 0, sizeof a[1]);
        for (int i = 0; i < at; i++) {
            assert_int_equal(tessera_generator_next(g, &x, &err), OK);
            add(&a[1], &x);
        }
        const int n = tessera_session_n(s);
        tessera_cancel(e);
        err_clear(&err);
        assert_int_equal(tessera_generator_next(g, &x, &err), OK);
        assert_int_equal(x.stop, TESSERA_STOP_CANCELLED);
        assert_int_equal(x.id, -1);
        assert_int_equal(err.code, OK);
        add(&a[1], &x);
        assert_int_equal(tessera_session_n(s), n); /* as before the step */
        assert_memory_equal(a[1].id, a[0].id, sizeof *a->id * (size_t)at);
        assert_memory_equal(a[1].text, a[0].text, (size_t)a[1].n_text);
        if (at) assert_true(a[1].n_text >= a[0].end[at - 1]);
        assert_int_equal(tessera_generator_next(g, &x, &err), OK);
        assert_int_equal(x.stop, TESSERA_STOP_CANCELLED);
        tessera_generator_close(g);
        /* The session goes on as if nothing had been. */
        g = generator(s, prompt, N_PROMPT, &o);
        run(g, &a[1]);
        assert_int_equal(a[1].n, 12);
        assert_same(&a[1], &a[0]);
        tessera_generator_close(g);
        tessera_session_close(s);
    }
    /* What is held back for a stop string comes out with the cancel. */
    char first[64];
    (void)snprintf(first, sizeof first, "%.*s~", a[0].end[5], a[0].text);
    const char *stops[1] = {first};
    o.stops = stops;
    o.n_stops = 1;
    tessera_session *s = session_of(e, 0);
    tessera_generator *g = generator(s, prompt, N_PROMPT, &o);
    struct tessera_answer x;
    for (int i = 0; i < 6; i++) {
        assert_int_equal(tessera_generator_next(g, &x, &err), OK);
        assert_int_equal(x.n_text, 0);
    }
    tessera_cancel(e);
    assert_int_equal(tessera_generator_next(g, &x, &err), OK);
    assert_int_equal(x.stop, TESSERA_STOP_CANCELLED);
    assert_int_equal(x.n_text, a[0].end[5]);
    assert_memory_equal(x.text, a[0].text, (size_t)x.n_text);
    tessera_generator_close(g);
    tessera_session_close(s);
    free(a);
    tessera_close(e);
}

/* ---- a kept prefix ---- */

/* Logits behind every token of the answer, [n][n_vocab]; returns the reused part of the prompt. */
static int run_bits(tessera_session *s, const int32_t *ids, int n, uint64_t seed, float *logits,
                    int32_t *out, int n_gen)
{
    struct err err;
    struct tessera_generator_options o = options(0.9f, seed, n_gen);
    o.ignore_end = true;
    tessera_generator *g = generator(s, ids, n, &o);
    struct tessera_answer a;
    const tessera_engine *e = s->engine;
    for (int i = 0; i < n_gen; i++) {
        assert_int_equal(tessera_generator_next(g, &a, &err), OK);
        out[i] = a.id;
        memcpy(logits + i * GEN_BYTE_VOCAB, tessera_logits(e, 0, e->input[0].n - 1),
               GEN_BYTE_VOCAB * sizeof *logits);
    }
    const int reused = tessera_generator_timing(g).n_prompt_reused;
    tessera_generator_close(g);
    return reused;
}

static void test_prefix(void **state)
{
    (void)state;
    enum { TURNS = 4, GEN = 9 };
    tessera_engine *e = open_engine(16, 2);
    tessera_session *s = session_of(e, 0);
    float *want = calloc(GEN * GEN_BYTE_VOCAB, sizeof *want);
    float *got = calloc(GEN * GEN_BYTE_VOCAB, sizeof *got);
    int32_t ids[GEN_MAX], out[2][GEN];
    int n = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        for (int i = 0; i < 20; i++) ids[n++] = 5 + (turn * 31 + i * 7) % 280;
        const int before = tessera_session_n(s);
        const int reused = run_bits(s, ids, n, (uint64_t)turn, got, out[0], GEN);
        assert_int_equal(reused, before); /* the whole conversation so far */
        /* Again: all but the last token of the prompt is there. */
        assert_int_equal(run_bits(s, ids, n, (uint64_t)turn, want, out[1], GEN), n - 1);
        assert_memory_equal(want, got, GEN * GEN_BYTE_VOCAB * sizeof *want);
        tessera_session *fresh = session_of(e, 0);
        assert_int_equal(run_bits(fresh, ids, n, (uint64_t)turn, want, out[1], GEN), 0);
        assert_memory_equal(want, got, GEN * GEN_BYTE_VOCAB * sizeof *want);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        tessera_session_close(fresh);
        for (int i = 0; i < GEN; i++) ids[n++] = out[0][i];
    }
    /* Another way from the middle: what differs is rolled back. */
    ids[30] = (ids[30] + 1) % 280;
    assert_int_equal(run_bits(s, ids, 50, 9, got, out[0], GEN), 30);
    tessera_session *fresh = session_of(e, 0);
    (void)run_bits(fresh, ids, 50, 9, want, out[1], GEN);
    assert_memory_equal(want, got, GEN * GEN_BYTE_VOCAB * sizeof *want);
    tessera_session_close(fresh);
    tessera_session_close(s);
    free(want);
    free(got);
    tessera_close(e);
}

/* ---- batches ---- */

enum { BATCH = 4 };

/* Four answers of different lengths, seeds and ends; o[k].stops may be set. */
static void run_batch(tessera_engine *e, int n_rows_max, int32_t ids[BATCH][40], const int *n,
                      const struct tessera_generator_options *o, struct answer *out)
{
    struct err err;
    tessera_session *s[BATCH];
    tessera_generator *g[BATCH];
    err_clear(&err);
    for (int k = 0; k < BATCH; k++) {
        s[k] = session_of(e, 0);
        g[k] = generator(s[k], ids[k], n[k], &o[k]);
        memset(&out[k], 0, sizeof out[k]);
    }
    for (int turn = 0;; turn++) {
        struct tessera_input in[BATCH];
        int who[BATCH], n_in = 0, left = n_rows_max;
        for (int i = 0; i < BATCH; i++) {
            const int k = (i + turn) % BATCH; /* nobody is always first */
            if (!tessera_generator_want(g[k], left, &in[n_in])) continue;
            left -= in[n_in].n;
            assert_true(left >= 0 && in[n_in].n >= 1);
            who[n_in++] = k;
        }
        if (!n_in) break;
        if (tessera_step(e, in, n_in, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < n_in; i++) {
            struct tessera_answer a;
            assert_int_equal(tessera_generator_take(g[who[i]], i, &a, &err), OK);
            add(&out[who[i]], &a);
        }
    }
    for (int k = 0; k < BATCH; k++) {
        assert_true(out[k].stop != TESSERA_RUNNING);
        tessera_generator_close(g[k]);
        tessera_session_close(s[k]);
    }
}

static void test_batch(void **state)
{
    (void)state;
    tessera_engine *e = open_engine(24, BATCH);
    struct answer *want = answers(BATCH), *got = answers(BATCH);
    static const int rows[] = {24, 7, 3, 1};
    int32_t ids[BATCH][40];
    int n[BATCH];
    const char *stops[1] = {"e"};
    struct tessera_generator_options o[BATCH];
    for (int k = 0; k < BATCH; k++) {
        n[k] = 3 + 12 * k;
        for (int i = 0; i < n[k]; i++) ids[k][i] = 5 + (k * 53 + i * 11) % 280;
        o[k] = options(k == 1 ? 0 : 0.9f + 0.2f * (float)k, (uint64_t)k, 25 + 10 * k);
        o[k].ignore_end = k == 2;
    }
    o[3].stops = stops;
    o[3].n_stops = 1;
    for (int k = 0; k < BATCH; k++) answer_to(e, ids[k], n[k], &o[k], &want[k]);
    for (int r = 0; r < 4; r++) {
        run_batch(e, rows[r], ids, n, o, got);
        for (int k = 0; k < BATCH; k++) {
            assert_same(&got[k], &want[k]);
            assert_int_equal(got[k].stop, want[k].stop);
            assert_memory_equal(got[k].end, want[k].end, sizeof *got->end * (size_t)got[k].n);
        }
    }
    /* One that was cancelled in a batch can be asked again: want() is as before. */
    struct err err;
    tessera_session *s = session_of(e, 0);
    tessera_generator *g = generator(s, ids[3], n[3], &o[3]);
    struct tessera_input in, again;
    assert_true(tessera_generator_want(g, 5, &in));
    assert_int_equal(in.n, 5);
    assert_int_equal(in.logits, TESSERA_LOGITS_NONE);
    tessera_cancel(e);
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_CANCELLED);
    assert_true(tessera_generator_want(g, 100, &again));
    assert_ptr_equal(again.ids, in.ids);
    assert_int_equal(again.n, n[3]);
    assert_int_equal(again.logits, TESSERA_LOGITS_LAST);
    assert_false(tessera_generator_want(g, 0, &in));
    run(g, got);
    assert_same(got, &want[3]);
    tessera_generator_close(g);
    tessera_session_close(s);
    free(want);
    free(got);
    tessera_close(e);
}

/* ---- long and broken pieces ---- */

/* Tokens of 4,096 bytes that are no UTF-8: each byte becomes a replacement character of three. */
static const char *long_vocab(void)
{
    enum { LONG = TOK_PIECE_MAX, N = 40 };
    static char path[128], text[N][LONG + 1];
    struct gguf_str tokens[N];
    float scores[N];
    int32_t types[N];
    struct err e;
    for (int i = 0; i < N; i++) {
        const int len = i < 3 ? 4 : i == 3 ? LONG : 1 + i * 97;
        memset(text[i], i < 3 ? '<' : i % 2 ? 0xff : 'x', (size_t)len);
        text[i][len - 1] = (char)('A' + i);
        tokens[i] = (struct gguf_str){text[i], (uint64_t)len};
        scores[i] = -(float)i;
        types[i] = i == 0 ? 2 : i < 3 ? 3 : 1;
    }
    (void)snprintf(path, sizeof path, "%s/vocab.gguf", dir);
    err_clear(&e);
    struct gguf_writer *w = gguf_writer_new();
    assert_non_null(w);
    gguf_put_str(w, "tokenizer.ggml.model", "llama");
    gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, N);
    gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, N);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, types, N);
    gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
    if (gguf_writer_begin(w, path, &e) || gguf_writer_end(w, &e)) fail_msg("%s", e.msg);
    gguf_writer_close(w);
    return path;
}

static void test_long_pieces(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e;
    struct tessera_options o = tessera_defaults();
    o.model_path = model_file(long_vocab());
    o.n_threads = 1;
    o.mem_budget = UINT64_MAX;
    if (tessera_open(&o, &e, &err)) fail_msg("%s", err.msg);
    const struct tok *t = tessera_tok(e);
    assert_non_null(t);
    char *piece = malloc(TOK_PIECE_MAX);
    assert_non_null(piece);
    bool longest = false;
    for (uint64_t seed = 0; seed < 8; seed++) {
        tessera_session *s = session_of(e, 0);
        struct tessera_generator_options g_o = options(3, seed, 60);
        const char *stops[1] = {"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" "D!"};
        g_o.ignore_end = true;
        g_o.stops = stops; /* never comes, but holds text back */
        g_o.n_stops = 1;
        tessera_generator *g = generator(s, (const int32_t[]){5, 6, 7}, 3, &g_o);
        struct tessera_answer a;
        int64_t got = 0, want = 0;
        do {
            assert_int_equal(tessera_generator_next(g, &a, &err), OK);
            assert_true(is_utf8(a.text, a.n_text));
            got += a.n_text;
            const int n = tok_piece(t, a.id, false, piece, TOK_PIECE_MAX);
            longest |= n == TOK_PIECE_MAX;
            for (int i = 0; i < n; i++) want += (unsigned char)piece[i] == 0xff ? 3 : 1;
        } while (!a.stop);
        assert_int_equal(got, want);
        tessera_generator_close(g);
        tessera_session_close(s);
    }
    assert_true(longest);
    free(piece);
    tessera_close(e);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return tests_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings), cmocka_unit_test(test_held_back),
        cmocka_unit_test(test_end_token),    cmocka_unit_test(test_length),
        cmocka_unit_test(test_full),         cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_prefix),       cmocka_unit_test(test_batch),
        cmocka_unit_test(test_long_pieces),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
