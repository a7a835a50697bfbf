#include "tests/emulation.h"

#include "tests/support.h"

namespace heed::test {

std::unique_ptr<Machine> emulated_machine() { return std::make_unique<EmulatedMachine<>>(); }
std::unique_ptr<Machine> emulated_machine_tempered() {
  return std::make_unique<EmulatedMachine<std::tuple<Tempered>>>();
}

}  // namespace heed::test
