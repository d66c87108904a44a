/* Shared by the tests of models that are held against an independent reference: a folder with text.ids,
 * and for each line "name model options" of cases.txt name.logits.f32 and name.depth, as make.py of that
 * folder writes them.  Variants are files of their own in a folder in /tmp.  Also what holds for each
 * such model: the same bits in every split, batch and tier, after going back, saving and spilling.
 *
 * Owns that folder; reports failures through cmocka; one test program includes it. */
#ifndef TESTS_REFCASE_H
#define TESTS_REFCASE_H

#include <math.h>
#include <unistd.h>

#include "moe/base/rng.h"
#include "moe/run/engine_int.h"
#include "tests/engine.h"
#include "tests/rewrite.h"
#include "tests/shared.h"

enum { N_IDS = 100, VOCAB = 40, CASES = 64 };

static char dir[64] = "/tmp/tessera-ref-XXXXXX";
static const char *ref_folder;
static int32_t ids[N_IDS];

struct variant {
    char name[40], model[40], options[80];
    char path[80];
    struct tessera_options open;
};

static struct variant variant[CASES];
static int n_variants;

/* A file of the folder; caller frees. */
static inline char *ref_slurp(const char *name, const char *end, size_t *n)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%.100s/%.80s%.40s", ref_folder, name, end);
    char *p = shared_slurp(path, n);
    if (!p) fail_msg("%s is not there", path);
    return p;
}

/* Reads the cases; make writes variant v's file, v->path, and changes v->open as its options say. */
static inline void ref_open(const char *folder, void (*make)(struct variant *v))
{
    size_t n = 0;
    ref_folder = folder;
    assert_non_null(mkdtemp(dir));
    char path[128];
    (void)snprintf(path, sizeof path, "%.100s/text.ids", folder);
    assert_true(shared_ids(path, N_IDS, ids));
    char *text = ref_slurp("cases", ".txt", &n);
    for (char *line = text, *end; *line && n_variants < CASES; line = end + 1) {
        struct variant *v = &variant[n_variants++];
        end = strchr(line, '\n');
        *end = 0;
        assert_true(sscanf(line, "%39s %39s %79[^\n]", v->name, v->model, v->options) >= 2);
        (void)snprintf(v->path, sizeof v->path, "%s/%d.gguf", dir, n_variants);
        v->open = tessera_defaults();
        v->open.model_path = v->path;
        v->open.n_threads = 2;
        make(v);
    }
    free(text);
}

static inline void ref_close(void)
{
    for (int i = 0; i < n_variants; i++) (void)unlink(variant[i].path);
    (void)rmdir(dir);
}

/* ---- running ---- */

struct run {
    float logits[N_IDS * VOCAB];
    unsigned char depth[N_IDS];
};

/* The tokens that follow, to the n-th, in pieces of which next() says the size. */
static inline void feed(tessera_engine *e, tessera_session *s, int n, int piece, struct rng *r,
                        struct run *out)
{
    struct err err;
    for (int at = tessera_session_n(s), m; at < n; at += m) {
        m = r ? 1 + (int)rng_below(r, rng_below(r, 3) ? 4 : 60) : piece;
        if (m > n - at) m = n - at;
        const struct tessera_input in = {s, ids + at, m, TESSERA_LOGITS_ALL};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < m; i++)
            memcpy(out->logits + (at + i) * VOCAB, tessera_logits(e, 0, i), sizeof(float) * VOCAB);
    }
    if (tessera_session_depths(s)) memcpy(out->depth, tessera_session_depths(s), (size_t)n);
}

static inline void run_all(const struct variant *v, int piece, struct run *out)
{
    tessera_engine *e = must_open(&v->open);
    tessera_session *s = session(e);
    feed(e, s, N_IDS, piece, NULL, out);
    tessera_session_close(s);
    tessera_close(e);
}

static inline bool same(const struct run *a, const struct run *b)
{
    return !memcmp(a->logits, b->logits, sizeof a->logits) &&
           !memcmp(a->depth, b->depth, sizeof a->depth);
}

static inline void want_of(const char *name, struct run *out)
{
    size_t n = 0;
    char *p = ref_slurp(name, ".logits.f32", &n);
    assert_int_equal(n, sizeof out->logits);
    memcpy(out->logits, p, n);
    free(p);
    p = ref_slurp(name, ".depth", &n);
    assert_int_equal(n, sizeof out->depth);
    memcpy(out->depth, p, n);
    free(p);
}

/* Largest difference over the reference's root mean square; NaN where there is one. */
static inline double distance(const struct run *a, const struct run *want)
{
    double sum = 0, max = 0;
    for (int i = 0; i < N_IDS * VOCAB; i++) {
        const double w = (double)want->logits[i], d = fabs((double)a->logits[i] - w);
        if (isnan(d)) return d;
        sum += w * w;
        max = fmax(max, d);
    }
    return max / sqrt(sum / (N_IDS * VOCAB));
}

