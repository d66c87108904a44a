/* JSON that other programs wrote (config.json, tokenizer.json, headers of safetensors files),
 * parsed by cJSON behind limits of our own.
 *
 * A file cannot choose an allocation: it ends at JF_BYTES_MAX, and the number of values is counted
 * before anything is parsed.  Strings with a zero byte (\u0000) are refused, since cJSON would cut
 * them off there.  What is NOT checked: equal keys in one object (jf_get takes the first), UTF-8.
 * Getters are strict: a number that is no integer, or out of range, is an error and not a
 * guess; JSON null counts as absent.  Owns nothing but what it returns; any thread. */
#ifndef MOE_LOAD_JSONFILE_H
#define MOE_LOAD_JSONFILE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/base/osfile.h"

enum { JF_BYTES_MAX = 256 << 20, JF_VALUES_MAX = 4 << 20 };

/* Parses n bytes; text[n] must exist and be 0.  where names the file in messages, pos is the byte
 * of text[0] in it.  *out NULL on failure: ERR_FORMAT with the byte, ERR_UNSUPPORTED for too much,
 * ERR_MEMORY.  The caller frees with cJSON_Delete. */
enum status jf_parse(const char *where, const char *text, size_t n, uint64_t pos, cJSON **out,
                     struct err *e);

/* A whole file, whose root must be an object.  ERR_IO when it cannot be read. */
enum status jf_read(const char *path, const struct osfile_ops *ops, cJSON **out, struct err *e);

/* The same, but a file that is not there is no error: *out NULL and OK. */
enum status jf_read_if_there(const char *path, const struct osfile_ops *ops, cJSON **out,
                             struct err *e);

/* A whole file as text, malloc'd and terminated; as jf_read_if_there. */
enum status jf_text_if_there(const char *path, const struct osfile_ops *ops, char **out, size_t *n,
                             struct err *e);

/* The member of that exact name, NULL when it is absent or null; o may be NULL. */
const cJSON *jf_get(const cJSON *o, const char *name);
/* Its text, NULL when it is absent or no string. */
const char *jf_str(const cJSON *o, const char *name);
bool jf_true(const cJSON *o, const char *name);

/* Is v a whole number in 0 .. 2^53? */
bool jf_u64(const cJSON *v, uint64_t *out);

#endif
