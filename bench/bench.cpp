// heed bench: every kernel over graphs, shapes and threads. A row is verified, then timed, then set beside its floor:
// bytes that must be streamed / copy bandwidth + bytes that must be gathered / gather bandwidth, or where this is more,
// sums and products / the rate of a dense product; all measured in the same run.
#include "bench/bench.h"

#include <fmt/format.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <CLI/CLI.hpp>

#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/command.h"
#include "graph/files.h"
#include "train/memory.h"

namespace heed::bench {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string kernels = "all", scores = "all", normalisers = "all", graphs = "rmat", shapes = "4x16", threads = "0",
              data;
  Id nodes = 100'000;
  Offset edges = 2'000'000;
  int repeat = 9;
  std::uint64_t seed = 1;
  bool quick = false, json = false, markdown = false;
  std::optional<std::string> out, write;
  std::vector<std::string> compare;
};

int number(const char* option, const std::string& text, int low, int high) {
  try {
    return static_cast<int>(whole(text, low, high));
  } catch (const Error& e) {
    fail(fmt::format("{}: {}", option, e.what()));
  }
}

// The entries of a menu that a list of names means.
template <class Menu>
auto chosen(const char* what, const std::string& list, const Menu& menu) {
  std::vector<std::string> names;
  for (const auto& entry : menu) names.emplace_back(entry.name);
  Menu out;
  if (list == "all") return menu;
  for (const auto& name : cli::names_in(list)) out.push_back(menu[choose(what, name, names)]);
  return out;
}

// Scores may be formulas, with commas between their parentheses.
std::vector<Score> chosen_scores(const std::string& list) {
  if (list == "all") return score_menu();
  if (list.empty()) fail("no name given");
  std::vector<std::string> texts(1);
  int depth = 0;
  for (char c : list) {
    depth += (c == '(') - (c == ')');
    if (c == ',' && depth <= 0)
      texts.emplace_back();
    else
      texts.back() += c;
  }
  std::vector<Score> out;
  for (const std::string& text : texts) out.push_back(score_named(text));
  return out;
}

struct Memory {  // MB; null: not known here
  Json added;    // by a pass, beyond its inputs
  Json held;     // in the pass, above what the program held at its start
};
Memory memory_of(const std::function<void()>& f, double at_start) {
  const bool known = forget_peak();
  const double before = resident_mb();
  f();
  if (!known) return {};
  return {std::max(0.0, peak_rss_mb() - before), std::max(0.0, peak_rss_mb() - at_start)};
}

class Machine {  // bandwidths, each measured once for a number of threads
 public:
  double floor_ms(const Traffic& t, int threads) {
    double out = t.streamed / copy(threads);
    for (const auto& g : t.gathers) {
      double& speed = gathers_[{threads, g.table, g.row_bytes}];
      if (speed == 0) speed = gather_bandwidth(g.table, g.row_bytes);
      out += g.rows * static_cast<double>(g.row_bytes) / speed;
    }
    if (t.flops > 0) out = std::max(out, t.flops / rate(threads));
    return 1e-6 * out;
  }
  double rate(int threads) {
    double& speed = rates_[threads];
    if (speed == 0) speed = product_rate();
    return speed;
  }
  double copy(int threads) {
    double& speed = copies_[threads];
    if (speed == 0) speed = copy_bandwidth();
    return speed;
  }

 private:
  std::map<int, double> copies_, rates_;
  std::map<std::tuple<int, Offset, Offset>, double> gathers_;
};

double bytes_of(const Traffic& t) {
  double out = t.streamed;
  for (const auto& g : t.gathers) out += g.rows * static_cast<double>(g.row_bytes);
  return out;
}

class Report {
 public:
  Report(const Options& o, double at_start) : o_(o), at_start_(at_start) {
    for (const auto& text : cli::names_in(o.threads)) {
      const int n = number("--threads", text, 0, 4096);
      threads_.push_back(n > 0 ? n : tbb::info::default_concurrency());
    }
  }

