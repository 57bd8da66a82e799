// Part of emu_rt.cpp: device memory, and shared memory.
//
// Device memory is cut from one large reservation. An allocation ends at a guard page, what is left of its first page and of its last 256 bytes
// is canary, its contents are NaN (as float, half and bfloat16), and a freed address is never used again. While host code runs the pages cannot be
// touched; kernels and copies open an allocation when they first touch it, from the fault handler, and all are closed when the work is done.

static const size_t ARENA_BYTES = (size_t)1 << 40, PAGE = 4096;
static const size_t POISON_LIMIT = (size_t)64 << 20; // beyond it an allocation reads as zero: poison would cost the host real memory

struct Allocation {
    char *base, *map; // map: its pages
    size_t size, map_size, accounted;
    bool freed, open;
};
static char *arena;
static size_t arena_used, memory_used;
static uint32_t *allocation_of_page; // index + 1
static std::vector<Allocation> allocations;
static std::vector<uint32_t> opened;
static volatile bool in_copy; // the runtime moves data for a stream; read by the fault handler
static struct sigaction earlier_segv, earlier_bus;

static std::map<const char *, size_t> pinned, registered; // start: bytes; pinned: the registered ones as well
static bool is_pinned(const void *p, size_t n) {
    auto it = pinned.upper_bound((const char *)p);
    if (it == pinned.begin()) return false;
    --it;
    return (const char *)p + n <= it->first + it->second;
}

static void *reserve(size_t n, int protection) {
    void *p = mmap(nullptr, n, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("emu: mmap");
        abort();
    }
    return p;
}
static bool in_arena(const void *p) { return (size_t)((const char *)p - arena) < ARENA_BYTES; }
static Allocation *find_allocation(const void *p) {
    if (!in_arena(p)) return nullptr;
    const uint32_t i = allocation_of_page[(size_t)((const char *)p - arena) / PAGE];
    return i ? &allocations[i - 1] : nullptr;
}
static std::string describe(const void *p) {
    char text[200];
    const Allocation *nearest = nullptr;
    if (in_arena(p))
        for (const Allocation &a : allocations)
            if ((const char *)p >= a.map - PAGE && (const char *)p < a.map + a.map_size + PAGE)
                if (!nearest || llabs((const char *)p - a.base) < llabs((const char *)p - nearest->base)) nearest = &a;
    if (!nearest) {
        snprintf(text, sizeof text, "%p (%s)", p, in_arena(p) ? "device address of no allocation" : "not device memory");
        return text;
    }
    const long offset = (const char *)p - nearest->base;
    snprintf(text, sizeof text, "%p = %s allocation of %zu bytes, offset %ld%s", p, nearest->freed ? "FREED" : "live", nearest->size, offset,
             offset < 0 || offset >= (long)nearest->size ? " (OUT OF BOUNDS)" : "");
    return text;
}

static void open_allocation(Allocation *a) {
    if (a->open) return;
    mprotect(a->map, a->map_size, PROT_READ | PROT_WRITE);
    a->open = true;
    opened.push_back((uint32_t)(a - allocations.data()));
}
static void close_allocations() {
    if (!emu_config.guard_host) return; // they stay open
    for (uint32_t i : opened) {
        Allocation *a = &allocations[i];
        if (!a->freed) mprotect(a->map, a->map_size, PROT_NONE);
        a->open = false;
    }
    opened.clear();
}
static bool is_filled(const char *p, size_t n) { // with 0xff: the first byte, and each equal to the one after it
    return n == 0 || ((unsigned char)*p == 0xff && memcmp(p, p + 1, n - 1) == 0);
}
static void check_canaries(const char *who) {
    for (uint32_t i : opened) {
        Allocation *a = &allocations[i];
        char *end = a->base + a->size;
        const size_t n_before = (size_t)(a->base - a->map), n_after = (size_t)(a->map + a->map_size - end);
        if (a->freed || (is_filled(a->map, n_before) && is_filled(end, n_after))) continue;
        const char *p = a->map;
        while ((unsigned char)*p == 0xff || p == a->base) p = p == a->base ? end : p + 1;
        emu_report("device-out-of-bounds", false, "%s wrote at offset %ld of an allocation of %zu bytes", who, (long)(p - a->base), a->size);
        memset(a->map, 0xff, n_before);
        memset(end, 0xff, n_after);
    }
}

