/* Slash commands of the chat: one table, which is also the text of /help.
 *
 * Everything they print goes to stderr: stdout is the conversation. */
#include "cli/talk.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ---- settings ---- */

struct setting {
    const char *name, *help;
    enum { SET_INT, SET_FLOAT, SET_SEED, SET_SYSTEM, SET_THINK } kind;
    size_t offset; /* in struct cli_args */
    double lo, hi;
};

#define AT(field) offsetof(struct cli_args, field)
static const struct setting settings[] = {
    {"temp", "temperature; 0 = always the likeliest", SET_FLOAT, AT(temp), 0, 1000},
    {"top_k", "choose among so many; 0 = all", SET_INT, AT(top_k), 0, INT_MAX},
    {"top_p", "choose among those that make up so much", SET_FLOAT, AT(top_p), 0, 1},
    {"min_p", "leave out what is less likely than that", SET_FLOAT, AT(min_p), 0, 1},
    {"repeat_penalty", "for recent tokens; 1 = off", SET_FLOAT, AT(repeat_penalty), 0.001, 1000},
    {"repeat_last_n", "how many tokens are recent; -1 = all", SET_INT, AT(repeat_last_n), -1,
     INT_MAX},
    {"seed", "-1 = a new one for each answer", SET_SEED, AT(seed), -1, 9007199254740992.0},
    {"n", "tokens of an answer at most; -1 = until it ends", SET_INT, AT(n_predict), -2, INT_MAX},
    {"system", "the system message; nothing = none", SET_SYSTEM, 0, 0, 0},
    {"think", "on, off, or a level such as low; auto = as the chat template has it", SET_THINK, 0,
     0, 0},
};
enum { N_SETTINGS = sizeof settings / sizeof settings[0] };

static void show_setting(const struct talk *t, const struct setting *s)
{
    const char *at = (const char *)t->a + s->offset;
    fprintf(stderr, "  %-15s", s->name);
    switch (s->kind) {
    case SET_INT: fprintf(stderr, "%-10d", *(const int *)at); break;
    case SET_SEED: fprintf(stderr, "%-10lld", (long long)*(const int64_t *)at); break;
    case SET_FLOAT: fprintf(stderr, "%-10.4g", (double)*(const float *)at); break;
    case SET_SYSTEM: fprintf(stderr, "%s\n", t->system ? t->system : "(none)"); return;
    case SET_THINK: fprintf(stderr, "%-10s", *t->think ? t->think : "auto"); break;
    }
    fprintf(stderr, "%s%s%s\n", cli_dim(), s->help, cli_plain());
}

/* The setting called word[n], with - for _ as on the command line. */
static const struct setting *find_setting(const char *word, size_t n)
{
    for (int i = 0; i < N_SETTINGS; i++) {
        const char *name = settings[i].name;
        size_t k = 0;
        while (k < n && name[k] && (name[k] == word[k] || (name[k] == '_' && word[k] == '-'))) k++;
        if (k == n && !name[k]) return &settings[i];
    }
    return NULL;
}

static void unknown_setting(const char *word, size_t n)
{
    char copy[32];
    const char *names[N_SETTINGS + 1];
    for (int i = 0; i < N_SETTINGS; i++) names[i] = settings[i].name;
    names[N_SETTINGS] = NULL;
    (void)snprintf(copy, sizeof copy, "%.*s", (int)(n < 31 ? n : 31), word);
    const char *near = cli_nearest(copy, names);
    fprintf(stderr, "tessera: there is no setting '%s'; ", copy);
    if (near) {
        fprintf(stderr, "did you mean %s?\n", near);
        return;
    }
    fprintf(stderr, "there are");
    for (int i = 0; i < N_SETTINGS; i++) fprintf(stderr, " %s", names[i]);
    fprintf(stderr, "\n");
}

/* False when the text is no value for it. */
static bool set_number(struct cli_args *a, const struct setting *s, const char *text)
{
    void *at = (char *)a + s->offset;
    int64_t i;
    double x;
    if (s->kind == SET_FLOAT) {
        if (!cli_parse_float(text, s->lo, s->hi, &x)) return false;
        *(float *)at = (float)x;
        return true;
    }
    if (!cli_parse_int(text, (int64_t)s->lo, (int64_t)s->hi, &i)) return false;
    if (s->kind == SET_INT)
        *(int *)at = (int)i;
    else
        *(int64_t *)at = i;
    return true;
}

