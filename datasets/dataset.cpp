// The list of datasets, and the checks that every one of them passes before it is handed out.
#include "datasets/dataset.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "datasets/csv.h"
#include "datasets/files.h"
#include "datasets/formats.h"
#include "datasets/homes.h"
#include "datasets/karate.h"
#include "datasets/npz_datasets.h"
#include "datasets/planetoid.h"
#include "datasets/sbm.h"

namespace heed {
namespace {

void check_part(const Dataset& d, std::size_t split, const char* part, const std::vector<Id>& ids,
                std::vector<const char*>& owner) {
  std::string place = d.name + ": split " + std::to_string(split) + ", " + part + ": node ";
  Id last = -1;
  for (Id i : ids) {
    std::string node = std::to_string(i);
    if (i < 0 || i >= d.nodes()) fail(place + node + " is outside 0.." + std::to_string(d.nodes() - 1));
    if (i == last) fail(place + node + " is there twice");
    if (i <= last) fail(place + node + " after " + std::to_string(last) + "; ids must rise");
    if (owner[i] != nullptr) fail(place + node + " is also in " + owner[i]);
    if (d.labels[i] < 0) fail(place + node + " has no label");
    owner[i] = part;
    last = i;
  }
}

}  // namespace

const std::vector<DatasetEntry>& datasets() {
  static const auto planetoid = [](const DatasetEntry& entry, const Files& files) {
    return heed::planetoid(files, entry.name);
  };
  static const auto heterophilous = [](const DatasetEntry& entry, const Files& files) {
    return heed::heterophilous(files, entry.probe);
  };
  static const std::vector<DatasetEntry> list{
      {"sbm", "generated: a contextual stochastic block model, 3000 nodes, 6 classes", "", "", nullptr,
       [](const LoadOptions& o) { return sbm({.seed = o.seed}); }},
      {"karate", "Zachary's karate club: 34 members, 2 factions", "", "", nullptr,
       [](const LoadOptions&) { return karate(); }},
      {"cora", "citations of 2708 papers on machine learning, 7 fields (Planetoid)", "cora", "ind.cora.x", planetoid},
      {"citeseer", "citations of 3327 papers on computer science, 6 fields (Planetoid)", "citeseer", "ind.citeseer.x",
       planetoid},
      {"pubmed", "citations of 19717 papers on diabetes, 3 kinds (Planetoid)", "pubmed", "ind.pubmed.x", planetoid},
      {"amazon_photo", "7650 cameras and the like, bought together, 8 kinds (gnn-benchmark)", "amazon_photo",
       "amazon_electronics_photo.npz",
       [](const DatasetEntry& e, const Files& f) { return gnn_benchmark(f, e.probe, "amazon-photo_split.npz"); }},
      {"coauthor_physics", "34493 authors in physics who wrote together, 5 fields (gnn-benchmark)", "coauthor_physics",
       "ms_academic_phy.npz",
       [](const DatasetEntry& e, const Files& f) { return gnn_benchmark(f, e.probe, "coauthor-physics_split.npz"); }},
      {"github", "37700 developers who follow each other, 2 trades (MUSAE)", "github", "musae_git_edges.csv",
       [](const DatasetEntry& e, const Files& f) {
         return csv(f, {.edges = e.probe, .features = "musae_git_features.json", .labels = "github_target.csv"});
       }},
      {"minesweeper", "a board of 100 x 100 fields, mines to be found (heterophilous)", "heterophilous",
       "minesweeper.npz", heterophilous},
      {"actor", "7600 actors on the same pages, 5 kinds (heterophilous)", "heterophilous", "actor.npz", heterophilous},
      {"chameleon_filtered", "890 pages on chameleons, 5 classes of traffic (heterophilous)", "heterophilous",
       "chameleon_filtered.npz", heterophilous},
      {"texas", "183 pages of a university, 5 kinds (heterophilous)", "heterophilous", "texas.npz", heterophilous},
      {"email_eu_core", "mail among 1005 members of an institution, 42 departments (SNAP)", "email_eu_core",
       "email-Eu-core.txt",
       [](const DatasetEntry& e, const Files& f) {
         return csv(f, {.edges = e.probe, .labels = "email-Eu-core-department-labels.txt"});
       }},
  };
  return list;
}

std::vector<std::string> dataset_names() {
  std::vector<std::string> out;
  for (const auto& entry : datasets()) out.emplace_back(entry.name);
  return out;
}

void check_name(const std::string& name) {
  for (const auto& entry : datasets())
    if (name == entry.name) return;
  std::error_code error;
  if (std::filesystem::exists(name, error)) return;
  if (name.find('/') != std::string::npos) fail(name + ": no such file or folder");
  unknown("dataset", name, dataset_names());
}

Dataset load(const std::string& name, const LoadOptions& options) {
  for (const auto& entry : datasets())
    if (name == entry.name) {
      if (options.download) fetch(name, entry.folder, options.data, options.progress);
      Dataset out = entry.generate
                        ? entry.generate(options)
                        : entry.read(entry, Files(find_folder({name, entry.folder}, entry.probe, options.data)));
      out.name = name;
      check(out);
      return out;
    }
  check_name(name);
  return read_dataset(Files(std::filesystem::path(name)));
}

void check(const Dataset& d) {
  const std::string name = d.name + ": ";
  check(*d.graph.adjacency);
  Id nodes = d.nodes();
  if (d.graph.adjacency->cols != nodes)
    fail(name + "the graph has " + std::to_string(nodes) + " rows and " + std::to_string(d.graph.adjacency->cols) +
         " columns");
  if (!d.graph.weights.empty() && static_cast<Offset>(d.graph.weights.size()) != d.graph.edges())
    fail(name + std::to_string(d.graph.weights.size()) + " weights for " + std::to_string(d.graph.edges()) + " edges");
  if (d.graph.channels < 0 || static_cast<Offset>(d.graph.features.size()) != d.graph.edges() * d.graph.channels)
    fail(name + std::to_string(d.graph.features.size()) + " edge features for " + std::to_string(d.graph.edges()) +
         " edges x " + std::to_string(d.graph.channels) + " channels");
  for (std::size_t e = 0; e < d.graph.weights.size(); ++e)
    if (!std::isfinite(d.graph.weights[e]))
      fail(name + "the weight of edge " + std::to_string(e) + " is " + std::to_string(d.graph.weights[e]));
  for (std::size_t x = 0; x < d.graph.features.size(); ++x)
    if (!std::isfinite(d.graph.features[x]))
      fail(name + "feature " + std::to_string(x % d.graph.channels) + " of edge " +
           std::to_string(x / d.graph.channels) + " is " + std::to_string(d.graph.features[x]));

  if (d.features.rows() != nodes)
    fail(name + "features of " + std::to_string(d.features.rows()) + " nodes, but the graph has " +
         std::to_string(nodes));
  auto check_feature = [&](Offset i, Offset c, float x) {
    if (!std::isfinite(x))
      fail(name + "feature " + std::to_string(c) + " of node " + std::to_string(i) + " is " + std::to_string(x));
  };
  if (d.features.sparse) {
    if (!d.features.sparse->by_row.list) fail(name + "the sparse features have no pattern");
    const Csr& pattern = d.features.sparse->pattern();
    check(pattern);
    if (pattern.rows != d.features.rows() || pattern.cols != d.features.cols())
      fail(name + "sparse features of " + std::to_string(d.features.rows()) + " x " +
           std::to_string(d.features.cols()) + " have a pattern of " + std::to_string(pattern.rows) + " x " +
           std::to_string(pattern.cols));
    if (static_cast<Offset>(d.features.sparse->values.size()) != pattern.edges())
      fail(name + std::to_string(d.features.sparse->values.size()) + " values for " + std::to_string(pattern.edges()) +
           " features");
    for (Id i = 0; i < pattern.rows; ++i)
      for (Offset e = pattern.offsets[i]; e < pattern.offsets[i + 1]; ++e)
        check_feature(i, pattern.ids[e], d.features.sparse->values[e]);
  } else {
    for (Offset i = 0; i < d.features.dense.rows(); ++i)
      for (Offset c = 0; c < d.features.dense.cols(); ++c) check_feature(i, c, d.features.dense(i, c));
  }

  if (static_cast<Offset>(d.labels.size()) != nodes)
    fail(name + std::to_string(d.labels.size()) + " labels for " + std::to_string(nodes) + " nodes");
  if (d.classes < 0 || d.classes > 1'000'000) fail(name + std::to_string(d.classes) + " classes; 0 to 1000000 can be");
  for (Id i = 0; i < nodes; ++i)
    if (d.labels[i] < -1 || d.labels[i] >= d.classes)
      fail(name + "node " + std::to_string(i) + " has the label " + std::to_string(d.labels[i]) + ", outside 0.." +
           std::to_string(d.classes - 1) + " (-1: unknown)");

  std::vector<const char*> owner(static_cast<std::size_t>(nodes), nullptr);
  for (std::size_t s = 0; s < d.splits.size(); ++s) {
    check_part(d, s, "train", d.splits[s].train, owner);
    check_part(d, s, "valid", d.splits[s].valid, owner);
    check_part(d, s, "test", d.splits[s].test, owner);
    for (const auto* part : {&d.splits[s].train, &d.splits[s].valid, &d.splits[s].test})
      for (Id i : *part) owner[i] = nullptr;
  }
}

Features normalise_rows(const Features& x) {
  auto normalise = [](float* row, Offset n) {
    double sum = 0;
    for (Offset c = 0; c < n; ++c) sum += std::abs(static_cast<double>(row[c]));
    if (sum == 0) return;
    for (Offset c = 0; c < n; ++c) row[c] = static_cast<float>(row[c] / sum);
  };
  Features out;
  if (x.sparse) {
    auto sparse = std::make_shared<Sparse>(*x.sparse);
    const Csr& pattern = sparse->pattern();
    for (Id i = 0; i < pattern.rows; ++i) normalise(sparse->values.data() + pattern.offsets[i], pattern.degree(i));
    out.sparse = std::move(sparse);
  } else {
    out.dense = x.dense;
    for (Offset i = 0; i < out.dense.rows(); ++i) normalise(out.dense.row(i), out.dense.cols());
  }
  return out;
}

}  // namespace heed
