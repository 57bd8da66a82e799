// Part of emu_rt.cpp: memory that host and device share while both run (cudaHostAllocMapped), where emu_config.views asks for it. Each side has a view
// of its own, and sees of what the other writes as little as it must:
//   the device gives   store_release: what the block has written before, with the number; what other blocks wrote before a fence of theirs, if the
//                      block itself has had a fence since its last atomic
//   the host takes     __atomic_load_n(p, __ATOMIC_ACQUIRE): all that was given so far; a relaxed load: what it reads, no more
//   the host gives     __atomic_store_n(p, number, __ATOMIC_RELEASE): all it wrote before; a relaxed store: that number
//   the device takes   load_acquire
// A launch gives and the beginning of a grid takes it; the end of a grid gives, and a host that has waited for the stream takes.
// mapped-race: a side writes what the other may still read: it has taken it, and gave nothing since that this side has taken.
// Found by comparing, word by word, with what a view held when last looked at: at a block's fences and end, where it waits, and where the host gives.
// So the same value written again is not seen. Words that the host uses with atomics may be written and read by both at any time.
enum : uint16_t {
    WRITTEN = 1, FENCED = 2,      // by the running block
    OTHERS = 4, LOOSE = 8,        // by blocks that have ended: fenced, or not
    TO_HOST = 16, TO_DEVICE = 32, // given, not taken yet
    HOST_READS = 64, HOST_READ = 128, DEVICE_READS = 256, DEVICE_READ = 512, // READ: it gave something since
    LAUNCHED = 1024,              // TO_DEVICE, but by a launch
    NUMBER = 2048                 // used with atomics
};
struct Mapped {
    uint32_t *host, *device, *host_was, *device_was; // [n]; was: when last looked at
    uint16_t *state;                                 // [n]
    size_t n;
};
static std::vector<Mapped> mapped;

static void mapped_open(char *host, size_t bytes) {
    const size_t n = bytes / 4;
    Allocation *a = emu_config.views && n ? allocate(n * 4) : nullptr;
    if (!a) return;
    memory_used -= a->accounted; // it is the host's
    a->accounted = 0;
    Mapped m = {(uint32_t *)host, (uint32_t *)a->base, nullptr, nullptr, (uint16_t *)calloc(n, 2), n};
    m.host_was = (uint32_t *)malloc(n * 4);
    m.device_was = (uint32_t *)malloc(n * 4);
    open_allocation(a);
    memcpy(m.device, host, n * 4);
    memcpy(m.host_was, host, n * 4);
    memcpy(m.device_was, host, n * 4);
    checks_written(m.device, n * 4);
    close_allocations();
    mapped.push_back(m);
}
static void mapped_close(const void *host) { // NULL: all
    for (size_t i = mapped.size(); i--;) {
        Mapped m = mapped[i];
        if (host && m.host != host) continue;
        Allocation *a = find_allocation(m.device);
        if (a && !a->freed) release(a);
        free(m.host_was), free(m.device_was), free(m.state);
        mapped.erase(mapped.begin() + (long)i);
    }
}
static void *mapped_view(void *host) { // the device's address
    for (const Mapped &m : mapped)
        if ((size_t)((char *)host - (char *)m.host) < m.n * 4) return (char *)m.device + ((char *)host - (char *)m.host);
    return host;
}
static void mapped_race(const Mapped &m, size_t i, const char *who, const char *other) {
    if (m.state[i] & NUMBER || !first_time(m.state)) return;
    emu_report("mapped-race", false, "%s wrote word %zu of %zu of mapped memory, which %s may still read", who, i, m.n, other);
}
template <class Visit> static void each_word(uint16_t any, Visit visit) { // that has one of these
    for (Mapped &m : mapped)
        for (size_t i = 0; i < m.n; i++)
            if (m.state[i] & any) visit(m, i);
}
static void exchange(uint16_t from, uint16_t to) {
    each_word(from, [=](Mapped &m, size_t i) { m.state[i] = (uint16_t)((m.state[i] & ~from) | to); });
}

