// A fixed pool of memory for units that lie on disk: a woken unit is read into a slot, and stays while it is worth it.
//
// A unit is a record of the same size as all others, made of one or more extents of files. Reads are direct (they leave
// nothing in the page cache) and cut into pieces that several threads fetch at once; a piece that lies aligned in the
// file goes straight into its slot, another through a small buffer; numbers that lie in blocks (blocks.hpp) are made plain
// on their way, and matrices turned. Whoever needs a unit `request`s it, which starts
// the read, `wait`s for it, having computed others between, and `release`s it. The slot given up is worth least:
//
//   worth = uses, each fading by half in `half_life` ticks of the clock (one tick is one token)
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "blocks.hpp"
#include "checksum.hpp"

constexpr int64_t PAGE = 4096;
constexpr int64_t PIECE = 1 << 20;  // bytes that one read fetches

// What a pool did since it was made; seconds are those a computing thread stood waiting.
struct PoolStats {
    int64_t hits, misses, bytes_read, resident;
    double seconds_waiting;
    int64_t failed_layer, failed_unit, failed_file, error;  // of the last; error is errno, -1 for a short read, -2 for a sum
};

class Pool {
    enum State : int { ABSENT, READING, READY, FAILED };
    struct Unit {
        std::atomic<int> state{ABSENT};
        int64_t slot = -1, users = 0, pieces = 0, last = 0;  // pieces still to come
        double worth = 0;
    };
    struct Job {
        int64_t unit, file, offset, bytes;
        char* to;
        const uint32_t* sum;  // what the piece must sum up to; null where nobody knows
        Extent from;
    };
    struct File {
        int direct, plain;  // the second where the first is refused; -1 where there is none
    };

    const int64_t layers, units, record, slots;
    const double half_life;
    std::vector<Unit> all;
    std::vector<std::vector<Extent>> extents;
    std::vector<std::vector<uint32_t>> checksums;  // of each piece, where they are known
    std::vector<int64_t> holder;  // of each slot, -1 while free
    std::vector<File> files;
    char* memory = nullptr;
    std::deque<Job> queue;
    std::vector<std::thread> readers;
    std::mutex lock;
    std::condition_variable work, done;
    bool closing = false;
    int64_t clock = 0;
    PoolStats stats{};

