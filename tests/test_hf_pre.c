/* Which pre-tokenizer a tokenizer.json has: the chains of steps that the makers of vocabularies
 * publish, as they stand in the files (regular expressions as JSON, other scripts' letters as they
 * are), and chains that are none of them.  Those that tests/convert has are not repeated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "moe/load/hf_int.h"

#define SPLIT(re) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" re "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define BYTES(regex) "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":" #regex "}"
#define CHAIN(steps) "{\"type\":\"Sequence\",\"pretokenizers\":[" steps "]}"
#define DIGITS "{\"type\":\"Digits\",\"individual_digits\":true}"
#define CL "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static const struct {
    const char *want;
    bool ignore_merges;
    const char *json;
} cases[] = {
    {"gpt-2", false, BYTES(true)},
    {"gpt-2", false, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true}"},
    {"gpt-2", false, CHAIN(BYTES(true))},
    {"smollm", false, CHAIN(DIGITS "," BYTES(true))},
    {"dbrx", false, CHAIN(SPLIT(CL) "," BYTES(false))},
    {"llama-bpe", true, CHAIN(SPLIT(CL) "," BYTES(false))},
    {"llama-bpe", true,
     CHAIN("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" CL "\"},\"behavior\":\"Removed\",\"invert\":true},"
           BYTES(false))},
    {"qwen35", false,
     CHAIN(SPLIT("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{L}\\\\p{M}]+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{M}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+")
           "," BYTES(false))},
    {"tekken", true,
     CHAIN(SPLIT("[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+")
           "," BYTES(false))},
    {"bailingmoe2", false,
     CHAIN(SPLIT("'(?i:[sdmt]|ll|ve|re)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?+\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]++[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]|\\\\s+(?!\\\\S)|\\\\s+")
           "," BYTES(false))},
    /* Line ends that stand in the expression themselves. */
    {"seed-coder", false,
     CHAIN(SPLIT("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1}| ?[^\\\\s\\\\p{L}\\\\p{N}\\r\\n]+|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+")
           "," BYTES(false))},
    {"deepseek-coder", false,
     CHAIN(SPLIT("[\\r\\n]") "," SPLIT("\\\\s?\\\\p{L}+") "," SPLIT("\\\\s?\\\\p{P}+") ","
           SPLIT("[一-龥ࠀ-一가-퟿]+") "," DIGITS "," BYTES(false))},
    {"deepseek-v3", false,
     CHAIN(SPLIT("\\\\p{N}{1,3}") "," SPLIT("[一-龥぀-ゟ゠-ヿ]+") ","
           SPLIT("[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+")
           "," BYTES(false))},

    /* None of them. */
    {NULL, false, "{\"type\":\"Whitespace\"}"},
    {NULL, false, "{\"type\":\"BertPreTokenizer\"}"},
    {NULL, false, "{}"},
    {NULL, false, "null"},
    {NULL, false, CHAIN("")},
    {NULL, false, BYTES(false)},
    {NULL, true, BYTES(true)},
    {NULL, true, CHAIN(DIGITS "," BYTES(true))},
    {NULL, false, CHAIN(BYTES(true) "," DIGITS)},
    {NULL, false, CHAIN("{\"type\":\"Digits\",\"individual_digits\":false}," BYTES(true))},
    {NULL, false, "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}"},
    {NULL, false, CHAIN(SPLIT(CL) "," SPLIT(CL) "," BYTES(false))},
    {NULL, false, CHAIN(SPLIT(CL "x") "," BYTES(false))},
    {NULL, false,
     CHAIN("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" CL "\"},\"behavior\":\"Isolated\",\"invert\":true},"
           BYTES(false))},
    {NULL, false, CHAIN("{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"Isolated\"}")},
    {NULL, false, CHAIN(SPLIT("\xff") "," BYTES(false))},
    {NULL, false, CHAIN(DIGITS "," DIGITS "," DIGITS "," DIGITS "," DIGITS "," DIGITS "," DIGITS ","
                        DIGITS "," DIGITS)},
};

static void test_chains(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e;
        err_clear(&e);
        cJSON *x = cJSON_Parse(cases[i].json);
        assert_non_null(x);
        const char *got = hf_pre_name("t.json", cJSON_IsNull(x) ? NULL : x, cases[i].ignore_merges, &e);
        if (!got != !cases[i].want || (got && strcmp(got, cases[i].want)))
            fail_msg("%s: %s, not %s", cases[i].json, got ? got : "none",
                     cases[i].want ? cases[i].want : "none");
        assert_int_equal(e.code, got ? OK : ERR_UNSUPPORTED);
        assert_true(got || (strstr(e.msg, "t.json") && strstr(e.msg, "deepseek-coder")));
        cJSON_Delete(x);
    }
}

/* Every name is one that the tokenizer knows, and merges are treated as it does. */
static void test_names(void **state)
{
    (void)state;
    char names[256];
    int n = 0;
    hf_pre_names(names, sizeof names);
    for (char *p = strtok(names, ", "); p; p = strtok(NULL, ", "), n++)
        if (!pre_find(p, strlen(p))) fail_msg("%s is not known", p);
    assert_int_equal(n, 13);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (cases[i].want)
            assert_int_equal(pre_find(cases[i].want, strlen(cases[i].want))->ignore_merges,
                             cases[i].ignore_merges);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chains),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
