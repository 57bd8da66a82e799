// fuzz_tokenizer.c: libFuzzer target: any bytes as text, against small vocabularies of every kind. Every id must exist and have
// a text; what a stream of ids prints must be UTF-8; and text that is UTF-8 must come back as it went in, where the vocabulary
// can say everything. Works from an empty corpus.
//
// Input: byte 0 chooses the vocabulary, byte 1 where segments are cut; the rest is the text.
#include <stdlib.h>
#include <unistd.h>
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void expect(bool cond) {
    if (!cond) __builtin_trap();
}

// ---- the vocabularies ----

enum { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE }; // tokenizer.ggml.token_type

static struct { // one vocabulary under construction
    char bytes[1 << 14];
    size_t n_bytes;
    GgufString token[600], merge[64];
    int32_t type[600];
    float score[600];
    int n, n_merge;
} v;

static GgufString keep(const char *a, const char *between, const char *b) {
    char *at = v.bytes + v.n_bytes;
    const int n = snprintf(at, sizeof v.bytes - v.n_bytes, "%s%s%s", a, between, b);
    v.n_bytes += (size_t)n + 1;
    expect(v.n_bytes < sizeof v.bytes);
    return (GgufString){at, (uint64_t)n};
}

static void token(const char *a, const char *b, int type) {
    const GgufString s = keep(a, "", b);
    for (int i = 0; i < v.n; i++)
        if (v.token[i].n == s.n && !memcmp(v.token[i].p, s.p, (size_t)s.n)) return;
    v.token[v.n] = s;
    v.type[v.n] = type;
    v.score[v.n] = (float)-v.n / 4; // pairs of equal score occur
    if (v.n % 2) v.score[v.n] = v.score[v.n - 1];
    v.n++;
}

// Two tokens that merge, in the order of their ranks; the result is a token, too.
static void pair(const char *a, const char *b) {
    token(a, "", NORMAL), token(b, "", NORMAL), token(a, b, NORMAL);
    v.merge[v.n_merge++] = keep(a, " ", b);
}

static void common_pairs(const char *blank, const char *newline, const char *double_blank) {
    pair(blank, "t"), pair("h", "e"), pair("t", "he"), pair(newline, newline), pair(blank, blank), pair(double_blank, double_blank);
    pair("1", "2"), pair("12", "3"), pair("a", "a"), pair("aa", "aa"), pair("a", "aaaa"), pair("'", "s"), pair("e", "'s");
}

static void begin(void) {
    memset(&v, 0, sizeof v);
    token("<unk>", "", UNKNOWN), token("<s>", "", CONTROL), token("</s>", "", CONTROL);
    token("<|eot_id|>", "", CONTROL), token("<tag>", "", USER), token("  ", "    ", USER), token("<tag><tag>", "", USER), token("tag", "", USER);
    token("<0xZZ>", "", BYTE); // not one
}

static void byte_tokens(void) {
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        token(name, "", BYTE);
    }
}

static void byte_characters(void) { // GPT-2: printable bytes stand for themselves, the others for U+0100 and up
    for (unsigned i = 0, other = 0x100; i < 256; i++) {
        const unsigned cp = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i <= 0xac) || i >= 0xae ? i : other++;
        char utf8[3] = {(char)cp, 0, 0};
        if (cp > 0x7f) utf8[0] = (char)(0xc0 | cp >> 6), utf8[1] = (char)(0x80 | (cp & 0x3f));
        token(utf8, "", NORMAL);
    }
}

