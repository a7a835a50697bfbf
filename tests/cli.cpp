// The program from outside: its JSON, its exit codes, and one clear line for every wrong input.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/scratch.h"
#include "train/recipes.h"

using namespace heed::test;

namespace {

namespace fs = std::filesystem;

struct Result {
  int code = -1;
  std::string out, err;
};

Result run(const std::string& arguments) {
  static Scratch folder;
  const std::string err = (folder.path / "err").string();
  setenv("HEED_OFFLINE", "1", 0);
  std::string command = std::string(HEED_BUILD "/heed ") + arguments + " 2>" + err;
  Result out;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  while (std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) out.out.append(buffer.data(), n);
  int status = pclose(pipe);
  out.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  out.err = contents(err);
  return out;
}

std::string fmt_percent(double value) {  // as the table shows it
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f %%", value);
  return text;
}

void refused(const std::string& arguments, const std::string& because) {
  CAPTURE(arguments);
  Result r = run(arguments);
  CAPTURE(r.err);
  CHECK(r.code == 2);
  CHECK(r.out.empty());
  CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
  CHECK(r.err.find(because) != std::string::npos);
}

}  // namespace

TEST_SUITE_BEGIN("cli");

TEST_CASE("train prints one JSON object and nothing else") {
  Result r = run("train karate --epochs 5 --runs 2 --seed 3 --threads 2 --json");
  CHECK(r.code == 0);
  auto j = nlohmann::json::parse(r.out);
  for (const char* key : {"dataset", "model", "metric", "runs", "seeds", "test_mean", "test_std", "valid_mean",
                          "epochs_mean", "epoch_ms", "seconds", "peak_rss_mb", "threads", "device", "version"})
    CHECK_MESSAGE(j.contains(key), key);
  CHECK(j["dataset"] == "karate");
  CHECK(j["model"] == "gat");
  CHECK(j["options"]["epochs"] == 5);
  CHECK(j["options"]["heads"].is_number());
  CHECK(j["seeds"] == nlohmann::json::array({3, 4}));
  CHECK(j["epochs_mean"] == 5);
  CHECK(j["threads"] == 2);
  CHECK(j["test_mean"] >= 0);
  CHECK(j["test_mean"] <= 100);
}

TEST_CASE("the same command gives the same result, on any number of threads") {
  auto of = [](const std::string& more) {
    return nlohmann::json::parse(run("train sbm --epochs 8 --runs 2 --json " + more).out)["test"];
  };
  CHECK(of("--threads 1") == of("--threads 2"));
  CHECK(of("--threads 1") == of("--threads 7"));
  CHECK(of("--seed 1") != of("--seed 2"));
}

TEST_CASE("several models make one table; --out holds the JSON; progress stays off standard output") {
  Scratch folder;
  const std::string file = (folder.path / "result.json").string();
  Result r = run("train karate --model gat,mlp --epochs 3 --out " + file);
  CHECK(r.code == 0);
  CHECK(std::count(r.out.begin(), r.out.end(), '\n') == 4);
  CHECK(r.err.find("epoch") != std::string::npos);
  CHECK(nlohmann::json::parse(std::ifstream(file))["results"].size() == 2);
  CHECK(run("train karate --epochs 3 --quiet").err.empty());
}

TEST_CASE("a table says which design each row is; --print-config gives all options as --config takes them") {
  CHECK(run("train karate --epochs 2 --quiet --score 'dot topk(3)' --heads 2")
            .out.find("gat --heads 2 --score 'dot topk(3)'") != std::string::npos);
  const Result all = run("train karate --epochs 2 --score 'dot topk(3)' --print-config");
  CHECK(all.code == 0);
  CHECK(all.out.find("score = \"dot topk(3)\"\n") != std::string::npos);
  Scratch files;
  const std::string file = files.write("run.toml", all.out).string();
  auto test = [](const std::string& options) {
    return nlohmann::json::parse(run(options + " --json --quiet").out)["test"];
  };
  CHECK(test("train --config " + file) == test("train karate --epochs 2 --score 'dot topk(3)'"));
}

TEST_CASE("masks and keys: trained with, said again by predict, and refused with their column") {
  Scratch files;
  auto at = [&](const char* name) { return (files.path / name).string(); };
  for (const char* options :
       {"--mask 'local | expander(3)' --keys 'every(2)'", "--mask '0-3: local; 4-7: random(4, step)'",
        "--mask community --keys 'learned(0.5)' --virtual-nodes 2", "--mask 'local | expander(4)' --parts true",
        "--mask 'expander(3, step)' --score 'softdtw(4)' --score-width 8",
        "--keys 'random(0.5, step) | degree(0.1)'"}) {
    CAPTURE(options);
    fs::remove_all(at("runs"));
    auto trained = run("train karate --epochs 4 --seed 5 --quiet " + std::string(options) + " --save " + at("runs"));
    CHECK(trained.err == "");
    CHECK(trained.code == 0);
    auto said = run("predict --weights " + at("runs/karate-gat-5.safetensors"));
    CHECK(said.code == 0);
    CHECK(said.out == contents(at("runs/karate-gat-5.csv")));
  }
  files.write("run.toml", "dataset = \"karate\"\nmask = \"local | hbs(2)\"\n");
  refused("train --config " + at("run.toml"), "line 2: mask: column 9: unknown mask 'hbs'; did you mean hubs?");
  refused("train karate --mask 'local | (self'", "--mask: column 14: expected ')' before the end");
  refused("train karate --keys 'evry(2)'", "--keys: column 1: unknown keys 'evry'; did you mean every?");
  refused("train karate --mask before", "before needs a time for each of the 34 nodes");
  refused("train karate --keys 'every(35)'", "every(35) needs at least 35 nodes; the graph has 34");
  refused("train karate --mask local --parts true", "parts need a mask that is a union, as local | self; 'local' has");
  refused("train karate --mask 'all | self' --parts true", "parts need a mask that is a list");
  refused("train karate --edges true", "the layer reads edge features, but the graph has none");
  refused("train karate --mask '0-3: local'", "there are masks for 4 heads, not for 8");
  refused("train karate --model gcn --mask local", "the model 'gcn' has no attention; 'mask' does not fit it");
}

