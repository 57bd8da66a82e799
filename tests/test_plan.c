// test_plan.c: the planner's properties over memory from nothing to all in 64 steps, what people may ask of it, and the simulator's sums
// against the formulas of spec/performance.md. Models are made up here, in the sizes of published ones; real shapes: test_plan.sh.
#include <math.h>

#include "plan.h"
#include "test.h"

static Unit units[512];
static PlanUnits model;

static Unit *add(UnitKind kind, int layer, double mb, double kv_mb) {
    Unit *u = &units[model.n++];
    *u = (Unit){.kind = kind, .layer = layer, .n_part = 1, .n_used = 1, .bytes = (uint64_t)(mb * 1e6),
                .kv_bytes = (uint64_t)(kv_mb * 1e6), .source = layer, .n_launch = 5};
    u->read[TYPE_Q4_K] = mb * 1e6;
    u->flop = mb * 1e6 * 16 / 4.5;
    if (kind == UNIT_ATTENTION) u->kv_row = 8192, u->see_flop = 16384;
    if (kind == UNIT_HEAD) u->late_flop = u->flop, u->flop = 0;
    return u;
}

static void begin(int n_layer, int n_embd) {
    memset(units, 0, sizeof units);
    model = (PlanUnits){.unit = units, .n_layer = n_layer, .n_embd = n_embd, .chunk = 512, .acts = 60000000, .tied = true};
}

// Like Gemma 4 26B-A4B: 30 layers with 128 experts, of which 8 are used, larger ones in every second layer.
static void make_moe(void) {
    begin(30, 2816);
    for (int l = 0; l < 30; l++) {
        add(UNIT_ATTENTION, l, 21.5, 12)->window = l % 6 == 5 ? 0 : 1024;
        Unit *f = add(UNIT_FFN, l, 13.3, 0);
        f->router = f->read[TYPE_F32] = 1.44e6;
        f->n_launch = 8;
        Unit *x = add(UNIT_EXPERTS, l, l % 2 ? 556 : 459, 0);
        x->n_part = 128, x->n_used = 8;
        for (int i = 0; i < 3; i++) x->slice[i] = x->bytes / 128 / 3;
        x->read[TYPE_Q4_K] /= 16, x->flop /= 16;
    }
    add(UNIT_HEAD, 30, 606, 0);
}

// Like Gemma 4 E2B: a table, and the last 20 of 35 layers read the KV of layers 13 and 14.
static void make_shared(void) {
    begin(35, 1536);
    add(UNIT_TABLE, 0, 1930, 0)->read[TYPE_Q4_K] = 7400;
    for (int l = 0; l < 35; l++) {
        Unit *a = add(UNIT_ATTENTION, l, 5, l < 15 ? 4 : 0);
        a->source = l < 15 ? l : l % 5 == 4 ? 14 : 13;
        a->late = l > 14;
        add(UNIT_FFN, l, l < 15 ? 17 : 34, 0)->late = l >= 14;
    }
    add(UNIT_HEAD, 35, 330, 0);
}

// Like Llama 3.1 8B.
static void make_dense(void) {
    begin(32, 4096);
    model.tied = false;
    add(UNIT_EMBED, 0, 295, 0)->read[TYPE_Q4_K] = 2304;
    for (int l = 0; l < 32; l++) add(UNIT_ATTENTION, l, 24, 33), add(UNIT_FFN, l, 106, 0);
    add(UNIT_HEAD, 32, 431, 0);
}

static Machine machine_of(const char *gpu, const char *host) { return (Machine){*machine_gpu(gpu), *machine_host(host)}; }

static double token_seconds(const Placement *p, const Machine *m, int depth) {
    Timeline t = {0};
    timeline_token(&t, &model, p, m, depth);
    return t.end;
}

// ---- the plan ----

static bool is_device_only_table(const Unit *u) { return u->kind == UNIT_EMBED || u->kind == UNIT_TABLE; }

