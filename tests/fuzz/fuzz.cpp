// The fuzzer of one reader:  heed_fuzz --reader=csv FOLDER...   (libFuzzer's options as usual)
// and bytes to start from:   heed_fuzz --reader=csv --seeds=FOLDER
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/readers.h"

namespace {

const heed::test::Reader* reader = nullptr;

}  // namespace

// What memory was taken where is of no use here and costs most of the time.
extern "C" const char* __asan_default_options() { return "malloc_context_size=0:quarantine_size_mb=8"; }

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  std::string name, seeds;
  for (int a = 1; a < *argc; ++a) {
    const std::string word = (*argv)[a];
    if (word.starts_with("--reader=")) name = word.substr(9);
    if (word.starts_with("--seeds=")) seeds = word.substr(8);
  }
  for (const auto& known : heed::test::readers())
    if (known.name == name) reader = &known;
  if (reader == nullptr) {
    std::fputs("--reader= is one of:", stderr);
    for (const auto& known : heed::test::readers()) std::fprintf(stderr, " %s", known.name.c_str());
    std::fputs("\n", stderr);
    std::exit(2);
  }
  if (!seeds.empty()) {
    std::filesystem::create_directories(seeds);
    int number = 0;
    for (const auto& bytes : reader->seeds())
      heed::write_file(std::filesystem::path(seeds) / (name + "-" + std::to_string(number++)), bytes);
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  try {
    reader->read(std::string(reinterpret_cast<const char*>(data), size));
  } catch (const heed::Error&) {  // anything else is a mistake in a reader
  }
  return 0;
}
