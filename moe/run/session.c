/* Sessions: one timeline of tokens and its KV cache; see tessera.h.
 *
 * The KV region is laid out page by page (64 positions, all slots and heads), so that a growing
 * timeline commits a growing prefix.  Going back is exact: positions beyond the end are never read,
 * and are written again before they are.  Recurrent layers are state.c's: with them one goes back
 * to the nearest snapshot. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe/run/engine_int.h"

uint64_t session_bytes(const struct tessera_session *s, int line, int32_t n)
{
    if (n > s->n_ctx) n = s->n_ctx;
    return (uint64_t)((n + KV_PAGE - 1) / KV_PAGE) * s->engine->line[line].page_bytes;
}

int32_t session_entries(const struct tessera_session *s, int line, int32_t n)
{
    if (!line) return n;
    const struct session_line *l = &s->line[line];
    int32_t lo = 0, hi = l->n;
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (l->pos[mid] < n) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

void session_cut(struct tessera_session *s, int32_t n)
{
    s->n = state_rollback(s, n);
    devstep_cut(s, s->n);
    for (int l = 1; l < s->engine->n_lines; l++) s->line[l].n = session_entries(s, l, s->n);
    for (int i = 0; i < ROWS_MAX; i++)
        if (s->carried[i] > s->n) s->carried[i] = s->n;
}

uint64_t session_committed(const struct tessera_session *s)
{
    uint64_t sum = 0;
    for (int l = 0; l < s->engine->n_lines; l++) sum += s->line[l].kv.committed;
    return sum;
}

static void close_lines(struct tessera_session *s)
{
    for (int l = 0; s->line && l < s->engine->n_lines; l++) {
        region_release(&s->line[l].kv);
        free(s->line[l].pos);
    }
    free(s->line);
    free(s->depth);
    free(s->chance);
    free(s->ids);
}

static enum status open_lines(struct tessera_session *s, struct err *err)
{
    struct tessera_engine *e = s->engine;
    const size_t n = (size_t)s->n_ctx;
    s->ids = calloc(n, sizeof *s->ids);
    s->line = calloc((size_t)e->n_lines, sizeof *s->line);
    if (e->model.n_depth) s->depth = calloc(n, 1);
    if (e->model.has_chances) s->chance = calloc(n, sizeof *s->chance);
    bool have = s->ids && s->line && (s->depth || !e->model.n_depth) &&
                (s->chance || !e->model.has_chances);
    for (int l = 1; have && l < e->n_lines; l++)
        have = (s->line[l].pos = calloc(n, sizeof *s->line[l].pos)) != NULL;
    if (!have) return err_set(err, ERR_MEMORY, "no memory for a session");
    for (int l = 0; l < e->n_lines; l++) {
        enum status st = region_reserve(&s->line[l].kv, &e->ledger, MEM_KV,
                                        session_bytes(s, l, s->n_ctx), err);
        if (st) return st;
    }
    return OK;
}

/* ---- a KV cache on disk ---- */

/* The budget is charged for the file's pages in the page cache, too: no more bytes of them than this. */
static uint64_t in_cache(const struct tessera_engine *e) { return osfile_keep(e->opt.mem_budget); }

static void forget_spilled(struct tessera_session *s)
{
    if (s->spill_fd >= 0) (void)close(s->spill_fd);
    s->spill_fd = -1;
}

/* A file that is gone when it is closed, on a disk if there is any: /tmp may be memory. */
static int nameless_file(void)
{
    const char *dir = getenv("TMPDIR");
    char path[] = "/var/tmp/tessera-kv-XXXXXX";
    int fd = open(dir && *dir ? dir : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) return fd;
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0) (void)unlink(path);
    return fd;
}

static int32_t line_n(const struct tessera_session *s, int l) { return l ? s->line[l].n : s->n; }

