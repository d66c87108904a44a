/* `tessera run --batch FILE`: JSON lines in, JSON lines out, several sessions in one step each.
 *
 * All lines are read and checked first; then a slot (a session) takes the next job whenever it is
 * free, every step advances all slots together, and a result is printed as soon as all earlier
 * ones are.  By fixed arithmetic a job's text is the same as if it ran alone. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "moe/load/tok.h"

struct job {
    cJSON *line;        /* owned: the parsed object */
    const char *prompt; /* borrowed from line */
    int line_no, n;
    int64_t seed;
    float temp;
    char *text;         /* owned: the answer */
    size_t n_text, cap_text;
    int n_prompt, n_gen;
    enum tessera_stop stop;
    char error[512];    /* "" = none */
    bool done;
};

struct slot {
    tessera_session *s;
    tessera_generator *g;
    struct job *job; /* NULL = free */
};

struct batch {
    struct cli_args *a;
    const char *file;
    struct job *jobs;
    int n_jobs, next, printed;
    tessera_engine *e;
    struct slot *slots;
    struct tessera_input *in; /* [n_slots] */
    int *slot_of;             /* [n_slots] which slot input i belongs to */
    int n_slots;
    int n_prompt, n_gen, n_failed;
};

/* ---- reading the lines ---- */

static bool bad_line(const struct batch *b, int line_no, const char *what)
{
    fprintf(stderr, "tessera: %s:%d: %s\n", b->file, line_no, what);
    return false;
}

/* An optional number of a line; *out keeps its value when it is absent. */
static bool get_number(const struct batch *b, const struct job *j, const char *key, double lo,
                       double hi, bool whole, double *out)
{
    char why[128];
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(j->line, key);
    if (!v) return true;
    double x = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (x >= lo && x <= hi && (!whole || x == floor(x))) {
        *out = x;
        return true;
    }
    (void)snprintf(why, sizeof why, "\"%s\" wants a %s from %.10g to %.10g", key,
                   whole ? "whole number" : "number", lo, hi);
    return bad_line(b, j->line_no, why);
}

static void warn_unknown(const struct batch *b, const struct job *j)
{
    static const char *const known[] = {"id", "prompt", "n", "seed", "temp", NULL};
    for (const cJSON *v = j->line->child; v; v = v->next) {
        bool found = false;
        for (int i = 0; known[i]; i++) found |= !strcmp(known[i], v->string);
        if (!found)
            cli_warn("%s:%d: field \"%.40s\" is not known and ignored", b->file, j->line_no,
                     v->string);
    }
}

static bool read_fields(const struct batch *b, struct job *j)
{
    const struct cli_args *a = b->a;
    double n = a->n_predict, seed = (double)a->seed, temp = -1;
    if (!cJSON_IsObject(j->line)) return bad_line(b, j->line_no, "not a JSON object");
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(j->line, "id");
    if (id && !cJSON_IsString(id) && !cJSON_IsNumber(id))
        return bad_line(b, j->line_no, "\"id\" wants a string or a number");
    j->prompt = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(j->line, "prompt"));
    if (!j->prompt) return bad_line(b, j->line_no, "\"prompt\" is missing or not a string");
    if (!get_number(b, j, "n", -2, 2147483647, true, &n) ||
        !get_number(b, j, "seed", 0, 9007199254740992, true, &seed) ||
        !get_number(b, j, "temp", 0, 1000, false, &temp))
        return false;
    j->n = n < 0 ? -1 : (int)n;
    j->seed = (int64_t)seed;
    j->temp = (float)temp;
    warn_unknown(b, j);
    return true;
}

/* cJSON would end a string at \u0000. */
static bool has_zero(const char *s)
{
    for (const char *p = s; (p = strstr(p, "\\u0000")); p++) {
        int slashes = 0;
        while (p - slashes > s && p[-1 - slashes] == '\\') slashes++;
        if (slashes % 2 == 0) return true;
    }
    return false;
}

static bool parse_line(struct batch *b, const char *text, int line_no)
{
    char why[64];
    const char *end = text;
    struct job *j = &b->jobs[b->n_jobs];
    memset(j, 0, sizeof *j);
    j->line_no = line_no;
    if (has_zero(text)) return bad_line(b, line_no, "a prompt cannot hold the character \\u0000");
    j->line = cJSON_ParseWithOpts(text, &end, 1);
    if (!j->line) {
        (void)snprintf(why, sizeof why, "not JSON: character %zu", (size_t)(end - text) + 1);
        return bad_line(b, line_no, why);
    }
    b->n_jobs++;
    return read_fields(b, j);
}

