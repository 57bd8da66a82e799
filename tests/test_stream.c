// test_stream.c: weights of the host that a device borrows for a prompt. Products with borrowed weights are, to the bit, those with loaded ones:
// of every type, of experts in pieces, in a ring that comes around, whatever the order in which the emulator's streams run; without
// memory for a ring nothing is borrowed and nothing fails. They are the same from pages that are pinned, some or all of them. Prompts of the
// reference models are what they are on the CPU, with all, some or none of what the host has copied to the device. Linked with the emulator of
// tests/emu all of that; with a real device (make gpu-check) what needs no emulator. test_stream -v prints figures.
#include "emu/emu_test.h"
#include "float32.h"
#include "place.h"
#include "random.h"
#include "reference.h"
#include "stream.h"

#include <sys/mman.h>
#include <unistd.h>

#pragma weak emu_config // without the emulator they are not there
#pragma weak emu_reset
#pragma weak emu_memory_used
#pragma weak emu_registered_bytes
#pragma weak emu_reports
#pragma weak emu_clear_reports
#pragma weak emu_clock_us
#pragma weak emu_launches
#pragma weak emu_clear_launches

static bool verbose;
static EmuConfig none, *emu = &none; // of the emulator, if it is there
static bool emulated(void) { return &emu_config != NULL; }

// ---- the backend ----

enum { ROWS = 12, MAX_COL = 1024, MAX_FF = 256, EXPERTS = 10, USED = 3 };

static Backend cuda;

static bool open_with(uint64_t ring_bytes, Err *e) {
    const Limits limits = {.n_rows = ROWS, .n_col = MAX_COL, .n_ctx = 16, .n_head = 1, .head_dim = 64, .n_embd = MAX_COL, .n_ff_expert = MAX_FF,
                           .n_expert = EXPERTS, .n_expert_used = USED, .n_vocab = 64, .ring_bytes = ring_bytes};
    return backend_open_cuda(&cuda, 0, e) && cuda.reserve(&cuda, &limits, e);
}

static void must_open(uint64_t ring_bytes) {
    Err e = {{0}};
    const bool ok = open_with(ring_bytes, &e);
    CHECK(ok, "%s", e.text);
    if (!ok) exit(1);
}

static Tensor matrix(TensorType type, int n_slice, int n_row, int n_col) {
    const int64_t bytes = n_row * type_row_bytes(type, n_col);
    char *p = malloc((size_t)(bytes * n_slice));
    Tensor t = {.name = "weight", .type = type, .n_row = n_row, .n_col = n_col, .n_slice = n_slice, .host = p};
    if (!p) abort();
    random_blocks(p, type, bytes * n_slice);
    if (n_slice > 1) t.slices = malloc(sizeof *t.slices * (size_t)n_slice);
    for (int s = 0; s < n_slice && n_slice > 1; s++) t.slices[s] = p + s * bytes;
    return t;
}

static void drop(Tensor *t) {
    free((void *)t->host);
    free(t->slices);
}

static void load(Tensor *t) {
    Err e = {{0}};
    CHECK(cuda.load(&cuda, t, &e), "%s", e.text);
}

static void wait_for_it(void) {
    Err e = {{0}};
    CHECK(cuda.sync(&cuda, &e), "%s", e.text);
}

static float *device_floats(int64_t n) {
    float *x = malloc(sizeof *x * (size_t)n), *dev = cuda.alloc(&cuda, sizeof *x * (size_t)n);
    if (!x || !dev) abort();
    for (int64_t i = 0; i < n; i++) x[i] = gauss();
    cuda.upload(&cuda, dev, x, sizeof *x * (size_t)n);
    free(x);
    return dev;
}

static bool same(const float *a_dev, const float *b_dev, int64_t n) {
    float *a = malloc(sizeof *a * (size_t)n), *b = malloc(sizeof *b * (size_t)n);
    if (!a || !b) abort();
    cuda.download(&cuda, a, a_dev, sizeof *a * (size_t)n);
    cuda.download(&cuda, b, b_dev, sizeof *b * (size_t)n);
    bool interesting = false;
    for (int64_t i = 0; i < n; i++) interesting |= a[i] != 0 && isfinite(a[i]);
    const bool equal = interesting && !memcmp(a, b, sizeof *a * (size_t)n);
    free(a);
    free(b);
    return equal;
}

