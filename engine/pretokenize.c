// pretokenize.c: the word patterns of byte-level BPE vocabularies, as functions.
//
// A splitter is a list of expressions, applied one after the other. Each cuts every piece left by those before it into
// matches and the gaps between them, and sees nothing beyond its piece. An expression is a function: how many code points
// does it match at position p of cp[0, n)? 0 = none. The regular expression each one stands for is written above it, with
// \p{L} as L and so on; alternatives in order, quantifiers greedy. O is [^\s\p{L}\p{N}].
#include "pretokenize.h"

#include "unicode.h"

typedef int Expression(const uint32_t *cp, int p, int n);
struct Splitter { Expression *expression[8]; };

// -- pieces of expressions: all return the position after what they match, p if nothing ------------------------------------

typedef bool Class(uint32_t cp);
static int many(Class *in, const uint32_t *cp, int p, int n) {
    while (p < n && in(cp[p])) p++;
    return p;
}

static int few(Class *in, int most, const uint32_t *cp, int p, int n) { return many(in, cp, p, min_int(n, p + most)); }

static bool is_other(uint32_t c) { return !is_space(c) && !is_letter(c) && !is_number(c); }
static bool is_newline(uint32_t c) { return c == '\r' || c == '\n'; }
static bool is_newline_or_slash(uint32_t c) { return is_newline(c) || c == '/'; }
static bool is_ascii_digit(uint32_t c) { return c >= '0' && c <= '9'; }

// \s*[\r\n]+ | \s+(?!\S) | \s+     A run of white space keeps its last character for the word that follows.
static int spaces(const uint32_t *cp, int p, int n) {
    const int end = many(is_space, cp, p, n);
    for (int i = end; i > p; i--)
        if (is_newline(cp[i - 1])) return i;
    return end < n && end - p > 1 ? end - 1 : end;
}

// 's 't 're 've 'm 'll 'd
static int contraction(const uint32_t *cp, int p, int n, bool any_case) {
    if (cp[p] != '\'') return p;
    char c[2] = {0};
    for (int i = 0; i < 2 && p + 1 + i < n; i++) {
        const uint32_t x = cp[p + 1 + i];
        c[i] = x >= 'A' && x <= 'Z' && any_case ? (char)(x | 0x20) : x < 0x80 ? (char)x : '?';
    }
    if (c[0] && strchr("stmd", c[0])) return p + 2;
    if ((c[0] == 'r' && c[1] == 'e') || (c[0] == 'v' && c[1] == 'e') || (c[0] == 'l' && c[1] == 'l')) return p + 3;
    return p;
}

//  ?X+
static int with_space(Class *in, const uint32_t *cp, int p, int n) {
    const int from = p + (cp[p] == ' ');
    const int end = many(in, cp, from, n);
    return end > from ? end : p;
}

// -- GPT-2 and what is put in front of it ----------------------------------------------------------------------------------

// 's|'t|'re|'ve|'m|'ll|'d | ?L+ | ?N+ | ?O+ | \s+(?!\S) | \s+
static int gpt2(const uint32_t *cp, int p, int n) {
    int end = contraction(cp, p, n, false);
    if (end == p) end = with_space(is_letter, cp, p, n);
    if (end == p) end = with_space(is_number, cp, p, n);
    if (end == p) end = with_space(is_other, cp, p, n);
    if (end == p) {
        end = many(is_space, cp, p, n);
        if (end < n && end - p > 1) end--;
    }
    return end - p;
}

static int one_number(const uint32_t *cp, int p, int n) { return few(is_number, 1, cp, p, n) - p; }    // N
static int three_numbers(const uint32_t *cp, int p, int n) { return few(is_number, 3, cp, p, n) - p; } // N{1,3}
static int numbers(const uint32_t *cp, int p, int n) { return many(is_number, cp, p, n) - p; }         // N+

// [0-9][0-9][0-9]
static int three_digits(const uint32_t *cp, int p, int n) { return few(is_ascii_digit, 3, cp, p, n) == p + 3 ? 3 : 0; }

// [P$+<=>^~|]+
static bool is_default_mark(uint32_t c) { return is_punctuation(c) || (c < 0x80 && c && strchr("$+<=>^~|", (int)c)); }
static int default_marks(const uint32_t *cp, int p, int n) { return many(is_default_mark, cp, p, n) - p; }
// the same and `
static bool is_falcon_mark(uint32_t c) { return is_default_mark(c) || c == '`'; }
static int falcon_marks(const uint32_t *cp, int p, int n) { return many(is_falcon_mark, cp, p, n) - p; }

// -- Llama 3 and its relatives ---------------------------------------------------------------------------------------------