static inline const struct variant *find(const char *name)
{
    for (int i = 0; i < n_variants; i++)
        if (!strcmp(variant[i].name, name)) return &variant[i];
    fail_msg("no case %s", name);
    return NULL;
}

/* ---- what holds for every model: each function runs a variant's text in one step and in another way ---- */

/* Random splits of every variant that may be split, `each` of one; returns how many there were. */
static inline int check_splits(int n_threads, int each)
{
    struct rng r;
    int n = 0;
    rng_seed(&r, 7);
    for (int i = 0; i < n_variants; i++) {
        if (variant[i].open.depth_exact) continue; /* a text in one step */
        struct run one, got;
        struct err err;
        memset(&one, 0, sizeof one);
        run_all(&variant[i], N_IDS, &one);
        struct tessera_options o = variant[i].open;
        o.n_threads = n_threads;
        tessera_engine *e = must_open(&o);
        tessera_session *s = session(e);
        for (int k = 0; k < each; k++, n++) {
            memset(&got, 0, sizeof got);
            if (tessera_session_rollback(s, (struct tessera_mark){0}, &err)) fail_msg("%s", err.msg);
            feed(e, s, N_IDS, 1, k ? &r : NULL, &got); /* the first one token by token */
            if (!same(&got, &one)) fail_msg("%s: split %d differs", variant[i].name, k);
        }
        tessera_session_close(s);
        tessera_close(e);
    }
    return n;
}

/* A variant's text in one step, and a session for another way. */
struct trial {
    struct run one, got;
    tessera_engine *e;
    tessera_session *s;
};

static inline void trial_open(struct trial *t, const char *name)
{
    const struct variant *v = find(name);
    memset(t, 0, sizeof *t);
    run_all(v, N_IDS, &t->one);
    t->e = must_open(&v->open);
    t->s = session(t->e);
}

static inline void trial_close(struct trial *t, const char *name, const char *after)
{
    if (!same(&t->got, &t->one)) fail_msg("%s: differs after %s", name, after);
    tessera_session_close(t->s);
    tessera_close(t->e);
}

/* Going back to anywhere, as far as the states allow, and on again; marks are reached exactly. */
static inline void check_rollback(const char *name, struct rng *r)
{
    struct trial t;
    struct err err;
    trial_open(&t, name);
    for (int k = 0; k < 40; k++) {
        const int at = tessera_session_n(t.s);
        const int n = at + (int)rng_below(r, (uint32_t)(N_IDS - at) + 1);
        const int end = n + (int)rng_below(r, (uint32_t)(N_IDS - n) + 1);
        feed(t.e, t.s, n, 1, r, &t.got);
        const struct tessera_mark mark = tessera_session_mark(t.s);
        feed(t.e, t.s, end, 1, r, &t.got);
        if (tessera_session_rollback(t.s, mark, &err)) fail_msg("%s", err.msg);
        assert_int_equal(tessera_session_n(t.s), n);
        feed(t.e, t.s, end, 1, r, &t.got);
        const int to = (int)rng_below(r, (uint32_t)end + 1);
        if (tessera_session_rollback(t.s, (struct tessera_mark){to}, &err)) fail_msg("%s", err.msg);
        assert_in_range(tessera_session_n(t.s), 0, to);
    }
    feed(t.e, t.s, N_IDS, 9, NULL, &t.got);
    trial_close(&t, name, "going back");
}

/* Sessions at different depths, rates and places in one step. */
static inline void check_batch(const char *name)
{
    struct variant v = *find(name);
    struct run one, got[3];
    struct err err;
    memset(&one, 0, sizeof one);
    memset(got, 0, sizeof got);
    run_all(&v, N_IDS, &one);
    v.open.n_sessions = 3;
    tessera_engine *e = must_open(&v.open);
    tessera_session *s[3];
    for (int k = 0; k < 3; k++) s[k] = session(e);
    feed(e, s[1], 20, 20, NULL, &got[1]);
    feed(e, s[2], 40, 7, NULL, &got[2]);
    for (int step = 0; tessera_session_n(s[2]) < N_IDS - 3; step++) {
        struct tessera_input in[3];
        int at[3];
        for (int k = 0; k < 3; k++) {
            at[k] = tessera_session_n(s[k]);
            in[k] = (struct tessera_input){s[k], ids + at[k], 1 + (step + k) % 3, TESSERA_LOGITS_ALL};
        }
        if (tessera_step(e, in, 3, &err)) fail_msg("%s", err.msg);
        for (int k = 0; k < 3; k++)
            for (int t = 0; t < in[k].n; t++)
                memcpy(got[k].logits + (at[k] + t) * VOCAB, tessera_logits(e, k, t),
                       sizeof(float) * VOCAB);
    }
    for (int k = 0; k < 3; k++) {
        feed(e, s[k], N_IDS, 50, NULL, &got[k]);
        if (!same(&got[k], &one)) fail_msg("%s: session %d differs in company", name, k);
        tessera_session_close(s[k]);
    }
    tessera_close(e);
}

