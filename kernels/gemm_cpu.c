// gemm_cpu.c: y = W x (+ bias), and experts, for the rows of a prompt. Threads take up to GEMM_TILE_ROWS weight rows at a time,
// unpack as many of their columns as fit the tile, and multiply them with all rows of x before they unpack the next columns.
//
// Whether a batch is computed here or row by row (matmul_cpu.c, moe_cpu.c) depends on how many tokens were fed together,
// Backend.batch, not on how many an op sees: after the last layer that writes keys it sees only the rows that are wanted, and
// those must not change by being alone.
#include "cpu.h"

typedef struct {
    float *y;                   // [n_x] rows, y_stride floats apart
    int64_t y_stride;
    const Tensor *w;
    int slice;
    const void *const *x;       // [n_x] GemmX rows, or float rows
    const void *const *lost;    // [n_x] what rounding has lost of them, rounded; NULL: left out
    int n_x;
} Factors;

static bool is_fine(const Cpu *c) { return c->limits.n_expert > 0; }

// Outputs o .. o + n_w - 1 of all rows to y[..][0 .. n_w - 1], n_w <= GEMM_TILE_ROWS.
static void multiply(const Cpu *c, const Factors *p, int o, int n_w, int thread) {
    const Tensor *w = p->w;
    const int tile_cols = c->gemm->tile_cols(w->type);
    char *tile = c->gemm_tile + (int64_t)thread * GEMM_TILE_BYTES;
    for (int first = 0; first < w->n_col; first += tile_cols) {
        const char *from = (const char *)tensor_row(w, p->slice, o) + type_row_bytes(w->type, first);
        GemmTile t = {.y = p->y, .y_stride = p->y_stride, .tile = tile, .type = w->type, .n_w = n_w, .x = p->x, .n_x = p->n_x, .first = first,
                      .n_col = min_int(tile_cols, w->n_col - first), .add = first > 0, .fine = is_fine(c)};
        c->gemm->unpack(tile, from, type_row_bytes(w->type, w->n_col), w->type, n_w, t.n_col);
        c->gemm->product(&t);
        if (!p->lost) continue;
        t.x = p->lost;
        t.add = true;
        c->gemm->product(&t);
    }
}

static int step_of(int n_row, int n_thread) { // weight rows per work item: several items for every thread
    return n_row >= 4 * GEMM_TILE_ROWS * n_thread ? GEMM_TILE_ROWS : GEMM_TILE_ROWS / 2;
}

typedef struct {
    const Cpu *c;
    float *y;
    const Tensor *w;
    const float *bias, *x; // bias NULL: none
    int n_rows, step;
    bool rounded, twice;
} Product;

static void prepare_row(const void *args, int r, int thread) {
    const Product *p = args;
    const Cpu *c = p->c;
    const int n_col = p->w->n_col;
    const int64_t x_stride = gemm_x_bytes(n_col);
    const float *row = p->x + (int64_t)r * n_col;
    char *to = c->gemm_x + r * x_stride, *lost_to = to + p->n_rows * x_stride;
    float *lost = p->twice ? c->lost + (int64_t)thread * c->limits.n_col : NULL;
    c->gemm_row[r] = p->rounded ? (const void *)to : row;
    c->gemm_row[p->n_rows + r] = lost_to;
    if (p->rounded) c->gemm->pack(to, lost, row, n_col, p->w->type, is_fine(c));
    if (p->twice) c->gemm->pack(lost_to, NULL, lost, n_col, p->w->type, is_fine(c));
}

static void multiply_chunk(const void *args, int chunk, int thread) {
    const Product *p = args;
    const Cpu *c = p->c;
    const int n_row = p->w->n_row, o = chunk * p->step, n_w = min_int(p->step, n_row - o);
    multiply(c, &(Factors){.y = p->y + o, .y_stride = n_row, .w = p->w, .x = c->gemm_row, .lost = p->twice ? c->gemm_row + p->n_rows : NULL, .n_x = p->n_rows},
             o, n_w, thread);
    for (int r = 0; p->bias && r < p->n_rows; r++)
        for (int i = o; i < o + n_w; i++) p->y[(int64_t)r * n_row + i] += p->bias[i];
}

bool gemm_cpu(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    if (!gemm_wanted(b, n_rows)) return false;
    const Cpu *c = cpu_of(b);
    const int64_t size = (int64_t)w->n_row * w->n_col * n_rows;
    const bool rounded = type_wants_act8(w->type);
    const Product p = {.c = c, .y = y, .w = w, .bias = bias ? bias->host : NULL, .x = x, .n_rows = n_rows, .step = step_of(w->n_row, c->n_thread),
                       .rounded = rounded, .twice = rounded && w->precise};
    assert(n_rows <= c->limits.n_rows && w->n_col <= c->limits.n_col);
    share(b, size, prepare_row, &p, n_rows);
    share(b, size, multiply_chunk, &p, ceil_div(w->n_row, p.step));
    return true;
}

// ---- experts ----

typedef struct {
    const Cpu *c;
    const MoeArgs *a;
    int n_active, step;      // step: of the outputs
    bool in_rounded, hidden_rounded;
} Experts;

