// outfile.c: see outfile.h
#include "outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "console.h"

static char *with_suffix(const char *path, const char *suffix) {
    const size_t n = strlen(path);
    char *out = malloc(n + strlen(suffix) + 1);
    if (out) {
        memcpy(out, path, n);
        strcpy(out + n, suffix);
    }
    return out;
}

static const char *tail(const char *path) {
    const size_t n = strlen(path);
    return n > 200 ? path + n - 200 : path;
}

bool outfile_check(const char *path, const char *const *inputs, int n, Err *e) {
    struct stat out, in;
    if (!*path) return err_set(e, "the name of the file to write is empty");
    if (!stat(path, &out) && !S_ISREG(out.st_mode)) return err_set(e, "%s: is %s, expected a file to write", tail(path), S_ISDIR(out.st_mode) ? "a directory" : "a device or a pipe");
    char *const names[2] = {with_suffix(path, ""), with_suffix(path, ".tmp")};
    bool ok = (names[0] && names[1]) || err_set(e, "%s: no memory", tail(path));
    for (int k = 0; ok && k < 2; k++)
        for (int i = 0; ok && i < n && !stat(names[k], &out); i++)
            if (inputs[i] && !stat(inputs[i], &in) && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
                ok = err_set(e, "%s: is %s, which is read; give another name for the output", tail(names[k]), strcmp(inputs[i], names[k]) ? tail(inputs[i]) : "the same file");
    free(names[0]);
    free(names[1]);
    return ok;
}

// The folder of a path; false: there is none.
static bool folder_of(const char *path, struct stat *s) {
    char *folder = with_suffix(path, ""), *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) slash[slash == folder] = 0;
    const bool ok = folder && !stat(slash ? folder : ".", s);
    free(folder);
    return ok;
}

bool outfile_same(const char *a, const char *b) {
    struct stat x, y;
    const char *p = strrchr(a, '/'), *q = strrchr(b, '/');
    if (strcmp(p ? p + 1 : a, q ? q + 1 : b)) return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
    return !strcmp(a, b) || (folder_of(a, &x) && folder_of(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

// Bytes that may still be written where fd lies.
static uint64_t room(int fd) {
    struct statvfs s;
    return fstatvfs(fd, &s) ? UINT64_MAX : (uint64_t)s.f_bavail * s.f_frsize;
}

bool outfile_open(OutFile *o, const char *path, uint64_t n, uint64_t further, Err *e) {
    *o = (OutFile){.path = with_suffix(path, ""), .tmp = with_suffix(path, ".tmp"), .fd = -1, .n = n};
    if (!o->path || !o->tmp) return err_set(e, "%s: no memory", tail(path));
    unlink(o->tmp); // left by a run that was killed; O_EXCL: never write through somebody's link
    o->fd = open(o->tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (o->fd < 0) return err_set(e, "%s: cannot create: %s", tail(o->tmp), strerror(errno));
    o->left = true;
    const uint64_t there = room(o->fd);
    if (there < n || there - n < further)
        return err_set(e, "%s: needs %.1f MiB%s, the disk has %.1f", tail(path), (double)(n + further) / 0x1p20, further ? " with its undo file" : "", (double)there / 0x1p20);
    if (!fallocate(o->fd, 0, 0, (off_t)n) || errno == EOPNOTSUPP || errno == ENOSYS) return true; // not every file system can promise
    return err_set(e, "%s: cannot take %.1f MiB: %s", tail(path), (double)n / 0x1p20, strerror(errno));
}

bool outfile_write(OutFile *o, const void *p, size_t n, Err *e) {
    const char *from = p;
    while (n) {
        const ssize_t k = pwrite(o->fd, from, n, (off_t)o->at);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return err_set(e, "%s: cannot write: %s", tail(o->path), k ? strerror(errno) : "nothing more goes in");
        from += k;
        n -= (size_t)k;
        o->at += (uint64_t)k;
    }
    return true;
}

bool outfile_sync(OutFile *o, Err *e) {
    if (fsync(o->fd)) return err_set(e, "%s: cannot write: %s", tail(o->path), strerror(errno));
    (void)posix_fadvise(o->fd, 0, 0, POSIX_FADV_DONTNEED); // advice
    return true;
}

// The new name must survive a power failure, too; where the file system cannot promise that, the file is there: no error.
static void sync_folder(char *path) {
    char *slash = strrchr(path, '/');
    if (slash) slash[slash == path] = 0;
    const int fd = open(slash ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

bool outfile_commit(OutFile *o, Err *e) {
    struct stat ours, there;
    if (fstat(o->fd, &ours) || stat(o->tmp, &there) || ours.st_dev != there.st_dev || ours.st_ino != there.st_ino) {
        o->left = false;
        return err_set(e, "%s: something else writes this file, too", tail(o->path));
    }
    if (rename(o->tmp, o->path)) return err_set(e, "%s: cannot complete: %s", tail(o->path), strerror(errno));
    o->left = false;
    sync_folder(o->path);
    return true;
}

void outfile_close(OutFile *o) {
    if (o->fd >= 0 && o->path) close(o->fd);
    if (o->left) unlink(o->tmp);
    free(o->path);
    free(o->tmp);
    *o = (OutFile){.fd = -1};
}

void catch_end(void) {
    struct sigaction a;
    catch_interrupt(true);
    sigaction(SIGINT, NULL, &a);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGHUP, &a, NULL);
    signal(SIGXFSZ, SIG_IGN);
}
