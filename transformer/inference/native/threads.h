/* Threads that share the loops of a pass, also on processors that compute other things at the same time.

   A pass is a sequence of loops. Every thread runs the same pass and claims the
   iterations of each loop one by one: first those of its own share, then those that nobody has begun of the others'.
   A loop is complete when its iterations are, whichever threads have come to it. So a thread that does not run, since
   the operating system gave its processor to another process, delays the others by the one iteration that it is in.

   Whoever waits spins for a moment, then sleeps: the processor may have something else to compute, and a thread that
   slept gets it back sooner than one that spent its time slice waiting. A thread other than the caller's leaves the
   pass before it sleeps, and the caller waits at the end only for threads that are in it. */

#include <errno.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST_THREADS 256
#ifndef SPIN_NS
#define SPIN_NS 50000 /* at the end of a loop, which takes some microseconds */
#endif
#ifndef IDLE_SPIN_NS
#define IDLE_SPIN_NS 200000 /* between passes: a sampled token, and what is done with it */
#endif

typedef struct { /* one thread in one pass */
    int index, threads; /* index 0 is the caller */
    uint32_t pass, loop; /* numbers of the pass and of the current loop */
    int victim; /* whose share it claims from: its own is 0, the next thread's 1, ... */
    int64_t claimed; /* iterations of the current loop */
} Thread;

typedef int (*Body)(const void *argument, Thread *thread); /* returns 0 if the thread left the pass */

#define OPEN (1u << 31)
#define COUNT_BITS 20 /* of the iterations that were taken from either end of a share */
#define COUNT_MASK ((1u << COUNT_BITS) - 1)

typedef struct { /* of a thread's iterations: 24 bits of the loop's number, 20 for those taken from the back, 20 from the front */
    _Alignas(64) _Atomic uint64_t taken;
} Share;

static struct {
    Share shares[MOST_THREADS];
    _Alignas(64) _Atomic uint32_t completed; /* loops since the start */
    _Atomic uint32_t sleepers; /* until a loop is complete */
    _Alignas(64) _Atomic int64_t finished; /* iterations of the current loop */
    _Alignas(64) _Atomic uint64_t entry; /* number of the pass, whether it is open, and how many threads are in it */
    _Atomic uint32_t closing; /* the caller sleeps until they have left */
    _Alignas(64) _Atomic uint32_t passes; /* number of the last pass */
    _Atomic uint32_t idle; /* threads that sleep until the next */
    _Alignas(64) Body body;
    const void *argument;
    int threads; /* that share the pass */
    int started; /* threads that exist, the caller included */
    uint32_t first; /* number of the pass's first loop */
} team;

static pthread_mutex_t team_lock = PTHREAD_MUTEX_INITIALIZER;

static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    int kept = errno;
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
    errno = kept;
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Spins while the word is `value`, for at most `limit` nanoseconds. Returns 0 if it still is. */
static int spin_while(_Atomic uint32_t *word, uint32_t value, int64_t limit) {
    for (int64_t end = 0;;) {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value) return 1;
            _mm_pause();
        }
        int64_t now = nanoseconds();
        if (!end) end = now + limit;
        else if (now >= end) return 0;
    }
}

static int enter(uint32_t pass) {
    uint64_t entry = atomic_load(&team.entry);
    do {
        if (entry >> 32 != pass || !(entry & OPEN)) return 0;
    } while (!atomic_compare_exchange_weak(&team.entry, &entry, entry + 1));
    return 1;
}

/* The half of `entry` that changes within a pass, as a futex. */
static _Atomic uint32_t *entry_word(void) { return (_Atomic uint32_t *)&team.entry; }

static void leave(void) {
    uint32_t before = (uint32_t)atomic_fetch_sub(&team.entry, 1);
    if (before == 1 && atomic_load(&team.closing)) futex(entry_word(), FUTEX_WAKE, 1);
}

/* The next iteration of a loop of n, or -1 if nothing is left to begin. */
static int64_t claim(Thread *t, int64_t n) {
    if (t->threads == 1) return t->claimed < n ? t->claimed++ : -1;
    for (; t->victim < t->threads; t->victim++) {
        int64_t owner = (t->index + t->victim) % t->threads;
        int64_t first = n * owner / t->threads, size = n * (owner + 1) / t->threads - first;
        _Atomic uint64_t *taken = &team.shares[owner].taken;
        uint64_t old = atomic_load(taken);
        for (;;) {
            int32_t behind = (int32_t)((t->loop - (uint32_t)(old >> 2 * COUNT_BITS)) << 8) >> 8;
            if (behind < 0) return -1; /* the others are loops ahead */
            uint64_t front = behind ? 0 : old & COUNT_MASK, back = behind ? 0 : old >> COUNT_BITS & COUNT_MASK;
            if ((int64_t)(front + back) >= size) break;
            uint64_t mark = (uint64_t)(t->loop & 0xffffff) << 2 * COUNT_BITS;
            uint64_t new = t->victim ? mark | (back + 1) << COUNT_BITS | front : mark | back << COUNT_BITS | (front + 1);
            if (!atomic_compare_exchange_weak(taken, &old, new)) continue;
            t->claimed++;
            return t->victim ? first + size - 1 - (int64_t)back : first + (int64_t)front;
        }
    }
    return -1;
}

