// test_handoff.c: experts that the host computes while the device goes on (moe_lend, moe_collect). Layers of which the device has no expert, one,
// half, or all, and the host the others, compute what the device computes with all of them: one row, three, as a graph that is replayed with
// other ids, and a prompt's 64. Which launches the device has done when the host begins. A host or a device that does not come is an
// error soon, and nothing hangs. In the emulator each side sees of the mailbox only what the other has released and it has acquired (emu_mapped.h).
//
// Tolerance: float32 weights: the order of additions, NMSE 1e-11; Q8_0: both sides round activations to 8 bits, each in its way, 1e-3 a time
// (test_ops.c, test_cuda.c), here three layers in a row: 1e-2. Launches per layer: two more than with all on the device.
#include <time.h>
#include "backend.h"
#include "compare.h"
#include "emu/emu_test.h"
#include "random.h"
#include "test.h"

#pragma weak emu_config // without the emulator they are not there
#pragma weak emu_launches
#pragma weak emu_clear_launches
#pragma weak emu_device_runs
static bool emulated(void) { return &emu_config != NULL; }

enum { E = 64, FF = 96, N_EXPERT = 8, N_USED = 3, N_LAYER = 3, MAX_ROWS = 64, STEPS = 6 };
static const Limits LIMITS = {.n_rows = MAX_ROWS, .n_col = FF, .n_ctx = 8, .n_head = 1, .head_dim = 32, .n_embd = E, .n_ff_expert = FF, .n_expert = N_EXPERT, .n_expert_used = N_USED};

static Backend cuda, host, plain_host; // plain_host: host without what is watched
static bool verbose;

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// -- the host, watched ----------------------------------------------------------------------------------------------------

static int n_job, stall_ms;
static bool fails, eager;
static bool apart;    // the queue runs between lend and collect, as when it is full
static bool replayed; // the device may be waiting for this already
static int own;       // experts of the device

static void watched_moe_ffn(Backend *b, const MoeArgs *a) {
    if (emulated() && eager) {
        emu_device_runs(); // all it can do
        CHECK(emu_launches("lend") == n_job + 1, "job %d: %d have been lent", n_job, emu_launches("lend"));
        CHECK(emu_launches("collect") == n_job + replayed, "job %d: %d are being collected, expected %d", n_job, emu_launches("collect"), n_job + replayed);
        if (own) CHECK(emu_launches("weigh_slots") == n_job + 1, "job %d: the device's own part was done %d times", n_job, emu_launches("weigh_slots"));
    }
    n_job++;
    for (int64_t start = now_ms(); now_ms() - start < stall_ms;)
        if (emulated()) emu_device_runs();
    stall_ms = 0;
    if (fails) backend_fail(b, "the host has a headache");
    plain_host.moe_ffn(b, a);
}

static bool open_both(void) {
    Err e = {{0}};
    bool ok = backend_open_cpu(&host, 2, ISA_AUTO, &e) && host.reserve(&host, &LIMITS, &e) && backend_open_cuda(&cuda, 0, &e);
    plain_host = host;
    host.moe_ffn = watched_moe_ffn;
    cuda.host = &host;
    ok = ok && cuda.reserve(&cuda, &LIMITS, &e);
    CHECK(ok, "%s", e.text);
    n_job = stall_ms = 0;
    fails = replayed = eager = apart = false;
    return ok;
}
static void close_both(void) {
    backend_close(&cuda);
    backend_close(&host);
}

// -- layers ---------------------------------------------------------------------------------------------------------------

enum { ROUTER, GATE, UP, DOWN, N_TENSOR };
typedef struct {
    Tensor all[N_TENSOR], mine[N_TENSOR]; // mine: the device's share, as the first slices
    const void *slices[N_TENSOR][N_EXPERT];
    int host_slot[N_EXPERT], *slot;       // slot: on the device
} Layer;
static Layer layers[N_LAYER];
static float *x, *normed, *y, *logits, *weight;
static int *expert;

