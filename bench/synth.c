// synth.c: see synth.h
#include "synth.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "bench.h"
#include "console.h"
#include "options.h"

// ---- the command ----

static const char HELP[] =
    "bench synth SHAPE OUT.gguf [Q4_K_M|Q8_0|F16]   a model of random weights with a published one's shapes and types (default Q4_K_M)\n"
    "            --header-only                       zeros for weights, which take no room on the disk: for run --plan\n"
    "bench synth --list                             the shapes, and how large they are\n";

static void list_shapes(void) {
    Synthetic s;
    printf("%-15s %-22s %10s %12s %12s %12s  %s\n", "shape", "like", "parameters", "Q4_K_M", "Q8_0", "F16", "tensors of Q4_K_M");
    for (int i = 0; (s = synthetic_at(i)).shape; i++) {
        SyntheticCost c = synthetic_cost(&s);
        printf("%-15s %-22s %8.3f B ", c.name, c.like, (double)c.n_param * 1e-9);
        for (s.mix = 0; s.mix < 3; s.mix++) printf(" %9.3f GB", (double)synthetic_cost(&s).bytes * 1e-9);
        putchar(' ');
        for (int t = 0; t < TYPE_COUNT; t++)
            if (c.n_tensor[t]) printf(" %s %d", type_info(t)->name, c.n_tensor[t]);
        putchar('\n');
    }
}

static char temporary[4096], unfinished[4096 + 8]; // removed on the way out, also on a signal

static void remove_files(void) {
    if (temporary[0]) unlink(temporary);
    if (unfinished[0]) unlink(unfinished);
    temporary[0] = unfinished[0] = 0;
}

static void on_signal(int sig) {
    if (temporary[0]) unlink(temporary);
    if (unfinished[0]) unlink(unfinished);
    signal(sig, SIG_DFL);
    raise(sig);
}

static void remove_on_signal(void) {
    const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (int i = 0; i < 3; i++) signal(signals[i], on_signal);
}

Status bench_synth(int argc, char **argv, Err *e) {
    char text[64];
    Synthetic s;
    if (argc == 2 && (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help"))) {
        fputs(HELP, stdout);
        return DONE;
    }
    if (argc == 2 && !strcmp(argv[1], "--list")) {
        list_shapes();
        return DONE;
    }
    bool header_only = false;
    if (argc > 1 && !strcmp(argv[argc - 1], "--header-only")) header_only = true, argc--;
    for (int i = 1; i < argc; i++)
        if (argv[i][0] == '-') return err_set(e, "unknown option '%s' of bench synth", argv[i]), USAGE;
    if (argc < 3 || argc > 4) return err_set(e, "expected bench synth SHAPE OUT.gguf [Q4_K_M|Q8_0|F16] [--header-only], or bench synth --list"), USAGE;
    snprintf(text, sizeof text, argc > 3 ? "%s:%s" : "%s", argv[1], argc > 3 ? argv[3] : "");
    if (!synthetic_parse(text, &s, e)) return USAGE;
    snprintf(unfinished, sizeof unfinished, "%s.tmp", argv[2]); // what the writer writes to
    remove_on_signal();
    const bool ok = synthetic_write(&s, argv[2], header_only, e);
    unfinished[0] = 0;
    return ok ? DONE : FAILED;
}

// ---- for --synthetic ----

bool synth_open(Model *m, const Synthetic *s, Err *e) {
    const char *folder = getenv("TMPDIR");
    struct statvfs disk;
    const uint64_t bytes = synthetic_cost(s).bytes + (64 << 20);
    if (!folder || !*folder) folder = !statvfs("/dev/shm", &disk) && (uint64_t)disk.f_bavail * disk.f_frsize > bytes && !access("/dev/shm", W_OK) ? "/dev/shm" : "/tmp";
    if (strlen(folder) > 3900) return err_set(e, "TMPDIR is too long a name");
    snprintf(temporary, sizeof temporary, "%s/bench-%ld-%llx.gguf", folder, (long)getpid(), (unsigned long long)(seconds_now() * 1e6));
    snprintf(unfinished, sizeof unfinished, "%s.tmp", temporary);
    remove_on_signal();
    const bool ok = synthetic_write(s, temporary, false, e) && model_open(m, temporary, e);
    remove_files(); // the mapping keeps the bytes
    return ok;
}
