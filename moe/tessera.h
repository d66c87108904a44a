/* Tessera: public API.
 *
 *   engine     a loaded model: weights, plans, threads, the memory ledger
 *   session    one timeline of tokens: its KV cache, its tokens, its marks
 *   step       advances a batch of sessions by some tokens each; yields logits
 *   generator  turns logits into text above the step: prompt, sampling, stop rules
 *
 *     struct tessera_options o = tessera_defaults();
 *     o.model_path = "model.gguf";
 *     tessera_engine *e;  tessera_session *s;
 *     if (tessera_open(&o, &e, &err)) ...            // err.msg says what, where, what to do
 *     if (tessera_session_open(e, 0, &s, &err)) ...
 *     struct tessera_input in = {.session = s, .ids = ids, .n = n, .logits = TESSERA_LOGITS_LAST};
 *     if (tessera_step(e, &in, 1, &err)) ...
 *     const float *logits = tessera_logits(e, 0, n - 1);   // [n_vocab]
 *
 * Threads: an engine and all its sessions are used by one thread at a time; different engines are
 * independent.  tessera_cancel() alone may be called from any thread or signal handler.
 * Errors: every fallible call returns enum status (0 = OK) and records the first failure in *err.
 * After a failed step the sessions named in it are as they were before it.
 * Arithmetic: same weights, same tokens: bit-equal logits for prefill in any split, decode, any
 * batch, any number of threads, any instruction tier (quant/README.md). */
#ifndef TESSERA_H
#define TESSERA_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe/base/err.h"

#define TESSERA_VERSION "0.1.0"

typedef struct tessera_engine tessera_engine;
typedef struct tessera_session tessera_session;
typedef struct tessera_generator tessera_generator;
struct tok;  /* moe/load/tok.h */
struct gguf; /* moe/load/gguf.h */
struct obs;  /* moe/run/obs.h */
struct osfile_ops; /* moe/base/osfile.h */
struct dev_api;    /* moe/compute/dev.h */
struct machine;    /* moe/base/machine.h */

/* ---- engine ---- */

enum tessera_kv { TESSERA_KV_F16, TESSERA_KV_Q8_0 };

struct tessera_options {
    const char *model_path;
    int n_threads;        /* 0 = one per physical core this process may use */
    int n_ctx;            /* tokens per session; 0 = the smallest of model's, what fits, 8192 */
    int n_ubatch;         /* rows computed at once; default 512 */
    /* Rows per step at most; 0 or less than n_ubatch = n_ubatch.  More of them go through the model a
     * layer at a time, in pieces of n_ubatch: where experts are on disk each is read once. */
    int n_batch;
    int n_sessions;       /* how many sessions will be open at once, for the plan; default 1 */
    int n_logits;         /* rows with logits per step that the plan has memory for; default 1 */
    enum tessera_kv kv;   /* type of K and V */
    uint64_t mem_budget;  /* bytes for the whole process, UINT64_MAX = no limit; 0 = auto */
    const struct dev_api *device; /* a second device for experts, NULL = none */
    uint64_t vram_budget; /* bytes on it for everything; 0 = auto */
    /* Called while weights are read; returns false to cancel (ERR_CANCELLED).  May be NULL. */
    bool (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes);
    void *progress_arg;
    bool header_only;     /* plan without reading weights: steps are refused */
    /* tessera_open() returns before the weights are read.  They follow while steps run, and a step
     * waits for those that it uses: it may fail as opening would have.  progress is not called.  Not
     * with a stack, whose depth must be known, nor with a device. */
    bool background;
    const struct machine *machine; /* measured speeds, for promises of time and for the device's share;
                             NULL = not known */
    const char *routes;   /* a trace of this model: promises assume such routing; NULL = what is
                             known of other models (moe/run/prior.c) */
    const struct osfile_ops *files; /* how weights are read, for tests; NULL = the system */
    bool no_uring;        /* plain reads instead of io_uring */
    /* Which experts stay when not all fit: "lrfu" (NULL), "lru", "lfu" or "plec". */
    const char *policy;
    /* What names experts before their router can: "gate" (NULL), "previous", "frequency", "none", or
     * the path of a predictor (`tessera trace --train`) or of a recorded trace (an oracle).  They are
     * read ahead only while that makes this run's tokens faster; ",always" behind the name: in any
     * case. */
    const char *predictor;
    /* Informed routing, a lossy switch: forecasters (`tessera trace --fit-forecasters`) stand in for that
     * share of feed-forwards, those that they are expected to do best; NULL = off. */
    const char *forecasters;
    float approximate;
    /* A lossy switch for models whose tokens choose experts: the rows of a prompt that run together are
     * chosen by the experts, as many by each, so that a row has n_expert_used of them on average.  Fewer
     * rows than give every expert one choose themselves: decoded tokens do, and so does the last layer's
     * part that only rows with logits go through.  What a row gets depends on its companions then. */
    bool expert_choice;
    /* Models that repeat layers; a model that cannot do what is asked for is ERR_USAGE. */
    int loops;            /* leave after so many; 0 = all */
    float exit_at;        /* rows leave when their chances to stop sum to it; 0 = as the file says */
    bool exit_weighted;   /* logits of the mean over all loops by the chance to stop at each */
    bool depth_exact;     /* recursions take their best rows of a whole text, which must be one step */
};

