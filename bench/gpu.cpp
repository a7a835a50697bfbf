// heed bench gpu: the fused operator on a GPU, forward and forward + backward (of q, k, v and the learned vector), held
// against the CPU's before it is timed by the device's clock; beside it the bytes that it must move, as a share of what
// a copy on the device moves in that time. Where gathers hit the cache the share may be above 1. With rows stored as
// bfloat16 the CPU gets the rounded numbers, too, and the time is with their rounding.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <nlohmann/json.hpp>
#include <optional>

#include "bench/bench.h"
#include "cli/command.h"
#include "datasets/npz.h"
#include "graph/files.h"
#include "kernels/bf16.h"
#include "kernels/device.h"
#include "kernels/device_attention.h"

namespace heed::bench {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string scores = "gat,gatv2,scaled_dot", normaliser = "softmax", graph = "rmat", shapes = "4x16";
  std::string storage = "fp32", data;
  Id nodes = 100'000;
  Offset edges = 2'000'000;
  int repeat = 15;
  std::uint64_t seed = 1;
  bool json = false;
  std::optional<std::string> write;
};

struct Arrays {  // of one call and its gradient; on the host or there
  Matrix<float> q, k, v, a, dy, y, dq, dk, dv, da;
  AttentionState<float> state;

  template <class Visit>
  void inputs(Visit visit) {
    for (Matrix<float>* m : {&q, &k, &v, &a, &dy}) visit(*m);
  }
  Attention<float> call(const Pattern& pattern, const Score& score, const Normaliser& normaliser, int heads) const {
    Attention<float> x{&pattern, &score, &normaliser, heads, q.view(), k.view(), v.view(), {}, {}, {}, {}, {}, {}};
    if (k.empty()) x.k = x.v;  // one table for both
    if (score.reads_vector) x.a = a.view();
    return x;
  }
  AttentionGradient<float> sinks() {
    AttentionGradient<float> g{{dq.view()}, {dk.view()}, {dv.view()}, {}, {}, {}, {}, {}};
    if (!da.empty()) g.da = {da.view()};
    return g;
  }
};

double error_of(const Matrix<float>& found, const Matrix<float>& expected, double least) {
  double error = 0, norm = 0;
  for (Offset t = 0; t < expected.size(); ++t) {
    const double e = expected.data()[t], d = found.data()[t] - e;
    error += d * d, norm += e * e;
  }
  return std::sqrt(error) / std::max(std::sqrt(norm), least);
}

class Bench {
 public:
  explicit Bench(const Options& o) : o_(o), there_(cuda_machine()) {
    Matrix<char> from(&there_), to(&there_);
    from.resize(1, Offset{1} << 30), to.resize(1, Offset{1} << 30);
    std::vector<double> times;
    for (int r = 0; r < 7; ++r)
      times.push_back(there_.milliseconds([&] { there_.copy(to.data(), from.data(), std::size_t{1} << 30); }) / 1e3);
    copy_gbs_ = 2.0 * (1 << 30) / times_of(times).ms * 1e-6;
    rows_.push_back({"kernel", "score", "shape", "pass", "ms", "spread", "GB/s", "share of copy", "MB", "error"});
  }

  void graph(const Graph& graph) {
    pattern_ = Pattern::listed(graph.adjacency);
    for (Shape shape : shapes_of(o_.shapes)) weigh(shape);
    for (const std::string& name : cli::names_in(o_.scores))
      for (Shape shape : shapes_of(o_.shapes))
        for (const std::string& storage : cli::names_in(o_.storage))
          run(score_named(name), shape, storage_named(storage) == Storage::bf16);
  }
  void print() const {
    if (o_.json) return cli::print(all_.dump(1) + "\n");
    cli::print(fmt::format("{}: copy {:.0f} GB/s; {} ({} nodes, {} edges), {}, median of {}\n\n", device_name(),
                           copy_gbs_, o_.graph, pattern_->queries(), pattern_->edges(), o_.normaliser, o_.repeat));
    cli::print(cli::table(rows_, false));
  }

 private:
  Matrix<float> there_too(const Matrix<float>& from) {
    Matrix<float> out(&there_);
    out = from;
    return out;
  }
  static void fill(Matrix<float>& to, Offset rows, Offset cols, Random& random) {
    to.resize(rows, cols);
    const std::uint64_t key = random.next();
    for (Offset t = 0; t < to.size(); ++t)
      to.data()[t] = static_cast<float>(2 * uniform(key, static_cast<std::uint64_t>(t)) - 1);
  }