// What every candidate must keep to.
static void check_candidate(const Plan *p, const Candidate *c, const char *what) {
    double bytes = 0;
    bool bad_part = false, apart = false, bound = false, table = false;
    const int first = p->q.gpu_layers < 0 || p->q.gpu_layers > model.n_layer ? 0 : model.n_layer + 1 - p->q.gpu_layers;
    for (int i = 0; i < model.n; i++) {
        const Unit *u = &units[i];
        const int part = c->place.part[i];
        bad_part |= part < 0 || part > u->n_part;
        bytes += (double)units_bytes(u, part);
        bound |= part > 0 && u->layer < first;
        table |= part > 0 && is_device_only_table(u);
        for (int k = 0; k < model.n && u->kind == UNIT_ATTENTION; k++)
            apart |= units[k].kind == UNIT_ATTENTION && units[k].layer == u->source && (c->place.part[k] > 0) != (part > 0);
    }
    if (bytes > 0) bytes += (double)model.acts + p->q.reserve;
    CHECK(!bad_part, "%s: a unit has more parts on the device than it has", what);
    CHECK(!apart, "%s: attention is not where the KV cache is that it reads", what);
    CHECK(!bound, "%s: more layers on the device than -ngl %d", what, p->q.gpu_layers);
    CHECK(!table, "%s: a table that is read row by row is on the device", what);
    CHECK(fabs(bytes - c->device) < 1, "%s: %.0f bytes on the device, it says %.0f", what, bytes, c->device);
    CHECK(c->device <= p->q.vram, "%s: %.0f bytes of %.0f", what, c->device, p->q.vram);
}

// As many halves of layers as fit, from the output end: decode speed.
static double speed_of_halves(const Machine *m, const PlanQuery *q) {
    int part[512] = {0};
    const double room = q->vram - q->reserve - (double)model.acts;
    double used = 0;
    bool full = false;
    for (int half = 0; half <= 2 * model.n_layer && !full; half++) // 0: the head
        for (int pass = 0; pass < 2 && !full; pass++) // do they fit? then there they are
            for (int i = 0; i < model.n; i++) {
                const Unit *u = &units[i];
                const int at = u->kind == UNIT_HEAD ? 0 : 2 * (model.n_layer - u->layer) - (u->kind != UNIT_ATTENTION);
                if (is_device_only_table(u) || at != half) continue;
                if (pass) part[i] = u->n_part;
                else used += (double)u->bytes + (double)u->kv_bytes, full |= used > room;
            }
    for (int i = 0; i < model.n; i++) // where the keys are
        for (int k = 0; k < i; k++)
            if (units[i].kind == UNIT_ATTENTION && units[k].kind == UNIT_ATTENTION && units[k].layer == units[i].source) part[i] = part[k];
    return 1 / token_seconds(&(Placement){.part = part}, m, q->depth);
}

static void test_budgets(void (*make)(void), const char *name, const char *gpu, const char *host) {
    make();
    const Machine m = machine_of(gpu, host);
    double all = 0, last = 0, first = 0;
    char what[96];
    for (int i = 0; i < model.n; i++) all += (double)units[i].bytes + (double)units[i].kv_bytes;
    for (int step = 0; step <= 64; step++) {
        const PlanQuery q = {.vram = (all + 6e8) * step / 64, .reserve = 3e8, .gpu_layers = LAYERS_AUTO, .depth = 1024, .n_prompt = 2048};
        Plan p;
        Err e = {0};
        const bool ok = plan_make(&p, &model, &m, &q, &e);
        CHECK(ok, "%s: %s", name, e.text);
        if (!ok) return;
        const Candidate *c = &p.best[p.chosen];
        snprintf(what, sizeof what, "%s, %.2f GB of %s", name, q.vram * 1e-9, gpu);
        for (int f = 0; f < N_FAMILY; f++)
            if (p.best[f].place.part) check_candidate(&p, &p.best[f], what);
        CHECK(c->decode >= last, "%s: %g tokens/s, with less memory %g", what, c->decode, last);
        CHECK(c->decode >= p.best[FAMILY_HOST].decode, "%s: slower than the CPU alone", what);
        CHECK(c->decode >= speed_of_halves(&m, &q) * (1 - 1e-12), "%s: %g tokens/s, layers from the end %g", what, c->decode, speed_of_halves(&m, &q));
        const double layers = p.best[FAMILY_LAYERS].decode, place = speed_of_halves(&m, &q); // place's may be nothing at all
        CHECK(layers >= place * (1 - 1e-12) || place <= p.best[FAMILY_HOST].decode * (1 + 1e-12), "%s: layers from the end %g tokens/s, as many as fit %g", what,
              layers, place);
        CHECK(fabs(1 / token_seconds(&c->place, &m, q.depth) - c->decode) < 1e-9 * c->decode, "%s: the speed is not the timeline's", what);
        last = c->decode;
        if (step == 0) {
            first = c->decode;
            CHECK(p.chosen == FAMILY_HOST && c->device == 0, "%s: something is on a device without memory", what);
        }
        plan_close(&p);
    }
    CHECK(last > 4 * first, "%s: all memory makes it only %g times faster", name, last / first);
}