static bool write_at(int fd, const char *p, uint64_t n, uint64_t to, uint64_t most)
{
    for (uint64_t at = 0; at < n;) {
        const int64_t got = pwrite(fd, p + at, n - at < most ? n - at : most, (off_t)(to + at));
        if (got <= 0 && errno != EINTR) return false;
        if (got <= 0) continue;
        at += (uint64_t)got;
        if (fdatasync(fd)) return false;
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    return true;
}

/* The file holds the timelines one after another. */
enum status session_spill(struct tessera_session *s, struct err *e)
{
    if (s->spill_fd >= 0) return OK;
    const int fd = nameless_file();
    bool good = fd >= 0;
    uint64_t n = 0;
    for (int l = 0; good && l < s->engine->n_lines; l++) {
        s->line[l].spilled = session_bytes(s, l, line_n(s, l));
        good = write_at(fd, s->line[l].kv.base, s->line[l].spilled, n, in_cache(s->engine));
        n += s->line[l].spilled;
    }
    if (!good) {
        const int why = errno;
        if (fd >= 0) (void)close(fd);
        return err_set(e, ERR_IO, "cannot put %llu MiB of KV cache into a file: %s: set TMPDIR to a "
                       "folder with room", (unsigned long long)(n >> 20), strerror(why));
    }
    for (int l = 0; l < s->engine->n_lines; l++) region_trim(&s->line[l].kv, 0);
    s->spill_fd = fd;
    return OK;
}

static enum status unspill_line(struct tessera_session *s, int l, uint64_t from, struct err *e)
{
    /* What lies behind the end of the timeline is not needed any more. */
    const uint64_t have = session_bytes(s, l, line_n(s, l));
    const uint64_t n = have < s->line[l].spilled ? have : s->line[l].spilled, most = in_cache(s->engine);
    char *p = s->line[l].kv.base;
    enum status st = engine_commit(s->engine, &s->line[l].kv, n, e);
    for (uint64_t at = 0; !st && at < n;) {
        const int64_t got = pread(s->spill_fd, p + at, n - at < most ? n - at : most, (off_t)(from + at));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            st = err_set(e, ERR_IO, "cannot read a session's KV cache back from its file: %s",
                         strerror(got ? errno : EIO));
        else at += (uint64_t)got;
        (void)posix_fadvise(s->spill_fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    return st;
}

enum status session_unspill(struct tessera_session *s, struct err *e)
{
    uint64_t from = 0;
    enum status st = OK;
    if (s->spill_fd < 0) return OK;
    for (int l = 0; !st && l < s->engine->n_lines; from += s->line[l++].spilled)
        st = unspill_line(s, l, from, e);
    if (st) {
        for (int l = 0; l < s->engine->n_lines; l++) region_trim(&s->line[l].kv, 0);
        return st;
    }
    forget_spilled(s);
    return OK;
}

enum status tessera_session_open(tessera_engine *e, int n_ctx, tessera_session **out,
                                 struct err *err)
{
    *out = NULL;
    if (n_ctx == 0) n_ctx = e->opt.n_ctx;
    if (n_ctx < 1 || n_ctx > e->hp.n_ctx_train)
        return err_set(err, ERR_RANGE, "a context of %d tokens; the model takes 1 to %d", n_ctx,
                       e->hp.n_ctx_train);
    struct tessera_session *s = calloc(1, sizeof *s);
    if (!s) return err_set(err, ERR_MEMORY, "no memory for a session");
    s->engine = e;
    s->n_ctx = n_ctx;
    s->spill_fd = -1;
    enum status st = open_lines(s, err);
    if (!st) st = state_open(s, err);
    if (st) {
        close_lines(s);
        free(s);
        return st;
    }
    s->serial = e->serial++;
    e->n_sessions++;
    s->next = e->session;
    e->session = s;
    *out = s;
    return OK;
}

void tessera_session_close(tessera_session *s)
{
    if (!s) return;
    struct tessera_session **at = &s->engine->session;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    devstep_forget(s->engine, s);
    forget_spilled(s);
    close_lines(s);
    state_close(s);
    s->engine->n_sessions--;
    free(s);
}

int tessera_session_n(const tessera_session *s) { return s->n; }
int tessera_session_n_ctx(const tessera_session *s) { return s->n_ctx; }
const int32_t *tessera_session_ids(const tessera_session *s) { return s->ids; }

const unsigned char *tessera_session_depths(const tessera_session *s) { return s->depth; }
const float *tessera_session_chances(const tessera_session *s) { return s->chance; }

struct tessera_mark tessera_session_mark(tessera_session *s)
{
    state_ask(s, s->n);
    return (struct tessera_mark){s->n};
}

enum status tessera_session_rollback(tessera_session *s, struct tessera_mark m, struct err *err)
{
    if (m.n < 0 || m.n > s->n)
        return err_set(err, ERR_RANGE, "a mark at token %d on a timeline of %d", m.n, s->n);
    session_cut(s, m.n);
    return OK;
}

int tessera_session_reuse(tessera_session *s, const int32_t *ids, int n)
{
    int k = 0;
    while (k < s->n && k < n - 1 && s->ids[k] == ids[k]) k++;
    session_cut(s, k);
    return s->n;
}

/* ---- save and load: a GGUF container with the tokens and the committed pages ---- */

/* Timeline 0 is "kv"; timeline N has "kv.N" and the key tessera.line.N, its entries' positions;
 * "depth" has a byte for each token. */
static const char ARCH[] = "tessera-session";

static uint64_t page_bytes(const struct tessera_engine *e)
{
    uint64_t sum = 0;
    for (int l = 0; l < e->n_lines; l++) sum += e->line[l].page_bytes;
    return sum;
}

static const char *line_name(const char *stem, int l, char buf[32])
{
    if (!l) return stem;
    (void)snprintf(buf, 32, "%s.%d", stem, l);
    return buf;
}

static void put_lines(const struct tessera_session *s, struct gguf_writer *w)
{
    char name[32];
    for (int l = 1; l < s->engine->n_lines; l++)
        gguf_put_array(w, line_name("tessera.line", l, name), GGUF_I32, s->line[l].pos,
                       (uint64_t)s->line[l].n);
    for (int l = 0; l < s->engine->n_lines; l++) {
        const uint64_t bytes = session_bytes(s, l, line_n(s, l));
        if (bytes) gguf_put_tensor(w, line_name("kv", l, name), GGUF_TENSOR_I8, 1, &bytes, bytes);
    }
    const uint64_t n = (uint64_t)s->n;
    if (s->depth && n) gguf_put_tensor(w, "depth", GGUF_TENSOR_I8, 1, &n, n);
}

static enum status write_lines(const struct tessera_session *s, struct gguf_writer *w,
                               struct err *err)
{
    enum status st = OK;
    for (int l = 0; l < s->engine->n_lines && !st; l++) {
        const uint64_t bytes = session_bytes(s, l, line_n(s, l));
        if (bytes) st = gguf_writer_data(w, s->line[l].kv.base, bytes, err);
    }
    if (!st && s->depth && s->n) st = gguf_writer_data(w, s->depth, (uint64_t)s->n, err);
    return st;
}

/* K and V are not what the weights alone say. */
static bool is_approximate(const struct tessera_engine *e)
{
    return e->model.approximate || e->opt.expert_choice;
}

enum status tessera_session_save(tessera_session *s, const char *path, struct err *err)
{
    const struct tessera_engine *e = s->engine;
    enum status back = session_unspill(s, err);
    if (back) return back;
    struct gguf_writer *w = gguf_writer_new();
    if (!w) return err_set(err, ERR_MEMORY, "no memory to write %s", path);
    gguf_put_str(w, "general.architecture", ARCH);
    gguf_put_str(w, "general.type", ARCH);
    gguf_put_u64(w, "tessera.model.hash", e->identity);
    gguf_put_str(w, "tessera.model.name", e->name);
    gguf_put_u32(w, "tessera.kv.type", (uint32_t)e->opt.kv);
    gguf_put_u64(w, "tessera.kv.page_bytes", page_bytes(e));
    if (is_approximate(e)) gguf_put_bool(w, "tessera.kv.approximate", true);
    if (e->state_bytes) gguf_put_u64(w, "tessera.state.bytes", e->state_bytes);
    gguf_put_array(w, "tessera.session.tokens", GGUF_I32, s->ids, (uint64_t)s->n);
    const uint64_t state = s->n ? e->state_bytes : 0;
    put_lines(s, w);
    if (state) gguf_put_tensor(w, "state", GGUF_TENSOR_I8, 1, &state, state);
    enum status st = gguf_writer_begin(w, path, err);
    gguf_writer_keep(w, in_cache(e));
    if (!st) st = write_lines(s, w, err);
    if (!st && state) st = gguf_writer_data(w, state_at(s, s->state.current), state, err);
    if (!st) st = gguf_writer_end(w, err);
    gguf_writer_close(w);
    return st;
}

/* The saved state of another model, format or layout must not be taken for this one's. */
static enum status check_saved(const struct tessera_session *s, const struct gguf *g,
                               const struct gguf_kv **tokens, struct err *err)
{
    const struct tessera_engine *e = s->engine;
    const char *path = gguf_path(g, 0);
    struct gguf_str arch;
    uint64_t hash, type, page;
    enum status st;
    if ((st = gguf_get_str(g, "general.architecture", &arch, err))) return st;
    if (!gguf_str_is(arch, ARCH))
        return err_set(err, ERR_FORMAT, "%s is not a saved session", path);
    if ((st = gguf_get_u64(g, "tessera.model.hash", &hash, err)) ||
        (st = gguf_get_u64(g, "tessera.kv.type", &type, err)) ||
        (st = gguf_get_u64(g, "tessera.kv.page_bytes", &page, err)))
        return st;
    if (hash != e->identity)
        return err_set(err, ERR_SHAPE, "%s was saved with another model: open it with that one",
                       path);
    bool approximate;
    if ((st = gguf_get_bool_or(g, "tessera.kv.approximate", false, &approximate, err))) return st;
    if (type != (uint64_t)e->opt.kv || page != page_bytes(e) || approximate != is_approximate(e))
        return err_set(err, ERR_SHAPE, "%s was saved with another KV cache type: use the same "
                       "-ctk and -ctv, and the same loops, exits and routing", path);
    uint64_t state;
    if ((st = gguf_get_u64_or(g, "tessera.state.bytes", 0, &state, err))) return st;
    if (state != e->state_bytes)
        return err_set(err, ERR_SHAPE, "%s: its recurrent state has another size than this "
                       "model's", path);
    *tokens = gguf_find(g, "tessera.session.tokens");
    if (!*tokens || (*tokens)->value.type != GGUF_ARRAY || (*tokens)->value.elem != GGUF_I32)
        return err_set(err, ERR_FORMAT, "%s has no token list", path);
    if ((*tokens)->value.n > (uint64_t)s->n_ctx)
        return err_set(err, ERR_FULL, "%s holds %llu tokens, this context only %d: use a larger -c",
                       path, (unsigned long long)(*tokens)->value.n, s->n_ctx);
    for (uint64_t i = 0; i < (*tokens)->value.n; i++) {
        int64_t id = gguf_elem_i64(&(*tokens)->value, i);
        if (id < 0 || id >= e->model.n_vocab)
            return err_set(err, ERR_FORMAT, "%s holds a token outside the vocabulary", path);
    }
    return OK;
}

/* Takes the entries of the timelines beside the first. */
static enum status read_positions(struct tessera_session *s, const struct gguf *g, int32_t n,
                                  struct err *err)
{
    for (int l = 1; l < s->engine->n_lines; l++) {
        char name[32];
        const struct gguf_kv *kv = gguf_find(g, line_name("tessera.line", l, name));
        struct session_line *line = &s->line[l];
        line->n = 0;
        if (!kv || kv->value.type != GGUF_ARRAY || kv->value.elem != GGUF_I32 ||
            kv->value.n > (uint64_t)n)
            return err_set(err, ERR_FORMAT, "%s: %s is missing or too long: the file is damaged",
                           gguf_path(g, 0), name);
        for (uint64_t i = 0; i < kv->value.n; i++) {
            const int64_t pos = gguf_elem_i64(&kv->value, i);
            if (pos >= n || pos < (i ? (int64_t)line->pos[i - 1] + 1 : 0))
                return err_set(err, ERR_FORMAT, "%s: %s does not rise: the file is damaged",
                               gguf_path(g, 0), name);
            line->pos[i] = (int32_t)pos;
        }
        line->n = (int32_t)kv->value.n;
    }
    return OK;
}

static enum status read_line(struct tessera_session *s, const struct gguf *g, struct osfile *f,
                             int l, int32_t n, struct err *err)
{
    char name[32];
    const uint64_t bytes = session_bytes(s, l, n);
    const struct gguf_tensor *t = gguf_find_tensor(g, line_name("kv", l, name));
    if (!bytes) return OK;
    if (!t || t->dim[0] != bytes)
        return err_set(err, ERR_FORMAT, "%s: the KV cache has the wrong size: the file is damaged",
                       gguf_path(g, 0));
    enum status st = engine_commit(s->engine, &s->line[l].kv, bytes, err);
    const uint64_t most = in_cache(s->engine);
    for (uint64_t at = 0; at < bytes && !st; at += most) {
        const uint64_t piece = bytes - at < most ? bytes - at : most;
        st = osfile_read(f, (char *)s->line[l].kv.base + at, piece, t->offset + at, err);
        f->ops->drop(f->fd, t->offset + at, piece);
    }
    return st;
}

static enum status read_depths(struct tessera_session *s, const struct gguf *g, struct osfile *f,
                               int32_t n, struct err *err)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, "depth");
    memset(s->carried, 0, sizeof s->carried);
    if (!s->depth || !n) return OK;
    if (!t || t->dim[0] != (uint64_t)n)
        return err_set(err, ERR_FORMAT, "%s: the depths have the wrong size: the file is damaged",
                       gguf_path(g, 0));
    enum status st = osfile_read(f, s->depth, (uint64_t)n, t->offset, err);
    for (int32_t i = 0; i < n && !st; i++)
        if (s->depth[i] < s->engine->model.depth_first || s->depth[i] > s->engine->model.n_depth)
            st = err_set(err, ERR_FORMAT, "%s: token %d has depth %d: the file is damaged",
                         gguf_path(g, 0), i, s->depth[i]);
    return st;
}

static enum status read_saved(struct tessera_session *s, const struct gguf *g,
                              const struct gguf_kv *tokens, struct err *err)
{
    const int32_t n = (int32_t)tokens->value.n;
    const uint64_t state = n ? s->engine->state_bytes : 0;
    const struct gguf_tensor *u = gguf_find_tensor(g, "state");
    if (state && (!u || u->dim[0] != state))
        return err_set(err, ERR_FORMAT, "%s: the recurrent state has the wrong size: the file is "
                       "damaged", gguf_path(g, 0));
    char *at = NULL;
    struct osfile f;
    enum status st = osfile_open(&f, gguf_path(g, 0), OSFILE_RANDOM, NULL, err);
    if (st) return st;
    s->n = 0; /* what was there is about to be overwritten */
    devstep_cut(s, 0);
    forget_spilled(s);
    st = state_restore(s, n, &at, err);
    if (!st) st = read_positions(s, g, n, err);
    for (int l = 0; l < s->engine->n_lines && !st; l++)
        st = read_line(s, g, &f, l, l ? s->line[l].n : n, err);
    if (!st) st = read_depths(s, g, &f, n, err);
    if (!st && at) st = osfile_read(&f, at, state, u->offset, err);
    osfile_close(&f);
    if (!st) return OK;
    (void)state_restore(s, 0, &at, NULL);
    for (int l = 1; l < s->engine->n_lines; l++) s->line[l].n = 0;
    return st;
}

enum status tessera_session_load(tessera_session *s, const char *path, struct err *err)
{
    struct gguf *g;
    const struct gguf_kv *tokens = NULL;
    enum status st = gguf_open(path, NULL, &g, err);
    if (st) return st;
    st = check_saved(s, g, &tokens, err);
    if (!st) st = read_saved(s, g, tokens, err);
    if (!st) {
        s->n = (int32_t)tokens->value.n;
        for (int32_t i = 0; i < s->n; i++)
            s->ids[i] = (int32_t)gguf_elem_i64(&tokens->value, (uint64_t)i);
        for (int32_t i = 0; i < s->n && s->chance; i++) s->chance[i] = NAN;
    }
    gguf_close(g);
    return st;
}