// W x of a loaded and of the borrowed weight; the second in a piece that the first has not been in.
static void test_types(void) {
    must_open((3 << 20));
    for (int i = 0; i < N_TYPE; i++) {
        Tensor w = matrix(TYPES[i].type, 1, 96, 512), bias = matrix(TYPE_F32, 1, 1, 96), view[2], loaded = w, loaded_bias = bias;
        load(&loaded);
        load(&loaded_bias);
        float *x = device_floats(ROWS * 512), *y[2] = {device_floats(ROWS * 96), device_floats(ROWS * 96)};
        for (int n = 1; n <= ROWS; n += ROWS - 1) {
            cuda.matmul(&cuda, y[0], &loaded, &loaded_bias, x, n);
            CHECK(cuda.borrow(&cuda, view, (const Tensor *[]){&w, &bias}, 2, NULL, 1) == 1, "%s is not borrowed", type_info(w.type)->name);
            cuda.matmul(&cuda, y[1], &view[0], &view[1], x, n);
            CHECK(same(y[0], y[1], n * 96), "%s, %d rows: not the product of the loaded weight", type_info(w.type)->name, n);
        }
        wait_for_it();
        float *const buffers[] = {x, y[0], y[1], loaded.dev, loaded_bias.dev};
        for (int k = 0; k < 5; k++) cuda.free(&cuda, buffers[k]);
        drop(&w);
        drop(&bias);
    }
    backend_close(&cuda);
}

// What was not loaded an op borrows; a matrix that is too large for the ring in pieces, here of 64 rows.
static void test_pieces(void) {
    enum { N_ROW = 200, N_COL = 512 };
    for (int i = 0; i < N_TYPE; i++) {
        const uint64_t row = (uint64_t)type_row_bytes(TYPES[i].type, N_COL) + sizeof(float) * (ROWS + 1);
        must_open(2 * (64 * row + 3000));
        Tensor w = matrix(TYPES[i].type, 1, N_ROW, N_COL), bias = matrix(TYPE_F32, 1, 1, N_ROW), gain = matrix(TYPE_F32, 1, 1, N_COL);
        Tensor loaded = w, loaded_bias = bias, loaded_gain = gain;
        load(&loaded), load(&loaded_bias), load(&loaded_gain);
        float *x = device_floats(ROWS * N_COL), *y[2] = {device_floats(ROWS * N_ROW), device_floats(ROWS * N_ROW)};
        for (int n = 1; n <= ROWS; n += ROWS - 1) {
            const Tensor *const b[] = {&bias, &loaded_bias, NULL};
            cuda.norm(&cuda, x, n == 1 ? &gain : &loaded_gain, x, ROWS, N_COL, 1e-6f);
            cuda.matmul(&cuda, y[0], &loaded, n == 1 ? NULL : &loaded_bias, x, n);
            cuda.matmul(&cuda, y[1], &w, b[n == 1 ? 2 : i % 2], x, n);
            CHECK(same(y[0], y[1], n * N_ROW), "%s, %d rows: not the product of the loaded weight", type_info(w.type)->name, n);
        }
        wait_for_it();
        float *const buffers[] = {x, y[0], y[1], loaded.dev, loaded_bias.dev, loaded_gain.dev};
        for (int k = 0; k < 6; k++) cuda.free(&cuda, buffers[k]);
        drop(&w), drop(&bias), drop(&gain);
        backend_close(&cuda);
    }
}

// A slice of more than one pinned buffer, and not a whole number of them.
static void test_long_slices(void) {
    must_open((20 << 20));
    static const TensorType types[] = {TYPE_Q8_0, TYPE_Q6_K, TYPE_F16};
    for (int i = 0; i < 3; i++) {
        Tensor w = matrix(types[i], 1, 5500, MAX_COL), view, loaded = w;
        load(&loaded);
        float *x = device_floats(MAX_COL), *y[2] = {device_floats(5500), device_floats(5500)};
        cuda.matmul(&cuda, y[0], &loaded, NULL, x, 1);
        CHECK(cuda.borrow(&cuda, &view, (const Tensor *[]){&w}, 1, NULL, 1) == 1, "%s is not borrowed", type_info(w.type)->name);
        cuda.matmul(&cuda, y[1], &view, NULL, x, 1);
        CHECK(same(y[0], y[1], 5500), "%s of %.1f MiB: not the product of the loaded weight", type_info(w.type)->name, (double)tensor_bytes(&w) / 0x1p20);
        wait_for_it();
        cuda.free(&cuda, loaded.dev), cuda.free(&cuda, x), cuda.free(&cuda, y[0]), cuda.free(&cuda, y[1]);
        drop(&w);
    }
    backend_close(&cuda);
}

