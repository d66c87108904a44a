/* What an oracle found, as tables with small bars; see oracle_job.h. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/escape.h"
#include "cli/oracle_job.h"

enum { BAR = 24 };

static void bar(double part)
{
    int n = (int)(part * BAR + 0.5);
    n = n < 0 ? 0 : n > BAR ? BAR : n;
    for (int i = 0; i < n; i++) printf("=");
    printf("\n");
}

double oracle_loss_as_is(const struct oracle_job *j, int t)
{
    const float *v = oracle_value(j, t);
    if (j->what == ORACLE_ROUTES) return (double)v[j->n_free];
    if (j->what == ORACLE_EXPERTS) return (double)v[0];
    if (j->what == ORACLE_SCHEDULE) return (double)v[oracle_own_k(j, t)];
    return (double)v[1 + (int)v[0] - j->least_depth];
}

double oracle_loss_best(const struct oracle_job *j, int t)
{
    const float *v = oracle_value(j, t);
    double best = oracle_loss_as_is(j, t);
    if (j->what == ORACLE_EXPERTS) {
        for (int k = 0; k < j->n_free; k++) best = fmin(best, (double)v[4 * k + 1]);
        return best;
    }
    const int from = j->what == ORACLE_ROUTES ? 0 : 1;
    const int n = j->what == ORACLE_ROUTES ? j->n_free + 1 : j->n_values - 1;
    for (int i = 0; i < n; i++) best = fmin(best, (double)v[from + i]);
    return best;
}

double oracle_mean(const struct oracle_job *j, int i, int from, int to)
{
    double sum = 0;
    for (int t = from; t < to; t++) sum += (double)oracle_value(j, t)[i];
    return to > from ? sum / (to - from) : NAN;
}

double oracle_mean_loss(const struct oracle_job *j, double (*loss)(const struct oracle_job *, int))
{
    double sum = 0;
    for (int t = 0; t < j->n_done; t++) sum += loss(j, t);
    return sum / j->n_done;
}

double oracle_share_through(const struct oracle_job *j, int c, int u)
{
    int n = 0;
    for (int t = 0; t < j->n_done; t++) n += oracle_route(j, t)[c] >> u & 1;
    return (double)n / j->n_done;
}

static double mean(const struct oracle_job *j, int i) { return oracle_mean(j, i, 0, j->n_done); }

double oracle_shared_out(const struct oracle_job *j, int first_value, int n, double level, int *used)
{
    double *loss = malloc(sizeof *loss * (size_t)j->n_done * (size_t)n), sum = INFINITY;
    int *at = malloc(sizeof *at * (size_t)j->n_done);
    for (int t = 0; loss && at && t < j->n_done; t++)
        for (int i = 0; i < n; i++)
            loss[t * n + i] = (double)oracle_value(j, t)[first_value + i];
    if (loss && at && oracle_spend(loss, j->n_done, n, 0, level * j->n_done + 1e-6, at)) {
        sum = 0;
        for (int i = 0; used && i < n; i++) used[i] = 0;
        for (int t = 0; t < j->n_done; t++) {
            sum += loss[t * n + at[t]] / j->n_done;
            if (used) used[at[t]]++;
        }
    }
    free(loss);
    free(at);
    return sum;
}

static void number(double x)
{
    if (isfinite(x)) printf(" %9.4f", x);
    else printf(" %9s", "-");
}

/* ---- routes ---- */

static void report_routes(const struct oracle_job *j)
{
    const int n = j->n_free + 1, least = j->own.skips < 0 || j->own.skips > j->n_free ? 0
                                       : j->n_free - j->own.skips;
    printf("through so many of %d %s%s; loss per token in nats\n", j->n_free,
           j->unit[j->free_unit[0]].name, j->n_free == 1 ? "" : "s");
    printf("%7s %9s %9s %9s %9s  %s\n", "", "oracle", "shared", "best of", "", "tokens for which that");
    printf("%7s %9s %9s %9s %9s  %s\n", "through", "", "out", "random", "random", "many are best");
    int *best_at = calloc((size_t)n, sizeof *best_at);
    for (int t = 0; best_at && t < j->n_done; t++) {
        int best = j->n_free;
        for (int c = 0; c < n; c++)
            if (oracle_value(j, t)[c] < oracle_value(j, t)[best]) best = c;
        best_at[best]++;
    }
    for (int c = least; c < n; c++) {
        printf("%7d", c);
        number(mean(j, c));
        number(oracle_shared_out(j, 0, n, c, NULL));
        number(mean(j, n + c));
        number(mean(j, 2 * n + c));
        printf("  %5.1f %% ", best_at ? 100.0 * best_at[c] / j->n_done : 0);
        bar(best_at ? (double)best_at[c] / j->n_done : 0);
    }
    free(best_at);
    printf("\nwhere that goes: of the best routes through so many, the share that goes through each, %%\n"
           "%7s", "through");
    for (int u = 0; u < j->n_free; u++) printf(" %5d", j->unit[j->free_unit[u]].layer);
    printf("\n");
    for (int c = least > 1 ? least : 1; c < j->n_free; c++) {
        printf("%7d", c);
        for (int u = 0; u < j->n_free; u++) printf(" %5.0f", 100 * oracle_share_through(j, c, u));
        printf("\n");
    }
}

