// The grouped bank backward, H kept from forward:
//
//   dP = dY down   ds = <P, dP> + <dY, down_bias>   dH = act'(H) (s dP)   dX = dH up   dup = dH' X   ddown = dY' (s P)
#pragma once
#include "bank.hpp"

template <class Engine> struct Backward : Bank<Engine> {
    using Base = Bank<Engine>;
    using typename Base::Desk;
    using typename Base::Left;
    using typename Base::Right;
    using typename Base::Stored;
    using Base::act, Base::call, Base::hidden_width, Base::jobs, Base::slots, Base::unit_width, Base::width;
    static constexpr int64_t DEPTH = 512;  // slots summed at once into a weight gradient

    Stored *rows, *grad_hidden, *active;  // dX of each flat slot; dH and s P of each sorted slot

    explicit Backward(const BankCall& call) : Base(call) {
        const int64_t kept = call.bounds[call.units];
        const int64_t sizes[] = {slots * width, kept * hidden_width, kept * unit_width};
        size_t bytes = 0;
        for (int64_t size : sizes) bytes += Scratch::size<Stored>(size);
        Base::shared().reset(bytes);
        rows = Base::shared().template take<Stored>(sizes[0]);
        grad_hidden = Base::shared().template take<Stored>(sizes[1]);
        active = Base::shared().template take<Stored>(sizes[2]);
    }

    void run() const {
#pragma omp parallel num_threads(int(call.threads))
        {
            Engine::enter();
            {
                Desk desk(*this, Base::own());
#pragma omp for schedule(dynamic)
                for (size_t j = 0; j < jobs.size(); ++j) {
                    if (!pack(j, desk)) continue;
                    for (int32_t at = 0; at < jobs[j].count; at += Base::TILE)
                        tile(jobs[j].start + at, std::min<int64_t>(Base::TILE, jobs[j].count - at), desk);
                }
            }
            weight_gradients(Base::own());
            Engine::leave();
            if (call.grad_x) Base::sum_slots(rows, call.grad_x, call.x_is_bf16);
        }
    }

    // False where the unit cannot be read.
    bool pack(size_t job, Desk& desk) const {
        if (desk.unit == jobs[job].unit && !call.pool) return true;
        desk.unit = -1;
        Base::with_unit(job, [&](const Matrix& up, const Matrix& down) {
            Engine::pack_right(down, width, unit_width, desk.down);
            if (call.grad_x) Engine::pack_right(up, hidden_width, width, desk.up);
            desk.unit = jobs[job].unit;
            Base::read_biases(desk);
        });
        return desk.unit >= 0;
    }

    void tile(int64_t start, int64_t count, Desk& desk) const {
        Engine::pack_left(Base::grad_rows(start), count, width, desk.wide);
        Engine::multiply(desk.wide, desk.down, count, unit_width, width, desk.grad, desk.unit_stride);
        for (int64_t i = 0; i < count; ++i) activate(start + i, desk.grad + i * desk.unit_stride, desk);
        if (!call.grad_x) return;
        Engine::pack_left({grad_hidden + start * hidden_width, hidden_width}, count, hidden_width, desk.wide);
        Engine::multiply(desk.wide, desk.up, count, width, hidden_width, desk.result, desk.stride);
        for (int64_t i = 0; i < count; ++i)
            narrow(desk.result + i * desk.stride, width, 1.f, rows + call.order[start + i] * width);
    }

    // One sorted slot: H becomes dH, P is made again and kept times s, the strength gets its slope.
    void activate(int64_t place, const float* dp, Desk& desk) const {
        const int64_t slot = call.order[place];
        const float strength = call.strengths[slot];
        float *h = desk.hidden, *p = desk.active;
        widen(static_cast<const Stored*>(call.hidden) + place * hidden_width, hidden_width, h);
        act.backward(h, unit_width, dp, p);
        compete_back(h, p, unit_width, act.parts, call.most);
        narrow(h, hidden_width, strength, grad_hidden + place * hidden_width);
        narrow(p, unit_width, strength, active + place * unit_width);
        if (!call.grad_strengths) return;
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t f = 0; f < unit_width; ++f) along += p[f] * dp[f];
        if (desk.down_bias)
            Base::grad_rows(place).as_rows([&](auto grad) {
                for (int64_t d = 0; d < width; ++d) along += widen(grad[0][d]) * desk.down_bias[d];
            });
        call.grad_strengths[slot] = along;
    }

    // Every unit's gradients, whole: one nobody woke gets its zeros and no more. Called by every thread of a team.
    void weight_gradients(Scratch& scratch) const {
        int64_t woken = 0, most = 0;
        for (int64_t u = 0; u < call.units; ++u) {
            const int64_t count = call.bounds[u + 1] - call.bounds[u];
            woken += count > 0;
            most = std::max(most, count);
        }
        // few units are shared out by rows of their gradients
        const int64_t parts = std::clamp<int64_t>(4 * call.threads / std::max<int64_t>(woken, 1), 1, 4);
        const int64_t tall = (std::max(width, hidden_width) + parts - 1) / parts, depth = std::min(most, DEPTH);
        const int64_t across = std::max(width, unit_width), room = round_up(tall, Engine::ROWS) * round_up(across, Engine::COLS);
        const int64_t left_size = Engine::left_size(tall, depth), right_size = Engine::right_size(depth, across);
        scratch.reset(Scratch::size<Left>(left_size) + Scratch::size<Right>(right_size) + Scratch::size<float>(room));
        Left* left = scratch.take<Left>(left_size);
        Right* right = scratch.take<Right>(right_size);
        float* total = scratch.take<float>(room);
#pragma omp for schedule(dynamic)
        for (int64_t j = 0; j < call.units * parts; ++j) {
            const int64_t unit = j / parts, part = j % parts, start = call.bounds[unit];
            const int64_t count = call.bounds[unit + 1] - start;
            const Matrix dh(grad_hidden + start * hidden_width, hidden_width), sp(active + start * unit_width, unit_width);
            const auto cut = [&](int64_t rows) { return std::pair(rows * part / parts, rows * (part + 1) / parts); };
            if (call.grad_up)
                outer(dh, Base::x_rows(start), count, cut(hidden_width), width, call.grad_up, unit * hidden_width, left, right, total);
            if (call.grad_down)
                outer(Base::grad_rows(start), sp, count, cut(width), unit_width, call.grad_down, unit * width, left, right, total);
            if (part == 0) bias_gradients(unit, start, count, total);
        }
        finish_streaming();
    }

    // Rows [from, to) of out (…, cols), which begins at `row` of `base`: the sum over slots of a[slot]' b[slot].
    void outer(const Matrix& a, const Matrix& b, int64_t count, std::pair<int64_t, int64_t> cut, int64_t cols, void* base,
               int64_t row, Left* left, Right* right, float* total) const {
        const auto [from, to] = cut;
        const int64_t height = to - from, at = (row + from) * cols, bytes = call.format ? 2 : 4;
        if (!count) {
            std::memset(static_cast<char*>(base) + at * bytes, 0, height * cols * bytes);
            return;
        }
        const int64_t stride = round_up(cols, Engine::COLS);
        for (int64_t k = 0; k < count; k += DEPTH) {
            const int64_t depth = std::min(DEPTH, count - k);
            Engine::pack_left_transposed(a.shifted(k, from), depth, height, left);
            Engine::pack_right(b.shifted(k, 0), depth, cols, right);
            Engine::multiply(left, right, height, cols, depth, total, stride, k > 0);
        }
        for (int64_t r = 0; r < height; ++r)
            write_past_cache(total + r * stride, cols, base, call.format, at + r * cols);
    }

    void bias_gradients(int64_t unit, int64_t start, int64_t count, float* total) const {
        if (call.grad_up_bias) {
            std::fill_n(total, hidden_width, 0.f);
            for (int64_t i = start; i < start + count; ++i)
                for (int64_t k = 0; k < hidden_width; ++k) total[k] += widen(grad_hidden[i * hidden_width + k]);
            write(total, hidden_width, call.grad_up_bias, call.format, unit * hidden_width);
        }
        if (call.grad_down_bias) {
            std::fill_n(total, width, 0.f);
            for (int64_t i = start; i < start + count; ++i)
                Base::grad_rows(i).as_rows([&](auto grad) {
                    for (int64_t d = 0; d < width; ++d) total[d] += call.strengths[call.order[i]] * widen(grad[0][d]);
                });
            write(total, width, call.grad_down_bias, call.format, unit * width);
        }
    }
};
