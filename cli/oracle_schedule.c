/* `tessera oracle --what schedule`: how many experts per row every pass of a denoiser should get, in models
 * whose experts choose their rows.  See oracle_job.h.
 *
 * A text is cut into windows.  Of each, `steps` passes are tried: of pass s of S the share 1 - s / S is
 * hidden, tokens drawn by the seed, the same for every candidate.  What a pass is worth is the mean loss of
 * its hidden tokens, so a schedule's loss is the mean over passes (the bound on the likelihood that
 * masked diffusion is trained by), passes do not depend on each other, and the best schedule of a total is
 * exact (oracle_schedule). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/oracle_job.h"
#include "routing/choice.h"

static int k_max(const struct oracle_job *j) { return branches_choice(j->e).k_max; }
static int n_windows(const struct oracle_job *j) { return j->n_done / j->own.steps; }

/* Of the window that begins there: its tokens, those that every one begins with included. */
static int window_size(const struct oracle_job *j, int at)
{
    const int room = tessera_model(j->e).n_ctx, n = j->bos + j->n_ids - at;
    return n < room ? n : room;
}

/* Tokens of a window that are never hidden: those that every one begins with, and what no logits tell. */
static int n_shown(const struct oracle_job *j)
{
    const int shift = tessera_model(j->e).shifted;
    return j->bos > shift ? j->bos : shift;
}

/* Hidden tokens of a pass: at least one. */
static int n_hidden(const struct oracle_job *j, int pass)
{
    const int steps = j->own.steps, text = window_size(j, j->at[pass]) - n_shown(j);
    const int n = (text * (steps - pass % steps) + steps / 2) / steps;
    return n < 1 ? 1 : n;
}

enum status oracle_passes(struct oracle_job *j, struct err *err)
{
    const struct tessera_model m = tessera_model(j->e);
    const int room = m.n_ctx - j->bos;
    if (j->own.tokens && j->n_ids > j->bos + j->own.tokens) j->n_ids = j->bos + j->own.tokens;
    int text = j->n_ids - j->bos;
    if (text < 2 || room < 2)
        return err_set(err, ERR_RANGE, "the text or the context has fewer than 2 tokens to hide");
    const int n = text < room ? 1 : text / room; /* whole ones */
    j->n_all = n * j->own.steps;
    j->at = malloc(sizeof *j->at * (size_t)j->n_all);
    if (!j->at) return err_set(err, ERR_MEMORY, "no memory for %d passes", j->n_all);
    for (int i = 0; i < j->n_all; i++) j->at[i] = j->bos + i / j->own.steps * room;
    return OK;
}

/* The window as the pass sees it, to ids; which of it is hidden. */
static void hide(const struct oracle_job *j, int pass, int n, int32_t *ids, unsigned char *hidden)
{
    struct rng g;
    uint64_t x = (uint64_t)j->own.seed * 0x9e3779b97f4a7c15u + (uint64_t)pass;
    rng_seed(&g, rng_splitmix(&x));
    memcpy(ids, j->ids, sizeof *ids * (size_t)j->bos);
    memcpy(ids + j->bos, j->ids + j->at[pass], sizeof *ids * (size_t)(n - j->bos));
    for (int i = 0, want = n_hidden(j, pass); i < n; i++) {
        hidden[i] = i >= n_shown(j) && (int)rng_below(&g, (uint32_t)(n - i)) < want;
        want -= hidden[i];
        if (hidden[i]) ids[i] = tessera_model(j->e).mask;
    }
}

