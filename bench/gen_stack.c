/* A stack with random codes: the shapes of a model file and what a stack of it takes, for speed and memory.
 *
 *   build/release/bench/gen_stack SOURCE OUT [--levels N] [--rank K]
 *
 * --levels: of every matrix above its base (default 4).  --rank: the factored codec, with K vectors
 * (default: the nested codec).  Levels come in order, level by level.  What is not stacked is quantised
 * from SOURCE as `tessera stack` does it; the matrices themselves are never read.  Owns OUT and
 * OUT.random.part, which is gone at the end. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe/base/f16.h"
#include "moe/base/rng.h"
#include "quant/build/stack_build.h"

static void die(const char *what)
{
    fprintf(stderr, "gen_stack: %s\n", what);
    exit(1);
}

static void fill(uint8_t *p, size_t n, struct rng *r)
{
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)rng_below(r, 256);
}

/* Halfs about `size`, of both signs. */
static void fill_halfs(uint8_t *p, size_t n, float size, struct rng *r)
{
    for (size_t i = 0; i < n; i++) {
        const float v = size * (0.5f + (float)rng_below(r, 1024) / 1024);
        const uint16_t h = f16_from_f32(rng_below(r, 2) ? v : -v);
        memcpy(p + 2 * i, &h, 2);
    }
}

/* One matrix: a deviation of about 1 / sqrt(columns), so that activations stay near one. */
static void put_matrix(const struct stack_build *b, const struct stack_part *p, int mat, struct rng *r)
{
    struct err e;
    const float size = 1 / sqrtf((float)p->n_cols);
    for (int l = -1; l <= b->o.n_levels; l++) {
        const size_t n = l < 0 ? stack_mat_bytes(b, p) : stack_unit_bytes(b, p, l);
        uint8_t *at = malloc(n + 1);
        if (!at) die("no memory");
        fill(at, n, r);
        if (l < 0 && b->o.base == QTYPE_NEST2)
            for (size_t i = 0; i < n; i += 17)
                at[i] = (uint8_t)((f16_from_f32(size / 46) >> 7) + rng_below(r, 4));
        if (l >= 0 && b->o.base == QTYPE_SIGN1) /* a product of two factors, and each level half of the last */
            fill_halfs(at, fact_at_signs(b->o.rank, p->n_cols, p->n_rows) / 2,
                       sqrtf(size / (float)(b->o.rank << l)), r);
        err_clear(&e);
        if (stack_work_put(b, at, n, stack_unit_at(b, p, mat, l), &e)) die(e.msg);
        free(at);
    }
}

/* Level by level. */
static int32_t *make_order(const struct stack_build *b, int *n, int *n_floor)
{
    size_t mats = 0;
    for (int i = 0; i < b->n_parts; i++) mats += (size_t)b->part[i].n_mats;
    int32_t *order = calloc(3 * mats * (size_t)(b->o.n_levels + 1), sizeof *order);
    if (!order) die("no memory");
    *n = *n_floor = 0;
    for (int l = b->o.base == QTYPE_NEST2; l <= b->o.n_levels; l++) {
        for (int i = 0; i < b->n_parts; i++)
            for (int m = 0; m < b->part[i].n_mats; m++)
                memcpy(order + 3 * (*n)++, (int32_t[]){i, m, l}, 3 * sizeof *order);
        if (!l) *n_floor = *n;
    }
    return order;
}

int main(int argc, char **argv)
{
    struct stack_options o = {.base = QTYPE_NEST2, .n_levels = STACK_NESTED};
    struct stack_build b;
    struct gguf *g;
    struct pool *pool;
    struct err e;
    struct rng r;
    int n, n_floor;
    if (argc < 3 || argc % 2 == 0) die("usage: gen_stack SOURCE OUT [--levels N] [--rank K]");
    for (int i = 3; i < argc; i += 2) {
        const int v = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--levels") && v >= 0 && v <= STACK_LEVELS) o.n_levels = v;
        else if (!strcmp(argv[i], "--rank") && v > 0 && v <= STACK_RANK_MAX) o.base = QTYPE_SIGN1, o.rank = v;
        else die("--levels N, --rank K");
    }
    if (o.base == QTYPE_NEST2 && o.n_levels > STACK_NESTED) die("the nested codec has four levels at most");
    err_clear(&e);
    if (gguf_open(argv[1], NULL, &g, &e) || stack_build_open(&b, g, &o, NULL, &e) || pool_open(1, &pool, &e))
        die(e.msg);
    b.work_path = malloc(strlen(argv[2]) + 16);
    if (!b.work_path) die("no memory");
    (void)sprintf(b.work_path, "%s.random.part", argv[2]);
    b.work = open(b.work_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (b.work < 0) die("cannot create the work file");
    rng_seed(&r, 1);
    for (int i = 0; i < b.n_parts; i++)
        for (int m = 0; m < b.part[i].n_mats; m++) put_matrix(&b, &b.part[i], m, &r);
    int32_t *order = make_order(&b, &n, &n_floor);
    const int bad = stack_write(&b, argv[2], order, n, n_floor, NULL, pool, NULL, NULL, &e);
    free(order);
    pool_close(pool);
    stack_build_close(&b);
    gguf_close(g);
    if (bad) die(e.msg);
    return 0;
}
