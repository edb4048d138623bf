// The plain-C door to the compiled kernels. Built on first use by compiled.py; nothing of torch is included here.
#include <exception>

#include "amx.hpp"
#include "awake.hpp"
#include "backward.hpp"
#include "coincidence.hpp"
#include "few.hpp"
#include "fine.hpp"
#include "forward.hpp"
#include "fp32.hpp"
#include "loss.hpp"
#include "packing.hpp"
#include "norm.hpp"
#include "recall.hpp"
#include "route.hpp"
#include "span.hpp"
#include "spikes.hpp"
#include "step.hpp"

namespace {

// 3 where a unit on disk cannot be read.
template <class Pass> int run(const BankCall& call) {
    const Pass pass(call);
    pass.run();
    return pass.failed ? 3 : 0;
}
template <class Engine> int run(const BankCall& call, bool backward) {
    return backward ? run<Backward<Engine>>(call) : run<Forward<Engine>>(call);
}

enum Engine : int { REGISTERS_ALONE, TILES, FINE };  // of native.py

int run_safely(const BankCall* call, int engine, bool backward) {
    try {
        if (!backward && !sort_slots(*call)) return 1;
        if (engine == FINE) {
            const FineBank bank(*call);
            backward ? bank.backward() : bank.forward();
            return bank.failed ? 3 : 0;
        }
#if PRAGNOSIA_AMX
        if (engine == TILES) return run<Amx>(*call, backward);
#endif
        return run<Fp32>(*call, backward);
    } catch (const std::exception&) {
        return 2;
    }
}

}  // namespace

