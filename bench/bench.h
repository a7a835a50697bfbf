// heed bench: how long heed takes, beside what the machine allows.
#pragma once

#include <CLI/CLI.hpp>

namespace heed::bench {

void add_bench(CLI::App& app);

// What memory gives, measured now, in GB/s, with all threads.
struct Floors {
  double copy;    // of a large array: bytes read and written
  double gather;  // of random rows from a table
};
Floors measure_floors(long table_rows, long row_bytes);

}  // namespace heed::bench
