/* See jsonfile.h. */
#include "moe/load/jsonfile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An upper bound of the number of values, without understanding more than strings; also finds
 * escapes of zero bytes.  NULL: ok, else what is wrong, at *at. */
static const char *survey(const char *s, size_t n, size_t *values, size_t *at)
{
    bool in_string = false;
    *values = 1;
    for (size_t i = 0; i < n; i++) {
        *at = i;
        if (!s[i]) return "there is a zero byte";
        if (!in_string) {
            in_string = s[i] == '"';
            *values += s[i] == ',' || s[i] == '[' || s[i] == '{';
        } else if (s[i] == '\\') {
            if (n - i >= 6 && !memcmp(s + i, "\\u0000", 6)) return "a string holds a zero byte";
            i++;
        } else {
            in_string = s[i] != '"';
        }
    }
    return NULL;
}

enum status jf_parse(const char *where, const char *text, size_t n, uint64_t pos, cJSON **out,
                     struct err *e)
{
    size_t values, at;
    *out = NULL;
    const char *bad = survey(text, n, &values, &at);
    if (bad)
        return err_set_at(e, ERR_FORMAT, pos + at, "%s: byte %llu: %s", where,
                          (unsigned long long)(pos + at), bad);
    if (values > JF_VALUES_MAX)
        return err_set(e, ERR_UNSUPPORTED, "%s holds more than %d JSON values", where,
                       JF_VALUES_MAX);
    const char *end = NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(text, n + 1, &end, 1);
    if (!root) {
        at = end && end >= text && end <= text + n ? (size_t)(end - text) : n;
        return err_set_at(e, ERR_FORMAT, pos + at,
                          "%s: byte %llu: this is no JSON that can be read: the file is damaged",
                          where, (unsigned long long)(pos + at));
    }
    *out = root;
    return OK;
}

/* *f is open and *text NULL when the file is not there. */
static enum status read_text(const char *path, const struct osfile_ops *ops, bool must, char **text,
                             size_t *n, struct err *e)
{
    struct osfile f;
    *text = NULL;
    *n = 0;
    if (!must) {
        const struct osfile_ops *o = ops ? ops : &osfile_system;
        int fd = o->open(path, 0);
        if (fd == -ENOENT) return OK;
        if (fd < 0) return err_set(e, ERR_IO, "cannot open %s: %s", path, strerror(-fd));
        o->close(fd);
    }
    enum status s = osfile_open(&f, path, 0, ops, e);
    if (s) return s;
    if (f.size > JF_BYTES_MAX)
        s = err_set(e, ERR_UNSUPPORTED, "%s has %llu bytes: more than such a file can need", path,
                    (unsigned long long)f.size);
    char *p = s ? NULL : malloc((size_t)f.size + 1);
    if (!s && !p) s = err_set(e, ERR_MEMORY, "no memory to read %s", path);
    if (!s) s = osfile_read(&f, p, (size_t)f.size, 0, e);
    if (!s) {
        p[f.size] = 0;
        *text = p;
        *n = (size_t)f.size;
        f.ops->drop(f.fd, 0, 0);
    } else {
        free(p);
    }
    osfile_close(&f);
    return s;
}

static enum status read_object(const char *path, const struct osfile_ops *ops, bool must,
                               cJSON **out, struct err *e)
{
    char *text;
    size_t n;
    *out = NULL;
    enum status s = read_text(path, ops, must, &text, &n, e);
    if (s || !text) return s;
    s = jf_parse(path, text, n, 0, out, e);
    free(text);
    if (!s && !cJSON_IsObject(*out)) {
        s = err_set_at(e, ERR_FORMAT, 0, "%s is not a JSON object", path);
        cJSON_Delete(*out);
        *out = NULL;
    }
    return s;
}

enum status jf_read(const char *path, const struct osfile_ops *ops, cJSON **out, struct err *e)
{
    return read_object(path, ops, true, out, e);
}

enum status jf_read_if_there(const char *path, const struct osfile_ops *ops, cJSON **out,
                             struct err *e)
{
    return read_object(path, ops, false, out, e);
}

enum status jf_text_if_there(const char *path, const struct osfile_ops *ops, char **out, size_t *n,
                             struct err *e)
{
    return read_text(path, ops, false, out, n, e);
}

const cJSON *jf_get(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_IsObject(o) ? cJSON_GetObjectItemCaseSensitive(o, name) : NULL;
    return v && !cJSON_IsNull(v) ? v : NULL;
}

const char *jf_str(const cJSON *o, const char *name)
{
    return cJSON_GetStringValue(jf_get(o, name));
}

bool jf_true(const cJSON *o, const char *name) { return cJSON_IsTrue(jf_get(o, name)); }

bool jf_u64(const cJSON *v, uint64_t *out)
{
    if (!cJSON_IsNumber(v)) return false;
    const double x = v->valuedouble;
    if (!(x >= 0) || x > 9007199254740992.0 || x != (double)(uint64_t)x) return false;
    *out = (uint64_t)x;
    return true;
}