static void prepare_input(const void *args, int r, int thread) {
    const Experts *x = args;
    const Cpu *c = x->c;
    const int n_in = x->a->gate->n_col;
    (void)thread;
    c->gemm->pack(c->gemm_x + r * gemm_x_bytes(n_in), NULL, x->a->x + (int64_t)r * n_in, n_in, x->a->gate->type, true);
}

// Two items for each expert and GEMM_TILE_ROWS hidden values: gate, up
static void gate_or_up(const void *args, int item, int thread) {
    const Experts *x = args;
    const Cpu *c = x->c;
    const MoeArgs *a = x->a;
    const bool up = item % 2;
    const int n_ff = a->gate->n_row, chunks = ceil_div(n_ff, GEMM_TILE_ROWS), e = c->active[item / 2 / chunks], o = item / 2 % chunks * GEMM_TILE_ROWS;
    const int s = c->first_slot[e];
    multiply(c, &(Factors){.y = (up ? c->hidden_up : c->hidden) + (int64_t)s * n_ff + o, .y_stride = n_ff, .w = up ? a->up : a->gate, .slice = e,
                           .x = c->gemm_row + s, .n_x = c->first_slot[e + 1] - s}, o, min_int(GEMM_TILE_ROWS, n_ff - o), thread);
}

static void prepare_hidden(const void *args, int s, int thread) {
    const Experts *x = args;
    const Cpu *c = x->c;
    const int n_ff = x->a->gate->n_row;
    float *hidden = c->hidden + (int64_t)s * n_ff;
    (void)thread;
    c->vec->gated(hidden, hidden, c->hidden_up + (int64_t)s * n_ff, n_ff, x->a->act);
    c->gemm_row[s] = hidden;
    if (!x->hidden_rounded) return;
    char *to = c->hidden_gemm_x + s * gemm_x_bytes(n_ff);
    c->gemm->pack(to, NULL, hidden, n_ff, x->a->down->type, true);
    c->gemm_row[s] = to;
}

// Adds the outputs o .. o + n_w - 1 of expert e to y, for all its slots.
static void add_down(const Cpu *c, const MoeArgs *a, int e, int o, int n_w, int thread) {
    enum { MOST = MANY_SUMS / GEMM_TILE_ROWS };
    const int n_embd = a->down->n_row;
    float *part = c->many + (int64_t)thread * (MANY_SCORES + MANY_SUMS); // [MOST][GEMM_TILE_ROWS]
    for (int s = c->first_slot[e]; s < c->first_slot[e + 1]; s += MOST) {
        const int n_x = min_int(MOST, c->first_slot[e + 1] - s);
        multiply(c, &(Factors){.y = part, .y_stride = GEMM_TILE_ROWS, .w = a->down, .slice = e, .x = c->gemm_row + s, .n_x = n_x}, o, n_w, thread);
        for (int r = 0; r < n_x; r++) {
            const int pair = c->slot_pair[s + r];
            float *y = a->y + (int64_t)(pair / a->n_used) * n_embd + o;
            for (int i = 0; i < n_w; i++) y[i] += a->weight[pair] * part[r * GEMM_TILE_ROWS + i];
        }
    }
}

static void down_chunk(const void *args, int chunk, int thread) {
    const Experts *x = args;
    const MoeArgs *a = x->a;
    const int n_embd = a->down->n_row, o = chunk * x->step, n_w = min_int(x->step, n_embd - o);
    for (int r = 0; r < a->n_rows; r++) memset(a->y + (int64_t)r * n_embd + o, 0, sizeof(float) * (size_t)n_w);
    for (int k = 0; k < x->n_active; k++) add_down(x->c, a, x->c->active[k], o, n_w, thread); // in one order, whoever computes
}

// The phases of moe_cpu.c. With few rows per expert unpacking costs more than it saves (26B-A4B, prompts of 64: 26 tokens/s against 65;
// of 256: 71). Decided by the model, not by the rows: what a prompt computes must not depend on those beside it.
bool gemm_moe_cpu(Backend *b, const MoeArgs *a, int n_active) {
    enum { EXPERTS_PER_CHOSEN = 8 }; // at most
    if (!gemm_wanted(b, a->n_rows) || a->gate->n_slice > EXPERTS_PER_CHOSEN * a->n_used || a->gate->type != a->up->type) return false;
    const Cpu *c = cpu_of(b);
    const int n_embd = a->down->n_row, n_ff = a->gate->n_row, n_in = a->gate->n_col, n_slot = c->first_slot[a->gate->n_slice];
    const int64_t size = (int64_t)n_slot * n_ff * n_embd;
    const Experts x = {.c = c, .a = a, .n_active = n_active, .step = step_of(n_embd, c->n_thread), .in_rounded = type_wants_act8(a->gate->type),
                       .hidden_rounded = type_wants_act8(a->down->type)};
    if (x.in_rounded) share(b, size, prepare_input, &x, a->n_rows);
    for (int s = 0; s < n_slot; s++) {
        const int r = c->slot_pair[s] / a->n_used;
        c->gemm_row[s] = x.in_rounded ? (const void *)(c->gemm_x + r * gemm_x_bytes(n_in)) : a->x + (int64_t)r * n_in;
    }
    share(b, size, gate_or_up, &x, 2 * n_active * ceil_div(n_ff, GEMM_TILE_ROWS));
    share(b, size, prepare_hidden, &x, n_slot);
    share(b, size, down_chunk, &x, ceil_div(n_embd, x.step));
    return true;
}
