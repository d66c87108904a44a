/* The table of pre-tokenizers: how byte-level BPE vocabularies cut text into words before merging.
 *
 * The expressions are facts of the vocabularies (their makers publish them in tokenizer.json); the
 * names are those that GGUF files carry in tokenizer.ggml.pre.  A new name is one line in `table`.
 * Constant data; compiles nothing.
 *
 * Written for PCRE2 in UTF mode without UCP: \p is Unicode, and white space is spelled out as the
 * White_Space property (PCRE2's own \s also holds U+180E).  Every expression must run in linear
 * time on any text: no nested repeats, and after a repeat either the end or something that its last
 * characters can satisfy (tests/test_tok.c feeds each of them a megabyte of every kind). */
#include <string.h>

#include "moe/load/tok_int.h"

#define WS                                                                                      \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
#define SPACES "[" WS "]"
/* A run of spaces but its last, which goes in front of the next word; at the end the whole run. */
#define TAIL SPACES "+(?![^" WS "])|" SPACES "+"
#define LINES SPACES "*[\\r\\n]+|"
#define SHORT_FORMS "'s|'t|'re|'ve|'m|'ll|'d|"
#define SHORT_FORMS_ANY "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define LETTERS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define MARKS " ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|"

/* GPT-2, and most vocabularies before 2023. */
#define GPT2 SHORT_FORMS " ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" TAIL

/* Qwen 2 and 3: digits alone.  Llama 3 (cl100k): digits in threes. */
#define QWEN2 SHORT_FORMS_ANY "|" LETTERS "\\p{N}|" MARKS LINES TAIL
#define LLAMA3 SHORT_FORMS_ANY "|" LETTERS "\\p{N}{1,3}|" MARKS LINES TAIL

/* Qwen 3.5: marks (accents, vowel signs) belong to the letters. */
#define QWEN35                                                                             \
    SHORT_FORMS_ANY "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS                \
                    "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINES TAIL

/* GPT-4o (o200k), Llama 4: words also end where lower case is followed by upper case.  Tekken
 * (Mistral) is the same without the English short forms and with digits alone.  The published
 * expressions tell the case of all letters and count marks as both; here, as in llama.cpp and in
 * the golden texts, only ASCII has case and marks are no letters. */
#define UPPER "[^\\P{L}a-z]"
#define LOWER "[^\\P{L}A-Z]"
#define CASED(end)                                         \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" end "|" \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" end
#define MARKS_SLASH " ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|"
#define GPT4O CASED(SHORT_FORMS_ANY "?") "|\\p{N}{1,3}|" MARKS_SLASH LINES TAIL
#define TEKKEN CASED("") "|\\p{N}|" MARKS_SLASH LINES TAIL

/* Ling and LLaDA-MoE; Seed-Coder. */
#define BAILING                                                                            \
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|" LETTERS "\\p{N}|" MARKS SPACES "*[\\r\\n]|" \
    TAIL
#define SEED_CODER \
    SHORT_FORMS_ANY "|" LETTERS "\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]+|" LINES TAIL

/* DeepSeek: the letters of its first vocabulary are a list of its own; V3 is closer to the
 * others. */
#define CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define DEEPSEEK_MARKS                                                                        \
    SPACES "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+"
/* Spaces at the end; the look-behind keeps a long run that is not at the end from being tried from
 * each of its characters. */
#define LAST_SPACES "(?<!" SPACES ")" SPACES "++\\z"
#define DEEPSEEK_LLM \
    "[\\r\\n]", SPACES "?[" TOK_DEEPSEEK_LETTERS "]+", DEEPSEEK_MARKS, LAST_SPACES, CJK, \
        "\\p{N}+"
#define DEEPSEEK_CODER "[\\r\\n]", SPACES "?\\p{L}+", SPACES "?\\p{P}+", CJK, "\\p{N}"
#define DEEPSEEK3                                                                          \
    "\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+",                            \
        "[!-/:-@\\[-`{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"           \
        " ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINES TAIL

/* Kimi-K2: Chinese characters together, other words as GPT-4o's published expression has them (case
 * of all letters, marks as letters).  llama.cpp, for this one, does not cut at a change of case. */
