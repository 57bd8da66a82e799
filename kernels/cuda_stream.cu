// cuda_stream.cu: op borrow: weights of the host, copied into a ring in device memory while the device computes what was recorded before; op bring: the
// same way into weights that stay there.
//
// The way of a piece of a slice: by some threads out of the file, which is mapped and not pinned, into one of the pinned slots of fill.h, or, where the
// file's pages are pinned (cuda_pin.cu), from there; over the link into the device buffer of the same number, blocks as in the file; from there into the
// ring, in planes. Each step has a stream:
//   copy     a slot's copy waits until what was in its device buffer has been laid out
//   lay      waits for the copy; at the beginning of a borrow for the ops that use what the ring held there
//   compute  (Cuda.stream) what follows a borrow waits until all of it is laid out
// The threads wait until a slot's last copy has left it, so that at most FILL_SLOTS such pieces are on their way when borrow returns. Nobody waits for
// what comes from pinned pages.
//
// What is in the ring is a list of leases, one for each borrow, in the order of their bytes around it. A lease is used by ops recorded before the next borrow,
// which marks their end by an event. So two borrows of half the ring each take turns: one is copied while the other is computed with.
//
// Host: reads each byte once; the slots stay in its caches. Device: 2 for a quantised byte (read, written), beside the link's one.
#include <stdlib.h>
#include "cuda_quant.cuh"
#include "cuda_queue.cuh"
#include "fill.h"

enum {
    RAW_BYTES = STAGE_BYTES, // of pinned pages that are copied at a time
    N_LEASE = 64,
    N_BRING = 1024,          // slices that wait; more are brought at once
    BRING_BYTES = 32 << 10,  // that one look at them copies into a slot
    ROW_STEP = 32            // a piece of a matrix is a multiple of these rows
};

typedef struct {
    size_t start, end; // bytes of the ring
    cudaEvent_t used;  // the ops that use it have run
} Lease;

// A slice that is to become one of loaded weights.
typedef struct {
    const Tensor *from;
    int slice;
    Weights to;
} Bring;

struct Ring {
    char *memory;                       // [size] device
    size_t size, head;                  // head: where the next lease goes, if there is room
    Lease lease[N_LEASE];
    int n_lease;                        // that there have been
    cudaStream_t copy, lay;
    char *pinned[FILL_SLOTS]; // [FILL_SLOT_BYTES] host
    char *raw[FILL_SLOTS];    // [RAW_BYTES] device
    cudaEvent_t copied[FILL_SLOTS], laid[FILL_SLOTS];
    int turn;                           // the slot that is next
    bool marked;                        // the last lease's event stands behind what has used it
    Tensor view[2];                     // of an op's matrix and its bias, or of a vector, that it borrows by itself
    Bring bring[N_BRING];               // a queue: n_bring from first_bring on
    int first_bring, n_bring;
    int64_t at;                         // blocks of the first one that are on their way
    size_t filled;                      // bytes of the next piece that are in its slot
};

static size_t pad256(size_t bytes) { return (bytes + 255) / 256 * 256; }

// ---- open and close ----

void cuda_ring_close(Cuda *c) {
    Ring *r = c->ring;
    if (!r) return;
    if (r->copy) cudaStreamSynchronize(r->copy);
    if (r->lay) cudaStreamSynchronize(r->lay);
    for (int i = 0; i < N_LEASE; i++)
        if (r->lease[i].used) cudaEventDestroy(r->lease[i].used);
    for (int i = 0; i < FILL_SLOTS; i++) {
        if (r->copied[i]) cudaEventDestroy(r->copied[i]);
        if (r->laid[i]) cudaEventDestroy(r->laid[i]);
        if (r->pinned[i]) cudaFreeHost(r->pinned[i]);
    }
    if (r->copy) cudaStreamDestroy(r->copy);
    if (r->lay) cudaStreamDestroy(r->lay);
    if (r->memory) cudaFree(r->memory);
    free(r);
    c->ring = NULL;
}

