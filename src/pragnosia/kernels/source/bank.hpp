// What both passes of a grouped bank share: its views on the call, the buffers of a tile, the sum over slots.
//
// A pass takes the slots of one unit in tiles that stay in cache from gather to scatter. Each slot writes a row of its
// own, and a second pass adds the rows of a token in slot order; each weight gradient is summed by one thread in slot
// order. So results depend neither on the number of threads nor on who came first.
#pragma once
#include "activation.hpp"
#include "columns.hpp"
#include "packing.hpp"
#include "slots.hpp"

// A unit's packed record as bfloat16: up (R, D), then down (D, F).
inline void unpack_unit(Format format, const char* record, int64_t rows, int64_t neurons, int64_t width, std::vector<bf16>& out) {
    const int64_t wide = row_bytes_of(format, width), short_ = row_bytes_of(format, neurons);
    const uint8_t *up = reinterpret_cast<const uint8_t*>(record), *down = up + rows * wide;
    out.resize((rows + neurons) * width);
    bf16* rest = out.data() + rows * width;
    unpack_rows(format, up, wide, rows, width, 1, out.data());
    if (!turned(format, neurons)) return unpack_rows(format, down, short_, width, neurons, 1, rest);
    static thread_local std::vector<bf16> turned_rows;
    turned_rows.resize(neurons * width);
    unpack_rows(format, down, wide, neurons, width, 1, turned_rows.data());
    for (int64_t f = 0; f < neurons; ++f)
        for (int64_t d = 0; d < width; ++d) rest[d * neurons + f] = turned_rows[f * width + d];
}

