/* The page of `tessera oracle --html`: the same as the tables, drawn, and the text coloured by what the
 * oracle would have gained.  See oracle_job.h. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/oracle_job.h"
#include "cli/page.h"
#include "moe/load/tok.h"

enum { WORDS = 2000, BINS = 64 };

/* ---- routes ---- */

static double through_value(void *arg, int row, int col)
{
    return oracle_share_through(arg, row + 1, col);
}

static const char *count_label(void *arg, int row, char buf[32])
{
    (void)arg;
    (void)snprintf(buf, 32, "%d", row + 1);
    return buf;
}

static void draw_routes(struct page *p, struct oracle_job *j)
{
    const int n = j->n_free + 1;
    double *x = calloc(6 * (size_t)n, sizeof *x);
    if (!x) return;
    double *best = x + n, *shared = best + n, *drawn = shared + n, *one = drawn + n, *used = one + n;
    for (int c = 0; c < n; c++) {
        x[c] = c;
        best[c] = oracle_mean(j, c, 0, j->n_done);
        shared[c] = oracle_shared_out(j, 0, n, c, NULL);
        drawn[c] = oracle_mean(j, n + c, 0, j->n_done);
        one[c] = oracle_mean(j, 2 * n + c, 0, j->n_done);
    }
    for (int t = 0; t < j->n_done; t++) {
        int b = j->n_free;
        for (int c = 0; c < n; c++)
            if (oracle_value(j, t)[c] < oracle_value(j, t)[b]) b = c;
        used[b] += 100.0 / j->n_done;
    }
    page_head(p, "What a budget could buy", "Loss per token when it goes through so many of the %d %ss; the "
              "model as it is goes through all.", j->n_free, j->unit[j->free_unit[0]].name);
    page_lines(p, &(struct page_lines){.n = n - 1, .n_lines = 4, .x = x + 1,
               .y = {best + 1, shared + 1, drawn + 1, one + 1},
               .name = {"the best route", "shared out among tokens", "best of those drawn", "one drawn"},
               .x_name = "gone through", .y_name = "nats per token"});
    page_head(p, "How many are best", "Tokens by the number for which their loss is least.");
    page_lines(p, &(struct page_lines){.n = n, .n_lines = 1, .x = x, .y = {used}, .name = {"tokens"},
               .x_name = "gone through", .y_name = "%", .from_zero = true});
    page_head(p, "Where the budget goes", "Of the best routes through so many (down), the share that goes "
              "through each one (across, in order).");
    page_heat(p, &(struct page_heat){.n_rows = j->n_free, .n_cols = j->n_free, .value = through_value,
                                     .row_label = count_label, .arg = j, .rows = "through",
                                     .cols = j->unit[j->free_unit[0]].name});
    free(x);
}

/* ---- experts ---- */

struct gap_map {
    const struct oracle_job *j;
    int n_bins;
    double most;
};

static double gap_of(const struct gap_map *m, int layer, int bin)
{
    const int from = (int)((int64_t)bin * m->j->n_done / m->n_bins);
    const int to = (int)((int64_t)(bin + 1) * m->j->n_done / m->n_bins);
    return oracle_mean(m->j, 4 * layer, from, to) - oracle_mean(m->j, 4 * layer + 1, from, to);
}

static double gap_value(void *arg, int row, int col)
{
    const struct gap_map *m = arg;
    return gap_of(m, row, col) / m->most;
}

static const char *gap_label(void *arg, int row, char buf[32])
{
    const struct oracle_job *j = ((const struct gap_map *)arg)->j;
    (void)snprintf(buf, 32, "%d", j->unit[j->free_unit[row]].layer);
    return buf;
}