#define HAN "\\p{sc:Han}"
#define KIMI_UPPER "[^\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}" HAN "]"
#define KIMI_LOWER "[^\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}" HAN "]"
#define KIMI_K2                                                                            \
    HAN "+|[^\\r\\n\\p{L}\\p{N}]?" KIMI_UPPER "*" KIMI_LOWER "+" SHORT_FORMS_ANY "?|"      \
    "[^\\r\\n\\p{L}\\p{N}]?" KIMI_UPPER "+" KIMI_LOWER "*" SHORT_FORMS_ANY "?|"           \
    "\\p{N}{1,3}|" MARKS LINES TAIL

/* Files that name no pre-tokenizer, or "default": what llama.cpp assumes for them. */
#define DEFAULT "[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"

/*     name               ignore_merges  add_bos  expressions */
static const struct pre table[] = {
    {"default",           false, false, {DEFAULT}},
    {"gpt-2",             false, false, {GPT2}},
    {"phi-2",             false, false, {GPT2}},
    {"gigachat",          false, false, {GPT2}},
    {"mellum",            false, false, {GPT2}},
    {"a.x-4.0",           false, false, {GPT2}},
    {"olmo",              false, false, {GPT2}},
    {"mpt",               false, false, {GPT2}},
    {"jais",              false, false, {GPT2}},
    {"trillion",          false, false, {GPT2}},
    {"exaone4",           false, false, {GPT2}},
    {"granite-docling",   false, false, {GPT2}},
    {"starcoder",         false, false, {"\\p{N}", GPT2}},
    {"refact",            false, false, {"\\p{N}", GPT2}},
    {"command-r",         false, false, {"\\p{N}", GPT2}},
    {"smollm",            false, false, {"\\p{N}", GPT2}},
    {"codeshell",         false, false, {"\\p{N}", GPT2}},
    {"exaone",            false, false, {"\\p{N}", GPT2}},
    {"minerva-7b",        false, false, {"\\p{N}", GPT2}},
    {"mellum2",           false, false, {"\\p{N}", GPT2}},
    {"qwen2",             false, false, {QWEN2}},
    {"deepseek-r1-qwen",  false, false, {QWEN2}},
    {"megrez",            false, false, {QWEN2}},
    {"stablelm2",         false, false, {QWEN2}},
    {"hunyuan",           false, false, {QWEN2}},
    {"solar-open",        false, false, {QWEN2}},
    {"grok-2",            false, false, {QWEN2}},
    {"qwen35",            false, false, {QWEN35}},
    {"llama-bpe",         true,  true,  {LLAMA3}},
    {"llama3",            true,  true,  {LLAMA3}},
    {"llama-v3",          true,  true,  {LLAMA3}},
    {"falcon3",           true,  true,  {LLAMA3}},
    {"falcon-h1",         true,  true,  {LLAMA3}},
    {"pixtral",           true,  true,  {LLAMA3}},
    {"midm-2.0",          true,  true,  {LLAMA3}},
    {"lfm2",              true,  true,  {LLAMA3}},
    {"dbrx",              false, false, {LLAMA3}},
    {"smaug-bpe",         false, false, {LLAMA3}},
    {"glm4",              false, false, {LLAMA3}},
    {"chatglm-bpe",       false, false, {LLAMA3}},
    {"gpt-4o",            false, false, {GPT4O}},
    {"llama4",            false, false, {GPT4O}},
    {"kanana2",           false, false, {GPT4O}},
    {"minimax-m2",        false, false, {GPT4O}},
    {"tekken",            true,  true,  {TEKKEN}},
    {"bailingmoe",        false, false, {BAILING}},
    {"bailingmoe2",       false, false, {BAILING}},
    {"llada-moe",         false, false, {BAILING}},
    {"seed-coder",        false, false, {SEED_CODER}},
    {"deepseek-llm",      false, false, {DEEPSEEK_LLM}},
    {"deepseek-coder",    false, false, {DEEPSEEK_CODER}},
    {"deepseek-v3",       false, false, {DEEPSEEK3}},
    {"hunyuan-dense",     false, false, {DEEPSEEK3}},
    {"joyai-llm",         false, false, {DEEPSEEK3}},
    {"kimi-k2",           false, false, {KIMI_K2}},
};

const char *tok_pre_at(int i)
{
    return i >= 0 && (size_t)i < sizeof table / sizeof *table ? table[i].name : NULL;
}

const struct pre *pre_find(const char *name, size_t n)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strlen(table[i].name) == n && !memcmp(table[i].name, name, n)) return &table[i];
    return NULL;
}
