// Part of emu_rt.cpp: the check build. clang's -fsanitize=thread calls __tsan_readN and __tsan_writeN before each access; these are ours, libtsan
// is not linked. Each access of kernel code is checked for bounds, for reads of what was never written, and for races.
//
// (g++ leaves out the small structs passed to or returned from calls, and __half is one: hence clang. clang turns copies of structs into calls of
// memcpy, which it does not instrument: objcopy --redefine-sym memcpy=emu_memcpy, memset and memmove likewise.)
//
// A race is found from marks, not from a bad schedule: for each four bytes, who wrote and who read last, and at which barrier. Two accesses of one
// block are ordered by a __syncthreads between them, those of one warp also by a __syncwarp; those of two blocks only by __threadfence and an atomic
// on both sides. One mark per four bytes: when two threads use different bytes of it the later one is kept, so a race may be missed, none invented.

enum Crowd : uint8_t { ONE, LANES, WARPS, BLOCKS }; // readers since the mark was new
struct Mark {
    uint32_t block, barrier, warp; // block_serial, barrier_epoch, warp epoch at that time; block 0: never
    uint16_t thread;
    Crowd crowd;
    uint8_t bytes : 4, atomic : 1;
};
struct Cell { Mark write, read; };

static Cell *shared_cells, *global_cells;
static uint32_t *shared_owner;        // per byte: the block that wrote it last, by serial number
static uint8_t *global_written;       // per byte: 1 once written
static uint32_t first_block_serial;   // of this launch
static std::vector<bool> released;    // per block of this launch: fence, then atomic
static bool acquired;                 // this block has done the same
static std::set<uintptr_t> reported;  // program counters: each place once per launch

static void checks_init() { // shadow memory is only taken where it is touched
    checks_on = true;
    if (!global_cells) {
        global_cells = (Cell *)reserve(ARENA_BYTES / 4 * sizeof(Cell), PROT_READ | PROT_WRITE);
        global_written = (uint8_t *)reserve(ARENA_BYTES, PROT_READ | PROT_WRITE);
    }
}
static void checks_begin_launch(size_t n_blocks) {
    reported.clear();
    first_block_serial = block_serial + 1;
    if (!checks_on) return;
    if (!shared_cells) {
        const size_t n = (size_t)(shared_high - shared_low) + 4;
        shared_cells = (Cell *)calloc(n / 4, sizeof(Cell));
        shared_owner = (uint32_t *)calloc(n, sizeof *shared_owner);
    }
    released.assign(n_blocks, false);
}
static void checks_begin_block() { acquired = false; }
static void checks_forget(char *p, size_t n) { // addresses never come back; this only returns the shadow's memory
    if (!checks_on) return;
    const size_t first = ((size_t)(p - arena) + PAGE - 1) / PAGE * PAGE, end = (size_t)(p + n - arena) / PAGE * PAGE;
    if (first >= end) return;
    madvise(global_written + first, end - first, MADV_DONTNEED);
    madvise((char *)global_cells + first / 4 * sizeof(Cell), (end - first) / 4 * sizeof(Cell), MADV_DONTNEED);
}
static void checks_written(const void *p, size_t n) { // by a copy, a memset or cuBLAS
    if (checks_on) memset(global_written + ((const char *)p - arena), 1, n);
}
static void checks_copied(void *to, const void *from, size_t n) {
    if (!checks_on) return;
    uint8_t *source = in_arena(from) ? global_written + ((const char *)from - arena) : nullptr;
    if (in_arena(to)) {
        if (source) memmove(global_written + ((char *)to - arena), source, n);
        else checks_written(to, n);
    } else if (source && memchr(source, 0, n)) {
        const size_t first = (size_t)((uint8_t *)memchr(source, 0, n) - source);
        emu_report("uninitialised-global", false, "copy to the host of never written %s", describe((const char *)from + first).c_str());
    }
}

