// Every format of datasets: what is written is read back, what is damaged or hostile is refused with its place, and
// the public files hold what they are known to hold. Splits, and the numbers that `heed info` shows.
#include "datasets/formats.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

#include "datasets/statistics.h"
#include "graph/components.h"
#include "tests/fuzz/readers.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "train/memory.h"

#pragma GCC diagnostic ignored "-Wrestrict"  // GCC 12 warns of "literal" + string for no reason (its bug 105651)

using namespace heed;
using namespace heed::test;
namespace fs = std::filesystem;

namespace {

using FileMap = std::map<std::string, std::string>;
Dataset read(const char* format, const FileMap& files, const std::string& chosen = "") {
  Dataset d = format_named(format).read(Files("here", files, chosen));
  check(d);
  return d;
}
std::string why(const char* format, const FileMap& files, const std::string& chosen = "") {
  const std::string by_contents = message([&] { read_dataset(Files("here", files, chosen)); });
  return by_contents != "" ? by_contents : message([&] { read(format, files, chosen); });
}

void check_equal(const Dataset& a, const Dataset& b) {
  CHECK(*a.graph.adjacency == *b.graph.adjacency);
  CHECK(a.graph.weights == b.graph.weights);
  CHECK(a.graph.channels == b.graph.channels);
  CHECK(a.graph.features == b.graph.features);
  CHECK(a.features.dense == b.features.dense);
  REQUIRE((a.features.sparse == nullptr) == (b.features.sparse == nullptr));
  if (a.features.sparse) {
    CHECK(a.features.sparse->pattern() == b.features.sparse->pattern());
    CHECK(a.features.sparse->values == b.features.sparse->values);
  }
  CHECK(a.labels == b.labels);
  CHECK(a.classes == b.classes);
  REQUIRE(a.splits.size() == b.splits.size());
  for (std::size_t s = 0; s < a.splits.size(); ++s) {
    CHECK(a.splits[s].train == b.splits[s].train);
    CHECK(a.splits[s].valid == b.splits[s].valid);
    CHECK(a.splits[s].test == b.splits[s].test);
  }
}

Dataset labelled(std::vector<Id> labels, Id classes) {  // without edges
  Dataset d{.name = "labelled", .labels = std::move(labels), .classes = classes, .splits = {}};
  d.graph = graph_from_edges(static_cast<Id>(d.labels.size()), {});
  d.features = identity_features(d.nodes());
  return d;
}

std::vector<Id> all_of(const Split& s) {
  std::vector<Id> out = s.train;
  out.insert(out.end(), s.valid.begin(), s.valid.end());
  out.insert(out.end(), s.test.begin(), s.test.end());
  std::ranges::sort(out);
  return out;
}

}  // namespace

