/* Option parsing: one table of flags, which is also the text of --help.
 *
 * Flags keep llama.cpp's spelling.  What llama.cpp has and Tessera does in another way is accepted
 * with one line on stderr.  Everything wrong here is wrong before any file was opened: exit 2.
 * Owns nothing: values point into argv. */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "moe/base/machine.h"

#define AT(field) offsetof(struct cli_args, field)

/* ---- the tables ---- */

struct group {
    unsigned mask;
    const char *title;
    const struct cli_flag *flags;
};

static const struct cli_flag model_flags[] = {
    {"-m --model", "FILE", "the model, a GGUF file", CLI_STR, AT(model), 0, 0},
    {"-c --ctx-size", "N", "context in tokens (default: the smallest of the model's, what fits, "
     "8192)", CLI_INT, AT(ctx), 0, INT_MAX},
    {"-t --threads", "N", "threads (default: one per physical core)", CLI_INT, AT(threads), -1,
     4096},
    {"-b --batch-size", "N", "rows of a prompt per step: more than -ub go through a layer together "
     "before the next one, where experts are on disk; lowers -ub when smaller (default 2048)",
     CLI_INT, AT(batch), 1, INT_MAX},
    {"-ub --ubatch-size", "N", "rows computed at once (default 512)", CLI_INT, AT(ubatch), 1, INT_MAX},
    {"-ctk --cache-type-k", "TYPE", "type of the KV cache's keys: f16, q8_0 (default f16)",
     CLI_KVTYPE, AT(kv_k), 0, 0},
    {"-ctv --cache-type-v", "TYPE", "type of its values; equals -ctk", CLI_KVTYPE, AT(kv_v), 0, 0},
    {"--mem", "SIZE", "memory for the whole process: 8G, 8GiB, 8192M, 50%, auto (default auto)",
     CLI_SIZE, AT(mem), 0, 0},
    {"-dev --device", "NAME", "a second device beside the CPU: cuda, a GPU, by a plugin that "
     "`make cuda` builds; auto, the same where there is one; sim, which stands in for a GPU (for tests; its "
     "memory is RAM beside --mem); none (default none)", CLI_STR, AT(device), 0, 0},
    {"--vram", "SIZE", "memory on the device for the whole process: 4G, auto (default auto)", CLI_SIZE,
     AT(vram), 0, 0},
    {"--pack", "DIR", "where re-laid-out copies go (none are made in this version)", CLI_STR,
     AT(pack), 0, 0},
    {"--machine", "FILE", "speeds for promises of time, a file of `tessera doctor -o` (default: what "
     "`tessera doctor -m` has measured here)", CLI_STR, AT(machine), 0, 0},
    {"--forecasters", "FILE", "of `tessera trace --fit-forecasters`, for --approximate", CLI_STR,
     AT(forecasters), 0, 0},
    {"--approximate", "25%", "forecasters stand in for that share of feed-forwards, those that they do best: "
     "faster, and not the same text (default off)", CLI_STR, AT(approximate), 0, 0},
    {"--routing", "WHO", "own (default), or expert-choice: experts choose the tokens of a prompt, as many "
     "each; lossy, --analyze says by how much", CLI_STR, AT(routing), 0, 0},
    {"--routes", "TRACE", "promises assume the routing in a file of `tessera trace`", CLI_STR,
     AT(routes), 0, 0},
    {"--policy", "NAME", "which experts stay when not all fit: lrfu (default), lru, lfu, plec",
     CLI_STR, AT(policy), 0, 0},
    {"--predictor", "WHICH", "what names experts to be read ahead: gate (default), previous, "
     "frequency, none, or a file of `tessera trace`; it is used while it makes this run faster, "
     "with \",always\" behind it in any case", CLI_STR, AT(predictor), 0, 0},
    {"--loops", "N", "looped models: leave after N loops (default: all)", CLI_INT, AT(loops), 1, 64},
    {"--exit", "X", "looped models with a gate: a token leaves when its chances to stop sum to X; 1 = "
     "never (default: as the file says)", CLI_F32, AT(exit_at), 1e-6, 1},
    {"--exit-weighted", NULL, "the mean of all loops by these chances", CLI_TRUE, AT(exit_weighted), 0,
     0},
    {"--depth-exact", NULL, "mixture-of-recursions: the best tokens of a whole text go deeper, as in "
     "training; to score texts", CLI_TRUE, AT(depth_exact), 0, 0},
    {"--analyze", NULL, "print the plan, then promised beside measured", CLI_TRUE, AT(analyze), 0,
     0},
    {"--deterministic", NULL, "refuse lossy or reordered arithmetic (always so, on every device)",
     CLI_TRUE, AT(deterministic), 0, 0},
    {0}};

