// altup.c: what only Gemma 3n has. Several residual streams run side by side (AltUp, arXiv 2301.13310): each layer predicts
// all of them, computes on the active one, and corrects the others by what it learned; a low-rank branch runs beside
// attention (LAuReL, arXiv 2411.07501). Buffers: a.streams and a.predicted [n_stream][n][E]; stream 0 is the active one.
#include <math.h>
#include "forward.h"

static float *stream(const Session *s, float *streams, int j, int n) { return streams + (int64_t)j * n * s->m->c.n_embd; }

static void copy(Session *s, float *dst, const float *src, int n) {
    const int E = s->m->c.n_embd;
    s->b->copy_rows(s->b, dst, E, src, E, n, E);
}

void altup_expand(Session *s, int n) {
    Acts *a = s->a;
    copy(s, a->streams, a->x, n);
    for (int j = 1; j < s->m->c.n_stream; j++) {
        float *x = stream(s, a->streams, j, n);
        s->b->matmul(s->b, x, s->m->altup_proj[j - 1], NULL, a->x, n);
        s->b->match_length(s->b, x, a->x, n, s->m->c.n_embd);
    }
}

// modality [n][n_stream] = tanh(router(norm(x) / E)), the gate of both mixing steps
static void route(Session *s, const Layer *w, const float *x, int n) {
    Backend *b = s->b;
    Acts *a = s->a;
    const int E = s->m->c.n_embd;
    b->norm(b, a->normed, w->altup_router_norm, x, n, E, s->m->c.norm_eps);
    b->scale(b, a->normed, 1.0f / (float)E, (int64_t)n * E);
    b->matmul(b, a->modality, w->altup_router, NULL, a->normed, n);
    b->softcap(b, a->modality, 1, (int64_t)n * s->m->c.n_stream);
}

void altup_predict(Session *s, int l, int n) {
    const Layer *w = &s->m->layers[l];
    Backend *b = s->b;
    Acts *a = s->a;
    const int S = s->m->c.n_stream, E = s->m->c.n_embd;
    stream_tap(s, TAP_STREAMS, l, a->streams, S * n);
    route(s, w, a->streams, n);
    b->matmul(b, a->coef, w->altup_predict_coef, NULL, a->modality, n);
    copy(s, a->predicted, a->streams, S * n);
    b->mix_streams(b, a->predicted, a->coef, a->streams, S, S, n, E);
    copy(s, a->x, a->predicted, n);
}

void laurel_branch(Session *s, const Layer *w, int n) {
    Backend *b = s->b;
    Acts *a = s->a;
    const int E = s->m->c.n_embd;
    b->matmul(b, a->laurel_low, w->laurel_l, NULL, a->normed, n);
    b->matmul(b, a->laurel, w->laurel_r, NULL, a->laurel_low, n);
    b->norm(b, a->laurel, w->laurel_post_norm, a->laurel, n, E, s->m->c.norm_eps);
    b->add(b, a->laurel, a->normed, (int64_t)n * E); // its residual is the *normed* input
}

void laurel_merge(Session *s, int n) {
    const int64_t count = (int64_t)n * s->m->c.n_embd;
    s->b->add(s->b, s->a->x, s->a->laurel, count);
    s->b->scale(s->b, s->a->x, sqrtf(0.5f), count);
}

void altup_correct(Session *s, const Layer *w, int n) {
    Backend *b = s->b;
    Acts *a = s->a;
    const int S = s->m->c.n_stream, E = s->m->c.n_embd;
    const int64_t count = (int64_t)n * E;
    route(s, w, a->x, n);
    b->matmul(b, a->coef, w->altup_correct_coef, NULL, a->modality, n);
    copy(s, a->innovation, a->predicted, n); // innovation = x - predicted active stream
    b->scale(b, a->innovation, -1, count);
    b->add(b, a->innovation, a->x, count);
    for (int j = 0; j < S; j++) b->add(b, stream(s, a->predicted, j, n), a->innovation, count); // the 1 of (1 + coef)
    b->mix_streams(b, a->predicted, a->coef, a->innovation, S, 1, n, E);
    float *corrected = a->predicted; // becomes the streams of the next layer
    a->predicted = a->streams;
    a->streams = corrected;
    copy(s, a->normed, a->streams, n);
    b->mul_cols(b, a->normed, w->altup_correct_scale, n); // only the per-layer input reads it scaled
}

void altup_add_per_layer(Session *s, int n) {
    for (int j = 1; j < s->m->c.n_stream; j++) s->b->add(s->b, stream(s, s->a->streams, j, n), s->a->out, (int64_t)n * s->m->c.n_embd);
}

void altup_merge(Session *s, int n) {
    Backend *b = s->b;
    Acts *a = s->a;
    const int S = s->m->c.n_stream, E = s->m->c.n_embd;
    stream_tap(s, TAP_STREAMS, s->m->c.n_layer, a->streams, S * n);
    copy(s, a->x, a->streams, n);
    for (int j = 1; j < S; j++) {
        b->matmul(b, a->innovation, s->m->altup_unembd_proj[j - 1], NULL, stream(s, a->streams, j, n), n);
        b->match_length(b, a->innovation, a->streams, n, E);
        b->add(b, a->x, a->innovation, (int64_t)n * E);
    }
    b->scale(b, a->x, 1.0f / (float)S, (int64_t)n * E);
}
