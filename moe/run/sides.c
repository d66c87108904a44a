/* See sides.h. */
#include "moe/run/sides.h"

#include <string.h>

enum status sides_lost(struct exec *x, struct err *err)
{
    x->there->lost = true;
    return err_set(err, ERR_DEVICE, "the device was lost");
}

/* ---- experts ---- */

/* The device's experts from `from` on take the last places of the lists, so that the CPU's can come
 * in any order in front of them; n_cpu: how many the CPU has left to run. */
static void place_device(struct exec *x, int from, int *n_cpu)
{
    const struct devtier *t = &x->e->devtier;
    struct plan_route *c = &x->ctl;
    for (int i = from; i < t->n; i++) {
        const int a = t->number[i], n = c->first[a + 1] - c->first[a], at = --*n_cpu;
        c->run_expert[at] = c->expert[a];
        c->run_first[at] = c->run_first[at + 1] - n;
        memcpy(c->run_pair + c->run_first[at], c->pair + c->first[a], sizeof *c->pair * (size_t)n);
    }
}

/* Everything that the router chose, minus what the device takes, as it arrives in RAM. */
static enum status run_cpu_side(struct exec *x, const struct op *op, int *n_cpu, struct err *err)
{
    struct tessera_engine *e = x->e;
    struct devtier *t = &e->devtier;
    struct plan_route *c = &x->ctl;
    const void **table[OP_IO] = {c->gate, c->up, c->down};
    for (int n_run = 0, tried = 0; n_run < *n_cpu; tried = 1) {
        int n = resid_take(&e->resid, c->ready, err), sent = 0;
        if (n < 0) return err->code;
        ASSERT(n > 0);
        for (int i = 0; i < n; i++) {
            for (int k = 0; k < OP_IO; k++)
                table[k][n_run + i] = resid_expert(&e->resid, c->ready[i], k);
            c->ready[i] = t->rest[c->ready[i]];
        }
        const int had = t->n;
        if (!tried) {
            const void *const *const m[OP_IO] = {c->gate, c->up, c->down};
            sent = devtier_send(t, &x->whole, c->ready, n, m);
            place_device(x, had, n_cpu);
        }
        n -= sent;
        for (int i = 0; i < n; i++) { /* the front of the list has left */
            c->ready[i] = c->ready[i + sent];
            for (int k = 0; k < OP_IO; k++) table[k][n_run + i] = table[k][n_run + i + sent];
        }
        const int before = n_run;
        exec_append(x, n, &n_run);
        if (n) exec_submit_experts(x, op, before, n_run, false);
        for (int i = 0; i < n; i++) {
            const void *const m[OP_IO] = {c->gate[before + i], c->up[before + i],
                                          c->down[before + i]};
            devtier_offer(t, &x->whole, c->ready[i], m);
        }
        resid_ran(&e->resid);
        if (exec_cancelled(x, op, err)) return err->code;
    }
    return OK;
}

/* What a device that was given up has not delivered: one by one, in the order of arrival. */
static enum status run_undelivered(struct exec *x, const struct op *op, int n_cpu, struct err *err)
{
    struct resid *r = &x->e->resid;
    struct plan_route *c = &x->ctl;
    const void **table[OP_IO] = {c->gate, c->up, c->down};
    const int n = x->route.n_active - n_cpu;
    for (int i = 0; i < n; i++) c->ready[i] = c->run_first[n_cpu + i + 1] - c->run_first[n_cpu + i];
    resid_route(r, x->e->op_bank[op - x->e->model.op], c->run_expert + n_cpu, c->ready, n);
    for (int n_run = 0; n_run < n;) {
        const int got = resid_take(r, c->ready, err);
        if (got < 0) return err->code;
        ASSERT(got > 0);
        for (int i = 0; i < got; i++) {
            const int at = n_cpu + c->ready[i];
            for (int k = 0; k < OP_IO; k++) table[k][at] = resid_expert(r, c->ready[i], k);
            exec_submit_experts(x, op, at, at + 1, false);
        }
        n_run += got;
        resid_ran(r);
        if (exec_cancelled(x, op, err)) return err->code;
    }
    return OK;
}

