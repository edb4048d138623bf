// The grouped passes for units of few neurons, such as columns: what a slot asks of its unit is so little that its token's
// row, read and written once a slot, would be all the work. So width is cut into slices that stay in cache for all tokens.
//
//   gather   C[slot] = X[token] W[unit]'           hidden values, and the slopes of what the neurons said
//   scatter  Y[token] = sum of C[slot] W[unit]     the output, and the slopes of x
//   outer    W[unit] = sum of C[slot]' X[token]    the weights' slopes
//
// Single precision throughout; units are summed in ascending order, so that results depend neither on the threads nor on
// where the units lie.
#pragma once
#include "bank.hpp"

class FineBank {
    static constexpr int64_t SLICE_BYTES = 3 << 19, CHUNK = 2 * LANES;  // of all tokens; columns taken at once
    static constexpr int ROWS = 8;                                     // rows of an outer product taken at once
    static constexpr size_t AHEAD = 6;                                 // units on their way before their turn

    // One unit's two matrices, wherever it lies.
    struct Unit {
        int64_t number;
        const char *up, *down;
    };
    // Columns [from, from + some) of a matrix, `padded` apart, with zeros behind them.
    struct Span {
        int64_t from, some, padded;
    };

    const BankCall& call;
    const Activation& act = activation(int(call.activation));
    const int64_t width = call.width, pitch = round_up(width, CHUNK), neurons = call.unit_width, hidden_width = act.parts * neurons;
    const int64_t kept = call.bounds[call.units];  // slots that woke somebody, sorted by unit
    // of the weights once they are unpacked, and of the biases, which never are packed
    const bool is_bf16 = call.format != FP32, bias_is_bf16 = call.format == BF16;
    // rows of a unit's two matrices, the second with its bias as a row of its own; then in whole blocks
    const int64_t spoken_rows = neurons + (call.down_bias ? 1 : 0);
    const int64_t hidden_pitch = round_up(hidden_width, ROWS), spoken_pitch = round_up(spoken_rows, ROWS);
    std::vector<int32_t> tokens;        // of each sorted slot
    float *tokens_slice, *hidden, *spoken;  // (T, slice), (N, GF) and (N, F + 1) in whole blocks

    static Scratch& shared() {
        static thread_local Scratch scratch;
        return scratch;
    }
    static Scratch& own() {
        static thread_local Scratch scratch;
        return scratch;
    }
    int64_t slice_width() const {
        const int64_t fits = SLICE_BYTES / (4 * std::max<int64_t>(call.tokens, 1)) / CHUNK * CHUNK;
        return std::min(pitch, std::clamp<int64_t>(fits, 2 * CHUNK, 16 * CHUNK));
    }
    // Outputs are shared out among the threads, so that their slices must be several.
    int64_t output_width() const { return std::min(slice_width(), std::max(CHUNK, width / (2 * call.threads) / CHUNK * CHUNK)); }
    Span span(int64_t from, int64_t cols) const {
        const int64_t some = std::min(cols, width - from);
        return {from, some, round_up(some, CHUNK)};
    }
    Unit unit(int64_t number) const {
        const int64_t bytes = is_bf16 ? 2 : 4;
        return {number, static_cast<const char*>(call.up) + number * hidden_width * width * bytes,
                static_cast<const char*>(call.down) + number * width * neurons * bytes};
    }
    Matrix x() const { return {call.x, call.x_is_bf16 != 0, width}; }
    Matrix grad() const { return {call.grad, call.grad_is_bf16 != 0, width}; }

  public:
    mutable bool failed = false;  // a unit on disk cannot be read

    explicit FineBank(const BankCall& call) : call(call), tokens(call.bounds[call.units]) {
        for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = call.order[i] / int32_t(call.awake);
        const int64_t sizes[] = {call.tokens * (call.pool ? 2 * pitch : slice_width()), kept * hidden_pitch, kept * spoken_pitch};
        size_t bytes = 0;
        for (int64_t size : sizes) bytes += Scratch::size<float>(size);
        shared().reset(bytes);
        tokens_slice = shared().take<float>(sizes[0]);
        hidden = shared().take<float>(sizes[1]), spoken = shared().take<float>(sizes[2]);
    }

