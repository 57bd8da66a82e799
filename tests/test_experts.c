// test_experts.c: traces in and out, and bad ones; rules of what a layer's slots hold, against simulations that are as simple as can be and share no
// code with engine/residency.c and keeper.c; made-up traces against their probabilities; the simulator with a trace; the hook of a forward pass.
#include <math.h>

#include "compare.h"
#include "keeper.h"
#include "place.h"
#include "plan.h"
#include "residency.h"
#include "test.h"

static Trace made(int n_layer, int n_expert, int n_used, int n_token, double zipf, double stay, uint64_t seed) {
    Trace t = {.n_layer = n_layer, .n_expert = n_expert, .n_used = n_used};
    Err e;
    for (int l = 0; l < n_layer; l++) t.layer[l] = 2 * l + 1;
    if (!trace_draw(&t, n_token, zipf, stay, seed, &e)) CHECK(false, "%s", e.text);
    return t;
}

// ---- the rules once more ----

static void replay(const Trace *t, int layer, Keep keep, int n_slot, const bool *for_good, double *hits, double *brought, double *away) {
    const int half = t->n_token / 2;
    int last_use[64], n_there = 0;
    bool there[64] = {false};
    for (int i = 0; i < t->n_expert; i++) last_use[i] = -1;
    if (for_good) memcpy(there, for_good, sizeof there);
    *hits = *brought = 0;
    for (int now = 0; now < t->n_token; now++) {
        int missed[64], n_missed = 0;
        for (int u = 0; u < t->n_used; u++) {
            const int id = trace_at(t, now, layer)[u];
            last_use[id] = now;
            if (there[id]) *hits += now >= half;
            else missed[n_missed++] = id;
        }
        if (now >= half) away[n_missed]++;
        for (int i = 0; i < n_missed && keep == KEEP_RECENT; i++) {
            int out = -1;
            if (n_there == n_slot) {
                for (int k = t->n_expert - 1; k >= 0; k--) // the lowest of equals
                    if (there[k] && last_use[k] != now && (out < 0 || last_use[k] <= last_use[out])) out = k;
                if (out < 0) continue;
                there[out] = false;
                n_there--;
            }
            there[missed[i]] = true;
            n_there++;
            *brought += now >= half;
        }
    }
}

// What is worth being there, in all layers: as keeper.h and keeper.c say it, in other words. What is first there is given.
static struct {
    double score[2][64], n[72], uses[72], next[72][72], worth[72];
    int last[2][64], place[2][64], began[2][64]; // place: 0 away, 1 there, 2 coming; began: class when the window began
    uint8_t used[2][64][600];
} plain;

static double usual_rate(const Trace *t) { return (double)t->n_used / t->n_expert; }

static int plain_class(const Trace *t, int l, int id, int now) {
    const int ago = now - plain.last[l][id], steps[] = {0, 1, 3, 7, 15};
    int age = 0, rate = 0;
    while (age < 5 && ago > steps[age]) age++;
    const double all = (1 - pow(0.5, (now + 1) / 256.0)) / (1 - pow(0.5, 1 / 256.0)); // the score of what every token uses
    const double ratio = (plain.score[l][id] + 8 * usual_rate(t)) / (all + 8) / usual_rate(t);
    while (rate < 11 && ratio >= 0.25 * pow(2, 0.5 * rate) * (1 - 1e-6)) rate++;
    return age * 12 + rate;
}

static double plain_worth(const Trace *t, int l, int id, int now) { return plain.worth[plain_class(t, l, id, now)]; }