// The device's allocator hands out 2 MB pieces, and shares one among small requests.
static size_t accounted_bytes(size_t n) {
    const size_t grain = n >= 1 << 20 ? 2 << 20 : 512;
    return (n + grain - 1) / grain * grain;
}
static void checks_forget(char *p, size_t n);
static Allocation *allocate(size_t n) {
    const size_t map_size = (n + PAGE - 1) / PAGE * PAGE, start = arena_used;
    if (map_size + 2 * PAGE > ARENA_BYTES - arena_used) {
        emu_report("emu-arena-exhausted", false, "the emulator's address range is used up");
        return nullptr;
    }
    arena_used += map_size + 2 * PAGE;
    Allocation a = {};
    a.map = arena + start + PAGE;
    a.map_size = map_size;
    a.size = n;
    a.base = a.map + (map_size - n) / 256 * 256; // aligned as the device's, and as near to the guard page as that allows
    a.accounted = accounted_bytes(n);
    allocations.push_back(a);
    for (size_t at = 0; at < map_size; at += PAGE) allocation_of_page[(size_t)(a.map + at - arena) / PAGE] = (uint32_t)allocations.size();
    memory_used += a.accounted;
    Allocation *kept = &allocations.back();
    open_allocation(kept);
    memset(a.map, 0xff, (size_t)(a.base - a.map));
    memset(a.base + n, 0xff, (size_t)(a.map + map_size - a.base - n));
    if (n <= POISON_LIMIT && !emu_config.phantom) memset(a.base, 0xff, n);
    close_allocations();
    return kept;
}
static void release(Allocation *a) {
    open_allocation(a);
    check_canaries("somebody");
    checks_forget(a->base, a->size);
    memory_used -= a->accounted;
    a->freed = true;
    a->open = false;
    madvise(a->map, a->map_size, MADV_DONTNEED);
    mprotect(a->map, a->map_size, PROT_NONE);
    for (size_t i = 0; i < opened.size(); i++)
        if (&allocations[opened[i]] == a) opened.erase(opened.begin() + (long)i--);
}

static void on_fault(int sig, siginfo_t *info, void *) {
    char *p = (char *)info->si_addr;
    if ((in_kernel || in_copy) && info->si_code == SEGV_ACCERR) {
        Allocation *a = find_allocation(p);
        if (a && !a->freed && !a->open) {
            open_allocation(a);
            return;
        }
    }
    if (in_kernel && !in_collective && current) {
        const bool own_stack = p >= stacks && p < stacks + MAX_THREADS * STACK_BYTES;
        kernel_failed = true;
        if (own_stack)
            emu_report("stack-overflow", false, "a kernel thread used more than %zu bytes of stack", STACK_BYTES);
        else if (info->si_code == SI_KERNEL || (size_t)p < PAGE)
            emu_report("kernel-fault", false, "null or impossible address, or a misaligned vector access");
        else
            emu_report("device-out-of-bounds", false, "kernel access to %s", describe(p).c_str());
        siglongjmp(fault_return, 1);
    }
    if (in_arena(p)) {
        emu_report("host-touches-device-memory", false, "host code touched %s", describe(p).c_str());
        fflush(nullptr);
        _exit(EMU_EXIT_STATUS);
    }
    sigaction(sig, sig == SIGSEGV ? &earlier_segv : &earlier_bus, nullptr); // not ours: the instruction faults again, for them
}

// ---- shared memory ----
// The thread-local segment of the module that holds the kernels: all static __shared__ arrays, and cu_dyn_smem, which is defined here. It is NaN
// at the start of each block. Consequence: a program linked with the emulator has no thread_local variables of its own (checked once).
static const size_t DYN_MAX = 227 << 10, DYN_ZONE = 1024; // zone: canary behind the requested size
extern thread_local unsigned char cu_dyn_smem[];
alignas(128) thread_local unsigned char cu_dyn_smem[DYN_MAX + DYN_ZONE];

static char *shared_low, *shared_high; // this OS thread's
static size_t shared_before, shared_after; // bytes of the segment before cu_dyn_smem, and after its end
static char *module_low, *module_high;

