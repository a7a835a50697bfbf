// Every reader of files and of formulas, by a name, as something that takes bytes; and bytes to start from. The fuzzer
// runs them on what it makes up (tests/fuzz/fuzz.cpp), the tests on the starting bytes and on a choice of what it made
// up (tests/fuzz/corpus).
#pragma once

#include <filesystem>
#include <functional>

#include "datasets/formats.h"
#include "datasets/gz.h"
#include "datasets/npz.h"
#include "datasets/parts.h"
#include "datasets/pickle.h"
#include "datasets/splits.h"
#include "datasets/text.h"
#include "kernels/program.h"
#include "kernels/random.h"
#include "tests/bytes.h"
#include "tests/scratch.h"
#include "train/safetensors.h"

namespace heed::test {

// Files of a folder in one piece of bytes, as `head` prints several files: "==> name <==", a line feed and the file.
inline std::string pack(const std::map<std::string, std::string>& files) {
  std::string out;
  for (const auto& [name, bytes] : files) out += "==> " + name + " <==\n" + bytes + "\n";
  return out;
}
inline std::map<std::string, std::string> unpack(const std::string& bytes) {
  std::map<std::string, std::string> out;
  for (std::size_t at = bytes.starts_with("==> ") ? 0 : std::string::npos; at != std::string::npos;) {
    const std::size_t name = at + 4, end = bytes.find(" <==\n", name);
    if (end == std::string::npos) break;
    const std::size_t body = end + 5, next = bytes.find("\n==> ", body);
    const std::size_t last =
        next != std::string::npos ? next : bytes.size() - (bytes.ends_with('\n') && bytes.size() > body);
    out[bytes.substr(name, end - name)] = bytes.substr(body, last - body);
    at = next == std::string::npos ? next : next + 1;
  }
  return out;
}

// A graph of up to `most` nodes with everything that a dataset can have, or not: directions, loops, weights, features
// of edges, dense or sparse features with channels that nobody has, unknown labels, classes without nodes, splits.
inline Dataset random_dataset(Random& random, Id most = 30) {
  auto coin = [&] { return random.below(2) == 1; };
  auto odd = [&] {  // numbers that are hard to write, and not 0
    const float some[] = {1, -1, 0.1f, 1e-45f, -3.4e38f, 16777216, 1.0f / 3};
    return coin() ? some[random.below(7)] : static_cast<float>(random.normal());
  };
  const Id nodes = 1 + static_cast<Id>(random.below(static_cast<std::uint64_t>(most)));
  Dataset d{.name = "random", .labels = {}, .splits = {}};
  std::vector<Edge> edges;
  for (auto n = random.below(4 * static_cast<std::uint64_t>(nodes)); n > 0; --n)
    edges.push_back({.from = static_cast<Id>(random.below(nodes)), .to = static_cast<Id>(random.below(nodes))});
  EdgePolicy policy{.loops = coin() ? Loops::keep : Loops::drop,
                    .direction = coin() ? Direction::directed : Direction::both};
  std::vector<float> weights, features;
  const int channels = static_cast<int>(random.below(3));
  if (coin())
    for (std::size_t e = 0; e < edges.size(); ++e) weights.push_back(odd());
  for (std::size_t e = 0; e < edges.size() * channels; ++e) features.push_back(odd());
  d.graph = graph_from_edges(nodes, edges, policy, weights, features, channels);

  const Id width = 1 + static_cast<Id>(random.below(6));
  if (coin()) {
    std::vector<FeatureEntry> entries;
    for (Id i = 0; i < nodes; ++i)
      for (Id c = 0; c < width; ++c)
        if (random.below(4) == 0) entries.push_back({.row = i, .column = c, .value = coin() ? odd() : 0});
    d.features = sparse_features("random", nodes, width, entries, Repeats::keep_first);
  } else {
    d.features.dense.resize(nodes, width);
    for (float& x : d.features.dense) x = odd();
  }
  d.classes = 1 + static_cast<Id>(random.below(5));
  for (Id i = 0; i < nodes; ++i) d.labels.push_back(static_cast<Id>(random.below(d.classes + 1)) - 1);
  for (auto n = random.below(4); n > 0; --n) {
    Split split;
    for (Id i = 0; i < nodes; ++i)
      if (auto part = random.below(4); part > 0 && d.labels[i] >= 0)
        part_of(split, static_cast<Part>(part)).push_back(i);
    if (!split.train.empty() || !split.valid.empty() || !split.test.empty()) d.splits.push_back(split);
  }
  return d;
}

// What a writer of a folder makes of a dataset.
inline std::map<std::string, std::string> written(const Dataset& d, const std::string& format) {
  Scratch scratch;
  write_dataset(d, scratch.path / "out", format);
  std::map<std::string, std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(scratch.path / "out"))
    out[entry.path().filename().string()] = read_file(entry.path());
  return out;
}