struct tessera_options tessera_defaults(void);

/* Opens, binds, plans and loads.  *out is NULL on failure.  The engine owns everything it opens.
 * A model without a tokenizer opens: tessera_tok() is NULL then. */
enum status tessera_open(const struct tessera_options *o, tessera_engine **out, struct err *e);
void tessera_close(tessera_engine *e);

struct tessera_model {
    const char *arch, *name;  /* borrowed from the engine; name may be "" */
    int n_layer, n_embd, n_vocab, n_ctx_train, n_expert, n_expert_used;
    int n_expert_slots;       /* that a row can have at most: more than those used where experts choose */
    uint64_t n_params, n_params_active; /* weights; per token */
    uint64_t file_bytes, weight_bytes;  /* on disk; resident */
    int n_ctx, n_threads, n_ubatch;     /* as opened */
    int n_batch;                        /* rows that a step is best given now */
    const char *cpu;                    /* instruction tier in use */
    const char *device;                 /* the second device that is in use, NULL = none */
    const char *type_label;             /* most common weight type by bytes, "Q8_0" */
    uint64_t hash;                      /* of the header: what side files are tied to */
    bool sees_both;                     /* attention looks ahead: text is denoised, not continued */
    int block;                          /* of so many positions, to whose end it looks; 0 = to the end */
    int32_t mask;                       /* the token that hides others; -1 = none is named */
    bool shifted;                       /* what is hidden at i is read from the logits at i - 1 */
};
struct tessera_model tessera_model(const tessera_engine *e);
const struct tok *tessera_tok(const tessera_engine *e);   /* NULL: none; why: see below */
const char *tessera_tok_error(const tessera_engine *e);   /* "" when there is a tokenizer */
const struct gguf *tessera_gguf(const tessera_engine *e);
/* The i-th warning (NaN weights, a device that was given up, ...), NULL past the end: most are raised
 * while opening, some by a step. */
const char *tessera_warning(const tessera_engine *e, int i);

struct tessera_memory {
    uint64_t weights, kv, activations, staging, process; /* bytes by owner; process: estimated */
    uint64_t total, peak, budget;
};
struct tessera_memory tessera_memory(const tessera_engine *e);

