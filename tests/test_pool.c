// test_pool.c: every item of a loop runs once, on a thread of the pool, and is done when the loop returns: with threads awake and
// asleep, fewer and many more than processors. And the CPU quota of control groups, read from made-up trees.
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>
#include "base.h"
#include "pool.h"
#include "test.h"

enum { MOST = 1000 };

typedef struct {
    int *count;     // [MOST] how often each item ran: no two threads may have one, so plain ints
    int n_thread;
    atomic_int *bad;
} Counting;

static void count(const void *args, int item, int thread) {
    const Counting *c = args;
    if (item < 0 || item >= MOST || thread < 0 || thread >= c->n_thread) atomic_fetch_add(c->bad, 1);
    else c->count[item]++;
}

static void check_loops(int n_thread) {
    static const int SIZES[] = {0, 1, 2, 3, 17, MOST};
    static int counts[MOST];
    atomic_int bad = 0;
    Pool *p = pool_open(n_thread);
    CHECK(p, "no pool of %d threads", n_thread);
    if (!p) return;
    for (int i = 0; i < 6; i++)
        for (int round = 0; round < 2000; round++) {
            const int n = SIZES[i];
            memset(counts, 0, sizeof counts);
            if (round % 7 == 6) pool_wake(p);
            if (round % 500 == 499) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL); // long enough for all to fall asleep
            pool_run(p, count, &(Counting){counts, n_thread, &bad}, n);
            int wrong = 0;
            for (int k = 0; k < MOST; k++) wrong += counts[k] != (k < n);
            if (wrong) CHECK(false, "%d threads, loop of %d, round %d: %d items did not run once", n_thread, n, round, wrong);
        }
    CHECK(!bad, "%d threads: %d items with a number or on a thread that does not exist", n_thread, (int)bad);
    pool_close(p);
}

// One item holds a thread until another item has run: with two threads that must end, so loops are really shared.
static void rendezvous(const void *args, int item, int thread) {
    atomic_int *arrived = *(atomic_int *const *)args;
    (void)item, (void)thread;
    atomic_fetch_add(arrived, 1);
    for (int i = 0; i < 5000 && atomic_load(arrived) < 2; i++) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void write_file(const char *folder, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    if (f) {
        fputs(text, f);
        fclose(f);
    }
}

static void check_quota(void) {
    char root[] = "/tmp/test_pool.XXXXXX", groups[64];
    CHECK(mkdtemp(root), "no temporary folder");
    char folder[128];
    snprintf(groups, sizeof groups, "%s/groups", root);
    static const char *const FOLDERS[] = {"/a", "/a/b", "/cpu", "/cpu/c"};
    for (int i = 0; i < 4; i++) {
        snprintf(folder, sizeof folder, "%s%s", root, FOLDERS[i]);
        mkdir(folder, 0700);
    }
    static const struct {
        const char *groups, *a, *b, *root1, *c; // cpu.max of /a and /a/b; cfs_quota_us of the root of version 1 and of /c
        int want;
        const char *what;
    } CASES[] = {
        {"0::/a/b\n", "max 100000\n", "150000 100000\n", "-1\n", "-1\n", 2, "version 2, one and a half"},
        {"0::/a/b\n", "100000 100000\n", "400000 100000\n", "-1\n", "-1\n", 1, "version 2, the group above grants less"},
        {"0::/a/b\n", "max 100000\n", "max 100000\n", "-1\n", "-1\n", 0, "version 2, no limit"},
        {"0::/gone/deep\n", "100000 100000\n", "100000 100000\n", "-1\n", "-1\n", 0, "version 2, a group that is not mounted"},
        {"7:cpuset:/c\n4:cpu,cpuacct:/c\n0::/\n", "100000 100000\n", "max 100000\n", "-1\n", "250000\n", 3, "version 1"},
        {"4:cpuacct,cpu:/host/path\n", "max 1\n", "max 1\n", "50000\n", "-1\n", 1, "version 1 in a container: its group is the root"},
        {"4:cpuset:/c\n", "max 1\n", "max 1\n", "100000\n", "100000\n", 0, "version 1, another controller"},
        {"nonsense\n::\n0::\n", "x\n", "100000\n", "0 0\n", "nan\n", 0, "nonsense"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        write_file(root, "groups", CASES[i].groups);
        write_file(root, "a/cpu.max", CASES[i].a);
        write_file(root, "a/b/cpu.max", CASES[i].b);
        write_file(root, "cpu/cpu.cfs_quota_us", CASES[i].root1);
        write_file(root, "cpu/cpu.cfs_period_us", "100000\n");
        write_file(root, "cpu/c/cpu.cfs_quota_us", CASES[i].c);
        write_file(root, "cpu/c/cpu.cfs_period_us", "100000\n");
        const int n = quota_allowed(groups, root);
        CHECK(n == CASES[i].want, "%s: %d processors, expected %d", CASES[i].what, n, CASES[i].want);
    }
    CHECK(!quota_allowed("/nonexistent", root), "no control groups, but a quota");
    snprintf(folder, sizeof folder, "rm -r %s", root);
    CHECK(!system(folder), "%s is left", root);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    const int n = processors_allowed();
    CHECK(n >= 1 && n <= 1 << 20, "%d processors", n);
    check_loops(1);
    check_loops(2);
    check_loops(4 * n + 1);
    Pool *p = pool_open(2);
    atomic_int arrived = 0;
    if (p) pool_run(p, rendezvous, &(atomic_int *){&arrived}, 2);
    CHECK(p && arrived == 2, "two items, but they did not run side by side");
    pool_close(p);
    check_quota();
    return test_end();
}
