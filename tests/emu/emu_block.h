// Part of emu_rt.cpp: the threads of one block. One OS thread; each CUDA thread that has to wait keeps a stack of its own.
//
// A CUDA thread begins on whatever stack is free and, if it never waits, the next one simply runs on the same stack: no switch at all. Only when
// it waits (a barrier, a shuffle) does the stack become its own, and the next thread begins on a fresh one. Lanes are never in lock-step.
//
// The grid as a whole has a stack, too, that its blocks are run from (emu_stream.h). So it can be left in the middle of a kernel: when all threads of
// a block that could go on sleep (__nanosleep), as they do when they wait for something the host writes, the host's code goes on. The grid
// does when the device is given time again.

static const int MAX_THREADS = 1024, MAX_WARPS = 32;
static const size_t STACK_BYTES = 64 << 10; // with a guard page at its low end

enum State : uint8_t { RUNNING, AT_BARRIER, IN_WARP, ASLEEP, DONE }; // of a thread that cannot run: why
struct Thread {
    uint3 index;
    int id, stack; // stack: -1 until it has begun
    State state;
    bool fenced;   // has executed __threadfence
    void *sp;      // where it left off
    // what it waits for
    EmuPlace place;
    const char *what;
    unsigned mask;
    EmuCollective *collective;
};
struct Warp {
    unsigned exists, live, ready, waiting; // bits: lanes; waiting: in a warp operation
    bool uniform;                          // those that wait do so for the same thing, at the same place
    int first;                             // the first of them
    uint32_t epoch;                        // __syncwarp count
    void *brought[32];                     // per lane
};

uint3 emu_thread_idx, emu_block_idx;
int emu_lane;
dim3 emu_block_dim, emu_grid_dim;

static Thread threads[MAX_THREADS], *current;
static Warp warps[MAX_WARPS];
static char *stacks;
static int free_stacks[MAX_THREADS], n_free_stacks;
static int n_threads, n_warps, n_live, n_at_barrier, n_asleep, warp_at;
static unsigned ready_warps;
static EmuPlace barrier_place;
static EmuVote barrier_vote;
static int barrier_count, barrier_result[2]; // two: the next barrier may begin before everybody has read this one's result
static uint32_t block_serial, barrier_epoch;  // unique numbers for emu_check.h
static bool in_collective;
static const void *kernel_params;
static size_t n_kernel_params;

struct AsyncCopy { void *shared; const void *global; int n_bytes, n_valid, group; };
static std::vector<AsyncCopy> async_copies[MAX_THREADS];
static int async_group[MAX_THREADS];

static bool current_thread_text(char *text, size_t n) {
    if (!current) return false;
    snprintf(text, n, "kernel %s launched at %s:%d, block (%u,%u,%u) thread (%u,%u,%u)", now_running.name, now_running.place.file,
             now_running.place.line, emu_block_idx.x, emu_block_idx.y, emu_block_idx.z, current->index.x, current->index.y, current->index.z);
    return true;
}

// ---- switching stacks ----
static void *main_sp;          // of the grid, while a block runs
static void *host_sp, *grid_sp; // of the host's code, while the grid runs; of the grid, or a thread of it, while it waits
static void run_threads();
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
// Saves what the ABI makes the callee keep, changes the stack, and returns there.
extern "C" void emu_switch(void **save, void *to);
asm(".text\n.globl emu_switch\n.type emu_switch, @function\n"
    "emu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  popq %rcx\n  jmp *%rcx\n"
    ".size emu_switch, . - emu_switch\n");
