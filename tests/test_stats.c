// test_stats.c: the statistics against values worked out elsewhere, question files, markers, prompt files and their split.
#include <math.h>

#include "behaviour.h"
#include "prompts.h"
#include "questions.h"
#include "stats.h"
#include "test.h"

static bool near(double a, double b, double tolerance) { return fabs(a - b) <= tolerance; }

static void test_intervals(void) {
    // Wilson 95 %: Brown, Cai, DasGupta 2001 give the formula; values by hand
    Interval i = wilson(0, 100);
    CHECK(i.low == 0 && near(i.high, 0.036995, 1e-5), "0 of 100: %.6f .. %.6f", i.low, i.high);
    i = wilson(5, 10);
    CHECK(near(i.low, 0.236593, 1e-5) && near(i.high, 0.763407, 1e-5), "5 of 10: %.6f .. %.6f", i.low, i.high);
    i = wilson(100, 100);
    CHECK(near(i.low, 0.963005, 1e-5) && i.high == 1, "100 of 100: %.6f .. %.6f", i.low, i.high);
    i = wilson(0, 0);
    CHECK(i.low == 0 && i.high == 1, "nothing is known");

    double x[200];
    Rng r = rng_seed(5, 0);
    for (int k = 0; k < 200; k++) x[k] = 3 + rng_normal(&r);
    const double mean = mean_of(x, 200);
    i = bootstrap(x, 200, 1);
    CHECK(i.low < mean && mean < i.high && near(i.high - i.low, 2 * 1.96 / sqrt(200), 0.06), "bootstrap %.3f .. %.3f around %.3f", i.low, i.high, mean);
    const Interval again = bootstrap(x, 200, 1), other = bootstrap(x, 200, 2);
    CHECK(again.low == i.low && again.high == i.high && (other.low != i.low || other.high != i.high), "the seed decides");
    CHECK(near(mean, 3, 0.25), "normal numbers have mean %.3f", mean);

    const double v[] = {4, 1, 3, 2};
    CHECK(quantile_of(v, 4, 0.5) == 2.5 && quantile_of(v, 4, 0) == 1 && quantile_of(v, 4, 1) == 4 && near(quantile_of(v, 4, 0.95), 3.85, 1e-12), "quantiles");
    CHECK(isnan(quantile_of(v, 0, 0.5)) && isnan(mean_of(v, 0)), "of nothing");
}

static void test_larger(void) {
    const double a[] = {1, 2, 3, 4, 5}, b[] = {6, 7, 8, 9, 10}, same[] = {2, 2, 2, 2, 2};
    Larger l = larger(b, 5, a, 5);
    CHECK(l.auc == 1 && near(l.p, 0.006093, 1e-5), "all above: auc %.3f p %.6f", l.auc, l.p); // U = 25: z = 12 / 4.7871
    l = larger(a, 5, b, 5);
    CHECK(l.auc == 0 && l.p > 0.99, "all below: auc %.3f p %.6f", l.auc, l.p);
    l = larger(same, 5, same, 5);
    CHECK(l.auc == 0.5 && l.p == 1, "no difference at all: auc %.3f p %.6f", l.auc, l.p);
    // of 2000 comparisons of equal distributions about 1 % are below 0.01
    Rng r = rng_seed(1, 1);
    int low = 0;
    for (int t = 0; t < 2000; t++) {
        double x[32], y[32];
        for (int k = 0; k < 32; k++) x[k] = rng_normal(&r), y[k] = rng_normal(&r);
        low += larger(x, 32, y, 32).p < 0.01;
    }
    CHECK(low > 5 && low < 45, "%d of 2000 below 0.01", low);
}

static void test_random(void) {
    Rng a = rng_seed(1, 0), b = rng_seed(1, 1), c = rng_seed(1, 0);
    CHECK(rng_next(&a) == rng_next(&c) && rng_next(&a) != rng_next(&b), "streams");
    int v[100], seen[100] = {0}, moved = 0;
    for (int i = 0; i < 100; i++) v[i] = i;
    rng_shuffle(&a, v, 100);
    for (int i = 0; i < 100; i++) seen[v[i]]++, moved += v[i] != i;
    for (int i = 0; i < 100; i++) CHECK(seen[i] == 1, "%d is there %d times", i, seen[i]);
    CHECK(moved > 80, "only %d moved", moved);
}

