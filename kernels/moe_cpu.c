// moe_cpu.c: mixture of experts: choose, then run the chosen ones.
//
// moe_ffn sorts the (row, chosen expert) pairs by expert into slots, so that every expert's weights are read once for all its
// rows, whether one token is decoded or hundreds are read in. Three phases, a barrier after each:
//   1. gate and up: work items are (active expert, chunk of its n_ff rows); hidden[slot] = act(gate) * up
//   2. hidden rows are rounded to act8
//   3. down: work items are chunks of the n_embd outputs, over all active experts in ascending order. So the sum over a
//      row's experts has one fixed order, and no two threads write to the same output.
#include "cpu.h"
#include "ref.h"

// A few thousand operations a row: the textbook's, the rows shared by the threads.
void moe_route_cpu(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used) {
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if ((int64_t)n_rows * n_expert * n_used > SMALL_WORK)
    for (int r = 0; r < n_rows; r++)
        moe_route_ref(b, expert + (int64_t)r * n_used, weight + (int64_t)r * n_used, logits + (int64_t)r * n_expert, scale, 1, n_expert, n_used);
}

// Counting sort of the pairs by expert; returns the number of active experts.
static int make_slots(Cpu *c, const MoeArgs *a) {
    const int n_slot = a->n_rows * a->n_used, n_expert = a->gate->n_slice;
    int n_active = 0;
    memset(c->first_slot, 0, sizeof(int) * (size_t)(n_expert + 1));
    for (int i = 0; i < n_slot; i++) c->first_slot[a->expert[i] + 1]++;
    for (int e = 0; e < n_expert; e++) {
        if (c->first_slot[e + 1]) c->active[n_active++] = e;
        c->first_slot[e + 1] += c->first_slot[e];
    }
    for (int i = 0; i < n_slot; i++) c->slot_pair[c->first_slot[a->expert[i]]++] = i;
    for (int e = n_expert; e > 0; e--) c->first_slot[e] = c->first_slot[e - 1]; // undo the advance
    c->first_slot[0] = 0;
    return n_active;
}

// hidden[slot][o .. o + n_w - 1] for all slots of expert e
static void gate_up(const Cpu *c, const MoeArgs *a, int e, int o, int n_w, const void *rows, int64_t x_stride) {
    const int n_ff = a->gate->n_row, n_col = a->gate->n_col;
    float gate[DOT_ROWS][ROW_STEP], up[DOT_ROWS][ROW_STEP];
    for (int s = c->first_slot[e]; s < c->first_slot[e + 1]; s += DOT_ROWS) {
        const int n_x = min_int(DOT_ROWS, c->first_slot[e + 1] - s);
        const void *x[DOT_ROWS];
        for (int r = 0; r < n_x; r++) row_pointers(&x[r], rows, x_stride, c->slot_pair[s + r] / a->n_used, 1);
        DotTile tile = {.y = gate[0], .y_stride = ROW_STEP, .w = tensor_row(a->gate, e, o), .w_stride = type_row_bytes(a->gate->type, n_col),
                        .n_w = n_w, .x = x, .n_x = n_x, .n_col = n_col};
        c->dot->of[a->gate->type](&tile);
        tile.y = up[0];
        tile.w = tensor_row(a->up, e, o);
        tile.w_stride = type_row_bytes(a->up->type, n_col);
        c->dot->of[a->up->type](&tile);
        for (int r = 0; r < n_x; r++) c->vec->gated(c->hidden + (int64_t)(s + r) * n_ff + o, gate[r], up[r], n_w, a->act);
    }
}

// y[row][o .. o + n_w - 1] of all rows
static void down(const Cpu *c, const MoeArgs *a, int n_active, int o, int n_w, const void *rows, int64_t x_stride) {
    const int n_embd = a->down->n_row, n_col = a->down->n_col;
    float part[DOT_ROWS][ROW_STEP];
    for (int r = 0; r < a->n_rows; r++) memset(a->y + (int64_t)r * n_embd + o, 0, sizeof(float) * (size_t)n_w);
    for (int k = 0; k < n_active; k++) {
        const int e = c->active[k];
        for (int s = c->first_slot[e]; s < c->first_slot[e + 1]; s += DOT_ROWS) {
            const int n_x = min_int(DOT_ROWS, c->first_slot[e + 1] - s);
            const void *x[DOT_ROWS];
            row_pointers(x, rows, x_stride, s, n_x);
            c->dot->of[a->down->type](&(DotTile){.y = part[0], .y_stride = ROW_STEP, .w = tensor_row(a->down, e, o),
                                                 .w_stride = type_row_bytes(a->down->type, n_col), .n_w = n_w, .x = x, .n_x = n_x, .n_col = n_col});
            for (int r = 0; r < n_x; r++) {
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
    const int n_embd = a->down->n_row, n_ff = a->gate->n_row, n_in = a->gate->n_col, n_slot = a->n_rows * a->n_used;
    const int ff_chunks = ceil_div(n_ff, ROW_STEP), out_chunks = ceil_div(n_embd, ROW_STEP), n_active = make_slots(c, a);
    const bool gate_rounded = type_wants_act8(a->gate->type), down_rounded = type_wants_act8(a->down->type);
    const int64_t in_bytes = gate_rounded ? act8_bytes(n_in) : (int64_t)sizeof(float) * n_in;
    const int64_t hidden_bytes = down_rounded ? act8_bytes(n_ff) : (int64_t)sizeof(float) * n_ff;
    const void *in = gate_rounded ? (const void *)c->act8 : a->x, *hidden = down_rounded ? (const void *)c->hidden_act8 : c->hidden;
    assert(a->n_rows <= c->limits.n_rows && n_in <= c->limits.n_col && n_ff <= c->limits.n_ff_expert && a->gate->n_slice <= c->limits.n_expert);
    assert(a->n_used <= c->limits.n_expert_used && type_wants_act8(a->up->type) == gate_rounded);

#pragma omp parallel num_threads(c->n_thread) if ((int64_t)n_slot * n_ff * n_embd > SMALL_WORK)
    {
        if (gate_rounded) {
#pragma omp for schedule(static)
            for (int r = 0; r < a->n_rows; r++) c->dot->quantize(c->act8 + r * in_bytes, a->x + (int64_t)r * n_in, n_in);
        }
#pragma omp for schedule(dynamic, 4)
        for (int item = 0; item < n_active * ff_chunks; item++) {
            const int o = item % ff_chunks * ROW_STEP;
            gate_up(c, a, c->active[item / ff_chunks], o, min_int(ROW_STEP, n_ff - o), in, in_bytes);
        }
        if (down_rounded) {
#pragma omp for schedule(static)
            for (int s = 0; s < n_slot; s++) c->dot->quantize(c->hidden_act8 + s * hidden_bytes, c->hidden + (int64_t)s * n_ff, n_ff);
        }
#pragma omp for schedule(dynamic, 4)
        for (int item = 0; item < out_chunks; item++) {
            const int o = item * ROW_STEP;
            down(c, a, n_active, o, min_int(ROW_STEP, n_embd - o), hidden, hidden_bytes);
        }
    }
}