TEST_SUITE("datasets") {
  TEST_CASE("a random dataset written and read back is equal, in every format that is written") {
    for (const auto& format : formats()) {
      if (!format.write) continue;
      CAPTURE(format.name);
      for (int round = 0; round < 25; ++round) {
        const std::uint64_t seed = fresh_seed();
        CAPTURE(seed);
        Random random(seed);
        const Dataset d = random_dataset(random);
        Scratch scratch;
        const fs::path to = scratch.path / (format.one_file ? "random.graphml" : "random");
        write_dataset(d, to, format.name);
        CHECK(std::distance(fs::directory_iterator(scratch.path), fs::directory_iterator()) == 1);
        const Dataset back = load(to.string());
        CHECK(back.name == "random");
        check_equal(d, back);
      }
    }
  }

  TEST_CASE("what a format cannot hold is refused, and nothing is left behind") {
    Scratch scratch;
    auto refused = [&](const Dataset& d, const char* format, const char* because) {
      const std::string text = message([&] { write_dataset(d, scratch.path / "out", format); });
      CHECK_MESSAGE(has(text, because), text);
      CHECK(fs::is_empty(scratch.path));
    };
    Dataset d = labelled({0, 1}, 2);
    d.splits.resize(1);
    refused(d, "csv", "a split without nodes, which split 0 is");
    d.splits.clear();
    d.features = {.dense = Matrix<float>(2, 0), .sparse = nullptr};
    refused(d, "graphml", "no features");
    d.features = {.dense = Matrix<float>(2, 6), .sparse = nullptr};
    d.features.dense(0, 0) = 1;
    refused(d, "graphml", "fewer than a tenth");
    d.labels[0] = 7;
    for (const auto& format : writable_formats()) refused(d, format.c_str(), "label 7");
    refused(labelled({}, 0), "heed", "empty graph");
    Dataset timed = labelled({0, 1}, 2);
    timed.graph.times = {0.5, -2};
    for (const auto& format : writable_formats())
      if (format != "heed") refused(timed, format.c_str(), "its nodes have times");
    write_dataset(timed, scratch.path / "timed", "heed");
    CHECK(load((scratch.path / "timed").string()).graph.times == timed.graph.times);
    fs::remove_all(scratch.path / "timed");
    refused(labelled({0}, 1), "ogb", "unknown format that can be written 'ogb'");
    refused(labelled({0}, 1), "hede", "unknown format 'hede'; did you mean heed?");

    write_dataset(labelled({0}, 1), scratch.path / "out", "heed");
    CHECK(has(message([&] { write_dataset(labelled({0}, 1), scratch.path / "out", "heed"); }), "is there already"));
    CHECK(has(message([&] { write_dataset(labelled({0}, 1), scratch.path / "a" / "b", "heed"); }), "cannot write"));
    fs::create_directory(scratch.path / "empty");
    write_dataset(labelled({0}, 1), scratch.path / "empty", "csv");
    CHECK(load((scratch.path / "empty").string()).nodes() == 1);
  }

  TEST_CASE("a folder whose writing was cut short is not a dataset") {
    Random random(1);
    FileMap whole = written(random_dataset(random), "heed");
    for (const auto& [name, bytes] : whole) {
      CAPTURE(name);
      FileMap part = whole;
      part.erase(name);
      if (name == "splits.npy" || name == "weights.npy" || name == "edge_features.npy") continue;  // may be left out
      CHECK(why("heed", part) != "");
      part[name] = bytes.substr(0, bytes.size() / 2);
      CHECK(has(why("heed", part), name));
    }
    const std::string key = "\"edges\": ";
    REQUIRE(has(whole["dataset.json"], key));
    whole["dataset.json"].insert(whole["dataset.json"].find(key) + key.size(), "1");
    CHECK(has(why("heed", whole), "edges; the arrays hold"));
  }

  TEST_CASE("tables: edge lists, features, labels and what is wrong with them") {
    const FileMap good{{"edges.csv", "0,1\n1,2\n"}, {"labels.csv", "0,1\n1,0\n2,0\n"}};
    auto with = [&](const char* name, const std::string& text) {
      FileMap files = good;
      files[name] = text;
      return files;
    };
    Dataset d = read("csv", good);
    CHECK(d.graph.edges() == 4);
    CHECK(d.labels == std::vector<Id>{1, 0, 0});
    CHECK(d.features.sparse->pattern() == identity(3));

    // Ends of lines, byte-order mark, quotes, comments, blanks, tabs, a loop, a repeat.
    d = read("csv",
             with("edges.csv", "\xef\xbb\xbf# Nodes: 3 Edges: 4\r\r\n\r\r\n\"0\"\t1\r\r\n1\t0\r\r\n2\t2\r\n1\t2"));
    CHECK(d.graph.edges() == 4);
    CHECK(read("csv", with("edges.csv", "0  1\n 1 2\n")).graph.edges() == 4);
    CHECK(read("csv", with("edges.csv.gz", gzip("0,1\n"))).graph.edges() == 4);  // the plain file comes first
    FileMap packed = good;
    packed.erase("edges.csv");
    packed["edges.csv.gz"] = gzip("0,1\n");
    CHECK(read("csv", packed).graph.edges() == 2);

    d = read("csv", with("edges.csv", "from,to,weight,length,width\n0,1,0.5,1,2\n2,2,1,3,4\n"));
    CHECK(d.graph.edges() == 2);
    CHECK(d.graph.adjacency->contains(1, 0));
    CHECK(d.graph.adjacency->contains(2, 2));
    CHECK(d.graph.weights == std::vector<float>{0.5, 1});
    CHECK(d.graph.features == std::vector<float>{1, 2, 3, 4});
    CHECK(read("csv", with("edges.csv", "0,1,2.5\n")).graph.weights == std::vector<float>{2.5, 2.5});

    d = read("csv", with("features.csv", "node,a,b\n2,5,6\n0,1,2\n1,3,4\n"));
    CHECK(d.features.dense(2, 1) == 6);
    CHECK(d.features.dense(0, 0) == 1);
    CHECK(read("csv", with("features.tsv", "1\t2\n3\t4\n5\t6\n")).features.dense(2, 0) == 5);
    d = read("csv", with("x_features.json", "{\"2\": [3, 1, 3], \"0\": []}"));
    CHECK(d.features.sparse->pattern().ids == std::vector<Id>{1, 3});
    CHECK(d.features.sparse->values == std::vector<float>{1, 1});  // a set
    CHECK(d.channels() == 4);

    auto bad = [&](const char* name, const std::string& text, const std::string& because) {
      CAPTURE(text);
      const std::string said = why("csv", with(name, text));
      CHECK_MESSAGE(has(said, because), said);
      CHECK(has(said, "here/"));
      CHECK(std::ranges::count(said, '\n') == 0);
    };
    bad("edges.csv", "0,1\n1,x\n", "edges.csv, line 2, column 2: 'x' is not a node");
    bad("edges.csv", "0,1\n\n1,3\n",
        "edges.csv, line 3, column 2: '3' is not a node that has a line of labels: it is outside 0..2");
    bad("edges.csv", "0,1\n-1,2\n",
        "line 2, column 1: '-1' is not a node that has a line of labels: it is outside 0..2");
    bad("edges.csv", "0,99999999999999999999\n", "line 1, column 2");
    bad("edges.csv", "0,1\n1,2,3\n", "line 2: 3 fields, but the first line has 2");
    bad("edges.csv", "0,1\r1,2\r", "line 1: lines end in LF or CR LF, not in CR alone");
    bad("edges.csv", "", "edges.csv: is empty");
    bad("edges.csv", "# Edges: 3\nfrom,to\n0,1\n1,2\n", "edges.csv: ends after 2 of 3 edges");
    bad("edges.csv", "0\n", "line 1: an edge is two nodes");
    bad("edges.csv", "0,1,nan\n", "line 1, column 3: 'nan' is not a weight");
    bad("edges.csv", "0,1,1e39\n", "line 1, column 3: '1e39' is not a weight");
    bad("edges.csv", "0,1,1,1\n", "need a header");
    bad("edges.csv", std::string("0,1\n\xff\xfe\x00 1,2\n", 12), "line 2");
    bad("labels.csv", "0,1\n1,0\n1,0\n", "labels.csv, line 3: node 1 has a label already");
    bad("labels.csv", "0,1\n1,0\n3,0\n", "line 3: node 3 is outside 0..2; every node has a line");
    bad("labels.csv", "0,1\n1,0\n2,3\n", "line 3: node 2 has the label 3, outside 0..2");
    bad("labels.csv", "# Classes: 2\n0,1\n1,0\n2,2\n", "line 4: node 2 has the label 2, outside 0..1");
    bad("labels.csv", "0,1\n1,-2\n2,0\n", "line 2, column 2: '-2' is not a label");
    bad("labels.csv", "# Nodes: 1000000000\n0,1\n", "1000000000 nodes are too many for 1 entries");
    bad("features.csv", "1,2\n3,4\n", "features of 2 nodes, but the graph has 3");
    bad("features.csv", "1,2\n3\n5,6\n", "features.csv, line 2: 1 fields");
    bad("features.csv", "1,2\n3,inf\n5,6\n", "line 2, column 2: 'inf' is not a feature");
    for (const char* number : {"nan", "-inf", "1e400"})
      bad("features.csv", number + std::string(",2\n3,4\n5,6\n"), "line 1, column 1: '");
    bad("features.csv", "node,a\n0,1\n1,1\n1,1\n", "row 2 is of node 1, which has a row already");
    bad("features.csv", "node,channel,value\n0,2000000000,1\n", "2000000001 channels are too many for 1 entries");
    bad("features.csv", "# Channels: 2\nnode,channel,value\n0,2,1\n", "channel 2 of 2");
    bad("x_features.json", "{\"0\": [1, -1]}", "x_features.json, node 0: -1 stands");
    bad("x_features.json", "{\"3\": [1]}", "features of 4 nodes");
    bad("x_features.json", "{\"a\": [1]}", "the key 'a' is not a node");
    bad("x_features.json", "{\"0\": [[1]]}", "node 0: an array stands");
    bad("x_features.json", "{\"0\": [1", "x_features.json, byte");
    bad("x_features.json", "[[[[", "an array stands");
    bad("x_features.json", "{\"0\": [4000000000]}", "node 0: 4000000000 stands");
    bad("splits.csv", "split,node,part\n0,1,train\n0,1,test\n", "split 0: test, entry 0: node 1 is in train already");
    bad("splits.csv", "split,node,part\n0,1,train\n0,1,train\n", "train, entry 1: node 1 is in train already");
    bad("splits.csv", "split,node,part\n0,1,tain\n", "line 2, column 3: 'tain' is none of train, valid and test");
    bad("splits.csv", "split,node,part\n1,1,train\n", "line 2, column 1: '1' leaves out a split");
    bad("splits.csv", "split,node,part\n0,3,train\n", "line 2, column 2: '3' is not a node");
    CHECK(has(why("csv", {{"edges.csv", "0,2000000000\n"}}), "2000000001 nodes are too many for 1 entries"));
    CHECK(has(why("csv", {{"edges.csv", "from,to\n"}}), "the graph is empty"));
    CHECK(has(why("csv", {{"a_edges.csv", "0,1"}, {"b_edges.csv", "0,1"}}), "may both be meant"));
    CHECK(has(why("csv", with("labels.csv", "")), "labels.csv: holds no line with a node's label"));
    CHECK(has(why("csv", {{"readme.md", "hello"}}), "no dataset of a known format"));
  }

  TEST_CASE("GraphML: what others write is read, and what is wrong is named") {
    auto page = [](const std::string& keys, const std::string& graph) {
      return FileMap{{"a.graphml", "<?xml version='1.0'?>\n<graphml>" + keys + "<graph edgedefault='undirected'>" +
                                       graph + "</graph></graphml>"}};
    };
    const std::string keys =
        "<key id='l' for='node' attr.name='label'/><key id='x' for='node' attr.name='x0'/>"
        "<key id='s' for='node' attr.name='split'/><key id='w' for='edge' attr.name='weight'/>"
        "<key id='c' for='graph' attr.name='classes'/><key id='n' for='node' attr.name='name'/>";
    const std::string nodes =
        "<node id='b'><data key='l'>1</data><data key='x'> 2.5 </data><data key='s'>train</data></node>"
        "<node id='a'><data key='n'>&lt;A&#65;</data></node>";
    Dataset d = read("graphml", page(keys, nodes + "<edge source='a' target='b'><data key='w'>3</data></edge>"));
    CHECK(d.nodes() == 2);
    CHECK(d.labels == std::vector<Id>{1, -1});
    CHECK(d.features.dense(0, 0) == 2.5f);
    CHECK(d.graph.edges() == 2);
    CHECK(d.graph.weights == std::vector<float>{3, 3});
    CHECK(d.splits[0].train == std::vector<Id>{0});
    CHECK(read("graphml", page("", "<node id='1'/><node id='2'/><edge source='1' target='2' directed='true'/>"))
              .graph.edges() == 1);
    // A file that is named is that one, packed or not, whatever its name ends in and lies beside it.
    Scratch folder;
    const std::string whole = page(keys, nodes).at("a.graphml");
    folder.write("g.graphml.gz", gzip(whole)), folder.write("g.graphml", "junk"), folder.write("g", whole);
    CHECK(read_dataset(Files(folder.path / "g.graphml.gz")).nodes() == 2);
    CHECK(read_dataset(Files(folder.path / "g")).nodes() == 2);
    auto bad = [&](const std::string& graph, const std::string& because) {
      const std::string said = why("graphml", page(keys, graph));
      CHECK_MESSAGE((has(said, because) && has(said, "here")), said);
    };
    bad("<node id='a'/><node id='a'/>", "the node 'a' is there twice");
    bad("<node/>", "without an id");
    bad("<node id='a'/><edge source='a' target='z'/>", "the target 'z' of an edge is no node");
    bad("<node id='a'><data key='q'>1</data></node>", "the key 'q' is not declared");
    bad("<node id='a'><data key='l'>x</data></node>", "the label 'x' is not a class");
    bad("<node id='a'><data key='l'>1</data></node>", "node 0 has the label 1, but there are only 1 nodes");
    bad("<data key='c'>1</data><node id='a'><data key='l'>1</data></node>", "but there are 1 classes");
    bad("<node id='a'><data key='x'>nan</data></node>", "x0 is 'nan', not a finite number");
    bad("<node id='a'><data key='x'>1</data><data key='x'>1</data></node>", "feature 0 of node 0 is there twice");
    bad("<node id='a'><data key='s'>maybe</data></node>", "'maybe' is none of");
    bad("<node id='a'><data key='s'>train</data><data key='s'>test</data></node>", "is in train already");
    bad("", "the graph is empty");
    bad("<node id='a'>", "byte ");
    auto refused = [&](const FileMap& files, const char* because) {
      CHECK_MESSAGE(has(why("graphml", files), because), why("graphml", files));
    };
    refused(page(keys + "<key id='l2' for='node' attr.name='label'/>", nodes), "a second key of a node's 'label'");
    refused({{"a.graphml", "<graphml><graph edgedefault='both'><node id='a'/></graph></graphml>"}},
            "edgedefault is 'both', neither directed nor undirected");
    // Entities are not expanded, and nothing outside is opened.
    const FileMap bomb{
        {"a.graphml",
         "<!DOCTYPE g [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'><!ENTITY e SYSTEM '/etc/passwd'>]>"
         "<graphml><key id='l' for='node' attr.name='label'/><graph><node id='x'><data key='l'>&e;</data>"
         "</node></graph></graphml>"}};
    CHECK(has(why("graphml", bomb), "the label '&e;' is not a class"));
    // Depth costs no stack.
    std::string deep;
    for (int i = 0; i < 200000; ++i) deep += "<a>";
    CHECK(has(why("graphml", {{"a.graphml", "<graphml>" + deep}}), "byte"));
    std::string closed = deep;
    for (int i = 0; i < 200000; ++i) closed += "</a>";
    CHECK(has(why("graphml", {{"a.graphml", "<graphml>" + closed + "</graphml>"}}), "with a <graph> in it"));
  }

  TEST_CASE("GraphML: elements without data have the defaults of the keys") {
    Scratch files;
    auto read = [&](const std::string& keys, const std::string& graph) {
      return load(files
                      .write("g.graphml",
                             "<graphml>" + keys + "<graph edgedefault=\"directed\">" + graph + "</graph></graphml>")
                      .string());
    };
    auto key = [](const char* id, const char* of, const char* name, const char* otherwise) {
      return std::string("<key id=\"") + id + "\" for=\"" + of + "\" attr.name=\"" + name + "\"><default>" + otherwise +
             "</default></key>";
    };
    const std::string nodes = "<node id=\"a\"/><node id=\"b\"><data key=\"f\">1</data><data key=\"l\">0</data></node>";
    const Dataset d = read(key("f", "node", "feature0", "3") + key("l", "node", "label", "1") +
                               key("s", "node", "split", "train") + key("w", "edge", "weight", "5") +
                               key("e", "edge", "feature0", "0.5") + key("c", "graph", "classes", "4"),
                           nodes +
                               "<edge source=\"a\" target=\"b\"/><edge source=\"b\" target=\"a\"><data "
                               "key=\"w\">2</data><data key=\"e\">7</data></edge>");
    CHECK(d.graph.weights == std::vector<float>{2, 5});  // of the rows of a and b
    CHECK(d.graph.features == std::vector<float>{7, 0.5});
    CHECK(d.labels == std::vector<Id>{1, 0});
    CHECK(d.classes == 4);
    CHECK(d.features.dense(0, 0) == 3);
    CHECK(d.features.dense(1, 0) == 1);
    REQUIRE(d.splits.size() == 1);
    CHECK(d.splits[0].train == std::vector<Id>{0, 1});
    auto wrong = [&](const std::string& keys, const std::string& graph) { return message([&] { read(keys, graph); }); };
    CHECK(has(wrong(key("w", "edge", "weight", "x"), "<node id=\"a\"/><edge source=\"a\" target=\"a\"/>"),
              "weight is 'x', not a finite number"));
    CHECK(has(wrong("", "<node id=\"a\"/><hyperedge/>"), "a hyperedge; edges join two nodes"));
    CHECK(has(wrong("", "<node id=\"a\"><graph/></node>"), "a graph within a node"));
  }

  TEST_CASE("what is no table is not taken for one that has a header and no lines") {
    Scratch files;
    files.write("labels.csv", "0,0\n1,1\n2,0\n");
    auto edges = [&](const std::string& text) {
      files.write("edges.csv", text);
      return message([&] { load(files.path.string()); });
    };
    CHECK(has(edges("<html>404 not found</html>"), "line 1"));
    CHECK(has(edges("\x89PNG binary \x01\x02"), "line 1"));
    CHECK(has(edges("+0,1\n1,2\n"), "line 1, column 1: '+0' is not"));
    CHECK(has(edges("0;1"), "line 1"));
    CHECK(has(edges("source\n"), "an edge is two nodes"));
    CHECK(edges("from,to\n") == "");
    CHECK(edges("von knoten,nach\n0,1\n") == "");
    files.write("labels.csv", "NA\n0\n1\n");
    CHECK(has(edges("0,1\n"), "line 1: a label is a whole number; one that is not known is -1, or nothing"));
    files.write("labels.csv", "?\n0\n1\n");
    CHECK(has(edges("0,1\n"), "line 1, column 1: '?' is not a label"));
  }

  TEST_CASE("Matrix Market: kinds, symmetry, and what is wrong is named") {
    auto graph = [](const std::string& text) { return FileMap{{"graph.mtx", text}}; };
    const std::string head = "%%MatrixMarket matrix coordinate ";
    Dataset d = read("matrix-market", graph("\xef\xbb\xbf" + head + "integer symmetric\n% x\n3 3 2\n2 1 5\n3 3 1\n"));
    CHECK(d.graph.edges() == 3);
    CHECK(d.graph.weights == std::vector<float>{5, 5, 1});
    d = read("matrix-market", graph(head + "pattern general\n3 3 1\n2 1\n"));
    CHECK(d.graph.adjacency->contains(1, 0));
    CHECK(d.graph.weights.empty());
    CHECK(read("matrix-market", graph(head + "real general\n2 2 2\n1 2 0.5\n1 2 0.25\n")).graph.weights ==
          std::vector<float>{0.75});
    auto bad = [&](const FileMap& files, const std::string& because) {
      const std::string said = why("matrix-market", files);
      CHECK_MESSAGE((has(said, because) && has(said, "here")), said);
    };
    bad(graph(head + "real hermitian\n1 1 0\n"), "line 1: 'hermitian' is not read");
    bad(graph(head + "complex general\n1 1 0\n"), "'complex' are not read");
    bad(graph("%%MatrixMarket vector\n"), "line 1: expected");
    bad(graph(head + "real general\n2 2\n"), "line 2: expected rows, columns");
    bad(graph(head + "real general\n2 2 1152921504606846976\n"), "line 2: claims 1152921504606846976 entries");
    bad(graph(head + "pattern general\n2000000000 2000000000 1\n1 1\n"), "2000000000 nodes are too many");
    bad(graph(head + "pattern general\n2 3 0\n"), "a graph of 2 x 3 nodes");
    bad(graph(head + "pattern general\n2 2 2\n1 1\n"), "ends after 1 of 2 entries");
    bad(graph(head + "pattern general\n2 2 1\n1 1\n1 2\n"), "line 4: there are more entries");
    bad(graph(head + "pattern general\n2 2 1\n1 3\n"), "line 3, column 2: '3' is not a column: it is outside 1..2");
    bad(graph(head + "pattern general\n2 2 1\n0 1\n"), "line 3, column 1: '0' is not a row");
    bad(graph(head + "real general\n2 2 1\n1 1\n"), "line 3: 2 fields, but an entry has 3");
    bad(graph(head + "real general\n2 2 1\n1 1 nan\n"), "'nan' is not an element");
    bad(graph(head + "real general\n0 0 0\n"), "the graph is empty");
    FileMap files = graph(head + "pattern general\n2 2 1\n1 2\n");
    files["labels.mtx"] = "%%MatrixMarket matrix array integer general\n2 1\n0\n0.5\n";
    bad(files, "labels.mtx: row 2, column 1 is 0.500000, not a whole number");
    files["labels.mtx"] = "%%MatrixMarket matrix array integer general\n3 1\n0\n0\n0\n";
    bad(files, "labels.mtx: 3 rows, but there are 2 nodes");
    files["labels.mtx"] = "%%MatrixMarket matrix array integer general\n% Classes: 1\n2 1\n0\n1\n";
    bad(files, "labels.mtx: node 1 has the label 1, but there are 1 classes");
    files["labels.mtx"] = "%%MatrixMarket matrix array integer general\n2000000000 2000000000\n0\n";
    bad(files, "labels.mtx, line 2: claims 4000000000000000000 entries");
  }

  TEST_CASE("the Open Graph Benchmark's layout") {
    const FileMap good{{"raw/edge.csv.gz", gzip("0,1\n1,1\n1,2\n")},
                       {"raw/num-node-list.csv.gz", gzip("3\n")},
                       {"raw/num-edge-list.csv.gz", gzip("3\n")},
                       {"raw/node-feat.csv.gz", gzip("1,0.5\n0,-1\n2e3,1\n")},
                       {"raw/edge-feat.csv.gz", gzip("1\n2\n3\n")},
                       {"raw/node-label.csv.gz", gzip("0\nnan\n1\n")},
                       {"raw/node_year.csv.gz", gzip("2001\n2002\n2003\n")},
                       {"split/time/train.csv.gz", gzip("2\n")},
                       {"split/time/valid.csv.gz", gzip("0\n")},
                       {"split/time/test.csv.gz", gzip("")}};
    Scratch scratch;
    for (const auto& [name, bytes] : good) {
      fs::create_directories((scratch.path / name).parent_path());
      write_file(scratch.path / name, bytes);
    }
    for (const Dataset& d : {read("ogb", good), load(scratch.path.string())}) {
      CHECK(d.graph.edges() == 4);
      CHECK(d.graph.features == std::vector<float>{1, 1, 3, 3});
      CHECK(d.features.dense(2, 0) == 2000);
      CHECK(d.labels == std::vector<Id>{0, -1, 1});
      CHECK(d.classes == 2);
      REQUIRE(d.splits.size() == 1);
      CHECK(d.splits[0].train == std::vector<Id>{2});
      CHECK(d.splits[0].valid == std::vector<Id>{0});
    }
    auto bad = [&](const std::string& name, const std::string& bytes, const std::string& because) {
      FileMap files = good;
      files[name] = bytes;
      const std::string said = why("ogb", files);
      CHECK_MESSAGE((has(said, because) && has(said, "here/" + name)), said);
    };
    bad("raw/edge.csv.gz", gzip("0,1\n1,3\n"), "line 2, column 2: '3' is not a node");
    bad("raw/edge.csv.gz", gzip("0,1\n").substr(0, 15), "ends before its packed data does");
    bad("raw/edge.csv.gz", gzip("0,1\n") + "more", "is not a whole .gz");
    bad("raw/edge.csv.gz", "PK", "is not a whole .gz");
    bad("raw/edge.csv.gz", "", "ends before");
    bad("raw/num-node-list.csv.gz", gzip("4\n"), "4 nodes, but");
    bad("raw/num-edge-list.csv.gz", gzip("1152921504606846976\n"), "is not a count");
    bad("raw/node-feat.csv.gz", gzip("1,2\n3,4\n"), "2 rows, but there are 3 nodes");
    bad("raw/node-feat.csv.gz", gzip("1,2\n3,nan\n5,6\n"), "line 2, column 2: 'nan' is not a feature");
    FileMap unknown = good;
    unknown["raw/node-label.csv.gz"] = gzip("nan\n0\n1\n");
    unknown["split/time/valid.csv.gz"] = gzip("1\n");
    CHECK(read("ogb", unknown).labels == std::vector<Id>{-1, 0, 1});
    bad("raw/node-label.csv.gz", gzip("0,1\n0,1\n1,1\n"), "line 1: 2 labels");
    bad("raw/node-label.csv.gz", gzip("0\n0\n5\n"), "node 2 has the label 5");
    std::string wrong = gzip("0,1\n1,1\n1,2\n");
    wrong[wrong.size() - 6] ^= 1;  // of the checksum
    bad("raw/edge.csv.gz", wrong, "is not a whole .gz");
    // A bomb: deflate packs 128 MiB of one byte 1030 times smaller, which nothing that is data does.
    bad("raw/edge.csv.gz", gzip(std::string(std::size_t{128} << 20, '0')), "unpacks");
    FileMap files = good;
    files["split/time/test.csv.gz"] = gzip("1\n2\n");
    CHECK(has(why("ogb", files), "test, entry 1: node 2 is in train already"));
  }

  TEST_CASE("npz datasets: what is wrong is named") {
    auto reader = [](const std::string& name) -> const Reader& {
      return *std::ranges::find_if(readers(), [&](const Reader& r) { return r.name == name; });
    };
    for (const char* name : {"gnn-benchmark", "heterophilous"}) {
      CAPTURE(name);
      const std::string good = reader(name).seeds()[0];
      CHECK(why(name, {{"a.npz", good}}, "a.npz") == "");
      for (std::size_t cut = 0; cut < good.size(); cut += 7)
        CHECK(has(why(name, {{"a.npz", good.substr(0, cut)}}, "a.npz"), "here/a.npz"));
    }
    auto mask = [](const char* bits) { return npy("|b1", "(1, 2)", std::string(bits, 2)); };
    using F = std::vector<float>;
    using L = std::vector<std::int64_t>;
    auto hetero = [&](const std::string& name, const std::string& array) {
      FileMap arrays{{"node_features", npy("<f4", "(2, 2)", raw(F{1, 0, 2, 3}))},
                     {"node_labels", npy("<i8", "(2,)", raw(L{0, 1}))},
                     {"edges", npy("<i8", "(1, 2)", raw(L{0, 1}))},
                     {"train_masks", mask("\1\0")},
                     {"val_masks", mask("\0\1")},
                     {"test_masks", mask("\0\0")}};
      arrays[name] = array;
      std::vector<Packed> entries;
      for (const auto& [entry, bytes] : arrays) entries.push_back({.name = entry + ".npy", .bytes = bytes});
      return why("heterophilous", {{"a.npz", zip(entries)}}, "a.npz");
    };
    CHECK(hetero("node_labels", npy("<i8", "(2,)", raw(L{0, 1}))) == "");
    CHECK(has(hetero("edges", npy("<i8", "(1, 2)", raw(L{0, 2}))), "a.npz: edges.npy: row 0 names node 2"));
    CHECK(has(hetero("edges", npy("<i8", "(1, 2)", raw(L{-1, 0}))), "row 0 names node -1"));
    CHECK(has(hetero("edges", npy("<i8", "(2,)", raw(L{1, 0}))), "an edge is a row of two nodes"));
    CHECK(has(hetero("edges", npy("|O", "(1, 2)", "x")), "edges.npy: holds Python objects"));
    CHECK(has(hetero("node_labels", npy("<i8", "(2,)", raw(L{0, 2}))), "node_labels.npy: node 1 has the label 2"));
    CHECK(has(hetero("node_features", npy("<f4", "(2, 2)", raw(F{1, 0, 2, NAN}))), "row 1, column 1 is nan"));
    CHECK(has(hetero("node_features", npy("<f4", "(1, 4)", raw(F{1, 0, 2, 1}))), "2 rows to fill"));
    CHECK(has(hetero("node_features", npy("<f4", "(1152921504606846976, 4)", "x")), "more bytes than can be counted"));
    CHECK(has(hetero("val_masks", mask("\1\0")), "split 0: valid, entry 0: node 0 is in train already"));
    CHECK(has(hetero("val_masks", npy("|b1", "(1, 3)", "\0\0\0")), "val_masks.npy: "));
    CHECK(has(hetero("node_labels", npy("<i8", "(0,)", "")), "a.npz"));
  }

  TEST_CASE("every reader reads its starting bytes, and refuses them damaged or reads them") {
    for (const Reader& reader : readers()) {
      CAPTURE(reader.name);
      const std::uint64_t seed = fresh_seed();
      CAPTURE(seed);
      Random random(seed);
      int refused = 0, all = 0;
      for (const std::string& good : reader.seeds()) {
        const std::string said = message([&] { reader.read(good); });
        CHECK_MESSAGE(said == "", said);
        for (int round = 0; round < 200; ++round, ++all) {  // anything but an Error ends the test
          std::string bad = good;
          if (round % 4 == 0 && !bad.empty()) bad.resize(random.below(bad.size()));
          for (std::uint64_t flips = random.below(4); flips > 0 && !bad.empty(); --flips)
            bad[random.below(bad.size())] = static_cast<char>(random.next());
          refused += message([&] { reader.read(bad); }) != "";
        }
      }
      MESSAGE(reader.name << ", seed " << seed << ": " << refused << " of " << all << " damaged inputs refused");
    }
    const fs::path corpus = fs::path(HEED_SOURCE) / "tests" / "fuzz" / "corpus";
    int files = 0;
    for (const Reader& reader : readers()) {
      if (!fs::exists(corpus / reader.name)) continue;
      for (const auto& entry : fs::directory_iterator(corpus / reader.name)) {
        CAPTURE(entry.path().string());
        const auto begin = std::chrono::steady_clock::now();
        message([&] { reader.read(read_file(entry.path())); });
        CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
        ++files;
      }
    }
    MESSAGE(files << " inputs that the fuzzer made are read or refused");
  }

  TEST_CASE("splits are drawn as asked, by the seed alone") {
    std::vector<Id> labels;
    for (Id i = 0; i < 200; ++i) labels.push_back(i % 7 == 0 ? -1 : i % 4);
    const Dataset d = labelled(labels, 4);
    auto splits = splits_per_class(d, 5, 20, 30, 3, 7);
    REQUIRE(splits.size() == 3);
    for (const Split& s : splits) {
      Dataset with = d;
      with.splits = {s};
      check(with);
      CHECK(s.valid.size() == 20);
      CHECK(s.test.size() == 30);
      std::vector<int> of_class(4);
      for (Id i : s.train) ++of_class[d.labels[i]];
      CHECK(of_class == std::vector<int>(4, 5));
    }
    CHECK(splits[0].train != splits[1].train);
    auto again = splits_per_class(d, 5, 20, 30, 1, 7);
    CHECK(again[0].train == splits[0].train);  // however many are drawn
    CHECK(again[0].test == splits[0].test);
    CHECK(splits_per_class(d, 5, 20, 30, 1, 8)[0].train != splits[0].train);

    const auto known = static_cast<std::size_t>(std::ranges::count_if(labels, [](Id y) { return y >= 0; }));
    for (bool stratified : {false, true}) {
      Split s = splits_by_fraction(d, {.stratified = stratified}, 1, 3)[0];
      CHECK(all_of(s).size() == known);
      Dataset with = d;
      with.splits = {s};
      check(with);
      CHECK(std::abs(static_cast<double>(s.train.size()) - 0.6 * known) <= (stratified ? 2 : 0.5));
      if (!stratified) continue;
      std::vector<double> train(4), all(4);
      for (Id i : s.train) ++train[d.labels[i]];
      for (Id y : d.labels) y >= 0 ? void(++all[y]) : void();
      for (int c = 0; c < 4; ++c) CHECK(std::abs(train[c] - 0.6 * all[c]) <= 0.5);
    }
    CHECK(all_of(splits_by_fraction(d, {.train = 0.1, .valid = 0.1, .test = 0.1}, 1, 3)[0]).size() < known / 2);

    // Every node is as likely as any other to be in training: 1 of 4, 4000 seeds.
    std::vector<double> seen(8);
    const Dataset eight = labelled({0, 1, 0, 1, 0, 1, 0, 1}, 2);
    for (std::uint64_t seed = 0; seed < 4000; ++seed) {
      const Split s = splits_per_class(eight, 1, 0, 0, 1, seed)[0];
      for (Id i : s.train) seen[i] += 1.0 / 4000;
    }
    for (double share : seen) CHECK(std::abs(share - 0.25) < 0.035);  // deviation 0.007

    auto text = [&](const std::string& s) { return message([&] { make_splits(d, s, 1); }); };
    CHECK(make_splits(d, "per-class:5/20/30:3", 7)[2].test == splits[2].test);
    CHECK(make_splits(d, "fraction:0.5/0.25/0.25", 7).size() == 1);
    CHECK(make_splits(d, "stratified:.6/.2/.2:10", 7).size() == 10);
    CHECK(has(text("per-clas:1/2/3"), "unknown kind of splits 'per-clas'; did you mean per-class?"));
    for (const char* bad : {"per-class", "per-class:", "per-class:1/2", "per-class:1/2/3/4", "per-class:a/b/c",
                            "per-class:1/2/3:", "per-class:1/2/3:4:5", "per-class:1.5/2/3", "fraction:1/2:3"})
      CHECK_MESSAGE(has(text(bad), "expected"), bad);
    CHECK(has(text("per-class:1/2/3:0"), "0 splits"));
    CHECK(has(text("per-class:100/2/3"), "class 0 has"));
    CHECK(has(text("per-class:-1/2/3"), "fewer than 0"));
    CHECK(has(text("per-class:5/1000/3"), "nodes are left for 1000 of validation"));
    CHECK(has(text("fraction:0.6/0.3/0.3"), "more than 1"));
    CHECK(has(text("fraction:-0.1/0.3/0.3"), "share of 0 to 1"));
    CHECK(has(text("fraction:nan/0.3/0.3"), "share of 0 to 1"));
    CHECK(has(text("public"), "no splits of its own"));
    CHECK(has(text("file:/nowhere/at/all"), "/nowhere/at/all"));
  }

  TEST_CASE("splits are read from lists, masks and tables") {
    using L = std::vector<std::int64_t>;
    const std::string mask = npy("|b1", "(4,)", std::string("\0\1\0\0", 4));
    const Split expected{.train = {0, 3}, .valid = {1}, .test = {2}};
    auto same = [&](const std::vector<Split>& splits, std::size_t count = 1) {
      REQUIRE(splits.size() == count);
      CHECK(splits[0].train == expected.train);
      CHECK(splits[0].valid == expected.valid);
      CHECK(splits[0].test == expected.test);
    };
    auto of = [](const FileMap& files, const std::string& chosen = "") {
      return read_splits(Files("here", files, chosen), 4);
    };
    same(of({{"train.txt", "3\r\r\n0\n"}, {"val.npy", mask}, {"test.csv.gz", gzip("2")}}));
    same(of({{"s.csv", "split,node,part\n0,0,train\n0,3,train\n0,1,val\n0,2,test\n"}}, "s.csv"));
    same(of({{"s.npy", npy("|u1", "(2, 4)", std::string("\1\2\3\1\0\0\0\1", 8))}}, "s.npy"), 2);
    same(of({{"s.npz", zip({{.name = "train.npy", .bytes = npy("<i8", "(2,)", raw(L{3, 0}))},
                            {.name = "valid.npy", .bytes = npy("<i8", "(1,)", raw(L{1}))},
                            {.name = "test.npy", .bytes = npy("<i8", "(1,)", raw(L{2}))}})}},
            "s.npz"));
    auto bad = [&](const FileMap& files, const std::string& because, const std::string& chosen = "") {
      const std::string said = message([&] { of(files, chosen); });
      CHECK_MESSAGE(has(said, because), said);
    };
    bad({{"train.txt", "4\n"}, {"val.txt", ""}, {"test.txt", ""}},
        "here/train.txt, line 1, column 1: '4' is not a node");
    bad({{"train.txt", "1\n"}, {"val.txt", "1\n"}, {"test.txt", ""}}, "valid, entry 0: node 1 is in train already");
    bad({{"train.txt", "1\n"}, {"test.txt", ""}}, "0 of validation");
    bad({{"train.txt", "1\n"}, {"train.npy", mask}}, "same part");
    bad({{"s.npy", npy("|u1", "(4,)", "\1\2\3\4")}}, "row 0, node 3: part 4 is none of", "s.npy");
    bad({{"s.npy", npy("|u1", "(3,)", "\1\2\3")}}, "an element for each of 4 nodes", "s.npy");
  }

  TEST_CASE("components and the numbers of a dataset against brute force") {
    for (int round = 0; round < 50; ++round) {
      const std::uint64_t seed = fresh_seed();
      CAPTURE(seed);
      Random random(seed);
      const Dataset d = random_dataset(random);
      const Id n = d.nodes();
      std::set<std::pair<Id, Id>> either, stored;
      for (auto [from, to] : edges_of(d.graph)) {
        stored.emplace(from, to);
        if (from != to) either.emplace(std::min(from, to), std::max(from, to));
      }
      std::vector<Id> part(n);  // by relaxation
      for (Id i = 0; i < n; ++i) part[i] = i;
      for (bool moved = true; moved;) {
        moved = false;
        for (auto [i, j] : either)
          if (part[i] != part[j]) part[i] = part[j] = std::min(part[i], part[j]), moved = true;
      }
      auto found = components(*d.graph.adjacency);
      for (Id i = 0; i < n; ++i)
        for (Id j = 0; j < n; ++j) CHECK((part[i] == part[j]) == (found[i] == found[j]));
      const Statistics s = statistics(d);
      CHECK(s.components == static_cast<Id>(std::set<Id>(part.begin(), part.end()).size()));
      CHECK(s.undirected == static_cast<Offset>(either.size()));
      CHECK(s.directed == static_cast<Offset>(stored.size()));
      Offset loops = 0, same = 0, known = 0;
      for (auto [i, j] : stored) {
        loops += i == j;
        if (i == j || d.labels[i] < 0 || d.labels[j] < 0) continue;
        ++known, same += d.labels[i] == d.labels[j];
      }
      CHECK(s.loops == loops);
      CHECK(s.homophily == doctest::Approx(known > 0 ? static_cast<double>(same) / known : 0));
      CHECK(s.degree_mean == doctest::Approx(2.0 * either.size() / n));
    }
    const Statistics s = statistics(load("karate"));
    CHECK(s.degree_max == 17);
    CHECK(s.degree_median == 3);
    CHECK(s.of_class == std::vector<Offset>{17, 17});
    CHECK(s.filled == 34);
  }

  TEST_CASE("the public datasets hold what they are known to hold, by name and by path") {
    const fs::path data = public_data();
    if (data.empty()) {
      MESSAGE("skipped: no public data in $HEED_DATA");
      return;
    }
    struct Expected {
      const char *name, *path;
      Id nodes;
      Offset edges, channels;
      Id classes;
      double homophily;
      std::vector<std::size_t> split;  // of the first: train, valid, test
      std::size_t splits;
      Id isolated;
      Offset filled;
      bool sparse;
    };
    for (const Expected& e : std::vector<Expected>{
             {"amazon_photo", "amazon_photo", 7650, 119081, 745, 8, 0.83, {4590, 1530, 1530}, 1, 115, 1979909, true},
             {"coauthor_physics",
              "coauthor_physics",
              34493,
              247962,
              8415,
              5,
              0.93,
              {20695, 6898, 6900},
              1,
              0,
              1137311,
              true},
             {"github", "github", 37700, 289003, 4005, 2, 0.85, {}, 0, 0, 0, true},
             {"minesweeper",
              "heterophilous/minesweeper.npz",
              10000,
              39402,
              7,
              2,
              0.68,
              {5000, 2500, 2500},
              10,
              0,
              0,
              false},
             {"actor", "heterophilous/actor.npz", 7600, 26659, 932, 5, 0.22, {3648, 2432, 1520}, 10, 0, 0, true},
             {"chameleon_filtered",
              "heterophilous/chameleon_filtered.npz",
              890,
              8854,
              2325,
              5,
              0.24,
              {409, 287, 194},
              10,
              0,
              0,
              true},
             {"texas", "heterophilous/texas.npz", 183, 279, 1703, 5, 0.06, {87, 59, 37}, 10, 0, 0, true},
             {"email_eu_core", "email_eu_core", 1005, 16064, 1005, 42, 0.34, {}, 0, 19, 1005, true},
             {"cora", "cora", 2708, 5278, 1433, 7, 0.81, {140, 500, 1000}, 1, 0, 49216, true},
             {"citeseer",
              "citeseer/ind.citeseer.x",
              3327,
              4552,
              3703,
              6,
              0.74,
              {120, 500, 1000},
              1,
              48,
              105165,
              true}}) {
      CAPTURE(e.name);
      if (!fs::exists(data / e.path)) {
        MESSAGE("skipped: no " << e.path << " in " << data.string());
        continue;
      }
      const Dataset d = load(e.name, {.data = data});
      check_equal(d, load((data / e.path).string()));
      CHECK(d.name == e.name);
      const Statistics s = statistics(d);
      CHECK(s.nodes == e.nodes);
      CHECK(s.undirected == e.edges);
      CHECK(s.directed == 2 * e.edges);
      CHECK(s.symmetric);
      CHECK(s.loops == 0);
      CHECK(d.channels() == e.channels);
      CHECK(d.classes == e.classes);
      CHECK(std::ranges::count(s.of_class, 0) == 0);
      CHECK(std::abs(s.homophily - e.homophily) < 0.0051);
      CHECK(s.isolated == e.isolated);
      if (e.filled > 0) CHECK(s.filled == e.filled);
      CHECK(s.sparse == e.sparse);
      REQUIRE(d.splits.size() == e.splits);
      if (e.splits > 0)
        CHECK(std::vector{d.splits[0].train.size(), d.splits[0].valid.size(), d.splits[0].test.size()} == e.split);
    }
    MESSAGE("largest resident size after all of them: " << peak_rss_mb() << " MiB");
    CHECK(has(message([&] { load((data / "heterophilous").string()); }), "holds several datasets; name one of them"));
  }
}