// Chosen experts, as many at a time as the ring holds: each is what it is in the whole stack.
static void test_experts(TensorType type, TensorType down_type, uint64_t ring, int at_once) {
    enum { E = 256, FF = 256, CHOSEN = 7 };
    static const int chosen[CHOSEN] = {9, 2, 3, 8, 0, 5, 1}; // not in order
    must_open(ring);
    Tensor w[3] = {matrix(type, EXPERTS, FF, E), matrix(type, EXPERTS, FF, E), matrix(down_type, EXPERTS, E, FF)}, loaded[3], view[3];
    for (int i = 0; i < 3; i++) loaded[i] = w[i], load(&loaded[i]);
    float *x = device_floats(ROWS * E), *y[2] = {device_floats(ROWS * E), device_floats(ROWS * E)}, *weight = device_floats(ROWS * USED);
    int *id[2] = {cuda.alloc(&cuda, sizeof(int) * ROWS * USED), cuda.alloc(&cuda, sizeof(int) * ROWS * USED)}, n_piece = 0;
    for (int done = 0, n; done < CHOSEN; done += n, n_piece++) {
        n = cuda.borrow(&cuda, view, (const Tensor *[]){&w[0], &w[1], &w[2]}, 3, chosen + done, CHOSEN - done);
        CHECK(n == (at_once < CHOSEN - done ? at_once : CHOSEN - done), "%d of %d experts fit, expected %d", n, CHOSEN - done, at_once);
        if (n < 1) break;
        int here[ROWS * USED], there[ROWS * USED];
        for (int i = 0; i < ROWS * USED; i++) here[i] = random_below(n), there[i] = chosen[done + here[i]];
        cuda.upload(&cuda, id[0], there, sizeof there); // of the whole stack
        cuda.upload(&cuda, id[1], here, sizeof here);
        const int n_rows = n < 3 ? n : 3; // so few slots that both go one by one
        for (int k = 0; k < 4; k++) {     // twice: what is borrowed stays
            const Tensor *from = k % 2 ? view : loaded;
            cuda.moe_ffn(&cuda, &(MoeArgs){.y = y[k % 2], .gate = from, .up = from + 1, .down = from + 2, .x = x, .expert = id[k % 2], .weight = weight,
                                           .n_rows = n_rows, .n_used = USED, .act = ACT_SILU});
            if (k % 2) CHECK(same(y[0], y[1], n_rows * E), "%s, experts %d to %d of the chosen: not what they are in the stack", type_info(type)->name, done, done + n - 1);
        }
    }
    wait_for_it();
    CHECK(n_piece == (CHOSEN + at_once - 1) / at_once, "%d pieces of %d experts", n_piece, CHOSEN);
    for (int i = 0; i < 3; i++) cuda.free(&cuda, loaded[i].dev), drop(&w[i]);
    void *const buffers[] = {x, y[0], y[1], weight, id[0], id[1]};
    for (int k = 0; k < 6; k++) cuda.free(&cuda, buffers[k]);
    backend_close(&cuda);
}

// Borrowed in turn, in all sizes, with nothing but the ops to wait for; all results are looked at in the end.
static void test_turns(int streams, unsigned seed, uint64_t ring) {
    enum { N = 60, N_WEIGHT = 9 };
    static const struct { TensorType type; int n_row, n_col; } shapes[N_WEIGHT] = {
        {TYPE_Q4_K, 512, 512}, {TYPE_Q8_0, 256, 512}, {TYPE_F32, 1, 512}, {TYPE_F16, 200, 512}, {TYPE_Q6_K, 64, 512},
        {TYPE_Q5_0, 400, 512}, {TYPE_BF16, 33, 512}, {TYPE_MXFP4, 32, 512}, {TYPE_F32, 100, 512}};
    const EmuConfig before = *emu;
    emu->streams = streams;
    emu->seed = seed;
    must_open(ring);
    Tensor w[N_WEIGHT], loaded[N_WEIGHT], view[3];
    float *want[N_WEIGHT], *got[N][3], *x = device_floats(ROWS * 512);
    int of[N][3], n_of[N];
    for (int i = 0; i < N_WEIGHT; i++) {
        loaded[i] = w[i] = matrix(shapes[i].type, 1, shapes[i].n_row, shapes[i].n_col);
        load(&loaded[i]);
        want[i] = device_floats(2 * shapes[i].n_row);
        cuda.matmul(&cuda, want[i], &loaded[i], NULL, x, 2);
    }
    wait_for_it();
    for (int i = 0; i < N; i++) {
        const Tensor *t[3];
        n_of[i] = 1 + random_below(3);
        for (int k = 0; k < n_of[i]; k++) {
            of[i][k] = random_below(N_WEIGHT);
            t[k] = &w[of[i][k]];
            got[i][k] = cuda.alloc(&cuda, sizeof(float) * 2 * (size_t)t[k]->n_row);
        }
        CHECK(cuda.borrow(&cuda, view, t, n_of[i], NULL, 1) == 1, "borrow %d fails", i);
        for (int k = 0; k < n_of[i]; k++) cuda.matmul(&cuda, got[i][k], &view[k], NULL, x, 2);
    }
    wait_for_it();
    int wrong = 0, all = 0;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < n_of[i]; k++) {
            all++;
            wrong += !same(want[of[i][k]], got[i][k], 2 * shapes[of[i][k]].n_row);
            cuda.free(&cuda, got[i][k]);
        }
    CHECK(wrong == 0, "streams %d, seed %u, ring of %llu KiB: %d of %d products are wrong", streams, seed, (unsigned long long)ring >> 10, wrong, all);
    for (int i = 0; i < N_WEIGHT; i++) cuda.free(&cuda, loaded[i].dev), cuda.free(&cuda, want[i]), drop(&w[i]);
    cuda.free(&cuda, x);
    backend_close(&cuda);
    *emu = before;
}