static const struct cli_flag threads_flags[] = {
    {"-t --threads", "N", "threads (default: one per physical core)", CLI_INT, AT(threads), -1,
     4096},
    {0}};

static const struct cli_flag prompt_flags[] = {
    {"-p --prompt", "TEXT", "the prompt; - reads standard input", CLI_STR, AT(prompt), 0, 0},
    {"-f --file", "FILE", "the prompt is in FILE, less one line end at its end", CLI_STR, AT(file),
     0, 0},
    {"-e --escape", NULL, "resolve \\n \\t \\\" \\\\ \\xHH on the command line", CLI_TRUE,
     AT(escape), 0, 0},
    {"--no-escape", NULL, "keep backslashes as they are", CLI_FALSE, AT(escape), 0, 0},
    {0}};

static const struct cli_flag generate_flags[] = {
    {"-n --predict --n-predict", "N", "tokens to generate; -1 = until it ends, -2 = until the "
     "context is full (default -1)", CLI_INT, AT(n_predict), -2, INT_MAX},
    {"-s --seed", "N", "seed of the sampler (default -1 = a random one, printed)", CLI_I64,
     AT(seed), -1, 9007199254740992.0},
    {"--temp --temperature", "X", "temperature; 0 = always the likeliest token (default 0.8; models "
     "that see both sides: their own)",
     CLI_F32, AT(temp), 0, 1000},
    {"--top-k", "N", "choose among the N likeliest; 0 = all (default 40)", CLI_INT, AT(top_k), 0,
     INT_MAX},
    {"--top-p", "X", "choose among those that make up X of the probability; 1 = all (default "
     "0.95)", CLI_F32, AT(top_p), 0, 1},
    {"--min-p", "X", "leave out what is less likely than X times the likeliest; 0 = off (default "
     "0.05)", CLI_F32, AT(min_p), 0, 1},
    {"--repeat-penalty", "X", "divide the logits of recent tokens by X; 1 = off (default 1)",
     CLI_F32, AT(repeat_penalty), 0.001, 1000},
    {"--repeat-last-n", "N", "how many tokens are recent; 0 = none, -1 = all (default 64)",
     CLI_INT, AT(repeat_last_n), -1, INT_MAX},
    {"-r --reverse-prompt --stop", "TEXT", "stop before TEXT; may be given several times",
     CLI_LIST, AT(stops), 0, 0},
    {"--steps --diffusion-steps", "N", "models that see both sides: passes for the whole answer "
     "(default: one for each token)", CLI_INT, AT(steps), 1, INT_MAX},
    {"--block --diffusion-block-length", "N", "tokens that are settled before those behind them are "
     "begun; -1 = the whole answer (default: the model's)", CLI_INT, AT(block), -1, INT_MAX},
    {"--alg --diffusion-algorithm", "NAME", "what settles first: low_confidence, random, origin, "
     "maskgit_plus, topk_margin, entropy (default: the model's)", CLI_STR, AT(alg), 0, 0},
    {"--threshold", "X", "a pass settles every token that is this probable; 0 = off (default)", CLI_F32,
     AT(threshold), 0, 1},
    {"--cache", "WHICH", "keep K and V of the first pass of a block: none (default), prefix, dual; "
     "approximate, except where the model sees by blocks", CLI_STR, AT(cache), 0, 0},
    {"--cfg-scale --diffusion-cfg-scale", "X", "guidance: away from what it would say without the "
     "prompt; 0 = off (default)", CLI_F32, AT(guidance), 0, 1000},
    {"--alg-temp --diffusion-alg-temp", "X", "chance in the order of the last four; 0 = none (default)",
     CLI_F32, AT(alg_temp), 0, 1000},
    {"--ignore-eos", NULL, "go on past the end-of-text token", CLI_TRUE, AT(ignore_eos), 0, 0},
    {"-sp --special", NULL, "print special tokens as text", CLI_TRUE, AT(special), 0, 0},
    {0}};

