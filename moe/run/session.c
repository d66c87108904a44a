/* Sessions: one timeline of tokens and its KV cache; see tessera.h.
 *
 * The KV region is laid out page by page (64 positions, all slots and heads), so that a growing
 * timeline commits a growing prefix.  Going back is exact: positions beyond the end are never read,
 * and are written again before they are.  Recurrent layers are state.c's: with them one goes back
 * to the nearest snapshot. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe/run/engine_int.h"

uint64_t session_bytes(const struct tessera_session *s, int32_t n)
{
    return (uint64_t)((n + KV_PAGE - 1) / KV_PAGE) * s->engine->kv_page_bytes;
}

/* ---- a KV cache on disk ---- */

static void forget_spilled(struct tessera_session *s)
{
    if (s->spill_fd >= 0) (void)close(s->spill_fd);
    s->spill_fd = -1;
    s->spilled = 0;
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

enum status session_spill(struct tessera_session *s, struct err *e)
{
    const uint64_t n = session_bytes(s, s->n);
    const char *p = s->kv.base;
    if (s->spill_fd >= 0) return OK;
    const int fd = nameless_file();
    int64_t got = 0;
    for (uint64_t at = 0; fd >= 0 && at < n; at += (uint64_t)got) {
        got = pwrite(fd, p + at, n - at, (off_t)at);
        if (got <= 0 && errno != EINTR) break;
        if (got < 0) got = 0;
    }
    if (fd < 0 || (n && got <= 0) || fdatasync(fd)) {
        const int why = errno;
        if (fd >= 0) (void)close(fd);
        return err_set(e, ERR_IO, "cannot put %llu MiB of KV cache into a file: %s: set TMPDIR to a "
                       "folder with room", (unsigned long long)(n >> 20), strerror(why));
    }
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* the pages were charged to us */
    region_trim(&s->kv, 0);
    s->spill_fd = fd;
    s->spilled = n;
    return OK;
}

enum status session_unspill(struct tessera_session *s, struct err *e)
{
    if (s->spill_fd < 0) return OK;
    /* What lies behind the end of the timeline is not needed any more. */
    const uint64_t have = session_bytes(s, s->n), n = have < s->spilled ? have : s->spilled;
    char *p = s->kv.base;
    enum status st = engine_commit(s->engine, &s->kv, n, e);
    if (st) return st;
    for (uint64_t at = 0; at < n;) {
        const int64_t got = pread(s->spill_fd, p + at, n - at, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            const int why = got ? errno : EIO;
            region_trim(&s->kv, 0);
            return err_set(e, ERR_IO, "cannot read a session's KV cache back from its file: %s",
                           strerror(why));
        }
        at += (uint64_t)got;
    }
    (void)posix_fadvise(s->spill_fd, 0, 0, POSIX_FADV_DONTNEED);
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
    s->ids = calloc((size_t)n_ctx, sizeof *s->ids);
    enum status st = OK;
    if (!s->ids) st = err_set(err, ERR_MEMORY, "no memory for a session");
    if (!st) st = region_reserve(&s->kv, &e->ledger, MEM_KV, session_bytes(s, n_ctx), err);
    if (!st) st = state_open(s, err);
    if (st) {
        region_release(&s->kv);
        free(s->ids);
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
    forget_spilled(s);
    region_release(&s->kv);
    state_close(s);
    s->engine->n_sessions--;
    free(s->ids);
    free(s);
}

int tessera_session_n(const tessera_session *s) { return s->n; }
int tessera_session_n_ctx(const tessera_session *s) { return s->n_ctx; }
const int32_t *tessera_session_ids(const tessera_session *s) { return s->ids; }

struct tessera_mark tessera_session_mark(tessera_session *s)
{
    state_ask(s, s->n);
    return (struct tessera_mark){s->n};
}

enum status tessera_session_rollback(tessera_session *s, struct tessera_mark m, struct err *err)
{
    if (m.n < 0 || m.n > s->n)
        return err_set(err, ERR_RANGE, "a mark at token %d on a timeline of %d", m.n, s->n);
    s->n = state_rollback(s, m.n);
    return OK;
}

int tessera_session_reuse(tessera_session *s, const int32_t *ids, int n)
{
    int k = 0;
    while (k < s->n && k < n - 1 && s->ids[k] == ids[k]) k++;
    return s->n = state_rollback(s, k);
}

/* ---- save and load: a GGUF container with the tokens and the committed pages ---- */

static const char ARCH[] = "tessera-session";
enum { GGUF_TENSOR_I8 = 24 };

enum status tessera_session_save(tessera_session *s, const char *path, struct err *err)
{
    const struct tessera_engine *e = s->engine;
    const uint64_t bytes = session_bytes(s, s->n);
    enum status back = session_unspill(s, err);
    if (back) return back;
    struct gguf_writer *w = gguf_writer_new();
    if (!w) return err_set(err, ERR_MEMORY, "no memory to write %s", path);
    gguf_put_str(w, "general.architecture", ARCH);
    gguf_put_str(w, "general.type", ARCH);
    gguf_put_u64(w, "tessera.model.hash", e->identity);
    gguf_put_str(w, "tessera.model.name", e->name);
    gguf_put_u32(w, "tessera.kv.type", (uint32_t)e->opt.kv);
    gguf_put_u64(w, "tessera.kv.page_bytes", e->kv_page_bytes);
    if (e->state_bytes) gguf_put_u64(w, "tessera.state.bytes", e->state_bytes);
    gguf_put_array(w, "tessera.session.tokens", GGUF_I32, s->ids, (uint64_t)s->n);
    const uint64_t state = s->n ? e->state_bytes : 0;
    if (bytes) gguf_put_tensor(w, "kv", GGUF_TENSOR_I8, 1, &bytes, bytes);
    if (state) gguf_put_tensor(w, "state", GGUF_TENSOR_I8, 1, &state, state);
    enum status st = gguf_writer_begin(w, path, err);
    if (!st && bytes) st = gguf_writer_data(w, s->kv.base, bytes, err);
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
    if (arch.n != sizeof ARCH - 1 || memcmp(arch.s, ARCH, arch.n))
        return err_set(err, ERR_FORMAT, "%s is not a saved session", path);
    if ((st = gguf_get_u64(g, "tessera.model.hash", &hash, err)) ||
        (st = gguf_get_u64(g, "tessera.kv.type", &type, err)) ||
        (st = gguf_get_u64(g, "tessera.kv.page_bytes", &page, err)))
        return st;
    if (hash != e->identity)
        return err_set(err, ERR_SHAPE, "%s was saved with another model: open it with that one",
                       path);
    if (type != (uint64_t)e->opt.kv || page != e->kv_page_bytes)
        return err_set(err, ERR_SHAPE, "%s was saved with another KV cache type: use the same "
                       "-ctk and -ctv", path);
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

static enum status read_saved(struct tessera_session *s, const struct gguf *g,
                              const struct gguf_kv *tokens, struct err *err)
{
    const int32_t n = (int32_t)tokens->value.n;
    const uint64_t bytes = session_bytes(s, n), state = n ? s->engine->state_bytes : 0;
    const struct gguf_tensor *t = gguf_find_tensor(g, "kv"), *u = gguf_find_tensor(g, "state");
    if ((bytes && (!t || t->dim[0] != bytes)) || (state && (!u || u->dim[0] != state)))
        return err_set(err, ERR_FORMAT, "%s: the KV cache has the wrong size: the file is damaged",
                       gguf_path(g, 0));
    char *at = NULL;
    enum status st = engine_commit(s->engine, &s->kv, session_bytes(s, n), err);
    if (st) return st;
    struct osfile f;
    if ((st = osfile_open(&f, gguf_path(g, 0), 0, NULL, err))) return st;
    s->n = 0; /* what was there is about to be overwritten */
    forget_spilled(s);
    st = state_restore(s, n, &at, err);
    if (!st && bytes) st = osfile_read(&f, s->kv.base, bytes, t->offset, err);
    if (!st && at) st = osfile_read(&f, at, state, u->offset, err);
    osfile_close(&f);
    if (st) (void)state_restore(s, 0, &at, NULL);
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
    }
    gguf_close(g);
    return st;
}