// A list of ops that comes again is replayed as a graph; not one that reads the ring, where other weights are by then.
static void test_no_graph(void) {
    enum { N = 4 };
    must_open((4 << 20));
    Tensor w[N], loaded[N], view;
    float *x = device_floats(512), *y[2] = {device_floats(64), device_floats(64)};
    for (int i = 0; i < N; i++) loaded[i] = w[i] = matrix(TYPE_Q4_0, 1, 64, 512), load(&loaded[i]);
    for (int i = 0; i < 3 * N; i++) {
        CHECK(cuda.borrow(&cuda, &view, (const Tensor *[]){&w[i % N]}, 1, NULL, 1) == 1, "not borrowed");
        cuda.matmul(&cuda, y[1], &view, NULL, x, 1);
        cuda.scale(&cuda, x, 1, 512); // the list of a flush is this op and that one
        cuda.download(&cuda, &(float){0}, y[1], sizeof(float));
        cuda.matmul(&cuda, y[0], &loaded[i % N], NULL, x, 1);
        CHECK(same(y[0], y[1], 64), "turn %d: another weight", i);
        wait_for_it();
    }
    for (int i = 0; i < N; i++) cuda.free(&cuda, loaded[i].dev), drop(&w[i]);
    cuda.free(&cuda, x), cuda.free(&cuda, y[0]), cuda.free(&cuda, y[1]);
    backend_close(&cuda);
}

// By the emulator's clock: where a product takes as long as its weight's way, both go on at once.
static void test_overlap(void) {
    enum { N_WEIGHT = 10, WIDE = 1024 };
    const EmuConfig before = emu_config;
    emu_config.h2d = emu_config.dram = 4;
    Tensor w[N_WEIGHT], view;
    for (int i = 0; i < N_WEIGHT; i++) w[i] = matrix(TYPE_Q8_0, 1, WIDE, WIDE);
    const double copies_us = N_WEIGHT * (double)tensor_bytes(&w[0]) / (4 * 1e3);
    must_open(2 * (uint64_t)tensor_bytes(&w[0]) + (100 << 10));
    float *x = device_floats(WIDE), *y = device_floats(WIDE);
    wait_for_it();
    const double start = emu_clock_us();
    for (int i = 0; i < N_WEIGHT; i++) {
        CHECK(cuda.borrow(&cuda, &view, (const Tensor *[]){&w[i]}, 1, NULL, 1) == 1, "weight %d is not borrowed", i);
        cuda.matmul(&cuda, y, &view, NULL, x, 1);
    }
    wait_for_it();
    const double share = (emu_clock_us() - start) / copies_us;
    if (verbose) printf("copies and products of equal length: %.2f of the time that copies take\n", share);
    CHECK(share < 1.25, "%d weights take %.2f times as long as their copies", N_WEIGHT, share);
    cuda.free(&cuda, x), cuda.free(&cuda, y);
    backend_close(&cuda);
    for (int i = 0; i < N_WEIGHT; i++) drop(&w[i]);
    emu_config = before;
}