/* What has been moved since the model was opened, beside what the plan expected. */
struct tessera_traffic {
    uint64_t steps;
    uint64_t hits, misses;         /* experts that a step wanted and found in memory, or not */
    uint64_t bytes_read;           /* from files, the loading included */
    uint64_t evictions;
    int shrunk, grown, spilled;    /* times that an automatic budget moved; KV caches put on disk */
    uint64_t device_ran, device_sent; /* experts run on the second device; of them sent over for it */
    uint64_t device_filled, device_bytes; /* experts that came to it; bytes moved to and from it */
    uint64_t device_displaced;     /* experts that gave way to keys and values there */
    double device_seconds;         /* of its work; modelled when device_modelled says so */
    bool device_modelled;
    double waited;                 /* seconds in which nothing could be computed */
    double reading;                /* seconds in which something was being read */
    const char *policy, *predictor; /* borrowed from the engine */
    bool ahead;                    /* guesses are being read ahead: the last verdict, or always */
    int trials, trials_won;        /* comparisons with and without, in this run */
    double seconds_of[2], waited_of[2]; /* per token in the last one: without, with */
    uint64_t guessed, useful, late, cancelled; /* experts read ahead on a guess; used; of them still on
                                      their way when they were needed; taken back in time */
    uint64_t guess_bytes, useful_bytes, wasted_bytes; /* read on guesses; of them used, given up unused */
    uint64_t asked, named, missed, missed_named; /* experts wanted while there were guesses, how many
                                      of them those named; the same of what else was not in memory */
    double hit_expected;           /* of a decoded token, see tessera_options.routes */
    uint64_t token_disk_expected;  /* bytes */
    double seconds_expected[3];    /* per token: perfect overlap, none, and what is likely; 0 = rates
                                      are not known */
};
struct tessera_traffic tessera_traffic(const tessera_engine *e);

/* How deep rows went since the model was opened, in models where that depends on the row (mixture of
 * recursions; loops with an exit).  Bytes and products are of steps on row sets: what was done, and
 * what all rows at full depth would have needed more.  n_max 0: the model has no such thing. */
enum { TESSERA_DEPTH_MAX = 16 };
struct tessera_depth {
    int n_max;                     /* the deepest; 0 is a depth, too */
    bool concepts;                 /* depth 1 and more: tokens that begin one */
    uint64_t rows, rows_at[TESSERA_DEPTH_MAX + 1];
    uint64_t bytes, bytes_saved;   /* of weights */
    uint64_t macs, macs_saved;
};
struct tessera_depth tessera_depth(const tessera_engine *e);

/* What forecasters stood in for since the model was opened; share 0: informed routing is off. */
struct tessera_approx {
    double share;                  /* asked for */
    uint64_t rows, rows_on;        /* rows times feed-forwards; of those, approximated */
    uint64_t skipped;              /* feed-forwards that did not run, nor read experts */
    double kl;                     /* nats per token that were measured at this share when they were
                                      fitted; NaN = not at this one */
};
struct tessera_approx tessera_approx(const tessera_engine *e);

/* With expert_choice: rows choose their experts in any case, until it is switched off again; for
 * measuring what the switch costs. */
void tessera_own_routing(tessera_engine *e, bool on);

/* Another budget for the whole process, between two steps: shrinks or grows what of the weights is
 * in memory, never taking more than the larger of both on the way, and without a change in what the
 * model says.  0 = auto, UINT64_MAX = no limit.  ERR_BUDGET names the least that works with the
 * sessions and micro-batch as they are; nothing has changed then.  An automatic budget is watched
 * from then on: it shrinks between steps when others need the memory (KV caches of sessions that the
 * step does not use go to disk last) and grows back, see moe/run/pressure.h; a fixed one is not.
 * ERR_IO: some weights could not be read; they stay on disk, steps go on with less in memory than
 * planned, and another call tries again.  Only when nothing can be read at all, or the file has
 * changed, are steps refused, with that error, until a call succeeds. */
enum status tessera_resize(tessera_engine *e, uint64_t budget, struct err *err);

/* A stack's matrices at less than what is loaded, for measuring: at most `depth` levels of a tensor's
 * matrix (-1 = all of its matrices; tensor NULL = all tensors).  A larger depth gives levels back; the
 * next resize all of them.  ERR_RANGE when there is no such matrix in the stack. */
enum status tessera_stack_limit(tessera_engine *e, const char *tensor, int matrix, int depth,
                                struct err *err);
