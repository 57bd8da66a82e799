// emu_clock.cpp: see emu_clock.h. What the ops that the cuda backend has run read and compute, from their recorded arguments. Compiled like a
// .cu file.
//
// Positions, expert ids and slots lie on the device and are looked at when the stream comes there: in the replay of a graph they are others
// than when it was made.
#include "cuda_queue.cuh"
#include "emu_clock.h"
#include "emu_test.h"

#include <functional>
#include <memory>
#include <vector>

// of the runtime (emu_stream.h)
void emu_later(cudaStream_t stream, std::function<void()> run); // in the order of the stream
void emu_spend_device(const char *name, double us);             // while it runs
void emu_move(void *to, const void *from, size_t n);            // either may be device memory

static std::vector<int> ints(const int *device, size_t n) {
    std::vector<int> host(n);
    emu_move(host.data(), device, n * sizeof(int));
    return host;
}

static void route(const Op *op) {
    const auto &r = op->moe_route;
    std::vector<int> chosen((size_t)r.n_rows * r.n_used);
    for (int i = 0; i < r.n_rows; i++)
        for (int u = 0; u < r.n_used; u++) chosen[(size_t)i * r.n_used + u] = emu_choose_experts(r.n_expert, u, &chosen[(size_t)i * r.n_used]);
    emu_move(r.expert, chosen.data(), chosen.size() * sizeof(int));
}

static void add(EmuWork *k, const Op *op, const int *arg) {
    switch (op->kind) {
    case OP_MATMUL: emu_add_matrix(k, op->matmul.p.w, op->matmul.n_rows); break;
    case OP_ATTENTION: {
        AttentionArgs a = op->attention.a;
        a.kv = &op->attention.kv;
        a.pos = ints(arg + op->arg, 1)[0];
        emu_add_attention(k, &a);
        break;
    }
    case OP_MOE_FFN: {
        const MoeArgs *a = &op->moe_ffn;
        const std::vector<int> expert = ints(a->expert, (size_t)a->n_rows * a->n_used);
        const int n_expert = a->slot ? 1 + *std::max_element(expert.begin(), expert.end()) : 0;
        const std::vector<int> slot = ints(a->slot, (size_t)n_expert);
        emu_add_experts(k, a, expert.data(), a->slot ? slot.data() : NULL);
        break;
    }
    default: break;
    }
}

void emu_ran(const Backend *b, const Op *op, int n) {
    if (!emu_price) return;
    bool works = false;
    for (int i = 0; i < n; i++) {
        const OpKind k = op[i].kind;
        works |= k == OP_MATMUL || k == OP_ATTENTION || k == OP_MOE_FFN || k == OP_MOE_ROUTE;
    }
    if (!works) return;
    const std::vector<Op> ops(op, op + n);
    const int *arg = cuda_of(b)->arg_dev;
    emu_later(cuda_of(b)->stream, [ops, arg]() {
        EmuWork k = {};
        for (const Op &o : ops) {
            if (o.kind == OP_MOE_ROUTE && emu_config.phantom) route(&o);
            add(&k, &o, arg);
        }
        if (k.name) emu_spend_device(k.name, emu_price(&k));
    });
}
