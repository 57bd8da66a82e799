// tokenizer.c: text to token ids.
//
//   text -> special tokens are cut out (longest first) -> fragments of raw text
//   fragment -> SPM: whole, blanks as U+2581       BPE: words, bytes as characters       Gemma 4: runs of newlines and of others
//   piece -> symbols, one per character; the best neighbouring pair becomes one symbol until no pair is left (merge)
//   symbol -> id; bytes where a symbol is no token
#include "tokenizer.h"

#include <limits.h>
#include <stdlib.h>

#include "unicode.h"
#include "vocab.h"

static const char BLANK[] = "\xE2\x96\x81"; // U+2581

typedef struct {
    int start, n;   // bytes of the piece; n = 0: merged into its left neighbour
    int id;         // index of its text in the vocabulary, -1: not there
    int prev, next; // -1: none
} Symbol;

typedef struct {
    double score;   // SPM score or -rank: the highest merges first, the leftmost among equals
    int left, size; // left symbol; bytes of the pair, to see whether it is still as it was
    int id;         // what the pair becomes
} Pair;

typedef struct {
    const Tokenizer *t;
    Ids *out;
    Symbol *symbol;
    int cap_symbol;
    Pair *heap;
    int n_heap, cap_heap;
    char *text; // the piece being merged
    size_t n_text, cap_text;
    uint32_t *cp;
    int *ends, *scratch;
    int cap_cp;
    bool after_special;
} Encoder;

// All helpers return false for lack of memory and nothing else.
static bool grow(void *array, int *cap, int need, size_t element) {
    void **p = array;
    if (need <= *cap) return true;
    const size_t more = (size_t)need + (size_t)need / 2 + 64;
    void *bigger = more <= INT_MAX ? realloc(*p, more * element) : NULL;
    if (!bigger) return false;
    *p = bigger;
    *cap = (int)more;
    return true;
}

bool ids_push(Ids *ids, int id) {
    if (!grow(&ids->id, &ids->cap, ids->n + 1, sizeof *ids->id)) return false;
    ids->id[ids->n++] = id;
    return true;
}

void ids_free(Ids *ids) {
    free(ids->id);
    *ids = (Ids){0};
}

static bool text_add(Encoder *c, const char *p, size_t n) {
    if (!c->text || c->n_text + n > c->cap_text) {
        const size_t cap = 2 * (c->n_text + n) + 64;
        char *text = realloc(c->text, cap);
        if (!text) return false;
        c->text = text;
        c->cap_text = cap;
    }
    memcpy(c->text + c->n_text, p, n);
    c->n_text += n;
    return true;
}

// ---- merging one piece ----

static bool before(const Pair *a, const Pair *b) { return a->score > b->score || (a->score == b->score && a->left < b->left); }

static bool heap_push(Encoder *c, Pair p) {
    if (!grow(&c->heap, &c->cap_heap, c->n_heap + 1, sizeof *c->heap)) return false;
    int i = c->n_heap++;
    for (int up; i > 0 && before(&p, &c->heap[up = (i - 1) / 2]); i = up) c->heap[i] = c->heap[up];
    c->heap[i] = p;
    return true;
}

static Pair heap_pop(Encoder *c) {
    const Pair top = c->heap[0], last = c->heap[--c->n_heap];
    int i = 0;
    for (int down; (down = 2 * i + 1) < c->n_heap; i = down) {
        if (down + 1 < c->n_heap && before(&c->heap[down + 1], &c->heap[down])) down++;
        if (!before(&c->heap[down], &last)) break;
        c->heap[i] = c->heap[down];
    }
    c->heap[i] = last;
    return top;
}

// Proposes the pair of symbol i and its right neighbour, if the vocabulary has it.
static bool propose(Encoder *c, int i) {
    const Tokenizer *t = c->t;
    if (i < 0 || c->symbol[i].next < 0) return true;
    const Symbol *l = &c->symbol[i], *r = &c->symbol[l->next];
    Pair p = {.left = i, .size = l->n + r->n};
    if (t->kind == VOCAB_SPM) {
        if (p.size > t->max_text) return true;
        p.id = text_map_find(&t->by_text, t->text, c->text + l->start, (size_t)p.size);
        if (p.id < 0) return true;
        p.score = t->score[p.id];
    } else {
        const Merge *m = l->id < 0 || r->id < 0 ? NULL : vocab_merge(t, l->id, r->id);
        if (!m) return true;
        p.id = m->result;
        p.score = -(double)m->rank;
    }
    return heap_push(c, p);
}

