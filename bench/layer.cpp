// heed bench layer: one attention layer with its linear maps, forward and backward; each part's time beside its floor:
// bytes that must be streamed / copy bandwidth + gathered bytes / gather bandwidth. What it read and gave can be
// written for a peer that does the same (bench/peers).
#include <fmt/format.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "bench/bench.h"
#include "cli/command.h"
#include "graph/files.h"
#include "kernels/parallel.h"
#include "layers/layers.h"
#include "train/memory.h"

namespace heed::bench {
namespace {

struct Options {
  std::string score = "gat", graph = "rmat", data;
  std::optional<std::string> write;
  Id nodes = 100'000;
  Offset edges = 2'000'000, in = 64, channels = 16;
  int heads = 4, repeat = 9, threads = 0;
  std::uint64_t seed = 1;
  bool json = false, reorder = false;
};

// The attention step against plain loops in double, on some of the rows. Throws Error where they differ.
void verify(const Graph& graph, const Score& score, int heads, Offset channels, Random& random) {
  const Offset n = graph.nodes(), width = heads * channels;
  const bool contracted = score.contracts;
  const Offset score_width = contracted ? heads : width;
  auto fill = [&](Offset rows, Offset cols) {
    Matrix<float> out(rows, cols);
    for (float& x : out) x = static_cast<float>(random.normal());
    return out;
  };
  auto q = fill(n, score_width), k = fill(n, score_width), v = fill(n, width), a = fill(1, score_width);
  auto pattern = Pattern::listed(graph.adjacency);
  AttentionState<float> state;
  Matrix<float> y(n, width);
  Attention<float> call{pattern.get(),
                        &score,
                        &normaliser_named("softmax"),
                        heads,
                        std::as_const(q).view(),
                        std::as_const(k).view(),
                        std::as_const(v).view(),
                        score.reads_vector ? std::as_const(a).view() : View<const float>{},
                        {},
                        {},
                        {},
                        {},
                        {}};
  attention(call, y.view(), state);
  auto leaky = [](double x) { return x > 0 ? x : 0.2f * x; };
  const Offset d = score_width / heads;
  for (int t = 0; t < 64; ++t) {
    const Id i = static_cast<Id>(random.below(static_cast<std::uint64_t>(n)));
    for (int h = 0; h < heads; ++h) {
      std::vector<double> s;
      double total = 0, error = 0, norm = 0;
      for (Id j : graph.adjacency->row(i)) {
        double sum = 0;
        for (Offset c = h * d; c < (h + 1) * d; ++c) {
          const double x = q(i, c), z = k(j, c);
          sum += score.name == "dot" ? x * z : score.name == "gat" ? leaky(x + z) : a(0, c) * leaky(x + z);
        }
        s.push_back(std::exp(sum));
        total += s.back();
      }
      for (Offset c = h * channels; c < (h + 1) * channels; ++c) {
        double expected = 0;
        std::size_t at = 0;
        for (Id j : graph.adjacency->row(i)) expected += s[at++] / total * v(j, c);
        error += (expected - y(i, c)) * (expected - y(i, c)), norm += expected * expected;
      }
      if (!(error <= 1e-8 * std::max(norm, 1e-12))) fail(fmt::format("verification failed in row {}, head {}", i, h));
    }
  }
}

void run(const Options& o) {
  const int threads = o.threads > 0 ? o.threads : tbb::info::default_concurrency();
  tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(threads));
  const Score score = score_named(o.score);
  if (o.score != "gat" && o.score != "gatv2" && o.score != "dot")
    fail("bench layer knows the results of gat, gatv2 and dot, not of '" + printable(o.score) + "'");
  if (o.write) check_writable(*o.write);
  const double at_start = resident_mb();
  const Graph graph = graph_of(o.graph, o.nodes, o.edges, o.seed, o.data);
  const Id n = graph.nodes();
  Random random(o.seed);
  auto fill = [&](Matrix<float>& out) {
    for (float& x : out) x = static_cast<float>(random.normal());
  };
  verify(graph, score, o.heads, o.channels, random);