static bool do_set(struct talk *t, const char *arg)
{
    size_t n = strcspn(arg, " \t=");
    const char *value = arg + n + strspn(arg + n, " \t=");
    if (!n) {
        for (int i = 0; i < N_SETTINGS; i++) show_setting(t, &settings[i]);
        return true;
    }
    const struct setting *s = find_setting(arg, n);
    if (!s) return unknown_setting(arg, n), true;
    if (s->kind == SET_THINK) return (void)talk_set_think(t, *value ? value : "auto"), true;
    bool ok = s->kind == SET_SYSTEM ? talk_set_system(t, value) : set_number(t->a, s, value);
    if (ok && line_interactive(t->in)) show_setting(t, s);
    if (!ok && s->kind != SET_SYSTEM)
        fprintf(stderr, "tessera: %s wants a %s from %.10g%s, not '%s'\n", s->name,
                s->kind == SET_FLOAT ? "number" : "whole number", s->lo,
                s->hi >= INT_MAX ? " up" : s->hi > 1 ? " to 1000" : " to 1", value);
    if (ok && s->kind == SET_SEED) t->n_answers = 0;
    return true;
}

/* ---- looking ---- */

/* Colours of an answer by depth, on or off, and what they mean. */
static void show_depth(struct talk *t)
{
    const struct tessera_depth d = tessera_depth(t->e);
    if (!d.n_max) {
        fprintf(stderr, "tessera: all tokens go equally deep in this model\n");
        return;
    }
    t->show_depth = !t->show_depth;
    fprintf(stderr, "depth of the pass that gave each token: %s;", t->show_depth ? "shown" : "not shown");
    for (int i = 0; i <= d.n_max; i++)
        fprintf(stderr, " %s%d%s", *cli_dim() ? talk_depth_colour(i, d.n_max) : "", i, cli_plain());
    fprintf(stderr, "%s\n", cli_tty(stdout) ? "" : " (colours: on a terminal only)");
}

/* A mark behind each token of an answer that ends a concept, on or off. */
static void show_concepts(struct talk *t)
{
    if (!tessera_session_chances(t->s)) {
        fprintf(stderr, "tessera: this model merges no tokens into concepts\n");
        return;
    }
    t->show_concepts = !t->show_concepts;
    fprintf(stderr, "a %s|%s behind each token that closes a concept: %s\n", cli_dim(), cli_plain(),
            t->show_concepts ? "shown" : "not shown");
}

static bool do_show(struct talk *t, const char *arg)
{
    if (!strcmp(arg, "concepts")) return show_concepts(t), true;
    if (!strcmp(arg, "depth")) return show_depth(t), true;
    if (*arg) {
        fprintf(stderr, "tessera: /show alone, /show depth or /show concepts\n");
        return true;
    }
    cli_print_model(t->e, t->a);
    fprintf(stderr, "  %-15s%s\n", "template", chat_origin(t->chat));
    fprintf(stderr, "  %-15s%d messages, %d of %d tokens\n", "conversation", t->n_msgs,
            tessera_session_n(t->s), tessera_session_n_ctx(t->s));
    for (int i = 0; i < N_SETTINGS; i++) show_setting(t, &settings[i]);
    return true;
}

static double per_second(int n, double s) { return n > 0 && s > 0 ? n / s : 0; }

static void show_timing(const char *label, const struct tessera_timing *t, int n_prompt, int firsts)
{
    fprintf(stderr, "  %-15sread %d tokens (%.0f/s), kept %d, wrote %d (%.0f/s)\n", label, n_prompt,
            per_second(n_prompt, t->prompt_s), t->n_prompt_reused, t->n_gen,
            per_second(t->n_gen - firsts, t->gen_s));
}