/* Levels of a tensor's matrix that are used now; -1 when there is no such matrix in the stack. */
int tessera_stack_depth(const tessera_engine *e, const char *tensor, int matrix);
/* Levels in memory and in the file, 0 of a plain file; the perplexity that is expected with those in
 * memory, 0 = it was not measured when the stack was built. */
struct tessera_stack {
    int n_loaded, n_units;
    double ppl;
};
struct tessera_stack tessera_stack(const tessera_engine *e);

/* Prints the forward-pass plan: memory by owner, then the steps of a prefill and of a decode, with
 * lanes, parts, buffers and bytes.  json: one JSON object instead of text. */
enum status tessera_explain(const tessera_engine *e, FILE *to, bool json, struct err *err);

/* What the steps of one name did since profiling was switched on, all layers together. */
struct tessera_step_kind {
    const char *step, *name;  /* "matmul", "attn_q"; borrowed from the engine */
    uint64_t n_runs;
    uint64_t bytes;           /* weights, keys and values that had to be read at least once */
    uint64_t macs;            /* multiply-accumulates of products and attention */
    double seconds;
};

/* Switches the timing of every step on (from zero) or off; it costs about a microsecond per step. */
enum status tessera_profile(tessera_engine *e, bool on, struct err *err);
/* The i-th kind of step in the order of the pass; false past the end, or when switched off. */
bool tessera_profile_at(const tessera_engine *e, int i, struct tessera_step_kind *kind);

/* Makes the step that is running, or the next one, stop soon with ERR_CANCELLED; opening a generator
 * forgets a cancel that no step has met. */
void tessera_cancel(tessera_engine *e);

/* ---- session ---- */

/* n_ctx 0 = the engine's.  ERR_BUDGET when its KV cache does not fit. */
enum status tessera_session_open(tessera_engine *e, int n_ctx, tessera_session **out,
                                 struct err *err);
void tessera_session_close(tessera_session *s);
int tessera_session_n(const tessera_session *s);      /* tokens in the timeline */
int tessera_session_n_ctx(const tessera_session *s);
const int32_t *tessera_session_ids(const tessera_session *s); /* [n], borrowed until it changes */

/* Depth [n] of each token's pass; NULL where the model has no such thing.  Where tokens merge into
 * concepts those that begin a boundary have depth 1, and the others 0. */
const unsigned char *tessera_session_depths(const tessera_session *s);
/* The chance [n] of a boundary at each token (NAN: loaded from a file); NULL: no concepts. */
const float *tessera_session_chances(const tessera_session *s);

/* A mark is a place on the timeline to come back to: everything after it is forgotten, exactly.
 *
 * Models with recurrent layers cannot be cut anywhere: they go back to a snapshot of their state.
 * Marking keeps one, so do a generator's prompt (at its last token but one) and every 256th token;
 * a few in all (tessera_explain says how many), the oldest and least useful going first.  rollback
 * and reuse then go to the nearest snapshot at or before the place that was asked for, the start
 * at worst: tessera_session_n() says where, and what lies between is the caller's to feed again, as
 * generators do.  A step that fails or is cancelled changes the timeline as little as elsewhere. */
struct tessera_mark { int32_t n; };
struct tessera_mark tessera_session_mark(tessera_session *s);
enum status tessera_session_rollback(tessera_session *s, struct tessera_mark m, struct err *err);
/* Cuts the timeline to the longest prefix that it shares with ids (or to a snapshot before its
 * end, see above) and returns its length; at most n - 1, so that there is a token left to compute
 * logits from. */
int tessera_session_reuse(tessera_session *s, const int32_t *ids, int n);

/* Tokens, KV cache and recurrent state (no snapshots) as a GGUF container tied to the model;
 * written aside, then renamed. */
enum status tessera_session_save(tessera_session *s, const char *path, struct err *err);
enum status tessera_session_load(tessera_session *s, const char *path, struct err *err);

/* ---- step ---- */

enum tessera_logits_of {
    TESSERA_LOGITS_NONE, TESSERA_LOGITS_LAST, TESSERA_LOGITS_ALL, TESSERA_LOGITS_SOME
};