/* Cuts text[n] into lines, in place. */
static bool parse_lines(struct batch *b, char *text, size_t n)
{
    int line_no = 1;
    size_t n_lines = 1;
    for (size_t i = 0; i < n; i++) n_lines += text[i] == '\n';
    b->jobs = calloc(n_lines, sizeof *b->jobs);
    if (!b->jobs) return bad_line(b, 1, "no memory for the lines");
    for (char *p = text; p < text + n; line_no++) {
        char *eol = memchr(p, '\n', (size_t)(text + n - p));
        char *next = eol ? eol + 1 : text + n;
        if (eol) *eol = 0;
        size_t len = (size_t)((eol ? eol : text + n) - p);
        if (strlen(p) != len) return bad_line(b, line_no, "a zero byte; this is no text file");
        if (p[strspn(p, " \t\r")] && !parse_line(b, p, line_no)) return false;
        p = next;
    }
    return true;
}

/* ---- printing ---- */

static bool append(struct job *j, const char *text, int n)
{
    size_t need = j->n_text + (size_t)n + 1;
    if (need > j->cap_text) {
        char *more = realloc(j->text, need * 2);
        if (!more) return false;
        j->text = more;
        j->cap_text = need * 2;
    }
    memcpy(j->text + j->n_text, text, (size_t)n);
    j->n_text += (size_t)n;
    j->text[j->n_text] = 0;
    return true;
}

/* One result; false when nobody reads. */
static bool print_job(const struct job *j)
{
    cJSON *o = cJSON_CreateObject();
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(j->line, "id");
    if (id)
        cJSON_AddItemToObject(o, "id", cJSON_Duplicate(id, 1));
    else
        cJSON_AddNumberToObject(o, "id", j->line_no);
    cJSON_AddStringToObject(o, "text", j->text ? j->text : "");
    cJSON_AddNumberToObject(o, "n_prompt", j->n_prompt);
    cJSON_AddNumberToObject(o, "n_gen", j->n_gen);
    cJSON_AddStringToObject(o, "stop", j->error[0] ? "error" : cli_stop_name(j->stop));
    if (j->error[0]) cJSON_AddStringToObject(o, "error", j->error);
    char *s = cJSON_PrintUnformatted(o);
    bool ok = s && cli_out(s, strlen(s)) && cli_out("\n", 1);
    if (!s) fprintf(stderr, "tessera: no memory to print line %d\n", j->line_no);
    cJSON_free(s);
    cJSON_Delete(o);
    return ok;
}

/* Prints what is ready in order. */
static bool print_ready(struct batch *b)
{
    for (; b->printed < b->n_jobs && b->jobs[b->printed].done; b->printed++) {
        struct job *j = &b->jobs[b->printed];
        if (!print_job(j)) return false;
        free(j->text);
        j->text = NULL;
    }
    return true;
}

/* ---- running ---- */

static void finish_job(struct batch *b, struct slot *sl)
{
    struct job *j = sl->job;
    if (!j->stop) j->stop = TESSERA_STOP_LENGTH;
    j->done = true;
    b->n_prompt += j->n_prompt;
    b->n_gen += j->n_gen;
    b->n_failed += j->error[0] != 0;
    if (sl->g) tessera_generator_close(sl->g);
    sl->g = NULL;
    sl->job = NULL;
}

static enum status open_job(struct batch *b, struct slot *sl, struct err *err)
{
    struct job *j = sl->job;
    struct cli_args mine = *b->a;
    int32_t *ids = NULL;
    mine.seed = j->seed;
    if (j->temp >= 0) mine.temp = j->temp;
    struct tessera_generator_options o = {
        .sampling = cli_sampling(&mine, tessera_session_n_ctx(sl->s)), .stops = mine.stops.at,
        .n_stops = mine.stops.n, .n_gen_max = j->n, .ignore_end = mine.ignore_eos,
        .special_text = mine.special, .denoise = cli_denoising(b->a),
    };
    enum status s = cli_encode(tessera_tok(b->e), j->prompt, strlen(j->prompt),
                               TOK_BOS | TOK_SPECIAL, &ids, &j->n_prompt, err);
    if (!s && !j->n_prompt) s = err_set(err, ERR_RANGE, "the prompt is empty");
    if (!s) s = tessera_generator_open(sl->s, ids, j->n_prompt, &o, &sl->g, err);
    free(ids);
    return s;
}

/* Gives every free slot the next job that can be opened; jobs that cannot end with their error. */
static void fill_slots(struct batch *b)
{
    struct err err;
    for (int i = 0; i < b->n_slots; i++) {
        struct slot *sl = &b->slots[i];
        while (!sl->job && b->next < b->n_jobs) {
            err_clear(&err);
            sl->job = &b->jobs[b->next++];
            if (open_job(b, sl, &err)) {
                (void)snprintf(sl->job->error, sizeof sl->job->error, "%s", err.msg);
                fprintf(stderr, "tessera: %s:%d: %s\n", b->file, sl->job->line_no, err.msg);
                finish_job(b, sl);
            } else if (!sl->job->n) {
                finish_job(b, sl); /* "n": 0 asks for nothing */
            }
        }
    }
}

