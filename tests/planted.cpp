// What a part is for: a score, a normaliser, a mask or a rule for keys solves a planted graph on which the mean over a
// node and its neighbours is near chance. Every query node has four keys, which carry the four classes once each, so
// that their mean says nothing; what tells the right one apart is the matter of the part under test. Labels are those
// of queries, and one layer is trained, with a linear map behind it.
#include <functional>
#include <numbers>

#include "layers/layers.h"
#include "sampling/draw.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "train/train.h"

using namespace heed;
using namespace heed::test;

namespace {

constexpr Id kClasses = 4, kQueries = 800;
using Vector = std::vector<double>;

Vector normal_vector(int d, Random& random) {
  Vector out;
  for (int t = 0; t < d; ++t) out.push_back(random.normal());
  return out;
}
double dot(const Vector& a, const Vector& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }
Vector scaled(Vector x, double by) {
  for (double& each : x) each *= by;
  return x;
}
Vector unit(const Vector& x) { return scaled(x, 1 / std::sqrt(dot(x, x))); }
double apart(const Vector& a, const Vector& b) {
  return std::sqrt(std::max(0.0, dot(a, a) + dot(b, b) - 2 * dot(a, b)));
}

// A graph in the making. A node's features are [where | class (one of four, or none) | flag].
struct Planted {
  Dataset data;
  std::vector<Vector> where;
  std::vector<Id> shows;    // a class, or -1
  std::vector<float> loud;  // how strongly
  std::vector<bool> flag;
  std::vector<Edge> edges;
  std::vector<float> weights;
  std::vector<double> times;
  std::vector<std::pair<Id, Id>> honest;  // query and key