  void weigh(Shape shape) {  // the sparse product: the least that a pass over edges does
    const Offset n = pattern_->queries(), width = shape.heads * shape.channels;
    Random random(o_.seed);
    Matrix<float> weights, x, y(n, width), parts;
    fill(weights, 1, pattern_->edges(), random), fill(x, n, width, random);
    const Matrix<float> weights_there = there_too(weights), x_there = there_too(x);
    Matrix<float> y_there = there_too(y), parts_there;
    auto work = [&] {
      weighted_sum_there(there_, {.rows = &pattern_->by_query, .weights = weights_there.data()}, x_there.view(),
                         {y_there.view()}, parts_there);
    };
    work();
    const Offset count = weights.size();
    weighted_sum<float>(pattern_->by_query, {weights.data(), static_cast<std::size_t>(count)}, {}, {},
                        std::as_const(x).view(), {y.view()}, parts);
    const double error = error_of(Matrix<float>(y_there), y, 0);
    const double edges = static_cast<double>(count), nodes = static_cast<double>(n);
    const double row = 4.0 * static_cast<double>(width);
    add("spmm", "weighted sum", shape, "forward", work, edges * (8 + row) + nodes * row, 0, error, error <= 1e-5);
  }

  void run(const Score& score, Shape shape, bool bf16) {
    const Normaliser& normaliser = normaliser_named(o_.normaliser);
    const Offset n = pattern_->queries(), width = shape.heads * shape.channels;
    const Offset score_width = score.contracts ? shape.heads : width;
    const bool one_table = score.name == "gatv2";  // as its layer has it
    Random random(o_.seed);
    Arrays here;
    fill(here.q, n, score_width, random), fill(here.v, n, width, random), fill(here.dy, n, width, random);
    if (!one_table) fill(here.k, n, score_width, random);
    if (score.reads_vector) fill(here.a, 1, score_width, random), here.da.resize(1, score_width);
    for (Arrays* each : {&here}) {
      each->y.resize(n, width), each->dv.resize(n, width);
      each->dq.resize(n, score_width), each->dk.resize(n, score_width);
    }
    if (bf16)
      for (Matrix<float>* m : {&here.v, &here.dy, &here.q, &here.k})
        if (!score.contracts || m == &here.v || m == &here.dy)
          for (float& x : *m) x = from_bf16(to_bf16(x));
    Arrays there{there_too(here.q),
                 there_too(here.k),
                 there_too(here.v),
                 there_too(here.a),
                 there_too(here.dy),
                 there_too(here.y),
                 there_too(here.dq),
                 there_too(here.dk),
                 there_too(here.dv),
                 there_too(here.da),
                 {}};
    const int place = place_in_scores(score);
    auto call = there.call(*pattern_, score, normaliser, shape.heads);
    call.bf16 = bf16;
    const auto sinks = there.sinks();
    auto forward = [&] { attention_there(there_, place, call, there.y.view(), there.state); };
    auto backward = [&] {
      attention_gradient_there(there_, place, call, std::as_const(there.y).view(), std::as_const(there.dy).view(),
                               there.state, sinks);
    };
    (void)there_.peak_bytes();
    const std::size_t held = there_.peak_bytes();
    forward(), backward();
    const double added = static_cast<double>(there_.peak_bytes() - held) / (1 << 20);

    const auto reference = here.call(*pattern_, score, normaliser, shape.heads);
    attention(reference, here.y.view(), here.state);
    attention_gradient<float>(reference, std::as_const(here.y).view(), std::as_const(here.dy).view(), here.state,
                              here.sinks());
    const double value = error_of(Matrix<float>(there.y), here.y, 0);
    double gradient = 0;
    for (auto member : {&Arrays::dq, &Arrays::dk, &Arrays::dv, &Arrays::da})
      if (!(here.*member).empty()) {
        // GAT's dq cancels to rounding where no pair meets the kink.
        double least = 0;
        for (float x : here.dv) least += static_cast<double>(x) * static_cast<double>(x);
        gradient = std::max(gradient, error_of(Matrix<float>(there.*member), here.*member, 1e-3 * std::sqrt(least)));
      }
    const bool verified = value <= 1e-5 && gradient <= 1e-4;

    const double edges = static_cast<double>(pattern_->edges()), nodes = static_cast<double>(n);
    const double row = 4.0 * static_cast<double>(width), score_row = 4.0 * static_cast<double>(score_width);
    const double short_row = bf16 ? row / 2 : row, short_score = bf16 && !score.contracts ? score_row / 2 : score_row;
    const double pair = one_table ? short_row : short_row + short_score, numbers = 4.0 * shape.heads;
    // What is rounded is read once more, and written.
    const double rounds = !bf16 ? 0 : 1.5 * nodes * (row + (score.contracts ? 0 : (one_table ? 1 : 2) * score_row));
    const double moved = rounds + edges * (4 + pair) + nodes * (score_row + row + numbers);
    const double back = edges * (4 + pair) + nodes * (2 * score_row + row + 2 * numbers) +  // rows of queries
                        edges * (4 + short_row + short_score + 2 * numbers) +               // of keys
                        nodes * (2 * row + 2 * score_row) + 2 * nodes * row +               // delta
                        (bf16 ? 1.5 * nodes * row : 0);
    const char* kernel = bf16 ? "attention, bf16" : "attention";
    add(kernel, score.name, shape, "forward", forward, moved, added, value, verified);
    add(
        kernel, score.name, shape, "forward + backward", [&] { forward(), backward(); }, moved + back, added, gradient,
        verified);
  }

