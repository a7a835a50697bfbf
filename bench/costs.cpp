// heed bench costs: what the menu of attention costs, each cost beside the limit that it must keep. Of times the
// least of several counts: other programs only ever add to it. What is compared takes turns, and the median of what two
// neighbours in time have to each other counts, for a processor is not equally fast for long. Each is made in the first
// and in the second place, too: the memory that the second one gets can be slower by a tenth.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <map>

#include "bench/operands.h"
#include "cli/command.h"
#include "datasets/sbm.h"
#include "kernels/menu.h"
#include "layers/ops.h"
#include "sampling/mask.h"
#include "train/memory.h"

namespace heed::bench {
namespace {

constexpr double kMega = 1024 * 1024;
constexpr int kHeads = 4;
constexpr Offset kChannels = 16, kWidth = kHeads * kChannels;

struct Options {
  std::string only = "all";
  int repeat = 9;
  bool quick = false, markdown = false;
};

using Row = std::vector<std::string>;

class Report {
 public:
  explicit Report(bool markdown) : markdown_(markdown) {}

  void begin(const std::string& title, Row head) {
    text_ += (text_.empty() ? "" : "\n") + (markdown_ ? "**" + title + "**" : title) + "\n\n";
    rows_ = {std::move(head)};
  }
  void add(Row row) { rows_.push_back(std::move(row)); }
  void end() { text_ += cli::table(rows_, markdown_); }
  // A cell that says whether a value keeps its limit.
  std::string at_most(double limit, double value) {
    const bool met = value <= limit;
    ++limits_, met_ += met;
    return fmt::format("≤ {:.4g} {}", limit, met ? "met" : "NOT MET");
  }
  std::string text() const { return text_ + fmt::format("\n{} of {} limits met\n", met_, limits_); }

 private:
  bool markdown_;
  int limits_ = 0, met_ = 0;
  std::string text_;
  std::vector<Row> rows_;
};

std::string fixed(double x, int digits) { return fmt::format("{:.{}f}", x, digits); }
std::string mega(double bytes) { return fixed(bytes / kMega, bytes < 100 * kMega ? 2 : 0); }

// The milliseconds of two things that take turns.
struct Turns {
  double first = 1e30, second = 1e30;  // the least
  std::vector<double> ratios;          // of the second to the first, turn by turn