static void test_bounds(void (*make)(void), const char *name) {
    make();
    const Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    double last = 0;
    for (int ngl = 0; ngl <= model.n_layer + 1; ngl++) {
        const PlanQuery q = {.vram = 9e9, .reserve = 3e8, .gpu_layers = ngl, .depth = 1024, .n_prompt = 512};
        Plan p;
        Err e = {0};
        char what[64];
        snprintf(what, sizeof what, "%s, -ngl %d", name, ngl);
        const bool ok = plan_make(&p, &model, &m, &q, &e);
        CHECK(ok, "%s: %s", what, e.text);
        if (!ok) return;
        for (int f = 0; f < N_FAMILY; f++)
            if (p.best[f].place.part) check_candidate(&p, &p.best[f], what);
        CHECK(ngl > 0 || p.best[p.chosen].device == 0, "%s: something is on the device", what);
        CHECK(ngl == 0 || p.best[p.chosen].device > 0, "%s: nothing is on the device", what);
        CHECK(p.best[p.chosen].decode >= last, "%s: slower than with fewer layers", what);
        last = p.best[p.chosen].decode;
        plan_close(&p);
    }
}

static void test_wishes(void) {
    make_moe();
    const Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    PlanQuery q = {.vram = 11.8e9, .reserve = 3e8, .gpu_layers = LAYERS_AUTO, .depth = 1024, .n_prompt = 512};
    Plan p;
    Err e = {0};
    for (int n = 0; n <= 30; n += 5) {
        q.n_cpu_moe = n;
        CHECK(plan_make(&p, &model, &m, &q, &e), "--n-cpu-moe %d: %s", n, e.text);
        int wrong = 0;
        for (int f = 0; f < N_FAMILY; f++)
            for (int i = 0; i < model.n && p.best[f].place.part; i++) wrong += units[i].kind == UNIT_EXPERTS && units[i].layer < n && p.best[f].place.part[i] > 0;
        CHECK(!wrong, "--n-cpu-moe %d: experts of %d layers on the device", n, wrong);
        plan_close(&p);
    }
    q.n_cpu_moe = 0;
    q.together = true;
    CHECK(plan_make(&p, &model, &m, &q, &e), "together: %s", e.text);
    int apart = 0, there = 0;
    for (int f = 0; f < N_FAMILY; f++)
        for (int i = 1; i < model.n && p.best[f].place.part; i++)
            if (units[i].kind == UNIT_EXPERTS) apart += p.best[f].place.part[i] != (p.best[f].place.part[i - 1] ? units[i].n_part : 0), there += p.best[f].place.part[i] > 0;
    CHECK(!apart && there, "together: %d times experts are not where their FFN is, %d times they are on the device", apart, there);
    plan_close(&p);
    q.together = false;
    Pin pin[512] = {0};
    q.pin = pin;
    const int experts = 2 + 3 * 7, head = model.n - 1; // of layer 7
    pin[experts] = PIN_DEVICE;
    pin[head] = PIN_HOST;
    pin[0] = PIN_HOST;
    CHECK(plan_make(&p, &model, &m, &q, &e), "pins: %s", e.text);
    for (int f = 0; f < N_FAMILY; f++) {
        const int *part = p.best[f].place.part;
        if (part) CHECK(part[experts] == 128 && part[head] == 0 && part[0] == 0, "pins are not kept by %s", FAMILY_NAMES[f]);
    }
    CHECK(strstr(plan_reason(&p, &p.best[p.chosen], head), "override"), "reason of a pinned head: %s", plan_reason(&p, &p.best[p.chosen], head));
    plan_close(&p);
    q.vram = 5e8;
    CHECK(!plan_make(&p, &model, &m, &q, &e) && strstr(e.text, "does not fit into 0.50 GB"), "pinned experts fit into nothing: %s", e.text);
    q.vram = 11.8e9, q.gpu_layers = 10;
    CHECK(!plan_make(&p, &model, &m, &q, &e) && strstr(e.text, "experts of layer 7 shall be on the GPU, -ngl 10"), "a pin beyond -ngl: %s", e.text);
    make_shared();
    memset(pin, 0, sizeof pin);
    q.gpu_layers = LAYERS_AUTO;
    pin[0] = PIN_DEVICE;
    CHECK(!plan_make(&p, &model, &m, &q, &e) && strstr(e.text, "per-layer table"), "a table pinned to the device: %s", e.text);
    memset(pin, 0, sizeof pin);
    for (int i = 0; i < model.n; i++)
        if (units[i].kind == UNIT_ATTENTION && units[i].layer == 20) pin[i] = PIN_HOST; // takes all that share its KV along
    CHECK(plan_make(&p, &model, &m, &q, &e), "shared KV: %s", e.text);
    check_candidate(&p, &p.best[p.chosen], "shared KV, one pinned");
    plan_close(&p);
}

