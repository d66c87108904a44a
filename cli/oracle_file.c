/* Results of `tessera oracle` as they grow; see oracle_job.h.
 *
 * A GGUF container: general.type "tessera.oracle"; keys tessera.model.{hash,name},
 * tessera.oracle.{settings,n_free}; tensors "tokens" (I32, the whole text), "values" (F32, [n_values] per
 * token searched) and "routes" (I32, two halves of each of [n_routes]).  Read on a little-endian
 * machine as it was written. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/oracle_job.h"
#include "moe/base/osfile.h"
#include "moe/load/gguf.h"

static const char TYPE[] = "tessera.oracle";
enum { T_F32 = 0, T_I32 = 26 };

enum status oracle_write(const struct oracle_job *j, const char *path, struct err *err)
{
    struct gguf_writer *w = gguf_writer_new();
    if (!w) return err_set(err, ERR_MEMORY, "no memory to write %s", path);
    const struct tessera_model m = tessera_model(j->e);
    const uint64_t n_ids = (uint64_t)j->n_ids, done = (uint64_t)j->n_done;
    const uint64_t value[2] = {(uint64_t)j->n_values, done};
    const uint64_t route[2] = {2 * (uint64_t)j->n_routes, done};
    gguf_put_str(w, "general.type", TYPE);
    gguf_put_u64(w, "tessera.model.hash", m.hash);
    gguf_put_str(w, "tessera.model.name", m.name);
    gguf_put_str(w, "tessera.oracle.settings", j->settings);
    gguf_put_u32(w, "tessera.oracle.n_free", (uint32_t)j->n_free);
    gguf_put_tensor(w, "tokens", T_I32, 1, &n_ids, 4 * n_ids);
    if (done) gguf_put_tensor(w, "values", T_F32, 2, value, 4 * value[0] * done);
    if (done && j->n_routes) gguf_put_tensor(w, "routes", T_I32, 2, route, 4 * route[0] * done);
    enum status s = gguf_writer_begin(w, path, err);
    if (!s) s = gguf_writer_data(w, j->ids, 4 * n_ids, err);
    if (!s && done) s = gguf_writer_data(w, j->value, 4 * value[0] * done, err);
    if (!s && done && j->n_routes) s = gguf_writer_data(w, j->route, 4 * route[0] * done, err);
    if (!s) s = gguf_writer_end(w, err);
    gguf_writer_close(w);
    return s;
}

static bool says(const struct gguf *g, const char *key, const char *want)
{
    struct gguf_str s;
    return !gguf_get_str(g, key, &s, NULL) && gguf_str_is(s, want);
}

static enum status damaged(const char *path, struct err *err)
{
    return err_set(err, ERR_FORMAT, "%s is damaged: --fresh begins anew", path);
}

/* Bytes of a tensor of that type and size, which must all be there. */
static enum status take(const struct gguf *g, const struct osfile *f, const char *name, uint32_t type,
                        uint64_t n, void *to, struct err *err)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    uint64_t have = t ? 1 : 0;
    for (int i = 0; t && i < t->n_dims; i++) have *= t->dim[i];
    if (!n) return OK;
    if (!t || t->type != type || have != n) return damaged(f->path, err);
    return osfile_read(f, to, (size_t)n * 4, t->offset, err);
}

static enum status take_all(struct oracle_job *j, const struct gguf *g, const struct osfile *f,
                            struct err *err)
{
    uint64_t hash = 0;
    if (!says(g, "general.type", TYPE))
        return err_set(err, ERR_FORMAT, "%s is there and no result of an oracle: it is left alone",
                       f->path);
    if (gguf_get_u64(g, "tessera.model.hash", &hash, NULL) || hash != tessera_model(j->e).hash)
        return err_set(err, ERR_SHAPE, "%s is of another model: name another file, or --fresh", f->path);
    if (!says(g, "tessera.oracle.settings", j->settings))
        return err_set(err, ERR_SHAPE, "%s is of another search than %s: name another file, or --fresh",
                       f->path, j->settings);
    const struct gguf_tensor *t = gguf_find_tensor(g, "values"), *text = gguf_find_tensor(g, "tokens");
    const uint64_t done = t && t->n_dims == 2 ? t->dim[1] : 0;
    if (!text || text->dim[0] != (uint64_t)j->n_ids || done > (uint64_t)j->n_all)
        return err_set(err, ERR_SHAPE, "%s is of another text: name another file, or --fresh", f->path);
    int32_t *ids = malloc(sizeof *ids * (size_t)j->n_ids);
    if (!ids) return err_set(err, ERR_MEMORY, "no memory to read %s", f->path);
    enum status s = take(g, f, "tokens", T_I32, (uint64_t)j->n_ids, ids, err);
    if (!s && memcmp(ids, j->ids, sizeof *ids * (size_t)j->n_ids) != 0)
        s = err_set(err, ERR_SHAPE, "%s is of another text: name another file, or --fresh", f->path);
    free(ids);
    if (!s) s = take(g, f, "values", T_F32, done * (uint64_t)j->n_values, j->value, err);
    if (!s) s = take(g, f, "routes", T_I32, done * 2 * (uint64_t)j->n_routes, j->route, err);
    if (!s) j->n_done = (int)done;
    return s;
}

enum status oracle_read(struct oracle_job *j, const char *path, struct err *err)
{
    struct gguf *g;
    struct osfile f;
    if (access(path, F_OK)) return OK;
    enum status s = gguf_open(path, NULL, &g, err);
    if (!s && j->own.fresh && says(g, "general.type", TYPE)) { /* it will be written over */
        gguf_close(g);
        return OK;
    }
    if (s == ERR_FORMAT) {
        err_clear(err); /* what is said of models that do not open helps nobody here */
        return err_set(err, s, "%s is there and no result of an oracle, or a damaged one: name another file, "
                       "or remove it", path);
    }
    if (s) return s;
    s = osfile_open(&f, path, 0, NULL, err);
    if (!s) {
        s = take_all(j, g, &f, err);
        osfile_close(&f);
    }
    gguf_close(g);
    return s;
}
