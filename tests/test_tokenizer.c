// test_tokenizer.c: Unicode tables, word splitting, and whole vocabularies against ids made by an independent program.
#include <time.h>

#include "pretokenize.h"
#include "test.h"
#include "tokenizer.h"
#include "unicode.h"

// ---- Unicode ----

static uint32_t crc32_of(const uint8_t *p, size_t n) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static void test_categories(void) {
    static const struct { const char *name; bool (*in)(uint32_t); uint32_t crc; } T[] = { // spec: CRC-32 of the bitmap of all code points
        {"L", is_letter, 0xae359fd6}, {"N", is_number, 0x0c7e959c}, {"P", is_punctuation, 0xefdeeb61}, {"M", is_mark, 0x443c91dd}, {"S", is_symbol, 0xae14a993}};
    static uint8_t bitmap[0x110000 / 8];
    for (int i = 0; i < 5; i++) {
        memset(bitmap, 0, sizeof bitmap);
        for (uint32_t c = 0; c < 0x110000; c++)
            if (T[i].in(c)) bitmap[c >> 3] |= (uint8_t)(1 << (c & 7));
        CHECK(crc32_of(bitmap, sizeof bitmap) == T[i].crc, "category %s: CRC %08x, expected %08x", T[i].name, crc32_of(bitmap, sizeof bitmap), T[i].crc);
    }
    int n = 0;
    for (uint32_t c = 0; c < 0x110000; c++) n += is_space(c);
    CHECK(n == 25, "%d white space characters, expected 25", n);
}

static void test_utf8(void) {
    for (uint32_t c = 0; c < 0x110000; c += 7) {
        char b[4];
        uint32_t back;
        const int n = utf8_encode(c, b), m = utf8_decode(b, (size_t)n, &back);
        if (n != m || back != c || utf8_length(b[0]) != n) {
            CHECK(false, "U+%04X: %d bytes, decoded U+%04X from %d", c, n, back, m);
            return;
        }
    }
    uint32_t c;
    CHECK(utf8_decode("\xE2\x96", 2, &c) == 1 && c == 0xFFFD, "a cut sequence is U+FFFD, one byte");
    CHECK(utf8_decode("\xF4\x90\x80\x80", 4, &c) == 1 && c == 0xFFFD, "above 10FFFF is U+FFFD");
    CHECK(utf8_decode("\xC0\x80", 2, &c) == 2 && c == 0, "overlong forms are decoded, as the reference does");
}

static void test_stream(void) {
    const char *text = "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"; // 2, 3 and 4 bytes
    Utf8Stream s = {0};
    char *out = NULL;
    size_t n = 0, cap = 0;
    for (size_t i = 0; i < 9; i++) {
        CHECK(utf8_stream_push(&s, text + i, 1, false, &out, &n, &cap), "push");
        const size_t whole = i < 1 ? 0 : i < 4 ? 2 : i < 8 ? 5 : 9;
        CHECK(n == whole, "after byte %zu: %zu bytes are out, expected %zu", i, n, whole);
    }
    CHECK(n == 9 && memcmp(out, text, 9) == 0, "the text comes out as it went in");
    n = 0;
    CHECK(utf8_stream_push(&s, "\xF0\x9F" "a\xFF" "b\xE2", 6, true, &out, &n, &cap), "push");
    CHECK(n == 11 && memcmp(out, "\xEF\xBF\xBD" "a\xEF\xBF\xBD" "b\xEF\xBF\xBD", 11) == 0, "what is no UTF-8 is replaced, also an unfinished end");
    s = (Utf8Stream){.strip_space = true};
    n = 0;
    CHECK(utf8_stream_push(&s, " a", 2, false, &out, &n, &cap) && utf8_stream_push(&s, " b", 2, false, &out, &n, &cap), "push");
    CHECK(n == 3 && memcmp(out, "a b", 3) == 0, "only the first blank is dropped");
    free(out);
}

// ---- words ----