static void replay_worth(const Trace *t, const bool there[2][64], int most, double *hits, double *brought, double away[2][9]) {
    const double usual = usual_rate(t) * 16;
    memset(&plain, 0, sizeof plain);
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < t->n_expert; i++) plain.place[l][i] = there[l][i], plain.last[l][i] = -100, plain.began[l][i] = -1;
    for (int c = 0; c < 72; c++) plain.worth[c] = 8 * usual;
    *hits = *brought = 0;
    for (int now = 0; now < t->n_token; now++) {
        const bool counts = now >= t->n_token / 2;
        int n_swap = 0;
        for (int l = 0; l < 2; l++) {
            int n_missed = 0;
            for (int i = 0; i < t->n_expert; i++) plain.score[l][i] *= pow(0.5, 1 / 256.0);
            for (int u = 0; u < t->n_used; u++) {
                const int id = trace_at(t, now, l)[u];
                n_missed += plain.place[l][id] != 1;
                plain.score[l][id]++;
                plain.last[l][id] = now;
                plain.used[l][id][now] = 1;
            }
            if (counts) *hits += t->n_used - n_missed, away[l][n_missed]++;
        }
        for (int l = 0; l < 2; l++)
            for (int i = 0; i < t->n_expert; i++) {
                if (plain.place[l][i] == 2) plain.place[l][i] = 1;
                if ((now + l + i) % 16 != 15) continue;
                const int c = plain_class(t, l, i, now), before = plain.began[l][i];
                for (int k = now - 15; k <= now && before >= 0; k++) plain.uses[before] += plain.used[l][i][k];
                if (before >= 0) plain.n[before]++, plain.next[before][c]++;
                plain.began[l][i] = c;
            }
        double worth[72];
        for (int c = 0; c < 72; c++) {
            worth[c] = plain.uses[c] + 16 * (usual + 0.875 * 8 * usual);
            for (int d = 0; d < 72; d++) worth[c] += 0.875 * plain.next[c][d] * plain.worth[d];
            worth[c] /= plain.n[c] + 16;
        }
        memcpy(plain.worth, worth, sizeof worth);
        for (int k = 0; k < 2; k++)
            for (;;) {
                const int l = (now + k) % 2;
                int in = -1, out = -1;
                for (int i = t->n_expert - 1; i >= 0; i--) { // the lowest of equals
                    const double w = plain_worth(t, l, i, now), s = plain.score[l][i];
                    const double wi = in < 0 ? 0 : plain_worth(t, l, in, now), wo = out < 0 ? 0 : plain_worth(t, l, out, now);
                    if (plain.place[l][i] == 0 && plain.last[l][i] == now && (in < 0 || w > wi || (w == wi && s >= plain.score[l][in] - 1e-6))) in = i;
                    if (plain.place[l][i] == 1 && (out < 0 || w < wo || (w == wo && s <= plain.score[l][out] + 1e-6))) out = i;
                }
                if (in < 0 || out < 0 || n_swap == most || plain_worth(t, l, in, now) - plain_worth(t, l, out, now) <= 1.5) break;
                plain.place[l][in] = 2;
                plain.place[l][out] = 0;
                n_swap++;
            }
        if (counts) *brought += n_swap;
    }
}

// What is hottest in the first half, lower numbers first.
static void hottest(const Trace *t, int layer, int n_slot, bool *there) {
    int n[64] = {0};
    for (int i = 0; i < t->n_token / 2; i++)
        for (int u = 0; u < t->n_used; u++) n[trace_at(t, i, layer)[u]]++;
    memset(there, 0, 64);
    for (int k = 0; k < n_slot; k++) {
        int best = -1;
        for (int i = 0; i < t->n_expert; i++)
            if (!there[i] && (best < 0 || n[i] > n[best])) best = i;
        there[best] = true;
    }
}

static void test_order(const Trace *t) {
    for (int l = 0; l < t->n_layer; l++) {
        uint16_t order[64];
        int n[64] = {0};
        uint64_t seen = 0;
        residency_order(t, l, order);
        for (int i = 0; i < t->n_token; i++)
            for (int u = 0; u < t->n_used; u++) n[trace_at(t, i, l)[u]]++;
        for (int i = 0; i < t->n_expert; i++) {
            seen |= (uint64_t)1 << order[i];
            const int a = i ? order[i - 1] : -1, b = order[i];
            CHECK(a < 0 || n[a] > n[b] || (n[a] == n[b] && a < b), "layer %d: expert %d, %d times, before %d, %d times", l, a, n[a], b, n[b]);
        }
        CHECK(seen == ((uint64_t)1 << t->n_expert) - 1, "layer %d: not every expert once", l);
    }
}

