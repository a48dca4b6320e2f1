"""How the kernel's threads share its loops: the right results, whichever threads run, and beside other processes."""

import ctypes
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import tiny_model

from benchmarks.decoding import computing, prepare, read_options
from transformer.hub import checkpoint
from transformer.inference import select_backend
from transformer.inference.native.compiled_kernel import SOURCE

# Where the threads come from and how they sleep: those of OpenMP, which PyTorch has loaded, and as on Linux; threads of
# the kernel's own; as on systems that are not Linux; and where the system refuses to start any.
WAYS = {
    "OpenMP": (),
    "own threads": ("-DGOMP_parallel=missing_function",),
    "own threads, not Linux": ("-DGOMP_parallel=missing_function", "-U__linux__"),
    "no thread": ("-DGOMP_parallel=missing_function", "-DREFUSE"),
}

HARNESS = r"""
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef REFUSE
#define pthread_create(...) 1
#endif
#include "threads.h"

int openmp_is_used(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }

typedef struct {
    int loops;
    const int64_t *sizes;
    int64_t most;
    int *counts, delays;
    _Atomic int64_t finished;
    _Atomic int wrong;
} Loops;

static void share_loops(Thread *thread, void *context) {
    Loops *l = context;
    int64_t before = 0;
    unsigned seed = thread->index;
    for (int loop = 0; loop < l->loops; loop++) {
        for (int64_t i; (i = claim(thread, l->sizes[loop])) >= 0;) {
            if (atomic_load(&l->finished) < before) l->wrong++;
            if (l->delays && rand_r(&seed) % 40 == 0) usleep(rand_r(&seed) % 300); /* some longer than SPIN_NS */
            __atomic_fetch_add(&l->counts[loop * l->most + i], 1, __ATOMIC_RELAXED);
            l->finished++;
        }
        complete(thread, l->sizes[loop]);
        before += l->sizes[loop];
        if (atomic_load(&l->finished) < before) l->wrong++;
    }
}

/* Loops of sizes[i] iterations, each of which must see all of the loop before. Counts how often each ran. */
int share(int threads, int loops, const int64_t *sizes, int64_t most, int *counts, int delays) {
    Share shares[16] = {0};
    Loops l = {.loops = loops, .sizes = sizes, .most = most, .counts = counts, .delays = delays};
    run_team(threads, shares, share_loops, &l);
    return l.wrong;
}

typedef struct {
    int loops;
    int64_t iterations;
    _Atomic int done;
    _Atomic int64_t first;
} Alone;

static void run_alone(Thread *thread, void *context) {
    Alone *a = context;
    if (thread->index)
        while (!a->done) usleep(100);
    for (int loop = 0; loop < a->loops; loop++) {
        while (claim(thread, a->iterations) >= 0)
            if (!thread->index) a->first++;
        complete(thread, a->iterations);
    }
    if (!thread->index) a->done = 1;
}

/* The second thread does nothing, or stands at its first iteration, until the first one has got as far as it can. */
int64_t run_without_the_second(int loops, int64_t iterations) {
    Share shares[2] = {0};
    Alone a = {.loops = loops, .iterations = iterations};
    run_team(2, shares, run_alone, &a);
    return a.first;
}
"""


@pytest.fixture(scope="module", params=[*WAYS])
def harness(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("threads")
    (folder / "harness.c").write_text(HARNESS)
    include = f"-I{SOURCE.parent}"
    command = ["gcc", "-O2", "-pthread", "-fPIC", "-shared", include, *WAYS[request.param], "harness.c"]
    subprocess.run([*command, "-o", "harness.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "harness.so"))
    assert library.openmp_is_used() == (request.param == "OpenMP")
    library.way = request.param
    library.run_without_the_second.restype = ctypes.c_int64
    library.run_without_the_second.argtypes = [ctypes.c_int, ctypes.c_int64]
    return library


@pytest.mark.parametrize("delays", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_iteration_runs_once_and_after_the_loop_before(harness: ctypes.CDLL, threads: int, delays: bool) -> None:
    loops, most = 120 if delays else 3000, 23
    sizes = torch.randint(0, most + 1, (loops,), generator=torch.Generator().manual_seed(threads))
    counts = (ctypes.c_int * (loops * most))()
    assert harness.share(threads, loops, (ctypes.c_int64 * loops)(*sizes), ctypes.c_int64(most), counts, delays) == 0
    expected = [[1] * size + [0] * (most - size) for size in sizes.tolist()]
    assert torch.tensor(counts).view(loops, most).tolist() == expected


def test_a_thread_that_does_not_run_stops_no_other(harness: ctypes.CDLL) -> None:
    """With barriers, this would never end."""
    if harness.way == "no thread":
        pytest.skip("there is no second thread")
    assert harness.run_without_the_second(500, 37) == 500 * 37


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("overrides", [{}, {"d_feed_forward": 300}], ids=["whole blocks", "part of a block"])
def test_results_do_not_depend_on_threads_or_load(precision: str, overrides: dict[str, int]) -> None:
    """Bit by bit: one thread, several, and more than there are processors beside processes that compute."""
    served = select_backend(tiny_model("modern", context_length=64, **overrides), precision)

    def generate(texts: int) -> list[torch.Tensor]:
        memory = served.new_cache(texts, 64)
        for text in range(texts):
            served.prefill([text + 1, 5, 7] * 7, memory, text)
        tokens, logits = torch.ones(texts, dtype=torch.long), []
        for _ in range(8):
            logits.append(served.decode(tokens, memory).clone())
            tokens = logits[-1].argmax(dim=-1)
        return logits

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = {texts: generate(texts) for texts in (1, 3, 9)}
        with computing(2):
            for threads in (2, 3, 5):
                torch.set_num_threads(threads)
                for texts, logits in expected.items():
                    for _ in range(3):
                        assert all(map(torch.equal, generate(texts), logits))
    finally:
        torch.set_num_threads(before)


def test_busy_processes_compute_and_are_stopped() -> None:
    def used(process: subprocess.Popen) -> int:
        return sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    with computing(2) as processes:
        assert len(processes) == 2
        end = time.monotonic() + 120
        while not all(map(used, processes)):
            assert time.monotonic() < end, "they do not compute"
            time.sleep(0.02)
        assert [process.poll() for process in processes] == [None, None]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2


def test_a_killed_benchmark_leaves_no_busy_process() -> None:
    code = "from benchmarks.decoding import busy_process; import os\n"
    code += "print(busy_process().pid, flush=True); os.kill(os.getpid(), 9)"
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout
    end = time.monotonic() + 120
    while Path(f"/proc/{output.strip()}").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_sizes_of_the_benchmark_are_those_of_the_model(tmp_path: Path) -> None:
    sizes = "--d-model 32 --n-layers 2 --n-heads 4 --n-kv-heads 1 --d-feed-forward 48 --vocab-size 99"
    prepare(read_options(["--preset", "modern", *sizes.split()]), tmp_path)
    config = checkpoint.load_model(tmp_path).config
    assert (config.d_model, config.n_layers, config.n_heads, config.kv_heads) == (32, 2, 4, 1)
    assert (config.d_feed_forward, config.vocab_size, config.positions) == (48, 99, "rotary")


@pytest.mark.parametrize(
    "arguments",
    ["--model weights --d-model 64", "--model weights --preset gpt2", "--busy -1", "--prompt 1000 --new 25"],
)
def test_options_of_the_benchmark_without_effect_are_refused(arguments: str) -> None:
    with pytest.raises(SystemExit):
        read_options(arguments.split())