/* Collects the inputs of one step; every busy slot gets a row at least. */
static int collect(struct batch *b)
{
    int n_in = 0, rows = tessera_model(b->e).n_batch, waiting = 0;
    for (int i = 0; i < b->n_slots; i++) waiting += b->slots[i].job != NULL;
    for (int i = 0; i < b->n_slots; i++) {
        struct slot *sl = &b->slots[i];
        if (!sl->job) continue;
        waiting--;
        if (!tessera_generator_want(sl->g, rows - waiting, &b->in[n_in])) {
            finish_job(b, sl);
            continue;
        }
        rows -= b->in[n_in].n;
        b->slot_of[n_in++] = i;
    }
    return n_in;
}

static enum status take(struct batch *b, int i_in, struct err *err)
{
    struct tessera_answer a;
    struct slot *sl = &b->slots[b->slot_of[i_in]];
    enum status s = tessera_generator_take(sl->g, i_in, &a, err);
    if (s) return s;
    if (a.n_text && !append(sl->job, a.text, a.n_text))
        return err_set(err, ERR_MEMORY, "no memory for the answer to line %d", sl->job->line_no);
    if (a.canvas) sl->job->n_gen = tessera_generator_timing(sl->g).n_gen - (a.stop == TESSERA_STOP_END);
    else sl->job->n_gen += a.id >= 0 && a.stop != TESSERA_STOP_END;
    sl->job->stop = a.stop;
    if (a.stop) finish_job(b, sl);
    return OK;
}

/* Steps until every job is done; the exit code. */
static int run_jobs(struct batch *b)
{
    struct err err;
    err_clear(&err);
    while (b->printed < b->n_jobs) {
        fill_slots(b);
        int n_in = collect(b);
        enum status s = n_in ? tessera_step(b->e, b->in, n_in, &err) : OK;
        for (int i = 0; !s && i < n_in; i++) s = take(b, i, &err);
        if (!s && cli_interrupted()) s = err_set(&err, ERR_CANCELLED, "interrupted");
        if (!print_ready(b)) return CLI_OK; /* nobody reads: main says why */
        if (s) return cli_fail(&err);
    }
    return b->n_failed ? CLI_ERROR : CLI_OK;
}

static int open_slots(struct batch *b)
{
    struct err err;
    err_clear(&err);
    b->slots = calloc((size_t)b->n_slots, sizeof *b->slots);
    b->in = calloc((size_t)b->n_slots, sizeof *b->in);
    b->slot_of = calloc((size_t)b->n_slots, sizeof *b->slot_of);
    if (!b->slots || !b->in || !b->slot_of) {
        (void)err_set(&err, ERR_MEMORY, "no memory for %d sessions", b->n_slots);
        return cli_fail(&err);
    }
    for (int i = 0; i < b->n_slots; i++)
        if (tessera_session_open(b->e, 0, &b->slots[i].s, &err)) return cli_fail(&err);
    return CLI_OK;
}

static void batch_close(struct batch *b)
{
    for (int i = 0; b->slots && i < b->n_slots; i++) {
        if (b->slots[i].g) tessera_generator_close(b->slots[i].g);
        if (b->slots[i].s) tessera_session_close(b->slots[i].s);
    }
    if (b->e) cli_close_engine(b->e);
    for (int i = 0; i < b->n_jobs; i++) {
        cJSON_Delete(b->jobs[i].line);
        free(b->jobs[i].text);
    }
    free(b->jobs);
    free(b->slots);
    free(b->in);
    free(b->slot_of);
}

/* Opens the model and answers the jobs. */
static int serve(struct batch *b, int parallel)
{
    b->n_slots = b->n_jobs < parallel ? b->n_jobs : parallel;
    if (b->n_slots > b->a->ubatch) b->n_slots = b->a->ubatch;
    b->a->n_sessions = b->a->n_logits = b->n_slots;
    int rc = cli_open_engine(b->a, &b->e);
    if (rc) return rc;
    cli_sampling_of(b->a, b->e);
    /* A text that is seen whole may need a step for itself. */
    if (tessera_model(b->e).sees_both) b->n_slots = 1;
    if (!tessera_tok(b->e)) return cli_no_tokenizer(b->e, "(--ids 1,2,3, one prompt at a time)");
    if ((rc = open_slots(b))) return rc;
    cli_interrupt_target(b->e);
    rc = run_jobs(b);
    cli_interrupt_target(NULL);
    fprintf(stderr, "%s%d of %d lines, %d + %d tokens, %d at a time, seed %lld%s\n", cli_dim(),
            b->printed, b->n_jobs, b->n_prompt, b->n_gen, b->n_slots, (long long)b->a->seed,
            cli_plain());
    return rc;
}

int run_batch(struct cli_args *a, const char *file, int parallel)
{
    struct batch b = {.a = a, .file = strcmp(file, "-") ? file : "standard input"};
    struct err err;
    char *text;
    size_t n;
    err_clear(&err);
    if (cli_read_file(file, &text, &n, &err)) return cli_fail(&err);
    (void)cli_sampling(a, 0); /* one random seed for all lines that name none */
    int rc = parse_lines(&b, text, n) ? CLI_OK : CLI_ERROR;
    if (!rc && b.n_jobs) rc = serve(&b, parallel);
    batch_close(&b);
    free(text);
    return rc;
}
