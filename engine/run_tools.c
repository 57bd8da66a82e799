// run_tools.c: looking instead of talking: --info, --tokenize, --perplexity, and raw ids in, logits and residuals out.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "run.h"

// ---- --info ----

static void print_layers(const Model *m) {
    printf("layers           heads   kv  dim  window  rope base   angle x     ffn  experts\n");
    for (int first = 0; first < m->c.n_layer;) { // equal neighbours on one line
        const LayerDesc *d = &m->layers[first].d;
        int last = first;
        while (last + 1 < m->c.n_layer) {
            const LayerDesc *o = &m->layers[last + 1].d;
            const bool same = o->n_head == d->n_head && o->n_head_kv == d->n_head_kv && o->head_dim == d->head_dim && o->window == d->window &&
                              o->rope_base == d->rope_base && o->rope_scale == d->rope_scale && o->n_ff == d->n_ff &&
                              (o->kv_source == last + 1) == (d->kv_source == first) && (o->kv_source == last + 1 || o->kv_source == d->kv_source);
            if (!same) break;
            last++;
        }
        char name[32], window[16] = "all", experts[48] = "-", source[32] = "";
        snprintf(name, sizeof name, last > first ? "%d-%d" : "%d", first, last);
        if (d->window) snprintf(window, sizeof window, "%d", d->window);
        if (d->n_expert) snprintf(experts, sizeof experts, "%d of %d x %d", d->n_expert_used, d->n_expert, d->n_ff_expert);
        if (d->kv_source != first) snprintf(source, sizeof source, "  reads the KV of %d", d->kv_source);
        printf("  %-14s %5d %4d %4d %7s %10g %9g %7d  %s%s\n", name, d->n_head, d->n_head_kv, d->head_dim, window, (double)d->rope_base,
               (double)d->rope_scale, d->n_ff, experts, source);
        first = last + 1;
    }
}

bool run_info(Run *r, const SessionParams *session, Err *e) {
    const Model *m = &r->m;
    const Config *c = &m->c;
    GgufString name = {0};
    if (!gguf_get_string(&m->gguf, "general.name", &name, e) || !run_open_chat(r, e)) return false;
    printf("file             %s (GGUF version %d, %.2f MiB%s)\n", r->o.model, m->gguf.version, (double)m->gguf.file_bytes / 0x1p20,
           m->gguf.n_map > 1 ? ", split" : "");
    if (name.n) printf("name             %.*s\n", (int)(name.n < 200 ? name.n : 200), name.p);
    printf("architecture     %s\n", c->arch);
    if (m->n_param_active != m->n_param)
        printf("parameters       %.3f million, %.3f million active per token\n", (double)m->n_param / 1e6, (double)m->n_param_active / 1e6);
    else printf("parameters       %.3f million\n", (double)m->n_param / 1e6);
    printf("residual stream  %d wide, %d layers%s\n", c->n_embd, c->n_layer, c->n_stream ? ", AltUp streams" : "");
    printf("vocabulary       %d tokens%s\n", c->n_vocab, m->output == m->token_embd ? ", head tied to the embedding" : "");
    if (c->n_embd_per_layer) printf("per-layer input  %d wide\n", c->n_embd_per_layer);
    printf("trained context  %d tokens\n", c->n_ctx_train);
    printf("prompt format    %s\n", chat_family_name(&r->chat));

    printf("tensors          ");
    uint64_t bytes[TYPE_COUNT] = {0};
    int count[TYPE_COUNT] = {0};
    for (uint64_t i = 0; i < m->gguf.n_tensor; i++) {
        bytes[m->gguf.tensors[i].type] += m->gguf.tensors[i].bytes;
        count[m->gguf.tensors[i].type]++;
    }
    const char *gap = "";
    for (int t = 0; t < TYPE_COUNT; t++)
        if (count[t]) {
            printf("%s%d x %s (%.2f MiB)", gap, count[t], type_info(t)->name, (double)bytes[t] / 0x1p20);
            gap = ", ";
        }
    printf("\n");
    print_layers(m);

    uint64_t kv, acts, per_token = 0, window = 0;
    for (int l = 0; l < c->n_layer; l++) {
        const LayerDesc *d = &m->layers[l].d;
        if (d->kv_source == l) *(d->window ? &window : &per_token) += (uint64_t)session_kv_row_bytes(m, &r->b, session, l);
    }
    session_bytes(m, &r->b, session, &kv, &acts);
    printf("KV cache         %.1f KiB per token", (double)per_token / 1024);
    if (window) printf(", and %.1f KiB per token inside the window", (double)window / 1024);
    printf("\nmemory           weights %.2f MiB, KV cache for %d tokens %.2f MiB, work buffers %.2f MiB\n", (double)m->weight_bytes / 0x1p20, session->n_ctx,
           (double)kv / 0x1p20, (double)acts / 0x1p20);
    printf("backend          %s: %s\n", r->b.name, r->b.detail);
    return true;
}