// Source line of a program counter, by binutils; only ever called for a report, and once for each place.
static const char *source_line(const void *pc) {
    static std::map<const void *, std::string> known;
    std::string *line = &known[pc];
    if (!line->empty()) return line->c_str();
    char text[300], command[200];
    snprintf(text, sizeof text, "pc %p", pc);
    Dl_info info;
    if (!emu_config.quiet && dladdr(pc, &info)) {
        snprintf(command, sizeof command, "addr2line -e /proc/%d/exe 0x%lx 2>/dev/null", (int)getpid(),
                 (unsigned long)((const char *)pc - 1 - (const char *)info.dli_fbase));
        FILE *pipe = popen(command, "r");
        if (pipe && !fgets(text, sizeof text, pipe)) snprintf(text, sizeof text, "pc %p", pc);
        if (pipe) pclose(pipe);
    }
    text[strcspn(text, "\n")] = 0;
    const char *slash = strrchr(text, '/');
    *line = slash ? slash + 1 : text;
    return line->c_str();
}
static bool first_time(const void *pc) { return reported.insert((uintptr_t)pc).second; }

// Has what the mark tells happened before what the current thread does now?
static bool ordered(const Mark *m, bool shared) {
    if (m->block < first_block_serial) return true;
    if (m->block != block_serial || m->crowd == BLOCKS) // shared memory of another block is other memory
        return shared || (acquired && (m->crowd == BLOCKS || released[m->block - first_block_serial]));
    if (m->barrier != barrier_epoch) return true;
    if (m->crowd == WARPS) return false;
    const int w = current->id >> 5;
    if (m->thread >> 5 != w) return false;
    return m->warp != warps[w].epoch || (m->crowd == ONE && m->thread == current->id);
}
static void mark(Mark *m, unsigned bytes, bool atomic, bool shared, bool reading) {
    Crowd crowd = ONE;
    if (reading && m->block >= first_block_serial && (m->bytes & bytes)) { // other readers may still matter
        if (m->block != block_serial) crowd = shared ? ONE : BLOCKS;
        else if (m->crowd == BLOCKS) crowd = BLOCKS;
        else if (m->barrier != barrier_epoch) crowd = ONE;
        else if (m->crowd == WARPS || m->thread >> 5 != current->id >> 5) crowd = WARPS;
        else if (m->warp == warps[current->id >> 5].epoch && (m->crowd == LANES || m->thread != current->id)) crowd = LANES;
        if (crowd != ONE) bytes &= m->bytes;
    }
    *m = Mark{block_serial, barrier_epoch, warps[current->id >> 5].epoch, (uint16_t)current->id, crowd, (uint8_t)(bytes & 15), atomic};
}
// cells: of this memory; at: offset of the access in it.
static void check_race(Cell *cells, size_t at, size_t n, bool write, bool atomic, bool shared, const void *pc) {
    for (size_t word = at & ~(size_t)3; word < at + n; word += 4) {
        unsigned bytes = 15;
        if (word < at) bytes &= 15u << (at - word);
        if (word + 4 > at + n) bytes &= 15u >> (word + 4 - at - n);
        Cell *cell = &cells[word / 4];
        const Mark *other = nullptr;
        const char *kind = nullptr;
        if ((cell->write.bytes & bytes) && !(atomic && cell->write.atomic) && !ordered(&cell->write, shared)) {
            other = &cell->write;
            kind = write ? "write after write" : "read after write";
        } else if (write && (cell->read.bytes & bytes) && !(atomic && cell->read.atomic) && !ordered(&cell->read, shared)) {
            other = &cell->read;
            kind = "write after read";
        }
        if (kind && first_time(pc)) {
            if (shared)
                emu_report("shared-race", false, "%s: threads %d and %d, no barrier between, at %s", kind, other->thread, current->id, source_line(pc));
            else
                emu_report("global-race", false, "%s: block %u thread %d and block %u thread %d, nothing orders them, at %s", kind,
                           other->block - first_block_serial, other->thread, block_serial - first_block_serial, current->id, source_line(pc));
        }
        mark(write ? &cell->write : &cell->read, bytes, atomic, shared, !write);
    }
}
static void check_shared(char *p, size_t n, bool write, bool atomic, const void *pc) {
    char *dyn = (char *)cu_dyn_smem, *dyn_end = dyn + sizeof cu_dyn_smem;
    if (p + n > dyn && p < dyn_end && p + n > dyn + now_running.smem_bytes) {
        if (first_time(pc))
            emu_report("shared-out-of-bounds", false, "%s of %zu bytes at offset %ld of %zu bytes of dynamic shared memory, at %s",
                       write ? "write" : "read", n, (long)(p - dyn), now_running.smem_bytes, source_line(pc));
        return;
    }
    const size_t at = (size_t)(p - shared_low);
    bool known = true;
    for (size_t i = at; i < at + n; i++) {
        known &= shared_owner[i] == block_serial;
        if (write) shared_owner[i] = block_serial;
    }
    if (!known && (!write || atomic)) {
        if (first_time(pc))
            emu_report("uninitialised-shared", false, "read of %zu bytes of shared memory this block never wrote, at %s", n, source_line(pc));
        return;
    }
    check_race(shared_cells, at, n, write, atomic, true, pc);
}
static void check_global(char *p, size_t n, bool write, bool atomic, const void *pc) {
    const Allocation *a = find_allocation(p);
    const bool outside = !a || p < a->base || p + n > a->base + a->size;
    if (outside || a->freed) {
        if (first_time(pc)) // in a page that exists the kernel may go on
            emu_report("device-out-of-bounds", !a || a->freed, "%s of %zu bytes at %s, at %s", write ? "write" : "read", n, describe(p).c_str(),
                       source_line(pc));
        return;
    }
    const size_t at = (size_t)(p - arena);
    if ((!write || atomic) && memchr(global_written + at, 0, n) && first_time(pc))
        emu_report("uninitialised-global", false, "read of never written %s, at %s", describe(p).c_str(), source_line(pc));
    if (write) memset(global_written + at, 1, n);
    check_race(global_cells, at, n, write, atomic, false, pc);
}
static void check_access(void *address, size_t n, bool write, bool atomic, bool aligned, const void *pc) {
    if (!in_kernel || in_collective) return;
    char *p = (char *)address;
    const char *stack = stacks + (size_t)current->stack * STACK_BYTES;
    if ((size_t)(p - stack) < STACK_BYTES) return;
    const bool shared = p >= shared_low && p < shared_high, global = in_arena(p);
    if (!shared && !global) {
        if (p >= module_low && p < module_high) return; // constants, threadIdx
        if ((size_t)(p - (const char *)kernel_params) < n_kernel_params || is_pinned(p, n)) return;
        if (!first_time(pc)) return;
        if (p >= stacks && p < stacks + MAX_THREADS * STACK_BYTES)
            emu_report("other-threads-local", false, "access to a local variable of another thread, at %s", source_line(pc));
        else emu_report("kernel-touches-host-memory", false, "kernel access to %p, at %s", address, source_line(pc));
        return;
    }
    n_accesses++;
    if (aligned && ((uintptr_t)p & (n - 1)) && first_time((const char *)pc - 1)) // another key: the place may have more to tell
        emu_report("misaligned", false, "%s of %zu bytes at %p, at %s", write ? "write" : "read", n, address, source_line(pc));
    if (shared) check_shared(p, n, write, atomic, pc);
    else check_global(p, n, write, atomic, pc);
}

