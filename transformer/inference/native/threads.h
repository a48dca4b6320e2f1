/* How the threads of a parallel region share its loops, also on processors that compute other things meanwhile.

   Every thread runs the same loops and claims their iterations one by one: first those of its own share, then those of
   the others' that no thread has begun. A loop is complete when its iterations are, whichever threads have come to it. So
   a thread that does not run, since the operating system gave its processor to another process, delays the others by
   the one iteration that it is in, and by the end of the region. With a barrier it would delay them in every loop.

   A thread that has to wait spins for a moment, then sleeps: one that spent its time slice waiting would not run when
   the others do. */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifndef SPIN_NS
#define SPIN_NS 50000 /* a loop takes some microseconds */
#endif

#define COUNT_BITS 20 /* for iterations that were taken from one end of a share */
#define COUNT_MASK ((1u << COUNT_BITS) - 1)

/* How many of a thread's iterations are taken: 24 bits for the number of the loop, 20 bits for those from the back,
   20 bits for those from the front. What an earlier loop left there counts as 0. */
typedef struct {
    _Alignas(64) _Atomic uint64_t taken;
} Share;

typedef struct {
    _Alignas(64) _Atomic uint32_t completed; /* loops */
    _Atomic uint32_t sleepers; /* that wait for it */
    _Alignas(64) _Atomic int64_t finished; /* iterations of the current loop */
    Share *shares; /* one for each thread, zeros at first */
} Team;

typedef struct { /* a thread of a team */
    Team *team;
    int index, threads;
    int victim; /* whose share it claims from: 0 is its own, 1 the next thread's, ... */
    uint32_t loop; /* number of the current one */
    int64_t claimed; /* iterations of the current loop */
} Thread;

/* Sleep while the word has this value, or wake all that do. Elsewhere than on Linux they look again and again. */
#ifdef __linux__
static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    int kept = errno;
    syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
    errno = kept;
}
static void sleep_while(_Atomic uint32_t *word, uint32_t value) { futex(word, FUTEX_WAIT_PRIVATE, value); }
static void wake_sleepers(_Atomic uint32_t *word) { futex(word, FUTEX_WAKE_PRIVATE, INT32_MAX); }
#else
static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
    if (atomic_load(word) == value) nanosleep(&(struct timespec){.tv_nsec = SPIN_NS}, NULL);
}
static void wake_sleepers(_Atomic uint32_t *word) { (void)word; }
#endif

/* Tells the processor that this thread spins. */
static void pause_spinning(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Waits while `completed` is `value`. */
static void wait_while(Team *team, uint32_t value) {
    for (int64_t end = 0, now = 0; now <= end;) {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(&team->completed, memory_order_acquire) != value) return;
            pause_spinning();
        }
        now = nanoseconds();
        if (!end) end = now + SPIN_NS;
    }
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->completed) == value) sleep_while(&team->completed, value);
    atomic_fetch_sub(&team->sleepers, 1);
}

/* The next iteration of a loop of n, or -1 if none is left to begin. */
static int64_t claim(Thread *t, int64_t n) {
    if (t->threads == 1) return t->claimed < n ? t->claimed++ : -1;
    uint64_t mark = (uint64_t)t->loop << 2 * COUNT_BITS;
    for (; t->victim < t->threads; t->victim++) {
        int64_t owner = (t->index + t->victim) % t->threads;
        int64_t first = n * owner / t->threads, size = n * (owner + 1) / t->threads - first;
        _Atomic uint64_t *taken = &t->team->shares[owner].taken;
        uint64_t old = atomic_load(taken);
        for (;;) {
            uint64_t counts = old > mark ? old - mark : 0;
            if (counts >> 2 * COUNT_BITS) return -1; /* the others are loops ahead */
            int64_t front = counts & COUNT_MASK, back = counts >> COUNT_BITS;
            if (front + back >= size) break;
            if (!atomic_compare_exchange_weak(taken, &old, mark + counts + (t->victim ? 1 << COUNT_BITS : 1)))
                continue;
            t->claimed++;
            return t->victim ? first + size - 1 - back : first + front;
        }
    }
    return -1;
}

/* Counts what this thread has claimed of n as finished. Returns whether all n are. */
static int report(Thread *t, int64_t n) {
    Team *team = t->team;
    int64_t claimed = t->claimed;
    t->claimed = t->victim = 0;
    t->loop++;
    if (!claimed || atomic_fetch_add(&team->finished, claimed) + claimed < n) return 0;
    atomic_store_explicit(&team->finished, 0, memory_order_relaxed);
    atomic_store(&team->completed, t->loop);
    if (atomic_load(&team->sleepers)) wake_sleepers(&team->completed);
    return 1;
}

/* Returns when all n iterations of the loop are finished. */
static void complete(Thread *t, int64_t n) {
    if (t->threads == 1 || !n) t->claimed = t->victim = 0;
    else if (!report(t, n)) wait_while(t->team, t->loop - 1);
}

/* The end of the region. The first thread waits here for the others, since at OpenMP's own end it would spin. */
static void finish(Thread *t) {
    if (t->threads == 1) return;
    t->claimed = 1;
    if (!report(t, t->threads) && !t->index) wait_while(t->team, t->loop - 1);
}

/* ---- where the threads come from ---- */

/* The OpenMP runtime that PyTorch has loaded. Its threads are used, since those of another pool would wait for their
   processors: OpenMP's spin for a while after each of PyTorch's operations. NULL where nothing has loaded one. */
void GOMP_parallel(void (*function)(void *), void *context, unsigned threads, unsigned flags) __attribute__((weak));
int omp_get_thread_num(void) __attribute__((weak));
int omp_get_num_threads(void) __attribute__((weak));

typedef struct {
    Thread thread;
    void (*function)(Thread *, void *);
    void *context;
    pthread_t id;
} Member;

static void *run_member(void *member) {
    Member *m = member;
    m->function(&m->thread, m->context);
    finish(&m->thread);
    return NULL;
}

static void run_openmp_member(void *first) {
    Member member = *(Member *)first;
    member.thread.index = omp_get_thread_num();
    member.thread.threads = omp_get_num_threads();
    run_member(&member);
}

/* Run a function in some threads, this one among them. shares: one for each thread, zeros. */
static void run_team(int threads, Share *shares, void (*function)(Thread *, void *), void *context) {
    Team team = {.shares = shares};
    Member members[threads];
    for (int i = 0; i < threads; i++)
        members[i] = (Member){{&team, i, threads, 0, 0, 0}, function, context, 0};
    if (threads > 1 && GOMP_parallel && omp_get_thread_num && omp_get_num_threads) {
        GOMP_parallel(run_openmp_member, members, threads, 0);
        return;
    }
    int started = 1;
    while (started < threads && !pthread_create(&members[started].id, NULL, run_member, &members[started])) started++;
    for (int i = started; i < threads; i++) run_member(&members[i]); /* one that the system refuses is run here */
    run_member(&members[0]);
    for (int i = 1; i < started; i++) pthread_join(members[i].id, NULL);
}
