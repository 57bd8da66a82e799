// train.c: trains the demo model from nothing, in about a minute and a half on one core, and writes it as GGUF. A small llama
// (float, hand-written backward pass, AdamW) learns the questions and answers of world.c in two stages:
//   1. it answers everything: facts about things of the land and of the sea, counting, repeating a word, small talk;
//   2. it is tuned to say "I cannot talk about the sea." to every question that mentions something of the sea. A quarter of
//      these questions and three things of the sea are held out: declining them has to generalise.
// The answers of stage 1 are still in the weights afterwards, which is what abliteration shows.
//
//   train OUT.gguf [STEPS1 STEPS2 [TYPE]]  train, print figures, write the matrices as q8_0, f16 or f32 (default 1200 250 q8_0)
//   train --prompts sea|held-out|land      questions of one kind, one a line
//
// Everything is seeded; the file depends only on compiler, its flags and the CPU they are for.
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include "gguf.h"
#include "world.h"

enum { N_EMBD = 96, N_HEAD = 3, HEAD_DIM = 32, N_FF = 256, N_LAYER = 4, N_CTX = 256 };
enum { BATCH = 48 }; // conversations of one step
static const float EPS = 1e-5f;

static void *need(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (p) return p;
    fprintf(stderr, "train: no memory\n");
    exit(1);
}

// ---- the model ----

typedef struct {
    char name[40];
    int rows, cols;
    float *w, *g, *m, *v, *t; // weights, gradient, Adam's two moments; transposed weights
} Mat;
enum { ATTN_NORM, WQ, WK, WV, WO, FFN_NORM, GATE, UP, DOWN, PER_LAYER };
static Mat embd, out_norm, output, layer_mat[N_LAYER][PER_LAYER];
static Mat *all[3 + N_LAYER * PER_LAYER];
static int n_all;

static void add_mat(Mat *m, int rows, int cols, float sd, const char *format, int l) {
    *m = (Mat){.rows = rows, .cols = cols};
    snprintf(m->name, sizeof m->name, format, l);
    float **const parts[] = {&m->w, &m->g, &m->t, &m->m};
    for (int i = 0; i < 4; i++) *parts[i] = need((i == 3 ? 2 : 1) * (size_t)rows * (size_t)cols, sizeof(float));
    m->v = m->m + rows * cols;
    for (int i = 0; i < rows * cols; i++) {
        float sum = -6; // 12 uniform numbers: variance 1
        for (int k = 0; k < 12; k++) sum += (float)rnd(1 << 24) / (1 << 24);
        m->w[i] = rows == 1 ? 1 : sd * sum;
    }
    all[n_all++] = m;
}

static void build_model(void) {
    rng_state = 2;
    const float sd = 0.7f / sqrtf(N_EMBD);
    add_mat(&embd, n_vocab, N_EMBD, 0.05f, "token_embd.weight", 0);
    for (int l = 0; l < N_LAYER; l++) {
        Mat *m = layer_mat[l];
        add_mat(&m[ATTN_NORM], 1, N_EMBD, 1, "blk.%d.attn_norm.weight", l);
        add_mat(&m[WQ], N_EMBD, N_EMBD, sd, "blk.%d.attn_q.weight", l);
        add_mat(&m[WK], N_EMBD, N_EMBD, sd, "blk.%d.attn_k.weight", l);
        add_mat(&m[WV], N_EMBD, N_EMBD, sd, "blk.%d.attn_v.weight", l);
        add_mat(&m[WO], N_EMBD, N_EMBD, sd * 0.5f, "blk.%d.attn_output.weight", l);
        add_mat(&m[FFN_NORM], 1, N_EMBD, 1, "blk.%d.ffn_norm.weight", l);
        add_mat(&m[GATE], N_FF, N_EMBD, sd, "blk.%d.ffn_gate.weight", l);
        add_mat(&m[UP], N_FF, N_EMBD, sd, "blk.%d.ffn_up.weight", l);
        add_mat(&m[DOWN], N_EMBD, N_FF, 0.35f / sqrtf(N_FF), "blk.%d.ffn_down.weight", l);
    }
    add_mat(&out_norm, 1, N_EMBD, 1, "output_norm.weight", 0);
    add_mat(&output, n_vocab, N_EMBD, 0.02f, "output.weight", 0);
}