TEST_CASE("filters follow a score: trained with, said again by predict, and refused with their column") {
  Scratch files;
  auto at = [&](const char* name) { return (files.path / name).string(); };
  for (const char* score : {"dot topk(3)", "gat above(-0.1)", "pearson topk(4) above(0.2)"}) {
    CAPTURE(score);
    fs::remove_all(at("runs"));
    const std::string train = "train karate --epochs 4 --seed 5 --quiet --save " + at("runs") + " --score ";
    auto trained = run(train + "'" + score + "'");
    CHECK(trained.err == "");
    CHECK(trained.code == 0);
    CHECK(contents(at("runs/karate-gat-5.toml")).find(score) != std::string::npos);
    auto said = run("predict --weights " + at("runs/karate-gat-5.safetensors"));
    CHECK(said.code == 0);
    CHECK(said.out == contents(at("runs/karate-gat-5.csv")));
    CHECK(run("train --quiet --config " + at("runs/karate-gat-5.toml") + " --save " + at("again")).code == 0);
    CHECK(contents(at("again/karate-gat-5.csv")) == contents(at("runs/karate-gat-5.csv")));
    CHECK(contents(at("again/karate-gat-5.toml")) == contents(at("runs/karate-gat-5.toml")));
    fs::remove_all(at("again"));
  }
  files.write("run.toml", "dataset = \"karate\"\nscore = \"dot topk(0)\"\n");
  refused("train --config " + at("run.toml"), "line 2: score: column 10: topk(k) takes a whole number of 1 to");
  refused("train karate --score 'gat abov(1)'", "--score: column 5: unknown filter 'abov'; did you mean above?");
  refused("train karate --score 'dto topk(2)'", "unknown score 'dto'; did you mean dot");
  CHECK(run("list filters").out.find("arXiv:1912.11637") != std::string::npos);
  CHECK(run("list").out.find("above(x)") != std::string::npos);
}

TEST_CASE("a formula as the score: trained with, saved, said again by predict, and refused with its column") {
  Scratch files;
  const std::string base = files.path.string();
  for (std::string formula : {"a*leaky(q+k+e, 0.2)", "exp(-sum(square(q - k)) / (2*exp(p0:0.5)))"}) {
    CAPTURE(formula);
    fs::remove_all(base + "/runs");
    std::ofstream(base + "/run.toml") << "dataset = \"sbm\"\nepochs = 5\nseed = 5\nscore = \"" << formula << "\"\n";
    auto trained = run("train sbm --epochs 5 --seed 5 --quiet --score '" + formula + "' --save " + base + "/runs");
    CHECK(trained.err == "");
    CHECK(trained.code == 0);
    CHECK(contents(base + "/runs/sbm-gat-5.toml").find("score = \"" + formula + "\"") != std::string::npos);
    auto said = run("predict --weights " + base + "/runs/sbm-gat-5.safetensors");
    CHECK(said.code == 0);
    CHECK(said.out == contents(base + "/runs/sbm-gat-5.csv"));
    CHECK(run("train --config " + base + "/run.toml --quiet --save " + base + "/again").code == 0);
    CHECK(contents(base + "/again/sbm-gat-5.csv") == said.out);
    fs::remove_all(base + "/again");
  }
  CHECK(run("train karate --epochs 2 --quiet --normaliser sum --score 'exp(q*k)'").code == 0);
  refused("train karate --score 'a*leeky(q+k, 0.2)'", "--score: the formula, column 3: unknown name 'leeky'");
  refused("train karate --score 'gatv-2'", "; or was it the score gatv2");
  refused("train karate --score 'dot topk(3'", "after the score 'dot' come topk(k) and above(x) alone, not ' topk(3'");
  refused("train karate --quiet --score 'log(q)'", "before the first step: scores or features make it so");
  refused("train karate --quiet --keys 'all - all'", "the keys that were chosen are none of this graph's nodes");
  refused("train karate --score 'gat(3)'", "after the score 'gat' come topk(k) and above(x) alone, not '(3)'");
  refused("train karate --quiet --model attention --activation relu --normaliser none --score 'a*sqrt(q-k)'",
          "training diverged: ");  // relu lets no NaN pass: the loss is finite
  refused("train karate --normaliser sum --score 'q*k'", "takes scores that are never negative");
  std::ofstream(base + "/run.toml") << "dataset = \"karate\"\nscore = \"q*(k\"\n";
  refused("train --config " + base + "/run.toml", "line 2: score: the formula, column 5: expected ')' before the end");
  CHECK(run("list scores").out.find("'FORMULA'") != std::string::npos);
  CHECK(run("bench --quick --nodes 500 --edges 4000 --kernels attention --threads 1 --json --scores "
            "'dot,a*leaky(q+k, 0.2)'")
            .out.find("a*leaky(q+k, 0.2)") != std::string::npos);
}

TEST_CASE("help, version and lists") {
  CHECK(run("--help").code == 0);
  CHECK(run("train --help").out.find("Examples:") != std::string::npos);
  CHECK(run("--version").out.find("heed ") == 0);
  CHECK(run("list").out.find("gatv2") != std::string::npos);
  CHECK(run("list masks").out.find("expander(d, step)") != std::string::npos);
  CHECK(run("list keys").out.find("farthest(share)") != std::string::npos);
  refused("list mask", "unknown kind 'mask'; did you mean masks?");
  CHECK(run("list scores").out.find("p corr(q, k)") != std::string::npos);
  CHECK(run("list scores").out.find("karate") == std::string::npos);
  CHECK(run("list normalisers").out.find("arXiv:1602.02068") != std::string::npos);
  refused("list score", "did you mean scores?");
  refused("--help > /dev/full", "cannot write standard output");
}

TEST_CASE("wrong words are named with the nearest right ones") {
  refused("tarin", "unknown command 'tarin'; did you mean train?");
  refused("train coar", "unknown dataset 'coar'; did you mean cora?");
  refused("train karate --model gta", "unknown model 'gta'; did you mean gat");
  refused("train karate --epoch 3", "'--epoch'; did you mean --epochs?");
  refused("train karate --stop los", "unknown stopping rule 'los'; did you mean loss?");
  refused("train karate --activation rellu", "did you mean relu");
  refused("train karate --norm bach", "did you mean batch?");
  refused("train karate --optimiser adm", "did you mean adam");
  refused("train karate surplus extra", "one word too many");
}