// ---- the simulator ----

static void check_events(const Timeline *t, const char *what) {
    double at[N_LANE] = {0}, busy[N_LANE] = {0}, end = 0;
    bool overlap = false;
    for (int i = 0; i < t->n; i++) {
        const Event *v = &t->event[i];
        overlap |= v->start < at[v->lane] - 1e-12 || v->end < v->start;
        at[v->lane] = v->end;
        if (v->kind != EVENT_WAIT) busy[v->lane] += v->end - v->start;
        end = fmax(end, v->end);
    }
    CHECK(!overlap, "%s: a lane does two things at once", what);
    CHECK(fabs(end - t->end) < 1e-12, "%s: ends at %g, the last event at %g", what, t->end, end);
    for (int l = 0; l < N_LANE; l++) {
        double kinds = 0;
        for (int k = 0; k < N_EVENT_KIND; k++)
            if (k != EVENT_WAIT) kinds += t->by_kind[l][k];
        CHECK(fabs(busy[l] - t->busy[l]) < 1e-9 && fabs(kinds - busy[l]) < 1e-9, "%s: lane %s is busy %g, its events %g", what, LANE_NAMES[l], t->busy[l], busy[l]);
    }
}

// spec/performance.md, 2.1: t = bytes_GPU/(eG BG) + bytes_CPU/(eC BC) + launches + n_cross tS + t_sample
static void test_serial(void) {
    make_dense();
    const Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    for (int from = 0; from <= 32; from += 8) { // layers from here on are on the device
        int part[512] = {0};
        double gpu = 0, cpu = 0, launches = 0;
        for (int i = 1; i < model.n; i++) {
            part[i] = units[i].layer >= from;
            *(part[i] ? &gpu : &cpu) += units[i].read[TYPE_Q4_K] + units[i].kv_row * 1025;
            launches += units[i].n_launch * (part[i] ? 1.5e-6 : 0.8e-6);
        }
        const double t = gpu / (0.85 * 360e9) + cpu / 40e9 + launches + (from > 0 ? 15e-6 + 15e-6 : 25e-6); // what is handed over is started by that
        Timeline line = {.record = true};
        timeline_token(&line, &model, &(Placement){.part = part}, &m, 1024);
        CHECK(fabs(line.end - t) < 1e-9, "%d layers on the host: %.9g s, expected %.9g", from, line.end, t);
        check_events(&line, "serial");
        timeline_close(&line);
    }
}