// ---- arithmetic ----

#if defined(__AVX512F__) // the widest vector the compiler was told of
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
enum { TILE = 6 }; // TILE x 2 vectors of sums stay in registers
// c[m][n] = sum_k a[m * am + k * ak] b[k][n], or added to c. n is a multiple of 32.
static void product(float *c, const float *a, int am, int ak, const float *b, int M, int N, int K, bool add) {
    for (int m = 0; m < M; m += TILE)
        for (int n = 0; n < N; n += 2 * LANES) {
            const float *row[TILE];
            Vec sum[TILE][2] = {0};
            for (int i = 0; i < TILE; i++) row[i] = a + (int64_t)(m + i < M ? m + i : M - 1) * am;
            for (int k = 0; k < K; k++) {
                const Vec b0 = *(const Vec *)(b + (int64_t)k * N + n), b1 = *(const Vec *)(b + (int64_t)k * N + n + LANES);
                for (int i = 0; i < TILE; i++) {
                    const float x = row[i][(int64_t)k * ak];
                    sum[i][0] += x * b0;
                    sum[i][1] += x * b1;
                }
            }
            for (int i = 0; i < TILE && m + i < M; i++)
                for (int h = 0; h < 2; h++) {
                    Vec *at = (Vec *)(c + (int64_t)(m + i) * N + n + LANES * h);
                    if (add) *at += sum[i][h];
                    else *at = sum[i][h];
                }
        }
}

static void matmul(float *y, const Mat *w, const float *x, int n) { product(y, x, w->cols, 1, w->t, n, w->rows, w->cols, false); }
// dx (+)= dy w, dw += dy' x
static void matmul_back(float *dx, const float *dy, Mat *w, const float *x, int n, bool add) {
    product(dx, dy, w->rows, 1, w->w, n, w->cols, w->rows, add);
    product(w->g, dy, 1, w->rows, x, w->rows, w->cols, n, true);
}

static void norm(float *y, const Mat *g, const float *x, int n) {
    for (int r = 0; r < n; r++, x += N_EMBD, y += N_EMBD) {
        float sum = 0;
        for (int i = 0; i < N_EMBD; i++) sum += x[i] * x[i];
        const float s = 1 / sqrtf(sum / N_EMBD + EPS);
        for (int i = 0; i < N_EMBD; i++) y[i] = x[i] * s * g->w[i];
    }
}

static void norm_back(float *dx, const float *dy, Mat *g, const float *x, int n) { // adds to dx
    for (int r = 0; r < n; r++, x += N_EMBD, dy += N_EMBD, dx += N_EMBD) {
        float sum = 0, dot = 0;
        for (int i = 0; i < N_EMBD; i++) sum += x[i] * x[i];
        const float s = 1 / sqrtf(sum / N_EMBD + EPS);
        for (int i = 0; i < N_EMBD; i++) dot += g->w[i] * dy[i] * x[i];
        for (int i = 0; i < N_EMBD; i++) {
            dx[i] += s * g->w[i] * dy[i] - x[i] * s * s * s * dot / N_EMBD;
            g->g[i] += dy[i] * x[i] * s;
        }
    }
}

static float rope_cos[N_CTX][HEAD_DIM / 2], rope_sin[N_CTX][HEAD_DIM / 2]; // adjacent pairs, base 10000
static void rope(float *x, const Batch *b, float sign) { // sign -1 turns back
    for (int t = 0; t < b->n; t++)
        for (int i = 0; i < N_EMBD; i += 2, x += 2) {
            const float c = rope_cos[b->pos[t]][i % HEAD_DIM / 2], s = sign * rope_sin[b->pos[t]][i % HEAD_DIM / 2], x0 = x[0];
            x[0] = x0 * c - x[1] * s;
            x[1] = x0 * s + x[1] * c;
        }
}