TEST_CASE("values out of range are refused") {
  refused("train karate --epochs 0", "--epochs: must be a whole number, 1 to 1000000000, not '0'");
  for (const char* value : {"many", "010", "0x10", "1e3", "1.5", "-1", "99999999999999999999", "''"})
    refused(std::string("train karate --epochs ") + value, "--epochs: must be a whole number");
  refused("train karate --seed -1", "--seed: must be a whole number, at least 0, not '-1'");
  refused("train karate --rate nan", "--rate: must be a number above 0, not 'nan'");
  refused("train karate --out ''", "--out: must not be empty");
  refused("train karate --runs -1", "--runs: must be a whole number");
  refused("train karate --heads 0", "--heads: must be a whole number, 1 to 65536, not '0'");
  refused("train karate --heads 60000", "wider than 65536 channels");
  refused("train karate --model gcn --heads 8", "has no attention");
  refused("train karate --model gcn --score dot", "has no attention");
  refused("train karate --score 'softdtw(3)'", "the score 'softdtw': 8 channels a head do not divide into 3 steps");
  refused("train karate --model attention --score softdtw --hidden 65536 --heads 1", "at most 4096 run");
  refused("train karate --score 'softdtw(8, 0)'", "--score: softdtw takes a number of steps, 1 or more");
  refused("train karate --score dto", "unknown score 'dto'; did you mean dot");
  refused("train karate --normaliser sum", "the normaliser 'sum' takes scores that are never negative");
  refused("train karate --temperature 0", "must be a number above 0");
  refused("train karate --score pearson --score-width 1", "needs at least 2 channels a head");
  refused("train karate --dropout 1", "--dropout: must be a number, at least 0 and below 1, not '1'");
  for (const char* bound : {"--rate 1e-46", "--rate 1e39", "--temperature 1e-46", "--dropout 0.999999999999"})
    refused(std::string("train karate ") + bound, "must be a number");  // as a float it is 0, 1 or none
  refused("train karate --rate 0", "--rate: must be a number above 0, not '0'");
  refused("train karate --threads -1", "--threads");
  refused("train karate --device gpu", "--device: unknown device 'gpu'");
  refused("train karate --device cuda --profile", "a profile tells of the CPU alone; use --device cpu");
  refused("train karate --split 9", "split 9");
}

TEST_CASE("outputs that cannot be written are refused before training") {
  refused("train karate --epochs 1 --quiet --out /nowhere/at/all.json", "cannot write /nowhere/at/all.json");
  refused("train karate --epochs 1 --quiet --out /", "cannot write /");
  refused("train karate --epochs 1 --quiet --json > /dev/full", "cannot write standard output");
}

