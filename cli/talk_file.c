/* /save and /load: a conversation as JSON, its tokens and KV cache beside it.
 *
 * FILE:    {"type": "tessera.conversation", "version": 1, "model": "...", "messages": [{"role",
 *          "content", "reasoning_content"}], "ids": [...]}
 * FILE.kv: tessera_session_save's container, tied to the model.
 * Without a FILE.kv that suits, loading keeps the messages and the next turn reads them anew. */
#include "cli/talk.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "moe/base/osfile.h"

static const char type_name[] = "tessera.conversation";

/* FILE.kv; false when the name is too long. */
static bool kv_path(const char *path, char out[PATH_MAX])
{
    if (snprintf(out, PATH_MAX, "%s.kv", path) < PATH_MAX) return true;
    fprintf(stderr, "tessera: the name %.40s... is too long\n", path);
    return false;
}

/* ---- saving ---- */

static cJSON *to_json(const struct talk *t)
{
    cJSON *o = cJSON_CreateObject(), *m = cJSON_CreateArray();
    cJSON_AddStringToObject(o, "type", type_name);
    cJSON_AddNumberToObject(o, "version", 1);
    cJSON_AddStringToObject(o, "model", tessera_model(t->e).name);
    cJSON_AddItemToObject(o, "messages", m);
    for (int i = 0; i < t->n_msgs; i++) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "role", t->msgs[i].role);
        cJSON_AddStringToObject(one, "content", t->msgs[i].content);
        if (t->msgs[i].thinking)
            cJSON_AddStringToObject(one, "reasoning_content", t->msgs[i].thinking);
        cJSON_AddItemToArray(m, one);
    }
    cJSON_AddItemToObject(o, "ids", cJSON_CreateIntArray(t->ids, t->n_ids));
    return o;
}

static enum status write_text(const char *path, const char *text, struct err *err)
{
    struct osfile_writer w;
    enum status s = osfile_writer_open(&w, path, err);
    if (s) return s;
    (void)fputs(text, w.fp);
    (void)fputs("\n", w.fp);
    return osfile_writer_commit(&w, err);
}

void talk_save(struct talk *t, const char *path)
{
    struct err err;
    char kv[PATH_MAX];
    err_clear(&err);
    if (!kv_path(path, kv)) return;
    cJSON *o = to_json(t);
    char *text = cJSON_Print(o);
    cJSON_Delete(o);
    enum status s = text ? OK : err_set(&err, ERR_MEMORY, "no memory to save");
    /* The cache first: messages without it still load. */
    if (!s && tessera_session_n(t->s)) s = tessera_session_save(t->s, kv, &err);
    if (!s) s = write_text(path, text, &err);
    cJSON_free(text);
    if (s)
        (void)cli_fail(&err);
    else
        fprintf(stderr, "saved %d messages, %d tokens to %s and %s\n", t->n_msgs,
                tessera_session_n(t->s), path, kv);
}

/* ---- loading ---- */

static bool known_role(const char *r)
{
    return r && (!strcmp(r, "system") || !strcmp(r, "user") || !strcmp(r, "assistant"));
}

static enum status check_json(const cJSON *o, const char *path, struct err *err)
{
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "type"));
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(o, "messages"), *one;
    if (!type || strcmp(type, type_name) || !cJSON_IsArray(m))
        return err_set(err, ERR_FORMAT, "%s is not a saved conversation", path);
    int i = 0;
    cJSON_ArrayForEach(one, m) {
        i++;
        if (!known_role(cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(one, "role"))) ||
            !cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(one, "content")))
            return err_set(err, ERR_FORMAT, "%s: message %d has no role or no content", path, i);
    }
    return OK;
}

/* Takes the messages over; o was checked. */
static bool take_messages(struct talk *t, const cJSON *o)
{
    const cJSON *one;
    free(t->system);
    t->system = NULL;
    if (!talk_clear(t)) return false;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(o, "messages")) {
        const char *role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(one, "role"));
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(one, "content"));
        const cJSON *thinking = cJSON_GetObjectItemCaseSensitive(one, "reasoning_content");
        if (!talk_add(t, role, text, cJSON_GetStringValue(thinking))) return false;
        if (t->n_msgs == 1 && !strcmp(role, "system")) t->system = strdup(text);
    }
    return true;
}

/* Takes over how the conversation was cut into tokens; true when the session holds the beginning
 * of that. */
static bool take_ids(struct talk *t, const cJSON *o)
{
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(o, "ids"), *one;
    int n = cJSON_GetArraySize(ids), i = 0;
    int n_vocab = tessera_model(t->e).n_vocab, n_kv = tessera_session_n(t->s);
    const int32_t *kv = tessera_session_ids(t->s);
    if (!cJSON_IsArray(ids) || !n) return false;
    int32_t *copy = malloc((size_t)n * sizeof *copy);
    if (!copy) return false;
    cJSON_ArrayForEach(one, ids) {
        if (!cJSON_IsNumber(one) || one->valuedouble < 0 || one->valuedouble >= n_vocab) break;
        copy[i++] = one->valueint;
    }
    free(t->ids);
    t->ids = copy;
    t->n_ids = i;
    t->cap_ids = n;
    return n_kv <= i && (!n_kv || !memcmp(copy, kv, (size_t)n_kv * sizeof *kv));
}

static void take(struct talk *t, const cJSON *o, const char *path, const char *kv)
{
    struct err err;
    err_clear(&err);
    if (!take_messages(t, o)) return;
    fprintf(stderr, "loaded %d messages from %s\n", t->n_msgs, path);
    enum status s = tessera_session_load(t->s, kv, &err);
    bool follows = take_ids(t, o);
    if (s)
        fprintf(stderr, "its KV cache does not serve (%s): the next message reads everything "
                        "anew\n", err.msg[0] ? err.msg : err_name(err.code));
    else if (!follows)
        fprintf(stderr, "its KV cache is of another conversation: the next message reads what "
                        "differs anew\n");
}

void talk_load(struct talk *t, const char *path)
{
    struct err err;
    char kv[PATH_MAX], *text;
    size_t n;
    err_clear(&err);
    if (!kv_path(path, kv)) return;
    if (cli_read_file(path, &text, &n, &err)) {
        (void)cli_fail(&err);
        return;
    }
    cJSON *o = cJSON_ParseWithLength(text, n);
    free(text);
    if (check_json(o, path, &err))
        (void)cli_fail(&err);
    else
        take(t, o, path, kv);
    cJSON_Delete(o);
}