extern "C" {

// Whether bfloat16 products run on tiles here; asks the kernel once.
int pragnosia_tiles() {
#if PRAGNOSIA_AMX
    static const bool allowed = Amx::permitted();
    return allowed;
#else
    return 0;
#endif
}

// 0 done, 1 a route that names no unit, 2 out of memory, 3 a unit on disk that cannot be read (ask the pool why).
int pragnosia_bank_forward(const BankCall* call, int engine) { return run_safely(call, engine, false); }
int pragnosia_bank_backward(const BankCall* call, int engine) { return run_safely(call, engine, true); }

// Forward alone, for few tokens.
int pragnosia_bank_few(const BankCall* call) {
    try {
        for (int64_t i = 0; i < call->tokens * call->awake; ++i)
            if (call->routes[i] < -1 || call->routes[i] >= call->units) return 1;
        return (call->format ? FewBank<bf16>(*call).run() : FewBank<float>(*call).run()) ? 0 : 3;
    } catch (const std::exception&) {
        return 2;
    }
}

// y = x weight' + bias for up to four rows of x; y has x's type.
int pragnosia_linear_few(const void* x, int x_is_bf16, const void* weight, const void* bias, int weight_is_bf16,
                         int64_t rows, int64_t outs, int64_t depth, int64_t threads, void* y) {
    try {
        if (weight_is_bf16) few_linear<bf16>(x, x_is_bf16, weight, bias, rows, outs, depth, threads, y);
        else few_linear<float>(x, x_is_bf16, weight, bias, rows, outs, depth, threads, y);
        return 0;
    } catch (const std::exception&) {
        return 2;
    }
}

// y = x weight + bias for one row of x, of which the weights (depth, outs) of zeros are not read; 2 out of memory.
int pragnosia_awake_linear(const void* x, int x_is_bf16, const void* weight, const void* bias, int weight_is_bf16, int64_t outs,
                           int64_t depth, int64_t threads, void* y) {
    try {
        if (weight_is_bf16) awake_linear<bf16>(x, x_is_bf16, weight, bias, outs, depth, threads, y);
        else awake_linear<float>(x, x_is_bf16, weight, bias, outs, depth, threads, y);
        return 0;
    } catch (const std::exception&) {
        return 2;
    }
}

// Rows of logits to scores, in place, and to who wakes; 2 out of memory.
int pragnosia_route(const Routing* routing, const float* steering, float* scores, int64_t rows, int64_t threads, int64_t* woken,
                    float* strengths) {
    try {
        return choose_rows(*routing, steering, scores, rows, threads, woken, strengths), 0;
    } catch (const std::exception&) {
        return 2;
    }
}
int pragnosia_route_back(const Routing* routing, const float* scores, const int64_t* woken, const float* grad, const float* x,
                         const float* weight, int64_t rows, int64_t width, int64_t threads, float* grad_x, float* grad_weight,
                         float* grad_bias) {
    try {
        return route_back(*routing, scores, woken, grad, x, weight, rows, width, threads, grad_x, grad_weight, grad_bias), 0;
    } catch (const std::exception&) {
        return 2;
    }
}

// Long-term memory (recall.hpp): who is recalled, what it sums to, and the slopes of both; 2 out of memory.
int pragnosia_recall(const Recall* recall, const float* scores, int64_t* rows, float* strengths) {
    try {
        return recall_rows(*recall, scores, rows, strengths), 0;
    } catch (const std::exception&) {
        return 2;
    }
}
void pragnosia_recall_back(const Recall* recall, const int64_t* rows, const float* strengths, const float* grad, const float* query,
                           const float* keys, float* slopes, float* grad_query, float* grad_keys) {
    recall_back(*recall, rows, strengths, grad, query, keys, slopes, grad_query, grad_keys);
}
void pragnosia_read_rows(const RowsCall* call, float* y) {
    call->typed([&](auto* table) { read_rows(*call, table, y); });
}
int pragnosia_read_packed_rows(const RowsCall* call, int64_t format, int64_t row_bytes, float* y) {
    try {
        return read_packed_rows(*call, Format(format), row_bytes, y), 0;
    } catch (const std::exception&) {
        return 2;
    }
}
int64_t pragnosia_group_slots(const int64_t* rows, int64_t slots, int64_t table_rows, int64_t* counts, int32_t* order, int64_t* named,
                              int64_t* bounds) {
    return group_slots(rows, slots, table_rows, counts, order, named, bounds);
}
void pragnosia_rows_back(const RowsCall* call, const float* grad, const int32_t* order, const int64_t* bounds, int64_t found,
                         float* grad_strengths, float* grad_rows) {
    call->typed([&](auto* table) { rows_back(*call, table, grad, order, bounds, found, grad_strengths, grad_rows); });
}

void pragnosia_step_rows(const RowsStep* step, const float* slopes, const int32_t* order, const int64_t* named, const int64_t* bounds,
                         int64_t found) {
    if (step->is_bf16) step_rows(*step, static_cast<bf16*>(step->table), slopes, order, named, bounds, found);
    else step_rows(*step, static_cast<float*>(step->table), slopes, order, named, bounds, found);
}

// Rows normed; `scales` (one per row) may be null where no gradient will be asked.
int pragnosia_norm(const NormRows* rows, float eps, void* y, int y_is_bf16, float* scales) {
    try {
        return norm_forward(*rows, eps, y, y_is_bf16, scales), 0;
    } catch (const std::exception&) {
        return 2;
    }
}
int pragnosia_norm_back(const NormRows* rows, const float* scales, const void* grad, int grad_is_bf16, void* grad_x, float* grad_weight) {
    try {
        return norm_backward(*rows, scales, grad, grad_is_bf16, grad_x, grad_weight), 0;
    } catch (const std::exception&) {
        return 2;
    }
}

// A pool of units that lie on disk (pool.hpp); null out of memory.
Pool* pragnosia_pool_new(int64_t layers, int64_t units, int64_t record, int64_t slots, int64_t readers, double half_life) {
    try {
        return new Pool(layers, units, record, slots, readers, half_life);
    } catch (const std::exception&) {
        return nullptr;
    }
}
void pragnosia_pool_delete(Pool* pool) { delete pool; }
int64_t pragnosia_pool_open(Pool* pool, const char* path) { return pool->open_file(path); }
void pragnosia_pool_place(Pool* pool, int64_t layer, int64_t unit, const Extent* extents, int64_t count, const uint32_t* sums,
                          int64_t num_sums) {
    pool->place(layer, unit, extents, count, sums, num_sums);
}
void* pragnosia_pool_hold(Pool* pool, int64_t layer, int64_t unit) { return pool->hold(layer, unit); }
void pragnosia_pool_close(Pool* pool, int64_t file) { pool->close_file(file); }
int pragnosia_pool_forget(Pool* pool, int64_t layer, int64_t unit) { return pool->forget(layer, unit); }
void pragnosia_pool_report(Pool* pool, PoolStats* stats) { *stats = pool->report(); }
// For who computes outside: 0 where every slot is in use; the record, null where it cannot be read.
int pragnosia_pool_request(Pool* pool, int64_t layer, int64_t unit) { return pool->request(layer, unit); }
const char* pragnosia_pool_wait(Pool* pool, int64_t layer, int64_t unit) { return pool->wait(layer, unit); }
void pragnosia_pool_release(Pool* pool, int64_t layer, int64_t unit) { pool->release(layer, unit); }
int pragnosia_pool_ready(const Pool* pool, int64_t layer, int64_t unit) { return pool->is_ready(layer, unit); }
const char* pragnosia_pool_first_slot(const Pool* pool) { return pool->first_slot(); }
void pragnosia_pool_tick(Pool* pool, int64_t tokens) { pool->tick(tokens); }

// One token through a model, its logits left in `step`; the likeliest next token, or -1 out of memory, or -2 where a
// unit on disk cannot be read.
int64_t pragnosia_step(const Step* step, int64_t token, int64_t position) {
    try {
        return StepRun(*step, token, position, position).run();
    } catch (const std::exception&) {
        return -1;
    }
}

// Neighbouring tokens through some of a model's layers (span.hpp): 0, -1 out of memory, -2 a unit cannot be read.
int64_t pragnosia_span(const Span* span) {
    try {
        return SpanRun(*span).run();
    } catch (const std::exception&) {
        return -1;
    }
}
// Whether a token among others gets the bits it gets alone; asked once.
int pragnosia_span_agrees() {
    static const bool agree = products_agree();
    return agree;
}

// A table whose rows lie on disk (far.hpp); null out of memory, and `error` is errno where the file cannot be opened.
FarRows* pragnosia_far_new(const char* path, int64_t offset, int64_t rows, int64_t row_bytes, int64_t slots, int64_t* error) {
    try {
        FarRows* far = new FarRows(path, offset, rows, row_bytes, slots);
        *error = far->failed_to_open();
        return far;
    } catch (const std::exception&) {
        *error = 0;
        return nullptr;
    }
}
void pragnosia_far_delete(FarRows* far) { delete far; }
int pragnosia_far_gather(FarRows* far, const int64_t* wanted, int64_t count, char* out) {
    try {
        return far->gather(wanted, count, out);
    } catch (const std::exception&) {
        return 0;
    }
}
void pragnosia_far_report(FarRows* far, FarStats* stats) { *stats = far->report(); }

// Losses of rows of logits, which become their slopes where `slopes` is set; 1 where a target is no word.
int pragnosia_loss_rows(void* logits, int logits_are_bf16, int64_t rows, int64_t vocabulary, const int64_t* targets,
                        int64_t ignore, float scale, int slopes, int64_t threads, float* losses) {
    try {
        const auto run = [&](auto* z) { return loss_rows(z, rows, vocabulary, targets, ignore, scale, slopes, threads, losses); };
        return !(logits_are_bf16 ? run(static_cast<bf16*>(logits)) : run(static_cast<float*>(logits)));
    } catch (const std::exception&) {
        return 2;
    }
}

// y = x packed' + bias for a few rows of x, on rows of a format (formats.py); y has x's type.
int pragnosia_packed_linear(int64_t format, const void* x, int x_is_bf16, const void* packed, int64_t row_bytes, const float* bias,
                            int64_t rows, int64_t outs, int64_t depth, int64_t threads, void* y) {
    try {
        packed_linear(Format(format), x, x_is_bf16, packed, row_bytes, bias, rows, outs, depth, threads, y);
        return 0;
    } catch (const std::exception&) {
        return 2;
    }
}

// Rows into a format; 1 where a number is none, or beyond `largest`.
int pragnosia_pack(int64_t format, const void* matrix, int is_bf16, int64_t rows, int64_t depth, const float* importance,
                   const float* shrinks, int64_t starts, int64_t refinements, float largest, int64_t threads, void* packed,
                   int64_t row_bytes) {
    try {
        const Search search{shrinks, starts, refinements, importance};
        return !pack_rows(Format(format), matrix, is_bf16, rows, depth, search, largest, threads, static_cast<uint8_t*>(packed), row_bytes);
    } catch (const std::exception&) {
        return 2;
    }
}

// The values of packed rows.
void pragnosia_unpack(int64_t format, const void* packed, int64_t row_bytes, int64_t rows, int64_t depth, int64_t threads,
                      void* out, int out_is_bf16) {
    const uint8_t* from = static_cast<const uint8_t*>(packed);
    if (out_is_bf16) unpack_rows(Format(format), from, row_bytes, rows, depth, threads, static_cast<bf16*>(out));
    else unpack_rows(Format(format), from, row_bytes, rows, depth, threads, static_cast<float*>(out));
}

// Steps of a spiking network (spikes.hpp): how many were done, -1 where a membrane is no number, -2 out of memory.
int64_t pragnosia_spikes(Simulation* call) {
    try {
        return Spikes(*call).run();
    } catch (const std::exception&) {
        return -2;
    }
}

// `count` Gaussian numbers of one stream, step and row (chance.hpp); `out` has room for the next multiple of four.
void pragnosia_gaussians(int64_t seed, int64_t stream, int64_t step, int64_t row, int64_t count, float* out) {
    gaussians({uint64_t(seed), uint32_t(stream), uint32_t(step), uint32_t(row)}, count, out);
}

// Tokens through a one-pass learner (coincidence.hpp), on this thread.
void pragnosia_coincidence(const coincidence::Call* call, const int64_t* tokens, int64_t count, int learn, float* said, float* all,
                           int64_t rows) {
    coincidence::read_tokens(*call, tokens, count, learn, said, all, rows);
}
}
