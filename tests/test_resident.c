// test_resident.c: experts that change places while a model runs (engine/resident.h), on the emulated device. With float32 weights every token of a long
// text must be what it is where experts stay, whatever has been brought: one layer's to what the order of additions costs, all layers' to what the
// rounding of keys and values to F16 makes of that. After every token each expert is on exactly one side, what is on the device are the
// planes that loading it would make, and the same text is the same, bit for bit, whenever the device does its work. Nothing is brought in
// prompts, nor when it is not wanted. When a launch fails, so does the token, in order. Here every miss is brought, as nobody would.
// test_resident -v prints figures; test_resident llama: only files so named.
#include <math.h>

#include "emu/emu_test.h"
#include "float32.h"
#include "place.h"
#include "reference.h"
#include "resident.h"

#pragma weak emu_config // without the emulator they are not there
#pragma weak emu_memory_used
#pragma weak emu_launches
#pragma weak emu_clear_launches
#pragma weak emu_reports

static bool verbose;

// ---- a session on two sides ----

typedef struct {
    Model *m;
    Backend b, host;
    Session s;
} Run;

enum { N_CTX = 256, LONG = 220, SHORT = 24, WHILE = 20 };
static const uint64_t RING = 4 << 20;

// On the device: half of the experts of layers first .. last, their FFN, and, if whole, all else but the head, which takes the emulator's time.
static bool open_run(Run *r, Model *m, bool whole, int first, int last, int most, Err *e) {
    *r = (Run){.m = m};
    for (int l = 0; l < m->c.n_layer; l++) {
        Layer *w = &m->layers[l];
        const bool shared = l >= first && l <= last;
        w->attn_on_host = !whole;
        w->ffn_on_host = !whole && !shared;
        w->n_expert_device = shared ? w->d.n_expert / 2 : whole ? w->d.n_expert : 0;
    }
    m->head_on_host = true;
    bool ok = backend_open_cuda(&r->b, 0, e) && backend_open_cpu(&r->host, 1, ISA_AUTO, e);
    if (ok) r->b.host = &r->host;
    ok = ok && place_load(&r->b, m, e) && session_open(&r->s, m, &r->b, &(SessionParams){.n_ctx = N_CTX, .n_batch = 16, .ring_bytes = RING}, e) &&
         resident_open(&r->s, most, e);
    CHECK(!ok || !most == !r->s.resident, "%d experts may be brought, nobody looks after them", most);
    if (ok && most) r->s.resident->keeper.cost = -INFINITY; // every miss
    return ok;
}

static void close_run(Run *r) {
    session_close(&r->s);
    place_unload(&r->b, r->m);
    backend_close(&r->host);
    backend_close(&r->b);
    CHECK(emu_memory_used() == 0, "%zu bytes are left on the device", emu_memory_used());
}

static int text_id(const Model *m, int i) { return (int)((uint32_t)(i * i + 7 * i + 1) * 2654435761u >> 8) % m->c.n_vocab; }

// Each expert of a layer on one side, those of the device in slots of their own; on their way: with the host.
static void check_maps(const Run *r, const char *name, int token) {
    const Resident *x = r->s.resident;
    const int n = x->n_expert;
    int *device = malloc(sizeof *device * (size_t)(n * r->m->c.n_layer));
    r->b.download((Backend *)&r->b, device, r->m->slots[0], sizeof *device * (size_t)(n * r->m->c.n_layer));
    bool good = true;
    for (int i = 0; i < x->n_layer; i++) {
        const Layer *w = &r->m->layers[x->layer[i]];
        const int *here = device + x->layer[i] * n, *there = w->share[1].slot;
        uint64_t taken[MAX_EXPERT / 64] = {0};
        int n_here = 0, n_coming = 0;
        for (int k = 0; k < w->d.n_expert; k++) {
            good &= here[k] < 0 ? there[k] == k : there[k] == -1 && here[k] < w->n_expert_device && !(taken[here[k] / 64] >> here[k] % 64 & 1);
            if (here[k] >= 0) taken[here[k] / 64] |= (uint64_t)1 << here[k] % 64, n_here++;
            const ExpertPlace place = (ExpertPlace)keeper_known(&x->keeper, i, k)->place;
            good &= (place == EXPERT_HERE) == (here[k] >= 0);
            n_coming += place == EXPERT_COMING;
        }
        good &= n_here + n_coming == w->n_expert_device;
    }
    CHECK(good, "%s, token %d: an expert is on both sides, or on none", name, token);
    free(device);
}

