// pool.c: see pool.h
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "base.h"

enum {
    SPIN_US = 50,    // covers what one thread does alone between two loops
    YIELD_US = 2000, // waking a sleeper takes 50 us and more, in virtual machines above all
    MOVE_US = 10000, // no thread moves twice within this
    LINE = 64        // bytes per cache line: what different threads write lies apart
};

typedef struct {
    atomic_int n;
    pthread_cond_t wake;
} Sleepers;

// Items nobody has taken, next << 32 | end. Who takes one may read the loop below: it stays as it is until that item is done.
typedef _Atomic uint64_t Range;

typedef struct {
    _Alignas(LINE) Range todo;
    Pool *pool;
    pthread_t id;
    int number;
    atomic_int cpu; // where it ran last
    int64_t moved;  // when keep_apart moved it, in us
} Thread;

struct Pool {
    _Alignas(LINE) atomic_int n_loop; // that have begun
    _Alignas(LINE) atomic_int done;   // items of this loop
    _Alignas(LINE) Work *work;
    const void *args;
    int n_item;

    bool spins;
    atomic_bool closing;
    pthread_mutex_t lock; // for going to sleep and waking, nothing else
    Sleepers idle, caller;
    int n_thread; // with the caller
    Thread *thread; // [n_thread]; the first is the caller
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

// What is waited for: another loop than the n-th, or the end of this one of n items.
static bool begun(Pool *p, int n) { return atomic_load(&p->n_loop) != n || atomic_load(&p->closing); }
static bool all_done(Pool *p, int n) { return atomic_load(&p->done) == n; }

// A sleeper counts itself before it looks for the last time; who makes `ready` true does so before looking for sleepers. So one of
// them sees the other.
static void wait_until(Pool *p, bool (*ready)(Pool *, int), int n, Sleepers *s) {
    for (int64_t start = now_us(), spent = 0; spent < YIELD_US; spent = now_us() - start) {
        if (!p->spins || spent >= SPIN_US) sched_yield();
        for (int i = 0; i < 16; i++) {
            if (ready(p, n)) return;
            if (p->spins) relax();
        }
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&s->n, 1);
    while (!ready(p, n)) pthread_cond_wait(&s->wake, &p->lock);
    atomic_fetch_sub(&s->n, 1);
    pthread_mutex_unlock(&p->lock);
}

static void wake(Pool *p, Sleepers *s) {
    if (!atomic_load(&s->n)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&p->lock);
}

// Schedulers leave two threads that wait for each other on one processor for seconds while another is idle (Linux 6.18: a thread
// is woken where its waker runs). Who shares a processor with a lower number moves to one that none of the pool is on, and may be
// moved on from there.
static void keep_apart(Thread *t) {
#if defined(__linux__)
    const Thread *all = t->pool->thread;
    const int cpu = sched_getcpu();
    bool shared = false;
    if (atomic_load_explicit(&t->cpu, memory_order_relaxed) != cpu) atomic_store(&t->cpu, cpu);
    for (int i = 0; i < t->number && !shared; i++) shared = atomic_load_explicit(&all[i].cpu, memory_order_relaxed) == cpu;
    if (!shared || !t->pool->spins || now_us() - t->moved < MOVE_US) return;
    cpu_set_t allowed, unused;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    unused = allowed;
    for (int i = 0; i < t->pool->n_thread; i++) if (atomic_load(&all[i].cpu) >= 0) CPU_CLR((size_t)atomic_load(&all[i].cpu), &unused);
    if (CPU_COUNT(&unused) && !sched_setaffinity(0, sizeof unused, &unused)) sched_setaffinity(0, sizeof allowed, &allowed);
    t->moved = now_us();
    atomic_store(&t->cpu, sched_getcpu());
#else
    (void)t;
#endif
}

// One item of the range: the first for its owner, the last for others, who leave it one stretch of memory. -1: it is empty.
static int take(Range *range, bool own) {
    uint64_t todo = atomic_load(range), rest;
    do {
        if (todo >> 32 >= (uint32_t)todo) return -1;
        rest = own ? todo + (1ull << 32) : todo - 1;
    } while (!atomic_compare_exchange_weak(range, &todo, rest));
    return own ? (int)(todo >> 32) : (int)(uint32_t)rest;
}

// Its own items, then, one by one, those of others.
static void do_items(Thread *t) {
    Pool *p = t->pool;
    int n = 0;
    for (int k = 0; k < p->n_thread; k++) {
        Range *range = &p->thread[(t->number + k) % p->n_thread].todo;
        for (int item; (item = take(range, k == 0)) >= 0; n++) p->work(p->args, item, t->number);
    }
    if (!n) return;
    const int n_item = p->n_item; // the loop cannot end before what follows
    if (atomic_fetch_add(&p->done, n) + n == n_item) wake(p, &p->caller);
}

static void *serve(void *arg) {
    Thread *t = arg;
    Pool *p = t->pool;
    while (!atomic_load(&p->closing)) {
        const int n = atomic_load(&p->n_loop);
        keep_apart(t);
        do_items(t);
        wait_until(p, begun, n, &p->idle);
    }
    return NULL;
}

void pool_run(Pool *p, Work *work, const void *args, int n_item) {
    if (p->n_thread == 1 || n_item <= 1) {
        for (int i = 0; i < n_item; i++) work(args, i, 0);
        return;
    }
    keep_apart(&p->thread[0]);
    p->work = work;
    p->args = args;
    p->n_item = n_item;
    atomic_store(&p->done, 0);
    for (int64_t i = 0; i < p->n_thread; i++)
        atomic_store(&p->thread[i].todo, (uint64_t)(n_item * i / p->n_thread) << 32 | (uint64_t)(n_item * (i + 1) / p->n_thread));
    atomic_fetch_add(&p->n_loop, 1);
    wake(p, &p->idle);
    do_items(&p->thread[0]);
    wait_until(p, all_done, n_item, &p->caller);
}

// A loop without items.
void pool_wake(Pool *p) {
    atomic_fetch_add(&p->n_loop, 1);
    wake(p, &p->idle);
}

// started: threads that run, counting the caller
static void stop(Pool *p, int started) {
    atomic_store(&p->closing, true);
    wake(p, &p->idle);
    for (int i = 1; i < started; i++) pthread_join(p->thread[i].id, NULL);
    pthread_cond_destroy(&p->caller.wake);
    pthread_cond_destroy(&p->idle.wake);
    pthread_mutex_destroy(&p->lock);
    free(p->thread);
    free(p);
}

Pool *pool_open(int n_thread) {
    Pool *p = aligned_alloc(LINE, (sizeof *p + LINE - 1) / LINE * LINE);
    if (!p) return NULL;
    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->idle.wake, NULL);
    pthread_cond_init(&p->caller.wake, NULL);
    p->spins = n_thread <= processors_allowed();
    p->thread = aligned_alloc(LINE, sizeof *p->thread * (size_t)n_thread);
    for (int i = 0; p->thread && i < n_thread; i++) p->thread[i] = (Thread){.pool = p, .number = i, .cpu = -1};
    p->n_thread = n_thread;
    int started = 1;
    while (p->thread && started < n_thread && !pthread_create(&p->thread[started].id, NULL, serve, &p->thread[started])) started++;
    if (p->thread && started == n_thread) return p;
    stop(p, started);
    return NULL;
}

