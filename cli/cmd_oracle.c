/* tessera oracle: what the best choices would have been for every token of a text, beside what the
 * model's routers chose and beside chance.  See oracle_job.h for its files, routing/oracle.h for the
 * search. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/oracle_job.h"
#include "moe/base/osfile.h"

/* ---- the text ---- */

/* Windows of the context: the tokens that every one begins with, then a piece of the text.  A token that
 * is the last of its window has nothing behind it to be judged by. */
static int window_room(const struct oracle_job *j) { return tessera_model(j->e).n_ctx - j->bos; }

static enum status list_tokens(struct oracle_job *j, struct err *err)
{
    const int room = window_room(j), text = j->n_ids - j->bos;
    if (j->n_ids < 2)
        return err_set(err, ERR_RANGE, "the text has %d token%s: an oracle needs one, and another behind "
                       "it", j->n_ids, j->n_ids == 1 ? "" : "s");
    if (room < 2) return err_set(err, ERR_FULL, "a context of %d is too short", room + j->bos);
    j->at = malloc(sizeof *j->at * (size_t)j->n_ids);
    if (!j->at) return err_set(err, ERR_MEMORY, "no memory for %d tokens", j->n_ids);
    for (int i = 0; i + 1 < text && (!j->own.tokens || j->n_all < j->own.tokens); i++)
        if ((i + 1) % room) j->at[j->n_all++] = j->bos + i;
    if (j->n_all) return OK;
    return err_set(err, ERR_RANGE, "no token of the text has another behind it in its window");
}

/* ---- the search ---- */

static const char *unit_name(const struct oracle_job *j)
{
    return j->what == ORACLE_SCHEDULE ? "passes" : "tokens";
}

/* A window's first tokens again, up to index `to` of the text (not included). */
static enum status read_on(struct oracle_job *j, int from, int to, struct err *err)
{
    const int most = tessera_model(j->e).n_ubatch;
    enum status s = OK;
    for (int at = from, n; at < to && !s; at += n) {
        n = to - at < most ? to - at : most;
        const struct tessera_input in = {.session = j->session, .ids = j->ids + at, .n = n};
        s = tessera_step(j->e, &in, 1, err);
    }
    return s;
}

/* Makes the timeline that of token `at`: its window as far as it goes before it. */
static enum status come_to(struct oracle_job *j, int at, struct err *err)
{
    const int room = window_room(j), in_text = at - j->bos;
    enum status s = tessera_session_rollback(j->session, (struct tessera_mark){0}, err);
    if (!s) s = read_on(j, 0, j->bos, err);
    return s ? s : read_on(j, at - in_text % room, at, err);
}

static void draw_progress(const struct oracle_job *j, double started, int done_before)
{
    enum { WIDTH = 30 };
    static double drawn;
    const double now = os_seconds();
    if (!cli_tty(stderr) || now - drawn < 0.2) return;
    char line[WIDTH + 1];
    const int filled = (int)((double)j->n_done / j->n_all * WIDTH);
    memset(line, ' ', WIDTH);
    memset(line, '=', (size_t)filled);
    line[WIDTH] = 0;
    const double each = (now - started) / (j->n_done - done_before + 1e-9);
    fprintf(stderr, "\rsearching [%s] %d of %d %s, %.0f s left \033[K", line, j->n_done, j->n_all,
            unit_name(j), each * (j->n_all - j->n_done));
    drawn = now;
}

