// Who works for whom: the slots (t, a) of a routing sorted by unit, and cut into jobs for the threads.
#pragma once
#include <algorithm>
#include <vector>

#include "numbers.hpp"
#include "pool.hpp"

// One call of a bank: 32 words, packed in this order by native.py. Flags say which matrices are bfloat16, the rest is
// float; pointers to what is not there are null.
struct BankCall {
    // what every call has
    int64_t tokens, awake, units, width, unit_width, activation, threads;
    int64_t x_is_bf16, format, out_is_bf16;  // of the weights: FP32 or BF16, and any Format (packed.hpp) in a pool
    const void *x, *up, *down, *up_bias, *down_bias;
    const int64_t* routes;   // (T, A), -1 for nobody
    const float* strengths;  // (T, A)
    void* out;               // (T, D)
    Pool* pool;              // where up and down are null: units come from here, up rows first, then down
    int64_t layer;
    int64_t most;  // neurons of a unit that may speak, the largest; 0: all
    // what the grouped passes keep
    int32_t* order;   // (T*A,) flat slots sorted by unit; written by forward, read by backward
    int32_t* bounds;  // (U + 1,) where each unit's slots begin; likewise
    void* hidden;     // (T*A, G*F) H of each sorted slot; null when no gradient will be asked
    // what backward has and gives
    int64_t grad_is_bf16;
    const void* grad;                                                    // (T, D)
    void *grad_x, *grad_up, *grad_down, *grad_up_bias, *grad_down_bias;  // each may be null
    float* grad_strengths;                                               // likewise
};
static_assert(sizeof(BankCall) == 32 * 8, "native.py packs 32 words");

// Stable counting sort; false where a route names a unit that is not there.
inline bool sort_slots(const BankCall& call) {
    const int64_t slots = call.tokens * call.awake;
    std::fill(call.bounds, call.bounds + call.units + 1, 0);
    for (int64_t i = 0; i < slots; ++i) {
        const int64_t unit = call.routes[i];
        if (unit < -1 || unit >= call.units) return false;
        if (unit >= 0) ++call.bounds[unit];
    }
    int32_t start = 0;
    for (int64_t u = 0; u <= call.units; ++u) {
        const int32_t count = call.bounds[u];
        call.bounds[u] = start;
        start += count;
    }
    for (int64_t i = 0; i < slots; ++i)
        if (call.routes[i] >= 0) call.order[call.bounds[call.routes[i]]++] = int32_t(i);
    // placing moved each bound to its unit's end: shift them back
    for (int64_t u = call.units; u > 0; --u) call.bounds[u] = call.bounds[u - 1];
    call.bounds[0] = 0;
    return true;
}

// A few hundred slots of one unit: enough to pay for packing its weights, few enough to balance the threads.
struct Job {
    int32_t unit, start, count;
};

inline std::vector<Job> jobs_of(const BankCall& call) {
    const int32_t total = call.bounds[call.units];
    const int32_t most = int32_t(std::clamp<int64_t>(round_up(total / (4 * call.threads), 32), 64, 512));
    std::vector<Job> jobs;
    for (int32_t u = 0; u < call.units; ++u) {
        const int64_t slots = call.bounds[u + 1] - call.bounds[u], parts = (slots + most - 1) / most;
        for (int64_t p = 0; p < parts; ++p) {
            const int32_t from = int32_t(slots * p / parts), to = int32_t(slots * (p + 1) / parts);
            jobs.push_back({u, call.bounds[u] + from, to - from});
        }
    }
    // units that are here keep the threads busy while others are on their way
    if (call.pool)
        std::stable_partition(jobs.begin(), jobs.end(), [&](const Job& job) { return call.pool->is_ready(call.layer, job.unit); });
    return jobs;
}