static void test_rules(void) {
    static const struct { double zipf, stay; } kinds[] = {{0, 0}, {0.8, 0.3}, {0, 0.9}, {1.5, 0.6}};
    for (int kind = 0; kind < 4; kind++)
        for (int n_used = 1; n_used <= 8; n_used += 7) {
            Trace t = made(2, 32, n_used, 600, kinds[kind].zipf, kinds[kind].stay, 5);
            const int slots[] = {0, 1, 4, 8, 16, 31, 32};
            for (int s = 0; s < 7; s++)
                for (int keep = KEEP_HOTTEST; keep < KEEP_WORTH; keep++) {
                    Kept k;
                    Err e;
                    double hits = 0, brought = 0, away[2][9] = {{0}};
                    for (int l = 0; l < 2; l++) {
                        bool there[64];
                        double h, b;
                        hottest(&t, l, slots[s], there);
                        replay(&t, l, (Keep)keep, slots[s], keep == KEEP_HOTTEST ? there : NULL, &h, &b, away[l]);
                        hits += h, brought += b;
                    }
                    if (!residency_replay(&k, &t, (Keep)keep, slots[s], 0, &e)) CHECK(false, "%s", e.text);
                    const double hit = hits / (300.0 * n_used * 2), up = brought / 300;
                    bool same = true;
                    for (int l = 0; l < 2; l++) {
                        double at_once[33 * 9];
                        residency_hottest(&t, l, at_once);
                        for (int i = 0; i <= n_used; i++) same &= keep != KEEP_HOTTEST || fabs(at_once[slots[s] * (n_used + 1) + i] - away[l][i] / 300) < 1e-9;
                    }
                    for (int l = 0; l < 2; l++)
                        for (int i = 0; i <= n_used; i++) same &= fabs(k.away[l * (n_used + 1) + i] - away[l][i] / 300) < 1e-9;
                    CHECK(fabs(k.hit - hit) < 1e-9 && fabs(k.uploads - up) < 1e-9 && same, "%s, zipf %g, stay %g, %d used, %d slots: hits %.4f, brought %.4f, expected %.4f, %.4f",
                          KEEP_NAMES[keep], kinds[kind].zipf, kinds[kind].stay, n_used, slots[s], k.hit, k.uploads, hit, up);
                    CHECK(slots[s] < 32 || keep >= KEEP_RECENT || fabs(k.hit - 1) < 1e-9, "%s: all slots, hits %g", KEEP_NAMES[keep], k.hit);
                    CHECK(slots[s] > 0 || (k.hit == 0 && k.uploads == 0), "%s: no slots, hits %g, brought %g", KEEP_NAMES[keep], k.hit, k.uploads);
                    residency_close(&k);
                }
            test_order(&t);
            trace_close(&t);
        }
}