    void forward() const {
        if (call.pool) return forward_from_pool();
#pragma omp parallel num_threads(int(call.threads))
        {
            gather(x(), hidden_pitch, hidden, [&](auto... where) { up_rows(where...); });
#pragma omp for schedule(static)
            for (int64_t u = 0; u < call.units; ++u)
                for (int64_t i = call.bounds[u]; i < call.bounds[u + 1]; ++i) activate(u, i);
            scatter(spoken, spoken_pitch, spoken_rows, call.out, call.out_is_bf16 != 0, [&](auto... where) { down_rows(where...); });
        }
    }
    void backward() const {
        if (call.pool) return backward_from_pool();
#pragma omp parallel num_threads(int(call.threads))
        {
            gather(grad(), spoken_pitch, spoken, [&](auto... where) { down_rows(where...); });
#pragma omp for schedule(static)
            for (int64_t i = 0; i < kept; ++i) activate_back(i);
            if (call.grad_x)
                scatter(hidden, hidden_pitch, hidden_width, call.grad_x, call.x_is_bf16 != 0, [&](auto... where) { up_rows(where...); });
            if (call.grad_up) outer(x(), hidden, hidden_pitch, hidden_width, [&](auto... where) { write_up(where...); });
            if (call.grad_down || call.grad_down_bias)
                outer(grad(), spoken, spoken_pitch, spoken_rows, [&](auto... where) { write_down(where...); });
            if (call.grad_up_bias) up_bias_gradients();
        }
    }

  private:
    // One slot: H to s P, and s itself before the bias of `down`; H is kept for backward.
    void activate(int64_t unit, int64_t i) const {
        float *h = hidden + i * hidden_pitch, *said = spoken + i * spoken_pitch;
        const float strength = call.strengths[call.order[i]];
        if (call.up_bias) {
            float bias[2 * LARGEST_RIVALRY];
            read(call.up_bias, bias_is_bf16, unit * hidden_width, hidden_width, bias);
            for (int64_t k = 0; k < hidden_width; ++k) h[k] += bias[k];
        }
        act.forward(h, neurons, said);
        compete(said, neurons, call.most);
        for (int64_t f = 0; f < neurons; ++f) said[f] *= strength;
        if (call.down_bias) said[neurons] = strength;
        if (call.hidden) std::copy_n(h, hidden_width, static_cast<float*>(call.hidden) + i * hidden_width);
    }
    // One slot: the slopes of P, with that of the bias behind them, become s P; H becomes its slopes.
    void activate_back(int64_t i) const {
        const int64_t slot = call.order[i];
        const float strength = call.strengths[slot];
        float *h = hidden + i * hidden_pitch, *slopes = spoken + i * spoken_pitch, said[LARGEST_RIVALRY];
        std::copy_n(static_cast<const float*>(call.hidden) + i * hidden_width, hidden_width, h);
        act.backward(h, neurons, slopes, said);
        compete_back(h, said, neurons, act.parts, call.most);
        float along = call.down_bias ? slopes[neurons] : 0.f;
        for (int64_t f = 0; f < neurons; ++f) along += said[f] * slopes[f];
        if (call.grad_strengths) call.grad_strengths[slot] = along;
        for (int64_t k = 0; k < hidden_width; ++k) h[k] *= strength;
        for (int64_t f = 0; f < neurons; ++f) slopes[f] = strength * said[f];
        if (call.down_bias) slopes[neurons] = strength;
    }
    void up_bias_gradients() const {
#pragma omp for schedule(static)
        for (int64_t u = 0; u < call.units; ++u) {
            float total[2 * LARGEST_RIVALRY] = {};
            for (int64_t i = call.bounds[u]; i < call.bounds[u + 1]; ++i)
                for (int64_t k = 0; k < hidden_width; ++k) total[k] += hidden[i * hidden_pitch + k];
            write(total, hidden_width, call.grad_up_bias, bias_is_bf16, u * hidden_width);
        }
    }

