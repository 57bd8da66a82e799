// moe_cpu.c: mixture of experts: choose, then run the chosen ones.
//
// moe_ffn sorts the (row, chosen expert) pairs by expert into slots, so that every expert's weights are read once for all its
// rows, whether one token is decoded or hundreds are read in. Experts that are elsewhere (MoeArgs.slot) have none; below, an expert is
// meant by its slice of the weights. Phases, each shared by all threads:
//   1. gate and up: work items are (active expert, ROW_STEP of its n_ff rows; 32 and 64 read no faster); hidden[slot] = act(gate) * up
//   2. hidden rows are rounded to act8
//   3. down: work items are chunks of the n_embd outputs, over all active experts in ascending order. So the sum over a
//      row's experts has one fixed order, and no two threads write to the same output.
#include "cpu.h"
#include "ref.h"

typedef struct {
    Backend *b;
    int *expert;
    float *weight;
    const float *logits;
    const Tensor *scale;
    int n_expert, n_used;
} Route;

// A few thousand operations a row: the textbook's, the rows shared by the threads.
static void route_row(const void *args, int r, int thread) {
    const Route *a = args;
    (void)thread;
    moe_route_ref(a->b, a->expert + (int64_t)r * a->n_used, a->weight + (int64_t)r * a->n_used, a->logits + (int64_t)r * a->n_expert, a->scale, 1, a->n_expert,
                  a->n_used);
}

void moe_route_cpu(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used) {
    share(b, (int64_t)n_rows * n_expert * n_used, route_row, &(Route){b, expert, weight, logits, scale, n_expert, n_used}, n_rows);
}

// Counting sort of the pairs by expert; returns the number of active experts.
static int make_slots(Cpu *c, const MoeArgs *a) {
    const int n_pair = a->n_rows * a->n_used, n_expert = a->gate->n_slice;
    int n_active = 0;
    memset(c->first_slot, 0, sizeof(int) * (size_t)(n_expert + 1));
    for (int i = 0, e; i < n_pair; i++)
        if ((e = moe_slice(a, a->expert[i])) >= 0) c->first_slot[e + 1]++;
    for (int e = 0; e < n_expert; e++) {
        if (c->first_slot[e + 1]) c->active[n_active++] = e;
        c->first_slot[e + 1] += c->first_slot[e];
    }
    for (int i = 0, e; i < n_pair; i++)
        if ((e = moe_slice(a, a->expert[i])) >= 0) c->slot_pair[c->first_slot[e]++] = i;
    for (int e = n_expert; e > 0; e--) c->first_slot[e] = c->first_slot[e - 1]; // undo the advance
    c->first_slot[0] = 0;
    return n_active;
}

typedef struct {
    const Cpu *c;
    const MoeArgs *a;
    int n_active;
    Inputs in, hidden;
} Experts;

static void round_hidden(const void *args, int s, int thread) {
    const Experts *x = args;
    (void)thread;
    const int n = x->a->down->n_col;
    x->c->dot->quantize(x->c->hidden_act8 + s * act8_bytes(n), x->c->hidden + (int64_t)s * n, n);
}

// hidden[slot][o .. o + n_w - 1] for all slots of one expert
static void gate_up(const void *args, int item, int thread) {
    const Experts *x = args;
    const Cpu *c = x->c;
    const MoeArgs *a = x->a;
    (void)thread;
    const int n_ff = a->gate->n_row, chunks = ceil_div(n_ff, ROW_STEP), e = c->active[item / chunks], o = item % chunks * ROW_STEP;
    const GatedArgs gated = {.gate = a->gate, .up = a->up, .act = a->act};
    for (int s = c->first_slot[e]; s < c->first_slot[e + 1]; s += DOT_ROWS) {
        Rows rows = {.n = 0};
        for (int r = s; r < min_int(s + DOT_ROWS, c->first_slot[e + 1]); r++) add_row(&rows, &x->in, c->slot_pair[r] / a->n_used);
        gate_part(c, c->hidden + (int64_t)s * n_ff + o, n_ff, &gated, (Part){e, o, min_int(ROW_STEP, n_ff - o)}, &rows);
    }
}

// y[row][o .. o + n_w - 1] of all rows
static void down(const void *args, int item, int thread) {
    const Experts *x = args;
    const Cpu *c = x->c;
    const MoeArgs *a = x->a;
    (void)thread;
    const int n_embd = a->down->n_row, o = item * ROW_STEP, n_w = min_int(ROW_STEP, n_embd - o);
    float part[DOT_ROWS][ROW_STEP];
    for (int r = 0; r < a->n_rows; r++) memset(a->y + (int64_t)r * n_embd + o, 0, sizeof(float) * (size_t)n_w);
    for (int k = 0; k < x->n_active; k++) {
        const int e = c->active[k];
        for (int s = c->first_slot[e]; s < c->first_slot[e + 1]; s += DOT_ROWS) {
            Rows rows = {.n = 0};
            for (int r = s; r < min_int(s + DOT_ROWS, c->first_slot[e + 1]); r++) add_row(&rows, &x->hidden, r);
            multiply_part(c, part[0], ROW_STEP, a->down, NULL, (Part){e, o, n_w}, &rows);
            for (int r = 0; r < rows.n; r++) {
                const int pair = c->slot_pair[s + r];
                const float weight = a->weight[pair];
                float *y = a->y + (int64_t)(pair / a->n_used) * n_embd + o;
                for (int i = 0; i < n_w; i++) y[i] += weight * part[r][i];
            }
        }
    }
}

void moe_ffn_cpu(Backend *b, const MoeArgs *a) {
    Cpu *c = cpu_of(b);
    const int n_embd = a->down->n_row, n_ff = a->gate->n_row, n_in = a->gate->n_col;
    assert(a->n_rows <= c->limits.n_rows && n_in <= c->limits.n_col && n_ff <= c->limits.n_ff_expert && a->gate->n_slice <= c->limits.n_expert);
    assert(a->n_used <= c->limits.n_expert_used);
    const int n_active = make_slots(c, a), n_slot = c->first_slot[a->gate->n_slice];
    if (!n_slot) {
        memset(a->y, 0, sizeof(float) * (size_t)a->n_rows * (size_t)n_embd);
        return;
    }
    if (gemm_moe_cpu(b, a, n_active)) return;
    const int64_t size = (int64_t)n_slot * n_ff * n_embd;
    const Experts x = {.c = c, .a = a, .n_active = n_active, .in = make_inputs(b, a->x, a->n_rows, n_in, type_wants_act8(a->gate->type) || type_wants_act8(a->up->type), false),
                       .hidden = {.x = c->hidden, .act8 = c->hidden_act8, .n_rows = n_slot, .n_col = n_ff}};
    share(b, size, gate_up, &x, x.n_active * ceil_div(n_ff, ROW_STEP));
    if (type_wants_act8(a->down->type)) share(b, (int64_t)n_slot * n_ff, round_hidden, &x, n_slot);
    share(b, size, down, &x, ceil_div(n_embd, ROW_STEP));
}