static bool open_event(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, cudaEventDisableTiming) == cudaSuccess; }

void cuda_ring_open(Backend *b) {
    Cuda *c = cuda_of(b);
    const size_t raw_bytes = (size_t)FILL_SLOTS * RAW_BYTES;
    b->ring_bytes = 0;
    if (!c->limits.ring_bytes || c->limits.ring_bytes > SIZE_MAX / 4) return;
    Ring *r = c->ring = (Ring *)calloc(1, sizeof *r);
    if (!r) return;
    r->size = pad256((size_t)c->limits.ring_bytes);
    int least = 0, greatest = 0;
    // Planes before products: else what has arrived would wait for the end of a long kernel, and the link for that.
    bool ok = cudaMalloc((void **)&r->memory, r->size + raw_bytes) == cudaSuccess && cudaDeviceGetStreamPriorityRange(&least, &greatest) == cudaSuccess &&
              cudaStreamCreateWithPriority(&r->copy, cudaStreamNonBlocking, greatest) == cudaSuccess &&
              cudaStreamCreateWithPriority(&r->lay, cudaStreamNonBlocking, greatest) == cudaSuccess;
    for (int i = 0; i < FILL_SLOTS && ok; i++) {
        r->raw[i] = r->memory + r->size + (size_t)i * RAW_BYTES;
        ok = cudaMallocHost((void **)&r->pinned[i], FILL_SLOT_BYTES) == cudaSuccess && open_event(&r->copied[i]) && open_event(&r->laid[i]);
    }
    for (int i = 0; i < N_LEASE && ok; i++) ok = open_event(&r->lease[i].used);
    if (ok) {
        b->ring_bytes = r->size;
        return;
    }
    (void)cudaGetLastError(); // a device that is too small is no error of an op
    cuda_ring_close(c);
}

// ---- a borrow ----

static size_t lease_bytes(const Tensor *const *t, int n_t, int n) {
    size_t bytes = 0;
    for (int i = 0; i < n_t; i++) bytes += pad256(weights_of(t[i]).slice_bytes * (size_t)n);
    return bytes;
}

// How many of n slices: within half of the ring, so that the next ones can be copied meanwhile; one, or all (together), may take all of it.
static int slices_that_fit(const Ring *r, const Tensor *const *t, int n_t, int n, bool together) {
    const size_t half = r->size / 2, one = lease_bytes(t, n_t, 1);
    if (together) return lease_bytes(t, n_t, n) <= r->size ? n : 0;
    if (one > r->size) return 0;
    int k = half / one + 1 < (size_t)n ? (int)(half / one) + 1 : n; // padding is less for many
    while (k > 1 && lease_bytes(t, n_t, k) > half) k--;
    return k;
}

// The place of a new lease. What is laid out there waits for ops that use what it holds; the ops of the lease before were launched just now.
static size_t take_lease(Backend *b, size_t bytes) {
    Cuda *c = cuda_of(b);
    Ring *r = c->ring;
    const size_t start = r->head + bytes <= r->size ? r->head : 0, end = start + bytes;
    Lease *mine = &r->lease[r->n_lease % N_LEASE];
    if (r->n_lease && !r->marked) cuda_check(b, "event", cudaEventRecord(r->lease[(r->n_lease - 1) % N_LEASE].used, c->stream));
    r->marked = false;
    for (int i = 0; i < N_LEASE && i < r->n_lease; i++) {
        const Lease *l = &r->lease[i];
        if ((l->start < end && start < l->end) || l == mine) cuda_check(b, "wait for the ring", cudaStreamWaitEvent(r->lay, l->used, 0));
    }
    mine->start = start, mine->end = end;
    r->n_lease++;
    r->head = end;
    return start;
}

// The weight of an op that may be in the ring.
static const Tensor *weight_of(const Op *op) {
    return op->kind == OP_MATMUL ? op->matmul.p.w : op->kind == OP_MOE_FFN ? op->moe_ffn.gate : op->kind == OP_NORM ? op->norm.w
         : op->kind == OP_MOE_ROUTE ? op->moe_route.scale : NULL;
}