  Features features;
  features.dense.resize(n, o.in);
  fill(features.dense);
  // The input takes a gradient too, as a hidden layer's does.
  const Model plain = attend({.out = o.channels,
                              .heads = o.heads,
                              .score = score,
                              .mask = local(),
                              .query_scale = o.score == "dot" ? 1 / std::sqrt(static_cast<double>(o.channels)) : 1});
  const Model layer = o.reorder ? by_degree(plain) : plain;
  Parameter<float> input{"x", std::move(features.dense), {}, true};
  features.dense.resize(n, 0);
  Model learned = [&]<class T>(Scope<T>& scope, Var<T> x) {
    if constexpr (std::is_same_v<T, float>) return layer(scope, scope.tape().parameter(input));
    return layer(scope, x);
  };
  Network<float> network(learned, graph, features, o.seed);
  // Numbers of so few digits that float adds their products exactly, in any order, for 64 channels and not many more:
  // so nobody finds a sum on the other side of a score's kink, where one slope of 32 million leaves an error of 1e-4.
  auto round = [](Matrix<float>& all, float step) {
    for (float& x : all) x = std::clamp(std::round(x / step) * step, -2.0f, 2.0f);
  };
  round(input.value, 0.25f);
  for (auto& p : network.parameters()) {
    // Biases begin at 0, where a peer's mistake would not be seen.
    if (std::all_of(p.value.begin(), p.value.end(), [](float x) { return x == 0; })) fill(p.value);
    round(p.value, 1.0f / 32);
  }
  Tape<float>& tape = network.tape();
  tape.training = true;
  Var<float> y = network.output(), loss = tape.result(1, 1, {y});
  bool given = false;
  auto from_above = [&] {  // the gradient that the rest of a network would leave there
    const Sink<float> to = y.sink();
    if (given || !to) return;
    given = true;
    for (Offset i = 0; i < n; ++i)
      std::generate_n(to.to.row(i), to.to.cols, [&] { return static_cast<float>(random.normal()); });
  };
  tape.record(
      loss, [] {}, from_above, "loss");
  if (o.write) {
    tape.forward(), tape.backward(loss);
    std::vector<NamedMatrix> all{
        {"x", &input.value}, {"dx", &input.grad}, {"y", &y.value()}, {"dy", tape.node(y.id).grad}};
    for (const auto& p : network.parameters())
      all.emplace_back(p.name, &p.value), all.emplace_back("d" + p.name, &p.grad);
    write_tensors(*o.write, graph.adjacency.get(), all);
  }
  const bool peak_known = forget_peak();
  std::vector<double> forward, both;
  for (int r = 0; r < o.repeat + 2; ++r) {
    double f = seconds([&] { tape.forward(); }), b = seconds([&] { tape.backward(loss); });
    if (r < 2) continue;
    forward.push_back(f), both.push_back(f + b);
  }
  // Graph, input, parameters and work, but neither the verification nor the arrays that measure floors.
  const double held = peak_rss_mb() - at_start;
  // Of an operation the median, too, of as many more.
  std::map<std::string, std::array<std::vector<double>, 2>> parts;
  for (int r = 0; r < o.repeat; ++r) {
    Profile profile;
    tape.profile = &profile;
    tape.forward(), tape.backward(loss);
    for (const auto& [name, time] : profile)
      for (int pass : {0, 1}) parts[name][pass].push_back(time[pass]);
  }