  void add(const Kernel& kernel, const std::string& graph, const Input& in, const Shape& shape) {
    if ((!kernel.ranges && !in.pattern->is_listed()) || (kernel.takes && !kernel.takes(in))) return;
    cli::note(fmt::format("{}{}{} on {}, {} x {}\n", kernel.name, kernel.scores ? " " + in.score.name : "",
                          kernel.normalisers ? " " + in.normaliser.name : "", graph, shape.heads, shape.channels));
    {
      Work work = kernel.make(in);
      if (o_.write && !work.write) fail(fmt::format("--write: the kernel '{}' writes nothing", kernel.name));
      work.forward();
      if (work.backward) work.backward();
      work.verify();
      if (o_.write) work.write(*o_.write);
    }
    Work work = kernel.make(in);
    const Memory in_forward = memory_of(work.forward, at_start_);
    Memory in_both = work.backward ? memory_of(work.backward, at_start_) : Memory{};
    if (in_both.added.is_number()) {  // what forward keeps, and the larger of both peaks
      in_both.added = in_both.added.get<double>() + in_forward.added.get<double>();
      in_both.held = std::max(in_both.held.get<double>(), in_forward.held.get<double>());
    }
    for (int threads : threads_) {
      tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(threads));
      std::vector<double> forward, both;
      for (int r = -1; r < o_.repeat; ++r) {
        const double f = seconds(work.forward), b = work.backward ? seconds(work.backward) : 0;
        if (r >= 0) forward.push_back(f), both.push_back(f + b);
      }
      auto row = [&](const char* pass, const std::vector<double>& times, const Traffic& moved, const Memory& memory) {
        const Times t = times_of(times);
        const double floor = machine_.floor_ms(moved, threads);
        Json j{{"kernel", kernel.name},
               {"score", kernel.scores ? in.score.name : ""},
               {"normaliser", kernel.normalisers ? in.normaliser.name : ""},
               {"graph", graph},
               {"nodes", in.pattern->queries()},
               {"edges", work.edges},
               {"heads", shape.heads},
               {"channels", shape.channels},
               {"pass", pass},
               {"threads", threads},
               {"ms", t.ms},
               {"spread", t.spread},
               {"floor_ms", floor},
               {"share", floor / t.ms},
               {"edges_per_s", static_cast<double>(work.edges) / t.ms * 1e3},
               {"gb_per_s", bytes_of(moved) / t.ms * 1e-6},
               {"copy_gb_per_s", machine_.copy(threads)},
               {"verified", true},
               {"peak_mb", memory.added},
               {"held_mb", memory.held}};
        rows_.push_back(std::move(j));
      };
      row("forward", forward, work.moved_forward, in_forward);
      if (!work.backward) continue;
      Traffic all = work.moved_forward;
      all.streamed += work.moved_backward.streamed, all.flops += work.moved_backward.flops;
      all.gathers.insert(all.gathers.end(), work.moved_backward.gathers.begin(), work.moved_backward.gathers.end());
      row("forward + backward", both, all, in_both);
    }
  }

  std::string json() const { return rows_.dump(1) + "\n"; }
  std::string table() const {
    std::vector<std::vector<std::string>> out{{"kernel", "score", "normaliser", "graph", "nodes", "edges", "shape",
                                               "pass", "threads", "ms", "±", "floor", "share", "Medges/s", "GB/s",
                                               "MB"}};
    for (const Json& r : rows_) {
      auto text = [&](const char* key) { return r[key].get<std::string>(); };
      auto real = [&](const char* key) { return r[key].get<double>(); };
      out.push_back({text("kernel"), text("score"), text("normaliser"), text("graph"), r["nodes"].dump(),
                     r["edges"] == 0 ? "-" : r["edges"].dump(), r["heads"].dump() + " x " + r["channels"].dump(),
                     text("pass"), r["threads"].dump(), fmt::format("{:.3f}", real("ms")),
                     fmt::format("{:.0f} %", 100 * real("spread")), fmt::format("{:.3f}", real("floor_ms")),
                     fmt::format("{:.0f} %", 100 * real("share")),
                     r["edges"] == 0 ? "-" : fmt::format("{:.1f}", 1e-6 * real("edges_per_s")),
                     fmt::format("{:.1f}", real("gb_per_s")),
                     r["peak_mb"].is_null() ? "-" : fmt::format("{:.1f}", real("peak_mb"))});
    }
    return cli::table(out, o_.markdown) +
           "\nms: median; ±: from the first to the third quartile; floor: ms at the bandwidth of memory, or "
           "the rate of arithmetic;\nshare: floor / ms, above 100 % where caches are faster; MB: "
           "beyond the inputs\n";
  }

 private:
  Options o_;
  double at_start_;
  std::vector<int> threads_;
  Machine machine_;
  Json rows_ = Json::array();
};