// The rule that runs: keeper.c, and residency_replay with the same experts there first.
static void test_worth(void) {
    static const struct { double zipf, stay; } kinds[] = {{0, 0}, {0.8, 0.3}, {0, 0.9}, {1.5, 0.6}};
    for (int kind = 0; kind < 4; kind++)
        for (int n_used = 1; n_used <= 8; n_used += 7)
            for (int most = 1; most <= 64; most += 63)
                for (int n_slot = 0; n_slot <= 32; n_slot += 8) {
                    Trace t = made(2, 32, n_used, 600, kinds[kind].zipf, kinds[kind].stay, 7);
                    Keeper keeper;
                    Err e;
                    bool there[2][64] = {{false}};
                    double hits, brought, away[2][9] = {{0}}, n_here = 0, n_brought = 0;
                    for (int l = 0; l < 2; l++)
                        for (int i = 0; i < n_slot; i++) there[l][(i * 5 + l) % 32] = true;
                    replay_worth(&t, there, most, &hits, &brought, away);
                    if (!keeper_open(&keeper, 2, 32, n_used, most, &e)) CHECK(false, "%s", e.text);
                    for (int l = 0; l < 2; l++)
                        for (int i = 0; i < 32; i++) keeper_known(&keeper, l, i)->place = there[l][i] ? EXPERT_HERE : EXPERT_AWAY;
                    for (int i = 0; i < 600; i++) {
                        int n[2];
                        for (int l = 0; l < 2; l++) n[l] = keeper_saw(&keeper, l, trace_at(&t, i, l), n_used);
                        const int n_swap = keeper_step(&keeper);
                        CHECK(n_swap <= most, "%d brought, at most %d may be", n_swap, most);
                        if (i >= 300) n_here += n[0] + n[1], n_brought += n_swap;
                    }
                    CHECK(fabs(n_here - hits) <= 0.002 * hits && fabs(n_brought - brought) <= 1 + 0.01 * brought, // a score that is next to a limit
                          "zipf %g, stay %g, %d used, %d slots, at most %d: hits %g, brought %g, expected %g, %g", kinds[kind].zipf, kinds[kind].stay, n_used, n_slot, most,
                          n_here, n_brought, hits, brought);
                    CHECK(kind > 0 || n_brought == 0, "%g brought where routers choose by chance", n_brought);
                    CHECK(kind != 2 || n_slot % 32 == 0 || n_brought > 0, "nothing is brought where choices are repeated");
                    keeper_close(&keeper);
                    trace_close(&t);
                }
    CHECK(keeper_most(0.016, 12e9, 4e6) == 24 && keeper_most(0.016, 12e9, 1e9) == 0 && keeper_most(1e9, 1e12, 1) == 1000000, "experts that a token may bring: %d",
          keeper_most(0.016, 12e9, 4e6));
}

// ---- made-up traces against what they are made by ----

// One expert is used and none stays: choices are independent, so the hottest S catch the sum of the S largest probabilities, any S S/N, and the
// frequent ones come near the hottest; where most stay, what was used last catches most.
static void test_drawn(void) {
    enum { N = 64, S = 8, TOKENS = 4000 };
    double sum = 0, top = 0;
    for (int i = 0; i < N; i++) sum += 1.0 / (i + 1), top += i < S ? 1.0 / (i + 1) : 0;
    double hit[N_KEEP];
    Err e;
    for (int stay = 0; stay < 2; stay++) {
        Trace t = made(8, N, 1, TOKENS, stay ? 0 : 1, stay ? 0.9 : 0, 3);
        for (int keep = 0; keep < N_KEEP; keep++) {
            Kept k;
            if (!residency_replay(&k, &t, (Keep)keep, S, 100, &e)) CHECK(false, "%s", e.text);
            hit[keep] = k.hit;
            residency_close(&k);
        }
        const ExpertUse use = trace_use(&t);
        if (stay) { // 0.9 stay, and of the others S / N are there by chance
            CHECK(fabs(hit[KEEP_RECENT] - (0.9 + 0.1 * S / N)) < 0.01, "LRU, 0.9 stay: %.3f", hit[KEEP_RECENT]);
            CHECK(fabs(use.again - (0.9 + 0.1 / N)) < 0.01 && use.effective > 0.8 * N, "0.9 stay: %.3f again, as %.1f", use.again, use.effective);
        } else { // of 16,000 choices: six standard deviations of 0.004, and 8 layers' sets of any
            CHECK(fabs(hit[KEEP_HOTTEST] - top / sum) < 0.024, "hottest, Zipf: %.3f, expected %.3f", hit[KEEP_HOTTEST], top / sum);
            CHECK(fabs(hit[KEEP_RANDOM] - (double)S / N) < 0.15, "random, Zipf: %.3f, expected %.3f", hit[KEEP_RANDOM], (double)S / N);
            CHECK(hit[KEEP_WORTH] > 0.95 * top / sum, "worth, Zipf: %.3f, expected nearly %.3f", hit[KEEP_WORTH], top / sum);
            CHECK(hit[KEEP_RECENT] < hit[KEEP_HOTTEST], "LRU, Zipf: %.3f", hit[KEEP_RECENT]);
            double entropy = 0;
            for (int i = 0; i < N; i++) entropy -= 1 / (i + 1.0) / sum * log(1 / (i + 1.0) / sum);
            CHECK(fabs(use.effective / exp(entropy) - 1) < 0.03, "Zipf: as uneven as %.2f experts, expected %.2f", use.effective, exp(entropy));
        }
        trace_close(&t);
    }
    // So uneven that some are drawn once in 10^9 times: it ends all the same, with as many different ones.
    Trace t = made(1, N, S, 20, 10, 0, 3);
    for (int i = 0; i < t.n_token; i++) {
        uint64_t seen = 0;
        for (int u = 0; u < S; u++) seen |= (uint64_t)1 << trace_at(&t, i, 0)[u];
        CHECK(__builtin_popcountll(seen) == S, "Zipf 10: token %d chooses %d experts, expected %d", i, __builtin_popcountll(seen), S);
    }
    trace_close(&t);
}