  Id add(Vector x, Id shown = -1, bool flagged = false, double time = 0) {
    where.push_back(std::move(x)), shows.push_back(shown), flag.push_back(flagged), times.push_back(time),
        loud.push_back(1);
    data.labels.push_back(-1);
    return static_cast<Id>(where.size()) - 1;
  }
  void see(Id query, Id key, float weight = 1) { edges.push_back({key, query}), weights.push_back(weight); }
  // Three of ten labelled nodes are for training, two for validation, the rest for the test, whose chance is small.
  void close(Random& random) {
    const Id n = static_cast<Id>(where.size()), d = static_cast<Id>(where[0].size());
    data.name = "planted", data.classes = kClasses;
    data.graph = graph_from_edges(n, edges, {.loops = Loops::keep, .direction = Direction::directed}, weights);
    data.graph.times = times;
    Matrix<float>& x = data.features.dense;
    x.resize(n, d + kClasses + 1);
    std::vector<Id> labelled;
    for (Id i = 0; i < n; ++i) {
      std::copy(where[i].begin(), where[i].end(), x.row(i));
      if (shows[i] >= 0) x(i, d + shows[i]) = loud[i];
      x(i, d + kClasses) = flag[i];
      if (data.labels[i] >= 0) labelled.push_back(i);
    }
    for (std::size_t t = labelled.size(); t > 1; --t) std::swap(labelled[t - 1], labelled[random.below(t)]);
    Split split;
    for (std::size_t t = 0; t < labelled.size(); ++t)
      (t % 10 < 3 ? split.train : t % 10 < 5 ? split.valid : split.test).push_back(labelled[t]);
    for (auto* part : {&split.train, &split.valid, &split.test}) std::sort(part->begin(), part->end());
    data.splits = {split};
  }
};

using Generator = std::function<Planted(Random&)>;

struct Keys4 {
  Vector query;
  std::array<Vector, 4> keys;  // the first is the one that counts
  bool flagged = false;        // it bears the flag
};

// Each query sees four keys, which show the four classes; its label is what the first shows.
Generator lookup(std::function<Keys4(Random&)> draw) {
  return [=](Random& random) {
    Planted p;
    for (Id t = 0; t < kQueries; ++t) {
      const Keys4 k = draw(random);
      const Id label = static_cast<Id>(random.below(kClasses)), query = p.add(k.query);
      p.data.labels[query] = label;
      for (Id other = 0; other < 4; ++other)
        p.see(query, p.add(k.keys[other], (label + other) % kClasses, k.flagged && other == 0));
    }
    p.close(random);
    return p;
  };
}

// Keys in directions of their own, one of them the query's; `lengths`: of any length; `offset`: with a number added to
// all channels.
Generator direction(int d, bool lengths = false, double offset = 0) {
  return lookup([=](Random& random) {
    auto drawn = [&] {
      Vector x = normal_vector(d, random);
      const double mean = offset > 0 ? std::accumulate(x.begin(), x.end(), 0.0) / d : 0;
      for (double& each : x) each -= mean;
      return unit(x);
    };
    auto shown = [&](Vector x) {
      x = scaled(x, lengths ? std::exp(1.2 * (2 * random.uniform() - 1)) : 1);
      const double more = offset * random.normal();
      for (double& each : x) each += more;
      return x;
    };
    const Vector at = drawn();
    Keys4 out{shown(at), {shown(at)}};
    for (int t = 1; t < 4; ++t) {
      Vector other = drawn();
      while (dot(at, other) > 0.2) other = drawn();
      out.keys[t] = shown(other);
    }
    return out;
  });
}

// The nearest point counts, however far from the origin.
Generator nearest() {
  return lookup([](Random& random) {
    auto drawn = [&] { return scaled(normal_vector(2, random), 1.2); };
    Keys4 out{drawn(), {}};
    out.keys[0] = out.query;
    for (int t = 1; t < 4; ++t) do
        out.keys[t] = drawn();
      while (apart(out.query, out.keys[t]) < 1);
    return out;
  });
}

// A flag on the key says that it counts, whoever asks.
Generator flagged() {
  return lookup([](Random& random) {
    return Keys4{
        normal_vector(2, random),
        {normal_vector(2, random), normal_vector(2, random), normal_vector(2, random), normal_vector(2, random)},
        true};
  });
}

// The query names the kind of key that counts: the dictionary lookup of arXiv:2105.14491, section 4.1.
Generator dictionary() {
  return lookup([](Random& random) {
    auto named = [](std::uint64_t kind) {
      Vector x(4);
      x[kind] = 1;
      return x;
    };
    const auto kind = random.below(4);
    return Keys4{named(kind), {named(kind), named((kind + 1) % 4), named((kind + 2) % 4), named((kind + 3) % 4)}};
  });
}

// Series of three levels, each held for some of eight steps: the key that counts has the query's levels in its own
// time.
Generator warped() {
  return lookup([](Random& random) {
    auto held = [&](const Vector& levels) {
      std::size_t first = 1 + random.below(5), second = first + 1 + random.below(7 - first);
      Vector x(8);
      for (std::size_t t = 0; t < 8; ++t) x[t] = levels[t < first ? 0 : t < second ? 1 : 2];
      return x;
    };
    const Vector levels = scaled(normal_vector(3, random), 2);
    Keys4 out{held(levels), {held(levels)}};
    for (int t = 1; t < 4; ++t) {
      Vector other = levels;
      while (apart(levels, other) < 3) other = scaled(normal_vector(3, random), 2);
      out.keys[t] = held(other);
    }
    return out;
  });
}

// Each query's four keys with what tells the honest one apart in `mark`(planted, query, honest key, liars).
using Mark = std::function<void(Planted&, Id, Id, const std::array<Id, 3>&)>;
Generator marked(Mark mark, bool seen = true) {
  return [=](Random& random) {
    Planted p;
    for (Id t = 0; t < kQueries; ++t) {
      const Id label = static_cast<Id>(random.below(kClasses));
      const Id honest = p.add({0}, label);
      std::array<Id, 3> liars;
      for (Id other = 0; other < 3; ++other) liars[other] = p.add({0}, (label + 1 + other) % kClasses);
      const Id query = p.add({0});
      p.data.labels[query] = label;
      p.honest.emplace_back(query, honest);
      if (seen) {
        p.see(query, honest);
        for (Id liar : liars) p.see(query, liar);
      }
      mark(p, query, honest, liars);
    }
    p.close(random);
    return p;
  };
}

// Each query has one key with a direction near its own, which it does not see.
Generator alike() {
  return [](Random& random) {
    Planted p;
    for (Id t = 0; t < kQueries / 2; ++t) {
      const Vector at = scaled(unit(normal_vector(10, random)), 3);
      const Id label = static_cast<Id>(random.below(kClasses)), query = p.add(at);
      p.data.labels[query] = label;
      p.add(at, label, true);
    }
    p.close(random);
    return p;
  };
}

// Twelve directions in the plane, whose classes alternate, so that no linear map of the direction tells them. `anchors`
// nodes show direction and class. Where they are hubs, they see the queries, else each query sees one, whichever, or
// three of its direction out of `liars`, which show any class.
struct Wheel {
  Id anchors = 360, liars = 0;
  bool hubs = false;
};
Generator wheel(Wheel o) {
  return [=](Random& random) {
    Planted p;
    constexpr Id spokes = 12;
    auto any = [&](Id count) { return static_cast<Id>(random.below(static_cast<std::uint64_t>(count))); };
    auto at = [](Id spoke) {
      const double angle = spoke * 2 * std::numbers::pi / spokes;
      return Vector{3 * std::cos(angle), 3 * std::sin(angle)};
    };
    for (Id a = 0; a < o.anchors; ++a) p.add(at(a % spokes), a % spokes % kClasses, true);
    for (Id l = 0; l < o.liars; ++l) p.add(at(l % spokes), any(kClasses), true);
    for (Id t = 0; t < kQueries; ++t) {
      const Id spoke = any(spokes), query = p.add(at(spoke)), anchor = any(o.anchors);
      p.data.labels[query] = spoke % kClasses;
      for (int l = 0; l < 3 && o.liars > 0; ++l) p.see(query, o.anchors + spoke + spokes * any(o.liars / spokes));
      if (o.hubs) p.see(anchor, query);
      if (!o.hubs && o.liars == 0) p.see(query, anchor);
    }
    p.close(random);
    return p;
  };
}

// Six ways lead to the honest key, one to each of six liars.
Generator many_ways() {
  return [](Random& random) {
    Planted p;
    for (Id t = 0; t < kQueries / 2; ++t) {
      const Id label = static_cast<Id>(random.below(kClasses)), query = p.add({0}), honest = p.add({0}, label);
      p.data.labels[query] = label;
      for (Id way = 0; way < 6; ++way) {
        const Id middle = p.add({0});
        p.see(query, middle), p.see(middle, honest);
        p.see(middle, p.add({0}, (label + 1 + way % 3) % kClasses));
      }
    }
    p.close(random);
    return p;
  };
}

// Honest keys are even nodes, liars odd ones.
Generator even() {
  return [](Random& random) {
    Planted p;
    for (Id t = 0; t < kQueries; ++t) {
      const Id label = static_cast<Id>(random.below(kClasses)), honest = p.add({0}, label), query = p.add({0});
      p.data.labels[query] = label;
      p.see(query, honest);
      for (Id other = 1; other < 4; ++other) p.add({0}), p.see(query, p.add({0}, (label + other) % kClasses));
    }
    p.close(random);
    return p;
  };
}

// Honest keys, which liars are near to, come before all other nodes and are seen by the queries alone.
Generator unreached() {
  return [](Random& random) {
    Planted p;
    for (Id t = 0; t < kQueries; ++t) p.add({0}, static_cast<Id>(random.below(kClasses)));
    for (Id t = 0; t < kQueries; ++t) {
      const Id query = p.add({0});
      p.data.labels[query] = p.shows[t];
      p.see(query, t);
      for (Id other = 1; other < 4; ++other) {
        const Id liar = p.add({0}, (p.shows[t] + other) % kClasses);
        p.see(query, liar), p.see(t, liar);
      }
    }
    p.close(random);
    return p;
  };
}

// Groups of sixty, of which two nodes show what all of them are.
Generator groups() {
  return [](Random& random) {
    Planted p;
    constexpr Id size = 60, count = 16;
    for (Id g = 0; g < count; ++g) {
      for (Id t = 0; t < size; ++t) {
        const Id node = p.add({0}, t < 2 ? g % kClasses : -1);
        if (t >= 2) p.data.labels[node] = g % kClasses;
      }
      const Csr within = random_regular(size, 10, random.next());
      for (Id i = 0; i < size; ++i)
        for (Id j : within.row(i)) p.see(g * size + i, g * size + j);
    }
    for (Id t = 0; t < count; ++t)
      p.see(static_cast<Id>(random.below(size * count)), static_cast<Id>(random.below(size * count)));
    p.close(random);
    return p;
  };
}

// Of the test nodes, by the best of `starts` trainings on the validation nodes; more than one, as some begin on a
// plateau.
double accuracy(const Model& layer, const Planted& p, std::uint64_t seed, int starts = 1) {
  Run best;
  for (int start = 0; start < starts && best.valid < 98; ++start) {
    const Report r =
        train(stack({layer, dense(kClasses)}), p.data,
              {.epochs = 400, .patience = 120, .stop = Stop::metric, .rate = 0.03, .decay = 0, .seed = seed + start});
    if (start == 0 || r.runs[0].valid > best.valid) best = r.runs[0];
  }
  return best.test;
}

double uniform_accuracy(const Planted& p, std::uint64_t seed) {
  return accuracy(attend({.out = 16, .normaliser = normaliser_named("mean"), .mask = local() | self()}), p, seed);
}

struct Task {
  std::string name;
  Generator generator;
  std::function<Model(const Planted&)> layer;
};

std::vector<Task> scores_to_solve() {
  std::vector<Task> out;
  for (const auto& [score, normaliser, generator] :
       std::vector<std::tuple<const char*, const char*, Generator>>{{"dot", "softmax", direction(4)},
                                                                    {"scaled_dot", "softmax", direction(4)},
                                                                    {"bilinear", "softmax", direction(4)},
                                                                    {"cosine", "softmax", direction(4, true)},
                                                                    {"pearson", "softmax", direction(5, true, 2)},
                                                                    {"gat", "softmax", flagged()},
                                                                    {"gatv2", "softmax", dictionary()},
                                                                    {"bahdanau", "softmax", dictionary()},
                                                                    {"mlp", "softmax", dictionary()},
                                                                    {"node", "softmax", flagged()},
                                                                    {"sqeuclidean", "softmax", nearest()},
                                                                    {"euclidean", "softmax", nearest()},
                                                                    {"gaussian", "sum", nearest()},
                                                                    {"laplace", "softmax", nearest()},
                                                                    {"softdtw(8)", "softmax", warped()},
                                                                    {"dot", "softmax_sink", direction(4)},
                                                                    {"dot", "sigmoid", direction(4)},
                                                                    {"dot", "tanh", direction(4)},
                                                                    {"dot", "none", direction(4)},
                                                                    {"dot", "max", direction(4)},
                                                                    {"dot", "sparsemax", direction(4)},
                                                                    {"dot", "entmax15", direction(4)}})
    out.push_back({std::string(score) + ", " + normaliser, generator,
                   [score = score_named(score), normaliser = normaliser_named(normaliser)](const Planted&) {
                     return attend({.out = 16,
                                    .score = score,
                                    .normaliser = normaliser,
                                    .mask = local(),
                                    .projection = score.name == "softdtw(8)" ? Projection::one : Projection::by_score});
                   }});
  return out;
}

// `nothing`: the honest key differs from the others in nothing that the layer sees.
std::vector<Task> masks_to_solve(const Scratch& files) {
  const Mark nothing = [](Planted&, Id, Id, const std::array<Id, 3>&) {};
  const Mark early = [](Planted& p, Id query, Id honest, const std::array<Id, 3>& liars) {
    p.times[query] = 2, p.times[honest] = 1;
    for (Id liar : liars) p.times[liar] = 3;
  };
  const Mark heavy = [](Planted& p, Id query, Id honest, const std::array<Id, 3>&) {
    for (std::size_t e = p.edges.size() - 4; e < p.edges.size(); ++e)
      p.weights[e] = p.edges[e].to == query && p.edges[e].from == honest ? 1.0f : 0.1f;
  };
  const Mark followed = [](Planted& p, Id, Id honest, const std::array<Id, 3>&) {  // by eight others
    for (int t = 0; t < 8; ++t) p.see(honest, p.add({0}));
  };
  const Mark hidden = [](Planted& p, Id query, Id honest, const std::array<Id, 3>&) {  // behind a node of no class
    const Id between = p.add({0});
    p.see(query, between), p.see(between, honest);
  };
  const Mark own = [](Planted& p, Id query, Id, const std::array<Id, 3>& liars) {  // the query knows, and they confuse
    p.shows[query] = p.data.labels[query];
    for (Id liar : liars) p.see(query, liar);
  };
  const Mark wrong_itself = [](Planted& p, Id query, Id honest, const std::array<Id, 3>& liars) {
    p.shows[query] = p.shows[liars[static_cast<std::size_t>(query) / 5 % 3]];
    p.loud[query] = 3;
    p.see(query, honest);
  };
  auto pairs_file = [&files](const Planted& p) {
    std::string text;
    for (auto [query, key] : p.honest) text += std::to_string(query) + " " + std::to_string(key) + "\n";
    return files.write("pairs", text);
  };
  enum Weigh { mean, dot, near };  // how the keys that are seen are weighed: alike, or by score
  struct Case {
    const char* mask;
    Generator generator;
    const char* keys = "all";
    Weigh weigh = mean;
    int virtuals = 0;
  };
  const Generator few = wheel({.anchors = 12, .hubs = true}), many = wheel({.anchors = 1200}), some = wheel({});
  std::vector<Task> out;
  for (const Case& c : std::vector<Case>{
           {"self", marked(own, false)},
           {"local", marked(wrong_itself, false)},
           {"local(2) - local", marked(hidden, false)},
           {"heavier(0.5)", marked(heavy)},
           {"hubs(12)", few, "all", near},
           {"hubs(12, pagerank)", few, "all", near},
           {"knn(1)", alike()},
           {"ppr(1)", many_ways()},
           {"expander(100)", many, "all", near},
           {"expander(100, step)", many, "all", near},
           {"random(100)", many, "all", near},
           {"random(100, step)", many, "all", near},
           {"community", groups(), "all", dot},
           {"local & before", marked(early)},
           {"all", some, "all", near},
           {"all - local", wheel({.liars = 240}), "all", near},
           {"all", some, "random(0.5)", near},
           {"all", some, "random(0.5, step)", near},
           {"local", even(), "every(2)"},
           {"local", marked(followed), "degree(0.0769)"},
           {"local", marked(followed), "pagerank(0.1538)"},
           {"local", unreached(), "farthest(0.2)"},
           {"local", flagged(), "learned(0.5)"},
           {"self", some, "all", dot, 16},
       })
    out.push_back({std::string(c.mask) + ", keys " + c.keys, c.generator, [c](const Planted&) {
                     return virtual_nodes(
                         c.virtuals, attend({.out = 16,
                                             .score = score_named(c.weigh == near ? "sqeuclidean" : "dot"),
                                             .normaliser = normaliser_named(c.weigh == mean ? "mean" : "softmax"),
                                             .head_masks = head_masks_named(c.mask),
                                             .keys = keys_named(c.keys),
                                             .projection = c.weigh == near ? Projection::one : Projection::by_score}));
                   }});
  out.push_back({"pairs(file)", marked(nothing), [=](const Planted& p) {
                   return attend({.out = 16, .normaliser = normaliser_named("mean"), .mask = pairs(pairs_file(p))});
                 }});
  out.push_back({"where", marked(nothing), [](const Planted& p) {
                   const std::set<std::pair<Id, Id>> honest(p.honest.begin(), p.honest.end());
                   return attend({.out = 16,
                                  .normaliser = normaliser_named("mean"),
                                  .mask = local() & where("honest", [honest](Id query, Id key) {
                                            return honest.contains({query, key});
                                          })});
                 }});
  return out;
}

bool is_tried(const std::string& name, const std::vector<Task>& tasks) {
  return std::ranges::any_of(tasks, [&](const Task& task) { return task.name.find(name) != task.name.npos; });
}

void solve(const std::vector<Task>& tasks) {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  double worst = 100, best_uniform = 0;
  for (const Task& task : tasks) {
    CAPTURE(task.name);
    Random random(mix(seed, &task - tasks.data()));
    const Planted p = task.generator(random);
    const double found = accuracy(task.layer(p), p, seed % 1000, 20), uniform = uniform_accuracy(p, seed % 1000);
    CHECK(found >= 90);
    CHECK(uniform <= 60);
    worst = std::min(worst, found), best_uniform = std::max(best_uniform, uniform);
  }
  MESSAGE("worst accuracy " << worst << " %, best of the mean " << best_uniform << " %, seed " << seed);
}

}  // namespace

TEST_SUITE_BEGIN("planted");

TEST_CASE("every score and every normaliser finds the key that counts") {
  const auto tasks = scores_to_solve();
  for (const Score& score : score_menu()) CHECK_MESSAGE(is_tried(score.name, tasks), score.name);
  for (const Normaliser& normaliser : normaliser_menu())
    if (normaliser.name != "mean") CHECK_MESSAGE(is_tried(normaliser.name, tasks), normaliser.name);
  solve(tasks);
}

TEST_CASE("every mask and every rule for keys finds what the neighbours do not say") {
  Scratch files;
  const auto tasks = masks_to_solve(files);
  for (const RuleEntry& entry : mask_menu())
    if (entry.name != "shuffled") CHECK_MESSAGE(is_tried(entry.name, tasks), entry.name);  // which is there to fail
  for (const RuleEntry& entry : keys_menu()) CHECK_MESSAGE(is_tried(entry.name, tasks), entry.name);
  solve(tasks);
}

TEST_SUITE_END();