// (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\nLN]?L+ | N{1,most} | ?O+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+
static int llama3_like(const uint32_t *cp, int p, int n, int most) {
    int end = contraction(cp, p, n, true);
    if (end > p) return end - p;
    const bool lead = !is_newline(cp[p]) && !is_number(cp[p]) && !is_letter(cp[p]);
    end = many(is_letter, cp, p + lead, n);
    if (end > p + lead) return end - p;
    end = few(is_number, most, cp, p, n);
    if (end > p) return end - p;
    end = with_space(is_other, cp, p, n);
    if (end > p) return many(is_newline, cp, end, n) - p;
    return spaces(cp, p, n) - p;
}

static int llama3(const uint32_t *cp, int p, int n) { return llama3_like(cp, p, n, 3); }
static int qwen2(const uint32_t *cp, int p, int n) { return llama3_like(cp, p, n, 1); }
static int minicpm(const uint32_t *cp, int p, int n) { return llama3_like(cp, p, n, n); }

// -- Tekken, GPT-4o --------------------------------------------------------------------------------------------------------

// The originals tell upper from lower case by Unicode; the reference only in ASCII: other letters count as both.
static bool is_upper(uint32_t c) { return is_letter(c) && !(c >= 'a' && c <= 'z'); }
static bool is_lower(uint32_t c) { return is_letter(c) && !(c >= 'A' && c <= 'Z'); }

// [^\r\nLN]?U*W+ | [^\r\nLN]?U+W*     U = is_upper, W = is_lower
static int cased_word(const uint32_t *cp, int p, int n) {
    for (int lead = !is_newline(cp[p]) && !is_number(cp[p]) && !is_letter(cp[p]), from = p + lead; lead >= 0; lead--, from--) {
        const int upper = many(is_upper, cp, from, n);
        for (int i = upper; i >= from; i--) { // U* gives back until W+ finds something
            const int end = many(is_lower, cp, i, n);
            if (end > i) return end;
        }
        if (upper > from) return upper;
    }
    return p;
}

static int tekken(const uint32_t *cp, int p, int n) {
    int end = cased_word(cp, p, n);
    if (end > p) return end - p;
    if (is_number(cp[p])) return 1;
    end = with_space(is_other, cp, p, n);
    if (end > p) return many(is_newline_or_slash, cp, end, n) - p;
    return spaces(cp, p, n) - p;
}

static int gpt4o(const uint32_t *cp, int p, int n) {
    int end = cased_word(cp, p, n);
    if (end > p) return (end < n ? contraction(cp, end, n, true) : end) - p;
    end = few(is_number, 3, cp, p, n);
    if (end > p) return end - p;
    end = with_space(is_other, cp, p, n);
    if (end > p) return many(is_newline_or_slash, cp, end, n) - p;
    return spaces(cp, p, n) - p;
}

// -- DeepSeek --------------------------------------------------------------------------------------------------------------

static int one_newline(const uint32_t *cp, int p, int n) {
    (void)n;
    return is_newline(cp[p]);
}

// \s?X+     U+3000 is white space and in a class X: alone it is given back by \s?
static int with_any_space(Class *in, const uint32_t *cp, int p, int n) {
    const int from = p + is_space(cp[p]), end = many(in, cp, from, n);
    return end > from ? end - p : from > p && in(cp[p]);
}

static int coder_letters(const uint32_t *cp, int p, int n) { return with_any_space(is_letter, cp, p, n); }
static int coder_marks(const uint32_t *cp, int p, int n) { return with_any_space(is_punctuation, cp, p, n); }
static int llm_letters(const uint32_t *cp, int p, int n) { return with_any_space(is_cased_letter, cp, p, n); }

static bool is_llm_mark(uint32_t c) {
    return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x7E) || (c >= 0xFF01 && c <= 0xFF0F) || (c >= 0xFF1A && c <= 0xFF5E) ||
           (c >= 0x2018 && c <= 0x201F) || (c >= 0x3000 && c <= 0x3002);
}
static int llm_marks(const uint32_t *cp, int p, int n) { return with_any_space(is_llm_mark, cp, p, n); }

// \s+$
static int trailing_spaces(const uint32_t *cp, int p, int n) { return many(is_space, cp, p, n) == n ? n - p : 0; }

static bool is_cjk(uint32_t c) { return (c >= 0x0800 && c <= 0x9FA5) || (c >= 0xAC00 && c <= 0xD7FF); }
static int cjk(const uint32_t *cp, int p, int n) { return many(is_cjk, cp, p, n) - p; }
static bool is_cjk_kana(uint32_t c) { return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF); }
static int cjk_kana(const uint32_t *cp, int p, int n) { return many(is_cjk_kana, cp, p, n) - p; }