// Ops have been launched. If some of them use the last lease, this is the end of its use, so far: not the next borrow, before which other ops may run.
void cuda_ring_launched(Backend *b, const Op *op, int n) {
    Cuda *c = cuda_of(b);
    Ring *r = c->ring;
    bool uses = false;
    for (int i = 0; r && c->borrowed && i < n && !uses; i++) {
        const Tensor *w = weight_of(&op[i]);
        uses = w && (const char *)w->dev >= r->memory && (const char *)w->dev < r->memory + r->size;
    }
    if (!uses || !r->n_lease) return;
    cuda_check(b, "event", cudaEventRecord(r->lease[(r->n_lease - 1) % N_LEASE].used, c->stream));
    r->marked = true;
}

// Blocks at .. at + n - 1 of a slice of t, which are at `from`, by way of slot k into the planes of w. False: failed.
static bool send_piece(Backend *b, int k, const char *from, const Tensor *t, const Weights *w, int64_t at, int n) {
    Ring *r = cuda_of(b)->ring;
    const size_t block = (size_t)type_info(t->type)->bytes, bytes = (size_t)n * block;
    const Format f = format_of(t->type);
    return cuda_check(b, "wait for planes", cudaStreamWaitEvent(r->copy, r->laid[k], 0)) &&
           cuda_check(b, "copy to the device", cudaMemcpyAsync(r->raw[k], from, bytes, cudaMemcpyHostToDevice, r->copy)) &&
           cuda_check(b, "event", cudaEventRecord(r->copied[k], r->copy)) &&
           cuda_check(b, "wait for a copy", cudaStreamWaitEvent(r->lay, r->copied[k], 0)) &&
           (f.groups ? cuda_lay_out(b, r->lay, t->type, w, (size_t)at * (size_t)f.groups, r->raw[k], n)
                     : cuda_check(b, "copy into the ring", cudaMemcpyAsync((char *)w->codes + (size_t)at * block, r->raw[k], bytes, cudaMemcpyDeviceToDevice, r->lay))) &&
           cuda_check(b, "event", cudaEventRecord(r->laid[k], r->lay));
}

static int64_t blocks_of(const Tensor *t) { return (int64_t)t->n_row * (t->n_col / type_info(t->type)->block); }
// How many blocks the next piece has. in_place: it is copied from where it is.
static int piece_of(const Tensor *t, int64_t at, bool in_place) {
    const int64_t most = (in_place ? (int)RAW_BYTES : (int)FILL_SLOT_BYTES) / type_info(t->type)->bytes, left = blocks_of(t) - at;
    return (int)(most < left ? most : left);
}
static bool is_in_place(const Backend *b, const Tensor *t, int slice) {
    return cuda_is_pinned(b, tensor_row(t, slice, 0), (size_t)blocks_of(t) * (size_t)type_info(t->type)->bytes);
}

// A slice of t into the planes of w. False: failed.
static bool send_slice(Backend *b, const Tensor *t, int slice, const Weights *w) {
    const Cuda *c = cuda_of(b);
    Ring *r = c->ring;
    const size_t block = (size_t)type_info(t->type)->bytes;
    const char *src = (const char *)tensor_row(t, slice, 0);
    const bool in_place = is_in_place(b, t, slice);
    bool ok = true;
    for (int64_t at = 0, n; at < blocks_of(t) && ok; at += n) {
        const int k = r->turn;
        const char *from = src + (size_t)at * block;
        n = piece_of(t, at, in_place);
        r->turn = (r->turn + 1) % FILL_SLOTS;
        if (!in_place) {
            if (!cuda_check(b, "wait for a copy", cudaEventSynchronize(r->copied[k]))) return false;
            if (!CU_HOST_FILLS((size_t)n * block)) fill_slot(c->pool, r->pinned[k], from, (size_t)n * block);
            from = r->pinned[k];
        }
        ok = send_piece(b, k, from, t, w, at, (int)n);
    }
    return ok;
}