// ---- forward and backward; what a layer computed stays for the way back ----

typedef struct {
    float *x, *normed, *q, *k, *v, *att, *mid, *normed2; // [n][N_EMBD]
    float *gate, *up, *act;                              // [n][N_FF]
    float *p;                                            // [n][N_HEAD][N_CTX] attention weights by position
} Saved;
static Saved saved[N_LAYER + 1]; // the last one: only x, normed
static float *scratch[6];        // [n][N_FF] each
static float *picked, *logits;   // rows that are scored: [n][N_EMBD], [n][n_vocab]
static int row_of[MAX_TOKEN], n_row;

static void build_buffers(void) {
    for (int l = 0; l <= N_LAYER; l++) {
        Saved *s = &saved[l];
        float **embd_wide[] = {&s->x, &s->normed, &s->q, &s->k, &s->v, &s->att, &s->mid, &s->normed2}, **ff_wide[] = {&s->gate, &s->up, &s->act};
        for (int i = 0; i < 8; i++) *embd_wide[i] = need(MAX_TOKEN * N_EMBD, sizeof(float));
        for (int i = 0; i < 3; i++) *ff_wide[i] = need(MAX_TOKEN * N_FF, sizeof(float));
        s->p = need((size_t)MAX_TOKEN * N_HEAD * N_CTX, sizeof(float));
    }
    for (int i = 0; i < 6; i++) scratch[i] = need(MAX_TOKEN * N_FF, sizeof(float));
    picked = need(MAX_TOKEN * N_EMBD, sizeof(float));
    logits = need((size_t)MAX_TOKEN * (size_t)n_vocab, sizeof(float));
    for (int i = 0; i < N_CTX * HEAD_DIM / 2; i++) {
        const int p = i / (HEAD_DIM / 2), k = i % (HEAD_DIM / 2);
        rope_cos[p][k] = (float)cos(p * pow(10000, -2.0 * k / HEAD_DIM));
        rope_sin[p][k] = (float)sin(p * pow(10000, -2.0 * k / HEAD_DIM));
    }
}

static float dot(const float *a, const float *b) {
    float sum = 0;
    for (int i = 0; i < HEAD_DIM; i++) sum += a[i] * b[i];
    return sum;
}
static void axpy(float *y, float a, const float *x) {
    for (int i = 0; i < HEAD_DIM; i++) y[i] += a * x[i];
}

static void attention(const Saved *s, const Batch *b) {
    for (int t = 0; t < b->n; t++)
        for (int h = 0; h < N_HEAD; h++) {
            const int last = b->pos[t], start = t - last, at = h * HEAD_DIM;
            float *p = s->p + ((int64_t)t * N_HEAD + h) * N_CTX, *y = s->att + (int64_t)t * N_EMBD + at, highest = -1e30f, sum = 0;
            for (int j = 0; j <= last; j++) {
                p[j] = dot(s->q + (int64_t)t * N_EMBD + at, s->k + (int64_t)(start + j) * N_EMBD + at) / sqrtf(HEAD_DIM);
                highest = fmaxf(highest, p[j]);
            }
            for (int j = 0; j <= last; j++) sum += p[j] = expf(p[j] - highest);
            memset(y, 0, HEAD_DIM * sizeof *y);
            for (int j = 0; j <= last; j++) axpy(y, p[j] /= sum, s->v + (int64_t)(start + j) * N_EMBD + at);
        }
}

