// A call from Python while it runs: the threads that share its work, and how it ends early.
#pragma once
#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace {

enum Status : int { DONE = 0, INTERRUPTED = 1, NO_MEMORY = 2 };

class Call {
public:
    // stop: not 0 once the caller has given up; may be null
    Call(int threads, const volatile int* stop) : threads_(threads), stop_(stop) {}

    Status status() const { return status_; }

    // Whether to begin another piece of work, of a tenth of a second or so at most.
    bool goes_on() {
        if (stop_ && *stop_) fail(INTERRUPTED);
        return status_ == DONE;
    }

    // Run work(tools, k) for k in 0 .. count - 1, each thread with tools of its own making; which thread takes which k
    // never changes a value. Lack of memory ends the call.
    template <class Make, class Work> void parallel(long count, Make make, Work work) {
        std::atomic<long> next{0};
        auto loop = [&] {
            try {
                auto tools = make();
                for (long k; goes_on() && (k = next.fetch_add(1)) < count;) work(tools, k);
            } catch (const std::exception&) {  // bad_alloc, or a length that no memory holds
                fail(NO_MEMORY);
            }
        };
        const long threads = std::min<long>(threads_, count);
        std::vector<std::thread> others(std::max(threads - 1, 0L));
        try {
            for (auto& thread : others) thread = std::thread(loop);
        } catch (const std::system_error&) {
        } catch (const std::bad_alloc&) {
        }  // fewer threads do
        loop();
        for (auto& thread : others)
            if (thread.joinable()) thread.join();
    }

private:
    void fail(Status status) {
        Status done = DONE;
        status_.compare_exchange_strong(done, status);
    }

    const int threads_;
    const volatile int* const stop_;
    std::atomic<Status> status_{DONE};
};

}  // namespace