/* Waits until all n iterations of a loop are finished. Returns 0 if the pass ended meanwhile, whose data are gone. */
static int complete(Thread *t, int64_t n) {
    int64_t claimed = t->claimed;
    uint32_t loop = t->loop;
    t->claimed = t->victim = 0;
    if (t->threads == 1 || !n) return 1;
    t->loop++;
    if (claimed && atomic_fetch_add(&team.finished, claimed) + claimed == n) {
        atomic_store_explicit(&team.finished, 0, memory_order_relaxed);
        atomic_store(&team.completed, loop + 1);
        if (atomic_load(&team.sleepers)) futex(&team.completed, FUTEX_WAKE, INT32_MAX);
        return 1;
    }
    if (spin_while(&team.completed, loop, SPIN_NS)) return 1;
    if (t->index) leave();
    atomic_fetch_add(&team.sleepers, 1);
    while (atomic_load(&team.completed) == loop) futex(&team.completed, FUTEX_WAIT, loop);
    atomic_fetch_sub(&team.sleepers, 1);
    return !t->index || enter(t->pass);
}

static void *serve(void *index) {
    for (uint32_t seen = 0, pass;; seen = pass) {
        if (!spin_while(&team.passes, seen, IDLE_SPIN_NS)) {
            atomic_fetch_add(&team.idle, 1);
            while (atomic_load(&team.passes) == seen) futex(&team.passes, FUTEX_WAIT, seen);
            atomic_fetch_sub(&team.idle, 1);
        }
        pass = atomic_load(&team.passes);
        if (!enter(pass)) continue;
        Thread thread = {.index = (int)(intptr_t)index, .threads = team.threads, .pass = pass, .loop = team.first};
        if (thread.index >= team.threads || team.body(team.argument, &thread)) leave();
    }
    return NULL;
}

/* A process that was forked has none of the threads. */
static void forget_threads(void) {
    memset(&team, 0, sizeof(team));
    pthread_mutex_init(&team_lock, NULL);
}

/* Threads are started when they are first needed. Returns how many there are, the caller included. */
static int start_threads(int threads) {
    if (!team.started) {
        static int registered;
        if (!registered) registered = !pthread_atfork(NULL, NULL, forget_threads);
        team.started = 1;
    }
    for (; team.started < threads; team.started++) {
        pthread_t id;
        sigset_t all, before;
        sigfillset(&all); /* signals are for the threads of Python */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int failed = pthread_create(&id, NULL, serve, (void *)(intptr_t)team.started);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (failed) break;
        pthread_detach(id);
    }
    return threads < team.started ? threads : team.started;
}

/* Runs a pass with up to `threads` threads. A caller that finds them at work for another one runs it alone. */
static void run(Body body, const void *argument, int threads) {
    Thread caller = {.threads = 1};
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads < 2 || pthread_mutex_trylock(&team_lock)) {
        body(argument, &caller);
        return;
    }
    team.body = body;
    team.argument = argument;
    team.threads = caller.threads = start_threads(threads);
    team.first = caller.loop = atomic_load(&team.completed);
    caller.pass = atomic_load(&team.passes) + 1;
    for (int i = 0; i < threads; i++)
        atomic_store_explicit(&team.shares[i].taken, (uint64_t)(caller.loop & 0xffffff) << 2 * COUNT_BITS,
                              memory_order_relaxed);
    atomic_store(&team.entry, (uint64_t)caller.pass << 32 | OPEN);
    atomic_store(&team.passes, caller.pass);
    if (atomic_load(&team.idle)) futex(&team.passes, FUTEX_WAKE, INT32_MAX);
    body(argument, &caller);
    atomic_fetch_and(&team.entry, ~(uint64_t)OPEN);
    for (uint32_t inside; (inside = atomic_load(entry_word()));) {
        if (spin_while(entry_word(), inside, SPIN_NS)) continue;
        atomic_store(&team.closing, 1);
        futex(entry_word(), FUTEX_WAIT, inside);
        atomic_store(&team.closing, 0);
    }
    pthread_mutex_unlock(&team_lock);
}