// A symbol that is no token, byte by byte.
static bool emit_bytes(Encoder *c, const char *p, int n) {
    const Tokenizer *t = c->t;
    for (int i = 0; i < n; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)(uint8_t)p[i]);
        int id = t->kind == VOCAB_BPE ? -1 : tokenizer_find(t, name, 6);
        if (id < 0 && t->kind != VOCAB_GEMMA4) id = tokenizer_find(t, p + i, 1);
        if (id < 0 && t->kind == VOCAB_SPM) id = t->unk;
        if (id >= 0 && !ids_push(c->out, id)) return false;
    }
    return true;
}

// Merges c->text and emits its tokens.
static bool merge(Encoder *c) {
    const Tokenizer *t = c->t;
    const int n = (int)c->n_text;
    int n_symbol = 0;
    if (!grow(&c->symbol, &c->cap_symbol, n, sizeof *c->symbol)) return false;
    for (int at = 0; at < n; n_symbol++) {
        const int length = min_int(utf8_length(c->text[at]), n - at);
        const int id = text_map_find(&t->by_text, t->text, c->text + at, (size_t)length);
        at += length;
        c->symbol[n_symbol] = (Symbol){.start = at - length, .n = length, .id = id, .prev = n_symbol - 1, .next = at < n ? n_symbol + 1 : -1};
    }
    c->n_heap = 0;
    for (int i = 0; i < n_symbol; i++)
        if (!propose(c, i)) return false;
    while (c->n_heap) {
        const Pair p = heap_pop(c);
        Symbol *l = &c->symbol[p.left];
        if (!l->n || l->next < 0 || l->n + c->symbol[l->next].n != p.size) continue; // one of the two has changed since
        Symbol *r = &c->symbol[l->next];
        l->n = p.size;
        l->id = p.id;
        l->next = r->next;
        if (r->next >= 0) c->symbol[r->next].prev = p.left;
        r->n = 0;
        if (!propose(c, l->prev) || !propose(c, p.left)) return false;
    }
    for (int i = 0; i >= 0 && n_symbol; i = c->symbol[i].next) {
        const Symbol *s = &c->symbol[i];
        if (s->id >= 0 && s->id < t->n_vocab ? !ids_push(c->out, s->id) : !emit_bytes(c, c->text + s->start, s->n)) return false;
    }
    return true;
}

// ---- fragments of raw text ----

static bool encode_spm(Encoder *c, const char *p, size_t n) {
    c->n_text = 0;
    if (c->t->space_prefix && c->after_special && !text_add(c, BLANK, 3)) return false;
    for (size_t i = 0; i < n;) {
        const char *blank = memchr(p + i, ' ', n - i);
        const size_t end = blank ? (size_t)(blank - p) : n;
        if (!text_add(c, p + i, end - i) || (blank && !text_add(c, BLANK, 3))) return false;
        i = end + (blank != NULL);
    }
    return merge(c);
}

static bool encode_gemma4(Encoder *c, const char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        const bool newlines = p[i] == '\n';
        c->n_text = 0;
        while (i < n && (p[i] == '\n') == newlines) {
            uint32_t cp;
            char utf8[4];
            i += (size_t)utf8_decode(p + i, n - i, &cp);
            const int length = utf8_encode(cp, utf8);
            if (!(cp == ' ' ? text_add(c, BLANK, 3) : text_add(c, utf8, (size_t)length))) return false;
        }
        const int whole = newlines ? tokenizer_find(c->t, c->text, c->n_text) : -1;
        if (whole >= 0 ? !ids_push(c->out, whole) : !merge(c)) return false;
    }
    return true;
}

static bool encode_word(Encoder *c, const uint32_t *cp, int n) {
    c->n_text = 0;
    for (int i = 0; i < n; i++) {
        char utf8[4], mapped[4];
        const int length = utf8_encode(cp[i], utf8);
        for (int b = 0; b < length; b++) {
            const int m = utf8_encode(byte_level_character((uint8_t)utf8[b]), mapped);
            if (!text_add(c, mapped, (size_t)m)) return false;
        }
    }
    const int whole = c->t->pre->flags & PRE_IGNORE_MERGES ? tokenizer_find(c->t, c->text, c->n_text) : -1;
    return whole >= 0 ? ids_push(c->out, whole) : merge(c);
}

static bool encode_bpe(Encoder *c, const char *p, size_t n) {
    int cap = c->cap_cp, n_cp = 0;
    if (!grow(&c->cp, &cap, (int)n, sizeof *c->cp)) return false;
    cap = c->cap_cp;
    if (!grow(&c->ends, &cap, (int)n, sizeof *c->ends)) return false;
    if (!grow(&c->scratch, &c->cap_cp, (int)n, sizeof *c->scratch)) return false;
    for (size_t i = 0; i < n;) i += (size_t)utf8_decode(p + i, n - i, &c->cp[n_cp++]);
    const int n_word = pretokenize(c->t->pre->splitter, c->cp, n_cp, c->ends, c->scratch);
    for (int i = 0, from = 0; i < n_word; from = c->ends[i++])
        if (!encode_word(c, c->cp + from, c->ends[i] - from)) return false;
    return true;
}