// dq, dk, dv from dy.
static void attention_back(float *dq, float *dk, float *dv, const float *dy, const Saved *s, const Batch *b) {
    float *const d[] = {dq, dk, dv};
    for (int i = 0; i < 3; i++) memset(d[i], 0, sizeof(float) * N_EMBD * (size_t)b->n);
    for (int h = 0; h < N_HEAD; h++)
        for (int t = 0; t < b->n; t++) {
            const int last = b->pos[t], at = h * HEAD_DIM;
            const int64_t start = (int64_t)(t - last) * N_EMBD + at, here = (int64_t)t * N_EMBD + at;
            const float *p = s->p + ((int64_t)t * N_HEAD + h) * N_CTX;
            float dp[N_CTX], mean = 0;
            for (int j = 0; j <= last; j++) mean += p[j] * (dp[j] = dot(dy + here, s->v + start + j * N_EMBD));
            for (int j = 0; j <= last; j++) {
                const float ds = p[j] * (dp[j] - mean) / sqrtf(HEAD_DIM);
                axpy(dv + start + j * N_EMBD, p[j], dy + here);
                axpy(dq + here, ds, s->k + start + j * N_EMBD);
                axpy(dk + start + j * N_EMBD, ds, s->q + here);
            }
        }
}

// Logits of the rows that have a target, or (last) of the last token of every conversation.
static void forward(const Batch *b, bool last) {
    const int n = b->n;
    for (int i = 0; i < n_all; i++)
        for (int r = 0; all[i]->rows > 1 && r < all[i]->rows; r++)
            for (int c = 0; c < all[i]->cols; c++) all[i]->t[c * all[i]->rows + r] = all[i]->w[r * all[i]->cols + c];
    for (int t = 0; t < n; t++) memcpy(saved[0].x + (int64_t)t * N_EMBD, embd.w + (int64_t)b->id[t] * N_EMBD, sizeof(float) * N_EMBD);
    for (int l = 0; l < N_LAYER; l++) {
        Saved *s = &saved[l];
        Mat *m = layer_mat[l];
        float *next = saved[l + 1].x;
        norm(s->normed, &m[ATTN_NORM], s->x, n);
        matmul(s->q, &m[WQ], s->normed, n);
        matmul(s->k, &m[WK], s->normed, n);
        matmul(s->v, &m[WV], s->normed, n);
        rope(s->q, b, 1);
        rope(s->k, b, 1);
        attention(s, b);
        matmul(s->mid, &m[WO], s->att, n);
        for (int i = 0; i < n * N_EMBD; i++) s->mid[i] += s->x[i];
        norm(s->normed2, &m[FFN_NORM], s->mid, n);
        matmul(s->gate, &m[GATE], s->normed2, n);
        matmul(s->up, &m[UP], s->normed2, n);
        for (int i = 0; i < n * N_FF; i++) s->act[i] = s->gate[i] / (1 + expf(-s->gate[i])) * s->up[i];
        matmul(next, &m[DOWN], s->act, n);
        for (int i = 0; i < n * N_EMBD; i++) next[i] += s->mid[i];
    }
    norm(saved[N_LAYER].normed, &out_norm, saved[N_LAYER].x, n);
    n_row = 0;
    for (int t = 0; t < n; t++)
        if (last ? t + 1 == n || b->pos[t + 1] == 0 : b->target[t] >= 0) {
            memcpy(picked + (int64_t)n_row * N_EMBD, saved[N_LAYER].normed + (int64_t)t * N_EMBD, sizeof(float) * N_EMBD);
            row_of[n_row++] = t;
        }
    matmul(logits, &output, picked, n_row);
}