void pool_close(Pool *p) {
    if (p) stop(p, p->n_thread);
}

// ---- how many processors ----

// A control group's share: microseconds of CPU time per period, rounded up to whole processors; 0: no limit, or not such a file.
static int quota_in(const char *path, const char *period_path) {
    char text[64];
    double quota = 0, period = 0;
    FILE *f = fopen(path, "r");
    if (f && fgets(text, sizeof text, f)) sscanf(text, "%lf %lf", &quota, &period); // version 2: "max 100000" or "150000 100000"
    if (f) fclose(f);
    f = period_path ? fopen(period_path, "r") : NULL;
    if (f && fgets(text, sizeof text, f)) sscanf(text, "%lf", &period);
    if (f) fclose(f);
    if (!(quota > 0 && period > 0)) return 0;
    const double n = quota / period;
    return n > 1 << 20 ? 0 : (int)n + (n > (int)n);
}

// The limits of all groups from `path` up to the root of their tree hold.
static int quota_above(const char *tree, char *path, bool v2) {
    int least = 0;
    for (;;) {
        char quota[8500], period[8500]; // tree and path at their longest, and a name
        snprintf(quota, sizeof quota, "%s%s/%s", tree, path, v2 ? "cpu.max" : "cpu.cfs_quota_us");
        snprintf(period, sizeof period, "%s%s/cpu.cfs_period_us", tree, path);
        const int n = quota_in(quota, v2 ? NULL : period);
        if (n && (!least || n < least)) least = n;
        char *slash = strrchr(path, '/');
        if (!slash) return least;
        *slash = 0;
    }
}

int quota_allowed(const char *groups, const char *root) {
    int least = 0;
    char line[4352]; // "3:cpu,cpuacct:/a/b" of version 1, "0::/a/b" of version 2
    FILE *f = fopen(groups, "r");
    while (f && fgets(line, sizeof line, f)) {
        char controllers[256] = "", path[4096] = "", tree[4352], name[300];
        line[strcspn(line, "\n")] = 0;
        const bool v2 = !strncmp(line, "0::", 3);
        if (sscanf(line, v2 ? "0::%4095[^\n]" : "%*d:%255[^:]:%4095[^\n]", v2 ? path : controllers, path) < 1) continue;
        snprintf(name, sizeof name, ",%s,", controllers);
        if (!v2 && !strstr(name, ",cpu,")) continue;
        snprintf(tree, sizeof tree, "%s%s", root, v2 ? "" : "/cpu");
        const int n = quota_above(tree, path, v2);
        if (n && (!least || n < least)) least = n;
    }
    if (f) fclose(f);
    return least;
}

int processors_allowed(void) {
    int n = (int)sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t mask;
    if (!sched_getaffinity(0, sizeof mask, &mask)) n = CPU_COUNT(&mask); // it fails with more processors than a cpu_set_t holds
    const int quota = quota_allowed("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota && quota < n) n = quota;
#endif
    return n > 1 ? n : 1;
}