static inline void check_tiers(const char *name)
{
    static const char *const tiers[] = {"ref", "avx2", "avx512"};
    const struct variant *v = find(name);
    struct run one, got;
    memset(&one, 0, sizeof one);
    run_all(v, N_IDS, &one);
    for (int t = 0; t < 3; t++) {
        if (setenv("TESSERA_CPU", tiers[t], 1)) fail();
        memset(&got, 0, sizeof got);
        run_all(v, 31, &got);
        (void)unsetenv("TESSERA_CPU");
        if (!same(&got, &one)) fail_msg("%s: tier %s differs", name, tiers[t]);
    }
}

/* Saved, and loaded over another text. */
static inline void check_save(const char *name)
{
    struct trial t;
    struct err err;
    char path[128];
    (void)snprintf(path, sizeof path, "%s/saved.kv", dir);
    trial_open(&t, name);
    feed(t.e, t.s, 71, 71, NULL, &t.got);
    if (tessera_session_save(t.s, path, &err)) fail_msg("%s", err.msg);
    tessera_session_close(t.s);
    t.s = session(t.e);
    feed(t.e, t.s, 90, 90, NULL, &t.got);
    if (tessera_session_load(t.s, path, &err)) fail_msg("%s", err.msg);
    assert_int_equal(tessera_session_n(t.s), 71);
    const float *chance = tessera_session_chances(t.s);
    assert_true(!chance || isnan(chance[70])); /* models of concepts: chances are not saved */
    feed(t.e, t.s, N_IDS, 5, NULL, &t.got);
    trial_close(&t, name, "loading");
    (void)unlink(path);
}

/* All timelines go to disk and come back, as when memory runs short; `kept` bytes of states do not. */
static inline void check_spill(const char *name, uint64_t kept)
{
    struct trial t;
    struct err err;
    trial_open(&t, name);
    for (int to = 20; to <= N_IDS; to += 20) {
        feed(t.e, t.s, to, 20, NULL, &t.got);
        if (session_spill(t.s, &err)) fail_msg("%s", err.msg);
        assert_int_equal(session_committed(t.s), 0);
        assert_int_equal(tessera_memory(t.e).kv, kept);
    }
    trial_close(&t, name, "spilling");
}

/* ---- bytes, and what must fail ---- */

/* Of the pages of K and V of so many layers, `heads` of 16 halves each way. */
static inline uint64_t kv_of(int layers, int rows, int heads)
{
    return (uint64_t)layers * (uint64_t)((rows + KV_PAGE - 1) / KV_PAGE) * (uint64_t)heads *
           attn_head_bytes(KV_F16, 16, 16);
}

static inline uint64_t round_page(uint64_t n)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (n + page - 1) / page * page;
}

/* Writes and closes the copy; it is not opened with these options, and the message says `want`. */
static inline void must_refuse(struct rw *r, struct tessera_options o, const char *what, const char *want)
{
    struct err e;
    char path[128];
    tessera_engine *engine;
    (void)snprintf(path, sizeof path, "%s/bad.gguf", dir);
    rw_write(r, path);
    rw_close(r);
    o.model_path = path;
    if (!tessera_open(&o, &engine, &e)) fail_msg("%s was taken", what);
    if (!strstr(e.msg, want)) fail_msg("%s: \"%s\"", what, e.msg);
    (void)unlink(path);
}

/* What decides must not be rounded: a router's first bytes as blocks of Q8_0. */
static inline void must_refuse_rounded(struct rw *r, struct tessera_options o, const char *router)
{
    struct rw_tensor *t = rw_find(r, router);
    assert_non_null(t);
    t->type = QTYPE_Q8_0;
    t->piece[0].bytes = qtype_bytes(QTYPE_Q8_0, t->dim[0]) * t->dim[1];
    must_refuse(r, o, router, "is quantised");
}

/* A key that is set to something that a file must not say. */
struct bad {
    const char *model, *key;
    char type;
    double number;
    const char *text, *want;
};

/* What one variant says is not within the bound of another's reference. */
static inline void check_differs(const char *name, const char *reference)
{
    struct run got, want;
    memset(&got, 0, sizeof got);
    want_of(reference, &want);
    run_all(find(name), N_IDS, &got);
    if (!(distance(&got, &want) > 3e-4)) fail_msg("%s passes for %s", name, reference);
}

#endif
