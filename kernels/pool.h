// pool.h: threads that share the items of a loop. Open once; run any number of loops, all from one thread; close.
//
// The caller works along as thread 0, so that a pool of one thread is a plain loop. Each thread begins with an equal share of
// neighbouring items, in ascending order (each reads one stretch of memory), then
// helps the others from the far end. A run ends when its items are done, not when every thread has come by: one that other
// programs keep from its processor is not waited for unless it has begun an item.
// Who waits spins for SPIN_US, then offers the processor to others, then sleeps (YIELD_US after the beginning); with more threads
// than processors nobody spins.
#ifndef POOL_H
#define POOL_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Pool Pool;
typedef void Work(const void *args, int item, int thread); // 0 <= thread < the pool's threads: for scratch memory

Pool *pool_open(int n_thread); // NULL: no memory, or the system grants no such number of threads
void pool_run(Pool *p, Work *work, const void *args, int n_item); // returns when all are done
void pool_wake(Pool *p); // by who runs loops: one will come soon. The others begin to wait anew
void pool_close(Pool *p);

// Processors this process may use at once: its CPU mask, and the CPU time its control groups (versions 1 and 2) grant, rounded up.
int processors_allowed(void);
// The second part alone, 0: no limit. groups: as /proc/self/cgroup; root: as /sys/fs/cgroup.
int quota_allowed(const char *groups, const char *root);

#ifdef __cplusplus
}
#endif

#endif