static void test_both_sides(void) {
    make_moe();
    const Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    int part[512];
    for (int here = 0; here <= 128; here += 16) {
        for (int i = 0; i < model.n; i++) part[i] = units[i].kind == UNIT_EXPERTS ? here : units[i].n_part;
        Timeline once = {.record = true}, one = {.record = true}, prompt = {.record = true}, streamed = {.record = true};
        timeline_token(&once, &model, &(Placement){.part = part, .concurrent = true}, &m, 1024);
        timeline_token(&one, &model, &(Placement){.part = part}, &m, 1024);
        timeline_prompt(&prompt, &model, &(Placement){.part = part, .concurrent = true}, &m, 1024);
        timeline_prompt(&streamed, &model, &(Placement){.part = part, .concurrent = true, .ring = 1e9}, &m, 1024);
        check_events(&once, "both sides at once");
        check_events(&one, "one side after the other");
        check_events(&prompt, "a prompt");
        check_events(&streamed, "a prompt, streamed");
        CHECK(once.end <= one.end + 1e-12, "%d here: at once %g s, one after the other %g", here, once.end, one.end);
        CHECK(once.end >= once.busy[LANE_HOST] && once.end >= once.busy[LANE_DEVICE] - 1e-12, "%d here: shorter than one side is busy", here);
        CHECK(here == 128 || (streamed.busy[LANE_COPY] > 0 && prompt.busy[LANE_COPY] == 0), "%d here: nothing is streamed, or without being asked", here);
        CHECK(streamed.end <= prompt.end * (1 + 1e-9), "%d here: a prompt takes %g s, streamed %g", here, prompt.end, streamed.end);
        // On average the host reads its share of the chosen experts.
        double read = 0;
        for (int i = 0; i < model.n; i++)
            if (units[i].kind == UNIT_EXPERTS) read += units[i].read[TYPE_Q4_K] / 40e9 * (128 - here) / 128;
        const double launches = here == 128 ? 0 : 30 * 5 * 0.8e-6;
        CHECK(fabs(once.by_kind[LANE_HOST][EVENT_EXPERTS] - read) <= launches + 1e-12, "%d here: the host computes experts for %g s, expected %g", here,
              once.by_kind[LANE_HOST][EVENT_EXPERTS], read);
        timeline_close(&once), timeline_close(&one), timeline_close(&prompt), timeline_close(&streamed);
    }
}

// One layer of two experts, one used, one on each side: half the tokens wait for the host.
static void test_chance(void) {
    begin(1, 1024);
    add(UNIT_ATTENTION, 0, 10, 0);
    Unit *ffn = add(UNIT_FFN, 0, 10, 0);
    ffn->router = ffn->read[TYPE_F32] = 2e6;
    ffn->read[TYPE_Q4_K] = 8e6;
    Unit *x = add(UNIT_EXPERTS, 0, 80, 0);
    x->n_part = 2, x->n_used = 1;
    x->read[TYPE_Q4_K] /= 2;
    add(UNIT_HEAD, 1, 1, 0);
    for (int i = 0; i < model.n; i++) units[i].n_launch = 0;
    const Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    int part[] = {1, 1, 1, 1};
    const double e = 40e6 / (0.85 * 360e9), h = 40e6 / 40e9, f = 8e6 / (0.85 * 360e9), r = 2e6 / (0.85 * 360e9);
    const double layer = r + 0.5 * (f + e) + 0.5 * fmax(f, 15e-6 + h + 15e-6);
    const double t = (10e6 + 8192) / (0.85 * 360e9) + layer + 1e6 / (0.85 * 360e9) + 25e-6 + 1.5e-6; // a launch hands over
    Timeline line = {0};
    timeline_token(&line, &model, &(Placement){.part = part, .concurrent = true}, &m, 0);
    const double got = line.end, handed = line.by_kind[LANE_HOST][EVENT_HANDOFF];
    CHECK(fabs(handed - 7.5e-6) < 1e-12, "half the tokens are handed over: %g s, expected 7.5e-6", handed);
    CHECK(fabs(got - t) < 1e-12, "one of two experts on each side: %.9g s, expected %.9g", got, t);
}