TEST_CASE("an output keeps its mode and its links; pipes are written into; what is wrong is found before training") {
  Scratch folder;
  const std::string base = folder.path.string();
  std::ofstream(base + "/kept.json") << "old";
  fs::permissions(base + "/kept.json", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink(base + "/kept.json", base + "/link.json");
  CHECK(run("train karate --epochs 1 --quiet --out " + base + "/link.json").code == 0);
  CHECK(fs::is_symlink(base + "/link.json"));
  CHECK(fs::status(base + "/kept.json").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
  CHECK(nlohmann::json::parse(std::ifstream(base + "/kept.json"))["model"] == "gat");
  REQUIRE(mkfifo((base + "/pipe").c_str(), 0600) == 0);
  std::string read = "cat " + base + "/pipe > " + base + "/read.json & ";
  REQUIRE(
      std::system((read + HEED_BUILD "/heed train karate --epochs 1 --quiet --out " + base + "/pipe > /dev/null; wait")
                      .c_str()) == 0);
  CHECK(fs::is_fifo(base + "/pipe"));
  CHECK(nlohmann::json::parse(std::ifstream(base + "/read.json"))["runs"] == 1);
  refused("train karate,nope --epochs 1", "unknown dataset 'nope'");
  refused("train karate --model gat,gcn --heads 3 --epochs 1", "has no attention");
}

TEST_CASE("nobody listening on standard error changes nothing") {
  auto code = [](const std::string& arguments) {
    int status = std::system((std::string(HEED_BUILD "/heed ") + arguments).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  };
  CHECK(code("train karate --epochs 2 > /dev/null 2>&-") == 0);
  CHECK(code("train karate --epochs 2 > /dev/null 2> /dev/full") == 0);
  CHECK(code("nonsense 2> /dev/full") == 2);
  Scratch folder;  // a limit on the size of files is no full disk
  const std::string said = (folder.path / "said").string();
  const std::string limited = "(ulimit -f 2; " HEED_BUILD
                              "/heed train karate --epochs 300 --patience 0 --quiet --save " +
                              folder.path.string() + ") 2>&1 | cat > " + said;
  CHECK(std::system(limited.c_str()) == 0);
  CHECK(contents(said).find("karate-gat-1.jsonl: File too large\n") != std::string::npos);
}

TEST_CASE("missing and broken files are named") {
  Scratch folder;
  unsetenv("HEED_DATA");
  const fs::path cora = folder.path / "cora";
  refused("train cora --data " + folder.path.string() + " --quiet", "cora");
  fs::create_directories(cora);
  for (const char* part : {"x", "y", "tx", "ty", "allx", "ally", "graph"}) {
    std::ofstream file(cora / (std::string("ind.cora.") + part), std::ios::binary);
    file << "\x80\x02";  // a pickle that ends at once
  }
  std::ofstream(cora / "ind.cora.test.index") << "1708\n";
  refused("train cora --data " + folder.path.string() + " --quiet", "ind.cora.");
  std::ofstream(cora / "ind.cora.x", std::ios::binary) << "\x80\x02"
                                                          "cos\nsystem\n(S'true'\ntR.";
  refused("train cora --data " + folder.path.string() + " --quiet", "os");
}

TEST_CASE("a model predicts on data that the splits of its training do not fit") {
  Scratch files;
  const std::string base = files.path.string();
  fs::create_directories(base + "/new");
  files.write("new/edges.csv", "0,33\n1,2\n");
  REQUIRE(run("train karate --epochs 3 --seed 5 --quiet --splits per-class:3/4/5 --save " + base + "/runs").code == 0);
  const std::string on_new = "predict " + base + "/new --weights " + base + "/runs/karate-gat-5.safetensors";
  const Result said = run(on_new);
  CHECK(said.code == 0);
  CHECK(std::count(said.out.begin(), said.out.end(), '\n') == 35);
  CHECK(has(said.err, "not judged on the splits of the training: "));
  refused(on_new + " --splits per-class:3/4/5", "are left for");
  refused("train " + base + "/new --splits fraction:0.5/0.2/0.3", "no node has a label");
}

TEST_CASE("a saved run predicts what it predicted, and its configuration repeats it") {
  Scratch folder;
  const std::string base = folder.path.string(), model = base + "/a/karate-gatv2-3.safetensors";
  const std::string common = "train karate --model gatv2 --epochs 20 --seed 3 --quiet --json ";
  const Result first = run(common + "--save " + base + "/a");
  REQUIRE(first.code == 0);
  const double test = nlohmann::json::parse(first.out)["test_mean"];
  Result r = run("predict --weights " + model);
  CHECK(r.code == 0);
  CHECK(r.out == contents(base + "/a/karate-gatv2-3.csv"));
  CHECK(r.err.find(fmt_percent(test)) != std::string::npos);
  CHECK(run("predict karate --weights " + model + " --out " + base + "/p.json").code == 0);
  const auto json = nlohmann::json::parse(std::ifstream(base + "/p.json"));
  CHECK(json["class"].size() == 34);
  CHECK(json["probabilities"][0].size() == 2);
  const heed::TrainedModel trained = heed::read_model(model);  // the same as a library has it
  const heed::Matrix<float> logits = trained.predict(heed::load("karate"));
  for (heed::Id i = 0; i < 34; ++i) CHECK(heed::predicted(logits, i) == json["class"][static_cast<std::size_t>(i)]);
  CHECK(run("predict --weights " + model + " --out " + base + "/p.npz").code == 0);
  CHECK(run("train --config " + base + "/a/karate-gatv2-3.toml --quiet --save " + base + "/b").code == 0);
  CHECK(contents(base + "/a/karate-gatv2-3.csv") == contents(base + "/b/karate-gatv2-3.csv"));
  CHECK(contents(base + "/a/karate-gatv2-3.jsonl") == contents(base + "/b/karate-gatv2-3.jsonl"));
  CHECK(contents(base + "/a/karate-gatv2-3.toml") == contents(base + "/b/karate-gatv2-3.toml"));
  refused(common + "--save " + base + "/a", "is there already; --resume");
  CHECK(run(common + "--resume --save " + base + "/a").code == 0);
  refused(common + "--resume --rate 0.5 --save " + base + "/a", "made with 'rate = 0.005', not with 'rate = 0.5'");
  refused("train karate --resume", "--resume needs --save");
  for (const char* plain : {"gcn", "sage", "mlp"}) {  // models without attention, whose options they do not have
    const std::string saved = base + "/plain/karate-" + plain + "-1";
    CHECK(run(std::string("train karate --epochs 2 --model ") + plain + " --save " + base + "/plain").code == 0);
    CHECK(run("predict --weights " + saved + ".safetensors").code == 0);
    CHECK(run("train --config " + saved + ".toml").code == 0);
  }
  refused("predict --weights " + base + "/none.safetensors", "No such file");
  refused("predict --weights " + base + "/p.json", "not a safetensors file");
  refused("predict sbm --weights " + model, "was trained on nodes with 34 features each; those of 'sbm' have 64");
  refused("predict --weights " + model + " --model gat", "the tensor 'layers.0.weight' of the model is missing");
  refused("predict --weights " + model + " --format npz", "--out FILE says where it goes");
  refused("predict --weights " + model + " --format xml", "unknown format 'xml'");
}

TEST_CASE("a configuration file is read strictly") {
  Scratch folder;
  const std::string file = (folder.path / "run.toml").string();
  auto wrong = [&](const std::string& text, const std::string& because) {
    std::ofstream(file) << text;
    refused("train --config " + file, file + ", line " + because);
  };
  wrong("dataset = \"karate\"\nhiden = 8\n", "2: unknown option 'hiden'; did you mean hidden?");
  wrong("hidden = 8\nhidden = 9\n", "2: ");
  wrong("hidden = \n", "1: ");
  wrong("\n\nhidden = [8]\n", "3: hidden must be a number, a truth value or text");
  wrong("epochs = 0\n", "1: epochs: must be a whole number, 1 to 1000000000, not '0'");
  wrong("model = \"gta\"\n", "1: model: unknown model 'gta'");
  wrong("epochs = 3\nmodel = \"gcn\"\nheads = 8\n", "3: heads: the model 'gcn' has no attention");
  std::ofstream(file) << "dataset = \"karate\"  # a comment\nepochs = 4\ndecay = 0\nmodel = \"mlp,gcn\"\n";
  const Result r = run("train --quiet --json --epochs 3 --config " + file);
  const auto results = nlohmann::json::parse(r.out)["results"];
  CHECK(results.size() == 2);
  CHECK(results[0]["epochs_mean"] == 3);
  refused("train --config " + file + "x", "No such file");
}

TEST_CASE("an interrupt ends with 130 after a checkpoint, and the run can be resumed") {
  Scratch folder;
  const std::string base = folder.path.string();
  for (const char* signal : {"INT", "TERM"}) {
    const std::string save = base + "/" + signal;
    std::string command = std::string("sh -c '") + HEED_BUILD "/heed train sbm --epochs 100000 --quiet --save " + save +
                          " > /dev/null 2> " + base + "/err & p=$!; while ! [ -s " + save +
                          "/sbm-gat-1.jsonl ]; do sleep 0.05; done; kill -" + signal + " $p; wait $p'";
    const int status = std::system(command.c_str());
    CHECK(WEXITSTATUS(status) == 130);
    CHECK(contents(base + "/err").find("heed: interrupted after epoch ") == 0);
    CHECK(fs::exists(save + "/sbm-gat-1.safetensors"));
    CHECK(!fs::exists(save + "/sbm-gat-1.csv"));
    refused("train sbm --epochs 99 --quiet --resume --save " + save, "made with 'epochs = 100000'");
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they want to be loaded first
TEST_CASE("whatever the disk refuses, the old checkpoint stays whole") {
  Scratch folder;
  const std::string base = folder.path.string(), model = "/karate-gat-1.safetensors";
  const std::string training = " train karate --epochs 12 --every 3 --quiet --resume --save ";
  auto faulty = [&](const std::string& fault, const std::string& save) {
    const int status = std::system(("HEED_FAULT=" + fault + " LD_PRELOAD=" HEED_BUILD "/libheed_faults.so " +
                                    HEED_BUILD "/heed" + training + save + " > /dev/null 2> " + base + "/err")
                                       .c_str());
    return WEXITSTATUS(status);
  };
  REQUIRE(run(training.substr(1) + base + "/whole").code == 0);
  for (const char* call : {"write", "fsync", "rename"}) {
    bool began = false;
    for (int n = 1;; ++n) {
      CAPTURE(call);
      CAPTURE(n);
      REQUIRE(n < 200);
      const std::string save = base + "/" + call + std::to_string(n);
      if (began) fs::copy(base + "/" + call, save);  // go on from the last state that was left behind
      const std::string before = fs::exists(save + model) ? contents(save + model) : "";
      const int code = faulty(std::string(call) + ":" + std::to_string(n), save);
      if (code == 0) break;
      CHECK(code == 2);
      CHECK(contents(base + "/err").find("cannot write ") != std::string::npos);
      for (const auto& entry : fs::directory_iterator(save)) CHECK(entry.path().extension() != ".part");
      if (!fs::exists(save + model)) {
        CHECK(before.empty());
        continue;
      }
      CHECK(run("predict --weights " + save + model).code == 0);  // whole: the old one or a newer
      if (!began) fs::copy(save, base + "/" + call);
      began = true;
      CHECK(run(training.substr(1) + save).code == 0);
      CHECK(contents(save + "/karate-gat-1.csv") == contents(base + "/whole/karate-gat-1.csv"));
    }
    CHECK(began);
  }
}
#endif

TEST_CASE("datasets are listed, shown and converted") {
  Scratch folder;
  const std::string base = folder.path.string();
  CHECK(run("datasets").out.find("coauthor_physics") != std::string::npos);
  auto list = nlohmann::json::parse(run("datasets --json --data " + base).out);
  CHECK(list.size() >= 13);
  CHECK(list[1]["name"] == "karate");
  CHECK(list[1]["there"] == true);
  CHECK(run("info karate").out.find("78 undirected") != std::string::npos);
  auto of = [](const std::string& dataset) {
    auto j = nlohmann::json::parse(run("info " + dataset + " --json").out);
    j.erase("name");
    return j;
  };
  const auto karate = of("karate");
  CHECK(karate["nodes"] == 34);
  CHECK(karate["edges"]["undirected"] == 78);
  CHECK(karate["class_sizes"] == nlohmann::json::array({17, 17}));
  CHECK(karate["splits"][0]["test"] == 20);
  // Through all formats that are written and back.
  std::string from = "karate";
  for (const auto& [format, to] : {std::pair{"csv", "/a"},
                                   {"matrix-market", "/b"},
                                   {"graphml", "/c.graphml"},
                                   {"graphml", "/c"},
                                   {"heed", "/d"}}) {
    Result r = run("convert " + from + " " + base + to + " --format " + format);
    CAPTURE(r.err);
    CHECK(r.code == 0);
    from = base + to;
    CHECK(of(from) == karate);
  }
  CHECK(run("train " + base + "/d --epochs 2 --json").code == 0);
  refused("convert karate " + base + "/a", "is there already");
  fs::create_directory(base + "/empty");
  CHECK(run("convert karate " + base + "/empty").code == 0);
  CHECK(of(base + "/empty") == karate);
  refused("convert karate " + base + "/x --format planetoid", "unknown format that can be written 'planetoid'");
  refused("convert karate " + base + "/x --format cvs", "did you mean csv");
  fs::create_directory(folder.path / "nothing");
  refused("info " + base + "/nothing", "no dataset of a known format");
  refused("info ./nowhere", "no such file or folder");
  std::ofstream(base + "/a/labels.csv", std::ios::app) << "34,9999\n";
  refused("convert " + base + "/a " + base + "/x", "labels.csv, line 37: node 34 is outside 0..33");
  CHECK_FALSE(fs::exists(folder.path / "x"));
}

TEST_CASE("splits are drawn on the command line") {
  auto test = [](const std::string& splits) {
    return run("train karate --epochs 3 --json --runs 2 --splits " + splits);
  };
  CHECK(test("per-class:2/8/12:2").code == 0);
  CHECK(test("per-class:2/8/12:2").out.substr(0, 200) == test("per-class:2/8/12:2").out.substr(0, 200));
  CHECK(test("stratified:0.5/0.25/0.25").code == 0);
  refused("train karate --splits per-class:20/8/12", "class 0 has 17 nodes, fewer than 20 of training");
  refused("train karate --splits fractions:0.5/0.2/0.2", "did you mean fraction");
  refused("train karate --splits fraction:0.5", "expected fraction:0.6/0.2/0.2");
}

TEST_CASE("a public dataset is downloaded where that is not forbidden") {
  Scratch folder;
  unsetenv("HEED_DATA");
  setenv("XDG_CACHE_HOME", folder.path.c_str(), 1);
  setenv("HEED_MIRROR", "file:///nowhere", 1);  // no server: refused at once
  refused("train cora --quiet", "dataset 'cora' is missing");
  setenv("HEED_OFFLINE", "0", 1);
  refused("train cora --quiet", "cannot download file:///nowhere/cora/ind.cora.x: ");
  refused("train cora --offline --quiet", "dataset 'cora' is missing");
  for (const char* name : {"HEED_OFFLINE", "HEED_MIRROR", "XDG_CACHE_HOME"}) unsetenv(name);
}

TEST_CASE("names from files stay names, and what cannot be trained or said is refused") {
  Scratch folder;
  const std::string base = folder.path.string();
  REQUIRE(run("convert karate " + base + "/d").code == 0);
  std::string json = contents(base + "/d/dataset.json");
  const auto at = json.find("\"karate\"");
  REQUIRE(at != std::string::npos);
  std::ofstream(base + "/d/dataset.json") << json.replace(at, 8, "\"../../evil\"");
  CHECK(run("train " + base + "/d --epochs 2 --quiet --save " + base + "/s").code == 0);
  CHECK(fs::exists(base + "/s/data.._.._evil-gat-1.safetensors"));
  const std::string twice = "train karate --model gat,gat --epochs 2 --save " + base;
  refused(twice + "/t", "two trainings would be saved as 'karate-gat'");
  refused("predict --weights " + base + "/s/data.._.._evil-gat-1.safetensors --out " + base + "/p.foo",
          "unknown format of predictions 'foo'");
  std::ofstream(base + "/deep.toml") << "a" << [] {
    std::string dots;
    for (int i = 0; i < 40000; ++i) dots += ".a";
    return dots;
  }() << "=1\n";
  refused("train karate --config " + base + "/deep.toml", "line 1: has more than 10000 dots");
  refused("train karate --seed 9223372036854775807 --runs 2", "the seed of the last run");
  CHECK(run("train karate --epochs 3 --save " + base + "/c 2>&-").code == 0);
  CHECK(contents(base + "/c/karate-gat-1.jsonl").find("karate") == std::string::npos);
}

TEST_CASE("heed bench verifies, times and compares") {
  Scratch folder;
  const std::string base = folder.path.string();
  Result r =
      run("bench --graphs rmat,star,all --nodes 300 --edges 3000 --shapes 3x5 --threads 1,2 --repeat 1 "
          "--normalisers softmax --json --out " +
          base + "/a.json");
  REQUIRE_MESSAGE(r.code == 0, r.err);
  CHECK(contents(base + "/a.json") == r.out);
  const auto rows = nlohmann::json::parse(r.out);
  int ranges = 0, backward = 0;
  for (const auto& row : rows) {
    CHECK(row["verified"] == true);
    CHECK(row["ms"].get<double>() > 0);
    CHECK(row["floor_ms"].get<double>() > 0);
    CHECK(row["share"].get<double>() == doctest::Approx(row["floor_ms"].get<double>() / row["ms"].get<double>()));
    CHECK(row["peak_mb"].get<double>() >= 0);
    CHECK((row["threads"] == 1 || row["threads"] == 2));
    if (row["graph"] == "star") CHECK(row["nodes"] == 751);
    ranges += row["graph"] == "all" && row["kernel"] == "attention";
    backward += row["pass"] == "forward + backward";
  }
  CHECK(ranges > 0);
  CHECK(backward > ranges);

  auto faster = rows;
  for (auto& row : faster) row["spread"] = 0.01;
  folder.write("b.json", faster.dump());
  faster[0]["ms"] = faster[0]["ms"].get<double>() / 3;
  folder.write("c.json", faster.dump());
  r = run("bench --compare " + base + "/b.json " + base + "/c.json");
  CHECK(r.code == 0);
  CHECK(has(r.out, "3.00 faster"));
  CHECK(has(r.out, "1 rows changed beyond noise, " + std::to_string(rows.size() - 1) + " did not; 0 are"));
  folder.write("d.json", "[{\"kernel\": \"spmm\"}]");
  refused("bench --compare " + base + "/b.json " + base + "/d.json", "d.json: row 0 lacks a proper 'score'");
  refused("bench --compare " + base + "/b.json " + base + "/none.json", "none.json");
  refused("bench --kernels spm", "spmm");
  refused("bench --graphs starr", "unknown graph 'starr'; did you mean star");
  CHECK(run("bench layer --help").out.find("Kernels:") == std::string::npos);
  refused("bench --shapes 4", "'4' is not heads x channels");
  refused("bench --shapes 0x4", "--shapes: must be a whole number, 1 to 4096, not '0'");
  refused("bench --scores \"\"", "no name given");
  refused("bench --threads x", "--threads: must be a whole number, 0 to 4096, not 'x'");
}

TEST_CASE("heed bench costs shows each cost beside its limit") {
  const Result r = run("bench costs --quick --repeat 1 --markdown --only context,masks,kept,alone");
  REQUIRE_MESSAGE(r.code == 0, r.err);
  std::string narrow;  // without what aligns the columns
  for (char c : r.out)
    if (c != ' ' || narrow.empty() || narrow.back() != ' ') narrow += c;
  for (const std::string text : {"| nodes |", "| all - local |", "| community |", "| gat x softmax |",
                                 "≤ 3 met; ≤ 1 met", "| gat | 2000 | 20000 | 8 x 8 |", " limits met\n"})
    CHECK_MESSAGE(has(narrow, text), text);
  CHECK_FALSE(has(run("bench costs --quick --only kept").out, "NOT MET"));  // as it depends on no clock
  CHECK(has(run("bench costs --quick --repeat 1 --only peak,times").out, "pearson"));
  refused("bench costs --only time", "unknown part 'time'; did you mean times?");
}

TEST_CASE("heed bench writes what a peer needs to do the same") {
  Scratch folder;
  const std::string file = (folder.path / "given").string();
  auto shapes = [&](const std::string& arguments) {
    const Result r = run("bench " + arguments + " --nodes 90 --edges 300 --repeat 1 --write " + file);
    REQUIRE_MESSAGE(r.code == 0, r.err);
    const std::string bytes = contents(file);
    std::uint64_t length = 0, end = 0;
    REQUIRE(bytes.size() > sizeof(length));
    std::memcpy(&length, bytes.data(), sizeof(length));
    auto header = nlohmann::json::parse(bytes.substr(sizeof(length), length));
    header.erase("__metadata__");
    nlohmann::json out;
    for (const auto& [name, entry] : header.items()) {
      out[name] = entry["shape"];
      CHECK(entry["dtype"] == (name == "edges" ? "I32" : "F32"));
      end = std::max(end, entry["data_offsets"][1].get<std::uint64_t>());
    }
    CHECK(bytes.size() == sizeof(length) + length + end);
    return out;
  };
  using Json = nlohmann::json;
  CHECK(shapes("layer --score gat --in 6 --heads 2 --channels 3") ==
        Json::parse(R"({"edges": [300, 2], "x": [90, 6], "dx": [90, 6], "y": [90, 6], "dy": [90, 6],
                        "weight": [6, 6], "dweight": [6, 6], "att_src": [1, 6], "datt_src": [1, 6],
                        "att_dst": [1, 6], "datt_dst": [1, 6], "bias": [1, 6], "dbias": [1, 6]})"));
  CHECK(shapes("--kernels spmm --shapes 2x3") ==
        Json::parse(R"({"edges": [300, 2], "weights": [1, 300], "x": [90, 6], "y": [90, 6]})"));
  const Json all = shapes("--kernels attention --scores dot --normalisers softmax --graphs all --shapes 2x3");
  CHECK(all.size() == 8);
  CHECK_FALSE(all.contains("edges"));
  CHECK(all["dk"] == Json({90, 6}));
  const Result none = run("bench --kernels sddmm --nodes 90 --edges 300 --repeat 1 --write " + file);
  CHECK(none.code == 2);
  CHECK(has(none.err, "the kernel 'sddmm' writes nothing"));
}

namespace {

// `heed sweep` on its own, watched from outside.
struct Sweeping {
  pid_t process;
  explicit Sweeping(const std::string& arguments) : process(fork()) {
    if (process != 0) return;
    const std::string command = "exec " HEED_BUILD "/heed sweep " + arguments + " > /dev/null 2>&1";
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  int end() {  // its exit code, or 128
    int status = 0;
    waitpid(process, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  }
};

// Processes but this one whose command line holds a text.
std::vector<pid_t> processes(const std::string& text) {
  std::vector<pid_t> out;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (!std::isdigit(static_cast<unsigned char>(name[0])) || std::stol(name) == getpid()) continue;
    if (has(contents(entry.path() / "cmdline"), text)) out.push_back(std::stoi(name));
  }
  return out;
}

template <class Condition>
bool comes_true(Condition condition) {
  for (int i = 0; i < 6000; ++i, usleep(10'000))
    if (condition()) return true;
  return false;
}

long lines(const std::string& path) {
  const std::string text = contents(path);
  return std::count(text.begin(), text.end(), '\n');
}

nlohmann::json without_times(const std::string& path) {
  auto out = nlohmann::json::parse(std::ifstream(path));
  for (auto& row : out["rows"])
    for (const char* time : {"epoch_ms", "seconds_mean", "peak_mb"}) row.erase(time);
  return out;
}

}  // namespace

TEST_CASE("a sweep killed twice and resumed ends as one that was not") {
  Scratch folder;
  const std::string base = folder.path.string(), file = base + "/s.toml";
  folder.write("s.toml",
               "runs = 4\nepochs = 25\nbaseline = \"gat\"\ndataset = [\"karate\", \"sbm\"]\n[design.gat]\n"
               "[design.\"shuffled | self\"]\nmask = \"shuffled | self\"\n[design.mlp]\nmodel = \"mlp\"\n");
  const std::string common = file + " --data " + base + " --jobs 2 --save ";
  const Result whole = run("sweep " + common + base + "/whole --markdown --quiet");
  CHECK(whole.err == "");
  REQUIRE(whole.code == 0);
  CHECK(has(whole.out, "| design"));
  CHECK(has(whole.out, "sbm, accuracy %"));
  CHECK(has(whole.out, "shuffled \\| self"));
  CHECK(lines(base + "/whole/runs.jsonl") == 24);
  CHECK(lines(base + "/whole/results.csv") == 7);
  CHECK(has(contents(base + "/whole/results.tex"), "shuffled \\textbar{} self & "));
  CHECK(has(contents(base + "/whole/results.md"), "against gat"));

  const std::string log = base + "/cut/runs.jsonl";
  for (const long after : {3, 11}) {
    Sweeping sweep(common + base + "/cut --resume");
    REQUIRE(comes_true([&] { return lines(log) >= after; }));
    kill(sweep.process, SIGKILL);
    CHECK(sweep.end() == 128);
    CHECK(comes_true([&] { return processes(base).empty(); }));  // its runs have died with it
    CHECK(lines(log) < 24);
    std::ofstream(log, std::ios::app) << "{\"design\": \"gat\", \"data";  // as if it had been killed while it wrote
  }
  const long before = lines(log);
  const Result resumed = run("sweep " + common + base + "/cut --resume --markdown");
  CHECK(resumed.code == 0);
  CHECK(std::count(resumed.err.begin(), resumed.err.end(), '\n') == 24 - before);  // what was done is not done again
  CHECK(resumed.out == whole.out);
  CHECK(without_times(base + "/cut/results.json") == without_times(base + "/whole/results.json"));
  const auto rows = without_times(base + "/cut/results.json")["rows"];
  REQUIRE(rows.size() == 6);
  CHECK(rows[3]["t_test"] == "paired");
  CHECK(rows[1]["test"] == nlohmann::json::parse(run("train sbm --epochs 25 --runs 4 --json").out)["test"]);

  refused("sweep " + common + base + "/cut", base + "/cut/sweep.toml is there already; --resume");
  const Result again = run("sweep " + common + base + "/cut --resume --baseline mlp --csv");
  CHECK(again.code == 0);
  CHECK(again.err == "");
  CHECK(has(again.out, "design,dataset,metric,runs"));
  folder.write("s.toml", contents(file) + "hidden = 5\n");
  refused("sweep " + common + base + "/cut --resume",
          "cut/sweep.toml: made with 'hidden = 64', not with 'hidden = 5', in [design.\"mlp\".\"karate\"]");
  folder.write("other.toml", "epochs = 1\n");
  refused("sweep " + base + "/other.toml --resume --save " + base + "/cut", "made with '[design.\"gat\".\"karate\"]'");
  folder.write("friends.txt", "0 33\n33 0\n");
  folder.write("prior.toml", "dataset = \"karate\"\nepochs = 2\nmask = \"pairs(" + base + "/friends.txt) | self\"\n");
  const std::string prior = "sweep " + base + "/prior.toml --quiet --resume --save " + base + "/prior";
  CHECK(run(prior).code == 0);
  CHECK(run(prior).code == 0);
  folder.write("friends.txt", "0 33\n33 1\n");
  refused(prior, "made with 'files = \"friends.txt ");
  std::ofstream(log, std::ios::app) << "nonsense\n";
  folder.write("s.toml", contents(file).substr(0, contents(file).rfind("hidden")));
  refused("sweep " + common + base + "/cut --resume", "runs.jsonl, line 25: is no JSON object");
}

TEST_CASE("a run that fails ends neither the others nor the table; an interrupt ends all") {
  Scratch folder;
  const std::string base = folder.path.string(), file = base + "/s.toml";
  folder.write("s.toml", "dataset = \"karate\"\nepochs = 9\nruns = 2\n[design.a]\n[design.wild]\nrate = 1e30\n");
  const Result wild = run("sweep " + file + " --save " + base + "/wild");
  CHECK(wild.code == 1);
  CHECK(has(wild.err, "wild on karate, seed 2: training diverged"));
  CHECK(has(wild.err, "heed: 2 of 4 runs failed"));
  CHECK(has(wild.out, "failed: wild on karate, 2 of 2 runs: training diverged"));
  const auto rows = nlohmann::json::parse(std::ifstream(base + "/wild/results.json"))["rows"];
  CHECK((rows[0]["runs"] == 2 && rows[0]["failed"] == 0 && rows[1]["failed"] == 2));
  CHECK((rows[1]["test_mean"].is_null() && rows[1]["parameters"].is_null() && rows[0]["test_mean"].is_number()));
  CHECK(has(contents(base + "/wild/results.csv"), "wild,karate,accuracy,0,2,,,"));
  CHECK(run("sweep " + file + " --quiet --resume --save " + base + "/wild").code == 1);
  CHECK(lines(base + "/wild/runs.jsonl") == 6);  // the failed ones once more

  folder.write("long.toml", "dataset = \"sbm\"\nepochs = 100000\nruns = 2\n");
  const std::string common = base + "/long.toml --data " + base + " --jobs 1 --save " + base;
  auto runs = [&] {  // of the sweep: their command lines do not hold its file
    std::vector<pid_t> out;
    for (pid_t p : processes(base))
      if (!has(contents("/proc/" + std::to_string(p) + "/cmdline"), "long.toml")) out.push_back(p);
    return out;
  };
  for (const int signal : {SIGINT, SIGTERM}) {
    Sweeping sweep(common + "/int" + std::to_string(signal));
    REQUIRE(comes_true([&] { return !runs().empty(); }));
    kill(sweep.process, signal);
    CHECK(sweep.end() == 130);
    CHECK(processes(base).empty());
  }
  Sweeping sweep(common + "/killed");
  for (const long done : {0, 1}) {
    REQUIRE(comes_true([&] { return lines(base + "/killed/runs.jsonl") == done && !runs().empty(); }));
    for (pid_t p : runs()) kill(p, SIGKILL);
  }
  CHECK(sweep.end() == 1);
  CHECK(has(contents(base + "/killed/runs.jsonl"), "ended by signal 9 (Killed)"));
}

TEST_CASE("what is wrong with a sweep is said before its first run") {
  Scratch folder;
  const std::string base = folder.path.string(), file = base + "/s.toml";
  auto wrong = [&](const std::string& text, const std::string& because) {
    folder.write("s.toml", text);
    refused("sweep " + file + " --save " + base + "/none", because);
    CHECK_FALSE(fs::exists(base + "/none"));
  };
  std::string list;
  for (int i = 1; i <= 1000; ++i) list += std::to_string(i) + ", ";
  wrong("heads = [" + list + "]\nhidden = [" + list + "]\nruns = 1000\n",
        "s.toml: 1000000000 runs; a sweep has at most 100000");
  wrong("\nhiden = 8\n", "s.toml, line 2: unknown option 'hiden'; did you mean hidden?");
  wrong("dataset = \"karate\"\n[design.a]\n[design.b]\nmask = \"before\"\n",
        "s.toml, line 3: b on karate: before needs");
  wrong("dataset = \"" + base + "/nowhere\"\n", "s.toml, line 1: dataset: ");
  wrong("score = [\"dot\"\n", "s.toml, line ");
  wrong("[design.gcn]\nmodel = \"gcn\"\nheads = 2\n", "line 3: heads: the model 'gcn' has no attention");
  folder.write("s.toml", "dataset = \"karate\"\nruns = 3\nmask = [\"local | self\", \"all\"]\n");
  refused("sweep " + file, "--save FOLDER says where the results go");
  refused("sweep none.toml", "none.toml: No such file");
  refused("sweep " + base + "/none.toml --save " + base + "/x", "none.toml");
  refused("sweep " + file + " --save " + base + "/x --baseline al",
          "--baseline: unknown design 'al'; did you mean all?");
  refused("sweep " + file + " --save " + base + "/x --json --csv", "excludes");
  refused("sweep " + file + " --save " + base + "/x --jobs 0", "--jobs: must be a whole number, 1 to 4096, not '0'");
  refused("sweep " + file + " --save /proc/nowhere", "cannot write /proc/nowhere");
  const Result list_of = run("sweep " + file + " --list");
  CHECK(list_of.out ==
        "heed train karate '--mask=local | self' --seed=1 --runs=3\n"
        "heed train karate --mask=all --seed=1 --runs=3\n");
  folder.write("s.toml", "dataset = \"karate\"\nseed = [1, 5, 3]\n");
  const std::string each = run("sweep " + file + " --list").out;
  CHECK(std::count(each.begin(), each.end(), '\n') == 3);
  CHECK(has(each, "--seed=5"));
}

TEST_SUITE_END();