// words are separated by | in the expectation
static void words(const char *pre, const char *text, const char *expected) {
    uint32_t cp[256];
    int ends[256], scratch[256], n = 0;
    const size_t length = strlen(text);
    for (size_t i = 0; i < length;) i += (size_t)utf8_decode(text + i, length - i, &cp[n++]);
    const PreTokenizer *p = pretokenizer_by_name(pre, strlen(pre));
    CHECK(p, "pre-tokenizer %s is known", pre);
    if (!p) return;
    const int n_word = pretokenize(p->splitter, cp, n, ends, scratch);
    char got[1024];
    size_t at = 0;
    for (int w = 0, i = 0; w < n_word; w++) {
        if (w) got[at++] = '|';
        for (; i < ends[w]; i++) at += (size_t)utf8_encode(cp[i], got + at);
    }
    got[at] = 0;
    CHECK(strcmp(got, expected) == 0, "%s splits '%s' into '%s', expected '%s'", pre, text, got, expected);
}

static void test_words(void) {
    words("llama-bpe", "I'M here's (foo) 12345\n\n  x \t\n  end  ", "I|'M| here|'s| (|foo|)| |123|45|\n\n| | x| \t\n| | end|  ");
    words("llama-bpe", "(foo", "(foo");
    words("llama3", "a'RE b", "a|'RE| b");
    words("qwen2", "x 12345", "x| |1|2|3|4|5");
    words("gpt-2", "I'M he's 12345  end \n\n", "I|'|M| he|'s| 12345| | end| \n\n");
    words("starcoder", "ab 123 c", "ab| |1|2|3| c");
    words("default", "a+b (1234)", "a|+|b| |(|123|4|)");
    words("falcon", "a`b 12345", "a|`|b| |123|45");
    words("deepseek-llm", "Hi there.\n\xE4\xBD\xA0\xE5\xA5\xBD 123 ", "Hi| there|.|\n|\xE4\xBD\xA0\xE5\xA5\xBD| |123| ");
    words("deepseek-coder", "a b,1 2\n", "a| b|,|1| |2|\n");
    words("deepseek-v3", "1234 a.b (x)\n", "123|4| a|.b| (|x|)\n");
    words("tekken", "HelloWORLD aB 12/\n", "Hello|WORLD| a|B| |1|2|/\n");
    words("gpt-4o", "HelloWorld's 1234 DON'T", "Hello|World's| |123|4| DON'T");
    words("minicpm5", "ab 12345", "ab| |123|45");
    CHECK(!pretokenizer_by_name("kimi-k2", 7) && !pretokenizer_by_name("", 0) && !pretokenizer_by_name("gpt-2 phi-2", 11), "unknown names are refused");
}

// ---- vocabularies ----

static char *whole_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    char *p = NULL;
    *n = 0;
    if (f && fseek(f, 0, SEEK_END) == 0) {
        *n = (size_t)ftell(f);
        rewind(f);
        p = calloc(1, *n + 1);
        if (p && fread(p, 1, *n, f) != *n) *n = 0;
    }
    if (f) fclose(f);
    return p;
}

static void decoded(const Tokenizer *t, const Ids *ids, char **out, size_t *n) {
    Utf8Stream s = {0};
    size_t cap = 0;
    *out = calloc(1, 1);
    *n = 0;
    for (int i = 0; i < ids->n; i++) {
        size_t m;
        const char *p = tokenizer_bytes(t, ids->id[i], false, &m);
        if (!utf8_stream_push(&s, p, m, i + 1 == ids->n, out, n, &cap)) return;
    }
}