// No room for a ring, or for any of its parts: nothing is borrowed, all else works; nothing stays behind.
static void test_no_memory(void) {
    Tensor w = matrix(TYPE_Q4_0, 1, 64, 512), big = matrix(TYPE_Q4_0, 1, 640, 512), view;
    int n_failed = 0, n_lent = 0;
    for (int i = 0; i < 24; i++) {
        Err e = {{0}};
        emu_config.fail_alloc = i;
        const bool ok = open_with((100 << 10), &e), planned = emu_config.fail_alloc == 0 && i > 0;
        emu_config.fail_alloc = 0;
        if (ok) {
            const int n = cuda.borrow(&cuda, &view, (const Tensor *[]){&w}, 1, NULL, 1);
            CHECK(cuda.borrow(&cuda, &view, (const Tensor *[]){&big}, 1, NULL, 1) == 0, "180 KiB fit into 100");
            CHECK(n == 1 || planned, "allocation %d did not fail, and nothing is borrowed", i);
            n_lent += n;
            n_failed += n == 0;
            wait_for_it();
        } else CHECK(planned, "%s", e.text);
        backend_close(&cuda);
        CHECK(emu_memory_used() == 0, "allocation %d failed: %zu bytes are left on the device", i, emu_memory_used());
    }
    CHECK(n_failed >= 4 && n_lent > 0, "a ring without one of its parts: %d times, expected 4 at least; %d could borrow", n_failed, n_lent); // it and three pinned buffers
    const size_t memory = emu_config.memory;
    must_open(0);
    const size_t without = emu_memory_used();
    CHECK(cuda.borrow(&cuda, &view, (const Tensor *[]){&w}, 1, NULL, 1) == 0, "borrowed without a ring");
    backend_close(&cuda);
    emu_config.memory = emu_config.reserve + without + (40 << 20);
    must_open(64 << 20);
    CHECK(cuda.borrow(&cuda, &view, (const Tensor *[]){&w}, 1, NULL, 1) == 0, "borrowed where the device is full");
    wait_for_it();
    backend_close(&cuda);
    emu_config.memory = memory;
    drop(&w);
    drop(&big);
}

// ---- pages that are pinned ----

// A file's pages that cannot be written: `bytes` of random blocks, from the second page on.
static char *map_blocks(TensorType type, size_t bytes) {
    char path[] = "/tmp/test_stream-XXXXXX";
    const int fd = mkstemp(path);
    char *p = malloc(bytes);
    if (fd < 0 || !p) abort();
    random_blocks(p, type, (int64_t)bytes);
    unlink(path);
    if (pwrite(fd, p, bytes, 4096) != (ssize_t)bytes) abort();
    free(p);
    p = mmap(NULL, bytes + 4096, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) abort();
    return p;
}

// Products with weights of 100 and of 5500 rows, of which the first n_pinned have pinned pages, whatever the order of streams. Where pages are pinned the
// host has nothing to copy: that takes as good as for ever here.
static void test_pinned(TensorType type, int n_pinned, int streams) {
    enum { N_WEIGHT = 2, N_COL = 512 };
    static const int rows[N_WEIGHT] = {5500, 100};
    const EmuConfig before = emu_config;
    const size_t row = (size_t)type_row_bytes(type, N_COL), start[N_WEIGHT] = {4096, 4096 + (5500 * row + 4095) / 4096 * 4096}, all = start[1] + 100 * row;
    char *p = map_blocks(type, all - 4096);
    Err e = {{0}};
    emu_config.streams = streams;
    emu_config.fill = 1e-3;
    must_open(20 << 20);
    float *x = device_floats(ROWS * N_COL), *want[N_WEIGHT], *got[N_WEIGHT];
    Tensor w[N_WEIGHT], loaded[N_WEIGHT], view[N_WEIGHT];
    for (int i = 0; i < N_WEIGHT; i++) {
        w[i] = loaded[i] = (Tensor){.name = "of a file", .type = type, .n_row = rows[i], .n_col = N_COL, .n_slice = 1, .host = p + start[i]};
        load(&loaded[i]);
        want[i] = device_floats(ROWS * rows[i]), got[i] = device_floats(ROWS * rows[i]);
        cuda.matmul(&cuda, want[i], &loaded[i], NULL, x, ROWS);
        if (i < n_pinned) CHECK(cuda.pin(&cuda, p + start[i], ((size_t)rows[i] * row + 4095) / 4096 * 4096, &e), "%s", e.text);
    }
    CHECK(!n_pinned || !cuda.pin(&cuda, p + start[0], 4096, &e), "pages are pinned twice");
    wait_for_it();
    for (int turn = 0; turn < 3; turn++)
        for (int i = 0; i < N_WEIGHT; i++) {
            const double begin = emu_clock_us(), fill = (double)tensor_bytes(&w[i]) / (emu_config.fill * 1e3);
            CHECK(cuda.borrow(&cuda, &view[i], (const Tensor *[]){&w[i]}, 1, NULL, 1) == 1, "%s is not borrowed", type_info(type)->name);
            const double host = emu_clock_us() - begin;
            CHECK((host < fill / 2) == (i < n_pinned), "%d of 2 pinned: the host takes %.0f us for %d rows, filling %.0f", n_pinned, host, rows[i], fill);
            cuda.matmul(&cuda, got[i], &view[i], NULL, x, ROWS);
            if (turn == 1 && i < n_pinned) continue; // the next one goes on
            CHECK(same(want[i], got[i], ROWS * rows[i]), "%s, %d of 2 pinned, turn %d: not the product of the loaded weight", type_info(type)->name, n_pinned, turn);
        }
    CHECK(cuda.borrow(&cuda, &view[0], (const Tensor *[]){&w[0]}, 1, NULL, 1) == 1, "not borrowed");
    cuda.unpin(&cuda); // while it is copied
    CHECK(emu_registered_bytes() == 0 && cuda.pinned_bytes == 0 && emu_reports("unregister-while-copying") == 0, "%zu bytes are registered", emu_registered_bytes());
    for (int i = 0; i < N_WEIGHT; i++) cuda.free(&cuda, loaded[i].dev), cuda.free(&cuda, want[i]), cuda.free(&cuda, got[i]);
    cuda.free(&cuda, x);
    backend_close(&cuda);
    munmap(p, all);
    emu_config = before;
}

