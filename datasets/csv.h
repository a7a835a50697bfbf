// A folder of tables: an edge list, and features, labels and splits if there are any. Commas, tabs or blanks; see
// datasets/text.h for what a table is.
//
//   edges      "from,to" and then "weight" and features of the edges under any names. With this very header the graph
//              is directed and taken as it stands, loops included; with another one, or none (then a third column is
//              the weight), each edge is listed once or more, in either direction: it runs both ways, loops are
//              dropped.
//   features   "node,channel,value": the entries that are not zero, repeated ones summed. Or "node,<name>,<name>,...":
//              a row for each node. Or rows of numbers without a header, in the order of the nodes. Or, as .json,
//              {"node": [channels]}, a set of ones for each node. None: every node is its own channel.
//   labels     "node,label" (or target, class; the last column): a line for each node, which says how many nodes there
//              are. -1 or nothing: unknown. One column: in the order of the nodes.
//   splits     "split,node,part", part: train, valid or test
//
// Comments may claim what no line says: "# Nodes: 34", "# Classes: 7", "# Channels: 1433"; and, in a list of edges
// with a header, "# Edges: 78", so that one that was cut is refused.
#pragma once

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

struct Tables {  // names of files; empty: there is none
  std::string edges, features, labels, splits;
};

// By their names: edges, features, labels (or target) and splits, with anything before and .csv, .tsv, .txt or .json
// after. Edges may also lie in the text file whose name that of the labels begins with.
Tables find_tables(const Files& files);

Dataset csv(const Files& files, const Tables& tables);
bool fits_csv(const Files& files);
Dataset read_csv(const Files& files);

// Everything but the name: edges.csv, features.csv, labels.csv, splits.csv.
void write_csv(const Dataset& d, const std::filesystem::path& folder);

}  // namespace heed
