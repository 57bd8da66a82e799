// machine_measure.c: see machine.h. Products with one row go through as much of the model as there is (of each type 512 MiB); those of a prompt
// through little, again and again. What an op costs beside its bytes is what a layer of matrices of few rows takes, divided by the launches that a device needs for one
// (units.c counts those): norms, activations, the rounding of rows, and waiting for one another.
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "machine.h"

enum { MIB = 512, MADE_UP_MIB = 512, MADE_UP_COL = 4096, REPS = 5, MAX_ROUNDS = 100, PROMPT_ROWS = 64, PROMPT_MIB = 4 };

// The matrices of one type, experts one by one: about MIB of them.
typedef struct {
    TensorType type;
    Tensor *t; // [n]
    int n, cap;
    int64_t bytes;
    int n_row, n_col; // the largest
    bool failed;
} Matrices;

static bool collect(void *ctx, Tensor *t, int layer, bool ffn) {
    Matrices *a = ctx;
    (void)layer, (void)ffn;
    for (int s = 0; t->type == a->type && t->n_row > 1 && s < t->n_slice && a->bytes < (int64_t)MIB << 20; s++) {
        if (a->n == a->cap) {
            const int cap = a->cap ? 2 * a->cap : 64;
            Tensor *more = realloc(a->t, sizeof *more * (size_t)cap);
            if (!more) return !(a->failed = true);
            a->t = more;
            a->cap = cap;
        }
        Tensor *one = &a->t[a->n++];
        *one = *t;
        one->host = tensor_row(t, s, 0);
        one->n_slice = 1;
        one->slices = NULL;
        a->bytes += tensor_bytes(one);
        a->n_row = max_int(a->n_row, t->n_row);
        a->n_col = max_int(a->n_col, t->n_col);
    }
    return true;
}

