// A table whose rows lie on disk: a token recalls a few of them, and those recalled lately stay in memory.
//
// `gather` copies rows to where they are wanted; those that are not here are read at once, as many as BATCH in flight,
// each by the aligned pages it lies in (direct reads, so that nothing stays in the page cache), and then take the places
// of rows that were not recalled for long: a hand goes round over the slots, takes one from the count of each that it
// passes and stops where there is none left. Where the kernel knows no asynchronous reads, or the file system no direct
// ones, it is told beforehand what will be read, and the pages are given back afterwards.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <vector>

#if defined(__linux__) && __has_include(<linux/aio_abi.h>)
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#define FAR_ASYNCHRONOUS 1
#endif

#include "pool.hpp"

struct FarStats {
    int64_t hits, misses, bytes_read, resident;
    double seconds_waiting;
    int64_t failed_row, error;  // of the last; error is errno, -1 for a file that ends too soon
};

class FarRows {
    static constexpr int64_t BATCH = 128;  // reads in flight
    static constexpr uint8_t MOST = 3;     // recalls that a row is remembered for

    const int64_t rows, row_bytes, offset, slots, window;
    int direct = -1, plain = -1;
    std::vector<int32_t> place;   // of each row: its slot, -1, or -2 - n while it comes into window n
    std::vector<int32_t> holder;  // of each slot: its row, -1 while free
    std::vector<uint8_t> recalls;
    char *memory = nullptr, *windows = nullptr;
    int64_t hand = 0, filled = 0, coming = 0;
    int64_t arriving[BATCH];  // the row of each window
    struct Late {
        int64_t window;
        char* to;
    };
    std::vector<Late> late;
    std::mutex lock;
    FarStats stats{};
#ifdef FAR_ASYNCHRONOUS
    aio_context_t context = 0;
    iocb jobs[BATCH];
#endif

  public:
    // What is kept in mind beside the slots themselves, as kernels/far.py counts it.
    FarRows(const char* path, int64_t offset, int64_t rows, int64_t row_bytes, int64_t slots)
        : rows(rows), row_bytes(row_bytes), offset(offset), slots(slots), window(round_up(row_bytes, PAGE) + PAGE), place(rows, -1),
          holder(slots, -1), recalls(slots, 0) {
        plain = open(path, O_RDONLY | O_CLOEXEC);
        if (plain < 0) {
            stats.error = errno;
            return;
        }
#ifdef O_DIRECT
        direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
#endif
#ifdef POSIX_FADV_RANDOM
        posix_fadvise(plain, 0, 0, POSIX_FADV_RANDOM);
#endif
        memory = mapped(slots * row_bytes), windows = mapped(BATCH * window);
#ifdef FAR_ASYNCHRONOUS
        if (direct >= 0 && syscall(SYS_io_setup, BATCH, &context) < 0) context = 0;
#endif
    }
    FarRows(const FarRows&) = delete;
    ~FarRows() {
#ifdef FAR_ASYNCHRONOUS
        if (context) syscall(SYS_io_destroy, context);
#endif
        if (direct >= 0) close(direct);
        if (plain >= 0) close(plain);
        if (memory) munmap(memory, slots * row_bytes);
        if (windows) munmap(windows, BATCH * window);
    }
    int64_t failed_to_open() const { return plain < 0 ? stats.error : 0; }