// ---- files ----

static char path[64];

static bool load_text(const char *text, Trace *t, Err *e) {
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) CHECK(false, "cannot write %s", path);
    return trace_load(t, path, e);
}

static void test_files(void) {
    Trace t = made(3, 16, 4, 50, 1, 0.5, 9), back;
    Err e;
    t.n_prompt = 20;
    t.random = true;
    snprintf(t.model, sizeof t.model, "a model");
    snprintf(path, sizeof path, "/tmp/test_experts.%ld", (long)getpid());
    if (!trace_save(&t, path, &e) || !trace_load(&back, path, &e)) CHECK(false, "%s", e.text);
    else {
        CHECK(back.n_layer == 3 && back.n_expert == 16 && back.n_used == 4 && back.n_token == 50 && back.n_prompt == 20 && back.random && !strcmp(back.model, "a model") &&
              back.layer[2] == 5 && !memcmp(back.id, t.id, sizeof *t.id * 50 * 3 * 4), "a trace comes back as it was");
        trace_close(&back);
    }
    trace_close(&t);
#define HEAD "abliterate experts 1\nexperts 4\nused 2\n"
    static const struct { const char *text, *says; } bad[] = {
        {"", "0 tokens"}, {"abliterate experts 2\n", "line 1"}, {"\n", "line 1"}, {HEAD, "0 tokens"}, {HEAD "0 0 1 2", "line 4: too long"}, {HEAD "0 0 1 2\n", "1 tokens"},
        {"abliterate experts 1\n0 0 1 2\n", "line 2: before it"}, {"abliterate experts 1\nexperts 600\n", "line 2: a number"}, {"abliterate experts 1\nexperts 4x\n", "line 2: a number"},
        {"abliterate experts 1\nexperts 4\nused 5\n0 0 1 2 3 4 5\n", "line 4: before it"}, {HEAD "colour red\n", "line 4: expected model"}, {HEAD "0 0 1\n", "line 4: an expert is missing"},
        {HEAD "0 0 1 1\n", "line 4: an expert is there twice"}, {HEAD "0 0 1 4\n", "line 4: an expert is missing"}, {HEAD "0 0 1 2 3\n", "line 4: more experts"},
        {HEAD "0 0 -1 2\n", "line 4: an expert is missing"}, {HEAD "1 0 1 2\n", "line 4: tokens or layers"}, {HEAD "0 1 1 2\n0 0 1 2\n", "line 5: layers are not"},
        {HEAD "0 0 1 2\n2 0 1 2\n", "line 5: tokens or layers"}, {HEAD "0 0 1 2\n1 1 1 2\n", "line 5: other layers"}, {HEAD "0 0 1 2\n0 1 1 2\n1 0 1 2\n", "within token 1"},
        {HEAD "0 512 1 2\n", "line 4: expected a token"}, {HEAD "0 0 1 2\nused 3\n", "line 5: a key after"}, {HEAD "prompt 9\n0 0 1 2\n1 0 1 2\n", "9 of the prompt"},
        {HEAD "0 0 1 2\n1 0 99999999999999999999 2\n", "line 5: an expert"},
    };
    for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++) {
        const bool ok = load_text(bad[i].text, &back, &e);
        CHECK(!ok && strstr(e.text, bad[i].says), "bad trace %d: %s, expected '%s'", i, ok ? "taken" : e.text, bad[i].says);
        if (ok) trace_close(&back);
    }
    char cut[400];
    snprintf(cut, sizeof cut, "%s", HEAD "model m\nprompt 1\n0 0 1 2\n0 3 0 3\n1 0 2 1\n1 3 3 0\n");
    const size_t n = strlen(cut);
    for (size_t i = 0; i < n; i++) { // every beginning of a file is one token short, or cut within a line
        char part[400] = {0};
        memcpy(part, cut, i);
        const bool ok = load_text(part, &back, &e);
        CHECK(!ok, "cut after %zu bytes: taken", i);
        if (ok) trace_close(&back);
    }
    CHECK(load_text(cut, &back, &e), "whole: %s", e.text);
    trace_close(&back);
    unlink(path);
    CHECK(!trace_load(&back, "/nonexistent/trace", &e) && strstr(e.text, "No such file"), "no file: %s", e.text);
}

