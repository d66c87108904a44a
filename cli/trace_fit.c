/* `tessera trace --fit-forecasters`: forecasters for a model's feed-forwards (routing/approx.h), fitted on
 * what the model itself computes for a text, and their price on a part of the text that they have not
 * seen: KL against the model as it is, beside leaving out the same share by lot. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/kl.h"
#include "cli/trace_fit.h"
#include "moe/run/informed.h"
#include "routing/fit/fit_approx.h"

/* Hidden states of some parts at a time, so that memory is bounded. */
enum { PAIRS_MAX = 6000, GROUP_BYTES = 192 << 20, GATES_MAX = 1 << 22 };

struct fitting {
    tessera_engine *e;
    struct approx *a;
    const int32_t *ids;
    int n, bos, n_embd;
    int *slot;                  /* [n_parts] place in x, -1 = not now */
    float *x, *z;               /* [parts][PAIRS_MAX][n_embd] */
    long *n_pairs;              /* [parts] */
    float *gate;                /* [n_gates] weights of chosen experts, room for GATES_MAX */
    long n_gates;
};

static void see_gates(void *arg, int n, const float *w)
{
    struct fitting *f = arg;
    for (int i = 0; i < n && f->n_gates < GATES_MAX; i++) f->gate[f->n_gates++] = w[i];
}

static void see(void *arg, int part, int n, const float *x, const float *z)
{
    struct fitting *f = arg;
    const int s = f->slot[part];
    if (s < 0) return;
    for (int r = 0; r < n && f->n_pairs[s] < PAIRS_MAX; r++, f->n_pairs[s]++) {
        const size_t at = ((size_t)s * PAIRS_MAX + (size_t)f->n_pairs[s]) * (size_t)f->n_embd;
        memcpy(f->x + at, x + (size_t)r * (size_t)f->n_embd, sizeof *x * (size_t)f->n_embd);
        memcpy(f->z + at, z + (size_t)r * (size_t)f->n_embd, sizeof *z * (size_t)f->n_embd);
    }
}

/* Windows of ids from .. to - 1; all rows have logits, so that all go through the last layer. */
static enum status run_text(struct fitting *f, int from, int to, struct err *err)
{
    const struct tessera_model m = tessera_model(f->e);
    const int most = m.n_ubatch < 64 ? m.n_ubatch : 64;
    tessera_session *s;
    enum status st = tessera_session_open(f->e, 0, &s, err);
    if (st) return st;
    for (int at = from; at < to && !st;) {
        const int end = at + m.n_ctx - f->bos < to ? at + m.n_ctx - f->bos : to;
        st = tessera_session_rollback(s, (struct tessera_mark){0}, err);
        struct tessera_input in = {.session = s, .ids = f->ids, .n = f->bos};
        if (!st && f->bos) st = tessera_step(f->e, &in, 1, err);
        for (int n; at < end && !st; at += n) {
            n = end - at < most ? end - at : most;
            in = (struct tessera_input){.session = s, .ids = f->ids + at, .n = n,
                                        .logits = TESSERA_LOGITS_ALL};
            st = tessera_step(f->e, &in, 1, err);
            if (!st && cli_interrupted()) st = err_set(err, ERR_CANCELLED, "interrupted");
        }
    }
    tessera_session_close(s);
    return st;
}

/* ---- prices ---- */

struct price {
    double kl, loss, base;
    int n;
};

static void add_kl(struct price *p, const float *full, const float *other, int n, int32_t next)
{
    double z[2];
    p->kl += kl_rows(full, other, n, z);
    p->n++;
    p->base += next < 0 ? 0 : z[0] - (double)full[next];
    p->loss += next < 0 ? 0 : z[1] - (double)other[next];
}