static bool encode_raw(Encoder *c, const char *p, size_t n) {
    if (!n) return true;
    const bool ok = c->t->kind == VOCAB_SPM ? encode_spm(c, p, n) : c->t->kind == VOCAB_GEMMA4 ? encode_gemma4(c, p, n) : encode_bpe(c, p, n);
    c->after_special = false;
    return ok;
}

// ---- special tokens ----

typedef struct {
    int at, n, id;
} Special;

static int longest_first(const void *a, const void *b) {
    const Special *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n ? 1 : -1) : x->id != y->id ? (x->id < y->id ? -1 : 1) : (x->at > y->at) - (x->at < y->at);
}

static int leftmost_first(const void *a, const void *b) {
    const Special *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

// All places where a special text occurs; then the longest win, whatever lies left of them.
// mark[i] & 1: byte i is trusted; on return, & 2: it belongs to a special token.
static bool find_specials(const Tokenizer *t, const char *p, int n, uint8_t *mark, Special **out, int *n_out) {
    int cap = 0, count = 0, kept = 0;
    *out = NULL;
    for (int at = 0, trusted_to = 0; at < n; at++) {
        if (!t->special_first[(uint8_t)p[at]]) continue;
        if (trusted_to < at) trusted_to = at;
        while (trusted_to < n && mark[trusted_to] & 1) trusted_to++;
        uint32_t hash = HASH_START;
        for (int length = 1; length <= t->max_special && at + length <= n; length++) {
            hash = hash_more(hash, p + at + length - 1, 1);
            const int id = t->special_length[length] ? text_map_find_hashed(&t->specials, t->text, hash, p + at, (size_t)length) : -1;
            if (id < 0 || (t->type[id] != TOKEN_USER && at + length > trusted_to)) continue;
            if (!grow(out, &cap, count + 1, sizeof **out)) return false;
            (*out)[count++] = (Special){at, length, id};
        }
    }
    if (count) qsort(*out, (size_t)count, sizeof **out, longest_first);
    for (int i = 0; i < count; i++) {
        const Special s = (*out)[i];
        if ((mark[s.at] | mark[s.at + s.n - 1]) & 2) continue; // an overlapping one is at least as long: it covers an end
        for (int k = 0; k < s.n; k++) mark[s.at + k] |= 2;
        (*out)[kept++] = s;
    }
    if (kept) qsort(*out, (size_t)kept, sizeof **out, leftmost_first);
    *n_out = kept;
    return true;
}

// ---- the whole text ----

static bool encode(Encoder *c, const char *p, int n, uint8_t *mark, bool add_special) {
    const Tokenizer *t = c->t;
    Special *special;
    int n_special = 0, from = 0;
    bool ok = find_specials(t, p, n, mark, &special, &n_special);
    if (ok && add_special && tokenizer_add_bos(t)) ok = ids_push(c->out, t->bos);
    c->after_special = true;
    for (int i = 0; ok && i < n_special; i++) {
        ok = encode_raw(c, p + from, (size_t)(special[i].at - from)) && ids_push(c->out, special[i].id);
        c->after_special = true;
        from = special[i].at + special[i].n;
    }
    ok = ok && encode_raw(c, p + from, (size_t)(n - from));
    if (ok && add_special && t->add_eos && t->eos >= 0) ok = ids_push(c->out, t->eos);
    free(special);
    return ok;
}

bool tokenizer_encode_segments(const Tokenizer *t, const Segment *s, int n_seg, bool add_special, Ids *out, Err *e) {
    Encoder c = {.t = t, .out = out};
    size_t n = 0, at = 0;
    for (int i = 0; i < n_seg; i++) n += s[i].n;
    if (n > INT_MAX / 16) return err_set(e, "the text has %zu bytes, at most %d can be tokenised at once", n, INT_MAX / 16);
    char *text = malloc(n + 1);
    uint8_t *mark = malloc(n + 1);
    for (int i = 0; text && mark && i < n_seg; at += s[i++].n) {
        if (s[i].n) memcpy(text + at, s[i].text, s[i].n);
        memset(mark + at, s[i].trusted, s[i].n);
    }
    const bool ok = text && mark && encode(&c, text, (int)n, mark, add_special);
    free(text);
    free(mark);
    free(c.symbol);
    free(c.heap);
    free(c.text);
    free(c.cp);
    free(c.ends);
    free(c.scratch);
    return ok || err_set(e, "no memory to tokenise %zu bytes", n);
}

bool tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool add_special, bool parse_special, Ids *out, Err *e) {
    return tokenizer_encode_segments(t, &(Segment){text, n, parse_special}, 1, add_special, out, e);
}