static void test_vocab(const char *name, bool round_trip) {
    char path[512], file[64];
    size_t n_in, n_out;
    snprintf(file, sizeof file, "vocab/%s.gguf", name);
    if (!shared_path(file)) {
        test_skip(file);
        return;
    }
    snprintf(path, sizeof path, "%s", shared_path(file));
    Gguf g;
    Tokenizer *t = NULL;
    Err e = {0};
    CHECK(gguf_open(&g, path, &e) && tokenizer_open(&t, &g, &e), "%s", e.text);
    if (!t) return;
    strcpy(path + strlen(path) - 4, "inp");
    char *in = whole_file(path, &n_in);
    strcpy(path + strlen(path) - 3, "out");
    char *out = whole_file(path, &n_out);
    const char mark[] = "\n__ggml_vocab_test__\n";
    int n_text = 0;
    char *line = out;
    for (char *p = in; p && line && *line; n_text++) {
        char *next = strstr(p, mark);
        const size_t n = next ? (size_t)(next - p) : (size_t)(in + n_in - p);
        Ids ids = {0};
        CHECK(tokenizer_encode(t, p, n, false, false, &ids, &e), "%s", e.text);
        char *end = strchr(line, '\n');
        int i = 0;
        bool same = true;
        for (char *q = line; q < (end ? end : line + strlen(line));) {
            char *stop;
            const long id = strtol(q, &stop, 10);
            if (stop == q) break;
            same = same && i < ids.n && ids.id[i] == id;
            i++;
            q = stop + strspn(stop, " ");
        }
        CHECK(same && i == ids.n, "%s, text %d (%.*s): ids differ", name, n_text, (int)n, p);
        if (round_trip) {
            char *back;
            size_t n_back;
            decoded(t, &ids, &back, &n_back);
            CHECK(n_back == n && memcmp(back, p, n) == 0, "%s, text %d: decodes to '%s'", name, n_text, back);
            free(back);
        }
        ids_free(&ids);
        p = next ? next + strlen(mark) : NULL;
        line = end ? end + 1 : NULL;
    }
    CHECK(n_text >= 40, "%s: %d texts", name, n_text);

    // Long texts without a break are one merge problem: it must not be quadratic.
    char *text = malloc(100001);
    for (int i = 0; i < 100000; i++) text[i] = "the quick brown fox, jumps  over "[i % 33];
    Ids ids = {0};
    const clock_t start = clock();
    CHECK(tokenizer_encode(t, text, 100000, true, true, &ids, &e), "%s", e.text);
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK(seconds < 3, "%s: 100 kB take %.2f s", name, seconds); // the sanitizers are slow; 0.05 s without
    if (getenv("VERBOSE")) printf("%s: %d texts, 100 kB in %.3f s\n", name, n_text, seconds);
    ids_free(&ids);
    free(text);
    free(in);
    free(out);
    tokenizer_close(t);
    gguf_close(&g);
}

static void test_llama3_specials(void) {
    const char *path = shared_path("vocab/llama-bpe.gguf");
    if (!path) {
        test_skip("vocab/llama-bpe.gguf");
        return;
    }
    Gguf g;
    Tokenizer *t = NULL;
    Err e = {0};
    CHECK(gguf_open(&g, path, &e) && tokenizer_open(&t, &g, &e), "%s", e.text);
    if (!t) return;
    static const int EXPECTED[] = {128000, 128006, 882, 128007, 271, 9906, 11, 1917, 0, 220, 4513, 1774, 128009, 128006, 78191, 128007, 271};
    const char *text = "<|start_header_id|>user<|end_header_id|>\n\nHello, world! 12345<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    Ids ids = {0}, parts = {0}, user = {0};
    CHECK(tokenizer_encode(t, text, strlen(text), true, true, &ids, &e), "%s", e.text);
    CHECK(ids.n == 17 && memcmp(ids.id, EXPECTED, sizeof EXPECTED) == 0, "a Llama 3 prompt has the published ids");
    const Segment s[] = {{text, 40, true}, {text + 40, 4, true}, {text + 44, 11, false}, {text + 55, strlen(text) - 55, true}};
    CHECK(tokenizer_encode_segments(t, s, 4, true, &parts, &e), "%s", e.text);
    CHECK(parts.n == ids.n && memcmp(parts.id, ids.id, sizeof(int) * (size_t)ids.n) == 0, "cut into segments it has the same ids");
    const Segment typed[] = {{"a", 1, true}, {"<|eot_id|>", 10, false}};
    CHECK(tokenizer_encode_segments(t, typed, 2, false, &user, &e), "%s", e.text);
    for (int i = 0; i < user.n; i++) CHECK(!tokenizer_is_control(t, user.id[i]), "what a user types is no control token");
    CHECK(tokenizer_is_end(t, tokenizer_find(t, "<|eot_id|>", 10)) && tokenizer_is_end(t, tokenizer_find(t, "<|end_of_text|>", 15)), "Llama 3 ends");
    ids_free(&ids);
    ids_free(&parts);
    ids_free(&user);
    tokenizer_close(t);
    gguf_close(&g);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_categories();
    test_utf8();
    test_stream();
    test_words();
    test_vocab("llama-spm", false);
    test_vocab("llama-bpe", true);
    test_vocab("gemma4-small", true);
    test_llama3_specials();
    return test_end();
}