struct Reader {
  std::string name;
  std::function<void(const std::string& bytes)> read;  // throws Error, or nothing is wrong
  std::function<std::vector<std::string>()> seeds;
};

inline const std::vector<Reader>& readers() {
  using Seeds = std::vector<std::string>;
  auto dataset = [](const char* format, const char* file = nullptr) {
    return [=](const std::string& bytes) {
      const Files files = file ? Files("fuzz", {{file, bytes}}, file) : Files("fuzz", unpack(bytes));
      const Format& reader = format_named(format);
      reader.fits(files);
      check(reader.read(files));
    };
  };
  auto written_ones = [](const char* format) {
    return [=] {
      Seeds out;
      for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        out.push_back(pack(written(random_dataset(random, 8), format)));
      }
      return out;
    };
  };
  using F = std::vector<float>;
  using I = std::vector<std::int32_t>;
  using L = std::vector<std::int64_t>;
  static const std::vector<Reader> list{
      {"safetensors", [](const std::string& bytes) { parse_safetensors(bytes, "fuzz"); },
       [] {
         Random random(1);
         Matrix<float> a(2, 3), b(1, 4);
         for (float& x : a) x = static_cast<float>(random.normal());
         return Seeds{to_safetensors({{"layers.0.weight", a}, {"layers.0.bias", b}}, {{"format", "heed"}}),
                      to_safetensors({}, {}), to_safetensors({{"empty", Matrix<float>(0, 4)}, {"a", a}}, {})};
       }},
      {"pickle",
       [](const std::string& bytes) {
         Pickle p(bytes, "fuzz");
         const auto& root = p[p.root()];
         if (root.kind == Pickle::Kind::object && root.type == Pickle::Type::csr_matrix)
           p.csr_matrix(p.root());
         else if (root.kind == Pickle::Kind::object && root.type == Pickle::Type::reconstruct)
           p.array(p.root()).as<float>();
         else
           p.dict(p.root());
       },
       [] {
         return Seeds{py::whole(py::array({2, 3}, "i4", raw(I{1, 2, 3, 4, 5, -6}))),
                      py::whole(py::csr(3, 4, {0, 3, 3, 4}, {2, 0, 2, 3}, {1, 2, 10, 3})),
                      py::whole(py::graph({{1, 2}, {}, {0}}))};
       }},
      {"npy",
       [](const std::string& bytes) {
         Array a = parse_npy(bytes, "fuzz");
         a.as<float>(), a.as<Id>();
       },
       [] {
         return Seeds{npy("<f4", "(2, 3)", raw(F{1, 2, 3, 4, 5, 6}), "True"), npy("|b1", "(2L, 1)", "\x01\x01"),
                      npy("<i8", "()", raw(L{7}))};
       }},
      {"gz", [](const std::string& bytes) { gunzip(bytes, "fuzz"); },
       [] {
         return Seeds{gzip("1,2\n3,4\n"), gzip("") + gzip(std::string(5000, 'x'))};
       }},
      {"planetoid", dataset("planetoid"),
       [] {
         std::map<std::string, std::string> files;
         for (const auto& [name, bytes] : Tiny().files) files["ind.tiny." + name] = bytes;
         return Seeds{pack(files)};
       }},
      {"gnn-benchmark", dataset("gnn-benchmark", "a.npz"),
       [] {
         return Seeds{zip({{.name = "adj_data.npy", .bytes = npy("<f4", "(3,)", raw(F{1, 1, 2}))},
                           {.name = "adj_indices.npy", .bytes = npy("<i4", "(3,)", raw(I{1, 2, 0}))},
                           {.name = "adj_indptr.npy", .bytes = npy("<i4", "(4,)", raw(I{0, 2, 2, 3}))},
                           {.name = "adj_shape.npy", .bytes = npy("<i8", "(2,)", raw(L{3, 3}))},
                           {.name = "attr_data.npy", .bytes = npy("<f4", "(2,)", raw(F{1, 1}))},
                           {.name = "attr_indices.npy", .bytes = npy("<i4", "(2,)", raw(I{1, 0}))},
                           {.name = "attr_indptr.npy", .bytes = npy("<i4", "(4,)", raw(I{0, 1, 1, 2}))},
                           {.name = "attr_shape.npy", .bytes = npy("<i8", "(2,)", raw(L{3, 2}))},
                           {.name = "labels.npy", .bytes = npy("<i8", "(3,)", raw(L{0, 1, 0}))}})};
       }},
      {"heterophilous", dataset("heterophilous", "a.npz"),
       [] {
         auto mask = [](const char* bits) { return npy("|b1", "(1, 3)", std::string(bits, 3), "True"); };
         return Seeds{zip({{.name = "node_features.npy", .bytes = npy("<f4", "(3, 1)", raw(F{1, 0, 2}))},
                           {.name = "node_labels.npy", .bytes = npy("<i8", "(3,)", raw(L{0, 1, 1}))},
                           {.name = "edges.npy", .bytes = npy("<i8", "(2, 2)", raw(L{0, 1, 1, 2}))},
                           {.name = "train_masks.npy", .bytes = mask("\1\0\0")},
                           {.name = "val_masks.npy", .bytes = mask("\0\1\0")},
                           {.name = "test_masks.npy", .bytes = mask("\0\0\1"), .deflate = true}})};
       }},
      {"heed", dataset("heed"), written_ones("heed")},
      {"csv", dataset("csv"),
       [=] {
         Seeds out = written_ones("csv")();
         out.push_back(pack({{"a_edges.csv", "id_1,id_2\n0,1\n1,2\n"},
                             {"a_features.json", "{\"0\": [1, 3, 3], \"2\": []}"},
                             {"a_target.csv", "id,target\n0,0\n1,1\n2,1\n"}}));
         out.push_back(pack(
             {{"mail.txt", "# Nodes: 3 Edges: 2\r\r\n0\t1\r\r\n2\t2\r\r\n"}, {"mail-labels.txt", "0 1\n1 0\n2 0\n"}}));
         out.push_back(pack({{"edges.csv",
                              "\xef\xbb\xbf"
                              "0,1,0.5\n"},
                             {"features.csv", "1,2.5\n-0,1e-50\n"}}));
         return out;
       }},
      {"graphml", dataset("graphml", "a.graphml"),
       [] {
         Seeds out;
         for (std::uint64_t seed = 1; seed <= 3; ++seed) {
           Random random(seed);
           Scratch scratch;
           write_dataset(random_dataset(random, 6), scratch.path / "a.graphml", "graphml");
           out.push_back(read_file(scratch.path / "a.graphml"));
         }
         out.push_back(
             "<graphml><key id='w' for='edge' attr.name='weight'/><graph edgedefault='undirected'><node id='a'/>"
             "<node id='b'/><edge source='a' target='b'><data key='w'>2</data></edge></graph></graphml>");
         return out;
       }},
      {"matrix-market", dataset("matrix-market"),
       [=] {
         Seeds out = written_ones("matrix-market")();
         out.push_back(
             pack({{"graph.mtx", "%%MatrixMarket matrix coordinate integer symmetric\n% a\n3 3 2\n2 1 5\n3 3 1\n"}}));
         return out;
       }},
      {"ogb", dataset("ogb"),
       [] {
         return Seeds{pack({{"raw/edge.csv", "0,1\n1,2\n"},
                            {"raw/num-node-list.csv", "3\n"},
                            {"raw/num-edge-list.csv.gz", gzip("2\n")},
                            {"raw/node-feat.csv", "1,0.5\n0,-1\n2e3,1\n"},
                            {"raw/edge-feat.csv", "1\n2\n"},
                            {"raw/node-label.csv", "0\nnan\n1\n"},
                            {"split/time/train.csv", "0\n"},
                            {"split/time/valid.csv", "2\n"},
                            {"split/time/test.csv.gz", gzip("")}})};
       }},
      {"formula", [](const std::string& bytes) { formula::parse(bytes); },
       [] {
         return Seeds{"a*leaky(q+k+e, 0.2)", "p0:-0.5 * sum(q*k) / sqrt(d) + p1",
                      "exp(-sum(square(q-(k+e)))*(exp(p0:0*-2)*.5))", "sigmoid(q)*tanh(k)/(1+abs(erf(a)))-relu(--e)",
                      "-log(1 + sqrt(sum(2e0*square(q - k))))"};
       }},
      {"splits", [](const std::string& bytes) { read_splits(Files("fuzz", unpack(bytes)), 4); },
       [] {
         return Seeds{pack({{"train.txt", "0\n3\n"},
                            {"val.npy", npy("|b1", "(4,)", std::string("\0\1\0\0", 4))},
                            {"test.csv", "2"}})};
       }},
  };
  return list;
}

}  // namespace heed::test