static const struct {
    const char *model, *pre; // "" = no key
    bool bytes, space_prefix, add_eos;
    bool lossless; // UTF-8 text comes back
} KINDS[] = {
    {"llama", "", true, false, false, true},  {"llama", "", true, true, true, false},    {"llama", "", false, true, false, false},
    {"gemma4", "", true, false, false, true}, {"gemma4", "", false, false, true, false},
    {"gpt2", "llama-bpe", true, false, false, true}, {"gpt2", "qwen2", true, false, false, true},          {"gpt2", "gpt-2", true, false, true, true},
    {"gpt2", "default", true, false, false, true},   {"gpt2", "falcon", true, false, false, true},         {"gpt2", "starcoder", true, false, false, true},
    {"gpt2", "tekken", true, false, false, true},    {"gpt2", "gpt-4o", true, false, false, true},         {"gpt2", "minicpm5", true, false, false, true},
    {"gpt2", "deepseek-v3", true, false, false, true}, {"gpt2", "deepseek-llm", true, false, false, true}, {"gpt2", "deepseek-coder", true, false, false, true},
    {"gpt2", "llama-bpe", false, false, false, false}, // most bytes are no token
};
enum { N_KIND = sizeof KINDS / sizeof *KINDS };

static struct {
    Gguf g;
    Tokenizer *t;
} opened[N_KIND];