// Filling every kernel's arrays before every block would cost more than most blocks, so it is measured which bytes a kernel's blocks write, after its
// first block and after launches 1, 2, 4, 8, ... of it, and only these are filled; the rest still is. (A kernel that leaves the range in between may
// leave bytes behind, and a missing write to them may then not be seen by the fast build. The check build does not depend on it.)
struct Extent { size_t low, high; unsigned n_launch; }; // offsets from shared_low
static std::map<const void *, Extent> extents;
static Extent *extent;
static bool extent_known;

static int find_segment(dl_phdr_info *info, size_t, void *) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type != PT_TLS || !info->dlpi_tls_data) continue;
        char *low = (char *)info->dlpi_tls_data, *high = low + segment->p_memsz, *dyn = (char *)cu_dyn_smem;
        if (dyn < low || dyn >= high) continue;
        shared_before = (size_t)(dyn - low);
        shared_after = (size_t)(high - (dyn + sizeof cu_dyn_smem));
        for (int j = 0; j < info->dlpi_phnum; j++) {
            const ElfW(Phdr) *load = &info->dlpi_phdr[j];
            char *start = (char *)info->dlpi_addr + load->p_vaddr;
            if (load->p_type != PT_LOAD) continue;
            if (!module_low || start < module_low) module_low = start;
            if (start + load->p_memsz > module_high) module_high = start + load->p_memsz;
        }
        return 1;
    }
    return 0;
}
static void require_no_thread_locals() {
    static bool done;
    for (char *p = shared_low; !done && p < shared_high; p++)
        if (*p) {
            fprintf(stderr, "emu: this program has thread_local variables of its own; the emulator uses that segment as shared memory\n");
            abort();
        }
    done = true;
}
// The segment without cu_dyn_smem, as offsets.
template <class Visit> static void each_static_part(Visit visit) {
    const size_t end = (size_t)(shared_high - shared_low);
    if (shared_before) visit((size_t)0, shared_before);
    if (shared_after) visit(end - shared_after, end);
}
static void measure_extent() { // what differs from the filling, 8 bytes at a time
    each_static_part([](size_t low, size_t high) {
        for (size_t at = low; at < high; at += 8) {
            const size_t end = std::min(at + 8, high);
            uint64_t bytes = ~0ull;
            memcpy(&bytes, shared_low + at, end - at);
            if (bytes == ~0ull) continue;
            extent->low = std::min(extent->low, at);
            extent->high = std::max(extent->high, end);
        }
    });
}
static void shared_begin_launch(const void *kernel) {
    char *dyn = (char *)cu_dyn_smem;
    __asm__("" : "+r"(dyn)); // what lies around the array is meant; the compiler would see an access outside of it
    const bool other_thread = shared_low != dyn - shared_before; // the first launch on this OS thread, or on another than last time
    shared_low = dyn - shared_before;
    shared_high = dyn + sizeof cu_dyn_smem + shared_after;
    require_no_thread_locals();
    if (other_thread) each_static_part([](size_t low, size_t high) { memset(shared_low + low, 0xff, high - low); });
    auto found = extents.emplace(kernel, Extent{SIZE_MAX, 0, 0});
    extent = &found.first->second;
    extent_known = !found.second;
}
static void fill_extent() {
    each_static_part([](size_t low, size_t high) {
        low = std::max(low, extent->low);
        high = std::min(high, extent->high);
        if (low < high) memset(shared_low + low, 0xff, high - low);
    });
}
static void shared_end_launch() {
    const unsigned n = ++extent->n_launch;
    if ((n & (n - 1)) == 0) measure_extent();
    fill_extent();
}

static void shared_begin() {
    memset(cu_dyn_smem, 0xff, now_running.smem_bytes + DYN_ZONE);
    fill_extent();
}
static void shared_end() {
    if (!extent_known) measure_extent();
    extent_known = true;
    for (size_t i = now_running.smem_bytes; i < now_running.smem_bytes + DYN_ZONE; i++)
        if (cu_dyn_smem[i] != 0xff) {
            emu_report("shared-out-of-bounds", false, "kernel %s wrote at offset %zu of %zu bytes of dynamic shared memory", now_running.name, i,
                       now_running.smem_bytes);
            break;
        }
}