static void load(Tensor *t) {
    Err e = {{0}};
    CHECK(cuda.load(&cuda, t, &e), "%s", e.text);
}

// The device has the first n_mine of some order.
static void make_layer(Layer *l, TensorType type, int n_mine) {
    const int shape[N_TENSOR][2] = {{N_EXPERT, E}, {FF, E}, {FF, E}, {E, FF}};
    const char *const names[N_TENSOR] = {"blk.1.ffn_gate_inp.weight", "blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"};
    int slot[N_EXPERT];
    for (int t = 0; t < N_TENSOR; t++) {
        const int n = t == ROUTER ? 1 : N_EXPERT;
        Tensor *all = &l->all[t], *mine = &l->mine[t];
        *all = (Tensor){.type = t == ROUTER ? TYPE_F32 : type, .n_row = shape[t][0], .n_col = shape[t][1], .n_slice = n, .slices = l->slices[t]};
        snprintf(all->name, sizeof all->name, "%s", names[t]);
        const int64_t bytes = all->n_row * type_row_bytes(all->type, all->n_col);
        char *p = malloc((size_t)(n * bytes));
        random_blocks(p, all->type, n * bytes);
        all->host = p;
        for (int e = 0; e < n; e++) l->slices[t][e] = p + e * bytes;
        load(all);
        *mine = *all;
        if (t == ROUTER) continue;
        const void *slices[N_EXPERT];
        for (int i = 0; i < n_mine; i++) slices[i] = l->slices[t][(3 * i + 2) % N_EXPERT];
        mine->slices = slices, mine->n_slice = n_mine, mine->dev = NULL;
        load(mine);
    }
    for (int i = 0; i < N_EXPERT; i++) {
        const int e = (3 * i + 2) % N_EXPERT;
        slot[e] = i < n_mine ? i : -1;
        l->host_slot[e] = i < n_mine ? -1 : e;
    }
    l->slot = cuda.alloc(&cuda, sizeof slot);
    cuda.upload(&cuda, l->slot, slot, sizeof slot);
}
static void make_layers(TensorType type, int n_mine) {
    own = n_mine;
    for (int i = 0; i < N_LAYER; i++) make_layer(&layers[i], type, n_mine);
    x = cuda.alloc(&cuda, sizeof(float) * MAX_ROWS * E);
    normed = cuda.alloc(&cuda, sizeof(float) * MAX_ROWS * E);
    y = cuda.alloc(&cuda, sizeof(float) * MAX_ROWS * E);
    logits = cuda.alloc(&cuda, sizeof(float) * MAX_ROWS * N_EXPERT);
    weight = cuda.alloc(&cuda, sizeof(float) * MAX_ROWS * N_USED);
    expert = cuda.alloc(&cuda, sizeof(int) * MAX_ROWS * N_USED);
}
static void drop_layers(void) {
    for (int i = 0; i < N_LAYER; i++) {
        for (int t = 0; t < N_TENSOR; t++) {
            free((void *)layers[i].all[t].host);
            cuda.free(&cuda, layers[i].all[t].dev);
            if (t != ROUTER) cuda.free(&cuda, layers[i].mine[t].dev);
        }
        cuda.free(&cuda, layers[i].slot);
    }
    float *all[] = {x, normed, y, logits, weight, (float *)expert};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) cuda.free(&cuda, all[i]);
}

