/* Reads routing traces in the text form of BigMoeOnEdge (Apache-2.0), "# route_trace v1":
 *
 *   # model=NAME arch=ARCH n_layer=L n_expert=E n_expert_used=K
 *   # layer=0 expert_bytes=B dense_bytes=D           per layer
 *   turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
 *   0,0,0,0,0,79,0.425,0,4336640
 *
 * phase 0 is the prompt (of a turn, layer by layer), 1 decoding; a step is one token.  There are no
 * token ids.  A turn becomes a session, its prompt one forward pass.  See trace.h. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/trace.h"

struct text {
    const char *path, *at, *end; /* a line is at most END characters and copied before it is read */
    uint64_t line, size; /* size: of the text */
    struct err *e;
};

enum { LINE = 1024, FIELDS = 9 };

static enum status bad(const struct text *x, const char *what)
{
    return err_set(x->e, ERR_FORMAT, "%s: line %" PRIu64 ": %s", x->path, x->line, what);
}

/* The next line, terminated, without its end; false at the end of the text. */
static bool next_line(struct text *x, char line[LINE])
{
    if (x->at == x->end) return false;
    const char *nl = memchr(x->at, '\n', (size_t)(x->end - x->at)), *stop = nl ? nl : x->end;
    size_t n = (size_t)(stop - x->at);
    if (n > LINE - 1) n = LINE - 1; /* what is longer does not parse */
    memcpy(line, x->at, n);
    line[n] = 0;
    if (n && line[n - 1] == '\r') line[n - 1] = 0;
    x->at = nl ? nl + 1 : x->end;
    x->line++;
    return true;
}

/* The value of "key=" in a comment line as a number; -1 when it is not there. */
static int64_t number_of(const char *line, const char *key)
{
    const char *p = strstr(line, key);
    if (!p || (p > line && p[-1] != ' ')) return -1;
    char *stop;
    long long v = strtoll(p + strlen(key), &stop, 10);
    return stop == p + strlen(key) || v < 0 ? -1 : v;
}

static void word_of(const char *line, const char *key, char *to, size_t cap)
{
    const char *p = strstr(line, key);
    if (!p) return;
    p += strlen(key);
    (void)snprintf(to, cap, "%.*s", (int)strcspn(p, " "), p);
}

/* The comment lines; leaves x behind the line of column names. */
static enum status read_head(struct text *x, struct trace **out)
{
    char line[LINE];
    struct trace *t = NULL;
    enum status s;
    while (next_line(x, line)) {
        if (line[0] != '#') break;
        if (!t && strstr(line, "model=")) {
            const int64_t l = number_of(line, "n_layer="), n = number_of(line, "n_expert="),
                          k = number_of(line, "n_expert_used=");
            if (l < 1 || n < 1 || k < 1 || l > TRACE_LAYERS || n > TRACE_EXPERTS || k > TRACE_USED)
                return bad(x, "n_layer, n_expert or n_expert_used is missing or too large");
            s = trace_new((int)l, (int)n, (int)k, TRACE_WITH_WEIGHTS | TRACE_WITH_TIERS, out, x->e);
            if (s) return s;
            t = *out;
            word_of(line, "model=", t->name, sizeof t->name);
            word_of(line, " arch=", t->arch, sizeof t->arch);
        } else if (t && strstr(line, " layer=")) {
            const int64_t l = number_of(line, "layer="), b = number_of(line, "expert_bytes=");
            if (l < 0 || l >= t->n_layers || b < 0 || b > (int64_t)1 << 48)
                return bad(x, "a layer's number or size makes no sense");
            t->expert_bytes[l] = (uint64_t)b;
        }
    }
    if (!t) return bad(x, "no '# model=...' line before the table");
    return strcmp(line, "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes")
               ? bad(x, "these are not the columns of route_trace v1")
               : OK;
}

struct turn {
    int64_t turn, first_step; /* of the turn being read */
    int32_t first_row;
    bool decoding;
};

/* The row of this token, appended when it is a new one; -1 after a message. */
static int32_t row_of(struct text *x, struct trace *t, struct turn *now, const int64_t v[FIELDS])
{
    const int64_t turn = v[0], phase = v[1], step = v[2];
    if (!t->n_rows || turn != now->turn) {
        if (turn < now->turn || turn > INT32_MAX || phase > 1)
            return (void)bad(x, "turns go back"), -1;
        *now = (struct turn){turn, step, t->n_rows, false};
    }
    const int64_t row = now->first_row + (step - now->first_step);
    if (step < now->first_step || row > t->n_rows || row > INT32_MAX / 2)
        return (void)bad(x, "steps go back, or one is left out"), -1;
    if (row < t->n_rows) return (int32_t)row;
    /* A place takes a line: a shape that the text could never fill is not given memory. */
    if ((uint64_t)(row + 1) * (uint64_t)t->n_layers * (uint64_t)t->n_used > x->size)
        return (void)bad(x, "the table is too short for the model it names"), -1;
    if (trace_append(t, 1, x->e)) return -1;
    const bool same = row > now->first_row && !phase && !now->decoding;
    t->session[row] = (int32_t)turn;
    t->pos[row] = (int32_t)(row - now->first_row);
    t->step[row] = row ? t->step[row - 1] + !same : 0;
    now->decoding = phase;
    return (int32_t)row;
}

static bool fields(const char *line, int64_t v[FIELDS], float *weight)
{
    const char *p = line;
    for (int i = 0; i < FIELDS; i++) {
        char *stop;
        if (i == 6) *weight = strtof(p, &stop);
        else v[i] = strtoll(p, &stop, 10);
        if (stop == p || *stop != (i < FIELDS - 1 ? ',' : 0) || (i != 6 && v[i] < 0)) return false;
        p = stop + 1;
    }
    return true;
}

static enum status read_table(struct text *x, struct trace *t)
{
    char line[LINE];
    struct turn now = {-1, 0, 0, false};
    while (next_line(x, line)) {
        int64_t v[FIELDS] = {0};
        float weight = 0;
        if (!line[0]) continue;
        if (!fields(line, v, &weight)) return bad(x, "it needs nine numbers");
        if (v[3] >= t->n_layers || v[4] >= t->n_used || v[5] >= t->n_experts)
            return bad(x, "layer, slot or expert is outside the model");
        if (!(weight >= -65504.0f && weight <= 65504.0f) || v[7] > TRACE_DEVICE)
            return bad(x, "the weight or the residency makes no sense");
        const int32_t row = row_of(x, t, &now, v);
        if (row < 0) return x->e->code;
        const size_t at = trace_at(t, row, (int)v[3]) + (size_t)v[4];
        t->expert[at] = (uint16_t)v[5];
        t->weight[at] = weight;
        t->tier[at] = (uint8_t)v[7];
    }
    return t->n_rows ? OK : bad(x, "the table is empty");
}

enum status trace_read_csv(const char *path, const char *text, uint64_t n, struct trace **out,
                           struct err *e)
{
    struct err local;
    if (!e) {
        err_clear(&local);
        e = &local;
    }
    struct text x = {path, text, text + n, 0, n, e};
    struct trace *t = NULL;
    *out = NULL;
    enum status s = read_head(&x, &t);
    if (!s) s = read_table(&x, t);
    if (s) trace_free(t);
    else *out = t;
    return s;
}