enum status oracle_pass(struct oracle_job *j, struct err *err)
{
    const int pass = j->n_done, n = window_size(j, j->at[pass]), shift = tessera_model(j->e).shifted;
    const int n_vocab = tessera_model(j->e).n_vocab;
    int32_t *ids = malloc(sizeof *ids * (size_t)n);
    unsigned char *hidden = calloc(2, (size_t)n), *want = hidden ? hidden + n : NULL;
    float *v = oracle_value(j, pass);
    enum status s = ids && hidden ? OK : err_set(err, ERR_MEMORY, "no memory for a pass");
    if (!s) hide(j, pass, n, ids, hidden);
    for (int i = 0; i < n && !s; i++)
        if (hidden[i]) want[i - shift] = 1;
    for (int k = 1; k <= k_max(j) && !s; k++) {
        const struct tessera_input in = {.session = j->session, .ids = ids, .n = n,
                                         .logits = TESSERA_LOGITS_SOME, .some = want};
        double sum = 0;
        int count = 0;
        if ((s = branches_capacity(j->e, k, err))) break;
        s = tessera_session_rollback(j->session, (struct tessera_mark){0}, err);
        if (!s) s = tessera_step(j->e, &in, 1, err);
        for (int i = shift; i < n && !s; i++) {
            if (!hidden[i]) continue;
            sum += branches_loss_of(tessera_logits(j->e, 0, i - shift), n_vocab,
                                    j->ids[j->at[pass] + i - j->bos]);
            count++;
        }
        v[0] = (float)count;
        v[k] = s ? 0 : (float)(sum / count);
    }
    (void)branches_capacity(j->e, 0, NULL);
    j->work.routes += (uint64_t)k_max(j);
    if (!s) j->n_done++;
    free(ids);
    free(hidden);
    return s;
}

/* ---- what they say ---- */

int oracle_own_k(const struct oracle_job *j, int pass)
{
    const struct choice_params p = branches_choice(j->e);
    return choice_k(&p, (double)n_hidden(j, pass) / window_size(j, j->at[pass]));
}

double *oracle_step_losses(const struct oracle_job *j, int from, int by)
{
    const int steps = j->own.steps, most = k_max(j), windows = n_windows(j);
    double *loss = calloc((size_t)steps * (size_t)most, sizeof *loss);
    int n = 0;
    for (int w = from; w < windows; w += by) n++;
    for (int w = from; w < windows && loss; w += by)
        for (int s = 0; s < steps; s++)
            for (int k = 0; k < most; k++)
                loss[s * most + k] += (double)oracle_value(j, w * steps + s)[1 + k] / n;
    return loss;
}

enum status oracle_best_schedule(const struct oracle_job *j, const double *loss, int total, int *k,
                                 struct err *err)
{
    enum status s = oracle_schedule(loss, j->own.steps, k_max(j), 1, total, k, err);
    for (int i = 0; i < j->own.steps && !s; i++) k[i]++;
    return s;
}

static double loss_of(const struct oracle_job *j, const double *loss, const int *k)
{
    double sum = 0;
    for (int s = 0; s < j->own.steps; s++) sum += loss[s * k_max(j) + k[s] - 1] / j->own.steps;
    return sum;
}

static int total_of(const struct oracle_job *j, const int *k)
{
    int sum = 0;
    for (int s = 0; s < j->own.steps; s++) sum += k[s];
    return sum;
}

/* Best and mean loss of schedules drawn at that total. */
static void draw(const struct oracle_job *j, const double *loss, int total, double *best, double *mean)
{
    struct rng g;
    int *k = malloc(sizeof *k * (size_t)j->own.steps);
    rng_seed(&g, (uint64_t)j->own.seed + (uint64_t)total);
    *best = INFINITY;
    *mean = 0;
    for (int i = 0; i < j->own.random && k; i++) {
        oracle_draw_schedule(&g, j->own.steps, k_max(j), 1, total, k);
        for (int s = 0; s < j->own.steps; s++) k[s]++;
        const double l = loss_of(j, loss, k);
        *best = fmin(*best, l);
        *mean += l / j->own.random;
    }
    if (!j->own.random) *mean = INFINITY;
    free(k);
}

static void number(double x)
{
    if (isfinite(x)) printf(" %9.4f", x);
    else printf(" %9s", "-");
}

/* One total: what is best, the same found on other windows, what chance gives. */
static enum status print_total(const struct oracle_job *j, const double *all, const double *const half[2],
                               const char *name, const int *own, int total, struct err *err)
{
    int *k = malloc(sizeof *k * (size_t)j->own.steps);
    double best, mean, elsewhere = INFINITY;
    if (!k) return err_set(err, ERR_MEMORY, "no memory for a schedule");
    enum status s = oracle_best_schedule(j, all, total, k, err);
    const double oracle = s ? 0 : loss_of(j, all, k);
    for (int h = 0; h < 2 && !s && n_windows(j) > 1; h++) {
        if (!h) elsewhere = 0;
        s = oracle_best_schedule(j, half[h], total, k, err);
        const int windows = (n_windows(j) + h) / 2; /* of the other half: odd ones, then even ones */
        if (!s) elsewhere += loss_of(j, half[!h], k) * windows / n_windows(j);
    }
    draw(j, all, total, &best, &mean);
    printf("%-18s %6.2f", name, (double)total / j->own.steps);
    number(own ? loss_of(j, all, own) : INFINITY);
    number(oracle);
    number(elsewhere);
    number(best);
    number(mean);
    printf("\n");
    free(k);
    return s;
}

