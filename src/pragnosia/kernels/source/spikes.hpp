// A spiking network over many steps: all membranes, but only the synapses of neurons that spiked.
//
// Spikes take at least `window` steps from one population to another, so that within a window each population is alone:
// populations are advanced side by side, a whole window each, and then handed what the others sent. Sums into a neuron
// run in one order (by projection, step and neuron) on any number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "membranes.hpp"

// Rows are neurons of the source. A slot is delay * (channels * neurons of the target) + channel and neuron of the target.
struct Projection {
    int64_t source, target, is_bf16, same;  // whether one weight is that of all
    const int32_t *starts, *slots;
    const void* weights;
    const float* scales;  // of each source neuron, where weights are int8; else null
};

// As kernels/spikes.py packs it. `counts` is (rows, steps, populations), `delivered` (rows, projections).
struct Simulation {
    const Population* populations;
    const Projection* projections;
    int64_t num_populations, num_projections, rows, steps, window, clock, seed, threads;
    int32_t* counts;
    int64_t* delivered;
    int32_t* events;  // (capacity, 3) of row, step, neuron; null where nobody asks
    int64_t capacity;
    int64_t num_events, odd_population, odd_step;  // out
};

// Who spiked in one row of one population within a window.
struct Spiked {
    std::unique_ptr<int32_t[]> neurons;
    std::vector<int64_t> bounds;
};

inline float widen(int8_t value) { return value; }

// Add what neurons send to what is under way; rows are fetched well before they are read.
template <class W, bool SAME>
inline int64_t deliver(const Projection& projection, const int32_t* from, const int32_t* to, float* __restrict ring, int64_t base, int64_t size) {
    constexpr int SOON = 8, LATER = 20;
    const int32_t *starts = projection.starts, *slots = projection.slots;
    const W* weights = static_cast<const W*>(projection.weights);
    const float same = SAME ? widen(weights[0]) : 0.f;
    // the ring's end and beginning are one place: below `turn` no slot is past the end
    const int64_t turn = size - base;
    float *__restrict here = ring + base, *__restrict past = here - size;
    int64_t count = 0;
    for (const int32_t* neuron = from; neuron < to; ++neuron) {
        if (neuron + LATER < to) __builtin_prefetch(starts + neuron[LATER]);
        if (neuron + SOON < to) {
            const int32_t next = starts[neuron[SOON]], stop = starts[neuron[SOON] + 1];
            for (int32_t s = next; s < stop; s += 16) {
                __builtin_prefetch(slots + s);
                if (!SAME) __builtin_prefetch(weights + s);
            }
        }
        const int32_t begin = starts[*neuron], end = starts[*neuron + 1];
        count += end - begin;
        const float by = std::is_same_v<W, int8_t> ? projection.scales[*neuron] : 1.f;
        for (int32_t s = begin; s < end; ++s) {
            const int64_t slot = slots[s];
            (slot < turn ? here : past)[slot] += SAME ? same : std::is_same_v<W, int8_t> ? by * widen(weights[s]) : widen(weights[s]);
        }
    }
    return count;
}

class Spikes {
    Simulation& call;
    std::vector<Spiked> spiked;  // rows x populations
    std::vector<std::vector<int64_t>> into;  // projections from others, by target
    std::vector<std::vector<int64_t>> within;
    std::atomic<bool> odd{false};

    // A row of a population on a thread of its own: buffers, and where they are used.
    struct Work {
        std::vector<float> noise, margin;
        std::vector<uint8_t> fired;
        std::vector<int32_t> order;
        float drive[TOGETHER], still[TOGETHER] = {};
    };

  public:
    explicit Spikes(Simulation& call)
        : call(call), spiked(call.rows * call.num_populations), into(call.num_populations), within(call.num_populations) {
        for (size_t i = 0; i < spiked.size(); ++i) {
            const int64_t neurons = call.populations[i % call.num_populations].neurons;
            spiked[i] = {std::unique_ptr<int32_t[]>(new int32_t[neurons * call.window]), std::vector<int64_t>(call.window + 1)};
        }
        for (int64_t j = 0; j < call.num_projections; ++j) {
            const Projection& one = call.projections[j];
            (one.source == one.target ? within : into)[one.target].push_back(j);
        }
    }