void run(Options o) {
  if (!o.compare.empty()) {
    cli::print(compare(o.compare[0], o.compare[1]));
    return;
  }
  const double at_start = resident_mb();
  if (o.out) check_writable(*o.out);
  if (o.write) check_writable(*o.write);
  if (o.quick) o.nodes = std::min<Id>(o.nodes, 10'000), o.edges = std::min<Offset>(o.edges, 200'000), o.repeat = 5;
  const auto some = chosen("kernel", o.kernels, kernels());
  const auto scores = chosen_scores(o.scores);
  const auto normalisers = chosen("normaliser", o.normalisers, normaliser_menu());
  const auto shapes = shapes_of(o.shapes);
  Report report(o, at_start);
  for (const auto& graph : cli::names_in(o.graphs)) {
    Input in{.pattern = pattern_of(graph, o.nodes, o.edges, o.seed, o.data),
             .score = scores.at(0),
             .normaliser = normalisers.at(0),
             .seed = o.seed};
    for (const Kernel& kernel : some)
      for (const Shape& shape : shapes) {
        in.heads = shape.heads, in.channels = shape.channels;
        for (std::size_t s = 0; s < (kernel.scores ? scores.size() : 1); ++s)
          for (std::size_t n = 0; n < (kernel.normalisers ? normalisers.size() : 1); ++n) {
            in.score = scores[s], in.normaliser = normalisers[n];
            // Of lists that were not chosen, what goes together.
            if (kernel.normalisers && in.normaliser.nonnegative && !in.score.nonnegative &&
                (o.scores == "all" || o.normalisers == "all"))
              continue;
            // And what a minute has room for: scores under softmax, and what normalisers make of dot or gaussian.
            if (o.quick && o.scores == "all" &&
                (in.score.name == "softdtw" ||
                 (kernel.normalisers && o.normalisers == "all" && in.normaliser.name != "softmax" &&
                  in.score.name != (in.normaliser.nonnegative ? "gaussian" : "dot"))))
              continue;
            report.add(kernel, graph, in, shape);
          }
      }
  }
  if (o.out) write_file(*o.out, report.json());
  cli::print(o.json ? report.json() : report.table());
}

}  // namespace

std::vector<Shape> shapes_of(const std::string& list) {
  std::vector<Shape> out;
  for (const auto& text : cli::names_in(list)) {
    const auto x = text.find('x');
    if (x == std::string::npos) fail("--shapes: '" + text + "' is not heads x channels, as in 4x16");
    out.push_back({number("--shapes", text.substr(0, x), 1, 4096), number("--shapes", text.substr(x + 1), 1, 65536)});
  }
  return out;
}

void add_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("bench", "Time the kernels beside what memory allows");
  c->add_option("--kernels", o->kernels, "Names, separated by commas; default all");
  c->add_option("--scores", o->scores, "Names or formulas (heed list scores); default all");
  c->add_option("--normalisers", o->normalisers, "Names (heed list); default all");
  c->add_option("--graphs", o->graphs,
                "rmat (default), uniform, grid, star, all (each node sees each: --nodes 8000), or datasets");
  c->add_option("--shapes", o->shapes, "Heads x channels of a head; default 4x16");
  c->add_option("--threads", o->threads, "Numbers, separated by commas; 0 (default): all");
  c->add_option("--nodes", o->nodes, "Of a generated graph; default 100000")->check(cli::whole_number(2, 1 << 30));
  c->add_option("--edges", o->edges, "Of a generated graph, directed; default 2000000")
      ->check(cli::whole_number(1, 1'000'000'000'000));
  c->add_option("--repeat", o->repeat, "Timed repetitions, of which the median counts; default 9")
      ->check(cli::whole_number(1, 100000));
  c->add_option("--seed", o->seed, "Of graphs and numbers")->check(cli::whole_number(0, INT64_MAX - 1));
  cli::add_data(*c, o->data);
  c->add_flag("--quick", o->quick,
              "Small graphs, 5 repetitions; scores (but softdtw) under softmax, normalisers with one score: a minute");
  c->add_option("--compare", o->compare, "Two reports, BEFORE and NOW: which rows changed beyond noise")
      ->expected(2)
      ->type_name("BEFORE NOW");
  c->add_option("--out", o->out, "Write the rows as JSON into this file, too")->check(cli::not_empty());
  c->add_option("--write", o->write, "Write what the last row's kernel read and gave, for a peer to do the same")
      ->check(cli::not_empty());
  c->add_flag("--json", o->json, "A JSON array of rows on standard output, and nothing else there");
  c->add_flag("--markdown", o->markdown, "The table in Markdown");
  c->require_subcommand(0, 1);
  add_layer(*c), add_costs(*c), add_gpu(*c);
  std::string list = "Kernels:";  // not before: a subcommand begins with the footer that is there
  for (const auto& kernel : kernels()) list += fmt::format("\n  {:<13} {}", kernel.name, kernel.about);
  c->footer(list +
            "\n\nExamples:\n"
            "  heed bench --quick\n"
            "  heed bench --kernels attention --scores gat --graphs rmat,star,cora --shapes 4x16,8x8 --threads 1,2\n"
            "  heed bench --out now.json && heed bench --compare before.json now.json");
  c->callback([o, c] {
    if (c->get_subcommands().empty()) run(*o);
  });
}

}  // namespace heed::bench