static void test_prompt(void) {
    make_dense();
    Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    m.host.rate = 1e11; // so that operations are what counts
    int part[512] = {0};
    Timeline t = {.record = true};
    timeline_prompt(&t, &model, &(Placement){.part = part}, &m, 1000); // passes of 512 and 488
    double flop = 0, head = 0;
    for (int i = 1; i < model.n; i++) flop += units[i].flop * 1000 + units[i].see_flop * 1000 * 1001 / 2, head += units[i].late_flop;
    const double least = units[model.n - 1].read[TYPE_Q4_K] / 40e9; // the head: one row reads more than it computes
    const double want = flop / 1e11 + fmax(head / 1e11, least), launches = 2 * model.n * 5 * 0.8e-6;
    CHECK(t.end >= want && t.end <= want + launches, "a prompt of 1000: %g s, expected %g and at most %g of launches", t.end, want, launches);
    check_events(&t, "a prompt on the CPU");
    timeline_close(&t);
    for (int window = 1; window <= 1500; window += 300) { // positions that 1000 rows see, one by one
        double sees = 0;
        for (int i = 0; i < 1000; i++) sees += i + 1 < window ? i + 1 : window;
        Timeline w = {0};
        for (int i = 1; i < model.n; i++) units[i].window = window;
        timeline_prompt(&w, &model, &(Placement){.part = part}, &m, 1000);
        double narrow = fmax(head / 1e11, least);
        for (int i = 1; i < model.n; i++) narrow += (units[i].flop * 1000 + units[i].see_flop * sees) / 1e11;
        CHECK(w.end >= narrow && w.end <= narrow + launches, "window %d: %g s, expected %g", window, w.end, narrow);
    }
    make_shared(); // of the later layers only the last token is computed
    for (int i = 0; i < model.n; i++)
        if (units[i].late) units[i].late_flop = units[i].flop, units[i].flop = 0;
    timeline_prompt(&t, &model, &(Placement){.part = part}, &m, 512);
    const double late = t.end;
    Timeline all = {0};
    for (int i = 0; i < model.n; i++)
        if (units[i].late) units[i].flop = units[i].late_flop, units[i].late_flop = 0, units[i].late = false;
    timeline_prompt(&all, &model, &(Placement){.part = part}, &m, 512);
    CHECK(late < 0.5 * all.end, "layers that only the last token passes: %g s of %g", late, all.end);
    timeline_close(&t);
}

// One layer's attention on the host, the stream on the device: what comes for a pass, and what that takes (timeline.h).
static void test_attention_streamed(void) {
    begin(2, 4096);
    add(UNIT_ATTENTION, 0, 10, 0);
    add(UNIT_FFN, 0, 10, 0);
    Unit *a = add(UNIT_ATTENTION, 1, 100, 33);
    a->kv_new = 2048;
    add(UNIT_FFN, 1, 10, 0)->late = true;
    add(UNIT_HEAD, 2, 1, 0);
    for (int i = 0; i < model.n; i++) units[i].n_launch = 0;
    const Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    int part[] = {1, 1, 0, 1, 1};
    const double link = 22e9, keys = 512 * 8192.0, down = 2 * 15e-6 + 512 * 2048 * 4.0 * (1 / 22e9 + 1 / 6.5e9 - 1 / 22e9);
    const double scores = 16384.0 * 512 * 513 / 2 / 20e12, products = a->flop * 512 / 20e12, want = fmax(100e6 / link, products) + down + keys / link + scores;
    for (int k = 0; k < 3; k++) { // a ring with room, one without, and none
        Timeline t = {.record = true};
        timeline_prompt(&t, &model, &(Placement){.part = part, .ring = k == 0 ? keys : k == 1 ? keys - 1 : 0}, &m, 512);
        double first = 1e9, last = 0;
        for (int i = 0; i < t.n; i++)
            if (t.event[i].layer == 1 && t.event[i].kind != EVENT_FFN) first = fmin(first, t.event[i].start), last = fmax(last, t.event[i].end);
        if (k == 0) CHECK(t.busy[LANE_HOST] == 0 && fabs((last - first) / want - 1) < 1e-9, "attention that comes takes %g s, expected %g; the host is busy %g s", last - first, want, t.busy[LANE_HOST]);
        else CHECK(t.busy[LANE_COPY] == 0 && t.by_kind[LANE_HOST][EVENT_ATTENTION] > 10 * want, "attention comes through a ring of %s", k == 1 ? "too few bytes" : "none");
        check_events(&t, "attention of the host");
        timeline_close(&t);
    }
    a->window = 100; // of the keys before the pass the window is there
    Timeline t = {0};
    timeline_prompt(&t, &model, &(Placement){.part = part, .ring = (99 + 512) * 8192.0}, &m, 1024);
    CHECK(t.busy[LANE_HOST] == 0, "keys of a window and a pass do not come through a ring for them: the host is busy %g s", t.busy[LANE_HOST]);
}

