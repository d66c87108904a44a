/* Shared by the tests of models that are held against an independent reference: a folder with text.ids,
 * and for each line "name model options" of cases.txt name.logits.f32 and name.depth, as make.py of that
 * folder writes them.  Variants are files of their own in a folder in /tmp.
 *
 * Owns that folder; reports failures through cmocka; one test program includes it. */
#ifndef TESTS_REFCASE_H
#define TESTS_REFCASE_H

#include <math.h>
#include <unistd.h>

#include "moe/base/rng.h"
#include "tests/engine.h"
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
    char *text = ref_slurp("text", ".ids", &n), *at = text;
    for (int i = 0; i < N_IDS; i++) {
        ids[i] = (int32_t)strtol(at, &at, 10);
        at += strspn(at, ",\n");
    }
    free(text);
    text = ref_slurp("cases", ".txt", &n);
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

/* Largest difference over the reference's root mean square. */
static inline double distance(const struct run *a, const struct run *want)
{
    double sum = 0, max = 0;
    for (int i = 0; i < N_IDS * VOCAB; i++) {
        const double w = (double)want->logits[i], d = fabs((double)a->logits[i] - w);
        sum += w * w;
        if (!(d <= max)) max = d;
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

#endif
