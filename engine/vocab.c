// vocab.c: the vocabulary from the tokenizer.ggml.* keys of a GGUF file.
#include "vocab.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "unicode.h"

// ---- text to index ----

int text_map_find_hashed(const TextMap *m, const GgufString *texts, uint32_t hash, const char *p, size_t n) {
    for (uint32_t i = hash & m->mask; m->slot[i]; i = (i + 1) & m->mask) {
        const uint32_t at = m->slot[i] - 1;
        if (texts[at].n == n && memcmp(texts[at].p, p, n) == 0) return (int)at;
    }
    return -1;
}

static void place(TextMap *m, const GgufString *texts, uint32_t index) {
    uint32_t i = hash_more(HASH_START, texts[index].p, texts[index].n) & m->mask;
    while (m->slot[i]) i = (i + 1) & m->mask;
    m->slot[i] = index + 1;
}

// Texts already present keep their first index. At most half of the slots are used.
static bool text_map_add(TextMap *m, const GgufString *texts, int index) {
    if (m->slot && text_map_find(m, texts, texts[index].p, texts[index].n) >= 0) return true;
    if (!m->slot || m->n >= m->mask / 2) {
        const uint32_t size = m->slot ? 2 * (m->mask + 1) : 1024;
        TextMap bigger = {.slot = calloc(size, sizeof *m->slot), .mask = size - 1, .n = m->n};
        if (!bigger.slot) return false;
        for (uint32_t i = 0; m->slot && i <= m->mask; i++)
            if (m->slot[i]) place(&bigger, texts, m->slot[i] - 1);
        free(m->slot);
        *m = bigger;
    }
    place(m, texts, (uint32_t)index);
    m->n++;
    return true;
}

// ---- bytes as characters ----

static bool stands_for_itself(uint32_t c) { return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF); }