// [ASCII punctuation][A-Za-z]+ | [^\r\nLPS]?[LM]+ | ?[PS]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+      ~ is not in S here
static bool is_ascii_letter(uint32_t c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }
static bool is_v3_mark(uint32_t c) { return c != '~' && (is_punctuation(c) || is_symbol(c)); }
static bool is_v3_letter(uint32_t c) { return is_letter(c) || is_mark(c); }
static int deepseek_v3(const uint32_t *cp, int p, int n) {
    const uint32_t c = cp[p];
    if ((c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E)) {
        const int end = many(is_ascii_letter, cp, p + 1, n);
        if (end > p + 1) return end - p;
    }
    const bool lead = !is_newline(c) && !is_letter(c) && !is_v3_mark(c);
    int end = many(is_v3_letter, cp, p + lead, n);
    if (end > p + lead) return end - p;
    if (lead && is_mark(c)) return 1; // the optional character given back: the mark alone
    end = with_space(is_v3_mark, cp, p, n);
    if (end > p) return many(is_newline, cp, end, n) - p;
    return spaces(cp, p, n) - p;
}

// -- splitters and names ---------------------------------------------------------------------------------------------------

static const Splitter GPT2 = {{gpt2}}, DIGIT1 = {{one_number, gpt2}}, LLAMA3 = {{llama3}}, QWEN2 = {{qwen2}};
static const Splitter MINICPM = {{three_numbers, minicpm}}, TEKKEN = {{tekken}}, GPT4O = {{gpt4o}};
static const Splitter DEFAULT = {{default_marks, gpt2, numbers, three_digits}}, FALCON = {{falcon_marks, gpt2, three_digits}};
static const Splitter DEEPSEEK_CODER = {{one_newline, coder_letters, coder_marks, cjk, one_number}};
static const Splitter DEEPSEEK_LLM = {{one_newline, llm_letters, llm_marks, trailing_spaces, cjk, numbers}};
static const Splitter DEEPSEEK_V3 = {{three_numbers, cjk_kana, deepseek_v3}};

// One row per behaviour; names separated by blanks.
static const PreTokenizer PRE[] = {
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", &LLAMA3, PRE_IGNORE_MERGES | PRE_ADD_BOS},
    {"smaug-bpe dbrx", &LLAMA3, 0},
    {"glm4 chatglm-bpe", &LLAMA3, PRE_NO_DEFAULT_IDS},
    {"qwen2 deepseek-r1-qwen hunyuan solar-open kormo f2llmv2 grok-2 stablelm2 megrez", &QWEN2, 0},
    {"gpt-2 phi-2 mpt olmo jais exaone4 gigachat mellum a.x-4.0 modern-bert trillion granite-docling", &GPT2, 0},
    {"smollm command-r starcoder refact codeshell exaone minerva-7b mellum2", &DIGIT1, 0},
    {"default", &DEFAULT, 0},
    {"falcon", &FALCON, 0},
    {"deepseek-llm", &DEEPSEEK_LLM, 0},
    {"deepseek-coder", &DEEPSEEK_CODER, 0},
    {"deepseek-v3 hunyuan-dense joyai-llm", &DEEPSEEK_V3, 0},
    {"tekken", &TEKKEN, PRE_IGNORE_MERGES | PRE_ADD_BOS},
    {"gpt-4o llama4 kanana2", &GPT4O, 0},
    {"minicpm5", &MINICPM, PRE_IGNORE_MERGES},
};

const PreTokenizer *pretokenizer_by_name(const char *name, size_t n) {
    if (!n || memchr(name, ' ', n)) return NULL;
    for (size_t i = 0; i < sizeof PRE / sizeof PRE[0]; i++)
        for (const char *p = PRE[i].names; p; p = strchr(p, ' ')) {
            p += *p == ' ';
            if (strcspn(p, " ") == n && memcmp(p, name, n) == 0) return &PRE[i];
        }
    return NULL;
}

int pretokenize(const Splitter *s, const uint32_t *cp, int n, int *ends, int *scratch) {
    int n_piece = n > 0;
    if (n > 0) ends[0] = n;
    for (int x = 0; x < 8 && s->expression[x]; x++) {
        int n_next = 0, from = 0;
        for (int i = 0; i < n_piece; i++) {
            const int end = ends[i], length = end - from;
            const uint32_t *piece = cp + from;
            for (int p = 0, gap = 0; p < length;) {
                const int matched = s->expression[x](piece, p, length);
                if (matched > 0) {
                    if (p > gap) scratch[n_next++] = from + p;
                    scratch[n_next++] = from + p + matched;
                    gap = p += matched;
                } else if (++p == length) scratch[n_next++] = end;
            }
            from = end;
        }
        memcpy(ends, scratch, sizeof *ends * (size_t)n_next);
        n_piece = n_next;
    }
    return n_piece;
}