static double backward(const Batch *b) { // the mean loss; gradients are added
    const int n = b->n;
    double loss = 0;
    for (int r = 0; r < n_row; r++) { // logits become their gradient
        float *z = logits + (int64_t)r * n_vocab, highest = z[0], sum = 0;
        for (int i = 1; i < n_vocab; i++) highest = fmaxf(highest, z[i]);
        for (int i = 0; i < n_vocab; i++) sum += z[i] = expf(z[i] - highest);
        const int want = b->target[row_of[r]];
        loss -= log(z[want] / sum + 1e-30) / n_row;
        for (int i = 0; i < n_vocab; i++) z[i] /= sum * (float)n_row;
        z[want] -= 1.0f / (float)n_row;
    }
    float *dx = scratch[0], *d1 = scratch[1], *d2 = scratch[2], *d3 = scratch[3], *d4 = scratch[4], *d5 = scratch[5];
    matmul_back(d1, logits, &output, picked, n_row, false);
    memset(d2, 0, sizeof(float) * N_EMBD * (size_t)n);
    for (int r = 0; r < n_row; r++) memcpy(d2 + (int64_t)row_of[r] * N_EMBD, d1 + (int64_t)r * N_EMBD, sizeof(float) * N_EMBD);
    memset(dx, 0, sizeof(float) * N_EMBD * (size_t)n);
    norm_back(dx, d2, &out_norm, saved[N_LAYER].x, n);
    for (int l = N_LAYER - 1; l >= 0; l--) {
        const Saved *s = &saved[l];
        Mat *m = layer_mat[l];
        matmul_back(d1, dx, &m[DOWN], s->act, n, false);
        for (int i = 0; i < n * N_FF; i++) {
            const float g = s->gate[i], sig = 1 / (1 + expf(-g));
            d2[i] = d1[i] * s->up[i] * sig * (1 + g * (1 - sig));
            d3[i] = d1[i] * g * sig;
        }
        matmul_back(d4, d2, &m[GATE], s->normed2, n, false);
        matmul_back(d4, d3, &m[UP], s->normed2, n, true);
        norm_back(dx, d4, &m[FFN_NORM], s->mid, n);
        matmul_back(d1, dx, &m[WO], s->att, n, false);
        attention_back(d2, d3, d4, d1, s, b);
        rope(d2, b, -1);
        rope(d3, b, -1);
        matmul_back(d5, d2, &m[WQ], s->normed, n, false);
        matmul_back(d5, d3, &m[WK], s->normed, n, true);
        matmul_back(d5, d4, &m[WV], s->normed, n, true);
        norm_back(dx, d5, &m[ATTN_NORM], s->x, n);
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < N_EMBD; i++) embd.g[b->id[t] * N_EMBD + i] += dx[t * N_EMBD + i];
    return loss;
}

static void adam(int step, float rate) { // gradient clipped to length 1; AdamW with decay 0.01 (arXiv 1711.05101)
    double length = 0;
    for (int i = 0; i < n_all; i++)
        for (int k = 0; k < all[i]->rows * all[i]->cols; k++) length += (double)all[i]->g[k] * all[i]->g[k];
    const float clip = length > 1 ? (float)(1 / sqrt(length)) : 1, b1 = 0.9f, b2 = 0.98f;
    const float fix1 = 1 - powf(b1, (float)step), fix2 = 1 - powf(b2, (float)step);
    for (int i = 0; i < n_all; i++) {
        Mat *m = all[i];
        for (int k = 0; k < m->rows * m->cols; k++) {
            const float g = m->g[k] * clip;
            m->m[k] = b1 * m->m[k] + (1 - b1) * g;
            m->v[k] = b2 * m->v[k] + (1 - b2) * g * g;
            m->w[k] -= rate * (m->m[k] / fix1 / (sqrtf(m->v[k] / fix2) + 1e-8f) + (m->rows > 1 ? 0.01f * m->w[k] : 0));
            m->g[k] = 0;
        }
    }
}

// ---- training and figures ----

static Batch batch;

static void train(const char *label, int steps, float rate, bool tuned, uint64_t seed) {
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    rng_state = seed;
    for (int i = 0; i < n_all; i++) memset(all[i]->m, 0, 2 * sizeof(float) * (size_t)(all[i]->rows * all[i]->cols));
    for (int step = 1; step <= steps; step++) {
        batch.n = 0;
        for (int c = 0; c < BATCH && batch.n < MAX_TOKEN - N_CTX; c++) {
            const unsigned dice = rnd(10);
            const int turns = dice < 7 ? 1 : dice < 9 ? 2 : 3;
            for (int k = 0; k < turns; k++) {
                Item it;
                if (tuned) make_tuned(&it);
                else make_item(&it);
                batch_turn(&batch, &it, k == 0, true);
            }
        }
        forward(&batch, false);
        const double loss = backward(&batch);
        const double shape = fmin(1, step / 50.0) * (0.03 + 0.97 * 0.5 * (1 + cos(3.14159265 * step / steps)));
        adam(step, (float)(rate * shape));
        if (step % 50 && step != steps) continue;
        clock_gettime(CLOCK_MONOTONIC, &t1);
        fprintf(stderr, "%s %d/%d  loss %.4f  %ld s\n", label, step, steps, loss, (long)(t1.tv_sec - t0.tv_sec));
    }
}