    // Rows one after the other; false where one cannot be read, or is none of the table's.
    bool gather(const int64_t* wanted, int64_t count, char* out) {
        std::lock_guard<std::mutex> guard(lock);
        stats.error = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = wanted[i];
            if (row < 0 || row >= rows) return fail(row, EINVAL);
            char* to = out + i * row_bytes;
            const int32_t where = place[row];
            if (where >= 0) {
                std::memcpy(to, memory + where * row_bytes, row_bytes);
                if (recalls[where] < MOST) ++recalls[where];
                ++stats.hits;
                continue;
            }
            if (where == -1) {
                if (coming == BATCH && !land()) return false;
                arriving[coming] = row, place[row] = int32_t(-2 - coming);
                ++coming, ++stats.misses;
            } else {
                ++stats.hits;
            }
            late.push_back({-2 - int64_t(place[row]), to});
        }
        return land();
    }

    FarStats report() {
        std::lock_guard<std::mutex> guard(lock);
        stats.resident = filled;
        return stats;
    }

  private:
    static char* mapped(int64_t bytes) {
        if (!bytes) return nullptr;
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) throw std::bad_alloc();
        return static_cast<char*>(at);
    }
    bool fail(int64_t row, int64_t error) {
        for (int64_t n = 0; n < coming; ++n) place[arriving[n]] = -1;
        coming = 0, late.clear();
        stats.failed_row = row, stats.error = error;
        return false;
    }
    int64_t begins(int64_t row) const { return offset + row * row_bytes; }
    char* window_of(int64_t n) const { return windows + n * window; }
    const char* in_window(int64_t n) const { return window_of(n) + begins(arriving[n]) % PAGE; }

    // What is on its way arrives, is copied to whoever wants it, and stays.
    bool land() {
        if (!coming) return true;
        const auto begun = std::chrono::steady_clock::now();
        bool here[BATCH] = {};
        read_together(here);
        for (int64_t n = 0; n < coming; ++n) {
            const int64_t error = here[n] ? 0 : read_alone(n);
            if (error) return fail(arriving[n], error);
        }
        stats.seconds_waiting += std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
        stats.bytes_read += coming * row_bytes;
        for (const Late& one : late) std::memcpy(one.to, in_window(one.window), row_bytes);
        late.clear();
        for (int64_t n = 0; n < coming; ++n) keep(n);
        coming = 0;
        return true;
    }
    void keep(int64_t n) {
        const int64_t slot = free_slot();
        place[arriving[n]] = int32_t(slot);  // -1 where there is no slot at all
        if (slot < 0) return;
        holder[slot] = int32_t(arriving[n]), recalls[slot] = 0;
        std::memcpy(memory + slot * row_bytes, in_window(n), row_bytes);
    }
    int64_t free_slot() {
        if (filled < slots) return filled++;
        if (!slots) return -1;
        while (recalls[hand]) --recalls[hand], hand = hand + 1 < slots ? hand + 1 : 0;
        const int64_t slot = hand;
        hand = hand + 1 < slots ? hand + 1 : 0;
        place[holder[slot]] = -1;
        return slot;
    }

    // Every row that comes, at once; `here` says which came.
    void read_together(bool* here) {
#ifdef FAR_ASYNCHRONOUS
        if (context) {
            iocb* asked[BATCH];
            for (int64_t n = 0; n < coming; ++n) {
                const int64_t from = begins(arriving[n]) / PAGE * PAGE, to = round_up(begins(arriving[n]) + row_bytes, PAGE);
                jobs[n] = iocb{};
                jobs[n].aio_data = n, jobs[n].aio_lio_opcode = IOCB_CMD_PREAD, jobs[n].aio_fildes = direct;
                jobs[n].aio_buf = reinterpret_cast<uint64_t>(window_of(n)), jobs[n].aio_nbytes = to - from, jobs[n].aio_offset = from;
                asked[n] = jobs + n;
            }
            int64_t sent = 0, done = 0;
            while (sent < coming) {
                const int64_t more = syscall(SYS_io_submit, context, coming - sent, asked + sent);
                if (more < 0 && errno == EINTR) continue;
                if (more <= 0) break;  // what was not sent is read alone
                sent += more;
            }
            io_event events[BATCH];
            while (done < sent) {
                const int64_t some = syscall(SYS_io_getevents, context, 1, sent - done, events, nullptr);
                if (some < 0 && errno == EINTR) continue;
                if (some < 0) break;  // cannot be: the context is ours
                for (int64_t e = 0; e < some; ++e) {
                    const int64_t n = events[e].data;
                    here[n] = int64_t(events[e].res) >= begins(arriving[n]) % PAGE + row_bytes;
                }
                done += some;
            }
            return;
        }
#endif
#ifdef POSIX_FADV_WILLNEED
        for (int64_t n = 0; n < coming; ++n) posix_fadvise(plain, begins(arriving[n]), row_bytes, POSIX_FADV_WILLNEED);
#endif
    }
    // One row through the page cache: errno, -1 for a file that ends too soon, 0 done.
    int64_t read_alone(int64_t n) {
        const int64_t at = begins(arriving[n]);
        char* to = window_of(n) + at % PAGE;
        for (int64_t have = 0; have < row_bytes;) {
            const ssize_t got = pread(plain, to + have, row_bytes - have, at + have);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) return errno;
            if (got == 0) return -1;
            have += got;
        }
#ifdef POSIX_FADV_DONTNEED
        posix_fadvise(plain, at / PAGE * PAGE, round_up(at % PAGE + row_bytes, PAGE), POSIX_FADV_DONTNEED);
#endif
        return 0;
    }
};
