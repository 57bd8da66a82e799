// moe_cuda.cu: mixture of experts: choose, then run the chosen ones. Nothing of it is known to the host: the ids are read by
// the kernels. A slot is one (row, chosen expert) pair; all slots of an op go through a matrix in one grid: one by one while
// most experts have few, else sorted by expert into tiles, so that an expert's weights are read once for EXPERT_TILE slots.
#include "cuda_common.cuh"

enum { TILED_FROM = 4 }; // slots per expert, on average, from which tiles are used (a guess, not measured)

// A warp per row. Every lane looks after experts lane, lane + 32, ...: at most 32 of them, one bit each in `taken`.
__global__ void __launch_bounds__(BLOCK) route(int *expert, float *weight, const float *logits, const float *gain, int n_rows, int n_expert,
                                               int n_used) {
    const int tid = threadIdx.x, lane = tid % WARP, r = blockIdx.x * (BLOCK / WARP) + tid / WARP;
    if (r >= n_rows) return; // a whole warp
    logits += (size_t)r * n_expert;
    expert += (size_t)r * n_used;
    weight += (size_t)r * n_used;
    float highest = -INFINITY, total = 0, chosen = 0;
    for (int i = lane; i < n_expert; i += WARP) highest = fmaxf(highest, logits[i]);
    highest = warp_max(highest);
    for (int i = lane; i < n_expert; i += WARP) total += expf(logits[i] - highest);
    total = warp_sum(total);
    unsigned taken = 0;
    for (int u = 0; u < n_used; u++) {
        int best = -1;
        float value = 0;
        for (int i = lane; i < n_expert; i += WARP)
            if (!(taken >> i / WARP & 1) && (best < 0 || logits[i] > value)) best = i, value = logits[i];
#pragma unroll
        for (int step = WARP / 2; step; step /= 2) { // the largest, of equals the lower index
            const int other = __shfl_xor_sync(ALL_LANES, best, step);
            const float its = __shfl_xor_sync(ALL_LANES, value, step);
            if (other >= 0 && (best < 0 || its > value || (its == value && other < best))) best = other, value = its;
        }
        best = __shfl_sync(ALL_LANES, best, 0); // NaN has no order: all lanes must mean the same one
        value = __shfl_sync(ALL_LANES, value, 0);
        if (best % WARP == lane) taken |= 1u << best / WARP;
        const float p = expf(value - highest) / total;
        chosen += p;
        if (lane == 0) {
            expert[u] = best;
            weight[u] = p;
        }
    }
    __syncwarp(); // what lane 0 has written
    chosen = fmaxf(chosen, 0x1p-14f);
    for (int u = lane; u < n_used; u += WARP) weight[u] = weight[u] / chosen * (gain ? gain[expert[u]] : 1.0f);
}

void moe_route_cuda(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used) {
    const float *gain = cuda_vector(b, scale);
    if (n_expert > MAX_EXPERTS || n_used > n_expert) {
        backend_fail(b, "cuda backend: %d of %d experts, at most %d are possible", n_used, n_expert, MAX_EXPERTS);
        return;
    }
    LAUNCH(b, route, (unsigned)blocks_for(n_rows, BLOCK / WARP), BLOCK, 0, expert, weight, logits, gain, n_rows, n_expert, n_used);
}

// Sorts the slots by expert and cuts them into tiles; those whose expert is not here are in none. One block; within an expert the order of
// slots does not matter, as every slot has outputs of its own. An expert is its slice of the weights, of which there are n_expert.
__global__ void __launch_bounds__(BLOCK) sort_slots(int *order, ExpertTile *tile, Chosen chosen, int n_slot, int n_expert, int n_tile) {
    __shared__ int next[MAX_EXPERTS]; // how many slots; then where the next one goes
    const int tid = threadIdx.x;
    for (int e = tid; e < n_expert; e += BLOCK) next[e] = 0;
    __syncthreads();
    for (int s = tid; s < n_slot; s += BLOCK) {
        const int e = slice_for(chosen, s);
        if (e >= 0) atomicAdd(&next[e], 1);
    }
    __syncthreads();
    if (tid == 0) {
        int first = 0, t = 0;
        for (int e = 0; e < n_expert; e++) {
            const int n = next[e];
            for (int k = 0; k < n; k += EXPERT_TILE) {
                tile[t].expert = e;
                tile[t].first = first + k;
                tile[t++].n = min((int)EXPERT_TILE, n - k);
            }
            next[e] = first;
            first += n;
        }
        while (t < n_tile) tile[t++].n = 0;
    }
    __syncthreads();
    for (int s = tid; s < n_slot; s += BLOCK) {
        const int e = slice_for(chosen, s);
        if (e >= 0) order[atomicAdd(&next[e], 1)] = s;
    }
}