static bool do_stats(struct talk *t, const char *arg)
{
    char b[6][24];
    struct tessera_memory m = tessera_memory(t->e);
    (void)arg;
    fprintf(stderr, "  %-15s%d of %d tokens, %d messages\n", "context", tessera_session_n(t->s),
            tessera_session_n_ctx(t->s), t->n_msgs);
    if (t->n_answers) {
        show_timing("last answer", &t->last, t->last.n_prompt - t->last.n_prompt_reused, 1);
        show_timing("all answers", &t->sum, t->sum.n_prompt, t->n_answers);
    }
    cli_print_depth(t->e, t->sum.prompt_s + t->sum.gen_s);
    fprintf(stderr, "  %-15sweights %s, KV cache %s, activations %s, staging %s\n", "memory",
            cli_bytes(m.weights, b[0]), cli_bytes(m.kv, b[1]), cli_bytes(m.activations, b[2]),
            cli_bytes(m.staging, b[3]));
    fprintf(stderr, "  %-15s%s now, %s at the peak, %s allowed\n", "", cli_bytes(m.total, b[4]),
            cli_bytes(m.peak, b[5]),
            m.budget == UINT64_MAX ? "any amount" : cli_bytes(m.budget, b[0]));
    cli_print_ahead(t->e, 15);
    return true;
}

static bool do_plan(struct talk *t, const char *arg)
{
    struct err err;
    (void)arg;
    err_clear(&err);
    if (tessera_explain(t->e, stderr, false, &err)) (void)cli_fail(&err);
    return true;
}

/* ---- doing ---- */

static bool do_mem(struct talk *t, const char *arg)
{
    struct err err;
    uint64_t bytes;
    char a[24], b[24];
    err_clear(&err);
    if (!*arg) {
        struct tessera_memory m = tessera_memory(t->e);
        fprintf(stderr, "memory %s of %s\n", cli_bytes(m.total, a),
                m.budget == UINT64_MAX ? "any amount" : cli_bytes(m.budget, b));
        return true;
    }
    if (!cli_parse_size(arg, &bytes)) {
        fprintf(stderr, "tessera: /mem wants a size like 8G, 8GiB, 8192M, 50%% or auto, not '%s'\n",
                arg);
        return true;
    }
    if (tessera_resize(t->e, bytes, &err)) return (void)cli_fail(&err), true;
    struct tessera_memory m = tessera_memory(t->e);
    struct tessera_traffic f = tessera_traffic(t->e);
    fprintf(stderr, "memory %s of %s", cli_bytes(m.total, a), cli_bytes(m.budget, b));
    if (f.token_disk_expected)
        fprintf(stderr, "; a token finds %.0f %% of its experts there and reads %s from disk "
                "(expected)", 100 * f.hit_expected, cli_bytes(f.token_disk_expected, b));
    fprintf(stderr, "\n");
    return true;
}

static bool do_exit(struct talk *t, const char *arg) { return (void)t, (void)arg, false; }

static bool do_clear(struct talk *t, const char *arg)
{
    (void)arg;
    free(t->read);
    t->read = NULL;
    if (talk_clear(t)) fprintf(stderr, "forgotten\n");
    return true;
}

static bool do_regen(struct talk *t, const char *arg)
{
    (void)arg;
    talk_again(t);
    return true;
}

/* arg with "~/" resolved, malloc'd; NULL and a message when there is none. */
static char *file_name(const char *command, const char *arg)
{
    const char *home = getenv("HOME");
    bool tilde = !strncmp(arg, "~/", 2) && home;
    size_t n = strlen(arg) + (tilde ? strlen(home) : 0) + 1;
    if (!*arg) {
        fprintf(stderr, "tessera: %s wants a file\n", command);
        return NULL;
    }
    char *path = malloc(n + 2);
    if (path && !strcmp(arg, "-")) /* a file of that name: stdin is the conversation */
        memcpy(path, "./-", sizeof "./-");
    else if (path)
        (void)snprintf(path, n, "%s%s", tilde ? home : "", tilde ? arg + 1 : arg);
    return path;
}

static bool do_read(struct talk *t, const char *arg)
{
    struct err err;
    char *text, *path = file_name("/read", arg);
    size_t n;
    err_clear(&err);
    if (!path) return true;
    if (cli_read_file(path, &text, &n, &err)) {
        (void)cli_fail(&err);
    } else if (memchr(text, 0, n)) {
        fprintf(stderr, "tessera: %s is no text file: it holds zero bytes\n", path);
        free(text);
    } else if (!n) {
        fprintf(stderr, "tessera: %s is empty\n", path);
        free(text);
    } else {
        free(t->read);
        t->read = text;
        fprintf(stderr, "%s: %zu bytes go ahead of your next message (an empty line sends them "
                        "alone)\n", path, n);
    }
    free(path);
    return true;
}