// ---- accesses and fences the runtime makes for a kernel ----
static bool fenced_since_atomic;
static void mapped_fence();
void emu_access(const void *p, size_t n, bool write, bool atomic) {
    if (atomic) fenced_since_atomic = false;
    if (!checks_on) return;
    if (atomic && current->fenced) {
        acquired = true;
        released[block_serial - first_block_serial] = true;
    }
    check_access((void *)p, n, write, atomic, true, __builtin_return_address(0));
}
void emu_fence() {
    current->fenced = true;
    mapped_fence();
}

// ---- cp.async: the data arrives when the issuing thread waits, not before; until then the destination is NaN and counts as not written ----
void emu_copy_async(void *to, const void *from, int n, int n_valid) {
    if ((uintptr_t)to % (size_t)n || (uintptr_t)from % (size_t)n) emu_report("misaligned", true, "cp.async of %d bytes", n);
    if (checks_on) {
        const void *pc = __builtin_return_address(0);
        check_access(to, (size_t)n, true, false, true, pc);
        if (n_valid) check_access((void *)from, (size_t)n_valid, false, false, false, pc);
        for (int i = 0; i < n; i++) shared_owner[(char *)to - shared_low + i] = 0;
    }
    memset(to, 0xff, (size_t)n);
    async_copies[current->id].push_back(AsyncCopy{to, from, n, n_valid, async_group[current->id]});
}
void emu_copy_commit() { async_group[current->id]++; }
void emu_copy_wait(int n_left) { // all but the newest n_left groups
    std::vector<AsyncCopy> *copies = &async_copies[current->id];
    size_t n_kept = 0;
    for (const AsyncCopy &c : *copies) {
        if (c.group >= async_group[current->id] - n_left) {
            (*copies)[n_kept++] = c;
            continue;
        }
        memcpy(c.shared, c.global, (size_t)c.n_valid);
        memset((char *)c.shared + c.n_valid, 0, (size_t)(c.n_bytes - c.n_valid));
        if (!checks_on) continue;
        const size_t at = (size_t)((char *)c.shared - shared_low);
        for (int i = 0; i < c.n_bytes; i++) shared_owner[at + (size_t)i] = block_serial;
        check_race(shared_cells, at, (size_t)c.n_bytes, true, false, true, __builtin_return_address(0));
    }
    copies->resize(n_kept);
}