static const struct cli_flag system_flags[] = {
    {"-sys --system-prompt", "TEXT", "the system message", CLI_STR, AT(system), 0, 0},
    {0}};

static const struct cli_flag output_flags[] = {
    {"-o --output", "FILE", "where the result goes", CLI_STR, AT(output), 0, 0},
    {0}};

static const struct cli_flag json_flags[] = {
    {"--json", NULL, "print JSON", CLI_TRUE, AT(json), 0, 0},
    {0}};

#define PLACED "the plan places weights by --mem and --vram"
#define NOT_MAPPED "weights are read into memory of their own, the file is never mapped"
static const struct cli_flag note_flags[] = {
    {"-ngl --gpu-layers --n-gpu-layers", "N", PLACED, CLI_NOTE, 0, 0, 0},
    {"-fa --flash-attn", "[X]", "attention always runs in blocks and never stores its scores",
     CLI_NOTE, 0, 0, 0},
    {"--mmap --no-mmap", NULL, NOT_MAPPED, CLI_NOTE, 0, 0, 0},
    {"--mlock", NULL, NOT_MAPPED, CLI_NOTE, 0, 0, 0},
    {"-cmoe --cpu-moe", NULL, PLACED, CLI_NOTE, 0, 0, 0},
    {"-ncmoe --n-cpu-moe", "N", PLACED, CLI_NOTE, 0, 0, 0},
    {"-ot --override-tensor", "PATTERN", PLACED, CLI_NOTE, 0, 0, 0},
    {"-fit --fit", "[X]", "the plan always fits the budget of --mem, or says what would", CLI_NOTE,
     0, 0, 0},
    {"-fitt --fit-target", "N", "the plan always fits the budget of --mem", CLI_NOTE, 0, 0, 0},
    {"-fitc --fit-ctx", "N", "-c sets the context", CLI_NOTE, 0, 0, 0},
    {"-ts --tensor-split", "LIST", PLACED, CLI_NOTE, 0, 0, 0},
    {"-sm --split-mode", "MODE", PLACED, CLI_NOTE, 0, 0, 0},
    {"-mg --main-gpu", "N", PLACED, CLI_NOTE, 0, 0, 0},
    {"-nkvo --no-kv-offload --kv-offload", NULL, PLACED, CLI_NOTE, 0, 0, 0},
    {"-tb --threads-batch", "N", "-t sets the threads of prompts as well", CLI_NOTE, 0, 0, 0},
    {"--numa", "TYPE", "threads keep the cores the system gives them", CLI_NOTE, 0, 0, 0},
    {"--warmup --no-warmup", NULL, "no warm-up run is needed", CLI_NOTE, 0, 0, 0},
    {"--jinja --no-jinja", NULL, "chats always use the chat template", CLI_NOTE, 0, 0, 0},
    {"-cnv --conversation -no-cnv --no-conversation", NULL,
     "`tessera chat` converses (-st: one answer), `tessera run` completes", CLI_NOTE, 0, 0, 0},
    {"--color --colors", "[X]", "colours are used on a terminal, unless NO_COLOR is set", CLI_NOTE,
     0, 0, 0},
    {"-no-display-prompt --no-display-prompt", NULL, "only the generated text is printed",
     CLI_NOTE, 0, 0, 0},
    {"--keep --n-keep", "N", "a full context is an error, nothing is shifted out", CLI_NOTE, 0, 0,
     0},
    {"--no-context-shift --context-shift", NULL,
     "a full context is an error, nothing is shifted out", CLI_NOTE, 0, 0, 0},
    {"-no-perf --no-perf --perf", NULL, "speeds are one line on stderr", CLI_NOTE, 0, 0, 0},
    {0}};