    // Steps done: fewer than asked where a membrane is no number, or where the events would not fit.
    int64_t run() {
        int64_t done = 0;
        const int64_t tasks = call.rows * call.num_populations;
        int64_t most = 0;
        for (int64_t p = 0; p < call.num_populations; ++p) most += call.populations[p].neurons;
#pragma omp parallel num_threads(int(std::min(call.threads, tasks)))
        {
            Work work;
            while (done < call.steps && !odd) {
                const int64_t length = std::min(call.window, call.steps - done);
                if (call.events && call.num_events + most * call.rows * length > call.capacity) break;
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < tasks; ++task) advance(task, done, length, work);
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < tasks; ++task) receive(task, done, length);
#pragma omp single
                {
                    if (call.events) note(done, length);
                    done += length;
                }
            }
        }
        return odd ? -1 : done;
    }

  private:
    int64_t wide(const Population& p) const { return p.channels * p.neurons; }

    // A window of one population; its own synapses act at once.
    void advance(int64_t task, int64_t done, int64_t length, Work& work) {
        const int64_t row = task / call.num_populations, number = task % call.num_populations;
        const Population& p = call.populations[number];
        Spiked& out = spiked[task];
        out.bounds[0] = 0;
        for (int64_t s = 0; s < length; ++s) {
            const int64_t time = call.clock + done + s;
            int32_t* begin = out.neurons.get() + out.bounds[s];
            int32_t* end = p.is_bf16 ? fire<bf16>(p, number, row, time, begin, work) : fire<float>(p, number, row, time, begin, work);
            out.bounds[s + 1] = end - out.neurons.get();
            call.counts[(row * call.steps + done + s) * call.num_populations + number] = int32_t(end - begin);
            for (int64_t j : within[number]) send(j, row, time, begin, end);
        }
    }

    void receive(int64_t task, int64_t done, int64_t length) {
        const int64_t row = task / call.num_populations, number = task % call.num_populations;
        for (int64_t j : into[number]) {
            const Spiked& from = spiked[row * call.num_populations + call.projections[j].source];
            for (int64_t s = 0; s < length; ++s)
                send(j, row, call.clock + done + s, from.neurons.get() + from.bounds[s], from.neurons.get() + from.bounds[s + 1]);
        }
    }

    void send(int64_t j, int64_t row, int64_t time, const int32_t* from, const int32_t* to) {
        const Projection& projection = call.projections[j];
        const Population& p = call.populations[projection.target];
        const int64_t size = p.depth * wide(p), base = time % p.depth * wide(p);
        float* ring = p.ring + row * size;
        const auto of = [&](auto weight) {
            using W = decltype(weight);
            return projection.same ? deliver<W, true>(projection, from, to, ring, base, size)
                                   : deliver<W, false>(projection, from, to, ring, base, size);
        };
        call.delivered[row * call.num_projections + j] += projection.scales ? of(int8_t()) : projection.is_bf16 ? of(bf16()) : of(float());
    }

    // A step: who fires is listed from `out` on, in order.
    template <class T> int32_t* fire(const Population& p, int64_t number, int64_t row, int64_t time, int32_t* out, Work& work) {
        const int64_t n = p.neurons;
        if (int64_t(work.fired.size()) < n + 8) work.fired.resize(n + 8), work.margin.resize(n);
        if (p.noise != 0) {
            work.noise.resize(std::max<int64_t>(work.noise.size(), n + 4));
            gaussians({uint64_t(call.seed), uint32_t(number), uint32_t(time), uint32_t(row)}, n, work.noise.data());
        }
        int32_t* end = out;
        for (int64_t at = 0; at < n; at += TOGETHER) {
            const int64_t count = std::min(TOGETHER, n - at);
            const Moment moment{work.drive, p.noise != 0 ? work.noise.data() + at : work.still, p.winners ? work.margin.data() + at : nullptr, work.fired.data()};
            if (!membranes<T>(p, row, time % p.depth, at, count, moment) && !odd.exchange(true))
                call.odd_population = number, call.odd_step = time;
            end = listed(work.fired.data(), count, int32_t(at), end);
        }
        if (p.winners && end - out > p.winners) end = compete<T>(p, row, out, end, work);
        for (int32_t* neuron = out; neuron < end; ++neuron) reset<T>(p, row * n + *neuron);
        return end;
    }

    static int32_t* listed(uint8_t* fired, int64_t count, int32_t first, int32_t* end) {
        std::memset(fired + count, 0, 8);
        for (int64_t i = 0; i < count; i += 8) {
            uint64_t eight;
            std::memcpy(&eight, fired + i, 8);
            for (; eight; eight &= eight - 1) *end++ = first + int32_t(i) + __builtin_ctzll(eight) / 8;
        }
        return end;
    }

    // Those furthest above threshold win, the lower number where two are equal; the others are inhibited and stay silent.
    template <class T> int32_t* compete(const Population& p, int64_t row, int32_t* out, int32_t* end, Work& work) {
        const float* margin = work.margin.data();
        work.order.assign(out, end);
        const auto first = [margin](int32_t a, int32_t b) { return margin[a] != margin[b] ? margin[a] > margin[b] : a < b; };
        std::nth_element(work.order.begin(), work.order.begin() + p.winners, work.order.end(), first);
        T* v = static_cast<T*>(p.v) + row * p.neurons;
        for (auto loser = work.order.begin() + p.winners; loser != work.order.end(); ++loser)
            v[*loser] = narrow<T>(widen(v[*loser]) - float(p.inhibition));
        std::sort(work.order.begin(), work.order.begin() + p.winners);
        return std::copy_n(work.order.begin(), p.winners, out);
    }

    template <class T> void reset(const Population& p, int64_t at) {
        T &v = static_cast<T*>(p.v)[at], &w = static_cast<T*>(p.w)[at];
        if (p.model == IZHIKEVICH) v = narrow<T>(float(p.c)), w = narrow<T>(widen(w) + float(p.d));
        else v = narrow<T>(widen(v) - float(p.threshold));
        if (p.model == LIFA) w = narrow<T>(widen(w) + 1.f);
        p.clock[at] = uint8_t(p.refractory);
        if (p.tally) ++p.tally[at];
    }

    void note(int64_t done, int64_t length) {
        for (int64_t task = 0; task < call.rows * call.num_populations; ++task) {
            const Population& p = call.populations[task % call.num_populations];
            const Spiked& from = spiked[task];
            for (int64_t s = 0; s < length; ++s)
                for (int64_t i = from.bounds[s]; i < from.bounds[s + 1]; ++i) {
                    int32_t* event = call.events + 3 * call.num_events++;
                    event[0] = int32_t(task / call.num_populations), event[1] = int32_t(done + s);
                    event[2] = int32_t(p.first) + from.neurons[i];
                }
        }
    }
};