/* The same pieces on two timelines, one with and one without. */
static enum status measure(struct fitting *f, int from, int to, enum approx_mode mode, double share,
                           struct price *p, double *did, struct err *err)
{
    const struct tessera_model m = tessera_model(f->e);
    const int most = m.n_ubatch < 64 ? m.n_ubatch : 64;
    tessera_session *s[2] = {NULL, NULL};
    float *full = malloc(sizeof *full * (size_t)most * (size_t)m.n_vocab);
    uint64_t rows = 0, on = 0;
    memset(p, 0, sizeof *p);
    enum status st = full ? tessera_session_open(f->e, 0, &s[0], err)
                          : err_set(err, ERR_MEMORY, "no memory for logits");
    if (!st) st = tessera_session_open(f->e, 0, &s[1], err);
    for (int at = from; at < to && !st;) {
        const int end = at + m.n_ctx - f->bos < to ? at + m.n_ctx - f->bos : to;
        for (int k = 0; k < 2 && !st; k++) {
            st = tessera_session_rollback(s[k], (struct tessera_mark){0}, err);
            approx_set(f->a, k ? mode : APPROX_OFF, share);
            const struct tessera_input in = {.session = s[k], .ids = f->ids, .n = f->bos};
            if (!st && f->bos) st = tessera_step(f->e, &in, 1, err);
        }
        for (int n; at < end && !st; at += n) {
            n = end - at < most ? end - at : most;
            for (int k = 0; k < 2 && !st; k++) {
                const struct tessera_input in = {.session = s[k], .ids = f->ids + at, .n = n,
                                                 .logits = TESSERA_LOGITS_ALL};
                approx_set(f->a, k ? mode : APPROX_OFF, share);
                st = tessera_step(f->e, &in, 1, err);
                for (int r = 0; r < n && !st; r++) {
                    float *was = full + (size_t)r * (size_t)m.n_vocab;
                    const float *now = tessera_logits(f->e, 0, r);
                    if (!k) memcpy(was, now, sizeof *was * (size_t)m.n_vocab);
                    else add_kl(p, was, now, m.n_vocab, at + r + 1 < end ? f->ids[at + r + 1] : -1);
                }
            }
            rows += f->a->rows;
            on += f->a->rows_on;
            if (!st && cli_interrupted()) st = err_set(err, ERR_CANCELLED, "interrupted");
        }
    }
    *did = rows ? (double)on / (double)rows : 0;
    tessera_session_close(s[0]);
    tessera_session_close(s[1]);
    free(full);
    approx_set(f->a, APPROX_OFF, 0);
    return st;
}

static enum status print_prices(struct fitting *f, int from, struct err *err)
{
    static const double shares[] = {0.1, 0.25, 0.4, 0.6};
    enum { SHARES = sizeof shares / sizeof *shares };
    static const char *const names[] = {"", "judged", "left out by lot", "forecast by lot",
                                        "least gate weight"};
    const int last = f->n_gates ? APPROX_GATE : APPROX_RANDOM_FORECAST;
    enum status s = OK;
    printf("feed-forwards that a forecaster stands in for, or experts of little gate weight left out,\n"
           "on %d tokens that were not fitted\n"
           "%-18s %7s %7s %9s %10s %10s\n", f->n - from, "", "asked", "share", "KL", "perplexity",
           "as it is");
    for (int i = 0; i < SHARES && !s; i++)
        for (int mode = APPROX_JUDGE; mode <= last && !s; mode++) {
            struct price p;
            double did;
            s = measure(f, from, f->n, (enum approx_mode)mode, shares[i], &p, &did, err);
            if (s || !p.n) continue;
            printf("%-18s %5.0f %% %5.1f %% %9.4f %10.3f %10.3f\n", names[mode], 100 * shares[i], 100 * did,
                   p.kl / p.n, exp(p.loss / p.n), exp(p.base / p.n));
            if (mode != APPROX_JUDGE) continue;
            f->a->f.share[f->a->f.n_prices] = (float)shares[i];
            f->a->f.kl[f->a->f.n_prices++] = (float)(p.kl / p.n);
        }
    return s;
}