// y[r][i] = sum over a row's slots of weight * down[slot][i], in the order of the slots, without those whose expert is not here; grid
// (rows, n_embd / BLOCK)
__global__ void __launch_bounds__(BLOCK) weigh_slots(float *y, const float *down, const float *weight, Chosen chosen, int n_embd, int n_used) {
    const int i = blockIdx.y * BLOCK + threadIdx.x;
    if (i >= n_embd) return;
    const size_t slot = (size_t)blockIdx.x * n_used;
    float sum = 0;
    for (int u = 0; u < n_used; u++)
        if (!chosen.slice || slice_for(chosen, (int)slot + u) >= 0) sum += weight[slot + u] * down[(slot + u) * n_embd + i];
    y[(size_t)blockIdx.x * n_embd + i] = sum;
}

// One matrix of the chosen experts for all slots: sorted into n_tile tiles, or, n_tile 0, slot by slot.
static void expert_product(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, const MoeArgs *a, int n_tile, int share) {
    if (n_tile) cuda_expert_tiles(b, y, w, x, x8, n_tile, share);
    else cuda_expert_matvec(b, y, w, x, x8, Chosen{a->expert, a->slot}, a->n_rows * a->n_used, share);
}

void moe_ffn_cuda(Backend *b, const MoeArgs *a) {
    Cuda *c = cuda_of(b);
    const int n_embd = a->down->n_row, n_ff = a->gate->n_row, n_in = a->gate->n_col, n_slot = a->n_rows * a->n_used;
    if (!cuda_vector(b, a->gate) || !cuda_vector(b, a->up) || !cuda_vector(b, a->down)) return;
    const Limits *l = &c->limits;
    if (a->n_rows > l->n_rows || a->n_used > l->n_expert_used || n_in > l->n_col || n_ff > l->n_ff_expert || n_embd > l->n_embd ||
        a->gate->n_slice > l->n_expert) {
        backend_fail(b, "cuda backend: %s: %d rows, %d experts of %d, more than was reserved", a->gate->name, a->n_rows, a->n_used, n_ff);
        return;
    }
    // Of a share of the experts, as many slots want each as if all were here.
    const int n_here = a->gate->n_slice, n_expert = a->slot ? max_int(n_here, l->n_expert) : n_here;
    const int n_tile = n_slot > TILED_FROM * n_expert ? (int)cuda_expert_tile_count(n_slot, n_here) : 0;
    const Chosen chosen = {a->expert, a->slot};
    const bool may_round = !n_tile || c->has_mma, round = may_round && cuda_wants_act8(a->down);
    Act8 x8 = {};
    if (n_tile) LAUNCH(b, sort_slots, 1, BLOCK, 0, c->order, c->tile, chosen, n_slot, n_here, n_tile);
    if (may_round && (cuda_wants_act8(a->gate) || cuda_wants_act8(a->up))) x8 = cuda_act8(b, a->x, a->n_rows, n_in);
    if (n_tile || !cuda_expert_gated(b, c->gate, c->hidden_act8, round, a->gate, a->up, a->x, x8, chosen, n_slot, a->n_used, a->act)) {
        expert_product(b, c->gate, a->gate, a->x, x8, a, n_tile, a->n_used);
        expert_product(b, c->up, a->up, a->x, x8, a, n_tile, a->n_used);
        gated_cuda(b, c->gate, c->gate, c->up, (int64_t)n_slot * n_ff, a->act);
        if (round) cuda_round_act8(b, c->hidden_act8, c->gate, n_slot, n_ff);
    }
    expert_product(b, c->down, a->down, c->gate, c->hidden_act8, a, n_tile, 1);
    LAUNCH(b, weigh_slots, dim3((unsigned)a->n_rows, grid_for(n_embd)), BLOCK, 0, a->y, c->down, a->weight, chosen, n_embd, a->n_used);
}