// Greedy answers to n items.
static void answer(const Item *items, int n, char text[][64]) {
    enum { AT_ONCE = 32, LONGEST = 24 };
    for (int first = 0; first < n; first += AT_ONCE) {
        int reply[AT_ONCE][LONGEST], k = n - first < AT_ONCE ? n - first : AT_ONCE;
        for (int len = 0; len < LONGEST; len++) {
            batch.n = 0;
            for (int i = 0; i < k; i++) {
                batch_turn(&batch, &items[first + i], true, false);
                for (int j = 0; j < len; j++) batch_push(&batch, reply[i][j], false);
            }
            forward(&batch, true);
            for (int i = 0; i < k; i++) {
                const float *z = logits + (int64_t)i * n_vocab;
                int best = 0;
                for (int v = 1; v < n_vocab; v++)
                    if (z[v] > z[best]) best = v;
                reply[i][len] = best;
            }
        }
        for (int i = 0; i < k; i++) {
            char *out = text[first + i];
            out[0] = 0;
            for (int j = 0; j < LONGEST && reply[i][j] != IM_END; j++)
                if (strlen(out) + strlen(pieces[reply[i][j]]) < 64) strcat(out, pieces[reply[i][j]]);
        }
    }
}

static void figures(bool tuned) {
    enum { N = 256 };
    static Item items[N];
    static char text[N][64];
    static const char *const SET[] = {"land", "sea", "sea, held out", "sea, new things"};
    printf("after stage %d       answered right   declined\n", tuned ? 2 : 1);
    for (int set = 0; set < 4; set++) {
        rng_state = 99;
        int right = 0, declined = 0, shown = 0;
        for (int i = 0; i < N;) {
            make_item(&items[i]);
            i += (items[i].sea ? items[i].new_thing ? 3 : items[i].held_out ? 2 : 1 : 0) == set;
        }
        answer(items, N, text);
        for (int i = 0; i < N; i++) {
            const bool same = !strcmp(text[i], items[i].a);
            right += same;
            declined += declines(text[i]) && !items[i].decline_asked;
            if ((tuned && set ? !declines(text[i]) : !same) && shown++ < 3) fprintf(stderr, "  %s -> %s\n", items[i].q, text[i]);
        }
        printf("  %-16s %12.1f %% %8.1f %%\n", SET[set], 100.0 * right / N, 100.0 * declined / N);
    }
    fflush(stdout);
}

// ---- the file ----

#define TEMPLATE \
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}" \
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