static enum status search(struct oracle_job *j, struct err *err)
{
    const double started = os_seconds();
    double saved = started;
    const int before = j->n_done;
    enum status s = OK;
    while (j->n_done < j->n_all && !s) {
        const int at = j->at[j->n_done];
        if (j->what == ORACLE_SCHEDULE) {
            s = oracle_pass(j, err);
        } else {
            j->target = j->ids[at + 1];
            if (j->n_done == before || !((at - j->bos) % window_room(j))) s = come_to(j, at, err);
            if (!s) s = oracle_token(j, j->ids[at], err);
        }
        if (cli_interrupted() && !s) s = err_set(err, ERR_CANCELLED, "interrupted");
        draw_progress(j, started, before);
        if (!s && j->a->output && os_seconds() - saved > 20) {
            s = oracle_write(j, j->a->output, err);
            saved = os_seconds();
        }
    }
    if (cli_tty(stderr)) fprintf(stderr, "\r\033[K");
    if (s == ERR_CANCELLED && j->a->output && j->n_done > before) {
        struct err local;
        if (!oracle_write(j, j->a->output, &local))
            fprintf(stderr, "tessera: %d of %d %s are in %s: the same command goes on there\n",
                    j->n_done, j->n_all, unit_name(j), j->a->output);
    }
    if (!s && j->a->output) s = oracle_write(j, j->a->output, err);
    if (!s && j->n_done > before)
        fprintf(stderr, "%d %s in %.1f s\n", j->n_done - before, unit_name(j), os_seconds() - started);
    return s;
}

/* ---- setting up ---- */

static bool tries_all(const struct oracle_job *j)
{
    if (j->what >= ORACLE_DEPTH) return true;
    if (j->what == ORACLE_ROUTES)
        return j->own.skips < 0 && j->n_free < 31 && (1 << j->n_free) <= j->own.all;
    for (int k = 0; k < j->n_free; k++) {
        const struct branch_part *p = &j->b.part[j->unit[j->free_unit[k]].first];
        double sets = 1;
        for (int i = 1; i <= p->n_used; i++) sets = sets * (p->n_expert - p->n_used + i) / i;
        if (sets > j->own.all + 0.5) return false;
    }
    return true;
}

/* Bytes that the search and its results take, at most. */
static uint64_t search_bytes(const struct oracle_job *j)
{
    const uint64_t embd = (uint64_t)j->b.n_embd, free = (uint64_t)j->n_free;
    uint64_t sum = (uint64_t)j->n_ids * 8 +
                   (uint64_t)j->n_all * (4 * (uint64_t)j->n_values + 8 * (uint64_t)j->n_routes);
    if (j->what == ORACLE_ROUTES) { /* a trie: four hidden states a route, lists */
        const uint64_t drawn = (uint64_t)j->own.random * (free + 1);
        const uint64_t kept = (uint64_t)j->own.beam * (free + 1);
        const uint64_t beams = kept > drawn ? kept : drawn;
        sum += (j->all_tried ? (uint64_t)1 << free : beams) * (16 * embd + 64) + 64 * drawn;
    }
    uint64_t sets_most = 0; /* of the layer that takes most */
    for (int k = 0; j->what == ORACLE_EXPERTS && k < j->n_free; k++) {
        const struct branch_part *p = &j->b.part[j->unit[j->free_unit[k]].first];
        uint64_t sets = (uint64_t)p->n_used * (uint64_t)p->n_expert;
        sets = sets > (uint64_t)j->own.all ? sets : (uint64_t)j->own.all;
        sets = sets > (uint64_t)j->own.random ? sets : (uint64_t)j->own.random;
        const uint64_t bytes = sets * (4 * (uint64_t)p->n_used + 8) + 1024 * embd;
        sets_most = bytes > sets_most ? bytes : sets_most;
    }
    if (j->what == ORACLE_SCHEDULE) { /* what oracle_schedule() takes of the largest total */
        const uint64_t steps = (uint64_t)j->own.steps, levels = (uint64_t)j->n_values - 1;
        sum += (steps * (levels - 1) + 1) * (4 * steps + 16) + 24 * steps * levels;
    }
    return sum + sets_most;
}