static void draw_experts(struct page *p, struct oracle_job *j)
{
    double *x = calloc(4 * (size_t)j->n_free, sizeof *x);
    if (!x) return;
    double *gain = x + j->n_free, *drawn = gain + j->n_free, *both = drawn + j->n_free;
    struct gap_map m = {j, j->n_done < BINS ? j->n_done : BINS, 1e-9};
    for (int k = 0; k < j->n_free; k++) {
        x[k] = j->unit[j->free_unit[k]].layer;
        gain[k] = oracle_mean(j, 4 * k, 0, j->n_done) - oracle_mean(j, 4 * k + 1, 0, j->n_done);
        drawn[k] = oracle_mean(j, 4 * k, 0, j->n_done) - oracle_mean(j, 4 * k + 2, 0, j->n_done);
        both[k] = 100 * oracle_mean(j, 4 * k + 3, 0, j->n_done) /
                  j->b.part[j->unit[j->free_unit[k]].first].n_used;
        for (int b = 0; b < m.n_bins; b++) m.most = fmax(m.most, gap_of(&m, k, b));
    }
    page_head(p, "What other experts could gain", "One layer's experts at a time, the others as their "
              "routers say.");
    page_lines(p, &(struct page_lines){.n = j->n_free, .n_lines = 2, .x = x, .y = {gain, drawn},
               .name = {"the best set found", "best of those drawn"}, .x_name = "layer",
               .y_name = "nats per token less", .from_zero = true});
    page_head(p, "How often they agree", "Share of the router's experts that are in the best set, too.");
    page_lines(p, &(struct page_lines){.n = j->n_free, .n_lines = 1, .x = x, .y = {both},
               .name = {"experts in both"}, .x_name = "layer", .y_name = "%", .from_zero = true});
    page_head(p, "Where and when", "What the best set would gain, by layer, from the beginning of the text "
              "to its end.");
    page_heat(p, &(struct page_heat){.n_rows = j->n_free, .n_cols = m.n_bins, .value = gap_value,
                                     .row_label = gap_label, .arg = &m, .rows = "layer",
                                     .cols = "piece of the text"});
    free(x);
}

/* ---- depth ---- */

static void draw_depth(struct page *p, struct oracle_job *j)
{
    const int n = j->n_depths;
    double *x = calloc(4 * (size_t)n, sizeof *x);
    if (!x) return;
    double *loss = x + n, *router = loss + n, *best = router + n;
    for (int d = 0; d < n; d++) {
        x[d] = d + j->least_depth;
        loss[d] = oracle_mean(j, 1 + d, 0, j->n_done);
    }
    for (int t = 0; t < j->n_done; t++) {
        const float *v = oracle_value(j, t);
        int b = 0;
        for (int d = 1; d < n; d++)
            if (v[1 + d] < v[1 + b]) b = d;
        best[b] += 100.0 / j->n_done;
        router[(int)v[0] - j->least_depth] += 100.0 / j->n_done;
    }
    page_head(p, "Loss by depth", "If every token went so deep, each on the timeline that the router left.");
    page_lines(p, &(struct page_lines){.n = n, .n_lines = 1, .x = x, .y = {loss}, .name = {"loss"},
               .x_name = "depth", .y_name = "nats per token"});
    page_head(p, "Depths", "Where the router sends tokens, and where their loss is least.");
    page_lines(p, &(struct page_lines){.n = n, .n_lines = 2, .x = x, .y = {router, best},
               .name = {"router", "best"}, .x_name = "depth", .y_name = "% of tokens", .from_zero = true});
    free(x);
}

/* ---- schedules ---- */