/* ---- fitting ---- */

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static enum status fit_group(struct fitting *f, struct forecasters *to, const int *part, int n, int held,
                             float *loss, long *n_loss, struct err *err)
{
    for (int p = 0; p < f->a->n_parts; p++) f->slot[p] = -1;
    for (int k = 0; k < n; k++) {
        f->slot[part[k]] = k;
        f->n_pairs[k] = 0;
    }
    f->a->see = see;
    f->a->see_gates = to->n_parts ? NULL : see_gates; /* the same again with every group */
    f->a->see_arg = f;
    enum status s = run_text(f, f->bos, held, err);
    f->a->see = NULL;
    f->a->see_gates = NULL;
    const long each = approx_floats(f->n_embd, to->rank);
    for (int k = 0; k < n && !s; k++) {
        const size_t at = (size_t)k * PAIRS_MAX * (size_t)f->n_embd;
        const int layer = to->n_parts++;
        to->op[layer] = f->a->part[part[k]].from;
        s = fit_approx(f->n_embd, to->rank, f->n_pairs[k], f->x + at, f->z + at, to->data + each * layer,
                       &to->layer[layer], loss + *n_loss, err);
        *n_loss += f->n_pairs[k];
        if (!s && cli_interrupted()) s = err_set(err, ERR_CANCELLED, "interrupted");
        if (cli_tty(stderr)) fprintf(stderr, "\rfitted %d \033[K", to->n_parts);
    }
    return s;
}

static enum status fit_all(struct fitting *f, struct forecasters *to, int held, struct err *err)
{
    int part[4096], n = 0;
    for (int p = 0; p < f->a->n_parts && n < 4096; p++)
        if (f->a->part[p].kind == BRANCH_FEED_FORWARD) part[n++] = p;
    if (!n) return err_set(err, ERR_UNSUPPORTED, "this model has no feed-forwards that stand alone");
    const size_t pair = 2 * sizeof(float) * PAIRS_MAX * (size_t)f->n_embd;
    int group = (int)(GROUP_BYTES / pair);
    group = group < 1 ? 1 : group > n ? n : group;
    f->slot = calloc((size_t)f->a->n_parts, sizeof *f->slot);
    f->n_pairs = calloc((size_t)group, sizeof *f->n_pairs);
    f->x = malloc(pair / 2 * (size_t)group);
    f->z = malloc(pair / 2 * (size_t)group);
    to->op = calloc((size_t)n, sizeof *to->op);
    to->layer = calloc((size_t)n, sizeof *to->layer);
    to->data = malloc(sizeof *to->data * (size_t)approx_floats(f->n_embd, to->rank) * (size_t)n);
    float *loss = malloc(sizeof *loss * PAIRS_MAX * (size_t)n);
    f->gate = malloc(sizeof *f->gate * GATES_MAX);
    long n_loss = 0;
    enum status s = f->slot && f->n_pairs && f->x && f->z && to->op && to->layer && to->data && loss && f->gate
                        ? OK : err_set(err, ERR_MEMORY, "no memory to fit forecasters");
    for (int at = 0; at < n && !s; at += group)
        s = fit_group(f, to, part + at, n - at < group ? n - at : group, held, loss, &n_loss, err);
    if (cli_tty(stderr)) fprintf(stderr, "\r\033[K");
    if (!s) {
        qsort(loss, (size_t)n_loss, sizeof *loss, by_value);
        for (int i = 0; i <= 100; i++) to->quantile[i] = loss[(n_loss - 1) * i / 100];
    }
    if (!s) approx_gates(f->a, f->gate, f->n_gates);
    free(loss);
    free(f->gate);
    free(f->slot);
    free(f->n_pairs);
    free(f->x);
    free(f->z);
    return s;
}

enum status trace_fit(tessera_engine *e, const int32_t *ids, int n, int bos, const char *path,
                      struct err *err)
{
    const struct tessera_model m = tessera_model(e);
    struct fitting f = {.e = e, .ids = ids, .n = n, .bos = bos, .n_embd = m.n_embd};
    const int held = bos + (n - bos) * 4 / 5;
    struct forecasters to = {.model_hash = m.hash, .n_embd = m.n_embd,
                             .rank = m.n_embd / 2 < FIT_RANK ? m.n_embd / 2 : FIT_RANK};
    if (n - held < 2)
        return err_set(err, ERR_RANGE, "the text has %d token%s: to fit and to measure takes 6 at least",
                       n - bos, n - bos == 1 ? "" : "s");
    enum status s = approx_open(e, NULL, err);
    if (s) return s;
    f.a = approx_of(e);
    s = fit_all(&f, &to, held, err);
    if (s) {
        forecasters_free(&to);
        return s;
    }
    approx_take(f.a, &to);
    s = print_prices(&f, held, err);
    return s ? s : forecasters_write(&f.a->f, m.name, path, err);
}
