// libFuzzer: any bytes as a chat template, as messages and as an answer. What must hold: rendering in two steps is rendering
// at once (but for the families chat.c names), and the parts of an answer do not depend on how the stream was cut.
#include <stdlib.h>
#include "chat.h"

typedef struct {
    char *p; // content and thought, each run closed by its part's number when the part changes
    size_t n;
    int part;
} Parts;

static void collect(void *ctx, ChatPart part, const char *text, size_t n) {
    Parts *p = ctx;
    if (n && p->part != (int)part) {
        p->p[p->n++] = (char)part;
        p->part = (int)part;
    }
    memcpy(p->p + p->n, text, n);
    p->n += n;
}

// seed 0: in one piece.
static Parts parse(const Chat *c, const char *s, size_t n, uint64_t seed) {
    Parts p = {.p = malloc(3 * n + 16), .part = -1};
    ChatParser parser;
    chat_parser_init(&parser, c);
    const bool whole = !seed;
    for (size_t i = 0; i < n && !whole;) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t k = seed >> 60 & 7;
        if (k > n - i) k = n - i;
        chat_parser_push(&parser, s + i, k, false, collect, &p);
        i += k;
    }
    chat_parser_push(&parser, s, whole ? n : 0, true, collect, &p);
    return p;
}

static char *render(const Chat *c, const Message *m, int from, int n, bool generate, char *out) {
    Prompt p;
    Err e;
    if (!chat_render(c, m, from, n, generate, &p, &e)) abort();
    for (int i = 0; i < p.n; i++) {
        memcpy(out, p.seg[i].text, p.seg[i].n);
        out += p.seg[i].n;
    }
    prompt_free(&p);
    return out;
}

static void check(const Chat *c, const char *s, size_t n, uint64_t seed) {
    const Parts a = parse(c, s, n, 0), b = parse(c, s, n, seed | 1);
    if (a.n != b.n || memcmp(a.p, b.p, a.n) || a.n > 3 * n + 16) abort();
    free(a.p);
    free(b.p);

    enum { MAX = 8 };
    Message m[MAX]; // lines of the input; the first byte of each chooses the role
    char *text = malloc(n + 1);
    memcpy(text, s, n);
    text[n] = 0;
    int count = 0;
    for (char *line = text, *next; line && count < MAX; line = next) {
        next = memchr(line, '\n', n - (size_t)(line - text));
        if (next) *next++ = 0;
        m[count].role = (Role)(*line % 3 + 3) % 3;
        m[count++].text = line;
    }
    const char *name = chat_family_name(c);
    const bool exact = strncmp(name, "gemma4", 6) && strncmp(name, "mistral-v3", 10);
    char *once = malloc(2 * n + 8192), *twice = malloc(2 * n + 8192);
    const int cut = 1 + (int)(seed >> 8 & 7) % count;
    char *once_end = render(c, m, 0, count, seed & 1, once);
    char *twice_end = render(c, m, cut, count, seed & 1, render(c, m, 0, cut, false, twice));
    if (exact && (once_end - once != twice_end - twice || memcmp(once, twice, (size_t)(once_end - once)))) abort();
    free(once);
    free(twice);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 8) return 0;
    uint64_t seed;
    memcpy(&seed, data, 8);
    const char *s = (const char *)data + 8;
    const size_t n = size - 8;
    Chat c;
    chat_detect(&c, &(ChatHints){.template_text = n ? s : NULL, .template_n = n, .is_spm = seed >> 16 & 1});
    c.thinking = seed >> 17 & 1;
    check(&c, s, n, seed);
    char names[1024], *at = names; // and as a family chosen by the input
    snprintf(names, sizeof names, "%s", chat_family_names());
    for (unsigned skip = seed >> 24 & 31; skip && strchr(at, ' '); skip--) at = strchr(at, ' ') + 1;
    at[strcspn(at, ",")] = 0;
    if (!chat_force(&c, at)) abort();
    if (seed >> 18 & 1) memcpy(c.date, "", 1);
    check(&c, s, n, seed);
    return 0;
}