static void record_layers(int n_rows, bool whole) {
    for (int i = 0; i < N_LAYER; i++) {
        const Layer *l = &layers[i];
        const MoeArgs all = {.y = y, .gate = &l->all[GATE], .up = &l->all[UP], .down = &l->all[DOWN], .x = normed, .expert = expert, .weight = weight,
                             .n_rows = n_rows, .n_used = N_USED, .act = ACT_SILU};
        MoeArgs mine = all, others = all;
        mine.gate = &l->mine[GATE], mine.up = &l->mine[UP], mine.down = &l->mine[DOWN], mine.slot = l->slot;
        others.y = NULL, others.slot = l->host_slot;
        cuda.norm(&cuda, normed, NULL, x, n_rows, E, 1e-6f);
        cuda.matmul(&cuda, logits, &l->all[ROUTER], NULL, normed, n_rows);
        cuda.moe_route(&cuda, expert, weight, logits, NULL, n_rows, N_EXPERT, N_USED);
        if (!whole) cuda.moe_lend(&cuda, &others);
        Err e = {{0}};
        if (!whole && apart) CHECK(cuda.sync(&cuda, &e), "%s", e.text);
        if (whole || own) cuda.moe_ffn(&cuda, whole ? &all : &mine);
        if (!whole) cuda.moe_collect(&cuda, y, n_rows, E, own);
        cuda.norm(&cuda, y, NULL, y, n_rows, E, 1e-6f);
        cuda.add(&cuda, x, y, (int64_t)n_rows * E);
    }
}

// What the layers make of some rows, and with how many launches.
static int run_layers(float *out, uint64_t seed, int n_rows, bool whole) {
    static float rows[MAX_ROWS * E];
    random_state = seed;
    for (int i = 0; i < n_rows * E; i++) rows[i] = gauss();
    cuda.upload(&cuda, x, rows, sizeof(float) * (size_t)(n_rows * E));
    const int64_t before = cuda_launches(&cuda);
    record_layers(n_rows, whole);
    cuda.download(&cuda, out, x, sizeof(float) * (size_t)(n_rows * E));
    for (int i = 0; i < n_rows * E; i++) out[i] -= rows[i];
    return (int)(cuda_launches(&cuda) - before);
}

static void test_shares(TensorType type) {
    static const int ROWS[] = {1, 3, MAX_ROWS}, MINE[] = {0, 1, N_EXPERT / 2, N_EXPERT};
    static float got[MAX_ROWS * E], want[MAX_ROWS * E];
    const double limit = type == TYPE_F32 ? 1e-11 : 1e-2;
    for (int k = 0; k < 4; k++) {
        if (!open_both()) return;
        make_layers(type, MINE[k]);
        for (int r = 0; r < 3; r++) {
            double worst = 0;
            int launches = 0, all_launches = 0;
            for (int step = 0; step < (ROWS[r] < MAX_ROWS ? STEPS : 1); step++) {
                all_launches = run_layers(want, (uint64_t)(100 + step), ROWS[r], true);
                if (emulated()) emu_clear_launches();
                n_job = 0;
                replayed = ROWS[r] < MAX_ROWS && step > 0; // the second time it is a graph
                apart = step == STEPS - 1;
                eager = emulated() && emu_config.streams == EMU_EAGER && !apart;
                const int n_launch = run_layers(got, (uint64_t)(100 + step), ROWS[r], false);
                if (!apart) launches = n_launch;
                eager = apart = false;
                CHECK(n_job == N_LAYER, "%d jobs for the host, expected %d", n_job, N_LAYER);
                worst = fmax(worst, nmse(got, want, ROWS[r] * E));
            }
            CHECK(worst <= limit, "%s, %d of %d experts on the device, %d rows: NMSE %.1e, expected <= %.0e", type_info((int)type)->name, MINE[k], N_EXPERT,
                  ROWS[r], worst, limit);
            if (own) CHECK(launches == all_launches + 2 * N_LAYER, "%d launches, %d with all experts on the device", launches, all_launches);
            if (verbose) printf("%-5s %d of %d on the device, %2d rows: NMSE %.1e, %d launches, %d with all\n", type_info((int)type)->name, MINE[k],
                                N_EXPERT, ROWS[r], worst, launches, all_launches);
        }
        Err e = {{0}};
        CHECK(cuda.sync(&cuda, &e), "%s", e.text);
        drop_layers();
        close_both();
    }
}

// -- who does not come ----------------------------------------------------------------------------------------------------

enum { LIMIT_MS = 150, LATE_MS = 250 };