uint32_t byte_level_character(uint8_t byte) {
    if (stands_for_itself(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;              // 33 of them
    if (byte <= 0xA0) return 0x100u + 33 + (byte - 0x7Fu); // 34
    return 0x100u + 67;                                  // AD
}

int byte_level_byte(uint32_t c) {
    if (c <= 0xFF) return stands_for_itself(c) ? (int)c : -1;
    if (c <= 0x120) return (int)(c - 0x100);
    if (c <= 0x142) return (int)(c - 0x121 + 0x7F);
    return c == 0x143 ? 0xAD : -1;
}

int vocab_byte(GgufString s) {
    int value = 0;
    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>') return -1;
    for (int i = 3; i < 5; i++) {
        const char c = s.p[i];
        if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'))) return -1;
        value = value * 16 + (c <= '9' ? c - '0' : c - 'A' + 10);
    }
    return value;
}

// ---- reading ----

static bool no_memory(Err *e) { return err_set(e, "no memory for the vocabulary"); }

// An array key with elements of the right kind, at least n of them. Absent: *out = NULL.
static bool array_key(const Gguf *g, const char *key, bool strings, bool floats, uint64_t n, const GgufKey **out, Err *e) {
    const GgufKey *k = *out = gguf_key(g, key);
    if (!k) return true;
    const bool right = k->type == GGUF_ARRAY && (strings ? k->elem == GGUF_STRING : floats ? gguf_is_float(k->elem) : gguf_is_integer(k->elem));
    if (!right)
        return err_set(e, "%s: is %s of %s, expected an array of %s", key, gguf_type_name(k->type), gguf_type_name(k->elem), strings ? "strings" : floats ? "floats" : "integers");
    if (k->n < n) return err_set(e, "%s: has %llu elements, expected %llu, one per token", key, (unsigned long long)k->n, (unsigned long long)n);
    return true;
}

// A copy that lives as long as t.
static bool own(Tokenizer *t, const char *a, size_t n_a, const char *b, size_t n_b, GgufString *out) {
    if (t->n_owned == t->cap_owned) {
        const int cap = t->cap_owned ? 2 * t->cap_owned : 64;
        char **owned = realloc(t->owned, sizeof *owned * (size_t)cap);
        if (!owned) return false;
        t->owned = owned;
        t->cap_owned = cap;
    }
    char *copy = malloc(n_a + n_b + 1);
    if (!copy) return false;
    memcpy(copy, a, n_a);
    memcpy(copy + n_a, b, n_b);
    t->owned[t->n_owned++] = copy;
    *out = (GgufString){copy, n_a + n_b};
    return true;
}

static bool read_texts(Tokenizer *t, const Gguf *g, Err *e) {
    const GgufKey *tokens, *types, *scores;
    if (!array_key(g, "tokenizer.ggml.tokens", true, false, 1, &tokens, e)) return false;
    if (!tokens) return err_set(e, "tokenizer.ggml.tokens: missing, the file holds no vocabulary");
    if (tokens->n > INT_MAX / 16) return err_set(e, "tokenizer.ggml.tokens: has %llu elements, at most %d are possible", (unsigned long long)tokens->n, INT_MAX / 16);
    if (!array_key(g, "tokenizer.ggml.token_type", false, false, tokens->n, &types, e)) return false;
    if (!array_key(g, "tokenizer.ggml.scores", false, true, tokens->n, &scores, e)) return false;
    const size_t n = (size_t)tokens->n;
    t->n_vocab = t->n_text = t->cap_text = (int)n;
    t->text = malloc(n * sizeof *t->text);
    t->type = malloc(n);
    t->end = calloc(n, 1);
    t->suppressed = calloc(n, 1);
    t->score = calloc(n, sizeof *t->score);
    if (!t->text || !t->type || !t->end || !t->suppressed || !t->score) return no_memory(e);
    for (int i = 0; i < t->n_vocab; i++) {
        const int64_t type = types ? gguf_elem_int(types, (uint64_t)i) : TOKEN_NORMAL;
        t->type[i] = type >= TOKEN_NORMAL && type <= TOKEN_BYTE ? (uint8_t)type : TOKEN_UNDEFINED;
        if (scores) t->score[i] = (float)gguf_elem_float(scores, (uint64_t)i);
        if (isnan(t->score[i])) t->score[i] = -INFINITY; // an order must be one
        t->text[i] = tokens->strings[i];
        if (!t->text[i].n) {
            char name[32];
            const int length = snprintf(name, sizeof name, "[EMPTY_%d]", i);
            if (!own(t, name, (size_t)length, "", 0, &t->text[i])) return no_memory(e);
        }
        if (t->text[i].n > INT_MAX / 2) return err_set(e, "tokenizer.ggml.tokens: token %d has %llu bytes", i, (unsigned long long)t->text[i].n);
        t->max_text = max_int(t->max_text, (int)t->text[i].n);
        if (!text_map_add(&t->by_text, t->text, i)) return no_memory(e);
    }
    return true;
}

// Index of a text that occurs in merges; a new one is added behind the tokens. -1: no memory.
static int index_of(Tokenizer *t, const char *a, size_t n_a, const char *b, size_t n_b) {
    GgufString s = {a, n_a};
    const uint32_t hash = hash_more(hash_more(HASH_START, a, n_a), b, n_b);
    for (uint32_t i = hash & t->by_text.mask; t->by_text.slot[i]; i = (i + 1) & t->by_text.mask) {
        const GgufString x = t->text[t->by_text.slot[i] - 1];
        if (x.n == n_a + n_b && memcmp(x.p, a, n_a) == 0 && memcmp(x.p + n_a, b, n_b) == 0) return (int)(t->by_text.slot[i] - 1);
    }
    if (n_b && !own(t, a, n_a, b, n_b, &s)) return -1;
    if (t->n_text == t->cap_text) {
        if (t->cap_text > INT_MAX / 4) return -1;
        const int cap = t->cap_text * 2 + 1024;
        GgufString *text = realloc(t->text, sizeof *text * (size_t)cap);
        if (!text) return -1;
        t->text = text;
        t->cap_text = cap;
    }
    t->text[t->n_text] = s;
    if (!text_map_add(&t->by_text, t->text, t->n_text)) return -1;
    return t->n_text++;
}

static uint32_t pair_hash(int left, int right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32);
}

const Merge *vocab_merge(const Tokenizer *t, int left, int right) {
    for (uint32_t i = pair_hash(left, right) & t->merge_mask; t->merge_slot[i]; i = (i + 1) & t->merge_mask) {
        const Merge *m = &t->merge[t->merge_slot[i] - 1];
        if (m->left == left && m->right == right) return m;
    }
    return NULL;
}

static bool read_merges(Tokenizer *t, const Gguf *g, Err *e) {
    const GgufKey *k;
    if (!array_key(g, "tokenizer.ggml.merges", true, false, 0, &k, e)) return false;
    if (!k) return err_set(e, "tokenizer.ggml.merges: missing, a byte-pair vocabulary needs them");
    if (k->n > INT_MAX / 16) return err_set(e, "tokenizer.ggml.merges: has %llu elements, at most %d are possible", (unsigned long long)k->n, INT_MAX / 16);
    uint32_t size = 1024;
    while (size < 2 * k->n) size *= 2;
    t->merge_slot = calloc(size, sizeof *t->merge_slot);
    t->merge_mask = size - 1;
    t->merge = malloc((size_t)(k->n + 1) * sizeof *t->merge);
    if (!t->merge_slot || !t->merge) return no_memory(e);
    for (uint64_t i = 0; i < k->n; i++) {
        const GgufString s = k->strings[i];
        const char *blank = s.n > 1 ? memchr(s.p + 1, ' ', s.n - 1) : NULL; // a left part may begin with a blank
        if (!blank) continue;
        const size_t n_left = (size_t)(blank - s.p), n_right = s.n - n_left - 1;
        if (!n_right || s.n > INT_MAX / 2) continue;
        Merge m = {.rank = (int)i};
        m.left = index_of(t, s.p, n_left, "", 0);
        m.right = m.left < 0 ? -1 : index_of(t, blank + 1, n_right, "", 0);
        m.result = m.right < 0 ? -1 : index_of(t, s.p, n_left, blank + 1, n_right);
        if (m.result < 0) return no_memory(e);
        if (vocab_merge(t, m.left, m.right)) continue; // the first one counts
        uint32_t at = pair_hash(m.left, m.right) & t->merge_mask;
        while (t->merge_slot[at]) at = (at + 1) & t->merge_mask;
        t->merge[t->n_merge++] = m;
        t->merge_slot[at] = (uint32_t)t->n_merge;
    }
    return true;
}

// ---- special tokens ----

static int find_text(const Tokenizer *t, const char *text) {
    const int i = text_map_find(&t->by_text, t->text, text, strlen(text));
    return i < t->n_vocab ? i : -1;
}

// Ids out of range count as absent.
static bool id_key(const Tokenizer *t, const Gguf *g, const char *key, int *id, Err *e) {
    int64_t v = *id;
    if (!gguf_get_int(g, key, INT64_MIN, INT64_MAX, &v, e)) return false;
    *id = v >= 0 && v < t->n_vocab ? (int)v : -1;
    return true;
}

static void mark_end(Tokenizer *t, int id) {
    if (id >= 0) t->end[id] = 1;
}

static bool read_ends(Tokenizer *t, const Gguf *g, Err *e) {
    static const char *const TEXTS[] = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>",
        "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
        "<｜end▁of▁sentence｜>", "[e~["};
    static const char *const FILL[] = {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
        "<|file_sep|>"};
    static const char *const KEYS[] = {"eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"};
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        const int id = find_text(t, TEXTS[i]);
        if (id < 0) continue;
        t->end[id] = 1;
        t->type[id] = TOKEN_CONTROL;
    }
    for (size_t i = 0; i < sizeof FILL / sizeof FILL[0]; i++) mark_end(t, find_text(t, FILL[i]));
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        char key[64];
        int id = i == 0 ? t->eos : -1;
        snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", KEYS[i]);
        if (i > 0 && !id_key(t, g, key, &id, e)) return false;
        mark_end(t, id);
    }
    // In formats with both, <|end|> only closes a part of an answer; in Gemma's, </s> is the end of struck-through HTML.
    const int end = find_text(t, "<|end|>"), strike = find_text(t, "</s>");
    if (end >= 0 && ((find_text(t, "<|return|>") >= 0 && find_text(t, "<|call|>") >= 0) || (find_text(t, "<|calls|>") >= 0 && find_text(t, "<|flush|>") >= 0))) {
        t->end[end] = 0;
        t->type[end] = TOKEN_USER;
    }
    if (strike >= 0 && strike != t->eos && (find_text(t, "<|tool_response>") >= 0 || find_text(t, "<start_of_turn>") >= 0 || find_text(t, "<|turn>") >= 0)) {
        t->end[strike] = 0;
        t->type[strike] = TOKEN_NORMAL;
    }
    static const char *const SHOWN[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};
    for (size_t i = 0; i < sizeof SHOWN / sizeof SHOWN[0]; i++)
        if (find_text(t, SHOWN[i]) >= 0) t->type[find_text(t, SHOWN[i])] = TOKEN_USER;
    return true;
}