template <class Engine> struct Bank {
    using Stored = typename Engine::Stored;  // what is kept between passes
    using Left = typename Engine::Left;
    using Right = typename Engine::Right;
    static constexpr int64_t TILE = 64;  // slots that go through a unit together
    static constexpr size_t AHEAD = 6;   // jobs whose units are on their way

    const BankCall& call;
    const Activation& act = activation(int(call.activation));
    const int64_t slots = call.tokens * call.awake, width = call.width, unit_width = call.unit_width;
    const int64_t hidden_width = act.parts * unit_width;
    const std::vector<Job> jobs = jobs_of(call);
    std::vector<int32_t> tokens;  // of each sorted slot
    mutable std::mutex asking;
    mutable size_t asked = 0;  // jobs whose units were requested
    mutable std::atomic<bool> failed{false};

    explicit Bank(const BankCall& call) : call(call), tokens(call.bounds[call.units]) {
        for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = call.order[i] / int32_t(call.awake);
    }

    Matrix x_rows(int64_t start) const { return {call.x, call.x_is_bf16 != 0, width, &tokens[start]}; }
    Matrix grad_rows(int64_t start) const { return {call.grad, call.grad_is_bf16 != 0, width, &tokens[start]}; }
    // Hands a unit's two matrices to `work`, waiting for them where they lie on disk; then units of the next jobs are
    // on their way already. A unit that cannot be read is noted, and the call fails in the end.
    template <class Work> void with_unit(size_t job, Work work) const {
        const int64_t unit = jobs[job].unit;
        const bool narrow = call.format != FP32;
        if (!call.pool) {
            work(Matrix(call.up, narrow, width).shifted(unit * hidden_width, 0), Matrix(call.down, narrow, unit_width).shifted(unit * width, 0));
            return;
        }
        ask_ahead(job);
        const Format format = Format(call.format);
        const int64_t up_row = row_bytes_of(format, width);
        const char* up = call.pool->wait(call.layer, unit);
        const char* down = up + hidden_width * up_row;
        if (!up) failed = true;
        else if (format <= BF16) work(Matrix(up, narrow, width), Matrix(down, narrow, unit_width));
        else {
            static thread_local std::vector<bf16> values;
            unpack_unit(format, up, hidden_width, unit_width, width, values);
            const bf16* rest = values.data() + hidden_width * width;
            work(Matrix(values.data(), true, width), Matrix(rest, true, unit_width));
        }
        call.pool->release(call.layer, unit);
    }
    // Every job's unit is requested once, in order, and no later than its own turn.
    void ask_ahead(size_t job) const {
        while (true) {
            {
                std::lock_guard<std::mutex> guard(asking);
                while (asked < std::min(jobs.size(), job + AHEAD) && call.pool->request(call.layer, jobs[asked].unit)) ++asked;
                if (asked > job) return;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));  // another thread still holds the last slot
        }
    }

    // Scratch of the calling thread for what all threads share, and of each thread for itself.
    static Scratch& shared() {
        static thread_local Scratch scratch;
        return scratch;
    }
    static Scratch& own() {
        static thread_local Scratch scratch;
        return scratch;
    }

    // One thread's packed weights of one unit and the buffers of one tile of slots.
    struct Desk {
        int64_t unit = -1;  // whose weights are packed
        Right *up, *down;
        Left *wide, *narrow;                           // (m, max(D, G*F)), (m, F)
        float *hidden, *active, *grad, *result;        // (m, G*F), (m, F), (m, F), (m, D), in strides of whole blocks
        float *up_bias = nullptr, *down_bias = nullptr;  // (G*F,), (D,)
        int64_t hidden_stride, unit_stride, stride;

        Desk(const Bank& bank, Scratch& scratch) {
            const int64_t d = bank.width, f = bank.unit_width, gf = bank.hidden_width, m = round_up(TILE, Engine::ROWS);
            hidden_stride = round_up(gf, Engine::COLS), unit_stride = round_up(f, Engine::COLS), stride = round_up(d, Engine::COLS);
            const int64_t rights[] = {std::max(Engine::right_size(d, gf), Engine::right_size(gf, d)),
                                      std::max(Engine::right_size(d, f), Engine::right_size(f, d))};
            const int64_t lefts[] = {Engine::left_size(m, std::max(d, gf)), Engine::left_size(m, f)};
            const int64_t floats[] = {m * hidden_stride, m * unit_stride, m * unit_stride, m * stride, gf, d};
            size_t bytes = 0;
            for (int64_t size : rights) bytes += Scratch::size<Right>(size);
            for (int64_t size : lefts) bytes += Scratch::size<Left>(size);
            for (int64_t size : floats) bytes += Scratch::size<float>(size);
            scratch.reset(bytes);
            up = scratch.take<Right>(rights[0]), down = scratch.take<Right>(rights[1]);
            wide = scratch.take<Left>(lefts[0]), narrow = scratch.take<Left>(lefts[1]);
            hidden = scratch.take<float>(floats[0]), active = scratch.take<float>(floats[1]);
            grad = scratch.take<float>(floats[2]), result = scratch.take<float>(floats[3]);
            if (bank.call.up_bias) up_bias = scratch.take<float>(gf);
            if (bank.call.down_bias) down_bias = scratch.take<float>(d);
        }
    };
    void read_biases(Desk& desk) const {
        if (desk.up_bias) read(call.up_bias, call.format == BF16, desk.unit * hidden_width, hidden_width, desk.up_bias);
        if (desk.down_bias) read(call.down_bias, call.format == BF16, desk.unit * width, width, desk.down_bias);
    }
    static void add(const float* bias, int64_t count, float* to) {
        for (int64_t i = 0; i < count; ++i) to[i] += bias[i];
    }

    // out[t] = the sum of the rows of t's slots, in their order. Called by every thread of a team.
    void sum_slots(const Stored* rows, void* out, bool out_is_bf16) const {
        std::vector<float> total(width);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < call.tokens; ++t) {
            std::fill(total.begin(), total.end(), 0.f);
            for (int64_t slot = t * call.awake; slot < (t + 1) * call.awake; ++slot) {
                if (call.routes[slot] < 0) continue;
                for (int64_t d = 0; d < width; ++d) total[d] += widen(rows[slot * width + d]);
            }
            write(total.data(), width, out, out_is_bf16, t * width);
        }
    }
};