static void test_kl(void) {
    const float p[] = {0, 1, 2}, q[] = {2, 1, 0}, masked[] = {-INFINITY, 1, 2}, bad[] = {NAN, 0, 0};
    const double z = 1 + exp(1) + exp(2), by_hand = (exp(2) * 2 - 2) / z; // sum p (log p - log q) = (e^2 (2 - 0) + 1 (0 - 2)) / z
    CHECK(kl_divergence(p, p, 3) == 0, "a distribution and itself");
    CHECK(near(kl_divergence(p, q, 3), by_hand, 1e-12), "%.12f, expected %.12f", kl_divergence(p, q, 3), by_hand);
    const float shifted[] = {100, 101, 102};
    CHECK(near(kl_divergence(p, shifted, 3), 0, 1e-12), "a shift of all logits is none");
    CHECK(isfinite(kl_divergence(masked, p, 3)) && isfinite(kl_divergence(p, masked, 3)), "a token ruled out");
    CHECK(isnan(kl_divergence(bad, p, 3)) && isnan(kl_divergence(p, bad, 3)), "NaN stays visible");
    CHECK(arg_max(p, 3) == 2 && arg_max(q, 3) == 0 && near(log_sum_exp(p, 3), log(z), 1e-12), "log-sum-exp");
}

static bool parse(const char *text, Questions *q, char message[512]) {
    Err e = {0};
    const bool ok = questions_parse(q, "q.csv", strdup(text), &e);
    snprintf(message, 512, "%s", e.text);
    return ok;
}

static void test_questions(void) {
    char m[512];
    Questions q;
    CHECK(parse("What is 1+1?,1,2,3,4,B\n\"Say \"\"hi\"\", or\nbye\",\"a, b\",c,d,,d\r\n", &q, m) && q.n == 2, "%s", m);
    CHECK(q.q[0].answer == 1 && !strcmp(q.q[0].text, "What is 1+1?") && !strcmp(q.q[0].choice[3], "4"), "the first");
    CHECK(q.q[1].answer == 3 && !strcmp(q.q[1].text, "Say \"hi\", or\nbye") && !strcmp(q.q[1].choice[0], "a, b") && !*q.q[1].choice[3], "quotes, a newline, an empty field");
    questions_free(&q);
    CHECK(parse("question,A,B,C,D,answer\nq,1,2,3,4,A", &q, m) && q.n == 1 && q.q[0].answer == 0, "a heading, no last newline: %s", m);
    questions_free(&q);
    CHECK(parse("question\tA\tB\tC\tD\tanswer\nx, \"y\"\t1\t2\t3\t4\tC\n\n", &q, m) && q.n == 1 && !strcmp(q.q[0].text, "x, \"y\""), "tabs: %s", m);
    questions_free(&q);
    CHECK(parse("\xEF\xBB\xBFq,1,2,3,4,A\n", &q, m) && q.n == 1 && !strcmp(q.q[0].text, "q"), "a byte order mark: %s", m);
    questions_free(&q);
    static const struct {
        const char *text, *says;
    } BAD[] = {{"", "no question"}, {"question,A,B,C,D,answer\n", "no question"}, {"a,b\n", "2 fields"}, {"q,1,2,3,4,A\nq,1,2,3,4,E\n", "'E'"}, {"q,1,2,3,4,A\nq,1,2,3,4,AB\n", "'AB'"},
               {"\"q,1,2,3,4,A\n", "not closed"}, {"\"q\"x,1,2,3,4,A\n", "closing quote"}, {"q,1,2,3,4,5,A\n", "7 fields"}, {"q,1,2,3,4,A,\n", "7 fields"}};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        CHECK(!parse(BAD[i].text, &q, m) && strstr(m, BAD[i].says), "'%s': %s", BAD[i].text, m);
        questions_free(&q);
    }
    // every cut of a good file is read or refused, never misread beyond its end
    const char *good = "\"a \"\"b\"\"\",1,2,3,4,A\r\nc,\"x\ny\",2,3,4,d\n";
    for (size_t n = 0; n <= strlen(good); n++) {
        char cut[128];
        snprintf(cut, sizeof cut, "%.*s", (int)n, good);
        const bool ok = parse(cut, &q, m);
        CHECK(ok ? q.n > 0 : *m, "cut at %d", (int)n);
        questions_free(&q);
    }
}