static void draw_schedule(struct page *p, struct oracle_job *j)
{
    enum { LINES = PAGE_LINES };
    const int steps = j->own.steps, most = j->n_values - 1;
    struct err err;
    int total = 0, *k = calloc((size_t)steps, sizeof *k);
    double *loss = oracle_step_losses(j, 0, 1), *x = calloc((size_t)steps * (LINES + 3), sizeof *x);
    if (!loss || !x || !k) goto out;
    double *own = x + steps, *best = own + steps, *line = best + steps;
    for (int s = 0; s < steps; s++) {
        x[s] = s + 1;
        total += oracle_own_k(j, s);
        own[s] = oracle_own_k(j, s);
    }
    if (oracle_best_schedule(j, loss, total, k, &err)) goto out;
    for (int s = 0; s < steps; s++) best[s] = k[s];
    page_head(p, "Schedules", "Experts per token in each pass: the model's own, and the best that costs as much.");
    page_lines(p, &(struct page_lines){.n = steps, .n_lines = 2, .x = x, .y = {own, best},
               .name = {"the model's own", "the best"}, .x_name = "pass", .y_name = "experts per token",
               .from_zero = true});
    struct page_lines l = {.n = steps, .x = x, .x_name = "pass", .y_name = "nats per hidden token"};
    char name[LINES][24];
    for (int i = 0; i < most && l.n_lines < LINES; i++) {
        if (most > LINES && i * LINES / most == (i - 1) * LINES / most && i) continue; /* so many lines at most */
        double *y = line + steps * l.n_lines;
        for (int s = 0; s < steps; s++) y[s] = loss[s * most + i];
        (void)snprintf(name[l.n_lines], sizeof name[0], "%d", i + 1);
        l.name[l.n_lines] = name[l.n_lines];
        l.y[l.n_lines++] = y;
    }
    page_head(p, "Loss of a pass", "With so many experts per token; the first pass sees nothing of the text.");
    page_lines(p, &l);
out:
    free(loss);
    free(x);
    free(k);
}

/* ---- the text ---- */

static void draw_text(struct page *p, const struct oracle_job *j)
{
    const struct tok *tok = tessera_tok(j->e);
    double most = 0;
    if (!tok) {
        page_head(p, "The text", "The model has no tokenizer: what the tokens are is not known.");
        return;
    }
    for (int t = 0; t < j->n_done; t++)
        most = fmax(most, oracle_loss_as_is(j, t) - oracle_loss_best(j, t));
    page_head(p, "The text", "The warmer a token, the more the best choice at the token before it would have "
              "helped to predict it; the warmest %.2f nats.%s", most,
              j->n_done > WORDS ? " Only its beginning." : "");
    page_words(p, true);
    for (int t = 0; t < j->n_done && t < WORDS; t++) {
        char s[TOK_PIECE_MAX], tip[80];
        const int32_t id = j->ids[j->at[t] + 1];
        const int n = tok_piece(tok, id, true, s, sizeof s);
        const double is = oracle_loss_as_is(j, t), best = oracle_loss_best(j, t);
        (void)snprintf(tip, sizeof tip, "token %d: %.3f nats, at best %.3f", id, is, best);
        page_word(p, s, n > 0 ? (size_t)n : 0, most > 0 ? (is - best) / most : NAN, tip);
    }
    page_words(p, false);
}

static void summary(struct page *p, const struct oracle_job *j)
{
    char tokens[32], is[32], best[32];
    (void)snprintf(tokens, sizeof tokens, "%d", j->n_done);
    (void)snprintf(is, sizeof is, "%.4f", oracle_mean_loss(j, oracle_loss_as_is));
    (void)snprintf(best, sizeof best, "%.4f", oracle_mean_loss(j, oracle_loss_best));
    page_table(p, true);
    page_row(p, true, 5, (const char *const[]){"model", j->what == ORACLE_SCHEDULE ? "passes" : "tokens",
             "loss as it is", "at best", "search"});
    page_row(p, false, 5, (const char *const[]){tessera_model(j->e).name, tokens, is, best,
                                                j->all_tried ? "everything tried" : "not everything tried"});
    page_table(p, false);
}

enum status oracle_page(struct oracle_job *j, const char *path, struct err *err)
{
    static const char *const title[] = {"Oracle of routes", "Oracle of experts", "Oracle of depths",
                                        "Oracle of schedules"};
    struct page p;
    enum status s = page_open(&p, path, title[j->what], err);
    if (s) return s;
    summary(&p, j);
    if (j->what == ORACLE_ROUTES) draw_routes(&p, j);
    else if (j->what == ORACLE_EXPERTS) draw_experts(&p, j);
    else if (j->what == ORACLE_DEPTH) draw_depth(&p, j);
    else draw_schedule(&p, j);
    if (j->what != ORACLE_SCHEDULE) draw_text(&p, j);
    return page_close(&p, err);
}
