// The kernel table of one instruction set.
#include "cpu/kernels.h"

namespace lightvl::cpu::LIGHTVL_ISA {

extern const Kernels table;
const Kernels table = {
    .rms_norm = rms_norm,
};

}  // namespace lightvl::cpu::LIGHTVL_ISA