// What a driver refuses is said, and nothing else fails.
static void test_not_pinned(void) {
    const EmuConfig before = emu_config;
    char *p = map_blocks(TYPE_Q8_0, 1 << 20), *gone;
    Err e = {{0}};
    must_open(1 << 20);
    gone = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(gone, 4096);
    CHECK(!cuda.pin(&cuda, gone, 4096, &e) && strstr(e.text, "invalid argument"), "what is not mapped: '%s'", e.text);
    emu_config.registers = 0;
    CHECK(!cuda.pin(&cuda, p, 4096, &e) && strstr(e.text, "cannot be written"), "an old driver: '%s'", e.text);
    emu_config.registers = 1;
    emu_config.lockable = 64 << 10;
    CHECK(cuda.pin(&cuda, p, 60 << 10, &e), "%s", e.text);
    CHECK(!cuda.pin(&cuda, p + (60 << 10), 8192, &e) && strstr(e.text, "out of memory"), "more than can be: '%s'", e.text);
    CHECK(cuda.pinned_bytes == 60 << 10 && emu_registered_bytes() == 60 << 10, "%zu bytes are pinned, expected 60 KiB", emu_registered_bytes());
    wait_for_it();
    backend_close(&cuda);
    CHECK(emu_registered_bytes() == 0, "%zu bytes stay registered", emu_registered_bytes());
    munmap(p, (1 << 20) + 4096);
    emu_config = before;
}

// ---- models ----

enum { BATCH = 24, N = BATCH + 4 }; // tokens: a prompt, and a few that nothing is copied for
static int ids[N_TOKEN];

// On the device: attention, the FFNs, so many of n_expert experts; the head always.
typedef struct {
    bool attention, ffn;
    int experts; // halves of them
} Where;

typedef enum { NONE, SOME, ALL } HowMany;
static const char *const HOW_MANY[] = {"none", "some", "all"};

// A machine whose link is so fast that this many experts (and FFNs) are worth it: some: of as many rows as half of them have.
static Machine machine_for(HowMany how, const Model *m) {
    Machine k = {.gpu = {.name = "test", .rate = 1e15, .up_pinned = how == ALL ? 1e15 : 1, .up_pageable = 1e18, .down = 1e18},
                 .host = {.name = "test", .bandwidth = 1e15, .share = 1, .rate = 1e9}};
    const Layer *w = &m->layers[m->c.n_layer - 1];
    if (how != SOME) return k;
    const double rows = w->d.n_expert ? (double)BATCH * w->d.n_expert_used / w->d.n_expert : BATCH - 1, experts = w->d.n_expert ? w->d.n_expert : 1;
    const Tensor *const t[] = {w->ffn_gate_exps, w->ffn_up_exps, w->ffn_down_exps};
    double bytes = 0, flop = 0;
    for (int i = 0; i < 3 && t[i]; i++) bytes += (double)tensor_bytes(t[i]) / experts, flop += 2.0 * t[i]->n_row * t[i]->n_col;
    if (flop > 0) k.gpu.up_pinned = bytes / (rows + 0.5) / flop * k.host.rate;
    return k;
}

typedef struct {
    int n_lent, n_rest; // experts of the last layer and batch, that came; that the host computed
    int n_laid;         // launches that made planes; a table's rows take one
} Seen;

static uint64_t ring_for(const Model *m, uint64_t most) {
    const Backend device = {.kv_type = TYPE_F16};
    return stream_ring_bytes(m, &device, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = BATCH}, true, most);
}

typedef enum { UNPINNED, PINNED, READ_AND_PINNED, PINNED_IN_PART } Pinned; // read: --no-mmap; in part: the second run of pages fails

