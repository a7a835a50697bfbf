#include "datasets/formats.h"

#include "datasets/csv.h"
#include "datasets/folder.h"
#include "datasets/graphml.h"
#include "datasets/market.h"
#include "datasets/npz_datasets.h"
#include "datasets/ogb.h"
#include "datasets/planetoid.h"

namespace heed {
namespace fs = std::filesystem;

const std::vector<Format>& formats() {  // in the order in which they are tried: almost any text may be a table
  static const std::vector<Format> list{
      {"heed", "heed's own: a folder of .npy arrays and dataset.json", fits_folder, read_folder, write_folder},
      {"graphml", "GraphML, in one .graphml", fits_graphml, read_graphml, write_graphml, true},
      {"matrix-market", "Matrix Market: graph.mtx, features.mtx, labels.mtx, splits.mtx", fits_market, read_market,
       write_market},
      {"ogb", "Open Graph Benchmark: raw/edge.csv.gz and so on", fits_ogb, read_ogb},
      {"planetoid", "Planetoid: ind.<name>.x and so on, pickles", fits_planetoid, read_planetoid},
      {"gnn-benchmark", "gnn-benchmark: an .npz with adj_* and attr_*", fits_gnn_benchmark, read_gnn_benchmark},
      {"heterophilous", "heterophilous graphs: an .npz with node_features, edges and masks", fits_heterophilous,
       read_heterophilous},
      {"csv", "a folder of tables: edges, features (or .json), labels, splits", fits_csv, read_csv, write_csv},
  };
  return list;
}

const Format& format_named(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& format : formats()) {
    if (name == format.name) return format;
    names.emplace_back(format.name);
  }
  unknown("format", name, names);
}

std::vector<std::string> writable_formats() {
  std::vector<std::string> out;
  for (const auto& format : formats())
    if (format.write) out.emplace_back(format.name);
  return out;
}

Dataset read_dataset(const Files& files) {
  const std::string where = files.chosen().empty() ? files.folder() : files.place(files.chosen());
  for (const auto& format : formats()) {
    if (!format.fits(files)) continue;
    Dataset out = format.read(files);
    if (out.nodes() == 0) fail(where + ": the graph is empty");
    check(out);
    return out;
  }
  std::string names;
  for (const auto& format : formats()) names += (names.empty() ? "" : ", ") + std::string(format.name);
  fail(where + ": holds no dataset of a known format (" + names + ")");
}

void write_dataset(const Dataset& d, const fs::path& path, const std::string& name) {
  const Format& format = format_named(name);
  if (!format.write) unknown("format that can be written", name, writable_formats());
  check(d);
  if (d.nodes() == 0) fail(d.name + ": an empty graph is not written");
  if (!d.graph.times.empty() && format.write != write_folder)
    fail(d.name + ": its nodes have times, which the format '" + name + "' cannot hold; 'heed' can");
  if (!format.one_file) {
    NewFolder folder(path);
    format.write(d, folder.path());
    folder.commit();
    return;
  }
  std::error_code error;
  if (fs::exists(fs::symlink_status(path, error))) fail("cannot write " + path.string() + ": it is there already");
  format.write(d, path);
}

}  // namespace heed