enum status sides_experts(struct exec *x, const struct op *op, struct err *err)
{
    struct devtier *t = &x->e->devtier;
    struct plan_route *c = &x->ctl;
    const int n = x->route.n_active;
    int n_cpu = n;
    const double waited = x->e->resid.count.waited;
    if (x->there) {
        const struct dev_buf *in = devstep_there(x->there, x->e, op->in[0]);
        const bool all = !t->n_rest && !x->route.n_of;
        devtier_run_there(t, &x->whole, in, all ? devstep_writes(x->there, op->out[0]) : NULL);
        if (all) {
            exec_observe(x, 0);
            devtier_done(t);
            return OK;
        }
        if (!devstep_fetch(x->there, x->e, &op->in[0], 1)) return sides_lost(x, err);
    }
    x->bind.scratch = x->e->buf[op->in[2]].base;
    exec_run_lists(x);
    c->run_first[n] = c->first[n];
    if (!x->there) devtier_run(t, &x->whole, &x->e->buf[op->in[0]]);
    place_device(x, 0, &n_cpu);
    enum status s = run_cpu_side(x, op, &n_cpu, err);
    if (s) return s;
    const uint64_t stride = dev_experts_out_stride(x->e->buf[op->out[0]].width);
    for (int i = 0, end; i < n - n_cpu; i = end) {
        const char *rows = devtier_land(t, i, &end);
        if (!rows) {
            if (x->there) return sides_lost(x, err);
            if ((s = run_undelivered(x, op, n_cpu, err))) return s;
            break;
        }
        for (int k = i; k < end; k++)
            dev_experts_put(op, &x->bind, c->run_first[n - 1 - k], t->first[k + 1] - t->first[k],
                            rows + stride * (uint64_t)(t->first[k] - t->first[i]));
    }
    exec_submit_experts(x, op, n, n, true);
    if (x->there) devstep_ran_here(x->there, x->e, (int)(op - x->e->model.op));
    exec_observe(x, x->e->resid.count.waited - waited);
    devtier_done(t);
    return OK;
}

/* ---- all other ops ---- */

/* What a router and the host's experts need of what the device has. */
static bool fetch_routed(struct exec *x, const struct op *op)
{
    const struct tessera_engine *e = x->e;
    const int bank = e->op_bank[op - e->model.op];
    const struct gates *g = &e->gates;
    const bool foresees = e->forecast.kind != PREDICT_NONE && !e->resid.all_ram &&
                          bank + 1 < g->n_banks && g->bank[bank + 1].n;
    const int bufs[3] = {op->in[0], devtier_complete(&e->devtier) ? -1 : e->bank[bank].op->in[0],
                         foresees ? g->bank[bank].hidden : -1};
    return devstep_fetch(x->there, x->e, bufs, 3);
}

enum status sides_next(struct exec *x, int *i, int to, struct err *err)
{
    struct tessera_engine *e = x->e;
    struct devstep *d = x->there;
    const struct op *op = &e->model.op[*i];
    enum status s = OK;
    int next = *i + 1;
    if (devstep_takes(d, e, *i)) {
        devstep_run(d, e, *i);
    } else if (op->code == OP_ROUTE) {
        for (; next < to && devstep_takes(d, e, next); next++) devstep_run(d, e, next);
        if (!fetch_routed(x, op)) return sides_lost(x, err);
        s = exec_special(x, op, err);
    } else if (op->code == OP_EXPERTS && x->two_sides) {
        if (x->route.n_rows) s = sides_experts(x, op, err);
    } else {
        if (!devstep_to_host(d, e, *i)) return sides_lost(x, err);
        if (exec_is_special(x, op)) s = exec_special(x, op, err);
        else exec_submit(x, op, 1);
        devstep_ran_here(d, e, *i);
    }
    *i = next;
    return s || !d->lost ? s : sides_lost(x, err);
}

enum status sides_whole(struct exec *x, struct err *err)
{
    const struct build *m = &x->e->model;
    if (exec_cancelled(x, &m->op[0], err)) return err->code;
    for (int i = 0; i < m->n_op; i++) {
        if (devstep_takes(x->there, x->e, i)) continue;
        if (!exec_is_special(x, &m->op[i])) exec_submit(x, &m->op[i], 1);
        else if (exec_special(x, &m->op[i], err)) return err->code;
        devstep_give(x->there, x->e, i);
    }
    devstep_whole(x->there, x->e);
    return OK;
}

void sides_expect(struct exec *x)
{
    const struct tessera_engine *e = x->e;
    if (!e->devstep.tier || e->resid.all_ram || e->resid.now.dense_home) return;
    for (int i = 0; i < e->model.n_op; i++)
        for (int k = 0; k < OP_IO && e->devstep.runs[i]; k++)
            if (e->model.op[i].weight[k] >= 0 && e->op_piece[i * OP_IO + k] >= 0)
                resid_expect_piece(&x->e->resid, e->op_piece[i * OP_IO + k], !x->there);
}