static const char *const names[] = {"static", "linear", "linear reverse", "cosine", "cosine reverse", "bell",
                                    "gaussian", "gaussian reverse"};
enum { SCHEDULES = sizeof names / sizeof *names };

enum status oracle_report_schedule(const struct oracle_job *j, struct err *err)
{
    const int steps = j->own.steps, most = k_max(j);
    struct choice_params p = branches_choice(j->e);
    double *all = oracle_step_losses(j, 0, 1);
    double *half[2] = {oracle_step_losses(j, 0, 2), oracle_step_losses(j, 1, 2)};
    int *own = calloc(2 * (size_t)steps, sizeof *own), *best = own ? own + steps : NULL;
    enum status s = all && half[0] && half[1] && own ? OK : err_set(err, ERR_MEMORY, "no memory for a report");
    for (int i = 0; i < steps && !s; i++) own[i] = oracle_own_k(j, i);
    if (!s) s = oracle_best_schedule(j, all, total_of(j, own), best, err);
    if (!s) {
        printf("%d window%s of %d tokens, %d passes of each; loss per hidden token in nats\n\n"
               "%5s %8s %6s %6s  with so many experts per row\n%5s %8s %6s %6s", n_windows(j),
               n_windows(j) == 1 ? "" : "s", window_size(j, j->at[0]), steps, "", "", "own", "best", "pass",
               "hidden", "", "");
        for (int k = 1; k <= most; k++) printf(" %9d", k);
        printf("\n");
    }
    for (int i = 0; i < steps && !s; i++) {
        printf("%5d %6.1f %% %6d %6d", i + 1, 100.0 * n_hidden(j, i) / window_size(j, j->at[i]), own[i], best[i]);
        for (int k = 0; k < most; k++) number(all[i * most + k]);
        printf("\n");
    }
    if (!s)
        printf("\n%-18s %6s %9s %9s %9s %9s %9s\n%-18s %6s %9s %9s %9s %9s %9s\n", "schedule", "mean", "its",
               "best of", "found on", "best of", "", "", "k", "loss", "its total", "the rest", "random", "random");
    if (!s) s = print_total(j, all, (const double *const *)half, "the model's own", own, total_of(j, own), err);
    for (int i = 0; i < SCHEDULES && !s && p.k_min < p.k_max; i++) {
        p.schedule = (enum choice_schedule)i;
        for (int t = 0; t < steps; t++)
            best[t] = choice_k(&p, (double)n_hidden(j, t) / window_size(j, j->at[t]));
        s = print_total(j, all, (const double *const *)half, names[i], best, total_of(j, best), err);
    }
    for (int k = 1; k <= most && !s; k++) {
        char name[32];
        (void)snprintf(name, sizeof name, "always %d", k);
        for (int t = 0; t < steps; t++) best[t] = k;
        s = print_total(j, all, (const double *const *)half, name, best, k * steps, err);
    }
    free(all);
    free(half[0]);
    free(half[1]);
    free(own);
    return s;
}

void oracle_json_schedule(const struct oracle_job *j)
{
    const int steps = j->own.steps, most = k_max(j);
    struct err err;
    double *all = oracle_step_losses(j, 0, 1);
    int *own = calloc(2 * (size_t)steps, sizeof *own), *best = own ? own + steps : NULL;
    for (int i = 0; i < steps && own; i++) own[i] = oracle_own_k(j, i);
    if (all && own && !oracle_best_schedule(j, all, total_of(j, own), best, &err)) {
        printf("{\"what\": \"schedule\", \"windows\": %d, \"steps\": %d, \"loss\": %.6g, \"best\": %.6g, "
               "\"passes\": [", n_windows(j), steps, loss_of(j, all, own), loss_of(j, all, best));
        for (int i = 0; i < steps; i++) {
            printf("%s\n {\"own\": %d, \"best\": %d, \"loss\": [", i ? "," : "", own[i], best[i]);
            for (int k = 0; k < most; k++) printf("%s%.6g", k ? ", " : "", all[i * most + k]);
            printf("]}");
        }
        printf("\n]}\n");
    }
    free(all);
    free(own);
}