// where NULL: all on the cpu, or, ref, the ref backend.
static bool evaluate(Model *m, const Where *where, bool ref, HowMany how, uint64_t ring, Pinned pinned, float *logits, Seen *seen, Err *e) {
    Backend b = {0}, host = {0};
    Session s = {0};
    PlanUnits u = {0};
    int part[1024] = {0};
    const SessionParams p = {.n_ctx = N_TOKEN, .n_batch = BATCH, .all_logits = true, .ring_bytes = ring};
    bool ok = where ? backend_open_cuda(&b, 0, e) && backend_open_cpu(&host, 1, ISA_AUTO, e) && units_open(&u, m, &p, sizeof(F16), e)
                    : ref ? backend_open_ref(&b, e) : backend_open_cpu(&b, 1, ISA_AUTO, e);
    if (ok && where) {
        b.host = &host;
        for (int i = 0; i < u.n; i++) {
            const Unit *x = &u.unit[i];
            part[i] = x->kind == UNIT_ATTENTION ? where->attention : x->kind == UNIT_FFN ? where->ffn : x->kind == UNIT_HEAD ? 1
                    : x->kind == UNIT_EXPERTS ? where->experts * x->n_part / 2 : 0;
        }
        place_set(m, &u, part);
        ok = place_load(&b, m, e);
    }
    ok = ok && session_open(&s, m, &b, &p, e);
    s.machine = machine_for(how, m);
    s.machine.gpu.up_mapped = s.machine.gpu.up_pinned;
    m->gguf.no_mmap |= pinned == READ_AND_PINNED; // and stays so: what was read is no file any more
    for (uint64_t i = 0; ok && m->gguf.no_mmap && i < m->gguf.n_tensor; i++) ok = gguf_fetch(&m->gguf, m->gguf.tensors[i].data, m->gguf.tensors[i].bytes, e);
    if (ok && pinned) {
        emu_config.fail_alloc = pinned == PINNED_IN_PART ? 2 : 0;
        place_pin(&s, &b, m);
        const bool all = pinned != PINNED_IN_PART || emu_config.fail_alloc > 0; // there was only one
        CHECK((all || !s.machine.gpu.up_mapped) && emu_registered_bytes() > 0 && !strchr(s.pinned, ':') == all, "pinned: %s", s.pinned);
        emu_config.fail_alloc = 0;
        s.machine.gpu.up_mapped = s.machine.gpu.up_pinned;
    }
    s.on_logits = keep_logits;
    s.on_logits_ctx = &(Outputs){.logits = logits, .n_vocab = m->c.n_vocab};
    ok = ok && b.sync(&b, e);
    if (where && emulated()) emu_clear_launches();
    ok = ok && session_eval(&s, ids, BATCH, e);
    if (where && seen) *seen = (Seen){s.n_streamed, s.n_rest, emulated() ? emu_launches("lay_out_planes") : 0};
    ok = ok && session_eval(&s, ids + BATCH, N - BATCH, e);
    session_close(&s);
    place_unload(&b, m);
    CHECK(emu_registered_bytes() == 0, "%zu bytes stay registered", emu_registered_bytes());
    units_close(&u);
    backend_close(&host);
    backend_close(&b);
    return ok;
}

typedef struct {
    Where where;
    HowMany how;
    int streams;
    enum { ENOUGH, TIGHT, TOO_LARGE } ring; // TIGHT: for one thing at a time; TOO_LARGE: the device has no memory for it, and nothing comes
    Pinned pinned;
} Case;

// floats: weights are float32 now, and the bound is what the rounding of keys and values to F16 costs, on both sides.
static void test_model(const char *name, double nmse_of_file, bool floats, const Case *cases, int n_case) {
    static Memory kept;
    char path[128];
    Model m;
    Err e = {{0}};
    snprintf(path, sizeof path, "reference/%s.gguf", name);
    if (!shared_path(path) || !model_open(&m, shared_path(path), &e)) {
        test_skip(path);
        return;
    }
    const size_t n = (size_t)N * (size_t)m.c.n_vocab;
    float *want = calloc(n, sizeof(float)), *got = calloc(n, sizeof(float));
    if (floats) widen_model(&m, &kept);
    bool ok = evaluate(&m, NULL, false, NONE, 0, UNPINNED, want, NULL, &e) && (!floats || evaluate(&m, NULL, true, NONE, 0, UNPINNED, got, NULL, &e));
    CHECK(ok, "%s: %s", name, e.text);
    const double bound = 4 * (floats ? nmse(want, got, (int64_t)n) : 1.2 * nmse_of_file); // as in test_split
    const bool moe = m.layers[m.c.n_layer - 1].d.n_expert;
    const uint64_t enough = ring_for(&m, UINT64_MAX);
    CHECK(enough > 0 && ring_for(&m, 1000) == 0, "%s: a ring of %llu bytes", name, (unsigned long long)enough);
    double worst = 0;
    for (const Case *c = cases; c < cases + n_case; c++) {
        const int i = (int)(c - cases);
        Seen seen;
        emu->streams = c->streams;
        ok = evaluate(&m, &c->where, false, c->how, c->ring == ENOUGH ? enough : c->ring == TIGHT ? enough / 2 : (uint64_t)1 << 40, floats ? UNPINNED : c->pinned, got, &seen, &e);
        const double apart = ok ? nmse(got, want, (int64_t)n) : INFINITY;
        worst = fmax(worst, apart);
        CHECK(apart <= bound, "%s, case %d: NMSE %.2e, expected <= %.2e: %s", name, i, apart, bound, e.text);
        if (moe && c->where.ffn)
            CHECK((seen.n_lent > 0) == (c->how != NONE) && (c->how != SOME || seen.n_rest > 0), "%s, case %d: %s should come: %d experts do, %d do not", name, i,
                  HOW_MANY[c->how], seen.n_lent, seen.n_rest);
        if (!floats && emulated()) CHECK((seen.n_laid > 2) == (c->how != NONE && c->ring != TOO_LARGE), "%s, case %d: %s should come: %d pieces do", name, i, HOW_MANY[c->how], seen.n_laid);
    }
    emu->streams = EMU_EAGER;
    if (verbose) printf("%-20s %s: NMSE at most %.1e of %.1e; ring of %.1f MiB\n", name, floats ? "float32" : "as it is", worst, bound, (double)enough / 0x1p20);
    widen_free(&kept);
    free(want);
    free(got);
    model_close(&m);
}