static const struct group groups[] = {
    {CLI_PROMPT, "prompt", prompt_flags},      {CLI_SYSTEM, "chat", system_flags},
    {CLI_GENERATE, "answer", generate_flags},  {CLI_OUTPUT, "output", output_flags},
    {CLI_JSON, "output", json_flags},          {CLI_MODEL, "model", model_flags},
    {CLI_THREADS, "machine", threads_flags},   {CLI_MODEL, NULL, note_flags},
};
enum { N_GROUPS = sizeof groups / sizeof groups[0] };

struct cli_args cli_defaults(void)
{
    struct tessera_options o = tessera_defaults();
    return (struct cli_args){
        .batch = 2048, .ubatch = o.n_ubatch > 0 ? o.n_ubatch : 512, .kv_k = -1, .kv_v = -1,
        .escape = true, .n_predict = -1, .seed = -1,
        .temp = -1, .top_k = -1, .top_p = -1, .min_p = -1,
        .repeat_penalty = 1, .repeat_last_n = 64, .n_sessions = 1, .n_logits = 1,
    };
}

/* ---- messages ---- */

int cli_usage(const char *cmd, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "tessera %s: ", cmd);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n(`tessera %s --help` lists the flags)\n", cmd);
    va_end(ap);
    return CLI_USAGE;
}

/* Edit distance with adjacent swaps, case-insensitive; both words shorter than 64. */
static int distance(const char *a, const char *b)
{
    int d[3][64];
    int n = (int)strlen(b), m = (int)strlen(a);
    if (n > 62 || m > 62) return 99;
    for (int j = 0; j <= n; j++) d[0][j] = j;
    for (int i = 1; i <= m; i++) {
        int *row = d[i % 3], *up = d[(i - 1) % 3], *up2 = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int ca = tolower((unsigned char)a[i - 1]), cb = tolower((unsigned char)b[j - 1]);
            int best = up[j - 1] + (ca != cb);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                up2[j - 2] + 1 < best)
                best = up2[j - 2] + 1;
            row[j] = best;
        }
    }
    return d[m % 3][n];
}

/* How far two words may differ to be taken for a slip of the finger. */
static int tolerance(const char *word)
{
    size_t n = strlen(word);
    return n <= 3 ? 1 : n <= 6 ? 2 : 3;
}

const char *cli_nearest(const char *word, const char *const *list)
{
    const char *best = NULL;
    int limit = tolerance(word) + 1;
    for (; *list; list++) {
        int d = distance(word, *list);
        /* Unfinished words count as near: "/reg" means "/regen". */
        if (strlen(word) >= 3 && !strncmp(word, *list, strlen(word))) d = 1;
        if (d < limit) {
            limit = d;
            best = *list;
        }
    }
    return best;
}

/* ---- numbers ---- */

bool cli_parse_int(const char *text, int64_t lo, int64_t hi, int64_t *out)
{
    char *end;
    if (!*text || isspace((unsigned char)*text)) return false;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || *end || v < lo || v > hi) return false;
    *out = v;
    return true;
}

bool cli_parse_float(const char *text, double lo, double hi, double *out)
{
    char *end;
    if (!*text || isspace((unsigned char)*text)) return false;
    errno = 0;
    double v = strtod(text, &end);
    if (errno == ERANGE || *end || !isfinite(v) || v < lo || v > hi) return false;
    *out = v;
    return true;
}

/* What 100 % means: physical memory or the cgroup's limit. */
static uint64_t memory_whole(void)
{
    struct machine m;
    memset(&m, 0, sizeof m);
    machine_memory(&m, NULL);
    return m.cgroup_limit < m.ram_bytes ? m.cgroup_limit : m.ram_bytes;
}

/* The factor of a unit, 0 when there is no such unit. */
static double unit_factor(const char *u)
{
    static const char letters[] = "KMGT";
    if (!*u || !strcasecmp(u, "B")) return 1;
    const char *at = strchr(letters, toupper((unsigned char)*u));
    if (!at) return 0;
    int power = (int)(at - letters) + 1;
    if (!u[1] || !strcasecmp(u + 1, "iB")) return pow(1024, power);
    if (!strcasecmp(u + 1, "B")) return pow(1000, power);
    return 0;
}