// n_before tokens that are well, then one with a fault: an error that says `text`, or none, soon, and all can be closed.
static void check_fault(const char *what, int n_before, void (*plant)(void), const char *text) {
    static float out[MAX_ROWS * E];
    Err e = {{0}};
    if (!open_both()) return;
    make_layers(TYPE_Q8_0, 4);
    for (int i = 0; i < n_before; i++) run_layers(out, 5, 1, false);
    CHECK(cuda.sync(&cuda, &e), "%s, before it: %s", what, e.text);
    cuda_wait_at_most(&cuda, LIMIT_MS); // forgets what was captured
    for (int i = 0; i < n_before; i++) run_layers(out, 5, 1, false);
    const int64_t start = now_ms();
    plant();
    run_layers(out, 5, 1, false);
    const bool ok = cuda.sync(&cuda, &e);
    if (text) CHECK(!ok && strstr(e.text, text), "%s: '%s', expected '%s'", what, ok ? "no error" : e.text, text);
    else CHECK(ok, "%s: %s", what, e.text);
    drop_layers();
    close_both();
    const int64_t took = now_ms() - start;
    CHECK(took < 5 * LATE_MS, "%s: it took %d ms", what, (int)took);
    if (verbose) printf("%s: %s (%d ms)\n", what, ok ? "no error" : e.text, (int)took);
}

static void stall_host(void) { stall_ms = LATE_MS; }
static void fail_host(void) { fails = true; }
static void stall_device(void) {
    emu_config.stall_ms = LATE_MS;
    emu_config.stall = "lend";
}

static void test_faults(void) {
    check_fault("a host that is late, a graph", 2, stall_host, "the host did not come with its experts' part within 0.15 s");
    check_fault("a host that is late, nobody waits", 0, stall_host, NULL);
    check_fault("a host that fails, a graph", 2, fail_host, "headache");
    check_fault("a host that fails", 0, fail_host, "headache");
    if (!emulated()) return;
    check_fault("a device that is late, a graph", 2, stall_device, "the GPU did not come to blk.1.ffn_gate_exps.weight within 0.15 s");
    check_fault("a device that is late", 0, stall_device, "the GPU did not come to blk.1.ffn_gate_exps.weight within 0.15 s");
}

static void test_misuse(void) {
    for (int k = 0; k < 4; k++) {
        Err e = {{0}};
        if (!open_both()) return;
        make_layers(TYPE_F32, 4);
        MoeArgs a = {.gate = &layers[0].all[GATE], .up = &layers[0].all[UP], .down = &layers[0].all[DOWN], .x = x, .expert = expert, .weight = weight, .slot = layers[0].host_slot,
                     .n_rows = 1, .n_used = N_USED, .act = ACT_SILU};
        if (k == 0) cuda.moe_lend(&cuda, &a), cuda.moe_lend(&cuda, &a);
        if (k == 1) cuda.moe_collect(&cuda, y, 1, E, false);
        if (k == 2) cuda.moe_lend(&cuda, &a), cuda.moe_collect(&cuda, y, 2, E, false);
        if (k == 3) a.n_rows = MAX_ROWS + 1, cuda.moe_lend(&cuda, &a);
        static const char *const texts[] = {"is lent before", "64 are collected, 0 ", "2 rows of 64 are collected, 64 ", "65 rows cannot be lent"};
        CHECK(!cuda.sync(&cuda, &e) && strstr(e.text, texts[k]), "misuse %d: '%s'", k, e.text);
        drop_layers();
        close_both();
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (backend_cuda_devices() == 0) {
        test_skip("no CUDA device");
        return test_end();
    }
    if (emulated()) emu_config.views = 1;
    for (int order = 0; order < (emulated() ? 3 : 1); order++) {
        if (emulated()) emu_config.order = emu_config.streams = order; // forward and eager, reverse and lazy, random and shuffled
        test_shares(order == 1 ? TYPE_F32 : TYPE_Q8_0);
        test_faults();
    }
    test_misuse();
    return test_end();
}
