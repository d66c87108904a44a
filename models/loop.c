/* Looped models: the whole stack of layers, run several times over the same weights, each pass with
 * K and V of its own.  nanbeige and ouro.  Describes only.
 *
 * Keys <arch>.num_loops and <arch>.skip_loop_final_norm as llama.cpp has them for nanbeige: the last
 * norm is applied between loops, too, unless the second says no.
 *
 * With an exit gate (Ouro, arXiv 2510.25741) a row has a chance to stop after each loop, sigmoid of
 * exit_gate over the normed row; it leaves after the first loop where the chances to have stopped
 * sum to exit_at.  Later loops are then run without it.  The model was trained with all of them, and
 * so later rows look, in a loop that a row did not run, at what it left in its last one (it is copied
 * when somebody runs that loop, many positions at once): an approximation, and the plan says so.
 * Weighted exit is the mean of what all loops give, weighted by the chances; as the head is linear,
 * that is the head of the mean. */
#include <stdio.h>

#include "models/arch.h"

enum status hparams_loop(const struct gguf *g, const char *arch, struct hparams *h, struct err *e)
{
    enum status s;
    if ((s = hparams_int(g, arch, "num_loops", 1, &h->loop.n, e)) ||
        (s = hparams_bool(g, arch, "skip_loop_final_norm", false, &h->loop.skip_norm, e)))
        return s;
    if (h->loop.n < 1 || h->loop.n > LOOPS_MAX)
        return err_set(e, ERR_RANGE, "%s: key %s.num_loops says %d; 1 to %d are possible",
                       gguf_path(g, 0), arch, h->loop.n, LOOPS_MAX);
    h->loop.n_run = h->loop.n;
    h->loop.exit_at = 1;
    return OK;
}

static void stack(struct block *k, int *x)
{
    for (int l = 0; l < k->h->n_layer && !k->b->err->code; l++) {
        block_layer(k, l, x);
        if (k->use_slot) k->use_slot++;
    }
    k->b->at_layer = -1;
}

/* The chance to stop after loop t, from its normed rows: depth.h's three values. */
static int exit_step(struct block *k, int t, int n, int before, int set)
{
    struct build *b = k->b;
    const struct loop_params *p = &k->h->loop;
    int u = build_router(b, "exit_gate", "exit_gate.weight", 1, n);
    if (build_has(b, "exit_gate.bias", 0))
        build_bias(b, "exit_gate.bias", u, build_vector(b, "exit_gate.bias", 0, 1));
    return build_depth(b, "exit", u, before, 3, (struct depth_params){
        .rule = DEPTH_EXIT, .set = set, .step = t, .n_steps = p->n_run, .at = p->exit_at,
    });
}

static void plain(struct block *k, int x)
{
    const struct loop_params *p = &k->h->loop;
    for (int t = 1; t <= p->n_run; t++) {
        k->more = t < p->n_run;
        stack(k, &x);
        if (k->more && !p->skip_norm) x = block_last_norm(k, x);
    }
    block_end(k, x);
}

static void weighted(struct block *k, int x)
{
    struct build *b = k->b;
    const struct loop_params *p = &k->h->loop;
    int sum = 0, chance = 0;
    k->more = true;
    for (int t = 1; t <= p->n_run; t++) {
        stack(k, &x);
        x = block_last_norm(k, x);
        chance = exit_step(k, t, x, chance, 0);
        if (t == 1) {
            sum = build_heads(b, "x_mean", 1, k->h->n_embd);
            build_put(b, "exit_mean", x, sum, chance, 2);
        } else {
            build_scatter(b, "exit_mean", x, sum, chance, 2, 1);
        }
    }
    b->rows = ROWS_OUT;
    block_head(k, build_select(b, "x_out", sum));
}

static void with_exits(struct block *k, int x)
{
    struct build *b = k->b;
    const int n_run = k->h->loop.n_run, n_layer = k->h->n_layer;
    const int first = b->n_slot, last = build_heads(b, "x_last", 1, k->h->n_embd);
    int chance = 0;
    for (int i = 0; i < n_run * n_layer; i++) (void)block_kv_slot(k);
    b->depth_first = 1;
    b->n_depth = n_run;
    b->approximate = true;
    k->more = true;
    for (int t = 1; t <= n_run && !b->err->code; t++) {
        k->use_slot = 1 + first + (t - 1) * n_layer;
        stack(k, &x);
        x = block_last_norm(k, x);
        build_put(b, "x_last", x, last, -1, 0);
        if (t == n_run) break;
        char name[24];
        (void)snprintf(name, sizeof name, "loop%d", t + 1);
        const int set = build_row_set(b, name, 1);
        chance = exit_step(k, t, x, chance, set);
        b->rows = set;
        build_kv_carry(b, first, n_layer, t + 1, 0);
        x = build_select(b, "x", x);
    }
    b->rows = ROWS_OUT;
    block_head(k, build_select(b, "x_out", last));
}

void loop_model(struct build *b, const struct hparams *h, const struct block_style *style)
{
    const struct loop_params *p = &h->loop;
    struct block k;
    int x = block_begin(&k, b, h, style);
    if (p->has_gate && (p->n_run == 1 || (!p->weighted && p->exit_at >= 1))) {
        /* Known, and not asked: the gate is bound so that it is not taken for a stray tensor. */
        (void)build_tiles(b, "exit_gate.weight", 0, h->n_embd, 1, 1);
        if (build_has(b, "exit_gate.bias", 0)) (void)build_vector(b, "exit_gate.bias", 0, 1);
    }
    if (p->has_gate && p->n_run > 1 && p->weighted) weighted(&k, x);
    else if (p->has_gate && p->n_run > 1 && p->exit_at < 1) with_exits(&k, x);
    else plain(&k, x);
}