  public:
    Pool(int64_t layers, int64_t units, int64_t record, int64_t slots, int64_t num_readers, double half_life)
        : layers(layers), units(units), record(round_up(record, PAGE)), slots(slots), half_life(half_life), all(layers * units),
          extents(layers * units), checksums(layers * units), holder(slots, -1) {
        void* mapped = mmap(nullptr, this->record * slots, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        memory = static_cast<char*>(mapped);
#ifdef MADV_HUGEPAGE
        madvise(memory, this->record * slots, MADV_HUGEPAGE);
#endif
        for (int64_t r = 0; r < num_readers; ++r) readers.emplace_back([this] { serve(); });
    }
    Pool(const Pool&) = delete;
    ~Pool() {
        {
            std::lock_guard<std::mutex> guard(lock);
            closing = true;
        }
        work.notify_all();
        for (std::thread& reader : readers) reader.join();
        for (const File& file : files) {
            if (file.direct >= 0) close(file.direct);
            if (file.plain >= 0) close(file.plain);
        }
        munmap(memory, record * slots);
    }

    int64_t num_slots() const { return slots; }
    const char* first_slot() const { return memory; }
    // Units that were here, and that nobody had to request.
    void found(int64_t count) {
        std::lock_guard<std::mutex> guard(lock);
        stats.hits += count;
    }

    // A file's number, or -errno.
    int64_t open_file(const char* path) {
        const int plain = open(path, O_RDONLY | O_CLOEXEC);
        if (plain < 0) return -errno;
#ifdef O_DIRECT
        const int direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
#else
        const int direct = -1;
#endif
        std::lock_guard<std::mutex> guard(lock);
        files.push_back({direct, plain});
        return int64_t(files.size()) - 1;
    }
    // No unit lies in this file any more, and none is being read from it.
    void close_file(int64_t number) {
        std::lock_guard<std::mutex> guard(lock);
        File& file = files[number];
        if (file.direct >= 0) close(file.direct);
        if (file.plain >= 0) close(file.plain);
        file = {-1, -1};
    }
    // What is here of a unit is old: the next request reads it again. False while somebody uses it.
    bool forget(int64_t layer, int64_t unit) {
        std::unique_lock<std::mutex> guard(lock);
        Unit& gone = all[layer * units + unit];
        done.wait(guard, [&] { return gone.pieces == 0; });
        if (gone.users) return false;
        if (gone.slot >= 0) holder[gone.slot] = -1, gone.slot = -1;
        gone.state.store(ABSENT);
        return true;
    }
    void place(int64_t layer, int64_t unit, const Extent* parts, int64_t count, const uint32_t* sums, int64_t num_sums) {
        extents[layer * units + unit].assign(parts, parts + count);
        checksums[layer * units + unit].assign(sums, sums + num_sums);
    }

    // Where the record of a unit goes that comes from memory, and stays for good; null where every slot is taken.
    char* hold(int64_t layer, int64_t unit) {
        std::lock_guard<std::mutex> guard(lock);
        Unit& held = all[layer * units + unit];
        if (held.slot < 0) {
            held.slot = free_slot();
            if (held.slot < 0) return nullptr;
            holder[held.slot] = layer * units + unit;
        }
        ++held.users;  // nobody releases it
        held.state.store(READY, std::memory_order_release);
        return memory + held.slot * record;
    }

    void tick(int64_t tokens) {
        std::lock_guard<std::mutex> guard(lock);
        clock += tokens;
    }
    bool is_ready(int64_t layer, int64_t unit) const { return all[layer * units + unit].state.load(std::memory_order_acquire) == READY; }

    // Starts reading a unit that is not here, and keeps it until as many `release`s; false where every slot is in use.
    // Whoever asks for a unit more than once before its turn counts none of that as found.
    bool request(int64_t layer, int64_t unit, bool counts = true) {
        std::unique_lock<std::mutex> guard(lock);
        Unit& wanted = all[layer * units + unit];
        if (wanted.state.load() != READY && wanted.state.load() != READING) {
            done.wait(guard, [&] { return wanted.pieces == 0; });  // what is left of a read that failed
            if (wanted.slot < 0) {
                wanted.slot = free_slot();
                if (wanted.slot < 0) return false;
                holder[wanted.slot] = layer * units + unit;
            }
            ++stats.misses;
            begin(layer * units + unit);
            work.notify_all();
        } else if (counts) {
            ++stats.hits;
        }
        ++wanted.users;
        wanted.worth = worth_of(wanted) + 1, wanted.last = clock;
        return true;
    }
    // The record of a unit that was requested, once it is here; null where it cannot be read.
    const char* wait(int64_t layer, int64_t unit) {
        Unit& wanted = all[layer * units + unit];
        if (wanted.state.load(std::memory_order_acquire) != READY) {
            const auto begun = std::chrono::steady_clock::now();
            std::unique_lock<std::mutex> guard(lock);
            done.wait(guard, [&] { return wanted.state.load() != READING; });
            stats.seconds_waiting += std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
            if (wanted.state.load() != READY) return nullptr;
        }
        return memory + wanted.slot * record;
    }
    void release(int64_t layer, int64_t unit) {
        std::lock_guard<std::mutex> guard(lock);
        --all[layer * units + unit].users;
    }

    PoolStats report() {
        std::lock_guard<std::mutex> guard(lock);
        stats.resident = 0;
        for (const Unit& unit : all) stats.resident += unit.state.load() == READY;
        return stats;
    }

  private:
    double worth_of(const Unit& unit) const { return unit.worth * std::exp2(-double(clock - unit.last) / half_life); }

    int64_t free_slot() {
        int64_t least = -1;
        double worth = 0;
        for (int64_t s = 0; s < slots; ++s) {
            if (holder[s] < 0) return s;
            const Unit& unit = all[holder[s]];
            if (unit.users || unit.pieces) continue;
            const double its = unit.state.load() == FAILED ? -1 : worth_of(unit);
            if (least < 0 || its < worth) least = s, worth = its;
        }
        if (least >= 0) {
            Unit& gone = all[holder[least]];
            gone.state.store(ABSENT), gone.slot = -1;
        }
        return least;
    }
    void begin(int64_t index) {
        Unit& unit = all[index];
        char* to = memory + unit.slot * record;
        unit.pieces = 0;
        for (const Extent& extent : extents[index]) {
            const int64_t step = PIECE / together(extent) * together(extent);
            for (int64_t at = 0; at < extent.bytes; at += step) {
                const int64_t bytes = std::min(step, extent.bytes - at);
                const std::vector<uint32_t>& sums = checksums[index];
                const uint32_t* sum = unit.pieces < int64_t(sums.size()) ? &sums[unit.pieces] : nullptr;
                queue.push_back({index, extent.file, extent.offset + at, bytes, changes(extent) ? to : to + at, sum, extent});
                ++unit.pieces;
            }
            to += arrived(extent);
        }
        unit.state.store(READING);
    }

    void serve() {
        char* buffer = static_cast<char*>(std::aligned_alloc(PAGE, PIECE + 2 * PAGE));
        std::unique_lock<std::mutex> guard(lock);
        while (true) {
            work.wait(guard, [this] { return closing || !queue.empty(); });
            if (closing) break;
            const Job job = queue.front();
            queue.pop_front();
            const File file = files[job.file];  // the list may grow meanwhile
            guard.unlock();
            int error = buffer ? fetch_piece(job, file, buffer) : ENOMEM;
            if (!error && job.sum && !changes(job.from) && crc32(job.to, job.bytes) != *job.sum) error = -2;
            guard.lock();
            Unit& unit = all[job.unit];
            if (error) {
                stats.failed_layer = job.unit / units, stats.failed_unit = job.unit % units;
                stats.failed_file = job.file, stats.error = error;
                unit.state.store(FAILED);
            } else {
                stats.bytes_read += job.bytes;
            }
            if (--unit.pieces == 0 && unit.state.load() == READING) unit.state.store(READY, std::memory_order_release);
            if (unit.pieces == 0) done.notify_all();
        }
        std::free(buffer);
    }
    // errno, -1 for a file that ends too soon, 0 done.
    static int fetch_piece(const Job& job, const File& file, char* buffer) {
        const auto aligned = [](int64_t value) { return value % PAGE == 0; };
        const auto put = [&](const char* from) {
            if (!changes(job.from)) return std::memcpy(job.to, from, job.bytes), 0;
            if (job.sum && crc32(from, job.bytes) != *job.sum) return -2;
            put_changed(job.from, from, job.offset - job.from.offset, job.bytes, job.to);
            return 0;
        };
        if (file.direct >= 0) {
            if (!changes(job.from) && aligned(job.offset) && aligned(job.bytes) && aligned(int64_t(job.to))) {
                if (read_all(file.direct, job.to, job.bytes, job.bytes, job.offset) == 0) return 0;
            } else {
                const int64_t start = job.offset / PAGE * PAGE, skip = job.offset - start;
                if (read_all(file.direct, buffer, skip + job.bytes, round_up(skip + job.bytes, PAGE), start) == 0) {
                    return put(buffer + skip);
                }
            }
        }
        // a file system without direct reads, or a file that ends inside the last page
        char* straight = changes(job.from) ? buffer : job.to;
        int error = read_all(file.plain, straight, job.bytes, job.bytes, job.offset);
        if (!error && changes(job.from)) error = put(buffer);
#ifdef POSIX_FADV_DONTNEED
        posix_fadvise(file.plain, job.offset / PAGE * PAGE, round_up(job.bytes, PAGE) + PAGE, POSIX_FADV_DONTNEED);
#endif
        return error;
    }
    // At least `needed` bytes of the `asked` ones.
    static int read_all(int file, char* to, int64_t needed, int64_t asked, int64_t offset) {
        int64_t have = 0;
        while (have < needed) {
            const ssize_t got = pread(file, to + have, asked - have, offset + have);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) return errno;
            if (got == 0) return -1;
            have += got;
        }
        return 0;
    }
};