static int by_size(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static double median(double *s, int n) {
    qsort(s, (size_t)n, sizeof *s, by_size);
    return s[n / 2];
}

static double pass_seconds(Backend *b, float *y, const Tensor *t, int n, const float *x, int n_rows) {
    const double start = seconds_now();
    for (int k = 0; k < n; k++) b->matmul(b, y, &t[k], NULL, x, n_rows);
    return seconds_now() - start;
}

static float *floats(size_t n) {
    float *x = aligned_alloc(64, (sizeof *x * n + 63) / 64 * 64);
    for (size_t i = 0; x && i < n; i++) x[i] = (float)(i % 17) / 8 - 1;
    return x;
}

// One row: all types in turn, as a token reads them, so that a type with few matrices does not stay in the caches from one time to the next
// where the model does not.
static void measure_token(Processor *host, Backend *b, const Matrices *all, int n_type, const float *x, float *y, Progress *bar) {
    double s[TYPE_COUNT][MAX_ROUNDS];
    const double start = seconds_now();
    int rounds = 0;
    for (int i = -1; i < MAX_ROUNDS && (i < REPS || seconds_now() - start < 0.5); i++) { // the first brings them into memory
        for (int k = 0; k < n_type; k++) s[k][max_int(i, 0)] = pass_seconds(b, y, all[k].t, all[k].n, x, 1);
        rounds = i + 1;
        if (bar) progress_step(bar, max_int(i, 0), 2 * REPS);
    }
    for (int k = 0; k < n_type; k++) host->share_of[all[k].type] = (double)all[k].bytes / median(s[k], rounds);
}

// Many rows.
static double prompt_rate(Backend *b, const Matrices *a, const float *x, float *y) {
    double flop = 0, s[REPS];
    int n = 0;
    for (int64_t bytes = 0; n < a->n && (n == 0 || bytes < PROMPT_MIB << 20); n++) {
        bytes += tensor_bytes(&a->t[n]);
        flop += 2.0 * PROMPT_ROWS * a->t[n].n_row * a->t[n].n_col;
    }
    for (int i = -1; i < REPS; i++) {
        int passes = 0;
        double seconds = 0;
        do {
            seconds += pass_seconds(b, y, a->t, n, x, PROMPT_ROWS);
            passes++;
        } while (seconds < 0.02);
        if (i >= 0) s[i] = seconds / passes;
    }
    return flop / median(s, REPS);
}

// ---- an op beside its bytes ----

enum { LAYER_COL = 2048, LAYER_ROW = 64, LAYER_LAUNCHES = 9, HEAD_DIM = 64, CELLS = 16 };

static double layer_seconds(Backend *b, const Tensor *w, const Tensor *down, const KvLayer *kv, float *x, float *y, int passes) {
    static const double freq[HEAD_DIM / 2] = {1};
    const Rope rope = {ROPE_ADJACENT, HEAD_DIM, 1, freq};
    float *normed = y, *q = y + LAYER_COL, *k = q + LAYER_ROW, *v = k + LAYER_ROW, *out = v + LAYER_ROW, *gate = out + LAYER_COL, *up = gate + LAYER_COL;
    const Matmul qkv[] = {{q, w, NULL}, {k, w, NULL}, {v, w, NULL}};
    const double start = seconds_now();
    for (int i = 0; i < passes; i++) {
        b->norm(b, normed, NULL, x, 1, LAYER_COL, 1e-6f);
        b->matmuls(b, qkv, 3, normed, 1);
        b->rope(b, q, &rope, 1, 1, HEAD_DIM, CELLS - 1);
        b->rope(b, k, &rope, 1, 1, HEAD_DIM, CELLS - 1);
        b->kv_write(b, kv, k, v, 1, CELLS - 1);
        b->attention(b, &(AttentionArgs){.y = out, .q = q, .kv = kv, .n_rows = 1, .pos = CELLS - 1, .n_head = 1, .scale = 0.125f});
        b->matmul(b, out, down, NULL, q, 1);
        b->add(b, x, out, LAYER_COL);
        b->norm(b, normed, NULL, x, 1, LAYER_COL, 1e-6f);
        b->gated_matmul(b, &(GatedArgs){.y = gate, .gate = w, .up = w, .x = normed, .scratch = up, .n_rows = 1, .act = ACT_SILU});
        b->matmul(b, out, down, NULL, gate, 1);
        b->add(b, x, out, LAYER_COL);
    }
    return (seconds_now() - start) / passes;
}

static bool measure_launch(Processor *host, Backend *b, Err *e) {
    const size_t row = (size_t)type_row_bytes(TYPE_Q8_0, LAYER_COL);
    char *zeros = calloc(LAYER_ROW, row);
    float *x = floats(LAYER_COL), *y = floats(3 * LAYER_COL + 3 * LAYER_ROW + LAYER_COL);
    KvLayer kv = {.k = b->alloc(b, sizeof(F16) * CELLS * HEAD_DIM), .v = b->alloc(b, sizeof(F16) * CELLS * HEAD_DIM),
                  .n_cell = CELLS, .n_head_kv = 1, .head_dim = HEAD_DIM};
    const bool ok = (zeros && x && y && kv.k && kv.v) || err_set(e, "no memory to measure with");
    if (ok) {
        const Tensor w = {.name = "few rows", .type = TYPE_Q8_0, .n_row = LAYER_ROW, .n_col = LAYER_COL, .n_slice = 1, .host = zeros},
                     down = {.name = "few columns", .type = TYPE_Q8_0, .n_row = LAYER_COL, .n_col = LAYER_ROW, .n_slice = 1, .host = zeros};
        double s[REPS];
        layer_seconds(b, &w, &down, &kv, x, y, 100);
        for (int i = 0; i < REPS; i++) s[i] = layer_seconds(b, &w, &down, &kv, x, y, 200);
        host->launch = median(s, REPS) / LAYER_LAUNCHES;
    }
    free(zeros);
    free(x);
    free(y);
    b->free(b, kv.k);
    b->free(b, kv.v);
    return ok;
}

// ---- chosen experts ----

enum { EXPERT_LAUNCHES = 4, MADE_UP_EXPERTS = 128, MADE_UP_USED = 8, MADE_UP_EMBD = 2816, MADE_UP_FF = 704 };

// A layer with experts.
typedef struct {
    const Tensor *gate, *up, *down;
    int n_expert, n_used;
    Activation act;
} Choice;

static double choice_seconds(Backend *b, const Choice *c, int turn, const float *x, float *y) {
    int expert[MAX_EXPERT];
    float weight[MAX_EXPERT];
    for (int u = 0; u < c->n_used; u++) { // others than the turn before
        expert[u] = (turn + u * (c->n_expert / c->n_used)) % c->n_expert;
        weight[u] = 1;
    }
    const double start = seconds_now();
    b->moe_ffn(b, &(MoeArgs){.y = y, .gate = c->gate, .up = c->up, .down = c->down, .x = x, .expert = expert, .weight = weight, .n_rows = 1, .n_used = c->n_used, .act = c->act});
    return seconds_now() - start;
}

// After the products and what an op costs: of what they say, what the op reaches.
static void measure_experts(Processor *host, Backend *b, const Choice *c, int n, const float *x, float *y) {
    double s[REPS], said = 0;
    if (!n) return;
    for (int i = -1; i < REPS; i++) {
        double seconds = 0;
        int passes = 0;
        for (; seconds < 0.05 && passes < MAX_ROUNDS; passes++)
            for (int l = 0; l < n; l++) seconds += choice_seconds(b, &c[l], (i + 1) * 16 + passes, x, y);
        if (i >= 0) s[i] = seconds / passes;
    }
    for (int l = 0; l < n; l++) {
        const Tensor *const t[] = {c[l].gate, c[l].up, c[l].down};
        for (int k = 0; k < 3; k++) said += machine_type_seconds(host, t[k]->type, (double)tensor_bytes(t[k]) / t[k]->n_slice * c[l].n_used);
    }
    const double op = n * EXPERT_LAUNCHES * host->launch, all = median(s, REPS);
    if (all > 0) host->experts = said / fmax(all - op, all / 2);
}

// Of a model, or like those of Gemma 4 26B-A4B: tensors and slices are for these.
static int gather_experts(Choice *c, Model *m, const char *made_up, Tensor tensor[3], const void *slices[3][MADE_UP_EXPERTS]) {
    static const struct { TensorType type; int n_row, n_col; } like[3] = {
        {TYPE_Q4_K, MADE_UP_FF, MADE_UP_EMBD}, {TYPE_Q4_K, MADE_UP_FF, MADE_UP_EMBD}, {TYPE_Q5_0, MADE_UP_EMBD, MADE_UP_FF}};
    int n = 0;
    for (int l = 0; m && l < m->c.n_layer; l++) {
        const Layer *w = &m->layers[l];
        if (w->d.n_expert) c[n++] = (Choice){w->ffn_gate_exps, w->ffn_up_exps, w->ffn_down_exps, w->d.n_expert, w->d.n_expert_used, w->d.act};
    }
    if (m) return n;
    for (int k = 0; k < 3; k++) {
        tensor[k] = (Tensor){.name = "made up", .type = like[k].type, .n_row = like[k].n_row, .n_col = like[k].n_col, .n_slice = MADE_UP_EXPERTS, .host = made_up, .slices = slices[k]};
        const int64_t bytes = like[k].n_row * type_row_bytes(like[k].type, like[k].n_col);
        for (int i = 0; i < MADE_UP_EXPERTS; i++, made_up += bytes) slices[k][i] = made_up;
    }
    c[0] = (Choice){&tensor[0], &tensor[1], &tensor[2], MADE_UP_EXPERTS, MADE_UP_USED, ACT_GELU_TANH};
    return 1;
}

// ---- all ----

enum { MADE_UP = MADE_UP_MIB / PROMPT_MIB };

// Memory in pages as a mapped file has them, of a byte that is a small number in every format: no NaN, and no denormal, which is slow.
static void *map_weights(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    (void)madvise(p, bytes, MADV_NOHUGEPAGE); // where the kernel knows none, there are none
    memset(p, 0x2c, bytes);
    return p;
}

// All of it as matrices of PROMPT_MIB.
static void make_up(Matrices *a, const char *weights) {
    a->t = malloc(sizeof *a->t * MADE_UP);
    a->failed = !a->t;
    if (a->failed) return;
    a->n = MADE_UP;
    a->n_col = MADE_UP_COL;
    a->n_row = (int)(((int64_t)PROMPT_MIB << 20) / type_row_bytes(a->type, MADE_UP_COL));
    for (int i = 0; i < MADE_UP; i++)
        a->t[i] = (Tensor){.name = "made up", .type = a->type, .n_row = a->n_row, .n_col = a->n_col, .n_slice = 1, .host = weights + (size_t)i * (PROMPT_MIB << 20)};
    a->bytes = MADE_UP * tensor_bytes(a->t);
}

// The types that there are, [TYPE_COUNT]; -1: no memory, or a matrix is too wide.
static int gather(Matrices *all, Model *m, const char *made_up, int max_col) {
    int n = 0;
    for (int type = 0; type < TYPE_COUNT; type++) {
        Matrices *a = &all[n];
        *a = (Matrices){.type = (TensorType)type};
        if (!type_info(type) || !type_info(type)->to_f32) continue;
        if (m) model_each(m, collect, a);
        else make_up(a, made_up);
        if (a->n) n++;
        if (a->failed || a->n_col > max_col) return -1;
    }
    return n;
}

bool machine_measure(Processor *host, Model *m, int threads, Isa isa, Progress *bar, Err *e) {
    Backend b = {0};
    Matrices all[TYPE_COUNT] = {{0}};
    static Choice choice[MAX_LAYER];
    Tensor tensor[3];
    const void *slices[3][MADE_UP_EXPERTS];
    Limits limits = {.n_rows = PROMPT_ROWS, .n_col = 1 << 17, .n_ctx = CELLS, .n_head = 1, .head_dim = HEAD_DIM, .n_vocab = 1};
    const size_t bytes = (size_t)MADE_UP_MIB << 20;
    void *made_up = m ? NULL : map_weights(bytes);
    float *x = NULL, *y = NULL;
    int n_row = 0, n_col = 0;
    *host = (Processor){.name = "this", .label = "this machine", .share = 1,
                         .measured = "measured just now: products of the model's matrices with one row, and with 64"};
    const int n = m || made_up ? gather(all, m, made_up, limits.n_col) : -1;
    for (int i = 0; i < n; i++) n_row = max_int(n_row, all[i].n_row), n_col = max_int(n_col, all[i].n_col);
    const int n_choice = n < 0 ? 0 : gather_experts(choice, m, made_up, tensor, slices);
    for (int l = 0; l < n_choice; l++) {
        limits.n_embd = max_int(limits.n_embd, choice[l].down->n_row);
        limits.n_ff_expert = max_int(limits.n_ff_expert, choice[l].gate->n_row);
        limits.n_expert = max_int(limits.n_expert, choice[l].n_expert);
        limits.n_expert_used = max_int(limits.n_expert_used, choice[l].n_used);
    }
    bool ok = (n >= 0 || err_set(e, "no memory to measure with")) && backend_open_cpu(&b, threads, isa, e) && b.reserve(&b, &limits, e);
    if (ok) {
        x = floats((size_t)PROMPT_ROWS * (size_t)n_col);
        y = floats((size_t)PROMPT_ROWS * (size_t)n_row);
        ok = ((x && y) || err_set(e, "no memory to measure with")) && measure_launch(host, &b, e);
    }
    if (ok) measure_token(host, &b, all, n, x, y, bar);
    for (int i = 0; i < n && ok; i++) {
        host->rate_of[all[i].type] = prompt_rate(&b, &all[i], x, y);
        host->bandwidth = fmax(host->bandwidth, host->share_of[all[i].type]);
        if (bar) progress_step(bar, n + i + 1, 2 * n);
    }
    for (int i = 0; i < n && ok; i++) host->share_of[all[i].type] /= host->bandwidth;
    if (ok) measure_experts(host, &b, choice, n_choice, x, y);
    ok = ok && b.sync(&b, e);
    for (int i = 0; i < TYPE_COUNT; i++) free(all[i].t);
    free(x);
    free(y);
    backend_close(&b);
    if (made_up) munmap(made_up, bytes);
    return ok;
}