  void add(const char* kernel, const std::string& score, Shape shape, const char* pass,
           const std::function<void()>& work, double bytes, double added, double error, bool verified) {
    std::vector<double> times;
    for (int r = 0; r < o_.repeat + 3; ++r) {
      const double ms = there_.milliseconds(work);
      if (r >= 3) times.push_back(ms / 1e3);
    }
    const Times t = times_of(times);
    const double speed = bytes / t.ms * 1e-6, share = speed / copy_gbs_;
    all_.push_back({{"kernel", kernel},
                    {"score", score},
                    {"normaliser", o_.normaliser},
                    {"graph", o_.graph},
                    {"nodes", pattern_->queries()},
                    {"edges", pattern_->edges()},
                    {"heads", shape.heads},
                    {"channels", shape.channels},
                    {"pass", pass},
                    {"device", device_name()},
                    {"ms", t.ms},
                    {"spread", t.spread},
                    {"moved_mb", bytes / (1 << 20)},
                    {"copy_gbs", copy_gbs_},
                    {"share", share},
                    {"verified", verified},
                    {"error", error},
                    {"added_mb", added}});
    rows_.push_back({kernel, score, fmt::format("{}x{}", shape.heads, shape.channels), pass,
                     fmt::format("{:.3f}", t.ms),
                     fmt::format("{:.0f}%", 100 * t.spread), fmt::format("{:.0f}", speed), fmt::format("{:.2f}", share),
                     fmt::format("{:.0f}", added), fmt::format("{:.1e}{}", error, verified ? "" : " WRONG")});
  }

  const Options& o_;
  Machine& there_;
  std::shared_ptr<const Pattern> pattern_;
  double copy_gbs_ = 0;
  Json all_ = Json::array();
  std::vector<std::vector<std::string>> rows_;
};

void run(const Options& o) {
  const Graph graph = graph_of(o.graph, o.nodes, o.edges, o.seed, o.data);
  if (o.write) {
    const std::filesystem::path folder = *o.write;
    std::filesystem::create_directories(folder);
    const Csr& list = *graph.adjacency;
    write_file(folder / "offsets.npy", to_npy<std::int64_t>({static_cast<Offset>(list.offsets.size())}, list.offsets));
    write_file(folder / "ids.npy", to_npy<std::int32_t>({list.edges()}, list.ids));
  }
  if (!device_available()) fail("there is no CUDA device, or this build has no kernels for it");
  Bench bench(o);
  bench.graph(graph);
  bench.print();
}

}  // namespace

void add_gpu(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* c = bench.add_subcommand("gpu", "The fused operator on a GPU, held against the CPU's and then timed");
  c->add_option("--scores", o->scores, "Scores by name");
  c->add_option("--normaliser", o->normaliser, "Normaliser by name");
  c->add_option("--graph", o->graph, "rmat, uniform, grid, star, or a dataset");
  c->add_option("--nodes", o->nodes, "Of a generated graph")->check(cli::whole_number(2, 1 << 30));
  c->add_option("--edges", o->edges, "Of a generated graph, directed")->check(cli::whole_number(1, 1'000'000'000'000));
  c->add_option("--shapes", o->shapes, "Heads x channels of a head, as in 4x16,8x32");
  c->add_option("--storage", o->storage, "Of gathered rows: fp32, bf16, or both with a comma");
  c->add_option("--repeat", o->repeat, "Timed repetitions; the median counts")->check(cli::whole_number(1, 100000));
  c->add_option("--seed", o->seed, "Of the graph and the numbers");
  cli::add_data(*c, o->data);
  c->add_option("--write", o->write, "Write the graph's offsets.npy and ids.npy to this folder, for peers")
      ->check(cli::not_empty());
  c->add_flag("--json", o->json, "A JSON array of rows on standard output");
  c->callback([o] { run(*o); });
}

}  // namespace heed::bench