// ---- the simulator ----

// One layer; the trace's distribution that chance has gives what chance gives, all hits is all on the device, and uploads cost the host their bytes.
static void test_timeline(void) {
    Unit unit[4] = {{.kind = UNIT_ATTENTION, .n_part = 1, .n_used = 1, .n_launch = 5}, {.kind = UNIT_FFN, .n_part = 1, .n_used = 1, .n_launch = 8},
                    {.kind = UNIT_EXPERTS, .n_part = 8, .n_used = 2, .n_launch = 4, .bytes = 8 << 20}, {.kind = UNIT_HEAD, .layer = 1, .n_part = 1, .n_used = 1, .n_launch = 3}};
    unit[2].read[TYPE_Q4_K] = 2 << 20;
    const PlanUnits u = {.unit = unit, .n = 4, .n_layer = 1, .n_embd = 64, .chunk = 512};
    const Machine m = {*machine_gpu("rtx3060-12g"), *machine_host("ddr4-3200")};
    int part[4] = {1, 1, 4, 1};
    const double chance[3] = {6.0 / 28, 16.0 / 28, 6.0 / 28}, hits[3] = {1, 0, 0}, misses[3] = {0, 0, 1}; // 4 of 8 are there, 2 are used
    Residency r[4] = {{0}};
    double end[5];
    for (int i = 0; i < 5; i++) {
        Timeline t = {0};
        r[2] = (Residency){i == 1 ? chance : i == 2 ? hits : misses, i == 4 ? 1e6 : 0};
        timeline_token(&t, &u, &(Placement){.part = part, .concurrent = true, .residency = i ? r : NULL}, &m, 0);
        end[i] = t.end;
    }
    CHECK(fabs(end[1] / end[0] - 1) < 1e-9, "as by chance: %g s, expected %g", end[1], end[0]);
    CHECK(end[2] < end[1] && end[1] < end[3], "hits %g s, chance %g, misses %g", end[2], end[1], end[3]);
    CHECK(fabs(end[4] - end[3] - 1e6 / (m.host.bandwidth * m.host.share)) < 1e-9, "1 MB brought: %g s more, expected %g", end[4] - end[3], 1e6 / (m.host.bandwidth * m.host.share));
    double table[9 * 3] = {[4 * 3] = 0.25, [4 * 3 + 1] = 0.75}; // of the unit's own: what it says of 4 on the device
    Timeline own = {0}, given = {0};
    r[2] = (Residency){table + 4 * 3, 0};
    timeline_token(&given, &u, &(Placement){.part = part, .concurrent = true, .residency = r}, &m, 0);
    unit[2].away = table;
    timeline_token(&own, &u, &(Placement){.part = part, .concurrent = true}, &m, 0);
    unit[2].away = NULL;
    CHECK(fabs(own.end / given.end - 1) < 1e-12 && own.end < end[1], "a trace of the unit: %g s, expected %g, by chance %g", own.end, given.end, end[1]);
    Machine slow = m; // the host's experts at half the speed of its products
    slow.host.experts = 0.5;
    Timeline all[2] = {{0}};
    int none[4] = {0};
    for (int i = 0; i < 2; i++) timeline_token(&all[i], &u, &(Placement){.part = none}, i ? &slow : &m, 0);
    const double read = (2 << 20) / (m.host.bandwidth * m.host.share);
    CHECK(fabs(all[1].end - all[0].end - read) < 1e-9, "experts at half the speed: %g s more, expected %g", all[1].end - all[0].end, read);
    Timeline t = {0};
    r[2] = (Residency){hits, 1e9}; // more than the link can bring in a token
    timeline_token(&t, &u, &(Placement){.part = part, .concurrent = true, .residency = r}, &m, 0);
    CHECK(fabs(t.end - 1e9 / m.gpu.up_pinned) < 1e-9, "1 GB over the link: %g s, expected %g", t.end, 1e9 / m.gpu.up_pinned);
}

