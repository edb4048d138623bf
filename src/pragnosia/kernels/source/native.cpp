// The plain-C door to the compiled kernels. Built on first use by compiled.py; nothing of torch is included here.
#include <exception>

#include "amx.hpp"
#include "backward.hpp"
#include "forward.hpp"
#include "fp32.hpp"

namespace {

template <class Engine> void run(const BankCall& call, bool backward) {
    if (backward) Backward<Engine>(call).run();
    else Forward<Engine>(call).run();
}

int run_safely(const BankCall* call, int use_tiles, bool backward) {
    try {
        if (!backward && !sort_slots(*call)) return 1;
#if PRAGNOSIA_AMX
        if (use_tiles) return run<Amx>(*call, backward), 0;
#endif
        return run<Fp32>(*call, backward), 0;
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

// 0 done, 1 a route that names no unit, 2 out of memory.
int pragnosia_bank_forward(const BankCall* call, int use_tiles) { return run_safely(call, use_tiles, false); }
int pragnosia_bank_backward(const BankCall* call, int use_tiles) { return run_safely(call, use_tiles, true); }
}
