// The grouped bank forward:   X = x[tokens]   H = X up'   P = act(H)   Y = P down'   y[t] = sum_a s[t, a] Y[slot(t, a)]
#pragma once
#include "bank.hpp"

template <class Engine> struct Forward : Bank<Engine> {
    using Base = Bank<Engine>;
    using typename Base::Desk;
    using typename Base::Stored;
    using Base::act, Base::call, Base::hidden_width, Base::jobs, Base::slots, Base::unit_width, Base::width;
    using Base::Base;

    void run() const {
        Base::shared().reset(Scratch::size<Stored>(slots * width));
        Stored* rows = Base::shared().template take<Stored>(slots * width);  // s Y of each flat slot
#pragma omp parallel num_threads(int(call.threads))
        {
            Engine::enter();
            Desk desk(*this, Base::own());
#pragma omp for schedule(dynamic)
            for (size_t j = 0; j < jobs.size(); ++j) {
                if (!pack(j, desk)) continue;
                for (int32_t at = 0; at < jobs[j].count; at += Base::TILE)
                    tile(jobs[j].start + at, std::min<int64_t>(Base::TILE, jobs[j].count - at), desk, rows);
            }
            Engine::leave();
            Base::sum_slots(rows, call.out, call.out_is_bf16);
        }
    }

    // False where the unit cannot be read.
    bool pack(size_t job, Desk& desk) const {
        if (desk.unit == jobs[job].unit && !call.pool) return true;
        desk.unit = -1;
        Base::with_unit(job, [&](const Matrix& up, const Matrix& down) {
            Engine::pack_right_transposed(up, hidden_width, width, desk.up);
            Engine::pack_right_transposed(down, width, unit_width, desk.down);
            desk.unit = jobs[job].unit;
            Base::read_biases(desk);
        });
        return desk.unit >= 0;
    }

    void tile(int64_t start, int64_t count, Desk& desk, Stored* rows) const {
        Engine::pack_left(Base::x_rows(start), count, width, desk.wide);
        Engine::multiply(desk.wide, desk.up, count, hidden_width, width, desk.hidden, desk.hidden_stride);
        Stored* kept = static_cast<Stored*>(call.hidden) + start * hidden_width;
        for (int64_t i = 0; i < count; ++i) {
            float* h = desk.hidden + i * desk.hidden_stride;
            if (desk.up_bias) Base::add(desk.up_bias, hidden_width, h);
            act.forward(h, unit_width, desk.active + i * unit_width);
            compete(desk.active + i * unit_width, unit_width, call.most);
            if (call.hidden) narrow(h, hidden_width, 1.f, kept + i * hidden_width);
        }
        Engine::pack_left({desk.active, unit_width}, count, unit_width, desk.narrow);
        Engine::multiply(desk.narrow, desk.down, count, width, unit_width, desk.result, desk.stride);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t slot = call.order[start + i];
            float* y = desk.result + i * desk.stride;
            if (desk.down_bias) Base::add(desk.down_bias, width, y);
            narrow(y, width, call.strengths[slot], rows + slot * width);
        }
    }
};