// ---- the hook ----

typedef struct {
    int n_call, n_row, n_layer;
    bool bad;
    int ids[8][64][2]; // [layer][row]
} Seen;

static void see(void *ctx, Backend *b, int layer, const int *expert, int n_rows, int n_used) {
    Seen *s = ctx;
    (void)b;
    s->bad |= layer < 0 || layer >= 8 || n_rows > 64 || n_used != 2;
    if (s->bad) return;
    for (int r = 0; r < n_rows; r++)
        for (int u = 0; u < 2; u++) {
            s->ids[layer][s->n_row + r][u] = expert[r * 2 + u];
            s->bad |= expert[r * 2 + u] < 0 || expert[r * 2 + u] >= 4;
        }
    s->n_call++;
    s->n_layer = max_int(s->n_layer, layer + 1);
}

// All at once and one by one choose the same; every layer is called once a pass.
static void test_hook(const char *name, int n_layer) {
    static Seen at_once, one_by_one;
    Model m;
    Err e;
    char file[128];
    const int ids[] = {5, 17, 200, 31, 8, 99, 120, 7};
    snprintf(file, sizeof file, "reference/%s.gguf", name);
    if (!shared_path(file)) {
        test_skip(file);
        return;
    }
    if (!model_open(&m, shared_path(file), &e)) {
        CHECK(false, "%s", e.text);
        return;
    }
    at_once = one_by_one = (Seen){0};
    for (int i = 0; i < 2; i++) {
        Session s = {0};
        Backend b = {0};
        const PlaceOptions o = {.program = "test", .backend = "ref", .session = {.n_ctx = 8, .n_batch = 8, .every_row = true}};
        bool ok = place_open(&s, &b, &m, &o, &e);
        s.on_route = see;
        s.on_route_ctx = i ? &one_by_one : &at_once;
        if (ok && !i) ok = session_eval(&s, ids, 8, &e);
        for (int k = 0; k < 8 && ok && i; k++) {
            one_by_one.n_row = k;
            ok = session_eval(&s, ids + k, 1, &e);
        }
        CHECK(ok, "%s: %s", name, e.text);
        session_close(&s);
        place_close(&b, &m);
    }
    CHECK(at_once.n_call == n_layer && one_by_one.n_call == 8 * n_layer && at_once.n_layer == n_layer, "%s: %d calls, %d one by one, of %d layers", name, at_once.n_call,
          one_by_one.n_call, n_layer);
    CHECK(!at_once.bad && !one_by_one.bad && !memcmp(at_once.ids, one_by_one.ids, sizeof at_once.ids), "%s: at once other experts than one by one", name);
    model_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_rules();
    test_worth();
    test_drawn();
    test_files();
    test_timeline();
    test_hook("llama-moe-Q4_K_M", 3);
    test_hook("gemma4-moe-Q4_K_M", 6);
    return test_end();
}
