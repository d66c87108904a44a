/* See gate.h. */
#include "moe/run/gate.h"

#include <stdlib.h>
#include <string.h>

#include "quant/mm.h"

/* Whether op i writes buffer x. */
static bool writes(const struct op *op, int x)
{
    for (int k = 0; k < OP_IO; k++)
        if (op->out[k] == x) return true;
    return false;
}

static bool is_plain(const struct op *op)
{
    switch (op->code) {
    case OP_RMS_NORM:
    case OP_PREPARE:
    case OP_ADD_BIAS:
    case OP_SCALE: return true;
    case OP_MATMUL: return op->weight[1] < 0; /* one product */
    default: return false;
    }
}

/* Walks from the router's logits back to the norm that begins it all; the steps in order. */
static void find(struct gate *g, const struct build *m, int route)
{
    int rev[GATE_OPS], n = 0, x = m->op[route].in[0];
    for (int i = route - 1; i >= 0; i--) {
        const struct op *op = &m->op[i];
        if (!writes(op, x)) continue;
        if (!is_plain(op) || n == GATE_OPS) return;
        rev[n++] = i;
        if (op->code == OP_RMS_NORM) {
            g->n = n;
            g->hidden = op->in[0];
            break;
        }
        x = op->in[0];
    }
    for (int k = 0; k < g->n; k++) g->op[k] = m->op[rev[n - 1 - k]];
}

static uint64_t row_bytes(const struct build *m, int x)
{
    const struct buf *f = &m->buf[x];
    const uint64_t n = f->kind == BUF_ACT ? act_bytes(f->act, f->width)
                                          : sizeof(float) * (uint64_t)f->width;
    return (n + 63) & ~(uint64_t)63;
}

/* Gives the steps buffers of their own: number k of them is buffer n_buf + k. */
static void rename_buffers(struct gates *g, struct gate *one, const struct build *m)
{
    int own[GATE_OPS], n = 0; /* the description's */
    for (int k = 0; k < one->n; k++) {
        struct op *op = &one->op[k];
        op->rows = ROWS_ALL;
        for (int i = 0; i < OP_IO; i++)
            for (int j = 0; j < n; j++)
                if (op->in[i] == own[j]) {
                    op->in[i] = m->n_buf + j;
                    break;
                }
        int j = 0;
        while (j < n && own[j] != op->out[0]) j++;
        if (j == n) own[n++] = op->out[0];
        if (row_bytes(m, own[j]) > g->stride[j]) g->stride[j] = row_bytes(m, own[j]);
        op->out[0] = m->n_buf + j;
        one->width[j] = m->buf[own[j]].width;
        one->logits = j;
    }
}

enum status gates_open(struct gates *g, const struct build *m, const int *op_bank, int n_banks,
                       struct err *e)
{
    memset(g, 0, sizeof *g);
    g->n_banks = n_banks;
    g->bank = calloc((size_t)n_banks + 1, sizeof *g->bank);
    if (!g->bank) return err_set(e, ERR_MEMORY, "no memory for the routers");
    int n_expert = 0;
    for (int i = 0; i < m->n_op; i++) {
        if (m->op[i].code != OP_ROUTE && m->op[i].code != OP_CHOOSE) continue;
        struct gate *one = &g->bank[op_bank[i]];
        one->route = &m->op[i];
        find(one, m, i);
        rename_buffers(g, one, m);
        if (one->route->p.moe.route.n_expert > n_expert)
            n_expert = one->route->p.moe.route.n_expert;
    }
    g->pick = calloc((size_t)n_expert + 1, sizeof *g->pick);
    return g->pick ? OK : err_set(e, ERR_MEMORY, "no memory for the routers");
}

void gates_close(struct gates *g)
{
    region_release(&g->mem);
    free(g->bank);
    free(g->pick);
    memset(g, 0, sizeof *g);
}

uint64_t gates_bytes(const struct gates *g)
{
    uint64_t n = 0;
    const uint64_t page = mem_page_size();
    for (int k = 0; k < GATE_OPS; k++) n += GATE_ROWS * g->stride[k];
    return (n + page - 1) / page * page;
}

enum status gates_commit(struct gates *g, const struct build *m, struct ledger *l,
                         struct dev_buf *buf, struct err *e)
{
    if (!gates_bytes(g)) return OK;
    enum status s = region_reserve(&g->mem, l, MEM_ACT, gates_bytes(g), e);
    if (!s) s = region_commit(&g->mem, gates_bytes(g), e);
    char *at = g->mem.base;
    g->buf = buf + m->n_buf;
    for (int k = 0; k < GATE_OPS && !s; k++) {
        g->buf[k] = (struct dev_buf){.base = at, .stride = (uint32_t)g->stride[k]};
        at += GATE_ROWS * g->stride[k];
    }
    return s;
}

float *gates_run(struct gates *g, int bank, int from, int n_rows, const struct dev_api *api,
                 struct dev *dev, const struct dev_bind *bind, uint64_t *stride)
{
    struct gate *one = &g->bank[bank];
    if (from < 1 || !g->buf || !one->n || n_rows < 1 || n_rows > GATE_ROWS) return NULL;
    for (int k = 0; k < one->n; k++)
        for (int i = 0; i < OP_WEIGHTS; i++)
            if (one->op[k].weight[i] >= 0 && !bind->weight[one->op[k].weight[i]].data) return NULL;
    one->op[0].in[0] = from;
    for (int k = 0; k < GATE_OPS; k++) g->buf[k].width = one->width[k];
    struct dev_bind b = *bind;
    struct dev_rows set[ROWS_MAX];
    memcpy(set, bind->set, sizeof set);
    set[ROWS_ALL].n = n_rows;
    b.set = set;
    b.n_rows = n_rows;
    (void)api->wait(dev, api->submit(dev, one->op, one->n, &b), 0, NULL);
    *stride = g->stride[one->logits];
    return (float *)(void *)g->buf[one->logits].base;
}