static void open_kind(int which) {
    const bool bpe = !strcmp(KINDS[which].model, "gpt2");
    begin();
    if (bpe) {
        if (KINDS[which].bytes) byte_characters();
        common_pairs("\u0120", "\u010A", "\u0120\u0120"); // a blank and a newline as characters
        pair("\u00C3", "\u00A9"), pair("\u0120", "\u00C3\u00A9"); // the two bytes of an e with an acute accent
        token("\u0120the", "", NORMAL), token("the12", "", NORMAL); // words that merges do not make
    } else {
        if (KINDS[which].bytes) byte_tokens();
        common_pairs("\u2581", "\n", "\u2581\u2581");
        pair("\u00E9", "\u00E9"), pair("\u4E16", "\u754C"), pair("\u2581", "\U0001F600");
        token("\n\n", "\n", NORMAL);
    }
    char path[64];
    GgufWriter *w;
    Err e = {""};
    snprintf(path, sizeof path, "/tmp/fuzz_tokenizer.%d.gguf", (int)getpid());
    bool ok = gguf_writer_open(&w, path, &e);
    expect(ok);
    gguf_set_string(w, "tokenizer.ggml.model", KINDS[which].model, strlen(KINDS[which].model));
    if (*KINDS[which].pre) gguf_set_string(w, "tokenizer.ggml.pre", KINDS[which].pre, strlen(KINDS[which].pre));
    gguf_set_strings(w, "tokenizer.ggml.tokens", v.token, (uint64_t)v.n);
    gguf_set_array(w, "tokenizer.ggml.token_type", GGUF_I32, v.type, (uint64_t)v.n);
    gguf_set_array(w, "tokenizer.ggml.scores", GGUF_F32, v.score, (uint64_t)v.n);
    gguf_set_strings(w, "tokenizer.ggml.merges", v.merge, (uint64_t)v.n_merge);
    gguf_set_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_set_u32(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_set_bool(w, "tokenizer.ggml.add_space_prefix", KINDS[which].space_prefix);
    gguf_set_bool(w, "tokenizer.ggml.add_eos_token", KINDS[which].add_eos);
    ok = gguf_writer_close(w, &e) && gguf_open(&opened[which].g, path, &e) && tokenizer_open(&opened[which].t, &opened[which].g, &e);
    if (!ok) fprintf(stderr, "%s\n", e.text);
    expect(ok);
    unlink(path); // it stays mapped
}

// ---- the checks ----

static bool is_utf8(const char *p, size_t n) { // Unicode 15, table 3-7
    const uint8_t *u = (const uint8_t *)p;
    for (size_t i = 0; i < n;) {
        const uint8_t c = u[i++];
        int more = c < 0x80 ? 0 : c < 0xc2 ? -1 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : -1;
        uint8_t low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
        if (more < 0) return false;
        for (; more > 0; more--, low = 0x80, high = 0xbf)
            if (i == n || u[i] < low || u[i++] > high) return false;
    }
    return true;
}

typedef struct {
    char *p;
    size_t n, cap;
} Text;

static void push(Utf8Stream *s, const char *p, size_t n, bool flush, Text *out) {
    expect(utf8_stream_push(s, p, n, flush, &out->p, &out->n, &out->cap));
    expect(out->n <= out->cap && s->n_hold >= 0 && s->n_hold < 4);
}

static void decode(const Tokenizer *t, const Ids *ids, bool show_control, Text *out) {
    Utf8Stream s = {0};
    out->n = 0;
    for (int i = 0; i < ids->n; i++) {
        size_t n = 0;
        expect(ids->id[i] >= 0 && ids->id[i] < tokenizer_n_vocab(t));
        const char *p = tokenizer_bytes(t, ids->id[i], show_control, &n);
        push(&s, p, n, false, out);
        expect(is_utf8(out->p, out->n));
    }
    push(&s, "", 0, true, out);
    expect(is_utf8(out->p, out->n));
}

static bool has_blank_sign(const char *p, size_t n) { return memmem(p, n, "\u2581", 3) != NULL; }

static void check_encode(int which, const char *text, size_t n, size_t cut) {
    const Tokenizer *t = opened[which].t;
    const bool comes_back = KINDS[which].lossless && is_utf8(text, n) && (!strcmp(KINDS[which].model, "gpt2") || !has_blank_sign(text, n));
    Text out = {0};
    Err e;
    for (int flags = 0; flags < 4; flags++) {
        const bool add_special = flags & 1, parse_special = flags & 2;
        Ids ids = {0}, pieces = {0};
        expect(tokenizer_encode(t, text, n, add_special, parse_special, &ids, &e));
        decode(t, &ids, false, &out);
        if (comes_back && !parse_special) expect(out.n == n && (!n || !memcmp(out.p, text, n)));
        decode(t, &ids, true, &out);
        if (comes_back && !add_special) expect(out.n == n && (!n || !memcmp(out.p, text, n)));

        // Cut into segments of equal trust it is the same text.
        const Segment same[3] = {{text, cut, parse_special}, {text + cut, 0, parse_special}, {text + cut, n - cut, parse_special}};
        expect(tokenizer_encode_segments(t, same, 3, add_special, &pieces, &e));
        expect(pieces.n == ids.n && (!ids.n || !memcmp(pieces.id, ids.id, sizeof *ids.id * (size_t)ids.n)));
        pieces.n = 0;
        const Segment mixed[2] = {{text, cut, true}, {text + cut, n - cut, false}};
        expect(tokenizer_encode_segments(t, mixed, 2, add_special, &pieces, &e));
        decode(t, &pieces, true, &out);
        ids_free(&ids);
        ids_free(&pieces);
    }
    free(out.p);
}

// Raw bytes through the stream, in two pieces.
static void check_stream(const char *text, size_t n, size_t cut) {
    for (int strip = 0; strip < 2; strip++) {
        Utf8Stream s = {.strip_space = strip};
        Text out = {0};
        push(&s, text, cut, false, &out);
        expect(is_utf8(out.p, out.n));
        push(&s, text + cut, n - cut, true, &out);
        const size_t skipped = strip && n && text[0] == ' ';
        expect(is_utf8(out.p, out.n));
        if (is_utf8(text, n)) expect(out.n == n - skipped && (!out.n || !memcmp(out.p, text + skipped, out.n)));
        free(out.p);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 2) return 0;
    const int which = data[0] % N_KIND;
    if (!opened[which].t) open_kind(which);
    const char *text = (const char *)data + 2;
    const size_t n_text = n - 2, cut = data[1] % (n_text + 1);
    check_encode(which, text, n_text, cut);
    check_stream(text, n_text, cut);
    size_t n_bytes;
    tokenizer_bytes(opened[which].t, -1, true, &n_bytes);
    expect(n_bytes == 0);
    tokenizer_bytes(opened[which].t, tokenizer_n_vocab(opened[which].t), true, &n_bytes);
    expect(n_bytes == 0);
    return 0;
}