static bool is_special(const Tokenizer *t, int id) { return t->type[id] == TOKEN_CONTROL || t->type[id] == TOKEN_UNKNOWN || t->type[id] == TOKEN_USER; }

static bool index_specials(Tokenizer *t, Err *e) {
    for (int i = 0; i < t->n_vocab; i++)
        if (is_special(t, i)) t->max_special = max_int(t->max_special, (int)t->text[i].n);
    t->special_length = calloc((size_t)t->max_special + 1, 1);
    if (!t->special_length) return no_memory(e);
    for (int i = 0; i < t->n_vocab; i++) {
        if (!is_special(t, i)) continue;
        if (!text_map_add(&t->specials, t->text, i)) return no_memory(e);
        t->special_length[t->text[i].n] = 1;
        t->special_first[(uint8_t)t->text[i].p[0]] = true;
    }
    return true;
}

// ---- opening ----

static bool is(GgufString s, const char *text) { return s.n == strlen(text) && memcmp(s.p, text, s.n) == 0; }

static bool read_kind(Tokenizer *t, const Gguf *g, Err *e) {
    GgufString model = {0}, pre = {"default", 7};
    if (!gguf_get_string(g, "tokenizer.ggml.model", &model, e) || !gguf_get_string(g, "tokenizer.ggml.pre", &pre, e)) return false;
    if (!model.p) return err_set(e, "tokenizer.ggml.model: missing, the file holds no vocabulary");
    t->bos = t->eos = t->unk = -1;
    if (is(model, "gemma4") || (is(model, "llama") && is(pre, "gemma4") && gguf_key(g, "tokenizer.ggml.merges"))) {
        t->kind = VOCAB_GEMMA4;
        t->add_bos = true;
    } else if (is(model, "llama")) {
        t->kind = VOCAB_SPM;
        t->bos = 1;
        t->eos = 2;
        t->unk = 0;
        t->add_bos = t->space_prefix = true;
    } else if (is(model, "gpt2")) {
        t->kind = VOCAB_BPE;
        t->pre = pretokenizer_by_name(pre.p, pre.n);
        if (!t->pre) return err_set(e, "tokenizer.ggml.pre: '%.*s' is not a pre-tokenizer this program knows", (int)(pre.n < 64 ? pre.n : 64), pre.p);
        if (!(t->pre->flags & PRE_NO_DEFAULT_IDS)) t->bos = t->eos = 11;
        t->add_bos = t->pre->flags & PRE_ADD_BOS;
    } else return err_set(e, "tokenizer.ggml.model: is '%.*s', expected llama, gpt2 or gemma4", (int)(model.n < 64 ? model.n : 64), model.p);
    const bool always_bos = t->kind == VOCAB_GEMMA4;
    if (!gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &t->add_bos, e) || !gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &t->add_eos, e) ||
        (t->kind == VOCAB_SPM && !gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &t->space_prefix, e))) return false;
    t->add_bos |= always_bos;
    return true;
}

