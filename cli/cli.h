/* What the subcommands share: the command table, option parsing, opening a model, output, signals.
 *
 * A command is `int cmd_foo(int argc, char **argv)` with argv[0] = "foo"; it returns the exit code.
 * The shape of every command:
 *
 *     int cmd_foo(int argc, char **argv)
 *     {
 *         struct foo_args own = {.depth = 3};
 *         static const struct cli_flag flags[] = {
 *             {"-r --repetitions", "N", "how often (default 5)", CLI_INT,
 *              offsetof(struct foo_args, reps), 1, 1000},
 *             {0}};
 *         struct cli_args a = cli_defaults();
 *         struct cli_spec spec = {
 *             .name = "foo", .groups = CLI_MODEL, .own = flags, .own_base = &own};
 *         int rc = cli_parse(&spec, argc, argv, &a);
 *         if (rc != CLI_GO_ON) return rc;                    // --help printed, or a usage error
 *         tessera_engine *e;
 *         if ((rc = cli_open_engine(&a, &e))) return rc;     // message printed, 1, 3 or 130
 *         ...
 *         if (step fails) { cli_close_engine(e); return cli_fail(&err); }
 *         cli_close_engine(e);
 *         return CLI_OK;
 *     }
 *
 * Results go to stdout (printf is fine: main checks the stream at the end), everything else to
 * stderr.  Not thread-safe; no state but what the SIGINT handler needs (cli/ui.c). */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "moe/tessera.h"

/* ---- exit codes and commands (main.c) ---- */

enum {
    CLI_OK = 0,
    CLI_ERROR = 1,       /* something went wrong while running */
    CLI_USAGE = 2,       /* wrong before any file was opened */
    CLI_BUDGET = 3,      /* does not fit the memory budget */
    CLI_INTERRUPTED = 130,
    CLI_GO_ON = -1,      /* cli_parse: nothing to report, go on */
};

struct cli_command {
    const char *name;
    const char *args; /* "-m F -p TEXT [-n N]" */
    const char *help; /* one line */
    int (*fn)(int argc, char **argv);
};

