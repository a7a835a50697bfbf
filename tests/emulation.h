// Machines that run the GPU's kernels on the CPU, 32 lanes in turn, slowly. They throw Error where lanes race.
#pragma once

#include <memory>

#include "kernels/machine.h"

namespace heed::test {

std::unique_ptr<Machine> emulated_machine();           // with the scores of the menu
std::unique_ptr<Machine> emulated_machine_tempered();  // with a user's list of scores: Tempered of support.h

}  // namespace heed::test