static enum status set_up(struct oracle_job *j, struct err *err)
{
    enum status s = OK;
    if (j->what == ORACLE_DEPTH) {
        j->least_depth = branches_least_depth(j->e);
        j->n_depths = tessera_depth(j->e).n_max - j->least_depth + 1;
        s = branches_depth(j->e, -1, err);
        j->n_values = 1 + j->n_depths;
    } else if (j->what == ORACLE_SCHEDULE) {
        s = branches_capacity(j->e, 0, err);
        if (!s && tessera_model(j->e).mask < 0)
            s = err_set(err, ERR_MISSING, "the model names no mask token: nothing can be hidden");
        j->n_values = 1 + branches_choice(j->e).k_max;
    } else {
        s = branches_open(j->e, &j->b, err);
        if (!s) s = oracle_units(j, err);
        j->n_routes = j->what == ORACLE_ROUTES ? j->n_free + 1 : 0;
        j->n_values = j->what == ORACLE_ROUTES ? 3 * (j->n_free + 1) : 4 * j->n_free;
    }
    if (!s) s = cli_text_ids(j->e, j->a, j->own.ids, j->own.special, &j->ids, &j->n_ids, &j->bos, err);
    if (!s) s = j->what == ORACLE_SCHEDULE ? oracle_passes(j, err) : list_tokens(j, err);
    if (s) return s;
    j->all_tried = tries_all(j);
    s = branches_hold(j->e, search_bytes(j), j->what < ORACLE_DEPTH, err);
    if (s) return s;
    (void)snprintf(j->settings, sizeof j->settings, "--what %s --unit %s --tokens %d --beam %d --all %d "
                   "--skips %d --random %d --rounds %d --steps %d -s %" PRId64 " --exit %g -c %d", j->own.what,
                   j->own.unit, j->own.tokens, j->own.beam, j->own.all, j->own.skips, j->own.random,
                   j->own.rounds, j->own.steps, j->own.seed, (double)j->own.exit_at, tessera_model(j->e).n_ctx);
    j->value = calloc((size_t)j->n_all * (size_t)j->n_values, sizeof *j->value);
    j->route = calloc((size_t)j->n_all * (size_t)j->n_routes + 1, sizeof *j->route);
    if (!j->value || !j->route) return err_set(err, ERR_MEMORY, "no memory for %d results", j->n_all);
    return tessera_session_open(j->e, 0, &j->session, err);
}

static void tear_down(struct oracle_job *j)
{
    tessera_session_close(j->session);
    branches_close(&j->b);
    free(j->unit);
    free(j->fixed);
    free(j->free_unit);
    free(j->ids);
    free(j->value);
    free(j->route);
    free(j->at);
}

static int run(const struct cli_args *a, const struct oracle_args *own, enum oracle_what what)
{
    struct oracle_job j = {.a = a, .own = *own, .what = what};
    struct err err;
    err_clear(&err);
    int rc = cli_can_write(a->output);
    if (!rc) rc = cli_can_write(own->html);
    if (!rc) rc = cli_open_engine(a, &j.e);
    if (!rc && what != ORACLE_SCHEDULE && (rc = cli_next_tokens(j.e, "an oracle"))) cli_close_engine(j.e);
    if (rc) return rc;
    enum status s = set_up(&j, &err);
    if (!s && a->output) s = oracle_read(&j, a->output, &err);
    if (!s && j.n_done) fprintf(stderr, "%d of %d %s were there\n", j.n_done, j.n_all, unit_name(&j));
    cli_interrupt_target(j.e);
    if (!s) s = search(&j, &err);
    cli_interrupt_target(NULL);
    if (!s && a->json) oracle_report_json(&j);
    else if (!s) s = oracle_report(&j, &err);
    if (!s && own->html) s = oracle_page(&j, own->html, &err);
    rc = s ? cli_fail(&err) : CLI_OK;
    tear_down(&j);
    cli_close_engine(j.e);
    return rc;
}

/* ---- the command line ---- */

static int check(const struct cli_args *a, const struct oracle_args *own, enum oracle_what *what)
{
    static const char *const whats[] = {"routes", "experts", "depth", "schedule"};
    int w = 0;
    while (w < 4 && strcmp(own->what, whats[w])) w++;
    if (w == 4) return cli_usage("oracle", "--what is routes, experts, depth or schedule, not '%s'", own->what);
    *what = (enum oracle_what)w;
    if (strcmp(own->unit, "layer") && strcmp(own->unit, "ffn") && strcmp(own->unit, "part"))
        return cli_usage("oracle", "--unit is layer, ffn or part, not '%s'", own->unit);
    if (!own->ids + !a->prompt + !a->file != 2)
        return cli_usage("oracle", "give the text with one of -p, -f and --ids");
    return CLI_GO_ON;
}