static void *fresh_stack(int stack, void (*bottom)()) {
    // Tops are staggered: at equal offsets in 64 KB steps all stacks would share a few cache sets.
    void **sp = (void **)(stacks + (stack + 1) * STACK_BYTES - 128 - (size_t)stack * 64 % 4096);
    *--sp = nullptr; // it returns nowhere; keeps its stack aligned as after a call
    *--sp = (void *)bottom;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
#else
// The portable form, about ten times slower: ucontext also saves the signal mask by a system call.
#include <ucontext.h>
static ucontext_t fresh_contexts[MAX_THREADS + 1];
static void emu_switch(void **save, void *to) {
    ucontext_t here; // on the stack that is left: it lasts until that goes on
    *save = &here;
    swapcontext(&here, (ucontext_t *)to);
}
static void *fresh_stack(int stack, void (*bottom)()) {
    ucontext_t *c = &fresh_contexts[stack];
    getcontext(c);
    c->uc_stack.ss_sp = stacks + stack * STACK_BYTES;
    c->uc_stack.ss_size = STACK_BYTES - 128;
    c->uc_link = nullptr;
    makecontext(c, bottom, 0);
    return c;
}
#endif

static void leave_kernel() { // give the block up, or end it
    void *abandoned;
    in_kernel = false;
    emu_switch(&abandoned, main_sp);
}

// ---- who is next ----
static int first_lane(unsigned mask) {
    if (emu_config.order == EMU_FORWARD) return __builtin_ctz(mask);
    if (emu_config.order == EMU_REVERSE) return 31 - __builtin_clz(mask);
    for (uint32_t skip = random_below((uint32_t)__builtin_popcount(mask)); skip; skip--) mask &= mask - 1;
    return __builtin_ctz(mask);
}
static void set_ready(int w, unsigned lanes) {
    warps[w].ready |= lanes;
    ready_warps |= 1u << w;
}
static void clear_ready(int w, unsigned lanes) {
    warps[w].ready &= ~lanes;
    if (!warps[w].ready) ready_warps &= ~(1u << w);
}
static Thread *next_thread() {
    if (!ready_warps) return nullptr;
    // A warp runs as far as it can before the next one does; in random order it may be interrupted at each wait.
    if (!(ready_warps >> warp_at & 1) || (emu_config.order == EMU_RANDOM && random_below(4) == 0)) {
        const unsigned above = ready_warps & ~((2u << warp_at) - 1), below = ready_warps & ((1u << warp_at) - 1);
        if (emu_config.order == EMU_RANDOM) warp_at = first_lane(ready_warps);
        else if (emu_config.order == EMU_FORWARD) warp_at = __builtin_ctz(above ? above : ready_warps);
        else warp_at = 31 - __builtin_clz(below ? below : ready_warps);
    }
    return &threads[warp_at * 32 + first_lane(warps[warp_at].ready)];
}
static void deadlock() {
    std::map<std::string, std::pair<int, int>> groups; // where: how many, the first
    int n_done = 0;
    for (int i = 0; i < n_threads; i++) {
        const Thread *t = &threads[i];
        char text[300];
        if (t->state == DONE) {
            n_done++;
            continue;
        }
        if (t->state == AT_BARRIER) snprintf(text, sizeof text, "__syncthreads at %s:%d", t->place.file, t->place.line);
        else snprintf(text, sizeof text, "%s(mask %08x) at %s:%d", t->what, t->mask, t->place.file, t->place.line);
        auto &group = groups[text];
        if (!group.first++) group.second = i;
    }
    std::string list;
    for (auto &group : groups) {
        const int n = group.second.first, first = group.second.second;
        list += "\n    " + std::to_string(n) + " threads (the first: " + std::to_string(first) + ") wait in " + group.first;
    }
    emu_report("deadlock", true, "no thread can go on; %d have exited%s", n_done, list.c_str());
}

// ---- waiting for the host ----
static bool grid_given_up; // nothing it waits for will come
static void before_host();
static void host_goes_on() {
    in_kernel = false;
    before_host();
    emu_switch(&grid_sp, host_sp);
    if (grid_given_up) {
        kernel_failed = true;
        leave_kernel();
    }
    in_kernel = true;
}
static Thread *next_or_sleeper() {
    Thread *next = next_thread();
    if (next || !n_asleep) return next;
    host_goes_on();
    for (int i = 0; i < n_threads; i++)
        if (threads[i].state == ASLEEP) {
            threads[i].state = RUNNING;
            set_ready(i >> 5, 1u << (i & 31));
        }
    n_asleep = 0;
    return next_thread();
}
static void make_current(Thread *t) {
    current = t;
    emu_thread_idx = t->index;
    emu_lane = t->id & 31;
}
// The current thread waits (or not: it may be the last to arrive and be chosen again).
static void yield_thread() {
    Thread *self = current, *next = next_or_sleeper();
    if (!next) deadlock(); // does not return
    if (next == self) return;
    make_current(next);
    if (next->stack < 0) {
        next->stack = free_stacks[--n_free_stacks];
        next->sp = fresh_stack(next->stack, run_threads);
    }
    emu_switch(&self->sp, next->sp);
}
void emu_sleep() {
    Thread *self = current;
    self->state = ASLEEP;
    n_asleep++;
    clear_ready(self->id >> 5, 1u << (self->id & 31));
    yield_thread();
}
static void clock_releases();
static void mapped_device_gives(bool all);
void emu_host_first() {
    clock_releases();
    mapped_device_gives(false);
    host_goes_on();
}
unsigned long long emu_now() { return (unsigned long long)(real_seconds() * 1e9); }

// ---- barriers ----
static void release_barrier() {
    if (n_live < n_threads)
        emu_report("barrier-after-exit", false, "__syncthreads at %s:%d reached by %d threads while %d have exited", barrier_place.file,
                   barrier_place.line, n_live, n_threads - n_live);
    for (int w = 0; w < n_warps; w++)
        if (warps[w].live) set_ready(w, warps[w].live); // all that live are here
    n_at_barrier = 0;
    barrier_epoch++;
    barrier_count++;
    warp_at = emu_config.order == EMU_REVERSE ? n_warps - 1 : 0;
}
int emu_barrier(EmuVote vote, int predicate, EmuPlace place) {
    Thread *self = current;
    int *result = &barrier_result[barrier_count & 1];
    if (n_at_barrier == 0) {
        barrier_place = place;
        barrier_vote = vote;
        *result = vote == EMU_AND;
    } else if (place.line != barrier_place.line || vote != barrier_vote || strcmp(place.file, barrier_place.file)) {
        emu_report("barrier-divergent", false, "threads of one block meet at different barriers: %s:%d and %s:%d", barrier_place.file,
                   barrier_place.line, place.file, place.line);
    }
    if (vote == EMU_COUNT) *result += predicate != 0;
    else if (vote == EMU_AND) *result &= predicate != 0;
    else if (vote == EMU_OR) *result |= predicate != 0;
    self->state = AT_BARRIER;
    self->place = place;
    clear_ready(self->id >> 5, 1u << (self->id & 31));
    if (++n_at_barrier == n_live) release_barrier();
    yield_thread();
    return *result;
}

// ---- warp operations ----
// All lanes of the mask wait, not all at one place: do they wait for the same thing?
static bool same_operation(int w, const Thread *self) {
    for (unsigned m = self->mask; m; m &= m - 1) {
        const Thread *t = &threads[w * 32 + __builtin_ctz(m)];
        if (t->mask != self->mask || t->collective != self->collective) return false;
        if (t->place.line != self->place.line)
            emu_report("warp-divergent", false, "lanes meet in %s at line %d and %s at line %d of %s", self->what, self->place.line, t->what,
                       t->place.line, self->place.file);
    }
    return true;
}
void emu_warp(const char *what, unsigned mask, void *brought, EmuCollective *collective, EmuPlace place) {
    Thread *self = current;
    const int w = self->id >> 5, lane = self->id & 31;
    Warp *warp = &warps[w];
    if (!(mask >> lane & 1))
        emu_report("mask-excludes-caller", true, "%s mask %08x lacks the calling lane %d at %s:%d", what, mask, lane, place.file, place.line);
    if (mask & warp->exists & ~warp->live)
        emu_report("mask-names-exited-lane", true, "%s mask %08x, live lanes %08x at %s:%d", what, mask, warp->live, place.file, place.line);
    mask &= warp->exists; // the last warp of an odd block: lanes that never were do not count
    self->mask = mask;
    self->collective = collective;
    self->place = place;
    self->what = what;
    self->state = IN_WARP;
    if (!warp->waiting) {
        warp->first = self->id;
        warp->uniform = true;
    } else {
        const Thread *first = &threads[warp->first];
        warp->uniform &= first->mask == mask && first->collective == collective && first->place.line == place.line;
    }
    warp->brought[lane] = brought;
    warp->waiting |= 1u << lane;
    clear_ready(w, 1u << lane);
    if ((warp->waiting & mask) == mask && (warp->uniform || same_operation(w, self))) { // the last of them
        in_collective = true; // it touches the stacks of all lanes
        collective(mask, warp->brought);
        in_collective = false;
        warp->waiting &= ~mask;
        set_ready(w, mask);
    }
    yield_thread();
}
// Only __syncwarp orders memory; a shuffle does not. (A partial mask is taken as a whole warp here: races may be missed, none invented.)
static void advance_warp(unsigned, void *const *) { warps[current->id >> 5].epoch++; }
void emu_warp_barrier(unsigned mask, EmuPlace place) { emu_warp("__syncwarp", mask, nullptr, advance_warp, place); }

// ---- the life of a thread ----
static void run_threads() { // the bottom of every stack
    in_kernel = true;
    for (;;) {
        now_running.run(kernel_params);
        Thread *self = current;
        const int w = self->id >> 5;
        self->state = DONE;
        clear_ready(w, 1u << (self->id & 31));
        warps[w].live &= ~(1u << (self->id & 31));
        n_live--;
        if (!async_copies[self->id].empty()) emu_report("cp-async-unwaited", false, "a thread exits with copies in flight");
        if (n_live == 0) leave_kernel();
        if (n_at_barrier == n_live) release_barrier();
        Thread *next = next_or_sleeper();
        if (!next) deadlock(); // does not return
        make_current(next);
        if (next->stack < 0) {
            next->stack = self->stack; // begins where the other ended
            continue;
        }
        free_stacks[n_free_stacks++] = self->stack;
        void *abandoned;
        emu_switch(&abandoned, next->sp);
    }
}

static void shared_begin();
static void shared_end();
static sigjmp_buf fault_return; // a fault in the kernel: the signal handler gives the block up

static bool run_block(uint3 block_index) {
    shared_begin();
    block_serial++;
    barrier_epoch++;
    n_live = n_threads;
    n_at_barrier = barrier_count = n_asleep = 0;
    ready_warps = 0;
    n_free_stacks = 0;
    for (int i = MAX_THREADS; i--;) free_stacks[n_free_stacks++] = i; // the lowest is taken first: it is warm
    for (int w = 0; w < n_warps; w++) {
        const int n = n_threads - w * 32;
        const unsigned lanes = n >= 32 ? ~0u : (1u << n) - 1;
        warps[w].exists = warps[w].live = lanes;
        warps[w].ready = warps[w].waiting = 0;
        warps[w].epoch++;
        set_ready(w, lanes);
    }
    uint3 index = {0, 0, 0};
    for (int i = 0; i < n_threads; i++) {
        Thread *t = &threads[i];
        t->index = index;
        t->id = i;
        t->stack = -1;
        t->state = RUNNING;
        t->fenced = false;
        if (!async_copies[i].empty()) async_copies[i].clear();
        async_group[i] = 0;
        if (++index.x == emu_block_dim.x) {
            index.x = 0;
            if (++index.y == emu_block_dim.y) {
                index.y = 0;
                index.z++;
            }
        }
    }
    n_threads_run += (uint64_t)n_threads;
    emu_block_idx = block_index;
    warp_at = emu_config.order == EMU_REVERSE ? n_warps - 1 : 0;
    kernel_failed = in_collective = false;
    if (sigsetjmp(fault_return, 0)) {
        in_kernel = false;
    } else {
        Thread *first = next_thread();
        make_current(first);
        first->stack = free_stacks[--n_free_stacks];
        emu_switch(&main_sp, fresh_stack(first->stack, run_threads));
    }
    in_kernel = false;
    current = nullptr;
    shared_end();
    return !kernel_failed;
}