struct tessera_input {
    tessera_session *session;   /* each session at most once per step */
    const int32_t *ids;         /* [n] tokens appended to its timeline */
    int32_t n;                  /* >= 1 */
    enum tessera_logits_of logits;
    const unsigned char *some;  /* [n] rows with logits are not 0; LOGITS_SOME only */
    /* Models that see both sides: the tokens take the place of those from position `at` on, none of
     * them new.  K and V behind them stay as they are.  When such a step fails the timeline ends
     * at `at`: what was behind it is half written. */
    bool rewrite;
    int32_t at;
    /* Not 0: rows of a block, numbered so in its session, that is computed again and again until it is
     * sealed.  Experts that it uses stay in memory until a step names another one, or none. */
    int32_t block;
};

/* One forward pass over all inputs together; the sum of n is at most n_batch, and rows with
 * logits are at most n_ubatch.  In models that see both sides (tessera_model.sees_both) a row's
 * attention sees the whole timeline, this step's tokens included and none of later steps: what such a
 * model means by a text is the step that has all of it.  ERR_RANGE for a
 * token id outside the vocabulary, ERR_FULL when a context would overflow (nothing is done). */
enum status tessera_step(tessera_engine *e, const struct tessera_input *in, int n_in,
                         struct err *err);
/* Logits [n_vocab] of the row-th token of input i_in of the last step; NULL when that row asked
 * for none.  Valid until the next step. */
const float *tessera_logits(const tessera_engine *e, int i_in, int32_t row);

/* ---- watching ---- */

/* Rows of activations that meet a matrix of a tensor, or hidden states that a norm reads. */
struct tessera_watched {
    const char *tensor;     /* as in the file */
    int matrix, n_matrices; /* which one of it: expert, or head; a norm has no matrices */
    int n_cols, n_rows;
    const float *const *row; /* [n_rows][n_cols] in f32, before any quantisation */
};
typedef void tessera_watch_fn(void *arg, const struct tessera_watched *w);

/* From now on fn sees, during steps and on their thread, every product of a weight matrix with
 * activations and what every norm of whole rows reads; everything is borrowed for the call.  Slower and larger than a plain step; results
 * are the same bits.  fn NULL ends it.  ERR_BUDGET, ERR_MEMORY: nobody watches then. */
enum status tessera_watch(tessera_engine *e, tessera_watch_fn *fn, void *arg, struct err *err);

/* Shows every routed row of every step to fn while the step runs: layer by layer, rows in order, on
 * the caller's thread; a step that fails may have shown some.  fn must not call the engine.  NULL
 * ends it. */
void tessera_observe(tessera_engine *e, void (*fn)(void *arg, const struct obs *o), void *arg);

/* ---- generator ---- */

struct tessera_sampling {
    float temp;           /* <= 0: greedy */
    int top_k;            /* <= 0: all */
    float top_p, min_p;   /* 1 and 0 switch off */
    float repeat_penalty; /* 1 switches off */
    int repeat_last_n;    /* tokens looked back; 64 */
    uint64_t seed;
};
struct tessera_sampling tessera_sampling_defaults(void); /* 0.8, 40, 0.95, 0.05, 1.0, 64, 0 */

/* How a model that sees both sides writes: all tokens of the answer begin hidden, and every pass
 * settles some.  Zeros are the model's own ways (tessera_denoising_defaults). */
enum tessera_denoise_alg { /* what makes a token settle early */
    TESSERA_ALG_DEFAULT,
    TESSERA_ALG_LOW_CONFIDENCE, TESSERA_ALG_RANDOM,  /* LLaDA: its probability; chance */
    TESSERA_ALG_ORIGIN, TESSERA_ALG_MASKGIT_PLUS,    /* Dream: chance; its probability, ... */
    TESSERA_ALG_TOPK_MARGIN, TESSERA_ALG_ENTROPY     /* ... the lead on the next one; all of them */
};
enum tessera_denoise_cache { /* what later passes of a block do not compute again: approximate */
    TESSERA_CACHE_NONE, TESSERA_CACHE_PREFIX /* K and V before it */, TESSERA_CACHE_DUAL /* and behind */
};