    // A unit's rows in single precision; those of `down` turned, so that each belongs to a neuron.
    void up_rows(const Unit& unit, const Span& span, float* out) const {
        for (int64_t r = 0; r < hidden_width; ++r) {
            read(unit.up, is_bf16, r * width + span.from, span.some, out + r * span.padded);
            std::fill(out + r * span.padded + span.some, out + (r + 1) * span.padded, 0.f);
        }
        std::fill(out + hidden_width * span.padded, out + hidden_pitch * span.padded, 0.f);
    }
    void down_rows(const Unit& unit, const Span& span, float* out) const {
        std::fill(out, out + spoken_pitch * span.padded, 0.f);
        const auto turn = [&](auto* down) {
            for (int64_t d = 0; d < span.some; ++d)
                for (int64_t f = 0; f < neurons; ++f) out[f * span.padded + d] = widen(down[(span.from + d) * neurons + f]);
        };
        if (is_bf16) turn(reinterpret_cast<const bf16*>(unit.down));
        else turn(reinterpret_cast<const float*>(unit.down));
        if (call.down_bias) read(call.down_bias, bias_is_bf16, unit.number * width + span.from, span.some, out + neurons * span.padded);
    }
    void write_up(int64_t unit, const Span& span, const float* rows) const {
        for (int64_t r = 0; r < hidden_width; ++r)
            write(rows + r * span.padded, span.some, call.grad_up, is_bf16, (unit * hidden_width + r) * width + span.from);
    }
    void write_down(int64_t unit, const Span& span, const float* rows) const {
        if (call.grad_down_bias) write(rows + neurons * span.padded, span.some, call.grad_down_bias, bias_is_bf16, unit * width + span.from);
        if (!call.grad_down) return;
        const auto turn = [&](auto* down) {
            down += (unit * width + span.from) * neurons;
            for (int64_t d = 0; d < span.some; ++d)
                for (int64_t f = 0; f < neurons; ++f) down[d * neurons + f] = narrow<std::decay_t<decltype(*down)>>(rows[f * span.padded + d]);
        };
        if (is_bf16) turn(static_cast<bf16*>(call.grad_down));
        else turn(static_cast<float*>(call.grad_down));
    }

    // What follows is called by every thread of a team.

