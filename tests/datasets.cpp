// The readers against files that are whole, damaged and hostile, all made here byte by byte; the generators against
// what their models promise; and, where they are at hand, the public files against independently computed sums.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <set>

#include "datasets/dataset.h"
#include "datasets/files.h"
#include "datasets/karate.h"
#include "datasets/npz.h"
#include "datasets/pickle.h"
#include "datasets/planetoid.h"
#include "datasets/rmat.h"
#include "datasets/sbm.h"
#include "kernels/random.h"
#include "tests/bytes.h"
#include "tests/scratch.h"

#pragma GCC diagnostic ignored "-Wrestrict"  // GCC 12 warns of "literal" + string for no reason (its bug 105651)

using namespace heed;
using namespace heed::test;
namespace fs = std::filesystem;

namespace {

Pickle unpickle(const std::string& bytes) { return {bytes, "test.pickle"}; }

void write(const Scratch& to, const Tiny& tiny) {
  for (const auto& [name, bytes] : tiny.files) to.write("ind.tiny." + name, bytes);
}

double homophily(const Dataset& d) {
  Offset same = 0;
  for (auto [from, to] : edges_of(d.graph)) same += d.labels[from] >= 0 && d.labels[from] == d.labels[to];
  return static_cast<double>(same) / static_cast<double>(d.graph.edges());
}

std::set<std::pair<Id, Id>> pairs(const Graph& g) {
  std::set<std::pair<Id, Id>> out;
  for (auto [from, to] : edges_of(g)) out.emplace(from, to);
  return out;
}

Dataset small() {  // three nodes in a row
  Dataset d{.name = "small", .labels = {0, 1, 0}, .classes = 2, .splits = {}};
  d.graph = graph_from_edges(3, std::vector<Edge>{{0, 1}, {1, 2}});
  d.features.dense.resize(3, 2);
  d.features.dense.fill(1.0f);
  d.splits.push_back({.train = {0}, .valid = {1}, .test = {2}});
  return d;
}

}  // namespace