// k slices of each of n_t weights, which fit, and `more` bytes that ops may write. NULL: failed; else where those begin.
static char *lend(Backend *b, Tensor *view, const Tensor *const *t, int n_t, const int *slice, int k, size_t more) {
    Cuda *c = cuda_of(b);
    Ring *r = c->ring;
    cuda_flush(b); // it runs while this is copied
    if (r->n_bring) cuda_settle(b);
    c->borrowed = true;
    c->may_repeat = false;
    char *p = r->memory + take_lease(b, lease_bytes(t, n_t, k) + pad256(more));
    bool ok = true;
    for (int i = 0; i < n_t; i++) {
        const Tensor from = *t[i]; // may be the view
        Tensor *v = &view[i];
        *v = from;
        v->n_slice = k;
        v->host = v->slices = NULL;
        v->dev = p;
        Weights w = weights_of(v);
        p += pad256(w.slice_bytes * (size_t)k);
        for (int s = 0; s < k && ok; s++) {
            ok = send_slice(b, &from, slice ? slice[s] : s, &w);
            w.codes += w.slice_bytes, w.high += w.slice_bytes, w.scales += w.slice_bytes, w.d += w.slice_bytes;
        }
    }
    const int last = (r->turn + FILL_SLOTS - 1) % FILL_SLOTS;
    return ok && cuda_check(b, "wait for planes", cudaStreamWaitEvent(c->stream, r->laid[last], 0)) ? p : NULL;
}

int cuda_borrow(Backend *b, Tensor *view, const Tensor *const *t, int n_t, const int *slice, int n) {
    const Ring *r = cuda_of(b)->ring;
    if (!r || b->first_error.text[0] || n < 1) return 0;
    for (int i = 0; i < n_t; i++)
        if (!cuda_supports(t[i]->type)) return 0;
    const int k = slices_that_fit(r, t, n_t, n, !slice);
    return k && lend(b, view, t, n_t, slice, k, 0) ? k : 0;
}

// ---- what changes places ----
// Piece by piece into slots, as with send_slice, but nobody is kept waiting: in what time the host has, between two looks for what it is lent.

// BRING_BYTES at most; with a slot that is full goes its copy. False: there is nothing, it failed, or (unless `wait`) no slot is free.
static bool bring_some(Backend *b, bool wait) {
    Ring *r = cuda_of(b)->ring;
    if (!r || !r->n_bring || b->first_error.text[0]) return false;
    const Bring *g = &r->bring[r->first_bring];
    const size_t block = (size_t)type_info(g->from->type)->bytes;
    const bool in_place = is_in_place(b, g->from, g->slice);
    const int n = piece_of(g->from, r->at, in_place), k = r->turn;
    const char *from = (const char *)tensor_row(g->from, g->slice, 0) + (size_t)r->at * block;
    if (!in_place) {
        const size_t left = (size_t)n * block - r->filled, part = left < (size_t)BRING_BYTES ? left : (size_t)BRING_BYTES;
        if (!r->filled) {
            const cudaError_t e = wait ? cudaEventSynchronize(r->copied[k]) : cudaEventQuery(r->copied[k]);
            if (e == cudaErrorNotReady || !cuda_check(b, "wait for a copy", e)) return false;
        }
        if (!CU_HOST_FILLS(part)) memcpy(r->pinned[k] + r->filled, from + r->filled, part);
        r->filled += part;
        if (part < left) return true;
        r->filled = 0;
        from = r->pinned[k];
    }
    r->turn = (r->turn + 1) % FILL_SLOTS;
    if (!send_piece(b, k, from, g->from, &g->to, r->at, n)) return false;
    r->at += n;
    if (r->at < blocks_of(g->from)) return true;
    r->at = 0;
    r->first_bring = (r->first_bring + 1) % N_BRING;
    r->n_bring--;
    return true;
}

