/* Fuzz target of what is read from Hugging Face folders.  The first byte of an input chooses what
 * the rest is: 0 a safetensors file, 1 an index whose files are there, 2 tokenizer.json, 3
 * tokenizer.model, 4 tokenizer_config.json and 5 generation_config.json beside a good
 * tokenizer.json.  It must be refused with a message, or give a writable header.  Everything else
 * of the folder is good and lies in memory.
 *
 * Built with -DFUZZER and -fsanitize=fuzzer it is a libFuzzer target; otherwise fuzz_main.h replays
 * files, and `--seeds FOLDER` writes inputs to begin with. */
#include <stdio.h>
#include <stdlib.h>

#include "moe/load/hf_vocab.h"
#include "moe/load/safetensors.h"
#include "tests/memfile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { SAFETENSORS, INDEX, TOKENIZER, MODEL, CONFIG, GENERATION, KINDS };

static const char *const paths[KINDS] = {
    "d/model.safetensors", "d/model.safetensors.index.json", "d/tokenizer.json",
    "d/tokenizer.model",   "d/tokenizer_config.json",        "d/generation_config.json",
};
static const char shard[] =
    "\x38\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}  1234";
static const char config[] = "{\"vocab_size\":12,\"bos_token_id\":1,\"eos_token_id\":[2,3]}";
static const char tokenizer[] =
    "{\"added_tokens\":[{\"id\":8,\"content\":\"<s>\",\"special\":true},{\"id\":9,\"content\":\"<"
    "u\\u2581>\","
    "\"special\":false}],\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":"
    "\"Sequence\","
    "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}\"},\"behavior\":"
    "\"Isolated\",\"invert\":false},{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":"
    "\"ByteLevel\",\"use_regex\":true}]},\"post_processor\":{\"type\":\"TemplateProcessing\","
    "\"single\":["
    "{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}]},\"model\":{\"type\":"
    "\"BPE\","
    "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\",[\"a\",\"b\"]]}}";
static const char spm_tokenizer[] = "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{"
                                    "\"type\":\"Prepend\",\"prepend\":\"x\"},"
                                    "{\"type\":\"Replace\"}]},\"pre_tokenizer\":{\"type\":"
                                    "\"Metaspace\",\"prepend_scheme\":\"first\"},"
                                    "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{"
                                    "\"<0x41>\":0,\"a\":1,\"aa\":2},"
                                    "\"merges\":[[\"a\",\"a\"]]}}";
static const char token_config[] = "{\"bos_token\":{\"content\":\"a\"},\"eos_token\":\"ab\",\"add_"
                                   "bos_token\":true,\"add_prefix_space\":"
                                   "false,\"added_tokens_decoder\":{\"4\":{\"content\":\"<x>\","
                                   "\"special\":true}},\"chat_template\":[{"
                                   "\"name\":\"default\",\"template\":\"x\"},{\"name\":\"tool\","
                                   "\"template\":\"y\"}]}";
static const char generation[] = "{\"eos_token_id\":[2,1,0,99]}";
/* A trainer of kind 2 (BPE), then pieces "<unk>" (unknown), "a" with a score. */
static const char model[] = "\x12\x02\x18\x02\x0a\x09\x0a\x05<unk>"
                            "\x18\x02\x0a\x08\x0a\x01\x61\x15\0\0\x80\xbf";

static void check(int good)
{
    if (!good) abort();
}

static void use_tensors(void)
{
    struct st *s;
    struct err e;
    char buf[64];
    err_clear(&e);
    enum status st = st_open("d", &memfile_ops, &s, &e);
    check((st == OK) == (s != NULL) && st == e.code && (st == OK || e.msg[0]));
    for (uint64_t i = 0; s && i < st_n(s); i++) {
        const struct st_tensor *t = st_at(s, i);
        check(st_find(s, t->name) == t && t->shard < st_n_shards(s));
        const uint64_t n = t->bytes < sizeof buf ? t->bytes : sizeof buf;
        check(st_read(s, t, buf, n, t->bytes - n, &e) == OK);
        check(st_width(t->type) == 0 ||
              t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3] * (uint64_t)st_width(t->type) ==
                  t->bytes);
    }
    st_close(s);
}

static void use_vocabulary(const char *pre)
{
    struct hf_vocab *v;
    struct err e;
    cJSON *c = cJSON_Parse(config);
    err_clear(&e);
    enum status st = hf_vocab_open("d", &memfile_ops, c, pre, &v, &e);
    check(c && (st == OK) == (v != NULL) && st == e.code && (st == OK || e.msg[0]));
    cJSON_Delete(c);
    if (!v) return;
    struct gguf_writer *w = gguf_writer_new();
    check(w != NULL);
    hf_vocab_put(v, w, false);
    hf_vocab_close(v);
    check(gguf_writer_begin(w, "/dev/null", &e) == OK && gguf_writer_end(w, &e) == OK);
    gguf_writer_close(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (!n || data[0] >= KINDS) return 0;
    const int kind = data[0];
    char *copy = malloc(n); /* of its exact size: a sanitizer sees any overrun */
    check(copy != NULL);
    memcpy(copy, data + 1, n - 1);
    memfile_reset();
    memfile_add(paths[kind], copy, n - 1, n - 1);
    if (kind == INDEX) {
        memfile_add("d/model.safetensors", shard, sizeof shard - 1, sizeof shard - 1);
        memfile_add("d/b.safetensors", shard, sizeof shard - 1, sizeof shard - 1);
    }
    if (kind >= CONFIG) {
        memfile_add(paths[TOKENIZER], tokenizer, sizeof tokenizer - 1, sizeof tokenizer - 1);
        memfile_add(paths[MODEL], model, sizeof model - 1, sizeof model - 1);
    }
    if (kind <= INDEX) {
        use_tensors();
    } else {
        use_vocabulary(NULL);
        use_vocabulary("qwen2");
    }
    check(memfile_io.opened == memfile_io.closed);
    free(copy);
    return 0;
}

#ifndef FUZZER
static void save(const char *folder, const char *name, int first, const void *p, size_t n)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    check(f && fputc(first, f) != EOF && fwrite(p, 1, n, f) == n && !fclose(f));
}

static int write_seeds(const char *folder)
{
    static const char index[] = "{\"weight_map\":{\"a\":\"b.safetensors\"}}";
    save(folder, "safetensors", SAFETENSORS, shard, sizeof shard - 1);
    save(folder, "index", INDEX, index, sizeof index - 1);
    save(folder, "tokenizer", TOKENIZER, tokenizer, sizeof tokenizer - 1);
    save(folder, "tokenizer-spm", TOKENIZER, spm_tokenizer, sizeof spm_tokenizer - 1);
    save(folder, "model", MODEL, model, sizeof model - 1);
    save(folder, "config", CONFIG, token_config, sizeof token_config - 1);
    save(folder, "generation", GENERATION, generation, sizeof generation - 1);
    return 0;
}
#define FUZZ_SEEDS write_seeds
#endif

#include "tests/fuzz_main.h"
