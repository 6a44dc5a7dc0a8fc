// Threads that wait for work.
//
// A worker watches for the next piece for a short while, because in a model the next product
// comes some microseconds after the last, and then sleeps. Pieces are handed out one by one: a
// thread that the system stops for a while delays only the piece that it is at.

#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

constexpr int kWatch = 2000;  // looks at the next job before a worker sleeps: about 50 us

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct Job {
    Piece piece;
    const void* work;
    int64_t count, grain;
    std::atomic<int64_t> next{0};

    void help() {
        for (;;) {
            const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
            if (begin >= count) return;
            piece(work, begin, begin + grain < count ? begin + grain : count);
        }
    }
};

class Pool {
public:
    // Does the job with up to `helpers` workers; false if they are at work for another.
    bool run(Job& job, int64_t helpers) {
        if (!busy_.try_lock()) return false;
        grow(helpers);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            wanted_ = helpers < workers_ ? helpers : workers_;
            inside_.store(0, std::memory_order_relaxed);
            turn_.fetch_add(1, std::memory_order_release);
        }
        if (asleep_.load() > 0) wake_.notify_all();
        job.help();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = nullptr;  // who comes now finds nothing to do
        }
        while (inside_.load(std::memory_order_acquire) > 0) pause_briefly();
        busy_.unlock();
        return true;
    }

private:
    void grow(int64_t helpers) {
        try {
            for (; workers_ < helpers; ++workers_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {  // no more threads: fewer do
        }
    }

    void serve() {
        uint64_t seen = 0;
        for (;;) {
            for (int look = 0; look < kWatch && turn_.load(std::memory_order_acquire) == seen; ++look)
                pause_briefly();
            Job* job = nullptr;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                if (turn_.load() == seen) {
                    asleep_.fetch_add(1);
                    wake_.wait(lock, [&] { return turn_.load() != seen; });
                    asleep_.fetch_sub(1);
                }
                seen = turn_.load();
                if (job_ && wanted_ > 0) {
                    job = job_;
                    --wanted_;
                    inside_.fetch_add(1, std::memory_order_relaxed);
                }
            }
            if (!job) continue;
            job->help();
            inside_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> turn_{0};
    std::atomic<int64_t> asleep_{0}, inside_{0};
    Job* job_ = nullptr;
    int64_t wanted_ = 0, workers_ = 0;
};

// Never destroyed: workers may still sleep in it when the process ends. A child of fork has no
// workers and maybe a locked mutex, so it gets a pool of its own.
Pool* pool = nullptr;
std::once_flag pool_made;

void make_pool() { pool = new Pool; }

void make_first_pool() {
    make_pool();
    pthread_atfork(nullptr, nullptr, make_pool);
}

}  // namespace

void divide(int64_t threads, int64_t count, int64_t grain, Piece piece, const void* work) {
    if (threads > 1 && count > grain) {
        std::call_once(pool_made, make_first_pool);
        Job job{piece, work, count, grain};
        const int64_t pieces = (count + grain - 1) / grain;
        if (pool->run(job, (threads < pieces ? threads : pieces) - 1)) return;
    }
    if (count > 0) piece(work, 0, count);
}