bool cuda_bring_some(Backend *b) { return bring_some(b, false); }

void cuda_bring(Backend *b, const Tensor *to, int to_slice, const Tensor *from, int slice) {
    Ring *r = cuda_of(b)->ring;
    if (!r || !to->dev || to->type != from->type) backend_fail(b, "cuda backend: %s cannot be brought into %s", from->name, to->name);
    if (b->first_error.text[0]) return;
    while (r->n_bring == N_BRING && bring_some(b, true)) {}
    if (r->n_bring == N_BRING) return; // failed
    Weights w = weights_of(to);
    const size_t skip = (size_t)to_slice * w.slice_bytes;
    w.codes += skip, w.high += skip, w.scales += skip, w.d += skip;
    r->bring[(r->first_bring + r->n_bring++) % N_BRING] = {from, slice, w};
}

void cuda_settle(Backend *b) {
    Cuda *c = cuda_of(b);
    Ring *r = c->ring;
    if (!r) return;
    while (bring_some(b, true)) {}
    if (!b->first_error.text[0]) {
        cuda_check(b, "wait for planes", cudaStreamWaitEvent(c->stream, r->laid[(r->turn + FILL_SLOTS - 1) % FILL_SLOTS], 0));
        return;
    }
    r->n_bring = 0; // what was on its way ends, so that its memory can be freed
    r->at = 0, r->filled = 0;
    cudaStreamSynchronize(r->copy);
    cudaStreamSynchronize(r->lay);
}

// ---- what an op borrows by itself ----

int cuda_rows_here(const Backend *b, const Tensor *w, int n_rows) {
    const Ring *r = cuda_of(b)->ring;
    if (w->dev || !r || !cuda_supports(w->type)) return 0;
    const size_t most = r->size / 2 < (size_t)BORROW_PIECE ? r->size / 2 : (size_t)BORROW_PIECE, room = most > 2048 ? most - 2048 : 0; // 2048: padding
    if (lease_bytes(&w, 1, 1) <= most) return 0;
    const size_t row = (size_t)type_row_bytes(w->type, w->n_col) + sizeof(float) * ((size_t)n_rows + 1);
    return (int)(room / row < (size_t)w->n_row ? room / row / ROW_STEP * ROW_STEP : (size_t)w->n_row);
}

float *cuda_borrow_rows(Backend *b, const Tensor **w, const Tensor **bias, int first, int n, int n_rows) {
    Ring *r = cuda_of(b)->ring;
    const Tensor *whole = *w, *all = *bias;
    Tensor *v = r->view;
    cuda_flush(b); // what reads the views
    v[0] = *whole;
    v[0].n_row = n;
    v[0].host = tensor_row(whole, 0, first);
    if (all) v[1] = *all, v[1].n_col = n, v[1].host = (const float *)all->host + first;
    if (all && all->dev) v[1].dev = (float *)all->dev + first;
    const Tensor *const t[2] = {&v[0], &v[1]};
    *w = &v[0], *bias = all ? &v[1] : NULL;
    return (float *)lend(b, v, t, all && !all->dev ? 2 : 1, NULL, 1, sizeof(float) * (size_t)n_rows * (size_t)n);
}

bool cuda_here(Backend *b, const Tensor **w, const Tensor **bias) {
    const Tensor *t[2];
    Ring *r = cuda_of(b)->ring;
    int n = 0;
    if (*w && !(*w)->dev) t[n++] = *w;
    if (bias && *bias && !(*bias)->dev) t[n++] = *bias;
    if (!n) return true;
    if (!r || !cuda_borrow(b, r->view, t, n, NULL, 1)) {
        backend_fail(b, "cuda backend: %s was not loaded", t[0]->name);
        return false;
    }
    if (n == 2 || t[0] == *w) *w = &r->view[0];
    if (bias && *bias && !(*bias)->dev) *bias = &r->view[n - 1];
    return true;
}