static void test_models(void) {
    FILE *f = shared_path("reference/tokens.i32") ? fopen(shared_path("reference/tokens.i32"), "rb") : NULL;
    if (!f || fread(ids, sizeof(int), N_TOKEN, f) != N_TOKEN) {
        test_skip("../shared/reference is not there");
        return;
    }
    fclose(f);
    static const Case moe[] = {{{true, true, 0}, SOME, EMU_LAZY, ENOUGH, PINNED},  {{true, false, 1}, ALL, EMU_SHUFFLED, TIGHT, PINNED_IN_PART}, {{true, false, 0}, ALL, EMU_SHUFFLED, ENOUGH, UNPINNED},
                               {{true, true, 0}, NONE, EMU_EAGER, ENOUGH, UNPINNED}, {{false, true, 1}, ALL, EMU_LAZY, ENOUGH, READ_AND_PINNED}, {{false, false, 0}, ALL, EMU_EAGER, TIGHT, UNPINNED}};
    static const Case dense[] = {{{true, false, 0}, ALL, EMU_SHUFFLED, TIGHT, READ_AND_PINNED}, {{false, false, 0}, ALL, EMU_LAZY, ENOUGH, PINNED_IN_PART}, {{true, false, 0}, NONE, EMU_EAGER, ENOUGH, UNPINNED},
                                 {{true, false, 0}, ALL, EMU_EAGER, TOO_LARGE, UNPINNED}};
    static const struct { const char *name; const Case *cases; int n_case, n_floats; } models[] = {
        {"llama-moe-Q4_K_M", moe, 6, 3}, {"gemma4-moe-Q4_K_M", moe, 3, 2}, {"llama3-Q4_K_M", dense, 4, 0}, {"gemma4-e-Q4_K_M", dense, 2, 0}};
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < N_FILE; i++) {
            if (strcmp(FILES[i].name, models[k].name)) continue;
            test_model(models[k].name, FILES[i].nmse, false, models[k].cases, models[k].n_case);
            if (models[k].n_floats) test_model(models[k].name, FILES[i].nmse, true, models[k].cases, models[k].n_floats);
        }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (backend_cuda_devices() == 0) {
        test_skip("no CUDA device");
        return test_end();
    }
    if (emulated()) emu = &emu_config;
    test_types();
    test_pieces();
    test_long_slices();
    test_experts(TYPE_Q4_K, TYPE_Q6_K, 1 << 20, 4);
    test_experts(TYPE_Q4_0, TYPE_Q8_0, 1 << 20, 3);
    test_experts(TYPE_F32, TYPE_Q5_1, 600 << 10, 1);
    for (unsigned seed = 1; seed <= 4; seed++) test_turns(EMU_SHUFFLED, seed, seed % 2 ? 620 << 10 : 1 << 20);
    test_turns(EMU_LAZY, 1, 620 << 10);
    test_turns(EMU_EAGER, 1, 620 << 10);
    test_no_graph();
    if (emulated()) {
        test_overlap();
        test_no_memory();
        for (int n = 0; n <= 2; n++) test_pinned(n == 1 ? TYPE_F16 : TYPE_Q6_K, n, n == 0 ? EMU_EAGER : n == 1 ? EMU_SHUFFLED : EMU_LAZY);
        test_not_pinned();
    }
    test_models();
    return test_end();
}