/* ---- experts ---- */

static void report_experts(const struct oracle_job *j)
{
    double most = 0;
    for (int k = 0; k < j->n_free; k++) most = fmax(most, mean(j, 4 * k) - mean(j, 4 * k + 1));
    printf("one layer's experts at a time, the others as their routers say; loss per token in nats\n"
           "%7s %9s %9s %9s %9s %9s  %s\n", "layer", "router", "oracle", "gain", "random", "in both, %",
           "gain");
    for (int k = 0; k < j->n_free; k++) {
        const struct branch_part *p = &j->b.part[j->unit[j->free_unit[k]].first];
        printf("%7d", p->layer);
        number(mean(j, 4 * k));
        number(mean(j, 4 * k + 1));
        number(mean(j, 4 * k) - mean(j, 4 * k + 1));
        number(mean(j, 4 * k + 2));
        printf(" %9.1f   ", 100 * mean(j, 4 * k + 3) / p->n_used);
        bar(most > 0 ? (mean(j, 4 * k) - mean(j, 4 * k + 1)) / most : 0);
    }
}

/* ---- depth ---- */

static void report_depth(const struct oracle_job *j)
{
    const int n = j->n_depths;
    int *router = calloc(3 * (size_t)n, sizeof *router), *best = router + n, *spent = best + n;
    double depth = 0;
    if (!router) return;
    for (int t = 0; t < j->n_done; t++) {
        const float *v = oracle_value(j, t);
        int b = 0;
        for (int d = 1; d < n; d++)
            if (v[1 + d] < v[1 + b]) b = d;
        best[b]++;
        router[(int)v[0] - j->least_depth]++;
        depth += (double)v[0] / j->n_done;
    }
    const double same = oracle_shared_out(j, 1, n, depth - j->least_depth, spent);
    printf("%7s %9s %9s %9s %9s\n", "depth", "loss of", "router,", "best,", "best at");
    printf("%7s %9s %9s %9s %9s\n", "", "all at it", "tokens", "tokens", "its mean");
    for (int d = 0; d < n; d++) {
        printf("%7d", d + j->least_depth);
        number(mean(j, 1 + d));
        printf(" %9d %9d %9d  ", router[d], best[d], spent[d]);
        bar((double)spent[d] / j->n_done);
    }
    printf("mean depth of the router %.2f: loss %.4f; the best depths of that mean: %.4f\n", depth,
           oracle_mean_loss(j, oracle_loss_as_is), same);
    free(router);
}

/* ---- all ---- */

static void work(const struct oracle_job *j)
{
    if (j->what == ORACLE_DEPTH || !j->work.run) return;
    fprintf(stderr, "%" PRIu64 " candidates, %" PRIu64 " rows through units in this run; one by one, "
            "from the start, %" PRIu64 ": %.2f times as many\n", j->work.routes, j->work.run,
            j->work.alone, (double)j->work.alone / (double)j->work.run);
}

enum status oracle_report(const struct oracle_job *j, struct err *err)
{
    if (j->what == ORACLE_SCHEDULE) return oracle_report_schedule(j, err);
    const double as_is = oracle_mean_loss(j, oracle_loss_as_is), best = oracle_mean_loss(j, oracle_loss_best);
    printf("%d tokens; loss as the model is %.4f (perplexity %.3f), of the best found for each token %.4f "
           "(%.3f); %s\n\n", j->n_done, as_is, exp(as_is), best, exp(best),
           j->all_tried ? "everything was tried" : "searched, not everything was tried");
    if (j->what == ORACLE_ROUTES) report_routes(j);
    else if (j->what == ORACLE_EXPERTS) report_experts(j);
    else report_depth(j);
    work(j);
    return OK;
}

static void json_number(double x)
{
    if (isfinite(x)) printf("%.6g", x);
    else printf("null");
}

void oracle_report_json(const struct oracle_job *j)
{
    static const char *const what[] = {"routes", "experts", "depth"};
    if (j->what == ORACLE_SCHEDULE) {
        oracle_json_schedule(j);
        return;
    }
    printf("{\"what\": \"%s\", \"tokens\": %d, \"loss\": ", what[j->what], j->n_done);
    json_number(oracle_mean_loss(j, oracle_loss_as_is));
    printf(", \"best\": ");
    json_number(oracle_mean_loss(j, oracle_loss_best));
    printf(", \"all_tried\": %s, \"per_token\": [", j->all_tried ? "true" : "false");
    for (int t = 0; t < j->n_done; t++) {
        printf("%s\n {\"at\": %d, \"id\": %d, \"next\": %d, \"values\": [", t ? "," : "", j->at[t],
               j->ids[j->at[t]], j->ids[j->at[t] + 1]);
        for (int i = 0; i < j->n_values; i++) {
            printf("%s", i ? ", " : "");
            json_number((double)oracle_value(j, t)[i]);
        }
        printf("]");
        for (int i = 0; i < j->n_routes; i++)
            printf("%s\"%" PRIx64 "\"", i ? ", " : ", \"routes\": [", oracle_route(j, t)[i]);
        printf("%s}", j->n_routes ? "]" : "");
    }
    printf("\n]}\n");
}