bool cli_parse_size(const char *text, uint64_t *out)
{
    if (!strcasecmp(text, "auto")) {
        *out = 0;
        return true;
    }
    if (!isdigit((unsigned char)*text) && *text != '.') return false;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) return false;
    char *end;
    double v = strtod(text, &end), factor;
    if (!strcmp(end, "%")) {
        if (v > 100) return false;
        factor = (double)memory_whole() / 100;
    } else {
        factor = unit_factor(end);
    }
    v *= factor;
    if (!(v >= 1) || v >= 0x1p62) return false;
    *out = (uint64_t)v;
    return true;
}

bool cli_parse_ids(const char *text, int32_t **out, int *n, char *why, size_t cap)
{
    size_t room = strlen(text) / 2 + 1;
    int32_t *ids = malloc(room * sizeof *ids);
    *out = NULL;
    *n = 0;
    if (!ids) return snprintf(why, cap, "no memory for the ids"), false;
    const char *p = text;
    for (;;) {
        char *end;
        errno = 0;
        long long v = strtoll(p, &end, 10);
        if (end == p || errno || v < 0 || v > INT32_MAX) {
            (void)snprintf(why, cap, "token ids are numbers with commas between, like 1,2,3; got "
                           "'%.20s' at character %zu", p, (size_t)(p - text) + 1);
            free(ids);
            *n = 0;
            return false;
        }
        ids[(*n)++] = (int32_t)v;
        p = end + strspn(end, " \t\r\n");
        if (!*p) break;
        if (*p == ',') p++;
    }
    *out = ids;
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

size_t cli_unescape(char *s)
{
    static const char from[] = "nrt'\"\\", to[] = "\n\r\t'\"\\";
    char *w = s;
    for (const char *r = s; *r; r++) {
        const char *at = *r == '\\' && r[1] ? strchr(from, r[1]) : NULL;
        if (at) {
            *w++ = to[at - from];
            r++;
        } else if (*r == '\\' && r[1] == 'x' && hex_digit(r[2]) >= 0 && hex_digit(r[3]) >= 0) {
            *w++ = (char)(hex_digit(r[2]) * 16 + hex_digit(r[3]));
            r += 3;
        } else {
            *w++ = *r;
        }
    }
    *w = 0;
    return (size_t)(w - s);
}

/* ---- finding a flag ---- */

/* Is word one of the blank-separated names? */
static bool names_has(const char *names, const char *word, size_t n)
{
    for (const char *p = names; *p;) {
        size_t len = strcspn(p, " ");
        if (len == n && !memcmp(p, word, n)) return true;
        p += len + strspn(p + len, " ");
    }
    return false;
}

static const struct cli_flag *table_find(const struct cli_flag *t, const char *word, size_t n)
{
    for (; t && t->names; t++)
        if (names_has(t->names, word, n)) return t;
    return NULL;
}

/* The flag called word[n]; *own tells which base its offset counts from. */
static const struct cli_flag *find_flag(const struct cli_spec *spec, const char *word, size_t n,
                                        bool *own)
{
    const struct cli_flag *f = table_find(spec->own, word, n);
    *own = f != NULL;
    for (int i = 0; !f && i < N_GROUPS; i++)
        if (spec->groups & groups[i].mask) f = table_find(groups[i].flags, word, n);
    return f;
}

/* Keeps the nearer of *best and the names of one table. */
static void table_nearest(const struct cli_flag *t, const char *word, char best[64], int *limit)
{
    for (; t && t->names; t++) {
        for (const char *p = t->names; *p;) {
            char name[64];
            size_t len = strcspn(p, " ");
            (void)snprintf(name, sizeof name, "%.*s", (int)len, p);
            int d = distance(word, name);
            size_t common = strlen(word) < len ? strlen(word) : len;
            if (common >= 4 && !strncmp(word, name, common)) d = 1;
            if (d < *limit) {
                *limit = d;
                memcpy(best, name, sizeof name);
            }
            p += len + strspn(p + len, " ");
        }
    }
}

static int unknown_flag(const struct cli_spec *spec, const char *arg)
{
    char word[64], best[64] = "", dashes[66];
    (void)snprintf(word, sizeof word, "%.*s", (int)strcspn(arg, "="), arg);
    int limit = tolerance(word + strspn(word, "-")) + 1;
    table_nearest(spec->own, word, best, &limit);
    for (int i = 0; i < N_GROUPS; i++)
        if (spec->groups & groups[i].mask) table_nearest(groups[i].flags, word, best, &limit);
    if (*best) return cli_usage(spec->name, "unknown flag %s; did you mean %s?", word, best);
    /* -prompt for --prompt */
    bool own;
    (void)snprintf(dashes, sizeof dashes, "-%s", word);
    if (find_flag(spec, dashes, strlen(dashes), &own))
        return cli_usage(spec->name, "unknown flag %s; did you mean %s?", word, dashes);
    for (int i = 0; i < N_GROUPS; i++)
        if (table_find(groups[i].flags, word, strlen(word)))
            return cli_usage(spec->name, "%s is a flag of other commands, not of this one", word);
    return cli_usage(spec->name, "unknown flag %s", word);
}

/* ---- setting a value ---- */

/* "42", not "42.000000". */
static const char *bound(double v, char buf[32])
{
    (void)snprintf(buf, 32, "%.10g", v);
    return buf;
}

static int bad_number(const char *cmd, const char *name, const struct cli_flag *f, const char *v)
{
    char lo[32], hi[32];
    const char *what = f->kind == CLI_F32 ? "a number" : "a whole number";
    if (!f->lo && !f->hi) return cli_usage(cmd, "%s wants %s, not '%s'", name, what, v);
    if (f->hi >= INT_MAX)
        return cli_usage(cmd, "%s wants %s, %s or more, not '%s'", name, what, bound(f->lo, lo), v);
    return cli_usage(cmd, "%s wants %s from %s to %s, not '%s'", name, what, bound(f->lo, lo),
                     bound(f->hi, hi), v);
}

static int set_number(const char *cmd, const char *name, const struct cli_flag *f, const char *v,
                      void *at)
{
    bool any = !f->lo && !f->hi;
    int64_t i;
    double x;
    if (f->kind == CLI_F32) {
        if (!cli_parse_float(v, any ? -HUGE_VAL : f->lo, any ? HUGE_VAL : f->hi, &x))
            return bad_number(cmd, name, f, v);
        *(float *)at = (float)x;
        return CLI_GO_ON;
    }
    int64_t most = f->kind == CLI_INT ? INT_MAX : INT64_MAX;
    if (!cli_parse_int(v, any ? -most : (int64_t)f->lo, any ? most : (int64_t)f->hi, &i))
        return bad_number(cmd, name, f, v);
    if (f->kind == CLI_INT)
        *(int *)at = (int)i;
    else
        *(int64_t *)at = i;
    return CLI_GO_ON;
}

static int set_kvtype(const char *cmd, const char *name, const char *v, void *at)
{
    if (!strcasecmp(v, "f16"))
        *(int *)at = TESSERA_KV_F16;
    else if (!strcasecmp(v, "q8_0"))
        *(int *)at = TESSERA_KV_Q8_0;
    else
        return cli_usage(cmd, "%s knows f16 and q8_0, not '%s'", name, v);
    return CLI_GO_ON;
}

static int append(const char *cmd, const char *name, const char *v, struct cli_list *list)
{
    if (!*v) return cli_usage(cmd, "%s wants some text", name);
    if (list->n == CLI_LIST_MAX)
        return cli_usage(cmd, "%s may be given %d times at most", name, CLI_LIST_MAX);
    list->at[list->n++] = v;
    return CLI_GO_ON;
}

/* Stores v; CLI_GO_ON or CLI_USAGE. */
static int set_value(const struct cli_spec *spec, const struct cli_flag *f, bool own,
                     const char *name, const char *v, struct cli_args *a)
{
    void *at = (char *)(own ? spec->own_base : (void *)a) + f->offset;
    switch (f->kind) {
    case CLI_STR: *(const char **)at = v; return CLI_GO_ON;
    case CLI_TRUE: *(bool *)at = true; return CLI_GO_ON;
    case CLI_FALSE: *(bool *)at = false; return CLI_GO_ON;
    case CLI_INT:
    case CLI_I64:
    case CLI_F32: return set_number(spec->name, name, f, v, at);
    case CLI_KVTYPE: return set_kvtype(spec->name, name, v, at);
    case CLI_SIZE:
        if (cli_parse_size(v, at)) return CLI_GO_ON;
        return cli_usage(spec->name, "%s wants a size like 8G, 8GiB, 8192M, 50%% or auto, not '%s'",
                         name, v);
    case CLI_LIST: return append(spec->name, name, v, at);
    case CLI_NOTE: fprintf(stderr, "tessera: %s is not needed: %s\n", name, f->help);
    }
    return CLI_GO_ON;
}

/* ---- --help ---- */

static void help_flag(const struct cli_flag *f)
{
    char left[80];
    size_t n = 0;
    for (const char *p = f->names; *p;) {
        size_t len = strcspn(p, " ");
        n += (size_t)snprintf(left + n, sizeof left - n, "%s%.*s", n ? ", " : "", (int)len, p);
        p += len + strspn(p + len, " ");
    }
    if (f->arg) (void)snprintf(left + n, sizeof left - n, " %s", f->arg);
    printf("  %-30s", left);
    int column = 32;
    if (strlen(left) > 29) column = 100; /* help goes below */
    for (const char *p = f->help; *p;) {
        int len = (int)strcspn(p, " ");
        if (column + 1 + len > 99) column = printf("\n%32s", "") - 1;
        column += printf(" %.*s", len, p);
        p += len + (p[len] == ' ');
    }
    printf("\n");
}

static void help_table(const struct cli_spec *spec, const struct group *g)
{
    bool own, titled = false;
    for (const struct cli_flag *f = g->flags; f && f->names; f++) {
        size_t len = strcspn(f->names, " ");
        if (!f->help || (g->flags != spec->own && find_flag(spec, f->names, len, &own) != f))
            continue;
        if (!titled) printf("\n%s:\n", g->title);
        titled = true;
        help_flag(f);
    }
}

static void help_notes(void)
{
    int column = printf("\nllama.cpp's flags that change nothing here (one line says why):");
    printf("\n ");
    column = 1;
    for (const struct cli_flag *f = note_flags; f->names; f++) {
        int len = (int)strcspn(f->names, " ");
        if (column + 1 + len > 98) column = printf("\n ") - 1;
        column += printf(" %.*s", len, f->names);
    }
    printf("\n");
}

static int help(const struct cli_spec *spec)
{
    const struct cli_command *c = cli_command(spec->name);
    printf("tessera %s %s\n%s\n", spec->name, c ? c->args : "", c ? c->help : "");
    struct group own = {0, "flags", spec->own};
    help_table(spec, &own);
    for (int i = 0; i < N_GROUPS; i++)
        if (groups[i].title && spec->groups & groups[i].mask) help_table(spec, &groups[i]);
    if (spec->groups & CLI_MODEL) help_notes();
    if (spec->footer) printf("\n%s", spec->footer);
    return CLI_OK;
}

/* ---- parsing ---- */

/* Does an optional argument follow? */
static bool is_switch_word(const char *s)
{
    static const char *const words[] = {"on", "off", "auto", "always", "never", "0", "1", NULL};
    for (int i = 0; s && words[i]; i++)
        if (!strcmp(s, words[i])) return true;
    return false;
}

/* One flag at argv[*i]; moves *i over its argument. */
static int parse_flag(const struct cli_spec *spec, int argc, char **argv, int *i,
                      struct cli_args *a)
{
    const char *arg = argv[*i], *eq = strncmp(arg, "--", 2) ? NULL : strchr(arg, '=');
    size_t len = eq ? (size_t)(eq - arg) : strlen(arg);
    char name[64];
    bool own;
    const struct cli_flag *f = find_flag(spec, arg, len, &own);
    if (!f) return unknown_flag(spec, arg);
    (void)snprintf(name, sizeof name, "%.*s", (int)len, arg);
    const char *value = eq ? eq + 1 : NULL;
    if (!f->arg) {
        if (eq) return cli_usage(spec->name, "%s takes no value", name);
    } else if (f->arg[0] == '[') {
        if (!eq && *i + 1 < argc && is_switch_word(argv[*i + 1])) value = argv[++*i];
    } else if (!eq) {
        if (*i + 1 >= argc) return cli_usage(spec->name, "%s wants a value: %s", name, f->arg);
        value = argv[++*i];
    }
    return set_value(spec, f, own, name, value, a);
}

/* What only shows when all flags are known. */
static int check(const struct cli_spec *spec, struct cli_args *a)
{
    if (a->n_pos < spec->min_pos) {
        const struct cli_command *c = cli_command(spec->name);
        return cli_usage(spec->name, "something is missing: tessera %s %s", spec->name,
                         c ? c->args : "");
    }
    if (spec->model_pos && !a->model && a->n_pos) a->model = a->pos[0];
    if (spec->groups & CLI_MODEL && !spec->model_optional && (!a->model || !*a->model))
        return cli_usage(spec->name, "which model? -m FILE.gguf");
    if (a->kv_k < 0 && a->kv_v < 0) a->kv_k = (int)tessera_defaults().kv;
    if (a->kv_k < 0) a->kv_k = a->kv_v;
    if (a->kv_v < 0) a->kv_v = a->kv_k;
    if (a->kv_k != a->kv_v)
        return cli_usage(spec->name, "keys and values have one type here: give -ctk and -ctv the "
                                     "same");
    if (a->batch < a->ubatch) a->ubatch = a->batch;
    if (a->threads < 0) a->threads = 0;
    if (a->prompt && a->file && spec->groups & CLI_PROMPT)
        return cli_usage(spec->name, "-p and -f both name a prompt: give one");
    if (a->device && strcmp(a->device, "cuda") && strcmp(a->device, "auto") &&
        strcmp(a->device, "sim") && strcmp(a->device, "none"))
        return cli_usage(spec->name, "-dev %s: this version knows the devices cuda, auto, sim and none",
                         a->device);
    if (a->routing && strcmp(a->routing, "own") && strcmp(a->routing, "expert-choice"))
        return cli_usage(spec->name, "--routing %s: own and expert-choice are known", a->routing);
    const bool by_experts = a->routing && strcmp(a->routing, "own");
    if (a->deterministic && (by_experts || a->approximate))
        return cli_usage(spec->name, "--deterministic refuses what is lossy: %s", by_experts ?
                         "--routing expert-choice" : "--approximate");
    if (!cli_alg_known(a->alg))
        return cli_usage(spec->name, "--alg %s: low_confidence, random, origin, maskgit_plus, "
                         "topk_margin and entropy are known", a->alg);
    if (!cli_cache_known(a->cache))
        return cli_usage(spec->name, "--cache %s: none, prefix and dual are known", a->cache);
    if (a->vram && (!a->device || !strcmp(a->device, "none")) && spec->groups & CLI_MODEL)
        fprintf(stderr, "tessera: --vram is ignored: no device was named (-dev)\n");
    return CLI_GO_ON;
}

int cli_parse(const struct cli_spec *spec, int argc, char **argv, struct cli_args *a)
{
    bool flags = true;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        int rc = CLI_GO_ON;
        if (flags && !strcmp(arg, "--")) {
            flags = false;
        } else if (flags && (!strcmp(arg, "-h") || !strcmp(arg, "--help"))) {
            return help(spec);
        } else if (flags && arg[0] == '-' && arg[1]) {
            rc = parse_flag(spec, argc, argv, &i, a);
        } else if (a->n_pos >= spec->max_pos || a->n_pos == CLI_POS) {
            rc = cli_usage(spec->name, "'%s' belongs to no flag", arg);
        } else {
            a->pos[a->n_pos++] = arg;
        }
        if (rc != CLI_GO_ON) return rc;
    }
    return check(spec, a);
}