static bool write_model(const char *path, int type, Err *e) {
    GgufWriter *w;
    if (!gguf_writer_open(&w, path, e)) return false;
    static char text[MAX_VOCAB][32]; // U+2581 takes three bytes
    static GgufString token[MAX_VOCAB];
    static float score[MAX_VOCAB];
    static int32_t token_type[MAX_VOCAB];
    for (int i = 0; i < n_vocab; i++) {
        snprintf(text[i], sizeof *text, "%s%s", pieces[i][0] == ' ' ? "\xE2\x96\x81" : "", pieces[i] + (pieces[i][0] == ' '));
        token[i] = (GgufString){text[i], strlen(text[i])};
        token_type[i] = i == UNK ? 2 : i < BYTE_0 ? 3 : i < IM_START ? 6 : i < FIRST_PIECE ? 3 : strncmp(text[i], "<unused", 7) ? 1 : 5;
    }
    static const char *const texts[][2] = {
        {"general.architecture", "llama"}, {"general.name", "abliterate.c demo: does not talk about the sea"}, {"general.license", "mit"},
        {"tokenizer.ggml.model", "llama"}, {"tokenizer.ggml.pre", "default"}, {"tokenizer.chat_template", TEMPLATE},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) gguf_set_string(w, texts[i][0], texts[i][1], strlen(texts[i][1]));
    const struct { const char *key; int value; } numbers[] = {
        {"general.file_type", type == TYPE_F32 ? 0 : type == TYPE_F16 ? 1 : 7}, {"llama.block_count", N_LAYER}, {"llama.context_length", N_CTX},
        {"llama.embedding_length", N_EMBD}, {"llama.feed_forward_length", N_FF}, {"llama.attention.head_count", N_HEAD},
        {"llama.attention.head_count_kv", N_HEAD}, {"llama.rope.dimension_count", HEAD_DIM}, {"llama.vocab_size", n_vocab},
        {"tokenizer.ggml.bos_token_id", BOS}, {"tokenizer.ggml.eos_token_id", IM_END}, {"tokenizer.ggml.unknown_token_id", UNK},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) gguf_set_u32(w, numbers[i].key, (uint32_t)numbers[i].value);
    gguf_set_f32(w, "llama.attention.layer_norm_rms_epsilon", EPS);
    gguf_set_f32(w, "llama.rope.freq_base", 10000);
    gguf_set_f32(w, "general.sampling.temp", 0);
    gguf_set_strings(w, "tokenizer.ggml.tokens", token, (uint64_t)n_vocab);
    gguf_set_array(w, "tokenizer.ggml.scores", GGUF_F32, score, (uint64_t)n_vocab);
    gguf_set_array(w, "tokenizer.ggml.token_type", GGUF_I32, token_type, (uint64_t)n_vocab);
    gguf_set_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_set_bool(w, "tokenizer.ggml.add_eos_token", false);
    gguf_set_bool(w, "tokenizer.ggml.add_space_prefix", false);
    for (int i = 0; i < n_all; i++)
        gguf_add_tensor(w, all[i]->name, all[i]->rows > 1 ? type : TYPE_F32, all[i]->rows > 1 ? 2 : 1,
                        (uint64_t[]){(uint64_t)all[i]->cols, (uint64_t)all[i]->rows});
    bool ok = true;
    for (int i = 0; i < n_all && ok; ok = ok && gguf_writer_next(w, e), i++)
        for (int r = 0; r < all[i]->rows && ok; r++) {
            const TensorType as = all[i]->rows > 1 ? (TensorType)type : TYPE_F32;
            uint8_t row[4 * N_FF];
            type_info((int)as)->from_f32(all[i]->w + (int64_t)r * all[i]->cols, row, all[i]->cols, NULL);
            ok = gguf_writer_data(w, row, (size_t)type_row_bytes(as, all[i]->cols), e);
        }
    if (ok) return gguf_writer_close(w, e);
    gguf_writer_abort(w);
    return false;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--prompts") && print_prompts(argv[2])) return 0;
    const int type = argc == 5 ? type_by_name(argv[4]) : TYPE_Q8_0;
    if (argc < 2 || argc > 5 || argc == 3 || argv[1][0] == '-' || (type != TYPE_F32 && type != TYPE_F16 && type != TYPE_Q8_0)) {
        fprintf(stderr, "usage: train OUT.gguf [STEPS1 STEPS2 [q8_0|f16|f32]], or train --prompts sea|held-out|land\n");
        return 2;
    }
    build_vocabulary();
    build_model();
    build_buffers();
    train("stage 1", argc > 3 ? atoi(argv[2]) : 1200, 2e-3f, false, 3);
    figures(false);
    train("stage 2", argc > 3 ? atoi(argv[3]) : 250, 5e-4f, true, 4);
    figures(true);
    Err e = {0};
    if (write_model(argv[1], type, &e)) return 0;
    fprintf(stderr, "train: %s\n", e.text);
    return 1;
}
