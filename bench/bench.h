// heed bench: how long heed takes, beside what the machine allows.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "kernels/attention.h"

namespace CLI {
class App;  // whose header takes long to compile
}

namespace heed::bench {

void add_bench(CLI::App& app);    // the kernels
void add_layer(CLI::App& bench);  // one layer with its linear maps
void add_costs(CLI::App& bench);  // what the menu costs, beside its limits
void add_gpu(CLI::App& bench);    // the fused operator on a GPU

struct Shape {
  int heads = 1, channels = 1;  // of a head
};
std::vector<Shape> shapes_of(const std::string& list);  // "4x16,8x32"; throws Error for --shapes

// What memory gives, in GB/s, measured as all of these now and with the threads of the moment.
double copy_bandwidth();                                       // of a large array: bytes read and written
double gather_bandwidth(Offset table_rows, Offset row_bytes);  // of random rows, of 16 * 2^k bytes at the most
// What arithmetic gives, in GFLOP/s: of a dense product whose factors lie in the cache.
double product_rate();

// The seconds of one call, and what several of them say.
double seconds(const std::function<void()>& f);
struct Times {
  double ms = 0;      // the median
  double spread = 0;  // from the first to the third quartile, over the median
};
Times times_of(std::vector<double> seconds);

// A safetensors file of matrices, those that are not empty, and of a list's edges: pairs (from, to) of 32-bit ids.
using NamedMatrix = std::pair<std::string, const Matrix<float>*>;
void write_tensors(const std::string& file, const Csr* list, const std::vector<NamedMatrix>& matrices);

// What a pass must do at the least: rows gathered at random from tables, arrays streamed, numbers added and multiplied.
struct Traffic {
  struct Gather {
    double rows = 0;  // how many
    Offset table = 1, row_bytes = 0;
  };
  std::vector<Gather> gathers;
  double streamed = 0;  // bytes, read or written
  double flops = 0;
};

// One kernel on one input. Outputs are made at the first call of a pass.
struct Work {
  std::function<void()> forward, backward;             // backward may be missing; it comes after forward
  std::function<void()> verify;                        // after both; throws Error where a result is wrong
  std::function<void(const std::string& file)> write;  // after both; input and results, for a peer; may be missing
  Traffic moved_forward, moved_backward;
  Offset edges = 0;            // that a pass visits
  std::shared_ptr<void> data;  // everything it reads and writes
};

struct Input {
  std::shared_ptr<const Pattern> pattern;
  Score score;
  Normaliser normaliser;
  int heads = 1;
  Offset channels = 1;  // of a head
  std::uint64_t seed = 1;
};

// A new kernel is one more entry in the list in kernels.cpp.
struct Kernel {
  const char* name;
  const char* about;
  bool scores, normalisers;  // a row for each
  bool ranges;               // runs on masks that are no lists, too
  Work (*make)(const Input&);
  bool (*takes)(const Input&) = nullptr;  // what it is written for; none: any input
};
const std::vector<Kernel>& kernels();
Work make_specialised(const Input& in);
// The sums of the columns of v, 64 of them, in parallel.
void column_sums(const Matrix<float>& v, float* sums, Matrix<float>& pieces);
bool has_specialised(const Input& in);

// rmat, uniform, grid, star, or a dataset's name or path; and `all`, too, as a pattern, queries x keys.
Graph graph_of(const std::string& name, Id nodes, Offset edges, std::uint64_t seed, const std::string& data);
std::shared_ptr<const Pattern> pattern_of(const std::string& name, Id nodes, Offset edges, std::uint64_t seed,
                                          const std::string& data);

// Rows of two reports, told apart beyond noise. Throws Error where a file is none.
std::string compare(const std::string& before, const std::string& now);

}  // namespace heed::bench