// n tokens one by one, logits [n][n_vocab].
static bool write_text(Run *r, const char *name, int n, float *logits, bool check, Err *e) {
    for (int i = 0; i < n; i++) {
        const int id = text_id(r->m, i);
        if (!session_eval(&r->s, &id, 1, e)) return false;
        memcpy(logits + (int64_t)i * r->m->c.n_vocab, r->s.logits, sizeof *logits * (size_t)r->m->c.n_vocab);
        if (check) check_maps(r, name, i);
    }
    return true;
}

// ---- logits ----

static void test_logits(const char *name, Model *m, int first, int last, int n_token, double bound) {
    const size_t n = (size_t)n_token * (size_t)m->c.n_vocab;
    const int few = min_int(n_token, 24);
    float *still = malloc(sizeof *still * n), *moving = malloc(sizeof *moving * n), *again = malloc(sizeof *again * n);
    Run r;
    Err e = {{0}};
    const int mode = emu_config.streams;
    bool ok = open_run(&r, m, false, first, last, 0, &e) && write_text(&r, name, n_token, still, false, &e);
    close_run(&r);
    ok = ok && open_run(&r, m, false, first, last, 1000, &e) && write_text(&r, name, n_token, moving, true, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (!ok) return;
    const Resident *x = r.s.resident;
    const int64_t brought = x->n_brought;
    CHECK(brought > n_token * (last - first + 1) / 2, "%s: only %lld experts were brought", name, (long long)brought);
    CHECK(x->n_choice == (int64_t)n_token * x->n_layer * x->keeper.n_used, "%s: %lld choices were seen", name, (long long)x->n_choice);
    close_run(&r);
    double worst = 0;
    for (int i = 0; i < n_token; i++) {
        const int64_t at = (int64_t)i * m->c.n_vocab;
        const double apart = sqrt(nmse(moving + at, still + at, m->c.n_vocab));
        worst = fmax(worst, apart);
        CHECK(apart < bound, "%s, layers %d to %d, token %d: logits differ by %.2e of their length, expected < %.1e", name, first, last, i, apart, bound);
    }
    emu_config.streams = EMU_SHUFFLED;
    ok = open_run(&r, m, false, first, last, 1000, &e) && write_text(&r, name, few, again, false, &e);
    CHECK(ok && !memcmp(again, moving, sizeof *again * (size_t)few * (size_t)m->c.n_vocab), "%s: not the same text when the device works at other times: %s", name, e.text);
    close_run(&r);
    emu_config.streams = mode;
    if (verbose) printf("%-20s layers %d to %d: %d tokens, %lld experts brought, logits at most %.1e apart\n", name, first, last, n_token, (long long)brought, worst);
    free(still);
    free(moving);
    free(again);
}

// What rounding keys and values to F16 costs: ref keeps floats.
static double rounding_of(Model *m, int n_token) {
    const size_t n = (size_t)n_token * (size_t)m->c.n_vocab;
    float *logits[2];
    Err e = {{0}};
    for (int i = 0; i < 2; i++) {
        Backend b = {0};
        Session s = {0};
        logits[i] = malloc(sizeof(float) * n);
        bool ok = (i ? backend_open_ref(&b, &e) : backend_open_cpu(&b, 1, ISA_AUTO, &e)) && session_open(&s, m, &b, &(SessionParams){.n_ctx = N_CTX, .n_batch = 1}, &e);
        for (int t = 0; ok && t < n_token; t++) {
            const int id = text_id(m, t);
            ok = session_eval(&s, &id, 1, &e);
            memcpy(logits[i] + (int64_t)t * m->c.n_vocab, s.logits, sizeof(float) * (size_t)m->c.n_vocab);
        }
        CHECK(ok, "%s", e.text);
        session_close(&s);
        backend_close(&b);
    }
    double worst = 0;
    for (int t = 0; t < n_token; t++) worst = fmax(worst, sqrt(nmse(logits[0] + (int64_t)t * m->c.n_vocab, logits[1] + (int64_t)t * m->c.n_vocab, m->c.n_vocab)));
    free(logits[0]);
    free(logits[1]);
    return worst;
}

// ---- what is on the device ----

// Weights of a part, against those of a tensor with the same slices that is loaded now.
static void check_part(Run *r, const char *name, int l, int which) {
    const Layer *w = &r->m->layers[l];
    const Tensor *const file[3] = {w->ffn_gate_exps, w->ffn_up_exps, w->ffn_down_exps}, *part = &w->part[which];
    const Resident *x = r->s.resident;
    const void *slices[MAX_EXPERT] = {0};
    Tensor fresh = *part;
    Err e = {{0}};
    for (int k = 0; k < w->d.n_expert; k++) {
        const int slot = x->slot[l * x->n_expert + k];
        if (slot >= 0) slices[slot] = tensor_row(file[which], k, 0);
    }
    fresh.slices = slices;
    fresh.host = slices[0];
    fresh.dev = NULL;
    const size_t before = emu_memory_used();
    if (!r->b.load(&r->b, &fresh, &e)) CHECK(false, "%s", e.text);
    const size_t n = emu_memory_used() - before;
    char *got = malloc(n), *want = malloc(n);
    r->b.download(&r->b, got, part->dev, n);
    r->b.download(&r->b, want, fresh.dev, n);
    CHECK(n >= (size_t)tensor_bytes(part) && !memcmp(got, want, n), "%s: layer %d, stack %d: the device has other weights than loading its experts brings", name, l, which);
    r->b.free(&r->b, fresh.dev);
    free(got);
    free(want);
}

// In the file's own types. After a while nothing is on its way any more, and a prompt computes with what is there.
static void test_planes(const char *name, Model *m) {
    static const Machine fast_device = {{.name = "fast", .usable = 1e9, .bandwidth = 1e12, .share = 1, .rate = 1e13, .up_pinned = 1e12, .up_pageable = 1e12, .down = 1e12},
                                        {.name = "slow", .bandwidth = 1e12, .share = 1, .rate = 1e7}};
    Run r;
    Err e = {{0}};
    int prompt[12];
    const int n_vocab = m->c.n_vocab;
    float *want = malloc(sizeof *want * (size_t)n_vocab);
    for (int i = 0; i < 12; i++) prompt[i] = text_id(m, 500 + i);
    for (int moving = 0; moving < 2; moving++) {
        bool ok = open_run(&r, m, true, 0, m->c.n_layer - 1, moving * 1000, &e);
        r.s.machine = fast_device; // experts of prompts come
        emu_clear_launches();
        for (int i = 0; ok && i < WHILE; i++) {
            const int id = text_id(m, i);
            ok = session_eval(&r.s, &id, 1, &e);
        }
        const int n_laid = emu_launches("lay_out_planes");
        CHECK(ok, "%s: %s", name, e.text);
        CHECK(moving ? n_laid >= 3 * r.s.resident->n_brought : n_laid == 0, "%s: %d pieces were laid out while tokens ran", name, n_laid);
        if (moving) {
            resident_before(&r.s, false);
            check_maps(&r, name, WHILE);
            for (int l = 0; l < m->c.n_layer; l++)
                for (int k = 0; k < 3; k++) check_part(&r, name, l, k);
        }
        const int64_t brought = moving ? r.s.resident->n_brought : 0;
        emu_clear_launches();
        ok = session_eval(&r.s, prompt, 12, &e);
        CHECK(ok && (moving == 0 || (r.s.resident->n_brought == brought && r.s.resident->keeper.n_swap == 0)), "%s: experts are brought for a prompt %s", name, e.text);
        CHECK(emu_launches("lay_out_planes") > 0, "%s: no experts of the prompt came to the device", name);
        if (!moving) memcpy(want, r.s.logits, sizeof *want * (size_t)n_vocab);
        const double apart = nmse(r.s.logits, want, n_vocab);
        CHECK(apart < 0.05, "%s: after experts have moved a prompt's logits differ by NMSE %.2e", name, apart); // both sides round activations to 8 bits, each in its way
        if (verbose && moving) printf("%-20s %d tokens, %lld experts brought, planes as loaded; then a prompt: NMSE %.1e\n", name, WHILE, (long long)brought, apart);
        close_run(&r);
    }
    free(want);
}

// ---- failures ----

// Launch k after the third token fails, whichever it is.
static void test_failures(const char *name, Model *m) {
    int n_failed = 0, k = 1;
    for (;; k++) {
        Run r;
        Err e = {{0}};
        bool ok = open_run(&r, m, true, 0, m->c.n_layer - 1, 1000, &e);
        CHECK(ok, "%s: %s", name, e.text);
        for (int i = 0; ok && i < 5; i++) {
            const int id = text_id(m, i);
            if (i == 3) emu_config.fail_launch = k;
            ok = session_eval(&r.s, &id, 1, &e);
        }
        const bool over = emu_config.fail_launch;
        emu_config.fail_launch = 0;
        CHECK(over ? ok : !ok || r.b.first_error.text[0], "%s: launch %d fails, and nobody says so", name, k); // of what is on its way at the end it is kept
        CHECK(ok || strstr(e.text, "the GPU failed: "), "%s: launch %d: '%s'", name, k, e.text);
        n_failed += !ok;
        close_run(&r);
        if (over) break;
    }
    CHECK(n_failed > 10, "%s: %d launches failed", name, n_failed);
    CHECK(emu_reports(NULL) == 0, "%s: the emulator reports", name);
    if (verbose) printf("%-20s %d launches of two tokens, %d failures were said\n", name, k - 1, n_failed);
}

// A loss of memory for the books is an error at opening, or does without; not wanted, or not possible: nothing follows.
static void test_off(Model *m) {
    Run r;
    Err e = {{0}};
    CHECK(open_run(&r, m, true, 1, 0, 0, &e) && !r.s.resident && !m->slots[0], "whole layers only: %s", e.text); // nothing is divided
    CHECK(resident_open(&r.s, 10, &e) && !r.s.resident, "whole layers only, and somebody looks after experts");
    close_run(&r);
    bool ok = open_run(&r, m, true, 0, m->c.n_layer - 1, 0, &e);
    r.s.p.alike = true;
    CHECK(ok && resident_open(&r.s, 10, &e) && !r.s.resident, "rows that must be alike: %s", e.text);
    close_run(&r);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    const char *only = "moe";
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "-v")) verbose = true;
        else only = argv[i];
    if (!&emu_config || backend_cuda_devices() == 0) {
        test_skip("no emulated device");
        return test_end();
    }
    for (int i = 0; i < N_FILE; i++) {
        static Memory kept;
        Model m;
        if (!strstr(FILES[i].name, "moe") || !strstr(FILES[i].name, only) || !open_reference(i, &m)) continue;
        test_planes(FILES[i].name, &m);
        test_off(&m);
        if (strstr(FILES[i].name, "llama")) test_failures(FILES[i].name, &m);
        widen_model(&m, &kept);
        const bool small = strstr(FILES[i].name, "llama"); // the other one takes its time
        test_logits(FILES[i].name, &m, m.c.n_layer - 1, m.c.n_layer - 1, small ? LONG : SHORT, 1e-5);
        test_logits(FILES[i].name, &m, 0, m.c.n_layer - 1, small ? LONG : SHORT, 2 * rounding_of(&m, small ? LONG : SHORT));
        model_close(&m);
        widen_free(&kept);
    }
    return test_end();
}
