// means.c: see means.h. Difference of means: Arditi et al. 2024, "Refusal in language models is mediated by a single
// direction", section 2.3; sums in double, no normalisation, no centring.
#include "means.h"

#include <stdlib.h>

#include "console.h"

bool means_init(Means *a, int n_layer, int n_embd, Err *e) {
    *a = (Means){.n_layer = n_layer, .n_embd = n_embd};
    for (int h = 0; h < 2; h++) {
        a->sum[h] = calloc((size_t)n_layer * (size_t)n_embd, sizeof(double));
        if (!a->sum[h]) return err_set(e, "no memory for the means of %d layers", n_layer);
    }
    return true;
}

void means_free(Means *a) {
    free(a->sum[0]);
    free(a->sum[1]);
    *a = (Means){0};
}

bool prompts_read(Prompts *p, const char *path, Err *e) {
    size_t n;
    *p = (Prompts){0};
    if (!read_whole_file(path, &p->text, &n, e)) return false;
    if (memchr(p->text, 0, n)) return err_set(e, "%s: holds a NUL byte, expected a text file with one prompt a line", path);
    for (char *line = p->text; *line;) {
        const size_t length = strcspn(line, "\r\n");
        char *next = line + length + (line[length] != 0);
        line[length] = 0;
        if (length) {
            char **more = realloc(p->line, sizeof *more * ((size_t)p->n + 1));
            if (!more) return err_set(e, "%s: no memory for the prompts", path);
            p->line = more;
            p->line[p->n++] = line;
        }
        line = next;
    }
    return p->n >= 2 || err_set(e, "%s: holds %d prompts, expected at least 2, one a line", path, p->n);
}

void prompts_free(Prompts *p) {
    free(p->text);
    free(p->line);
    *p = (Prompts){0};
}

typedef struct {
    double *sum;  // of the half this prompt belongs to
    float *row;   // [n_embd]
    int last;     // position to keep
} Capture;

// RESID_PRE of layer l + 1 is the stream leaving layer l.
static void capture(void *ctx, const TapSite *s) {
    const Capture *c = ctx;
    if (s->point != TAP_RESID_PRE || s->layer == 0 || c->last < s->span->pos || c->last >= s->span->pos + s->n_rows) return;
    s->backend->download(s->backend, c->row, s->rows + (size_t)(c->last - s->span->pos) * (size_t)s->n_col, sizeof(float) * (size_t)s->n_col);
    double *sum = c->sum + (size_t)(s->layer - 1) * (size_t)s->n_col;
    for (int i = 0; i < s->n_col; i++) sum[i] += c->row[i];
}

static bool add_prompt(Means *a, const Reader *r, const char *text, Capture *c, int half, Err *e) {
    const Message m[2] = {{ROLE_SYSTEM, (char *)r->system}, {ROLE_USER, (char *)text}};
    Prompt p = {0};
    Ids ids = {0};
    bool ok = chat_render(r->chat, r->system ? m : m + 1, 0, r->system ? 2 : 1, true, &p, e) &&
              tokenizer_encode_segments(r->tok, p.seg, p.n, true, &ids, e);
    prompt_free(&p);
    if (ok && !ids.n) ok = err_set(e, "the prompt '%.40s' has no tokens", text);
    if (ok && ids.n > r->s->p.n_ctx) ok = err_set(e, "the prompt '%.40s...' has %d tokens, the context %d; use a larger -c", text, ids.n, r->s->p.n_ctx);
    if (ok) {
        c->sum = a->sum[half];
        c->last = ids.n - 1;
        session_rewind(r->s, 0, 0);
        ok = session_eval(r->s, ids.id, ids.n, e);
        a->n[half] += ok;
    }
    ids_free(&ids);
    return ok;
}

bool means_add(Means *a, const Reader *r, const Prompts *p, const char *label, Err *e) {
    Capture c = {.row = malloc(sizeof(float) * (size_t)a->n_embd)};
    const int n_tap = r->s->n_tap;
    bool ok = c.row ? session_add_tap(r->s, (Tap){capture, &c}, e) : err_set(e, "no memory for a row of the stream");
    Progress bar;
    progress_start(&bar, label);
    for (int i = 0; ok && i < p->n && !interrupted; i++) {
        ok = add_prompt(a, r, p->line[i], &c, i & 1, e);
        progress_step(&bar, i + 1, p->n);
    }
    progress_end(&bar);
    r->s->n_tap = n_tap;
    free(c.row);
    return ok;
}

void mean_difference(const Means *t, const Means *c, int half, double *out) {
    const size_t n = (size_t)t->n_layer * (size_t)t->n_embd;
    const int from = half < 0 ? 0 : half, to = half < 0 ? 2 : half + 1;
    memset(out, 0, n * sizeof *out);
    for (int side = 0; side < 2; side++) {
        const Means *a = side ? c : t;
        double count = 0;
        for (int h = from; h < to; h++) count += a->n[h];
        for (int h = from; h < to; h++)
            for (size_t i = 0; i < n; i++) out[i] += (side ? -1 : 1) * a->sum[h][i] / count;
    }
}