int cmd_chat(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_logits(int argc, char **argv);
int cmd_perplexity(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_imatrix(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_stack(int argc, char **argv);
int cmd_trace(int argc, char **argv);
int cmd_replay(int argc, char **argv);
int cmd_oracle(int argc, char **argv);

/* The row of a command, NULL when there is none. */
const struct cli_command *cli_command(const char *name);

/* ---- options (args.c) ---- */

enum { CLI_LIST_MAX = 64, CLI_POS = 8 };

/* Values of a flag that may be given several times. */
struct cli_list {
    const char *at[CLI_LIST_MAX];
    int n;
};

/* Values of the common flags.  What a command does not list in its groups keeps its default. */
struct cli_args {
    /* CLI_MODEL */
    const char *model;        /* -m */
    int threads;              /* -t; 0 = automatic */
    int ctx;                  /* -c; 0 = automatic */
    int batch, ubatch;        /* -b, -ub; after parsing ubatch is the smaller of the two */
    int kv_k, kv_v;           /* -ctk, -ctv: enum tessera_kv; equal after parsing */
    uint64_t mem;             /* --mem; bytes, 0 = automatic */
    uint64_t vram;            /* --vram; bytes, 0 = automatic */
    const char *device;       /* -dev: "cuda", "auto", "sim", "none"; NULL = none */
    const char *pack;         /* --pack */
    const char *machine;      /* --machine */
    const char *policy, *predictor; /* --policy, --predictor */
    const char *routes;       /* --routes */
    const char *routing;      /* --routing: "own", "expert-choice"; NULL = own */
    const char *forecasters, *approximate; /* --forecasters, --approximate */
    bool analyze, deterministic;
    /* CLI_PROMPT */
    const char *prompt;       /* -p; "-" = stdin */
    const char *file;         /* -f */
    bool escape;              /* \n, \t ... in -p, -sys and stops become what they mean */
    /* CLI_GENERATE */
    int n_predict;            /* -n; -1 = until it ends, -2 = until the context is full */
    int64_t seed;             /* -s; -1 = a random one */
    int loops;                /* --loops; 0 = all */
    float exit_at;            /* --exit; 0 = the file's */
    bool exit_weighted, depth_exact;
    /* Negative until cli_sampling_of has seen the model, when no flag was given. */
    float temp, top_p, min_p, repeat_penalty;
    int top_k, repeat_last_n;
    int steps, block;         /* --steps, --block; 0 = the model's */
    float threshold, guidance, alg_temp;
    const char *alg, *cache;  /* --alg, --cache; NULL = the model's; none */
    bool ignore_eos, special; /* special: print special tokens as text */
    struct cli_list stops;
    /* CLI_SYSTEM */
    const char *system;       /* -sys */
    /* CLI_OUTPUT */
    const char *output;       /* -o */
    /* CLI_JSON */
    bool json;                /* --json */
    /* positional arguments */
    const char *pos[CLI_POS];
    int n_pos;
    /* set by the command before cli_open_engine, not by flags */
    int n_sessions;           /* default 1 */
    int n_logits;             /* rows with logits per step, default 1 */
    bool header_only;         /* plan without reading the weights */
    bool background;          /* they are read while the command goes on */
    bool quiet_open;          /* no model line on stderr (warnings and errors stay) */
    bool raw_text;            /* -f and -p - keep their last line end (llama.cpp drops one) */
};

struct cli_args cli_defaults(void);

enum cli_group {
    CLI_MODEL = 1,     /* -m -t -c -b -ub -ctk -ctv --mem --vram ... and llama.cpp's device flags */
    CLI_PROMPT = 2,    /* -p -f -e --no-escape */
    CLI_GENERATE = 4,  /* -n -s --temp ... -r */
    CLI_SYSTEM = 8,    /* -sys */
    CLI_OUTPUT = 16,   /* -o */
    CLI_JSON = 32,     /* --json */
    CLI_THREADS = 64,  /* -t alone, for a command without a model */
};

enum cli_kind {
    CLI_STR,      /* const char * */
    CLI_INT,      /* int in lo..hi */
    CLI_I64,      /* int64_t in lo..hi */
    CLI_F32,      /* float in lo..hi */
    CLI_TRUE,     /* bool, no argument: true */
    CLI_FALSE,    /* bool, no argument: false */
    CLI_SIZE,     /* uint64_t bytes: 8G 8GiB 8192M 50% auto (0) */
    CLI_KVTYPE,   /* int, an enum tessera_kv: f16 q8_0 */
    CLI_LIST,     /* appended to a struct cli_list; not empty */
    CLI_NOTE,     /* accepted and ignored: help is the line that says what happens instead;
                     arg "[X]" = takes an argument only when the next word is on, off, auto, 0, 1 */
};

struct cli_flag {
    const char *names; /* "-m --model", separated by blanks; NULL ends a table */
    const char *arg;   /* "FILE"; NULL = takes no argument */
    const char *help;  /* NULL = accepted, but not listed by --help */
    enum cli_kind kind;
    size_t offset;     /* of the value, in struct cli_args or below own_base */
    double lo, hi;     /* both 0 = any */
};

struct cli_spec {
    const char *name;           /* as in the command table */
    unsigned groups;            /* or of enum cli_group */
    const struct cli_flag *own; /* flags of this command only; they hide common ones; may be NULL */
    void *own_base;
    int min_pos, max_pos;       /* positional arguments */
    bool model_pos;             /* the first positional argument is the model when -m is absent */
    bool model_optional;        /* do not insist on -m */
    const char *footer;         /* printed below the flags by --help; may be NULL */
};

/* Parses; a note or an error goes to stderr, --help to stdout.  CLI_GO_ON, or the exit code. */
int cli_parse(const struct cli_spec *spec, int argc, char **argv, struct cli_args *a);

/* Prints "tessera CMD: message" and a pointer to --help; returns CLI_USAGE. */
int cli_usage(const char *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* `8G` `8GiB` `8192M` `1.5G` `512K` `4096` (bytes) `8GB` (powers of ten) `50%` `auto` (0). */
bool cli_parse_size(const char *text, uint64_t *out);
/* Whole text is one number in lo..hi. */
bool cli_parse_int(const char *text, int64_t lo, int64_t hi, int64_t *out);
bool cli_parse_float(const char *text, double lo, double hi, double *out);
/* "1,2,3" (blanks and line ends allowed) to a malloc'd array; false and a message in why. */
bool cli_parse_ids(const char *text, int32_t **out, int *n, char *why, size_t cap);
/* The name in list (NULL-ended) that is nearest to word, NULL when none is near. */
const char *cli_nearest(const char *word, const char *const *list);
/* Turns \n \r \t \\ \" \' \xHH into bytes, in place; returns the new length. */
size_t cli_unescape(char *s);

/* ---- models, prompts, text (open.c) ---- */

/* Options as tessera_open wants them. */
struct tessera_options cli_engine_options(const struct cli_args *a);

/* Opens the model of a->model with a progress bar (only when stderr is a terminal), prints its
 * warnings and one line about it.  0, or the exit code after printing the message. */
int cli_open_engine(const struct cli_args *a, tessera_engine **out);

/* Warnings that were raised since the last call; closing prints them, too. */
void cli_print_warnings(const tessera_engine *e);
void cli_close_engine(tessera_engine *e);
/* The one line: name, architecture, context, memory. */
void cli_print_model(const tessera_engine *e, const struct cli_args *a);

/* Prints "tessera: message" with a hint and returns the exit code that belongs to the error. */
int cli_fail(const struct err *e);
int cli_exit_code(enum status s);

/* The prompt of -p (escapes resolved), -p - (stdin) or -f FILE, malloc'd, terminated, any bytes.
 * One line end at the end of a file or of stdin is dropped unless a->raw_text.  ERR_USAGE when
 * none is given, ERR_IO otherwise. */
enum status cli_read_prompt(const struct cli_args *a, char **text, size_t *n, struct err *e);
/* A whole file ("-" = stdin), malloc'd and terminated. */
enum status cli_read_file(const char *path, char **text, size_t *n, struct err *e);
/* CLI_OK when a file of that name could be written (NULL: none is to be), else the exit code after a
 * message: asked before hours of work for it.  What is there stays as it is. */
int cli_can_write(const char *path);
/* Encodes to a malloc'd array; flags of tok_encode. */
enum status cli_encode(const struct tok *t, const char *text, size_t n, unsigned flags,
                       int32_t **ids, int *n_ids, struct err *e);
/* The text of -p or -f as the model's tokens, or `list`, what --ids says, when it is not NULL; malloc'd,
 * to be freed after an error, too (*ids is NULL before).  *bos: 1 when a text begins with the token that
 * all texts of the model begin with, else 0. */
enum status cli_text_ids(const tessera_engine *e, const struct cli_args *a, const char *list, bool special,
                         int32_t **ids, int *n_ids, int *bos, struct err *err);

/* Sampling options of the flags; resolves a random seed into a->seed first.  n_ctx is what
 * --repeat-last-n -1 means. */
struct tessera_sampling cli_sampling(struct cli_args *a, int n_ctx);

/* What the flags leave open, as the model is used: all of cli_sampling after an engine was opened. */
void cli_sampling_of(struct cli_args *a, const tessera_engine *e);
/* How a model that sees both sides writes, by the flags. */
struct tessera_denoising cli_denoising(const struct cli_args *a);
/* Is it NULL or one of the names of --alg, --cache? */
bool cli_alg_known(const char *name);
bool cli_cache_known(const char *name);
/* For commands about the next token: OK, or CLI_ERROR and a message for models that see both sides. */
int cli_next_tokens(const tessera_engine *e, const char *cmd);

/* Says on stderr why there is no tokenizer and what works all the same; returns CLI_ERROR. */
int cli_no_tokenizer(const tessera_engine *e, const char *instead);

/* "end", "length", "string", "full", "cancelled". */
const char *cli_stop_name(enum tessera_stop s);

/* ---- text that settles in place (canvas.c) ---- */

struct cli_canvas {
    const struct tok *tok;
    int32_t mask;
    int width, height, column; /* of the terminal; where what was printed for good ends */
    int below;                 /* lines that the rest goes on below that */
    bool on, shown;
};

/* False, and the others do nothing, when stdout is no terminal that can do this. */
bool cli_canvas_open(struct cli_canvas *c, const struct tok *tok, int32_t mask);
/* Takes the rest away; then text may be printed, which is said. */
void cli_canvas_wipe(struct cli_canvas *c);
void cli_canvas_printed(struct cli_canvas *c, const char *text, size_t n);
/* Writes the tokens behind it. */
void cli_canvas_show(struct cli_canvas *c, const int32_t *ids, int n);

/* ---- batches (run_batch.c) ---- */

/* `run --batch FILE`: the whole command; a holds the defaults of every line. */
int run_batch(struct cli_args *a, const char *file, int parallel);

/* ---- terminal, output, signals (ui.c) ---- */

bool cli_tty(FILE *f);
/* Escape sequences for stderr: "" when it is no terminal, TERM is dumb or NO_COLOR is set. */
const char *cli_dim(void);
const char *cli_bold(void);
const char *cli_plain(void);
/* "35 MiB", "6.2 GiB". */
const char *cli_bytes(uint64_t n, char buf[24]);
/* "8.1 M", "30.5 B". */
const char *cli_count(uint64_t n, char buf[24]);
void cli_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Writes a progress line with bytes over itself on stderr; for tessera_options.progress.  Draws
 * only on a terminal; returns false after SIGINT. */
struct cli_progress {
    const char *label;
    double started, drawn;
    bool shown;
};
bool cli_progress(void *arg, uint64_t done_bytes, uint64_t total_bytes);
void cli_progress_end(struct cli_progress *p);
/* How deep tokens went and what that saved, in lines of /stats; nothing where there is no such thing.
 * seconds: spent on steps so far, 0 = not known. */
void cli_print_depth(const tessera_engine *e, double seconds);
/* "12 + 87 tokens, 410 / 95 tokens/s, 35 MiB" on stderr, dimmed; more is added when not "". */
void cli_print_speed(const struct tessera_timing *t, const tessera_engine *e, const char *more);
/* What residency and reading ahead did; label: how wide the first column is.  Nothing when all experts
 * are in memory. */
void cli_print_ahead(const tessera_engine *e, int label);

/* Writes to stdout and flushes.  False when nobody can read it any more: stop, then return
 * cli_finish_stdout(rc). */
bool cli_out(const void *bytes, size_t n);
/* Flushes stdout: rc when all was written; CLI_OK when the reader closed the pipe (quietly);
 * CLI_ERROR with a message when the disk is full or the like. */
int cli_finish_stdout(int rc);

/* SIGINT: from cli_catch_interrupts() on it sets a flag and cancels the engine named by
 * cli_interrupt_target (NULL = none); the third in a row without an answer ends the process. */
void cli_catch_interrupts(void);
void cli_interrupt_target(tessera_engine *e);
bool cli_interrupted(void);
/* For poll(): readable while cli_interrupted().  -1 = none, and poll() takes that. */
int cli_interrupt_fd(void);
void cli_clear_interrupt(void);

/* Prints what can be opened as a Markdown table (`tessera help support`). */
int cli_print_support(void);

#endif
