// console.c: see console.h
#include "console.h"

#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

volatile sig_atomic_t interrupted;

static volatile sig_atomic_t suspended;

static void on_signal(int sig) { *(sig == SIGTSTP ? &suspended : &interrupted) = 1; }

static void catch(int sig, bool on) {
    struct sigaction sa = {.sa_handler = on ? on_signal : SIG_DFL, .sa_flags = sig == SIGTSTP ? SA_RESTART : 0};
    sigemptyset(&sa.sa_mask);
    sigaction(sig, &sa, NULL);
}

void catch_interrupt(bool on) {
    catch(SIGINT, on);
    interrupted = 0;
}

void catch_stops(bool on) {
    (void)asked_to_stop();
    catch(SIGTSTP, on);
    catch_interrupt(on);
}

bool asked_to_stop(void) {
    if (suspended) {
        suspended = 0;
        catch(SIGTSTP, false);
        raise(SIGTSTP);
        catch(SIGTSTP, true);
    }
    return interrupted;
}

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool is_terminal(int fd) { return isatty(fd); }

bool is_utf8(void) {
    static int known = -1;
    if (known < 0) {
        setlocale(LC_CTYPE, "");
        known = !strcmp(nl_langinfo(CODESET), "UTF-8");
    }
    return known;
}

int terminal_width(int fd) {
    struct winsize w;
    return !ioctl(fd, TIOCGWINSZ, &w) && w.ws_col >= 20 ? w.ws_col : 100;
}

// ---- progress and files ----

void progress_start(Progress *p, const char *label) { *p = (Progress){.label = label, .start = seconds_now()}; }

void progress_step(Progress *p, double done, double total) {
    const double now = seconds_now(), spent = now - p->start;
    if (!is_terminal(STDERR_FILENO) || spent < 0.5 || now - p->drawn < 0.1 || done <= 0) return;
    p->drawn = now;
    p->shown = true;
    char bar[25];
    for (int i = 0; i < 24; i++) bar[i] = i < (int)(24 * done / total) ? '=' : ' ';
    bar[24] = 0;
    fprintf(stderr, "\r%s [%s] %3.0f %%  %.0f s left \033[K", p->label, bar, 100 * done / total, spent * (total - done) / done);
}

void progress_end(Progress *p) {
    if (p->shown) fprintf(stderr, "\r\033[K");
}

bool read_whole_file(const char *path, char **text, size_t *n, Err *e) {
    const bool in = !strcmp(path, "-");
    FILE *f = in ? stdin : fopen(path, "rb");
    if (!f) return err_set(e, "%s: %s", path, strerror(errno));
    size_t cap = 1 << 16;
    char *p = malloc(cap);
    *n = 0;
    bool ok = p != NULL;
    while (ok) {
        const size_t got = fread(p + *n, 1, cap - 1 - *n, f);
        *n += got;
        if (!got) break;
        if (*n + 1 == cap) {
            char *bigger = realloc(p, cap *= 2);
            ok = bigger != NULL;
            if (ok) p = bigger;
        }
    }
    if (!ok) err_set(e, "%s: no memory for the text", in ? "standard input" : path);
    else if (ferror(f)) ok = err_set(e, "%s: %s", in ? "standard input" : path, strerror(errno));
    if (!in) fclose(f);
    if (!ok) {
        free(p);
        return false;
    }
    p[*n] = 0;
    *text = p;
    return true;
}

bool safe_open(SafeFile *f, const char *path, Err *e) {
    *f = (SafeFile){.path = strdup(path), .tmp = malloc(strlen(path) + 32)};
    if (!f->path || !f->tmp) {
        free(f->path);
        free(f->tmp);
        return err_set(e, "%s: no memory", path);
    }
    struct stat st;
    if (!stat(path, &st) && !S_ISREG(st.st_mode)) strcpy(f->tmp, path); // a device or a pipe is written to, not replaced
    else snprintf(f->tmp, strlen(path) + 32, "%s.%ld.tmp", path, (long)getpid());
    f->f = fopen(f->tmp, "wb");
    if (f->f) return true;
    err_set(e, "%s: cannot write: %s", path, strerror(errno));
    free(f->path);
    free(f->tmp);
    return false;
}

bool safe_close(SafeFile *f, bool keep, Err *e) {
    const bool direct = !strcmp(f->tmp, f->path);
    bool ok = keep;
    if (keep && (fflush(f->f) || ferror(f->f) || (!direct && fsync(fileno(f->f))))) ok = err_set(e, "%s: cannot write: %s", f->path, strerror(errno));
    if (fclose(f->f) && ok) ok = err_set(e, "%s: cannot write: %s", f->path, strerror(errno));
    if (ok && !direct && rename(f->tmp, f->path)) ok = err_set(e, "%s: cannot write: %s", f->path, strerror(errno));
    if (!ok && !direct) unlink(f->tmp);
    free(f->path);
    free(f->tmp);
    return ok || !keep;
}