  // Floors of the attention step: rows gathered once per edge in forward, and in each of backward's two passes.
  const double row = static_cast<double>(o.heads * o.channels) * sizeof(float);
  const double score_row = score.contracts ? o.heads * sizeof(float) : row;
  const double edges = static_cast<double>(graph.edges()), nodes = n;
  const bool same = o.score == "gatv2";  // key and value are one row
  const double pair = same ? row : row + score_row;
  const double copy = copy_bandwidth(), gather = gather_bandwidth(n, static_cast<Offset>(row));
  const double stream = edges * sizeof(Id) + nodes * (row + score_row);
  const double forward_floor = 1e3 * (edges * pair / gather + stream / copy) * 1e-9;
  const double back = edges * (pair + row + score_row + 2.0 * o.heads * sizeof(float));
  const double backward_floor = 1e3 * (back / gather + 2 * stream / copy + 3 * nodes * row / copy) * 1e-9;

  if (o.json) {
    nlohmann::ordered_json j{{"kernel", "layer"},
                             {"score", o.score},
                             {"normaliser", "softmax"},
                             {"graph", o.graph},
                             {"nodes", n},
                             {"edges", graph.edges()},
                             {"heads", o.heads},
                             {"channels", o.channels},
                             {"threads", threads},
                             {"forward_ms", times_of(forward).ms},
                             {"both_ms", times_of(both).ms},
                             {"held_mb", peak_known ? nlohmann::ordered_json(held) : nlohmann::ordered_json()},
                             {"verified", true},
                             {"copy_gbs", copy},
                             {"gather_gbs", gather}};
    cli::print(j.dump() + "\n");
    return;
  }
  cli::print(
      fmt::format("{} layer on {} ({} nodes, {} edges), {} heads x {} channels, {} threads, median of {}\n"
                  "forward {:.1f} ms, forward + backward {:.1f} ms, {:.0f} MB with graph and input\n"
                  "copy {:.1f} GB/s, gather of {:.0f}-byte rows {:.1f} GB/s\n\n",
                  o.score, o.graph, n, graph.edges(), o.heads, o.channels, threads, o.repeat, times_of(forward).ms,
                  times_of(both).ms, held, copy, row, gather));
  std::vector<std::vector<std::string>> rows{{"operation", "forward ms", "backward ms", "floors ms"}};
  for (const auto& [name, times] : parts)
    rows.push_back({name, fmt::format("{:.2f}", times_of(times[0]).ms), fmt::format("{:.2f}", times_of(times[1]).ms),
                    name == "attention" ? fmt::format("{:.1f} + {:.1f}", forward_floor, backward_floor) : ""});
  cli::print(cli::table(rows, false));
}

}  // namespace

void add_layer(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* c = bench.add_subcommand("layer", "One attention layer with its linear maps, verified and then timed");
  c->add_option("--score", o->score, "gat, gatv2 or dot");
  c->add_option("--graph", o->graph, "rmat, uniform, grid, star, or a dataset, with random features");
  c->add_option("--nodes", o->nodes, "Of a generated graph")->check(cli::whole_number(2, 1 << 30));
  c->add_option("--edges", o->edges, "Of a generated graph, directed")->check(cli::whole_number(1, 1'000'000'000'000));
  c->add_option("--in", o->in, "Input channels")->check(cli::whole_number(1, 65536));
  c->add_option("--heads", o->heads, "Heads")->check(cli::whole_number(1, 4096));
  c->add_option("--channels", o->channels, "Channels of a head")->check(cli::whole_number(1, 65536));
  c->add_option("--repeat", o->repeat, "Timed repetitions; the median counts")->check(cli::whole_number(1, 100000));
  c->add_option("--threads", o->threads, "0: all")->check(cli::whole_number(0, 4096));
  c->add_option("--seed", o->seed, "Of the graph and the numbers");
  cli::add_data(*c, o->data);
  c->add_option("--write", o->write,
                "Write edges, x, dy, y, the parameters and all gradients as safetensors, for a peer to do the same")
      ->check(cli::not_empty());
  c->add_flag("--reorder", o->reorder,
              "Compute with the nodes by falling degree; what is read and given keeps its order");
  c->add_flag("--json", o->json, "One JSON object on standard output");
  c->callback([o] { run(*o); });
}

}  // namespace heed::bench
