// Where the threads of a team wait for one another. They look on for some microseconds, which is what the slower one
// usually needs, and then sleep: a thread that looks on for longer keeps a core from those that read the disk, and, where
// another program holds a core, from the very thread that it waits for.
#pragma once
#include <omp.h>

#include <atomic>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <thread>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

class Meeting {
    static constexpr int LOOKS = 1000;  // 10 to 50 microseconds
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> turn{0};
    std::atomic<int> asleep{0};

    static void rest() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
    void sleep_during(int mine) {
#if defined(__linux__)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, mine, nullptr, nullptr, 0);
#else
        std::this_thread::yield();
#endif
    }
    void wake_all() {
#if defined(__linux__)
        syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#endif
    }

  public:
    // Returns once all `team` threads are here; what they wrote before is seen by all after.
    void wait(int team) {
        const int mine = turn.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == team - 1) {
            arrived.store(0, std::memory_order_relaxed);
            turn.store(mine + 1);
            if (asleep.load()) wake_all();
            return;
        }
        static const int cores = omp_get_num_procs();
        for (int looks = team > cores ? 0 : LOOKS; looks; --looks, rest())
            if (turn.load(std::memory_order_acquire) != mine) return;
        asleep.fetch_add(1);
        while (turn.load() == mine) sleep_during(mine);
        asleep.fetch_sub(1);
    }
};

inline thread_local Meeting* meeting = nullptr;
// The whole team of this parallel region, which `together` began.
inline void meet() {
    if (const int team = omp_get_num_threads(); team > 1) meeting->wait(team);
}
// Runs work(thread, team) on so many threads, which may `meet`.
template <class Work> void together(int64_t threads, Work work) {
    Meeting ours;
#pragma omp parallel num_threads(int(threads))
    {
        meeting = &ours;
        work(omp_get_thread_num(), omp_get_num_threads());
        meet();  // none looks on in vain at the region's end
    }
}