// What the running block has written. Untouched views are closed.
static bool mapped_look() {
    bool any = false;
    for (Mapped &m : mapped) {
        if (!find_allocation(m.device)->open) continue;
        any = true;
        if (!memcmp(m.device, m.device_was, m.n * 4)) continue;
        for (size_t i = 0; i < m.n; i++) {
            if (m.device[i] == m.device_was[i]) continue;
            if (m.state[i] & (TO_DEVICE | LAUNCHED | HOST_READS | HOST_READ)) mapped_race(m, i, "the device", "the host");
            m.device_was[i] = m.device[i];
            m.state[i] = (uint16_t)((m.state[i] & ~(FENCED | OTHERS | LOOSE | TO_HOST)) | WRITTEN);
        }
    }
    return any;
}
static void mapped_fence() {
    if (mapped.empty()) return;
    fenced_since_atomic = true;
    if (mapped_look()) exchange(WRITTEN, FENCED);
}
static void mapped_block_ends() {
    fenced_since_atomic = false;
    if (mapped.empty() || !mapped_look()) return;
    exchange(WRITTEN, LOOSE);
    exchange(FENCED, OTHERS);
}
static void mapped_device_gives(bool all) {
    if (mapped.empty()) return;
    mapped_look();
    exchange((uint16_t)(WRITTEN | FENCED | (all || fenced_since_atomic ? OTHERS : 0) | (all ? LOOSE : 0)), TO_HOST);
    exchange(DEVICE_READS, DEVICE_READ);
}
static void mapped_device_takes(bool begins) {
    if (mapped.empty()) return;
    mapped_look();
    each_word(begins ? LAUNCHED : TO_DEVICE, [=](Mapped &m, size_t i) {
        open_allocation(find_allocation(m.device));
        m.device[i] = m.device_was[i] = m.host_was[i];
        m.state[i] = (uint16_t)((m.state[i] & ~(TO_DEVICE | LAUNCHED)) | (begins ? 0 : DEVICE_READS));
    });
    if (!begins) exchange(HOST_READ, 0);
}
static void take_word(Mapped &m, size_t i) {
    if (m.host[i] != m.host_was[i]) mapped_race(m, i, "the host", "the device");
    m.host[i] = m.host_was[i] = m.device_was[i];
    m.state[i] = (uint16_t)((m.state[i] & ~TO_HOST) | HOST_READS);
}
static void mapped_host_takes(bool waited) {
    each_word(TO_HOST, take_word);
    if (waited) exchange(HOST_READS, 0); // it need not tell anybody when it has read it
    exchange(DEVICE_READ, 0);
}
static void give_word(Mapped &m, size_t i, uint16_t how) {
    if (m.state[i] & (WRITTEN | FENCED | OTHERS | LOOSE | TO_HOST | DEVICE_READS | DEVICE_READ)) mapped_race(m, i, "the host", "the device");
    m.host_was[i] = m.host[i];
    m.state[i] |= how;
}
static void mapped_host_gives(bool launches) {
    for (Mapped &m : mapped) {
        if (!memcmp(m.host, m.host_was, m.n * 4)) continue;
        for (size_t i = 0; i < m.n; i++)
            if (m.host[i] != m.host_was[i]) give_word(m, i, launches ? LAUNCHED : TO_DEVICE);
    }
    exchange(launches ? TO_DEVICE : LAUNCHED, TO_DEVICE | LAUNCHED);
    if (!launches) exchange(HOST_READS, HOST_READ);
}
// The host has stored at p, or is about to load from it.
void emu_host_atomic(const volatile void *p, bool store, int order) {
    for (Mapped &m : mapped) {
        const size_t i = (size_t)((const char *)p - (const char *)m.host) / 4;
        if (i >= m.n) continue;
        m.state[i] |= NUMBER;
        if (order != __ATOMIC_RELAXED) store ? mapped_host_gives(false) : mapped_host_takes(false);
        else if (store) give_word(m, i, TO_DEVICE);
        else if (m.state[i] & TO_HOST) take_word(m, i);
    }
}