struct tessera_denoising {
    enum tessera_denoise_alg alg;
    enum tessera_denoise_cache cache;
    int block;            /* tokens settled before those behind them are begun; -1 = the whole answer */
    int steps;            /* passes for the whole answer; default one for each token */
    float threshold;      /* a pass settles all that are this probable and one at least; 0 = off */
    float guidance;       /* logits = u + (guidance + 1)(c - u), u: with the prompt hidden; 0 = off */
    float alg_temp;       /* Dream's orders: chance in what settles next; 0 = off */
    bool measure;         /* with a cache: every pass that it makes cheaper is run as a whole beside it,
                             in another session, and compared (tessera_timing) */
};

/* Why an answer ended. */
enum tessera_stop {
    TESSERA_RUNNING, TESSERA_STOP_END, TESSERA_STOP_LENGTH, TESSERA_STOP_STRING, TESSERA_STOP_FULL,
    TESSERA_STOP_CANCELLED
};

struct tessera_answer {
    const char *text;   /* newly settled bytes, whole UTF-8 characters; borrowed until the next call */
    int n_text;
    int n_held;         /* bytes in front of what follows that come later: they could still become
                           a stop string */
    int32_t id;         /* the token sampled by this call, -1 = none yet (prompt still running) */
    /* Models that see both sides: the whole text, prompt and answer, hidden tokens as
     * tessera_model.mask; borrowed until the next call.  Text above is what has no gap before it. */
    const int32_t *canvas;
    int n_canvas, n_settled; /* n_settled: tokens before the first hidden one */
    enum tessera_stop stop;
};

struct tessera_timing {
    int n_prompt, n_prompt_reused, n_gen; /* n_gen counts sampled tokens, an end token too */
    double prompt_s, gen_s;  /* seconds; the first token counts as prompt */
    int n_depth;             /* tokens computed whose depth is known; sum of these */
    int64_t depth_sum;
    int n_passes;            /* models that see both sides; 0 = others */
    int n_compared;          /* tessera_denoising.measure: places; of them with another likeliest token; */
    int n_changed;
    double kl;               /* sum over them of KL(whole || cached), nats */
};

/* n_gen_max < 0: until it ends by itself or the context is full.  stops: n_stops strings that end
 * the answer and are not part of it.  ignore_end keeps going past end tokens. */
struct tessera_generator_options {
    struct tessera_sampling sampling;
    const char *const *stops;
    int n_stops;
    int n_gen_max;
    bool ignore_end;
    bool special_text;    /* print special tokens as text */
    struct tessera_denoising denoise; /* models that see both sides */
};

/* What zeros in struct tessera_denoising mean for a model that sees both sides, and the sampling that
 * it was made for. */
struct tessera_denoising tessera_denoising_defaults(const tessera_engine *e,
                                                    struct tessera_sampling *sampling);

/* Starts an answer after the session's timeline + prompt (models that see both sides keep nothing of
 * it, and sampling has no min_p and no penalty there); the part of the timeline that equals a
 * prefix of ids is kept, the rest is rolled back (ids hold the WHOLE timeline wanted). */
enum status tessera_generator_open(tessera_session *s, const int32_t *ids, int n,
                                   const struct tessera_generator_options *o,
                                   tessera_generator **out, struct err *err);
void tessera_generator_close(tessera_generator *g);

/* For batches: want() fills the next input (false: ended), the caller runs one step over many, then
 * take() consumes its result as input i_in of that step. */
bool tessera_generator_want(tessera_generator *g, int n_rows_max, struct tessera_input *in);
enum status tessera_generator_take(tessera_generator *g, int i_in, struct tessera_answer *a,
                                   struct err *err);
/* want + step + take, repeated until there is a token or the end. */
enum status tessera_generator_next(tessera_generator *g, struct tessera_answer *a,
                                   struct err *err);
struct tessera_timing tessera_generator_timing(const tessera_generator *g);

#endif