  void add(double a, double b) {
    first = std::min(first, a), second = std::min(second, b);
    ratios.push_back(b / a);
  }
  double times() {
    std::nth_element(ratios.begin(), ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2), ratios.end());
    return ratios[ratios.size() / 2];
  }
  void take(int repeat, const std::function<void()>& a, const std::function<void()>& b) {
    a(), b();
    for (int r = 0; r < repeat; ++r) {
      const double of_a = 1e3 * seconds(a);
      add(of_a, 1e3 * seconds(b));
    }
  }
};

// use(a, b) of two things made one after the other, first a, then b; and once more the other way round.
template <class A, class B, class Use>
void in_both_orders(A make_a, B make_b, Use use) {
  {
    auto a = make_a();
    auto b = make_b();
    use(*a, *b);
  }
  auto b = make_b();
  auto a = make_a();
  use(*a, *b);
}

// What a pass takes above what the program holds before it, in bytes.
double taken(const std::function<void()>& pass) {
  if (!forget_peak()) fail("this system does not tell the most memory that a program held");
  const double before = resident_mb();
  pass();
  return std::max(0.0, peak_rss_mb() - before) * kMega;
}

template <class... X>
double bytes_in(const X&... x) {
  return (0.0 + ... + static_cast<double>(x.size() * static_cast<Offset>(sizeof(*x.data()))));
}
double bytes_of(const AttentionState<float>& s) {
  double out = bytes_in(s.tau, s.tau_delta, s.above, s.least, s.last, s.parts, s.sums, s.shared, s.given);
  for (const auto& group : s.groups) out += bytes_of(group);
  return out;
}
double bytes_of(const Rows& rows) {
  double out = static_cast<double>(rows.intervals.size() * sizeof(Interval) + rows.blocks.size() * sizeof(Block));
  if (rows.list) out += static_cast<double>(rows.list->ids.size() * sizeof(Id) + 8 * rows.list->offsets.size());
  return out;
}
double bytes_of(const Pattern& p) {
  double out = bytes_of(p.by_query) + (p.by_key.list == p.by_query.list ? 0 : bytes_of(p.by_key));
  for (const auto& order : {p.query_order, p.key_order})
    if (order) out += static_cast<double>(order->ids.size() * 2 * sizeof(Id) + 8 * order->places.offsets.size());
  return out;
}

std::shared_ptr<const Pattern> rmat_pattern(Id nodes, Offset edges) { return pattern_of("rmat", nodes, edges, 1, ""); }
Input input_of(std::shared_ptr<const Pattern> pattern, const Score& score, const char* normaliser = "softmax") {
  return {.pattern = std::move(pattern),
          .score = score,
          .normaliser = normaliser_named(normaliser),
          .heads = kHeads,
          .channels = kChannels};
}

// ---- one context for all ------------------------------------------------------------------------------------------

void verify_context(const Operands<float>& x) {
  Matrix<double> y(1, kWidth);
  for (int h = 0; h < kHeads; ++h) {
    double total = 0;
    for (Offset j = 0; j < x.k.rows(); ++j) total += std::exp(static_cast<double>(x.k(j, h)));
    for (Offset j = 0; j < x.k.rows(); ++j)
      for (Offset c = h * kChannels; c < (h + 1) * kChannels; ++c)
        y(0, c) += std::exp(static_cast<double>(x.k(j, h))) / total * x.v(j, c);
  }
  for (Offset i : {Offset{0}, x.y.rows() / 2, x.y.rows() - 1}) {
    Matrix<float> row(1, kWidth);
    std::copy_n(x.y.row(i), kWidth, row.data());
    expect_near("the context", row, y);
  }
}

void context(const Options& o, Report& report) {
  report.begin(
      "One context for all: score `node` over the mask `all()`, softmax, 4 heads x 16, beside the plain sums of "
      "the columns of v, for themselves and written to all rows, as the operator writes its context",
      {"nodes", "sums ms", "context ms", "times", "sums to all ms", "forward ms", "times", "forward + backward ms",
       "ns a node", "read MB", "in and out MB", "beyond MB", "limit"});
  std::vector<Id> sizes{10'000, 100'000, 1'000'000};
  if (o.quick) sizes = {1000, 10'000};
  double before = 0;
  for (Id n : sizes) {
    cli::note(fmt::format("context of {} nodes\n", n));
    double both = 1e30, beyond = 0;
    Turns single, all;
    Row memory;
    // What is over in no time: often, and in other memory, for the caches keep some rows better than others.
    const int more = n > 10'000 ? 1 : 20, places = n > 10'000 ? 1 : 4;
    for (int place = 0; place < places; ++place) {
      Operands<float> x(input_of(Pattern::all(n, n), score_named("node")));
      const auto one_query = Pattern::all(1, n);
      Matrix<float> sums(1, kWidth), pieces, y(1, kWidth);
      AttentionState<float> one_state;
      one_state.backward = false;
      auto sum = [&] { column_sums(x.v, sums.data(), pieces); };
      auto to_all = [&] {
        sum();
        parallel_pieces(n, 512, [&](Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i) std::copy_n(sums.data(), kWidth, x.y.row(i));
        });
      };
      auto one_context = [&] {
        Attention<float> call = x.call();
        call.pattern = one_query.get(), call.q.rows = 1;
        attention(call, y.view(), one_state);
      };
      x.reserve();
      beyond = std::max(beyond, taken([&] { x.forward(), x.backward(); }));
      verify_context(x);
      single.take(2 * more * o.repeat / places, sum, one_context);
      all.take(more * o.repeat / places, to_all, [&] { x.forward(); });
      for (int r = 0; r < o.repeat; ++r) both = std::min(both, 1e3 * seconds([&] { x.forward(), x.backward(); }));
      memory = {mega(bytes_in(x.v)) + " and " + mega(bytes_in(x.v, x.k)),
                mega(bytes_in(x.q, x.k, x.v, x.y, x.dy, x.dq, x.dk, x.dv)), mega(beyond)};
    }
    const double ns = 1e6 * both / n, ratio = single.times(), ratio_to_all = all.times();
    std::string limit = report.at_most(2, std::max(ratio, ratio_to_all));
    if (before > 0) limit += "; " + report.at_most(2, ns / before) + ": ns against a tenth of the nodes";
    before = ns;
    Row row{fmt::format("{}", n), fixed(single.first, 3), fixed(single.second, 3), fixed(ratio, 2), fixed(all.first, 2),
            fixed(all.second, 2), fixed(ratio_to_all, 2), fixed(both, 2),          fixed(ns, 1)};
    row.insert(row.end(), memory.begin(), memory.end());
    row.push_back(limit);
    report.add(row);
  }
  report.end();
}

// ---- masks that no list could hold --------------------------------------------------------------------------------

void masks(const Options& o, Report& report) {
  const Id most = o.quick ? 2000 : 30'000;
  report.begin(fmt::format("Masks that no list could hold: score `dot`, softmax, 4 heads x 16; at {} nodes a bit for "
                           "each pair would be {} MB, a number {} MB",
                           most, mega(0.125 * most * most), mega(4.0 * most * most)),
               {"mask", "nodes", "pairs", "pattern MB", "state MB", "beyond: forward MB", "forward + backward MB",
                "forward ms", "forward + backward ms", "limit"});
  for (const Mask& mask : {all() - local(), community()}) {
    double before = 0;
    for (Id n : {most / 2, most}) {
      cli::note(fmt::format("{} of {} nodes\n", mask.text(), n));
      const Id classes = std::max<Id>(2, n / 500);  // communities of 500, with 20 edges a node within and 2 across
      const Dataset data = sbm({.nodes = n,
                                .classes = classes,
                                .within = 20.0 * classes,
                                .across = 2,
                                .channels = 1,
                                .train = 1,
                                .valid = 1,
                                .test = 1});
      const auto pattern = mask.pattern(data.graph);
      Operands<float> x(input_of(pattern, score_named("dot")));
      x.reserve();
      double f = 0, b = 0;
      const double in_forward = taken([&] { f = seconds([&] { x.forward(); }); });
      const double in_backward = in_forward + taken([&] { b = seconds([&] { x.backward(); }); });
      const double kept = bytes_of(*pattern) + bytes_of(x.state);
      const std::string limit =
          before > 0 ? report.at_most(2.5, kept / before) + " times the bytes of half the nodes" : "";
      before = kept;
      report.add({mask.text(), fmt::format("{}", n), fmt::format("{}", pattern->edges()), mega(bytes_of(*pattern)),
                  mega(bytes_of(x.state)), mega(in_forward), mega(in_backward), fixed(1e3 * f, 0),
                  fixed(1e3 * (f + b), 0), limit});
    }
  }
  report.end();
}

// ---- what is kept for backward ------------------------------------------------------------------------------------

void kept(const Options&, Report& report) {
  const auto pattern = Pattern::listed(graph_of("uniform", 512, 4096, 1, "").adjacency);
  struct Numbers {
    bool filtered = false;
    int from_forward = 0, outputs = 0, in_all = 0;
    auto operator<=>(const Numbers&) const = default;
  };
  std::map<Numbers, std::vector<std::string>> groups;
  std::vector<Score> scores = score_menu();
  for (const char* name : {"dot topk(8)", "gat topk(8)"}) scores.push_back(score_named(name));
  int count = 0;
  for (const Score& score : scores)
    for (const Normaliser& normaliser : normaliser_menu()) {
      if (normaliser.nonnegative && !score.nonnegative) continue;
      Operands<float> x(input_of(pattern, score, normaliser.name.c_str()));
      const AttentionState<float>& s = x.state;
      auto numbers = [&](auto... sizes) {  // for each row and head
        return static_cast<int>((Offset{0} + ... + sizes) / (pattern->queries() * kHeads));
      };
      Numbers n{.filtered = static_cast<bool>(score.filter)};
      count += !n.filtered;
      x.forward();
      const int forward = numbers(s.tau.size(), s.above.size(), s.least.size(), s.last.size());
      n.outputs = forward / static_cast<int>(kChannels), n.from_forward = forward % static_cast<int>(kChannels);
      x.backward();
      n.in_all = n.from_forward + numbers(s.tau_delta.size());
      groups[n].push_back(score.name + " x " + normaliser.name);
    }
  report.begin(fmt::format("Kept for backward, for each row and head: all {} pairs of score and normaliser, and two "
                           "scores under topk, which keeps the last key's score and number",
                           count),
               {"numbers", "arrays like the output", "numbers with backward's own", "bytes in all", "for", "limit"});
  for (const auto& [n, names] : groups) {
    std::string some = names[0];
    for (std::size_t i = 1; i < std::min<std::size_t>(names.size(), 3); ++i) some += ", " + names[i];
    if (names.size() > 3) some += fmt::format(" and {} more", names.size() - 3);
    report.add({fmt::format("{}", n.from_forward), fmt::format("{}", n.outputs), fmt::format("{}", n.in_all),
                fmt::format("{}", sizeof(float) * (n.in_all + n.outputs * kChannels)), some,
                report.at_most(3, n.from_forward) + "; " + report.at_most(1, n.outputs)});
  }
  report.end();
}

// ---- nothing of the size of edges x heads x channels ---------------------------------------------------------------

void peak(const Options& o, Report& report, const std::shared_ptr<const Pattern>& pattern) {
  const double output = static_cast<double>(pattern->queries() * kWidth) * sizeof(float);
  report.begin(fmt::format("The most that forward + backward takes beyond graph, inputs, outputs and gradients: {} "
                           "nodes, {} edges, 4 heads x 16, softmax; an output is {} MB, edges x heads x channels {} MB",
                           pattern->queries(), pattern->edges(), mega(output),
                           mega(4.0 * static_cast<double>(pattern->edges() * kWidth))),
               {"score", "peak MB", "outputs", "stays MB", "limit"});
  for (const Score& score : score_menu()) {
    cli::note("peak of " + score.name + "\n");
    Operands<float> x(input_of(pattern, score));
    x.reserve();
    const double most = taken([&] { x.forward(), x.backward(); });
    // A small output drowns in what threads have of their own.
    report.add({score.name, mega(most), fixed(most / output, 2), mega(bytes_of(x.state)),
                o.quick ? "" : report.at_most(2.2, most / output)});
  }
  report.end();
}

// ---- time against dot ---------------------------------------------------------------------------------------------

// A score as a layer runs it behind its linear maps: what it wants done to q and k, and the operator.
struct Prepared {
  std::vector<std::unique_ptr<Parameter<float>>> inputs;
  Matrix<float> dy;
  Tape<float> tape;
  Var<float> loss;