TEST_SUITE("datasets") {
  TEST_CASE("pickles of arrays, sparse matrices and dictionaries are read") {
    Pickle p = unpickle(py::whole(py::array({2, 3}, "i4", raw(std::vector<std::int32_t>{1, 2, 3, 4, 5, -6}))));
    Array a = p.array(p.root());
    CHECK(a.shape == std::vector<Offset>{2, 3});
    CHECK(a.dtype == Dtype::i4);
    CHECK(a.as<float>() == std::vector<float>{1, 2, 3, 4, 5, -6});
    CHECK(a.as<std::int64_t>() == std::vector<std::int64_t>{1, 2, 3, 4, 5, -6});

    // The same bytes by columns.
    p = unpickle(py::whole(py::array({2, 3}, "i4", raw(std::vector<std::int32_t>{1, 4, 2, 5, 3, 6}), "\x88")));
    CHECK(p.array(p.root()).as<Id>() == std::vector<Id>{1, 2, 3, 4, 5, 6});

    p = unpickle(
        py::whole(py::array({2}, "f8", raw(std::vector<double>{0.5, 1e300}), "\x89", "numpy._core.multiarray")));
    a = p.array(p.root());
    CHECK(a.as<double>() == std::vector<double>{0.5, 1e300});
    CHECK(has(message([&] { a.as<float>(); }), "element 1"));
    CHECK(has(message([&] { a.as<Id>(); }), "element 0"));

    for (const char* module : {"scipy.sparse.csr", "scipy.sparse._csr"}) {
      p = unpickle(py::whole(py::csr(3, 4, {0, 3, 3, 4}, {2, 0, 2, 3}, {1, 2, 10, 3}, module)));
      SparseRows m = p.csr_matrix(p.root());
      CHECK(m.pattern.cols == 4);
      CHECK(m.pattern.offsets == std::vector<Offset>{0, 2, 2, 3});
      CHECK(m.pattern.ids == std::vector<Id>{0, 2, 3});
      CHECK(m.values == std::vector<float>{2, 11, 3});  // repeats are summed, as SciPy means them
    }

    p = unpickle(py::whole(py::graph({{1, 2}, {}, {0}})));
    auto items = p.dict(p.root());
    REQUIRE(items.size() == 6);
    CHECK(p.integer(items[4]) == 2);
    CHECK(p.list(items[1]).size() == 2);
    CHECK(p.integer(p.list(items[1])[1]) == 2);
  }

  TEST_CASE("newer protocols: frames, unicode, memoised names") {
    auto text = [](const std::string& s) { return "\x8c" + le(s.size(), 1) + s + "\x94"; };
    std::string body = text("numpy") + text("ndarray") + "\x93\x94" + "0" + "]\x94(K\x05G" +
                       std::string("\x3f\xf8\0\0\0\0\0\0", 8) + "\x88" + "h\x01" + "e";
    Pickle p = unpickle("\x80\x04\x95" + le(body.size() + 1, 8) + body + ".");
    auto items = p.list(p.root());
    REQUIRE(items.size() == 4);
    CHECK(p.integer(items[0]) == 5);
    CHECK(p[items[1]].real == 1.5);
    CHECK(p[items[2]].kind == Pickle::Kind::boolean);
    CHECK(p.string(items[3]) == "ndarray");
    CHECK(has(message([&] { unpickle("\x80\x04\x95" + le(body.size() + 2, 8) + body + "."); }), "claims"));
    CHECK(has(message([] { unpickle("\x80\x05N."); }), "protocol 5"));
  }

  TEST_CASE("a pickle runs nothing and names only types of data") {
    Scratch folder;
    fs::path proof = folder.path / "ran";
    std::string command = "touch " + proof.string();
    for (const auto& [module, name] :
         std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                          {"posix", "system"},
                                                          {"__builtin__", "eval"},
                                                          {"builtins", "exec"},
                                                          {"subprocess", "Popen"},
                                                          {"numpy", "load"},
                                                          {"numpy.core.multiarray", "scalar"},
                                                          {"_codecs", "encode"}}) {
      std::string why =
          message([&] { unpickle(py::whole(py::global(module, name) + py::tuple({py::text(command)}) + "R")); });
      CHECK_MESSAGE(has(why, module + "." + name), why);
      CHECK_MESSAGE(has(why, "test.pickle, byte 2"), why);
    }
    std::string stacked =
        "\x80\x04" + py::text("os") + py::text("system") + "\x93" + py::tuple({py::text(command)}) + "R.";
    CHECK(has(message([&] { unpickle(stacked); }), "os.system"));
    CHECK_FALSE(fs::exists(proof));
    // Opcodes that call by other ways are not known at all: INST, OBJ, PERSID, EXT1.
    for (const char* op : {"(ios\nsystem\n", "(o", "Pid\n", "\x82\x01"})
      CHECK(has(message([&] { unpickle(py::whole(op)); }), "opcode 0x"));
    // Control characters of a file do not reach the terminal.
    CHECK_FALSE(has(message([] { unpickle(py::whole(py::global("o\x1b[31ms", "x"))); }), "\x1b"));
  }

  TEST_CASE("what a pickle claims is checked before memory is asked for") {
    auto why = [](const std::string& body) { return message([&] { unpickle(py::whole(body)); }); };
    std::string huge = std::to_string(std::uint64_t{1} << 60);
    CHECK(has(why("\x8e" + le(std::uint64_t{1} << 60, 8)), "claims " + huge + " bytes"));
    CHECK(has(why("\x8d" + le(std::uint64_t{1} << 60, 8)), "claims " + huge));
    CHECK(has(why("T\xff\xff\xff\xff"), "claims 4294967295"));
    CHECK(has(why("\x8b\xff\xff\xff\xff"), "too long"));
    CHECK(has(why("Nr\xff\xff\xff\x7f"), "remembers"));
    CHECK(has(why("j\xff\xff\xff\x7f"), "never remembered"));
    CHECK(has(why("0"), "missing on the stack"));
    CHECK(has(why("N(0"), "missing on the stack"));
    CHECK(has(why("t"), "mark is missing"));
    CHECK(has(why("NN"), "2 values"));
    CHECK(has(why("N)R"), "makes an object"));
    CHECK(has(why("]Nb"), "gives a state"));
    CHECK(has(why("NNa"), "appended"));
    CHECK(has(why("}(Nu"), "no value"));
    CHECK(has(message([] { unpickle("\x80\x02N.N"); }), "1 bytes follow"));
    CHECK(has(message([] { unpickle(""); }), "ends before"));

    auto array = [](const std::vector<std::int64_t>& shape, const std::string& type = "i4") {
      return message([&] {
        Pickle p = unpickle(py::whole(py::array(shape, type, "12345678")));
        p.array(p.root());
      });
    };
    CHECK(array({2}) == "");
    CHECK(has(array({std::int64_t{1} << 60}), "take 4611686018427387904 bytes, but 8 are stored"));
    CHECK(has(array({std::int64_t{1} << 62}), "more bytes than can be counted"));
    CHECK(has(array({std::int64_t{1} << 58}), "are stored"));
    CHECK(has(array({std::int64_t{1} << 31, std::int64_t{1} << 31, 4}), "more bytes than can be counted"));
    CHECK(has(array({-2}), "claims the shape -2"));
    CHECK(has(array({3}), "take 12 bytes, but 8 are stored"));
    CHECK(has(array({8}, "O8"), "Python objects"));
    CHECK(has(array({1}, "c8"), "not read"));

    auto csr = [](std::int64_t rows, std::int64_t cols, const std::vector<std::int32_t>& indptr,
                  const std::vector<std::int32_t>& ids, const std::vector<float>& data) {
      return message([&] {
        Pickle p = unpickle(py::whole(py::csr(rows, cols, indptr, ids, data)));
        p.csr_matrix(p.root());
      });
    };
    CHECK(csr(2, 3, {0, 1, 2}, {0, 2}, {1, 1}) == "");
    CHECK(has(csr(2, 3, {0, 1, 2}, {0, 3}, {1, 1}), "row 1 names column 3"));
    CHECK(has(csr(2, 3, {0, 1, 2}, {-1, 0}, {1, 1}), "row 0 names column -1"));
    CHECK(has(csr(2, 3, {0, 3, 2}, {0, 1}, {1, 1}), "row 1 ends before it begins"));
    CHECK(has(csr(2, 3, {0, -1, 2}, {0, 1}, {1, 1}), "row 0 ends before it begins"));
    CHECK(has(csr(2, 3, {0, 1, 3}, {0, 1}, {1, 1}), "offsets run from 0 to 3"));
    CHECK(has(csr(2, 3, {0, 1, 2}, {0, 1}, {1}), "2 column ids for 1 values"));
    CHECK(has(csr(5, 3, {0, 1, 2}, {0, 1}, {1, 1}), "3 offsets"));
    CHECK(has(csr(2, 2147483647, {0, 1, 2}, {0, 1}, {1, 1}), "claims 2147483647 columns"));
    CHECK(has(csr(2, std::int64_t{1} << 60, {0, 1, 2}, {0, 1}, {1, 1}), "shape"));
  }

  TEST_CASE("depth and cycles of a pickle cost no stack") {
    std::string deep(2000000, ']');
    deep += std::string(1999999, 'a');
    Pickle p = unpickle(py::whole(deep));
    CHECK(p.list(p.root()).size() == 1);
    p = unpickle(py::whole(std::string("]q\0h\0a", 6)));  // a list that holds itself
    CHECK(p.list(p.root())[0] == p.root());
    CHECK(has(message([] { unpickle(py::whole(std::string(1000000, '('))); }), "open marks"));
  }

  TEST_CASE("a pickle cut at any byte is an Error, and flipped bytes are never worse") {
    std::vector<std::string> bodies{py::array({2, 2}, "i4", raw(std::vector<std::int32_t>{1, 0, 0, 1})),
                                    py::csr(2, 3, {0, 1, 2}, {0, 2}, {1, 2}), py::graph({{1, 2}, {0}, {0}})};
    for (const auto& body : bodies) {
      std::string good = py::whole(body);
      CHECK(message([&] { unpickle(good); }) == "");
      for (std::size_t cut = 0; cut < good.size(); ++cut) {
        CAPTURE(cut);
        CHECK(message([&] { unpickle(good.substr(0, cut)); }) != "");
      }
      std::uint64_t seed = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
      Random random(seed);
      int refused = 0;
      for (int round = 0; round < 20000; ++round) {
        std::string bad = good;
        for (std::uint64_t flips = 1 + random.below(3); flips > 0; --flips)
          bad[random.below(bad.size())] = static_cast<char>(random.next());
        CAPTURE(seed);
        CAPTURE(round);
        try {  // anything but an Error ends the test
          Pickle p = unpickle(bad);
          const auto& root = p[p.root()];
          if (root.kind == Pickle::Kind::object && root.type == Pickle::Type::reconstruct)
            p.array(p.root()).as<float>();
          else if (root.kind == Pickle::Kind::object && root.type == Pickle::Type::csr_matrix)
            p.csr_matrix(p.root());
          else
            p.dict(p.root());
        } catch (const Error&) {
          ++refused;
        }
      }
      MESSAGE("seed " << seed << ": " << refused << " of 20000 damaged pickles refused");
      CHECK(refused > 1000);
    }
  }

  TEST_CASE("a small Planetoid set is assembled row by row") {
    Scratch folder;
    Tiny tiny;
    write(folder, tiny);
    Dataset d = planetoid(folder.path, "tiny");
    check(d);
    CHECK(d.nodes() == 507);
    CHECK(d.classes == 2);
    CHECK(pairs(d.graph) == std::set<std::pair<Id, Id>>{{0, 1}, {1, 0}, {0, 505}, {505, 0}, {2, 503}, {503, 2}});
    REQUIRE(d.features.sparse);
    const Csr& x = d.features.sparse->pattern();
    const auto& values = d.features.sparse->values;
    CHECK(x.cols == 3);
    CHECK(x.contains(4, 1));
    CHECK(values[x.offsets[4]] == 5);
    CHECK(x.degree(505) == 2);  // row 0 of tx, sorted
    CHECK(values[x.offsets[505]] == 8);
    CHECK(values[x.offsets[505] + 1] == 7);
    CHECK(x.row(503)[0] == 1);
    CHECK(x.degree(504) == 0);
    CHECK(x.degree(506) == 0);
    CHECK(d.labels[0] == 0);
    CHECK(d.labels[501] == 1);
    CHECK(d.labels[505] == 1);
    CHECK(d.labels[503] == 0);
    CHECK(d.labels[504] == -1);
    CHECK(d.labels[506] == -1);
    REQUIRE(d.splits.size() == 1);
    CHECK(d.splits[0].train == std::vector<Id>{0, 1});
    CHECK(d.splits[0].valid.front() == 2);
    CHECK(d.splits[0].valid.back() == 501);
    CHECK(d.splits[0].test == std::vector<Id>{503, 505});
  }

  TEST_CASE("parts of a Planetoid set that do not fit are named") {
    auto why = [](const std::string& part, const std::string& bytes) {
      Scratch folder;
      Tiny tiny;
      tiny.files[part] = bytes;
      write(folder, tiny);
      return message([&] { planetoid(folder.path, "tiny"); });
    };
    CHECK(why("test.index", "503\r\n505") == "");
    CHECK(has(why("test.index", "503\n"), "1 nodes"));
    CHECK(has(why("test.index", "503\nx5\n"), "line 2: 'x5' is not a node id"));
    CHECK(has(why("test.index", "503\n99999999999\n"), "line 2"));
    CHECK(has(why("test.index", "503\n507\n"), "line 2: node 507 is outside 503..506"));
    CHECK(has(why("test.index", "503\n2\n"), "line 2: node 2 is outside"));
    CHECK(has(why("test.index", "503\n503\n"), "line 2: node 503 is listed twice"));
    CHECK(has(why("graph", py::whole(py::graph({{0}}))), "1 nodes, but"));
    std::vector<std::vector<std::int64_t>> neighbours(507);
    neighbours[7] = {507};
    CHECK(has(why("graph", py::whole(py::graph(neighbours))), "node 507 is outside 0..506"));
    neighbours[7] = {-1};
    CHECK(has(why("graph", py::whole(py::graph(neighbours))), "node -1 is outside"));
    CHECK(has(why("graph", py::whole("}(K\x01]K\x01]u")), "node 1 is listed twice"));
    CHECK(has(why("graph", py::whole("}(" + py::text("a") + "]u")), "expected an integer, found a string"));
    CHECK(has(why("graph", py::whole("}(K" + le(0, 1) + "K" + le(0, 1) + "u")), "expected a list, found an integer"));
    // One list of 30000 neighbours under each of 507 nodes: 15 million edges out of 64 thousand bytes.
    std::string shared = "](";
    for (int i = 0; i < 30000; ++i) shared += "K" + le(0, 1);
    shared += std::string("eq\0", 3) + "0}(";
    for (int i = 0; i < 507; ++i) shared += py::integer(i) + "h" + le(0, 1);
    CHECK(has(why("graph", py::whole(shared + "u")), "neighbours in as many bytes"));
    auto labels = [](std::vector<std::int32_t> x) { return py::whole(py::array({2, 2}, "i4", raw(x))); };
    CHECK(has(why("ty", labels({0, 1, 1, 1})), "row 1 is not the mark of one class"));
    CHECK(has(why("ty", labels({0, 2, 1, 0})), "row 0 is not the mark of one class: column 1 holds 2"));
    CHECK(has(why("ty", py::whole(py::array({4}, "i4", raw(std::vector<std::int32_t>{0, 1, 1, 0})))), "4 elements"));
    CHECK(has(why("tx", py::whole(py::csr(2, 4, {0, 1, 2}, {0, 3}, {1, 1}))), "4 columns, but"));
    CHECK(has(why("x", py::whole(py::csr(4, 3, {0, 0, 0, 0, 0}, {}, {}))), "expected labels of 4 rows"));
    CHECK(has(why("y", py::whole("N")), "expected a numpy.ndarray, found None"));
    Scratch folder;
    write(folder, Tiny());
    fs::remove(folder.path / "ind.tiny.ty");
    CHECK(has(message([&] { planetoid(folder.path, "tiny"); }), "ind.tiny.ty"));
  }

  TEST_CASE("a Planetoid set with flipped bytes is read or refused") {
    std::uint64_t seed = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    Random random(seed);
    Tiny tiny;
    std::vector<std::string> names;
    for (const auto& [name, bytes] : tiny.files) names.push_back(name);
    Scratch folder;
    write(folder, tiny);
    int refused = 0;
    for (int round = 0; round < 1500; ++round) {
      const std::string& name = names[random.below(names.size())];
      std::string bad = tiny.files[name];
      bad[random.below(std::min<std::size_t>(bad.size(), 700))] = static_cast<char>(random.next());
      folder.write("ind.tiny." + name, bad);
      CAPTURE(seed);
      CAPTURE(round);
      try {
        check(planetoid(folder.path, "tiny"));
      } catch (const Error&) {
        ++refused;
      }
      folder.write("ind.tiny." + name, tiny.files[name]);
    }
    MESSAGE("seed " << seed << ": " << refused << " of 1500 damaged sets refused");
    CHECK(refused > 100);
  }

  TEST_CASE("the citation networks are what their papers say") {
    fs::path data = public_data();
    if (data.empty()) {
      MESSAGE("skipped: no public data in $HEED_DATA");
      return;
    }
    struct Expected {
      const char* name;
      Id nodes, classes;
      Offset edges, channels, isolated, entries, unlabelled;
      std::size_t train;
      double homophily;
      // Sums over the files, assembled by Python's own unpickler: of value * ((31 i + 17 c) mod 1009) over features,
      // of (i mod 1009) (label + 1) over nodes, of (31 i + 17 j) mod 1009 over edges.
      double features;
      Offset labels, edge_sum;
    };
    for (const Expected& e :
         {Expected{"cora", 2708, 7, 5278, 1433, 0, 49216, 0, 140, 0.81, 24686792, 4897952, 5355150},
          Expected{"citeseer", 3327, 6, 4552, 3703, 48, 105165, 15, 120, 0.74, 53099657, 5781342, 4588865},
          Expected{"pubmed", 19717, 3, 44324, 500, 0, 988031, 0, 60, 0.80, 19491437.9, 21483202, 44598661}}) {
      CAPTURE(e.name);
      if (!fs::exists(data / e.name)) {
        MESSAGE("skipped: no " << e.name << " in " << data.string());
        continue;
      }
      Dataset d = load(e.name, {.data = data});
      CHECK(d.name == e.name);
      CHECK(d.nodes() == e.nodes);
      CHECK(d.graph.edges() == 2 * e.edges);
      CHECK(d.channels() == e.channels);
      CHECK(d.classes == e.classes);
      CHECK(homophily(d) == doctest::Approx(e.homophily).epsilon(0.01));
      CHECK(transpose(d.graph.adjacency).csr == d.graph.adjacency);  // symmetric
      Offset isolated = 0, labels = 0, edge_sum = 0;
      double features = 0;
      REQUIRE(d.features.sparse);
      const Csr& x = d.features.sparse->pattern();
      CHECK(x.edges() == e.entries);
      for (Id i = 0; i < d.nodes(); ++i) {
        isolated += d.graph.adjacency->degree(i) == 0;
        CHECK_FALSE(d.graph.adjacency->contains(i, i));
        labels += Offset{i % 1009} * (d.labels[i] + 1);
        for (Id j : d.graph.adjacency->row(i)) edge_sum += (31 * i + 17 * j) % 1009;
        for (Offset t = x.offsets[i]; t < x.offsets[i + 1]; ++t)
          features += d.features.sparse->values[t] * ((i * 31 + x.ids[t] * 17) % 1009);
      }
      CHECK(isolated == e.isolated);
      CHECK(std::ranges::count(d.labels, -1) == e.unlabelled);
      CHECK(labels == e.labels);
      CHECK(edge_sum == e.edge_sum);
      CHECK(features == doctest::Approx(e.features).epsilon(1e-8));
      CHECK(std::set<Id>(d.labels.begin(), d.labels.end()).size() == e.classes + (e.unlabelled > 0 ? 1u : 0u));
      REQUIRE(d.splits.size() == 1);
      CHECK(d.splits[0].train.size() == e.train);
      CHECK(d.splits[0].valid.size() == 500);
      CHECK(d.splits[0].test.size() == 1000);
      std::vector<int> of_class(static_cast<std::size_t>(d.classes));
      for (Id i : d.splits[0].train) ++of_class[d.labels[i]];
      CHECK(std::ranges::all_of(of_class, [](int n) { return n == 20; }));
    }
  }

  TEST_CASE("load looks in every place and says where it looked") {
    CHECK(datasets().size() >= 13);
    const auto names = dataset_names();
    CHECK(std::set<std::string>(names.begin(), names.end()).size() == datasets().size());
    CHECK(has(message([] { load("./no-such-folder"); }), "./no-such-folder: no such file or folder"));
    CHECK(message([] { load("coral"); }) == "unknown dataset 'coral'; did you mean cora?");
    Scratch folder, cache;
    Tiny tiny;
    for (const auto& [name, bytes] : tiny.files) folder.write("ind.cora." + name, bytes);
    CHECK(load("cora", {.data = folder.path}).nodes() == 507);  // directly in the place

    std::string before = std::getenv("HEED_DATA") ? std::getenv("HEED_DATA") : "";
    std::string before_cache = std::getenv("XDG_CACHE_HOME") ? std::getenv("XDG_CACHE_HOME") : "";
    setenv("XDG_CACHE_HOME", cache.path.c_str(), 1);
    setenv("HEED_DATA", (cache.path / "elsewhere").c_str(), 1);
    std::string why = message([] { load("cora", {.data = "/nowhere/at/all"}); });
    CHECK_MESSAGE(
        (has(why, "/nowhere/at/all, ") && has(why, "elsewhere, ") && has(why, "heed") && has(why, "ind.cora.x")), why);
    fs::create_directories(cache.path / "heed" / "cora");
    for (const auto& [name, bytes] : tiny.files)
      std::ofstream(cache.path / "heed" / "cora" / ("ind.cora." + name), std::ios::binary) << bytes;
    CHECK(load("cora").nodes() == 507);  // from the cache, in its own folder
    setenv("HEED_DATA", folder.path.c_str(), 1);
    folder.write("ind.cora.test.index", "505\n504\n");
    CHECK(load("cora").splits[0].test == std::vector<Id>{504, 505});  // HEED_DATA comes before the cache
    before.empty() ? unsetenv("HEED_DATA") : setenv("HEED_DATA", before.c_str(), 1);
    before_cache.empty() ? unsetenv("XDG_CACHE_HOME") : setenv("XDG_CACHE_HOME", before_cache.c_str(), 1);
  }

  TEST_CASE("the block model has the statistics that it promises") {
    std::uint64_t first = 1;
    for (std::uint64_t seed = first; seed < first + 5; ++seed) {
      CAPTURE(seed);
      Dataset d = sbm({.seed = seed});
      check(d);
      CHECK(d.nodes() == 3000);
      CHECK(d.channels() == 64);
      CHECK(transpose(d.graph.adjacency).csr == d.graph.adjacency);
      double degree = static_cast<double>(d.graph.edges()) / d.nodes();
      CHECK(std::abs(degree - 6.0) < 0.25);  // 9000 edges, deviation 95: four of these are 0.25
      CHECK(std::abs(homophily(d) - 0.7) < 0.02);
      std::vector<int> size(6), train(6);
      for (Id y : d.labels) ++size[y];
      CHECK(size == std::vector<int>(6, 500));
      REQUIRE(d.splits.size() == 1);
      for (Id i : d.splits[0].train) ++train[d.labels[i]];
      CHECK(train == std::vector<int>(6, 20));
      CHECK(d.splits[0].valid.size() == 500);
      CHECK(d.splits[0].test.size() == 1000);

      // Features: noise of variance 1, and means of classes of variance mu/n = 0.0533 about 0.
      double within = 0, between = 0;
      for (Offset c = 0; c < 64; ++c) {
        double mean[6] = {};
        for (Id i = 0; i < 3000; ++i) mean[d.labels[i]] += d.features.dense(i, c) / 500.0;
        for (Id i = 0; i < 3000; ++i) within += std::pow(d.features.dense(i, c) - mean[d.labels[i]], 2) / (64 * 2994.0);
        for (double m : mean) between += (m * m - 1.0 / 500) / (64 * 6);
      }
      CHECK(within == doctest::Approx(1.0).epsilon(0.015));
      CHECK(between == doctest::Approx(160.0 / 3000).epsilon(0.3));  // 384 squares of normals: deviation 7%
    }
    Dataset a = sbm({.seed = 7}), b = sbm({.seed = 7}), c = sbm({.seed = 8});
    CHECK(*a.graph.adjacency == *b.graph.adjacency);
    CHECK(a.features.dense == b.features.dense);
    CHECK(a.labels == b.labels);
    CHECK(a.splits[0].test == b.splits[0].test);
    CHECK_FALSE(*a.graph.adjacency == *c.graph.adjacency);
    CHECK_FALSE(a.features.dense == c.features.dense);
    CHECK_FALSE(a.labels == c.labels);
    CHECK(load("sbm", {.seed = 7}).features.dense == a.features.dense);
  }

  TEST_CASE("the block model at its limits") {
    Sbm o{.nodes = 40, .classes = 4, .within = 40, .across = 0, .channels = 2, .train = 2, .valid = 4, .test = 4};
    Dataset cliques = sbm(o);
    CHECK(cliques.graph.edges() == 4 * 10 * 9);
    CHECK(homophily(cliques) == 1.0);
    o.within = 0;
    o.across = 40;
    CHECK(sbm(o).graph.edges() == 40 * 30);
    o.across = 1e-300;
    CHECK(sbm(o).graph.edges() == 0);
    // Every pair is as likely as any other: 45 pairs within a class of 10, over 4 classes and 400 seeds.
    o.across = 0;
    o.within = 10;
    o.classes = 1;
    o.nodes = 10;
    o.within = 2.5;
    o.train = 1;
    o.valid = o.test = 1;
    std::vector<double> seen(100);
    for (o.seed = 0; o.seed < 4000; ++o.seed)
      for (auto [from, to] : edges_of(sbm(o).graph)) seen[10 * from + to] += 1.0 / 4000;
    for (int i = 0; i < 10; ++i)
      for (int j = 0; j < 10; ++j) CHECK(std::abs(seen[10 * i + j] - (i == j ? 0 : 0.25)) < 0.035);  // deviation 0.007
    CHECK(has(message([] { sbm({.nodes = 100}); }), "too small"));
    CHECK(has(message([] { sbm({.within = 1e9}); }), "within"));
    CHECK(has(message([] { sbm({.across = std::nan("")}); }), "across"));
    CHECK(has(message([] { sbm({.signal = -1}); }), "signal"));
    CHECK(has(message([] { sbm({.classes = 0}); }), "0 classes"));
  }

  TEST_CASE("the karate club") {
    Dataset d = load("karate");
    CHECK(d.nodes() == 34);
    CHECK(d.graph.edges() == 2 * 78);
    CHECK(d.classes == 2);
    CHECK(std::ranges::count(d.labels, 0) == 17);
    const Csr& a = *d.graph.adjacency;
    std::vector<Offset> degrees;
    for (Id i = 0; i < 34; ++i) degrees.push_back(a.degree(i));
    CHECK(degrees == std::vector<Offset>{16, 9, 10, 6, 3, 4, 4, 4, 5, 2, 3, 1, 2, 5, 2, 2,  2,
                                         2,  2, 3,  2, 2, 2, 5, 3, 3, 2, 4, 3, 4, 4, 6, 12, 17});
    Offset triangles = 0;
    for (auto [i, j] : edges_of(d.graph))
      for (Id k : a.row(i)) triangles += a.contains(j, k);
    CHECK(triangles == 6 * 45);
    CHECK(d.labels[0] == 0);
    CHECK(d.labels[8] == 0);
    CHECK(d.labels[33] == 1);
    CHECK(d.features.sparse->pattern() == identity(34));
    CHECK(d.splits[0].train.size() + d.splits[0].valid.size() + d.splits[0].test.size() == 34);
  }

  TEST_CASE("random graphs have exactly the edges asked for") {
    for (auto [n, m] : {std::pair<Id, Offset>{0, 0},
                        {1, 0},
                        {2, 1},
                        {2, 2},
                        {10, 90},
                        {10, 60},
                        {33, 500},
                        {1000, 5000},
                        {65537, 100000}})
      for (bool skewed : {true, false}) {
        CAPTURE(n);
        CAPTURE(m);
        CAPTURE(skewed);
        Graph g = skewed ? rmat(n, m, 5) : uniform_graph(n, m, 5);
        check(*g.adjacency);  // distinct
        CHECK(g.nodes() == n);
        CHECK(g.edges() == m);
        Offset loops = 0;
        for (auto [from, to] : edges_of(g)) loops += from == to;
        CHECK(loops == 0);
        CHECK(*(skewed ? rmat(n, m, 5) : uniform_graph(n, m, 5)).adjacency == *g.adjacency);
        if (m > 50 && m < 90) CHECK_FALSE(*(skewed ? rmat(n, m, 6) : uniform_graph(n, m, 6)).adjacency == *g.adjacency);
      }
    CHECK(has(message([] { rmat(10, 91, 1); }), "room for 90"));
    CHECK(has(message([] { uniform_graph(1, 1, 1); }), "room for 0"));
    CHECK(has(message([] { rmat(-1, 0, 1); }), "-1 nodes"));
    CHECK(has(message([] { rmat(2147483647, Offset{1} << 60, 1); }), "more than are generated"));
    CHECK(has(message([] { rmat(10, 5, 1, {.a = 0.9, .b = 0.2}); }), "probabilities"));
    CHECK(rmat(10, 5, 1, {.a = 1, .b = 0, .c = 0}).edges() == 5);  // every draw is the loop (0, 0)
  }

  TEST_CASE("R-MAT is skewed, spread and fast; the uniform graph is even") {
    auto begin = std::chrono::steady_clock::now();
    Graph g = rmat(100000, 2000000, 3);
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    CHECK(g.edges() == 2000000);
    Offset in = 0;
    std::vector<Offset> out(100000);
    std::vector<std::pair<Offset, Id>> by_degree;
    for (Id i = 0; i < g.nodes(); ++i) {
      in = std::max(in, g.adjacency->degree(i));
      by_degree.emplace_back(g.adjacency->degree(i), i);
      for (Id j : g.adjacency->row(i)) ++out[j];
    }
    MESSAGE("R-MAT of 100000 nodes, 2000000 edges: " << took.count() << " s, largest in-degree " << in
                                                     << ", out-degree " << *std::ranges::max_element(out));
    CHECK(in > 2000);
    CHECK(*std::ranges::max_element(out) > 2000);
    // The hundred largest hubs lie anywhere: their mean id is n/2 with deviation n / sqrt(1200).
    std::ranges::sort(by_degree, std::greater<>());
    double mean = 0;
    for (int h = 0; h < 100; ++h) mean += by_degree[h].second / 100.0;
    CHECK(std::abs(mean - 50000) < 4 * 100000 / std::sqrt(1200.0));

    Graph even = uniform_graph(100000, 2000000, 3);
    in = 0;
    for (Id i = 0; i < even.nodes(); ++i) in = std::max(in, even.adjacency->degree(i));
    CHECK(in < 60);  // Poisson of mean 20

    // Each of the 20 possible edges is in a set of 7 as often as any other, by either method (7 of 20 is dense).
    std::vector<double> seen(25);
    for (std::uint64_t seed = 0; seed < 4000; ++seed)
      for (auto [from, to] : edges_of(uniform_graph(5, 7, seed))) seen[5 * from + to] += 1.0 / 4000;
    for (int i = 0; i < 5; ++i)
      for (int j = 0; j < 5; ++j) CHECK(std::abs(seen[5 * i + j] - (i == j ? 0 : 0.35)) < 0.035);  // deviation 0.0075
  }

  TEST_CASE("npz: arrays come back as they went in") {
    Scratch folder;
    std::vector<float> f{1.5f, -2, 3, 4, 5, 6};
    std::vector<std::int64_t> i{1, -2, std::int64_t{1} << 40};
    fs::path path = folder.write(
        "a.npz", zip({{.name = "f.npy", .bytes = npy("<f4", "(2, 3)", raw(f))},
                      {.name = "columns.npy", .bytes = npy("<f4", "(2, 3)", raw(f), "True"), .deflate = true},
                      {.name = "i.npy", .bytes = npy("<i8", "(3,)", raw(i)), .deflate = true},
                      {.name = "mask.npy", .bytes = npy("|b1", "(2L, 2L)", std::string("\0\1\1\0", 4))},
                      {.name = "u.npy", .bytes = npy("|u1", "(2,)", "\x07\xff")},
                      {.name = "one.npy", .bytes = npy("<f8", "()", raw(std::vector<double>{0.25}))},
                      {.name = "none.npy", .bytes = npy("<i4", "(0, 5)", "")},
                      {.name = "names.npy", .bytes = npy("<U3", "(2,)", std::string(24, 'x'))},
                      {.name = "objects.npy", .bytes = npy("|O", "(5,)", "\x80\x02]q\x01.")},
                      {.name = "swapped.npy", .bytes = npy(">i4", "(1,)", "1234")},
                      {.name = "readme.txt", .bytes = "not an array"}}));
    Npz a = read_npz(path);
    CHECK(a.arrays.size() == 10);
    CHECK(a["f"].as<float>() == f);
    CHECK(a["f"].shape == std::vector<Offset>{2, 3});
    CHECK(a["columns"].fortran_order);
    CHECK(a["columns"].as<float>() == std::vector<float>{1.5f, 3, 5, -2, 4, 6});
    CHECK(a["i"].as<std::int64_t>() == i);
    CHECK(has(message([&] { a["i"].as<Id>(); }), "element 2 of 3 elements is 1099511627776"));
    CHECK(has(message([&] { a["i"].as<std::uint8_t>(); }), "element 1"));
    CHECK(a["mask"].dtype == Dtype::boolean);
    CHECK(a["mask"].as<std::uint8_t>() == std::vector<std::uint8_t>{0, 1, 1, 0});
    CHECK(a["u"].as<Id>() == std::vector<Id>{7, 255});
    CHECK(a["one"].as<float>() == std::vector<float>{0.25});
    CHECK(a["one"].shape.empty());
    CHECK(a["none"].as<Id>().empty());
    CHECK(has(message([&] { a["names"].as<float>(); }), "text"));
    CHECK(has(message([&] { a["objects"].as<float>(); }), "a.npz: objects.npy: holds Python objects"));
    CHECK(has(message([&] { a["swapped"].as<Id>(); }), ">i4"));
    CHECK(has(message([&] { a["maks"]; }), "did you mean mask?"));

    fs::path single = folder.write("a.npy", npy("<f4", "(3, 2)", raw(f)));
    CHECK(read_npy(single).as<double>() == std::vector<double>{1.5, -2, 3, 4, 5, 6});
  }

  TEST_CASE("npy: three dimensions by columns") {
    Scratch folder;
    std::vector<Id> stored(24), expected(24);
    for (Id x = 0; x < 2; ++x)
      for (Id y = 0; y < 3; ++y)
        for (Id z = 0; z < 4; ++z) {
          stored[x + 2 * y + 6 * z] = 100 * x + 10 * y + z;
          expected[12 * x + 4 * y + z] = 100 * x + 10 * y + z;
        }
    CHECK(read_npy(folder.write("a.npy", npy("<i4", "(2, 3, 4)", raw(stored), "True"))).as<Id>() == expected);
  }

  TEST_CASE("npy: headers are read strictly") {
    Scratch folder;
    std::string four(4, '\0');
    auto why = [&](const std::string& bytes) { return message([&] { read_npy(folder.write("a.npy", bytes)); }); };
    auto header = [&](const std::string& h) { return why(npy_of(h, four)); };
    CHECK(why(npy("<f4", "(1,)", four)) == "");
    CHECK(header("{\"shape\":(1,),\"descr\":\"<f4\",\"fortran_order\":False}") == "");
    CHECK(has(why(npy("<f8", "(1152921504606846976,)", four)), "more bytes than can be counted"));
    CHECK(has(why(npy("<i1", "(1152921504606846976,)", four)), "take 1152921504606846976 bytes, but 4 are stored"));
    CHECK(has(why(npy("<f4", "(4294967296, 4294967296, 0, 1)", four)), "take 0 bytes, but 4"));
    CHECK(has(why(npy("<f4", "(99999999999999999999,)", four)), "extent"));
    CHECK(has(why(npy("<f4", "(-1,)", four)), "extent"));
    CHECK(has(why(npy("<f4", "(1)", four)), "comma"));
    CHECK(has(why(npy("<f4", "(2,)", four)), "take 8 bytes, but 4 are stored"));
    CHECK(has(why(npy("<f4", "(1,)", four + "x")), "take 4 bytes, but 5 are stored"));
    CHECK(has(header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"), "records"));
    CHECK(has(header("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}"), "True or False"));
    CHECK(has(header("{'descr': '<f4', 'fortran_order': False}"), "needs"));
    CHECK(has(header("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"), "repeated"));
    CHECK(has(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}"), "'more'"));
    CHECK(has(header("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),)}"), "extent"));
    CHECK(has(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} + 1"), "follows"));
    CHECK(has(why("PK"), "too few"));
    CHECK(has(why("\x93NUMPX" + std::string(20, '\0')), "not a NumPy array"));
    CHECK(has(why("\x93NUMPY\x09" + std::string(20, '\0')), "version 9"));
    CHECK(has(why("\x93NUMPY\x02" + le(0, 1) + le(0xffffffff, 4) + "{}"), "claims a header of 4294967295"));
    std::string good = npy("<f4", "(1,)", four);
    for (std::size_t cut = 0; cut < good.size(); ++cut) {
      CAPTURE(cut);
      CHECK(why(good.substr(0, cut)) != "");
    }
  }

  TEST_CASE("npz: damaged and hostile archives") {
    Scratch folder;
    auto why = [&](const std::string& bytes) {
      return message([&] {
        Npz a = read_npz(folder.write("a.npz", bytes));
        for (const auto& [name, array] : a.arrays)
          if (array.dtype != Dtype::object) array.as<double>();
      });
    };
    std::string one = npy("<f4", "(2,)", "12345678");
    std::string good = zip({{.name = "a.npy", .bytes = one, .deflate = true}, {.name = "b.npy", .bytes = one}});
    CHECK(why(good) == "");
    for (std::size_t cut = 0; cut < good.size(); ++cut) {
      CAPTURE(cut);
      CHECK(why(good.substr(0, cut)) != "");
    }
    CHECK(has(why(zip({{.name = "a.npy", .bytes = one}, {.name = "a.npy", .bytes = one}})), "there twice"));
    CHECK(has(why(zip({{.name = "a.npy", .bytes = one, .method = 12}})), "method 12"));
    CHECK(has(why(zip({{.name = "a.npy", .bytes = one, .deflate = true, .claimed = 4000000000}})), "claims to unpack"));
    CHECK(has(why(zip({{.name = "a.npy", .bytes = one, .deflate = true, .claimed = 1000000}})), "a.npz: a.npy"));
    CHECK(has(why(zip({{.name = "a.npy", .bytes = npy("<i1", "(1152921504606846976,)", "x")}})), "are stored"));
    CHECK(has(why(zip({{.name = "a.npy", .bytes = "PK"}})), "too few"));
    std::vector<Packed> many(40, {.name = "", .bytes = one, .deflate = true, .claimed = 1000000});
    for (std::size_t e = 0; e < many.size(); ++e) many[e].name = std::to_string(e) + ".npy";
    CHECK(why(zip(many)) != "");
    // Objects claim what they like: nothing of them is unpacked.
    CHECK(why(zip({{.name = "o.npy", .bytes = npy("|O", "(1152921504606846976,)", "x")}})) == "");
    CHECK(has(why(""), "a.npz"));
    CHECK(has(message([&] { read_npz(folder.path); }), "not a regular file"));
    CHECK(has(message([&] { read_npz(folder.path / "none.npz"); }), "none.npz"));

    std::string bad = good;  // a changed number fails its checksum
    bad[bad.find("12345678") + 2] ^= 1;
    CHECK(has(why(bad), "a.npz: a.npy: "));

    std::uint64_t seed = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    Random random(seed);
    int refused = 0;
    for (int round = 0; round < 4000; ++round) {
      bad = good;
      for (std::uint64_t flips = 1 + random.below(3); flips > 0; --flips)
        bad[random.below(bad.size())] = static_cast<char>(random.next());
      CAPTURE(seed);
      CAPTURE(round);
      refused += why(bad) != "";
    }
    MESSAGE("seed " << seed << ": " << refused << " of 4000 damaged archives refused");
    CHECK(refused > 1000);
  }

  TEST_CASE("npz: the public archives") {
    fs::path data = public_data();
    if (data.empty()) {
      MESSAGE("skipped: no public data in $HEED_DATA");
      return;
    }
    for (const auto& [name, nodes, channels, edges, first] :
         {std::tuple<const char*, Offset, Offset, Offset, Offset>{"minesweeper", 10000, 7, 39402, 5000},
          {"actor", 7600, 932, 26659, 3648},
          {"chameleon_filtered", 890, 2325, 8854, 409},
          {"texas", 183, 1703, 279, 87}}) {
      fs::path path = data / "heterophilous" / (std::string(name) + ".npz");
      if (!fs::exists(path)) {
        MESSAGE("skipped: no " << path.string());
        continue;
      }
      CAPTURE(name);
      Npz a = read_npz(path);
      CHECK(a["node_features"].shape == std::vector<Offset>{nodes, channels});
      CHECK(a["edges"].shape == std::vector<Offset>{edges, 2});
      for (Id i : a["edges"].as<Id>()) REQUIRE((i >= 0 && i < nodes));
      auto labels = a["node_labels"].as<Id>();
      CHECK(labels.size() == static_cast<std::size_t>(nodes));
      // Read in the wrong order the parts of a split would overlap.
      auto train = a["train_masks"].as<std::uint8_t>(), valid = a["val_masks"].as<std::uint8_t>(),
           test = a["test_masks"].as<std::uint8_t>();
      REQUIRE(train.size() == static_cast<std::size_t>(10 * nodes));
      Offset overlaps = 0;
      for (std::size_t t = 0; t < train.size(); ++t) overlaps += train[t] + valid[t] + test[t] > 1;
      CHECK(overlaps == 0);
      CHECK(std::accumulate(train.begin(), train.begin() + nodes, Offset{0}) == first);
    }
    if (fs::path path = data / "coauthor_physics" / "ms_academic_phy.npz"; fs::exists(path)) {
      Npz a = read_npz(path);
      CHECK(a.arrays.size() == 12);
      CHECK(a["class_names"].dtype == Dtype::object);
      CHECK(a["node_names"].dtype == Dtype::text);
      SparseRows x =
          sparse_rows("physics", a["attr_shape"].as<Offset>(), a["attr_indptr"], a["attr_indices"], a["attr_data"]);
      CHECK(x.pattern.rows == 34493);
      CHECK(x.pattern.cols == 8415);
      CHECK(x.pattern.edges() == 1137311);
      check(x.pattern);
    }
    if (fs::path path = data / "amazon_photo" / "amazon_electronics_photo.npz"; fs::exists(path)) {
      Npz a = read_npz(path);
      SparseRows g =
          sparse_rows("photo", a["adj_shape"].as<Offset>(), a["adj_indptr"], a["adj_indices"], a["adj_data"]);
      CHECK(g.pattern.rows == 7650);
      CHECK(g.pattern.edges() == 143663);
    }
  }

  TEST_CASE("rows are normalised by their absolute sum") {
    Features x;
    x.dense.resize(3, 2);
    float rows[3][2] = {{1, -3}, {0, 0}, {1e-30f, 0}};
    for (int i = 0; i < 3; ++i)
      for (int c = 0; c < 2; ++c) x.dense(i, c) = rows[i][c];
    Features y = normalise_rows(x);
    CHECK(y.dense(0, 0) == 0.25f);
    CHECK(y.dense(0, 1) == -0.75f);
    CHECK(y.dense(1, 0) == 0);
    CHECK(y.dense(1, 1) == 0);
    CHECK(y.dense(2, 0) == 1);
    CHECK(x.dense(0, 0) == 1);  // the given one stays

    Features s;
    s.sparse = std::make_shared<Sparse>(
        std::make_shared<Csr>(Csr{.rows = 3, .cols = 4, .offsets = {0, 2, 2, 3}, .ids = {1, 3, 0}}),
        std::vector<float>{2, -6, 5});
    Features t = normalise_rows(s);
    REQUIRE(t.sparse);
    CHECK(t.sparse->values == std::vector<float>{0.25f, -0.75f, 1});
    CHECK(t.sparse->pattern() == s.sparse->pattern());
    CHECK(s.sparse->values[0] == 2);
  }

  TEST_CASE("check names what does not fit") {
    CHECK(message([] { check(small()); }) == "");
    auto why = [](const std::function<void(Dataset&)>& spoil) {
      Dataset d = small();
      spoil(d);
      return message([&] { check(d); });
    };
    float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    CHECK(has(why([&](Dataset& d) { d.features.dense(1, 0) = nan; }), "small: feature 0 of node 1 is nan"));
    CHECK(has(why([&](Dataset& d) { d.features.dense(2, 1) = -infinity; }), "feature 1 of node 2 is -inf"));
    CHECK(has(why([&](Dataset& d) {
                d.features.dense.resize(0, 0);
                d.features.sparse =
                    std::make_shared<Sparse>(std::make_shared<Csr>(identity(3)), std::vector<float>{1, nan, 1});
              }),
              "feature 1 of node 1 is nan"));
    CHECK(has(why([](Dataset& d) { d.features.dense.resize(2, 2); }), "features of 2 nodes"));
    CHECK(has(why([](Dataset& d) { d.features.sparse = std::make_shared<Sparse>(); }), "small: "));
    CHECK(has(why([](Dataset& d) { d.labels[1] = 2; }), "node 1 has the label 2, outside 0..1"));
    CHECK(has(why([](Dataset& d) { d.labels[1] = -2; }), "label -2"));
    CHECK(has(why([](Dataset& d) { d.labels.pop_back(); }), "2 labels for 3 nodes"));
    CHECK(has(why([](Dataset& d) { d.labels[2] = -1; }), "test: node 2 has no label"));
    CHECK(has(why([](Dataset& d) { d.splits[0].test = {1, 2}; }), "test: node 1 is also in valid"));
    CHECK(has(why([](Dataset& d) { d.splits[0].test = {3}; }), "node 3 is outside 0..2"));
    CHECK(has(why([](Dataset& d) { d.splits[0].train = {-1}; }), "node -1 is outside"));
    CHECK(has(why([](Dataset& d) { d.splits[0] = {.train = {1, 0}, .valid = {}, .test = {}}; }), "must rise"));
    CHECK(has(why([&](Dataset& d) { d.graph.weights = {1, 1, nan, 1}; }), "the weight of edge 2 is nan"));
    CHECK(has(why([](Dataset& d) { d.graph.weights = {1}; }), "1 weights for 4 edges"));
    CHECK(has(why([](Dataset& d) { d.graph.channels = 2; }), "0 edge features for 4 edges x 2"));
    CHECK(has(why([](Dataset& d) {
                auto broken = std::make_shared<Csr>(*d.graph.adjacency);
                broken->ids[0] = 9;
                d.graph.adjacency = broken;
              }),
              "id 9 is outside"));
    CHECK(has(why([](Dataset& d) {
                d.graph.adjacency = std::make_shared<Csr>(Csr{.rows = 3, .cols = 4, .offsets = {0, 0, 0, 0}});
              }),
              "3 rows and 4 columns"));
    for (const auto& name : {"sbm", "karate"}) CHECK(message([&] { check(load(name)); }) == "");
  }
}