static void test_behaviour(void) {
    Markers m;
    Err e = {0};
    CHECK(markers_read(&m, NULL, &e) && m.n > 10, "%s", e.text);
    CHECK(markers_found(&m, "I\xE2\x80\x99m sorry, but no.") && markers_found(&m, "Well, I  CANNOT\nsay") && !markers_found(&m, "Mix rye and salt.") && !markers_found(&m, ""), "markers");
    markers_free(&m);
    CHECK(!markers_read(&m, "/dev/null", &e) && strstr(e.text, "no marker"), "an empty file: %s", e.text);
    markers_free(&m);
    int id[32];
    Ids ids = {.id = id, .n = 32};
    for (int i = 0; i < 32; i++) id[i] = i;
    CHECK(!is_degenerate(&ids, "fine") && is_degenerate(&ids, " \n"), "without text");
    for (int i = 0; i < 32; i++) id[i] = i % 3;
    CHECK(is_degenerate(&ids, "a b c a b c"), "in circles");
    ids.n = 10;
    CHECK(!is_degenerate(&ids, "a b c a b c"), "short answers may repeat");
    CHECK(is_correct("The answer is  Paris.\n", "paris") && !is_correct("Rome", "Paris") && !is_correct("Rome", ""), "expected answers");
}

static char *write_file(const char *text, size_t n) {
    static char path[] = "/tmp/test_stats.txt";
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, n, f) == n && !fclose(f), "cannot write %s", path);
    return path;
}

static void test_prompts(void) {
    PromptFile p, q;
    Err e = {0};
    const char text[] = "one\ttrue answer\r\n\n   \ntwo words\nthree\t\nfour";
    CHECK(prompts_read(&p, write_file(text, sizeof text - 1), 4, &e) && p.n == 4, "%s", e.text);
    CHECK(!strcmp(p.line[0].text, "one") && !strcmp(p.line[0].answer, "true answer") && !p.line[1].answer && !p.line[2].answer && !strcmp(p.line[3].text, "four"), "lines");
    CHECK(prompts_read(&q, write_file("two words\nfive\n", 15), 1, &e) && prompts_shared(&p, &q) == 1 && prompts_shared(&q, &p) == 1, "shared prompts");
    prompts_free(&q);
    CHECK(!prompts_read(&q, write_file("one\n", 4), 2, &e) && strstr(e.text, "1 prompt, expected at least 2"), "%s", e.text);
    prompts_free(&q);
    CHECK(!prompts_read(&q, write_file("a\0b\n", 4), 1, &e) && strstr(e.text, "NUL"), "%s", e.text);
    prompts_free(&q);
    PromptLine lines[200] = {{0}};
    const PromptFile many = {.path = (char *)"many", .line = lines, .n = 200};
    Split s, t;
    CHECK(split_make(&s, &many, 1, 0, -1, -1, 5, &e) && s.n_check == 32 && s.n_train == 168, "%s", e.text);
    int seen[200] = {0};
    for (int i = 0; i < s.n_train + s.n_check; i++) seen[s.order[i]]++;
    for (int i = 0; i < 200; i++) CHECK(seen[i] == 1, "prompt %d is used %d times", i, seen[i]);
    CHECK(split_make(&t, &many, 1, 0, 100, 40, 5, &e) && t.n_train == 100 && t.n_check == 40 && !memcmp(s.order, t.order, sizeof(int) * 200), "the same seed, the same order: %s", e.text);
    split_free(&t);
    CHECK(split_make(&t, &many, 2, 0, -1, -1, 5, &e) && memcmp(s.order, t.order, sizeof(int) * 200), "another seed: %s", e.text);
    split_free(&t);
    CHECK(!split_make(&t, &many, 1, 0, 190, 20, 5, &e) && strstr(e.text, "190"), "%s", e.text);
    split_free(&t);
    split_free(&s);
    prompts_free(&p);
    unlink("/tmp/test_stats.txt");
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_intervals();
    test_larger();
    test_random();
    test_kl();
    test_questions();
    test_behaviour();
    test_prompts();
    return test_end();
}