  Var<float> input(Offset rows, Offset cols) {
    inputs.push_back(std::make_unique<Parameter<float>>(
        Parameter<float>{"", random_matrix<float>(rows, cols, inputs.size() + 1), {}, true}));
    return tape.parameter(*inputs.back());
  }

  Prepared(const std::shared_ptr<const Pattern>& pattern, const Score& score) {
    const Id n = pattern->queries();
    dy = random_matrix<float>(n, kWidth, 9);
    AttentionVars<float> x;
    Var<float> v = input(n, kWidth);
    x.v = v;
    if (score.contracts) {
      const std::vector<Var<float>> vectors{input(1, kWidth), input(1, kWidth)};
      Var<float> both = contract(v, vectors, kHeads);
      x.q = {both, 0, kHeads}, x.k = {both, kHeads, kHeads};
    } else {
      x.q = input(n, kWidth);
      x.k = score.reads_vector && score.prepares == Prepare::none ? v : input(n, kWidth);
    }
    if (score.reads_vector) x.a = input(1, kWidth);
    if (score.scalars > 0) x.p = input(score.scalars, kHeads);
    for (auto& p : inputs)
      for (float& z : p->value) z *= 0.25f;
    if (score.prepares == Prepare::centre_unit) x.q = centre_unit(x.q, kHeads), x.k = centre_unit(x.k, kHeads);
    if (score.prepares == Prepare::unit) x.q = unit(x.q, kHeads), x.k = unit(x.k, kHeads);
    if (score.prepares == Prepare::bilinear) x.k = linear_heads(x.k, input(kChannels, kWidth), kHeads);
    Var<float> y = attention(x, pattern, score, normaliser_named("softmax"), kHeads);
    loss = tape.result(1, 1, {y});
    tape.record(
        loss, [] {},
        [this, y] {
          const Sink<float> to = y.sink();
          parallel_pieces(dy.rows(), 512,
                          [&](Offset begin, Offset end) { std::copy(dy.row(begin), dy.row(end), to.to.row(begin)); });
        });
    tape.training = true;
  }
  void forward() { tape.forward(); }
  void backward() { tape.backward(loss); }
};

void times(const Options& o, Report& report, const std::shared_ptr<const Pattern>& pattern) {
  report.begin(fmt::format("Time against `dot`, which takes turns with each score: {} nodes, {} edges, 4 heads x 16, "
                           "softmax; the operator and what the score prepares for each node, without linear maps",
                           pattern->queries(), pattern->edges()),
               {"score", "forward ms", "times dot", "forward + backward ms", "times dot", "limit"});
  const std::map<std::string, double> limits{{"cosine", 1.15},   {"pearson", 1.15},    {"bilinear", 1.15},
                                             {"euclidean", 1.6}, {"sqeuclidean", 1.6}, {"gaussian", 1.6},
                                             {"laplace", 1.6},   {"gatv2", 1.6},       {"bahdanau", 3}};
  const auto small = rmat_pattern(1000, 10'000);
  const Score dot = score_named("dot");
  for (const Score& score : score_menu()) {
    cli::note("time of " + score.name + "\n");
    Work checked = kernels()[0].make(input_of(small, score));
    checked.forward(), checked.backward(), checked.verify();
    Turns forward, both;
    const auto limit = limits.find(score.name);
    const bool narrow = limit != limits.end() && limit->second < 1.2;  // a few hundredths matter
    const int repeat = score.name == "softdtw" ? 1 : (narrow ? 4 : 1) * o.repeat;
    auto make = [&](const Score& s) { return [&] { return std::make_unique<Prepared>(pattern, s); }; };
    in_both_orders(make(dot), make(score), [&](Prepared& reference, Prepared& other) {
      for (int r = repeat > 1 ? -1 : 0; r < repeat; ++r) {
        double f[2], b[2];
        for (int side = 0; side < 2; ++side) {
          Prepared& x = side == 0 ? reference : other;
          f[side] = 1e3 * seconds([&] { x.forward(); }), b[side] = 1e3 * seconds([&] { x.backward(); });
        }
        if (r >= 0) forward.add(f[0], f[1]), both.add(f[0] + b[0], f[1] + b[1]);
      }
    });
    report.add({score.name, fixed(forward.second, 1), fixed(forward.times(), 2), fixed(both.second, 1),
                fixed(both.times(), 2), limit == limits.end() ? "" : report.at_most(limit->second, both.times())});
  }
  report.end();
}

// ---- the operator beside a kernel of one's own -------------------------------------------------------------------

void alone(const Options& o, Report& report, const std::shared_ptr<const Pattern>& pattern) {
  report.begin("The operator beside a kernel that is written for the score, softmax and shape alone; forward",
               {"score", "nodes", "edges", "shape", "operator ms", "specialised ms", "times", "limit"});
  const Id nodes = pattern->queries();
  for (const auto& graph : {pattern, rmat_pattern(nodes / 20, pattern->edges() / 20)})
    for (const char* score : {"dot", "gat"})
      for (const auto& [heads, channels] : {std::pair{4, 16}, {8, 8}}) {
        cli::note(fmt::format("{} beside its own kernel\n", score));
        Input in = input_of(graph, score_named(score));
        in.heads = heads, in.channels = channels;
        Turns ms;
        in_both_orders([&] { return std::make_unique<Operands<float>>(in); },
                       [&] { return std::make_unique<Work>(make_specialised(in)); },
                       [&](Operands<float>& x, Work& special) {
                         special.forward(), special.verify();
                         x.state.backward = false;
                         ms.take((graph == pattern ? 1 : 20) * o.repeat, special.forward, [&] { x.forward(); });
                       });
        report.add({score, fmt::format("{}", graph->queries()), fmt::format("{}", graph->edges()),
                    fmt::format("{} x {}", heads, channels), fixed(ms.second, 3), fixed(ms.first, 3),
                    fixed(ms.times(), 2), report.at_most(1.1, ms.times())});
      }
  report.end();
}

void run(const Options& o) {
  const std::vector<std::string> parts{"context", "masks", "kept", "peak", "times", "alone"};
  std::vector<std::string> chosen = parts;
  if (o.only != "all") {
    chosen.clear();
    for (const auto& name : cli::names_in(o.only)) chosen.push_back(parts[choose("part", name, parts)]);
  }
  auto wants = [&](const char* part) { return std::find(chosen.begin(), chosen.end(), part) != chosen.end(); };
  Report report(o.markdown);
  if (wants("context")) context(o, report);
  if (wants("masks")) masks(o, report);
  if (wants("kept")) kept(o, report);
  if (wants("peak") || wants("times") || wants("alone")) {
    const auto pattern = o.quick ? rmat_pattern(2000, 20'000) : rmat_pattern(100'000, 2'000'000);
    if (wants("peak")) peak(o, report, pattern);
    if (wants("times")) times(o, report, pattern);
    if (wants("alone")) alone(o, report, pattern);
  }
  cli::print(report.text());
}

}  // namespace

void add_costs(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* c = bench.add_subcommand("costs", "What the menu of attention costs, beside the limits that it must keep");
  c->add_option("--only", o->only, "context, masks, kept, peak, times, alone, separated by commas; default all");
  c->add_option("--repeat", o->repeat, "Timed repetitions, of which the least counts; default 9")
      ->check(cli::whole_number(1, 100000));
  c->add_flag("--quick", o->quick, "Small graphs, to see that all works");
  c->add_flag("--markdown", o->markdown, "The tables in Markdown");
  c->callback([o] { run(*o); });
}

}  // namespace heed::bench