// ---- --tokenize ----

bool run_tokenize(const Options *o, Err *e) {
    Gguf g;
    Tokenizer *t = NULL;
    char *text = NULL;
    size_t n = 0;
    Ids ids = {0};
    bool ok = gguf_open(&g, o->model, e); // a vocabulary-only file is enough
    if (!ok) return false;
    ok = tokenizer_open(&t, &g, e);
    ok = ok && prompt_text(o, &text, &n, e) && (text || read_whole_file("-", &text, &n, e));
    ok = ok && tokenizer_encode(t, text, n, !o->no_bos, !o->no_parse_special, &ids, e);
    for (int i = 0; ok && i < ids.n; i++) printf("%s%d", i ? " " : "", ids.id[i]);
    if (ok) putchar('\n');
    ids_free(&ids);
    free(text);
    tokenizer_close(t);
    gguf_close(&g);
    return ok;
}

// ---- --tokens, --logits, --residual ----

typedef struct {
    SafeFile logits, residual;
    const Run *r;
    float *rows;   // [n_layer][n][n_embd]
    int n;         // positions
    bool failed;
} Dump;

static void dump_logits(void *ctx, const float *logits, int seq, int pos) {
    Dump *d = ctx;
    (void)seq, (void)pos;
    if (fwrite(logits, sizeof(float) * (size_t)d->r->m.c.n_vocab, 1, d->logits.f) != 1) d->failed = true;
}

// Entering layer l is leaving layer l - 1.
static void dump_residual(void *ctx, const TapSite *site) {
    Dump *d = ctx;
    if (site->point != TAP_RESID_PRE || site->layer == 0) return;
    float *dst = d->rows + ((int64_t)(site->layer - 1) * d->n + site->span->pos) * site->n_col;
    site->backend->download(site->backend, dst, site->rows, sizeof(float) * (size_t)site->n_rows * (size_t)site->n_col);
}

static bool read_ids(const char *path, Ids *ids, Err *e) {
    char *bytes;
    size_t n;
    if (!read_whole_file(path, &bytes, &n, e)) return false;
    bool ok = n % 4 == 0 || err_set(e, "%s: %zu bytes, expected a multiple of 4 (int32 token ids)", path, n);
    for (size_t i = 0; ok && i < n; i += 4) {
        int32_t id;
        memcpy(&id, bytes + i, 4);
        ok = ids_push(ids, id) || err_set(e, "%s: no memory for the ids", path);
    }
    free(bytes);
    return ok;
}