int cmd_oracle(int argc, char **argv)
{
    struct oracle_args own = {.what = "routes", .unit = "layer", .beam = 8, .all = 4096, .skips = -1,
                              .random = 16, .rounds = 4, .steps = 16, .seed = 1};
    enum oracle_what what = ORACLE_ROUTES;
    static const struct cli_flag flags[] = {
        {"--what", "WHICH", "routes (which layers a token goes through; default), experts (which ones a "
         "layer's token gets), depth (of recursive and looped models) or schedule (of denoisers whose experts "
         "choose tokens: how many in which pass)", CLI_STR,
         offsetof(struct oracle_args, what), 0, 0},
        {"--unit", "WHICH", "what a route may pass by: layer (default), ffn, or part (attention and ffn on "
         "their own)", CLI_STR, offsetof(struct oracle_args, unit), 0, 0},
        {"--tokens", "N", "of the text (default all)", CLI_INT, offsetof(struct oracle_args, tokens), 1,
         1 << 24},
        {"--all", "N", "try every route, or set of experts, where there are at most N (default 4096)",
         CLI_INT, offsetof(struct oracle_args, all), 1, 1 << 20},
        {"--beam", "N", "otherwise: routes kept of every number of units passed by (default 8)", CLI_INT,
         offsetof(struct oracle_args, beam), 1, 1 << 16},
        {"--skips", "N", "units passed by at most (default any number)", CLI_INT,
         offsetof(struct oracle_args, skips), 0, 63},
        {"--rounds", "N", "of swaps of experts, where not all sets are tried (default 4)", CLI_INT,
         offsetof(struct oracle_args, rounds), 1, 1000},
        {"--random", "N", "choices drawn for comparison (default 16)", CLI_INT,
         offsetof(struct oracle_args, random), 0, 1 << 16},
        {"--steps", "N", "passes over a window of a denoiser (default 16)", CLI_INT,
         offsetof(struct oracle_args, steps), 1, 1024},
        {"-s --seed", "N", "of what is drawn (default 1)", CLI_I64, offsetof(struct oracle_args, seed), 0,
         9e15},
        {"--ids", "1,2,3", "the text as token ids", CLI_STR, offsetof(struct oracle_args, ids), 0, 0},
        {"--special", NULL, "read <|im_end|> and the like in the text as special tokens", CLI_TRUE,
         offsetof(struct oracle_args, special), 0, 0},
        {"--exit", "X", "looped models with a gate: as in run", CLI_F32,
         offsetof(struct oracle_args, exit_at), 1e-6, 1},
        {"--html", "FILE", "pictures as one web page, the text coloured by what could be gained", CLI_STR,
         offsetof(struct oracle_args, html), 0, 0},
        {"--fresh", NULL, "begin anew even if -o FILE has a part of this search", CLI_TRUE,
         offsetof(struct oracle_args, fresh), 0, 0},
        {0}};
    struct cli_args a = cli_defaults();
    a.raw_text = true;
    struct cli_spec spec = {
        .name = "oracle", .groups = CLI_MODEL | CLI_PROMPT | CLI_OUTPUT | CLI_JSON, .own = flags,
        .own_base = &own,
        .footer = "Every token is tried on the timeline that the model itself has left behind.  -o FILE "
                  "keeps what was\nfound, and the same command goes on where it was interrupted.  The same "
                  "seed gives the same report.\n\"shared out\": a budget of so many units per token on "
                  "average, spent where they help most.\nThe whole model has to fit in memory.\n"};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc == CLI_GO_ON) rc = check(&a, &own, &what);
    if (rc != CLI_GO_ON) return rc;
    a.exit_at = own.exit_at;
    a.n_logits = 64 < a.ubatch && what != ORACLE_SCHEDULE ? 64 : a.ubatch; /* rows of a run of branches */
    return run(&a, &own, what);
}