    // Columns of all tokens' rows, in single precision.
    void take(const Matrix& rows, const Span& span) const {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < call.tokens; ++t) {
            float* out = tokens_slice + t * span.padded;
            read(rows.base, rows.is_bf16, t * width + span.from, span.some, out);
            std::fill(out + span.some, out + span.padded, 0.f);
        }
    }
    template <class Pack> void gather(const Matrix& from, int64_t rows, float* out, Pack pack) const {
        const int64_t cols = slice_width();
        own().reset(Scratch::size<float>(rows * cols));
        float* weights = own().take<float>(rows * cols);
        for (int64_t at = 0; at < width; at += cols) {
            const Span columns = span(at, cols);
            take(from, columns);
#pragma omp for schedule(dynamic, 4)
            for (int64_t u = 0; u < call.units; ++u) {
                const int64_t start = call.bounds[u], end = call.bounds[u + 1];
                if (start == end) continue;
                pack(unit(u), columns, weights);
                for (int64_t i = start; i < end; i += 4)
                    gather_slots(i, std::min<int64_t>(4, end - i), tokens_slice, columns.padded, weights, columns.padded, columns.padded, rows, out, at == 0);
            }
        }
    }
    // Up to four slots' products with all rows of their unit, `cols` deep.
    void gather_slots(int64_t i, int64_t slots, const float* x, int64_t x_pitch, const float* weights, int64_t weights_pitch, int64_t cols,
                      int64_t rows, float* out, bool is_first) const {
        const float* row[4];
        for (int64_t j = 0; j < 4; ++j) row[j] = x + tokens[i + std::min(j, slots - 1)] * x_pitch;
        for (int64_t r = 0; r < rows; r += LINES) {
            vec total[4][LINES] = {};
            for (int64_t k = 0; k < cols; k += LANES) {
                vec w[LINES];
#pragma GCC unroll 4
                for (int l = 0; l < LINES; ++l) w[l] = *reinterpret_cast<const vec*>(weights + (r + l) * weights_pitch + k);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) {
                    const vec value = *reinterpret_cast<const vec*>(row[j] + k);
#pragma GCC unroll 4
                    for (int l = 0; l < LINES; ++l) total[j][l] += value * w[l];
                }
            }
            for (int64_t j = 0; j < slots; ++j) {
                float part[LINES], *to = out + (i + j) * rows + r;
                sums(total[j], part);
                for (int l = 0; l < LINES; ++l) to[l] = is_first ? part[l] : to[l] + part[l];
            }
        }
    }

    template <class Pack>
    void scatter(const float* coefficients, int64_t pitch, int64_t rows, void* out, bool out_is_bf16, Pack pack) const {
        const int64_t cols = output_width();
        own().reset(Scratch::size<float>(pitch * cols) + Scratch::size<float>(call.tokens * cols));
        float *weights = own().take<float>(pitch * cols), *sums = own().take<float>(call.tokens * cols);
#pragma omp for schedule(dynamic)
        for (int64_t at = 0; at < width; at += cols) {
            const Span columns = span(at, cols);
            std::fill_n(sums, call.tokens * columns.padded, 0.f);
            for (int64_t u = 0; u < call.units; ++u) {
                if (call.bounds[u] == call.bounds[u + 1]) continue;
                pack(unit(u), columns, weights);
                scatter_unit(u, coefficients, pitch, rows, weights, columns.padded, sums, columns.padded);
            }
            for (int64_t t = 0; t < call.tokens; ++t) write(sums + t * columns.padded, columns.some, out, out_is_bf16, t * width + at);
        }
    }
    void scatter_unit(int64_t u, const float* coefficients, int64_t pitch, int64_t rows, const float* weights, int64_t cols, float* out,
                      int64_t out_pitch) const {
        const int64_t end = call.bounds[u + 1];
        for (int64_t i = call.bounds[u]; i < end; i += 4) {
            const int64_t slots = std::min<int64_t>(4, end - i);
            const float* factor[4];
            for (int64_t j = 0; j < 4; ++j) factor[j] = coefficients + (i + std::min(j, slots - 1)) * pitch;
            for (int64_t c = 0; c < cols; c += CHUNK) {
                vec part[4][2] = {};
                for (int64_t r = 0; r < rows; ++r) {
                    const vec a = *reinterpret_cast<const vec*>(weights + r * cols + c);
                    const vec b = *reinterpret_cast<const vec*>(weights + r * cols + c + LANES);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; ++j) part[j][0] += factor[j][r] * a, part[j][1] += factor[j][r] * b;
                }
                // one after the other: two slots may be of the same token
                for (int64_t j = 0; j < slots; ++j) {
                    vec* to = reinterpret_cast<vec*>(out + tokens[i + j] * out_pitch + c);
                    to[0] += part[j][0], to[1] += part[j][1];
                }
            }
        }
    }

    // Every unit's slopes, whole: one nobody woke gets its zeros and no more.
    template <class Put> void outer(const Matrix& rows_of, const float* coefficients, int64_t pitch, int64_t rows, Put put) const {
        const int64_t cols = slice_width();
        own().reset(Scratch::size<float>(pitch * cols));
        float* total = own().take<float>(pitch * cols);
        for (int64_t at = 0; at < width; at += cols) {
            const Span columns = span(at, cols);
            take(rows_of, columns);
#pragma omp for schedule(dynamic, 4)
            for (int64_t u = 0; u < call.units; ++u) {
                for (int64_t r = 0; r < rows; r += ROWS)
                    for (int64_t c = 0; c < columns.padded; c += CHUNK)
                        outer_block(u, coefficients + r, pitch, tokens_slice + c, columns.padded, total + r * columns.padded + c);
                put(u, columns, total);
            }
        }
    }
    void outer_block(int64_t u, const float* coefficients, int64_t pitch, const float* x, int64_t padded, float* out) const {
        vec total[ROWS][2] = {};
        for (int64_t i = call.bounds[u]; i < call.bounds[u + 1]; ++i) {
            const float *row = x + tokens[i] * padded, *factor = coefficients + i * pitch;
            const vec a = *reinterpret_cast<const vec*>(row), b = *reinterpret_cast<const vec*>(row + LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) total[r][0] += factor[r] * a, total[r][1] += factor[r] * b;
        }
        for (int r = 0; r < ROWS; ++r) {
            *reinterpret_cast<vec*>(out + r * padded) = total[r][0];
            *reinterpret_cast<vec*>(out + r * padded + LANES) = total[r][1];
        }
    }

    // Units that lie on disk come one after the other, each once; the team shares its slots, then its outputs. Every sum
    // runs in the order in which it would run in memory.
    void forward_from_pool() const {
        const auto think = [&](const Unit& unit, float* up) { up_rows(unit, {0, width, pitch}, up); };
        const auto act_on = [&](int64_t u, int64_t i) { activate(u, i); };
        const auto say = [&](const Unit& unit, const Span& share, float* down, float* sums) {
            down_rows(unit, share, down);
            scatter_unit(unit.number, spoken, spoken_pitch, spoken_rows, down, share.padded, sums, pitch);
        };
        through_pool(x(), hidden, hidden_pitch, think, act_on, say, call.out, call.out_is_bf16);
    }
    void backward_from_pool() const {
        const auto hear = [&](const Unit& unit, float* down) { down_rows(unit, {0, width, pitch}, down); };
        const auto act_on = [&](int64_t, int64_t i) { activate_back(i); };
        const auto pass_on = [&](const Unit& unit, const Span& share, float* up, float* sums) {
            up_rows(unit, share, up);
            scatter_unit(unit.number, hidden, hidden_pitch, hidden_width, up, share.padded, sums, pitch);
        };
        through_pool(grad(), spoken, spoken_pitch, hear, act_on, pass_on, call.grad_x, call.x_is_bf16);
    }
    template <class Pack, class Act, class Scatter>
    void through_pool(const Matrix& in, float* gathered, int64_t rows, Pack pack, Act act_on, Scatter say, void* out, bool out_is_bf16) const {
        float *inputs = tokens_slice, *sums = tokens_slice + call.tokens * pitch;
        const std::vector<int64_t> woken = woken_units();
        std::vector<bf16> plain;
        size_t asked = 0;
        Unit at{};
#pragma omp parallel num_threads(int(call.threads))
        {
            take(in, {0, width, pitch});
#pragma omp for schedule(static)
            for (int64_t t = 0; t < call.tokens; ++t) std::fill_n(sums + t * pitch, pitch, 0.f);
            const int64_t most_rows = std::max(hidden_pitch, spoken_pitch);
            own().reset(2 * Scratch::size<float>(most_rows * pitch));
            float *weights = own().take<float>(most_rows * pitch), *others = own().take<float>(most_rows * pitch);
            const int64_t cols = slice_width(), chunks = pitch / CHUNK, me = omp_get_thread_num(), team = omp_get_num_threads();
            const Span share = span(chunks * me / team * CHUNK, (chunks * (me + 1) / team - chunks * me / team) * CHUNK);
            for (size_t number = 0; number < woken.size(); ++number) {
                const int64_t u = woken[number], end = call.bounds[u + 1];
#pragma omp single
                at = fetch(woken, number, asked, plain);
                const bool is_lost = failed;  // nobody writes it again before all have met
                if (!is_lost) {
                    pack(at, weights);
#pragma omp for schedule(static)
                    for (int64_t i = call.bounds[u]; i < end; i += 4) {
                        const int64_t slots = std::min<int64_t>(4, end - i);
                        for (int64_t from = 0; from < width; from += cols)
                            gather_slots(i, slots, inputs + from, pitch, weights + from, pitch, span(from, cols).padded, rows, gathered, from == 0);
                        for (int64_t j = 0; j < slots; ++j) act_on(u, i + j);
                    }
                    if (out && share.some > 0) say(at, share, others, sums + share.from);
                }
#pragma omp barrier
#pragma omp single
                call.pool->release(call.layer, u);
                if (is_lost) break;
            }
#pragma omp for schedule(static)
            for (int64_t t = 0; t < call.tokens; ++t)
                if (out) write(sums + t * pitch, width, out, out_is_bf16, t * width);
        }
        // what was asked for and never had its turn
        for (; failed && asked > 0 && woken[asked - 1] != at.number; --asked) call.pool->release(call.layer, woken[asked - 1]);
    }
    std::vector<int64_t> woken_units() const {
        std::vector<int64_t> woken;
        for (int64_t u = 0; u < call.units; ++u)
            if (call.bounds[u] < call.bounds[u + 1]) woken.push_back(u);
        return woken;
    }
    // The unit whose turn it is, while the next ones are on their way; packed rows become bfloat16 in `plain`.
    Unit fetch(const std::vector<int64_t>& woken, size_t number, size_t& asked, std::vector<bf16>& plain) const {
        while (asked < std::min(woken.size(), number + AHEAD)) {
            if (call.pool->request(call.layer, woken[asked])) ++asked;
            else if (asked > number) break;
            else std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        const int64_t u = woken[number];
        const Format format = Format(call.format);
        const int64_t up_row = row_bytes_of(format, width);
        const char *up = call.pool->wait(call.layer, u), *down = up + hidden_width * up_row;
        failed = !up;
        if (failed || format <= BF16) return {u, up, down};
        unpack_unit(format, up, hidden_width, neurons, width, plain);
        return {u, reinterpret_cast<const char*>(plain.data()), reinterpret_cast<const char*>(plain.data() + hidden_width * width)};
    }
};