// ---- what the compiled code calls ----
#define EMU_CALLER __builtin_return_address(0)
extern "C" {
void __tsan_init() { checks_init(); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
#define EMU_CALLBACKS(n)                                                                                  \
    void __tsan_read##n(void *p) { check_access(p, n, false, false, true, EMU_CALLER); }                  \
    void __tsan_write##n(void *p) { check_access(p, n, true, false, true, EMU_CALLER); }                  \
    void __tsan_unaligned_read##n(void *p) { check_access(p, n, false, false, false, EMU_CALLER); }       \
    void __tsan_unaligned_write##n(void *p) { check_access(p, n, true, false, false, EMU_CALLER); }
EMU_CALLBACKS(1)
EMU_CALLBACKS(2)
EMU_CALLBACKS(4)
EMU_CALLBACKS(8)
EMU_CALLBACKS(16)
// Host code of a .cu file, at numbers it shares with the device.
uint32_t __tsan_atomic32_load(const volatile uint32_t *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
void __tsan_atomic32_store(volatile uint32_t *p, uint32_t number, int) { __atomic_store_n(p, number, __ATOMIC_SEQ_CST); }
// A struct's copy: float4 and int2 are aligned to their size, larger or odd ones to less.
static void check_bytes(void *p, size_t n, bool write, const void *pc) { check_access(p, n, write, false, n == 8 || n == 16, pc); }
void *emu_memcpy(void *to, const void *from, size_t n) {
    check_bytes((void *)from, n, false, EMU_CALLER);
    check_bytes(to, n, true, EMU_CALLER);
    return memcpy(to, from, n);
}
void *emu_memmove(void *to, const void *from, size_t n) {
    check_bytes((void *)from, n, false, EMU_CALLER);
    check_bytes(to, n, true, EMU_CALLER);
    return memmove(to, from, n);
}
void *emu_memset(void *to, int value, size_t n) {
    check_bytes(to, n, true, EMU_CALLER);
    return memset(to, value, n);
}

// The undefined-behaviour sanitizer of both compilers: its handlers are ours too, so that a report names kernel, block and thread.
struct UbPlace { const char *file; uint32_t line, column; }; // the first member of every handler's data
static void undefined(const char *what, const void *data) {
    const UbPlace *place = (const UbPlace *)data;
    if (first_time(data)) emu_report("undefined", false, "%s at %s:%u:%u", what, place->file, place->line, place->column);
}
void __ubsan_handle_type_mismatch_v1(void *data, void *p) { undefined(p ? "misaligned pointer or too small an object" : "null pointer", data); }
void __ubsan_handle_out_of_bounds(void *data, uintptr_t) { undefined("array index out of range", data); }
void __ubsan_handle_add_overflow(void *data, uintptr_t, uintptr_t) { undefined("integer overflow in +", data); }
void __ubsan_handle_sub_overflow(void *data, uintptr_t, uintptr_t) { undefined("integer overflow in -", data); }
void __ubsan_handle_mul_overflow(void *data, uintptr_t, uintptr_t) { undefined("integer overflow in *", data); }
void __ubsan_handle_negate_overflow(void *data, uintptr_t) { undefined("integer overflow in a negation", data); }
void __ubsan_handle_divrem_overflow(void *data, uintptr_t, uintptr_t) { undefined("division by zero or overflow", data); }
void __ubsan_handle_shift_out_of_bounds(void *data, uintptr_t, uintptr_t) { undefined("shift out of range", data); }
void __ubsan_handle_float_cast_overflow(void *data, uintptr_t) { undefined("float out of the integer's range", data); }
void __ubsan_handle_load_invalid_value(void *data, uintptr_t) { undefined("impossible bool or enum", data); }
}