static int count(const char *text, const char *part) {
    int n = 0;
    while ((text = strstr(text, part))) text++, n++;
    return n;
}

static void test_svg(void) {
    make_moe();
    const Machine m = machine_of("rtx3060-12g", "ddr4-3200");
    int part[512];
    for (int i = 0; i < model.n; i++) part[i] = units[i].kind == UNIT_EXPERTS ? 64 : units[i].n_part;
    Timeline t[2] = {{.record = true}, {.record = true}};
    timeline_token(&t[0], &model, &(Placement){.part = part, .concurrent = true}, &m, 1024);
    timeline_prompt(&t[1], &model, &(Placement){.part = part, .concurrent = true, .ring = 1e9}, &m, 1024);
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    timeline_svg(f, t, (const char *const[]){"a <model> & its token", "prompt"}, 2);
    fclose(f);
    CHECK(count(text, "<rect ") == t[0].n + t[1].n + N_EVENT_KIND + 1, "%d rectangles for %d events", count(text, "<rect "), t[0].n + t[1].n);
    CHECK(count(text, "<title>") == count(text, "</title>") && count(text, "<text ") == count(text, "</text>") && strstr(text, "</svg>\n"), "the drawing is not closed");
    CHECK(strstr(text, "a &lt;model> &amp; its token") || strstr(text, "a &lt;model&gt; &amp; its token"), "names are not escaped");
    CHECK(!strstr(text, "nan") && !strstr(text, "inf"), "the drawing holds no number");
    free(text);
    timeline_close(&t[0]);
    timeline_close(&t[1]);
}

static void test_machines(void) {
    CHECK(machine_gpu("rtx3060-12g") && !machine_gpu("rtx3060") && machine_host("ddr4-3200") && !machine_host("this"), "names of machines");
    CHECK(machine_gpu_like("NVIDIA GeForce RTX 3060, sm_86") == machine_gpu("rtx3060-12g") && !machine_gpu_like("emulated") &&
              !machine_gpu_like("NVIDIA GeForce RTX 3060 Ti, sm_86"), "a driver's name");
    CHECK(strstr(machine_names(true), "rtx3090, ") && strstr(machine_names(false), "ddr5-5600"), "the list of names: %s", machine_names(true));
    double bytes[TYPE_COUNT] = {[TYPE_Q4_K] = 40e9, [TYPE_F32] = 20e9};
    CHECK(fabs(machine_read_seconds(machine_host("ddr4-3200"), bytes) - 1.5) < 1e-9, "60 GB at 40 GB/s");
    Machine k = machine_of("rtx3060-12g", "ddr4-3200"); // how prompts' weights come: the slower of filling slots and the link, or from pinned pages
    CHECK(machine_stream_bandwidth(&k) == fmin(22e9, machine_fill(&k.host)) && machine_fill(&k.host) > 20e9, "slots: %g bytes/s", machine_stream_bandwidth(&k));
    k.host.bandwidth /= 2;
    CHECK(fabs(machine_stream_bandwidth(&k) - 11e9) < 1e7, "slots of a slow host: %g bytes/s", machine_stream_bandwidth(&k));
    k.host.fill = 9e9;
    CHECK(machine_stream_bandwidth(&k) == 9e9, "slots, measured: %g bytes/s", machine_stream_bandwidth(&k));
    k.gpu.up_mapped = 21e9;
    CHECK(machine_stream_bandwidth(&k) == 21e9, "pinned pages: %g bytes/s", machine_stream_bandwidth(&k));
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_machines();
    test_serial();
    test_chance();
    test_both_sides();
    test_prompt();
    test_attention_streamed();
    test_svg();
    test_budgets(make_moe, "experts", "rtx3060-12g", "ddr4-3200");
    test_budgets(make_moe, "experts", "h200", "ddr5-5600");
    test_budgets(make_shared, "shared KV", "rtx3060-12g", "ddr4-3200");
    test_budgets(make_dense, "dense", "rtx3090", "ddr5-5600");
    test_bounds(make_moe, "experts");
    test_bounds(make_shared, "shared KV");
    test_wishes();
    return test_end();
}