static bool read_vocab(Tokenizer *t, const Gguf *g, Err *e) {
    if (!read_kind(t, g, e) || !read_texts(t, g, e)) return false;
    if (t->kind != VOCAB_SPM && !read_merges(t, g, e)) return false;
    if (!id_key(t, g, "tokenizer.ggml.bos_token_id", &t->bos, e) || !id_key(t, g, "tokenizer.ggml.eos_token_id", &t->eos, e) ||
        !id_key(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, e)) return false;
    const GgufKey *suppress;
    if (!array_key(g, "tokenizer.ggml.suppress_tokens", false, false, 0, &suppress, e)) return false;
    for (uint64_t i = 0; suppress && i < suppress->n; i++) {
        const int64_t id = gguf_elem_int(suppress, i);
        if (id >= 0 && id < t->n_vocab) t->suppressed[id] = 1;
    }
    return read_ends(t, g, e) && index_specials(t, e) && vocab_decode_all(t, e);
}

bool tokenizer_open(Tokenizer **out, const Gguf *g, Err *e) {
    Tokenizer *t = *out = calloc(1, sizeof *t);
    if (!t) return no_memory(e);
    Err inner;
    if (read_vocab(t, g, &inner)) return true;
    const char *slash = strrchr(g->path, '/');
    err_set(e, "%.200s: %.300s", slash ? slash + 1 : g->path, inner.text);
    tokenizer_close(t);
    *out = NULL;
    return false;
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    for (int i = 0; i < t->n_owned; i++) free(t->owned[i]);
    free(t->owned);
    free(t->text);
    free(t->by_text.slot);
    free(t->specials.slot);
    free(t->special_length);
    free(t->type);
    free(t->end);
    free(t->suppressed);
    free(t->score);
    free(t->merge_slot);
    free(t->merge);
    free(t->decoded);
    free(t->decoded_at);
    free(t);
}

// ---- questions ----

static bool valid(const Tokenizer *t, int id) { return id >= 0 && id < t->n_vocab; }
int tokenizer_n_vocab(const Tokenizer *t) { return t->n_vocab; }
int tokenizer_bos(const Tokenizer *t) { return t->bos; }
int tokenizer_eos(const Tokenizer *t) { return t->eos; }
bool tokenizer_add_bos(const Tokenizer *t) { return t->add_bos && t->bos >= 0; }
bool tokenizer_is_spm(const Tokenizer *t) { return t->kind == VOCAB_SPM; }
bool tokenizer_is_end(const Tokenizer *t, int id) { return valid(t, id) && t->end[id]; }
bool tokenizer_is_control(const Tokenizer *t, int id) { return valid(t, id) && (t->type[id] == TOKEN_CONTROL || t->type[id] == TOKEN_UNKNOWN); }
bool tokenizer_is_suppressed(const Tokenizer *t, int id) { return valid(t, id) && t->suppressed[id]; }

int tokenizer_find(const Tokenizer *t, const char *piece, size_t n) {
    const int i = text_map_find(&t->by_text, t->text, piece, n);
    return i < t->n_vocab ? i : -1;
}