static bool do_save(struct talk *t, const char *arg)
{
    char *path = file_name("/save", arg);
    if (path) talk_save(t, path);
    free(path);
    return true;
}

static bool do_load(struct talk *t, const char *arg)
{
    char *path = file_name("/load", arg);
    if (path) talk_load(t, path);
    free(path);
    return true;
}

/* ---- the table ---- */

static bool do_help(struct talk *t, const char *arg);

struct slash {
    const char *name, *args, *help;
    bool (*fn)(struct talk *t, const char *arg); /* false = leave */
};

static const struct slash table[] = {
    {"/help", "", "this list", do_help},
    {"/clear", "", "forget the conversation; the system message stays", do_clear},
    {"/regen", "", "the last answer again", do_regen},
    {"/read", "FILE", "put a text file ahead of the next message", do_read},
    {"/set", "K V", "change a setting; alone: list them", do_set},
    {"/show", "[depth]", "the model and the settings; depth: colour answers by it, or stop", do_show},
    {"/stats", "", "tokens, speeds, memory, reading ahead, depths", do_stats},
    {"/plan", "", "the forward-pass plan", do_plan},
    {"/mem", "SIZE", "another memory budget, from now on; alone: what is used", do_mem},
    {"/save", "FILE", "keep the conversation and its KV cache (FILE.kv)", do_save},
    {"/load", "FILE", "go on with a saved one", do_load},
    {"/exit", "", "leave; /bye and Ctrl-D do too", do_exit},
    {"/bye", NULL, NULL, do_exit},
    {"/quit", NULL, NULL, do_exit},
};
enum { N_SLASH = sizeof table / sizeof table[0] };

static bool do_help(struct talk *t, const char *arg)
{
    (void)arg;
    for (int i = 0; i < N_SLASH; i++) {
        if (!table[i].help) continue;
        int n = fprintf(stderr, "  %s %s", table[i].name, table[i].args);
        fprintf(stderr, "%*s%s\n", n < 16 ? 16 - n : 1, "", table[i].help);
    }
    fprintf(stderr, "  \"\"\"           begins and ends a message of several lines; so does \\ at "
                    "the end of a line\n");
    if (line_interactive(t->in))
        fprintf(stderr, "  Ctrl-C        stops an answer, or drops the line; twice on an empty "
                        "line leaves\n");
    fprintf(stderr, "  A blank in front of / makes a line a message.\n");
    return true;
}

const char *const *slash_words(void)
{
    static const char *const words[] = {"/help", "/clear", "/regen", "/read ", "/set ", "/show",
                                        "/stats", "/plan", "/mem ", "/save ", "/load ", "/exit", "/bye",
                                        NULL};
    return words;
}

bool slash_run(struct talk *t, const char *line)
{
    char word[32], arg[PATH_MAX + 64];
    size_t n = strcspn(line, " \t");
    const char *rest = line + n + strspn(line + n, " \t");
    size_t len = strlen(rest);
    while (len && isspace((unsigned char)rest[len - 1])) len--;
    for (int i = 0; i < N_SLASH; i++) {
        if (strlen(table[i].name) != n || memcmp(table[i].name, line, n)) continue;
        if (len >= sizeof arg) {
            fprintf(stderr, "tessera: that line is too long for %s\n", table[i].name);
            return true;
        }
        memcpy(arg, rest, len);
        arg[len] = 0;
        return table[i].fn(t, arg);
    }
    const char *names[N_SLASH + 1];
    for (int i = 0; i < N_SLASH; i++) names[i] = table[i].name;
    names[N_SLASH] = NULL;
    (void)snprintf(word, sizeof word, "%.*s", (int)(n < 31 ? n : 31), line);
    const char *near = cli_nearest(word, names);
    if (near)
        fprintf(stderr, "tessera: there is no %s; did you mean %s?\n", word, near);
    else
        fprintf(stderr, "tessera: there is no %s; /help lists the commands\n", word);
    return true;
}