bool run_ids(Run *r, Err *e) {
    const Options *o = &r->o;
    Ids ids = {0};
    if (o->tokens && !read_ids(o->tokens, &ids, e)) return false;
    if (!o->tokens) { // the prompt's own
        ids = r->cached;
        r->cached = (Ids){0};
    }
    Dump d = {.r = r, .n = ids.n};
    const int n_tap = r->s.n_tap;
    bool ok = ids.n > 0 || err_set(e, "%s: no token ids", o->tokens ? o->tokens : "the prompt");
    if (ok && o->logits && (ok = safe_open(&d.logits, o->logits, e))) {
        r->s.on_logits = dump_logits;
        r->s.on_logits_ctx = &d;
    }
    if (ok && o->residual && (ok = safe_open(&d.residual, o->residual, e))) {
        d.rows = calloc((size_t)ids.n * (size_t)r->m.c.n_layer, sizeof(float) * (size_t)r->m.c.n_embd);
        ok = d.rows || err_set(e, "no memory for the residual stream of %d positions", ids.n);
        ok = ok && session_add_tap(&r->s, (Tap){.call = dump_residual, .ctx = &d}, e);
    }
    ok = ok && run_feed(r, &ids, e);
    r->s.n_tap = n_tap;
    r->s.on_logits = NULL;
    if (ok && d.rows && fwrite(d.rows, sizeof(float) * (size_t)r->m.c.n_embd, (size_t)ids.n * (size_t)r->m.c.n_layer, d.residual.f) != (size_t)ids.n * (size_t)r->m.c.n_layer)
        ok = err_set(e, "%s: cannot write: %s", o->residual, strerror(errno));
    if (d.failed) ok = err_set(e, "%s: cannot write: %s", o->logits, strerror(errno));
    if (d.logits.f && !safe_close(&d.logits, ok, e)) ok = false;
    if (d.residual.f && !safe_close(&d.residual, ok, e)) ok = false;
    free(d.rows);
    ids_free(&ids);
    if (ok && o->n_predict > 0) { // raw ids as a prompt
        StopReason why;
        catch_interrupt(true);
        ok = run_generate(r, o->n_predict, false, NULL, &why, e);
        catch_interrupt(false);
        putchar('\n');
    }
    if (ok) run_print_speed(r);
    return ok;
}

// ---- --perplexity ----

typedef struct {
    const int *ids; // of this chunk
    int n, first;   // predictions from position first on count
    int n_vocab;
    double sum, squares;
    int64_t count;
} Score;

static void score_row(void *ctx, const float *logits, int seq, int pos) {
    Score *s = ctx;
    (void)seq;
    if (pos < s->first || pos + 1 >= s->n) return;
    double highest = -INFINITY, total = 0;
    for (int i = 0; i < s->n_vocab; i++) highest = fmax(highest, logits[i]);
    for (int i = 0; i < s->n_vocab; i++) total += exp(logits[i] - highest);
    const double loss = highest + log(total) - logits[s->ids[pos + 1]];
    s->sum += loss;
    s->squares += loss * loss;
    s->count++;
}

// Windows of at most 512 tokens (-c), each starting with BOS; the second half of each is scored, so that every scored token
// has at least half a window before it.
bool run_perplexity(Run *r, Err *e) {
    char *text;
    size_t n;
    Ids ids = {0};
    if (!read_whole_file(r->o.perplexity, &text, &n, e)) return false;
    bool ok = tokenizer_encode(r->tok, text, n, true, false, &ids, e);
    free(text);
    const int window = min_int(r->s.p.n_ctx, 512);
    if (ok && ids.n < 4) ok = err_set(e, "%s: %d tokens, too few for a perplexity", r->o.perplexity, ids.n);
    Score s = {.n_vocab = r->m.c.n_vocab};
    r->s.on_logits = score_row;
    r->s.on_logits_ctx = &s;
    Progress p;
    progress_start(&p, "perplexity");
    catch_interrupt(true);
    const bool add_bos = tokenizer_add_bos(r->tok) && tokenizer_bos(r->tok) >= 0;
    for (int at = 0; ok && at < ids.n && !interrupted;) {
        const int k = min_int(window, ids.n - at);
        if (k < window && at > 0) break; // a short tail would score tokens with little before them
        const int saved = ids.id[at];
        if (add_bos) ids.id[at] = tokenizer_bos(r->tok);
        s.ids = ids.id + at;
        s.n = k;
        s.first = k / 2;
        session_rewind(&r->s, 0, 0);
        const double start = seconds_now();
        ok = session_eval(&r->s, s.ids, k, e);
        r->prompt_seconds += seconds_now() - start;
        r->prompt_tokens += (uint64_t)k;
        ids.id[at] = saved;
        at += k;
        progress_step(&p, at, ids.n);
    }
    progress_end(&p);
    catch_interrupt(false);
    r->s.on_logits = NULL;
    if (ok && s.count) {
        const double mean = s.sum / (double)s.count;
        const double sd = sqrt(fmax(0, s.squares / (double)s.count - mean * mean) / (double)max_int(1, (int)s.count - 1));
        printf("perplexity %.4f +- %.4f over %lld tokens (windows of %d, second halves)\n", exp(mean), exp(mean) * sd, (long long)s.count,
               min_int(window, ids.n));
        run_print_speed(r);
    }
    ids_free(&ids);
    return ok;
}
